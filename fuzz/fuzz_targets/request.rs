//! Request heads: a head is the same wherever the network cuts it, it is one that httparse takes
//! too, and after our edits it still means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::Limits;
use outrigger_proxy::{
    buffer::Buffer,
    forward::http1::request::{self, RequestHead},
};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let whole = request::parse(bytes, &limits);
    for cut in 0..bytes.len() {
        let part = request::parse(&bytes[..cut], &limits);
        if part != Ok(None) {
            assert_eq!(part, whole, "cut at {cut}");
        }
    }
    if let Ok(Some(head)) = whole {
        check(bytes, head);
    }
});

fn check(bytes: &[u8], mut head: RequestHead) {
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut peer = httparse::Request::new(&mut lines);
    match peer.parse(&bytes[..head.len]) {
        Ok(end) => assert_eq!(end, httparse::Status::Complete(head.len)),
        // It takes UTF-8 in targets only; servers take every byte.
        Err(httparse::Error::Token) => assert!(std::str::from_utf8(&bytes[..head.len]).is_err()),
        Err(error) => panic!("httparse: {error}"),
    }

    let mut buffer = Buffer::with_capacity(bytes.len());
    buffer.extend(bytes);
    let body = bytes[head.len..].to_vec();
    head.apply_edits(&mut buffer);
    assert_eq!(&buffer.filled()[head.len..], body, "an edit touched the body");
    match request::parse(buffer.filled(), &Limits::default()) {
        Ok(Some(again)) => {
            assert_eq!(again.len, head.len);
            assert_eq!(again.framing, head.framing);
            assert_eq!(again.method, head.method);
            assert_eq!(again.version, head.version);
        }
        other => panic!("edited into {other:?}"),
    }
}
