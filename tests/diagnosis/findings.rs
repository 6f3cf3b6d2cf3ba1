//! Each kind of finding, staged with the real tools, and its fix where one heals.

use std::{fs, path::PathBuf, process::Stdio};

use serde_json::Value;

use crate::{
    incident::{SERVICE, call, iptables, nginx},
    netns::{Namespace, Pair, run},
    proxyctl::{Running, as_user, ctl, serve, start, until},
};

const PORT: u16 = 12345;
const REDSOCKS_UID: u32 = 1337;

#[test]
fn what_a_gone_proxy_left_is_orphaned_and_the_fix_ends_it() {
    let pair = Pair::new();
    inside(&pair.app, &REDSOCKS);
    let found = examine(&pair.app, "");
    let finding = find(&found, "orphaned_proxy");
    assert_eq!(finding["level"], "error", "{found}");
    assert!(finding["what"].to_string().contains("redsocks"), "{found}");
    pair.app.enter(|| run(finding["fix"].as_str().unwrap()));
    assert!(kinds(&examine(&pair.app, "")).is_empty());
}

#[test]
fn a_known_proxy_that_lets_its_own_go_is_fine() {
    let pair = Pair::new();
    let _proxy = redsocks(&pair.app);
    inside(&pair.app, &REDSOCKS);
    let found = examine(&pair.app, "");
    assert_eq!(kinds(&found), ["known_proxy"], "{found}");
}

#[test]
fn a_proxy_whose_own_connections_are_caught_loops() {
    let pair = Pair::new();
    let _proxy = redsocks(&pair.app);
    inside(
        &pair.app,
        &[
            "iptables-legacy -t nat -A OUTPUT -d 10.77.0.0/24 -p tcp --dport 80 -j REDIRECT --to-ports 12345",
        ],
    );
    let found = examine(&pair.app, "");
    let finding = find(&found, "loop");
    assert_eq!(finding["level"], "error", "{found}");
    pair.app.enter(|| run(finding["fix"].as_str().unwrap()));
    assert!(kinds(&examine(&pair.app, "")).is_empty());
}

#[test]
fn a_loop_that_a_mark_may_prevent_is_a_warning() {
    let pair = Pair::new();
    let _proxy = redsocks(&pair.app);
    inside(
        &pair.app,
        &[
            "iptables-legacy -t nat -A OUTPUT -m mark --mark 0x2a -j RETURN",
            "iptables-legacy -t nat -A OUTPUT -d 10.77.0.0/24 -p tcp --dport 80 -j REDIRECT --to-ports 12345",
        ],
    );
    let found = examine(&pair.app, "");
    let finding = find(&found, "loop");
    assert_eq!(finding["level"], "warning", "{found}");
    assert!(finding["what"].to_string().contains("0x2a"), "{found}");
}

#[test]
fn a_redirect_behind_a_rule_that_takes_all_is_shadowed() {
    for tool in ["iptables-legacy", "iptables-nft"] {
        let pair = Pair::new();
        let rules = [
            "-d 10.0.0.0/8 -p tcp -j RETURN",
            "-d 10.77.0.0/24 -p tcp --dport 80 -j REDIRECT --to-ports 15009",
        ];
        for rule in rules {
            pair.app
                .enter(|| run(&format!("{tool} -t nat -A OUTPUT {rule}")));
        }
        let found = examine(&pair.app, "");
        let finding = find(&found, "shadowed");
        pair.app.enter(|| run(finding["fix"].as_str().unwrap()));
        assert!(kinds(&examine(&pair.app, "")).is_empty(), "{tool}");
    }
    let pair = Pair::new();
    inside(
        &pair.app,
        &[
            "nft add table ip t",
            "nft add chain ip t out { type nat hook output priority -100 ; }",
            "nft add rule ip t out tcp dport 80 accept",
            "nft add rule ip t out tcp dport 80 ip daddr 10.77.0.2 redirect to :15009",
        ],
    );
    let found = examine(&pair.app, "");
    pair.app
        .enter(|| run(find(&found, "shadowed")["fix"].as_str().unwrap()));
    assert!(kinds(&examine(&pair.app, "")).is_empty());
}

#[test]
fn a_proxy_that_gets_one_family_only_is_told() {
    let pair = Pair::new();
    let _proxy = redsocks(&pair.app);
    inside(&pair.app, &REDSOCKS);
    pair.app
        .enter(|| run("ip -6 route add default via fd77::2"));
    let found = examine(&pair.app, "");
    assert_eq!(
        find(&found, "ipv6_not_captured")["level"],
        "warning",
        "{found}"
    );
    inside(
        &pair.app,
        &[
            "ip6tables-legacy -t nat -A OUTPUT -p tcp -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 12345",
        ],
    );
    let found = examine(&pair.app, "");
    assert!(
        !kinds(&found).contains(&"ipv6_not_captured".into()),
        "{found}"
    );
}

#[test]
fn a_program_that_runs_as_the_proxys_user_is_named() {
    let pair = Pair::new();
    let _proxy = redsocks(&pair.app);
    inside(&pair.app, &REDSOCKS);
    let mut command = as_user(REDSOCKS_UID, "/bin/sleep".as_ref());
    command.arg("60");
    let other = start(&pair.app, command);
    // It becomes that user shortly after its start.
    let pid = format!("(pid {}", other.pid());
    until("the clash", || {
        examine(&pair.app, "").to_string().contains(&pid)
    });
    let found = examine(&pair.app, "");
    assert_eq!(find(&found, "uid_clash")["level"], "warning", "{found}");
}

#[test]
fn rules_in_both_backends_of_iptables_are_told() {
    let pair = Pair::new();
    inside(
        &pair.app,
        &[
            "iptables-legacy -t filter -A OUTPUT -p tcp -j ACCEPT",
            "iptables-nft -t filter -A OUTPUT -p tcp -j ACCEPT",
        ],
    );
    let found = examine(&pair.app, "");
    assert_eq!(find(&found, "both_iptables_backends")["level"], "warning");
}

#[test]
fn a_redirect_whose_ports_come_from_a_map_is_followed_to_each() {
    let pair = Pair::new();
    let _proxy = redsocks(&pair.app);
    inside(
        &pair.app,
        &[
            "nft add table ip t",
            "nft add chain ip t out { type nat hook output priority -100 ; }",
            "nft add map ip t to { type inet_service : inet_service ; }",
            "nft add element ip t to { 80 : 12345, 443 : 15009 }",
            "nft add rule ip t out meta skuid != 1337 meta l4proto tcp redirect to :tcp dport map @to",
        ],
    );
    let found = examine(&pair.app, "");
    assert_eq!(kinds(&found), ["nobody_listens", "known_proxy"], "{found}");
    assert!(
        find(&found, "nobody_listens")["what"]
            .to_string()
            .contains("15009")
    );
}

#[test]
fn our_own_redirect_is_healthy_or_inert_as_the_proxy_says() {
    let pair = Pair::new();
    let proxy = serve(&pair.app, "");
    ctl(&pair.app, "install-rules --json").expect("captured");
    let found = examine(&pair.app, "");
    assert_eq!(kinds(&found), ["own_redirect"], "{found}");
    // Not the rule of the proxy's own probes.
    let rule = find(&found, "own_redirect")["evidence"][0].to_string();
    assert!(rule.contains("rule: meta nfproto ipv"), "{found}");
    proxy.signal("STOP");
    let found = examine(&pair.app, "");
    assert_eq!(kinds(&found), ["own_inert"], "{found}");
    proxy.signal("CONT");
}

#[test]
fn a_trial_proves_that_the_listener_is_no_proxy_and_only_on_demand() {
    let pair = Pair::new();
    pair.app.enter(|| run("ip route add default via 10.77.0.2"));
    let _stranger = nginx(&pair.app, "probe", "127.0.0.1:80", "return 404");
    inside(&pair.app, &iptables("iptables-legacy"));
    let said = |options: &str| {
        let found = examine(&pair.app, options);
        find(&found, "listener_is_no_proxy")["evidence"].to_string()
    };
    assert!(said("").contains("not by a trial"));
    assert!(
        said("--probe").contains("the same answer"),
        "{}",
        said("--probe")
    );
}

#[test]
fn every_namespace_that_a_process_lives_in_is_looked_at() {
    let pair = Pair::new();
    pair.app.enter(|| run("ip route add default via 10.77.0.2"));
    pair.peer
        .enter(|| run(&format!("ip addr add {SERVICE}/32 dev wire0")));
    let _service = nginx(
        &pair.peer,
        "all-service",
        &format!("{SERVICE}:80"),
        "return 200 ok",
    );
    let stranger = nginx(&pair.app, "all", "127.0.0.1:80", "return 404");
    inside(&pair.app, &iptables("iptables-nft"));
    assert_eq!(call(&pair.app), "404");
    let found = ctl(&pair.peer, "doctor --all-netns --json");
    assert_eq!(found.code, 1, "{found:?}");
    let pid = format!("nginx (pid {}", stranger.pid());
    let all = found.json["namespaces"].as_array().unwrap();
    let mut findings = all.iter().flat_map(|n| n["findings"].as_array().unwrap());
    let finding = findings.find(|f| f["what"].to_string().contains(&pid));
    let fix = finding.unwrap_or_else(|| panic!("{found:?}"))["fix"]
        .as_str()
        .unwrap();
    // The command leads into the namespace by itself.
    run(fix);
    assert_eq!(call(&pair.app), "200");
}

const REDSOCKS: [&str; 4] = [
    "iptables-legacy -t nat -N REDSOCKS",
    "iptables-legacy -t nat -A OUTPUT -p tcp -j REDSOCKS",
    "iptables-legacy -t nat -A REDSOCKS -m owner --uid-owner 1337 -j RETURN",
    "iptables-legacy -t nat -A REDSOCKS -d 10.77.0.0/24 -p tcp -j REDIRECT --to-ports 12345",
];

/// A listener whose program has the name of a transparent proxy.
fn redsocks(namespace: &Namespace) -> Running {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "redsocks-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::create_dir_all(&dir).unwrap();
    let program = dir.join("redsocks");
    let socat = ["/usr/bin/socat", "/bin/socat"];
    let socat = socat.into_iter().find(|path| fs::exists(path).unwrap());
    fs::copy(
        socat.expect("these tests need the program `socat`"),
        &program,
    )
    .unwrap();
    let mut command = as_user(REDSOCKS_UID, &program);
    command
        .args([
            &format!("TCP-LISTEN:{PORT},fork,reuseaddr"),
            "EXEC:/bin/cat",
        ])
        .stderr(Stdio::null());
    let running = start(namespace, command);
    until("the proxy", || {
        namespace.enter(|| std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok())
    });
    running
}

fn inside(namespace: &Namespace, commands: &[impl AsRef<str> + Sync]) {
    namespace.enter(|| commands.iter().for_each(|line| drop(run(line.as_ref()))));
}

#[track_caller]
fn examine(namespace: &Namespace, options: &str) -> Value {
    let found = ctl(namespace, &format!("doctor --json {options}"));
    assert!(found.json["findings"].is_array(), "{found:?}");
    found.json
}

#[track_caller]
fn find<'v>(found: &'v Value, kind: &str) -> &'v Value {
    let findings = found["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["kind"] == kind);
    finding.unwrap_or_else(|| panic!("no finding of kind {kind}: {found}"))
}

/// Without what the machine that runs the tests has of its own.
fn kinds(found: &Value) -> Vec<String> {
    let findings = found["findings"].as_array().unwrap().iter();
    let all = findings.map(|finding| finding["kind"].as_str().unwrap().to_owned());
    all.filter(|kind| {
        !["names_cached", "modules_missing", "conntrack_full"].contains(&kind.as_str())
    })
    .collect()
}
