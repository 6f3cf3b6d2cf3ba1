//! Child processes that end when the demo ends, whatever ends it.
//!
//! Every child is this very program again, started through a role that asks the kernel to kill it
//! with its parent (PR_SET_PDEATHSIG) and then becomes what it is to be.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use serde::Serialize;

use super::sandbox::DIRECTORY;

/// What a child that is a command of this program is called.
const PROXYCTL: &str = "proxyctl";
/// The roles with a conversation, which are called as they are.
pub(super) const APPLICATION: &str = "application";
pub(super) const UPSTREAM: &str = "upstream";
pub(super) const STRANGER: &str = "stranger";

/// Gives this program its names within the demo's own file system, for `ps` and for what
/// `install-rules` says of the processes that it finds. Each is a link to whatever file the process
/// that starts a child was started from, hidden or replaced as that may be.
pub(super) fn name_the_parts() -> io::Result<()> {
    [PROXYCTL, APPLICATION, UPSTREAM, STRANGER]
        .iter()
        .try_for_each(|name| symlink("/proc/self/exe", path(name)))
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// A child under way. Dropping it kills and reaps it.
pub(super) struct Running(Child);

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills it as `kill -9` does, without waiting for the end.
    pub(super) fn kill(&self) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed())
            .ok_or_else(|| io::Error::other("a child without a pid"))?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait()
    }

    pub(super) fn has_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that takes lines and gives lines.
pub(super) struct Conversation {
    pub(super) running: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    /// The child's next line.
    ///
    /// # Errors
    /// When it ended instead.
    pub(super) fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the process ended instead of answering; its reason stands above",
            ));
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    pub(super) fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.input
            .write_all(format!("{}\n", serde_json::json!(message)).as_bytes())
    }
}

/// Starts one of the demo's own roles and talks with it.
pub(super) fn converse(role: &str) -> io::Result<Conversation> {
    let mut child = role_command(role, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let missing = || io::Error::other("a child without pipes");
    let input = child.stdin.take().ok_or_else(missing)?;
    let output = child.stdout.take().ok_or_else(missing)?;
    Ok(Conversation {
        running: Running(child),
        input,
        output: BufReader::new(output),
    })
}

/// Starts `proxyctl ARGUMENTS`, as user `uid` if given.
pub(super) fn start(
    arguments: &[&str],
    uid: Option<u32>,
    stdout: File,
    stderr: File,
) -> io::Result<Running> {
    let mut command = tied(arguments);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.spawn().map(Running)
}

/// Runs `proxyctl ARGUMENTS` to its end: exit code, and what it printed, standard output first.
pub(super) fn run(arguments: &[&str]) -> io::Result<(Option<i32>, String)> {
    let output = tied(arguments).stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

fn tied(arguments: &[&str]) -> Command {
    let mut command = role_command(PROXYCTL, "command");
    command.arg("--command").args(arguments);
    command
}

fn role_command(name: &str, role: &str) -> Command {
    let mut command = Command::new(path(name));
    command.args([
        "demo",
        "--parent",
        &std::process::id().to_string(),
        "--role",
    ]);
    command.arg(role);
    command
}

/// From now on this process is killed when `parent`, which started it, ends.
pub(super) fn tie_to(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before the line above, and then no signal will ever come.
    if Pid::as_raw(getppid()) == parent {
        Ok(())
    } else {
        Err(io::Error::other("the demo has already ended"))
    }
}

/// Becomes `proxyctl ARGUMENTS`.
pub(super) fn become_command(arguments: &[String]) -> io::Result<Infallible> {
    Err(Command::new(path(PROXYCTL)).args(arguments).exec())
}
