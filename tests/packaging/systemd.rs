//! The units, by systemd's own judgement, and what `serve` tells a service manager.

use std::{
    cell::RefCell,
    fs,
    io::{self, ErrorKind, IoSliceMut},
    mem::MaybeUninit,
    net::TcpStream,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::fstat,
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Signal, kill_process},
};

use crate::{
    read,
    support::{Process, SOON, SVC4, Speak, World, figure, spin, wait_for},
};

const UNITS: [&str; 4] = [
    "outrigger.socket",
    "outrigger.service",
    "outrigger-capture.service",
    "outrigger-run@.service",
];

/// The watchdog's patience in these tests.
const PATIENCE: Duration = Duration::from_millis(800);

#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    let units = Units::new();
    let mut verify = units.analyze();
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    verify.args(UNITS.map(|name| units.0.path().join(name)));
    let verified = verify.output().expect(NEEDED);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "{said}");
}

#[test]
fn systemd_would_say_so_of_a_unit_that_is_wrong() {
    let units = Units::new();
    let path = units.0.path().join("outrigger.service");
    let wrong = fs::read_to_string(&path)
        .unwrap()
        .replace("Type=notify", "Type=notified");
    fs::write(&path, wrong).unwrap();
    let mut verify = units.analyze();
    verify
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(path);
    let said = verify.output().expect(NEEDED).stderr;
    assert!(!said.is_empty());
}

/// Regression, seen with a booted systemd: six starts of the proxy within ten seconds were too many for the
/// default limit of the capture's unit, and capture stayed off for good.
#[test]
fn the_capture_follows_every_start_of_the_proxy() {
    let unit = read("systemd/outrigger-capture.service");
    let has = |line: &str| unit.lines().any(|of| of == line);
    assert!(
        has("StartLimitIntervalSec=0") && has("Restart=on-failure"),
        "{unit}"
    );
    assert!(read("systemd/outrigger.service").contains("\nWants=outrigger-capture.service\n"));
}

#[test]
fn the_units_are_hardened() {
    // What is left is the host's network, which is what they are for; root, for the rules; and a
    // command of the user's, which is not ours to confine.
    for (unit, most) in [
        ("outrigger.service", 2.0),
        ("outrigger-capture.service", 2.5),
        ("outrigger-run@.service", 7.5),
    ] {
        let units = Units::new();
        let mut security = units.analyze();
        security.args(["security", "--no-pager", "--offline=true"]);
        let output = security
            .arg(units.0.path().join(unit))
            .output()
            .expect(NEEDED);
        let said = String::from_utf8_lossy(&output.stdout);
        let exposure: f64 = said
            .split("exposure level for ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_else(|| panic!("no exposure level: {said}\n{output:?}"));
        figure(
            &format!("exposure of {unit}"),
            exposure,
            &format!("systemd-analyze security; at most {most}"),
        );
        assert!(exposure <= most, "{said}");
    }
}

#[test]
fn the_watchdog_is_fed_while_every_worker_answers_and_no_longer() {
    let world = World::new();
    let manager = Manager::new(&world);
    let mut proxy = manager.serve(&world, &["--workers", "2"]);
    assert_eq!(manager.hears(), "READY=1");
    for _ in 0..6 {
        assert_eq!(manager.hears(), "WATCHDOG=1");
    }
    assert!(proxy.exited().is_none());
    spin(thread_named(proxy.pid(), "worker-1")).expect("the worker can be traced");
    // What had been said before may still come.
    wait_for(
        SOON,
        "silence for as long as the manager is patient",
        || manager.is_silent_for(PATIENCE).then_some(()),
    );
    assert!(proxy.log().contains("worker 1 hangs"), "{}", proxy.log());
}

#[test]
fn the_watchdog_is_fed_while_connections_drain() {
    let world = World::new();
    let manager = Manager::new(&world);
    let (taken, holds) = std::sync::mpsc::channel();
    let taken = std::sync::Mutex::new(taken);
    let _peer = world.peer(9000, move |mut stream| {
        stream.hear(1)?;
        taken.lock().unwrap().send(()).unwrap();
        let _ = stream.hear_to_end();
        Ok(())
    });
    let mut proxy = manager.serve(&world, &[]);
    assert_eq!(manager.hears(), "READY=1");
    let installed = world.install_rules(None);
    assert!(installed.status.success(), "{installed:?}");
    let mut client = world.app.connect((SVC4, 9000));
    client.say("\0").unwrap();
    holds.recv_timeout(SOON).expect("the connection arrives");
    proxy.signal(Signal::TERM);
    while manager.hears() != "STOPPING=1" {}
    // More than its patience: a manager that was not fed would have ended it.
    for _ in 0..6 {
        assert_eq!(manager.hears(), "WATCHDOG=1");
    }
    drop(client);
    assert_eq!(proxy.wait(SOON).code(), Some(0));
}

/// The queue and the translation of what is in it: both outlive a process that is killed.
#[test]
fn what_waits_for_a_killed_serve_is_served_by_the_next() {
    let world = World::new();
    let _nginx = world.nginx();
    let manager = Manager::new(&world);
    let mut first = manager.serve(&world, &["--workers", "2"]);
    assert_eq!(manager.hears(), "READY=1");
    let installed = world.install_rules(None);
    assert!(installed.status.success(), "{installed:?}");
    let kept = manager.kept();
    stop(first.pid());
    let mut client = waiting_client(&world);
    first.kill();

    let mut serve = manager.told(&world, "serve");
    serve.args(["--workers", "2", "--admin", "off"]);
    let _second = start_with(&world, kept, serve);
    let (head, _) = client.hear_response().expect("it is answered");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    // Its anchor is one of those that an install lets go of.
    let installed = world.install_rules(None);
    assert!(installed.status.success(), "{installed:?}");
    wait_for(SOON, "the first anchor has ended", || {
        let anchors = world.app.ruleset().matches("_anchor_g").count();
        (manager.kept().len() == 5 && anchors == 1).then_some(())
    });
}

#[test]
fn what_waits_for_a_killed_run_is_served_by_the_next() {
    let world = World::new();
    let _nginx = world.nginx();
    let manager = Manager::new(&world);
    let run = || {
        let mut run = manager.told(&world, "run");
        run.args(["--scope", "netns"]);
        run
    };
    let is_captured = || {
        let mut command = Command::new(world.proxyctl());
        world.app.output(command.arg("status")).status.success()
    };
    let mut first = world.start("first", &run());
    first.until("captures", is_captured);
    let kept = manager.kept();
    let proxies = proxies(&world);
    proxies.iter().copied().for_each(stop);
    let mut client = waiting_client(&world);
    first.kill();
    for proxy in proxies {
        kill_process(proxy, Signal::KILL).expect("it lives");
    }
    wait_for(SOON, "all have ended", || {
        world.app.processes().is_empty().then_some(())
    });

    let mut second = start_with(&world, kept, run());
    let (head, _) = client.hear_response().expect("it is answered");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    second.until("captures", is_captured);
    second.signal(Signal::TERM);
    second.wait(SOON);
    // Of an orderly end the manager keeps the listeners alone.
    wait_for(SOON, "the anchors are given up", || {
        manager.takes_in();
        let stored = manager.store.borrow();
        stored
            .iter()
            .all(|(name, _)| name == LISTENER)
            .then_some(())
    });
}

const NEEDED: &str = "this test runs `systemd-analyze`; install the Debian package `systemd`";

/// The units in a directory of their own, with the program where it was built.
struct Units(tempfile::TempDir);

impl Units {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in UNITS {
            let unit = read(&format!("systemd/{name}"));
            let built = unit.replace("/usr/bin/proxyctl", env!("CARGO_BIN_EXE_proxyctl"));
            assert!(
                name.ends_with(".socket") || built != unit,
                "{name} starts no proxyctl"
            );
            fs::write(directory.path().join(name), built).unwrap();
        }
        Self(directory)
    }

    fn analyze(&self) -> Command {
        let mut command = Command::new("systemd-analyze");
        // The trailing colon: and where units are else.
        command.env("SYSTEMD_UNIT_PATH", format!("{}:", self.0.path().display()));
        command
    }
}

/// The part of a service manager that is told things.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// Its store of descriptors, by name.
    store: RefCell<Vec<(String, OwnedFd)>>,
}

const LISTENER: &str = "outrigger-listener";

impl Manager {
    fn new(world: &World) -> Self {
        let path = world.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self {
            socket,
            path,
            store: RefCell::default(),
        }
    }

    /// `proxyctl` with a service manager.
    fn told(&self, world: &World, subcommand: &str) -> Command {
        let mut command = Command::new(world.proxyctl());
        command.arg(subcommand).env("NOTIFY_SOCKET", &self.path);
        command
    }

    fn serve(&self, world: &World, arguments: &[&str]) -> Process {
        let mut command = Command::new(world.proxyctl());
        command.args(["serve", "--admin", "off"]).args(arguments);
        command.env("NOTIFY_SOCKET", &self.path);
        command.env("WATCHDOG_USEC", PATIENCE.as_micros().to_string());
        world.start("proxy", &command)
    }

    /// The next that is said, but for what concerns the store.
    #[track_caller]
    fn hears(&self) -> String {
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        loop {
            if let Some(said) = self.receive().expect("nothing was told") {
                return said;
            }
        }
    }

    /// What it has been given to keep, once listeners and an anchor are there.
    fn kept(&self) -> Vec<(String, OwnedFd)> {
        wait_for(SOON, "listeners and an anchor are stored", || {
            self.takes_in();
            let store = self.store.borrow();
            let anchors = store.iter().filter(|(name, _)| name != LISTENER).count();
            let copy = |(name, d): &(String, OwnedFd)| (name.clone(), d.try_clone().unwrap());
            (anchors == 1 && store.len() > 1).then(|| store.iter().map(copy).collect())
        })
    }

    /// Takes in what has been said so far.
    fn takes_in(&self) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        while poll(&mut fds, Some(&Timespec::default())).unwrap() > 0 {
            self.receive().unwrap();
        }
    }

    /// One message; `None`: it was for the store, and has been obeyed.
    fn receive(&self) -> io::Result<Option<String>> {
        let mut text = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let said = String::from_utf8_lossy(&text[..received.bytes]);
        let name = said.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let mut store = self.store.borrow_mut();
        match (said.lines().next(), name) {
            (Some("FDSTORE=1"), Some(name)) => {
                let inode = |d: &OwnedFd| fstat(d).unwrap().st_ino;
                for descriptor in descriptors {
                    // As systemd has it: what is there already is not doubled.
                    if !store.iter().any(|(_, d)| inode(d) == inode(&descriptor)) {
                        store.push((name.to_owned(), descriptor));
                    }
                }
            }
            (Some("FDSTOREREMOVE=1"), Some(gone)) => store.retain(|(name, _)| name != gone),
            _ => return Ok(Some(said.trim().to_owned())),
        }
        Ok(None)
    }

    fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let heard = self.socket.recv(&mut [0; 256]);
        heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// A thread goes on until it is scheduled next, and might take a connection until then.
fn stop(process: Pid) {
    kill_process(process, Signal::STOP).expect("it lives");
    wait_for(SOON, "every thread is stopped", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).ok()?;
        let is_stopped =
            |stat: String| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'));
        tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("stat")))
            .all(|stat| stat.is_ok_and(is_stopped))
            .then_some(())
    });
}

/// An application whose connection waits at the listeners, since nobody takes it.
fn waiting_client(world: &World) -> TcpStream {
    let mut client = world.app.connect((SVC4, 80));
    client
        .say("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let own = client.local_addr().unwrap().port();
    let waiting = format!("ss -Htn state established '( sport = :15001 and dport = :{own} )'");
    assert!(!world.app.sh(&waiting).is_empty(), "it was not redirected");
    client
}

/// Starts `command` with what a service manager has kept for it.
fn start_with(world: &World, kept: Vec<(String, OwnedFd)>, command: Command) -> Process {
    let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
    // Above those that they are moved to.
    let copies: Vec<_> = kept
        .iter()
        .map(|(_, descriptor)| fcntl_dupfd_cloexec(descriptor, 100).unwrap())
        .collect();
    let moves: Vec<_> = (3..)
        .zip(&copies)
        .map(|(to, from)| format!("{to}<&{0} {0}<&-", from.as_raw_fd()))
        .collect();
    let script = format!(
        "exec {}; LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={} exec \"$0\" \"$@\"",
        moves.join(" "),
        copies.len(),
        names.join(":")
    );
    let mut passing = Command::new("bash");
    passing.args(["-c", &script]).arg(command.get_program());
    passing.args(command.get_args());
    for (key, value) in command.get_envs() {
        passing.env(key, value.unwrap());
    }
    let inherit = |flags| copies.iter().for_each(|d| fcntl_setfd(d, flags).unwrap());
    inherit(FdFlags::empty());
    let started = world.start("next", &passing);
    inherit(FdFlags::CLOEXEC);
    started
}

fn proxies(world: &World) -> Vec<Pid> {
    let mut found = world.app.processes();
    found.retain(|pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        line.is_ok_and(|line| String::from_utf8_lossy(&line).contains("serve\0--supervised"))
    });
    found
}

fn thread_named(process: Pid, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    let found = tasks
        .map(|task| task.unwrap().path())
        .find(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == name);
    let found = found.unwrap_or_else(|| panic!("no thread is named {name}"));
    let number = found.file_name().unwrap().to_str().unwrap();
    Pid::from_raw(number.parse().unwrap()).unwrap()
}
