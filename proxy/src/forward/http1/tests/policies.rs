//! Requests whose route has them sent again, beside each other, or in copies.

use std::time::Duration;

use outrigger_config::Limits;
use tokio::time::timeout;

use super::script::{GET, OK, Peer, World, run};
use crate::testing;

const NTLM: &str = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM abc\r\n\r\n";

/// A client, and an upstream connection that is authenticated as its own.
async fn authenticated(world: &World) -> (Peer, Peer) {
    let mut client = world.client().await;
    client.says(NTLM).await;
    let mut upstream = world.upstream().await;
    upstream.hears(NTLM).await;
    upstream.says(OK).await;
    client.hears(OK).await;
    (client, upstream)
}

#[test]
fn an_answer_over_an_authenticated_connection_is_asked_for_nowhere_else() {
    run(async {
        let world = World::routed("retry: { on: [5xx] }", "").await;
        let (mut client, mut upstream) = authenticated(&world).await;
        client.says(GET).await;
        upstream.hears(GET).await;
        let failed = "HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n";
        upstream.says(failed).await;
        client.hears(failed).await;
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn an_authenticated_connection_is_not_hedged() {
    run(async {
        let world = World::routed("retry: { on: [5xx], hedge: { delay: 10s } }", "").await;
        let (mut client, mut upstream) = authenticated(&world).await;
        client.gets_ok_from(&mut upstream).await;
        world.no_upstream().await;
    });
}

#[test]
fn a_connection_that_a_copy_authenticated_serves_nobody_else() {
    run(async {
        let (listener, address) = testing::listener().await;
        let mirrored = format!("{{ name: shadow, endpoints: [{{ address: '{address}' }}] }}");
        let world = World::routed(
            "mirror: [{ cluster: shadow, shadow_host: false }]",
            &mirrored,
        );
        let world = world.await;
        let (_client, _upstream) = authenticated(&world).await;
        let mut copied = Peer::accepted(&listener).await;
        copied.hears(NTLM).await;
        copied.says(OK).await;
        // Long before an idle one would be.
        let closed = timeout(Duration::from_secs(2), copied.hears_the_end());
        closed.await.expect("it is closed at once");
        let pool = &world.worker.http1_pool;
        assert_eq!((pool.idle_count(), pool.destination_count()), (0, 1));
    });
}

#[test]
fn a_hedged_try_that_took_too_long_is_made_again_after_its_pause() {
    run(async {
        let policy = "retry: { on: [reset], per_try_timeout: 40ms, \
                      back_off: { base_interval: 40ms }, hedge: { delay: 10s } }";
        let world = World::routed(policy, "").await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut silent = world.upstream().await;
        silent.hears(GET).await;
        let mut second = world.upstream().await;
        second.hears(GET).await;
        second.says(OK).await;
        client.hears(OK).await;
    });
}

#[test]
fn interim_responses_of_a_hedged_request_do_not_pile_up() {
    run(async {
        let world = World::routed("retry: { on: [5xx], hedge: { delay: 10s } }", "").await;
        let most = Limits::default().max_header_bytes;
        let interim = format!("HTTP/1.1 103 Hints\r\nLink: {}\r\n\r\n", "x".repeat(1000));
        let mut client = world.client().await;
        client
            .says("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream
            .says(interim.repeat(4 * most / interim.len()))
            .await;
        upstream.says(OK).await;
        let heard = client.hears_to_the_end().await;
        assert!(heard.ends_with("\r\n\r\nok"), "{heard}");
        assert!(heard.len() < 2 * most, "{} bytes", heard.len());
        assert!(heard.starts_with("HTTP/1.1 103 Hints\r\n"));
    });
}
