//! What traffic is told apart by: the entries that a limit's actions make of a request or
//! connection.

use std::{
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
};

use outrigger_config::{HttpRequest, IpNet, RateLimitAction, RequestHeaders};

use super::buckets::{Key, KeyHasher, Keys};

/// A request or connection, as limits see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub client: IpAddr,
    /// The address that was dialled.
    pub destination: SocketAddr,
    pub cluster: Option<&'a str>,
    /// None of what is no HTTP.
    pub request: Option<HttpRequest<'a>>,
}

/// Takes entries: each begins with its key, and its value may come in pieces.
trait Entries {
    fn key(&mut self, key: &str);
    fn value(&mut self, piece: &[u8]);
}

/// The key of the bucket for `subject`; none if it lacks what `actions` ask for.
pub(super) fn key(
    keys: &Keys,
    actions: &[RateLimitAction],
    is_per_destination: bool,
    subject: &Subject<'_>,
) -> Option<Key> {
    let mut hashing = Hashing::new(keys);
    visit(actions, subject, &mut hashing)?;
    if is_per_destination {
        hashing.key("");
        text(&mut hashing, subject.destination);
    }
    Some(hashing.finish())
}

/// The key that entries written in a file have.
pub(super) fn key_of<'e>(keys: &Keys, entries: impl Iterator<Item = (&'e str, &'e str)>) -> Key {
    let mut hashing = Hashing::new(keys);
    for (key, value) in entries {
        hashing.key(key);
        hashing.value(value.as_bytes());
    }
    hashing.finish()
}

/// The entries themselves, for a service; none if `subject` lacks one. What is no UTF-8 is shown
/// replaced.
pub(super) fn entries(
    actions: &[RateLimitAction],
    subject: &Subject<'_>,
) -> Option<Vec<(String, String)>> {
    let mut listing = Listing(Vec::with_capacity(actions.len()));
    visit(actions, subject, &mut listing)?;
    let text = |bytes: Vec<u8>| match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    let entries = listing.0.into_iter().map(|(key, value)| (key, text(value)));
    Some(entries.collect())
}

fn visit(actions: &[RateLimitAction], subject: &Subject<'_>, to: &mut impl Entries) -> Option<()> {
    for action in actions {
        let client = subject.client.to_canonical();
        match action {
            RateLimitAction::RequestHeaders(header) => {
                let is_there = visit_header(header, subject, to);
                if !is_there && !header.skip_if_absent {
                    return None;
                }
                continue;
            }
            _ => to.key(action.key()),
        }
        match action {
            RateLimitAction::RequestHeaders(_) => {}
            RateLimitAction::RemoteAddress => text(to, client),
            RateLimitAction::MaskedRemoteAddress(masked) => {
                let len = match client {
                    IpAddr::V4(_) => masked.v4_prefix_mask_len,
                    IpAddr::V6(_) => masked.v6_prefix_mask_len,
                };
                text(to, IpNet::new(client, len).ok()?.trunc());
            }
            RateLimitAction::DestinationAddress => text(to, subject.destination),
            RateLimitAction::DestinationCluster => to.value(subject.cluster?.as_bytes()),
            RateLimitAction::GenericKey(generic) => {
                to.value(generic.descriptor_value.as_bytes());
            }
        }
    }
    Some(())
}

/// Whether the request has it; an empty value is none.
fn visit_header(header: &RequestHeaders, subject: &Subject<'_>, to: &mut impl Entries) -> bool {
    let Some(request) = &subject.request else {
        return false;
    };
    let mut is_there = false;
    let mut show = |value: &[u8]| {
        if value.is_empty() {
            return;
        }
        if is_there {
            to.value(b",");
        } else {
            to.key(&header.descriptor_key);
        }
        is_there = true;
        to.value(value);
    };
    match header.header_name.as_str() {
        ":path" => show(request.path.unwrap_or_default()),
        ":method" => show(request.method.as_bytes()),
        ":authority" => show(request.host.unwrap_or_default().as_bytes()),
        name => request.headers.each(name, &mut show),
    }
    is_there
}

/// Displays `value` as an entry's value, without an allocation.
fn text(to: &mut impl Entries, value: impl fmt::Display) {
    struct Pieces<'e, E>(&'e mut E);
    impl<E: Entries> Write for Pieces<'_, E> {
        fn write_str(&mut self, piece: &str) -> fmt::Result {
            self.0.value(piece.as_bytes());
            Ok(())
        }
    }
    // Neither these pieces nor addresses fail.
    let _ = write!(Pieces(to), "{value}");
}

struct Hashing {
    hasher: KeyHasher,
    /// Of the value under way: told at its end, so that no two lists of entries hash alike.
    len: usize,
}

impl Hashing {
    fn new(keys: &Keys) -> Self {
        Self {
            hasher: keys.hasher(),
            len: 0,
        }
    }

    fn finish(mut self) -> Key {
        self.hasher.write_len(self.len);
        self.hasher.finish()
    }
}

impl Entries for Hashing {
    fn key(&mut self, key: &str) {
        self.hasher.write_len(std::mem::take(&mut self.len));
        self.hasher.write_len(key.len());
        self.hasher.write(key.as_bytes());
    }

    fn value(&mut self, piece: &[u8]) {
        self.len += piece.len();
        self.hasher.write(piece);
    }
}

struct Listing(Vec<(String, Vec<u8>)>);

impl Entries for Listing {
    fn key(&mut self, key: &str) {
        self.0.push((key.to_owned(), Vec::new()));
    }

    fn value(&mut self, piece: &[u8]) {
        if let Some((_, value)) = self.0.last_mut() {
            value.extend_from_slice(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(yaml: &str) -> Vec<RateLimitAction> {
        let text = format!(
            "defaults: {{ rate_limits: [{{ name: a, token_bucket: {{ max_tokens: 1, fill_interval: 1s }}, actions: {yaml} }}] }}"
        );
        let settings = outrigger_config::parse(&text).expect("good settings");
        settings.defaults.rate_limits[0].actions.clone()
    }

    fn subject() -> Subject<'static> {
        Subject {
            client: "::ffff:192.0.2.77".parse().expect("an address"),
            destination: "[2001:db8::1]:80".parse().expect("an address"),
            cluster: Some("payments"),
            request: Some(HttpRequest {
                host: Some("api.internal"),
                method: "GET",
                path: Some(b"/v1"),
                headers: &Lines,
            }),
        }
    }

    #[derive(Debug)]
    struct Lines;

    impl outrigger_config::Headers for Lines {
        fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
            match name {
                "x-user" => visit(b"ada"),
                "x-two" => {
                    visit(b"a");
                    visit(b"b");
                }
                "x-empty" => visit(b""),
                _ => {}
            }
        }
    }

    #[test]
    fn every_action_makes_its_entry() {
        let actions = actions(
            "[remote_address, { masked_remote_address: { v4_prefix_mask_len: 24 } }, destination_address, \
             destination_cluster, { request_headers: { header_name: x-two, descriptor_key: two } }, \
             { request_headers: { header_name: ':path', descriptor_key: path } }, \
             { generic_key: { descriptor_value: v } }, { generic_key: { descriptor_value: v, descriptor_key: k } }]",
        );
        let entries = entries(&actions, &subject()).expect("nothing is missing");
        let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            entries,
            [
                "remote_address=192.0.2.77",
                "masked_remote_address=192.0.2.0/24",
                "destination_address=[2001:db8::1]:80",
                "destination_cluster=payments",
                "two=a,b",
                "path=/v1",
                "generic_key=v",
                "k=v",
            ]
        );
    }

    #[test]
    fn what_lacks_a_header_is_not_limited_unless_the_header_is_skipped() {
        for name in ["x-none", "x-empty"] {
            let header = |skip| {
                actions(&format!(
                    "[remote_address, {{ request_headers: {{ header_name: {name}, descriptor_key: h, skip_if_absent: {skip} }} }}]"
                ))
            };
            assert_eq!(entries(&header(false), &subject()), None, "{name}");
            let skipped = entries(&header(true), &subject()).expect("the other entry");
            assert_eq!(skipped.len(), 1);
        }
        let cluster = actions("[destination_cluster]");
        let unrouted = Subject {
            cluster: None,
            ..subject()
        };
        assert_eq!(entries(&cluster, &unrouted), None);
        let opaque = Subject {
            request: None,
            ..subject()
        };
        let path = actions("[{ request_headers: { header_name: ':path', descriptor_key: p } }]");
        assert_eq!(entries(&path, &opaque), None);
    }

    #[test]
    fn a_key_is_that_of_its_entries_and_of_no_others() {
        let keys = Keys::default();
        let user = actions("[{ request_headers: { header_name: x-user, descriptor_key: user } }]");
        let subject = subject();
        let of_request = key(&keys, &user, false, &subject);
        assert_eq!(
            of_request,
            Some(key_of(&keys, [("user", "ada")].into_iter()))
        );
        assert_ne!(of_request, key(&keys, &user, true, &subject));
        let lists: [&[(&str, &str)]; 5] = [
            &[("a", "bc")],
            &[("ab", "c")],
            &[("a", "b"), ("c", "")],
            &[("a", ""), ("bc", "")],
            &[],
        ];
        for (i, one) in lists.iter().enumerate() {
            for other in &lists[..i] {
                assert_ne!(
                    key_of(&keys, one.iter().copied()),
                    key_of(&keys, other.iter().copied())
                );
            }
        }
    }
}
