//! Network namespaces of a test's own, entered by threads and by the programs that they start.

use std::{
    fs::File,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace that ends with its last user.
pub(crate) struct Namespace(File);

/// Two namespaces joined by a wire: 10.77.0.1 and fd77::1 here, 10.77.0.2 and fd77::2 there.
pub(crate) struct Pair {
    pub(crate) app: Namespace,
    pub(crate) peer: Namespace,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Pair {
    pub(crate) fn new() -> Self {
        let (app_name, peer_name) = (unique_name(), unique_name());
        let [app, peer] = [&app_name, &peer_name].map(|name| Namespace::named(name));
        run(&format!(
            "ip link add wire0 netns {app_name} type veth peer name wire0 netns {peer_name}"
        ));
        // The open files keep the namespaces; without their names nothing is left behind.
        for (name, namespace, number) in [(&app_name, &app, 1), (&peer_name, &peer, 2)] {
            run(&format!("ip netns del {name}"));
            namespace.enter(|| {
                run("ip link set lo up");
                run(&format!("ip addr add 10.77.0.{number}/24 dev wire0"));
                run(&format!("ip -6 addr add fd77::{number}/64 dev wire0 nodad"));
                run("ip link set wire0 up");
            });
        }
        Self { app, peer }
    }
}

impl Namespace {
    fn named(name: &str) -> Self {
        run(&format!("ip netns add {name}"));
        Self(File::open(format!("/run/netns/{name}")).unwrap())
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("these tests need root, to enter network namespaces");
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What the `nft` program lists, without the leases that happen to run.
    pub(crate) fn ruleset(&self) -> String {
        let listed = self.enter(|| run("nft --stateless list ruleset"));
        let is_lease = |line: &&str| line.trim().starts_with("elements = { ipv");
        listed
            .split_inclusive('\n')
            .filter(|line| !is_lease(line))
            .collect()
    }
}

/// Runs a command line that must succeed.
pub(crate) fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("this test needs the program `{program}`: {error}"));
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn unique_name() -> String {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("outrigger-capture-{}-{number}", std::process::id())
}
