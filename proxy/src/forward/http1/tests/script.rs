//! What both peers of the relay say, and must hear, byte by byte.

use std::{collections::BTreeMap, net::SocketAddr, rc::Rc, time::Duration};

use outrigger_config::Settings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{self, JoinHandle},
};

use crate::{
    accept,
    buffer::Buffer,
    detect::{Detected, First},
    dispatch::{Dialled, Hop},
    forward::http1,
    testing,
    upstream::Upstream,
    worker::Worker,
};

/// How long to look for what must not happen.
const NOTHING_FOR: Duration = Duration::from_millis(50);

pub(super) use crate::testing::run;

pub(super) const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
pub(super) const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

/// A worker, and the destination that its connections are captured on the way to.
pub(super) struct World {
    pub(super) worker: Rc<Worker>,
    listener: TcpListener,
    pub(super) address: SocketAddr,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(super) async fn with(settings: Settings) -> Self {
        let (listener, address) = testing::listener().await;
        Self {
            worker: testing::worker(settings),
            listener,
            address,
        }
    }

    /// One whose only route leads to the destination and has `policy`; other clusters may stand behind.
    pub(super) async fn routed(policy: &str, clusters: &str) -> Self {
        let (listener, address) = testing::listener().await;
        let text = format!(
            "routes: [{{ match: {{}}, cluster: service, {policy} }}]\n\
             clusters: [{{ name: service, endpoints: [{{ address: '{address}' }}] }}, {clusters}]\n"
        );
        Self {
            worker: testing::configured(&text),
            listener,
            address,
        }
    }

    /// A client whose connection was captured.
    pub(super) async fn client(&self) -> Peer {
        self.client_with(None).await
    }

    /// A client whose upstream connection was dialled before it spoke.
    pub(super) async fn client_with(&self, upstream: Option<Upstream>) -> Peer {
        let (captured, client) = testing::pair().await;
        let connection = testing::connection(&self.worker, self.address);
        let served = task::spawn_local(async move {
            let mut client_bytes = Buffer::with_capacity(crate::buffer::SIZE);
            captured.readable().await.expect("readable");
            if !matches!(client_bytes.try_read(&captured), Ok(1..)) {
                return;
            }
            let first = First {
                detected: Detected::Http1,
                client_bytes,
                upstream_bytes: Buffer::default(),
                dialled: upstream.map(|upstream| Dialled {
                    hop: Hop::to(upstream.peer),
                    upstream,
                }),
                routed: None,
            };
            http1::serve(connection, captured, first).await;
        });
        Peer {
            stream: client,
            served: Some(served),
        }
    }

    /// The next connection that the relay dials.
    pub(super) async fn upstream(&self) -> Peer {
        Peer::accepted(&self.listener).await
    }

    pub(super) async fn no_upstream(&self) {
        let accepted = tokio::time::timeout(NOTHING_FOR, self.listener.accept()).await;
        assert!(accepted.is_err(), "the relay dialled once more");
    }

    pub(super) fn requests_recorded(&self) -> u64 {
        self.recorded().into_values().sum()
    }

    /// How often each status and reason was recorded, as the metrics tell them.
    pub(super) fn recorded(&self) -> BTreeMap<(String, &'static str), u64> {
        let mut recorded = BTreeMap::new();
        for destination in self.worker.shared.registry.all() {
            for (outcome, count) in destination.metrics.totals().outcomes {
                assert_eq!(outcome.protocol(), "http1");
                *recorded
                    .entry((outcome.code(), outcome.reason()))
                    .or_default() += count;
            }
        }
        recorded
    }

    /// The only request was recorded with this status and reason.
    pub(super) fn has_recorded(&self, code: &str, reason: &'static str) {
        let expected = BTreeMap::from([((code.to_owned(), reason), 1)]);
        assert_eq!(self.recorded(), expected);
    }
}

/// One side of a scripted conversation.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    served: Option<JoinHandle<()>>,
}

impl Peer {
    pub(super) async fn accepted(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.expect("a dialled connection");
        Self {
            stream,
            served: None,
        }
    }

    pub(super) async fn says(&mut self, bytes: impl AsRef<[u8]>) {
        let said = self.stream.write_all(bytes.as_ref()).await;
        said.expect("the relay takes what is said");
    }

    /// Exactly these bytes, and none before them.
    pub(super) async fn hears(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let mut heard = vec![0; expected.len()];
        let mut count = 0;
        while count < expected.len() {
            match self.stream.read(&mut heard[count..]).await {
                Ok(0) => panic!("closed after {:?}", show(&heard[..count])),
                Ok(more) => count += more,
                Err(error) => panic!("{error} after {:?}", show(&heard[..count])),
            }
            assert_eq!(show(&heard[..count]), show(&expected[..count]));
        }
    }

    pub(super) async fn hears_nothing(&mut self) {
        let mut byte = [0];
        let read = tokio::time::timeout(NOTHING_FOR, self.stream.read(&mut byte)).await;
        assert!(read.is_err(), "heard {read:?} {byte:?}");
    }

    /// All that comes until an orderly end.
    pub(super) async fn hears_to_the_end(&mut self) -> String {
        let mut heard = Vec::new();
        let read = self.stream.read_to_end(&mut heard).await;
        read.expect("an orderly end");
        show(&heard)
    }

    pub(super) async fn hears_the_end(&mut self) {
        assert_eq!(self.hears_to_the_end().await, "");
    }

    pub(super) async fn is_reset(&mut self) {
        let mut heard = Vec::new();
        let error = self
            .stream
            .read_to_end(&mut heard)
            .await
            .expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(show(&heard), "");
    }

    /// A response made by the proxy, and then the end.
    pub(super) async fn is_refused(&mut self, status: u16, error: &str) {
        let heard = self.hears_to_the_end().await;
        assert!(
            heard.starts_with(&format!("HTTP/1.1 {status} ")),
            "{heard:?}"
        );
        let expected = format!("\r\nProxy-Status: outrigger; error={error}; details=\"");
        assert!(heard.contains(&expected), "{heard:?}");
        assert!(heard.contains("\r\nConnection: close\r\n"), "{heard:?}");
    }

    /// Ends what it says; it still listens.
    pub(super) async fn is_done_talking(&mut self) {
        self.stream.shutdown().await.expect("a shutdown");
    }

    pub(super) fn resets(self) {
        accept::reset(self.stream);
    }

    /// Waits until the relay is through with this client.
    pub(super) async fn is_served(&mut self) {
        let served = self.served.take().expect("a client");
        served.await.expect("no panic");
    }

    /// Ends the relay's task for this client, as the end of its worker does.
    pub(super) fn is_cut_off(&mut self) {
        self.served.take().expect("a client").abort();
    }

    /// One round of the simplest exchange.
    pub(super) async fn gets_ok_from(&mut self, upstream: &mut Peer) {
        self.says(GET).await;
        upstream.hears(GET).await;
        upstream.says(OK).await;
        self.hears(OK).await;
    }
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
