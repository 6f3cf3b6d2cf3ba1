//! What reaches the client of what upstreams answer.

use super::script::{GET, OK, World, run};

#[test]
fn interim_responses_of_every_kind_and_number_are_relayed() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        upstream.says(hints).await;
        client.hears(hints).await;
        let rest = format!("{hints}HTTP/1.1 102 Processing\r\n\r\n{OK}");
        upstream.says(&rest).await;
        client.hears(&rest).await;
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
        client.says(head).await;
        let mut upstream = world.upstream().await;
        for (request, answer) in [
            (head, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            (
                head,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            ),
            (GET, "HTTP/1.1 204 No Content\r\n\r\n"),
            (
                GET,
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
            ),
        ] {
            upstream.hears(head).await;
            upstream.says("HTTP/1.1 200 OK\r\n\r\n").await;
            client.hears("HTTP/1.1 200 OK\r\n\r\n").await;
            client.says(request).await;
            upstream.hears(request).await;
            upstream.says(answer).await;
            client.hears(answer).await;
            client.says(head).await;
        }
    });
}

#[test]
fn a_body_that_ends_with_the_connection_ends_the_clients_too() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        let answer = format!("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}", "x".repeat(100_000));
        let said = async {
            upstream.says(&answer).await;
            drop(upstream);
        };
        let ((), heard) = tokio::join!(said, client.hears_to_the_end());
        assert_eq!(heard, answer);
    });
}

#[test]
fn a_close_of_the_servers_is_the_clients_too() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        upstream.says(answer).await;
        assert_eq!(client.hears_to_the_end().await, answer);
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
    });
}

#[test]
fn an_odd_answer_is_relayed_as_it_comes_and_neither_side_used_again() {
    run(async {
        let world = World::new().await;
        for answer in [
            "ICY 200 OK\r\n\r\nmusic",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2  \r\nok\r\n0\r\n\r\n",
        ] {
            let mut client = world.client().await;
            client.says(GET).await;
            let mut upstream = world.upstream().await;
            upstream.hears(GET).await;
            upstream.says(answer).await;
            client.hears(answer).await;
            // What these two make of it is theirs.
            client.says("more").await;
            upstream.hears("more").await;
            upstream.says("less").await;
            client.hears("less").await;
            drop(client);
            upstream.hears_the_end().await;
        }
        assert_eq!(world.worker.http1_pool.idle_count(), 0);
    });
}

#[test]
fn chunks_that_go_odd_on_the_way_are_relayed_all_the_same() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
        upstream.says(head).await;
        client.hears(head).await;
        upstream.says("3 \r\nodd\r\n0\r\n\r\n").await;
        client.hears("3 \r\nodd\r\n0\r\n\r\n").await;
        drop(upstream);
        client.hears_the_end().await;
    });
}

#[test]
fn bytes_after_an_answer_go_to_nobody() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        upstream
            .says(format!("{OK}HTTP/1.1 200 Smuggled\r\n\r\n"))
            .await;
        client.hears(OK).await;
        client.hears_nothing().await;
        client.says(GET).await;
        let mut fresh = world.upstream().await;
        fresh.hears(GET).await;
    });
}

#[test]
fn an_early_answer_is_relayed_and_the_upload_goes_on() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345";
        client.says(head).await;
        let mut upstream = world.upstream().await;
        upstream.hears(head).await;
        upstream.says(OK).await;
        client.hears(OK).await;
        client.says("67890").await;
        upstream.hears("67890").await;
        client.gets_ok_from(&mut upstream).await;
    });
}

#[test]
fn an_answer_is_read_though_the_upload_fails() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
        client.says(head).await;
        let mut upstream = world.upstream().await;
        upstream.hears(head).await;
        let answer = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!";
        upstream.says(answer).await;
        drop(upstream);
        // It closed with bytes unread, so more bytes meet a reset.
        for _ in 0..100 {
            client.says(vec![b'x'; 10_000]).await;
        }
        assert_eq!(client.hears_to_the_end().await, answer);
    });
}

#[test]
fn an_early_answer_of_an_upstream_that_stops_reading_ends_both_sides() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345";
        client.says(head).await;
        let mut upstream = world.upstream().await;
        upstream.hears(head).await;
        upstream
            .says("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
            .await;
        drop(upstream);
        let heard = client.hears_to_the_end().await;
        assert_eq!(heard, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n");
    });
}

#[test]
fn a_slow_reader_holds_the_upstream_back_and_gets_every_byte() {
    run(async {
        let world = World::new().await;
        let mut client = world.client().await;
        client.says(GET).await;
        let mut upstream = world.upstream().await;
        upstream.hears(GET).await;
        // No length, hence no splice: what is tested is the relay's own buffer.
        upstream.says("HTTP/1.1 200 OK\r\n\r\n").await;
        let block = vec![b'x'; 64 * 1024];
        let mut said = 0;
        // As much as the sockets and one buffer take, and no more.
        let stuck = tokio::time::timeout(std::time::Duration::from_millis(200), async {
            loop {
                said += tokio::io::AsyncWriteExt::write(&mut upstream.stream, &block)
                    .await
                    .unwrap();
            }
        });
        assert!(stuck.await.is_err());
        assert!(
            said < 32 * 1024 * 1024,
            "{said} bytes were taken for a client that reads none"
        );
        drop(upstream);
        let heard = client.hears_to_the_end().await;
        assert_eq!(heard.len(), "HTTP/1.1 200 OK\r\n\r\n".len() + said);
    });
}
