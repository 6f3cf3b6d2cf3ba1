//! Configurations as large as any: how soon one is in force, what it takes, and what requests notice
//! of a change. The long form has 10,000 clusters with 100,000 endpoints, and holds the bars.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::{Backend, three},
    client::{ask, connect},
    routing::name_server,
    support::{Proxy, SOON, SVC4, Speak, World, figure, rounds, wait_for, wait_until},
};

const ENDPOINTS_EACH: u8 = 10;

/// Requests a client begins in a second.
const RATE: u32 = 250;

fn clusters() -> usize {
    rounds(50, 10_000)
}

/// Whether the size is the one that the bars are for.
fn is_full() -> bool {
    clusters() == 10_000
}

/// Prints a figure; in full size it has to be at most `bar`.
#[track_caller]
fn hold(what: &str, value: f64, bar: f64, unit: &str) {
    let what = format!("{} clusters, {what}", clusters());
    figure(
        &what,
        format!("{value:.1} {unit}"),
        &format!("bar: {bar} {unit}"),
    );
    assert!(!is_full() || value <= bar, "{what}: {value:.1} {unit}");
}

/// The service, whose cluster is `service`, and the other clusters with a route by host to each.
fn text(service: &str, other: impl Fn(usize) -> String) -> String {
    let mut text = format!("workers: 2\nclusters:\n- {{ name: service, {service} }}\n");
    for n in 1..clusters() {
        let _ = writeln!(text, "- {{ name: cluster-{n}, {} }}", other(n));
    }
    let _ = writeln!(
        text,
        "routes:\n- {{ match: {{ destination: {SVC4}, port: 80 }}, cluster: service }}"
    );
    for n in 1..clusters() {
        let _ = writeln!(
            text,
            "- {{ match: {{ host: service-{n}.internal, port: 80 }}, cluster: cluster-{n} }}"
        );
    }
    text
}

fn at(backend: &Backend) -> String {
    format!("endpoints: [{{ address: '{}' }}]", backend.address())
}

/// What stands under `endpoints` of the `n`th cluster.
fn endpoints(n: usize, weight: usize) -> Vec<String> {
    (1..=ENDPOINTS_EACH)
        .map(|e| {
            let address = Ipv4Addr::from(of_cluster(n, e));
            format!("{{ address: '{address}:8080', weight: {weight} }}")
        })
        .collect()
}

/// A proxy that has loaded `config`, and how long that took from its start.
fn load<'w>(world: &'w World, config: &str) -> Proxy<'w> {
    world.proxyctl();
    let begun = Instant::now();
    let proxy = world.serve(config);
    assert_eq!(world.admin("/ready").0, 200);
    let took = begun.elapsed();
    hold("load", took.as_secs_f64(), 2.0, "s");
    proxy
}

/// `peak`: at most so much at any time before, in MiB.
fn hold_memory(when: &str, proxy: &Proxy<'_>, peak: f64) {
    let memory = proxy.memory();
    let mib = |kib: u64| kib as f64 / 1024.0;
    hold(
        &format!("memory {when}"),
        mib(memory.resident),
        250.0,
        "MiB",
    );
    hold(
        &format!("peak memory {when}"),
        mib(memory.peak),
        peak,
        "MiB",
    );
}

/// One request.
#[derive(Clone, Copy, Debug)]
struct Sample {
    begun: Instant,
    ended: Instant,
    by: u8,
}

/// Clients that ask the service at a steady rate, each over its one connection.
struct Watch<'scope> {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    clients: Vec<thread::ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Watch<'scope> {
    fn start<'env>(scope: &'scope thread::Scope<'scope, 'env>, world: &'env World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let clients = (0..4)
            .map(|_| {
                let (stop, samples) = (stop.clone(), samples.clone());
                scope.spawn(move || {
                    let mut client = connect(world);
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let by = answered_by(&mut client).expect("no request fails");
                        let ended = Instant::now();
                        let sample = Sample { begun, ended, by };
                        samples.lock().expect("no panic").push(sample);
                        thread::sleep(
                            (Duration::from_secs(1) / RATE).saturating_sub(begun.elapsed()),
                        );
                    }
                })
            })
            .collect();
        Self {
            stop,
            samples,
            clients,
        }
    }

    /// How long it takes from `since` until the first request is answered by `backend`.
    #[track_caller]
    fn until(&self, backend: &Backend, since: Instant) -> Duration {
        let by = backend.name.as_bytes()[0];
        let what = format!("{} answers", backend.name);
        let first = wait_for(6 * SOON, &what, || {
            let samples = self.samples.lock().expect("no panic");
            let mut late = samples.iter().rev().take_while(|s| s.ended > since);
            // The clients' samples are not in order by a few.
            late.find(|s| s.by == by)?;
            let late = samples.iter().rev().take_while(|s| s.ended > since);
            late.filter(|s| s.by == by).map(|s| s.ended).min()
        });
        first - since
    }

    /// What the requests took that were under way between two moments.
    fn between(&self, from: Instant, to: Instant) -> Latencies {
        let samples = self.samples.lock().expect("no panic");
        let within = samples.iter().filter(|s| s.ended > from && s.begun < to);
        let mut took: Vec<_> = within.map(|s| s.ended - s.begun).collect();
        took.sort();
        Latencies(took)
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("no request fails");
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // Where the test panicked, its scope would wait for these for ever.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sorted.
struct Latencies(Vec<Duration>);

impl Latencies {
    /// In milliseconds.
    fn at(&self, share: f64) -> f64 {
        let place = (self.0.len() as f64 * share) as usize;
        self.0[place.min(self.0.len() - 1)].as_secs_f64() * 1e3
    }

    fn told(&self) -> String {
        format!(
            "p50 {:.2}, p99 {:.2}, p99.9 {:.2}, worst {:.2} ms of {}",
            self.at(0.5),
            self.at(0.99),
            self.at(0.999),
            self.at(1.0),
            self.0.len()
        )
    }
}

/// The first letter of who answers.
fn answered_by(client: &mut TcpStream) -> io::Result<u8> {
    client.say("GET / HTTP/1.1\r\nHost: svc\r\n\r\n")?;
    // One read an answer, for what is measured is the proxy and not this client.
    let (mut space, mut length) = ([0; 4096], 0);
    loop {
        let read = client.read(&mut space[length..])?;
        length += read;
        let heard = &space[..length];
        if read == 0 || !heard.starts_with(&b"HTTP/1.1 200 "[..length.min(13)]) {
            return Err(io::Error::other(
                String::from_utf8_lossy(heard).into_owned(),
            ));
        }
        // `a`, `b` or `c` on a line is the body.
        if let Some(end) = heard.windows(4).position(|w| w == b"\r\n\r\n")
            && heard.len() >= end + 6
        {
            return Ok(heard[end + 4]);
        }
    }
}

/// Changes something again and again and measures what clients notice. `change` is told the round
/// and who is to answer after it, and tells when that could be known.
fn hold_changes(
    world: &World,
    backends: &[Backend; 3],
    what: &str,
    bar: f64,
    mut change: impl FnMut(usize, &Backend) -> Instant,
) {
    thread::scope(|scope| {
        let watch = Watch::start(scope, world);
        let calm_from = Instant::now();
        thread::sleep(Duration::from_secs(rounds(1, 10) as u64));
        let calm = watch.between(calm_from, Instant::now());
        let (mut slowest, mut during) = (Duration::ZERO, Latencies(Vec::new()));
        for round in 0..rounds(2, 10) {
            let backend = &backends[(round + 1) % 2];
            let begun = change(round, backend);
            let took = watch.until(backend, begun);
            slowest = slowest.max(took);
            // What follows a change, such as letting go of what was before, is part of it.
            thread::sleep(Duration::from_millis(300));
            during.0.extend(watch.between(begun, Instant::now()).0);
        }
        watch.stop();
        during.0.sort();
        figure(
            &format!("{what}, requests without"),
            calm.told(),
            "to compare",
        );
        figure(
            &format!("{what}, requests during"),
            during.told(),
            "to compare",
        );
        hold(what, slowest.as_secs_f64() * 1e3, bar, "ms");
        let later = during.at(1.0) - calm.at(1.0);
        hold(
            &format!("{what}, slowest request later by"),
            later,
            5.0,
            "ms",
        );
    });
}

#[test]
fn a_large_file_is_soon_in_force_and_requests_do_not_wait_for_it() {
    let world = World::new();
    let backends = three(&world);
    let with = |backend: &Backend, weight: usize| {
        text(&at(backend), |n| {
            format!(
                "load_balancer: least_request, outlier_detection: {{}}, endpoints: [{}]",
                endpoints(n, weight).join(", ")
            )
        })
    };
    let proxy = load(&world, &with(&backends[0], 1));
    world.capture(&proxy);
    hold_memory("after the load", &proxy, 250.0);
    let change = |text: &str| {
        let next = world.write("next.yaml", text);
        let begun = Instant::now();
        fs::rename(next, world.dir().join("outrigger.yaml")).unwrap();
        begun
    };
    let texts = [1, 0].map(|b| with(&backends[b], 1));
    let what = "reload, one endpoint changed";
    hold_changes(&world, &backends, what, 1000.0, |round, _| {
        change(&texts[round % 2])
    });
    let texts = [(1, 2), (0, 3)].map(|(b, weight)| with(&backends[b], weight));
    let what = "reload, every endpoint changed";
    hold_changes(&world, &backends, what, 1000.0, |round, _| {
        change(&texts[round % 2])
    });
    // While it is worked out, the next configuration stands beside the last.
    hold_memory("after reloads", &proxy, 500.0);
}

#[test]
fn one_of_many_endpoint_files_takes_effect_at_once() {
    let world = World::new();
    let backends = three(&world);
    let directory = world.dir().join("endpoints");
    fs::create_dir(&directory).unwrap();
    let file = |n: usize| directory.join(format!("{n}.yaml"));
    let of_service = |backend: &Backend| format!("- address: {}\n", backend.address());
    fs::write(file(0), of_service(&backends[0])).unwrap();
    for n in 1..clusters() {
        fs::write(file(n), format!("[{}]", endpoints(n, 1).join(", "))).unwrap();
    }
    let of = |n: usize| format!("file: {{ path: {} }}", file(n).display());
    let proxy = load(&world, &text(&of(0), of));
    let begun = Instant::now();
    until_known(&world, 1 + (clusters() - 1) * usize::from(ENDPOINTS_EACH));
    let took = begun.elapsed();
    hold("all endpoint files read", took.as_secs_f64(), 2.0, "s");
    world.capture(&proxy);
    until_answers(&world);
    hold_memory("with endpoint files", &proxy, 250.0);
    let what = "change of an endpoint file";
    hold_changes(&world, &backends, what, 50.0, |_, backend| {
        let next = world.write("next.yaml", of_service(backend));
        let begun = Instant::now();
        fs::rename(next, file(0)).unwrap();
        begun
    });
}

/// Waits until the clusters have so many endpoints between them.
fn until_known(world: &World, endpoints: usize) {
    wait_until(6 * SOON, "every endpoint is known", || {
        world.metric_sum("outrigger_cluster_endpoints", "") as usize == endpoints
    });
}

fn until_answers(world: &World) {
    wait_until(6 * SOON, "the service answers", || {
        ask(&mut connect(world), "").is_ok_and(|(status, _)| status == 200)
    });
}

#[test]
fn one_of_many_names_takes_effect_at_once() {
    let world = World::new();
    let backends = three(&world);
    // The name leads to an address for each of two endpoints.
    world
        .svc
        .sh("ip addr add 198.51.100.11/24 dev svc0; ip addr add 198.51.100.12/24 dev svc0");
    let redirects = world.write(
        "names.nft",
        format!(
            "table ip names {{
                chain arriving {{
                    type nat hook prerouting priority -100
                    ip daddr 198.51.100.11 tcp dport 9000 redirect to :{}
                    ip daddr 198.51.100.12 tcp dport 9000 redirect to :{}
                }}
            }}\n",
            backends[0].port, backends[1].port
        ),
    );
    world.svc.sh(&format!("nft -f {}", redirects.display()));
    let names = Names::start(&world);
    let of = |name: &str| format!("dns: {{ name: {name}, port: 9000, min_refresh: 1s }}");
    let other = |n: usize| of(&format!("cluster-{n}.internal"));
    let proxy = load(&world, &text(&of("service.internal"), other));
    let begun = Instant::now();
    wait_until(6 * SOON, "every name is asked for", || {
        names.asked() >= clusters()
    });
    until_known(&world, 1 + (clusters() - 1) * usize::from(ENDPOINTS_EACH));
    // How long that takes is as much the name server's doing.
    let took = begun.elapsed().as_secs_f64();
    figure(
        &format!("{} clusters, every name known", clusters()),
        format!("{took:.1} s"),
        "to compare",
    );
    world.capture(&proxy);
    until_answers(&world);
    hold_memory("with names", &proxy, 250.0);
    let what = "change of a DNS answer";
    hold_changes(&world, &backends, what, 50.0, |_, backend| {
        names.lead_to(if backend.name == "a" { 11 } else { 12 })
    });
}

/// A name server: `service.internal` has one address and a TTL of a second, `cluster-N.internal`
/// those of the `N`th cluster and a TTL of a day; no name has any of IPv6.
struct Names(Arc<Told>);

#[derive(Default)]
struct Told {
    /// Names that were asked for both families.
    asked: AtomicUsize,
    /// The last byte of the service's address, and when it was first told.
    service: Mutex<(u8, Option<Instant>)>,
}

impl Names {
    fn start(world: &World) -> Self {
        let server = name_server();
        world.app.sh(&format!("ip addr add {server} dev lo"));
        let socket = world.app.within(|| UdpSocket::bind((&*server, 53)));
        let socket = socket.expect("an address of the namespace's own");
        let told = Arc::new(Told {
            service: Mutex::new((11, None)),
            ..Told::default()
        });
        let shared = Arc::downgrade(&told);
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket");
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Some(told) = shared.upgrade() {
                if let Ok((length, from)) = socket.recv_from(&mut query) {
                    let answer = told.answer(&query[..length]);
                    socket.send_to(&answer, from).expect("whoever asks hears");
                }
            }
        });
        Self(told)
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// Changes the service's address; returns, once that was told, when.
    fn lead_to(&self, last: u8) -> Instant {
        let service = || self.0.service.lock().expect("no panic");
        *service() = (last, None);
        wait_for(SOON, "the new address is asked for", || service().1)
    }
}

impl Told {
    /// RFC 1035, section 4.
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        const A: u16 = 1;
        let mut end = 12;
        let mut labels = Vec::new();
        while query[end] != 0 {
            let next = end + 1 + usize::from(query[end]);
            labels.push(String::from_utf8_lossy(&query[end + 1..next]).into_owned());
            end = next;
        }
        let is_a = query[end + 1..end + 3] == A.to_be_bytes();
        let number = |label: &str| label.strip_prefix("cluster-")?.parse().ok();
        let first = labels.first().map_or("", String::as_str);
        let (ttl, addresses) = match number(first) {
            _ if !is_a => (0, Vec::new()),
            Some(n) => (
                86_400,
                (1..=ENDPOINTS_EACH).map(|e| of_cluster(n, e)).collect(),
            ),
            None => {
                let mut service = self.service.lock().expect("no panic");
                service.1.get_or_insert_with(Instant::now);
                (1_u32, vec![[198, 51, 100, service.0]])
            }
        };
        if !is_a {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        let question = &query[12..end + 5];
        let mut answer = [
            &query[..2],
            &[0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0],
        ]
        .concat();
        answer.extend(question);
        for address in addresses {
            // The name of the question, A, IN.
            answer.extend([0xc0, 12, 0, 1, 0, 1]);
            answer.extend(ttl.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(address);
        }
        answer
    }
}

fn of_cluster(n: usize, endpoint: u8) -> [u8; 4] {
    [10, (n / 256) as u8, (n % 256) as u8, endpoint]
}
