//! Giving up privileges before anything from the network is read. To be done while the process has
//! one thread: Linux keeps users and capabilities per thread.

use std::{fmt, fs, io, os::fd::BorrowedFd};

use outrigger_config::Capture;
use rustix::{
    fs::{Gid, Uid},
    process::{self, DumpableBehavior, Resource, Rlimit},
    thread::{self, CapabilitySet, CapabilitySets},
};

/// Becomes the proxy's user if this is root, and bars every way back. `sockets` are given to that
/// user: the gate asks the kernel whose the listeners are.
///
/// # Errors
/// When the user cannot be taken; nothing may be served then.
pub(crate) fn drop_all_but_needed<'a>(
    capture: &Capture,
    sockets: impl IntoIterator<Item = BorrowedFd<'a>>,
) -> Result<(), PrivilegeError> {
    if process::geteuid().is_root() {
        if capture.proxy_uid == 0 {
            // It is that user already.
        } else if is_mapped(capture.proxy_uid) {
            become_user(capture, sockets).map_err(|source| PrivilegeError::Refused {
                uid: capture.proxy_uid,
                source,
            })?;
        } else if capture.proxy_mark.is_none() {
            return Err(PrivilegeError::NoSuchUser {
                uid: capture.proxy_uid,
            });
        }
    } else {
        // With CAP_CHOWN, granted for this alone. Without it `install-rules` says whose they are.
        for socket in sockets {
            let _ = rustix::fs::fchown(socket, Some(process::geteuid()), Some(process::getegid()));
        }
    }
    keep_only_marking(capture).map_err(PrivilegeError::Capabilities)?;
    harden().map_err(PrivilegeError::Capabilities)?;
    match capture.proxy_mark {
        Some(mark) => try_mark(mark).map_err(|source| PrivilegeError::Mark { mark, source }),
        None => Ok(()),
    }
}

/// Allows as many descriptors as the system lets this process have: each connection takes two.
///
/// # Errors
/// The system's.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let limit = process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(process::setrlimit(Resource::Nofile, raised)?)
}

/// Whether the user exists in this user namespace.
fn is_mapped(uid: u32) -> bool {
    let contains = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (first, count) = (numbers.next()?.ok()?, numbers.nth(1)?.ok()?);
        Some((first..first + count).contains(&uid.into()))
    };
    // Without /proc it is found out by trying.
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.lines().any(|line| contains(line).unwrap_or(false)))
}

fn become_user<'a>(
    capture: &Capture,
    sockets: impl IntoIterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    let (uid, gid) = (
        Uid::from_raw(capture.proxy_uid),
        // The group of the same number, as images that make such a user do.
        Gid::from_raw(capture.proxy_uid),
    );
    for socket in sockets {
        rustix::fs::fchown(socket, Some(uid), Some(gid))?;
    }
    thread::set_keep_capabilities(capture.proxy_mark.is_some())?;
    thread::set_thread_groups(&[])?;
    thread::set_thread_gid(gid)?;
    Ok(thread::set_thread_uid(uid)?)
}

/// Without a mark no capability at all; with one, what setting it takes: CAP_NET_RAW, or
/// CAP_NET_ADMIN before Linux 5.17, which would let a broken proxy rewrite the rules too.
fn keep_only_marking(capture: &Capture) -> io::Result<()> {
    let only = |kept: CapabilitySet| {
        thread::set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )
    };
    let Some(mark) = capture.proxy_mark else {
        return Ok(only(CapabilitySet::empty())?);
    };
    let held = thread::capabilities(None)?.permitted;
    let (raw, both) = (
        held & CapabilitySet::NET_RAW,
        held & (CapabilitySet::NET_RAW | CapabilitySet::NET_ADMIN),
    );
    thread::set_capabilities(
        None,
        CapabilitySets {
            effective: raw,
            permitted: both,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    let kept = if try_mark(mark).is_ok() {
        raw
    } else {
        both & CapabilitySet::NET_ADMIN
    };
    Ok(only(kept)?)
}

fn try_mark(mark: u32) -> io::Result<()> {
    use socket2::{Domain, Socket, Type};
    Socket::new(Domain::IPV4, Type::STREAM, None)?.set_mark(mark)
}

/// No program that this one might be made to start gains anything; and no core dump, which would
/// keep a dead proxy's capture alive while it is written, and holds other people's data.
fn harden() -> io::Result<()> {
    thread::set_no_new_privs(true)?;
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(process::setrlimit(Resource::Core, none)?)
}

#[derive(Debug)]
pub(crate) enum PrivilegeError {
    NoSuchUser { uid: u32 },
    Refused { uid: u32, source: io::Error },
    Capabilities(io::Error),
    Mark { mark: u32, source: io::Error },
}

impl fmt::Display for PrivilegeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchUser { uid } => write!(
                f,
                "cannot become the proxy's user: this user namespace has no uid {uid} (capture.proxy_uid); set capture.proxy_mark, so that the proxy's connections are told by a mark instead"
            ),
            Self::Refused { uid, source } => write!(
                f,
                "cannot become the proxy's user, uid {uid} (capture.proxy_uid): {source}; that takes CAP_SETUID and CAP_SETGID (and CAP_CHOWN with inherited sockets), or start it as that user"
            ),
            Self::Capabilities(source) => write!(f, "cannot give up privileges: {source}"),
            Self::Mark { mark, source } => write!(
                f,
                "cannot mark connections with {mark} (capture.proxy_mark): {source}; that takes CAP_NET_RAW or CAP_NET_ADMIN; grant one, or remove the mark"
            ),
        }
    }
}
