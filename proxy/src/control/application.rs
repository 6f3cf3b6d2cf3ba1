//! The rules as applications meet them. Another's rule may spare this proxy's user, so that its own probe
//! still comes back, and take the connections of everybody else.

use std::{
    convert::Infallible,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::OwnedFd,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outrigger_config::control::{application_probe_addresses, probe_address};
use rustix::net::{SocketType, connect_unspec, sockopt};
use socket2::SockRef;
use tokio::{net::TcpSocket, time};

use super::{
    ControlState,
    heartbeat::{self, Answer, Heartbeat},
};
use crate::pulse::Pulse;

/// With the limit and the grace, less than a second from a foreign rule to its report.
const INTERVAL: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_millis(200);
/// For what is still on its way when everything else proves quick.
const GRACE: Duration = Duration::from_millis(100);
/// Two families for each capture that may be held.
const MAX_SOCKETS: usize = 16;
/// In a row: a SYN may be lost.
const SILENT_DIALS: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Applications {
    held: Mutex<Vec<Held>>,
}

/// With its capture's generation.
type Socket = (u64, Arc<OwnedFd>);

#[derive(Debug)]
struct Held {
    generation: u64,
    /// Made by an application's user and in its cgroup, which is what rules go by: its copies too.
    socket: Arc<OwnedFd>,
    silent: u32,
    /// Where its connections go instead of here.
    astray: Option<String>,
}

/// What a dial showed.
enum Seen {
    Captured,
    Astray(String),
    /// Nothing came back, though every worker was quick to answer.
    Silent(String),
    Unclear,
}

/// Dials for as long as sockets are held.
pub(super) async fn run(state: Arc<ControlState>) -> Infallible {
    loop {
        time::sleep(INTERVAL).await;
        state.dial_as_applications().await;
    }
}

impl Applications {
    pub(super) fn hold(&self, generation: u64, socket: OwnedFd) -> Result<(), String> {
        if !is_fit(&socket) {
            return Err("the descriptor is not a TCP socket".into());
        }
        // Shared by its copies, and needed by the runtime.
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|error| format!("the socket cannot be used: {error}"))?;
        let mut held = self.held();
        if held.len() >= MAX_SOCKETS {
            return Err("too many sockets are held already; run remove-rules first".into());
        }
        held.push(Held {
            generation,
            socket: Arc::new(socket),
            silent: 0,
            astray: None,
        });
        Ok(())
    }

    /// Closes what belongs to no capture that `is_held`.
    pub(super) fn keep(&self, is_held: impl Fn(u64) -> bool) {
        self.held().retain(|held| is_held(held.generation));
    }

    /// What the latest dials found wrong.
    pub(super) fn trouble(&self) -> Option<String> {
        self.held().iter().find_map(|held| held.astray.clone())
    }

    pub(super) fn sockets(&self) -> Vec<Socket> {
        let held = self.held();
        held.iter()
            .map(|held| (held.generation, held.socket.clone()))
            .collect()
    }

    /// Dials with one of them, while this proxy's own probes come back.
    pub(super) async fn dial(
        &self,
        (generation, socket): Socket,
        leases: &[heartbeat::Held],
        heartbeat: &Heartbeat,
        pulse: &Pulse,
    ) {
        let beats = leases.iter().filter(|held| held.generation == generation);
        let mut beats = beats.flat_map(|held| &held.lease.beats);
        if let Some(&listener) = beats.find(|beat| is_family_of(&socket, **beat)) {
            let seen = dial(&socket, listener, heartbeat, pulse).await;
            self.note(&socket, seen);
        }
    }

    fn note(&self, socket: &Arc<OwnedFd>, seen: Seen) {
        let mut all = self.held();
        // It may have been let go of meanwhile.
        let Some(held) = all
            .iter_mut()
            .find(|held| Arc::ptr_eq(&held.socket, socket))
        else {
            return;
        };
        let silent = std::mem::take(&mut held.silent);
        match seen {
            Seen::Captured => held.astray = None,
            Seen::Astray(why) => held.astray = Some(why),
            Seen::Silent(why) => {
                held.silent = silent.saturating_add(1);
                if held.silent >= SILENT_DIALS {
                    held.astray = Some(why);
                }
            }
            Seen::Unclear => {}
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial(
    socket: &OwnedFd,
    listener: SocketAddr,
    heartbeat: &Heartbeat,
    pulse: &Pulse,
) -> Seen {
    for target in application_probe_addresses(listener) {
        match dial_once(socket, target, listener, heartbeat, pulse).await {
            // Such as in a namespace that has no way out.
            Seen::Unclear => {}
            seen => return seen,
        }
    }
    Seen::Unclear
}

async fn dial_once(
    socket: &OwnedFd,
    target: SocketAddr,
    listener: SocketAddr,
    heartbeat: &Heartbeat,
    pulse: &Pulse,
) -> Seen {
    let mut is_taken = false;
    let mut is_quick = false;
    let answer = {
        let _disconnected = Disconnect(socket);
        let mut asked = pin!(ask(socket, target, heartbeat.instance(), &mut is_taken));
        match time::timeout(LIMIT, &mut asked).await {
            Ok(answer) => Some(answer),
            // Workers and a connection of this proxy's own that answer now: so would that one, if it were here.
            Err(_) => {
                is_quick = pulse.take(LIMIT).await.is_ok()
                    && heartbeat
                        .probe(probe_address(listener), LIMIT)
                        .await
                        .is_ok();
                time::timeout(GRACE, &mut asked).await.ok()
            }
        }
    };
    let told = |seen: &str| format!("an application's probe connection to {target} {seen}");
    match answer {
        // A neighbour of this proxy that captures for the same applications is no matter of this.
        Some(Ok(Answer::Own | Answer::Neighbour)) => Seen::Captured,
        Some(Ok(Answer::Stranger)) => {
            Seen::Astray(told("was answered by something else than this proxy"))
        }
        Some(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused => {
                Seen::Astray(told("was refused instead of redirected here"))
            }
            ErrorKind::ConnectionReset => Seen::Astray(told("was reset by somebody else")),
            _ => Seen::Unclear,
        },
        None if !is_quick => Seen::Unclear,
        None if is_taken => Seen::Astray(told(
            "was taken by somebody else than this proxy, and got no answer",
        )),
        None => Seen::Silent(told("got no answer")),
    }
}

async fn ask(
    socket: &OwnedFd,
    target: SocketAddr,
    instance: &str,
    is_taken: &mut bool,
) -> io::Result<Answer> {
    let copy = StdStream::from(socket.try_clone()?);
    let mut stream = TcpSocket::from_std_stream(copy).connect(target).await?;
    *is_taken = true;
    heartbeat::read_answer(&mut stream, instance).await
}

/// Resets the connection, so that the socket can be used again.
struct Disconnect<'a>(&'a OwnedFd);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        if let Err(error) = connect_unspec(self.0) {
            tracing::debug!(%error, "an application's socket is of no more use");
        }
    }
}

fn is_fit(socket: &OwnedFd) -> bool {
    let is_stream = sockopt::socket_type(socket) == Ok(SocketType::STREAM);
    let address = SockRef::from(socket).local_addr();
    is_stream && address.is_ok_and(|address| address.as_socket().is_some())
}

fn is_family_of(socket: &OwnedFd, address: SocketAddr) -> bool {
    let own = SockRef::from(socket).local_addr();
    own.is_ok_and(|own| own.is_ipv4() == address.is_ipv4())
}
