//! What `status` and `top` tell of a proxy's traffic.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    incident::nginx,
    netns::Pair,
    onward::request,
    proxyctl::{Running, ctl, proxyctl, serve, until},
};

/// A server that answers, one that nobody listens at, and a captured client that has called both.
fn called() -> (Pair, [Running; 2]) {
    let pair = Pair::new();
    let server = nginx(&pair.peer, "traffic", "10.77.0.2:80", "return 200 hello");
    let proxy = serve(&pair.app, "--workers 2");
    ctl(&pair.app, "install-rules --json").expect("captured");
    for _ in 0..3 {
        assert_eq!(request(&pair.app, "svc"), "200");
    }
    // A client that this machine stops for a moment is silent, and then refused by a reset.
    let refused = "curl -s -m 10 -o /dev/null http://10.77.0.2:81/ || true";
    let output = pair
        .app
        .enter(|| Command::new("sh").args(["-c", refused]).output().unwrap());
    assert!(output.status.success(), "{output:?}");
    (pair, [server, proxy])
}

fn row<'a>(told: &'a Value, destination: &str) -> &'a Value {
    let rows = told["destinations"]
        .as_array()
        .unwrap_or_else(|| panic!("{told}"));
    let row = rows.iter().find(|row| row["destination"] == destination);
    row.unwrap_or_else(|| panic!("no {destination}: {told}"))
}

#[test]
fn each_destination_has_its_requests_failures_bytes_and_latency() {
    let (pair, _programs) = called();
    let status = || ctl(&pair.app, "status --json").json;
    until("all four to be counted", || {
        status()["traffic"]["destinations"]
            .as_array()
            .is_some_and(|rows| rows.len() == 2)
            && row(&status()["traffic"], "10.77.0.2:80")["requests"] == 3
    });
    let told = status();
    let traffic = &told["traffic"];
    assert_eq!(traffic["configuration"]["generation"], 1, "{told}");
    assert!(
        traffic["seconds"].is_null() && traffic["omitted"] == 0,
        "{told}"
    );
    let well = row(traffic, "10.77.0.2:80");
    assert_eq!(
        (&well["failures"], &well["server_errors"]),
        (&0.into(), &0.into()),
        "{told}"
    );
    assert!(well["received_bytes"].as_u64() > Some(100), "{told}");
    assert!(well["latency_ms"]["p50"].is_f64(), "{told}");
    assert_eq!(row(traffic, "10.77.0.2:81")["failures"], 1, "{told}");

    let text = ctl(&pair.app, "status").stdout;
    for words in [
        "configuration generation 1",
        "connections live",
        "what went where, since the proxy started",
        "10.77.0.2:81",
    ] {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
}

#[test]
fn a_window_without_a_lease_is_remembered() {
    let (pair, [_server, proxy]) = called();
    proxy.signal("STOP");
    until("the lease to run out", || {
        let told = ctl(&pair.app, "explain 10.77.0.2:80 --json");
        told.json["ways"][0]["end"]["end"] == "leaves"
    });
    proxy.signal("CONT");
    until("the window to be told", || {
        let told = ctl(&pair.app, "status --json");
        let window = &told.json["windows"][0];
        told.json["result"] == "captured"
            && window["is_open"] == false
            && window["secs"].as_f64() > Some(0.0)
    });
    let text = ctl(&pair.app, "status").stdout;
    assert!(text.contains(" ago: direct for "), "{text}");
}

#[test]
fn watching_tells_again_and_again_and_ends_with_its_reader() {
    let (pair, _programs) = called();
    let mut command = Command::new(proxyctl());
    command
        .args(["status", "--watch=100ms", "--json"])
        .stdout(Stdio::piped());
    let mut child = pair.app.enter(|| command.spawn().unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(next()["traffic"]["seconds"].is_null());
    let second = next();
    assert!(second["traffic"]["seconds"].is_f64(), "{second}");
    assert_eq!(second["result"], "captured");
    assert_eq!(request(&pair.app, "svc"), "200");
    until("the request between two looks", || {
        let rows = next()["traffic"]["destinations"].clone();
        rows.as_array().is_some_and(|rows| {
            rows.iter()
                .any(|row| row["requests"] == 1 && row["requests_per_second"].as_f64() > Some(0.0))
        })
    });
    drop(lines);
    until("its end", || child.try_wait().unwrap().is_some());
}

#[test]
fn top_prints_one_table_where_there_is_no_terminal() {
    let (pair, _programs) = called();
    let (told, text) = std::thread::scope(|scope| {
        let json = scope.spawn(|| ctl(&pair.app, "top --json --interval 2s"));
        let text = scope.spawn(|| ctl(&pair.app, "top --sort failed --interval 2s"));
        while !json.is_finished() {
            assert_eq!(request(&pair.app, "svc"), "200");
        }
        (json.join().unwrap(), text.join().unwrap())
    });
    assert_eq!(told.code, 0, "{told:?}");
    let row = row(&told.json, "10.77.0.2:80");
    assert!(
        row["requests"].as_u64() > Some(0) && row["requests_per_second"].as_f64() > Some(0.0),
        "{told:?}"
    );
    assert_eq!(text.code, 0, "{text:?}");
    assert!(
        text.stdout.contains("FAILED/s*") && !text.stdout.contains('\x1b'),
        "{text:?}"
    );
    let nobody = ctl(&pair.peer, "top");
    assert_eq!(
        (nobody.code, nobody.stdout.lines().next()),
        (1, Some("no proxy runs on port 15001"))
    );
}

/// `script` (util-linux) is its terminal.
#[test]
fn top_draws_on_a_terminal_and_leaves_it_as_it_was() {
    let (pair, _programs) = called();
    let mut command = Command::new("script");
    let line = format!(
        "stty -a > /tmp/outrigger-top-$$; {} top --interval 100ms; stty -a | cmp - /tmp/outrigger-top-$$ && echo AS-BEFORE; rm /tmp/outrigger-top-$$",
        proxyctl().display()
    );
    command
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pair.app.enter(|| command.spawn().unwrap());
    let mut keys = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut seen = String::new();
    let mut more = |seen: &mut String| {
        let mut chunk = [0; 4096];
        let count = screen.read(&mut chunk).unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        count
    };
    until("a table", || {
        more(&mut seen);
        seen.contains("q quits")
    });
    keys.write_all(b"\x1b[C").unwrap();
    until("the next column to be marked", || {
        more(&mut seen);
        seen.contains("FAILED/s*")
    });
    keys.write_all(b"q").unwrap();
    until("its end", || more(&mut seen) == 0);
    assert!(child.wait().unwrap().success(), "{seen}");
    assert!(seen.contains("AS-BEFORE"), "{seen}");
    let (enter, leave) = (seen.find("\x1b[?1049h"), seen.find("\x1b[?1049l"));
    assert!(enter.is_some() && enter < leave, "{seen}");
}
