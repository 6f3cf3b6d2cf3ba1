//! The smallest proxy that can be captured: the control socket, a listener per worker and family,
//! and a plain relay to the original destination. The capture tests run it, and it shows what
//! `proxy::control` asks of its host.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Parser;
use outrigger_proxy::{
    control::{Control, ControlState, Hooks, Listening, is_probe},
    failure::Failure,
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 15001)]
    port: u16,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Set this mark on own connections.
    #[arg(long)]
    mark: Option<u32>,
    /// Make this many more listeners that nobody accepts from, as a worker that hangs.
    #[arg(long, default_value_t = 0)]
    hung_workers: usize,
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

fn main() -> io::Result<()> {
    let args = Args::parse();
    let mut control = Control::bind(args.port)?;
    let count = args.workers + args.hung_workers;
    let mut groups: Vec<Vec<std::net::TcpListener>> = Vec::new();
    for _ in 0..count {
        let v4 = listen((Ipv4Addr::LOCALHOST, args.port).into())?;
        let v6 = listen((Ipv6Addr::LOCALHOST, args.port).into());
        groups.push([Ok(v4), v6].into_iter().flatten().collect());
    }
    let listening = Listening::of(groups.iter().flatten())?;
    let state = control.state(
        listening,
        format!("tiny-{}", std::process::id()),
        count,
        args.mark,
    )?;
    let mark = args.mark;
    let hung = groups.split_off(args.workers);
    for (id, listeners) in groups.into_iter().enumerate() {
        let state = state.clone();
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work(id, listeners, mark, state))
        });
    }
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let hooks = Hooks {
                dial: Box::new(move |target| {
                    Box::pin(async move {
                        dial(target, mark)
                            .await
                            .map(drop)
                            .map_err(|e| Failure::of_connect(&e))
                    })
                }),
                live_connections: Box::new(|| LIVE.load(Ordering::Relaxed)),
                tell: Box::new(|_| None),
            };
            let mut terminate = signal(SignalKind::terminate())?;
            println!("ready");
            tokio::select! {
                ended = control.run(state.clone(), hooks) => ended,
                _ = terminate.recv() => drain(&state).await,
            }
        })?;
    drop(hung);
    Ok(())
}

/// The order of a graceful stop: no new capture, the redirect off, live connections to their end,
/// then the anchor.
async fn drain(state: &ControlState) -> io::Result<()> {
    state.start_draining();
    state.release_capture();
    let ended = async {
        while LIVE.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(Duration::from_secs(20), ended).await;
    state.release_all();
    Ok(())
}

async fn work(
    id: usize,
    listeners: Vec<std::net::TcpListener>,
    mark: Option<u32>,
    state: Arc<ControlState>,
) -> io::Result<()> {
    for listener in listeners {
        let listener = TcpListener::from_std(listener)?;
        let state = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move { serve(stream, id, mark, &state).await });
            }
        });
    }
    state.pulse.answer(id, || true).await;
    Ok(())
}

async fn serve(
    mut client: TcpStream,
    worker: usize,
    mark: Option<u32>,
    state: &ControlState,
) -> io::Result<()> {
    let original = original_destination(&client)?;
    if state.canary.is_expected(original) {
        state.canary.answer(client, original, worker).await;
        return Ok(());
    }
    let is_probe = |listener| is_probe(original, listener);
    if client.local_addr().is_ok_and(is_probe) {
        state.answer_probe(client).await;
        return Ok(());
    }
    LIVE.fetch_add(1, Ordering::Relaxed);
    let relayed = async {
        let mut upstream = dial(original, mark).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    }
    .await;
    LIVE.fetch_sub(1, Ordering::Relaxed);
    relayed.map(drop)
}

fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address
        .as_socket()
        .filter(|address| Ok(*address) != stream.local_addr().map_err(drop))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn dial(target: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM.nonblocking(),
        None,
    )?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    TcpSocket::from_std_stream(socket.into())
        .connect(target)
        .await
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}
