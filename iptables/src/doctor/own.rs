//! Outrigger's own redirect: at work, or inert. Its proxy is asked, over the control socket.

use super::{Finding, Level};
use crate::tether;

pub(super) fn judge(port: u16, mut evidence: Vec<String>) -> Finding {
    let status = tether::status(port);
    let (level, what) = match &status {
        Ok(Some(status)) if status.is_captured => (
            Level::Info,
            format!(
                "connections are redirected to Outrigger (pid {}, user {}) on port {port}, which is alive and renews its lease",
                status.proxy.pid, status.proxy.uid
            ),
        ),
        Ok(Some(status)) => {
            evidence.extend(status.obstacle.iter().map(|o| format!("no beat: {o}")));
            evidence.extend(status.given_up.iter().map(|g| format!("given up: {g}")));
            (
                Level::Warning,
                format!(
                    "Outrigger's rules for port {port} are inert: its proxy lives, but its lease has run out, so that connections go direct"
                ),
            )
        }
        Ok(None) => (
            Level::Warning,
            format!("Outrigger's rules for port {port} are left over: no proxy of theirs runs"),
        ),
        Err(error) => {
            evidence.push(format!("the control socket: {error}"));
            (
                Level::Warning,
                format!(
                    "Outrigger's proxy on port {port} does not answer; once its lease has run out its rules are inert"
                ),
            )
        }
    };
    let is_healthy = level == Level::Info;
    Finding {
        level,
        kind: if is_healthy {
            "own_redirect"
        } else {
            "own_inert"
        },
        what,
        evidence,
        fix: (!is_healthy).then(|| format!("proxyctl remove-rules --port {port}")),
    }
}
