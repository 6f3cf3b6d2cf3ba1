//! Who is outside of the scope is left alone altogether: not redirected, not counted, not forgotten
//! early, not refused.

use std::{
    io::ErrorKind,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use outrigger_iptables::cgroup::Cgroup;

use crate::{
    INSTALL, config,
    netns::{Namespace, run},
    proxyctl::{ctl, serve, until},
    scoped::{App, Scratch},
    watch::{count, status, unchosen, until_counted},
    wire::{Client, V4, V6, wire},
};

const INSIDE: u32 = 4242;
const OUTSIDE: u32 = 4343;
const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];

#[test]
fn who_is_outside_is_neither_counted_nor_forgotten_early_nor_refused() {
    let file = config(
        "capture: { fail_closed: ['10.77.0.2/32', 'fd77::2/128'], exclude: { ports: [9] } }",
    );
    for backend in BACKENDS {
        for scope in ["uid", "gid", "cgroup"] {
            if (backend, scope) == ("iptables-legacy", "cgroup") {
                // Refused: see `matrix`.
                continue;
            }
            check(backend, scope, &file);
        }
    }
}

fn check(backend: &str, scope: &str, file: &str) {
    let cell = format!("{backend}, {scope}");
    let pair = wire();
    let mut proxy = serve(&pair.app, &format!("--workers 2 --config {file}"));
    let (cgroup, other) = (Scratch::new(), Scratch::new());
    let (scope, inside, outside) = match scope {
        "uid" => (
            format!("uid:{INSIDE}"),
            App::User(INSIDE),
            App::User(OUTSIDE),
        ),
        "gid" => (
            format!("gid:{INSIDE}"),
            App::Group(INSIDE),
            App::Group(OUTSIDE),
        ),
        _ => (
            cgroup.scope(),
            App::Within(&cgroup.0),
            App::Within(&other.0),
        ),
    };
    let install = format!("{INSTALL} --config {file} --backend {backend} --scope {scope}");
    ctl(&pair.app, &install).expect("captured");
    for address in [V4, V6] {
        assert!(inside.is_captured(&pair.app, address), "{cell}: {address}");
        assert!(
            !outside.is_captured(&pair.app, address),
            "{cell}: {address}"
        );
    }
    // Nobody is there: the entry waits for an answer.
    let waits = |app, address| seconds_remembered(&pair.app, app, address);
    assert!(waits(&outside, "10.77.0.98") > 10, "{cell}: shortened");
    assert!(waits(&inside, "10.77.0.99") <= 1, "{cell}: not shortened");
    // The one that is counted shows that all before it have been read.
    until_counted(&pair, "excluded_port", 1);
    assert_eq!(unchosen(&pair), 0, "{cell}: {}", status(&pair));
    assert_eq!(count(&pair, "excluded_port"), 1, "{cell}");

    proxy.kill();
    for address in [V4, V6] {
        until("the refusal", || is_refused(&pair.app, &inside, address));
        assert!(
            !outside.is_captured(&pair.app, address),
            "{cell}: {address}"
        );
    }
}

/// For how long connection tracking still waits for an answer to a connection that gets none.
fn seconds_remembered(namespace: &Namespace, app: &App<'_>, address: &str) -> u64 {
    let mut dialling = command(app, address, 9);
    let mut child = namespace.enter(|| dialling.spawn().unwrap());
    let mut seconds = None;
    until("the entry", || {
        let listed = namespace.enter(|| run(&format!("conntrack -L -p tcp --orig-dst {address}")));
        let entry = listed.lines().find(|line| line.contains("SYN_SENT"));
        seconds = entry.and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
        seconds.is_some()
    });
    let _ = child.kill();
    let _ = child.wait();
    seconds.unwrap()
}

fn is_refused(namespace: &Namespace, app: &App<'_>, address: &str) -> bool {
    if let App::Within(_) = app {
        let (host, port) = address.rsplit_once(':').unwrap();
        let host = host.trim_matches(['[', ']']);
        let output =
            namespace.enter(|| command(app, host, port.parse().unwrap()).output().unwrap());
        return String::from_utf8_lossy(&output.stderr).contains("refused");
    }
    // As `is_captured` dials, and fails.
    let dial = || Client::dial(address).map(drop);
    let result = match app {
        App::User(id) => namespace.enter(|| as_user(*id, dial)),
        App::Group(id) => namespace.enter(|| as_group(*id, dial)),
        App::Within(_) => unreachable!(),
    };
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn as_user<T>(id: u32, work: impl FnOnce() -> T) -> T {
    let id = rustix::fs::Uid::from_raw(id);
    rustix::thread::set_thread_res_uid(id, id, id).unwrap();
    work()
}

fn as_group<T>(id: u32, work: impl FnOnce() -> T) -> T {
    let id = rustix::fs::Gid::from_raw(id);
    rustix::thread::set_thread_res_gid(id, id, id).unwrap();
    work()
}

fn command(app: &App<'_>, host: &str, port: u16) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec 3<>/dev/tcp/{host}/{port}")]);
    command.stderr(Stdio::piped());
    match app {
        App::User(id) => drop(command.uid(*id)),
        App::Group(id) => drop(command.gid(*id)),
        App::Within(cgroup) => within(cgroup, &mut command),
    }
    command
}

fn within(cgroup: &Cgroup, command: &mut Command) {
    cgroup.contain(command).unwrap();
}
