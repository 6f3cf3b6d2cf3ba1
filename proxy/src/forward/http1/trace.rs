//! A request's trace, read from its head and written there.
//!
//! Written in place rather than through the list of edits, which would cost each request an
//! allocation: the headers of a trace have fixed lengths, and a new line goes to the head's end.

use std::{ops::Range, time::Instant};

use super::{
    Session,
    attempt::AttemptEnd,
    head::{self, Version},
    progress::Progress,
    record::Outcome,
    request::RequestHead,
};
use crate::{
    buffer::Buffer,
    failure::Failure,
    observe::trace::{Edit, Incoming, Trace},
    upstream::Lease,
};

/// The longest line of a trace: `b3` with all its parts, with room to spare.
const MAX_LINE: usize = 128;

impl Session {
    /// Begins the trace of the request that `head`, which begins the input, is of.
    pub(super) fn begin_trace(&mut self, head: &mut RequestHead, outcome: &Outcome) {
        let Some(settings) = &self.settings.tracing else {
            return;
        };
        let mut incoming = Incoming::default();
        head::each_line(&self.input.filled()[..head.len], |line| {
            incoming.visit(line.name, line.value);
        });
        let mut trace = Trace::begin(
            settings,
            outcome
                .routed
                .policy()
                .and_then(|route| route.tracing.as_ref()),
            &incoming,
            &self.connection.worker.trace_ids,
            match head.version {
                Version::Http10 => "1.0",
                Version::Http11 => "1.1",
            },
            outcome.started,
        );
        trace.each_edit(settings, |edit| head.edit_line(&mut self.input, &edit));
        trace.note_written(settings);
        self.trace = Some(trace);
    }

    /// What an attempt has come to.
    pub(super) fn note_attempt(&mut self, end: &AttemptEnd, lease: &Lease, progress: &Progress) {
        let Some(trace) = &mut self.trace else {
            return;
        };
        trace.reached(lease.upstream.peer);
        let status = match end {
            AttemptEnd::Discarded(answer) => Some(answer.head.status),
            _ => progress.status.get(),
        };
        match (end, status) {
            (AttemptEnd::NoAnswer(_), _) => trace.failed(Failure::UpstreamClosed),
            (AttemptEnd::TooLong(passed), None) => trace.failed(passed.failure()),
            (_, Some(status)) => trace.answered(status),
            (_, None) => {}
        }
    }

    /// An attempt did not get as far as an upstream.
    pub(super) fn attempt_failed(&mut self, failure: Failure) {
        if let Some(trace) = &mut self.trace {
            trace.failed(failure);
        }
    }

    /// The attempt is over, and there is to be another one.
    pub(super) fn end_attempt(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.end_attempt(Instant::now());
        }
    }

    /// The next attempt begins; its span is the one that goes on.
    pub(super) fn trace_again(&mut self, head: &mut RequestHead) {
        if let (Some(trace), Some(settings)) = (&mut self.trace, &self.settings.tracing) {
            trace.again(&self.connection.worker.trace_ids, Instant::now());
            trace.each_edit(settings, |edit| head.edit_line(&mut self.input, &edit));
        }
    }
}

impl RequestHead {
    fn edit_line(&mut self, buffer: &mut Buffer, edit: &Edit<'_>) {
        match *edit {
            Edit::Add(name, value) => self.add_line(buffer, name, value),
            Edit::Replace(name, value) => match self.keep_one_line(buffer, name) {
                Some(line) => self.replace(buffer, line.value, value),
                None => self.add_line(buffer, name, value),
            },
            Edit::Remove(name) => {
                if let Some(line) = self.keep_one_line(buffer, name) {
                    self.replace(buffer, line.whole, b"");
                }
            }
        }
    }

    fn add_line(&mut self, buffer: &mut Buffer, name: &str, value: &[u8]) {
        let mut line = [0; MAX_LINE];
        let mut len = 0;
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            line[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        let end = self.len - b"\r\n".len();
        self.replace(buffer, end..end, &line[..len]);
    }

    /// The first line of that name, after any others are removed.
    fn keep_one_line(&mut self, buffer: &mut Buffer, name: &str) -> Option<Place> {
        loop {
            let (mut first, mut last, mut count) = (None, None, 0);
            head::each_line(&buffer.filled()[..self.len], |line| {
                if line.name.eq_ignore_ascii_case(name.as_bytes()) {
                    let place = Place {
                        whole: line.whole,
                        value: line.value_at,
                    };
                    first.get_or_insert(place.clone());
                    last = Some(place);
                    count += 1;
                }
            });
            match last {
                Some(last) if count > 1 => self.replace(buffer, last.whole, b""),
                _ => return first,
            }
        }
    }
}

/// Where in its head a line lies.
#[derive(Clone, Debug)]
struct Place {
    /// Its line end included.
    whole: Range<usize>,
    value: Range<usize>,
}

#[cfg(test)]
mod tests {
    use outrigger_config::Limits;
    use proptest::prelude::*;

    use super::*;
    use crate::forward::http1::request;

    fn edited(text: &str, edits: &[Edit<'_>]) -> (String, RequestHead) {
        let mut buffer = Buffer::with_capacity(64);
        buffer.extend(text.as_bytes());
        let mut head = request::parse(buffer.filled(), &Limits::default())
            .expect("a good head")
            .expect("a whole head");
        edits
            .iter()
            .for_each(|edit| head.edit_line(&mut buffer, edit));
        (String::from_utf8_lossy(buffer.filled()).into(), head)
    }

    const BODY: &str = "traceparent: not a header\r\n";

    fn head_of(lines: &str) -> String {
        format!(
            "POST /a HTTP/1.1\r\n{lines}Content-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        )
    }

    #[test]
    fn a_new_line_goes_to_the_end_and_the_body_stays() {
        let (text, head) = edited(&head_of("Host: a\r\n"), &[Edit::Add("traceparent", b"x")]);
        assert_eq!(
            text,
            format!(
                "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\ntraceparent: x\r\n\r\n{BODY}",
                BODY.len()
            )
        );
        assert_eq!(&text[head.len..], BODY);
    }

    #[test]
    fn a_line_is_replaced_where_it_stands_and_others_of_its_name_go() {
        let before = "TraceParent:  old \r\nHost: a\r\nX: 1\r\ntraceparent: older\r\n";
        let (text, head) = edited(
            &head_of(before),
            &[Edit::Replace("traceparent", b"new one")],
        );
        assert!(
            text.contains("\r\nTraceParent:  new one \r\nHost: a\r\nX: 1\r\nContent"),
            "{text}"
        );
        assert_eq!(&text[head.len..], BODY);
        assert_eq!(head.line(text.as_bytes()).host, Some(&b"a"[..]));
        let (text, head) = edited(&head_of(before), &[Edit::Remove("traceparent")]);
        assert!(text.starts_with("POST /a HTTP/1.1\r\nHost: a\r\nX: 1\r\nContent"));
        assert_eq!(head.line(text.as_bytes()).host, Some(&b"a"[..]));
    }

    #[test]
    fn what_is_not_there_is_added_or_left_alone() {
        let plain = head_of("Host: a\r\n");
        let (text, _) = edited(&plain, &[Edit::Replace("b3", b"0")]);
        assert!(text.contains("\r\nb3: 0\r\n\r\n"), "{text}");
        assert_eq!(edited(&plain, &[Edit::Remove("b3")]).0, plain);
    }

    proptest! {
        #[test]
        fn all_else_of_a_head_stays_as_it_was(
            lines in proptest::collection::vec(
                ("traceparent|TraceParent|tracestate|TRACESTATE|[xX]-[a-z]{1,8}", "[ -~]{0,20}"), 0..8),
            value in "[!-~]{1,60}",
        ) {
            let text: String = lines.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
            let edits = [
                Edit::Replace("traceparent", value.as_bytes()),
                Edit::Remove("tracestate"),
            ];
            let (text, head) = edited(&head_of(&format!("{text}Host: a\r\n")), &edits);
            prop_assert_eq!(&text[head.len..], BODY);
            let parsed = request::parse(text.as_bytes(), &Limits::default());
            prop_assert_eq!(parsed.map(|h| h.map(|h| h.len)), Ok(Some(head.len)));
            let (mut left, mut parents) = (Vec::new(), Vec::new());
            head::each_line(&text.as_bytes()[..head.len], |line| {
                match line.name.to_ascii_lowercase().as_slice() {
                    b"traceparent" => parents.push(line.value.to_vec()),
                    b"tracestate" | b"host" | b"content-length" => {}
                    _ => left.push(String::from_utf8_lossy(line.name).into_owned()),
                }
            });
            let expected: Vec<_> = lines.iter().map(|(name, _)| name.clone()).filter(|name| {
                !["traceparent", "tracestate"].contains(&&*name.to_ascii_lowercase())
            }).collect();
            prop_assert_eq!(left, expected);
            prop_assert_eq!(parents, [value.into_bytes()]);
        }
    }
}
