use proptest::prelude::*;

use super::*;

fn parsed(head: &[u8]) -> Result<Option<RequestHead>, Failure> {
    parse(head, &Limits::default())
}

fn complete(head: &str) -> RequestHead {
    match parsed(head.as_bytes()) {
        Ok(Some(parsed)) => parsed,
        other => panic!("{head:?}: {other:?}"),
    }
}

fn edited(head: &str) -> String {
    let mut buffer = Buffer::with_capacity(head.len());
    buffer.extend(head.as_bytes());
    let mut parsed = complete(head);
    parsed.apply_edits(&mut buffer);
    assert_eq!(parsed.len, buffer.len());
    String::from_utf8(buffer.filled().to_vec()).unwrap()
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for (head, why) in [
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "both",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "both",
        ),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "more than one Content-Length",
        ),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "more than one Content-Length",
        ),
        ("Content-Length: 5, 5\r\n", "no decimal"),
        ("Content-Length: +5\r\n", "no decimal"),
        ("Content-Length: -5\r\n", "no decimal"),
        ("Content-Length: 0x5\r\n", "no decimal"),
        ("Content-Length: 5 5\r\n", "no decimal"),
        ("Content-Length:\r\n", "no decimal"),
        ("Content-Length: 18446744073709551616\r\n", "no decimal"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "more than one Transfer",
        ),
        ("Transfer-Encoding: gzip, chunked\r\n", "not exactly"),
        ("Transfer-Encoding: chunked, identity\r\n", "not exactly"),
        ("Transfer-Encoding: identity\r\n", "not exactly"),
        ("Transfer-Encoding: xchunked\r\n", "not exactly"),
        ("Transfer-Encoding: \"chunked\"\r\n", "not exactly"),
        ("Transfer-Encoding:\r\n", "not exactly"),
        ("Transfer-Encoding: \x0bchunked\r\n", "forbidden byte"),
        ("Transfer-Encoding : chunked\r\n", "name"),
        ("Content-Length : 5\r\n", "name"),
        ("Transfer-Encoding\r\n : chunked\r\n", "name"),
        ("A: b\r\n folded\r\n", "name"),
        ("A: b\r\n\tfolded\r\n", "name"),
        (" A: b\r\n", "name"),
        ("A\x00: b\r\n", "name"),
        (": b\r\n", "name"),
        ("no colon\r\n", "name"),
        ("A: b\x00c\r\n", "forbidden byte"),
        ("A: b\rc\r\n", "forbidden byte"),
        ("A: b\nC: d\r\n", "LF alone"),
        ("A: b\n", "LF alone"),
        ("Host: b\r\n", "more than one Host"),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n");
        match parsed(head.as_bytes()) {
            Err(Failure::BadRequest(how)) => assert!(how.contains(why), "{head:?}: {how}"),
            other => panic!("{head:?}: {other:?}"),
        }
    }
}

#[test]
fn bad_request_lines_and_missing_hosts_are_refused() {
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/11\r\nHost: a\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
    ] {
        let result = parsed(head.as_bytes());
        assert!(
            matches!(result, Err(Failure::BadRequest(_))),
            "{head:?}: {result:?}"
        );
    }
}

#[test]
fn every_form_of_target_is_taken_as_it_is() {
    for target in [
        "/",
        "/a?b=c#d",
        "http://a/b",
        "*",
        "a:443",
        "/caf\u{e9}",
        "/%00",
        "/a|b\"<>",
    ] {
        let head = format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let parsed = complete(&head);
        assert_eq!(parsed.line(head.as_bytes()).target, target.as_bytes());
    }
}

#[test]
fn an_http10_request_needs_no_host() {
    let head = complete("GET / HTTP/1.0\r\n\r\n");
    assert!(!head.keeps_alive);
    assert!(complete("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keeps_alive);
}

#[test]
fn limits_are_kept_and_told_apart_from_malformed_heads() {
    let limits = Limits {
        max_header_bytes: 1024,
        max_headers: 10,
        ..Limits::default()
    };
    let lines = |count: usize| {
        let lines: String = (0..count).map(|n| format!("A{n}: b\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
    };
    assert!(matches!(parse(lines(9).as_bytes(), &limits), Ok(Some(_))));
    assert_eq!(
        parse(lines(10).as_bytes(), &limits),
        Err(Failure::HeadTooLarge)
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1024));
    assert_eq!(parse(long.as_bytes(), &limits), Err(Failure::HeadTooLarge));
    assert_eq!(parse(&long.as_bytes()[..1023], &limits), Ok(None));
}

#[test]
fn only_what_the_client_wishes_for_its_own_connection_is_left_out() {
    for (line, left) in [
        ("Connection: close\r\n", ""),
        ("connection:close \r\n", ""),
        ("Connection: close, TE\r\n", "Connection: TE\r\n"),
        (
            "Connection: TE ,Close,, Upgrade\r\n",
            "Connection: TE, Upgrade\r\n",
        ),
        (
            "Connection: close\r\nConnection: TE, close\r\n",
            "Connection: TE\r\n",
        ),
        ("Keep-Alive: 300\r\n", ""),
        ("Connection: keep-alive\r\n", "Connection: keep-alive\r\n"),
        (
            "CoNNection:  Keep-Alive, Upgrade\r\n",
            "CoNNection:  Keep-Alive, Upgrade\r\n",
        ),
        ("Connection: closed\r\n", "Connection: closed\r\n"),
        ("X-Connection: close\r\n", "X-Connection: close\r\n"),
    ] {
        let with = |line| format!("GET / HTTP/1.1\r\nB: 1\r\n{line}HOST:  a \r\na:2\r\n\r\n");
        assert_eq!(edited(&with(line)), with(left));
    }
}

#[test]
fn an_http10_request_is_left_as_it_is() {
    let head = "GET / HTTP/1.0\r\nConnection: close\r\nKeep-Alive: 5\r\n\r\n";
    assert_eq!(edited(head), head);
}

#[test]
fn the_log_finds_the_host_after_edits_too() {
    let text = "GET /x HTTP/1.1\r\nConnection: close\r\nHost: example\r\n\r\n";
    let mut head = complete(text);
    let mut buffer = Buffer::with_capacity(100);
    buffer.extend(text.as_bytes());
    head.apply_edits(&mut buffer);
    let line = head.line(buffer.filled());
    assert_eq!((line.method, line.target), ("GET", &b"/x"[..]));
    assert_eq!(line.host, Some(&b"example"[..]));
}

#[test]
fn methods_are_told_apart_by_what_repeating_them_does() {
    for (method, idempotent) in [
        ("GET", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("PUT", true),
        ("DELETE", true),
        ("POST", false),
        ("PATCH", false),
        ("CONNECT", false),
        ("get", false),
        ("PURGE", false),
    ] {
        let head = complete(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.is_idempotent(), idempotent, "{method}");
    }
}

#[test]
fn connection_bound_authentication_is_noticed() {
    for (line, binds) in [
        ("Authorization: NTLM TlRMTVNT", true),
        ("authorization: negotiate YII=", true),
        ("Proxy-Authorization: NTLM x", true),
        ("Authorization: Basic bnRsbQ==", false),
        ("Authorization: Bearer NTLM", false),
    ] {
        let head = complete(&format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n"));
        assert_eq!(head.authenticates_connection, binds, "{line}");
    }
}

/// Heads that are good, bad, and broken in the middle.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("Host: a\r\n"),
        Just("Content-Length: 3\r\n"),
        Just("Transfer-Encoding: chunked\r\n"),
        Just("Connection: close\r\n"),
        Just("Keep-Alive: 1\r\n"),
        Just("A: b\n"),
        Just(" x\r\n"),
        Just("Bad name: x\r\n"),
        Just("A:\r\n"),
        Just("\r\n"),
        Just("A: \u{e9}\r\n"),
    ];
    let lines = proptest::collection::vec(line, 0..6);
    let start = prop_oneof![
        Just("GET / HTTP/1.1\r\n"),
        Just("POST http://a/ HTTP/1.0\r\n"),
        Just("GET / HTTP/1.1\n"),
        Just("GET /"),
        Just("\x16\x03\x01"),
    ];
    (start, lines).prop_map(|(start, lines)| format!("{start}{}\r\nrest", lines.concat()).into())
}

proptest! {
    /// What may come later never changes what a prefix meant: a head is the same head wherever the
    /// network cut it, and one that is whole is not read on.
    #[test]
    fn a_head_split_at_every_byte_gives_the_same_result(head in heads()) {
        let limits = Limits::default();
        let whole = parse(&head, &limits);
        for cut in 0..head.len() {
            let part = parse(&head[..cut], &limits);
            if part != Ok(None) {
                prop_assert_eq!(&part, &whole, "cut at {}", cut);
            } else if let Ok(Some(whole)) = &whole {
                prop_assert!(cut < whole.len, "whole at {} but not parsed", cut);
            }
        }
    }

    /// Parsing only when `may_be_whole` says so finds the same head at the same byte.
    #[test]
    fn parsing_only_at_line_ends_misses_no_head(head in heads()) {
        let limits = Limits::default();
        for cut in 1..=head.len() {
            if matches!(parse(&head[..cut], &limits), Ok(Some(_)))
                && parse(&head[..cut - 1], &limits) == Ok(None)
            {
                prop_assert!(head::may_be_whole(&head[..cut], cut - 1), "at {}", cut);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parsed(&bytes);
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        head.extend(bytes);
        let _ = parsed(&head);
    }
}
