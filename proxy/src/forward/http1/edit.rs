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
