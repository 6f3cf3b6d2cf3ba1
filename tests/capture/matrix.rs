//! Every family, backend and kind of scope: what is inside is captured, what is outside or bound to a device
//! is not, and `remove-rules` ends it.

use std::thread;

use crate::{
    INSTALL, REMOVE,
    bound::goes_direct,
    config,
    proxyctl::{ctl, serve},
    scoped::{App, Scratch},
    wire::{V4, V6, wire},
};

const FAMILIES: [(&str, &str); 2] = [(V4, "0.0.0.0/0"), (V6, "::/0")];
const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];
const SCOPES: [&str; 4] = ["netns", "cgroup", "uid", "gid"];

const INSIDE: u32 = 4242;
const OUTSIDE: u32 = 4343;

#[test]
fn each_backend_captures_the_scope_in_each_family_and_nothing_else() {
    // The backends share nothing, and each has a namespace of its own.
    thread::scope(|tests| {
        for backend in BACKENDS {
            tests.spawn(move || SCOPES.iter().for_each(|scope| check(backend, scope)));
        }
    });
}

fn check(backend: &str, scope: &str) {
    let pair = wire();
    let _proxy = serve(&pair.app, "--workers 2");
    let (cgroup, other) = (Scratch::new(), Scratch::new());
    let below = cgroup.0.create_child("below").unwrap();
    let (scope, inside, outside) = match scope {
        "netns" => (
            "netns".into(),
            vec![App::User(INSIDE), App::Within(&below)],
            vec![],
        ),
        "cgroup" => (
            cgroup.scope(),
            vec![App::Within(&cgroup.0), App::Within(&below)],
            vec![App::User(INSIDE), App::Within(&other.0)],
        ),
        "uid" => (
            format!("uid:0,{INSIDE}"),
            vec![App::User(INSIDE), App::Group(INSIDE), App::Within(&other.0)],
            vec![App::User(OUTSIDE)],
        ),
        _ => (
            format!("gid:{INSIDE}"),
            vec![App::Group(INSIDE)],
            vec![App::Group(OUTSIDE), App::User(INSIDE)],
        ),
    };
    for (address, network) in FAMILIES {
        let cell = format!("{backend} {scope} {address}");
        let file = config(&format!(
            "capture: {{ include: {{ cidrs: ['{network}'] }} }}"
        ));
        let install = format!("{INSTALL} --config {file} --backend {backend} --scope {scope}");
        if backend == "iptables-legacy" && scope.starts_with("cgroup") {
            // It would bar every change of the table once the cgroup is gone.
            let refused = ctl(&pair.app, &install).expect("refused");
            assert_eq!(
                (refused.code, refused.text("check")),
                (1, "backend"),
                "{cell}"
            );
            assert!(
                refused
                    .text("message")
                    .contains("once a cgroup in it is gone")
            );
            continue;
        }
        let installed = ctl(&pair.app, &install).expect("captured");
        assert_eq!(installed.text("scope"), scope, "{cell}");
        for app in &inside {
            assert!(app.is_captured(&pair.app, address), "{cell}: inside");
            let other_family = if address == V4 { V6 } else { V4 };
            assert!(
                !app.is_captured(&pair.app, other_family),
                "{cell}: other family"
            );
        }
        // The test's own user is in the scope.
        if scope == "netns" || scope.starts_with("uid") {
            goes_direct(&pair, address, &cell);
        }
        for app in &outside {
            assert!(!app.is_captured(&pair.app, address), "{cell}: outside");
        }
        ctl(&pair.app, &install).expect("already captured");
        ctl(&pair.app, REMOVE).expect("removed");
        for app in &inside {
            assert!(!app.is_captured(&pair.app, address), "{cell}: removed");
        }
    }
    below.remove().unwrap();
}
