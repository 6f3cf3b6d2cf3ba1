//! Copies of requests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rustix::process::Signal;

use crate::{
    site::{SERVICE, Site, Version, each_version},
    support::{SOON, SVC4, Speak, World, wait_until},
};

#[test]
fn a_copy_has_the_body_and_a_shadows_host() {
    each_version(&["a", "b", "c"], |site| {
        let _proxy = site.proxy(
            "- match: {}
  cluster: a
  request_headers: { set: { x-one: edited } }
  mirror: [{ cluster: b }, { cluster: c, shadow_host: false, percent: 100 }]",
        );
        let answer = site.curl(&format!("-d hello -H 'Host: svc:80' {SERVICE}/body"));
        assert_eq!(answer, "a has it\n");
        let copies = |server: usize| site.servers[server].asked_times(1);
        assert_eq!(copies(1), ["POST svc-shadow:80 /body [edited] hello"]);
        assert_eq!(copies(2), ["POST svc:80 /body [edited] hello"]);
        assert_eq!(copies(0), ["POST svc:80 /body [edited] hello"]);
        // Without a body, over connections that are there already.
        for n in 0..20 {
            assert!(site.get("svc", &format!("/{n}")).starts_with("a GET svc "));
        }
        for server in &site.servers {
            server.asked_times(21);
        }
    });
}

#[test]
fn a_body_is_copied_up_to_the_limit_and_not_beyond() {
    each_version(&["a", "b"], |site| {
        let _proxy = site
            .proxy("- match: {}\n  cluster: a\n  mirror: [{ cluster: b, max_body_bytes: 100000 }]");
        for (length, chunked) in [
            (100_000, false),
            (100_001, false),
            (60_000, true),
            (300_000, true),
        ] {
            let file = site.world.write("body", vec![b'x'; length]);
            let how = if chunked {
                "-H 'Transfer-Encoding: chunked'"
            } else {
                ""
            };
            let how = if site.version == Version::Http2 {
                ""
            } else {
                how
            };
            let answer = site.curl(&format!(
                "-H 'Expect:' {how} --data-binary @{} {SERVICE}/body/{length}",
                file.display()
            ));
            assert_eq!(answer, "a has it\n", "{length}");
        }
        let asked = |server: usize, count: usize| -> Vec<String> {
            let all = site.servers[server].asked_times(count);
            let mut paths: Vec<_> = all
                .iter()
                .map(|line| line.split(' ').nth(2).unwrap().to_owned())
                .collect();
            paths.sort();
            paths
        };
        assert_eq!(asked(0, 4).len(), 4);
        assert_eq!(asked(1, 2), ["/body/100000", "/body/60000"]);
        assert!(
            site.servers[1]
                .asked()
                .iter()
                .all(|line| line.len() > 60_000)
        );
        wait_until(SOON, "the answers are counted", || {
            copies(&site.world, "answered") == 2.0
        });
        assert_eq!(copies(&site.world, "dropped"), 2.0);
    });
}

#[test]
fn a_copy_goes_out_though_its_client_is_gone() {
    each_version(&["a", "b"], |site| {
        let _proxy = site.proxy("- { match: {}, cluster: a, mirror: [{ cluster: b }] }");
        let svc = &site.world.svc;
        // The mirror's connection is made by a second SYN, when the client has left long ago.
        svc.sh("nft add table inet hole
             nft add chain inet hole input '{ type filter hook input priority 0; }'
             nft add rule inet hole input tcp dport '{ 9002, 9102 }' drop");
        let answer = site.curl(&format!("-d hello -H 'Host: svc' {SERVICE}/body"));
        assert_eq!(answer, "a has it\n");
        svc.sh("nft delete table inet hole");
        let asked = site.servers[1].asked_times(1);
        assert_eq!(asked, ["POST svc-shadow /body [-] hello"]);
    });
}

fn copies(world: &World, result: &str) -> f64 {
    let result = format!("result=\"{result}\"");
    world.metric_sum("outrigger_cluster_mirrored_requests_total", &result)
}

#[track_caller]
fn all_answer(site: &Site, count: usize) {
    let asked: Vec<_> = (0..count).map(|n| ("svc", format!("/{n}"))).collect();
    let answers = site.over_one_connection((SVC4, 80), &asked);
    let is_good = |(status, body): &(u16, String)| *status == 200 && body.starts_with("a GET svc ");
    assert!(answers.iter().all(is_good), "{answers:?}");
}

#[test]
fn a_mirror_that_hangs_or_is_gone_costs_no_request() {
    each_version(&["a", "b"], |site| {
        let proxy = site.proxy("- { match: {}, cluster: a, mirror: [{ cluster: b }] }");
        site.servers[1].process.signal(Signal::STOP);
        all_answer(site, 600);
        let dropped = copies(&site.world, "dropped");
        assert!((1.0..=344.0).contains(&dropped), "{dropped} of 600");
        drop(proxy);
        site.servers[1].process.kill();
        let _proxy = site.proxy("- { match: {}, cluster: a, mirror: [{ cluster: b }] }");
        all_answer(site, 50);
        wait_until(SOON, "the failures are counted", || {
            copies(&site.world, "failed") == 50.0
        });
    });
}

#[test]
fn what_a_mirror_answers_reaches_nobody() {
    let world = World::new();
    let _main = world.peer(9001, |mut stream| {
        loop {
            stream.hear_until("\r\n\r\n")?;
            stream.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmain")?;
        }
    });
    let mirror = world.peer(9002, |mut stream| {
        let head = stream.hear_until("\r\n\r\n")?;
        assert!(head.contains("Host: a-shadow\r\n"), "{head}");
        stream.say("HTTP/1.1 500 Oops\r\nContent-Length: 6\r\nConnection: close\r\n\r\nmirror")
    });
    let proxy = world.serve(
        "routes: [{ match: {}, cluster: main, mirror: [{ cluster: mirror }] }]\nclusters:\n\
         - { name: main, endpoints: [{ address: '198.51.100.2:9001' }] }\n- { name: mirror, endpoints: [{ address: '198.51.100.2:9002' }] }\n",
    );
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 80));
    for _ in 0..10 {
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (head, body) = client.hear_response().unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 ") && body == "main",
            "{head}{body}"
        );
    }
    wait_until(SOON, "every copy arrives", || mirror.accepted() == 10);
}

#[test]
fn a_copy_that_may_have_been_seen_is_not_sent_again() {
    let world = World::new();
    let _main = world.peer(9001, |mut stream| {
        loop {
            let head = stream.hear_until("\r\n\r\n")?;
            assert!(!head.contains("Content-Length"), "{head}");
            stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
    });
    let posts = Arc::new(AtomicUsize::new(0));
    let seen = posts.clone();
    let mirror = world.peer(9002, move |mut stream| {
        loop {
            let head = stream.hear_until("\r\n\r\n")?;
            if head.starts_with("POST ") {
                seen.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
    });
    let proxy = world.serve(
        "routes: [{ match: {}, cluster: main, mirror: [{ cluster: mirror }] }]\nclusters:\n\
         - { name: main, endpoints: [{ address: '198.51.100.2:9001' }] }\n- { name: mirror, endpoints: [{ address: '198.51.100.2:9002' }] }\n",
    );
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 80));
    let mut ask = |method| {
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.say(&request).unwrap();
        client.hear_response().unwrap();
    };
    ask("GET");
    wait_until(SOON, "a connection to the mirror is idle", || {
        copies(&world, "answered") == 1.0
    });
    ask("POST");
    wait_until(SOON, "the copy has failed", || {
        copies(&world, "failed") == 1.0
    });
    assert_eq!(posts.load(Ordering::SeqCst), 1);
    assert_eq!(mirror.accepted(), 2);
}
