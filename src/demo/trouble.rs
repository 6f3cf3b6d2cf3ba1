//! Why the story may end early.

use std::io;

use super::narrator::Untrue;

#[derive(Debug)]
pub(super) enum Trouble {
    Untrue(String),
    Io {
        doing: &'static str,
        error: io::Error,
    },
}

impl From<Untrue> for Trouble {
    fn from(Untrue(claim): Untrue) -> Self {
        Self::Untrue(claim)
    }
}

/// Names what was being done when an error came.
pub(super) trait While<T> {
    fn when(self, doing: &'static str) -> Result<T, Trouble>;
}

impl<T> While<T> for io::Result<T> {
    fn when(self, doing: &'static str) -> Result<T, Trouble> {
        self.map_err(|error| Trouble::Io { doing, error })
    }
}
