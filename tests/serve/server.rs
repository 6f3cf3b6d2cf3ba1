//! A `proxyctl serve` under test, and a plain HTTP client for its admin listener.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The longest that anything which should happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A running proxy, killed when dropped.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    pub(crate) admin: SocketAddr,
    pub(crate) listener: SocketAddr,
    pub(crate) started: Value,
}

impl Server {
    /// Starts one on free ports with `arguments` besides, and waits until it serves.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(serve(arguments))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                lines.lock().unwrap().push(line);
            }
        });
        let mut server = Self {
            child,
            log,
            admin: SocketAddr::from(([0; 4], 0)),
            listener: SocketAddr::from(([0; 4], 0)),
            started: Value::Null,
        };
        server.started = server.logged("serving");
        let address = |key: &str| {
            let text = server.started[key].as_str().unwrap();
            text.parse().unwrap_or_else(|_| panic!("{key} is {text}"))
        };
        (server.admin, server.listener) = (address("admin"), address("listeners"));
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a log line whose message begins with `message`.
    #[track_caller]
    pub(crate) fn logged(&mut self, message: &str) -> Value {
        wait_for(&format!("a log line `{message}`"), || {
            let log = self.log.lock().unwrap();
            let found = log.iter().find(|line| {
                let text = line["message"].as_str();
                text.is_some_and(|text| text.starts_with(message))
            });
            assert!(
                found.is_some() || self.child.try_wait().unwrap().is_none(),
                "it ended: {log:?}"
            );
            found.cloned()
        })
    }

    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("its end", || self.child.try_wait().unwrap())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.admin
        ))
    }

    /// The answer to `request`, which must ask for the connection to be closed.
    pub(crate) fn ask(&self, request: &str) -> Answer {
        ask(TcpStream::connect(self.admin).unwrap(), request)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The sum of a metric's series that have `labels` in their text.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let series = self.body.lines().filter(|line| {
            let is_named = line
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']));
            is_named && line.contains(labels)
        });
        series
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    }
}

pub(crate) fn ask(mut stream: TcpStream, request: &str) -> Answer {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer but {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let is_chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: if is_chunked {
            unchunked(body)
        } else {
            body.to_owned()
        },
    }
}

/// `proxyctl serve` on free ports.
pub(crate) fn serve(arguments: &[&str]) -> Command {
    let mut command = proxyctl(&["serve", "--log-format", "json", "--workers", "2"]);
    command
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(arguments);
    command
}

pub(crate) fn proxyctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyctl"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET");
    command
}

/// What a command that does not go on came to: its exit code and what it said on stderr.
pub(crate) fn outcome(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let code = status.code().expect("it was not killed");
    (code, String::from_utf8(stderr).unwrap())
}

/// A directory of a test's own, open to the proxy's user, removed when dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrigger-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and tells its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
        if size == 0 {
            break;
        }
    }
    text
}
