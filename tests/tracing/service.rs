//! What the application asks: a service that shows the head that reached it, and an application in
//! the middle that only copies headers.

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use crate::support::{Peer, SVC4, Speak, World};

/// Answers each request with its own head; 500 where the path says `fail`, and nothing but the
/// connection's end where it says `break`.
pub(crate) fn echo(world: &World, port: u16) -> Peer {
    world.peer(port, show_heads)
}

pub(crate) fn show_heads(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let Ok(head) = stream.hear_until("\r\n\r\n") else {
            return Ok(());
        };
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.contains("break") {
            return Ok(());
        }
        let status = if path.contains("fail") { 500 } else { 200 };
        stream.say(format!(
            "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{head}",
            head.len()
        ))?;
    }
}

/// Headers that belong to a trace or go along with it.
const COPIED: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

/// Asks `next` on behalf of whoever asks it, knowing nothing of traces: it copies some headers.
pub(crate) fn copy_headers(mut stream: TcpStream, next: SocketAddr) -> io::Result<()> {
    loop {
        let Ok(head) = stream.hear_until("\r\n\r\n") else {
            return Ok(());
        };
        let copied: String = head
            .lines()
            .filter(|line| {
                let name = line.split(':').next().unwrap_or_default();
                COPIED.contains(&name.to_ascii_lowercase().as_str())
            })
            .map(|line| format!("{line}\r\n"))
            .collect();
        let mut onward = TcpStream::connect(next)?;
        onward.say(format!(
            "GET /onward HTTP/1.1\r\nHost: beyond.test\r\n{copied}\r\n"
        ))?;
        let (_, body) = onward.hear_response()?;
        stream.say(format!(
            "HTTP/1.1 200 x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
    }
}

pub(crate) fn connect(world: &World) -> TcpStream {
    world.app.connect((SVC4, 80))
}

/// A request with these header lines; the head that reached the service.
pub(crate) fn reached(client: &mut TcpStream, path: &str, headers: &str) -> String {
    client.say(request(path, headers)).expect("a connection");
    client.hear_response().expect("an answer").1
}

pub(crate) fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: svc.test\r\n{headers}\r\n")
}

/// The value of a header line.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    Some(found.1)
}
