//! What a scope refuses, what becomes of it, and several side by side.

use std::{fs, net::TcpStream, process::Command};

use crate::{
    INSTALL, REMOVE, STATUS, config,
    netns::Namespace,
    proxyctl::{Running, ctl, proxyctl, serve, start, until},
    scoped::{App, Scratch},
    wire::{V4, V6, wire},
};

/// Regression guard for a silent bypass: the rules are in force, and match nobody.
#[test]
fn status_tells_when_the_cgroup_was_made_again() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let scratch = Scratch::new();
    let app = scratch.0.create_child("app").unwrap();
    let install = format!("{INSTALL} --scope cgroup:{app}");
    ctl(&pair.app, &install).expect("captured");
    assert!(App::Within(&app).is_captured(&pair.app, V4));
    let status = ctl(&pair.app, STATUS).expect("captured");
    assert_eq!(status.json["scope_problem"], serde_json::Value::Null);

    app.remove().unwrap();
    let status = ctl(&pair.app, STATUS).expect("stale");
    assert!(
        status.text("scope_problem").contains("is gone"),
        "{status:?}"
    );
    let app = scratch.0.create_child("app").unwrap();
    assert!(!App::Within(&app).is_captured(&pair.app, V4));
    let status = ctl(&pair.app, STATUS).expect("stale");
    assert_eq!(status.code, 1);
    assert!(
        status.text("scope_problem").contains("made again"),
        "{status:?}"
    );

    // The path is the same and the cgroup is not: this is a change.
    ctl(&pair.app, &install).expect("captured");
    assert!(App::Within(&app).is_captured(&pair.app, V4));
    ctl(&pair.app, STATUS).expect("captured");
    app.remove().unwrap();
}

#[test]
fn what_cannot_be_a_scope_is_refused_with_the_reason() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let before = pair.app.ruleset();
    for (scope, words) in [
        ("cgroup:/no/such/cgroup", ["there is none", "mkdir"]),
        ("uid:1337", ["as whom the proxy runs", "another user"]),
    ] {
        let refused = ctl(&pair.app, &format!("{INSTALL} --scope {scope}")).expect("refused");
        assert_eq!((refused.code, refused.text("check")), (1, "scope"));
        let said = format!("{} {}", refused.text("message"), refused.text("advice"));
        for word in words {
            assert!(said.contains(word), "{scope}: {said}");
        }
    }
    let wrong = ctl(&pair.app, &format!("{INSTALL} --scope user:alice"));
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("uid:UID"), "{wrong:?}");
    assert_eq!(pair.app.ruleset(), before);
}

/// The probe comes from the scope itself, so that rules which match nobody are found out.
#[test]
fn a_frozen_cgroup_cannot_prove_itself_and_is_refused() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let scratch = Scratch::new();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.contains(" cgroup2 "))
        .unwrap();
    let mount = mount.split(' ').nth(1).unwrap();
    fs::write(format!("{mount}{}/cgroup.freeze", scratch.0), "1").unwrap();
    let install = format!("{INSTALL} --scope {}", scratch.scope());
    let refused = ctl(&pair.app, &install).expect("refused");
    assert_eq!(refused.text("check"), "scope");
    assert!(refused.text("message").contains("frozen"), "{refused:?}");
    assert!(scratch.0.processes().unwrap().is_empty(), "a probe is left");
    assert!(!pair.app.ruleset().contains("redirect"));
}

#[test]
fn an_application_of_the_proxys_user_is_pointed_out() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 1");
    let mut sleep = Command::new("setpriv");
    sleep.args([
        "--reuid=1337",
        "--regid=1337",
        "--clear-groups",
        "sleep",
        "60",
    ]);
    let app = start(&pair.app, sleep);
    until("the application", || {
        let name = fs::read_to_string(format!("/proc/{}/comm", app.pid()));
        name.is_ok_and(|name| name.trim() == "sleep")
    });
    let installed = ctl(&pair.app, INSTALL).expect("captured");
    let told = format!("sleep (pid {}", app.pid());
    assert!(installed.stdout.contains(&told), "{installed:?}");
}

/// Two sidecars for two cgroups, each with a port of its own; then a third for everybody, whom the
/// narrower scopes win from whichever was installed last.
#[test]
fn sidecars_share_a_namespace_and_the_narrower_scope_wins() {
    let pair = wire();
    let (first, second) = (Scratch::new(), Scratch::new());
    let proxies = [15001, 15002, 15003].map(|port| serve_at(&pair.app, port));
    let ctl_at = |port: u16, scope: &str| {
        let listen = format!("--listen 127.0.0.1:{port} --listen [::1]:{port}");
        ctl(&pair.app, &format!("{INSTALL} {listen} --scope {scope}")).expect("captured")
    };
    ctl_at(15001, &first.scope());
    let told = ctl_at(15002, &second.scope());
    assert!(
        told.stdout.contains("another Outrigger (port 15001"),
        "{told:?}"
    );
    let apps = [App::Within(&first.0), App::Within(&second.0)];
    for app in &apps {
        assert!(app.is_captured(&pair.app, V4) && app.is_captured(&pair.app, V6));
    }
    assert!(!App::User(4242).is_captured(&pair.app, V4));

    ctl_at(15003, "netns");
    assert!(App::User(4242).is_captured(&pair.app, V4));
    let taken = || proxies.each_ref().map(accepted);
    for (app, expected) in apps.iter().zip([0, 1]) {
        // A proxy writes at its beats too; whoever served the connection has written in any case.
        until("a connection that only its own proxy served", || {
            let before = taken();
            assert!(app.is_captured(&pair.app, V4));
            let after = taken();
            (0..3).all(|n| (after[n] > before[n]) == (n == expected))
        });
    }

    // Each ends alone.
    let removed = ctl(&pair.app, &format!("{REMOVE} --port 15003")).expect("removed");
    assert_eq!(removed.code, 0);
    assert!(!App::User(4242).is_captured(&pair.app, V4));
    assert!(apps.iter().all(|app| app.is_captured(&pair.app, V4)));
}

/// Everybody's connections, twice over, by proxies of different users: each would capture the other's
/// and none arrive.
#[test]
fn two_sidecars_for_everybody_make_no_loop() {
    let pair = wire();
    let _first = serve(&pair.app, "--workers 1");
    ctl(&pair.app, INSTALL).expect("captured");
    let listen = "listen: ['127.0.0.1:15002', '[::1]:15002']";
    let file = config(&format!("{listen}\ncapture: {{ proxy_uid: 1338 }}"));
    let _second = serve_with(&pair.app, &file, 15002);
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    for address in [V4, V6] {
        assert!(App::User(4242).is_captured(&pair.app, address));
    }
    // The first one is told of the second, and leaves it alone from now on.
    ctl(&pair.app, INSTALL).expect("captured");
    for address in [V4, V6] {
        assert!(App::User(4242).is_captured(&pair.app, address));
    }
}

/// One user, one uid: the rest is refused before anything is loaded.
#[test]
fn a_namespace_of_one_user_refuses_the_scopes_that_it_does_not_have() {
    let command = format!(
        "unshare --user --map-root-user --net {} {INSTALL} --config {} --scope uid:1000",
        proxyctl().display(),
        config("capture: { proxy_mark: 7 }")
    );
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["check"], "scope", "{json}");
    assert!(
        json["message"].as_str().unwrap().contains("only one is 0"),
        "{json}"
    );
}

fn serve_at(namespace: &Namespace, port: u16) -> Running {
    let file = config(&format!("listen: ['127.0.0.1:{port}', '[::1]:{port}']"));
    serve_with(namespace, &file, port)
}

fn serve_with(namespace: &Namespace, file: &str, port: u16) -> Running {
    let mut command = Command::new(proxyctl());
    command.args(["serve", "--admin", "off", "--workers", "1"]);
    command.args(["--log-level", "error", "--config", file]);
    let running = start(namespace, command);
    until("the proxy", || {
        namespace.enter(|| TcpStream::connect(("127.0.0.1", port)).is_ok())
    });
    running
}

/// How much the process has read, which rises with each connection that it relays.
fn accepted(proxy: &Running) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", proxy.pid())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}
