//! Connections that stop being HTTP.

use super::script::{GET, OK, World, run};

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const CONNECT: &str = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";

#[test]
fn an_upgrade_is_a_tunnel_and_loses_nothing_of_its_segment() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(UPGRADE).await;
        let mut upstream = world.upstream().await;
        upstream.hears(UPGRADE).await;
        upstream.says(format!("{SWITCHING}\x01first")).await;
        client.hears(format!("{SWITCHING}\x01first")).await;
        client.says("GET no request").await;
        upstream.hears("GET no request").await;
        client.is_done_talking().await;
        upstream.hears_the_end().await;
        upstream.says("last").await;
        drop(upstream);
        assert_eq!(client.hears_to_the_end().await, "last");
        client.is_served().await;
        assert_eq!(world.requests_recorded(), 1);
    });
}

#[test]
fn what_the_client_sends_before_the_101_belongs_to_the_tunnel() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(format!("{UPGRADE}early")).await;
        let mut upstream = world.upstream().await;
        upstream.hears(UPGRADE).await;
        upstream.hears_nothing().await;
        upstream.says(SWITCHING).await;
        upstream.hears("early").await;
        client.hears(SWITCHING).await;
    });
}

#[test]
fn an_upgrade_refused_stays_http() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(UPGRADE).await;
        let mut upstream = world.upstream().await;
        upstream.hears(UPGRADE).await;
        upstream.says(OK).await;
        client.hears(OK).await;
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn connect_is_a_tunnel_when_it_succeeds() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(CONNECT).await;
        let mut upstream = world.upstream().await;
        upstream.hears(CONNECT).await;
        let answer = "HTTP/1.1 200 Connection established\r\nTransfer-Encoding: chunked\r\n\r\n";
        upstream.says(answer).await;
        client.hears(answer).await;
        client.says("\x16\x03\x01").await;
        upstream.hears("\x16\x03\x01").await;
        upstream.resets();
        client.is_reset().await;
    });
}

#[test]
fn connect_refused_stays_http() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(CONNECT).await;
        let mut upstream = world.upstream().await;
        upstream.hears(CONNECT).await;
        let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        upstream.says(answer).await;
        client.hears(answer).await;
        client.says(GET).await;
        upstream.hears(GET).await;
    });
}
