//! What would become of a connection or request that nobody has made: by the functions that decide on
//! real ones, less what these change.

use std::{sync::Arc, time::Instant};

use outrigger_config::{
    Action, Decision, Headers, Labels, NoHeaders,
    control::{Explanation, Question, RouteOutlook, TargetOutlook, Use},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    configuration::InForce, dispatch::Onward, failure::Failure, route::Route, shared::Shared,
};

/// Endpoints of all targets together.
const MOST_ENDPOINTS: usize = 100;

/// Targets that are told, of a route that splits its traffic.
const MOST_TARGETS: usize = 20;

/// Undecided routes that are named.
const MOST_NAMED: usize = 20;

/// The most of a route's own text that is told, in bytes: a quarter of a line.
const MOST_TOLD: usize = 16 * 1024;

pub(crate) fn explain(shared: &Shared, question: &Question, now: Instant) -> Explanation {
    let in_force = shared.configuration.in_force();
    let routes = &in_force.snapshot().routes;
    let subject = question.subject();
    let route = in_force.holds(&subject);
    let undecided = routes.undecided(&subject).take(MOST_NAMED);
    Explanation {
        config_generation: in_force.snapshot().generation,
        route: route.map(|route| told(&route.decision)),
        undecided: undecided
            .map(|decision| decision.name.to_string())
            .collect(),
        targets: targets(shared, &in_force, route, question, now),
        connections: Use {
            now: shared.connections.live() as u64,
            max: shared.connections.max() as u64,
        },
    }
}

/// Every place that the route may choose, or the only one where there is no choice.
fn targets(
    shared: &Shared,
    in_force: &InForce,
    route: Option<&Arc<Route>>,
    question: &Question,
    now: Instant,
) -> Vec<TargetOutlook> {
    let headers: &dyn Headers = match &question.request {
        Some(request) => request,
        None => &NoHeaders,
    };
    let target = |share: f64, of_route: Option<&Arc<Onward>>, labels: &Labels| {
        let onward = of_route.or(in_force.defaults());
        let outlook = onward.map(|onward| {
            onward.outlook(question.destination, question.client, headers, labels, now)
        });
        let (mut cluster, failure) = outlook.unzip();
        if let Some(cluster) = &mut cluster {
            cluster.is_default = of_route.is_none();
        }
        let peer = match &cluster {
            Some(cluster) => cluster.chosen,
            None => Some(question.destination),
        };
        let failure = match peer {
            Some(peer) if shared.is_own_listener(peer) => Some(Failure::Loop),
            _ => failure.flatten(),
        };
        TargetOutlook {
            share_percent: share,
            cluster,
            refusal: failure.map(|failure| failure.label().into()),
        }
    };
    let Some(route) = route else {
        return vec![target(100.0, None, &Labels::new())];
    };
    let branches = &route.decision.branches;
    let whole: u64 = branches.iter().map(|b| u64::from(b.weight)).sum();
    let branches = branches.iter().enumerate().take(MOST_TARGETS);
    let told = branches.map(|(n, branch)| {
        let share = f64::from(branch.weight) / whole as f64;
        let percent = (share * 10_000.0).round() / 100.0;
        target(percent, route.onward(n), &branch.subset)
    });
    let mut told: Vec<_> = told.collect();
    // All of them go into one line.
    let most = MOST_ENDPOINTS / told.len().max(1);
    for cluster in told.iter_mut().filter_map(|t| t.cluster.as_mut()) {
        cluster.omitted += cluster.endpoints.len().saturating_sub(most);
        cluster.endpoints.truncate(most);
    }
    told
}

fn told(decision: &Decision) -> RouteOutlook {
    let mut policy = written(&decision.settings);
    if let Value::Object(keys) = &mut policy {
        keys.remove("match");
        keys.remove("name");
    }
    RouteOutlook {
        index: decision.index,
        name: decision.name.to_string(),
        matches: written(&decision.settings.matches),
        policy,
        answer: match decision.action() {
            Action::Forward(_) => None,
            Action::Redirect(redirect) => Some(redirect.code.0),
            Action::Respond(respond) => Some(respond.status),
        },
    }
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
