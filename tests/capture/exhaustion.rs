//! A captured proxy that runs out of memory or of descriptors: connections are answered, or go direct.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    INSTALL,
    proxyctl::{ctl, proxyctl, start, until},
    wire::{Client, V4, assert_captured, until_captured, wire},
};

/// A lease, and what a busy machine may add to it.
const LEASE_AND_MORE: Duration = Duration::from_millis(2500);

/// It answers whom it has descriptors for. Once there are none for a beat either, its lease ends.
#[test]
fn a_proxy_out_of_descriptors_answers_or_loses_its_capture() {
    let pair = wire();
    let file = crate::config("limits: { max_connections: 100000 }");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &format!(
            "ulimit -n 80; exec {} serve --admin off --log-level error --workers 2 --config {file}",
            proxyctl().display()
        ),
    ]);
    let _proxy = start(&pair.app, command);
    until("the proxy", || {
        pair.app
            .enter(|| TcpStream::connect(("127.0.0.1", 15001)).is_ok())
    });
    ctl(&pair.app, INSTALL).expect("captured");
    let began = Instant::now();
    let mut held = Vec::new();
    let mut direct = 0;
    until("direct connections", || {
        match Client::try_connect(&pair.app, V4) {
            Ok(client) => {
                direct += usize::from(!client.is_captured);
                held.push(client);
            }
            Err(_) => assert!(
                began.elapsed() < Duration::from_secs(2) + LEASE_AND_MORE,
                "refused for longer than a lease"
            ),
        }
        direct >= 20
    });
    held.iter_mut().for_each(Client::check);
    drop(held);
    until_captured(&pair);
}

/// The kernel kills it; nothing of it stays.
#[test]
fn a_proxy_killed_for_its_memory_leaves_nothing_behind() {
    let pair = wire();
    let group = MemoryGroup::new("outrigger-exhaustion", 24 << 20);
    let mut proxy = {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!(
                "echo $$ > {}; exec {} serve --admin off --log-level error --workers 2",
                group.path().join("cgroup.procs").display(),
                proxyctl().display()
            ),
        ]);
        start(&pair.app, command)
    };
    until("the proxy", || {
        pair.app
            .enter(|| TcpStream::connect(("127.0.0.1", 15001)).is_ok())
    });
    ctl(&pair.app, INSTALL).expect("captured");
    assert_captured(&pair, true);
    // Heads that never end are kept until they do.
    let mut held = Vec::new();
    until("the proxy's end", || {
        for _ in 0..50 {
            let Ok(mut stream) = pair.app.enter(|| TcpStream::connect(V4)) else {
                return true;
            };
            stream
                .set_write_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(50_000));
            let _ = stream.write_all(head.as_bytes());
            held.push(stream);
        }
        fs::read_to_string(format!("/proc/{}/stat", proxy.pid()))
            .is_ok_and(|stat| stat.contains(") Z "))
    });
    let status = proxy.wait();
    assert!(!status.success(), "{status}");
    assert_captured(&pair, false);
    assert_eq!(pair.app.ruleset(), "");
    // None hangs: an end or a reset, at once.
    for stream in held {
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut line = String::new();
        let read = BufReader::new(stream).read_line(&mut line);
        let is_over =
            !matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(is_over, "a connection hangs: {read:?}");
    }
}

/// A cgroup that limits memory, of whichever version this host has for that.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(name: &str, bytes: usize) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut words = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let (root, limit) = words
            .find_map(|words| match words[2] {
                "cgroup" if words[3].split(',').any(|option| option == "memory") => {
                    Some((words[1].to_owned(), "memory.limit_in_bytes"))
                }
                "cgroup2" if has_memory(Path::new(words[1])) => {
                    Some((words[1].to_owned(), "memory.max"))
                }
                _ => None,
            })
            .expect("this test needs a cgroup hierarchy with the memory controller");
        let path = Path::new(&root).join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("this test needs root, to make a cgroup");
        fs::write(path.join(limit), bytes.to_string()).unwrap();
        let swap = path.join("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0").unwrap();
        }
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

fn has_memory(root: &Path) -> bool {
    fs::read_to_string(root.join("cgroup.subtree_control"))
        .is_ok_and(|controllers| controllers.split_whitespace().any(|c| c == "memory"))
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
