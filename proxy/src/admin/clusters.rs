//! `/clusters`: every cluster and endpoint as JSON, a cluster a line and a piece.

use std::{iter, sync::Arc, time::Instant};

use serde::Serialize;

use super::body::Pieces;
use crate::cluster::{Cluster, ClusterReport, EndpointReport};

/// `/clusters`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(not(test), allow(dead_code, reason = "it is written a line at a time"))]
pub(super) struct ClustersReport {
    clusters: Vec<Line>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Line {
    #[serde(flatten)]
    cluster: ClusterReport,
    endpoints: Vec<EndpointReport>,
}

pub(super) fn json(clusters: Vec<Arc<Cluster>>) -> Pieces {
    let lines = clusters.into_iter().enumerate().map(|(index, cluster)| {
        let line = Line {
            cluster: ClusterReport::of(&cluster, Instant::now()),
            endpoints: EndpointReport::all(&cluster),
        };
        let comma = if index == 0 { "" } else { "," };
        let json = serde_json::to_string(&line).expect("plain data is JSON");
        format!("{comma}\n{json}")
    });
    let begin = iter::once("{\"clusters\":[".to_owned());
    let text = begin.chain(lines).chain(["\n]}\n".to_owned()]);
    Box::new(text.map(String::into_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Clusters, Outcome, PickContext, Rng};

    #[test]
    fn what_a_cluster_is_like_can_be_read() {
        let clusters = Clusters::default();
        let text = "clusters:\n  - { name: empty, dns: { name: x, port: 1 } }\n  - name: web\n    endpoints: [{ address: '192.0.2.1:80', weight: 3, labels: { v: '1' } }]\n";
        clusters.fill(text);
        let web = clusters.find("web").expect("web");
        let picked = web.pick(&PickContext::default(), &Rng::new(1), Instant::now());
        picked
            .expect("an endpoint")
            .report(Outcome::Success, Instant::now());
        let json: serde_json::Value =
            serde_json::from_slice(&json(clusters.all()).flatten().collect::<Vec<_>>())
                .expect("JSON");
        let [empty, web] = [0, 1].map(|n| &json["clusters"][n]);
        assert_eq!(empty["discovery"], "dns");
        assert_eq!(empty["discovery_status"]["failures"], 0);
        assert_eq!(empty["endpoints"], serde_json::json!([]));
        assert_eq!(web["thresholds"]["limits"]["max_requests"], 1024);
        assert_eq!(web["thresholds"]["used"]["pending_requests"], 0);
        let endpoint = &web["endpoints"][0];
        assert_eq!(endpoint["address"], "192.0.2.1:80");
        assert_eq!(endpoint["weight"], 3);
        assert_eq!(endpoint["labels"]["v"], "1");
        assert_eq!(endpoint["breaker"], "admitting");
        assert_eq!(endpoint["is_healthy"], true);
        assert_eq!(endpoint["successes"], 1);
    }
}
