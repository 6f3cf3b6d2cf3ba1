//! What is refused, each with the rules left as they were.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{
    INSTALL, REMOVE, config,
    netns::{Namespace, run},
    proxyctl::{self, PROXY_UID, ctl, ctl_as, proxy, start, until},
    wire::{assert_captured, until_captured, wire},
};

/// An install that must be refused by `check`, in words that contain each of `words`, and leave the
/// rules byte-identical.
#[track_caller]
fn assert_refused(namespace: &Namespace, arguments: &str, check: &str, words: &[&str]) {
    let before = namespace.ruleset();
    let outcome = ctl(namespace, arguments).expect("refused");
    assert_eq!(outcome.code, 1);
    assert_eq!(outcome.text("check"), check, "{outcome:?}");
    let said = format!("{} {}", outcome.text("message"), outcome.text("advice"));
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
    assert_eq!(namespace.ruleset(), before);
}

#[test]
fn no_proxy_at_all() {
    let pair = wire();
    assert_refused(
        &pair.app,
        INSTALL,
        "control",
        &["nothing listens on port 15001", "proxyctl serve"],
    );
}

#[test]
fn a_listen_address_that_the_proxy_would_not_take_either() {
    for (address, says) in [
        ("0.0.0.0:15001", "open proxy"),
        ("15001", "address and port"),
    ] {
        let output = Command::new(proxyctl::proxyctl())
            .args(["install-rules", "--dry-run", "--listen", address])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

/// Regression: both ended in a panic.
#[test]
fn a_dry_run_that_cannot_be_written_says_so_and_one_that_is_not_read_to_its_end_does_not() {
    let run = |stdout: Stdio| {
        let mut command = Command::new(proxyctl::proxyctl());
        command.args(["install-rules", "--dry-run"]).stdout(stdout);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (code, said) = run(full.into());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("could not be written"), "{said}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), (Some(0), String::new()));
}

/// Regression: it said that it was serving, on no address at all.
#[test]
fn a_proxy_with_nothing_to_listen_on_does_not_start() {
    let pair = wire();
    pair.app
        .enter(|| fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap());
    let mut command = Command::new(proxyctl::proxyctl());
    command.args(["serve", "--admin", "off", "--listen", "[::1]:15001"]);
    let mut proxy = start(&pair.app, command);
    assert_eq!(proxy.wait().code(), Some(1));
}

#[test]
fn a_foreign_server_on_the_port() {
    let pair = wire();
    let prefix =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nginx-{}", std::process::id()));
    fs::create_dir_all(&prefix).unwrap();
    let conf = format!(
        "daemon off; master_process off; user root; pid {0}/pid; error_log {0}/log; events {{}} http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi; uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi; server {{ listen 127.0.0.1:15001; }} }}",
        prefix.display()
    );
    fs::write(prefix.join("conf"), conf).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-c".into(), prefix.join("conf").into_os_string()]);
    let nginx = start(&pair.app, command);
    until("nginx", || {
        pair.app
            .enter(|| TcpStream::connect("127.0.0.1:15001").is_ok())
    });
    let pid = format!("nginx (pid {}", nginx.pid());
    assert_refused(
        &pair.app,
        INSTALL,
        "control",
        &["15001", &pid, "not Outrigger"],
    );
    assert_captured(&pair, false);
}

#[test]
fn a_stopped_proxy() {
    let pair = wire();
    let proxy = proxy(&pair.app, PROXY_UID, "");
    proxy.signal("STOP");
    let advice = format!("kill -CONT {}", proxy.pid());
    assert_refused(&pair.app, INSTALL, "control", &["stopped", &advice]);
    assert_captured(&pair, false);
}

#[test]
fn a_worker_that_hangs() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "--workers 1 --hung-workers 1");
    assert_refused(&pair.app, INSTALL, "canary", &["IPv4", "no answer"]);
    assert_captured(&pair, false);
}

#[test]
fn no_privilege() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    for command in [INSTALL, REMOVE] {
        let outcome = ctl_as(&pair.app, 1000, command).expect("refused");
        assert_eq!((outcome.code, outcome.text("check")), (1, "privilege"));
        assert!(outcome.text("advice").contains("root"), "{outcome:?}");
    }
    assert_eq!(pair.app.ruleset(), "");
}

#[test]
fn a_proxy_of_the_wrong_user() {
    let pair = wire();
    let _proxy = proxy(&pair.app, 1338, "");
    assert_refused(
        &pair.app,
        INSTALL,
        "identity",
        &["1338", "1337", "tiny_proxy (pid"],
    );
}

#[test]
fn the_user_that_stands_for_every_unmapped_one() {
    let pair = wire();
    let _proxy = proxy(&pair.app, 65534, "");
    let file = config("capture: { proxy_uid: 65533 }");
    let arguments = format!("{INSTALL} --config {file}");
    assert_refused(&pair.app, &arguments, "identity", &["does not map"]);
}

#[test]
fn an_installer_of_the_proxys_user() {
    let pair = wire();
    let _proxy = proxy(&pair.app, 0, "");
    let file = config("capture: { proxy_uid: 0 }");
    let arguments = format!("{INSTALL} --config {file}");
    assert_refused(
        &pair.app,
        &arguments,
        "exclusion",
        &["as user 0", "proxy_mark"],
    );
}

#[test]
fn a_loop() {
    let pair = wire();
    // It should set the mark that the rules exclude, and does not.
    let _proxy = proxy(&pair.app, 0, "");
    let file = config("capture: { proxy_uid: 0, proxy_mark: 7 }");
    let arguments = format!("{INSTALL} --config {file}");
    assert_refused(
        &pair.app,
        &arguments,
        "loop",
        &["redirected to itself", "0x7"],
    );
    assert_captured(&pair, false);
}

#[test]
fn a_stale_instance_that_shares_the_port() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    let mut command = proxyctl::as_user(PROXY_UID, "socat".as_ref());
    command
        .args(["TCP-LISTEN:15001,bind=127.0.0.1,reuseport,fork", "STDOUT"])
        .stdin(Stdio::null());
    let socat = start(&pair.app, command);
    until("socat's socket", || {
        let sockets = pair.app.enter(|| run("ss -ltnp sport = :15001"));
        sockets.contains("socat")
    });
    let pid = format!("socat (pid {}", socat.pid());
    assert_refused(&pair.app, INSTALL, "listener", &["127.0.0.1:15001", &pid]);
}

#[test]
fn a_foreign_redirect_ahead_of_ours() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    // As the half-finished sidecar of another product would leave behind.
    pair.app.enter(|| {
        run("nft add table ip leftover");
        run("nft add chain ip leftover out { type nat hook output priority -160 ; }");
        run("nft add rule ip leftover out meta l4proto tcp redirect to :80");
    });
    assert_refused(
        &pair.app,
        INSTALL,
        "canary",
        &["IPv4", "refused", "nft list ruleset"],
    );
}

#[test]
fn a_saved_dry_run_that_was_loaded_is_named_and_left() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    let rules = ctl(&pair.app, "install-rules --dry-run")
        .stdout
        .replace("\tflags owner\n", "");
    let file = config(&rules);
    pair.app.enter(|| run(&format!("nft -f {file}")));
    let words = ["has no owner", "nft delete table inet outrigger_15001_g1"];
    assert_refused(&pair.app, INSTALL, "leftover", &words);
    assert_refused(&pair.app, REMOVE, "leftover", &words);
}

#[test]
fn a_removal_from_a_stopped_proxy_says_whose_the_rules_are() {
    let pair = wire();
    let mut proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    proxy.signal("STOP");
    assert_refused(
        &pair.app,
        REMOVE,
        "control",
        &["tiny_proxy (pid", "stopped"],
    );
    proxy.signal("CONT");
    proxy.kill();
    ctl(&pair.app, REMOVE).expect("nothing to remove");
}

#[test]
fn settings_that_capture_nothing() {
    let pair = wire();
    let file = config("capture: { include: { cidrs: [] } }");
    let arguments = format!("{INSTALL} --config {file}");
    assert_refused(
        &pair.app,
        &arguments,
        "settings",
        &["nothing would be captured"],
    );
}

#[test]
fn backends_and_scopes_that_are_not_there() {
    let pair = wire();
    let outcome = ctl(&pair.app, "install-rules --backend ipchains");
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("iptables-legacy"), "{outcome:?}");
    let outcome = ctl(&pair.app, "install-rules --scope uid");
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("such as `uid:1000`"), "{outcome:?}");
    assert_refused(
        &pair.app,
        &format!("{INSTALL} --scope cgroup:/not/there"),
        "scope",
        &["there is none", "mkdir"],
    );
}

/// Regression: a failed change of a capture in force must leave that capture as it was.
#[test]
fn a_refused_change_leaves_the_capture_in_force() {
    let pair = wire();
    let proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    let file = config("capture: { exclude: { ports: [23] } }");
    let arguments = format!("{INSTALL} --config {file}");
    proxy.signal("STOP");
    assert_refused(&pair.app, &arguments, "control", &["stopped"]);
    proxy.signal("CONT");
    until_captured(&pair);
}
