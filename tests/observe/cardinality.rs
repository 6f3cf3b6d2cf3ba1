//! What clients say must not become labels, nor stay in memory, however much of it there is.

use std::{collections::BTreeSet, io::Write, net::TcpStream};

use crate::{
    ask::{answers, ask, metric},
    support::{SOON, SVC4, Speak, World, rounds, wait_until},
};

/// Pipelined at a time.
const BATCH: usize = 100;

/// The label sets of every metric.
fn label_sets(world: &World) -> BTreeSet<String> {
    let page = ask(world, "GET", "/metrics", "").text();
    let series = page.lines().filter(|line| !line.starts_with('#'));
    series
        .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
        .collect()
}

#[test]
fn hosts_paths_methods_and_users_of_a_client_are_no_labels_and_stay_nowhere() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let proxy = world.serve(
        "workers: 1
access_log: { to: /dev/null }
routes:
- match: { host: '*.test' }
  cluster: original_destination
  rate_limits:
  - name: per-user
    actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }]
    token_bucket: { max_tokens: 1000, tokens_per_fill: 1000, fill_interval: 1s }
    max_buckets: 1000
- { match: { port: 80 }, cluster: original_destination }
",
    );
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 80));
    let mut asked = 0;
    let mut ask_as_others = |count: usize| {
        for _ in 0..count / BATCH {
            let requests: String = (asked..asked + BATCH)
                .map(|n| {
                    format!(
                        "M{n} /path/{n}?q={n} HTTP/1.1\r\nHost: h{n}.test\r\nX-User: u{n}\r\nUser-Agent: a{n}\r\n\r\n"
                    )
                })
                .collect();
            client.write_all(requests.as_bytes()).expect("it is taken");
            (0..BATCH).for_each(|_| answered(&mut client));
            asked += BATCH;
        }
    };
    // Tables and buffers have grown to their sizes.
    ask_as_others(5_000);
    let (sets, memory) = (label_sets(&world), proxy.memory().anonymous);
    let count = rounds(10_000, 100_000);
    ask_as_others(count);
    wait_until(SOON, "every request counted", || {
        metric(&world, "outrigger_requests_total", "code=\"200\"") >= (5_000 + count) as f64
    });
    let new: Vec<_> = label_sets(&world).difference(&sets).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
    let grown = proxy.memory().anonymous.saturating_sub(memory);
    assert!(grown < 4 * 1024, "{grown} KiB after {count} requests");
}

fn answered(client: &mut TcpStream) {
    let (head, _) = client.hear_response().expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}
