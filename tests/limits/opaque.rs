//! New connections of what is no HTTP.

use std::{io, time::Instant};

use crate::{
    client::{hourly, limited},
    support::{Peer, SVC4, Speak, World},
};

fn echo(world: &World, port: u16) -> Peer {
    world.peer(port, |mut stream| {
        let line = stream.hear_until("\n")?;
        stream.say(line)
    })
}

fn try_line(world: &World, port: u16) -> io::Result<String> {
    let mut client = world.app.connect((SVC4, port));
    client.say("ping\n")?;
    client.hear_until("\n")
}

#[test]
fn connections_beyond_the_limit_are_reset_and_reach_nobody() {
    let world = World::new();
    let peer = echo(&world, 7);
    let by_source = hourly("conns", 3, ", actions: [remote_address]");
    let proxy = world.serve(&limited(&by_source));
    world.capture(&proxy);
    for _ in 0..3 {
        assert_eq!(try_line(&world, 7).expect("an echo"), "ping\n");
    }
    for _ in 0..2 {
        let error = try_line(&world, 7).expect_err("no more connections");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
    assert_eq!(peer.accepted(), 3);
    world.until_counted("outrigger_requests_total", "reason=\"rate_limited\"", 2.0);
}

#[test]
fn connections_beyond_the_limit_may_wait() {
    let world = World::new();
    let _peer = echo(&world, 7);
    let proxy = world.serve(&limited(
        "{ name: conns, token_bucket: { max_tokens: 1, tokens_per_fill: 5, fill_interval: 1s }, max_delay: 20s }",
    ));
    world.capture(&proxy);
    let begun = Instant::now();
    for _ in 0..4 {
        assert_eq!(try_line(&world, 7).expect("an echo"), "ping\n");
    }
    assert!(begun.elapsed().as_millis() >= 599, "{:?}", begun.elapsed());
}

#[test]
fn a_limit_on_a_header_is_not_about_what_has_none() {
    let world = World::new();
    let _peer = echo(&world, 7);
    let by_path =
        ", actions: [{ request_headers: { header_name: ':path', descriptor_key: path } }]";
    let proxy = world.serve(&limited(&hourly("paths", 1, by_path)));
    world.capture(&proxy);
    for _ in 0..3 {
        assert_eq!(try_line(&world, 7).expect("an echo"), "ping\n");
    }
}
