//! The ground under the other tests: what a world offers, and that it leaves nothing behind.

mod support;

use std::{net::SocketAddr, process::Command};

use rustix::process::test_kill_process;
use support::{SOON, SVC, Speak, World, wait_until};

#[test]
fn the_application_reaches_the_service_over_both_families() {
    let world = World::new();
    let nginx = world.nginx();
    for svc in SVC {
        let host = SocketAddr::from((svc, 80));
        assert_eq!(
            world.app.sh(&format!("curl -sS http://{host}/hello")),
            "hello\n"
        );
    }
    wait_until(SOON, "both requests are logged", || {
        nginx.requests().len() == 2
    });
    assert_eq!(nginx.connections(), 2);
}

#[test]
fn sockets_of_the_test_live_in_the_namespace() {
    let world = World::new();
    let peer = world.peer(7, |mut stream| stream.say("hello"));
    for svc in SVC {
        assert_eq!(world.app.connect((svc, 7)).hear_to_end().unwrap(), b"hello");
    }
    assert_eq!(peer.accepted(), 2);
}

#[test]
fn worlds_do_not_meet() {
    let (one, other) = (World::new(), World::new());
    let _here = one.peer(7, |mut stream| stream.say("one"));
    let _there = other.peer(7, |mut stream| stream.say("other"));
    assert_eq!(one.app.connect((SVC[0], 7)).hear_to_end().unwrap(), b"one");
    assert_eq!(
        other.app.connect((SVC[0], 7)).hear_to_end().unwrap(),
        b"other"
    );
}

#[test]
fn nothing_is_left_of_a_world_whose_test_panicked() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let died = std::thread::spawn(move || {
        let world = World::new();
        let process = world.start("sleeper", Command::new("sleep").arg("600"));
        world.app.sh("sleep 600 > /dev/null 2>&1 &");
        wait_until(SOON, "both processes are there", || {
            world.app.processes().len() == 2
        });
        sender
            .send((world.dir().to_owned(), process.pid(), world.app.processes()))
            .unwrap();
        panic!("as intended");
    })
    .join();
    assert!(died.is_err());
    let (dir, guarded, all) = receiver.recv().unwrap();
    assert!(!dir.exists(), "its directory");
    assert!(test_kill_process(guarded).is_err(), "its process");
    wait_until(SOON, "a process that nobody guarded is gone", || {
        // It is a zombie until whoever inherited it has looked.
        all.iter().all(|pid| {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            state.map_or(true, |stat| stat.contains(") Z "))
        })
    });
}
