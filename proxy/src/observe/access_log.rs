//! The access log: one line per finished request (HTTP) or connection (everything else).

use std::{io, time::Duration};

use outrigger_config::{AccessLogFormat, AccessLogTarget, Settings};

use super::{
    Record,
    line::Line,
    log_thread::{LogTarget, LogThread},
};

/// How long lines may gather before they are written: few wake-ups under load, and hardly a wait
/// for someone who watches the file.
const GATHER: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct AccessLog {
    log: LogThread,
    format: AccessLogFormat,
    instance: Box<str>,
}

impl AccessLog {
    /// Opens what the settings name; none if they turn the log off.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be had.
    pub fn open(settings: &Settings, workers: usize, instance: &str) -> io::Result<Option<Self>> {
        let target = match &settings.access_log.to {
            AccessLogTarget::Off => return Ok(None),
            AccessLogTarget::Stdout => LogTarget::Stdout,
            AccessLogTarget::File(path) => LogTarget::File(path.clone()),
        };
        Ok(Some(Self {
            log: LogThread::start("access-log", target, workers, GATHER)?,
            format: settings.access_log.format,
            instance: instance.into(),
        }))
    }

    /// Writes one line, or counts it as lost if the disk has not kept up; never waits for it.
    pub fn write(&self, worker: usize, record: &Record<'_>) {
        self.log.push(worker, |out| {
            format_line(
                out,
                self.format,
                &self.instance,
                jiff::Timestamp::now(),
                record,
            );
        });
    }

    /// Opens the file anew, after someone has moved it away.
    pub fn reopen(&self) {
        self.log.reopen();
    }

    /// Lines lost because they could not be written.
    pub fn dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Writes what has gathered, for at most `patience`.
    pub fn close(&self, patience: Duration) {
        self.log.close(patience);
    }
}

fn format_line(
    out: &mut Vec<u8>,
    format: AccessLogFormat,
    instance: &str,
    now: jiff::Timestamp,
    record: &Record<'_>,
) {
    let mut line = Line::begin(out, format);
    line.word("time", format_args!("{now:.6}"));
    line.word("protocol", record.protocol.label());
    line.word("client", record.client);
    line.word("destination", record.original);
    if let Some(cluster) = record.cluster {
        line.text("cluster", &[cluster.as_bytes()]);
    }
    if let Some(upstream) = record.upstream {
        line.word("upstream", upstream);
        line.bare("upstream_reused", record.upstream_reused);
    }
    if let Some(request) = &record.request {
        line.text("method", &[request.method.as_bytes()]);
        let target = without_userinfo(request.target);
        let (path, query) = split_query(target.1);
        let mut pieces = vec![target.0, path];
        mask_query(query, b"*", &mut pieces);
        line.text("target", &pieces);
        if let Some(host) = request.host {
            line.text("host", &[without_userinfo(host).1]);
        }
    }
    if let Some(trace) = record.trace {
        line.word("trace_id", trace.trace);
        line.word("span_id", trace.span);
    }
    if let Some(sni) = record.sni {
        line.text("sni", &[sni.as_bytes()]);
    }
    if let Some(status) = record.status {
        line.bare("status", status);
    }
    if let Some(failure) = record.failure {
        line.word("reason", failure.label());
        line.word("fault", failure.fault().label());
        line.text("details", &[failure.details().as_bytes()]);
    }
    line.bare("bytes_received", record.bytes_received);
    line.bare("bytes_sent", record.bytes_sent);
    line.bare("duration_us", record.duration.as_micros());
    line.word("instance", instance);
    line.end();
}

/// What stands before and after the user and password of an absolute-form target or an authority.
/// An origin-form target (`/…`) has none.
pub(super) fn without_userinfo(target: &[u8]) -> (&[u8], &[u8]) {
    if target.starts_with(b"/") {
        return (b"", target);
    }
    let start = memchr::memmem::find(target, b"://").map_or(0, |at| at + 3);
    let (scheme, rest) = target.split_at(start);
    let end = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
    match memchr::memrchr(b'@', &rest[..end]) {
        Some(at) => (scheme, &rest[at + 1..]),
        None => (scheme, rest),
    }
}

pub(super) fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'?', target) {
        Some(at) => target.split_at(at + 1),
        None => (target, b""),
    }
}

/// Names of query parameters without their values, which may be tokens, signatures or passwords:
/// `user=*&token=*`, where `mask` is `*`.
pub(super) fn mask_query<'a>(query: &'a [u8], mask: &'a [u8], pieces: &mut Vec<&'a [u8]>) {
    if query.is_empty() {
        return;
    }
    for (index, parameter) in query.split(|b| *b == b'&').enumerate() {
        if index > 0 {
            pieces.push(b"&");
        }
        if let Some(at) = memchr::memchr(b'=', parameter) {
            pieces.push(&parameter[..=at]);
        }
        pieces.push(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failure::Failure,
        observe::{Protocol, RequestLine, record::tests::record},
    };

    fn line(format: AccessLogFormat, record: &Record<'_>) -> String {
        let mut out = Vec::new();
        let now = jiff::Timestamp::from_microsecond(1_767_225_600_123_456).unwrap();
        format_line(&mut out, format, "0123456789abcdef", now, record);
        String::from_utf8(out).unwrap()
    }

    fn target_of(target: &[u8]) -> String {
        let request = RequestLine {
            method: "GET",
            target,
            host: None,
        };
        let line = line(
            AccessLogFormat::Json,
            &Record {
                request: Some(request),
                ..record()
            },
        );
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        line["target"].as_str().unwrap().to_owned()
    }

    #[test]
    fn an_answered_request_in_json() {
        assert_eq!(
            line(AccessLogFormat::Json, &record()),
            concat!(
                r#"{"time":"2026-01-01T00:00:00.123456Z","protocol":"http1","client":"127.0.0.1:40000","#,
                r#""destination":"203.0.113.7:80","upstream":"203.0.113.7:80","upstream_reused":false,"#,
                r#""method":"GET","target":"/","host":"example.test","status":200,"#,
                r#""bytes_received":100,"bytes_sent":200,"duration_us":1500,"instance":"0123456789abcdef"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_failed_connection_in_text_says_whose_fault_it_was() {
        let failed = Record {
            protocol: Protocol::Opaque,
            upstream: None,
            request: None,
            status: None,
            failure: Some(Failure::ConnectRefused),
            ..record()
        };
        assert_eq!(
            line(AccessLogFormat::Text, &failed),
            concat!(
                "time=2026-01-01T00:00:00.123456Z protocol=opaque client=127.0.0.1:40000 ",
                "destination=203.0.113.7:80 reason=connect_refused fault=upstream ",
                "details=\"destination refused the connection\" ",
                "bytes_received=100 bytes_sent=200 duration_us=1500 instance=0123456789abcdef\n"
            )
        );
    }

    #[test]
    fn passwords_and_query_values_are_never_logged() {
        for (target, shown) in [
            (&b"/plain"[..], "/plain"),
            (
                b"http://user:secret@host/a@b?token=secret",
                "http://host/a@b?token=*",
            ),
            (b"user:secret@host:443", "host:443"),
            (b"/a?x=secret&y=secret&secret", "/a?x=*&y=*&*"),
            (b"/a?", "/a?"),
            (b"*", "*"),
        ] {
            assert_eq!(target_of(target), shown);
        }
    }
}
