//! The proof that a listener is no transparent proxy: it gives the same answer to a connection that
//! was redirected to it and to one made to it directly.
//!
//! Only on demand, since a real proxy would carry the request on to the host that it was meant for.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{known::direct, redirects::Redirect, scene::Scene};
use crate::listeners::Listener;

pub(super) enum Outcome {
    Same(String),
    Different(String),
    /// Why.
    Untried(String),
}

const PATIENCE: Duration = Duration::from_secs(2);
/// It asks for nothing and leaves nothing behind, whoever answers.
const QUESTION: &[u8] = b"OPTIONS * HTTP/1.1\r\nHost: probe.invalid\r\nConnection: close\r\n\r\n";

pub(super) fn try_out(scene: &Scene<'_>, redirect: &Redirect, listener: &Listener) -> Outcome {
    // What the rules would not turn round must not be dialled: it would leave the host.
    let Some(mut connection) = scene.sample(redirect) else {
        return Outcome::Untried(
            "no destination is known that the rule catches for certain".into(),
        );
    };
    connection.uid = rustix::process::geteuid().as_raw();
    connection.gid = rustix::process::getegid().as_raw();
    if !scene.is_caught(&connection, redirect) {
        return Outcome::Untried("the rule does not catch connections of this user".into());
    }
    let answer = |to: SocketAddr| ask(to).unwrap_or_else(|error| format!("no answer: {error}"));
    let (through, directly) = (answer(connection.destination), answer(direct(listener)));
    if through == directly {
        Outcome::Same(through)
    } else {
        Outcome::Different(format!("{through}; directly: {directly}"))
    }
}

/// The first line that comes back.
fn ask(to: SocketAddr) -> std::io::Result<String> {
    const MOST: u64 = 200;
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(QUESTION)?;
    let mut bytes = Vec::new();
    let read = stream.take(MOST).read_to_end(&mut bytes);
    if bytes.is_empty() {
        read?;
        return Ok("closed without a word".into());
    }
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().next().unwrap_or_default();
    Ok(line.escape_debug().to_string())
}
