//! Capture end to end: real commands, a real kernel, private network namespaces.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/proxyctl.rs"]
mod proxyctl;

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use netns::{Namespace, Pair, run};
use proxyctl::{PROXY_UID, ctl, ctl_as, proxy, start, until};

const V4: &str = "10.77.0.2:8080";
const V6: &str = "[fd77::2]:8080";

/// A wire with echo servers at its far end.
fn wire() -> Pair {
    let pair = Pair::new();
    for address in [V4, V6] {
        serve_echo(&pair.peer, address);
        // The first IPv6 connection over a fresh wire may wait a second for neighbour discovery,
        // which has nothing to do with capture.
        assert!(!Client::connect(&pair.app, address).is_captured);
    }
    pair
}

/// Each connection is told its peer's address, then gets its lines back. So a client learns whether
/// it came itself or through a proxy, whose connections have other ports.
fn serve_echo(namespace: &Namespace, address: &str) {
    let listener = namespace.enter(|| TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || echo(stream));
        }
    });
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    writeln!(stream, "{}", stream.peer_addr()?)?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// A connection of the application.
struct Client {
    stream: BufReader<TcpStream>,
    is_captured: bool,
}

impl Client {
    fn connect(namespace: &Namespace, address: &str) -> Self {
        Self::try_connect(namespace, address).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    fn try_connect(namespace: &Namespace, address: &str) -> std::io::Result<Self> {
        let address: SocketAddr = address.parse().unwrap();
        let limit = Duration::from_secs(10);
        let stream = namespace.enter(|| TcpStream::connect_timeout(&address, limit))?;
        stream.set_read_timeout(Some(limit))?;
        let own = stream.local_addr()?;
        let mut stream = BufReader::new(stream);
        let mut seen = String::new();
        stream.read_line(&mut seen)?;
        let seen: SocketAddr = seen
            .trim()
            .parse()
            .map_err(|_| std::io::Error::other(format!("{seen:?} is no greeting")))?;
        Ok(Self {
            stream,
            is_captured: seen != own,
        })
    }

    fn check(&mut self) {
        self.stream.get_mut().write_all(b"still here?\n").unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).unwrap();
        assert_eq!(answer, "still here?\n");
    }
}

#[track_caller]
fn assert_captured(pair: &Pair, expected: bool) {
    for address in [V4, V6] {
        let client = Client::connect(&pair.app, address);
        assert_eq!(client.is_captured, expected, "{address}");
    }
}

static CONFIGS: AtomicU32 = AtomicU32::new(0);

/// A configuration file that ends with the test process' target directory.
fn config(text: &str) -> String {
    let number = CONFIGS.fetch_add(1, Ordering::Relaxed);
    let name = format!("capture-{}-{number}.yaml", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

const INSTALL: &str = "install-rules --json";
const REMOVE: &str = "remove-rules --json";

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

// What works.

#[test]
fn both_families_are_captured_and_direct_again_once_the_proxy_is_killed() {
    let pair = wire();
    let mut proxy = proxy(&pair.app, PROXY_UID, "");
    let installed = ctl(&pair.app, INSTALL).expect("captured");
    assert_eq!(installed.code, 0);
    assert_captured(&pair, true);
    proxy.kill();
    assert_eq!(pair.app.ruleset(), "", "a rule outlived the proxy");
    assert_captured(&pair, false);
}

#[test]
fn connections_that_live_at_install_are_not_disturbed() {
    let pair = wire();
    let mut clients: Vec<_> = [V4, V6]
        .into_iter()
        .cycle()
        .take(40)
        .map(|address| Client::connect(&pair.app, address))
        .collect();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    clients.iter_mut().for_each(Client::check);
}

#[test]
fn a_removal_lets_live_connections_flow_and_leaves_no_rule_once_they_end() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    let mut clients: Vec<_> = [V4, V6]
        .into_iter()
        .cycle()
        .take(40)
        .map(|address| Client::connect(&pair.app, address))
        .collect();
    assert!(clients.iter().all(|client| client.is_captured));
    let removed = ctl(&pair.app, REMOVE).expect("removed");
    assert_eq!(removed.code, 0);
    assert_captured(&pair, false);
    clients.iter_mut().for_each(Client::check);
    assert!(!pair.app.ruleset().contains("redirect"));
    assert!(
        pair.app.ruleset().contains("anchor"),
        "live connections lost their anchor"
    );
    drop(clients);
    until("the anchor's end", || pair.app.ruleset().is_empty());

    assert_eq!(ctl(&pair.app, REMOVE).expect("nothing to remove").code, 0);
}

#[test]
fn a_graceful_stop_ends_capture_first_and_live_connections_last() {
    let pair = wire();
    let mut proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    let mut client = Client::connect(&pair.app, V4);
    proxy.signal("TERM");
    until("the end of the redirect", || {
        !pair.app.ruleset().contains("redirect")
    });
    assert_captured(&pair, false);
    client.check();
    drop(client);
    assert!(proxy.wait().success());
    assert_eq!(pair.app.ruleset(), "");
}

/// The capture's descriptor closes before the listeners': no SYN meets a redirect to nobody. What
/// was under way ends at once.
#[test]
fn a_kill_under_load_refuses_no_connection() {
    let pair = wire();
    for round in 0..10 {
        let mut proxy = proxy(&pair.app, PROXY_UID, "");
        ctl(&pair.app, INSTALL).expect("captured");
        let done = AtomicBool::new(false);
        let dialled = AtomicU32::new(0);
        thread::scope(|scope| {
            for address in [V4, V6, V4, V6] {
                let load = || {
                    while !done.load(Ordering::Relaxed) {
                        if let Err(error) = Client::try_connect(&pair.app, address) {
                            let kind = error.kind();
                            assert_ne!(kind, ErrorKind::ConnectionRefused, "round {round}");
                            assert_ne!(kind, ErrorKind::TimedOut, "round {round}");
                            assert_ne!(kind, ErrorKind::WouldBlock, "round {round}: hung");
                        }
                        dialled.fetch_add(1, Ordering::Relaxed);
                    }
                };
                scope.spawn(load);
            }
            until("load before the kill", || {
                dialled.load(Ordering::Relaxed) > 40
            });
            proxy.kill();
            let before = dialled.load(Ordering::Relaxed);
            until("load after the kill", || {
                dialled.load(Ordering::Relaxed) > before + 40
            });
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(pair.app.ruleset(), "");
        assert_captured(&pair, false);
    }
}

#[test]
fn a_second_install_changes_nothing() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    let before = pair.app.ruleset();
    let again = ctl(&pair.app, INSTALL).expect("already captured");
    assert_eq!((again.code, &again.json["generation"]), (0, &1.into()));
    assert_eq!(pair.app.ruleset(), before);
}

#[test]
fn a_changed_configuration_replaces_the_capture_without_a_gap() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    let configs =
        [23, 24].map(|port| config(&format!("capture: {{ exclude: {{ ports: [{port}] }} }}")));
    let done = AtomicBool::new(false);
    let dialled = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut dialled = 0;
            while !done.load(Ordering::Relaxed) {
                assert_captured(&pair, true);
                dialled += 2;
            }
            dialled
        });
        for (swap, file) in (2..=20).zip(configs.iter().cycle()) {
            let installed = ctl(&pair.app, &format!("{INSTALL} --config {file}"));
            let installed = installed.expect("captured");
            assert_eq!(installed.json["generation"], swap);
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(
        dialled > 20,
        "only {dialled} connections while the rules were swapped"
    );
    let ruleset = pair.app.ruleset();
    assert_eq!(ruleset.matches("table inet").count(), 2, "{ruleset}");
    assert!(ruleset.contains("outrigger_15001_g20"), "{ruleset}");
}

#[test]
fn two_installs_at_once_make_one_capture() {
    let pair = wire();
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    let mut results = thread::scope(|scope| {
        let racing: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| ctl(&pair.app, INSTALL)))
            .collect();
        racing
            .into_iter()
            .map(|install| install.join().unwrap().text("result").to_owned())
            .collect::<Vec<_>>()
    });
    results.sort_unstable();
    let already = "already captured";
    assert_eq!(results, [already, already, already, "captured"]);
    assert_eq!(pair.app.ruleset().matches("redirect").count(), 2);
}

#[test]
fn exclusions_go_direct() {
    let pair = wire();
    serve_echo(&pair.peer, "10.77.0.2:9000");
    serve_echo(&pair.peer, "10.77.0.2:9001");
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    for (exclusion, address) in [
        ("ports: ['9000-9000']", "10.77.0.2:9000"),
        ("cidrs: ['10.77.0.2/32']", V4),
        ("cidrs: ['fd77::/64']", V6),
        ("uids: [0]", V4),
        ("gids: [0]", V6),
    ] {
        let file = config(&format!("capture: {{ exclude: {{ {exclusion} }} }}"));
        ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
        assert!(
            !Client::connect(&pair.app, address).is_captured,
            "{exclusion}"
        );
    }
    let file = config("capture: { include: { ports: [9001], cidrs: ['10.77.0.0/16'] } }");
    ctl(&pair.app, &format!("{INSTALL} --config {file}")).expect("captured");
    assert!(Client::connect(&pair.app, "10.77.0.2:9001").is_captured);
    assert!(!Client::connect(&pair.app, "10.77.0.2:9000").is_captured);
    assert!(!Client::connect(&pair.app, V6).is_captured);
}

#[test]
fn destinations_on_this_host_are_left_alone() {
    let pair = wire();
    for address in ["127.0.0.1:8081", "10.77.0.1:8081", "[::1]:8081"] {
        serve_echo(&pair.app, address);
    }
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    ctl(&pair.app, INSTALL).expect("captured");
    for address in ["127.0.0.1:8081", "10.77.0.1:8081", "[::1]:8081"] {
        assert!(
            !Client::connect(&pair.app, address).is_captured,
            "{address}"
        );
    }
}

#[test]
fn without_ipv6_on_loopback_only_ipv4_is_captured_and_said() {
    let pair = wire();
    pair.app.enter(|| {
        fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
    });
    let _proxy = proxy(&pair.app, PROXY_UID, "");
    let installed = ctl(&pair.app, INSTALL).expect("captured");
    assert_eq!(installed.json["families"], serde_json::json!(["IPv4"]));
    assert!(
        installed.json["notes"][0]
            .as_str()
            .unwrap()
            .contains("IPv6 is not captured")
    );
    assert!(Client::connect(&pair.app, V4).is_captured);
    assert!(!Client::connect(&pair.app, V6).is_captured);
}

#[test]
fn a_proxy_of_the_only_user_is_told_by_its_mark() {
    let file = config("capture: { proxy_mark: 7 }");
    let script = format!(
        "ip link set lo up
        {tiny} --mark 7 > {file}.out & proxy=$!
        until grep -q ready {file}.out; do sleep 0.01; done
        {ctl} install-rules --json; echo
        {ctl} install-rules --json --config {file}; echo
        nft list ruleset
        kill -9 $proxy; wait $proxy
        nft list ruleset | grep -c redirect",
        tiny = proxyctl::tiny_proxy().display(),
        ctl = proxyctl::proxyctl().display(),
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines[0].contains("proxy_mark"), "{text}");
    assert!(lines[1].contains("\"captured\""), "{text}");
    assert!(text.contains("meta mark 0x00000007 return"), "{text}");
    assert!(!text.contains("skuid"), "{text}");
    assert_eq!(*lines.last().unwrap(), "0", "{text}");
}

#[test]
fn a_dry_run_needs_no_privilege_and_no_proxy_and_changes_nothing() {
    let pair = wire();
    let outcome = ctl_as(&pair.app, 1000, "install-rules --dry-run");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("redirect to :15001"), "{outcome:?}");
    assert_eq!(pair.app.ruleset(), "");
}

// What is refused, each with the rules as they were.

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
fn a_foreign_server_on_the_port() {
    let pair = wire();
    let prefix =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nginx-{}", std::process::id()));
    fs::create_dir_all(&prefix).unwrap();
    let conf = format!(
        "daemon off; master_process off; user root; pid {0}/pid; error_log {0}/log; events {{}} http {{ access_log off; server {{ listen 127.0.0.1:15001; }} }}",
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
    for arguments in [
        "--backend iptables",
        "--backend auto",
        "--scope cgroup:/x",
        "--scope uid",
    ] {
        let outcome = ctl(&pair.app, &format!("install-rules {arguments}"));
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(
            outcome.stderr.contains("not in this version"),
            "{outcome:?}"
        );
    }
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
    assert_captured(&pair, true);
}
