//! Installs that meet another: at the same time, of another version, of a proxy that is ending.

use std::io::{BufRead, BufReader, Write};
use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::AsFd,
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixStream},
};

use outrigger_config::control::{Request, Tether, TetherKind, socket_name};
use outrigger_iptables::{
    nft::{self, NetlinkSocket},
    plan::{Chain, Hook, HookKind, Match, Place, Rule, Table, Verdict},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{
    INSTALL, REMOVE, config,
    netns::{Pair, run},
    proxyctl::{ctl, serve, until},
    wire::{Client, V4, assert_captured, wire},
};

/// They take turns; whoever comes last has its way.
#[test]
fn two_different_installs_at_once_end_as_one_of_them() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    let changed = config("capture: { exclude: { ports: [23] } }");
    let arguments = [
        format!("{INSTALL} --backend nft"),
        format!("{INSTALL} --backend iptables-nft --config {changed}"),
    ];
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let installs = arguments
                .each_ref()
                .map(|arguments| scope.spawn(|| ctl(&pair.app, arguments)));
            for install in installs {
                install
                    .join()
                    .unwrap()
                    .expect_one_of(&["captured", "already captured"]);
            }
        });
        let in_iptables = pair
            .app
            .enter(|| run("iptables-nft-save -t nat"))
            .contains(":OUTRIGGER_15001 ");
        let in_nft = pair.app.ruleset().contains("table inet outrigger_15001_g");
        assert!(
            in_iptables != in_nft,
            "iptables {in_iptables}, nft {in_nft}"
        );
        assert_captured(&pair, true);
    }
    ctl(&pair.app, REMOVE).expect("removed");
    assert_captured(&pair, false);
}

/// What the version before leases loaded and the proxy holds: one chain, one rule, no anchor.
#[test]
fn an_install_replaces_the_table_of_another_version() {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    pair.app.enter(|| hold_old_table("outrigger_15001_g4"));
    let mut live = Client::connect(&pair.app, V4);
    assert!(live.is_captured);
    let installed = ctl(&pair.app, INSTALL).expect("captured");
    assert_eq!(installed.json["generation"], 5);
    assert!(!pair.app.ruleset().contains("outrigger_15001_g4"));
    assert_captured(&pair, true);
    live.check();
    ctl(&pair.app, REMOVE).expect("removed");
    assert_captured(&pair, false);
    live.check();
}

fn hold_old_table(name: &str) {
    let rule = |matches: Vec<Match>, verdict| Rule { matches, verdict };
    let table = Table {
        name: name.into(),
        comment: "of another version".into(),
        outlives_owner: false,
        timeout: None,
        sets: Vec::new(),
        chains: vec![Chain {
            name: "everything",
            hook: Some(Hook {
                kind: HookKind::Nat,
                place: Place::Output,
                priority: -150,
            }),
            rules: vec![
                rule(vec![Match::SocketUid(1337)], Verdict::Return),
                rule(vec![Match::OutLoopback], Verdict::Return),
                rule(vec![Match::PureSyn, Match::Tcp], Verdict::RedirectTo(15001)),
            ],
        }],
    };
    let mut owner = NetlinkSocket::open().unwrap();
    nft::create(&mut owner, &table).unwrap();
    nft::widen(&mut owner, &table).unwrap();
    let address = SocketAddr::from_abstract_name(socket_name(15001)).unwrap();
    let mut control = UnixStream::connect_addr(&address).unwrap();
    let hold = Request::Hold {
        table: Tether {
            kind: TetherKind::Capture,
            table: name.into(),
            generation: 4,
            fingerprint: "of another version".into(),
            lease: None,
            outlives: false,
            scope: Default::default(),
            cgroup_id: None,
        },
    };
    let line = |request: &Request| serde_json::to_string(request).unwrap() + "\n";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [owner.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let text = line(&hold);
    sendmsg(
        &control,
        &[IoSlice::new(text.as_bytes())],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
    let mut answers = BufReader::new(control.try_clone().unwrap());
    let mut done = || {
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "\"done\"\n");
    };
    done();
    control
        .write_all(line(&Request::Captured { generation: 4 }).as_bytes())
        .unwrap();
    done();
}

/// Without a lease in it, and left by a proxy that is gone.
#[test]
fn an_install_replaces_the_iptables_chain_of_another_version() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        let pair = wire();
        pair.app.enter(|| {
            for rule in [
                "-N OUTRIGGER_15001",
                "-A OUTRIGGER_15001 -m owner --uid-owner 1337 -j RETURN",
                "-A OUTRIGGER_15001 -o lo -j RETURN",
                "-A OUTRIGGER_15001 -p tcp -j REDIRECT --to-ports 15001",
                "-I OUTPUT 1 -p tcp --syn -j OUTRIGGER_15001",
            ] {
                run(&format!("{variant} -t nat {rule}"));
            }
        });
        let _proxy = serve(&pair.app, "--workers 2");
        ctl(&pair.app, &format!("{INSTALL} --backend {variant}")).expect("captured");
        let rules = pair.app.enter(|| run(&format!("{variant}-save -t nat")));
        assert_eq!(rules.matches("-j OUTRIGGER_15001").count(), 1, "{rules}");
        assert!(rules.contains("--name outrigger_15001_4"), "{rules}");
        assert_captured(&pair, true);
        ctl(&pair.app, REMOVE).expect("removed");
        let rules = pair.app.enter(|| run(&format!("{variant}-save -t nat")));
        assert!(!rules.contains("OUTRIGGER"), "{rules}");
        assert_captured(&pair, false);
    }
}

#[test]
fn an_install_while_the_proxy_drains_is_refused_and_changes_nothing() {
    for backend in ["nft", "iptables-nft"] {
        let pair: Pair = wire();
        let mut proxy = serve(&pair.app, "--workers 2");
        let install = format!("{INSTALL} --backend {backend}");
        ctl(&pair.app, INSTALL).expect("captured");
        let mut live = Client::connect(&pair.app, V4);
        proxy.signal("TERM");
        until("the end of the redirect", || {
            !pair.app.ruleset().contains("redirect")
        });
        let before = pair.app.ruleset();
        let refused = ctl(&pair.app, &install).expect("refused");
        assert!(
            refused.text("message").contains("shutting down"),
            "{refused:?}"
        );
        assert_eq!(pair.app.ruleset(), before);
        assert_captured(&pair, false);
        live.check();
        drop(live);
        assert!(proxy.wait().success());
    }
}
