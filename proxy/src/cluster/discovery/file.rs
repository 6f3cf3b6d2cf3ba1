//! Endpoints in a file, which is watched and replaced as a whole. What cannot be read, or is wrong,
//! changes nothing: the last good list stays.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use outrigger_config::Endpoint;

use super::{DiscoveryStatus, Files, files::Followed};

#[derive(Debug)]
pub(in crate::cluster) struct File {
    path: PathBuf,
    followed: Followed,
    status: Arc<DiscoveryStatus>,
    text: Option<String>,
    is_read: bool,
}

impl File {
    pub(super) fn watch(
        path: &Path,
        files: &Rc<Files>,
        status: Arc<DiscoveryStatus>,
    ) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            followed: files.follow(path)?,
            status,
            text: None,
            is_read: false,
        })
    }

    pub(super) async fn next(&mut self) -> Vec<Endpoint> {
        loop {
            if self.is_read {
                self.followed.changed().await;
                // Before it is read, so that no link is swapped unseen in between.
                if let Err(error) = self.followed.follow_again(&self.path) {
                    tracing::warn!(%error, "changes of an endpoint file may go unseen");
                }
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
                self.status.failed(problem);
                return None;
            }
        };
        if self.text.as_ref() == Some(&text) {
            // A bad file that is the same is as bad as before.
            if self.status.state().failure.is_none() {
                self.status.succeeded(Instant::now());
            }
            return None;
        }
        let parsed = outrigger_config::parse_endpoints(&text);
        self.text = Some(text);
        match parsed {
            Ok(endpoints) => {
                self.status.succeeded(Instant::now());
                Some(endpoints)
            }
            Err(problems) => {
                if let Some(first) = problems.first() {
                    self.status.failed(first);
                }
                for problem in problems {
                    tracing::warn!(
                        "endpoints not changed, the last good ones stay: {path}: {problem}"
                    );
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
