//! The units, by systemd's own judgement, and what `serve` tells a service manager.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal};

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
}

impl Manager {
    fn new(world: &World) -> Self {
        let path = world.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self { socket, path }
    }

    fn serve(&self, world: &World, arguments: &[&str]) -> Process {
        let mut command = Command::new(world.proxyctl());
        command.args(["serve", "--admin", "off"]).args(arguments);
        command.env("NOTIFY_SOCKET", &self.path);
        command.env("WATCHDOG_USEC", PATIENCE.as_micros().to_string());
        world.start("proxy", &command)
    }

    #[track_caller]
    fn hears(&self) -> String {
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        let mut message = [0; 256];
        let length = self.socket.recv(&mut message).expect("nothing was told");
        String::from_utf8_lossy(&message[..length])
            .trim()
            .to_owned()
    }

    fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let heard = self.socket.recv(&mut [0; 256]);
        heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
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
