//! Who may ask the admin listener what.
//!
//! A page in a browser on this host can send requests to every local port. What it cannot do is choose
//! their `Host` freely (it has the name that the page dialled), nor keep the browser from saying where
//! they come from (`Origin`, `Sec-Fetch-Site`). So: only names that are ours, nothing that another site
//! has asked for, and orders from no page at all.

use std::{fs, io, net::IpAddr, path::Path, sync::Mutex};

use hyper::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN},
};
use outrigger_config::Admin;

use super::listener::From;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Bytes of a token's file.
const MAX_TOKEN: usize = 4096;

/// What a path is for, as far as permission goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Probes and scrapers: they have no token, and may come from elsewhere where that is allowed.
    Probe,
    /// Tells about the proxy.
    Read,
    /// Changes something.
    Order,
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

/// The token in force, if one is asked for.
#[derive(Debug, Default)]
pub struct Token(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Needed(Secret),
    /// Its file could not be read: nobody has it.
    Unknown,
}

struct Secret(Box<[u8]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Token {
    /// Reads the file that `admin` names. One that cannot be read lets nobody in.
    pub(crate) fn load(&self, admin: Option<&Admin>) {
        let file = admin.and_then(|admin| admin.token_file.as_deref());
        let state = match file.map(read_token) {
            None => State::None,
            Some(Ok(secret)) => State::Needed(secret),
            Some(Err(error)) => {
                let path = file.unwrap_or(Path::new("")).display();
                tracing::error!(%error, "cannot read the admin token {path}; until a reload can, only probes and scrapers are answered");
                State::Unknown
            }
        };
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }

    /// None: none is asked for; else whether this is it.
    fn is_shown(&self, headers: &HeaderMap) -> Option<bool> {
        let state = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*state {
            State::None => None,
            State::Unknown => Some(false),
            State::Needed(secret) => {
                let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
                let shown = shown.and_then(|value| match value.split_at_checked(7) {
                    Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(token),
                    _ => None,
                });
                Some(shown.is_some_and(|shown| is_equal(shown, &secret.0)))
            }
        }
    }
}

fn read_token(path: &Path) -> io::Result<Secret> {
    let text = fs::read(path)?;
    let token = text.trim_ascii();
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(io::Error::other("it holds no token of 1 to 4096 bytes"));
    }
    Ok(Secret(token.into()))
}

/// Takes as long for a token that differs at its first byte as for one that differs at its last.
fn is_equal(shown: &[u8], wanted: &[u8]) -> bool {
    let mut difference = usize::from(shown.len() != wanted.len());
    for (index, wanted) in wanted.iter().enumerate() {
        let shown = shown.get(index).copied().unwrap_or(0);
        difference |= usize::from(std::hint::black_box(shown ^ wanted));
    }
    difference == 0
}

/// # Errors
/// Why the request is refused.
pub(super) fn admit(
    admin: &Admin,
    token: &Token,
    from: From,
    kind: Kind,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let refuse = |status, text| Err(Refusal { status, text });
    let mut hosts = headers.get_all(HOST).iter();
    // Clients of unix sockets have no name to give, and give any.
    let is_ours =
        from == From::Unix || hosts.all(|host| is_own_host(host.as_bytes(), &admin.hosts));
    if !is_ours {
        return refuse(
            StatusCode::MISDIRECTED_REQUEST,
            "this listener answers to IP addresses, localhost and admin.hosts only; a page from elsewhere must not read it through a name that it points here\n",
        );
    }
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"none" | b"same-origin")) {
        return refuse(
            StatusCode::FORBIDDEN,
            "another site's page must not ask for this (Sec-Fetch-Site)\n",
        );
    }
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    if kind == Kind::Order && *method != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "POST it\n");
    }
    if kind != Kind::Order && !is_read {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are answered here\n",
        );
    }
    // Browsers send it with every POST, for a page that they show.
    if kind == Kind::Order && headers.contains_key(ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "no web page may ask for this\n");
    }
    if kind == Kind::Probe {
        return Ok(());
    }
    match token.is_shown(headers) {
        Some(true) => Ok(()),
        Some(false) => refuse(
            StatusCode::UNAUTHORIZED,
            "show the token of admin.token_file, as `Authorization: Bearer …`\n",
        ),
        None if from == From::Elsewhere => refuse(
            StatusCode::FORBIDDEN,
            "other hosts are told no more than /live, /ready and /metrics; set admin.token_file and show its token for more\n",
        ),
        None => Ok(()),
    }
}

/// Whether a `Host` header names us by address, as localhost, or by one of the names that the settings
/// give us. Any other name was made to point here by somebody else (DNS rebinding).
fn is_own_host(host: &[u8], names: &[String]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bracketed = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| name.eq_ignore_ascii_case(own))
        || bracketed
            .unwrap_or(name)
            .parse()
            .is_ok_and(|ip: IpAddr| ip.is_ipv4() || bracketed.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_given_names_are_our_own_and_others_are_not() {
        let names = ["sidecar.internal".to_owned()];
        for own in [
            "127.0.0.1",
            "10.1.2.3:15000",
            "[::1]:15000",
            "[::1]",
            "LocalHost:15000",
            "Sidecar.internal:1",
        ] {
            assert!(is_own_host(own.as_bytes(), &names), "{own}");
        }
        for other in [
            "attacker.example",
            "localhost.attacker.example:15000",
            "127.0.0.1.attacker.example",
            "sidecar.internal.attacker.example",
            "",
            ":15000",
            "[::1",
        ] {
            assert!(!is_own_host(other.as_bytes(), &names), "{other}");
        }
        assert!(!is_own_host(b"\xff", &names));
    }

    fn asked(
        token: &Token,
        from: From,
        kind: Kind,
        method: Method,
        headers: &[(&str, &str)],
    ) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).expect("a name");
            map.append(name, HeaderValue::try_from(*value).expect("a value"));
        }
        match admit(&Admin::default(), token, from, kind, &method, &map) {
            Ok(()) => 200,
            Err(refusal) => refusal.status.as_u16(),
        }
    }

    #[test]
    fn a_page_in_a_browser_gets_nothing_and_gives_no_order() {
        let token = Token::default();
        let own = ("host", "127.0.0.1:15000");
        for (kind, method, headers, status) in [
            (Kind::Read, Method::GET, vec![own], 200),
            (Kind::Read, Method::GET, vec![], 200),
            (Kind::Read, Method::GET, vec![("host", "evil.example")], 421),
            (
                Kind::Probe,
                Method::GET,
                vec![("host", "evil.example")],
                421,
            ),
            (
                Kind::Read,
                Method::GET,
                vec![own, ("host", "evil.example")],
                421,
            ),
            (
                Kind::Read,
                Method::GET,
                vec![own, ("sec-fetch-site", "cross-site")],
                403,
            ),
            (
                Kind::Read,
                Method::GET,
                vec![own, ("sec-fetch-site", "same-site")],
                403,
            ),
            (
                Kind::Read,
                Method::GET,
                vec![own, ("sec-fetch-site", "none")],
                200,
            ),
            (Kind::Read, Method::POST, vec![own], 405),
            (Kind::Order, Method::POST, vec![own], 200),
            (Kind::Order, Method::GET, vec![own], 405),
            (
                Kind::Order,
                Method::POST,
                vec![own, ("origin", "http://127.0.0.1:15000")],
                403,
            ),
            (
                Kind::Order,
                Method::POST,
                vec![own, ("origin", "null")],
                403,
            ),
            (
                Kind::Order,
                Method::POST,
                vec![own, ("sec-fetch-site", "cross-site")],
                403,
            ),
        ] {
            let got = asked(&token, From::Loopback, kind, method.clone(), &headers);
            assert_eq!(got, status, "{kind:?} {method} {headers:?}");
        }
        let any = [("host", "whatever")];
        assert_eq!(
            asked(&token, From::Unix, Kind::Order, Method::POST, &any),
            200
        );
    }

    #[test]
    fn other_hosts_get_probes_and_metrics_alone_unless_they_show_the_token() {
        let path = std::env::temp_dir().join(format!("outrigger-token-{}", std::process::id()));
        let with_token = Token::default();
        let admin = Admin {
            token_file: Some(path.clone()),
            ..Admin::default()
        };
        with_token.load(Some(&admin));
        let elsewhere = From::Elsewhere;
        let shown = [("authorization", "bearer s3cret")];
        // It could not be read: nobody has it.
        assert_eq!(
            asked(&with_token, elsewhere, Kind::Read, Method::GET, &shown),
            401
        );
        fs::write(&path, "s3cret\n").expect("a file");
        with_token.load(Some(&admin));
        fs::remove_file(&path).expect("ours");
        let none = Token::default();
        let wrong = [("authorization", "Bearer s3cres")];
        for (token, kind, headers, status) in [
            (&none, Kind::Probe, &[][..], 200),
            (&none, Kind::Read, &[], 403),
            (&with_token, Kind::Probe, &[], 200),
            (&with_token, Kind::Read, &[], 401),
            (&with_token, Kind::Read, &wrong, 401),
            (&with_token, Kind::Read, &shown, 200),
        ] {
            assert_eq!(asked(token, elsewhere, kind, Method::GET, headers), status);
        }
        // The token is asked for on this host too.
        assert_eq!(
            asked(&with_token, From::Loopback, Kind::Read, Method::GET, &[]),
            401
        );
        assert!(!format!("{with_token:?}").contains("s3cret"));
    }

    #[test]
    fn tokens_are_equal_or_not() {
        for (shown, is_same) in [
            ("abc", true),
            ("abd", false),
            ("ab", false),
            ("abcd", false),
            ("", false),
        ] {
            assert_eq!(is_equal(shown.as_bytes(), b"abc"), is_same, "{shown}");
        }
    }
}
