//! Truth by experiment: random rulesets are loaded, real connections made, and where they end is
//! compared with what `explain` says of them.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use outrigger_iptables::{
    LiveSurroundings, ruleset,
    verdict::{Connection, End, judge},
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
    let (mut perhaps, mut redirected, mut stopped) = (0, 0, 0);
    for case in 0..cases / CONNECTIONS {
        let tool = ["nft", "iptables-legacy", "iptables-nft"][case % 3];
        let script = match tool {
            "nft" => nft(&mut dice),
            _ => iptables(&mut dice),
        };
        load(&pair.app, tool, &script);
        for _ in 0..CONNECTIONS {
            let connection = connection(&mut dice);
            let verdict = pair
                .app
                .enter(|| judge(&ruleset::read(), &connection, &LiveSurroundings::default()));
            let truth = pair.app.enter(|| truth(&connection));
            let Some(end) = verdict.certain() else {
                perhaps += 1;
                continue;
            };
            let is_right = match (end, &truth) {
                (End::Here { to } | End::Leaves { to, .. }, Truth::Reached(at)) => to == at,
                (End::Here { to }, Truth::Refused) => {
                    !LOCAL_PORTS.contains(&to.port()) && !PORTS.contains(&to.port())
                        || !is_served(*to)
                }
                (End::Leaves { to, .. }, Truth::Refused) => !PORTS.contains(&to.port()),
                (End::Dropped, Truth::Silence) | (End::Rejected, Truth::Refused) => true,
                (End::NoRoute { .. }, Truth::Silence | Truth::Failed) => true,
                (End::Dropped, Truth::Failed) => true,
                // The answer to a rejected SYN goes through the rules too, which may drop it.
                (End::Rejected, Truth::Silence) => true,
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

fn connection(dice: &mut Dice) -> Connection {
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
        cgroup: None,
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
    let (program, arguments) = match tool {
        "nft" => ("nft", vec!["-f", "-"]),
        "iptables-legacy" => ("iptables-legacy-restore", vec![]),
        _ => ("iptables-nft-restore", vec![]),
    };
    namespace.enter(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs the program `{program}`: {error}"));
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}\n{script}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

fn clear(namespace: &Namespace, tool: &str) {
    match tool {
        "nft" => load(namespace, tool, "flush ruleset\n"),
        _ => load(
            namespace,
            tool,
            "*nat\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n",
        ),
    }
}

fn nft(dice: &mut Dice) -> String {
    let mut text = String::from(
        "table inet t {\n set hosts { type ipv4_addr; flags interval; elements = { 10.77.0.3-10.77.0.9, 192.0.2.0/24 } }\n set ports { type inet_service; elements = { 80, 8080 } }\n map goals { type inet_service : inet_service; elements = { 80 : 15001, 443 : 15002 } }\n",
    );
    for (kind, hook, priority) in [
        ("nat", "output", -100),
        ("filter", "output", 0),
        ("route", "output", -150),
        ("filter", "output", -200),
    ] {
        let base = format!("{kind}{}", -priority);
        // Chains that are jumped to must be there first.
        for n in (0..2).rev() {
            let rules = nft_rules(
                dice,
                kind,
                if n == 0 {
                    Some(format!("{base}_1"))
                } else {
                    None
                },
            );
            let _ = writeln!(text, " chain {base}_{n} {{\n{rules} }}");
        }
        let rules = nft_rules(dice, kind, Some(format!("{base}_0")));
        let policy = if kind == "filter" && dice.roll(12) == 0 {
            "drop"
        } else {
            "accept"
        };
        let _ = writeln!(
            text,
            " chain {base} {{ type {kind} hook {hook} priority {priority}; policy {policy};\n{rules} }}"
        );
    }
    text + "}\n"
}

fn nft_rules(dice: &mut Dice, kind: &str, below: Option<String>) -> String {
    let mut text = String::new();
    for _ in 0..=dice.roll(4) {
        let mut line = String::from("  ");
        // A rule on both families is refused by nft.
        let is_v6 = dice.roll(4) == 0;
        for _ in 0..=dice.roll(2) {
            let condition = match dice.roll(22) {
                0 => "ip daddr 10.77.0.2".into(),
                1 => "ip daddr != 10.77.0.0/30".into(),
                2 => "ip daddr { 10.77.0.1, 10.77.0.3-10.77.0.4 }".into(),
                3 => "ip daddr @hosts".into(),
                4 => "tcp dport @ports".into(),
                5 => format!("tcp dport {}", dice.pick(&PORTS)),
                6 => "tcp dport != { 80, 400-500 }".into(),
                7 => "tcp dport 80-90".into(),
                8 => format!("meta skuid {}", dice.pick(&UIDS)),
                9 => "meta skuid != 1337".into(),
                10 => "meta skuid 1000-2000".into(),
                11 => "meta mark 1".into(),
                12 => "meta mark and 0x10 == 0x10".into(),
                13 => "oifname \"wire0\"".into(),
                14 => "oifname \"wi*\"".into(),
                15 => "ct state new,established".into(),
                16 => "meta nfproto ipv6".into(),
                17 => "tcp flags & (fin|syn|rst|ack) == syn".into(),
                18 => "fib daddr type != local".into(),
                19 => "ip daddr . tcp dport { 10.77.0.2 . 80, 10.77.0.3 . 443, 10.77.0.4 . 80-90 }"
                    .into(),
                20 => "ip6 daddr fd77::/64".into(),
                _ => "meta l4proto tcp ct original proto-dst 80-100".into(),
            };
            let is_of_v6 = condition.contains("ip6 ") || condition.contains("ipv6");
            let is_of_v4 = condition.contains("ip daddr");
            if !(is_v6 && is_of_v4 || !is_v6 && is_of_v6) {
                line += &condition;
                line.push(' ');
            }
        }
        line += &match (kind, dice.roll(8)) {
            (_, 0) => "accept".into(),
            (_, 1) => "return".into(),
            (_, 2 | 3) if below.is_some() => {
                let word = if dice.roll(3) == 0 { "goto" } else { "jump" };
                format!("{word} {}", below.as_deref().unwrap())
            }
            ("nat", 4) if !is_v6 => {
                "meta nfproto ipv4 meta l4proto tcp dnat ip to 10.77.0.3:81".into()
            }
            ("nat", 5) => "meta l4proto tcp redirect to :tcp dport map @goals".into(),
            ("nat", _) => format!("meta l4proto tcp redirect to :{}", dice.pick(&GOALS)),
            ("route", _) => format!("meta mark set {}", dice.pick(&MARKS)),
            (_, 4) => "drop".into(),
            (_, 5) => "meta l4proto tcp reject with tcp reset".into(),
            (_, 6) => "tcp dport vmap { 81 : drop, 443 : accept, 8080 : return }".into(),
            _ => "counter".into(),
        };
        text += &line;
        text.push('\n');
    }
    text
}

fn iptables(dice: &mut Dice) -> String {
    let mut text = String::new();
    for table in ["mangle", "nat", "filter"] {
        let _ = writeln!(
            text,
            "*{table}\n:OUTPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]"
        );
        for (chain, below) in [("OUTPUT", Some("A")), ("A", Some("B")), ("B", None)] {
            for _ in 0..=dice.roll(4) {
                let mut line = format!("-A {chain} -p tcp");
                line += match dice.roll(5) {
                    0 => " -d 10.77.0.2",
                    1 => " ! -d 10.77.0.0/30",
                    2 => " -o wire0",
                    3 => " ! -o wi+",
                    _ => "",
                };
                line += &match dice.roll(16) {
                    0 => format!(" -m tcp --dport {}", dice.pick(&PORTS)),
                    1 => " -m tcp ! --dport 400:500".into(),
                    2 => " -m multiport --dports 80,400:500".into(),
                    3 => " -m multiport ! --dports 443,8080".into(),
                    4 => format!(" -m owner --uid-owner {}", dice.pick(&UIDS)),
                    5 => " -m owner ! --uid-owner 1337".into(),
                    6 => " -m owner --uid-owner 1000-2000".into(),
                    7 => " -m owner --gid-owner 0".into(),
                    8 => " -m mark --mark 0x10/0x10".into(),
                    9 => " -m mark ! --mark 1".into(),
                    10 => " -m conntrack --ctstate NEW,RELATED".into(),
                    11 => " -m conntrack ! --ctstate NEW".into(),
                    12 => " -m addrtype --dst-type LOCAL".into(),
                    13 => " -m addrtype ! --dst-type LOCAL".into(),
                    14 => " -m iprange --dst-range 10.77.0.3-10.77.0.9".into(),
                    _ => " --syn -m comment --comment \"a -j b\"".into(),
                };
                line += &match (table, dice.roll(7)) {
                    (_, 0) => " -j ACCEPT".into(),
                    (_, 1) => " -j RETURN".into(),
                    (_, 2 | 3) if below.is_some() => {
                        let word = if dice.roll(3) == 0 { "-g" } else { "-j" };
                        format!(" {word} {}", below.unwrap())
                    }
                    ("nat", 4) => " -j DNAT --to-destination 10.77.0.3:81".into(),
                    ("nat", _) => format!(" -j REDIRECT --to-ports {}", dice.pick(&GOALS)),
                    ("mangle", _) => " -j MARK --set-xmark 0x1/0xff".into(),
                    (_, 4) => " -j DROP".into(),
                    (_, 5) => " -j REJECT --reject-with tcp-reset".into(),
                    _ => String::new(),
                };
                text += &line;
                text.push('\n');
            }
        }
        text += "COMMIT\n";
    }
    text
}
