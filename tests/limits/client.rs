//! An application that asks the server, and what it is told.

use std::net::TcpStream;

use crate::support::{SVC4, Speak, World};

/// A limit of `tokens` that come back in an hour: none comes while a test lasts.
pub(crate) fn hourly(name: &str, tokens: u32, more: &str) -> String {
    format!("{{ name: {name}, token_bucket: {{ max_tokens: {tokens}, fill_interval: 1h }}{more} }}")
}

/// Everything to where it was dialled, under `limits`.
pub(crate) fn limited(limits: &str) -> String {
    format!("routes: [{{ match: {{}}, cluster: original_destination, rate_limits: [{limits}] }}]\n")
}

pub(crate) fn connect(world: &World) -> TcpStream {
    world.app.connect((SVC4, 80))
}

/// The answer's status, head and body.
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Told {
    /// A header's value; its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (its, value) = line.split_once(':')?;
            its.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One request over `client`, with more header lines.
pub(crate) fn ask(client: &mut TcpStream, headers: &str) -> Told {
    say(
        client,
        &format!("GET /hello HTTP/1.1\r\nHost: svc\r\n{headers}\r\n"),
    )
}

pub(crate) fn say(client: &mut TcpStream, request: &str) -> Told {
    client.say(request).expect("the client can write");
    let (head, body) = client.hear_response().expect("an answer");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
    Told { status, head, body }
}

/// The statuses of so many requests over one connection.
pub(crate) fn statuses(world: &World, count: usize, headers: &str) -> Vec<u16> {
    let mut client = connect(world);
    (0..count)
        .map(|_| ask(&mut client, headers).status)
        .collect()
}
