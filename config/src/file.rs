//! From a file's text to settings, or to every problem found in it.

use std::{fmt, io, path::Path};

use crate::Settings;

/// One thing wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line and column, both from 1, where the text shows it.
    pub at: Option<(u64, u64)>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some((line, column)) => write!(f, "line {line}, column {column}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Reads and checks the file at `path`.
///
/// # Errors
/// Every problem found; a file that cannot be read is one problem without a position.
pub fn read(path: &Path) -> Result<Settings, Vec<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => {
                "; check the path, or leave --config out to use the defaults"
            }
            io::ErrorKind::PermissionDenied => {
                "; make it readable by the user that runs this command"
            }
            io::ErrorKind::IsADirectory => "; name a file in it",
            io::ErrorKind::InvalidData => "; it is no text file: write YAML in UTF-8",
            _ => "",
        };
        vec![Problem {
            at: None,
            message: format!("cannot read it: {error}{hint}"),
        }]
    })?;
    parse(&text)
}

/// Checks `text`; an empty text means all defaults.
///
/// # Errors
/// The first problem of form (YAML, types, unknown keys), or else every value that is wrong.
pub fn parse(text: &str) -> Result<Settings, Vec<Problem>> {
    let is_blank = text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    });
    if is_blank {
        return Ok(Settings::default());
    }
    let settings: Settings = serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let at = error.location().map(|l| (l.line(), l.column()));
        // The position is told apart, so the library's own "at line …" would only repeat it.
        let full = error.to_string();
        let message = full
            .rsplit_once(" at line ")
            .map_or(full.as_str(), |(m, _)| m);
        vec![Problem {
            at,
            message: plain(message.trim_end_matches(':')),
        }]
    })?;
    let problems: Vec<_> = settings
        .problems()
        .into_iter()
        .map(|(key, message)| Problem {
            at: locate(text, key),
            message: format!("{key}: {message}"),
        })
        .collect();
    if problems.is_empty() {
        Ok(settings)
    } else {
        Err(problems)
    }
}

/// The words of parsers, which know types only, with what to write instead.
fn plain(message: &str) -> String {
    let write = match message {
        "expected sequence start" => "a list, such as `[a, b]`",
        "expected mapping start" => "keys with values, such as `key: value`",
        "invalid socket address syntax" => {
            "an address and port, such as `127.0.0.1:15001` or `\"[::1]:15001\"`"
        }
        "invalid IP address syntax" => "a network, such as `10.0.0.0/8` or `192.0.2.1/32`",
        "invalid u64" | "invalid u32" | "invalid usize" => "a whole number, not below 0",
        _ if message.ends_with("expected a nonzero usize") => "a whole number from 1 on",
        _ => return message.to_owned(),
    };
    format!("{message}; write {write}")
}

/// Where a dotted key stands in block-style YAML; `None` for flow style, where the message's key
/// path has to do.
fn locate(text: &str, key: &str) -> Option<(u64, u64)> {
    let mut path = key.split('.');
    let mut wanted = path.next()?;
    let mut found = None;
    let mut least_indent = 0;
    for (line, number) in text.lines().zip(1..) {
        let body = line.trim_start();
        let indent = line.len() - body.len();
        let starts_key = body
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.starts_with(':'));
        if indent >= least_indent && starts_key {
            found = Some((number, indent as u64 + 1));
            match path.next() {
                Some(next) => wanted = next,
                None => return found,
            }
            least_indent = indent + 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_written_means_every_default() {
        for text in ["", "# only a comment\n", "---\n"] {
            assert_eq!(parse(text), Ok(Settings::default()), "{text:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_position() {
        let problems =
            parse("listen: [\"127.0.0.1:15001\"]\nlimits:\n  max_conections: 5\n").unwrap_err();
        assert_eq!(problems[0].at, Some((3, 3)), "{problems:?}");
        assert!(
            problems[0].message.contains("max_conections"),
            "{problems:?}"
        );
    }

    #[test]
    fn every_bad_value_is_told_at_once_with_its_position() {
        let problems =
            parse("listen: [\"0.0.0.0:15001\"]\ncapture:\n  proxy_uid: 65534\n").unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(problems[0].at, Some((1, 1)));
        assert_eq!(problems[1].at, Some((3, 3)));
    }

    #[test]
    fn a_lease_that_no_kernel_can_keep_is_refused() {
        for lease in ["300ms", "450ms", "61s", "1s 1ns"] {
            let problems = parse(&format!("capture:\n  lease: {lease}\n")).unwrap_err();
            assert_eq!(problems[0].at, Some((2, 3)), "{lease}: {problems:?}");
        }
        for lease in ["400ms", "2s", "1m"] {
            assert!(parse(&format!("capture:\n  lease: {lease}\n")).is_ok());
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_says_what_to_write() {
        for (text, write) in [
            ("listen: 5", "a list"),
            ("listen: [nowhere]", "an address and port"),
            ("admin: 127.0.0.1", "an address and port"),
            ("access_log: stdout", "keys with values"),
            ("workers: 0", "from 1 on"),
            ("workers: -1", "a whole number"),
            ("capture: { proxy_uid: root }", "a whole number"),
            ("capture: { exclude: { cidrs: [10.0.0.1] } }", "a network"),
        ] {
            let problems = parse(text).unwrap_err();
            let message = &problems[0].message;
            let is_told = message
                .rsplit_once("; write ")
                .is_some_and(|(_, told)| told.contains(write));
            assert!(is_told, "{text}: {message}");
        }
    }

    #[test]
    fn the_admin_listener_has_a_port_of_its_own() {
        let problems = parse("admin: 127.0.0.1:15001\n").unwrap_err();
        assert_eq!(problems[0].at, Some((1, 1)), "{problems:?}");
    }

    #[test]
    fn a_bad_duration_says_what_to_write() {
        let problems = parse("timeouts:\n  drain: 5\n").unwrap_err();
        assert!(problems[0].message.contains("unit"), "{problems:?}");
    }
}
