//! One control connection: requests in, replies out, until it closes or falls silent.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use outrigger_config::control::{
    LoopOutcome, MAX_LINE, NOT_UNDERSTOOD, Reply, Request, Tether, Watch,
};
use tokio::{net::UnixStream, time::timeout};

use crate::failure::Failure;

use super::{
    ControlState, Hooks,
    lines::{Line, Lines},
};

/// Longer than any step of an install between two requests: its probes are bounded to 15 s a
/// family.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Within the time that the installer waits for a reply.
const LOOP_PROBE_LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Session {
    id: u64,
    lines: Lines,
    state: Arc<ControlState>,
    hooks: Arc<Hooks>,
}

impl Session {
    pub(super) fn new(stream: UnixStream, state: Arc<ControlState>, hooks: Arc<Hooks>) -> Self {
        Self {
            id: state.next_session(),
            lines: Lines::new(stream),
            state,
            hooks,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let line = match timeout(IDLE_LIMIT, self.lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "control connection broken off");
                    return;
                }
            };
            let reply = self.reply(line).await;
            let Ok(mut text) = serde_json::to_vec(&reply) else {
                return;
            };
            if text.len() > MAX_LINE {
                let reply = Reply::Refused("the answer is longer than a line may be".into());
                text = serde_json::to_vec(&reply).unwrap_or_default();
            }
            text.push(b'\n');
            match timeout(IDLE_LIMIT, self.lines.write(&text)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    async fn reply(&self, line: Line) -> Reply {
        let request = match serde_json::from_slice(&line.text) {
            Ok(request) => request,
            Err(error) => return Reply::Refused(format!("{NOT_UNDERSTOOD}: {error}")),
        };
        tracing::debug!(?request, "control request");
        let done = match request {
            Request::Hello => return Reply::Hello(self.state.identity()),
            Request::Status => return Reply::Status(Box::new(self.state.status())),
            Request::Explain(_) | Request::Traffic { .. } => {
                let told = (self.hooks.tell)(&request);
                return told
                    .unwrap_or_else(|| Reply::Refused("this proxy does not tell that".into()));
            }
            Request::LoopProbe { target } => return self.probe_loop(target).await,
            Request::ExpectCanary { targets, nonce } => {
                self.state.canary.expect(self.id, targets, nonce)
            }
            Request::Hold { table } => self.hold(table, line.descriptors),
            Request::Watch { generation, watch } => self.watch(generation, watch, line.descriptors),
            Request::Captured { generation } => self.state.captured(generation).await,
            Request::Release { generation } => {
                self.state.release(generation);
                Ok(())
            }
        };
        match done {
            Ok(()) => Reply::Done,
            Err(reason) => Reply::Refused(reason),
        }
    }

    fn hold(&self, tether: Tether, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        self.state.hold(self.id, tether, one(descriptors)?)
    }

    fn watch(
        &self,
        generation: u64,
        watch: Watch,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let socket = one(descriptors)?;
        self.state.watch(generation, watch, socket)
    }

    async fn probe_loop(&self, target: SocketAddr) -> Reply {
        // Not a way to make the proxy dial whatever one likes.
        if !self.state.canary.is_expected(target) {
            return Reply::Refused(format!("{target} was not announced as a probe"));
        }
        match timeout(LOOP_PROBE_LIMIT, (self.hooks.dial)(target)).await {
            Ok(Ok(())) => Reply::LoopProbe(LoopOutcome::Captured),
            Ok(Err(failure)) if is_refusal(failure) => Reply::LoopProbe(LoopOutcome::NotCaptured),
            Ok(Err(failure)) => {
                Reply::Refused(format!("dialling {target} failed: {}", failure.details()))
            }
            Err(_) => Reply::LoopProbe(LoopOutcome::Silent),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.state.end_session(self.id);
    }
}

fn one(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|many| format!("one descriptor was expected, {} came", many.len()))?;
    Ok(descriptor)
}

fn is_refusal(failure: Failure) -> bool {
    matches!(
        failure,
        Failure::ConnectRefused | Failure::ConnectUnreachable | Failure::UpstreamClosed
    )
}
