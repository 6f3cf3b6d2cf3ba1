use std::{
    io::Write,
    process::{Command, Stdio},
};

use outrigger_config::parse;

use super::{build::EXCLUDED_PORTS, *};
use crate::nft::{self, NetlinkSocket};

fn host() -> Host {
    Host {
        ipv6_on_loopback: true,
        can_shorten_timeouts: true,
        can_outlive_owner: true,
        ..Host::default()
    }
}

fn plan(settings: &str) -> Plan {
    Plan::new(&parse(settings).unwrap(), &host(), 1).unwrap()
}

fn rules(plan: &Plan) -> Vec<String> {
    let chain = plan.capture.chains.iter().find(|c| c.name == "capture");
    let rules = &chain.unwrap().rules;
    rules.iter().map(ToString::to_string).collect()
}

const EVERYTHING: &str = r#"
capture:
  proxy_uid: 1337
  proxy_mark: 1337
  include:
    cidrs: ["0.0.0.0/1", "10.0.0.0/9", "2001:db8::/32", "2001:db9::/32", "2002::1/128"]
    ports: [80, 443, 8000-8100]
  exclude:
    cidrs: ["10.9.0.0/16", "10.9.1.0/24", "192.0.2.7/32", "192.0.2.8/32", "0.0.0.0/8", "255.255.255.255/32", "fd00::/8", "ffff::/16"]
    ports: [22, 8001-8003]
    uids: [33, 0, 33]
    gids: [1000]
  fail_closed: ["1.0.0.0/24", "2001:db8:1::/48"]
"#;

#[test]
fn the_defaults_capture_both_families_and_leave_local_and_proxy_traffic_alone() {
    assert_eq!(
        rules(&plan("")),
        [
            "meta skuid 1337 return",
            "oif \"lo\" return",
            "fib daddr type local return",
            "ip saddr . tcp sport @bound_to_device return",
            "ip6 saddr . tcp sport @bound_to_device_v6 return",
            "ip6 daddr fe80::/10 return",
            "tcp dport @excluded_ports return",
            "meta nfproto ipv4 meta l4proto tcp redirect to :15001",
            "meta nfproto ipv6 meta l4proto tcp add @bound_to_device_v6 { ip6 saddr . tcp sport timeout 5000ms }",
            "meta nfproto ipv6 meta l4proto tcp redirect to :15001",
        ]
    );
}

#[test]
fn the_entry_takes_pure_syns_only_at_a_priority_before_other_nat() {
    let table = plan("").capture.to_string();
    assert!(
        table.contains("type nat hook output priority -150"),
        "{table}"
    );
    assert!(
        table.contains(
            "tcp flags & (fin | syn | rst | ack) == syn meta nfproto @leases jump capture"
        ),
        "{table}"
    );
}

#[test]
fn a_beat_renews_the_lease_of_its_family_and_its_generation_only() {
    let marked = parse("listen: ['127.0.0.1:7']\ncapture: { proxy_mark: 9, lease: 1m }").unwrap();
    let one_uid = Host {
        only_uid: Some(0),
        ..host()
    };
    let plan = Plan::new(&marked, &one_uid, 0x2a).unwrap();
    let beat = "meta mark 0x00000009 oif \"lo\" ip daddr 127.0.0.1 udp dport 7 @th,64,64 0x2a \
                update @leases { meta nfproto timeout 60000ms } drop";
    let table = plan.capture.to_string();
    assert!(table.contains(beat), "{table}");
    assert!(table.contains("hook output priority -310"), "{table}");
    assert!(!table.contains("ip6"), "{table}");
    assert_eq!(plan.lease.beats, ["127.0.0.1:7".parse().unwrap()]);
}

/// A lease that has run out must not bar the way to the proof that brings it back.
#[test]
fn the_proxys_probe_is_redirected_without_a_lease() {
    let table = plan("").capture.to_string();
    for daddr in ["ip daddr 127.192.0.3", "ip6 daddr ::1"] {
        let probe = format!("== syn meta skuid 1337 {daddr} tcp dport 47769 redirect to :15001");
        assert!(table.contains(&probe), "{table}");
    }
}

#[test]
fn without_ipv6_on_loopback_only_v4_is_captured_and_the_plan_says_so() {
    let host = Host {
        ipv6_on_loopback: false,
        ..host()
    };
    let plan = Plan::new(&Settings::default(), &host, 1).unwrap();
    assert_eq!(plan.families, [Family::V4]);
    assert!(plan.notes[0].contains("no ::1"), "{:?}", plan.notes);
    assert!(!plan.capture.to_string().contains("ip6"));
}

#[test]
fn a_shared_uid_is_excluded_by_mark_alone_or_not_at_all() {
    let one_uid = Host {
        only_uid: Some(0),
        ..host()
    };
    let refused = Plan::new(&Settings::default(), &one_uid, 1).unwrap_err();
    assert!(matches!(refused, Refusal::OnlyOneUid { uid: 0 }));
    let marked = parse("capture: { proxy_mark: 7 }").unwrap();
    let plan = Plan::new(&marked, &one_uid, 1).unwrap();
    assert_eq!(rules(&plan)[0], "meta mark 0x00000007 return");
    assert_eq!(plan.proxy.uid, 0);

    let proxy_is_root = parse("capture: { proxy_uid: 0 }").unwrap();
    let refused = Plan::new(&proxy_is_root, &host(), 1).unwrap_err();
    assert!(matches!(refused, Refusal::InstallerIsProxy { uid: 0 }));
}

#[test]
fn settings_that_capture_nothing_are_refused() {
    for settings in [
        "capture: { include: { cidrs: [] } }",
        "capture: { include: { ports: [] } }",
        "listen: ['127.0.0.1:1']\ncapture: { include: { cidrs: ['::/0'] } }",
    ] {
        let refused = Plan::new(&parse(settings).unwrap(), &host(), 1).unwrap_err();
        assert!(
            matches!(refused, Refusal::NothingToCapture { .. }),
            "{settings}"
        );
    }
}

#[test]
fn the_fingerprint_follows_the_rules_and_not_the_generation() {
    let settings = Settings::default();
    let first = Plan::new(&settings, &host(), 1).unwrap();
    let second = Plan::new(&settings, &host(), 2).unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    let changed = plan("capture: { exclude: { ports: [23] } }");
    assert_ne!(first.fingerprint(), changed.fingerprint());
}

/// What an old or a small kernel lacks, and whether that is refused or told.
#[test]
fn what_a_kernel_lacks_is_refused_or_noted_with_its_name() {
    let with = |settings: &str, change: fn(&mut Host)| {
        let mut host = host();
        change(&mut host);
        Plan::new(&parse(settings).unwrap(), &host, 1)
    };
    let closed = "capture: { fail_closed: ['192.0.2.0/24'] }";
    let refused = with(closed, |host| host.can_outlive_owner = false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "capture.fail_closed cannot be kept: tables that outlive their owner need Linux 6.9 or newer"
    );
    // It is nobody else's business.
    with("", |host| host.can_outlive_owner = false).unwrap();

    let plan = with("", |host| host.can_shorten_timeouts = false).unwrap();
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("nf_conntrack_timeout"))
    );
    assert_eq!(plan.anchor.timeout, None);
    assert!(
        !plan.anchor.to_string().contains("ct timeout"),
        "{}",
        plan.anchor
    );

    let plan = with("", |host| host.ipv6_on_loopback = false).unwrap();
    assert_eq!(plan.families, [Family::V4]);
    assert!(plan.notes.iter().any(|note| note.contains("no ::1")));
    let only_v6 = "listen: ['[::1]:15001']";
    let refused = with(only_v6, |host| host.ipv6_on_loopback = false).unwrap_err();
    assert!(
        refused.to_string().contains("nothing would be captured"),
        "{refused}"
    );

    let uncounted = with("", |_| {}).unwrap().without_counting();
    assert!(!uncounted.capture.to_string().contains("log prefix"));
    assert!(!uncounted.companion().to_string().contains("log prefix"));
}

/// Its short memory is for the scope's connections; proxies wait for slow servers as long as ever.
#[test]
fn the_anchor_keeps_to_the_scope_and_leaves_proxies_alone() {
    let host = Host {
        neighbours: vec![Neighbour {
            port: 15002,
            uid: 1338,
            mark: None,
        }],
        ..host()
    };
    let settings = parse("capture: { scope: 'uid:1000' }").unwrap();
    let anchor = Plan::new(&settings, &host, 1).unwrap().anchor;
    let rules: Vec<_> = anchor.chains[0]
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        rules[..2],
        ["meta skuid 1337 return", "meta skuid 1338 return"]
    );
    assert!(rules[2].contains("meta skuid @scope_uids"), "{rules:?}");
    assert!(anchor.sets.iter().any(|set| set.name == "scope_uids"));
}

#[test]
fn a_table_name_tells_port_and_generation() {
    assert_eq!(generation_of("outrigger_15001_g3", 15001), Some(3));
    assert_eq!(generation_of("outrigger_15001_anchor_g4", 15001), Some(4));
    assert_eq!(generation_of("outrigger_15001_bypass_g5", 15001), Some(5));
    assert_eq!(generation_of("outrigger_15001_g3", 1500), None);
    assert_eq!(generation_of("outrigger_15001_canary", 15001), None);
    assert!(!is_ours("outrigger_150010_g1", 15001));
}

#[test]
fn the_nft_program_accepts_the_dry_run() {
    for settings in ["", EVERYTHING] {
        // `nft` has known this flag since 1.1.
        let text = plan(settings).to_string().replace("owner,persist", "owner");
        nft_in_namespace(&["-c", "-f", "-"], &text);
    }
    let targets = [
        "127.192.0.2:4000".parse().unwrap(),
        "[::1]:4000".parse().unwrap(),
    ];
    nft_in_namespace(&["-c", "-f", "-"], &plan("").canary(&targets).to_string());
}

/// What is installed over netlink and what the dry run's text loads list alike.
#[test]
fn netlink_and_the_dry_run_load_the_same() {
    let targets = [
        "127.192.0.2:4000".parse().unwrap(),
        "[::1]:4000".parse().unwrap(),
    ];
    let everything = plan(EVERYTHING);
    let closed = everything.closed.clone().unwrap();
    // As many networks as `nft` can send at once where it may not enlarge its socket's buffer.
    for table in [
        &plan("").capture,
        &everything.capture,
        &everything.anchor,
        &closed,
        &everything.companion(),
        &everything.canary(&targets),
        &with_networks(1500),
    ] {
        // `nft` would give up a table of its own at its end, so the text goes without the flag.
        let text = table.to_string();
        let text = text
            .replace("\tflags owner\n", "")
            .replace("\tflags owner,persist\n", "");
        let loaded = nft_in_namespace(&["-f", "-"], &text);
        let installed = in_namespace(|| {
            let mut socket = NetlinkSocket::open().unwrap();
            nft::create(&mut socket, table).unwrap();
            nft::widen(&mut socket, table).unwrap();
            assert_eq!(nft::verify(&mut socket, table).unwrap(), None);
            list()
        });
        let installed = installed.replace("flags owner,0x4", "flags owner");
        assert_eq!(comparable(&installed), comparable(&loaded));
        assert!(loaded.contains("chain"), "nothing was loaded: {loaded}");
    }
}

#[test]
fn thousands_of_networks_load() {
    let table = with_networks(10_000);
    in_namespace(|| {
        let mut socket = NetlinkSocket::open().unwrap();
        nft::create(&mut socket, &table).unwrap();
        nft::widen(&mut socket, &table).unwrap();
        assert_eq!(nft::verify(&mut socket, &table).unwrap(), None);
    });
}

#[test]
fn a_read_back_sees_a_missing_rule_a_changed_set_and_a_missing_table() {
    let whole = plan(EVERYTHING).capture;
    let mut fewer_rules = whole.clone();
    fewer_rules.chains[2].rules.remove(2);
    let mut other_set = whole.clone();
    other_set.sets.retain(|set| set.name != EXCLUDED_PORTS);
    other_set.sets.push(Set {
        name: EXCLUDED_PORTS,
        elements: Elements::Ports(Intervals::new(16, [(22, 22)])),
    });
    for loaded in [fewer_rules, other_set] {
        let difference = in_namespace(|| {
            let mut socket = NetlinkSocket::open().unwrap();
            nft::create(&mut socket, &loaded).unwrap();
            nft::widen(&mut socket, &loaded).unwrap();
            nft::verify(&mut socket, &whole).unwrap()
        });
        assert!(difference.is_some());
    }
    let missing = in_namespace(|| nft::verify(&mut NetlinkSocket::open().unwrap(), &whole));
    assert!(missing.unwrap().is_some());
}

#[test]
fn a_table_ends_with_its_socket_and_cannot_be_made_twice() {
    in_namespace(|| {
        let table = plan("").capture;
        let mut socket = NetlinkSocket::open().unwrap();
        nft::create(&mut socket, &table).unwrap();
        let mut other = NetlinkSocket::open().unwrap();
        let error = nft::create(&mut other, &table).unwrap_err();
        assert_eq!(error.cause.raw_os_error(), Some(libc::EPERM), "{error}");
        // Regression: the owner's refusal was taken for a lack of privilege.
        assert!(!error.is_lack_of_privilege());
        assert!(error.advice().contains("owns"), "{}", error.advice());
        let listed = nft::tables(&mut other).unwrap();
        assert_eq!(listed[0].name, table.name);
        assert!(listed[0].owner.is_some());
        drop(socket);
        assert!(nft::tables(&mut other).unwrap().is_empty());
    });
}

#[test]
fn an_error_names_the_step_that_failed() {
    in_namespace(|| {
        let mut table = plan("").capture;
        table.chains[2].rules[0] = Rule::new([Match::SocketUidIn("no_such_set")], Verdict::Return);
        let mut socket = NetlinkSocket::open().unwrap();
        nft::create(&mut socket, &table).unwrap();
        let error = nft::widen(&mut socket, &table).unwrap_err();
        assert!(error.doing.contains("@no_such_set"), "{error}");
        // The transaction failed as a whole.
        assert!(!list().contains("chain"), "{}", list());
    });
}

/// Without what ownership adds to a listing: the flag, and the owner's name behind the brace.
fn comparable(listing: &str) -> Vec<&str> {
    listing
        .lines()
        .map(|line| line.split(" # progname").next().unwrap_or(line))
        .filter(|line| !line.trim().is_empty() && line.trim() != "flags owner")
        .collect()
}

fn with_networks(count: u32) -> Table {
    let nets: Vec<_> = (0..count)
        .map(|n| format!("{}/24", std::net::Ipv4Addr::from(0x0a00_0000 + n * 512)))
        .collect();
    let settings = format!("capture: {{ exclude: {{ cidrs: [{}] }} }}", nets.join(", "));
    plan(&settings).capture
}

/// Runs `work` on a thread of its own in a new network namespace.
fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                crate::sys::enter_new_network_namespace()
                    .expect("this test needs root: a network namespace of its own");
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn nft_in_namespace(arguments: &[&str], input: &str) -> String {
    in_namespace(|| {
        nft(arguments, input);
        list()
    })
}

fn list() -> String {
    nft(&["list", "ruleset"], "")
}

fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs the `nft` program: apt-get install nftables");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "nft {arguments:?}: {errors}\n{input}"
    );
    String::from_utf8(output.stdout).unwrap()
}
