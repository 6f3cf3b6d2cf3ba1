//! One corpus of odd requests, three proxies: what Outrigger forwards or refuses, and whether nginx
//! and HAProxy agree. Where both of them agree on something else, the corpus must say why, so that
//! neither a laxness (smuggling) nor a needless strictness (our outage) goes unnoticed.
//!
//! Needs root, nft, nginx and haproxy. All runs in a network namespace of its own.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

#[path = "support/netns.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod netns;

use netns::{Pair, run};

/// What Outrigger captures, and where the other two listen and dial.
const CAPTURED: u16 = 9000;
const DIRECT: u16 = 9001;
const NGINX: u16 = 9002;
const HAPROXY: u16 = 9003;
/// Outrigger's own dials carry this mark and are not captured.
const MARK: u32 = 77;

/// Longer than any of the three waits for something that has already arrived.
const DEADLINE: Duration = Duration::from_secs(20);

/// After this a proxy that neither answered nor closed is taken to wait for more.
const SILENT: Duration = Duration::from_millis(1500);

#[test]
fn requests_are_forwarded_and_refused_as_the_corpus_says_and_peers_agree() {
    Pair::new().app.enter(compare);
}

fn compare() {
    let world = World::new();
    let mut wrong = Vec::new();
    for case in corpus() {
        let ours = world.verdict(CAPTURED, &case.bytes);
        let nginx = world.verdict(NGINX, &case.bytes);
        let haproxy = world.verdict(HAPROXY, &case.bytes);
        let told = || format!("ours {ours}, nginx {nginx}, haproxy {haproxy}");
        println!("{}: {}", case.title, told());
        if !case.expected.is_met_by(&ours) {
            wrong.push(format!(
                "{}: not {:?}: {}",
                case.title,
                case.expected,
                told()
            ));
        }
        let are_apart = !matches!(case.expected, Expected::Opaque)
            && nginx.agrees_with(&haproxy)
            && !ours.agrees_with(&nginx);
        match (&case.apart, are_apart) {
            (None, true) => {
                wrong.push(format!("{}: apart, no reason told: {}", case.title, told()))
            }
            (Some(_), false) => wrong.push(format!("{}: not apart: {}", case.title, told())),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Debug)]
struct Case {
    title: String,
    expected: Expected,
    /// Why it is not what both peers do.
    apart: Option<String>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Expected {
    Forward,
    /// As bytes of a connection that is its client's alone, so that no reading of theirs matters.
    Opaque,
    Refuse(u16),
}

impl Expected {
    fn is_met_by(&self, verdict: &Verdict) -> bool {
        match (self, verdict) {
            (Self::Forward | Self::Opaque, Verdict::Forwarded(_)) => true,
            (Self::Refuse(status), Verdict::Refused(Some(given))) => status == given,
            _ => false,
        }
    }
}

fn corpus() -> Vec<Case> {
    let text = include_str!("corpus/http1_requests.txt");
    let cases: Vec<_> = text.split("\n== ").skip(1).map(case).collect();
    assert!(cases.len() > 50, "the corpus was not read whole");
    cases
}

fn case(text: &str) -> Case {
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let mut line = || {
        lines
            .next()
            .unwrap_or_else(|| panic!("case is not complete: {text}"))
    };
    let title = line().to_owned();
    let expected = match line() {
        "forward" => Expected::Forward,
        "opaque" => Expected::Opaque,
        status => Expected::Refuse(status.parse().expect("`forward`, `opaque` or a status")),
    };
    let mut bytes = line();
    let apart = bytes.strip_prefix("apart: ").map(str::to_owned);
    if apart.is_some() {
        bytes = line();
    }
    Case {
        title,
        expected,
        apart,
        bytes: unescape(bytes),
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend(c.to_string().bytes());
            continue;
        }
        bytes.push(match chars.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            Some('x') => {
                let digits: String = chars.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).expect("two hexadecimal digits")
            }
            other => panic!("unknown escape {other:?}"),
        });
    }
    bytes
}

/// What a proxy made of one case.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// With this status; none: it closed without a word.
    Refused(Option<u16>),
    Forwarded(Vec<Message>),
    /// It waits for more.
    Waiting,
}

/// A request as the upstream understood it.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    method: String,
    body: Vec<u8>,
}

impl Verdict {
    /// Statuses of refusals are matters of taste.
    fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused(_), Self::Refused(_)) => true,
            _ => self == other,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(Some(status)) => write!(f, "{status}"),
            Self::Refused(None) => f.write_str("closed"),
            Self::Waiting => f.write_str("waiting"),
            Self::Forwarded(messages) => {
                let shown =
                    |m: &Message| format!("{} {:?}", m.method, m.body.escape_ascii().to_string());
                f.write_str(&messages.iter().map(shown).collect::<Vec<_>>().join(" + "))
            }
        }
    }
}

/// The three proxies, before one upstream.
struct World {
    seen: Receiver<Message>,
    _proxies: [Running; 3],
    _files: tempfile::TempDir,
}

impl World {
    /// In the network namespace of this thread.
    fn new() -> Self {
        run("nft add table ip differential");
        run("nft add chain ip differential out { type nat hook output priority -150 ; }");
        run(&format!(
            "nft add rule ip differential out tcp dport {CAPTURED} meta mark != {MARK} redirect to :15001"
        ));
        let seen = upstream();
        let files = tempfile::tempdir().expect("a temporary directory");
        let proxies = [
            outrigger(files.path()),
            nginx(files.path()),
            haproxy(files.path()),
        ];
        for port in [15001, NGINX, HAPROXY] {
            until_listening(port);
        }
        Self {
            seen,
            _proxies: proxies,
            _files: files,
        }
    }

    fn verdict(&self, port: u16, bytes: &[u8]) -> Verdict {
        let stale = self.seen.try_iter().count();
        assert_eq!(stale, 0, "the upstream saw more than was answered");
        let mut client = dial(port).expect("the proxy accepts");
        client.set_read_timeout(Some(SILENT)).unwrap();
        client.write_all(bytes).expect("room for a small request");
        let mut answer = vec![0; 65536];
        let mut count = 0;
        let mut is_open = true;
        let is_pipelined = bytes
            .windows(11)
            .filter(|line| line == b" HTTP/1.1\r\n")
            .count()
            > 1;
        // The first answer tells that the proxy has made up its mind; the end, that it is through.
        while is_open {
            match client.read(&mut answer[count..]) {
                Ok(0) => is_open = false,
                Ok(more) => {
                    count += more;
                    // Not yet where a second answer may follow: a proxy may drop the request of a
                    // client that has closed, while it is on its way already.
                    if !is_pipelined || answers_in(&answer[..count]) > 1 {
                        let _ = client.shutdown(Shutdown::Write);
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => is_open = false,
                Err(_) => break,
            }
        }
        let seen: Vec<_> = self.seen.try_iter().collect();
        let text = String::from_utf8_lossy(&answer[..count]);
        let status = text.get(9..12).and_then(|status| status.parse().ok());
        if !seen.is_empty() {
            Verdict::Forwarded(seen)
        } else if count > 0 || !is_open {
            Verdict::Refused(status)
        } else {
            Verdict::Waiting
        }
    }
}

fn answers_in(bytes: &[u8]) -> usize {
    bytes.windows(9).filter(|nine| nine == b"HTTP/1.1 ").count()
}

/// Answers whatever it can read as HTTP/1, and tells of it.
fn upstream() -> Receiver<Message> {
    let (tell, seen) = mpsc::channel();
    for port in [CAPTURED, DIRECT] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        let tell = tell.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tell = tell.clone();
                thread::spawn(move || answer(stream, &tell));
            }
        });
    }
    seen
}

fn answer(mut stream: TcpStream, tell: &Sender<Message>) {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut block) {
        bytes.extend(&block[..count]);
        let mut answers = Vec::new();
        while let Some((message, length)) = message(&bytes) {
            bytes.drain(..length);
            answers.extend(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            let _ = tell.send(message);
        }
        // In this order: who has an answer can count on its being told, and on all that came with it.
        let _ = stream.write_all(&answers);
    }
}

/// The first message in `bytes`, read as plainly as servers do: no strictness here.
fn message(bytes: &[u8]) -> Option<(Message, usize)> {
    let start = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..start]);
    // An empty line before a request is nothing.
    let Some(head) = (!head.trim().is_empty()).then(|| head.trim_start()) else {
        return message(&bytes[start..]).map(|(message, length)| (message, start + length));
    };
    let field = |wanted: &str| {
        head.lines().skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim().eq_ignore_ascii_case(wanted)).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let (body, length) = if field("transfer-encoding").is_some_and(|te| te.contains("chunked")) {
        dechunked(&bytes[start..])?
    } else {
        let length = field("content-length").map_or(0, |n| n.parse().unwrap_or(0));
        (bytes.get(start..start + length)?.to_vec(), length)
    };
    let method = head.split(' ').next().unwrap_or_default().to_owned();
    Some((Message { method, body }, start + length))
}

fn dechunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line_at = |at: usize| {
        let length = bytes.get(at..)?.iter().position(|b| *b == b'\n')?;
        let line = bytes[at..at + length].trim_ascii();
        Some((String::from_utf8_lossy(line).into_owned(), at + length + 1))
    };
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let (line, data) = line_at(at)?;
        let digits = line.split([';', ' ']).next().unwrap_or_default();
        let size = usize::from_str_radix(digits, 16).ok()?;
        at = data;
        if size == 0 {
            break;
        }
        body.extend(bytes.get(at..at + size)?);
        at = line_at(at + size)?.1;
    }
    loop {
        let (line, next) = line_at(at)?;
        at = next;
        if line.is_empty() {
            return Some((body, at));
        }
    }
}

fn outrigger(files: &Path) -> Running {
    let config = files.join("outrigger.yaml");
    let text = format!(
        "listen: [\"127.0.0.1:15001\"]\nadmin: null\nworkers: 1\ncapture:\n  proxy_mark: {MARK}\n"
    );
    std::fs::write(&config, text).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyctl"));
    Running::start(command.arg("serve").arg("--config").arg(config))
}

fn nginx(files: &Path) -> Running {
    let config = files.join("nginx.conf");
    let here = files.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};"))
        .concat();
    let text = format!(
        "daemon off; master_process off; pid {here}/nginx.pid; error_log stderr crit;
         events {{}}
         http {{ access_log off; {temporary}
           server {{ listen 127.0.0.1:{NGINX};
             location / {{ proxy_pass http://127.0.0.1:{DIRECT}; proxy_http_version 1.1; }} }} }}"
    );
    std::fs::write(&config, text).expect("a file");
    Running::start(
        Command::new("nginx")
            .arg("-c")
            .arg(config)
            .args(["-e", "stderr"]),
    )
}

fn haproxy(files: &Path) -> Running {
    let config = files.join("haproxy.cfg");
    let text = format!(
        "defaults
           mode http
           timeout connect 5s
           timeout client 5s
           timeout server 5s
         listen all
           bind 127.0.0.1:{HAPROXY}
           server upstream 127.0.0.1:{DIRECT}\n"
    );
    std::fs::write(&config, text).expect("a file");
    Running::start(
        Command::new("haproxy")
            .arg("-db")
            .arg("-q")
            .arg("-f")
            .arg(config),
    )
}

/// A program that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let started = command.spawn();
        Self(started.unwrap_or_else(|error| panic!("this test needs `{program}`: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dial(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn until_listening(port: u16) {
    let deadline = Instant::now() + DEADLINE;
    while dial(port).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on port {port}");
        thread::sleep(Duration::from_millis(10));
    }
}
