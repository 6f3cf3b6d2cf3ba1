//! Against a real name server: needs dnsmasq in the PATH (Debian: dnsmasq-base).

use std::{
    net::{Ipv4Addr, UdpSocket},
    num::NonZeroU16,
    process::{Child, Command},
};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::Name,
};
use outrigger_config::Span;

use super::*;

struct Dnsmasq(Child, u16);

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.local_addr().expect("an address").port()
}

fn dnsmasq(port: u16, records: &[&str]) -> Dnsmasq {
    let child = Command::new("dnsmasq")
        .args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ])
        .args([
            "--listen-address=127.0.0.1",
            "--local=/internal/",
            "--user=root",
            "--local-ttl=1",
            "--pid-file=",
        ])
        .arg(format!("--port={port}"))
        .args(records)
        .spawn();
    Dnsmasq(child.expect("dnsmasq; apt-get install dnsmasq-base"), port)
}

fn source(port: u16, settings: Settings) -> Dns {
    let mut server = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
    for connection in &mut server.connections {
        connection.port = port;
    }
    let search = vec![Name::from_ascii("internal.").expect("a name")];
    let config = ResolverConfig::from_parts(None, search, vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.options_mut().timeout = Duration::from_millis(300);
    let resolver = builder.build().expect("a resolver");
    Dns::new(settings, Rc::new(Asker::new(resolver)), Arc::default())
}

fn settings(name: &str) -> Settings {
    Settings {
        name: name.into(),
        port: NonZeroU16::new(8080),
        family: DnsFamily::All,
        srv: false,
        min_refresh: Span::from_millis(100),
    }
}

async fn next(dns: &mut Dns) -> Vec<Endpoint> {
    let next = tokio::time::timeout(Duration::from_secs(15), dns.next());
    next.await.expect("an answer in time")
}

fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|e| e.address.to_string()).collect()
}

#[tokio::test]
async fn both_families_a_change_and_a_server_that_dies() {
    let port = free_port();
    let both = "--host-record=web.internal,192.0.2.1,2001:db8::1";
    let server = dnsmasq(port, &[both]);
    // The name is completed by the search domain.
    let mut dns = source(server.1, settings("web"));
    let found = next(&mut dns).await;
    assert_eq!(addresses(&found), ["192.0.2.1:8080", "[2001:db8::1]:8080"]);
    drop(server);
    // Nothing comes while nobody answers, and so the last answer stays.
    let status = dns.status.clone();
    let failed = async {
        while status.state().failures == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = dns.next() => panic!("an answer from nobody"),
        failed = tokio::time::timeout(Duration::from_secs(30), failed) => failed.expect("a failure is told"),
    }
    let status = dns.status.state();
    assert!(status.failure.is_some());
    assert!(
        status.answered_at.is_some(),
        "what it answered before counts"
    );
    let _server = dnsmasq(port, &["--host-record=web.internal,192.0.2.2"]);
    assert_eq!(addresses(&next(&mut dns).await), ["192.0.2.2:8080"]);
    assert_eq!(dns.status.state().failure, None);
}

#[tokio::test]
async fn srv_records_carry_port_weight_and_priority() {
    let server = dnsmasq(
        free_port(),
        &[
            "--host-record=one.internal,192.0.2.1",
            "--host-record=two.internal,192.0.2.2",
            "--srv-host=_web._tcp.internal,one.internal,81,10,7",
            "--srv-host=_web._tcp.internal,two.internal,82,30,0",
        ],
    );
    let mut dns = source(
        server.1,
        Settings {
            srv: true,
            ..settings("_web._tcp.internal.")
        },
    );
    let found = next(&mut dns).await;
    assert_eq!(addresses(&found), ["192.0.2.1:81", "192.0.2.2:82"]);
    let ranks: Vec<_> = found.iter().map(|e| (e.priority, e.weight.get())).collect();
    assert_eq!(ranks, [(0, 7), (1, 1)]);
}

#[tokio::test]
async fn one_family_may_be_preferred() {
    let both = "--host-record=web.internal,192.0.2.1,2001:db8::1";
    let server = dnsmasq(free_port(), &[both]);
    for (family, address) in [
        (DnsFamily::V4Preferred, "192.0.2.1:8080"),
        (DnsFamily::V6Only, "[2001:db8::1]:8080"),
    ] {
        let mut dns = source(
            server.1,
            Settings {
                family,
                ..settings("web.internal.")
            },
        );
        assert_eq!(addresses(&next(&mut dns).await), [address]);
    }
}

/// dnsmasq without a server to forward to refuses AAAA of a name outside its own domains of which it
/// knows the A record only, as many appliances do.
#[tokio::test]
async fn a_server_that_refuses_one_family_is_believed_about_the_other() {
    let server = dnsmasq(free_port(), &["--host-record=web.elsewhere,192.0.2.1"]);
    let mut dns = source(server.1, settings("web.elsewhere."));
    let refused = dns.family("web.elsewhere.", RecordType::AAAA).await.err();
    assert!(refused.as_ref().is_some_and(is_declined), "{refused:?}");
    assert_eq!(addresses(&next(&mut dns).await), ["192.0.2.1:8080"]);
    assert_eq!(dns.status.state().failures, 0);
}
