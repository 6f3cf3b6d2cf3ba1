//! What becomes of a connection that ends at a proxy of ours: told by that proxy, or by a file.

use std::net::SocketAddr;

use outrigger_config::{
    Action, Settings, Snapshot, Target,
    control::{
        ClusterOutlook, EndpointOutlook, Explanation, Identity, Question, RouteOutlook,
        TargetOutlook, Use,
    },
};
use outrigger_iptables::{
    Explained, Refusal,
    verdict::{End, Verdict},
};
use serde_json::{Value, json};

pub(super) enum Onward {
    /// It does not end at a proxy of ours.
    None,
    /// Somebody holds the proxy's name on the port where it ends, and did not tell.
    Silent(Refusal),
    Proxy(Box<Explained>),
    /// The route that a file has for it, in a sentence.
    File(String),
}

impl Onward {
    /// Asks whoever would take the connection, in the first of its ways that leads to one of ours.
    pub(super) fn of_proxy(verdict: &Verdict, question: &Question) -> Self {
        let ends = verdict.ways.iter().filter_map(|way| match &way.end {
            End::Here { to } => Some(*to),
            _ => None,
        });
        for to in ends {
            match outrigger_iptables::explain(to, question) {
                Ok(None) => {}
                Ok(Some(explained)) => return Self::Proxy(Box::new(explained)),
                Err(refusal) => return Self::Silent(refusal),
            }
        }
        Self::None
    }

    /// What the proxy of these settings would do with the connection, if it ends there: by the data
    /// plane's own function.
    pub(super) fn of_file(verdict: &Verdict, settings: Settings, question: &Question) -> Self {
        match verdict.certain() {
            Some(End::Here { to }) if to.port() == settings.port() => {}
            _ => return Self::None,
        }
        let snapshot = Snapshot::compile(settings, None);
        let destination = question.destination;
        let Some(decision) = snapshot.routes.decide(&question.subject()) else {
            return Self::File(format!(
                "no route holds: the proxy passes it on to {destination}"
            ));
        };
        let place = |target: &Target| match target {
            Target::OriginalDestination => destination.to_string(),
            Target::Cluster(cluster) => format!("cluster {}", cluster.name),
        };
        let then = match decision.action() {
            Action::Forward([branch]) => {
                format!("the proxy passes it on to {}", place(&branch.target))
            }
            Action::Forward(branches) => {
                let shares = branches.iter();
                let shares = shares.map(|b| format!("{} ({})", place(&b.target), b.weight));
                let shares = shares.collect::<Vec<_>>().join(", ");
                format!("the proxy splits such traffic by weight: {shares}")
            }
            Action::Redirect(redirect) => {
                format!("the proxy redirects its client ({})", redirect.code.0)
            }
            Action::Respond(respond) => format!("the proxy answers {} itself", respond.status),
        };
        let number = decision.index + 1;
        Self::File(format!(
            "route {} (number {number}) holds: {then}",
            decision.name
        ))
    }

    pub(super) fn is_unseen(&self) -> bool {
        matches!(self, Self::Silent(_))
    }

    /// The proxy of ours that takes what comes to `to`.
    pub(super) fn taker(&self, to: SocketAddr) -> Option<&Identity> {
        let Self::Proxy(explained) = self else {
            return None;
        };
        let proxy = &explained.proxy;
        let is_there = |own: &SocketAddr| {
            own.port() == to.port() && (own.ip() == to.ip() || own.ip().is_unspecified())
        };
        proxy.listeners.iter().any(is_there).then_some(proxy)
    }

    pub(super) fn as_json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Silent(refusal) => json!({ "unseen": refusal.to_string() }),
            Self::File(says) => json!({ "says": says }),
            Self::Proxy(explained) => {
                let Explained { proxy, explanation } = &**explained;
                json!({
                    "says": first_sentence(explanation),
                    "proxy": {
                        "pid": proxy.pid,
                        "uid": proxy.uid,
                        "instance": proxy.instance,
                        "version": proxy.version,
                        "draining": proxy.draining,
                    },
                    "explanation": explanation,
                })
            }
        }
    }

    pub(super) fn tell(&self, question: &Question) {
        match self {
            Self::None => {}
            Self::File(says) => println!("  there {says}"),
            Self::Silent(refusal) => {
                println!("not seen: what the proxy there would do: {refusal}");
                println!("  what to do: {}", refusal.advice());
            }
            Self::Proxy(explained) => tell(explained, question),
        }
    }
}

fn tell(explained: &Explained, question: &Question) {
    let Explained { proxy, explanation } = explained;
    println!(
        "There Outrigger (pid {}, user {}, version {}, configuration generation {}) takes it{}.",
        proxy.pid,
        proxy.uid,
        proxy.version,
        explanation.config_generation,
        if proxy.draining {
            ", as long as it still drains"
        } else {
            ""
        }
    );
    println!("  {}", first_sentence(explanation));
    if let Some(route) = &explanation.route {
        tell_route(route);
    }
    for target in &explanation.targets {
        if explanation.targets.len() > 1 {
            println!("  {} %: {}", target.share_percent, to_target(target));
        }
        match &target.cluster {
            Some(cluster) => tell_cluster(cluster, target, question),
            None => {
                println!("  no policy applies: no limit, breaker or health check stands in its way")
            }
        }
    }
    let Use { now, max } = explanation.connections;
    if now >= max {
        println!("  the proxy is at its limit of {max} connections, and resets new ones");
    }
    if !explanation.undecided.is_empty() {
        println!(
            "  nothing was said of what it carries, by which these routes may hold instead: {}; say it with --host, --path, --header … or --sni",
            explanation.undecided.join(", ")
        );
    }
}

fn first_sentence(explanation: &Explanation) -> String {
    let Some(route) = &explanation.route else {
        let to = explanation.targets.first().map(to_target);
        return format!("No route holds: {}.", to.unwrap_or_default());
    };
    let then = match (&explanation.targets[..], route.answer) {
        (_, Some(status)) => format!("the proxy answers {status} itself"),
        ([target], None) => to_target(target),
        (targets, None) => format!("such traffic is split among {} targets", targets.len()),
    };
    format!(
        "Route {} (number {}) holds: {then}.",
        route.name,
        route.index + 1
    )
}

fn to_target(target: &TargetOutlook) -> String {
    let cluster = target.cluster.as_ref();
    let to = match cluster {
        None => "it is passed on to where it was dialled".into(),
        Some(cluster) if cluster.is_default => {
            "it is passed on to where it was dialled, under the policy of `defaults`".into()
        }
        Some(cluster) => format!("it goes to cluster {}", cluster.name),
    };
    match (&target.refusal, cluster.and_then(|c| c.chosen)) {
        (Some(refusal), _) => format!("{to}, which is REFUSED now: {}", because(refusal)),
        (None, Some(chosen)) if cluster.is_some_and(|c| !c.is_default) => {
            format!("{to}, there to {chosen}")
        }
        (None, _) => to,
    }
}

/// The reason, and its word in metrics and logs.
fn because(refusal: &str) -> String {
    let words = match refusal {
        "no_endpoint" => "no endpoint is there that is well",
        "breaker_tripped" => "the breakers of all endpoints are tripped",
        "overflow" => "its limit of requests is reached",
        "shed" => "the limit of adaptive concurrency is reached",
        "loop" => "the proxy would dial itself",
        other => return other.into(),
    };
    format!("{words} ({refusal})")
}

fn tell_route(route: &RouteOutlook) {
    let asked = in_words("", &route.matches);
    match asked.is_empty() {
        true => println!("  the route asks for nothing: it holds for everything"),
        false => println!("  the route asks for {}", asked.join(", ")),
    }
    let Value::Object(policy) = &route.policy else {
        return;
    };
    let besides = policy
        .iter()
        .filter(|(key, _)| !["cluster", "split"].contains(&&***key));
    let besides: Vec<_> = besides.flat_map(|(key, v)| in_words(key, v)).collect();
    if !besides.is_empty() {
        println!("  it says besides: {}", besides.join(", "));
    }
}

/// Each setting of `value` by its key from `key` on, as in a file; those that say nothing are left out.
fn in_words(key: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) if items.is_empty() => Vec::new(),
        Value::Object(keys) => {
            let below = keys.iter().map(|(name, value)| match key {
                "" => in_words(name, value),
                key => in_words(&format!("{key}.{name}"), value),
            });
            below.flatten().collect()
        }
        Value::String(text) => vec![format!("{key} {text}")],
        other => vec![format!("{key} {other}")],
    }
}

fn tell_cluster(cluster: &ClusterOutlook, target: &TargetOutlook, question: &Question) {
    let eligible = cluster.endpoints.iter().filter(|e| e.is_eligible).count();
    let how = match (&*cluster.load_balancer, cluster.has_key) {
        ("round_robin", _) => "one after the other, by weight",
        ("least_request", _) => {
            "of a few drawn by weight the one with the fewest requests under way"
        }
        ("peak_ewma", _) => {
            "of two drawn by weight the one with the least latency times requests under way"
        }
        ("random", _) => "at random, by weight",
        (_, true) => "by the request's key",
        (_, false) => "at random, for want of a key",
    };
    println!(
        "  {}: chooses {how}; {eligible} of {} endpoints may be chosen{}",
        cluster.load_balancer,
        cluster.endpoints.len() + cluster.omitted,
        if cluster.omitted > 0 { " at least" } else { "" }
    );
    let is_by_key = ["ring_hash", "maglev"].contains(&&*cluster.load_balancer);
    if is_by_key && !cluster.has_key && target.refusal.is_none() && question.client.is_none() {
        println!(
            "  the key would be a header or cookie (--header), or the client's address (--from)"
        );
    }
    if cluster.is_panicking {
        println!("  so few are well that all are used (panic_threshold)");
    }
    if !cluster.subset.is_empty() {
        let labels = cluster.subset.iter().map(|(k, v)| format!("{k}: {v}"));
        println!("  subset: {}", labels.collect::<Vec<_>>().join(", "));
    }
    for endpoint in &cluster.endpoints {
        println!("    {}", told_endpoint(endpoint, cluster.chosen));
    }
    if cluster.omitted > 0 {
        println!("    and {} more", cluster.omitted);
    }
    let limit = |of: Use, what: &str| format!("{} of {} {what}", of.now, of.max);
    let mut limits = vec![
        limit(cluster.requests, "requests"),
        limit(cluster.connections, "connections"),
        limit(cluster.pending_requests, "pending requests"),
        limit(cluster.retries, "retries"),
    ];
    limits.extend(
        cluster
            .concurrency
            .map(|of| limit(of, "of adaptive concurrency")),
    );
    println!(
        "  under way, of what circuit_breaker allows: {}",
        limits.join(", ")
    );
}

fn told_endpoint(endpoint: &EndpointOutlook, chosen: Option<SocketAddr>) -> String {
    let mut told = endpoint.address.to_string();
    if !endpoint.is_eligible {
        told += ": not chosen";
    } else if chosen == Some(endpoint.address) {
        told += ": chosen";
    } else if chosen.is_some() {
        told += ": may be chosen for other keys";
    } else {
        told += &format!(": gets {} %", endpoint.share_percent);
    }
    let objections = endpoint
        .objections
        .iter()
        .map(|o| o.explanation().to_owned());
    let mut facts: Vec<_> = objections.collect();
    if endpoint.active > 0 {
        facts.push(format!("{} under way", endpoint.active));
    }
    if let Some(breaker) = endpoint
        .breaker
        .as_ref()
        .filter(|state| *state != "admitting")
    {
        facts.push(format!("breaker {breaker}"));
    }
    match facts.is_empty() {
        true => told,
        false => format!("{told}; {}", facts.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routes_settings_are_told_by_their_keys_and_empty_ones_are_not() {
        let matches = json!({ "host": "*.internal", "path": { "prefix": "/v1" }, "port": 80 });
        let told = in_words("", &matches);
        assert_eq!(told, ["host *.internal", "path.prefix /v1", "port 80"]);
        let policy = json!({ "add": {}, "remove": [], "set": { "x-a": "1" }, "timeout": null });
        assert_eq!(
            in_words("request_headers", &policy),
            ["request_headers.set.x-a 1"]
        );
        assert!(in_words("", &json!({})).is_empty());
    }
}
