//! Signals and what each asks for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Stop,
    /// Log files have been moved away.
    ReopenLogs,
    /// The configuration file has changed.
    Reload,
    /// A signal that means nothing here, and must not end the process either.
    None(&'static str),
}

#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// From here on none of them ends the process by itself. SIGPIPE is ignored by the standard
    /// library from the start.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.user1.recv() => Order::ReopenLogs,
            _ = self.hangup.recv() => Order::Reload,
            _ = self.user2.recv() => Order::None("SIGUSR2 ignored: it has no meaning here"),
        }
    }
}
