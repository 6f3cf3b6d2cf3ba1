//! What this program logs of itself, as far as it can be changed while it runs.

use std::fmt;

/// The log's filter; whoever set the log up knows how to change it.
pub trait Levels: fmt::Debug + Send + Sync {
    /// As in `--log-level`.
    fn filter(&self) -> String;

    /// Logs by another filter from here on.
    ///
    /// # Errors
    /// What is wrong with `filter`.
    fn set(&self, filter: &str) -> Result<(), String>;
}
