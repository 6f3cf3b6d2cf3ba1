//! Response heads: the same wherever the network cuts them, and after our edits as well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::Limits;
use outrigger_proxy::{
    buffer::Buffer,
    forward::http1::{
        request,
        response::{self, Response},
    },
};

const REQUESTS: [&[u8]; 3] = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
];

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (which, tell_close, bytes) = input;
    let limits = Limits::default();
    let request = REQUESTS[usize::from(which) % REQUESTS.len()];
    let request = request::parse(request, &limits).unwrap().unwrap();
    let whole = response::parse(bytes, &request, &limits);
    for cut in 0..bytes.len() {
        let part = response::parse(&bytes[..cut], &request, &limits);
        if part != Response::Partial {
            assert_eq!(part, whole, "cut at {cut}");
        }
    }
    let Response::Head(mut head) = whole else {
        return;
    };
    let mut buffer = Buffer::with_capacity(bytes.len());
    buffer.extend(bytes);
    let body = bytes[head.len..].to_vec();
    let (framing, keeps_alive) = (head.framing, head.keeps_alive);
    head.apply_edits(tell_close, &mut buffer);
    assert_eq!(&buffer.filled()[head.len..], body, "an edit touched the body");
    match response::parse(buffer.filled(), &request, &limits) {
        Response::Head(again) => {
            assert_eq!((again.len, again.framing), (head.len, framing));
            assert_eq!(again.keeps_alive, keeps_alive && !tell_close);
            assert_eq!(again.keeps_for, None);
        }
        other => panic!("edited into {other:?}"),
    }
});
