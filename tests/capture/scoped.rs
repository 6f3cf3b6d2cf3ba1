//! Applications inside and outside of a scope: users and groups on a thread of their own, cgroups in
//! a process of their own.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
    time::Duration,
};

use outrigger_iptables::cgroup::Cgroup;
use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};

use crate::{netns::Namespace, wire::Client};

/// Below the ports that the kernel hands out, so that no dial of the proxy has one of them.
static PORTS: AtomicU16 = AtomicU16::new(20_000);
static CGROUPS: AtomicU32 = AtomicU32::new(0);

/// A cgroup that ends with the test, and what runs in it.
pub(crate) struct Scratch(pub(crate) Cgroup);

impl Scratch {
    pub(crate) fn new() -> Self {
        let number = CGROUPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrigger-capture-{}-{number}", std::process::id());
        let root = Cgroup::find("/").expect("these tests need a cgroup2 file system");
        Self(root.create_child(&name).expect("these tests need root"))
    }

    pub(crate) fn scope(&self) -> String {
        format!("cgroup:{}", self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait_until_empty(Duration::from_secs(10));
        let _ = self.0.remove();
    }
}

/// Who dials.
pub(crate) enum App<'a> {
    User(u32),
    Group(u32),
    Within(&'a Cgroup),
}

impl App<'_> {
    #[track_caller]
    pub(crate) fn is_captured(&self, namespace: &Namespace, address: &str) -> bool {
        match self {
            Self::User(id) => namespace.enter(|| {
                let id = Uid::from_raw(*id);
                set_thread_res_uid(id, id, id).expect("these tests need root");
                Client::dial(address).unwrap().is_captured
            }),
            Self::Group(id) => namespace.enter(|| {
                let id = Gid::from_raw(*id);
                set_thread_res_gid(id, id, id).expect("these tests need root");
                Client::dial(address).unwrap().is_captured
            }),
            Self::Within(cgroup) => is_captured_within(cgroup, namespace, address),
        }
    }
}

/// The server's greeting tells from which port the connection came: the application's, or another.
fn is_captured_within(cgroup: &Cgroup, namespace: &Namespace, address: &str) -> bool {
    let port = PORTS.fetch_add(1, Ordering::Relaxed);
    let mut command = Command::new("socat");
    // Without input socat ends its half at once, and the server the other.
    command.args(["-t5", "-"]).stdin(Stdio::null());
    command.arg(format!("TCP:{address},sourceport={port},connect-timeout=5"));
    cgroup.contain(&mut command).unwrap();
    let output = namespace.enter(|| command.output().expect("these tests need `socat`"));
    let seen = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (_, seen_port) = seen
        .rsplit_once(':')
        .unwrap_or_else(|| panic!("no greeting: {output:?}"));
    seen_port != port.to_string()
}
