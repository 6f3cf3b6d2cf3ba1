//! Against the kernel's own cgroups: these tests need root and a writable cgroup2.

use std::process::Stdio;

use super::*;

/// A cgroup that ends with the test.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("outrigger-test-{}-{name}", std::process::id());
        let root = Cgroup::find("/").expect("a cgroup2 file system is mounted");
        Self(root.create_child(&name).expect("these tests need root"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait_until_empty(Duration::from_secs(10));
        let _ = self.0.remove();
    }
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("60").stdin(Stdio::null());
    command
}

#[test]
fn a_child_begins_in_the_cgroup_and_ends_with_it() {
    let scratch = Scratch::new("contain");
    let mut command = sleeper();
    scratch.0.contain(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    assert_eq!(scratch.0.processes().unwrap(), [child.id()]);
    assert!(
        !scratch
            .0
            .wait_until_empty(Duration::from_millis(1))
            .unwrap()
    );
    let refused = scratch.0.remove().unwrap_err();
    assert!(refused.to_string().contains("still runs"), "{refused}");

    scratch.0.kill().unwrap();
    child.wait().unwrap();
    assert!(scratch.0.wait_until_empty(Duration::from_secs(10)).unwrap());
    scratch.0.remove().unwrap();
    scratch.0.remove().expect("gone already is no error");
}

#[test]
fn a_program_is_started_in_it_and_not_moved_there() {
    let scratch = Scratch::new("spawn");
    let start = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        scratch.0.spawn(&words).expect("this kernel has clone3")
    };
    let missing = start(&["no-such-program"]).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    let pid = start(&["sleep", "60"]).unwrap();
    assert_eq!(scratch.0.processes().unwrap(), [pid]);
    scratch.0.kill().unwrap();
    let child = Pid::from_raw(pid.cast_signed());
    rustix::process::waitpid(child, rustix::process::WaitOptions::empty()).unwrap();
}

/// Regression: it looked again at once and without end, because what it polled was not what it read.
#[test]
fn waiting_for_the_end_of_what_runs_in_it_is_no_busy_loop() {
    let scratch = Scratch::new("wait");
    let mut command = sleeper();
    scratch.0.contain(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    let before = reads_of_this_thread();
    let is_empty = scratch.0.wait_until_empty(Duration::from_millis(300));
    assert!(!is_empty.unwrap());
    let reads = reads_of_this_thread() - before;
    assert!(reads < 20, "{reads} reads");
    scratch.0.kill().unwrap();
    child.wait().unwrap();
}

fn reads_of_this_thread() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    let calls = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    calls.unwrap().parse().unwrap()
}

#[test]
fn a_running_process_is_moved_and_killed_where_the_kernel_has_no_kill_file() {
    let scratch = Scratch::new("move");
    let below = scratch.0.create_child("below").unwrap();
    let mut child = sleeper().spawn().unwrap();
    below.add(child.id()).unwrap();
    assert!(!scratch.0.is_empty().unwrap(), "cgroups below count");
    scratch.0.kill_one_by_one().unwrap();
    child.wait().unwrap();
    assert!(scratch.0.wait_until_empty(Duration::from_secs(10)).unwrap());
    below.remove().unwrap();
}

#[test]
fn a_cgroup_made_again_is_another() {
    let scratch = Scratch::new("again");
    let first = scratch.0.create_child("x").unwrap();
    first.remove().unwrap();
    let second = scratch.0.create_child("x").unwrap();
    assert_eq!(first.path(), second.path());
    assert_ne!(first.id(), second.id());
    assert_eq!(Cgroup::find(second.path()).unwrap(), second);
    assert_eq!(second.level(), 2);
    let refused = scratch.0.create_child("x").unwrap_err();
    assert!(refused.to_string().contains("of that name"), "{refused}");
    second.remove().unwrap();
}

#[test]
fn a_directory_below_the_mount_point_means_its_cgroup() {
    let scratch = Scratch::new("directory");
    let directory = scratch.0.directory.to_str().unwrap();
    assert_eq!(Cgroup::find(directory).unwrap(), scratch.0);
}

#[test]
fn the_own_cgroup_is_one_that_holds_this_process() {
    let own = Cgroup::own().unwrap();
    assert!(own.processes().unwrap().contains(&std::process::id()));
}

#[test]
fn what_is_no_cgroup_is_refused_with_a_reason() {
    for (path, reason) in [
        ("/no/such/cgroup", "there is none"),
        ("a/b", "no full path"),
        ("/a/../b", "no full path"),
    ] {
        let refused = Cgroup::find(path).unwrap_err();
        assert!(refused.to_string().contains(reason), "{refused}");
        assert!(!refused.advice().is_empty());
    }
}

/// cgroup2's rule that processes live in the leaves. A hybrid host may have no controller to give.
#[test]
fn the_kernels_numbers_are_put_into_words() {
    for (number, words) in [
        (libc::EROFS, "read-only"),
        (libc::EACCES, "not delegated"),
        (libc::EBUSY, "takes no process"),
        (libc::EOPNOTSUPP, "threaded"),
        (libc::ENODEV, "gone"),
    ] {
        let error = CgroupError::of("x".into(), io::Error::from_raw_os_error(number));
        assert!(error.to_string().contains(words), "{error}");
    }
}
