//! The programs under test, started inside a namespace and ended with the test.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::netns::Namespace;

/// The user that proxies of these tests run as, unless they say otherwise.
pub(crate) const PROXY_UID: u32 = 1337;

/// A running program, killed when dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid();
        crate::netns::run(&format!("kill -s {name} {pid}"));
    }

    /// SIGKILL, and until the kernel is done with it.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the program's end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `proxyctl serve`, which becomes the proxy's user by itself, and waits until it listens.
pub(crate) fn serve(namespace: &Namespace, arguments: &str) -> Running {
    let mut command = Command::new(proxyctl());
    command.args(["serve", "--admin", "off", "--log-level", "error"]);
    command.args(arguments.split_whitespace());
    let running = start(namespace, command);
    until("the proxy", || {
        namespace.enter(|| TcpStream::connect(("127.0.0.1", 15001)).is_ok())
    });
    running
}

/// Starts a tiny proxy as `uid`, and waits until it listens: for what `serve` cannot be told to do
/// wrong.
pub(crate) fn proxy(namespace: &Namespace, uid: u32, arguments: &str) -> Running {
    let words: Vec<_> = arguments.split_whitespace().collect();
    let mut command = as_user(uid, &tiny_proxy());
    command.args(words).stdout(Stdio::piped());
    let mut child = namespace.enter(|| command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let running = Running(child);
    assert_eq!(line.trim(), "ready", "the proxy did not start");
    running
}

/// Starts any program inside.
pub(crate) fn start(namespace: &Namespace, mut command: Command) -> Running {
    Running(namespace.enter(|| command.spawn().unwrap()))
}

pub(crate) fn as_user(uid: u32, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        format!("--reuid={uid}"),
        format!("--regid={uid}"),
        "--clear-groups".into(),
    ]);
    command.arg(program);
    command
}

/// The release build where `make soak` names it.
pub(crate) fn proxyctl() -> PathBuf {
    match std::env::var_os("OUTRIGGER_PROXYCTL") {
        Some(named) => std::path::absolute(named).unwrap(),
        None => built().into(),
    }
}

fn built() -> &'static str {
    env!("CARGO_BIN_EXE_proxyctl")
}

pub(crate) fn tiny_proxy() -> PathBuf {
    let path = Path::new(built()).with_file_name("examples");
    let path = path.join("tiny_proxy");
    assert!(
        path.exists(),
        "these tests need `cargo build --example tiny_proxy` first (a plain `cargo test` does it)"
    );
    path
}

/// What a `proxyctl` command came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    /// The JSON result; null where there is none.
    pub(crate) json: Value,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn text(&self, key: &str) -> &str {
        self.json[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn expect(self, result: &str) -> Self {
        assert_eq!(self.json["result"], result, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn expect_one_of(self, results: &[&str]) -> Self {
        assert!(results.contains(&self.text("result")), "{self:?}");
        self
    }
}

/// Runs `proxyctl ARGUMENTS` inside, as root.
pub(crate) fn ctl(namespace: &Namespace, arguments: &str) -> Outcome {
    finish(namespace, Command::new(proxyctl()), arguments)
}

pub(crate) fn ctl_as(namespace: &Namespace, uid: u32, arguments: &str) -> Outcome {
    finish(namespace, as_user(uid, &proxyctl()), arguments)
}

/// Runs `command`, which ends with `proxyctl`, with more arguments.
pub(crate) fn finish(namespace: &Namespace, mut command: Command, arguments: &str) -> Outcome {
    let words: Vec<_> = arguments.split_whitespace().collect();
    command.args(words);
    let output = namespace.enter(|| command.output().unwrap());
    let stdout = String::from_utf8(output.stdout).unwrap();
    Outcome {
        // None: a signal ended it.
        code: output.status.code().unwrap_or(-1),
        json: serde_json::from_str(&stdout).unwrap_or_default(),
        stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}
