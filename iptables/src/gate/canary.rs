//! Proof by experiment: connections to addresses that nobody uses are redirected to the proxy, and
//! every worker must say whom it is and where they were going; then the proxy itself dials there,
//! and must not be redirected.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use outrigger_config::control::{CanaryAnswer, Identity, LoopOutcome, Reply, Request};
use rustix::rand::{GetRandomFlags, getrandom};
use socket2::{Domain, Socket, Type};

use super::{count_of, dialler::Dialler, on_port};
use crate::{
    control::{Proxy, is_timeout, unexpected},
    error::{CanaryFailure, Refusal},
    nft::{self, NetlinkSocket},
    plan::{Family, Plan},
};

/// A worker answers within a millisecond; this is for a host that is short of CPU.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// For one family: the kernel spreads connections by a hash of their ports, so with n workers the
/// last one is hit after about n·ln n dials.
const DIALS_PER_WORKER: usize = 40;
const TIME_PER_FAMILY: Duration = Duration::from_secs(15);
const LOOP_DIALS: usize = 3;
/// An answer is one short line of JSON.
const MAX_ANSWER: usize = 4096;

/// `redirect` makes the probe addresses lead to the proxy for as long as what it returns lives, which is
/// handed on.
pub(crate) fn probe<T>(
    proxy: &mut Proxy,
    identity: &Identity,
    plan: &Plan,
    redirect: impl FnOnce(&[SocketAddr]) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut dialler = Dialler::new(plan)?;
    let targets = plan
        .families
        .iter()
        .map(|&family| Target::reserve(family))
        .collect::<Result<Vec<_>, _>>()?;
    let addresses: Vec<_> = targets.iter().map(|target| target.address).collect();
    let nonce = nonce()?;
    proxy.tell(
        "announcing the probe",
        &Request::ExpectCanary {
            targets: addresses.clone(),
            nonce: nonce.clone(),
        },
    )?;
    let redirected = redirect(&addresses)?;

    let sockets = on_port(plan.port)?;
    for target in &targets {
        // Workers that share one inherited socket need not all be hit: the queue is common.
        let wanted = identity
            .workers
            .min(count_of(target.family, &sockets))
            .max(1);
        reach_all(target, wanted, &nonce, identity, &mut dialler)?;
    }
    for target in &targets {
        check_loop(proxy, target.address, plan)?;
    }
    proxy.tell(
        "ending the probe",
        &Request::ExpectCanary {
            targets: Vec::new(),
            nonce: String::new(),
        },
    )?;
    Ok(redirected)
}

/// The redirect of a probe in a table of its own, owned by the socket: it goes with it, whatever fails.
pub(crate) struct Redirected {
    socket: NetlinkSocket,
    table: String,
}

pub(crate) fn redirect(plan: &Plan, targets: &[SocketAddr]) -> Result<Redirected, Refusal> {
    let mut socket = NetlinkSocket::open()?;
    let table = plan.canary(targets);
    nft::create(&mut socket, &table)?;
    nft::widen(&mut socket, &table)?;
    Ok(Redirected {
        socket,
        table: table.name,
    })
}

impl Redirected {
    /// Ends the redirect at once. To close what is left waits until the kernel has freed the table too.
    pub(crate) fn end(mut self) -> Result<NetlinkSocket, Refusal> {
        nft::delete(&mut self.socket, &self.table)?;
        Ok(self.socket)
    }
}

/// An address to dial that is nobody's: its port is bound here, and nobody listens on it.
struct Target {
    family: Family,
    address: SocketAddr,
    _reserved: Socket,
}

impl Target {
    fn reserve(family: Family) -> Result<Self, Refusal> {
        // 127.0.0.0/8 needs no route. IPv6 has no such spare addresses, and one without a route
        // fails with ENETUNREACH before netfilter sees it, so it is ::1 at a port of our own.
        let ip: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(127, 192, 0, 2).into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let reserve = || {
            let address = SocketAddr::new(ip, 0);
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.bind(&address.into())?;
            let bound = socket
                .local_addr()?
                .as_socket()
                .ok_or(io::ErrorKind::InvalidData)?;
            Ok((socket, bound))
        };
        match reserve() {
            Ok((socket, address)) => Ok(Self {
                family,
                address,
                _reserved: socket,
            }),
            Err(error) => Err(failed(family, &error)),
        }
    }
}

fn failed(family: Family, error: &io::Error) -> Refusal {
    Refusal::Canary {
        family,
        seen: CanaryFailure::Io(error.to_string()),
    }
}

/// Fresh for each install, so that an old answer proves nothing.
fn nonce() -> Result<String, Refusal> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|errno| Refusal::Host {
        doing: "drawing a nonce".into(),
        cause: errno.into(),
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn reach_all(
    target: &Target,
    wanted: usize,
    nonce: &str,
    identity: &Identity,
    dialler: &mut Dialler,
) -> Result<(), Refusal> {
    let deadline = Instant::now() + TIME_PER_FAMILY;
    let mut answered = HashSet::new();
    let canary = |seen| Refusal::Canary {
        family: target.family,
        seen,
    };
    let parts = dialler.parts();
    for number in 0..parts + wanted * DIALS_PER_WORKER {
        let socket = dialler.socket(target.family, number)?;
        let answer = dial(socket, target.address, nonce, identity);
        answered.insert(answer.map_err(canary)?);
        if answered.len() >= wanted && number + 1 >= parts {
            return Ok(());
        }
        if Instant::now() > deadline {
            break;
        }
    }
    Err(canary(CanaryFailure::WorkersMissing {
        answered: answered.len(),
        wanted,
    }))
}

/// The number of the worker that answered.
fn dial(
    socket: Socket,
    target: SocketAddr,
    nonce: &str,
    identity: &Identity,
) -> Result<usize, CanaryFailure> {
    socket
        .connect_timeout(&target.into(), ANSWER_TIMEOUT)
        .map_err(judge)?;
    let mut stream = TcpStream::from(socket);
    let line = exchange(&mut stream, nonce).map_err(judge)?;
    let answer: CanaryAnswer =
        serde_json::from_slice(&line).map_err(|_| CanaryFailure::Stranger(excerpt(&line)))?;
    if answer.instance != identity.instance || answer.nonce != nonce {
        return Err(CanaryFailure::Stranger(format!(
            "instance {} instead of {}",
            excerpt(answer.instance.as_bytes()),
            identity.instance
        )));
    }
    if answer.original_destination != target {
        return Err(CanaryFailure::WrongDestination {
            dialled: target,
            seen: answer.original_destination,
        });
    }
    Ok(answer.worker)
}

fn exchange(stream: &mut TcpStream, nonce: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(format!("{nonce}\n").as_bytes())?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut answer = Vec::new();
    // Up to a line's end only: a stranger may keep the connection open after it, or never stop.
    while Instant::now() < deadline && answer.len() < MAX_ANSWER {
        let mut chunk = [0; 512];
        let length = stream.read(&mut chunk)?;
        answer.extend_from_slice(&chunk[..length]);
        if let Some(end) = answer.iter().position(|&byte| byte == b'\n') {
            answer.truncate(end);
            return Ok(answer);
        }
        if length == 0 {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn judge(error: io::Error) -> CanaryFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => CanaryFailure::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            CanaryFailure::Stranger("it reset the connection".into())
        }
        _ if is_timeout(&error) => CanaryFailure::Silent,
        _ => CanaryFailure::Io(error.to_string()),
    }
}

/// What a stranger sent, fit for a terminal.
fn excerpt(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "it closed the connection without a word".into();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
    text.trim().escape_debug().to_string()
}

fn check_loop(proxy: &mut Proxy, target: SocketAddr, plan: &Plan) -> Result<(), Refusal> {
    let doing = "asking the proxy to dial the probe address";
    let outcome = loop_outcome(|| match proxy.ask(doing, &Request::LoopProbe { target })? {
        Reply::LoopProbe(outcome) => Ok(outcome),
        other => Err(unexpected(doing, &other)),
    })?;
    match outcome {
        LoopOutcome::NotCaptured => Ok(()),
        outcome => Err(Refusal::Loop {
            target,
            outcome,
            excluded: exclusion_in_words(plan),
        }),
    }
}

/// What the proxy's own dials come to. Rules that catch it catch it each time, whereas one dial may have the
/// ports of a connection that the kernel remembers as redirected.
fn loop_outcome(
    mut dial: impl FnMut() -> Result<LoopOutcome, Refusal>,
) -> Result<LoopOutcome, Refusal> {
    let mut outcome = dial()?;
    for _ in 1..LOOP_DIALS {
        if outcome == LoopOutcome::Captured {
            outcome = dial()?;
        }
    }
    Ok(outcome)
}

fn exclusion_in_words(plan: &Plan) -> String {
    let proxy = &plan.proxy;
    match (proxy.excluded_uid, proxy.mark) {
        (Some(uid), Some(mark)) => {
            format!("it has neither user {uid} nor mark {mark:#x}, which the rules exclude")
        }
        (Some(uid), None) => format!("it has not user {uid}, whom the rules exclude"),
        (None, Some(mark)) => format!("it has not mark {mark:#x}, which the rules exclude"),
        (None, None) => "the rules exclude nobody".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    fn identity() -> Identity {
        Identity {
            instance: "me".into(),
            version: "0".into(),
            pid: 1,
            uid: 1,
            workers: 2,
            listeners: Vec::new(),
            listener_inodes: Vec::new(),
            mark: None,
            uptime_secs: 0,
            draining: false,
            tethers: Vec::new(),
            captured_since: None,
        }
    }

    #[test]
    fn one_dial_that_comes_back_is_no_loop_and_each_that_does_is() {
        use LoopOutcome::{Captured, NotCaptured, Silent};
        for (outcomes, expected) in [
            (&[NotCaptured][..], NotCaptured),
            (&[Captured, NotCaptured], NotCaptured),
            (&[Captured, Captured, Captured], Captured),
            (&[Captured, Silent], Silent),
        ] {
            let mut dials = outcomes.iter();
            let outcome = loop_outcome(|| Ok(*dials.next().expect("no more dials")));
            assert_eq!(outcome.unwrap(), expected);
            assert_eq!(dials.len(), 0);
        }
    }

    /// A server that says `answer(target)` to each of `count` connections.
    fn server(
        count: usize,
        answer: impl Fn(SocketAddr, usize) -> String + Send + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (stream, index) in listener.incoming().take(count).zip(0..) {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 64]);
                let _ = stream.write_all(answer(address, index).as_bytes());
            }
        });
        address
    }

    fn canary(instance: &str, worker: usize, seen: SocketAddr) -> String {
        let answer = CanaryAnswer {
            instance: instance.into(),
            nonce: "n".into(),
            worker,
            original_destination: seen,
        };
        serde_json::to_string(&answer).unwrap() + "\n"
    }

    fn dialled(
        target: SocketAddr,
        nonce: &str,
        identity: &Identity,
    ) -> Result<usize, CanaryFailure> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        dial(socket, target, nonce, identity)
    }

    #[test]
    fn a_proxy_is_told_from_a_stranger() {
        let right = server(1, |address, _| canary("me", 5, address));
        assert_eq!(dialled(right, "n", &identity()), Ok(5));
        let other = server(1, |address, _| canary("stale", 0, address));
        assert!(matches!(
            dialled(other, "n", &identity()),
            Err(CanaryFailure::Stranger(what)) if what.contains("stale")
        ));
        let web = server(1, |_, _| "HTTP/1.1 400 Bad Request\r\n\r\n".into());
        assert!(matches!(
            dialled(web, "n", &identity()),
            Err(CanaryFailure::Stranger(what)) if what.contains("400")
        ));
        let mute = server(1, |_, _| String::new());
        assert!(matches!(
            dialled(mute, "n", &identity()),
            Err(CanaryFailure::Stranger(_))
        ));
    }

    #[test]
    fn a_wrong_original_destination_is_told() {
        let elsewhere: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let address = server(1, move |_, _| canary("me", 0, elsewhere));
        assert_eq!(
            dialled(address, "n", &identity()),
            Err(CanaryFailure::WrongDestination {
                dialled: address,
                seen: elsewhere
            })
        );
    }

    #[test]
    fn a_worker_that_never_answers_is_missed() {
        let address = server(usize::MAX, |address, _| canary("me", 0, address));
        let target = Target {
            family: Family::V4,
            address,
            _reserved: Socket::new(Domain::IPV4, Type::STREAM, None).unwrap(),
        };
        let refusal = reach_all(&target, 2, "n", &identity(), &mut Dialler::here());
        assert!(matches!(
            refusal,
            Err(Refusal::Canary {
                seen: CanaryFailure::WorkersMissing {
                    answered: 1,
                    wanted: 2
                },
                ..
            })
        ));
    }

    #[test]
    fn nobody_there_is_a_refusal() {
        let target = Target::reserve(Family::V4).unwrap();
        assert_eq!(
            dialled(target.address, "n", &identity()),
            Err(CanaryFailure::Refused)
        );
    }
}
