//! What would become of a connection or request that nobody has made: by the functions that decide on
//! real ones, less what these change.

use std::time::Instant;

use outrigger_config::{
    Headers, Labels, NoHeaders,
    control::{Explanation, Question, RouteOutlook, Use},
};
use serde::Serialize;
use serde_json::Value;

use crate::{failure::Failure, route::Routed, shared::Shared};

/// Undecided routes that are named.
const MOST_NAMED: usize = 20;

/// The most of a route's own text that is told, in bytes: a quarter of a line.
const MOST_TOLD: usize = 16 * 1024;

pub(crate) fn explain(shared: &Shared, question: &Question, now: Instant) -> Explanation {
    let in_force = shared.configuration.in_force();
    let snapshot = in_force.snapshot();
    let subject = question.subject();
    let routed = in_force.route(&subject);
    let labels = routed.policy().map(|route| &route.subset);
    let headers: &dyn Headers = match &question.request {
        Some(request) => request,
        None => &NoHeaders,
    };
    let none = Labels::new();
    let outlook = routed
        .target
        .outlook(question.client, headers, labels.unwrap_or(&none), now);
    let (mut cluster, mut failure) = outlook.unzip();
    if let Some(cluster) = &mut cluster {
        cluster.is_default = snapshot
            .defaults
            .as_ref()
            .is_some_and(|defaults| defaults.name == cluster.name);
    }
    let peer = match &cluster {
        Some(cluster) => cluster.chosen,
        None => Some(question.destination),
    };
    if peer.is_some_and(|peer| shared.is_own_listener(peer)) {
        failure = Some(Some(Failure::Loop));
    }
    let undecided = snapshot.routes.undecided(&subject);
    Explanation {
        config_generation: snapshot.generation,
        route: route(&routed),
        undecided: undecided
            .take(MOST_NAMED)
            .map(|decision| decision.name.to_string())
            .collect(),
        cluster,
        refusal: failure.flatten().map(|failure| failure.label().into()),
        connections: Use {
            now: shared.connections.live() as u64,
            max: shared.connections.max() as u64,
        },
    }
}

fn route(routed: &Routed) -> Option<RouteOutlook> {
    let decision = &routed.route.as_ref()?.decision;
    let mut policy = written(&decision.settings);
    if let Value::Object(keys) = &mut policy {
        keys.remove("match");
        keys.remove("name");
    }
    Some(RouteOutlook {
        index: decision.index,
        name: decision.name.to_string(),
        matches: written(&decision.settings.matches),
        policy,
    })
}

/// As in a file, without what is left out there.
fn written(part: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(part).unwrap_or_default();
    if let Value::Object(keys) = &mut value {
        keys.retain(|_, value| match value {
            Value::Null => false,
            Value::Array(values) => !values.is_empty(),
            Value::Object(values) => !values.is_empty(),
            _ => true,
        });
    }
    if value.to_string().len() > MOST_TOLD {
        return Value::String("too long to be told; see the file".into());
    }
    value
}

#[cfg(test)]
mod tests;
