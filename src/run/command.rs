//! The command: started in its place, told the signals that it would have had, and ended with all
//! that it left.

use std::{
    ffi::OsString,
    fs, io,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpgid, getpgrp, kill_process};

use super::{deaths::Deaths, scope::Place};
use crate::sys::{self, Caught};

/// What a process left behind by the command has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at who is left.
const PAUSE: Duration = Duration::from_millis(2);

/// Starts it in our own process group, as `env` or `nice` would: the terminal, its job control and a
/// pipeline then find it where they would have found it.
///
/// # Errors
/// An exit code and what to say, as shells have them: 127 not found, 126 not executable.
pub(super) fn start(words: &[OsString], place: &Place) -> Result<Pid, (u8, String)> {
    let [program, arguments @ ..] = words else {
        return Err((126, "no command".into()));
    };
    let name = program.to_string_lossy();
    let started = match place.spawn(words) {
        Some(started) => started,
        None => {
            let mut command = Command::new(program);
            command.args(arguments);
            sys::unblock_signals(&mut command);
            place
                .contain(&mut command)
                .map_err(|error| (super::REFUSED, error.to_string()))?;
            command.spawn().map(|child| Pid::from_child(&child))
        }
    };
    match started {
        Ok(pid) => Ok(pid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err((127, format!("{name}: command not found")))
        }
        Err(error) => Err((126, format!("{name}: {error}"))),
    }
}

/// Passes a signal on, unless the command has had it already.
pub(super) fn forward(caught: Caught, command: Pid) {
    // The terminal tells the whole group, and so does whoever in the group tells the group.
    let from_group = Pid::from_raw(caught.sender)
        .and_then(|sender| getpgid(Some(sender)).ok())
        .is_some_and(|group| group == getpgrp());
    if !caught.by_kernel && !from_group {
        let _ = kill_process(command, caught.signal);
    }
}

/// Ends what the command left running: a daemon of its own would lose its sidecar anyway.
pub(super) fn end_leftovers(deaths: &Deaths, place: &Place) {
    let deadline = Instant::now() + GRACE;
    let mut told = Vec::new();
    loop {
        let Some(leave) = deaths.leave() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        deaths.reap(&leave);
        let left: Vec<_> = children()
            .into_iter()
            .filter(|&child| !deaths.is_proxy(child) && Some(child) != place.sweeper())
            .collect();
        if left.is_empty() {
            return;
        }
        let is_late = Instant::now() > deadline;
        for child in left {
            if is_late {
                let _ = kill_process(child, Signal::KILL);
            } else if !told.contains(&child) {
                let _ = kill_process(child, Signal::TERM);
                told.push(child);
            }
        }
        drop(leave);
        std::thread::sleep(PAUSE);
    }
}

/// Orphans from below come to us, as to an init.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| {
            let pids = list.split_whitespace().map(str::parse::<i32>);
            pids.filter_map(|pid| Pid::from_raw(pid.ok()?))
                .collect::<Vec<_>>()
        })
        .collect()
}
