//! Two namespaces joined by a cable: the application's, where capture happens, and the service's.

use std::{
    fs::Permissions,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{Namespace, Nginx, Peer, Process};

/// An address beyond the service, where only what goes through it gets to.
pub const BEYOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// The application's addresses.
pub const APP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

pub const SVC4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
pub const SVC6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

/// The service's addresses.
pub const SVC: [IpAddr; 2] = [SVC4, SVC6];

#[derive(Debug)]
pub struct World {
    pub app: Namespace,
    pub svc: Namespace,
    // Last, so that it outlives the processes that write to it.
    dir: Directory,
}

/// Removed with all that is in it.
#[derive(Debug)]
struct Directory(PathBuf);

impl World {
    pub fn new() -> Self {
        let world = Self {
            app: Namespace::new("app"),
            svc: Namespace::new("svc"),
            dir: Directory::new(),
        };
        world.join();
        world
    }

    /// A directory of this world's own, readable by every user.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Writes a file into the world's directory.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir().join(name);
        std::fs::write(&path, contents).expect("the test's directory is writable");
        path
    }

    /// Starts nginx on the service's side.
    pub fn nginx(&self) -> Nginx {
        Nginx::start(self)
    }

    /// Serves every connection to `port` of the service with `answer`, each on a thread.
    pub fn peer(
        &self,
        port: u16,
        answer: impl Fn(std::net::TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Peer {
        self.peer_in(&self.svc, port, answer)
    }

    /// The same in any namespace.
    pub fn peer_in(
        &self,
        namespace: &Namespace,
        port: u16,
        answer: impl Fn(std::net::TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Peer {
        Peer::start(namespace.listen(port), answer)
    }

    /// Starts `command` on the application's side.
    pub fn start(&self, name: &str, command: &Command) -> Process {
        Process::start(&self.app, self.dir(), name, command)
    }

    /// One more namespace, joined to the service's: what is to the service as that is to the
    /// application.
    pub fn beyond(&self) -> Namespace {
        let beyond = Namespace::new("beyond");
        cable(&self.svc, "svc1", &beyond, "far0");
        for (namespace, link, address) in [
            (&self.svc, "svc1", "192.0.2.1".to_owned()),
            (&beyond, "far0", BEYOND.to_string()),
        ] {
            namespace.sh(&format!(
                "ip link set {link} up && ip addr add {address}/24 dev {link}"
            ));
        }
        beyond
    }

    fn join(&self) {
        cable(&self.app, "app0", &self.svc, "svc0");
        for (namespace, link, addresses) in [(&self.app, "app0", APP), (&self.svc, "svc0", SVC)] {
            let [v4, v6] = addresses;
            namespace.sh(&format!(
                "ip link set {link} up && ip addr add {v4}/24 dev {link} && ip addr add {v6}/64 dev {link} nodad"
            ));
        }
    }
}

/// Joins two namespaces by a veth pair.
fn cable(here: &Namespace, link: &str, there: &Namespace, peer: &str) {
    // The cable's ends are made in the one namespace, and one of them is pushed into the other
    // by way of a process that stays there for the moment.
    let mut guide = there
        .within(|| Command::new("sleep").arg("60").spawn())
        .expect("`sleep` (coreutils) is installed");
    let pushed = here.try_sh(&format!(
        "ip link add {link} type veth peer name {peer} netns {}",
        guide.id()
    ));
    let _ = guide.kill();
    let _ = guide.wait();
    assert!(
        pushed.status.success(),
        "cannot make a veth pair: {pushed:?}"
    );
}

impl Directory {
    /// Named by process and count, so that tests in parallel never meet.
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "outrigger-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| {
            panic!(
                "cannot make {}: {error}; set TMPDIR to a writable directory",
                path.display()
            )
        });
        let directory = Self(path);
        // The proxy's user reads its configuration here.
        std::fs::set_permissions(&directory.0, Permissions::from_mode(0o755))
            .expect("a directory of our own");
        directory
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("OUTRIGGER_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
