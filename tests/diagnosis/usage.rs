//! What a newcomer does: asks without privilege, by a name, of the wrong port, and leaves before the end.

use std::process::{Command, Stdio};

use crate::{
    netns::{Pair, run},
    proxyctl::{ctl, ctl_as, finish, proxyctl, serve},
};

/// The rules that it cannot see lead elsewhere.
#[test]
fn an_end_is_not_told_as_certain_where_rules_are_hidden() {
    let pair = Pair::new();
    let _proxy = serve(&pair.app, "");
    ctl(&pair.app, "install-rules --json").expect("captured");
    let line = "explain 10.77.0.2:80";
    let hidden = ctl_as(&pair.app, 1000, line);
    assert_eq!(hidden.code, 2, "{hidden:?}");
    let first = hidden.stdout.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("Not all rules could be seen."),
        "{hidden:?}"
    );
    let hidden_json = ctl_as(&pair.app, 1000, &format!("{line} --json"));
    assert_eq!(hidden_json.json["certain"], false, "{hidden_json:?}");
    let seen = ctl(&pair.app, &format!("{line} --json"));
    assert_eq!(
        (seen.code, &seen.json["certain"]),
        (0, &true.into()),
        "{seen:?}"
    );

    for told in [hidden, ctl_as(&pair.app, 1000, "doctor")] {
        assert_eq!(told.code, 2, "{told:?}");
        assert!(
            told.stdout.contains("what to do: run it as root"),
            "{told:?}"
        );
    }
}

#[test]
fn what_the_maker_of_a_rule_said_of_it_is_told() {
    let pair = Pair::new();
    pair.app.enter(|| {
        run("nft add table ip t");
        run("nft add chain ip t out { type nat hook output priority -100 ; }");
        run("nft add rule ip t out ip daddr 203.0.113.7 tcp dport 80 redirect to :9 comment \"half-finished\"");
    });
    let found = ctl(&pair.app, "doctor");
    let rule = "rule: ip daddr 203.0.113.7 tcp dport 80 redirect to :9 comment \"half-finished\"";
    assert!(found.stdout.contains(rule), "{found:?}");
}

struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

#[test]
fn a_namespace_goes_by_the_name_that_ip_gave_it() {
    let pair = Pair::new();
    let named = Named(format!("outrigger-named-{}", std::process::id()));
    let name = &named.0;
    run(&format!("ip netns add {name}"));
    run(&format!(
        "ip netns exec {name} iptables-legacy -t nat -A OUTPUT -p tcp -d 203.0.113.7 -j REDIRECT --to-ports 9"
    ));
    let found = ctl(&pair.app, &format!("doctor --json --netns {name}"));
    let fix = found.json["findings"][0]["fix"].as_str();
    let fix = fix.unwrap_or_else(|| panic!("{found:?}"));
    assert!(fix.starts_with(&format!("nsenter --net=/run/netns/{name} iptables-legacy")));

    // In a pid namespace there is nobody else's network namespace to look into.
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--mount-proc", "nsenter"]);
    inside
        .arg(format!("--net=/run/netns/{name}"))
        .arg(proxyctl());
    let told = finish(&pair.app, inside, "doctor --all-netns");
    let heading = format!("network namespace {name} of process 1 (");
    assert!(told.stdout.starts_with(&heading), "{told:?}");

    for (place, why) in [
        (
            "none-of-that-name",
            "there is no /run/netns/none-of-that-name; `ip netns list`",
        ),
        ("999999999", "there is no process 999999999"),
        ("/etc/passwd", "/etc/passwd is no network namespace"),
    ] {
        let told = ctl(&pair.app, &format!("explain 10.77.0.2 --netns {place}"));
        assert_eq!(told.code, 2, "{told:?}");
        assert!(told.stderr.contains(why), "{told:?}");
    }
}

#[test]
fn where_no_proxy_runs_those_on_other_ports_are_named() {
    let pair = Pair::new();
    let none = ctl(&pair.app, "status");
    assert!(
        none.stdout.contains("`proxyctl serve` starts one"),
        "{none:?}"
    );
    let _proxy = serve(&pair.app, "");
    for command in ["status", "top"] {
        let told = ctl(&pair.app, &format!("{command} --port 15002"));
        let hint = format!("`proxyctl {command} --port 15001`");
        assert_eq!(told.code, 1, "{told:?}");
        assert!(told.stdout.contains(&hint), "{told:?}");
        let told = ctl(&pair.app, &format!("{command} --port 15002 --json"));
        assert_eq!(
            told.json["other_ports"],
            serde_json::json!([15001]),
            "{told:?}"
        );
    }
    let idle = ctl(&pair.app, "top --interval 100ms");
    assert!(idle.stdout.contains("no connection lives"), "{idle:?}");
}

#[test]
fn a_reader_that_has_left_is_no_failure() {
    for arguments in ["completions bash", "validate --schema", "status", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let told = Command::new(proxyctl())
            .args(arguments.split(' '))
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let is_status = arguments == "status";
        assert_eq!(told.status.code(), Some(is_status.into()), "{arguments}");
        assert_eq!(String::from_utf8_lossy(&told.stderr), "", "{arguments}");
    }
}
