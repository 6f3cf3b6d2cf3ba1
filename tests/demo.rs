//! The demo, as a user runs it.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn every_claim_of_the_demo_is_true() {
    let output = demo().output().expect("the demo starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let why = format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {why}", output.status);
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let claims: Vec<_> = lines.iter().filter(|l| l.get("claim").is_some()).collect();
    assert!(claims.iter().all(|c| c["holds"] == true), "{why}");
    let end = lines.last().expect("a last line");
    assert_eq!(end["all_true"], true, "{why}");
    assert_eq!(end["claims"], claims.len(), "{why}");
}

/// Also the proxy's end: it changes its own credentials, at which the kernel may forget that it was
/// to be killed with its parent.
#[test]
fn a_demo_that_is_killed_leaves_no_process_behind() {
    let (mut demo, children) =
        wait_for(stopped_in_the_middle).expect("a demo with application, upstream and proxy");
    demo.kill().expect("killing the demo");
    demo.wait().expect("the demo's end");
    wait_for(|| (!children.iter().any(|&child| lives(child))).then_some(()))
        .expect("the children end with the demo");
}

/// A demo that was stopped while its proxy ran, and its children; none if it was too quick.
fn stopped_in_the_middle() -> Option<(Child, Vec<u32>)> {
    let mut demo = demo()
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demo starts");
    let output = BufReader::new(demo.stdout.take().expect("a pipe"));
    let has_proxy = output
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("\"step\":4"));
    assert!(has_proxy, "the demo ended before its fourth step");
    kill_process(Pid::from_child(&demo), Signal::STOP).expect("stopping the demo");
    let children = children_of(demo.id());
    if children.len() < 3 {
        demo.kill().expect("killing the demo");
        demo.wait().expect("the demo's end");
        return None;
    }
    Some((demo, children))
}

fn children_of(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| stat(pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

/// Dead processes whom nobody has waited for (state Z) count as gone.
fn lives(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may contain anything but ends with the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.to_owned();
    Some((state, fields.next()?.parse().ok()?))
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        match look() {
            None if started.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            found => return found,
        }
    }
}

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyctl"));
    command.args(["demo", "--json"]);
    command
}
