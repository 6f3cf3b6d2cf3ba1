//! Where a cluster's endpoints come from.

mod dns;
mod file;
mod files;
mod status;

use std::{io, rc::Rc, sync::Arc};

use outrigger_config::{Cluster as Settings, Endpoint};

use self::{dns::Dns, file::File};

pub(super) use files::Files;
pub use status::{DiscoveryStatus, State as DiscoveryState};

/// A source of endpoints, asked again and again for the next list.
#[derive(Debug)]
pub(super) enum Discovery {
    Dns(Box<Dns>),
    File(Box<File>),
}

impl Discovery {
    /// None where the settings themselves say what the endpoints are.
    pub(super) fn of(
        settings: &Settings,
        files: &Rc<Files>,
        status: &Arc<DiscoveryStatus>,
    ) -> io::Result<Option<Self>> {
        Ok(match (&settings.dns, &settings.file) {
            (Some(dns), _) => Some(Self::Dns(Box::new(Dns::new(dns.clone(), status.clone())?))),
            (None, Some(file)) => {
                let file = File::watch(&file.path, files, status.clone())?;
                Some(Self::File(Box::new(file)))
            }
            (None, None) => None,
        })
    }

    /// The next list that differs from the one before. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Vec<Endpoint> {
        match self {
            Self::Dns(dns) => dns.next().await,
            Self::File(file) => file.next().await,
        }
    }
}
