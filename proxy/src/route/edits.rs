//! A route's changes of header lines, for HTTP/1 heads and HTTP/2 header maps alike.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

/// In the order in which they are made.
#[derive(Debug, Default)]
pub struct HeaderEdits {
    remove: Box<[HeaderName]>,
    set: Box<[Line]>,
    add_if_absent: Box<[Line]>,
    add: Box<[Line]>,
}

#[derive(Debug)]
pub struct Line {
    /// As the user writes it, for HTTP/1.
    pub written: Box<str>,
    pub name: HeaderName,
    pub value: HeaderValue,
}

impl HeaderEdits {
    /// None if there are none.
    pub(super) fn compile(edits: &outrigger_config::HeaderEdits) -> Option<Self> {
        let remove = edits
            .remove
            .iter()
            .filter_map(|name| HeaderName::try_from(name.as_str()).ok());
        (!edits.is_empty()).then(|| Self {
            remove: remove.collect(),
            set: lines(&edits.set),
            add_if_absent: lines(&edits.add_if_absent),
            add: lines(&edits.add),
        })
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for line in &self.set {
            headers.insert(line.name.clone(), line.value.clone());
        }
        for line in &self.add_if_absent {
            if !headers.contains_key(&line.name) {
                headers.append(line.name.clone(), line.value.clone());
            }
        }
        for line in &self.add {
            headers.append(line.name.clone(), line.value.clone());
        }
    }

    /// Whether a line of this name goes, and whether only to be set anew.
    pub fn takes_out(&self, name: &str) -> bool {
        let is_it = |n: &HeaderName| name.eq_ignore_ascii_case(n.as_str());
        self.remove.iter().any(is_it) || self.set.iter().any(|line| is_it(&line.name))
    }

    /// Whether it matters that a line of this name is there.
    pub fn asks_for(&self, name: &str) -> Option<usize> {
        let mut lines = self.add_if_absent.iter();
        lines.position(|line| name.eq_ignore_ascii_case(line.name.as_str()))
    }

    /// The lines to be added after those that go are gone. `is_there` tells of the places that
    /// [`Self::asks_for`] gave whether such a line stays.
    pub fn added(&self, is_there: impl Fn(usize) -> bool) -> impl Iterator<Item = &Line> {
        let is_set = |line: &Line| self.set.iter().any(|set| set.name == line.name);
        let absent = self.add_if_absent.iter().enumerate();
        let absent = absent.filter(move |(place, line)| !is_there(*place) && !is_set(line));
        self.set
            .iter()
            .chain(absent.map(|(_, line)| line))
            .chain(&self.add)
    }
}

fn lines(written: &BTreeMap<String, String>) -> Box<[Line]> {
    let line = |(name, value): (&String, &String)| {
        Some(Line {
            name: HeaderName::try_from(name.as_str()).ok()?,
            value: HeaderValue::try_from(value.as_str()).ok()?,
            written: name.as_str().into(),
        })
    };
    // What was checked with the rest of the configuration is not missing here.
    written.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_before_others_come() {
        let edits: outrigger_config::HeaderEdits = serde_json::from_str(
            r#"{ "remove": ["X-Gone"], "set": { "x-set": "new" },
                 "add_if_absent": { "x-there": "no", "x-set": "no", "x-gone": "again" },
                 "add": { "X-List": "b" } }"#,
        )
        .unwrap();
        let edits = HeaderEdits::compile(&edits).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-gone", "1"),
            ("x-set", "1"),
            ("x-set", "2"),
            ("x-there", "yes"),
            ("x-list", "a"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        edits.apply(&mut headers);
        let all = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .map(|v| v.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(all("x-gone"), ["again"]);
        assert_eq!(all("x-set"), ["new"]);
        assert_eq!(all("x-there"), ["yes"]);
        assert_eq!(all("x-list"), ["a", "b"]);
        assert!(
            edits.takes_out("X-SET") && edits.takes_out("x-gone") && !edits.takes_out("x-list")
        );
        let there = edits.asks_for("X-There");
        let added: Vec<_> = edits
            .added(|place| Some(place) == there)
            .map(|l| &*l.written)
            .collect();
        assert_eq!(added, ["x-set", "x-gone", "X-List"]);
    }

    #[test]
    fn nothing_written_is_nothing_to_do() {
        assert!(HeaderEdits::compile(&outrigger_config::HeaderEdits::default()).is_none());
    }
}
