//! For tests: scripted peers, and bounded waiting.

use std::{future::Future, net::SocketAddr, process::Command, rc::Rc, sync::Arc, time::Duration};

use outrigger_config::{Settings, Snapshot};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub(crate) use crate::uncaptured::{connection, shared, worker};
use crate::worker::Worker;

/// Longer than anything on loopback takes, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("a bound address");
    (listener, address)
}

/// Both ends of a connection over loopback, the second with small kernel buffers, so that a slow
/// reader is soon felt.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listener().await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("SO_RCVBUF");
    let connecting = socket.connect(address);
    let (connected, accepted) = tokio::join!(connecting, listener.accept());
    (accepted.expect("accepted").0, connected.expect("connected"))
}

/// An address where nobody listens.
pub(crate) async fn closed_port() -> SocketAddr {
    listener().await.1
}

/// An address that neither accepts nor refuses, its backlog being full, for as long as the rest is
/// held.
pub(crate) async fn black_hole() -> (SocketAddr, (Socket, Vec<TcpStream>)) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&loopback.into()).expect("bound");
    socket.listen(0).expect("listening");
    let address = socket
        .local_addr()
        .expect("bound")
        .as_socket()
        .expect("an IP address");
    let mut held = Vec::new();
    let patience = Duration::from_millis(50);
    while let Ok(connected) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
        held.push(connected.expect("a connection"));
        assert!(held.len() < 10, "the backlog does not fill up");
    }
    (address, (socket, held))
}

/// The only worker of a process whose configuration is `text`, clusters and routes included.
pub(crate) fn configured(text: &str) -> Rc<Worker> {
    let shared = shared(Settings::default());
    shared.clusters.fill(text);
    let settings = outrigger_config::parse(text).expect("good settings");
    let before = shared.configuration.snapshot();
    let snapshot = Snapshot::compile(settings, Some(&before));
    shared
        .configuration
        .publish(Arc::new(snapshot), &shared.clusters, &shared.rate_limits);
    Rc::new(Worker::new(0, shared))
}

/// Set in a test that runs [`again`].
const AGAIN: &str = "OUTRIGGER_TEST_AGAIN";

/// Whether this is the second run of a test, in a process of its own.
pub(crate) fn is_again() -> bool {
    std::env::var_os(AGAIN).is_some()
}

/// Runs one test of this program again, in a process of its own that `wrapper` starts: a shell
/// script that ends in `exec "$@"`.
pub(crate) fn again(test: &str, wrapper: &str) {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-ec", wrapper, "sh"])
        .arg(this)
        .args(["--exact", test])
        .env(AGAIN, "1")
        .output()
        .expect("this test needs `unshare` (util-linux)");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "needs user and network namespaces, and `ip` (iproute2): {told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a test on a worker's kind of event loop, within a deadline.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    event_loop(false).block_on(async {
        tokio::time::timeout(DEADLINE, test)
            .await
            .expect("the test took longer than its deadline")
    })
}

/// Runs a test whose clock stands still while anything can move, and jumps to the next timer when
/// nothing can.
pub(crate) fn run_paused<T>(test: impl Future<Output = T>) -> T {
    // A clock that jumps reaches this as soon as the test hangs.
    let limit = Duration::from_secs(365 * 86400);
    event_loop(true).block_on(async {
        tokio::time::timeout(limit, test)
            .await
            .expect("the test hung")
    })
}

fn event_loop(is_paused: bool) -> tokio::runtime::LocalRuntime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(is_paused)
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("an event loop")
}
