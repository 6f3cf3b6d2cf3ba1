//! Services by name, and by an address that no host has.

use crate::{
    site::each_version,
    support::{Speak, World},
};

/// In a network of which the application has a route, and where nobody is.
const NOBODY: &str = "203.0.113.10";

fn with_a_way_to_nobody(world: &World) {
    world.app.sh("ip route add 203.0.113.0/24 dev app0");
}

#[test]
fn a_host_leads_to_its_cluster_wherever_it_was_dialled() {
    each_version(&["a", "b"], |site| {
        with_a_way_to_nobody(&site.world);
        let _proxy = site.proxy(
            "- { match: { host: a.test }, cluster: a }\n- { match: { host: b.test }, cluster: b }",
        );
        // One connection, whose requests go to and fro.
        let hosts = ["a", "b"].repeat(10);
        let host = |name: &str| if name == "a" { "a.test" } else { "b.test" };
        let asked: Vec<_> = hosts
            .iter()
            .map(|name| (host(name), format!("/{name}")))
            .collect();
        let nobody: std::net::IpAddr = NOBODY.parse().expect("an address");
        let answers = site.over_one_connection((nobody, 80), &asked);
        let wanted: Vec<_> = hosts
            .iter()
            .map(|name| (200, format!("{name} GET {name}.test /{name} [] []\n")))
            .collect();
        assert_eq!(answers, wanted);
    });
}

#[test]
fn an_address_that_no_host_has_stands_for_a_cluster() {
    each_version(&["a"], |site| {
        with_a_way_to_nobody(&site.world);
        let _proxy = site.proxy(&format!(
            "- {{ match: {{ destination: {NOBODY} }}, cluster: a }}"
        ));
        let answer = site.curl(&format!("http://{NOBODY}/x"));
        assert_eq!(answer, format!("a GET {NOBODY} /x [] []\n"));
    });
}

#[test]
fn so_it_does_for_bytes_of_any_protocol_whoever_speaks_first() {
    let world = World::new();
    with_a_way_to_nobody(&world);
    let _greeter = world.peer(9001, |mut stream| {
        stream.say("220 ready\r\n")?;
        let line = stream.hear_until("\r\n")?;
        stream.say(format!("250 {line}"))
    });
    let _echo = world.peer(9002, |mut stream| {
        let line = stream.hear_until("\n")?;
        stream.say(line)
    });
    let proxy = world.serve(&format!(
        "routes:\n- {{ match: {{ destination: {NOBODY}, port: 25 }}, cluster: mail }}\n- {{ match: {{ destination: {NOBODY} }}, split: [{{ cluster: echo, weight: 1 }}, {{ cluster: mail, weight: 0 }}] }}\n\
         clusters:\n- {{ name: mail, endpoints: [{{ address: '198.51.100.2:9001' }}] }}\n- {{ name: echo, endpoints: [{{ address: '198.51.100.2:9002' }}] }}\n"
    ));
    world.capture(&proxy);
    let address = |port| std::net::SocketAddr::new(NOBODY.parse().expect("an address"), port);
    for _ in 0..3 {
        let mut client = world.app.connect(address(25));
        assert_eq!(client.hear_until("\r\n").unwrap(), "220 ready\r\n");
        client.say("HELO x\r\n").unwrap();
        assert_eq!(client.hear_until("\r\n").unwrap(), "250 HELO x\r\n");
    }
    let mut client = world.app.connect(address(7));
    client.say("\0 one\n").unwrap();
    assert_eq!(client.hear_until("\n").unwrap(), "\0 one\n");
}

/// Both clusters greet; a client that is greeted by one must not be connected to the other.
#[test]
fn who_was_greeted_by_one_cluster_talks_to_that_one() {
    let world = World::new();
    with_a_way_to_nobody(&world);
    let greeter = |name: &'static str| {
        move |mut stream: std::net::TcpStream| {
            stream.say(format!("{name}\n"))?;
            stream.hear_until("\n")?;
            stream.say(format!("{name}\n"))
        }
    };
    let _one = world.peer(9001, greeter("one"));
    let _two = world.peer(9002, greeter("two"));
    let proxy = world.serve(
        "timeouts: { quiet: 20ms }\nroutes: [{ match: {}, split: [{ cluster: one, weight: 1 }, { cluster: two, weight: 1 }] }]\n\
         clusters:\n- { name: one, endpoints: [{ address: '198.51.100.2:9001' }] }\n- { name: two, endpoints: [{ address: '198.51.100.2:9002' }] }\n",
    );
    world.capture(&proxy);
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let mut client = world
            .app
            .connect((NOBODY.parse::<std::net::IpAddr>().unwrap(), 25));
        let name = client.hear_until("\n").unwrap();
        client.say("hello\n").unwrap();
        assert_eq!(client.hear_until("\n").unwrap(), name);
        names.insert(name);
    }
    assert_eq!(names.len(), 2, "both were chosen");
}
