//! What a route answers in an upstream's place.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use crate::{
    site::{SERVICE, each_version, in_http2},
    support::{SVC4, Speak, World},
};

#[test]
fn a_redirect_sends_the_client_where_the_route_says() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- { match: { host: old.test }, redirect: { scheme: https, host: new.test, code: 308 } }
- { match: { path: { prefix: /old } }, redirect: { prefix: /new } }
- { match: { path: { exact: /here } }, redirect: { path: /there, port: 8080, strip_query: true }, response_headers: { set: { x-why: moved } } }
- { match: {}, cluster: a }",
        );
        for (arguments, status, location) in [
            (
                format!("-H 'Host: old.test:80' '{SERVICE}/x?y'"),
                "308",
                "https://new.test/x?y",
            ),
            (
                format!("'{SERVICE}/old/x?y'"),
                "301",
                "http://198.51.100.2/new/x?y",
            ),
            (
                format!("-d body '{SERVICE}/here?y'"),
                "301",
                "http://198.51.100.2:8080/there",
            ),
        ] {
            let head = site.head(&arguments);
            assert!(head.lines().next().unwrap().contains(status), "{head}");
            assert!(
                head.contains(&format!("\r\nlocation: {location}\r\n")),
                "{head}"
            );
            assert_eq!(
                head.contains("x-why: moved"),
                arguments.contains("/here"),
                "{head}"
            );
        }
        // A client that follows comes out at the server.
        let to = site.curl(&format!(
            "-o /dev/null -w '%{{redirect_url}}' {SERVICE}/old/x"
        ));
        assert_eq!(site.curl(&to), "a GET 198.51.100.2 /new/x [] []\n");
        site.servers[0].asked_times(1);
    });
}

#[test]
fn a_response_of_the_proxys_own_keeps_the_connection() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- { match: { path: { exact: /teapot } }, respond: { status: 418, body: short and stout, headers: { x-kind: tea, content-type: text/tea } } }
- { match: { path: { exact: /empty } }, respond: { status: 204 } }
- { match: {}, cluster: a }",
        );
        let head = site.head(&format!("{SERVICE}/teapot"));
        assert!(head.lines().next().unwrap().contains("418"), "{head}");
        for line in [
            "x-kind: tea",
            "content-type: text/tea",
            "content-length: 15",
            "proxy-status: outrigger",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
        }
        let asked = ["/teapot", "/empty", "/x"].map(|path| ("svc", path.to_owned()));
        assert_eq!(
            site.over_one_connection((SVC4, 80), &asked),
            [
                (418, "short and stout".to_owned()),
                (204, String::new()),
                (200, "a GET svc /x [] []\n".to_owned()),
            ]
        );
        let told = site.curl(&format!("-d body {SERVICE}/teapot"));
        assert_eq!(told, "short and stout");
        let head = site.head(&format!("-I {SERVICE}/teapot"));
        assert!(head.contains("content-length: 15"), "{head}");
    });
}

#[test]
fn an_answer_before_the_body_does_not_wait_for_it() {
    let world = World::new();
    let proxy = world.serve("routes: [{ match: {}, respond: { status: 403 } }]\n");
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 80));
    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this")
        .unwrap();
    let (head, _) = client.hear_response().unwrap();
    assert!(
        head.starts_with("HTTP/1.1 403 ") && head.contains("connection: close"),
        "{head}"
    );
    assert!(client.hear_to_end().unwrap().is_empty());
}

#[test]
fn a_small_body_behind_the_answer_is_still_taken() {
    let world = World::new();
    let proxy = world.serve("routes: [{ match: {}, respond: { status: 403, body: 'no' } }]\n");
    world.capture(&proxy);
    in_http2(world.app.connect((SVC4, 80)), async |client| {
        let answered = async || {
            let mut client = client.clone().ready().await.expect("the connection stays");
            let request = http::Request::post("http://a/").body(()).unwrap();
            let (response, body) = client.send_request(request, false).expect("a stream");
            let mut answer = response.await.expect("an answer").into_body();
            assert_eq!(answer.data().await.expect("a body").unwrap(), "no");
            assert!(answer.data().await.is_none());
            body
        };
        let mut small = answered().await;
        // A reset of the first stream would be here before the second one's answer.
        let mut large = answered().await;
        small.send_data("body".into(), true).expect("it is taken");
        // What is larger is told after the answer that nobody wants it.
        large.send_data(vec![b'x'; 200_000].into(), false).unwrap();
        let reset = poll_fn(|cx| large.poll_reset(cx)).await.expect("a reset");
        assert_eq!(reset, h2::Reason::NO_ERROR);
        let is_reset = poll_fn(|cx| Poll::Ready(small.poll_reset(cx))).await;
        assert!(!matches!(is_reset, Poll::Ready(Ok(_))), "{is_reset:?}");
    });
}

#[test]
fn what_is_no_http_is_reset_where_only_http_could_be_answered() {
    let world = World::new();
    let proxy = world.serve(
        "routes: [{ match: { port: 81 }, respond: { status: 403 } }]\ntimeouts: { quiet: 20ms }\n",
    );
    world.capture(&proxy);
    let mut client = world.app.connect((SVC4, 81));
    client.say("\0\x01\x02 no HTTP at all").unwrap();
    assert!(client.hear_to_end().is_err());
    world.until_counted("outrigger_requests_total", "not_http", 1.0);
    // Whoever hesitates is still answered.
    let mut client = world.app.connect((SVC4, 81));
    std::thread::sleep(Duration::from_millis(100));
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(
        client
            .hear_response()
            .unwrap()
            .0
            .starts_with("HTTP/1.1 403 ")
    );
}

#[test]
fn faults_delay_and_abort_those_that_are_meant() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- match: { path: { exact: /slow } }
  cluster: a
  fault: { delay: { fixed: 300ms } }
- match: { path: { exact: /broken } }
  cluster: a
  fault: { abort: { status: 418 }, headers: [{ name: x-chaos, exact: 'yes' }] }
- match: { path: { exact: /grpc } }
  cluster: a
  fault: { abort: { grpc_status: 14 } }
- match: {}
  cluster: a
  fault: { abort: { status: 500, percent: 0 }, delay: { fixed: 1h, percent: 0 } }",
        );
        let begun = Instant::now();
        assert!(site.get("svc", "/slow").starts_with("a GET"));
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert!(site.get("svc", "/broken").starts_with("a GET"));
        let head = site.head(&format!("-H 'X-Chaos: yes' {SERVICE}/broken"));
        assert!(head.lines().next().unwrap().contains("418"), "{head}");
        assert!(
            head.contains("proxy-status: outrigger; error=proxy_internal_error"),
            "{head}"
        );
        let head = site.head(&format!("{SERVICE}/grpc"));
        assert!(
            head.lines().next().unwrap().contains("200") && head.contains("grpc-status: 14"),
            "{head}"
        );
        assert!(site.get("svc", "/").starts_with("a GET"));
        site.servers[0].asked_times(3);
    });
}

#[test]
fn a_fault_resets_what_is_not_http() {
    let world = World::new();
    let peer = world.peer(9001, |mut stream| stream.say("hello\n"));
    let proxy = world.serve(
        "timeouts: { quiet: 20ms }\nroutes:\n- { match: { port: 25 }, cluster: a, fault: { abort: { status: 503 } } }\n- { match: { port: 26 }, cluster: a, fault: { delay: { fixed: 200ms } } }\n\
         clusters:\n- { name: a, endpoints: [{ address: '198.51.100.2:9001' }] }\n",
    );
    world.capture(&proxy);
    assert!(world.app.connect((SVC4, 25)).hear_to_end().is_err());
    assert_eq!(peer.accepted(), 0);
    let begun = Instant::now();
    assert_eq!(
        world.app.connect((SVC4, 26)).hear_until("\n").unwrap(),
        "hello\n"
    );
    assert!(begun.elapsed() >= Duration::from_millis(200));
}
