//! Headers that a format names, kept from the moment at which they pass to the record. Where no
//! format names one, nothing is looked for and nothing kept.

use std::sync::Arc;

use outrigger_config::HeaderOf;

/// Bytes of one value that are kept: what a line shows at most.
const MAX_VALUE: usize = 2048;

/// What formats ask for beyond what every record has. Names in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub(super) request: Vec<Box<str>>,
    pub(super) response: Vec<Box<str>>,
    pub(super) trailer: Vec<Box<str>>,
    /// Whether the moment of the answer's first byte is asked for.
    pub(super) answer_time: bool,
}

impl Wanted {
    pub(super) fn add(&mut self, of: HeaderOf, name: &str) {
        let names = match of {
            HeaderOf::Request => &mut self.request,
            HeaderOf::Response => &mut self.response,
            HeaderOf::Trailer => &mut self.trailer,
        };
        // Pseudo headers stand in the record.
        if !name.starts_with(':') && !names.iter().any(|known| **known == *name) {
            names.push(name.into());
        }
    }

    pub fn wants_trailers(&self) -> bool {
        !self.trailer.is_empty()
    }

    pub fn wants_answer_time(&self) -> bool {
        self.answer_time
    }

    fn names(&self, of: HeaderOf) -> &[Box<str>] {
        match of {
            HeaderOf::Request => &self.request,
            HeaderOf::Response => &self.response,
            HeaderOf::Trailer => &self.trailer,
        }
    }
}

/// The values of one request, as far as they have passed.
#[derive(Debug)]
pub struct Captured {
    wanted: Arc<Wanted>,
    values: Vec<(HeaderOf, usize, Box<[u8]>)>,
}

impl Captured {
    pub fn new(wanted: Arc<Wanted>) -> Self {
        Self {
            wanted,
            values: Vec::new(),
        }
    }

    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Keeps what is wanted; `each` shows the values of the header that it is asked for. What was
    /// kept of the same kind before gives way: it was another attempt's.
    pub fn keep(&mut self, of: HeaderOf, each: impl Fn(&str, &mut dyn FnMut(&[u8]))) {
        self.values.retain(|(kept, ..)| *kept != of);
        for (index, name) in self.wanted.names(of).iter().enumerate() {
            let mut joined: Option<Vec<u8>> = None;
            each(name, &mut |value| match &mut joined {
                None => joined = Some(value[..value.len().min(MAX_VALUE)].to_vec()),
                // As if it had been one line (RFC 9110, section 5.2).
                Some(joined) => {
                    joined.extend_from_slice(b",");
                    let room = MAX_VALUE.saturating_sub(joined.len());
                    joined.extend_from_slice(&value[..value.len().min(room)]);
                }
            });
            if let Some(value) = joined {
                self.values.push((of, index, value.into()));
            }
        }
    }

    pub(super) fn value(&self, of: HeaderOf, name: &str) -> Option<&[u8]> {
        let index = (self.wanted.names(of).iter()).position(|wanted| **wanted == *name)?;
        let value = (self.values.iter()).find(|(kept, at, _)| *kept == of && *at == index)?;
        Some(&value.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(names: &[&str]) -> Captured {
        let mut wanted = Wanted::default();
        for name in names {
            wanted.add(HeaderOf::Response, name);
        }
        Captured::new(Arc::new(wanted))
    }

    #[test]
    fn only_what_is_named_is_kept_and_lines_of_one_name_are_joined() {
        let mut captured = captured(&["x-a", "x-b", ":status"]);
        let lines = [("x-a", "1"), ("x-c", "no"), ("x-a", "2")];
        captured.keep(HeaderOf::Response, |name, show| {
            assert!(!name.starts_with(':'));
            for (_, value) in lines.iter().filter(|(line, _)| *line == name) {
                show(value.as_bytes());
            }
        });
        assert_eq!(captured.value(HeaderOf::Response, "x-a"), Some(&b"1,2"[..]));
        assert_eq!(captured.value(HeaderOf::Response, "x-b"), None);
        assert_eq!(captured.value(HeaderOf::Response, "x-c"), None);
        assert_eq!(captured.value(HeaderOf::Request, "x-a"), None);
    }

    #[test]
    fn a_later_attempts_answer_takes_the_place_of_the_first_and_the_bound_holds() {
        let mut captured = captured(&["x-a"]);
        captured.keep(HeaderOf::Response, |_, show| show(&[b'a'; 100_000]));
        let kept = captured.value(HeaderOf::Response, "x-a").map(<[u8]>::len);
        assert_eq!(kept, Some(MAX_VALUE));
        captured.keep(HeaderOf::Response, |_, _| {});
        assert_eq!(captured.value(HeaderOf::Response, "x-a"), None);
    }
}
