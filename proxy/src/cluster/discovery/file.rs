//! Endpoints in a file, which is watched and replaced as a whole. What cannot be read, or is wrong,
//! changes nothing: the last good list stays.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use outrigger_config::Endpoint;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// After an event, so that a burst of them is read once; a change has 50 ms to take effect.
const SETTLE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(in crate::cluster) struct File {
    path: PathBuf,
    /// The file's directory, not the file: it may be renamed over, or reached through a link that is
    /// swapped beside it (Kubernetes' `..data`).
    directory: AsyncFd<OwnedFd>,
    text: Option<String>,
    is_read: bool,
}

impl File {
    pub(super) fn watch(path: &Path) -> io::Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let of_interest = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::CREATE;
        inotify::add_watch(&events, directory, of_interest)?;
        Ok(Self {
            path: path.into(),
            directory: sys::readiness_of(events)?,
            text: None,
            is_read: false,
        })
    }

    pub(super) async fn next(&mut self) -> Vec<Endpoint> {
        loop {
            if self.is_read {
                // Forgotten only once it has settled: a future dropped before must find it again.
                self.something_happened().await;
            }
            self.is_read = true;
            if let Some(endpoints) = self.read() {
                return endpoints;
            }
        }
    }

    /// A list that is new and good.
    fn read(&mut self) -> Option<Vec<Endpoint>> {
        let path = self.path.display();
        let text = match outrigger_config::text(&self.path) {
            Ok(text) => text,
            Err(problem) => {
                tracing::warn!("endpoints not read, the last good ones stay: {path}: {problem}");
                return None;
            }
        };
        if self.text.as_ref() == Some(&text) {
            return None;
        }
        let parsed = outrigger_config::parse_endpoints(&text);
        self.text = Some(text);
        match parsed {
            Ok(endpoints) => Some(endpoints),
            Err(problems) => {
                for problem in problems {
                    tracing::warn!(
                        "endpoints not changed, the last good ones stay: {path}: {problem}"
                    );
                }
                None
            }
        }
    }

    async fn something_happened(&self) {
        // An error comes only while the runtime ends.
        let Ok(mut ready) = self.directory.readable().await else {
            return std::future::pending().await;
        };
        tokio::time::sleep(SETTLE).await;
        self.forget_events();
        ready.clear_ready();
    }

    fn forget_events(&self) {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(self.directory.get_ref(), &mut space);
        while events.next().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_file_renamed_over_is_read_and_a_bad_one_changes_nothing() {
        let directory =
            std::env::temp_dir().join(format!("outrigger-endpoints-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let (path, next) = (directory.join("endpoints.yaml"), directory.join("next"));
        let replace = |text: &str| {
            fs::write(&next, text).expect("written");
            fs::rename(&next, &path).expect("renamed");
        };
        replace("- address: 192.0.2.1:80\n");
        let mut file = File::watch(&path).expect("watched");
        assert_eq!(file.next().await.len(), 1);
        replace("- address: nowhere\n");
        let deadline = Duration::from_millis(200);
        assert!(tokio::time::timeout(deadline, file.next()).await.is_err());
        replace("- address: 192.0.2.1:80\n- address: 192.0.2.2:80\n");
        let found = tokio::time::timeout(Duration::from_secs(5), file.next()).await;
        assert_eq!(found.expect("a change is seen").len(), 2);
        fs::remove_dir_all(&directory).expect("removed");
    }
}
