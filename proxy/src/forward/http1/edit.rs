//! What a route changes in heads, as edits where they lie: all else is forwarded verbatim.

use std::ops::Range;

use http::HeaderValue;

use super::{
    head::{self, Edits},
    request::RequestHead,
    response::ResponseHead,
};
use crate::{
    buffer::Buffer,
    route::{HeaderEdits, Route},
};

/// What a request said before its route changed it, for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) target: Vec<u8>,
    pub(super) host: Option<Vec<u8>>,
}

/// Carries out what `route` changes in the head that begins `buffer`.
pub(super) fn request(head: &mut RequestHead, route: &Route, buffer: &mut Buffer) {
    let bytes = &buffer.filled()[..head.len];
    let mut edits = Edits::default();
    if let Some((path, at)) = head.path_range(bytes)
        && let Some(rewritten) = route.decision.rewritten(path)
    {
        edits.replace(at, rewritten);
    }
    if let Some(lines) = &route.request_headers {
        header(lines, bytes, &mut edits);
    }
    if let Some(host) = route
        .decision
        .settings
        .rewrite
        .as_ref()
        .and_then(|r| r.host.as_deref())
    {
        host_edits(head, bytes, host.as_bytes(), &mut edits);
    }
    head.carry_out(edits, buffer);
}

/// Has the head that begins `buffer` ask for `host`.
pub(super) fn set_host(head: &mut RequestHead, host: &[u8], buffer: &mut Buffer) {
    let mut edits = Edits::default();
    host_edits(head, &buffer.filled()[..head.len], host, &mut edits);
    head.carry_out(edits, buffer);
}

/// Notes what a route changes in the response head that begins `bytes`, beside its other edits.
pub(super) fn response(head: &mut ResponseHead, lines: &HeaderEdits, bytes: &[u8]) {
    let (bytes, edits) = head.parts(bytes);
    header(lines, bytes, edits);
    edits.sort();
}

fn host_edits(head: &RequestHead, bytes: &[u8], host: &[u8], edits: &mut Edits) {
    for at in head.named_at(bytes) {
        edits.replace(at, host.to_vec());
    }
}

/// `bytes` are a whole head, which was parsed before, so that nothing fails.
fn header(wanted: &HeaderEdits, bytes: &[u8], edits: &mut Edits) {
    let start = memchr::memchr(b'\n', bytes).map_or(0, |at| at + 1);
    let count = memchr::memchr_iter(b'\n', bytes).count();
    let mut there = Vec::new();
    let _ = head::visit_lines(bytes, start, count, |line| {
        if wanted.takes_out(line.name) {
            edits.remove(line.range(bytes));
        } else if let Some(place) = wanted.asks_for(line.name) {
            there.push(place);
        }
        Ok(())
    });
    let end = bytes.len() - b"\r\n".len();
    for line in wanted.added(|place| there.contains(&place)) {
        edits.replace(end..end, text(&line.written, &line.value));
    }
}

fn text(name: &str, value: &HeaderValue) -> Vec<u8> {
    [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat()
}

/// Where `range` lies after `edits`, of which one may be its replacement.
pub(super) fn moved(range: &Range<usize>, edits: &Edits) -> Range<usize> {
    // An insertion at its very start stands before it, or takes its place.
    edits.moved_start(range.start)..edits.moved(range.end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::{Limits, Snapshot, parse};
    use proptest::prelude::*;

    use super::*;
    use crate::{cluster::Clusters, forward::http1::request};

    fn route(keys: &str) -> Arc<Route> {
        let text = format!("routes: [{{ cluster: original_destination, {keys} }}]");
        let settings = parse(&text).unwrap_or_else(|problems| panic!("{keys}: {problems:#?}"));
        let snapshot = Snapshot::compile(settings, None);
        let decision = snapshot.routes.iter().next().unwrap();
        let limits = crate::rate_limit::RateLimits::new(std::time::Instant::now());
        Arc::new(Route::resolve(decision, &Clusters::default(), &limits))
    }

    fn buffer(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::with_capacity(bytes.len());
        buffer.extend(bytes);
        buffer
    }

    proptest! {
        /// Whatever is changed: what is known of the head afterwards is what a parser reads from it.
        #[test]
        fn an_edited_head_is_what_is_known_of_it(
            target in prop::sample::select(vec!["/v1", "/v1/x?y=1", "http://u@a.test:8/v1/x", "http://a.test", "/x/../v1/%61"]),
            lines in prop::collection::vec(prop::sample::select(vec!["X-Gone: 1", "x-set: 1", "X-There:  2 ", "Accept: */*", "X-Gone:"]), 0..6),
            place in 0..6_usize,
            rewrite in prop::sample::select(vec!["prefix: /", "prefix: /longer/than/before", "host: b.test", "prefix: /v2, host: 'c.test:81'"]),
            headers in prop::sample::select(vec!["{}", "{ remove: [x-gone] }", "{ set: { x-set: new }, add: { x-new: '1' }, remove: [x-gone, accept] }", "{ add_if_absent: { x-there: '3', x-gone: '4' } }"]),
            hop in prop::option::of(prop::sample::select(vec!["d.test", "much-longer.example:8080"])),
        ) {
            let route = route(&format!("match: {{ path: {{ prefix: /v1 }} }}, rewrite: {{ {rewrite} }}, request_headers: {headers}"));
            let mut all = lines.clone();
            all.insert(place.min(all.len()), "Host: a.test");
            let text = format!("GET {target} HTTP/1.1\r\n{}\r\n\r\nbody", all.join("\r\n"));
            let mut bytes = buffer(text.as_bytes());
            let limits = Limits::default();
            let mut head = request::parse(bytes.filled(), &limits).unwrap().unwrap();
            request(&mut head, &route, &mut bytes);
            if let Some(host) = hop {
                set_host(&mut head, host.as_bytes(), &mut bytes);
            }
            let parsed = request::parse(bytes.filled(), &limits).unwrap().unwrap();
            let told = |head: &RequestHead| {
                let (path, at) = head.path_range(bytes.filled()).unwrap();
                (head.len, path.to_vec(), at, head.host_name(bytes.filled()).map(str::to_owned))
            };
            prop_assert_eq!(told(&head), told(&parsed));
            prop_assert_eq!(&bytes.filled()[head.len..], b"body");
            // Logs show what the client asked for.
            let changed = head.len != text.len() - 4 || bytes.filled() != text.as_bytes();
            let logged = head.line(bytes.filled());
            prop_assert!(!changed || logged.target == target.as_bytes() && logged.host == Some(&b"a.test"[..]));
        }
    }

    #[test]
    fn an_answer_is_edited_beside_what_the_relay_edits() {
        let route = route(
            "match: {}, response_headers: { remove: [x-gone], set: { Server: ours }, add: { x-new: '1' } }",
        );
        let asked = buffer(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let asked = request::parse(asked.filled(), &Limits::default())
            .unwrap()
            .unwrap();
        let mut bytes = buffer(
            b"HTTP/1.1 200 OK\r\nServer: theirs\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-Gone: 1\r\nContent-Length: 0\r\n\r\n",
        );
        let super::super::response::Response::Head(mut head) =
            super::super::response::parse(bytes.filled(), &asked, &Limits::default())
        else {
            panic!("it is a whole head");
        };
        response(
            &mut head,
            route.response_headers.as_ref().unwrap(),
            bytes.filled(),
        );
        head.add_line("Set-Cookie", "c=1");
        head.apply_edits(true, &mut bytes);
        let wanted = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\nServer: ours\r\nx-new: 1\r\nSet-Cookie: c=1\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(bytes.filled()), wanted);
        assert_eq!(head.len, wanted.len());
    }
}
