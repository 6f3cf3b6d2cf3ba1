//! Which cluster a connection or request goes to, and that a reload changes it for the next one only.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    backend::{Backend, clustered, three},
    client::{ask, connect, service, spread},
    support::{Load, SOON, SVC4, Speak, World, figure, rounds, wait_until},
};

#[test]
fn the_host_of_each_request_decides_within_one_client_connection() {
    let world = World::new();
    let backends = three(&world);
    let cluster = |b: &Backend| {
        format!(
            "- {{ name: {}, endpoints: [{{ address: '{}' }}] }}\n",
            b.name,
            b.address()
        )
    };
    let config = format!(
        "routes:\n- {{ match: {{ host: a.test }}, cluster: a }}\n- {{ match: {{ host: '*.b.test' }}, cluster: b }}\n- {{ match: {{ port: 80 }}, cluster: c }}\nclusters:\n{}",
        backends.iter().map(cluster).collect::<String>()
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    let mut client = connect(&world);
    for (host, name) in [
        ("A.test:80", "a"),
        ("x.b.test", "b"),
        ("svc", "c"),
        ("a.test", "a"),
    ] {
        client
            .say(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .unwrap();
        assert_eq!(client.hear_response().unwrap().1.trim(), name, "{host}");
    }
    client
        .say("GET http://a.test/ HTTP/1.1\r\nHost: x.b.test\r\n\r\n")
        .unwrap();
    assert_eq!(client.hear_response().unwrap().1.trim(), "a");
}

#[test]
fn what_no_route_matches_goes_where_it_was_dialled() {
    let world = World::new();
    let nginx = world.nginx();
    let backends = three(&world);
    let config = clustered(&backends, "").replace("port: 80", "port: 81");
    let proxy = world.serve(&config);
    world.capture(&proxy);
    assert_eq!(
        world.app.sh("curl -sS http://198.51.100.2/hello"),
        "hello\n"
    );
    wait_until(SOON, "it is logged", || nginx.requests().len() == 1);
}

#[test]
fn bytes_of_any_protocol_go_to_the_cluster_and_a_silent_server_speaks_first() {
    let world = World::new();
    let _greeter = world.peer(9001, |mut stream| {
        stream.say("220 ready\r\n")?;
        let line = stream.hear_until("\r\n")?;
        stream.say(format!("250 {line}"))
    });
    let proxy = world.serve(
        "routes: [{ match: { port: 25 }, cluster: mail }]\nclusters:\n- name: mail\n  connect_timeout: 250ms\n  endpoints: [{ address: '198.51.100.2:9001' }, { address: '198.51.100.2:9009' }]\n",
    );
    world.capture(&proxy);
    for _ in 0..4 {
        let mut client = world.app.connect((SVC4, 25));
        assert_eq!(client.hear_until("\r\n").unwrap(), "220 ready\r\n");
        client.say("HELO x\r\n").unwrap();
        assert_eq!(client.hear_until("\r\n").unwrap(), "250 HELO x\r\n");
    }
}

#[test]
fn the_name_in_a_client_hello_decides_however_it_is_split() {
    let world = World::new();
    let _nginx = world.nginx();
    let proxy = world.serve(
        "routes: [{ match: { sni: svc.test }, cluster: tls }]\nclusters:\n- { name: tls, endpoints: [{ address: '198.51.100.2:443' }] }\n",
    );
    world.capture(&proxy);
    let ca = world.dir().join("svc.crt");
    assert_eq!(
        world.app.sh(&format!(
            "curl -sS --cacert {} --connect-to svc.test:443:198.51.100.2:4443 https://svc.test/hello",
            ca.display()
        )),
        "hello\n"
    );
    // Nobody listens where it was dialled, and no route holds.
    let other = world.app.try_sh(&format!(
        "curl -sS --cacert {} --connect-to other.test:443:198.51.100.2:4443 https://other.test/hello",
        ca.display()
    ));
    assert!(!other.status.success());
}

#[test]
fn a_thousand_reloads_under_load_fail_no_request_and_a_bad_file_changes_nothing() {
    let world = World::new();
    let backends = three(&world);
    let proxy = world.serve(&format!("workers: 2\n{}", clustered(&backends, "")));
    world.capture(&proxy);
    let count = rounds(50, 1000);
    let failed = thread::scope(|scope| {
        let load = Load::start(scope, &world, 4, service());
        load.flows(50);
        let mut settled = 0;
        for round in 0..count {
            if round == count / 5 {
                settled = proxy.memory().resident;
            }
            let text = match round % 5 {
                0 => clustered(&backends[..2], ""),
                1 => clustered(&backends, "load_balancer: least_request"),
                2 => "routes: [{ match: {}, cluster: nobody }]\n".into(),
                3 => clustered(&backends[1..], "outlier_detection: {}"),
                _ => clustered(&backends, "load_balancer: maglev"),
            };
            let before = reloads(&world);
            write_anew(&world, &text);
            wait_until(SOON, "a reload", || reloads(&world) > before);
        }
        load.flows(50);
        let memory = proxy.memory().resident;
        figure(
            &format!("{count} reloads under load, KiB more than after a fifth of them"),
            memory.saturating_sub(settled),
            "no growth",
        );
        // Configurations that stayed would be some 20 KiB each.
        assert!(memory < settled + 4096, "{settled} KiB, then {memory}");
        load.stop()
    });
    figure(
        &format!("{count} reloads under load, failed requests"),
        failed.len(),
        "0",
    );
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_tunnel_outlives_the_route_that_made_it() {
    let world = World::new();
    let _echo = world.peer(9001, |mut stream| {
        loop {
            let line = stream.hear_until("\n")?;
            stream.say(line)?;
        }
    });
    let proxy = world.serve(
        "routes: [{ match: { port: 7 }, cluster: echo }]\nclusters:\n- { name: echo, endpoints: [{ address: '198.51.100.2:9001' }] }\n",
    );
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 7));
    client.say("one\n").unwrap();
    assert_eq!(client.hear_until("\n").unwrap(), "one\n");
    let before = reloads(&world);
    write_anew(&world, "timeouts: { drain: 1s }\n");
    proxy.signal(Signal::HUP);
    wait_until(SOON, "a reload", || reloads(&world) > before);
    client.say("two\n").unwrap();
    assert_eq!(client.hear_until("\n").unwrap(), "two\n");
}

#[test]
fn an_endpoint_file_takes_effect_while_it_is_used() {
    let world = World::new();
    let backends = three(&world);
    let entry = |b: &Backend| format!("- {{ address: '{}' }}\n", b.address());
    let file = world.write("endpoints.yaml", entry(&backends[0]));
    let proxy = world.serve(&format!(
        "routes: [{{ match: {{}}, cluster: service }}]\nclusters:\n- {{ name: service, file: {{ path: {} }} }}\n",
        file.display()
    ));
    world.capture(&proxy);
    wait_until(SOON, "the file is read", || {
        ask(&mut connect(&world), "").is_ok_and(|(status, _)| status == 200)
    });
    let next = world.write("next.yaml", entry(&backends[1]));
    let begun = Instant::now();
    fs::rename(next, &file).unwrap();
    let mut client = connect(&world);
    let mut took = None;
    while took.is_none() {
        assert!(begun.elapsed() < SOON, "the new list is not used");
        if ask(&mut client, "").unwrap().1.trim() == "b" {
            took = Some(begun.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    figure(
        "a changed endpoint file, ms until used",
        took.unwrap().as_millis(),
        "at most 50",
    );
    assert_eq!(spread(&world, 5).len(), 1);
}

#[test]
fn a_name_is_followed_to_its_new_address_while_requests_go_on() {
    let world = World::new();
    let server = name_server();
    world.app.sh(&format!("ip addr add {server} dev lo"));
    // The names lead to addresses of their own, all of them the service's.
    world
        .svc
        .sh("ip addr add 198.51.100.11/24 dev svc0; ip addr add 198.51.100.12/24 dev svc0");
    let redirects = world.write(
        "names.nft",
        "table ip names {
            chain arriving {
                type nat hook prerouting priority -100
                ip daddr 198.51.100.11 tcp dport 9000 redirect to :9004
                ip daddr 198.51.100.12 tcp dport 9000 redirect to :9005
            }
        }\n",
    );
    world.svc.sh(&format!("nft -f {}", redirects.display()));
    let _a = world.peer(9004, named("one"));
    let _b = world.peer(9005, named("two"));
    let hosts = world.write("hosts", "198.51.100.11 service.internal\n");
    let mut command = std::process::Command::new("dnsmasq");
    command
        .args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
        ])
        .args([
            "--bind-interfaces",
            "--local-ttl=1",
            "--user=root",
            "--local=/internal/",
            "--pid-file=",
        ])
        .arg(format!("--listen-address={server}"))
        .arg(format!("--addn-hosts={}", hosts.display()));
    let dnsmasq = world.start("dnsmasq", &command);
    let proxy = world.serve(
        "capture: { exclude: { ports: [53] } }\nroutes: [{ match: { port: 80 }, cluster: service }]\nclusters:\n\
         - { name: service, dns: { name: service.internal, port: 9000, min_refresh: 1s } }\n",
    );
    world.capture(&proxy);
    let answers = |name: &'static str| {
        wait_until(SOON, &format!("{name} answers"), || {
            ask(&mut connect(&world), "").is_ok_and(|(s, body)| s == 200 && body == name)
        });
    };
    answers("one");
    let (changed, failed) = thread::scope(|scope| {
        let load = Load::start(scope, &world, 2, service());
        load.flows(50);
        fs::write(&hosts, "198.51.100.12 service.internal\n").unwrap();
        dnsmasq.signal(Signal::HUP);
        let begun = Instant::now();
        answers("two");
        (begun.elapsed(), load.stop())
    });
    figure(
        "a changed DNS answer with a TTL of 1 s, ms until used",
        changed.as_millis(),
        "TTL and 50",
    );
    assert!(failed.is_empty(), "{failed:?}");
    // What is known stays when nobody can be asked any more.
    drop(dnsmasq);
    thread::sleep(Duration::from_millis(1500));
    answers("two");
}

/// The first name server of this machine's, whose address is a private one's in the namespace.
pub(crate) fn name_server() -> String {
    let text = fs::read_to_string("/etc/resolv.conf").expect("/etc/resolv.conf names a server");
    let line = text.lines().find_map(|l| l.strip_prefix("nameserver "));
    line.expect("/etc/resolv.conf names a server").trim().into()
}

fn named(name: &'static str) -> impl Fn(std::net::TcpStream) -> std::io::Result<()> {
    move |mut stream| {
        loop {
            stream.hear_until("\r\n\r\n")?;
            stream.say(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                name.len()
            ))?;
        }
    }
}

/// Reloads so far, those of bad files counted.
fn reloads(world: &World) -> u64 {
    world.metric_sum("outrigger_config_reloads_total", "") as u64
}

/// As an editor or a mount does: a new file in the place of the old one.
fn write_anew(world: &World, text: &str) {
    let new = world.write("new.yaml", text);
    fs::rename(new, world.dir().join("outrigger.yaml")).unwrap();
}
