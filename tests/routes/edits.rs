//! What a route changes on the way.

use crate::{
    site::{SERVICE, each_version},
    support::{SVC4, Speak, World},
};

#[test]
fn paths_and_hosts_are_rewritten() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- { match: { path: { prefix: /v1 } }, cluster: a, rewrite: { prefix: / } }
- { match: { path: { prefix: /user } }, cluster: a, rewrite: { regex: { pattern: '^/user/([0-9]+)', substitution: '/u/\\1/x' }, host: users.test } }
- { match: { path: { prefix: /auto } }, cluster: a, rewrite: { auto_host: true } }
- { match: {}, cluster: a }",
        );
        for (path, wanted) in [
            ("/v1/list?q=/v1", "svc:80 /list?q=/v1"),
            ("/v1", "svc:80 /"),
            ("/user/7?x", "users.test /u/7/x?x"),
            ("/auto/x", "a.example /auto/x"),
            ("/other/../%7e?%7e", "svc:80 /other/../%7e?%7e"),
        ] {
            let answer = site.get("svc:80", path);
            assert_eq!(answer, format!("a GET {wanted} [] []\n"), "{path}");
        }
    });
}

#[test]
fn request_headers_are_added_set_and_taken_out() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- match: {}
  cluster: a
  request_headers:
    set: { x-one: set }
    add_if_absent: { X-Two: default }
    remove: [user-agent]",
        );
        let ask = |arguments: &str| site.curl(&format!("{arguments} {SERVICE}/x"));
        assert_eq!(ask(""), "a GET 198.51.100.2 /x [set] [default]\n");
        assert_eq!(
            ask("-H 'X-One: mine' -H 'x-one: too' -H 'x-two: mine'"),
            "a GET 198.51.100.2 /x [set] [mine]\n"
        );
        assert_eq!(ask("-d body"), "a POST 198.51.100.2 /x [set] [default]\n");
        let twice = ["/1", "/2"].map(|path| ("svc", path.to_owned()));
        let answers = site.over_one_connection((SVC4, 80), &twice);
        assert_eq!(
            answers[1],
            (200, "a GET svc /2 [set] [default]\n".to_owned())
        );
    });
}

#[test]
fn response_headers_are_added_set_and_taken_out() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- match: {}
  cluster: a
  response_headers: { add: { x-many: '3' }, set: { Server: ours }, remove: [x-server] }",
        );
        let head = site.head(&format!("{SERVICE}/x"));
        assert!(
            head.contains("\r\nserver: ours\r\n") && !head.contains("nginx"),
            "{head}"
        );
        assert!(!head.contains("x-server"), "{head}");
        let many: Vec<_> = head
            .lines()
            .filter_map(|l| l.strip_prefix("x-many: "))
            .collect();
        assert_eq!(many, ["1", "2", "3"]);
    });
}

/// All that a route does not name goes through byte by byte.
#[test]
fn what_is_not_edited_keeps_its_form() {
    let world = World::new();
    let _peer = world.peer(9001, |mut stream| {
        let head = stream.hear_until("\r\n\r\n")?;
        stream.say(format!(
            "HTTP/1.1 200 Fine  indeed\r\nX-Odd:  blanks \r\nContent-Length: {}\r\n\r\n{head}",
            head.len()
        ))
    });
    let proxy = world.serve(
        "routes:\n- match: { path: { prefix: /v1 } }\n  cluster: a\n  rewrite: { prefix: /v2, host: b.test }\n  request_headers: { set: { X-New: '1' }, remove: [x-gone] }\n\
         clusters:\n- { name: a, endpoints: [{ address: '198.51.100.2:9001' }] }\n",
    );
    world.capture(&proxy);
    for (asked, wanted) in [
        (
            "GET /v1/a?b HTTP/1.1\r\nAccept:  odd\t\r\nX-Gone: 1\r\nhOST: a.test:80\r\nx-LAST: 2\r\n\r\n",
            "GET /v2/a?b HTTP/1.1\r\nAccept:  odd\t\r\nhOST: b.test\r\nx-LAST: 2\r\nX-New: 1\r\n\r\n",
        ),
        (
            "GET http://u@a.test:80/v1 HTTP/1.1\r\nHost: other\r\n\r\n",
            "GET http://b.test/v2 HTTP/1.1\r\nHost: b.test\r\nX-New: 1\r\n\r\n",
        ),
        (
            "GET /v1 HTTP/1.0\r\nX-Gone: 1\r\nx-gone: 2\r\n\r\n",
            "GET /v2 HTTP/1.0\r\nX-New: 1\r\n\r\n",
        ),
    ] {
        let mut client = world.app.connect((SVC4, 80));
        client.say(asked).unwrap();
        let (head, body) = client.hear_response().unwrap();
        assert_eq!(body, wanted);
        assert!(
            head.starts_with("HTTP/1.1 200 Fine  indeed\r\nX-Odd:  blanks \r\n"),
            "{head}"
        );
    }
}

#[test]
fn a_large_body_goes_through_an_edited_request() {
    each_version(&["a"], |site| {
        let _proxy = site.proxy(
            "- match: { path: { prefix: /body } }\n  cluster: a\n  rewrite: { prefix: /body/x }\n  request_headers: { set: { x-one: '1' } }",
        );
        let file = site.world.write("large", vec![b'x'; 1_000_000]);
        let answer = site.curl(&format!("--data-binary @{} {SERVICE}/body", file.display()));
        assert_eq!(answer, "a has it\n");
        let asked = site.servers[0].asked_times(1);
        assert!(
            asked[0].starts_with("POST 198.51.100.2 /body/x [1] xxx"),
            "{:.80}",
            asked[0]
        );
        assert!(asked[0].len() > 1_000_000);
    });
}
