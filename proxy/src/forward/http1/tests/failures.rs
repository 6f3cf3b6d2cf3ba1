//! Who is told what when a side is lost.

use std::time::Duration;

use outrigger_config::{Settings, Span};

use super::script::{GET, OK, POST, World, run};
use crate::{testing, upstream};

#[test]
fn a_destination_that_refuses_connections_is_a_502() {
    run(async {
        let mut world = World::new().await;
        world.address = testing::closed_port().await;
        let mut client = world.client().await;
        client.says(GET).await;
        client.is_refused(502, "connection_refused").await;
        world.has_recorded("502", "connect_refused");
    });
}

#[test]
fn a_fresh_connection_that_ends_without_an_answer_is_a_502() {
    run(async {
        let world = World::new().await;
        for is_reset in [false, true] {
            let mut client = world.client().await;
            client.says(POST).await;
            let mut upstream = world.upstream().await;
            upstream.hears(POST).await;
            if is_reset {
                upstream.resets();
            } else {
                drop(upstream);
            }
            client.is_refused(502, "connection_terminated").await;
        }
    });
}

#[test]
fn an_answer_that_breaks_off_in_its_head_is_a_502() {
    run(async {
        let world = World::new().await;
        for begun in ["HTTP/1.1 200 OK\r\nCont", "H"] {
            let mut client = world.client().await;
            client.says(GET).await;
            let mut upstream = world.upstream().await;
            upstream.hears(GET).await;
            upstream.says(begun).await;
            drop(upstream);
            client.is_refused(502, "http_response_incomplete").await;
        }
    });
}

#[test]
fn an_answer_that_breaks_off_in_its_body_is_cut_with_a_reset() {
    run(async {
        let world = World::new().await;
        for begun in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        ] {
            let mut client = world.client().await;
            client.says(GET).await;
            let mut upstream = world.upstream().await;
            upstream.hears(GET).await;
            upstream.says(begun).await;
            client.hears(begun).await;
            drop(upstream);
            client.is_reset().await;
        }
    });
}

#[test]
fn a_reset_within_a_body_without_length_is_no_orderly_end() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream.says("HTTP/1.1 200 OK\r\n\r\nab").await;
        client.hears("HTTP/1.1 200 OK\r\n\r\nab").await;
        upstream.resets();
        client.is_reset().await;
    });
}

#[test]
fn a_client_lost_while_it_waits_is_told_to_the_upstream() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        client.resets();
        upstream.is_reset().await;
        world.has_recorded("none", "client_closed");
    });
}

#[test]
fn an_upload_that_breaks_off_is_told_to_the_upstream_which_may_still_answer() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let begun = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345";
        client.says(begun).await;
        let mut upstream = world.upstream().await;
        upstream.hears(begun).await;
        client.is_done_talking().await;
        upstream.hears_the_end().await;
        let answer = "HTTP/1.1 400 Short\r\nContent-Length: 0\r\n\r\n";
        upstream.says(answer).await;
        assert_eq!(client.hears_to_the_end().await, answer);
    });
}

#[test]
fn a_head_that_does_not_come_to_its_end_gets_408() {
    run(async {
        let mut settings = Settings::default();
        settings.timeouts.request_head = Span(Duration::from_millis(50));
        let world = World::with(settings).await;
        let mut client = world.client().await;
        client.says("GET / HTTP/1.1\r\nHo").await;
        client.is_refused(408, "http_request_error").await;
    });
}

#[test]
fn a_client_that_says_nothing_between_requests_is_left_alone() {
    run(async {
        let mut settings = Settings::default();
        settings.timeouts.request_head = Span(Duration::from_millis(20));
        let world = World::with(settings).await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream.says(OK).await;
        client.hears(OK).await;
        client.hears_nothing().await;
        // An empty line is no request either.
        client.says("\r\n").await;
        client.hears_nothing().await;
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn draining_closes_idle_clients_and_lets_active_ones_finish() {
    run(async {
        let world = World::new().await;
        let (mut idle, mut active) = (world.client().await, world.client().await);
        idle.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream.says(OK).await;
        idle.hears(OK).await;
        active.says(POST).await;
        let mut upstream = world.upstream().await;
        upstream.hears(POST).await;
        world.worker.drain.start();
        idle.hears_the_end().await;
        upstream.says(OK).await;
        let told = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        active.hears(told).await;
        active.hears_the_end().await;
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
    });
}

#[test]
fn a_connection_dialled_to_find_out_who_speaks_first_serves_the_first_request() {
    run(async {
        let world = World::new().await;
        let dialled = upstream::connect(&world.worker.shared, world.address).await;
        let mut upstream = world.upstream().await;
        let mut client = world.client_with(Some(dialled.unwrap())).await;
        client.gets_ok_from(&mut upstream).await;
        client.gets_ok_from(&mut upstream).await;
        world.no_upstream().await;
    });
}

#[test]
fn the_end_of_the_worker_cuts_an_answer_visibly_and_records_it() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        // Its length is its end: a plain close would make it look whole.
        upstream.says("HTTP/1.1 200 OK\r\n\r\nab").await;
        client.hears("HTTP/1.1 200 OK\r\n\r\nab").await;
        client.is_cut_off();
        client.is_reset().await;
        world.has_recorded("none", "drained");
    });
}
