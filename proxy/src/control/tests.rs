use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
};

use outrigger_config::control::{
    CanaryAnswer, Identity, LoopOutcome, MAX_LINE, Request, Tether, TetherKind, Watch,
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    netlink, sendmsg, socket_with,
};
use tokio::{net::TcpStream, task};

use super::*;

/// A served control socket with one listener behind it.
struct Fixture {
    port: u16,
    state: Arc<ControlState>,
    listener: TcpListener,
}

fn fixture(dial: impl Fn() -> Result<(), Failure> + Send + Sync + 'static) -> Fixture {
    // Abstract names are shared by all that runs here, so the first free one is taken.
    let first = 1024 + (std::process::id() % 40_000) as u16;
    let (port, mut control) = (first..u16::MAX)
        .find_map(|port| Control::bind(port).ok().map(|control| (port, control)))
        .expect("a free name");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listening = Listening::of([&listener]).unwrap();
    let state = control
        .state(listening, "an-instance".into(), 1, None)
        .unwrap();
    let hooks = Hooks {
        dial: Box::new(move |_| {
            let outcome = dial();
            Box::pin(async move { outcome })
        }),
        live_connections: Box::new(|| 1),
        tell: Box::new(|_| None),
    };
    tokio::spawn(control.run(state.clone(), hooks));
    Fixture {
        port,
        state,
        listener,
    }
}

fn refusing() -> Result<(), Failure> {
    Err(Failure::ConnectRefused)
}

/// The installer's end, on a blocking thread as the real one.
struct Client(UnixStream);

impl Client {
    fn connect(port: u16) -> Self {
        let name = UnixAddr::from_abstract_name(socket_name(port)).unwrap();
        let stream = UnixStream::connect_addr(&name).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self(stream)
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.ask_with(request, &[])
    }

    fn ask_with(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Reply {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        self.say(&line, descriptors);
        self.reply().expect("a reply")
    }

    fn say(&mut self, line: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let part = [IoSlice::new(line)];
        sendmsg(&self.0, &part, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    }

    fn reply(&mut self) -> Option<Reply> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                _ => return None,
            }
        }
        Some(serde_json::from_slice(&line).unwrap())
    }

    fn identity(&mut self) -> Identity {
        match self.ask(&Request::Hello) {
            Reply::Hello(identity) => identity,
            other => panic!("{other:?}"),
        }
    }

    fn hold(&mut self, kind: TetherKind, generation: u64) -> Reply {
        let socket = netlink_socket();
        let tether = tether(kind, generation);
        self.ask_with(&Request::Hold { table: tether }, &[socket.as_fd()])
    }
}

fn tether(kind: TetherKind, generation: u64) -> Tether {
    Tether {
        kind,
        table: format!("{kind:?}_{generation}"),
        generation,
        fingerprint: "f".into(),
        lease: None,
        outlives: false,
        scope: Default::default(),
        cgroup_id: None,
    }
}

fn netlink_socket() -> OwnedFd {
    socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )
    .unwrap()
}

/// Runs `work`, which blocks, beside the server.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    task::spawn_blocking(work).await.unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            time::sleep(Duration::from_millis(1)).await;
        }
    };
    time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come about"));
}

fn names(tethers: &[Tether]) -> Vec<&str> {
    tethers.iter().map(|tether| tether.table.as_str()).collect()
}

fn refused(reply: &Reply) -> &str {
    match reply {
        Reply::Refused(reason) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn one_name_is_for_one_instance() {
    let fixture = fixture(refusing);
    let second = Control::bind(fixture.port).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn hello_tells_the_listeners_as_the_kernel_knows_them() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let identity = beside(move || Client::connect(port).identity()).await;
    assert_eq!(identity.listeners, [fixture.listener.local_addr().unwrap()]);
    let inode = rustix::fs::fstat(&fixture.listener).unwrap().st_ino;
    assert_eq!(identity.listener_inodes, [inode]);
    assert_eq!(identity.pid, std::process::id());
    assert!(identity.captured_since.is_none() && !identity.draining);
}

#[tokio::test]
async fn an_anchor_lies_below_the_listeners_and_a_capture_above() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let listener = fixture.listener.as_raw_fd();
    // The other tests of this process make netlink sockets too: these are told by their number.
    let before = netlink_descriptors();
    let client = beside(move || {
        let mut client = Client::connect(port);
        assert_eq!(client.hold(TetherKind::Anchor, 1), Reply::Done);
        assert_eq!(client.hold(TetherKind::Capture, 1), Reply::Done);
        client
    })
    .await;
    let added: Vec<_> = netlink_descriptors()
        .into_iter()
        .filter(|fd| !before.contains(fd))
        .collect();
    assert!(
        added.iter().any(|&fd| fd < listener),
        "{added:?} {listener}"
    );
    assert!(
        added.iter().any(|&fd| fd > listener),
        "{added:?} {listener}"
    );
    drop(client);
}

fn is_open(inode: u64) -> bool {
    let name = format!("socket:[{inode}]");
    let own = std::fs::read_dir("/proc/self/fd").unwrap();
    own.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target.to_string_lossy() == name)
}

fn netlink_descriptors() -> Vec<RawFd> {
    let own = std::fs::read_dir("/proc/self/fd").unwrap();
    own.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|fd: &RawFd| {
            std::fs::read_link(format!("/proc/self/fd/{fd}"))
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        })
        .collect()
}

#[tokio::test]
async fn an_install_that_breaks_off_captures_nothing() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    beside(move || {
        let mut client = Client::connect(port);
        assert_eq!(client.hold(TetherKind::Anchor, 1), Reply::Done);
        assert_eq!(client.hold(TetherKind::Capture, 1), Reply::Done);
    })
    .await;
    let state = fixture.state;
    until("the end of the capture", || {
        names(&state.identity().tethers) == ["Anchor_1"]
    })
    .await;
}

#[tokio::test]
async fn a_capture_in_force_outlives_its_install() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let identity = beside(move || {
        let mut client = Client::connect(port);
        assert_eq!(client.hold(TetherKind::Capture, 3), Reply::Done);
        refused(&client.ask(&Request::Captured { generation: 4 }));
        assert_eq!(
            client.ask(&Request::Captured { generation: 3 }),
            Reply::Done
        );
        drop(client);
        Client::connect(port).identity()
    })
    .await;
    assert_eq!(names(&identity.tethers), ["Capture_3"]);
    assert!(identity.captured_since.is_some());
    fixture.state.release_capture();
    assert!(fixture.state.identity().tethers.is_empty());
    assert!(fixture.state.figures().since.is_none());
}

/// Regression: the watches of a capture that was given up stayed open, and read on.
#[tokio::test]
async fn a_capture_given_up_ends_its_watches_and_says_what_stays_closed() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let inodes = beside(move || {
        let mut client = Client::connect(port);
        for kind in [TetherKind::Anchor, TetherKind::Capture, TetherKind::Closed] {
            assert_eq!(client.hold(kind, 1), Reply::Done);
        }
        let watch = |watch| Request::Watch {
            generation: 1,
            watch,
        };
        let inodes = [
            watch(Watch::Bypasses { live_before: 0 }),
            watch(Watch::Changes {
                ahead: Vec::new(),
                iptables: None,
            }),
        ]
        .map(|request| {
            let socket = netlink_socket();
            assert_eq!(client.ask_with(&request, &[socket.as_fd()]), Reply::Done);
            rustix::fs::fstat(&socket).unwrap().st_ino
        });
        assert_eq!(
            client.ask(&Request::Captured { generation: 1 }),
            Reply::Done
        );
        inodes
    })
    .await;
    let state = fixture.state;
    let room = |entries| move || Some(Room { entries, most: 100 });
    state.leave_room(room(89));
    assert!(state.status().bypasses.is_watched && state.status().drift.is_watched);
    state.leave_room(room(90));
    let status = state.status();
    assert!(!status.bypasses.is_watched && !status.drift.is_watched);
    assert_eq!(names(&status.proxy.tethers), ["Anchor_1"]);
    let reason = status.given_up.expect("a reason");
    assert!(
        reason.contains("90 of 100") && reason.contains("fail_closed"),
        "{reason}"
    );
    state.leave_room(room(98));
    assert!(state.identity().tethers.is_empty());
    until("the sockets' end", || !inodes.into_iter().any(is_open)).await;
}

#[tokio::test]
async fn the_last_anchor_stays_for_live_connections() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    beside(move || {
        let mut client = Client::connect(port);
        for generation in [1, 2] {
            assert_eq!(client.hold(TetherKind::Anchor, generation), Reply::Done);
            assert_eq!(client.hold(TetherKind::Capture, generation), Reply::Done);
            assert_eq!(client.ask(&Request::Captured { generation }), Reply::Done);
        }
        client.ask(&Request::Release {
            generation: Some(1),
        });
    })
    .await;
    let state = fixture.state;
    let held = || state.identity().tethers;
    assert_eq!(names(&held()), ["Anchor_2", "Capture_2"]);
    state.drop_idle_anchors(0);
    state.drop_idle_anchors(0);
    assert_eq!(names(&held()), ["Anchor_2", "Capture_2"], "captured still");
    state.release(None);
    assert_eq!(names(&held()), ["Anchor_2"]);
    state.drop_idle_anchors(0);
    state.drop_idle_anchors(1);
    state.drop_idle_anchors(0);
    assert_eq!(names(&held()), ["Anchor_2"], "a connection lived meanwhile");
    state.drop_idle_anchors(0);
    assert!(held().is_empty());
}

/// A new generation that failed goes with its anchor; the one in force keeps its own.
#[tokio::test]
async fn withdrawing_a_new_generation_leaves_the_old_as_it_was() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let identity = beside(move || {
        let mut client = Client::connect(port);
        for generation in [1, 2] {
            assert_eq!(client.hold(TetherKind::Anchor, generation), Reply::Done);
            assert_eq!(client.hold(TetherKind::Capture, generation), Reply::Done);
        }
        client.ask(&Request::Captured { generation: 1 });
        client.ask(&Request::Release {
            generation: Some(2),
        });
        client.identity()
    })
    .await;
    assert_eq!(names(&identity.tethers), ["Anchor_1", "Capture_1"]);
}

#[tokio::test]
async fn anchors_give_their_descriptors_back() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    beside(move || {
        let mut client = Client::connect(port);
        for generation in 0..20 {
            assert_eq!(client.hold(TetherKind::Anchor, generation), Reply::Done);
            client.ask(&Request::Release {
                generation: generation.checked_sub(1),
            });
        }
    })
    .await;
    assert_eq!(names(&fixture.state.identity().tethers), ["Anchor_19"]);
    fixture.state.release_all();
    assert!(fixture.state.identity().tethers.is_empty());
}

#[tokio::test]
async fn only_one_netfilter_socket_is_taken_and_none_while_draining() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let state = fixture.state.clone();
    beside(move || {
        let mut client = Client::connect(port);
        let request = Request::Hold {
            table: tether(TetherKind::Capture, 1),
        };
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        let socket = netlink_socket();
        assert!(refused(&client.ask_with(&request, &[file.as_fd()])).contains("netlink"));
        assert!(refused(&client.ask(&request)).contains("0 came"));
        let two = [socket.as_fd(), socket.as_fd()];
        assert!(refused(&client.ask_with(&request, &two)).contains("2 came"));
        state.start_draining();
        let reply = client.hold(TetherKind::Capture, 1);
        assert!(refused(&reply).contains("shutting down"));
        assert!(client.identity().draining);
    })
    .await;
    assert!(fixture.state.identity().tethers.is_empty());
}

#[tokio::test]
async fn a_canary_gets_its_answer_and_a_stranger_none() {
    let fixture = fixture(refusing);
    let port = fixture.port;
    let original: SocketAddr = "127.192.0.2:4000".parse().unwrap();
    let client = beside(move || {
        let mut client = Client::connect(port);
        let request = Request::ExpectCanary {
            targets: vec![original],
            nonce: "secret".into(),
        };
        assert_eq!(client.ask(&request), Reply::Done);
        let mut other = Client::connect(port);
        assert!(refused(&other.ask(&request)).contains("another install"));
        client
    })
    .await;
    assert!(fixture.state.canary.is_expected(original));
    assert!(
        !fixture
            .state
            .canary
            .is_expected("127.192.0.2:4001".parse().unwrap())
    );

    let answer = dialogue(&fixture, original, "secret\n").await;
    let answer: CanaryAnswer = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer.original_destination, original);
    assert_eq!((answer.nonce.as_str(), answer.worker), ("secret", 7));
    assert_eq!(answer.instance, fixture.state.identity().instance);
    assert!(dialogue(&fixture, original, "guess\n").await.is_empty());
    assert!(
        dialogue(&fixture, original, &"x".repeat(400))
            .await
            .is_empty()
    );

    drop(client);
    let state = fixture.state;
    until("the end of the probe", || {
        !state.canary.is_expected(original)
    })
    .await;
}

/// What a canary connection gets for `words`.
async fn dialogue(fixture: &Fixture, original: SocketAddr, words: &str) -> Vec<u8> {
    let address = fixture.listener.local_addr().unwrap();
    let words = words.to_owned();
    let client = task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(words.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end: nothing was said.
        let _ = stream.read_to_end(&mut answer);
        answer
    });
    let listener = fixture.listener.try_clone().unwrap();
    let (stream, _) = beside(move || listener.accept().unwrap()).await;
    stream.set_nonblocking(true).unwrap();
    let stream = TcpStream::from_std(stream).unwrap();
    fixture.state.canary.answer(stream, original, 7).await;
    client.await.unwrap()
}

#[tokio::test]
async fn the_loop_probe_tells_what_dialling_came_to() {
    let target: SocketAddr = "127.192.0.2:4000".parse().unwrap();
    for (outcome, expected) in [
        (refusing as fn() -> _, LoopOutcome::NotCaptured),
        (|| Ok(()), LoopOutcome::Captured),
    ] {
        let port = fixture(outcome).port;
        let reply = beside(move || {
            let mut client = Client::connect(port);
            let early = client.ask(&Request::LoopProbe { target });
            assert!(refused(&early).contains("not announced"));
            client.ask(&Request::ExpectCanary {
                targets: vec![target],
                nonce: "n".into(),
            });
            client.ask(&Request::LoopProbe { target })
        })
        .await;
        assert_eq!(reply, Reply::LoopProbe(expected));
    }
}

#[tokio::test]
async fn nonsense_is_refused_and_an_endless_line_cut() {
    let port = fixture(refusing).port;
    beside(move || {
        let mut client = Client::connect(port);
        client.say(b"{\"reboot\":1}\n", &[]);
        assert!(refused(&client.reply().unwrap()).contains("not understood"));
        let half = vec![b'x'; MAX_LINE / 2 + 4096];
        // The server may hang up before the second half.
        let _ = client.0.write_all(&half);
        let _ = client.0.write_all(&half);
        assert_eq!(client.reply(), None);
    })
    .await;
}

/// Regression: the reason was written through the runtime and never left.
#[tokio::test]
async fn too_many_connections_are_told_so() {
    let port = fixture(refusing).port;
    beside(move || {
        let mut clients: Vec<_> = (0..MAX_SESSIONS).map(|_| Client::connect(port)).collect();
        for client in &mut clients {
            client.identity();
        }
        let reply = Client::connect(port).reply().unwrap();
        assert!(refused(&reply).contains("too many"));
    })
    .await;
}
