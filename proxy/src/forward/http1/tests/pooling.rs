//! Which upstream connection carries a request, and what happens when it was dead.

use std::fs::File;

use outrigger_config::{Settings, Span};

use tokio::{io::AsyncWriteExt, task};

use super::script::{GET, OK, POST, Peer, World, run};
use crate::{
    buffer::Buffer,
    detect::{Detected, First},
    forward::opaque,
    testing,
};

/// A client's connection with one exchange behind it, and its upstream.
async fn used(world: &World) -> (Peer, Peer) {
    let mut client = world.client().await;
    client.says(GET).await;
    let mut upstream = world.upstream().await;
    upstream.hears(GET).await;
    upstream.says(OK).await;
    client.hears(OK).await;
    (client, upstream)
}

#[test]
fn an_idle_connection_serves_the_next_client() {
    run(async {
        let world = World::new().await;
        let (_client, mut upstream) = used(&world).await;
        let mut other = world.client().await;
        other.gets_ok_from(&mut upstream).await;
        world.no_upstream().await;
    });
}

#[test]
fn the_connection_used_last_is_used_next() {
    run(async {
        let world = World::new().await;
        let (mut one, mut first) = used(&world).await;
        one.says(GET).await;
        first.hears(GET).await;
        let (_two, mut second) = used(&world).await;
        first.says(OK).await;
        one.hears(OK).await;
        assert_eq!(world.worker.http1_pool.idle_count(), 2);
        let mut three = world.client().await;
        three.gets_ok_from(&mut first).await;
        second.hears_nothing().await;
    });
}

#[test]
fn a_request_that_cannot_be_repeated_takes_a_fresh_connection_first_and_its_own_then() {
    run(async {
        let world = World::new().await;
        let (_idle, _first) = used(&world).await;
        let mut client = world.client().await;
        client.says(POST).await;
        let mut fresh = world.upstream().await;
        fresh.hears(POST).await;
        fresh.says(OK).await;
        client.hears(OK).await;
        client.says(POST).await;
        fresh.hears(POST).await;
        world.no_upstream().await;
    });
}

#[test]
fn a_connection_that_its_server_closed_is_not_used() {
    run(async {
        let world = World::new().await;
        let (mut client, upstream) = used(&world).await;
        drop(upstream);
        client.says(GET).await;
        let mut fresh = world.upstream().await;
        fresh.hears(GET).await;
        fresh.says(OK).await;
        client.hears(OK).await;
    });
}

#[test]
fn a_connection_on_which_bytes_came_unasked_is_not_used() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        upstream.says("HTTP/1.1 408 Request Timeout\r\n\r\n").await;
        client.says(GET).await;
        let mut fresh = world.upstream().await;
        fresh.hears(GET).await;
        // With what was left unread, its close is a reset.
        upstream.is_reset().await;
    });
}

#[test]
fn a_post_that_met_a_closed_connection_is_repeated_because_it_was_provably_not_taken() {
    run(async {
        let world = World::new().await;
        let (mut client, upstream) = used(&world).await;
        client.says(POST).await;
        // The event loop has now been told of the request and runs the relay after this test, so
        // that the close comes after the last moment at which the pool could know of it.
        task::yield_now().await;
        drop(upstream);
        let mut fresh = world.upstream().await;
        fresh.hears(POST).await;
        fresh.says(OK).await;
        client.hears(OK).await;
    });
}

#[test]
fn a_post_whose_connection_was_closed_after_taking_it_is_not_repeated() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        client.says(POST).await;
        upstream.hears(POST).await;
        drop(upstream);
        client.hears_the_end().await;
        world.no_upstream().await;
        assert_eq!(world.requests_recorded(), 2);
    });
}

#[test]
fn a_post_whose_connection_was_reset_is_not_repeated() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        client.says(POST).await;
        upstream.hears(POST).await;
        upstream.resets();
        client.is_reset().await;
        world.no_upstream().await;
    });
}

#[test]
fn a_get_whose_reused_connection_was_reset_is_repeated() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        client.says(GET).await;
        upstream.hears(GET).await;
        upstream.resets();
        let mut fresh = world.upstream().await;
        fresh.hears(GET).await;
        fresh.says(OK).await;
        client.hears(OK).await;
    });
}

#[test]
fn a_put_whose_body_came_in_pieces_is_repeated_whole() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        let head = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n";
        client.says(head).await;
        upstream.hears(head).await;
        client.says("body").await;
        upstream.hears("body").await;
        upstream.resets();
        let mut fresh = world.upstream().await;
        fresh.hears(format!("{head}body")).await;
        client.says("more").await;
        fresh.hears("more").await;
        fresh.says(OK).await;
        client.hears(OK).await;
        client.gets_ok_from(&mut fresh).await;
    });
}

#[test]
fn an_answer_begun_is_never_repeated() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        client.says(GET).await;
        upstream.hears(GET).await;
        upstream.says("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        client.hears("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        drop(upstream);
        client.is_refused(502, "http_response_incomplete").await;
        world.no_upstream().await;
    });
}

#[test]
fn a_server_that_tells_how_long_it_waits_is_believed_less_a_second() {
    run(async {
        let mut settings = Settings::default();
        settings.pool.idle = Span::from_secs(3600);
        let world = World::with(settings).await;
        let (mut client, mut upstream) = used(&world).await;
        client.says(GET).await;
        upstream.hears(GET).await;
        upstream
            .says("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok")
            .await;
        client.hears(OK).await;
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
        upstream.hears_the_end().await;
    });
}

#[test]
fn idle_connections_are_closed_in_time_and_when_their_server_closes() {
    run(async {
        let mut settings = Settings::default();
        settings.pool.idle = Span::from_millis(100);
        let world = World::with(settings).await;
        let (_client, mut upstream) = used(&world).await;
        assert_eq!(world.worker.http1_pool.idle_count(), 1);
        upstream.hears_the_end().await;
        assert_eq!(world.worker.http1_pool.idle_count(), 0);

        let world = World::new().await;
        let (_client, upstream) = used(&world).await;
        drop(upstream);
        while world.worker.http1_pool.idle_count() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn no_more_idle_connections_are_kept_than_allowed() {
    run(async {
        let mut settings = Settings::default();
        settings.pool.max_idle_per_destination = 1;
        let world = World::with(settings).await;
        let (mut one, mut first) = used(&world).await;
        one.says(GET).await;
        first.hears(GET).await;
        let (_two, _second) = used(&world).await;
        first.says(OK).await;
        one.hears(OK).await;
        first.hears_the_end().await;
        assert_eq!(world.worker.http1_pool.idle_count(), 1);
    });
}

#[test]
fn an_authenticated_connection_is_its_clients_alone() {
    run(async {
        let world = World::new().await;
        let (mut client, mut upstream) = used(&world).await;
        let request = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM abc\r\n\r\n";
        client.says(request).await;
        upstream.hears(request).await;
        upstream.says(OK).await;
        client.hears(OK).await;
        assert_eq!(world.worker.http1_pool.idle_count(), 0);

        let (_other, _others) = used(&world).await;
        client.gets_ok_from(&mut upstream).await;

        drop(upstream);
        client.hears_the_end().await;
    });
}

#[test]
fn a_connection_that_was_asked_to_authenticate_is_pinned_too() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        let answer = "HTTP/1.1 401 No\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n";
        upstream.says(answer).await;
        client.hears(answer).await;
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
        client.gets_ok_from(&mut upstream).await;
        drop(client);
        upstream.hears_the_end().await;
    });
}

/// A crawler's thousand destinations, none of which keeps its connection, must not pile up.
#[test]
fn a_destination_of_which_nothing_is_kept_is_forgotten_with_its_last_client() {
    run(async {
        let world = World::new().await;
        let (mut one, mut other) = (world.client().await, world.client().await);
        let mut upstreams = Vec::new();
        for client in [&mut one, &mut other] {
            client.says(GET).await;
            let mut upstream = world.upstream().await;
            upstream.hears(GET).await;
            upstreams.push(upstream);
        }
        for ((mut client, mut upstream), left) in
            [one, other].into_iter().zip(upstreams).zip([1, 0])
        {
            upstream
                .says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
            client.is_done_talking().await;
            client.is_served().await;
            assert_eq!(world.worker.http1_pool.destination_count(), left);
        }
    });
}

#[test]
fn out_of_descriptors_idle_connections_make_room_and_without_any_it_is_a_503() {
    if !testing::is_again() {
        return testing::again(
            "forward::http1::tests::pooling::out_of_descriptors_idle_connections_make_room_and_without_any_it_is_a_503",
            "ip link set lo up; ulimit -n 64; exec \"$@\"",
        );
    }
    run(async {
        let world = World::new().await;
        let (_idle, _upstream) = used(&world).await;
        let (mut client, mut other) = (world.client().await, world.client().await);
        let spare = || File::open("/dev/null").ok();
        let mut taken: Vec<_> = std::iter::from_fn(spare).collect();

        client.says(POST).await;
        while world.worker.http1_pool.idle_count() > 0 {
            task::yield_now().await;
        }
        // For the upstream's end of what was dialled.
        taken.pop();
        let mut fresh = world.upstream().await;
        fresh.hears(POST).await;

        taken.extend(std::iter::from_fn(spare));
        other.says(POST).await;
        other.is_refused(503, "proxy_internal_error").await;
    });
}

#[test]
fn out_of_descriptors_idle_connections_make_room_for_other_protocols_too() {
    if !testing::is_again() {
        return testing::again(
            "forward::http1::tests::pooling::out_of_descriptors_idle_connections_make_room_for_other_protocols_too",
            "ip link set lo up; ulimit -n 64; exec \"$@\"",
        );
    }
    run(async {
        let world = World::new().await;
        let (_idle, _upstream) = used(&world).await;
        let (captured, mut app) = testing::pair().await;
        let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();

        let connection = testing::connection(&world.worker, world.address);
        let first = First {
            detected: Detected::Opaque,
            client_bytes: Buffer::default(),
            upstream_bytes: Buffer::default(),
            dialled: None,
            routed: None,
        };
        task::spawn_local(opaque::serve(connection, captured, first));
        while world.worker.http1_pool.idle_count() > 0 {
            task::yield_now().await;
        }
        // For the upstream's end of what was dialled.
        taken.pop();
        let mut fresh = world.upstream().await;
        app.write_all(b"no HTTP").await.expect("room");
        fresh.hears("no HTTP").await;
    });
}
