use outrigger_config::Settings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{super::connect, *};
use crate::testing::{self, run};

/// A leased connection and its server's end, with `written` bytes of an answered request behind.
async fn lease(worker: &Worker, written: &[u8]) -> (Lease, TcpStream) {
    let (listener, address): (TcpListener, SocketAddr) = testing::listener().await;
    let dialled = connect(&worker.shared, address).await;
    let mut lease = worker.http1_pool.lease(dialled.expect("loopback"));
    let (mut server, _) = listener.accept().await.expect("a connection");
    let sent = lease.upstream.stream.write_all(written).await;
    sent.expect("room");
    let mut read = vec![0; written.len()];
    server
        .read_exact(&mut read)
        .await
        .expect("what was written");
    lease.note_answered(written.len() as u64, None);
    (lease, server)
}

async fn see_the_end(lease: &mut Lease) {
    let read = lease.upstream.stream.read(&mut [0]).await;
    assert!(matches!(read, Ok(0)), "{read:?}");
}

#[test]
fn what_was_sent_to_a_peer_that_had_closed_is_proven_unconsumed() {
    run(async {
        let worker = testing::worker(Settings::default());
        for earlier in [&b""[..], b"an answered request"] {
            let (mut lease, server) = lease(&worker, earlier).await;
            drop(server);
            lease
                .upstream
                .stream
                .write_all(b"POST")
                .await
                .expect("room");
            see_the_end(&mut lease).await;
            assert!(lease.is_unconsumed());
        }
    });
}

#[test]
fn what_the_peer_acknowledged_before_it_closed_is_not_proven() {
    run(async {
        let worker = testing::worker(Settings::default());
        let (mut lease, mut server) = lease(&worker, b"an answered request").await;
        lease
            .upstream
            .stream
            .write_all(b"POST")
            .await
            .expect("room");
        server.read_exact(&mut [0; 4]).await.expect("what was sent");
        drop(server);
        see_the_end(&mut lease).await;
        assert!(!lease.is_unconsumed());
    });
}

#[test]
fn left_over_readiness_is_not_taken_for_news() {
    run(async {
        let worker = testing::worker(Settings::default());
        let (lease, mut server) = lease(&worker, b"").await;
        assert!(lease.is_quiet());
        server.write_all(b"abcd").await.expect("room");
        lease.upstream.stream.readable().await.expect("readable");
        // Exactly filled, so that the event loop cannot tell whether more is there.
        let read = lease.upstream.stream.try_read(&mut [0; 4]);
        assert_eq!(read.expect("four bytes"), 4);
        assert!(lease.is_quiet());
        server.write_all(b"e").await.expect("room");
        lease.upstream.stream.readable().await.expect("readable");
        assert!(!lease.is_quiet());
    });
}

#[test]
fn a_destination_that_nobody_uses_is_forgotten() {
    run(async {
        let worker = testing::worker(Settings::default());
        let pool = &worker.http1_pool;
        let (lease, _server) = lease(&worker, b"").await;
        let idle = pool.destination(lease.upstream.peer);
        let now = Instant::now();
        idle.check_in(&worker, lease, now);
        drop(idle);
        assert_eq!(
            (pool.idle_count(), pool.destinations.borrow().len()),
            (1, 1)
        );
        pool.sweep(now + Duration::from_secs(3600));
        assert_eq!(
            (pool.idle_count(), pool.destinations.borrow().len()),
            (0, 0)
        );
    });
}

/// A task that has used up its budget is told that nothing is ready, whatever is.
#[test]
fn a_spent_budget_does_not_hide_what_has_arrived() {
    run(async {
        let worker = testing::worker(Settings::default());
        let (lease, mut server) = lease(&worker, b"").await;
        server.write_all(b"unasked for").await.expect("room");
        lease.upstream.stream.readable().await.expect("readable");
        let is_quiet = poll_fn(|cx| {
            while let Poll::Ready(step) = coop::poll_proceed(cx) {
                step.made_progress();
            }
            Poll::Ready(lease.is_quiet())
        });
        assert!(!is_quiet.await);
    });
}
