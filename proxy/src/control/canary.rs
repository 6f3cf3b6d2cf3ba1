//! The gate's probe connections, told from captured ones by where they were going.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outrigger_config::control::CanaryAnswer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The prober writes its line at once.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// A nonce is 32 characters.
const MAX_NONCE: usize = 128;
/// One per family, with room for more kinds of probe.
const MAX_TARGETS: usize = 8;

/// Which original destinations are probes at the moment; shared by all workers.
#[derive(Debug)]
pub struct CanaryTargets {
    instance: String,
    /// Whether `expected` is worth a lock: all that an ordinary connection costs.
    active: AtomicBool,
    expected: Mutex<Option<Expectation>>,
}

#[derive(Debug)]
struct Expectation {
    session: u64,
    targets: Vec<SocketAddr>,
    nonce: String,
}

impl CanaryTargets {
    pub(super) fn new(instance: String) -> Self {
        Self {
            instance,
            active: AtomicBool::new(false),
            expected: Mutex::new(None),
        }
    }

    /// Whether a connection to `original` is a probe, to be given to [`answer`](Self::answer).
    pub fn is_expected(&self, original: SocketAddr) -> bool {
        self.active.load(Ordering::Relaxed)
            && self
                .lock()
                .as_ref()
                .is_some_and(|expected| expected.targets.contains(&original))
    }

    /// Reads the nonce and tells who answers; a stranger that does not know it gets nothing.
    pub async fn answer(&self, stream: TcpStream, original: SocketAddr, worker: usize) {
        match timeout(TIME_LIMIT, self.converse(stream, original, worker)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a probe broke off"),
            Err(_) => tracing::debug!("a probe sent nothing in time"),
        }
    }

    async fn converse(
        &self,
        mut stream: TcpStream,
        original: SocketAddr,
        worker: usize,
    ) -> io::Result<()> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            if line.len() > MAX_NONCE || stream.read_buf(&mut line).await? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let nonce = line.trim_ascii_end();
        let is_known = self
            .lock()
            .as_ref()
            .is_some_and(|expected| expected.nonce.as_bytes() == nonce);
        if !is_known {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let answer = CanaryAnswer {
            instance: self.instance.clone(),
            nonce: String::from_utf8_lossy(nonce).into_owned(),
            worker,
            original_destination: original,
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        stream.shutdown().await
    }

    pub(super) fn expect(
        &self,
        session: u64,
        targets: Vec<SocketAddr>,
        nonce: String,
    ) -> Result<(), String> {
        if targets.len() > MAX_TARGETS || nonce.len() > MAX_NONCE {
            return Err(format!(
                "at most {MAX_TARGETS} targets and a nonce of {MAX_NONCE} bytes"
            ));
        }
        if !targets.is_empty() && nonce.is_empty() {
            return Err("a probe needs a nonce".into());
        }
        let mut expected = self.lock();
        if let Some(other) = expected.as_ref()
            && other.session != session
        {
            return Err("another install is probing at the moment; try again".into());
        }
        *expected = (!targets.is_empty()).then_some(Expectation {
            session,
            targets,
            nonce,
        });
        self.active.store(expected.is_some(), Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn end(&self, session: u64) {
        let mut expected = self.lock();
        if expected.as_ref().is_some_and(|e| e.session == session) {
            *expected = None;
            self.active.store(false, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Expectation>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
