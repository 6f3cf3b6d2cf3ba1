//! The installer's end of the control socket.

use std::{
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use outrigger_config::control::{
    Identity, MAX_LINE, NOT_UNDERSTOOD, Reply, Request, Status, Tether, socket_name,
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType, connect, sendmsg, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{
    error::Refusal,
    process::Process,
    sys::{PeerCredentials, peer_credentials},
};

/// A healthy proxy answers within a millisecond; the loop probe may wait for its own timeout.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// An open control connection.
pub(crate) struct Proxy {
    stream: UnixStream,
    /// What came after the last reply.
    pending: Vec<u8>,
    peer: PeerCredentials,
    /// How long to wait for an answer as a whole, however its bytes come.
    limit: Duration,
    /// As it says itself, once it was asked.
    version: Option<String>,
}

impl Proxy {
    /// Connects to whoever holds the control socket of `port`; `None`: nobody does.
    ///
    /// # Errors
    /// When the holder does not take the connection.
    pub(crate) fn connect(port: u16) -> Result<Option<Self>, Refusal> {
        Self::connect_within(port, ANSWER_TIMEOUT)
    }

    /// The same, with another patience for the connection and each answer.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) fn connect_within(port: u16, limit: Duration) -> Result<Option<Self>, Refusal> {
        match connect_abstract(&socket_name(port), limit) {
            Ok(stream) => {
                let peer =
                    peer_credentials(&stream).map_err(|e| broken("asking who answers", e))?;
                Ok(Some(Self {
                    stream,
                    pending: Vec::new(),
                    peer,
                    limit,
                    version: None,
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
            // A backlog that stays full belongs to somebody who no longer accepts.
            Err(error) if is_timeout(&error) => Err(Refusal::ProxySilent { peer: None }),
            Err(error) => Err(broken("connecting to the control socket", error)),
        }
    }

    /// The user that listens at the other end, as the kernel says.
    pub(crate) fn uid(&self) -> u32 {
        self.peer.uid
    }

    /// The process at the other end, where this pid namespace shows it.
    pub(crate) fn process(&self) -> Option<Process> {
        (self.peer.pid > 0)
            .then(|| Process::of(self.peer.pid))
            .flatten()
    }

    /// # Errors
    /// When the proxy does not answer, or not with its identity.
    pub(crate) fn hello(&mut self) -> Result<Identity, Refusal> {
        match self.ask("asking the proxy who it is", &Request::Hello)? {
            Reply::Hello(identity) => {
                self.version = Some(identity.version.clone());
                Ok(identity)
            }
            other => Err(unexpected("asking the proxy who it is", &other)),
        }
    }

    /// # Errors
    /// When the proxy does not answer, or not with its status.
    pub(crate) fn status(&mut self) -> Result<Status, Refusal> {
        let doing = "asking the proxy for its status";
        match self.ask(doing, &Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(doing, &other)),
        }
    }

    /// Hands over a copy of `socket`, which owns the table that `tether` names.
    ///
    /// # Errors
    /// When the proxy does not take it.
    pub(crate) fn hold(&mut self, tether: Tether, socket: impl AsFd) -> Result<(), Refusal> {
        let doing = "handing the table over";
        self.give(doing, &Request::Hold { table: tether }, socket)
    }

    /// Hands over a copy of `socket` with a request that speaks of it.
    ///
    /// # Errors
    /// When the proxy does not take it.
    pub(crate) fn give(
        &mut self,
        doing: &str,
        request: &Request,
        socket: impl AsFd,
    ) -> Result<(), Refusal> {
        let reply = self.exchange(doing, request, Some(socket.as_fd()))?;
        done(doing, reply)
    }

    /// # Errors
    /// When the proxy does not do it.
    pub(crate) fn tell(&mut self, doing: &str, request: &Request) -> Result<(), Refusal> {
        let reply = self.ask(doing, request)?;
        done(doing, reply)
    }

    /// # Errors
    /// When no reply comes, or a refusal.
    pub(crate) fn ask(&mut self, doing: &str, request: &Request) -> Result<Reply, Refusal> {
        self.exchange(doing, request, None)
    }

    fn exchange(
        &mut self,
        doing: &str,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Reply, Refusal> {
        let mut line = serde_json::to_vec(request).expect("requests are plain data");
        line.push(b'\n');
        match self.send(&line, descriptor) {
            // A proxy that declines at the door has closed by now; its reason is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            sent => sent.map_err(|error| self.failed(doing, error))?,
        }
        let answer = self
            .read_line()
            .map_err(|error| self.failed(doing, error))?;
        match serde_json::from_slice(&answer) {
            Ok(Reply::Refused(reason)) if reason.starts_with(NOT_UNDERSTOOD) => {
                Err(Refusal::OtherVersion {
                    doing: doing.into(),
                    theirs: self.version.clone().unwrap_or_else(|| "unknown".into()),
                })
            }
            Ok(Reply::Refused(reason)) => {
                let own = rustix::process::geteuid().as_raw();
                Err(match own == 0 || own == self.uid() {
                    true => Refusal::Declined {
                        doing: doing.into(),
                        reason,
                    },
                    false => Refusal::NotAllowed {
                        doing: doing.into(),
                        own,
                        proxy: self.uid(),
                    },
                })
            }
            Ok(reply) => Ok(reply),
            Err(error) => Err(broken(
                doing,
                io::Error::new(io::ErrorKind::InvalidData, error),
            )),
        }
    }

    fn failed(&self, doing: &str, error: io::Error) -> Refusal {
        if is_timeout(&error) {
            Refusal::ProxySilent {
                peer: self.process(),
            }
        } else {
            broken(doing, error)
        }
    }

    fn send(&self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let mut rest = line;
        while !rest.is_empty() {
            let sent = sendmsg(
                &self.stream,
                &[IoSlice::new(rest)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?;
            // The descriptor went with the first part.
            ancillary.clear();
            rest = &rest[sent..];
        }
        Ok(())
    }

    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let asked = Instant::now();
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            if self.pending.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the answer does not end",
                ));
            }
            if asked.elapsed() > self.limit {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.pending.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

/// A connection to an abstract socket, with timeouts that cover connecting too.
pub(crate) fn connect_abstract(name: &str, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
    connect(&socket, &address).map_err(|errno: Errno| io::Error::from(errno))?;
    Ok(socket.into())
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn done(doing: &str, reply: Reply) -> Result<(), Refusal> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(doing, &other)),
    }
}

pub(crate) fn unexpected(doing: &str, reply: &Reply) -> Refusal {
    broken(
        doing,
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("unexpected reply {reply:?}"),
        ),
    )
}

fn broken(doing: &str, cause: io::Error) -> Refusal {
    Refusal::Control {
        doing: doing.into(),
        cause,
    }
}
