use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    access_log::Captured,
    server::{Directory, Server, proxyctl, serve, wait_for},
};

#[test]
fn terminate_and_interrupt_end_it_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start(&[]);
        server.signal(signal);
        server.logged("stopping");
        assert_eq!(server.ended().code(), Some(0), "{signal:?}");
    }
}

#[test]
fn no_other_signal_ends_it() {
    let mut server = Server::start(&[]);
    for (signal, said) in [
        (Signal::HUP, "SIGHUP ignored: started without --config"),
        (Signal::USR1, "SIGUSR1: no access log to reopen"),
        (Signal::USR2, "SIGUSR2 ignored"),
    ] {
        server.signal(signal);
        server.logged(said);
    }
    server.signal(Signal::PIPE);
    assert_eq!(server.get("/ready").status, 200);
}

#[test]
fn while_it_drains_it_is_live_but_not_ready_and_the_request_under_way_is_finished() {
    let mut captured = Captured::start("");
    let (mut client, mut upstream) = captured.request_under_way();
    captured.server.signal(Signal::TERM);
    captured.server.logged("stopping");
    let ready = wait_for("its not being ready", || {
        let ready = captured.get("/ready");
        (ready.status == 503).then_some(ready)
    });
    assert_eq!(ready.json()["ready"], false);
    let reasons = ready.json()["reasons"].to_string();
    assert!(reasons.contains("draining"), "{reasons}");
    assert_eq!(captured.get("/live").status, 200);
    upstream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        .unwrap();
    drop(upstream);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("late"), "{answer}");
    drop(client);
    assert_eq!(captured.server.ended().code(), Some(0));
}

#[test]
fn a_second_signal_cuts_what_is_under_way() {
    let mut captured = Captured::start("");
    let (_client, _upstream) = captured.request_under_way();
    captured.server.signal(Signal::TERM);
    captured.server.logged("stopping");
    captured.server.signal(Signal::TERM);
    captured.server.logged("second signal");
    assert_eq!(captured.server.ended().code(), Some(0));
}

#[test]
fn the_service_manager_is_told_of_the_start_and_the_stop() {
    let directory = Directory::new("notify");
    let path = directory.file("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length])
            .trim()
            .to_owned()
    };
    let mut command = serve(&[]);
    command.env("NOTIFY_SOCKET", &path);
    let mut server = Server::spawn(command);
    let stored = "FDSTORE=1\nFDNAME=outrigger-listener\nFDPOLL=0";
    let first = std::iter::repeat_with(&told).find(|said| said != stored);
    assert_eq!(first.as_deref(), Some("READY=1"));
    server.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_holds_no_worker_up() {
    // A pipe holds 64 KiB; each refused connection says some 200 bytes.
    let (reader, writer) = std::io::pipe().unwrap();
    // Nobody reads which ports it chose, so it is told.
    let [listener, admin] = free_ports();
    let arguments = [
        "serve",
        "--workers",
        "1",
        "--log-level",
        "trace",
        "--listen",
        &listener,
        "--admin",
        &admin,
    ];
    let mut child = proxyctl(&arguments).stderr(writer).spawn().unwrap();
    let connect = || TcpStream::connect(&listener).ok();
    wait_for("it to listen", connect);
    for _ in 0..2000 {
        let mut stream = connect().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(reader);
}

/// Ports that were free a moment ago.
fn free_ports() -> [String; 2] {
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().to_string())
}
