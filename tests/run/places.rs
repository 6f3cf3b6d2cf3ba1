//! `run` wherever people may start it: in itself, beside itself, without rights, as an init, on a
//! terminal. It works or says why not, and is never half there.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    assert_nothing_left,
    client::Client,
    is_captured, proxy, run,
    support::{SOON, SVC4, World, wait_until},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn run_in_run_works() {
    let world = World::new();
    let nginx = world.nginx();
    let proxyctl = world.proxyctl().display().to_string();
    let url = format!("http://{SVC4}/hello");
    for (outer, inner) in [("cgroup", "cgroup"), ("netns", "cgroup")] {
        let mut command = Command::new(world.proxyctl());
        command.args([
            "run", "--scope", outer, "--", &proxyctl, "run", "--scope", inner, "--",
        ]);
        command.args(["curl", "-sSf", &url]);
        let output = world.app.output(&command);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{outer}, {inner}: {output:?}"
        );
        assert_eq!(text(&output.stdout), "hello\n");
        assert_nothing_left(&world);
    }
    assert_eq!(nginx.requests().len(), 2);
}

#[test]
fn two_side_by_side_have_a_proxy_each() {
    let world = World::new();
    let _nginx = world.nginx();
    let start = |name| {
        let mut run = Command::new(world.proxyctl());
        run.args(["run", "--log-level", "info"]);
        Client::start(&world, name, run, (SVC4, 80).into())
    };
    let (one, two) = (start("one"), start("two"));
    let ports = |client: &Client| {
        let log = client.supervisor.log();
        let (_, after) = log
            .split_once("listeners=")
            .expect("it says where it listens");
        after.split_whitespace().next().map(str::to_owned)
    };
    assert_ne!(ports(&one), ports(&two));
    kill_process(proxy(&world).expect("a proxy"), Signal::KILL).expect("it lives");
    one.flows(100);
    two.flows(100);
    for client in [one, two] {
        let failed: Vec<_> = client
            .stop()
            .into_iter()
            .filter(|a| !a.error.is_empty())
            .collect();
        // Those that the killed one held.
        assert!(failed.len() <= 8, "{failed:?}");
    }
    assert_nothing_left(&world);
}

#[test]
fn without_root_it_says_so_and_goes_on_only_when_asked_to() {
    let world = World::new();
    let proxyctl = world.proxyctl().display().to_string();
    let as_user = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
        command.args([&proxyctl, "run"]).args(arguments);
        world.app.output(&command)
    };
    for scope in ["cgroup", "netns"] {
        let refused = as_user(&["--scope", scope, "--", "true"]);
        assert_eq!(refused.status.code(), Some(125), "{refused:?}");
        let said = text(&refused.stderr);
        assert!(
            said.contains("root") || said.contains("CAP_NET_ADMIN"),
            "{said}"
        );
        assert!(said.contains("With --best-effort"), "{said}");
        let direct = as_user(&[
            "--best-effort",
            "--scope",
            scope,
            "--",
            "sh",
            "-c",
            "exit 7",
        ]);
        assert_eq!(direct.status.code(), Some(7), "{direct:?}");
        let said = text(&direct.stderr);
        assert_eq!(said.matches("--best-effort").count(), 1, "{said}");
        assert_nothing_left(&world);
    }
}

#[test]
fn in_a_user_namespace_it_captures_the_namespace() {
    let world = World::new();
    let proxyctl = world.proxyctl().display().to_string();
    let config = world.write(
        "userns.yaml",
        "capture: { proxy_uid: 0, proxy_mark: 1337 }\n",
    );
    let inside = |arguments: &str| {
        world.app.try_sh(&format!(
            "unshare --user --map-root-user --net sh -c 'ip link set lo up; {proxyctl} run --config {} {arguments}'",
            config.display()
        ))
    };
    let output = inside("--scope netns -- sh -c \"exit 7\"");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_nothing_left(&world);
}

#[test]
fn as_an_init_it_reaps_and_forwards() {
    let world = World::new();
    // Its orphan's parent is process 1, which is `run`.
    let script = "(sleep 0.01 & echo orphan $! ) ; trap 'exit 9' TERM; echo begun; while :; do sleep 0.01; done";
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .arg(world.proxyctl())
        .args(["run", "--scope", "netns", "--", "sh", "-c", script]);
    let mut outer = world.start("init", &command);
    outer.until("starts its command", || true);
    wait_until(SOON, "the command has begun", || {
        outer.log().contains("begun")
    });
    let init = children(outer.pid())[0];
    wait_until(SOON, "no zombie is left to it", || {
        children(init).into_iter().all(|child| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero()));
            !stat.is_ok_and(|stat| stat.contains(") Z "))
        })
    });
    kill_process(init, Signal::TERM).expect("it lives");
    assert_eq!(outer.wait(SOON).code(), Some(9), "{}", outer.log());
    assert_nothing_left(&world);
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|word| Pid::from_raw(word.parse().ok()?))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_backend_captures_and_leaves_nothing() {
    let world = World::new();
    let nginx = world.nginx();
    let url = format!("http://{SVC4}/hello");
    for (round, backend) in ["nft", "iptables-nft", "iptables-legacy", "auto"]
        .into_iter()
        .enumerate()
    {
        let output = world.app.output(&run(
            &world,
            &["--backend", backend, "--", "curl", "-sSf", &url],
        ));
        assert_eq!(output.status.code(), Some(0), "{backend}: {output:?}");
        assert_eq!(text(&output.stdout), "hello\n", "{backend}");
        assert_eq!(nginx.requests().len(), round + 1);
        let rules = world
            .app
            .sh("iptables-legacy-save -t nat; iptables-nft-save -t nat");
        assert!(
            !rules.to_lowercase().contains("outrigger"),
            "{backend}: {rules}"
        );
        wait_until(SOON, "no process is left", || {
            world.app.processes().is_empty()
        });
    }
}

#[test]
fn a_rule_that_somebody_takes_away_is_put_back() {
    let world = World::new();
    let mut supervisor = world.start(
        "run",
        &run(&world, &["--backend", "iptables-nft", "--", "sleep", "600"]),
    );
    let has_jump = || world.app.sh("iptables-nft -t nat -S OUTPUT").contains("-j");
    supervisor.until("captures", || is_captured(&world) && has_jump());
    world.app.sh("iptables-nft -t nat -F OUTPUT");
    supervisor.until("puts it back", has_jump);
    supervisor.signal(Signal::TERM);
    assert_eq!(
        supervisor.wait(SOON).code(),
        Some(143),
        "{}",
        supervisor.log()
    );
}

/// `run` on a terminal of its own, which `script` (util-linux) makes and we type on.
struct Terminal {
    script: std::process::Child,
    log: std::path::PathBuf,
}

impl Terminal {
    fn start(world: &World, script: &str) -> Self {
        let log = world.dir().join("said");
        let run = format!("{} run --scope netns --", world.proxyctl().display());
        let script = script
            .replace("RUN", &run)
            .replace("SAID", &log.display().to_string());
        let script = world.write("terminal.sh", script);
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command"])
            .arg(format!("exec sh {}", script.display()))
            .arg("/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let script = world
            .app
            .within(|| command.spawn())
            .expect("`script` (util-linux, on Debian in bsdutils) is installed");
        let terminal = Self { script, log };
        wait_until(SOON, "the command has begun", || {
            terminal.said("begun") == 1
        });
        terminal
    }

    fn type_(&mut self, key: &[u8]) {
        let keyboard = self.script.stdin.as_mut().expect("it has one");
        keyboard.write_all(key).expect("it reads");
    }

    fn said(&self, word: &str) -> usize {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        said.lines().filter(|line| *line == word).count()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[test]
fn on_a_terminal_each_signal_reaches_the_command_once() {
    let world = World::new();
    let mut terminal = Terminal::start(
        &world,
        "exec RUN sh -c 'trap \"echo INT >> SAID\" INT; trap \"echo WINCH >> SAID\" WINCH; \
         trap \"echo QUIT >> SAID; exit 5\" QUIT; echo begun >> SAID; stty rows 33; \
         while :; do sleep 0.02; done'",
    );
    wait_until(SOON, "the new size is told", || terminal.said("WINCH") > 0);
    for count in 1..=3 {
        terminal.type_(b"\x03");
        wait_until(SOON, "^C arrives", || terminal.said("INT") >= count);
    }
    terminal.type_(b"\x1c");
    let status = crate::support::wait_for(SOON, "it ends", || {
        terminal.script.try_wait().expect("a child")
    });
    assert_eq!(status.code(), Some(5));
    assert_eq!(
        (
            terminal.said("INT"),
            terminal.said("WINCH"),
            terminal.said("QUIT")
        ),
        (3, 1, 1)
    );
    assert_nothing_left(&world);
}

#[test]
fn a_stop_from_the_terminal_stops_the_command_and_not_the_proxy() {
    let world = World::new();
    let mut terminal = Terminal::start(
        &world,
        // Job control, and with it ^Z, is a shell's that has it.
        "set -m; RUN sh -c 'echo begun >> SAID; sleep 600; exit 6'; echo stopped >> SAID; \
         until [ -e SAID.go ]; do sleep 0.01; done; fg >/dev/null; exit $?",
    );
    let state = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let stat = stat.expect("it lives");
        stat[stat.rfind(')').expect("a name") + 2..].chars().next()
    };
    // What it says comes before what it then starts.
    let sleep = crate::support::wait_for(SOON, "the command runs", || {
        world.app.processes().into_iter().find(|pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            line.is_ok_and(|line| line.starts_with(b"sleep\x00600"))
        })
    });
    terminal.type_(b"\x1a");
    wait_until(SOON, "the command is stopped", || state(sleep) == Some('T'));
    let proxy = proxy(&world).expect("a proxy");
    assert_ne!(state(proxy), Some('T'));
    wait_until(SOON, "the shell has its terminal again", || {
        terminal.said("stopped") == 1
    });
    world.write("said.go", "");
    wait_until(SOON, "the command goes on", || state(sleep) != Some('T'));
    kill_process(sleep, Signal::TERM).expect("it lives");
    let status = crate::support::wait_for(SOON, "it ends", || {
        terminal.script.try_wait().expect("a child")
    });
    assert_eq!(status.code(), Some(6));
    assert_nothing_left(&world);
}
