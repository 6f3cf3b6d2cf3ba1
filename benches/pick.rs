//! What choosing an endpoint costs, by balancer and by how many there are: picking and reporting, as
//! every request does.

use std::{
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrigger_config::{Endpoint, Locality};
use outrigger_proxy::cluster::{Cluster, Outcome, PickContext, Rng};

const BALANCERS: [&str; 6] = [
    "round_robin",
    "least_request",
    "peak_ewma",
    "random",
    "ring_hash",
    "maglev",
];

fn cluster(balancer: &str, endpoints: u32, now: Instant) -> Arc<Cluster> {
    // Written with values where a balancer has some.
    let balancer = match balancer {
        "round_robin" | "random" => format!("\"{balancer}\""),
        _ => format!("{{ \"{balancer}\": {{}} }}"),
    };
    let settings = format!(r#"{{ "name": "c", "endpoints": [], "load_balancer": {balancer} }}"#);
    let settings: outrigger_config::Cluster = serde_json::from_str(&settings).expect("a cluster");
    let cluster = Cluster::new(settings.into(), Locality::default(), 1, now);
    let first = u32::from(Ipv4Addr::new(10, 0, 0, 1));
    let address = |n| SocketAddr::from((Ipv4Addr::from(first + n), 80));
    let described: Vec<_> = (0..endpoints).map(|n| Endpoint::at(address(n))).collect();
    cluster.set_endpoints(&described, false, now);
    cluster
}

fn pick(criterion: &mut Criterion) {
    let (rng, now) = (Rng::new(1), Instant::now());
    for balancer in BALANCERS {
        let mut group = criterion.benchmark_group(format!("pick/{balancer}"));
        for endpoints in [3, 100, 10_000] {
            let cluster = cluster(balancer, endpoints, now);
            let id = BenchmarkId::from_parameter(endpoints);
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    let context = PickContext {
                        hash: Some(rng.next()),
                        ..PickContext::default()
                    };
                    let picked = cluster.pick(black_box(&context), &rng, now);
                    picked.expect("an endpoint").report(Outcome::Success, now);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, pick);
criterion_main!(benches);
