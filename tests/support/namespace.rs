//! One private network namespace: commands run and sockets live in it.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    os::unix::fs::MetadataExt,
    process::{Command, Output, Stdio},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use socket2::{Domain, Socket, Type};

use super::sys;

/// No single command of a test takes longer; `timeout` ends it and the test fails.
const COMMAND_LIMIT_SECS: &str = "120";

/// No read or write of a test's client waits longer.
const CLIENT_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Namespace {
    net: File,
    name: &'static str,
}

impl Namespace {
    pub(super) fn new(name: &'static str) -> Self {
        let net = sys::new_network_namespace().unwrap_or_else(|error| {
            panic!("cannot make a network namespace: {error}; run the tests as root, or by `.ci/in-namespaces cargo test --offline`")
        });
        let namespace = Self { net, name };
        // Ports below 1024 are for whoever the test runs as.
        namespace.sh("ip link set lo up && echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start");
        namespace
    }

    /// Runs `action` on this thread with every socket and process it makes inside the namespace.
    pub fn within<T>(&self, action: impl FnOnce() -> T) -> T {
        struct Return(File);
        impl Drop for Return {
            fn drop(&mut self) {
                enter(&self.0).expect("the test's own namespace is the test's: run it as root, or by `.ci/in-namespaces`");
            }
        }
        let home = File::open("/proc/thread-self/ns/net").expect("/proc is mounted");
        enter(&self.net).unwrap_or_else(|error| {
            panic!(
                "cannot enter the namespace {}: {error}; the tests need CAP_SYS_ADMIN",
                self.name
            )
        });
        let _return = Return(home);
        action()
    }

    /// What a shell command prints; the test fails when the command does.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let output = self.try_sh(command);
        assert!(
            output.status.success(),
            "`{command}` in {}: {}\n{}{}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell command to its end, whatever that is.
    pub fn try_sh(&self, command: &str) -> Output {
        self.output(Command::new("sh").args(["-c", command]))
    }

    /// Runs a program to its end, whatever that is.
    pub fn output(&self, command: &Command) -> Output {
        let mut limited = Command::new("timeout");
        limited
            .args(["--kill-after=1", COMMAND_LIMIT_SECS])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        self.within(|| limited.output())
            .expect("`timeout` (coreutils) is installed")
    }

    /// A connection from within the namespace.
    #[track_caller]
    pub fn connect(&self, to: impl Into<SocketAddr>) -> TcpStream {
        let to = to.into();
        self.try_connect(to)
            .unwrap_or_else(|error| panic!("connect from {} to {to}: {error}", self.name))
    }

    pub fn try_connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        let socket = self.within(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
        socket.connect_timeout(&to.into(), CLIENT_LIMIT)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        limit_waiting(&stream, CLIENT_LIMIT)?;
        Ok(stream)
    }

    /// A listener within the namespace, on every address of both families.
    pub fn listen(&self, port: u16) -> TcpListener {
        let listen = || -> io::Result<TcpListener> {
            let socket = self.within(|| Socket::new(Domain::IPV6, Type::STREAM, None))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        };
        listen().unwrap_or_else(|error| panic!("listen on port {port} in {}: {error}", self.name))
    }

    /// How many sockets of the namespace listen on `port`.
    pub fn listeners_on(&self, port: u16) -> usize {
        let tables = self.within(|| {
            ["tcp", "tcp6"].map(|table| {
                std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))
                    .unwrap_or_default()
            })
        });
        let port = format!(":{port:04X}");
        tables
            .iter()
            .flat_map(|table| table.lines())
            .filter(|line| {
                // sl, local address, remote address, state (0A: LISTEN)
                let mut fields = line.split_whitespace().skip(1);
                fields.next().is_some_and(|local| local.ends_with(&port))
                    && fields.nth(1) == Some("0A")
            })
            .count()
    }

    /// The ruleset as `nft` prints it.
    pub fn ruleset(&self) -> String {
        self.sh("nft list ruleset")
    }

    /// Processes whose network namespace this is.
    pub fn processes(&self) -> Vec<Pid> {
        let inode = self.net.metadata().expect("an open file").ino();
        let here = format!("net:[{inode}]");
        std::fs::read_dir("/proc")
            .expect("/proc is mounted")
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
                let net = std::fs::read_link(path.join("ns/net")).ok()?;
                (net.to_str() == Some(&here)).then(|| Pid::from_raw(pid))?
            })
            .filter(|pid| *pid != rustix::process::getpid())
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What a test started is ended by its own guard; this is for what that has left, such as a
        // daemon's children.
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Bounds every later read and write, so that a fault shows as a failed test and not as a hang.
pub(super) fn limit_waiting(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))
}

fn enter(net: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(
        net.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}
