//! Sockets as the applications of the scope would open them. The kernel fixes a socket's user, group
//! and cgroup when it is made, not when it connects, so that is all there is to imitate.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
    time::Duration,
};

use outrigger_config::Scope;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Socket, Type};

use crate::{
    cgroup::Cgroup,
    error::Refusal,
    plan::{Family, Plan},
    sys::{self, Helper},
};

/// A process in a frozen cgroup never answers.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Dialler {
    scope: Scope,
    kind: Kind,
}

enum Kind {
    /// Everybody is in the scope, this process too.
    Here,
    Users(Vec<u32>),
    Groups(Vec<u32>),
    Cgroup(Member),
}

/// A copy of this process in the cgroup: moving this one would take its way back for granted.
struct Member {
    line: UnixStream,
    _helper: Helper,
    /// Made where the cgroup takes no process itself.
    _below: Option<Below>,
}

struct Below(Cgroup);

impl Dialler {
    /// To be made before any socket that must not be shared: the copy has them all.
    pub(super) fn new(plan: &Plan) -> Result<Self, Refusal> {
        let kind = match (&plan.scope, &plan.cgroup) {
            (Scope::Uids(ids), _) => Kind::Users(ids.clone()),
            (Scope::Gids(ids), _) => Kind::Groups(ids.clone()),
            (Scope::Cgroup(_), Some(cgroup)) => Kind::Cgroup(Member::join(cgroup)?),
            (Scope::Netns | Scope::Cgroup(_), _) => Kind::Here,
        };
        Ok(Self {
            scope: plan.scope.clone(),
            kind,
        })
    }

    #[cfg(test)]
    pub(super) fn here() -> Self {
        Self {
            scope: Scope::Netns,
            kind: Kind::Here,
        }
    }

    /// How many dials it takes until each part of the scope has dialled.
    pub(super) fn parts(&self) -> usize {
        match &self.kind {
            Kind::Here | Kind::Cgroup(_) => 1,
            Kind::Users(ids) | Kind::Groups(ids) => ids.len(),
        }
    }

    /// A TCP socket of the part with that number, counted round.
    pub(super) fn socket(&mut self, family: Family, number: usize) -> Result<Socket, Refusal> {
        let made = match &mut self.kind {
            Kind::Here => tcp(family),
            Kind::Users(ids) => {
                let uid = ids[number % ids.len()];
                elsewhere(family, || sys::take_file_uid(uid))
            }
            Kind::Groups(ids) => {
                let gid = ids[number % ids.len()];
                elsewhere(family, || sys::take_file_gid(gid))
            }
            Kind::Cgroup(member) => member.socket(family),
        };
        made.map_err(|cause| Refusal::ScopeUnreachable {
            scope: self.scope.to_string(),
            cause,
        })
    }
}

fn tcp(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    Socket::new(domain, Type::STREAM, None)
}

/// The ids are a thread's own, and end with it.
fn elsewhere(
    family: Family,
    take_id: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<Socket> {
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            take_id()?;
            tcp(family)
        });
        made.join().expect("it does not panic")
    })
}

impl Member {
    fn join(cgroup: &Cgroup) -> Result<Self, Refusal> {
        match Self::start(cgroup) {
            Err(Refusal::Cgroup(error)) if error.is_internal() => {
                let name = format!("outrigger-probe-{}", std::process::id());
                let below = Below(cgroup.create_child(&name)?);
                let mut member = Self::start(&below.0)?;
                member._below = Some(below);
                Ok(member)
            }
            outcome => outcome,
        }
    }

    fn start(cgroup: &Cgroup) -> Result<Self, Refusal> {
        let unreachable = |cause| Refusal::ScopeUnreachable {
            scope: format!("cgroup:{cgroup}"),
            cause,
        };
        let (line, theirs) = UnixStream::pair().map_err(unreachable)?;
        line.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
        let helper = cgroup.fork(&mut || serve(&theirs))?;
        Ok(Self {
            line,
            _helper: helper,
            _below: None,
        })
    }

    fn socket(&mut self, family: Family) -> io::Result<Socket> {
        self.line.write_all(&[letter(family)])?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = recvmsg(
            &self.line,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Ok(message) if message.bytes > 0 => {}
            Err(rustix::io::Errno::AGAIN) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "a process that joined it does not run (is the cgroup frozen, or out of CPU time?)",
                ));
            }
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Err(io::Error::other("a process that joined it was killed")),
        }
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        let descriptor: OwnedFd = descriptor
            .ok_or_else(|| io::Error::other("a process that joined it can open no socket"))?;
        Ok(descriptor.into())
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = self.0.wait_until_empty(PATIENCE);
        if let Err(error) = self.0.remove() {
            tracing::warn!(%error, "a probe's cgroup is left");
        }
    }
}

fn letter(family: Family) -> u8 {
    match family {
        Family::V4 => b'4',
        Family::V6 => b'6',
    }
}

/// In the helper: a socket for each letter, until it is killed. Nothing here allocates or takes a lock: see
/// [`sys::fork`].
fn serve(mut line: &UnixStream) {
    let mut asked = [0];
    while line.read_exact(&mut asked).is_ok() {
        let family = if asked[0] == letter(Family::V4) {
            Family::V4
        } else {
            Family::V6
        };
        let socket = tcp(family).ok();
        let descriptor = socket.as_ref().map(AsFd::as_fd);
        let descriptors = descriptor.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let sent = sendmsg(
            line,
            &[IoSlice::new(&asked)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        if sent.is_err() {
            return;
        }
    }
}
