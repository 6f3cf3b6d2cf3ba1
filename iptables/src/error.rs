//! Why nothing was captured (or removed): the check that failed, what was seen, what to do.

use std::{fmt, io, net::SocketAddr};

use outrigger_config::control::LoopOutcome;

use crate::{
    cgroup::CgroupError, legacy::IptablesError, listeners::Listener, nft::NftError, plan::Family,
    process::Process,
};

/// The first check that failed. The rules are as they were before.
#[derive(Debug)]
pub enum Refusal {
    /// The proxy could not be told from the applications, in a namespace of one user.
    OnlyOneUid { uid: u32 },
    /// This command runs as the proxy's user, so its probes would not be captured.
    InstallerIsProxy { uid: u32 },
    /// The scope is the proxy's own user, who is never captured.
    ScopeHasProxy { uid: u32 },
    /// The scope names a user that this user namespace does not have.
    ScopeUnmapped { scope: String, only: u32 },
    /// No probe could be sent from the scope.
    ScopeUnreachable { scope: String, cause: io::Error },
    /// A cgroup could not be found or used.
    Cgroup(CgroupError),
    /// The settings leave nothing to capture.
    NothingToCapture { notes: Vec<String> },
    /// Destinations that were to fail closed cannot, here.
    CannotFailClosed { reason: String },
    /// Another `install-rules` or `remove-rules` holds the lock and does not end.
    Locked { holder: Option<Process> },
    /// nftables refused.
    Kernel(NftError),
    /// The iptables programs, or what they load, do not do it.
    Iptables(IptablesError),
    /// Something about this host could not be read.
    Host { doing: String, cause: io::Error },
    /// No control socket; whoever does listen on the port is named.
    NoProxy { port: u16, listeners: Vec<Listener> },
    /// The control socket accepts but nobody answers.
    ProxySilent { peer: Option<Process> },
    /// The control socket broke off or spoke another language.
    Control { doing: String, cause: io::Error },
    /// The proxy understood and declined.
    Declined { doing: String, reason: String },
    /// Only root and the proxy's own user may ask it.
    NotAllowed { doing: String, own: u32, proxy: u32 },
    /// The proxy did not understand: it is of another version.
    OtherVersion { doing: String, theirs: String },
    /// Whoever answers on the control socket is not the proxy's user.
    WrongUser {
        expected: u32,
        found: u32,
        peer: Option<Process>,
    },
    /// The proxy's user has no number in this user namespace.
    UnmappedUser { peer: Option<Process> },
    /// The proxy is on its way out.
    Draining,
    /// The proxy does not listen where a redirect would lead.
    NotListening { address: SocketAddr },
    /// A socket on the port belongs to somebody else.
    ForeignListener(Listener),
    /// A listening socket of the proxy belongs to another user.
    ListenerOfOtherUser { listener: Listener, expected: u32 },
    /// The probe did not come back as it should.
    Canary { family: Family, seen: CanaryFailure },
    /// The proxy's own connections would be captured.
    Loop {
        target: SocketAddr,
        outcome: LoopOutcome,
        excluded: String,
    },
    /// The kernel holds something else than what was sent.
    ReadBack { difference: String },
    /// The proxy's first beat did not put the rules into force.
    NoLease,
    /// Capture is still on after the proxy was asked to let go.
    StillThere(Vec<Leftover>),
}

/// What became of a probe connection.
#[derive(Debug, PartialEq, Eq)]
pub enum CanaryFailure {
    /// Reset: the redirect was not applied to it, or nobody accepted.
    Refused,
    /// Established or not, no answer came in time.
    Silent,
    /// Something else than this proxy answered.
    Stranger(String),
    /// The proxy saw another destination than the one that was dialled.
    WrongDestination {
        dialled: SocketAddr,
        seen: SocketAddr,
    },
    /// Some workers never got one.
    WorkersMissing {
        answered: usize,
        wanted: usize,
    },
    Io(String),
}

/// A table of ours that this command cannot end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub table: String,
    /// Whether a socket owns it at all.
    pub owned: bool,
    /// The processes that hold the owning socket, as far as this command can see.
    pub holders: Vec<Process>,
}

impl Refusal {
    /// The name of the check, for scripts.
    pub fn check(&self) -> &'static str {
        match self {
            Self::OnlyOneUid { .. } | Self::InstallerIsProxy { .. } => "exclusion",
            Self::NothingToCapture { .. } | Self::CannotFailClosed { .. } => "settings",
            Self::ScopeHasProxy { .. }
            | Self::ScopeUnmapped { .. }
            | Self::ScopeUnreachable { .. }
            | Self::Cgroup(_) => "scope",
            Self::Locked { .. } => "lock",
            Self::Kernel(error) if error.is_lack_of_privilege() => "privilege",
            Self::Kernel(_) => "kernel",
            Self::Iptables(error) => error.check(),
            Self::Host { .. } => "host",
            Self::NoProxy { .. } | Self::ProxySilent { .. } | Self::Control { .. } => "control",
            Self::Declined { .. } | Self::NotAllowed { .. } => "declined",
            Self::OtherVersion { .. } => "version",
            Self::WrongUser { .. } | Self::UnmappedUser { .. } => "identity",
            Self::Draining => "draining",
            Self::NotListening { .. }
            | Self::ForeignListener(_)
            | Self::ListenerOfOtherUser { .. } => "listener",
            Self::Canary { .. } => "canary",
            Self::Loop { .. } => "loop",
            Self::ReadBack { .. } => "read-back",
            Self::NoLease => "lease",
            Self::StillThere(_) => "leftover",
        }
    }

    /// What to do next.
    pub fn advice(&self) -> String {
        match self {
            Self::OnlyOneUid { .. } => "set capture.proxy_mark, so that the proxy's connections can be told by their mark".into(),
            Self::InstallerIsProxy { uid } => format!(
                "run this command as another user than {uid} (root, say), let the proxy run as a user of its own, or set capture.proxy_mark"
            ),
            Self::ScopeHasProxy { uid } => format!("let the application run as another user than {uid}, or the proxy (capture.proxy_uid); then name only the application's"),
            Self::ScopeUnmapped { only, .. } => format!("use `--scope netns`, `cgroup:PATH` or `uid:{only}`; or run this in a user namespace that has the user (`unshare --map-auto`)"),
            Self::ScopeUnreachable { .. } => "run this command as root of a user namespace that has these ids (with CAP_SETUID and CAP_SETGID), and look whether the cgroup is frozen (`cgroup.freeze`)".into(),
            Self::Cgroup(error) => error.advice(),
            Self::NothingToCapture { .. } => "add a network to capture.include.cidrs that listen has an address for, and a port to capture.include.ports".into(),
            Self::CannotFailClosed { .. } => "remove it from capture.fail_closed, or use a firewall for it".into(),
            Self::Locked { holder: Some(holder) } => format!("wait for it, or end process {}", holder.pid),
            Self::Locked { holder: None } => "wait for it and try again".into(),
            Self::Kernel(error) => error.advice(),
            Self::Iptables(error) => error.advice(),
            Self::Host { cause, .. } if cause.kind() == io::ErrorKind::Unsupported => {
                "load it (`modprobe tcp_diag`), or use a kernel that is built with CONFIG_INET_DIAG".into()
            }
            Self::Host { .. } => "check that /proc is mounted and readable".into(),
            Self::NoProxy { listeners, port } if listeners.is_empty() => {
                format!("start it with `proxyctl serve` (same `listen` port, {port}, same network namespace), then try again")
            }
            Self::NoProxy { port, .. } => format!(
                "stop that program or move it off port {port}, or choose another port in `listen`; then start `proxyctl serve`"
            ),
            Self::ProxySilent { peer: Some(peer) } if peer.is_stopped() => format!(
                "continue it with `kill -CONT {}`, or restart it", peer.pid
            ),
            Self::ProxySilent { .. } => "look at the proxy's log; restart it if it hangs".into(),
            Self::Control { .. } => "check that proxy and proxyctl are of the same version, and the proxy's log".into(),
            Self::Declined { .. } => "look at the proxy's log".into(),
            Self::NotAllowed { proxy, .. } => format!("run it as root (sudo), or as user {proxy}"),
            Self::OtherVersion { .. } => "use the proxyctl of the proxy's version, or let the proxy be one of this proxyctl's (`proxyctl upgrade`, or restart it)".into(),
            Self::WrongUser { expected, found, .. } => format!(
                "start the proxy as user {expected}, or set capture.proxy_uid to {found} if that user runs nothing else"
            ),
            Self::UnmappedUser { .. } => "run the proxy as a user of its own (not `nobody`, which stands for every unmapped user), or run this command in the proxy's own user namespace".into(),
            Self::Draining => "wait until its successor runs, then try again".into(),
            Self::NotListening { address } => format!(
                "restart the proxy with the same configuration, or take {address} out of `listen` here"
            ),
            Self::ForeignListener(listener) => match listener.owners.first() {
                Some(owner) => format!("end process {}, or move one of the two to another port", owner.pid),
                None => "find it with `ss -ltnp` as root in the host's pid namespace and end it".into(),
            },
            Self::ListenerOfOtherUser { expected, .. } => format!(
                "let user {expected} make the listening sockets, or `fchown` them to it before handing them over"
            ),
            Self::Canary { seen, .. } => seen.advice().into(),
            Self::Loop { .. } => "check capture.proxy_uid and capture.proxy_mark against how the proxy really runs".into(),
            Self::ReadBack { .. } => "another program may be changing the rules at the same time; look at `nft monitor` and try again".into(),
            Self::NoLease => "look for a rule that drops datagrams on the loopback interface (`nft list ruleset`), and at the proxy's log".into(),
            Self::StillThere(leftovers) => leftovers.iter().map(Leftover::advice).collect::<Vec<_>>().join("; "),
        }
    }
}

impl CanaryFailure {
    fn advice(&self) -> &'static str {
        match self {
            Self::Refused => {
                "look at `nft list ruleset` and `iptables-save` for a rule that takes, translates or rejects connections ahead of ours"
            }
            Self::Silent => {
                "look whether the proxy hangs (its log, `ps`) and whether the loopback interface is up (`ip link set lo up`) and no firewall drops packets on it"
            }
            Self::Stranger(_) => {
                "find out who answers (`ss -ltnp`, `nft list ruleset` for a foreign redirect) and remove it"
            }
            Self::WrongDestination { .. } => {
                "remove the foreign redirect or DNAT that comes first (`nft list ruleset`)"
            }
            Self::WorkersMissing { .. } => "a worker may hang: look at the proxy's log, restart it",
            Self::Io(_) => "check that the loopback interface is up: `ip link set lo up`",
        }
    }
}

impl Leftover {
    fn advice(&self) -> String {
        match (self.owned, self.holders.as_slice()) {
            (false, _) => format!("delete it with `nft delete table inet {}`", self.table),
            (true, []) => format!(
                "{} ends with the process that owns it; it is not visible from here (another pid namespace?)",
                self.table
            ),
            (true, holders) => {
                let pids: Vec<_> = holders.iter().map(|p| p.pid.to_string()).collect();
                format!(
                    "{} ends with its owner: kill {}",
                    self.table,
                    pids.join(" ")
                )
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyOneUid { uid } => write!(
                f,
                "this user namespace has only user {uid}: the proxy's connections cannot be told from the applications' by user"
            ),
            Self::InstallerIsProxy { uid } => write!(
                f,
                "this command runs as user {uid}, which is the proxy's and is never captured, so it cannot probe the capture"
            ),
            Self::ScopeHasProxy { uid } => write!(
                f,
                "the scope names user {uid}, as whom the proxy runs and who is therefore never captured"
            ),
            Self::ScopeUnmapped { scope, only } => write!(
                f,
                "the scope {scope} names users that this user namespace does not have: its only one is {only}"
            ),
            Self::ScopeUnreachable { scope, cause } => {
                write!(f, "no probe could be sent from the scope {scope}: {cause}")
            }
            Self::Cgroup(error) => error.fmt(f),
            Self::NothingToCapture { notes } => {
                write!(f, "nothing would be captured")?;
                notes.iter().try_for_each(|note| write!(f, "; {note}"))
            }
            Self::CannotFailClosed { reason } => {
                write!(f, "capture.fail_closed cannot be kept: {reason}")
            }
            Self::Locked { holder } => write!(
                f,
                "another proxyctl is changing the rules of this port ({})",
                Peer(holder.as_ref())
            ),
            Self::Kernel(error) => error.fmt(f),
            Self::Iptables(error) => error.fmt(f),
            Self::Host { doing, cause } | Self::Control { doing, cause } => {
                write!(f, "{doing}: {cause}")
            }
            Self::NoProxy { port, listeners } => match listeners.as_slice() {
                [] => write!(f, "nothing listens on port {port}: no proxy runs here"),
                [first, ..] => write!(
                    f,
                    "port {port} is {}, not Outrigger (nobody answers on its control socket)",
                    first.who()
                ),
            },
            Self::ProxySilent { peer } => match peer {
                Some(peer) if peer.is_stopped() => {
                    write!(f, "the proxy is stopped and does not answer: {peer}")
                }
                peer => write!(f, "the proxy does not answer: {}", Peer(peer.as_ref())),
            },
            Self::Declined { doing, reason } => {
                write!(f, "{doing}: the proxy declined: {reason}")
            }
            Self::NotAllowed { doing, own, proxy } => write!(
                f,
                "{doing}: the proxy answers root and its own user, {proxy}; you are user {own}"
            ),
            Self::OtherVersion { doing, theirs } => write!(
                f,
                "{doing}: the proxy is of version {theirs} and does not understand this proxyctl, which is {}",
                env!("CARGO_PKG_VERSION")
            ),
            Self::WrongUser {
                expected,
                found,
                peer,
            } => write!(
                f,
                "the control socket belongs to user {found} ({}), but the proxy's user (capture.proxy_uid) is {expected}",
                Peer(peer.as_ref())
            ),
            Self::UnmappedUser { peer } => write!(
                f,
                "the proxy runs as a user that this user namespace does not map ({})",
                Peer(peer.as_ref())
            ),
            Self::Draining => write!(f, "the proxy is shutting down"),
            Self::NotListening { address } => write!(
                f,
                "the proxy does not listen on {address}, where redirected connections would arrive"
            ),
            Self::ForeignListener(listener) => write!(
                f,
                "{} is {}, not this Outrigger; it would take some of the connections",
                listener.address,
                listener.who()
            ),
            Self::ListenerOfOtherUser { listener, expected } => write!(
                f,
                "the proxy's socket on {} belongs to user {}, not to the proxy's user {expected}",
                listener.address, listener.uid
            ),
            Self::Canary { family, seen } => {
                write!(f, "a probe over {} {seen}", family.name())
            }
            Self::Loop {
                target,
                outcome,
                excluded,
            } => match outcome {
                LoopOutcome::Silent => write!(
                    f,
                    "the proxy dialled {target} itself and got neither a connection nor a refusal"
                ),
                _ => write!(
                    f,
                    "the proxy's own connection to {target} was redirected to itself: {excluded}, so every connection would loop"
                ),
            },
            Self::ReadBack { difference } => write!(
                f,
                "the kernel holds something else than was loaded: {difference}"
            ),
            Self::NoLease => write!(
                f,
                "the proxy says that it beats, but its beat renewed no lease"
            ),
            Self::StillThere(leftovers) => {
                for (index, leftover) in leftovers.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{leftover}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for CanaryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("was refused instead of redirected to the proxy"),
            Self::Silent => f.write_str("got no answer from the proxy in time"),
            Self::Stranger(what) => {
                write!(f, "was answered by something else than this proxy: {what}")
            }
            Self::WrongDestination { dialled, seen } => write!(
                f,
                "to {dialled} arrived, but the proxy saw {seen} as its original destination"
            ),
            Self::WorkersMissing { answered, wanted } => {
                write!(f, "was answered by {answered} of {wanted} workers only")
            }
            Self::Io(error) => write!(f, "could not be sent: {error}"),
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.owned, self.holders.as_slice()) {
            (false, _) => write!(
                f,
                "table {} has no owner, so another program loaded it (a saved dry run?)",
                self.table
            ),
            (true, []) => write!(f, "table {} is owned by a process out of sight", self.table),
            (true, holders) => {
                let holders: Vec<_> = holders.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "table {} is owned by {}",
                    self.table,
                    holders.join(" and ")
                )
            }
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kernel(error) => Some(error),
            Self::Iptables(error) => Some(error),
            Self::Cgroup(error) => Some(error),
            Self::Host { cause, .. } | Self::Control { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

impl From<NftError> for Refusal {
    fn from(error: NftError) -> Self {
        Self::Kernel(error)
    }
}

impl From<CgroupError> for Refusal {
    fn from(error: CgroupError) -> Self {
        Self::Cgroup(error)
    }
}

impl From<IptablesError> for Refusal {
    fn from(error: IptablesError) -> Self {
        Self::Iptables(error)
    }
}

struct Peer<'a>(Option<&'a Process>);

impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(process) => process.fmt(f),
            None => f.write_str("a process that is not visible from here"),
        }
    }
}
