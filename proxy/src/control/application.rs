//! The rules as applications meet them. Another's rule may spare this proxy's user, so that its own probe
//! still comes back, and take the connections of everybody else.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use outrigger_config::control::application_probe_addresses;
use rustix::net::{SocketType, connect_unspec, sockopt};
use socket2::SockRef;
use tokio::{net::TcpSocket, time};

use super::{heartbeat, heartbeat::Answer};
use crate::pulse::Pulse;

/// Two families for each capture that may be held.
const MAX_SOCKETS: usize = 16;
/// Rounds in a row: a SYN may be lost.
const SILENT_ROUNDS: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Applications {
    held: Mutex<Vec<Held>>,
}

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

    /// Dials with each socket of the captures in `leases`, whose own probes have just come back.
    pub(super) async fn dial(
        &self,
        leases: &[heartbeat::Held],
        instance: &str,
        pulse: &Pulse,
        limit: Duration,
    ) {
        for (generation, socket) in self.sockets() {
            let beats = leases.iter().filter(|held| held.generation == generation);
            let mut beats = beats.flat_map(|held| &held.lease.beats);
            let Some(&listener) = beats.find(|beat| is_family_of(&socket, **beat)) else {
                continue;
            };
            let seen = dial(&socket, listener, instance, pulse, limit).await;
            self.note(&socket, seen);
        }
    }

    fn sockets(&self) -> Vec<(u64, Arc<OwnedFd>)> {
        let held = self.held();
        held.iter()
            .map(|held| (held.generation, held.socket.clone()))
            .collect()
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
                if held.silent >= SILENT_ROUNDS {
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
    instance: &str,
    pulse: &Pulse,
    limit: Duration,
) -> Seen {
    for target in application_probe_addresses(listener) {
        match dial_once(socket, target, instance, pulse, limit).await {
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
    instance: &str,
    pulse: &Pulse,
    limit: Duration,
) -> Seen {
    let told = |seen: &str| format!("an application's probe connection to {target} {seen}");
    let began = Instant::now();
    let mut is_taken = false;
    let answer = {
        let _disconnected = Disconnect(socket);
        time::timeout(limit, ask(socket, target, instance, &mut is_taken)).await
    };
    match answer {
        // A neighbour of this proxy that captures for the same applications is none of this.
        Ok(Ok(Answer::Own | Answer::Neighbour)) => Seen::Captured,
        Ok(Ok(Answer::Stranger)) => {
            Seen::Astray(told("was answered by something else than this proxy"))
        }
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused => {
                Seen::Astray(told("was refused instead of redirected here"))
            }
            ErrorKind::ConnectionReset => Seen::Astray(told("was reset by somebody else")),
            _ => Seen::Unclear,
        },
        // A worker that answers now would have answered the connection too, had it been here.
        Err(_) if pulse.take(limit).await.is_err() || began.elapsed() > 3 * limit => Seen::Unclear,
        Err(_) if is_taken => Seen::Astray(told(
            "was taken by somebody else than this proxy, and got no answer",
        )),
        Err(_) => Seen::Silent(told("got no answer")),
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
