//! Where a cluster's endpoints come from.

mod dns;
mod file;

use std::io;

use outrigger_config::{Cluster as Settings, Endpoint};

use self::{dns::Dns, file::File};

/// A source of endpoints, asked again and again for the next list.
#[derive(Debug)]
pub(super) enum Discovery {
    Static(Option<Vec<Endpoint>>),
    Dns(Box<Dns>),
    File(File),
}

impl Discovery {
    pub(super) fn of(settings: &Settings) -> io::Result<Self> {
        Ok(match (&settings.dns, &settings.file) {
            (Some(dns), _) => Self::Dns(Box::new(Dns::new(dns.clone())?)),
            (None, Some(file)) => Self::File(File::watch(&file.path)?),
            (None, None) => Self::Static(Some(settings.endpoints.clone())),
        })
    }

    /// The next list that differs from the one before. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Vec<Endpoint> {
        match self {
            Self::Static(endpoints) => match endpoints.take() {
                Some(endpoints) => endpoints,
                None => std::future::pending().await,
            },
            Self::Dns(dns) => dns.next().await,
            Self::File(file) => file.next().await,
        }
    }
}
