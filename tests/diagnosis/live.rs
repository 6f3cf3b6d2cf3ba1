//! A process' live connections, as its sockets show them and as they are.

use std::process::{Command, Stdio};

use crate::{
    incident::nginx,
    netns::{Pair, run},
    proxyctl::{ctl, start, until},
};

const REDIRECT: &str =
    "iptables-legacy -t nat -A OUTPUT -d 10.77.0.2 -p tcp --dport 80 -j REDIRECT --to-ports 8088";

#[test]
fn the_true_end_of_a_redirected_connection_is_told_and_where_it_was_meant_to_go() {
    let pair = Pair::new();
    let server = nginx(&pair.app, "live", "127.0.0.1:8088", "return 404");
    pair.app.enter(|| run(REDIRECT));
    let mut command = Command::new("socat");
    // Silent, with its standard input open: the connection stays.
    command
        .args(["-u", "TCP:10.77.0.2:80", "STDOUT"])
        .stdout(Stdio::null());
    let client = start(&pair.app, command);
    let pid = client.pid();
    until("the connection", || {
        let listed = ctl(&pair.app, &format!("explain --json --pid {pid}"));
        listed.json["connections"] != serde_json::json!([])
    });
    // What lists of sockets show.
    let shown = pair
        .app
        .enter(|| run("ss -tnH state established dst 10.77.0.2:80"));
    assert!(
        shown.contains("10.77.0.2:80") && !shown.contains("8088"),
        "{shown}"
    );

    // From another namespace, since the process' own counts.
    let told = ctl(&pair.peer, &format!("explain --json --pid {pid}"));
    let connection = &told.json["connections"][0];
    assert_eq!(connection["shown"], "10.77.0.2:80", "{told:?}");
    assert_eq!(connection["truly"], "127.0.0.1:8088", "{told:?}");
    let text = ctl(&pair.app, &format!("explain --pid {pid}"));
    assert!(
        text.stdout
            .contains("truly 127.0.0.1:8088, at the local nginx"),
        "{text:?}"
    );
    assert_eq!(text.code, 0, "{text:?}");

    let other = ctl(&pair.app, &format!("explain --json --pid {}", server.pid()));
    let accepted = other.json["connections"].as_array().unwrap();
    assert!(
        accepted.iter().any(|c| c["meant_for"] == "10.77.0.2:80"),
        "{other:?}"
    );
}

#[test]
fn each_step_of_the_way_is_in_the_json() {
    let pair = Pair::new();
    pair.app.enter(|| run(REDIRECT));
    let told = ctl(&pair.app, "explain --json 10.77.0.2:80");
    let way = &told.json["ways"][0];
    assert_eq!(way["end"]["to"], "127.0.0.1:8088", "{told:?}");
    assert_eq!(way["rule"]["chain"], "OUTPUT", "{told:?}");
    let event = &way["events"][0];
    assert_eq!(event["hook"], "output", "{told:?}");
    assert_eq!(event["matched"], "yes", "{told:?}");
    let other = ctl(&pair.app, "explain --json 10.77.0.2:81");
    assert_eq!(
        other.json["ways"][0]["events"][0]["matched"], "no",
        "{other:?}"
    );
}

#[test]
fn the_route_that_the_proxy_would_take_is_the_data_planes_own() {
    let pair = Pair::new();
    let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("explain-{}.yaml", std::process::id()));
    let text = "clusters: [ { name: api, endpoints: [ { address: \"10.77.0.2:81\" } ] } ]\nroutes: [ { match: { host: api.internal }, cluster: api } ]\n";
    std::fs::write(&file, text).unwrap();
    pair.app.enter(|| {
        run("iptables-legacy -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 15001")
    });
    let route = |host: &str| {
        let line = format!(
            "explain 10.77.0.2:80 --json --host {host} --config {}",
            file.display()
        );
        let told = ctl(&pair.app, &line);
        let route = told.json["onward"]["says"].as_str().map(str::to_owned);
        route.unwrap_or_else(|| panic!("{told:?}"))
    };
    assert!(
        route("api.internal").contains("cluster api"),
        "{}",
        route("api.internal")
    );
    assert!(route("other.internal").contains("no route holds"));
}
