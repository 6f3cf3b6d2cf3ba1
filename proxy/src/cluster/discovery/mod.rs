//! Where a cluster's endpoints come from.

mod dns;
mod file;
mod files;
mod names;
mod status;

use std::{io, rc::Rc, sync::Arc, time::Instant};

use outrigger_config::{Cluster as Settings, Endpoint};

use self::{dns::Dns, file::File, files::Files, names::Names};

pub use status::{DiscoveryStatus, State as DiscoveryState};

/// What the sources of all clusters share; one thread's.
#[derive(Debug, Default)]
pub(super) struct Sources {
    files: Rc<Files>,
    names: Names,
}

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
        sources: &Sources,
        status: &Arc<DiscoveryStatus>,
    ) -> io::Result<Option<Self>> {
        Ok(match (&settings.dns, &settings.file) {
            (Some(dns), _) => {
                let asker = sources.names.asker(Instant::now())?;
                let dns = Dns::new(dns.clone(), asker, status.clone());
                Some(Self::Dns(Box::new(dns)))
            }
            (None, Some(file)) => {
                let file = File::watch(&file.path, &sources.files, status.clone())?;
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
