//! HTTP/1 through the proxy: what the client said arrives, and what the server said comes back.

mod support;

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use support::{SOON, SVC, SVC4, Speak, World, wait_until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn curl_fetches_a_page_over_both_families() {
    let world = World::new();
    let _nginx = world.nginx();
    let _proxy = world.captured();
    for svc in SVC {
        let host = SocketAddr::from((svc, 80));
        assert_eq!(
            world.app.sh(&format!("curl -sS http://{host}/hello")),
            "hello\n"
        );
    }
    world.until_counted("outrigger_requests_total", "protocol=\"http1\"", 2.0);
}

#[test]
fn clients_that_come_and_go_share_one_upstream_connection() {
    let world = World::new();
    let nginx = world.nginx();
    // Long enough that no client is taken for a silent one, whose destination is dialled at once.
    let proxy = world.serve("workers: 1\ntimeouts: { quiet: 5s }");
    world.capture(&proxy);
    for _ in 0..20 {
        world
            .app
            .sh("curl -sS -H 'Connection: close' http://198.51.100.2/hello");
    }
    wait_until(SOON, "20 requests are logged", || {
        nginx.requests().len() == 20
    });
    assert_eq!(nginx.connections(), 1);
}

#[test]
fn a_client_of_http_1_0_gets_its_answer_and_the_end() {
    let world = World::new();
    let nginx = world.nginx();
    let _proxy = world.captured();
    assert_eq!(
        world.app.sh("curl -sS -0 http://198.51.100.2/hello"),
        "hello\n"
    );
    let mut client = world.app.connect((SVC4, 80));
    client.say("GET /hello HTTP/1.0\r\n\r\n").unwrap();
    let answer = String::from_utf8(client.hear_to_end().unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer}");
    wait_until(SOON, "both are logged", || nginx.requests().len() == 2);
    for request in nginx.requests() {
        assert_eq!(request, "HTTP/1.0 GET /hello HTTP/1.0 200");
    }
}

#[test]
fn answers_without_a_body_do_not_shift_the_next() {
    let world = World::new();
    let _nginx = world.nginx();
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client
        .say("HEAD /hello HTTP/1.1\r\nHost: svc\r\n\r\n")
        .unwrap();
    let head = client.hear_until("\r\n\r\n").unwrap();
    assert!(head.contains("Content-Length: 6"), "{head}");
    let etag = head
        .lines()
        .find_map(|l| l.strip_prefix("ETag: "))
        .expect("nginx sends one");

    client
        .say("GET /empty HTTP/1.1\r\nHost: svc\r\n\r\n")
        .unwrap();
    assert!(
        client
            .hear_until("\r\n\r\n")
            .unwrap()
            .starts_with("HTTP/1.1 204 ")
    );

    client
        .say(format!(
            "GET /hello HTTP/1.1\r\nHost: svc\r\nIf-None-Match: {etag}\r\n\r\n"
        ))
        .unwrap();
    assert!(
        client
            .hear_until("\r\n\r\n")
            .unwrap()
            .starts_with("HTTP/1.1 304 ")
    );

    client
        .say("GET /hello HTTP/1.1\r\nHost: svc\r\n\r\n")
        .unwrap();
    assert_eq!(client.hear_response().unwrap().1, "hello\n");
}

#[test]
fn heads_arrive_verbatim_in_order_and_case() {
    let head = "GET /a?b=%20c HTTP/1.1\r\nhOST: svc.test\r\nX-Two: 2\r\nx-one:1\r\nX-Two:  again \r\nACCEPT: */*\r\n\r\n";
    let answer = "HTTP/1.1 299 Quite Fine\r\nx-lower: 1\r\nX-UPPER: 2\r\ncontent-length: 2\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\nok";
    let world = World::new();
    let _peer = world.peer(80, move |mut stream| {
        assert_eq!(stream.hear_until("\r\n\r\n")?, head);
        stream.say(answer)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client.say(head).unwrap();
    assert_eq!(
        String::from_utf8(client.hear(answer.len()).unwrap()).unwrap(),
        answer
    );
}

#[test]
fn the_absolute_form_is_left_as_it_is() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        let head = stream.hear_until("\r\n\r\n")?;
        assert!(
            head.starts_with("GET http://svc.test/x HTTP/1.1\r\n"),
            "{head}"
        );
        stream.say(OK)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client
        .say("GET http://svc.test/x HTTP/1.1\r\nHost: svc.test\r\n\r\n")
        .unwrap();
    assert_eq!(client.hear_response().unwrap().1, "ok");
}

#[test]
fn chunks_extensions_and_undeclared_trailers_pass() {
    let body =
        "3;ext=\"1\"\r\nabc\r\n0010\r\n0123456789abcdef\r\n0\r\nX-Sum: 42\r\nX-More: yes\r\n\r\n";
    let world = World::new();
    let _peer = world.peer(80, move |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        let heard = stream.hear(body.len())?;
        stream.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        stream.say(heard)?;
        // A second request proves that neither side lost count.
        stream.hear_until("\r\n\r\n")?;
        stream.say(OK)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client
        .say(format!(
            "POST / HTTP/1.1\r\nHost: svc\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ))
        .unwrap();
    client.hear_until("\r\n\r\n").unwrap();
    assert_eq!(
        String::from_utf8(client.hear(body.len()).unwrap()).unwrap(),
        body
    );
    client.say("GET / HTTP/1.1\r\nHost: svc\r\n\r\n").unwrap();
    assert_eq!(client.hear_response().unwrap().1, "ok");
}

#[test]
fn a_body_that_ends_with_the_connection_is_whole() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say("HTTP/1.1 200 OK\r\n\r\nall of it")
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client.say("GET / HTTP/1.1\r\nHost: svc\r\n\r\n").unwrap();
    let answer = String::from_utf8(client.hear_to_end().unwrap()).unwrap();
    assert!(answer.ends_with("\r\n\r\nall of it"), "{answer}");
}

#[test]
fn a_body_cut_short_by_the_server_is_cut_short_for_the_client() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
    });
    let _proxy = world.captured();
    let output = world.app.try_sh("curl -sS http://198.51.100.2/");
    assert!(
        !output.status.success(),
        "curl must not take half an answer for a whole: {output:?}"
    );
}

#[test]
fn expect_100_continue_is_between_client_and_server() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        let head = stream.hear_until("\r\n\r\n")?;
        if head.starts_with("POST /no ") {
            return stream.say(
                "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        stream.set_nonblocking(true)?;
        let early = stream.peek(&mut [0]).map_err(|error| error.kind());
        assert_eq!(
            early,
            Err(io::ErrorKind::WouldBlock),
            "nothing before the 100"
        );
        stream.set_nonblocking(false)?;
        stream.say("HTTP/1.1 100 Continue\r\n\r\n")?;
        assert_eq!(stream.hear(4)?, b"body");
        stream.say(OK)
    });
    let _proxy = world.captured();
    let expecting = |path: &str| {
        let mut client = world.app.connect((SVC4, 80));
        client
            .say(format!("POST {path} HTTP/1.1\r\nHost: svc\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"))
            .unwrap();
        client
    };
    let mut client = expecting("/yes");
    assert_eq!(
        client.hear_until("\r\n\r\n").unwrap(),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.say("body").unwrap();
    assert_eq!(client.hear_response().unwrap().1, "ok");

    let refused = expecting("/no").hear_until("\r\n\r\n").unwrap();
    assert!(refused.starts_with("HTTP/1.1 417 "), "{refused}");
}

#[test]
fn early_hints_come_before_the_answer() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")?;
        // The final answer waits for the client's next word, which it sends on the hints alone.
        stream.hear_until("\r\n\r\n")?;
        stream.say(OK)?;
        stream.say(OK)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client.say("GET /1 HTTP/1.1\r\nHost: svc\r\n\r\n").unwrap();
    let hints = client.hear_until("\r\n\r\n").unwrap();
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| answer_with_path(&mut stream, usize::MAX));
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: svc\r\n\r\n");
    client
        .say(request("/1") + &request("/2") + &request("/3"))
        .unwrap();
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.hear_response().unwrap().1, path);
    }
}

#[test]
fn a_big_upload_arrives_whole() {
    let world = World::new();
    let nginx = world.nginx();
    std::fs::create_dir(nginx.www().join("put")).unwrap();
    let _proxy = world.captured();
    let (sent, got) = (world.dir().join("sent"), nginx.www().join("put/got"));
    world
        .app
        .sh(&format!("head -c 64M /dev/urandom > {}", sent.display()));
    for (framing, extra) in [
        ("by length", ""),
        ("chunked", "-H 'Transfer-Encoding: chunked'"),
    ] {
        let _ = std::fs::remove_file(&got);
        world.app.sh(&format!(
            "curl -sS -f {extra} -T {} http://198.51.100.2/put/got",
            sent.display()
        ));
        let same = world
            .app
            .try_sh(&format!("cmp {} {}", sent.display(), got.display()));
        assert!(same.status.success(), "{framing}: {same:?}");
    }
}

#[test]
fn an_answer_given_before_the_upload_ends_is_heard() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        // Closing with the upload unread resets the connection.
    });
    let _proxy = world.captured();
    let file = world.dir().join("upload");
    world.app.sh(&format!("truncate -s 32M {}", file.display()));
    let status = world.app.sh(&format!(
        "curl -sS -H Expect: -o /dev/null -w '%{{http_code}}' -T {} http://198.51.100.2/",
        file.display()
    ));
    assert_eq!(status, "413");
}

#[test]
fn a_websocket_opens_even_when_its_first_frame_shares_the_segment_of_the_101() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
    let world = World::new();
    let _peer = world.peer(80, move |mut stream| {
        let head = stream.hear_until("\r\n\r\n")?;
        assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("Connection: Upgrade\r\n"), "{head}");
        stream.say(format!("{switch}\x01first"))?;
        echo(&mut stream)
    });
    let _proxy = world.captured();
    for svc in SVC {
        let mut client = world.app.connect((svc, 80));
        client
            .say("GET /chat HTTP/1.1\r\nHost: svc\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a2V5\r\nSec-WebSocket-Version: 13\r\n\r\n")
            .unwrap();
        assert_eq!(client.hear_until("\r\n\r\n").unwrap(), switch);
        assert_eq!(client.hear(6).unwrap(), b"\x01first");
        for word in ["not HTTP at all", "\0\r\n\r\n\0"] {
            client.say(word).unwrap();
            assert_eq!(client.hear(word.len()).unwrap(), word.as_bytes());
        }
        client.finish().unwrap();
        assert_eq!(client.hear_to_end().unwrap(), b"bye");
    }
}

#[test]
fn a_refused_upgrade_leaves_the_connection_usable() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| answer_with_path(&mut stream, usize::MAX));
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    for path in ["/1", "/2"] {
        client
            .say(format!("GET {path} HTTP/1.1\r\nHost: svc\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"))
            .unwrap();
        assert_eq!(client.hear_response().unwrap().1, path);
    }
}

#[test]
fn connect_opens_a_tunnel() {
    let world = World::new();
    let _peer = world.peer(3128, |mut stream| {
        let head = stream.hear_until("\r\n\r\n")?;
        assert!(
            head.starts_with("CONNECT db.internal:5432 HTTP/1.1\r\n"),
            "{head}"
        );
        stream.say("HTTP/1.1 200 Connection established\r\n\r\nready")?;
        echo(&mut stream)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 3128));
    client
        .say("CONNECT db.internal:5432 HTTP/1.1\r\nHost: db.internal:5432\r\n\r\n")
        .unwrap();
    let head = client.hear_until("\r\n\r\n").unwrap();
    assert_eq!(head, "HTTP/1.1 200 Connection established\r\n\r\n");
    assert_eq!(client.hear(5).unwrap(), b"ready");
    client.say("ping").unwrap();
    assert_eq!(client.hear(4).unwrap(), b"ping");
    client.finish().unwrap();
    assert_eq!(client.hear_to_end().unwrap(), b"bye");
}

#[test]
fn a_server_that_closes_idle_connections_unannounced_costs_no_request_not_even_a_post() {
    let world = World::new();
    // Promises keep-alive, and closes after each answer all the same.
    let peer = world.peer(80, |mut stream| answer_with_path(&mut stream, 1));
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    for n in 1..=20 {
        let mut client = world.app.connect((SVC4, 80));
        client
            .say(format!(
                "POST /{n} HTTP/1.1\r\nHost: svc\r\nContent-Length: 2\r\n\r\nhi"
            ))
            .unwrap();
        let (head, body) = client.hear_response().unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "request {n}: {head}");
        assert_eq!(body, format!("/{n}"));
    }
    assert_eq!(peer.accepted(), 20, "each request was sent once");
}

#[test]
fn requests_that_two_servers_could_read_in_two_ways_get_400() {
    let shapes = [
        (
            "length and chunked",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        ),
        (
            "a list of lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
        ),
        (
            "a signed length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        ),
        (
            "another coding",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked, nearly",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a bare line feed",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        ),
        (
            "a folded line",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        ),
        (
            "a space before the colon",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
        ),
        ("no host", "GET / HTTP/1.1\r\nX: a\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ];
    let world = World::new();
    let peer = world.peer(80, |mut stream| answer_with_path(&mut stream, usize::MAX));
    let _proxy = world.captured();
    for (shape, request) in shapes {
        let mut client = world.app.connect((SVC4, 80));
        client.say(request).unwrap();
        let answer = String::from_utf8(client.hear_to_end().unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{shape}: {answer:?}");
        assert!(
            answer.to_ascii_lowercase().contains("\r\nproxy-status: "),
            "{shape}: {answer:?}"
        );
    }
    assert_eq!(peer.accepted(), 0, "none of it reached the server");
}

#[test]
fn a_chunk_size_that_is_no_number_ends_both_sides() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        let heard = stream.hear_to_end().unwrap_or_default();
        assert!(
            !heard.windows(3).any(|w| w == b"GET"),
            "smuggled: {heard:?}"
        );
        Ok(())
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let answer = String::from_utf8_lossy(&client.hear_to_end().unwrap_or_default()).into_owned();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
        "{answer:?}"
    );
}

#[test]
fn a_head_beyond_the_limit_gets_431() {
    let world = World::new();
    let peer = world.peer(80, |mut stream| answer_with_path(&mut stream, usize::MAX));
    let _proxy = world.captured();
    for head in [
        format!("X-Big: {}\r\n", "x".repeat(70 * 1024)),
        "X-Many: 1\r\n".repeat(200),
    ] {
        let mut client = world.app.connect((SVC4, 80));
        // The proxy may answer, and close, before all of it is written.
        let _ = client.say(format!("GET / HTTP/1.1\r\nHost: a\r\n{head}\r\n"));
        let answer = client.hear_until("\r\n\r\n").unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(
            answer.to_ascii_lowercase().contains("\r\nproxy-status: "),
            "{answer}"
        );
    }
    assert_eq!(peer.accepted(), 0);
}

#[test]
fn a_head_that_never_ends_gets_408() {
    let world = World::new();
    let proxy = world.serve("timeouts: { request_head: 300ms }");
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 80));
    client.say("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
    let answer = String::from_utf8(client.hear_to_end().unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
}

#[test]
fn connections_that_authenticate_as_a_whole_are_never_shared() {
    let world = World::new();
    let peer = world.peer(80, |mut stream| {
        loop {
            let head = stream.hear_until("\r\n\r\n")?;
            if head.contains("Authorization: NTLM") {
                stream.say(OK)?;
            } else {
                stream.say("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")?;
            }
        }
    });
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    let mut one = world.app.connect((SVC4, 80));
    one.say("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM dG9rZW4=\r\n\r\n")
        .unwrap();
    assert_eq!(one.hear_response().unwrap().1, "ok");
    let mut other = world.app.connect((SVC4, 80));
    other.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(
        other
            .hear_response()
            .unwrap()
            .0
            .starts_with("HTTP/1.1 401 ")
    );
    assert_eq!(
        peer.accepted(),
        2,
        "the second client has a connection of its own"
    );
}

#[test]
fn a_refused_upstream_is_a_502_that_says_so() {
    let world = World::new();
    let _proxy = world.captured();
    for svc in SVC {
        let mut client = world.app.connect((svc, 80));
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (head, _) = client.hear_response().unwrap();
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let head = head.to_ascii_lowercase();
        let status = head
            .lines()
            .find(|l| l.starts_with("proxy-status:"))
            .expect(&head);
        assert!(status.contains("error=connection_refused"), "{status}");
    }
}

#[test]
fn a_server_that_closes_without_an_answer_is_a_502_that_says_so() {
    let world = World::new();
    let _peer = world.peer(80, |mut stream| stream.hear_until("\r\n\r\n").map(drop));
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 80));
    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let (head, _) = client.hear_response().unwrap();
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert!(head.contains("error=connection_terminated"), "{head}");
}

/// Answers `count` requests, each with its path, then closes.
fn answer_with_path(stream: &mut TcpStream, count: usize) -> io::Result<()> {
    for _ in 0..count {
        let head = stream.hear_until("\r\n\r\n")?;
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
            .unwrap_or(0);
        stream.hear(length)?;
        let path = head.split(' ').nth(1).unwrap_or_default();
        stream.say(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        ))?;
    }
    Ok(())
}

/// Says everything back until the other side has finished, then `bye`.
fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut from = stream.try_clone()?;
    io::copy(&mut from, stream)?;
    stream.say("bye")
}
