//! Every way that a sidecar may die, while its command keeps connecting.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    assert_nothing_left,
    client::{Asked, Client, now},
    is_captured, proxies, proxy, status,
    support::{SOON, SVC4, World, figure, rounds, spin, wait_for, wait_until},
};

/// Many deaths are the point of some tests.
const PATIENT: &str = "supervisor: { max_deaths: 1000000 }\n";

/// The longest that anybody may wait for a proxy that hangs: the lease, and what it takes to notice.
const LEASE_AND_MORE: Duration = Duration::from_millis(2100);

/// The command under `run` that keeps connecting to nginx, and is captured.
fn client(world: &World, config: &str, arguments: &[&str]) -> Client {
    let file = world.write("run.yaml", config);
    let mut run = Command::new(world.proxyctl());
    run.arg("run").arg("--config").arg(file).args(arguments);
    let client = Client::start(world, "client", run, (SVC4, 80).into());
    wait_until(SOON, "captured", || is_captured(world));
    client
}

/// Within that a client must have heard of the end of what a dead proxy held: longer is a hang, of
/// which a soak of 1,000 kills at ten times the CPUs' load has shown a few.
const NOTICED: Duration = Duration::from_secs(5);

/// What a proxy had accepted goes with it, as with any process; everything else must live.
fn inexcusable(asked: Vec<Asked>, deaths: &[(Duration, Duration)]) -> Vec<Asked> {
    asked
        .into_iter()
        .filter(|a| !a.error.is_empty())
        .filter(|a| {
            !deaths
                .iter()
                .any(|(from, to)| a.began <= *to && *from <= a.ended && a.ended <= *to + NOTICED)
        })
        .collect()
}

fn kill_often(scope: &str, count: usize) {
    kill_often_in(&World::new(), scope, count);
}

fn kill_often_in(world: &World, scope: &str, count: usize) {
    let _nginx = world.nginx();
    let client = client(world, PATIENT, &["--scope", scope]);
    let mut kills = Vec::new();
    let mut last = None;
    for _ in 0..count {
        let pid = wait_for(SOON, "another proxy", || {
            proxy(world).filter(|pid| Some(*pid) != last)
        });
        wait_until(SOON, "captured again", || is_captured(world));
        client.flows(20);
        let kill = now();
        kill_process(pid, Signal::KILL).expect("it lives");
        kills.push((kill, kill));
        last = Some(pid);
    }
    client.flows(20);
    let log = client.supervisor.log();
    let failed: Vec<_> = client
        .stop()
        .into_iter()
        .filter(|asked| !asked.error.is_empty())
        .collect();
    let held = failed.len();
    let inexcusable = inexcusable(failed, &kills);
    figure(
        &format!("failed new connections, --scope {scope}"),
        format!("{} in {count} kills", inexcusable.len()),
        "bar 0",
    );
    figure(
        &format!("connections that a killed proxy held, --scope {scope}"),
        held - inexcusable.len(),
        "no bar",
    );
    assert!(inexcusable.is_empty(), "{inexcusable:?}\n{log}");
    assert_nothing_left(world);
}

#[test]
fn no_new_connection_fails_however_often_the_proxy_is_killed() {
    kill_often("cgroup", rounds(50, 1000));
}

/// Regression: what a killed proxy reset is remembered for a second with its redirection, and led the
/// next proxy's own connections from the same ports back to itself.
#[test]
fn nor_where_the_few_ports_of_a_namespace_are_used_again_at_once() {
    let world = World::new();
    world
        .app
        .sh("sysctl -qw net.ipv4.ip_local_port_range='40000 41999'");
    kill_often_in(&world, "cgroup", 20);
}

#[test]
fn nor_does_one_in_a_whole_namespace() {
    kill_often("netns", 20);
}

/// Makes the proxy hang; everything must be served meanwhile, and captured by another in the end.
fn hang(what: &str, fault: impl FnOnce(Pid)) {
    let world = World::new();
    let _nginx = world.nginx();
    let client = client(&world, "", &[]);
    let hung = proxy(&world).expect("a proxy");
    let began = now();
    fault(hung);
    wait_until(SOON, "another proxy captures", || {
        proxy(&world).is_some_and(|other| other != hung) && is_captured(&world)
    });
    let again = now() - began;
    client.flows(20);
    let asked = client.stop();
    let longest = asked.iter().map(|a| a.ended - a.began).max();
    figure(
        &format!("longest that a request took, {what}, in ms"),
        longest.unwrap_or_default().as_millis(),
        "bar 2100: the lease and 100",
    );
    figure(
        &format!("captured again, {what}, in ms"),
        again.as_millis(),
        "no bar",
    );
    let inexcusable = inexcusable(asked, &[(began, began + again)]);
    assert!(inexcusable.is_empty(), "{inexcusable:?}");
    // This machine has other tests to run, which the figure has not.
    assert!(longest.is_none_or(|longest| longest < LEASE_AND_MORE * 2));
    assert!(again < Duration::from_secs(5), "{again:?}");
    assert_nothing_left(&world);
}

#[test]
fn a_proxy_that_is_stopped_is_replaced() {
    hang("SIGSTOP", |proxy| {
        kill_process(proxy, Signal::STOP).expect("it lives");
    });
}

#[test]
fn a_proxy_of_which_one_worker_spins_is_replaced() {
    hang("a worker spins", |proxy| {
        let tasks = format!("/proc/{}/task", proxy.as_raw_nonzero());
        let worker = fs::read_dir(tasks)
            .expect("it lives")
            .filter_map(|task| {
                let task = task.ok()?;
                let name = fs::read_to_string(task.path().join("comm")).ok()?;
                let id: i32 = task.file_name().to_str()?.parse().ok()?;
                (name.trim() == "worker-0").then(|| Pid::from_raw(id))?
            })
            .next()
            .expect("it has a worker");
        spin(worker).expect("this test may trace");
    });
}

#[test]
fn a_proxy_that_runs_out_of_memory_is_replaced() {
    let world = World::new();
    let _nginx = world.nginx();
    let group = MemoryGroup::new();
    let join = format!("echo $$ > {}", group.0.join("cgroup.procs").display());
    let program = program(&world, &join);
    let client = client(&world, "", &["--scope", "netns", "--serve-with", &program]);
    let pid = proxy(&world).expect("a proxy");
    let began = now();
    // Heads that never end are kept until they do.
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(50_000));
    let mut held = Vec::new();
    wait_until(SOON, "the proxy is killed for its memory", || {
        for _ in 0..50 {
            if let Ok(mut stream) = world.app.try_connect((SVC4, 80)) {
                let limit = Some(Duration::from_millis(100));
                stream.set_write_timeout(limit).expect("set");
                let _ = stream.write_all(head.as_bytes());
                held.push(stream);
            }
        }
        proxy(&world) != Some(pid)
    });
    drop(held);
    wait_until(SOON * 3, "another proxy captures", || {
        proxy(&world).is_some_and(|other| other != pid) && is_captured(&world)
    });
    let ended = now();
    client.flows(20);
    let log = client.supervisor.log();
    assert!(log.contains("was killed by signal 9"), "{log}");
    let inexcusable = inexcusable(client.stop(), &[(began, ended)]);
    assert!(inexcusable.is_empty(), "{inexcusable:?}");
    assert_nothing_left(&world);
}

/// Instead of the proxy: `first`, as long as it goes well.
fn program(world: &World, first: &str) -> String {
    let text = format!(
        "#!/bin/sh\n{first}\nexec {} \"$@\"\n",
        world.proxyctl().display()
    );
    let program = world.write("program", text);
    world.app.sh(&format!("chmod 755 {}", program.display()));
    program.to_str().expect("a plain path").into()
}

/// Has every proxy from now on do `fault`, until the breaker trips, and then none.
fn crash_for_ever(fault: &str) {
    let world = World::new();
    let _nginx = world.nginx();
    let flag = world.dir().join("broken");
    let condition = format!("[ ! -e {} ] || {fault}", flag.display());
    let program = program(
        &world,
        &condition.replace("PROXYCTL", &world.proxyctl().display().to_string()),
    );
    let client = client(&world, "", &["--serve-with", &program]);
    world.write("broken", "");
    let mut deaths = vec![(now(), now())];
    let mut alive = proxies(&world);
    kill_process(alive[0], Signal::KILL).expect("it lives");
    // What dies by itself does so between two looks.
    let mut looked = now();
    wait_until(SOON * 3, "the breaker trips", || {
        let look = now();
        let found = proxies(&world);
        if alive.iter().any(|pid| !found.contains(pid)) {
            deaths.push((looked, now()));
        }
        alive = found;
        looked = look;
        status(&world).contains("\"tripped\"")
    });
    let tripped = now();
    deaths.push((looked, tripped));
    // Before the next attempt, whose death nobody would see here.
    fs::remove_file(flag).expect("made above");
    client.flows(200);
    let log = client.supervisor.log();
    assert!(log.contains("died too often"), "{log}");
    wait_until(SOON * 4, "it captures again", || is_captured(&world));
    client.flows(20);
    let log = client.supervisor.log();
    let asked = client.stop();
    let failed = asked.iter().filter(|a| !a.error.is_empty()).count();
    let longest = asked.iter().map(|a| a.ended - a.began).max();
    let inexcusable = inexcusable(asked, &deaths);
    figure(
        &format!("failed connections, `{fault}` for ever"),
        format!("{}, and {failed} that a dead proxy held", inexcusable.len()),
        "bar 0",
    );
    figure(
        &format!("longest that a request took, `{fault}` for ever, in ms"),
        longest.unwrap_or_default().as_millis(),
        "no bar",
    );
    assert!(
        inexcusable.is_empty(),
        "{inexcusable:?}\ndeaths {deaths:?}\n{log}"
    );
    assert_nothing_left(&world);
}

#[test]
fn a_proxy_that_crashes_at_its_start_for_ever_trips_the_breaker_and_the_command_goes_direct() {
    crash_for_ever("exit 3");
}

#[test]
fn so_does_one_that_crashes_after_a_second() {
    crash_for_ever("exec timeout --foreground -s KILL 1 PROXYCTL \"$@\"");
}

#[test]
fn without_its_supervisor_the_proxy_leaves_and_the_command_goes_on_direct() {
    let world = World::new();
    let _nginx = world.nginx();
    let mut client = client(&world, "", &[]);
    let cgroup = cgroup_of(&world, "keeps_asking");
    let began = now();
    client.supervisor.kill();
    wait_until(SOON, "the proxy leaves", || proxy(&world).is_none());
    let ended = now();
    figure(
        "until the proxy has left after its supervisor, in ms",
        (ended - began).as_millis(),
        "no bar",
    );
    client.flows(200);
    assert_eq!(world.app.ruleset(), "");
    assert!(cgroup.is_dir(), "the command still runs in it");
    client.end_command();
    assert_nothing_left(&world);
    wait_until(SOON, "the cgroup is removed", || !cgroup.exists());
    let failed: Vec<_> = client
        .told()
        .into_iter()
        .filter(|asked| !asked.error.is_empty())
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Of the process that has `word` in its command line, and is in a cgroup of `run`.
fn cgroup_of(world: &World, word: &str) -> PathBuf {
    let path = world
        .app
        .processes()
        .into_iter()
        .find_map(|pid| {
            let pid = pid.as_raw_nonzero();
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
            (line.contains(word) && own.contains("outrigger-run-")).then(|| own.to_owned())
        })
        .expect("the command runs in a cgroup of its own");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let mount = mounts
        .lines()
        .find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let place = words.next()?;
            (words.next() == Some("cgroup2")).then_some(place)
        })
        .expect("this test needs a cgroup2 file system");
    Path::new(mount).join(path.trim_start_matches('/'))
}

/// A cgroup with 24 MiB of memory, of whichever version this host has for that.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let (root, file) = mounts
            .lines()
            .find_map(|line| {
                let words: Vec<_> = line.split(' ').collect();
                let root = PathBuf::from(words[1]);
                match words[2] {
                    "cgroup" if words[3].split(',').any(|option| option == "memory") => {
                        Some((root, "memory.limit_in_bytes"))
                    }
                    "cgroup2"
                        if fs::read_to_string(root.join("cgroup.subtree_control"))
                            .is_ok_and(|on| on.contains("memory")) =>
                    {
                        Some((root, "memory.max"))
                    }
                    _ => None,
                }
            })
            .expect("this test needs a cgroup hierarchy with the memory controller");
        let path = root.join(format!("outrigger-run-test-{}", std::process::id()));
        fs::create_dir(&path).expect("this test needs root, to make a cgroup");
        let group = Self(path);
        fs::write(group.0.join(file), "25165824").expect("a limit of memory");
        group
    }

    /// Kills what is in it.
    fn kill(&self) {
        let listed = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in listed.lines().filter_map(|line| line.parse().ok()) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        self.kill();
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
