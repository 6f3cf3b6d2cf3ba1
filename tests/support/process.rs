//! A long-lived process of a test: its log is kept, and it dies with its guard or with the test.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Namespace, SOON, wait_for};

#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

/// Of one process, in KiB, from `/proc/<pid>/status`.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    /// The most that was ever resident.
    pub peak: u64,
    /// The part of `resident` that is no file: heap and stacks.
    pub anonymous: u64,
}

impl Process {
    /// Starts `command` inside `namespace`; what it prints goes to `<dir>/<name>.log`.
    pub fn start(namespace: &Namespace, dir: &Path, name: &str, command: &Command) -> Self {
        Self::start_as(namespace, dir, name, &[], command)
    }

    /// Like [`Process::start`], with options of `setpriv` that say as whom.
    pub(super) fn start_as(
        namespace: &Namespace,
        dir: &Path,
        name: &str,
        identity: &[&str],
        command: &Command,
    ) -> Self {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).expect("the test's directory is writable");
        let mut wrapped = Command::new("setpriv");
        // The kernel ends it should the test run itself be killed.
        wrapped
            .args(["--pdeathsig", "KILL"])
            .args(identity)
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(dir)
            // A terminal's Ctrl-C is for the test, whose guards then end this process.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("descriptors are left"))
            .stderr(out);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        let child = namespace
            .within(|| wrapped.spawn())
            .unwrap_or_else(|error| panic!("start {name} through setpriv (util-linux): {error}"));
        Self {
            child,
            name: name.into(),
            log,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|error| {
            panic!(
                "signal {signal:?} to {}: {error}\n{}",
                self.name,
                self.log()
            )
        });
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its exit status; the test fails when it does not end within `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait_for(limit, &what, || self.exited())
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is a child of ours")
    }

    /// All that it has printed.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `condition`; fails at once, with the log, when the process ends before.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        wait_for(SOON, &format!("{}: {what}", self.name), || {
            if let Some(status) = self.exited() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            condition().then_some(())
        });
    }

    pub fn memory(&self) -> Memory {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).expect("the process lives");
        let kib = |key: &str| {
            status
                .lines()
                .find_map(|line| {
                    line.strip_prefix(key)?
                        .strip_suffix("kB")?
                        .trim()
                        .parse()
                        .ok()
                })
                .unwrap_or_else(|| panic!("no {key} in {path}"))
        };
        Memory {
            resident: kib("VmRSS:"),
            peak: kib("VmHWM:"),
            anonymous: kib("RssAnon:"),
        }
    }

    /// How many descriptors it holds.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .expect("the process lives and is ours to look at")
            .count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- the end of {}'s log:", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
