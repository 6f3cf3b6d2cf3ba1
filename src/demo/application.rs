//! The application of the story, a process of its own: it calls addresses with plain TCP and
//! HTTP/1.1 and knows nothing of any proxy. It is started first and never restarted.
//!
//! It takes one order a line on standard input and answers one JSON object a line.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Far more than any call takes here; a call that hangs is a failure to be told.
const PATIENCE: Duration = Duration::from_secs(5);
/// What it asks its server for.
const PATH: &str = "/hello";

/// What the director may order.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Open a connection, send one request, read the answer, close.
    Call(SocketAddr),
    /// The same, but keep the connection open.
    Open(SocketAddr),
    /// Send one more request on the connection kept open.
    Again,
}

/// What became of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Answered(Answered),
    Failed(String),
}

/// An answer, and the two ends of the connection as the application sees them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) status: u16,
    pub(super) body: String,
}

/// # Errors
/// When the orders cannot be read any more.
pub(super) fn run() -> io::Result<()> {
    let mut kept = None;
    for line in io::stdin().lines() {
        let outcome = match serde_json::from_str(&line?) {
            Ok(order) => carry_out(order, &mut kept).map_or_else(
                |error| Outcome::Failed(error.to_string()),
                Outcome::Answered,
            ),
            Err(error) => Outcome::Failed(format!("not an order: {error}")),
        };
        println!("{}", serde_json::json!(outcome));
    }
    Ok(())
}

fn carry_out(order: Order, kept: &mut Option<TcpStream>) -> io::Result<Answered> {
    match order {
        Order::Call(server) => get(server, PATH),
        Order::Open(server) => ask(kept.insert(connect(server)?), PATH),
        Order::Again => match kept {
            Some(stream) => ask(stream, PATH),
            None => Err(io::Error::other("no connection was kept open")),
        },
    }
}

/// One request on a connection of its own.
pub(super) fn get(server: SocketAddr, path: &str) -> io::Result<Answered> {
    ask(&connect(server)?, path)
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask(mut stream: &TcpStream, path: &str) -> io::Result<Answered> {
    let peer = stream.peer_addr()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {peer}\r\n\r\n").as_bytes())?;
    let (status, body) = read_response(&mut BufReader::new(stream))?;
    Ok(Answered {
        local: stream.local_addr()?,
        peer,
        status,
        body,
    })
}

fn read_response(reader: &mut impl BufRead) -> io::Result<(u16, String)> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without an answer",
        ));
    }
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| invalid("no HTTP status line"))?;
    let mut length = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(invalid("the head of the answer breaks off"));
        }
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    let length: usize = length.ok_or_else(|| invalid("an answer without Content-Length"))?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    String::from_utf8(body)
        .map(|body| (status, body))
        .map_err(|_| invalid("an answer that is no text"))
}
