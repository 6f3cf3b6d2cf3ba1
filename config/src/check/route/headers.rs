//! What is wrong with the header lines that a route changes.

use http::{HeaderName, HeaderValue};

use super::Findings;
use crate::{HeaderEdits, RESERVED_HEADERS};

pub(super) fn header_edits(edits: &HeaderEdits, path: &str, to: &mut Findings) {
    for (key, lines) in [
        ("add", &edits.add),
        ("set", &edits.set),
        ("add_if_absent", &edits.add_if_absent),
    ] {
        for (name, value) in lines {
            line(name, value, &format!("{path}.{key}.{name}"), to);
        }
    }
    for (index, name) in edits.remove.iter().enumerate() {
        line_name(name, &format!("{path}.remove[{index}]"), to);
    }
}

pub(super) fn line(name: &str, value: &str, path: &str, to: &mut Findings) {
    line_name(name, path, to);
    let message = if HeaderValue::from_str(value).is_err() {
        "a header's value is one line of printable characters; remove line breaks and control characters"
    } else if value.trim_matches([' ', '\t']) != value {
        "blanks around a header's value get lost; remove them"
    } else {
        return;
    };
    to.error(path.to_owned(), message.into());
}

fn line_name(name: &str, path: &str, to: &mut Findings) {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        to.error(
            path.to_owned(),
            format!("`{name}` is no name of a header; write one such as `x-version`"),
        );
    } else if RESERVED_HEADERS
        .iter()
        .any(|n| name.eq_ignore_ascii_case(n))
    {
        let fix = match name.eq_ignore_ascii_case("host") {
            true => "write `rewrite: { host: … }`",
            false => "leave it to the two sides",
        };
        to.error(
            path.to_owned(),
            format!("`{name}` belongs to the connection or to the message's framing, or has a key of its own; {fix}"),
        );
    }
}
