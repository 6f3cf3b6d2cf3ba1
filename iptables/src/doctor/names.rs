//! The other suspect: a cache that answers for names and may hold an address that moved.

use std::os::unix::net::UnixStream;

use super::{Finding, Level};

const SOCKETS: [&str; 2] = ["/run/nscd/socket", "/var/run/nscd/socket"];

pub(super) fn examine() -> Option<Finding> {
    SOCKETS.into_iter().find_map(judge)
}

/// A socket that is left over answers nobody.
fn judge(socket: &str) -> Option<Finding> {
    UnixStream::connect(socket).ok()?;
    Some(Finding {
        level: Level::Info,
        kind: "names_cached",
        what: "nscd answers for names on this host: where an address is wrong and no rule turns it, its answer may be stale".into(),
        evidence: vec![format!("it listens on {socket}")],
        fix: Some("nscd --invalidate=hosts".into()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_cache_is_one_that_takes_connections() {
        let dir = std::env::temp_dir().join(format!("outrigger-names-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(judge(path.to_str().unwrap()).is_some());
        drop(listener);
        assert!(judge(path.to_str().unwrap()).is_none());
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }
}
