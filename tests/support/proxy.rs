//! A `proxyctl serve` on the application's side, and its capture.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use super::{Namespace, Process, SOON, Speak, World, wait_until};

/// The default port, user and admin port of a proxy without a configuration file.
pub const PORT: u16 = 15001;
const UID: &str = "1337";
const ADMIN: u16 = 15000;

/// Set by the proxy on its own connections where one user is all there is.
const MARK: u32 = 0x539;

#[derive(Debug)]
pub struct Proxy<'world> {
    process: Process,
    config: Option<PathBuf>,
    world: &'world World,
    namespace: &'world Namespace,
    is_captured: Cell<bool>,
}

impl World {
    /// A proxy that serves, unprivileged, with the text of a configuration file; an empty one
    /// means: without any file.
    pub fn serve(&self, config: &str) -> Proxy<'_> {
        self.serve_limited(config, &[])
    }

    /// The same under resource limits, as options of `prlimit`.
    pub fn serve_limited(&self, config: &str, limits: &[&str]) -> Proxy<'_> {
        self.serve_in(&self.app, "outrigger", config, limits, &[])
    }

    /// The same in any namespace, with variables of its environment; `name` is for its files.
    pub fn serve_in<'w>(
        &'w self,
        namespace: &'w Namespace,
        name: &str,
        config: &str,
        limits: &[&str],
        environment: &[(&str, &str)],
    ) -> Proxy<'w> {
        let config = self.config(name, config);
        let mut command = Command::new("prlimit");
        command
            .args(limits)
            .arg("--")
            .arg(self.proxyctl())
            .arg("serve")
            .envs(environment.iter().copied());
        if let Some(file) = &config {
            command.arg("--config").arg(file);
        }
        let identity: &[&str] = if has_one_user() {
            &[]
        } else {
            &["--reuid", UID, "--regid", UID, "--clear-groups"]
        };
        let log = format!("{name}-proxy");
        let mut process = Process::start_as(namespace, self.dir(), &log, identity, &command);
        process.until("listens", || namespace.listeners_on(PORT) > 0);
        Proxy {
            process,
            config,
            world: self,
            namespace,
            is_captured: Cell::new(false),
        }
    }

    /// Redirects the application's connections to `proxy`.
    #[track_caller]
    pub fn capture(&self, proxy: &Proxy<'_>) {
        let output = self.install_rules_in(proxy.namespace, proxy.config.as_deref());
        assert!(
            output.status.success(),
            "install-rules: {}\n{}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            proxy.log(),
        );
        proxy.is_captured.set(true);
    }

    /// A proxy without configuration, and everything captured.
    #[track_caller]
    pub fn captured(&self) -> Proxy<'_> {
        let proxy = self.serve("");
        self.capture(&proxy);
        proxy
    }

    pub fn install_rules(&self, config: Option<&Path>) -> Output {
        self.install_rules_in(&self.app, config)
    }

    fn install_rules_in(&self, namespace: &Namespace, config: Option<&Path>) -> Output {
        let mut command = Command::new(self.proxyctl());
        command.arg("install-rules");
        if let Some(file) = config {
            command.arg("--config").arg(file);
        }
        namespace.output(&command)
    }

    pub fn remove_rules(&self) -> Output {
        self.app
            .output(Command::new(self.proxyctl()).arg("remove-rules"))
    }

    /// The redirect alone, of the shape that `install-rules` makes, bound to no proxy's life: for
    /// faults that `install-rules` would not let happen. `exempt` picks who is not captured.
    pub fn redirect_by_hand(&self, exempt: &str) {
        let rules = self.write(
            "redirect.nft",
            format!(
                "table inet by_hand {{
                    chain output {{
                        type nat hook output priority -150
                        {exempt} return
                        fib daddr type local return
                        ip6 daddr fe80::/10 return
                        tcp flags & (fin|syn|rst|ack) == syn redirect to :{PORT}
                    }}
                }}\n"
            ),
        );
        self.app.sh(&format!("nft -f {}", rules.display()));
    }

    /// Where every user can run it: a build directory may be closed to the proxy's.
    pub fn proxyctl(&self) -> PathBuf {
        let here = self.dir().join("proxyctl");
        if !here.exists() {
            let built = std::env::var_os("OUTRIGGER_PROXYCTL").map_or_else(
                || PathBuf::from(env!("CARGO_BIN_EXE_proxyctl")),
                PathBuf::from,
            );
            // By a process of its own: a file that this one had open for writing could not be run
            // while any other thread's child, forked meanwhile, still held it ("text file busy").
            let copied = Command::new("cp").arg(&built).arg(&here).status();
            assert!(
                copied.is_ok_and(|status| status.success()),
                "copy {}",
                built.display()
            );
        }
        here
    }

    /// One value of the proxy's `/metrics`, by name and labels as printed there; 0 when it is not
    /// there, as counters that never counted may be.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or(0.0)
    }

    /// The sum of a metric over all label sets that contain `label`.
    pub fn metric_sum(&self, name: &str, label: &str) -> f64 {
        self.metrics()
            .lines()
            .filter_map(|line| {
                let (labels, value) = line
                    .strip_prefix(name)?
                    .strip_prefix('{')?
                    .split_once("} ")?;
                labels.contains(label).then(|| value.parse::<f64>().ok())?
            })
            .sum()
    }

    /// The whole of `/metrics`.
    pub fn metrics(&self) -> String {
        self.admin("/metrics").1
    }

    /// What the admin listener answers: (status, body).
    pub fn admin(&self, path: &str) -> (u16, String) {
        self.admin_with(path, "")
    }

    /// The same for a request with more header lines.
    pub fn admin_with(&self, path: &str, headers: &str) -> (u16, String) {
        let ask = || -> std::io::Result<String> {
            let mut admin = self
                .app
                .try_connect(SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN)))?;
            // In HTTP/1.0 no answer has chunks to be taken out.
            admin.say(format!(
                "GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n"
            ))?;
            Ok(String::from_utf8_lossy(&admin.hear_to_end()?).into_owned())
        };
        let answer =
            ask().unwrap_or_else(|error| panic!("GET {path} of the admin listener: {error}"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no HTTP answer to {path}: {answer:?}"));
        (status, body.into())
    }

    /// Waits until a metric's label sets that contain `label` sum up to `least`: what is counted
    /// when a request has ended may be counted just after its client has seen the end.
    #[track_caller]
    pub fn until_counted(&self, name: &str, label: &str, least: f64) {
        wait_until(SOON, &format!("{name}{{{label}}} reaches {least}"), || {
            self.metric_sum(name, label) >= least
        });
    }

    /// Waits until a refused connection has been counted for `reason`.
    #[track_caller]
    pub fn until_refused(&self, reason: &str) {
        self.until_counted("outrigger_connections_refused_total", reason, 1.0);
    }

    /// The file to serve and install with, if there need be one.
    fn config(&self, name: &str, text: &str) -> Option<PathBuf> {
        let mut text = text.to_owned();
        if has_one_user() {
            assert!(
                !text.contains("capture:"),
                "the mark needs a capture section of its own"
            );
            text.push_str(&format!("\ncapture: {{ proxy_mark: {MARK} }}\n"));
        }
        (!text.is_empty()).then(|| self.write(&format!("{name}.yaml"), text))
    }
}

/// Whose connections are the proxy's own, in the words of `nft`.
pub fn proxys_own() -> String {
    if has_one_user() {
        format!("meta mark {MARK}")
    } else {
        format!("meta skuid {UID}")
    }
}

/// Whether this is a user namespace in which nobody but we exist.
fn has_one_user() -> bool {
    let uid: u64 = UID.parse().expect("a number");
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("/proc is mounted");
    let is_mapped = map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map_while(|n| n.parse::<u64>().ok());
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        matches!((first, count), (Some(first), Some(count)) if (first..first + count).contains(&uid))
    });
    !is_mapped
}

/// A captured proxy that carried nothing means that the test went past it and proved nothing.
impl Proxy<'_> {
    /// Lowers what a running proxy may open, which its own user may do.
    pub fn limit_descriptors(&self, count: usize) {
        let as_itself = if has_one_user() {
            String::new()
        } else {
            format!("setpriv --reuid {UID} --regid {UID} --clear-groups ")
        };
        let pid = self.process.pid().as_raw_nonzero();
        self.world.app.sh(&format!(
            "{as_itself}prlimit --pid {pid} --nofile={count}:{count}"
        ));
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        let is_elsewhere = !std::ptr::eq(self.namespace, &self.world.app);
        if thread::panicking()
            || !self.is_captured.get()
            || is_elsewhere
            || self.process.exited().is_some()
        {
            return;
        }
        wait_until(SOON, "the proxy has met a captured connection", || {
            self.world.metric("outrigger_connections_live") >= 1.0
                || [
                    "outrigger_requests_total",
                    "outrigger_connections_refused_total",
                ]
                .iter()
                .any(|name| self.world.metric_sum(name, "") >= 1.0)
        });
    }
}

impl Proxy<'_> {
    /// Writes another configuration into its file, which it follows.
    pub fn reconfigure(&self, config: &str) {
        self.world.config("outrigger", config);
    }
}

impl Deref for Proxy<'_> {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Proxy<'_> {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
