//! Retries under load: what they save, and what they must not do.

use std::{
    collections::HashMap,
    io::{self, Read},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    endpoints::{hear_request, routed, service, status},
    support::{SVC4, Speak, World, figure, rounds},
};

/// One endpoint after the other dies under load, and comes back.
#[test]
fn an_endpoint_killed_under_load_costs_no_idempotent_request() {
    const CLIENTS: usize = 8;
    let requests = rounds(4_000, 100_000);
    let world = World::new();
    let served = Arc::new(AtomicUsize::new(0));
    let config = routed(
        &[(
            "get.test",
            "retry: { on: [reset, connect-failure, gateway-error], num_retries: 5, back_off: { base_interval: 5ms } }",
        )],
        "circuit_breaker: { max_retries: 1024 }",
    );
    let proxy = world.serve(&config.replace("workers: 1", "workers: 2"));
    world.capture(&proxy);
    let start = |port| {
        let served = served.clone();
        Mortal::start(&world, port, served)
    };
    let mut endpoints = [Some(start(9001)), Some(start(9002))];
    let failed = Mutex::new(Vec::new());
    let left = AtomicUsize::new(requests);
    let mut kills = 0;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = None;
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        if let Err(error) = get(&world, &mut client) {
                            failed.lock().expect("no panic").push(error.to_string());
                            client = None;
                        }
                    }
                })
            })
            .collect();
        while clients.iter().any(|c| !c.is_finished()) {
            for (place, port) in [(0, 9001), (1, 9002)] {
                // A death in the midst of its requests, and some requests without it.
                let goal = served.load(Ordering::Relaxed) + 200;
                endpoints[place] = None;
                kills += 1;
                while served.load(Ordering::Relaxed) < goal
                    && clients.iter().any(|c| !c.is_finished())
                {
                    thread::sleep(Duration::from_millis(1));
                }
                endpoints[place] = Some(start(port));
            }
        }
    });
    let failed = failed.into_inner().expect("no panic");
    figure(
        "failed requests while endpoints are killed",
        failed.len(),
        &format!("0 of {requests}, {kills} kills"),
    );
    assert!(
        failed.is_empty(),
        "{} of {requests}: {:?}",
        failed.len(),
        failed.first()
    );
    assert!(kills > 2, "{kills}");
}

fn get(world: &World, client: &mut Option<TcpStream>) -> io::Result<()> {
    let stream = match client {
        Some(stream) => stream,
        None => client.insert(world.app.try_connect(service())?),
    };
    stream.say("GET / HTTP/1.1\r\nHost: get.test\r\n\r\n")?;
    let (head, _) = stream.hear_response()?;
    match status(&head) {
        200 => Ok(()),
        _ => Err(io::Error::other(head)),
    }
}

/// An endpoint whose death closes everything at once, as a killed process does.
struct Mortal {
    peer: Option<crate::support::Peer>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Mortal {
    fn start(world: &World, port: u16, served: Arc<AtomicUsize>) -> Self {
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let all = connections.clone();
        let peer = world.peer(port, move |mut stream| {
            all.lock().expect("no panic").push(stream.try_clone()?);
            while hear_request(&mut stream)?.is_some() {
                stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
                served.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            peer: Some(peer),
            connections,
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.peer = None;
        for connection in self.connections.lock().expect("no panic").drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Every endpoint fails every request: what comes on top of the offered load is a quarter at most.
#[test]
fn a_retry_storm_stays_within_the_budget() {
    const CLIENTS: usize = 40;
    let each = rounds(100, 1_000);
    let world = World::new();
    let seen = Arc::new(AtomicUsize::new(0));
    let _endpoints = [9001, 9002].map(|port| {
        let seen = seen.clone();
        world.peer(port, move |mut stream| {
            while hear_request(&mut stream)?.is_some() {
                seen.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
                stream.say("HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n")?;
            }
            Ok(())
        })
    });
    let config = routed(
        &[(
            "get.test",
            "retry: { on: [5xx], num_retries: 3, back_off: { base_interval: 1ms } }",
        )],
        "circuit_breaker: { retry_budget: {} }",
    );
    let proxy = world.serve(&config.replace("workers: 1", "workers: 2"));
    world.capture(&proxy);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = world.app.connect(service());
                for _ in 0..each {
                    client
                        .say("GET / HTTP/1.1\r\nHost: get.test\r\n\r\n")
                        .expect("taken");
                    let (head, _) = client.hear_response().expect("an answer");
                    assert_eq!(status(&head), 503, "{head}");
                }
            });
        }
    });
    let offered = CLIENTS * each;
    let seen = seen.load(Ordering::Relaxed);
    let load = seen as f64 / offered as f64;
    figure(
        "upstream load in a retry storm",
        format!("{load:.3} times"),
        "at most 1.25 times the offered",
    );
    assert!(load <= 1.25, "{seen} for {offered}");
    assert!(seen > offered, "nothing was retried");
}

/// Connections that die at any point after a POST's first body byte has arrived.
#[test]
fn a_post_that_an_endpoint_has_begun_to_read_is_seen_once() {
    const BODY: usize = 3_000;
    let posts = rounds(400, 10_000);
    let world = World::new();
    let seen = Arc::<Mutex<HashMap<String, usize>>>::default();
    let _endpoints = [9001, 9002].map(|port| {
        let seen = seen.clone();
        world.peer(port, move |stream| fail_within_posts(stream, &seen))
    });
    let config = routed(
        &[(
            "post.test",
            "retry: { on: [5xx, reset, reset-before-request, connect-failure, refused-stream, retriable-4xx], num_retries: 5, per_try_timeout: 2s, back_off: { base_interval: 1ms } }",
        )],
        "circuit_breaker: { max_retries: 1024 }",
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    thread::scope(|scope| {
        for worker in 0..4 {
            let world = &world;
            scope.spawn(move || {
                let mut client = None;
                for n in 0..posts / 4 {
                    let id = format!("{worker}-{n}");
                    // Over a connection that has been used, as well as over new ones.
                    if post(world, &mut client, &id, BODY).is_err() {
                        client = None;
                    }
                }
            });
        }
    });
    let seen = seen.lock().expect("no panic");
    let twice: Vec<_> = seen.iter().filter(|(_, count)| **count != 1).collect();
    figure(
        "POSTs seen other than once",
        twice.len(),
        &format!("0 of {}", seen.len()),
    );
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(seen.len(), posts, "some were never seen");
}

fn post(world: &World, client: &mut Option<TcpStream>, id: &str, length: usize) -> io::Result<()> {
    let stream = match client {
        Some(stream) => stream,
        None => client.insert(world.app.try_connect(service())?),
    };
    stream.say(format!(
        "POST /{id} HTTP/1.1\r\nHost: post.test\r\nContent-Length: {length}\r\n\r\n{}",
        "x".repeat(length)
    ))?;
    let (head, _) = stream.hear_response()?;
    match head.contains("onnection: close") {
        true => Err(io::ErrorKind::ConnectionAborted.into()),
        false => Ok(()),
    }
}

/// Reads some of each POST, at least its first body byte, and dies of it more often than not.
fn fail_within_posts(
    mut stream: TcpStream,
    seen: &Mutex<HashMap<String, usize>>,
) -> io::Result<()> {
    let mut chance = u64::from(stream.peer_addr()?.port());
    let mut draw = move |below: u64| {
        // A linear congruential generator (Knuth's MMIX): enough to choose where to die.
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % below
    };
    loop {
        if stream.peek(&mut [0])? == 0 {
            return Ok(());
        }
        let head = stream.hear_until("\r\n\r\n")?;
        let id = head.split(' ').nth(1).unwrap_or_default().to_owned();
        stream.read_exact(&mut [0])?;
        *seen.lock().expect("no panic").entry(id).or_default() += 1;
        let rest = 2_999;
        match draw(6) {
            // Somewhere in the body, by a close or a reset.
            0 | 1 => {
                let more = draw(rest) as usize;
                stream.hear(more)?;
                return if draw(2) == 0 { Ok(()) } else { stream.reset() };
            }
            // Before the answer, or within it.
            2 | 3 => {
                stream.hear(rest as usize)?;
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                let said = draw(answer.len() as u64) as usize;
                stream.say(&answer[..said])?;
                return if draw(2) == 0 { Ok(()) } else { stream.reset() };
            }
            4 => {
                stream.hear(rest as usize)?;
                stream.say("HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n")?;
            }
            _ => {
                stream.hear(rest as usize)?;
                stream.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            }
        }
    }
}

/// Where nothing answers in the cluster, nobody waits for retries that cannot help.
#[test]
fn no_endpoint_at_all_is_told_at_once() {
    let world = World::new();
    let config = format!(
        "routes: [{{ match: {{ port: 80 }}, cluster: service, retry: {{ num_retries: 5 }} }}]\n\
         clusters: [{{ name: service, file: {{ path: {}/none.yaml }} }}]\n",
        world
            .write("none.yaml", "[]")
            .parent()
            .expect("a directory")
            .display()
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    let (status, head, _) = crate::endpoints::ask(&world, "any", "GET", "");
    assert_eq!(status, 503, "{head}");
    let retries = world.metric_sum("outrigger_cluster_retries_total", &format!("{SVC4}"));
    assert!(retries < 1.0, "{retries}");
}
