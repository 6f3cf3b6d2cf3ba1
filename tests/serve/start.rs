use std::{
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Command,
};

use crate::server::{Directory, Server, outcome, proxyctl, serve};

#[test]
fn every_problem_of_a_configuration_is_told_with_its_place() {
    let directory = Directory::new("bad-config");
    let file = directory.write(
        "bad.yaml",
        "listen: [\"0.0.0.0:15001\"]\ncapture:\n  proxy_uid: 65534\n",
    );
    let (code, said) = outcome(&mut proxyctl(&["serve", "--config", &file]));
    assert_eq!(code, 2, "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with(&format!("{file}:1:9: ")), "{said}");
    assert!(lines[1].starts_with(&format!("{file}:3:14: ")), "{said}");
    let misspelt = directory.write("misspelt.yaml", "limits:\n  max_conections: 5\n");
    let (code, said) = outcome(&mut proxyctl(&["serve", "--config", &misspelt]));
    assert_eq!(code, 2);
    assert!(said.starts_with(&format!("{misspelt}:2:3: ")), "{said}");
}

#[test]
fn a_bad_command_line_is_refused_as_a_bad_file_is() {
    for (arguments, says) in [
        (
            &["--listen", "0.0.0.0:15001"][..],
            "--listen: 0.0.0.0:15001 is reachable from elsewhere",
        ),
        (&["--admin", "nowhere"], "or `off`"),
        (&["--listen", "15001"], "write an address and port"),
        (&["--workers", "0"], "a whole number from 1 on"),
        (
            &["--listen", "127.0.0.1:15001", "--admin", "127.0.0.1:15001"],
            "--admin: 127.0.0.1:15001 is in `listen` too",
        ),
        (&["--log-level", "info,=x="], "--log-level `info,=x=`"),
        // It was once taken for a module, and the log fell silent.
        (&["--log-level", "verbose"], "`verbose` is no level"),
        (
            &["--config", "/nonexistent.yaml"],
            "/nonexistent.yaml: cannot read it",
        ),
    ] {
        let mut command = proxyctl(&["serve"]);
        let (code, said) = outcome(command.args(arguments));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn a_port_in_use_is_named_with_how_to_find_who_uses_it() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    for (flag, else_flag) in [("--listen", "--admin"), ("--admin", "--listen")] {
        let mut command = proxyctl(&["serve", flag, &address.to_string()]);
        let (code, said) = outcome(command.args([else_flag, "127.0.0.1:0"]));
        assert_eq!(code, 1, "{said}");
        let finder = format!("ss -ltnp 'sport = :{}'", address.port());
        assert!(said.contains(&address.to_string()), "{said}");
        assert!(said.contains(&finder) && said.contains(flag), "{said}");
    }
}

#[test]
fn an_access_log_that_cannot_be_opened_is_refused_before_anything_is_served() {
    let directory = Directory::new("no-log");
    let file = directory.write("c.yaml", "access_log:\n  to: /nonexistent/access.log\n");
    let (code, said) = outcome(&mut serve(&["--config", &file]));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("/nonexistent/access.log"), "{said}");
}

/// Regression: it ended in a panic.
#[test]
fn a_limit_of_open_files_that_carries_nothing_is_named() {
    for limit in [20, 55] {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}"));
        let serve = serve(&[]);
        command.arg(serve.get_program()).args(serve.get_args());
        let (code, said) = outcome(&mut command);
        assert_eq!(code, 1, "{said}");
        let is_told = said.contains(&format!("(RLIMIT_NOFILE) is {limit}"));
        assert!(is_told && said.contains("ulimit -n"), "{said}");
    }
}

#[test]
fn an_admin_listener_that_others_can_reach_is_warned_of() {
    let arguments = ["serve", "--log-format", "json", "--listen", "127.0.0.1:0"];
    let mut command = proxyctl(&arguments);
    command.args(["--admin", "0.0.0.0:0"]);
    let mut server = Server::spawn(command);
    let line = server.logged("the admin listener on 0.0.0.0:0 is reachable from elsewhere: /metrics has no password, and tells every destination of the application; listen on 127.0.0.1, or let only your metrics collector reach it");
    assert_eq!(line["level"], "WARN");
}

/// Regression: they were text on stderr, and nothing on stdout.
#[test]
fn a_bad_configuration_is_told_in_json_where_json_is_asked_for() {
    let directory = Directory::new("json-config");
    let file = directory.write(
        "bad.yaml",
        "listen: [\"0.0.0.0:15001\"]\ncapture:\n  proxy_uid: 65534\n",
    );
    for command in ["install-rules", "remove-rules", "status"] {
        let output = proxyctl(&[command, "--json", "--config", &file]);
        let output = { output }.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stderr.is_empty(), "{output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["result"], "refused");
        assert_eq!(told["check"], "configuration");
        assert_eq!(told["problems"][1]["line"], 3, "{told}");
        assert_eq!(told["problems"][1]["file"], file, "{told}");
    }
    let mut command = proxyctl(&["install-rules", "--json", "--listen", "0.0.0.0:15001"]);
    let output = command.output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["problems"][0]["option"], "--listen", "{told}");
}

#[test]
fn without_an_admin_listener_it_serves_all_the_same() {
    let mut command = proxyctl(&["serve", "--log-format", "json", "--listen", "127.0.0.1:0"]);
    command.args(["--admin", "off"]);
    let text = first_line(command);
    assert_eq!(text["admin"], "off", "{text}");
}

#[test]
fn started_as_root_it_becomes_the_proxys_user_and_cannot_go_back() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root, to see it given up"
    );
    let server = Server::start(&[]);
    assert_eq!(server.started["uid"], 1337);
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    for (key, value) in [
        ("Uid:", "1337 1337 1337 1337"),
        ("Gid:", "1337 1337 1337 1337"),
        ("Groups:", ""),
        ("CapPrm:", "0000000000000000"),
        ("CapEff:", "0000000000000000"),
        ("NoNewPrivs:", "1"),
    ] {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        assert_eq!(words.join(" "), value, "{key}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        (words[0].to_owned(), words[1].to_owned())
    };
    assert_eq!(limit("Max core file size"), ("0".into(), "0".into()));
    let (soft, hard) = limit("Max open files");
    assert_eq!(soft, hard);
}

#[test]
fn with_a_mark_it_keeps_what_setting_marks_takes_and_nothing_else() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root, to see it given up"
    );
    let directory = Directory::new("mark");
    let file = directory.write("c.yaml", "capture:\n  proxy_mark: 1337\n");
    let server = Server::start(&["--config", &file]);
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let net_raw = format!("{:016x}", 1 << 13);
    for key in ["CapPrm:", "CapEff:"] {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        assert_eq!(line.trim(), net_raw, "{key}");
    }
    assert_eq!(server.started["uid"], 1337);
}

#[test]
fn where_the_proxys_user_does_not_exist_it_asks_for_a_mark_and_serves_with_one() {
    let directory = Directory::new("one-user");
    let marked = directory.write("c.yaml", "capture:\n  proxy_mark: 1337\n");
    let in_namespace = |arguments: &[&str]| {
        let inner = serve(arguments);
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]);
        // The namespace's loopback is down until someone raises it.
        command.args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        command.arg(inner.get_program()).args(inner.get_args());
        command
    };
    let (code, said) = outcome(&mut in_namespace(&[]));
    assert_eq!(code, 1, "this test needs user namespaces: {said}");
    assert!(said.contains("set capture.proxy_mark"), "{said}");
    let started = first_line(in_namespace(&["--config", &marked]));
    assert_eq!(started["uid"], 0, "{started}");
}

#[test]
fn sockets_passed_by_a_service_manager_are_served_and_belong_to_the_proxys_user() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::spawn(passing(listener, &serve(&[])));
    assert_eq!(server.listener, address);
    let mut stream = TcpStream::connect(address).unwrap();
    assert!(stream.read(&mut [0]).is_err());
    assert!(listed(address).contains("uid:1337"), "{}", listed(address));
}

#[test]
fn the_right_to_take_over_passed_sockets_is_used_once_and_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let inner = serve(&[]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1337", "--regid=1337", "--clear-groups"]);
    command.args(["--inh-caps=+chown", "--ambient-caps=+chown"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let server = Server::spawn(passing(listener, &command));
    assert!(listed(address).contains("uid:1337"), "{}", listed(address));
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    for key in ["CapPrm:", "CapEff:", "CapAmb:"] {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        assert_eq!(line.trim(), "0000000000000000", "{key}");
    }
}

/// `inner` with `listener` passed to it as a service manager does.
fn passing(listener: TcpListener, inner: &Command) -> Command {
    let mut command = Command::new("sh");
    // The protocol wants them from descriptor 3 on, and the pid of the process that takes them.
    command.args([
        "-c",
        "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"",
    ]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.stdin(OwnedFd::from(listener));
    command
}

/// What `ss` says of the listener at `address`.
fn listed(address: std::net::SocketAddr) -> String {
    let filter = format!("sport = :{}", address.port());
    let listed = Command::new("ss").args(["-Htlne", &filter]).output();
    let listed = listed.expect("this test runs `ss`; install the Debian package `iproute2`");
    String::from_utf8(listed.stdout).unwrap()
}

/// The log line with which a server starts; the server is then killed.
fn first_line(mut command: Command) -> serde_json::Value {
    use std::io::{BufRead, BufReader};
    let mut child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = lines
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok())
        .find(|line| line["message"] == "serving");
    child.kill().unwrap();
    child.wait().unwrap();
    started.expect("it did not start")
}
