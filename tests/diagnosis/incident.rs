//! The founding incident, staged: left-over rules lead a client to an unrelated local server.

use std::{fs, path::PathBuf, process::Command};

use crate::{
    netns::{Namespace, Pair, run},
    proxyctl::{Running, ctl, start, until},
};

pub(crate) const SERVICE: &str = "123.56.223.52";

#[test]
fn rules_of_iptables_legacy_are_named_and_removed() {
    stage("legacy", &iptables("iptables-legacy"));
}

#[test]
fn rules_of_iptables_nft_are_named_and_removed() {
    stage("iptables-nft", &iptables("iptables-nft"));
}

#[test]
fn rules_of_nft_are_named_and_removed() {
    let rules = [
        "nft add table ip sidecar",
        "nft add chain ip sidecar output { type nat hook output priority -100 ; }",
        "nft add chain ip sidecar outbound",
        "nft add rule ip sidecar output meta l4proto tcp jump outbound",
        "nft add rule ip sidecar outbound ip daddr 123.56.223.0/24 tcp dport 80 counter redirect to :80",
    ];
    stage("nft", &rules.map(String::from));
}

#[test]
fn a_redirect_to_a_port_where_nobody_listens_is_an_error() {
    let pair = Pair::new();
    pair.app.enter(|| {
        for rule in iptables("iptables-legacy") {
            run(&rule);
        }
    });
    let found = ctl(&pair.app, "doctor --json");
    assert_eq!(found.code, 1, "{found:?}");
    assert_eq!(
        found.json["findings"][0]["kind"], "nobody_listens",
        "{found:?}"
    );
}

#[test]
fn a_clean_namespace_has_no_finding() {
    let pair = Pair::new();
    let found = ctl(&pair.app, "doctor");
    assert_eq!(found.code, 0, "{found:?}");
}

#[test]
fn who_may_not_look_is_told_so_and_not_that_all_is_well() {
    let pair = Pair::new();
    for command in ["doctor", "explain 123.56.223.52:80"] {
        let found = crate::proxyctl::ctl_as(&pair.app, 1234, command);
        assert_eq!(found.code, 2, "{found:?}");
        assert!(found.stdout.contains("not seen: "), "{found:?}");
    }
}

/// What the README shows was recorded by a script; it says the same today.
#[test]
fn the_recording_that_opens_the_readme_is_true() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let script = root.join("docs/record-incident.sh");
    let output = Command::new("sh")
        .arg(script)
        .arg(crate::proxyctl::proxyctl())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{errors}");
    let recorded = fs::read_to_string(root.join("docs/incident.txt")).unwrap();
    assert_eq!(timeless(&told), timeless(&recorded));

    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, shown) = readme.split_once("```console\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    for line in shown.lines().filter(|line| line.trim() != "[…]") {
        assert!(recorded.contains(line), "the README shows {line:?}");
    }
}

/// Without what differs from run to run: numbers of processes and seconds, and how many packets it took.
fn timeless(text: &str) -> String {
    let is_line_of_counts = |line: &&str| line.trim().starts_with("counted so far");
    // nginx's answer may or may not end its line.
    let is_told = |line: &&str| !line.trim().is_empty() && !is_line_of_counts(line);
    // Nor does it matter from which cgroup the test is run.
    let outside = |line: &'_ str| {
        line.split(", cgroup ")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let lines: Vec<_> = text.lines().filter(is_told).map(outside).collect();
    let lines = lines.iter();
    let words = lines.flat_map(|line| line.split(' ').chain(["\n"]));
    let mut timeless = Vec::new();
    for word in words {
        let is_of_time = matches!(timeless.last(), Some(&("(pid" | "started")));
        timeless.push(if is_of_time { "…" } else { word });
    }
    timeless.join(" ")
}

pub(crate) fn iptables(program: &str) -> [String; 3] {
    [
        format!("{program} -t nat -N SIDECAR_OUTBOUND"),
        format!("{program} -t nat -A OUTPUT -p tcp -j SIDECAR_OUTBOUND"),
        format!(
            "{program} -t nat -A SIDECAR_OUTBOUND -d 123.56.223.0/24 -p tcp --dport 80 -j REDIRECT --to-ports 80"
        ),
    ]
}

fn stage(name: &str, rules: &[String]) {
    let pair = Pair::new();
    pair.peer
        .enter(|| run(&format!("ip addr add {SERVICE}/32 dev wire0")));
    pair.app.enter(|| run("ip route add default via 10.77.0.2"));
    let _service = nginx(
        &pair.peer,
        &format!("{name}-service"),
        &format!("{SERVICE}:80"),
        "return 200 service",
    );
    let stranger = nginx(
        &pair.app,
        &format!("{name}-stranger"),
        "127.0.0.1:80",
        "return 404",
    );
    assert_eq!(call(&pair.app), "200");
    pair.app
        .enter(|| rules.iter().for_each(|rule| drop(run(rule))));
    assert_eq!(call(&pair.app), "404", "the incident is staged");

    let told = ctl(&pair.app, &format!("explain {SERVICE}:80"));
    let first = told.stdout.lines().next().unwrap_or_default();
    assert!(
        first.contains("never leaves this host") && first.contains("nginx"),
        "{told:?}"
    );
    assert_eq!(told.code, 0, "{told:?}");

    let found = ctl(&pair.app, "doctor --json");
    assert_eq!(found.code, 1, "{found:?}");
    let finding = &found.json["findings"][0];
    assert_eq!(finding["kind"], "listener_is_no_proxy", "{found:?}");
    let what = finding["what"].as_str().unwrap();
    assert!(
        what.contains(&format!("nginx (pid {}", stranger.pid())),
        "{what}"
    );
    let evidence = finding["evidence"].to_string();
    assert!(
        evidence.contains("123.56.223.0/24") && !evidence.contains(" 0 packets"),
        "{evidence}"
    );

    // The command removes just this rule, and heals.
    let fix = finding["fix"].as_str().unwrap();
    pair.app.enter(|| run(fix));
    assert_eq!(call(&pair.app), "200");
    assert_eq!(ctl(&pair.app, "doctor").code, 0);
}

pub(crate) fn call(namespace: &Namespace) -> String {
    namespace.enter(|| {
        run(&format!(
            "curl -s -m 10 -o /dev/null -w %{{http_code}} http://{SERVICE}/"
        ))
    })
}

/// One process, which the guard ends.
pub(crate) fn nginx(namespace: &Namespace, name: &str, listen: &str, answer: &str) -> Running {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("diagnosis-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("nginx.conf");
    let place = dir.display();
    fs::write(
        &config,
        format!(
            "user root root; daemon off; master_process off; pid {place}/pid; events {{}}
             http {{ access_log off; client_body_temp_path {place}/b; proxy_temp_path {place}/p;
             fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
             server {{ listen {listen}; location / {{ {answer}; }} }} }}"
        ),
    )
    .unwrap();
    let mut command = Command::new("nginx");
    command
        .args(["-e", "stderr", "-p"])
        .arg(&dir)
        .arg("-c")
        .arg(&config);
    let running = start(namespace, command);
    until("nginx", || {
        namespace.enter(|| std::net::TcpStream::connect(listen).is_ok())
    });
    running
}
