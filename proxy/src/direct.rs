//! Connections without a proxy: what was redirected to one that is dead, and will have no successor
//! soon, goes byte for byte to where it was going. For a supervisor, which has the listening sockets.

use std::{
    cell::RefCell,
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener},
    rc::Rc,
    thread,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    task,
};

use crate::accept;

/// Takes connections from the listeners while it lives; those taken go on to their end.
#[derive(Debug)]
pub struct Direct {
    _accepting: watch::Sender<()>,
}

/// Our own dials under way or established, by local port and destination: should rules redirect
/// them to us, taking them would go round for ever.
type Own = Rc<RefCell<HashSet<(u16, SocketAddr)>>>;

impl Direct {
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub fn start(listeners: &[StdListener]) -> io::Result<Self> {
        let listeners: Vec<_> = listeners
            .iter()
            .map(StdListener::try_clone)
            .collect::<Result<_, _>>()?;
        let (accepting, until) = watch::channel(());
        thread::Builder::new()
            .name("direct".into())
            .spawn(move || {
                if let Err(error) = run(listeners, until) {
                    tracing::error!(%error, "connections queued for the proxy have to wait");
                }
            })?;
        Ok(Self {
            _accepting: accepting,
        })
    }
}

fn run(listeners: Vec<StdListener>, until: watch::Receiver<()>) -> io::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let own = Own::default();
        // Closed once nobody holds the other end, which every connection does.
        let (live, mut ended) = mpsc::channel::<()>(1);
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            task::spawn_local(accept_all(
                listener,
                until.clone(),
                own.clone(),
                live.clone(),
            ));
        }
        drop(live);
        ended.recv().await;
        Ok(())
    })
}

async fn accept_all(
    listener: TcpListener,
    mut until: watch::Receiver<()>,
    own: Own,
    live: mpsc::Sender<()>,
) {
    let mut count = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = until.changed() => break,
        };
        match accepted {
            Ok((stream, client)) => {
                count += 1;
                let (own, live) = (own.clone(), live.clone());
                task::spawn_local(async move {
                    if let Err(error) = pass(stream, client, &own).await {
                        tracing::debug!(%client, %error, "a connection without a proxy failed");
                    }
                    drop(live);
                });
            }
            // Descriptors or memory: nothing to do but let others free some.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    if count > 0 {
        tracing::warn!(count, "connections that waited for the proxy went direct");
    }
}

/// Relays `app` to where it was going. An error has been passed on as a reset.
async fn pass(mut app: TcpStream, client: SocketAddr, own: &Own) -> io::Result<()> {
    let dialled = async {
        let destination = original_destination(&app)?;
        if own.borrow().contains(&(client.port(), destination)) {
            return Err(io::Error::other("it is one of our own"));
        }
        dial(destination, own).await
    };
    let relayed = match dialled.await {
        Ok((mut upstream, _own)) => {
            let relayed = copy_bidirectional(&mut app, &mut upstream).await;
            if relayed.is_err() {
                accept::reset_when_dropped(&upstream);
            }
            relayed.map(drop)
        }
        Err(error) => Err(error),
    };
    if relayed.is_err() {
        accept::reset(app);
    }
    relayed
}

async fn dial(destination: SocketAddr, own: &Own) -> io::Result<(TcpStream, Registered)> {
    let (socket, any) = match destination {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
    };
    socket.bind(SocketAddr::new(any, 0))?;
    let key = (socket.local_addr()?.port(), destination);
    own.borrow_mut().insert(key);
    let registered = Registered(own.clone(), key);
    let stream = socket.connect(destination).await?;
    stream.set_nodelay(true)?;
    Ok((stream, registered))
}

struct Registered(Own, (u16, SocketAddr));

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.borrow_mut().remove(&self.1);
    }
}

fn original_destination(app: &TcpStream) -> io::Result<SocketAddr> {
    let local = app.local_addr()?;
    let socket = SockRef::from(app);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    }?;
    original
        .as_socket()
        .filter(|original| *original != local)
        .ok_or_else(|| io::Error::other("nobody redirected it"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::testing::run;

    #[test]
    fn a_connection_that_nobody_redirected_is_reset() {
        let listener = StdListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let _direct = Direct::start(&[listener]).expect("started");
        run(async {
            let mut client = TcpStream::connect(address).await.expect("connected");
            let error = client.read(&mut [0]).await.expect_err("a reset");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn it_leaves_the_queue_to_the_next_proxy() {
        let listener = StdListener::bind("127.0.0.1:0").expect("bound");
        let ours = listener.try_clone().expect("a descriptor");
        let address = listener.local_addr().expect("bound");
        run(async {
            let (stop, until) = watch::channel(());
            let (live, mut ended) = mpsc::channel(1);
            listener.set_nonblocking(true).expect("set");
            let listener = TcpListener::from_std(listener).expect("watched");
            let accepting = accept_all(listener, until, Own::default(), live);
            drop(stop);
            accepting.await;
            assert!(ended.recv().await.is_none());
            let _client = TcpStream::connect(address).await.expect("queued");
            ours.accept().expect("it is in the queue");
        });
    }
}
