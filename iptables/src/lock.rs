//! One change of a port's rules at a time, in one network namespace.

use std::{
    cell::RefCell,
    io::{self, Read},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    process::Command,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::sockopt::{Timeout, set_socket_timeout},
};

use crate::{
    control::{ANSWER_TIMEOUT, connect_abstract, is_timeout},
    error::Refusal,
    process::Process,
    sys::{before_exec, peer_credentials},
};

/// Longer than the slowest install (its probes are bounded below that).
const PATIENCE: Duration = Duration::from_secs(45);

thread_local! {
    /// Of the thread that changes rules, for the programs that it runs. No other child of the process
    /// may have it: a lock that outlives its install stops the next one.
    static HELD: RefCell<Weak<UnixListener>> = const { RefCell::new(Weak::new()) };
}

/// Held until dropped, or until the process and the programs that it runs under it end in whatever way.
pub(crate) struct InstallLock {
    _listener: Rc<UnixListener>,
}

/// Has `command` hold the lock of this thread, if there is one, for as long as it runs: one whose starter
/// was killed is still at work, and the next install would read rules that change under it.
pub(crate) fn share_with(command: &mut Command) -> io::Result<()> {
    let Some(held) = HELD.with_borrow(Weak::upgrade) else {
        return Ok(());
    };
    let copy = held.try_clone()?;
    before_exec(command, move || {
        fcntl_setfd(&copy, FdFlags::empty()).map_err(Into::into)
    });
    Ok(())
}

impl InstallLock {
    pub(crate) fn acquire(port: u16) -> Result<Self, Refusal> {
        let name = format!("outrigger/{port}/install");
        let deadline = Instant::now() + PATIENCE;
        let mut holder = None;
        while Instant::now() < deadline {
            match bind(&name) {
                Ok(listener) => {
                    let listener = Rc::new(listener);
                    HELD.set(Rc::downgrade(&listener));
                    return Ok(Self {
                        _listener: listener,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(cause) => {
                    return Err(Refusal::Host {
                        doing: "taking the install lock".into(),
                        cause,
                    });
                }
            }
            holder = wait_for_holder(&name, deadline);
        }
        Err(Refusal::Locked { holder })
    }
}

fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// A connection to the lock is never accepted; it breaks when the holder ends.
fn wait_for_holder(name: &str, deadline: Instant) -> Option<Process> {
    let mut stream = connect_abstract(name, ANSWER_TIMEOUT).ok()?;
    let pid = peer_credentials(&stream).ok()?.pid;
    let left = deadline.saturating_duration_since(Instant::now());
    set_socket_timeout(
        &stream,
        Timeout::Recv,
        Some(left.max(Duration::from_millis(1))),
    )
    .ok()?;
    match stream.read(&mut [0]) {
        Err(error) if is_timeout(&error) && pid > 0 => Process::of(pid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_second_holder_waits_for_the_first() {
        // A port of its own, which no other test locks.
        let first = InstallLock::acquire(4).unwrap();
        let (sender, receiver) = mpsc::channel();
        let second = thread::spawn(move || {
            let lock = InstallLock::acquire(4);
            sender.send(()).unwrap();
            lock.is_ok()
        });
        let early = receiver.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "two held the lock at once");
        drop(first);
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(second.join().unwrap());
    }

    /// Regression: any program that another thread started meanwhile kept the lock for as long as it ran.
    #[test]
    fn only_a_program_that_is_run_under_it_holds_it_longer() {
        let mut sleeper = Command::new("sleep");
        sleeper.arg("60");
        let lock = InstallLock::acquire(5).unwrap();
        let mut stranger = sleeper.spawn().unwrap();
        drop(lock);
        let lock = InstallLock::acquire(5).unwrap();
        share_with(&mut sleeper).unwrap();
        let mut ours = sleeper.spawn().unwrap();
        drop((lock, sleeper));
        assert_eq!(
            bind("outrigger/5/install").unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        for child in [&mut ours, &mut stranger] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(InstallLock::acquire(5).is_ok());
    }
}
