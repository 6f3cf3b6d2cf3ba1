//! An application that asks the service, and counts who answered.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream},
};

use crate::{
    backend::SERVICE,
    support::{Speak, World},
};

pub(crate) fn service() -> SocketAddr {
    SERVICE.parse().expect("an address")
}

pub(crate) fn connect(world: &World) -> TcpStream {
    world.app.connect(service())
}

/// The status and the body of the answer to a request with `headers`.
pub(crate) fn ask(client: &mut TcpStream, headers: &str) -> io::Result<(u16, String)> {
    ask_whole(client, "GET", headers).map(|(head, body)| (status(&head), body))
}

/// The head and the body.
pub(crate) fn ask_whole(
    client: &mut TcpStream,
    method: &str,
    headers: &str,
) -> io::Result<(String, String)> {
    let length = if method == "POST" {
        "Content-Length: 0\r\n"
    } else {
        ""
    };
    client.say(format!(
        "{method} / HTTP/1.1\r\nHost: svc\r\n{length}{headers}\r\n"
    ))?;
    client.hear_response()
}

pub(crate) fn status(head: &str) -> u16 {
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no status in {head:?}"))
}

/// How often each endpoint answered `count` requests of one client; a failure fails the test.
#[track_caller]
pub(crate) fn spread(world: &World, count: usize) -> BTreeMap<String, usize> {
    let mut client = connect(world);
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let (status, body) = ask(&mut client, "").expect("an answer");
        assert_eq!(status, 200, "{body}");
        *answers.entry(body.trim().to_owned()).or_default() += 1;
    }
    answers
}

/// One request on a connection of its own.
pub(crate) fn ask_once(world: &World, headers: &str) -> io::Result<(u16, String)> {
    ask(&mut world.app.try_connect(service())?, headers)
}
