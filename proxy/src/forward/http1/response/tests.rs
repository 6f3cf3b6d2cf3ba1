use super::*;
use crate::{failure::Failure, forward::http1::request};

fn request(line: &str) -> RequestHead {
    let text = format!("{line}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let head: Result<_, Failure> = request::parse(text.as_bytes(), &Limits::default());
    head.unwrap().unwrap()
}

fn parsed(head: &str, request_line: &str) -> Response {
    parse(head.as_bytes(), &request(request_line), &Limits::default())
}

fn answer(head: &str) -> ResponseHead {
    match parsed(head, "GET / HTTP/1.1") {
        Response::Head(head) => head,
        other => panic!("{head:?}: {other:?}"),
    }
}

fn edited(head: &str, tell_close: bool) -> String {
    let mut buffer = Buffer::with_capacity(head.len());
    buffer.extend(head.as_bytes());
    let mut parsed = answer(head);
    parsed.apply_edits(tell_close, &mut buffer);
    assert_eq!(parsed.len, buffer.len());
    String::from_utf8(buffer.filled().to_vec()).unwrap()
}

#[test]
fn the_end_of_a_body_is_where_method_status_and_fields_say() {
    use Framing::{Chunked, Length, UntilClose};
    const CL: &str = "Content-Length: 7\r\n";
    const TE: &str = "Transfer-Encoding: Chunked\r\n";
    for (method, status, fields, framing) in [
        ("GET", "200", CL, Length(7)),
        ("GET", "200", TE, Chunked),
        ("GET", "200", "", UntilClose),
        ("GET", "204", CL, Length(0)),
        ("GET", "304", CL, Length(0)),
        ("GET", "304", TE, Length(0)),
        ("GET", "100", "", Length(0)),
        ("GET", "103", "", Length(0)),
        ("HEAD", "200", CL, Length(0)),
        ("HEAD", "200", TE, Length(0)),
        ("HEAD", "404", "", Length(0)),
        ("CONNECT", "200", CL, Length(0)),
        ("CONNECT", "407", CL, Length(7)),
        ("POST", "404", "", UntilClose),
    ] {
        let head = format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
        match parsed(&head, &format!("{method} / HTTP/1.1")) {
            Response::Head(parsed) => assert_eq!(parsed.framing, framing, "{method} {head:?}"),
            other => panic!("{method} {head:?}: {other:?}"),
        }
    }
}

#[test]
fn what_cannot_be_relied_upon_is_odd() {
    for head in [
        "SSH-2.0-x\r\n",
        "<html>",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 0x1 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nA: b\n\n",
        "HTTP/1.1 200 OK\r\nA: b\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert_eq!(parsed(head, "GET / HTTP/1.1"), Response::Odd, "{head:?}");
    }
    let too_many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(101));
    assert_eq!(parsed(&too_many, "GET / HTTP/1.1"), Response::Odd);
    let too_long = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(60 * 1024));
    assert_eq!(parsed(&too_long, "GET / HTTP/1.1"), Response::Odd);
}

#[test]
fn a_reason_phrase_is_whatever_it_is() {
    for line in [
        "200",
        "200 ",
        "200 OK",
        "200 Straße \x01 \t",
        "200  two  spaces ",
    ] {
        let head = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(answer(&head).status, 200);
        assert_eq!(edited(&head, false), head);
    }
}

#[test]
fn the_connection_is_kept_only_when_both_heads_agree() {
    const CL: &str = "Content-Length: 0\r\n";
    const KEEP: &str = "Connection: Keep-Alive\r\n";
    const CLOSE: &str = "Connection: Close\r\n";
    for (request, response, fields, keeps) in [
        ("1.1", "1.1", vec![CL], true),
        ("1.1", "1.1", vec![CL, CLOSE], false),
        (
            "1.1",
            "1.1",
            vec![CL, "Connection: keep-alive, close\r\n"],
            false,
        ),
        ("1.1", "1.1", vec![], false),
        ("1.1", "1.1", vec![KEEP], false),
        ("1.1", "1.0", vec![CL], false),
        ("1.1", "1.0", vec![CL, KEEP], true),
        ("1.0", "1.1", vec![CL], false),
        ("1.0", "1.1", vec![CL, KEEP], true),
        ("1.0", "1.0", vec![CL, KEEP], true),
        ("1.0", "1.0", vec![KEEP], false),
    ] {
        let head = format!("HTTP/{response} 200 OK\r\n{}\r\n", fields.concat());
        match parsed(&head, &format!("GET / HTTP/{request}")) {
            Response::Head(parsed) => assert_eq!(parsed.keeps_alive, keeps, "{request} {head:?}"),
            other => panic!("{head:?}: {other:?}"),
        }
    }
}

#[test]
fn a_close_of_ours_is_told_and_nothing_else_changed() {
    let head =
        |line: &str| format!("HTTP/1.1 200 Fine\r\nb: 1\r\n{line}A:2\r\nContent-Length: 0\r\n");
    let plain = head("") + "\r\n";
    assert_eq!(edited(&plain, false), plain);
    assert_eq!(edited(&plain, true), head("") + "Connection: close\r\n\r\n");
    for (line, told) in [
        ("Connection: keep-alive\r\n", "Connection: close\r\n"),
        ("CONNECTION:Keep-Alive \r\n", "CONNECTION:close \r\n"),
        ("Connection: keep-alive, x\r\n", "Connection: x, close\r\n"),
        (
            "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
            "Connection: close\r\n",
        ),
        (
            "Keep-Alive: timeout=5\r\nConnection: keep-alive\r\n",
            "Connection: close\r\n",
        ),
    ] {
        assert_eq!(
            edited(&(head(line) + "\r\n"), true),
            head(told) + "\r\n",
            "{line:?}"
        );
    }
}

#[test]
fn how_long_the_server_keeps_its_connection_is_learned_and_not_passed_on() {
    for (value, seconds) in [
        ("timeout=5", Some(5)),
        ("timeout=5, max=100", Some(5)),
        ("max=100,Timeout=75", Some(75)),
        ("max=100", None),
        ("timeout=x", None),
        ("timeout=", None),
    ] {
        let head = |line: &str| format!("HTTP/1.1 200 OK\r\n{line}Content-Length: 0\r\n\r\n");
        let with = head(&format!("Keep-Alive: {value}\r\n"));
        assert_eq!(
            answer(&with).keeps_for,
            seconds.map(Duration::from_secs),
            "{value}"
        );
        assert_eq!(edited(&with, false), head(""));
    }
}

#[test]
fn connection_bound_authentication_is_noticed() {
    for (line, binds) in [
        ("WWW-Authenticate: NTLM", true),
        ("WWW-Authenticate: Basic realm=\"x\", Negotiate", true),
        ("Proxy-Authenticate: Negotiate YII=", true),
        ("WWW-Authenticate: Basic realm=\"NTLM\"", false),
    ] {
        let head = answer(&format!(
            "HTTP/1.1 401 x\r\n{line}\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(head.authenticates_connection, binds, "{line}");
    }
}

#[test]
fn a_head_split_at_every_byte_gives_the_same_result() {
    let head = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc";
    let request = request("GET / HTTP/1.1");
    let limits = Limits::default();
    let whole = parse(head.as_bytes(), &request, &limits);
    let Response::Head(ResponseHead { len, .. }) = whole else {
        panic!("{whole:?}")
    };
    for cut in 0..head.len() {
        let part = parse(&head.as_bytes()[..cut], &request, &limits);
        if cut < len {
            assert_eq!(part, Response::Partial, "cut at {cut}");
        } else {
            assert_eq!(part, whole, "cut at {cut}");
        }
    }
}
