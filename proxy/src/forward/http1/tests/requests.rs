//! What reaches the upstream of what clients send.

use super::script::{GET, OK, POST, World, run};

#[test]
fn a_request_and_its_answer_arrive_verbatim() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let request = "gEt /p?q HTTP/1.1\r\nx-Odd:  spaces \t\r\nHOST: a\r\nX-ODD: again\r\n\r\n";
        client.says(request).await;
        let mut upstream = world.upstream().await;
        upstream.hears(request).await;
        let answer = "HTTP/1.1 299 What  Ever\r\nserver:x\r\nB: \r\nContent-Length: 3\r\n\r\nabc";
        upstream.says(answer).await;
        client.hears(answer).await;
        client.gets_ok_from(&mut upstream).await;
        assert_eq!(world.requests_recorded(), 2);
    });
}

#[test]
fn a_head_that_trickles_in_is_the_same_head() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        for byte in GET.bytes() {
            client.says([byte]).await;
            tokio::task::yield_now().await;
        }
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        for byte in OK.bytes() {
            upstream.says([byte]).await;
            tokio::task::yield_now().await;
        }
        client.hears(OK).await;
    });
}

#[test]
fn a_head_larger_than_a_buffer_passes() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let cookie = "c".repeat(40_000);
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
        client.says(&request).await;
        let mut upstream = world.upstream().await;
        upstream.hears(&request).await;
        let answer =
            format!("HTTP/1.1 200 OK\r\nSet-Cookie: {cookie}\r\nContent-Length: 0\r\n\r\n");
        upstream.says(&answer).await;
        client.hears(&answer).await;
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let second = "HEAD /2 HTTP/1.1\r\nHost: a\r\n\r\n";
        client.says(format!("{GET}{second}\r\n{GET}")).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream.hears_nothing().await;
        upstream.says(OK).await;
        upstream.hears(second).await;
        upstream
            .says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            .await;
        upstream.hears(GET).await;
        upstream.says(OK).await;
        client
            .hears(format!(
                "{OK}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{OK}"
            ))
            .await;
    });
}

#[test]
fn pipelined_requests_of_a_client_that_half_closes_are_all_answered() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(format!("{GET}{GET}")).await;
        client.is_done_talking().await;
        for _ in 0..2 {
            let mut upstream = world.upstream().await;
            upstream.hears(GET).await;
            upstream.hears_the_end().await;
            upstream.says(OK).await;
        }
        assert_eq!(client.hears_to_the_end().await, format!("{OK}{OK}"));
    });
}

#[test]
fn empty_lines_between_requests_are_nothing_however_they_arrive() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        for pieces in [&["\r\n"][..], &["\r", "\n"], &["\r\n\r", "\n\r\n"]] {
            upstream.hears(GET).await;
            upstream.says(OK).await;
            client.hears(OK).await;
            for piece in pieces {
                client.says(piece).await;
                client.hears_nothing().await;
            }
            client.says(GET).await;
        }
    });
}

#[test]
fn a_close_of_the_clients_stays_on_its_side() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client
            .says("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream.says(OK).await;
        let told = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        assert_eq!(client.hears_to_the_end().await, told);
        client.is_served().await;
        assert_eq!(world.worker.http1_pool.idle_count(), 1);
        world.client().await.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn an_http10_exchange_stays_one() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let request = "GET / HTTP/1.0\r\nConnection: close\r\n\r\n";
        client.says(request).await;
        let mut upstream = world.upstream().await;
        upstream.hears(request).await;
        let answer = "HTTP/1.0 200 OK\r\n\r\nuntil the end";
        upstream.says(answer).await;
        drop(upstream);
        assert_eq!(client.hears_to_the_end().await, answer);
    });
}

#[test]
fn an_http10_connection_is_kept_when_both_ends_say_so() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let request = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx";
        client.says(request).await;
        let mut upstream = world.upstream().await;
        for _ in 0..2 {
            upstream.hears(request).await;
            upstream.says(answer).await;
            client.hears(answer).await;
            client.says(request).await;
        }
    });
}

#[test]
fn bodies_of_every_size_and_framing_arrive_whole() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let mut upstream = None;
        for size in [0, 1, 5_000, 16_384, 20_000, 70_000, 1_000_000] {
            let body = "x".repeat(size);
            for framed in [
                format!("Content-Length: {size}\r\n\r\n{body}"),
                format!(
                    "Transfer-Encoding: chunked\r\n\r\n{size:x};e\r\n{body}\r\n0\r\nT: v\r\n\r\n"
                ),
            ] {
                // An empty chunk would be the last.
                if size == 0 && framed.contains("chunked") {
                    continue;
                }
                let request = format!("PUT / HTTP/1.1\r\nHost: a\r\n{framed}");
                let answer = format!("HTTP/1.1 200 OK\r\n{framed}");
                let relayed = async {
                    let mut upstream = match upstream.take() {
                        Some(upstream) => upstream,
                        None => world.upstream().await,
                    };
                    upstream.hears(&request).await;
                    upstream.says(&answer).await;
                    upstream
                };
                let ((), back) = tokio::join!(client.says(&request), relayed);
                client.hears(&answer).await;
                upstream = Some(back);
            }
        }
        assert_eq!(world.requests_recorded(), 13);
    });
}

#[test]
fn what_is_pipelined_behind_a_large_body_is_the_next_request() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        for size in [20_000, 200_000] {
            let body = "x".repeat(size);
            let request =
                format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}");
            let both = format!("{request}{GET}");
            let relayed = async {
                let mut upstream = world.upstream().await;
                upstream.hears(&request).await;
                upstream.says(OK).await;
                upstream.hears(GET).await;
                upstream
                    .says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    .await;
            };
            let ((), ()) = tokio::join!(client.says(&both), relayed);
            client.hears(OK).await;
            client.hears_to_the_end().await;
            client = world.client().await;
        }
    });
}

#[test]
fn expect_100_continue_goes_end_to_end() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head =
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        client.says(head).await;
        let mut upstream = world.upstream().await;
        upstream.hears(head).await;
        client.hears_nothing().await;
        upstream.says("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.hears("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.says("body").await;
        upstream.hears("body").await;
        upstream.says(OK).await;
        client.hears(OK).await;
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn a_client_that_half_closes_is_still_answered_and_the_upstream_told() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        client.is_done_talking().await;
        upstream.hears_the_end().await;
        upstream.says(OK).await;
        assert_eq!(client.hears_to_the_end().await, OK);
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
    });
}

#[test]
fn ambiguous_requests_are_refused_and_never_reach_the_upstream() {
    run(async {
        let world = World::new().await;
        for request in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        ] {
            let mut client = world.client().await;
            client.says(request).await;
            client.is_refused(400, "http_request_error").await;
        }
        world.no_upstream().await;
        assert_eq!(world.requests_recorded(), 9);
    });
}

#[test]
fn a_second_request_is_held_to_the_same_rules() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(POST).await;
        let mut upstream = world.upstream().await;
        upstream.hears(POST).await;
        upstream.says(OK).await;
        client.hears(OK).await;
        client.says("GET / HTTP/1.1\r\nA: b\r\n\r\n").await;
        client.is_refused(400, "http_request_error").await;
    });
}

#[test]
fn a_chunk_that_goes_wrong_on_the_way_ends_the_request() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        client.says(head).await;
        let mut upstream = world.upstream().await;
        upstream.hears(head).await;
        client.says("nonsense\r\n").await;
        client.is_refused(400, "http_request_error").await;
        upstream.is_reset().await;
    });
}

#[test]
fn a_head_over_the_limits_gets_431() {
    run(async {
        let world = World::new().await;
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(61_440));
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "A: b\r\n".repeat(100)
        );
        for request in [long, many] {
            let mut client = world.client().await;
            client.says(request).await;
            client.is_refused(431, "http_request_error").await;
        }
    });
}

#[test]
fn a_refusal_is_read_though_the_client_is_still_sending() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head = "POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n";
        client.says(head).await;
        // More than all socket buffers on the way hold.
        for _ in 0..300 {
            client.says(vec![b'x'; 10_000]).await;
        }
        client.is_refused(400, "http_request_error").await;
    });
}
