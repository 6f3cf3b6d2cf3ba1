//! The command of a `run` under test: clients that keep connecting, in whatever place `run` starts
//! them. It is this very test program, started again.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::support::{Process, SOON, World, wait_until};

const CLIENTS: usize = 8;
/// No request of a test waits longer.
const LIMIT: Duration = Duration::from_secs(15);
/// A request that took so long is worth telling.
const SLOW: Duration = Duration::from_millis(100);

/// A supervisor and its command, which asks `to` for `/hello` from 8 threads, each time over a new
/// connection.
pub(crate) struct Client {
    pub(crate) supervisor: Process,
    dir: PathBuf,
}

/// One request that failed, or was slow; times are since 1970.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// Empty for one that succeeded.
    pub(crate) error: String,
}

impl Client {
    /// `run` is the command line up to the `--` before the command.
    pub(crate) fn start(world: &World, name: &str, mut run: Command, to: SocketAddr) -> Self {
        let dir = world.dir().join(name);
        fs::create_dir(&dir).expect("the test's directory is writable");
        run.arg("--")
            .arg(std::env::current_exe().expect("/proc is mounted"))
            .args([
                "--exact",
                "client::keeps_asking",
                "--ignored",
                "--nocapture",
            ])
            .env("OUTRIGGER_ASK_DIR", &dir)
            .env("OUTRIGGER_ASK", to.to_string());
        let mut client = Self {
            supervisor: world.start(name, &run),
            dir,
        };
        let asked = client.dir.join("asked");
        client
            .supervisor
            .until("starts its command", || asked.exists());
        client.flows(20);
        client
    }

    /// Waits until `count` more requests have succeeded.
    #[track_caller]
    pub(crate) fn flows(&self, count: usize) {
        let goal = self.asked() + count;
        wait_until(
            SOON,
            &format!("requests succeed; {}", self.supervisor.log()),
            || self.asked() >= goal,
        );
    }

    fn asked(&self) -> usize {
        let text = fs::read_to_string(self.dir.join("asked")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Ends the command, and tells what failed or was slow.
    pub(crate) fn stop(mut self) -> Vec<Asked> {
        self.end_command();
        let status = self.supervisor.wait(SOON);
        assert_eq!(status.code(), Some(0), "{}", self.supervisor.log());
        self.told()
    }

    /// Has the command end by itself.
    pub(crate) fn end_command(&self) {
        fs::write(self.dir.join("stop"), "").expect("the test's directory is writable");
    }

    pub(crate) fn told(&self) -> Vec<Asked> {
        let text = fs::read_to_string(self.dir.join("told")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut words = line.splitn(3, ' ');
                let mut time = || {
                    let nanos = words.next().and_then(|word| word.parse().ok());
                    Duration::from_nanos(nanos.expect("a time"))
                };
                Asked {
                    began: time(),
                    ended: time(),
                    error: words.next().unwrap_or_default().into(),
                }
            })
            .collect()
    }
}

pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is later than 1970")
}

#[test]
#[ignore = "the command of other tests"]
fn keeps_asking() {
    let setting = |name| std::env::var(name).expect("it is started by another test");
    let dir = PathBuf::from(setting("OUTRIGGER_ASK_DIR"));
    let to = setting("OUTRIGGER_ASK").parse().expect("an address");
    let asked = AtomicUsize::new(0);
    let told = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("told"))
        .expect("a writable directory");
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !dir.join("stop").exists() {
                    let began = now();
                    let outcome = ask(to);
                    let ended = now();
                    if outcome.is_ok() {
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                    if outcome.is_err() || ended - began > SLOW {
                        let error = outcome.err().map(|e| e.to_string()).unwrap_or_default();
                        let line = format!("{} {} {error}\n", began.as_nanos(), ended.as_nanos());
                        (&told)
                            .write_all(line.as_bytes())
                            .expect("room on the disk");
                    }
                }
            });
        }
        while !dir.join("stop").exists() {
            publish(&dir, asked.load(Ordering::Relaxed));
            thread::sleep(Duration::from_millis(5));
        }
    });
    // Its parent may be gone, and the directory with it soon.
    publish(&dir, asked.load(Ordering::Relaxed));
}

/// Whole or not at all.
fn publish(dir: &Path, asked: usize) {
    let new = dir.join("asked.new");
    fs::write(&new, asked.to_string()).expect("a writable directory");
    fs::rename(new, dir.join("asked")).expect("a writable directory");
}

fn ask(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    let from = stream.local_addr()?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /hello HTTP/1.1\r\nHost: svc\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .map_err(|error| io::Error::other(format!("from {from}: {error}")))?;
    if answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello\n") {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "from {from}: answered {answer:?}"
        )))
    }
}
