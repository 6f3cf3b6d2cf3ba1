//! The one form of a path that is compared, however it is written.
//!
//! Two requests for the same thing must not meet two routes because one of them writes `/./a`, `/b/../a`
//! or `/%61`: RFC 3986, section 6.2.2. As Envoy does with `normalize_path`, `\` counts as `/` too, for
//! so do browsers; several slashes in a row stay, and so does `%2F`, which is no separator. Envoy sends
//! on what it normalised, and we what came: the application's bytes are its own unless a route
//! rewrites them.

use std::borrow::Cow;

/// A path and its query, apart.
pub(crate) fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    // A fragment is never sent; what looks like one ends the path for many a server.
    let end = target.iter().position(|b| matches!(b, b'?' | b'#'));
    let Some(end) = end else {
        return (target, None);
    };
    let query = (target[end] == b'?').then(|| &target[end + 1..]);
    (&target[..end], query)
}

/// `path`, without a query, in its normal form.
pub(crate) fn normal(path: &[u8]) -> Cow<'_, [u8]> {
    let mut before = 0;
    let is_odd = path.iter().any(|&byte| {
        let is_odd = matches!(byte, b'%' | b'\\') || byte == b'.' && before == b'/';
        before = byte;
        is_odd
    });
    if !is_odd {
        return path.into();
    }
    without_dots(&plain(path)).into()
}

/// What a route says of a path, in the form in which it is compared. Unlike a path it may end within
/// a segment.
pub(super) fn normal_pattern(pattern: &str) -> String {
    String::from_utf8(plain(pattern.as_bytes())).unwrap_or_else(|_| pattern.to_owned())
}

/// Whether `path` is `prefix` or lies below it.
pub(super) fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Escapes of what needs none undone, the others in upper case; `\` as `/`.
fn plain(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' => plain.push(b'/'),
            b'%' => match escaped(after) {
                Some(byte) if is_unreserved(byte) => {
                    plain.push(byte);
                    rest = &after[2..];
                }
                Some(_) => {
                    plain.push(b'%');
                    plain.extend(after[..2].to_ascii_uppercase());
                    rest = &after[2..];
                }
                // Not even an escape: it must not become one by what follows.
                None => plain.extend(b"%25"),
            },
            byte => plain.push(byte),
        }
    }
    plain
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    Some((digit(0)? * 16 + digit(1)?) as u8)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Dot segments resolved (RFC 3986, section 5.2.4); those above the root go.
fn without_dots(path: &[u8]) -> Vec<u8> {
    if !path.starts_with(b"/") {
        return path.to_vec();
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = path[1..].split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    kept.pop();
                }
                if is_last {
                    kept.push(b"");
                }
            }
            segment => kept.push(segment),
        }
    }
    let mut normal = Vec::with_capacity(path.len());
    for segment in kept {
        normal.push(b'/');
        normal.extend_from_slice(segment);
    }
    normal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal_text(path: &str) -> String {
        String::from_utf8(normal(path.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn what_can_be_written_in_several_ways_has_one_form() {
        for (path, wanted) in [
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/public/../admin", "/admin"),
            ("/public/%2e%2E/admin", "/admin"),
            ("/public/.%2e/admin", "/admin"),
            (r"/public\..\admin", "/admin"),
            ("/../../admin", "/admin"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/%61%7Eb%2d", "/a~b-"),
            ("/a%2fb%3f", "/a%2Fb%3F"),
            ("//a//b", "//a//b"),
            ("/.well-known/..x/...", "/.well-known/..x/..."),
            ("/%", "/%25"),
            ("/%%361", "/%2561"),
            ("*", "*"),
        ] {
            assert_eq!(normal_text(path), wanted, "{path}");
        }
    }

    #[test]
    fn a_query_is_no_part_of_a_path() {
        assert_eq!(split_query(b"/a?b?c"), (&b"/a"[..], Some(&b"b?c"[..])));
        assert_eq!(split_query(b"/a"), (&b"/a"[..], None));
        assert_eq!(split_query(b"/a#b?c"), (&b"/a"[..], None));
    }

    #[test]
    fn below_is_at_the_border_of_a_segment() {
        for (path, is_there) in [
            ("/v1", true),
            ("/v1/", true),
            ("/v1/a", true),
            ("/v10", false),
        ] {
            assert_eq!(is_below(path.as_bytes(), b"/v1"), is_there, "{path}");
            assert_eq!(is_below(path.as_bytes(), b"/v1/"), is_there, "{path}");
        }
        assert!(is_below(b"/a", b"/"));
    }

    proptest! {
        #[test]
        fn the_form_is_stable_and_no_dots_are_left(path in r"/([a./%\\25eEfF]{0,24})") {
            let once = normal(path.as_bytes()).into_owned();
            // `%25` stays escaped, so that nothing can be undone twice.
            prop_assert_eq!(normal(&once).into_owned(), once.clone());
            prop_assert!(once.split(|b| *b == b'/').all(|s| s != b"." && s != b".."));
            prop_assert!(once.starts_with(b"/") || once.is_empty());
        }
    }
}
