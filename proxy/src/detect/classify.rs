//! What a client speaks, judged by the bytes it has sent so far. Pure: how the bytes were split
//! never changes what they turn out to be.

/// The client connection preface of HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest registered method is UPDATEREDIRECTREF, 17 bytes; a longer first word is no method.
const MAX_METHOD: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Http1,
    Http2,
    Tls,
    Opaque,
    /// Too little to tell, so far in agreement with one of the above.
    Undecided {
        /// A whole method and more is there: it would be a strange protocol other than HTTP that
        /// stopped here.
        looks_like_http: bool,
    },
}

/// Judges the first bytes of a connection, as early as they allow.
pub fn classify(bytes: &[u8]) -> Verdict {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return classify_tls(bytes);
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Verdict::Http2;
    }
    let verdict = classify_request_line(bytes);
    if verdict == Verdict::Opaque && HTTP2_PREFACE.starts_with(bytes) {
        return Verdict::Undecided {
            looks_like_http: true,
        };
    }
    verdict
}

const TLS_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// A record of the handshake protocol, of any version from SSL 3.0 to TLS 1.3, that begins with a
/// ClientHello (RFC 8446, sections 4 and 5.1).
fn classify_tls(bytes: &[u8]) -> Verdict {
    /// A record's header and the type of the handshake message in it.
    const HEADER: usize = 6;
    let plausible = bytes
        .iter()
        .take(HEADER)
        .enumerate()
        .all(|(i, &b)| match i {
            0 => b == TLS_HANDSHAKE,
            1 => b == 3,
            2 => b <= 4,
            // A record holds at most 2^14 bytes.
            3 => b <= 0x40,
            4 => true,
            _ => b == CLIENT_HELLO,
        });
    match plausible {
        false => Verdict::Opaque,
        true if bytes.len() >= HEADER => Verdict::Tls,
        true => Verdict::Undecided {
            looks_like_http: false,
        },
    }
}

/// `METHOD SP target SP HTTP/1.x CRLF`. A bare LF passes here: to refuse it is the HTTP relay's
/// business.
fn classify_request_line(bytes: &[u8]) -> Verdict {
    let undecided = |looks_like_http| Verdict::Undecided { looks_like_http };
    let Some(method) = bytes.iter().position(|&b| !is_token(b)) else {
        return match bytes.len() {
            0..=MAX_METHOD => undecided(false),
            _ => Verdict::Opaque,
        };
    };
    if !(1..=MAX_METHOD).contains(&method) || bytes[method] != b' ' {
        return Verdict::Opaque;
    }
    let rest = &bytes[method + 1..];
    let Some(target) = rest.iter().position(|&b| b <= b' ' || b == 0x7f) else {
        return undecided(true);
    };
    if target == 0 || rest[target] != b' ' {
        return Verdict::Opaque;
    }
    let version = &rest[target + 1..];
    for ending in [
        &b"HTTP/1.1\r\n"[..],
        b"HTTP/1.0\r\n",
        b"HTTP/1.1\n",
        b"HTTP/1.0\n",
    ] {
        if version.starts_with(ending) {
            return Verdict::Http1;
        }
        if ending.starts_with(version) {
            return undecided(true);
        }
    }
    Verdict::Opaque
}

/// A character of a method (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{Verdict::*, *};
    use proptest::prelude::*;

    /// Where in `bytes` the verdict falls, and what it is.
    fn decided(bytes: &[u8]) -> Option<(usize, Verdict)> {
        (0..=bytes.len())
            .map(|end| (end, classify(&bytes[..end])))
            .find(|(_, verdict)| !matches!(verdict, Undecided { .. }))
    }

    #[test]
    fn a_request_line_is_http_once_it_is_whole() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "POST /a?b=c HTTP/1.0\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\n",
            "GET http://a.example/ HTTP/1.1\r\n",
            "M-SEARCH /é HTTP/1.1\r\n",
            "PRI * HTTP/1.1\r\n",
            "PRI /x HTTP/1.1\r\n",
            "GET / HTTP/1.1\n",
        ] {
            assert_eq!(
                decided(line.as_bytes()),
                Some((line.len(), Http1)),
                "{line:?}"
            );
        }
    }

    #[test]
    fn what_only_looks_like_http_is_opaque_at_the_first_byte_that_tells() {
        for (text, tells) in [
            ("INVITE sip:a@b ", "S"),      // SIP/2.0
            ("DESCRIBE rtsp://a/b ", "R"), // RTSP/1.0
            ("REQMOD icap://a/b ", "I"),   // ICAP/1.0
            ("GET / HTTP/", "2"),          // no such request line
            ("GET / HTTP/1.", "2"),
            ("GET / HTTP/1.1", " "),
            ("GET ", " "),
            ("GET /", "\r"),             // HTTP/0.9
            ("get key", "\r"),           // memcached
            ("EHLO mail.example", "\r"), // SMTP
            ("PING", "\r"),              // redis inline
            ("NICK", "\n"),
            ("", "*".repeat(33).as_str()), // longer than any method
            ("SSH-2.0-OpenSSH_9.2p1", "\r"),
            ("PRI * HTTP/2.0\r\n\r\nS", "S"), // not quite the HTTP/2 preface
            ("PRI * HTTP/2.0\r\n", "H"),
            ("", "\0"),
            ("", "\r"),
            ("", " "),
            ("", "\u{16}\u{2}"),
            ("\u{16}\u{3}\u{1}\u{2}\u{0}", "\u{2}"), // a ServerHello
        ] {
            let bytes = [text.as_bytes(), tells.as_bytes()].concat();
            assert_eq!(
                decided(&bytes),
                Some((bytes.len(), Opaque)),
                "{text:?} {tells:?}"
            );
        }
    }

    #[test]
    fn the_preface_is_http2_once_it_is_whole() {
        assert_eq!(decided(HTTP2_PREFACE), Some((HTTP2_PREFACE.len(), Http2)));
    }

    #[test]
    fn a_client_hello_is_known_by_its_first_six_bytes() {
        assert_eq!(
            decided(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
            Some((6, Tls))
        );
    }

    #[test]
    fn only_a_method_and_more_is_worth_a_longer_wait() {
        let waits = |bytes: &str| {
            classify(bytes.as_bytes())
                == Undecided {
                    looks_like_http: true,
                }
        };
        assert!(waits("GET "));
        assert!(waits("GET /long"));
        assert!(waits("PRI * HTTP/2.0\r\n\r\n"));
        assert!(!waits("GET"));
        assert!(!waits(""));
        assert!(!waits("\u{16}\u{3}"));
    }

    /// Bytes near the border between the protocols: pieces of real ones, mutated.
    fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"GET".to_vec()),
            Just(b" ".to_vec()),
            Just(b"/a".to_vec()),
            Just(b"*".to_vec()),
            Just(b"HTTP/1.1".to_vec()),
            Just(b"HTTP/1.0".to_vec()),
            Just(b"HTTP/2.0".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\n".to_vec()),
            Just(HTTP2_PREFACE.to_vec()),
            Just(b"\x16\x03\x01\x02\x00\x01".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_verdict_once_reached_is_never_changed_by_more_bytes(bytes in first_bytes()) {
            if let Some((end, verdict)) = decided(&bytes) {
                for longer in end..=bytes.len() {
                    prop_assert_eq!(classify(&bytes[..longer]), verdict);
                }
            }
        }

        #[test]
        fn http1_is_exactly_what_httparse_takes_for_a_request_line(bytes in first_bytes()) {
            let line_end = bytes.iter().position(|&b| b == b'\n');
            prop_assume!(line_end.is_some());
            let line = &bytes[..=line_end.unwrap_or(0)];
            let mut request = httparse::Request::new(&mut []);
            // What follows the line is of no interest: an empty head.
            let head = [line, b"\r\n"].concat();
            let is_http = matches!(request.parse(&head), Ok(httparse::Status::Complete(_)))
                && request.method.is_some_and(|m| m.len() <= MAX_METHOD)
                // It skips empty lines, which no client sends first.
                && !line.starts_with(b"\r") && !line.starts_with(b"\n");
            prop_assert_eq!(classify(line) == Http1, is_http, "{:?}", String::from_utf8_lossy(line));
        }
    }
}
