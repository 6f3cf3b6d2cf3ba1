//! The log disk fills up, the pipe is not read, the scraper stalls or dies: traffic does not notice,
//! and what was lost is counted.

use std::{
    fs,
    io::{Read, Write},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};

use crate::{
    ask::{admin, answers, ask, metric, traffic},
    support::{SOON, World, wait_for, wait_until},
};

#[test]
fn a_full_log_disk_costs_lines_which_are_counted_and_no_request() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let disk = world.dir().join("disk");
    fs::create_dir(&disk).expect("the test's directory is writable");
    // Mounted where the proxy sees it, and gone with the namespace.
    let at = disk.display();
    let mounted = world
        .app
        .try_sh(&format!("mount -t tmpfs -o size=64k,mode=777 none {at}"));
    assert!(mounted.status.success(), "{mounted:?}");
    let log = disk.join("access.log");
    let proxy = world.serve(&format!(
        "workers: 1\naccess_log: {{ to: {} }}",
        log.display()
    ));
    world.capture(&proxy);
    traffic(&world, 80, 600);
    let dropped = || metric(&world, "outrigger_access_log_dropped_total", "");
    wait_until(SOON, "lost lines", || dropped() > 0.0);
    traffic(&world, 80, 100);
    wait_until(SOON, "every request counted", || {
        metric(&world, "outrigger_requests_total", "code=\"200\"") == 700.0
    });
}

/// A FIFO that the proxy's user may open too.
fn fifo(world: &World) -> PathBuf {
    let pipe = world.dir().join("pipe");
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, &pipe, FileType::Fifo, mode, 0).expect("a FIFO");
    rustix::fs::chmod(&pipe, mode).expect("ours");
    pipe
}

#[test]
fn a_pipe_that_nobody_reads_costs_lines_which_are_counted_and_no_request() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let pipe = fifo(&world);
    let reader = open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).expect("a reader");
    let config = format!(
        "workers: 1\naccess_log: {{ to: {}, format: '%REQ(:PATH)% {}' }}",
        pipe.display(),
        "x".repeat(1500)
    );
    let proxy = world.serve(&config);
    world.capture(&proxy);
    // The pipe takes 64 KiB, the writer and a lane 1 MiB each.
    traffic(&world, 80, 4000);
    let dropped = || metric(&world, "outrigger_access_log_dropped_total", "");
    wait_until(SOON, "lost lines", || dropped() > 0.0);
    wait_until(SOON, "every request counted", || {
        metric(&world, "outrigger_requests_total", "code=\"200\"") == 4000.0
    });
    assert!(reader.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn scrapers_that_stall_or_die_within_an_answer_hold_nobody_up() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    let before = metric(&world, "process_resident_memory_bytes", "");
    let request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    // More answers than the sockets' buffers hold: the next one cannot be written.
    let requests = request.repeat(300);
    let stalled: Vec<_> = (0..4)
        .map(|_| {
            let mut scraper = admin(&world);
            scraper.write_all(&requests).expect("it is taken");
            scraper
        })
        .collect();
    for _ in 0..40 {
        let mut scraper = admin(&world);
        scraper.write_all(request).expect("it is taken");
        let mut begun = [0; 100];
        scraper.read_exact(&mut begun).expect("an answer begins");
        // Dropped with most of the answer unread: a reset.
    }
    traffic(&world, 80, 200);
    let live = wait_for(SOON, "a probe's answer", || {
        let answer = ask(&world, "GET", "/live", "");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(live.text(), "live\n");
    let after = metric(&world, "process_resident_memory_bytes", "");
    assert!(after - before < 64e6, "{before} to {after}");
    drop(stalled);
}

/// More than the listener serves at a time: those that wait cost nobody but themselves.
#[test]
fn a_thousand_scrapers_that_never_read_hold_nobody_up() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let proxy = world.serve("workers: 1");
    world.capture(&proxy);
    let before = metric(&world, "process_resident_memory_bytes", "");
    let requests = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(100);
    let held: Vec<_> = (0..1000)
        .map(|_| {
            let mut scraper = admin(&world);
            scraper.set_nonblocking(true).expect("a socket");
            // As much as is taken.
            let _ = scraper.write(&requests);
            scraper
        })
        .collect();
    traffic(&world, 80, 300);
    // The lease is renewed on the same thread: nothing goes direct for as long as they stall.
    let status = world
        .app
        .output(Command::new(world.proxyctl()).args(["status", "--json"]));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["result"], "captured", "{status}");
    assert!(status["lapsed_secs"].as_f64() < Some(5.0), "{status}");
    let memory = proxy.memory().resident * 1024;
    assert!(memory as f64 - before < 64e6, "{before} to {memory}");
    drop(held);
    let again = wait_for(3 * SOON, "the next scrape", || {
        let answer = ask(&world, "GET", "/metrics", "");
        (answer.status == 200).then_some(answer)
    });
    assert!(again.text().contains("outrigger_requests_total"));
}

#[test]
fn a_pipe_whose_reader_leaves_costs_lines_which_are_counted_until_another_comes() {
    let world = World::new();
    let _service = world.peer(80, answers);
    let pipe = fifo(&world);
    // Not inherited: the proxy would be its own reader.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let read = || open(&pipe, flags, Mode::empty()).expect("a reader");
    let first = read();
    let proxy = world.serve(&format!(
        "workers: 1\naccess_log: {{ to: {} }}",
        pipe.display()
    ));
    world.capture(&proxy);
    drop(first);
    traffic(&world, 80, 200);
    let dropped = || metric(&world, "outrigger_access_log_dropped_total", "");
    wait_until(SOON, "every line lost, and counted", || dropped() == 200.0);
    let mut second = fs::File::from(read());
    traffic(&world, 80, 1);
    let mut seen = Vec::new();
    wait_until(SOON, "a whole line", || {
        let mut chunk = [0; 4096];
        if let Ok(count) = second.read(&mut chunk) {
            seen.extend_from_slice(&chunk[..count]);
        }
        seen.ends_with(b"\n")
    });
    assert_eq!(dropped(), 200.0);
}

#[test]
fn a_killed_proxy_leaves_a_socket_behind_that_the_next_one_takes_over() {
    let world = World::new();
    let socket = world.dir().join("admin.sock");
    fs::set_permissions(
        world.dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("ours");
    let config = format!(
        "workers: 1\nadmin: {{ listen: 'unix:{}', mode: 0666 }}",
        socket.display()
    );
    let mut first = world.serve(&config);
    assert_eq!(
        crate::ask::ask_unix(&world, &socket, "GET", "/live").status,
        200
    );
    first.kill();
    drop(first);
    assert!(socket.exists());
    let _second = world.serve(&config);
    let live = wait_for(Duration::from_secs(20), "the next one's answer", || {
        let answer = crate::ask::ask_unix(&world, &socket, "GET", "/live");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(live.text(), "live\n");
}
