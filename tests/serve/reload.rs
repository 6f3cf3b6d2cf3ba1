use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::server::{Directory, Server, outcome, proxyctl, wait_for};

#[test]
fn a_changed_file_is_taken_over_and_a_bad_one_changes_nothing() {
    let directory = Directory::new("reload");
    let file = directory.write("outrigger.yaml", "timeouts: { drain: 1s }\n");
    let mut server = Server::start(&["--config", &file]);
    assert_eq!(metric(&server, "outrigger_config_generation"), 1.0);

    // Written in place, then replaced by renaming.
    fs::write(&file, "timeouts: { drain: 2s }\n").unwrap();
    generation(&server, 2.0);
    let other = directory.write(
        "new.yaml",
        "timeouts: { drain: 3s }\nworkers: 7\nmetrics: { native_histograms: true }\n",
    );
    fs::rename(&other, &file).unwrap();
    generation(&server, 3.0);
    server.logged("changed and not applied until a restart: metrics");

    fs::write(&file, "timeouts: { drain: 3 }\nworkerz: 1\n").unwrap();
    server.logged("configuration not reloaded");
    server.logged(&format!("{file}: line 2, column 1: workerz: unknown key"));
    assert_eq!(metric(&server, "outrigger_config_generation"), 3.0);
    assert_eq!(
        metric(&server, "outrigger_config_last_reload_successful"),
        0.0
    );
    assert_eq!(server.get("/ready").status, 200);

    fs::write(&file, "timeouts: { drain: 4s }\n").unwrap();
    generation(&server, 4.0);
    assert_eq!(
        metric(&server, "outrigger_config_last_reload_successful"),
        1.0
    );
}

#[test]
fn a_mounted_config_map_is_followed_when_kubernetes_swaps_it() {
    let directory = Directory::new("config-map");
    let marker = directory.write("first.yaml", "timeouts: { drain: 1s }\n");
    let root = Path::new(&marker).parent().unwrap().to_owned();
    for (version, drain) in [("..1", "1s"), ("..2", "2s"), ("..3", "3s")] {
        fs::create_dir(root.join(version)).unwrap();
        let text = format!("timeouts: {{ drain: {drain} }}\n");
        fs::write(root.join(version).join("outrigger.yaml"), text).unwrap();
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/outrigger.yaml", root.join("outrigger.yaml")).unwrap();
    let file = root.join("outrigger.yaml").display().to_string();
    let server = Server::start(&["--config", &file]);
    for (version, expected) in [("..2", 2.0), ("..3", 3.0)] {
        symlink(version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        generation(&server, expected);
    }
}

#[test]
fn sighup_reloads_and_so_does_a_post_which_tells_what_came_of_it() {
    let directory = Directory::new("reload-asked");
    let file = directory.write("outrigger.yaml", "");
    let mut server = Server::start(&["--config", &file]);
    server.signal(Signal::HUP);
    server.logged("configuration reloaded");
    generation(&server, 2.0);

    let (status, told) = post_reload(server.admin, "");
    assert_eq!(
        (status, &told["result"]),
        (200, &"applied".into()),
        "{told}"
    );
    fs::write(&file, "workers: 0\nlisten: 5\n").unwrap();
    let (status, told) = post_reload(server.admin, "");
    assert_eq!(
        (status, &told["result"]),
        (422, &"rejected".into()),
        "{told}"
    );
    let problems = told["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{told}");
    assert_eq!(problems[0]["line"], 1);
    assert_eq!(problems[0]["path"], "workers");

    let (status, _) = post_reload(server.admin, "Origin: http://evil.example\r\n");
    assert_eq!(status, 403);
    assert_eq!(server.get("/reload").status, 405);
}

#[test]
fn a_proxy_without_a_file_says_so_when_asked_to_reload() {
    let server = Server::start(&[]);
    let (status, told) = post_reload(server.admin, "");
    assert_eq!(
        (status, &told["result"]),
        (409, &"no_file".into()),
        "{told}"
    );
}

#[test]
fn validate_tells_every_problem_with_its_line_a_caret_and_the_fix() {
    let directory = Directory::new("validate");
    let good = directory.write(
        "good.yaml",
        "clusters: [{ name: a, dns: { name: x, port: 1 } }]\n",
    );
    let bad = directory.write(
        "bad.yaml",
        "limits:\n  max_conections: 5\n  max_headers: x\n",
    );
    let (code, _) = outcome(&mut proxyctl(&["validate", &good]));
    assert_eq!(code, 0);
    let output = proxyctl(&["validate", &good, &bad]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    for part in [
        "warning: clusters[0].name: no route leads to `a`",
        "error: limits.max_conections: unknown key `max_conections`",
        "2 |   max_conections: 5\n  |   ^^^^^^^^^^^^^^\n fix: did you mean `max_connections`?",
        "bad.yaml:3:16",
        "good.yaml: valid, 0 errors, 1 warning",
        "bad.yaml: not valid, 2 errors, 0 warnings",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(!said.contains('\x1b'), "colours without a terminal: {said}");
    let output = proxyctl(&["validate", "--json", &bad]).output().unwrap();
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows[0]["line"], 2, "{rows}");
    assert_eq!(rows[0]["severity"], "error");
    let (code, _) = outcome(&mut proxyctl(&["validate"]));
    assert_eq!(code, 2);
    let output = proxyctl(&["validate", "--schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["clusters"].is_object());
}

fn generation(server: &Server, expected: f64) {
    wait_for(&format!("configuration {expected}"), || {
        (metric(server, "outrigger_config_generation") == expected).then_some(())
    });
}

fn metric(server: &Server, name: &str) -> f64 {
    let body = server.get("/metrics").body;
    let line = body
        .lines()
        .find(|l| l.starts_with(name) && !l.starts_with('#'));
    let value = line
        .and_then(|l| l.rsplit(' ').next())
        .unwrap_or_else(|| panic!("no {name} in {body}"));
    value.parse().unwrap()
}

fn post_reload(admin: SocketAddr, headers: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(admin).unwrap();
    write!(stream, "POST /reload HTTP/1.1\r\nHost: {admin}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
