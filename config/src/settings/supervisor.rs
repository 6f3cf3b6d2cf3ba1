//! `supervisor`: what `proxyctl run` does about a proxy that dies again and again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::Span;

/// What `proxyctl run` does about a proxy that dies again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Supervisor {
    /// So many deaths within `death_window`, and connections go direct until a proxy has lived for a
    /// while. Default 5: every death costs the connections that the proxy held, so that soon nothing
    /// helps the command as much as having none.
    pub max_deaths: u32,
    /// Default 1 m: a proxy that lives longer than 12 s on average is worth starting again.
    pub death_window: Span,
    /// From then on the pause before the next attempt is 1 s, and doubles with each that fails, up to
    /// this. Default 1 m.
    pub max_backoff: Span,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            max_deaths: 5,
            death_window: Span::from_secs(60),
            max_backoff: Span::from_secs(60),
        }
    }
}

impl Supervisor {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.max_deaths == 0 {
            problems.push((
                "supervisor.max_deaths",
                "0 would give up a proxy before its first death; at least 1".into(),
            ));
        }
        problems
    }
}
