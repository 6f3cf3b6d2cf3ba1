//! The beats that renew the lease of the capture: sent only on fresh evidence that every worker
//! turns and accepts, and that a redirect leads here with the right original destination.

use std::{
    convert::Infallible,
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::control::{Lease, RulesTrouble, is_application_probe, probe_address};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time,
};

use super::ControlState;
use crate::pulse::Pulse;

/// Beats in the time of one lease: it takes four in a row to fail before it runs out.
pub(super) const BEATS_A_LEASE: u32 = 4;

/// One capture's lease.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) generation: u64,
    pub(super) lease: Lease,
}

impl Held {
    pub(super) fn length(&self) -> Duration {
        Duration::from_millis(self.lease.millis)
    }
}

/// Beats for as long as captures are held.
pub(super) async fn run(state: Arc<ControlState>) -> Infallible {
    loop {
        let held = state.leases();
        let Some(shortest) = held.iter().map(Held::length).min() else {
            state.captures_changed().await;
            continue;
        };
        let pause = shortest / BEATS_A_LEASE;
        let next = Instant::now() + pause;
        let round = state.heartbeat.round(&state.pulse, &held, pause).await;
        state.note(shortest, round);
        time::sleep_until(next.into()).await;
    }
}

/// Whether a connection that was going to `original` and came to `listener` is a probe of ours, to be
/// given to [`ControlState::answer_probe`].
pub fn is_probe(original: SocketAddr, listener: SocketAddr) -> bool {
    original == probe_address(listener) || is_application_probe(original.ip())
}

/// Who answered a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Own,
    /// Another proxy of this kind.
    Neighbour,
    Stranger,
}

/// Reads as far as it may be the answer of a proxy: another server may say something and stay.
pub(super) async fn read_answer(stream: &mut TcpStream, instance: &str) -> io::Result<Answer> {
    let own = instance.as_bytes();
    let may_be_another =
        |answer: &[u8]| answer.len() <= own.len() && answer.iter().all(u8::is_ascii_hexdigit);
    let mut answer = Vec::new();
    while (own.starts_with(&answer) || may_be_another(&answer))
        && stream.read_buf(&mut answer).await? > 0
    {}
    Ok(if answer == own {
        Answer::Own
    } else if answer.len() == own.len() && may_be_another(&answer) {
        Answer::Neighbour
    } else {
        Answer::Stranger
    })
}

#[derive(Debug)]
pub(super) struct Heartbeat {
    instance: String,
    mark: Option<u32>,
}

/// Why a lease was not renewed.
#[derive(Debug)]
pub(super) enum Obstacle {
    SilentWorker(usize),
    Probe {
        target: SocketAddr,
        seen: String,
        trouble: RulesTrouble,
    },
    NotDropped(SocketAddr),
    ForeignDrop(SocketAddr),
    Io {
        doing: &'static str,
        cause: io::Error,
    },
}

impl Obstacle {
    /// What it says of the rules; `None`: it speaks against this process. Rules that are `owned` by this
    /// process are not gone while they are held, so that another's must have come first.
    pub(super) fn trouble(&self, owned: bool) -> Option<RulesTrouble> {
        match self {
            Self::Probe { trouble, .. } if owned && *trouble == RulesTrouble::Gone => {
                Some(RulesTrouble::Overruled)
            }
            Self::Probe { trouble, .. } => Some(*trouble),
            Self::NotDropped(_) => Some(RulesTrouble::Gone),
            Self::ForeignDrop(_) => Some(RulesTrouble::Dropped),
            Self::SilentWorker(_) | Self::Io { .. } => None,
        }
    }
}

impl Heartbeat {
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn new(instance: String, mark: Option<u32>) -> Self {
        Self { instance, mark }
    }

    /// One beat for each of `held`, or what stands in its way. A family that fails its probe does
    /// not keep the other one from being renewed. `Ok`: when it was that all were renewed.
    ///
    /// # Errors
    /// The first obstacle.
    pub(super) async fn round(
        &self,
        pulse: &Pulse,
        held: &[Held],
        limit: Duration,
    ) -> Result<Instant, Obstacle> {
        let mut result = Ok(());
        let mut proven = Vec::new();
        for Held { generation, lease } in held {
            for &beat in &lease.beats {
                match self.probe(probe_address(beat), limit).await {
                    Ok(()) => proven.push((beat, *generation)),
                    Err(obstacle) => result = result.and(Err(obstacle)),
                }
            }
        }
        // Last and just before the beats: a worker that hangs from now on has had its last one.
        pulse.take(limit).await.map_err(Obstacle::SilentWorker)?;
        let now = Instant::now();
        for (beat, generation) in proven {
            result = result.and(self.beat(beat, generation));
        }
        result.map(|()| now)
    }

    pub(super) async fn probe(&self, target: SocketAddr, limit: Duration) -> Result<(), Obstacle> {
        let mut is_taken = false;
        let dialled = time::timeout(limit, self.dial(target, &mut is_taken)).await;
        let (seen, trouble) = match dialled {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => (
                "was answered by something else than this proxy".into(),
                RulesTrouble::Gone,
            ),
            // Every worker of this proxy has answered in that time, or this is not what is told.
            Err(_) if is_taken => (
                "was taken by somebody else than this proxy, and got no answer in time".into(),
                RulesTrouble::Gone,
            ),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ConnectionRefused => (
                    "was refused instead of redirected here".into(),
                    RulesTrouble::Gone,
                ),
                ErrorKind::ConnectionReset => (
                    "was reset: it did not come with its original destination".into(),
                    RulesTrouble::NoOriginalDestination,
                ),
                _ => (format!("failed: {error}"), RulesTrouble::Dropped),
            },
            Err(_) => ("got no answer in time".into(), RulesTrouble::Dropped),
        };
        Err(Obstacle::Probe {
            target,
            seen,
            trouble,
        })
    }

    /// Whether this proxy answered; meanwhile, whether the connection was taken by anybody.
    async fn dial(&self, target: SocketAddr, is_taken: &mut bool) -> io::Result<bool> {
        let socket = self.socket(target, Type::STREAM)?;
        // Closed with a reset, so that no probe lingers in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let mut stream = socket.connect(target).await?;
        *is_taken = true;
        Ok(read_answer(&mut stream, &self.instance).await? == Answer::Own)
    }

    /// The rules drop a beat, which fails with EPERM. That another datagram gets through shows that
    /// it was they, and not somebody who drops everything.
    fn beat(&self, to: SocketAddr, generation: u64) -> Result<(), Obstacle> {
        let failed = |doing| move |cause| Obstacle::Io { doing, cause };
        let is_dropped = |sent: io::Result<usize>| match sent {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
            Err(error) => Err(failed("sending a beat")(error)),
        };
        let socket = self
            .socket(to, Type::DGRAM)
            .map_err(failed("opening a socket to beat with"))?;
        let bind = || {
            socket.bind(&SocketAddr::new(to.ip(), 0).into())?;
            socket.local_addr()
        };
        let own = bind().map_err(failed("binding a socket to beat with"))?;
        if !is_dropped(socket.send_to(&generation.to_be_bytes(), &to.into()))? {
            Err(Obstacle::NotDropped(to))
        } else if is_dropped(socket.send_to(&[], &own))? {
            Err(Obstacle::ForeignDrop(to))
        } else {
            Ok(())
        }
    }

    fn socket(&self, to: SocketAddr, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), kind.nonblocking(), None)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }

    pub(super) async fn answer_probe(&self, mut stream: TcpStream) {
        // A few bytes into a fresh socket; should that fail, the prober notices.
        let _ = stream.write_all(self.instance.as_bytes()).await;
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SilentWorker(worker) => {
                write!(f, "worker {worker} hangs, or no longer accepts")
            }
            Self::Probe { target, seen, .. } => write!(f, "a probe connection to {target} {seen}"),
            Self::NotDropped(beat) => write!(
                f,
                "no rule took the beat to {beat}: the rules are not there, or another's comes first"
            ),
            Self::ForeignDrop(beat) => write!(
                f,
                "a foreign rule drops every datagram to {}, the beat too",
                beat.ip()
            ),
            Self::Io { doing, cause } => write!(f, "{doing} failed: {cause}"),
        }
    }
}
