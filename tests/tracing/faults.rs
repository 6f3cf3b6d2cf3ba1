//! The collector stalls, dies, refuses, fills up: traffic does not notice, and what was dropped is
//! counted.

use crate::{
    collector::{Collector, GRPC, HTTP, Mood},
    service::{connect, echo, reached},
    support::{SOON, Speak, World, wait_until},
};

const QUEUE: usize = 64;

fn config(endpoint: &str, protocol: &str) -> String {
    format!(
        "workers: 1\ntracing: {{ endpoint: '{endpoint}', protocol: {protocol}, timeout: 300ms, batch_delay: 10ms, max_queue: {QUEUE}, max_batch: 16 }}"
    )
}

fn dropped(world: &World, reason: &str) -> f64 {
    world.metric_sum("outrigger_trace_spans_dropped_total", reason)
}

fn exported(world: &World) -> f64 {
    world.metric("outrigger_trace_spans_exported_total")
}

/// Requests that all succeed, over one connection.
fn traffic(world: &World, count: usize) {
    let mut client = connect(world);
    for _ in 0..count {
        assert!(reached(&mut client, "/", "").contains("traceparent: "));
    }
}

/// While `fault` lasts requests succeed and spans are dropped; after it, they are exported again.
fn survives(endpoint: &str, protocol: &str, start: fn(&World) -> Collector, fault: Mood) {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = start(&world);
    let proxy = world.serve(&config(endpoint, protocol));
    world.capture(&proxy);
    traffic(&world, 4);
    collector.spans(8);

    collector.be(fault);
    traffic(&world, 300);
    assert!(dropped(&world, "queue_full") >= 200.0);
    assert!(world.metric("outrigger_trace_spans_waiting") <= QUEUE as f64);
    wait_until(SOON, "a failed export", || {
        world.metric_sum("outrigger_trace_exports_total", "failure") >= 1.0
    });

    let before = exported(&world);
    collector.be(Mood::Takes);
    wait_until(3 * SOON, "what waited is exported", || {
        exported(&world) > before && world.metric("outrigger_trace_spans_waiting") == 0.0
    });
    traffic(&world, 4);
    let total = exported(&world) + dropped(&world, "");
    assert!(total <= 616.0, "{total} of 616");
    wait_until(SOON, "every span is exported or counted as dropped", || {
        exported(&world) + dropped(&world, "") == 616.0
    });
}

#[test]
fn a_collector_that_stalls_over_grpc() {
    survives(GRPC, "grpc", Collector::grpc, Mood::SaysNothing);
}

#[test]
fn a_collector_that_stalls_over_http() {
    survives(HTTP, "http_protobuf", Collector::http, Mood::SaysNothing);
}

#[test]
fn a_collector_that_is_busy_over_grpc() {
    survives(GRPC, "grpc", Collector::grpc, Mood::Answers(14));
}

#[test]
fn a_collector_that_is_full_over_http() {
    survives(HTTP, "http_protobuf", Collector::http, Mood::Answers(429));
}

#[test]
fn a_collector_that_asks_to_come_later() {
    survives(HTTP, "http_protobuf", Collector::http, Mood::Later(1));
}

/// Whatever it says is no OTLP; requests do not notice, spans are counted, memory stays.
fn is_put_up_with(world: &World, endpoint: &str, protocol: &str) {
    let _service = echo(world, 80);
    let proxy = world.serve(&config(endpoint, protocol));
    world.capture(&proxy);
    traffic(world, 4);
    let before = proxy.memory().anonymous;
    traffic(world, 300);
    wait_until(SOON, "a failed export", || {
        world.metric_sum("outrigger_trace_exports_total", "failure") >= 1.0
    });
    // What the exporter has taken waits beside the queue, and may be as much again.
    wait_until(SOON, "every span waits or is counted as dropped", || {
        dropped(world, "") >= (608 - 2 * QUEUE) as f64
    });
    assert!(world.metric("outrigger_trace_spans_waiting") <= QUEUE as f64);
    assert_eq!(exported(world), 0.0);
    let grown = proxy.memory().anonymous.saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB");
    assert!(proxy.log().contains("cannot export spans"));
}

#[test]
fn a_port_that_speaks_tls() {
    for protocol in ["grpc", "http_protobuf"] {
        let world = World::new();
        let _tls = world.peer(443, |mut stream| {
            // What every TLS server says to what is none: a fatal alert, "unexpected message".
            stream.hear(1)?;
            stream.say(b"\x15\x03\x03\x00\x02\x02\x0a")
        });
        is_put_up_with(&world, "http://198.51.100.2:443", protocol);
    }
}

#[test]
fn an_answer_that_has_no_end() {
    for (begin, protocol) in [
        ("HTTP/1.1 200 OK\r\n\r\n", "http_protobuf"),
        ("HTTP/1.1 200 OK\r\nX: ", "http_protobuf"),
        ("", "grpc"),
    ] {
        let world = World::new();
        let _flood = world.peer(4318, move |mut stream| {
            stream.hear(1)?;
            stream.say(begin)?;
            // Its end is the client's.
            while stream.say([b'0'; 4096]).is_ok() {}
            Ok(())
        });
        is_put_up_with(&world, HTTP, protocol);
    }
}

#[test]
fn a_collector_that_dies_and_comes_back() {
    let world = World::new();
    let _service = echo(&world, 80);
    let proxy = world.serve(&config(GRPC, "grpc"));
    world.capture(&proxy);
    // Not there yet.
    traffic(&world, 4);
    let collector = Collector::grpc(&world);
    collector.spans(8);
    drop(collector);
    traffic(&world, 300);
    assert!(dropped(&world, "queue_full") > 0.0);
    let collector = Collector::grpc(&world);
    wait_until(3 * SOON, "what waited is exported", || {
        !collector.received().is_empty() && world.metric("outrigger_trace_spans_waiting") == 0.0
    });
    assert!(proxy.log().contains("cannot export spans"));
}

#[test]
fn what_a_collector_refuses_is_not_sent_again() {
    for (start, endpoint, protocol, refusal) in [
        (
            Collector::grpc as fn(&World) -> Collector,
            GRPC,
            "grpc",
            Mood::Answers(3),
        ),
        (Collector::http, HTTP, "http_protobuf", Mood::Answers(400)),
    ] {
        let world = World::new();
        let _service = echo(&world, 80);
        let collector = start(&world);
        let proxy = world.serve(&config(endpoint, protocol));
        world.capture(&proxy);
        collector.be(refusal);
        traffic(&world, 1);
        wait_until(SOON, "both spans are dropped", || {
            dropped(&world, "rejected") == 2.0
        });
        collector.be(Mood::Takes);
        traffic(&world, 1);
        collector.spans(2);
    }
}

#[test]
fn what_a_collector_takes_in_part_is_counted_in_part() {
    let world = World::new();
    let _service = echo(&world, 80);
    let collector = Collector::grpc(&world);
    let proxy = world.serve(&config(GRPC, "grpc"));
    world.capture(&proxy);
    collector.be(Mood::Rejects(1));
    traffic(&world, 1);
    wait_until(SOON, "one is exported and one rejected", || {
        (exported(&world), dropped(&world, "rejected")) == (1.0, 1.0)
    });
    assert!(proxy.log().contains("rejected 1 spans: not today"));
}
