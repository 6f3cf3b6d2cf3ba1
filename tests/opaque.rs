//! Everything that is no HTTP: TLS, protocols in which the server speaks first, bytes.

mod support;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use socket2::SockRef;
use support::{SOON, SVC, SVC4, SVC6, Speak, World, wait_until};

#[test]
fn tls_passes_through_untouched_to_the_servers_own_certificate() {
    let world = World::new();
    let _nginx = world.nginx();
    let _proxy = world.captured();
    for svc in SVC {
        let host = SocketAddr::from((svc, 443));
        let ca = world.dir().join("svc.crt");
        let page = world.app.sh(&format!(
            "curl -sS --cacert {} https://{host}/hello",
            ca.display()
        ));
        assert_eq!(page, "hello\n");
    }
}

#[test]
fn the_name_asked_for_in_tls_is_in_the_access_log() {
    let world = World::new();
    let _nginx = world.nginx();
    let log = world.write("access.json", "");
    world.app.sh(&format!("chmod 666 {}", log.display()));
    let proxy = world.serve(&format!("access_log: {{ to: {} }}", log.display()));
    world.capture(&proxy);
    world.app.sh(&format!(
        "curl -sS --cacert {}/svc.crt --resolve svc.test:443:198.51.100.2 https://svc.test/hello",
        world.dir().display()
    ));
    wait_until(SOON, "a line with the name", || {
        std::fs::read_to_string(&log).is_ok_and(|lines| lines.contains("svc.test"))
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_while_the_client_is_silent() {
    let world = World::new();
    let peer = world.peer(3306, |mut stream| {
        stream.say("5.7.0-greeting\n")?;
        let heard = stream.hear_until("\n")?;
        stream.say(format!("OK {heard}"))
    });
    let _proxy = world.captured();
    for svc in SVC.into_iter().chain(SVC) {
        let mut client = world.app.connect((svc, 3306));
        assert_eq!(client.hear_until("\n").unwrap(), "5.7.0-greeting\n");
        client.say("login\n").unwrap();
        assert_eq!(client.hear_until("\n").unwrap(), "OK login\n");
    }
    assert_eq!(peer.accepted(), 4);
}

#[test]
fn a_destination_that_spoke_first_once_may_still_be_spoken_to_first() {
    let world = World::new();
    let _nginx = world.nginx();
    let _banner = world.peer(2525, |mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => {
                stream.set_read_timeout(Some(SOON))?;
                stream.hear_until("\r\n\r\n")?;
                stream.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhttp")
            }
            _ => stream.say("220 banner\r\n"),
        }
    });
    let _proxy = world.captured();
    let mut silent = world.app.connect((SVC4, 2525));
    assert_eq!(silent.hear_until("\r\n").unwrap(), "220 banner\r\n");
    assert_eq!(world.app.sh("curl -sS http://198.51.100.2:2525/"), "http");
}

#[test]
fn protocols_that_only_look_like_http_are_left_alone() {
    let world = World::new();
    let _peer = world.peer(5060, |stream| echo(&stream));
    let _proxy = world.captured();
    for word in [
        "OPTIONS sip:a@b SIP/2.0\r\nVia: x\r\n\r\n",
        "DESCRIBE rtsp://a RTSP/1.0\r\n\r\n",
        "get key\r\n",
        "GET / HTTP/3.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nno preface",
        "\x16\x03\x01\x00\x05hello",
        "\n\n\n",
    ] {
        let mut client = world.app.connect((SVC4, 5060));
        client.say(word).unwrap();
        assert_eq!(
            client.hear(word.len()).unwrap(),
            word.as_bytes(),
            "{word:?}"
        );
        client.finish().unwrap();
        assert_eq!(client.hear_to_end().unwrap(), b"", "{word:?}");
    }
}

#[test]
fn one_direction_may_close_long_before_the_other() {
    let world = World::new();
    let _peer = world.peer(7, |mut stream| {
        let heard = stream.hear_to_end()?;
        std::thread::sleep(Duration::from_millis(300));
        stream.say(format!("{} bytes", heard.len()))
    });
    let _proxy = world.captured();
    for svc in SVC {
        let mut client = world.app.connect((svc, 7));
        client.say(vec![b'x'; 100_000]).unwrap();
        client.finish().unwrap();
        assert_eq!(client.hear_to_end().unwrap(), b"100000 bytes");
    }
}

#[test]
fn the_server_may_close_its_direction_first() {
    let world = World::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let _peer = world.peer(7, move |mut stream| {
        stream.say("done speaking")?;
        stream.shutdown(Shutdown::Write)?;
        let heard = stream.hear_to_end()?;
        sender.send(heard).map_err(io::Error::other)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 7));
    assert_eq!(client.hear_to_end().unwrap(), b"done speaking");
    client.say("still listening?").unwrap();
    client.finish().unwrap();
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), b"still listening?");
}

#[test]
fn half_closed_and_silent_ends_at_its_timeout() {
    let world = World::new();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let _peer = world.peer(7, move |mut stream| {
        stream.hear_to_end()?;
        // Neither answers nor closes until the test is over.
        let _ = released.lock().expect("one connection").recv();
        Ok(())
    });
    let proxy = world.serve("timeouts: { half_close: 300ms }");
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 7));
    client.say("x").unwrap();
    client.finish().unwrap();
    let ended = client.hear_to_end().map_err(|error| error.kind());
    assert_ne!(
        ended,
        Err(io::ErrorKind::WouldBlock),
        "the client waits no longer"
    );
    wait_until(SOON, "the proxy has let go of the server too", || {
        world
            .app
            .sh("ss -Htn state established dport = :7")
            .is_empty()
            && world
                .app
                .sh("ss -Htn state fin-wait-2 dport = :7")
                .is_empty()
    });
    drop(release);
}

#[test]
fn a_servers_reset_is_a_reset_for_the_client() {
    let world = World::new();
    let _peer = world.peer(7, |mut stream| {
        stream.hear(1)?;
        stream.reset()
    });
    let _proxy = world.captured();
    for svc in SVC {
        let mut client = world.app.connect((svc, 7));
        client.say("\x01").unwrap();
        let error = client.hear(1).expect_err("nothing was said");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_clients_reset_is_a_reset_for_the_server() {
    let world = World::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let _peer = world.peer(7, move |mut stream| {
        let heard = stream.hear(1)?;
        stream.say(&heard)?;
        sender
            .send(stream.hear(1).map_err(|e| e.kind()))
            .map_err(io::Error::other)
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 7));
    client.say("\x01").unwrap();
    client.hear(1).unwrap();
    client.reset().unwrap();
    let ended = receiver.recv_timeout(SOON).expect("the server hears of it");
    assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
}

#[test]
fn a_refused_destination_is_a_reset() {
    let world = World::new();
    let _proxy = world.captured();
    for svc in SVC {
        // Whether the reset comes before `connect` returns is a matter of microseconds.
        let ended = world.app.try_connect((svc, 9)).and_then(|mut client| {
            client.say("\x01\x02")?;
            client.hear(1)
        });
        let error = ended.expect_err("nobody listens there");
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    }
}

#[test]
fn a_slow_reader_holds_the_sender_back() {
    const CHUNK: usize = 64 * 1024;
    let world = World::new();
    let _peer = world.peer(19, |mut stream| {
        stream.hear(1)?;
        stream.set_write_timeout(Some(Duration::from_millis(500)))?;
        let mut sent = 0u64;
        loop {
            match stream.write(&[0; CHUNK]) {
                Ok(count) => sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if sent > 1 << 30 {
                return Err(io::Error::other("nothing held it back"));
            }
        }
        stream.set_write_timeout(Some(SOON))?;
        stream.shutdown(Shutdown::Write)?;
        stream.hear_to_end().map(drop)
    });
    let proxy = world.captured();
    let mut client = world.app.connect((SVC4, 19));
    client.say("\x01").unwrap();
    let before = proxy.memory().anonymous;
    // The sender's write times out once all is full, and it closes its direction: only then read.
    wait_until(SOON, "the sender stopped", || {
        world
            .svc
            .sh("ss -Htn state fin-wait-1 '( sport = :19 )'")
            .lines()
            .count()
            == 1
            || world
                .svc
                .sh("ss -Htn state fin-wait-2 '( sport = :19 )'")
                .lines()
                .count()
                == 1
    });
    let grown = proxy.memory().anonymous.saturating_sub(before);
    assert!(
        grown < 4 * 1024,
        "the proxy buffered {grown} KiB for a reader that does not read"
    );
    client.hear_to_end().unwrap();
}

#[test]
fn idle_beyond_the_timeout_of_the_configuration_is_ended() {
    let world = World::new();
    let _peer = world.peer(7, |stream| echo(&stream));
    let proxy = world.serve("timeouts: { tunnel_idle: 400ms }");
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 7));
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        client.say("\x01").unwrap();
        client.hear(1).expect("it is not idle");
    }
    let ended = client.hear(1).map_err(|error| error.kind());
    assert!(
        matches!(
            ended,
            Err(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        ),
        "{ended:?}"
    );
}

#[test]
fn bytes_arrive_in_order_and_unchanged_both_ways_at_once() {
    const LENGTH: u64 = 64 << 20;
    let world = World::new();
    let _peer = world.peer(7, |stream| support::pattern::exchange(stream, LENGTH, 1, 2));
    let _proxy = world.captured();
    for svc in [SVC4, SVC6] {
        let client = world.app.connect((svc, 7));
        support::pattern::exchange(client, LENGTH, 2, 1).unwrap();
    }
}

fn echo(mut stream: &std::net::TcpStream) -> io::Result<()> {
    io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
}

/// Regression: the urgent byte was lost, both ways. It arrives in its place in the stream, as for
/// whoever asks for that directly (SO_OOBINLINE).
#[test]
fn an_urgent_byte_arrives_in_its_place() {
    let world = World::new();
    let _peer = world.peer(23, |mut stream| {
        let heard = stream.hear(7)?;
        stream.say("\x01")?;
        stream.say(heard)?;
        SockRef::from(&stream).send_out_of_band(b"?")?;
        stream.say("end")
    });
    let _proxy = world.captured();
    for svc in SVC {
        let mut client = world.app.connect((svc, 23));
        client.say("\x01ab").unwrap();
        SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.say("cde").unwrap();
        SockRef::from(&client).set_out_of_band_inline(true).unwrap();
        assert_eq!(client.hear_to_end().unwrap(), b"\x01\x01ab!cde?end");
    }
}

/// Regression: a splice stops before an urgent byte, and was repeated for ever.
#[test]
fn an_urgent_byte_within_bulk_data_arrives_in_its_place() {
    const BULK: usize = 4 << 20;
    let world = World::new();
    let _peer = world.peer(23, |mut stream| {
        let heard = stream.hear_to_end()?;
        let urgent: Vec<_> = (0..heard.len()).filter(|&at| heard[at] == b'!').collect();
        stream.say(format!("{} {urgent:?}", heard.len()))
    });
    let _proxy = world.captured();
    let mut client = world.app.connect((SVC4, 23));
    let half = vec![1; BULK];
    client.say(&half).unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.say(&half).unwrap();
    client.finish().unwrap();
    let told = client.hear_to_end().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&told),
        format!("{} [{BULK}]", 2 * BULK + 1)
    );
}
