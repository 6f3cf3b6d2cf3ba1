//! Endpoints that follow a script, request by request, and remember every request that they saw.

use std::{
    collections::VecDeque,
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::support::{Peer, SVC4, Speak, World};

/// Where the application dials; nobody listens there.
pub(crate) const SERVICE: &str = "198.51.100.2:80";

pub(crate) const OK: Does = Does::Answers("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n");

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// These bytes are the answer.
    Answers(&'static str),
    /// The same, after a while.
    AnswersLate(Duration, &'static str),
    /// Bytes, and no end of them.
    Begins(&'static str),
    /// Closes without an answer.
    Closes,
    /// The same with a reset.
    Resets,
    /// Says nothing until the proxy lets go.
    Hangs,
}

/// Two endpoints with one script: whatever request comes next does the next line of it, wherever it
/// comes; behind its end every request is answered with [`OK`].
pub(crate) struct Endpoints {
    shared: Arc<Shared>,
    _peers: Vec<Peer>,
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Does>>,
    seen: Mutex<Vec<Seen>>,
}

/// A request as an endpoint saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) port: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Endpoints {
    pub(crate) fn start(world: &World) -> Self {
        let shared = Arc::<Shared>::default();
        let peers = [9001, 9002].map(|port| {
            let shared = shared.clone();
            world.peer(port, move |stream| shared.serve(stream, port))
        });
        Self {
            shared,
            _peers: peers.into(),
        }
    }

    /// From the next request on.
    pub(crate) fn will(&self, script: impl IntoIterator<Item = Does>) {
        self.shared.seen.lock().expect("no panic").clear();
        *self.shared.script.lock().expect("no panic") = script.into_iter().collect();
    }

    /// What was seen since the script began.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream, port: u16) -> io::Result<()> {
        loop {
            let Some((head, body)) = hear_request(&mut stream)? else {
                return Ok(());
            };
            // The lock is held over both, so that the script's order is that of what was seen.
            let does = {
                let mut script = self.script.lock().expect("no panic");
                let mut seen = self.seen.lock().expect("no panic");
                seen.push(Seen { port, head, body });
                script.pop_front().unwrap_or(OK)
            };
            match does {
                Does::Answers(answer) => stream.say(answer)?,
                Does::AnswersLate(wait, answer) => {
                    thread::sleep(wait);
                    stream.say(answer)?;
                }
                Does::Begins(bytes) => {
                    stream.say(bytes)?;
                    return wait_for_the_end(&mut stream);
                }
                Does::Closes => return Ok(()),
                Does::Resets => return stream.reset(),
                Does::Hangs => return wait_for_the_end(&mut stream),
            }
        }
    }
}

/// The head of the next request and its body; none when the other side closed between two.
pub(crate) fn hear_request(stream: &mut TcpStream) -> io::Result<Option<(String, String)>> {
    if stream.peek(&mut [0])? == 0 {
        return Ok(None);
    }
    let head = stream.hear_until("\r\n\r\n")?;
    let lower = head.to_ascii_lowercase();
    if lower.contains("expect: 100-continue") {
        stream.say("HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let body = if lower.contains("transfer-encoding: chunked") {
        stream.hear_until("0\r\n\r\n")?
    } else {
        let length = lower
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        String::from_utf8_lossy(&stream.hear(length.unwrap_or(0))?).into_owned()
    };
    Ok(Some((head, body)))
}

fn wait_for_the_end(stream: &mut TcpStream) -> io::Result<()> {
    while stream.read(&mut [0; 1024])? > 0 {}
    Ok(())
}

/// A configuration whose routes, by the host's name, all lead to the same two endpoints.
pub(crate) fn routed(routes: &[(&str, &str)], cluster: &str) -> String {
    let routes: Vec<_> = routes
        .iter()
        .map(|(host, policy)| {
            format!("- {{ match: {{ host: {host} }}, cluster: service, {policy} }}\n")
        })
        .collect();
    format!(
        "workers: 1\nroutes:\n{}clusters:\n- name: service\n  endpoints: [{{ address: '{SVC4}:9001' }}, {{ address: '{SVC4}:9002' }}]\n  {cluster}\n",
        routes.concat()
    )
}

pub(crate) fn service() -> SocketAddr {
    SERVICE.parse().expect("an address")
}

/// The status of the answer to one request on a connection of its own, its head and its body.
pub(crate) fn ask(world: &World, host: &str, method: &str, body: &str) -> (u16, String, String) {
    let mut client = world.app.connect(service());
    let length = match body.len() {
        0 if method == "GET" => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    client
        .say(format!(
            "{method} / HTTP/1.1\r\nHost: {host}\r\n{length}\r\n{body}"
        ))
        .expect("the proxy takes a request");
    let (head, body) = client.hear_response().expect("an answer");
    (status(&head), head, body)
}

pub(crate) fn status(head: &str) -> u16 {
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no status in {head:?}"))
}
