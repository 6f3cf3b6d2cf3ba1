//! A plain HTTP client for the admin listener.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::support::{SOON, SVC4, World, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 2\r\n\r\nok";

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Waits for it: it is bound after the listeners whose presence tells that the proxy has started.
pub(crate) fn admin(world: &World) -> TcpStream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000));
    wait_for(SOON, "the admin listener", || {
        world.app.within(|| TcpStream::connect(address)).ok()
    })
}

/// `method` and `path`, with further header lines.
pub(crate) fn ask(world: &World, method: &str, path: &str, lines: &str) -> Answer {
    let stream = admin(world);
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    exchange(stream, method, path, lines)
}

pub(crate) fn ask_unix(world: &World, socket: &Path, method: &str, path: &str) -> Answer {
    let stream = wait_for(SOON, "the admin socket", || {
        world.app.within(|| UnixStream::connect(socket)).ok()
    });
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    exchange(stream, method, path, "Host: localhost\r\n")
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, lines: &str) -> Answer {
    let host = match lines.to_ascii_lowercase().contains("host:") {
        true => "",
        false => "Host: 127.0.0.1:15000\r\n",
    };
    let request = format!("{method} {path} HTTP/1.1\r\n{host}{lines}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is taken");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let body = &answer[end + 4..];
    Answer {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .expect("a status"),
        body: match head.contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_vec(),
        },
        head,
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&body[end + 2..][..size]);
        body = &body[end + 2 + size + 2..];
    }
    whole
}

/// An HTTP/1 server that answers every request at once.
pub(crate) fn answers(stream: TcpStream) -> io::Result<()> {
    let mut stream = io::BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        stream.get_mut().write_all(ANSWER)?;
    }
}

/// `count` requests of the application, each answered.
pub(crate) fn traffic(world: &World, port: u16, count: usize) {
    let connected = world.app.within(|| TcpStream::connect((SVC4, port)));
    let mut stream = connected.expect("the service is there");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    for _ in 0..count {
        let request =
            b"GET /orders?token=s3cret HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: test\r\n\r\n";
        stream.write_all(request).expect("it is taken");
        let mut answer = [0; ANSWER.len()];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, *ANSWER, "{}", answer.escape_ascii());
    }
}

/// The sum of a metric's series that have `labels` in their text.
pub(crate) fn metric(world: &World, name: &str, labels: &str) -> f64 {
    let text = ask(world, "GET", "/metrics", "").text();
    let series = text.lines().filter(|line| {
        let is_named = (line.strip_prefix(name)).is_some_and(|rest| rest.starts_with(['{', ' ']));
        is_named && line.contains(labels)
    });
    let value = |line: &str| {
        line.rsplit_once(' ')
            .and_then(|(_, value)| value.parse::<f64>().ok())
    };
    series.filter_map(value).sum::<f64>()
}
