//! Truth by experiment: random rulesets are loaded, real connections made, and where they end is
//! compared with what `explain` says of them.

use std::{
    fmt::Write as _,
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use outrigger_iptables::{
    LiveSurroundings, ruleset,
    verdict::{Cgroup, Connection, End, judge},
};
use rustix::thread::set_thread_res_uid;
use socket2::{Domain, Socket, Type};

use crate::netns::{Namespace, Pair};

const CONNECTIONS: usize = 5;
/// A SYN that gets no answer within a namespace gets none at all.
const SILENCE: Duration = Duration::from_millis(250);
const OUTSIDE: [&str; 3] = ["10.77.0.2", "10.77.0.3", "10.77.0.4"];
const OUTSIDE_V6: &str = "fd77::2";
const PORTS: [u16; 4] = [80, 81, 443, 8080];
const LOCAL_PORTS: [u16; 3] = [15001, 15002, 15003];
/// 15009 has no listener.
const GOALS: [u16; 4] = [15001, 15002, 15003, 15009];
const UIDS: [u32; 3] = [0, 1000, 1337];
const MARKS: [u32; 3] = [0, 1, 0x12];

#[test]
fn explain_tells_the_truth_about_random_rulesets() {
    let is_soak = std::env::var_os("OUTRIGGER_SOAK").is_some();
    let cases = if is_soak { 1000 } else { 100 };
    let seed = std::env::var("OUTRIGGER_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_261_124);
    let mut dice = Dice(seed);
    let pair = world();
    let cgroups = Cgroups::enter();
    let (mut perhaps, mut redirected, mut stopped) = (0, 0, 0);
    for case in 0..cases / CONNECTIONS {
        let tool = ["nft", "iptables-legacy", "iptables-nft"][case % 3];
        let script = match tool {
            "nft" => nft(&mut dice, &cgroups),
            _ => iptables(&mut dice, &cgroups),
        };
        load(&pair.app, tool, &script);
        for _ in 0..CONNECTIONS {
            let connection = connection(&mut dice, &cgroups);
            let verdict = pair
                .app
                .enter(|| judge(&ruleset::read(), &connection, &LiveSurroundings::default()));
            let truth = pair.app.enter(|| truth(&connection));
            let Some(end) = verdict.certain() else {
                perhaps += 1;
                continue;
            };
            // Every answer passes the rules (see `ANSWERS_PASS`), so that each end shows in one way.
            let is_right = match (end, &truth) {
                (End::Here { to }, Truth::Reached(at)) => to == at,
                (End::Leaves { to, .. }, Truth::Reached(at)) => to == at,
                (End::Here { to }, Truth::Refused) => !is_served(*to),
                (End::Leaves { to, .. }, Truth::Refused) => !PORTS.contains(&to.port()),
                (End::Dropped, Truth::Silence) | (End::Rejected, Truth::Refused) => true,
                // A packet without a way is lost within the host, or the client is told.
                (End::NoRoute { .. }, Truth::Silence | Truth::Failed) => true,
                _ => false,
            };
            assert!(
                is_right,
                "seed {seed}, case {case}, {tool}:\n{script}\n{connection:?}\nsaid: {end:?}\ntruth: {truth:?}\n{:#?}",
                verdict.ways
            );
            redirected += usize::from(verdict.ways[0].redirected_by.is_some());
            stopped += usize::from(matches!(end, End::Dropped | End::Rejected));
        }
        clear(&pair.app, tool);
    }
    println!("\nfigure: explain, cases that it left open: {perhaps} of {cases} (at most 3 %)");
    assert!(
        perhaps * 100 <= cases * 3,
        "{perhaps} of {cases} were left open"
    );
    // Rulesets that decide on nothing would prove nothing.
    assert!(
        redirected * 10 >= cases && stopped * 20 >= cases,
        "{redirected} redirected, {stopped} stopped, of {cases}"
    );
}

/// The first rule of every chain that the kernel enters: the verdict is about a connection's first
/// packet, and a rule that dropped a later one or an answer would hide where the first came to.
const ANSWERS_PASS: &str = "tcp flags & (fin | syn | rst | ack) != syn accept";

#[derive(Debug)]
enum Truth {
    /// The server saw itself called at this address.
    Reached(SocketAddr),
    Refused,
    Silence,
    Failed,
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())].clone()
    }
}

fn world() -> Pair {
    let pair = Pair::new();
    pair.peer.enter(|| {
        crate::netns::run("ip addr add 10.77.0.3/24 dev wire0");
        crate::netns::run("ip addr add 10.77.0.4/24 dev wire0");
        for port in PORTS {
            serve(SocketAddr::new("0.0.0.0".parse().unwrap(), port));
            serve(SocketAddr::new(OUTSIDE_V6.parse().unwrap(), port));
        }
    });
    pair.app.enter(|| {
        for port in LOCAL_PORTS {
            serve(SocketAddr::new("127.0.0.1".parse().unwrap(), port));
            serve(SocketAddr::new("::1".parse().unwrap(), port));
        }
        serve("10.77.0.1:80".parse().unwrap());
    });
    pair
}

fn is_served(to: SocketAddr) -> bool {
    let is_loopback =
        to.ip() == IpAddr::from([127, 0, 0, 1]) || to.ip() == "::1".parse::<IpAddr>().unwrap();
    is_loopback && LOCAL_PORTS.contains(&to.port()) || to == "10.77.0.1:80".parse().unwrap()
}

/// Tells each client at which address it was called.
fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let at = stream.local_addr().unwrap();
            let _ = stream.write_all(at.to_string().as_bytes());
        }
    });
}

/// The test's own process is in the first for as long as this lives.
struct Cgroups {
    before: PathBuf,
    root: PathBuf,
    names: [String; 2],
}

impl Cgroups {
    fn enter() -> Self {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())
            .expect("this test needs cgroup v2, mounted at its usual place");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(own.unwrap());
        let names = ["own", "other"].map(|n| format!("outrigger-{n}-{}", std::process::id()));
        for name in &names {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join(&names[0]).join("cgroup.procs"), "0").unwrap();
        Self {
            before,
            root,
            names,
        }
    }

    fn of_the_test(&self) -> Cgroup {
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        Cgroup {
            path: format!("/{}", self.names[0]),
            ids: vec![id(&self.root), id(&self.root.join(&self.names[0]))],
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        for name in &self.names {
            // The kernel may still be moving threads that have just ended.
            let deadline = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(self.root.join(name)).is_err() && Instant::now() < deadline {
                thread::yield_now();
            }
        }
    }
}

fn connection(dice: &mut Dice, cgroups: &Cgroups) -> Connection {
    let address: IpAddr = match dice.roll(10) {
        0 => "10.77.0.1".parse().unwrap(),
        1 | 2 => OUTSIDE_V6.parse().unwrap(),
        _ => dice.pick(&OUTSIDE).parse().unwrap(),
    };
    Connection {
        destination: SocketAddr::new(address, dice.pick(&PORTS)),
        source: None,
        source_port: None,
        uid: dice.pick(&UIDS),
        gid: 0,
        groups: Vec::new(),
        mark: dice.pick(&MARKS),
        cgroup: Some(cgroups.of_the_test()),
    }
}

fn truth(connection: &Connection) -> Truth {
    let domain = Domain::for_address(connection.destination);
    // The rules see the user who made the socket; marking it takes root again.
    let user = rustix::process::Uid::from_raw(connection.uid);
    set_thread_res_uid(None, user, None).unwrap();
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    set_thread_res_uid(None, rustix::process::Uid::ROOT, None).unwrap();
    socket.set_mark(connection.mark).unwrap();
    match socket.connect_timeout(&connection.destination.into(), SILENCE) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Truth::Refused,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Truth::Silence,
        Err(_) => return Truth::Failed,
    }
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut stream = std::net::TcpStream::from(socket);
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    Truth::Reached(said.parse().unwrap())
}

fn load(namespace: &Namespace, tool: &str, script: &str) {
    let parts = script.split(SECOND_FAMILY);
    let programs = match tool {
        "nft" => ["nft", "nft"],
        "iptables-legacy" => ["iptables-legacy-restore", "ip6tables-legacy-restore"],
        _ => ["iptables-nft-restore", "ip6tables-nft-restore"],
    };
    for (program, part) in programs.into_iter().zip(parts) {
        let arguments: &[&str] = if program == "nft" { &["-f", "-"] } else { &[] };
        feed(namespace, program, arguments, part);
    }
}

fn feed(namespace: &Namespace, program: &str, arguments: &[&str], script: &str) {
    namespace.enter(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs the program `{program}`: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}\n{script}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

/// Between what is for `iptables` and what is for `ip6tables`.
const SECOND_FAMILY: &str = "# ip6tables\n";

fn clear(namespace: &Namespace, tool: &str) {
    let empty = "*nat\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n";
    match tool {
        "nft" => load(namespace, tool, "flush ruleset\n"),
        _ => load(namespace, tool, &format!("{empty}{SECOND_FAMILY}{empty}")),
    }
}

fn nft(dice: &mut Dice, cgroups: &Cgroups) -> String {
    let mut text = String::from(
        "table inet t {
 set hosts { type ipv4_addr; flags interval; elements = { 10.77.0.3-10.77.0.9, 192.0.2.0/24 } }
 set ports { type inet_service; elements = { 80, 8080 } }
 map goals { type inet_service : inet_service; elements = { 80 : 15001, 443 : 15002 } }
 map hosts_of { type inet_service : ipv4_addr; elements = { 80 : 10.77.0.4, 8080 : 10.77.0.2 } }
 map marks { type inet_service : mark; flags interval; elements = { 80-90 : 1, 443 : 0x12 } }
",
    );
    for (kind, hook, priority, name) in [
        ("nat", "output", -100, "nat_out"),
        ("filter", "output", 0, "filter_out"),
        ("route", "output", -150, "route_out"),
        ("filter", "output", -250, "raw_out"),
        ("filter", "prerouting", -150, "in"),
        ("filter", "input", 0, "last"),
        ("nat", "postrouting", 100, "source"),
    ] {
        let rules = match hook {
            "output" => {
                // Chains that are jumped to must be there first.
                for n in (0..2).rev() {
                    let below = (n == 0).then(|| format!("{name}_1"));
                    let rules = nft_rules(dice, kind, below, cgroups);
                    let _ = writeln!(text, " chain {name}_{n} {{\n{rules} }}");
                }
                nft_rules(dice, kind, Some(format!("{name}_0")), cgroups)
            }
            _ if dice.roll(3) > 0 => String::new(),
            "postrouting" => "  oifname \"wire0\" masquerade\n".into(),
            _ => nft_inbound(dice),
        };
        let policy = if kind == "filter" && hook == "output" && dice.roll(12) == 0 {
            "drop"
        } else {
            "accept"
        };
        let _ = writeln!(
            text,
            " chain {name} {{ type {kind} hook {hook} priority {priority}; policy {policy};\n  {ANSWERS_PASS}\n{rules} }}"
        );
    }
    text + "}\n"
}

fn nft_rules(dice: &mut Dice, kind: &str, below: Option<String>, cgroups: &Cgroups) -> String {
    let mut text = String::new();
    for _ in 0..=dice.roll(4) {
        let mut line = String::from("  ");
        // A rule on both families is refused by nft.
        let is_v6 = dice.roll(4) == 0;
        for _ in 0..=dice.roll(2) {
            let condition = nft_condition(dice, cgroups);
            let is_of_v6 = condition.contains("ip6 ") || condition.contains("ipv6");
            let is_of_v4 = condition.contains("ip daddr") || condition.contains("ip saddr");
            if !(is_v6 && is_of_v4 || !is_v6 && is_of_v6) {
                line += &condition;
                line.push(' ');
            }
        }
        line += &nft_action(dice, kind, below.as_deref(), is_v6);
        text += &line;
        text.push('\n');
    }
    text
}

fn nft_condition(dice: &mut Dice, cgroups: &Cgroups) -> String {
    // nft looks for them below this directory, wherever version 2 is mounted.
    let below = cgroups.root.strip_prefix("/sys/fs/cgroup").unwrap();
    let [own, other] = [0, 1].map(|n| below.join(&cgroups.names[n]).display().to_string());
    let fixed = [
        "ip daddr 10.77.0.2",
        "ip daddr != 10.77.0.0/30",
        "ip daddr { 10.77.0.1, 10.77.0.3-10.77.0.4 }",
        "ip daddr @hosts",
        "ip saddr 10.77.0.1",
        "ip6 daddr fd77::/64",
        "ip6 saddr != fd77::1",
        "tcp dport @ports",
        "tcp dport != { 80, 400-500 }",
        "tcp dport 80-90",
        "tcp dport { 80-85, 443 }",
        "meta skuid != 1337",
        "meta skuid 1000-2000",
        "meta skuid { 0, 1300-1400 }",
        "meta skgid 0",
        "meta mark 1",
        "meta mark and 0x10 == 0x10",
        "meta mark != { 0, 0x12 }",
        "oifname \"wire0\"",
        "oifname \"wi*\"",
        "oif != \"lo\"",
        "ct state new,established",
        "ct state != new",
        "ct state untracked",
        "ct status dnat",
        "ct status ! dnat",
        "ct direction original",
        "ct direction reply",
        "ct mark 0",
        "ct mark and 2 == 2",
        "meta nfproto ipv6",
        "tcp flags & (fin|syn|rst|ack) == syn",
        "fib daddr type != local",
        "fib daddr type local",
        "ip daddr . tcp dport { 10.77.0.2 . 80, 10.77.0.3 . 443, 10.77.0.4 . 80-90 }",
        "meta skuid . tcp dport { 0 . 80, 1000 . 443, 1337 . 8080 }",
        "meta l4proto tcp ct original proto-dst 80-100",
        "meta l4proto tcp ct reply proto-src { 80, 15001-15002 }",
        "ct original ip daddr 10.77.0.2",
        "ct reply ip saddr { 127.0.0.1, 10.77.0.3 }",
        "ct reply ip daddr 10.77.0.1",
    ];
    let sides = fixed.len() + 7;
    match dice.roll(sides) {
        n if n < fixed.len() => fixed[n].into(),
        n => match n - fixed.len() {
            0 | 1 => format!("tcp dport {}", dice.pick(&PORTS)),
            2 | 3 => format!("meta skuid {}", dice.pick(&UIDS)),
            4 => format!("socket cgroupv2 level 1 \"{own}\""),
            5 => format!("socket cgroupv2 level 1 != \"{own}\""),
            _ => format!("socket cgroupv2 level 1 \"{other}\""),
        },
    }
}

fn nft_action(dice: &mut Dice, kind: &str, below: Option<&str>, is_v6: bool) -> String {
    match (kind, dice.roll(10), below) {
        (_, 0, _) => "accept".into(),
        (_, 1, _) => "return".into(),
        (_, 2 | 3, Some(below)) => {
            let word = if dice.roll(3) == 0 { "goto" } else { "jump" };
            format!("{word} {below}")
        }
        (_, 4, Some(below)) => {
            format!("tcp dport vmap {{ 80-81 : jump {below}, 443 : goto {below}, 8080 : return }}")
        }
        ("nat", 5, _) if !is_v6 => {
            "meta nfproto ipv4 meta l4proto tcp dnat ip to 10.77.0.3:81".into()
        }
        ("nat", 6, _) if !is_v6 => "meta nfproto ipv4 dnat ip to tcp dport map @hosts_of".into(),
        ("nat", 7, _) => "meta l4proto tcp redirect to :tcp dport map @goals".into(),
        ("nat", 8, _) => "meta l4proto tcp redirect to :15001-15003".into(),
        ("nat", ..) => format!("meta l4proto tcp redirect to :{}", dice.pick(&GOALS)),
        ("route", 5, _) => "meta mark set tcp dport map @marks".into(),
        ("route", 6, _) => "ct mark set 2".into(),
        ("route", 7, _) => "ip dscp set cs1".into(),
        ("route", ..) => format!("meta mark set {}", dice.pick(&MARKS)),
        (_, 5, _) => "drop".into(),
        (_, 6, _) => "meta l4proto tcp reject with tcp reset".into(),
        (_, 7, _) => "tcp dport vmap { 81 : drop, 443 : accept, 8080 : return }".into(),
        (_, 8, _) => "ct mark set meta mark".into(),
        _ => "counter".into(),
    }
}

fn nft_inbound(dice: &mut Dice) -> String {
    let conditions = [
        "tcp dport { 15001, 15003 }",
        "ct status dnat",
        "ct original proto-dst 443",
        "meta mark 1",
        "iifname \"lo\" tcp dport 15002",
        "meta skuid 0",
    ];
    let actions = ["drop", "accept", "reject with tcp reset", "counter"];
    let (condition, action) = (dice.pick(&conditions), dice.pick(&actions));
    // Only from the hook of INPUT on is there someone to tell.
    let action = if action.starts_with("reject") {
        "drop"
    } else {
        action
    };
    format!("  meta l4proto tcp {condition} {action}\n")
}

fn iptables(dice: &mut Dice, cgroups: &Cgroups) -> String {
    let first = iptables_family(dice, cgroups, false);
    let second = iptables_family(dice, cgroups, true);
    first + SECOND_FAMILY + &second
}

fn iptables_family(dice: &mut Dice, cgroups: &Cgroups, is_v6: bool) -> String {
    let mut text = String::new();
    for table in ["mangle", "nat", "filter"] {
        let _ = writeln!(
            text,
            "*{table}\n:OUTPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n-A OUTPUT -p tcp ! --syn -j ACCEPT"
        );
        for (chain, below) in [("OUTPUT", Some("A")), ("A", Some("B")), ("B", None)] {
            for _ in 0..=dice.roll(4) {
                let _ = writeln!(
                    text,
                    "-A {chain} -p tcp{}{}{}",
                    iptables_header(dice, is_v6),
                    iptables_match(dice, cgroups, is_v6),
                    iptables_target(dice, table, below, is_v6)
                );
            }
        }
        text += match (table, dice.roll(9)) {
            ("filter", 0) => {
                "-A INPUT -p tcp ! --syn -j ACCEPT\n-A INPUT -p tcp --dport 15001 -j REJECT --reject-with tcp-reset\n"
            }
            ("filter", 1) => {
                "-A INPUT -p tcp ! --syn -j ACCEPT\n-A INPUT -p tcp -m conntrack --ctstate DNAT -m multiport --dports 15002,15003 -j DROP\n"
            }
            ("filter", 2) => "-A INPUT -p tcp --syn -i lo -m mark --mark 1 -j DROP\n",
            ("nat", 0 | 1) => "-A POSTROUTING -o wire0 -j MASQUERADE\n",
            _ => "",
        };
        text += "COMMIT\n";
    }
    text
}

fn iptables_header(dice: &mut Dice, is_v6: bool) -> &'static str {
    match (dice.roll(6), is_v6) {
        (0, false) => " -d 10.77.0.2",
        (1, false) => " ! -d 10.77.0.0/30",
        (0, true) => " -d fd77::/64",
        (1, true) => " ! -d fd77::2",
        (2, _) => " -o wire0",
        (3, _) => " ! -o wi+",
        (4, false) => " -s 10.77.0.1",
        _ => "",
    }
}

fn iptables_match(dice: &mut Dice, cgroups: &Cgroups, is_v6: bool) -> String {
    let fixed = [
        " -m tcp ! --dport 400:500",
        " -m multiport --dports 80,400:500",
        " -m multiport ! --dports 443,8080",
        " -m owner ! --uid-owner 1337",
        " -m owner --uid-owner 1000-2000",
        " -m owner --gid-owner 0",
        " -m owner --socket-exists",
        " -m mark --mark 0x10/0x10",
        " -m mark ! --mark 1",
        " -m connmark --mark 2/0xff",
        " -m connmark ! --mark 2",
        " -m conntrack --ctstate NEW,RELATED",
        " -m conntrack ! --ctstate NEW",
        " -m conntrack --ctstate DNAT",
        " -m conntrack --ctstatus CONFIRMED",
        " -m conntrack ! --ctstatus CONFIRMED,SEEN_REPLY",
        " -m conntrack --ctorigdstport 80:90",
        " -m conntrack --ctreplsrcport 15001:15003",
        " -m conntrack --ctdir ORIGINAL",
        " -m conntrack --ctdir REPLY",
        " -m addrtype --dst-type LOCAL",
        " -m addrtype ! --dst-type LOCAL",
        " -m addrtype --src-type LOCAL --dst-type UNICAST",
        " --syn -m comment --comment \"a -j b\"",
    ];
    let of_family: &[&str] = match is_v6 {
        false => &[
            " -m iprange --dst-range 10.77.0.3-10.77.0.9",
            " -m conntrack --ctorigdst 10.77.0.2",
            " -m conntrack --ctreplsrc 127.0.0.1",
            " -m conntrack ! --ctorigsrc 10.77.0.0/24",
        ],
        true => &[
            " -m iprange --dst-range fd77::1-fd77::9",
            " -m conntrack --ctorigdst fd77::2",
        ],
    };
    let roll = dice.roll(fixed.len() + of_family.len() + 7);
    if let Some(text) = fixed.iter().chain(of_family).nth(roll) {
        return (*text).into();
    }
    let [own, other] = &cgroups.names;
    match roll - fixed.len() - of_family.len() {
        0..=2 => format!(" -m tcp --dport {}", dice.pick(&PORTS)),
        3 | 4 => format!(" -m owner --uid-owner {}", dice.pick(&UIDS)),
        5 => format!(" -m cgroup --path {own}"),
        _ => format!(" -m cgroup ! --path {other}"),
    }
}

fn iptables_target(dice: &mut Dice, table: &str, below: Option<&str>, is_v6: bool) -> String {
    match (table, dice.roll(8), below) {
        (_, 0, _) => " -j ACCEPT".into(),
        (_, 1, _) => " -j RETURN".into(),
        (_, 2 | 3, Some(below)) => {
            let word = if dice.roll(3) == 0 { "-g" } else { "-j" };
            format!(" {word} {below}")
        }
        ("nat", 4, _) if !is_v6 => " -j DNAT --to-destination 10.77.0.3:81".into(),
        ("nat", 4, _) => " -j DNAT --to-destination [fd77::2]:81".into(),
        ("nat", 5, _) => " -j REDIRECT --to-ports 15001-15003".into(),
        ("nat", ..) => format!(" -j REDIRECT --to-ports {}", dice.pick(&GOALS)),
        ("mangle", 4, _) => " -j CONNMARK --set-mark 2".into(),
        ("mangle", 5, _) => " -j CONNMARK --save-mark".into(),
        ("mangle", 6, _) => " -j DSCP --set-dscp 8".into(),
        ("mangle", ..) => " -j MARK --set-xmark 0x1/0xff".into(),
        (_, 4, _) => " -j DROP".into(),
        (_, 5, _) => " -j REJECT --reject-with tcp-reset".into(),
        _ => String::new(),
    }
}
