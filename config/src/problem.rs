//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// Columns of a line that are shown around a problem.
const SHOWN_COLUMNS: usize = 120;

/// A place in a text: line and column from 1, and the number of characters meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Place {
    pub line: u32,
    pub column: u32,
    #[serde(skip)]
    pub width: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but most likely does not do what was meant.
    Warning,
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Problem {
    pub severity: Severity,
    /// Where the text shows it; none for the file as a whole.
    #[serde(flatten)]
    pub at: Option<Place>,
    /// The key's path, such as `clusters[3].endpoints[0].address`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub fix: String,
    /// The line of the text.
    #[serde(skip)]
    pub line: Option<Box<str>>,
    /// Of what is wrong within a value: the value, and the characters before it there.
    #[serde(skip)]
    pub within: Option<Box<(String, usize)>>,
}

impl Problem {
    /// From a message of the form `what is wrong; what to do about it`.
    pub fn error(message: String) -> Self {
        let (message, fix) = match message.split_once("; ") {
            Some((message, fix)) => (message.to_owned(), fix.to_owned()),
            None => (message, String::new()),
        };
        Self {
            severity: Severity::Error,
            at: None,
            path: String::new(),
            message,
            fix,
            line: None,
            within: None,
        }
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Moves the place from the beginning of a value to what is wrong within it, unless the value is
    /// written over several lines or with escapes, so that its characters are not where they stand.
    pub(crate) fn narrow(&mut self) {
        let (Some(within), Some(at), Some(line)) = (&self.within, &mut self.at, &self.line) else {
            return;
        };
        let (value, within) = &**within;
        let rest: String = line.chars().skip(at.column as usize - 1).collect();
        let quote = usize::from(rest.starts_with(['"', '\'']));
        if rest
            .chars()
            .skip(quote)
            .take(value.chars().count())
            .eq(value.chars())
        {
            at.column += (quote + within) as u32;
            at.width = 1;
        }
    }

    /// The line with a caret under what is meant, each line ending in a line feed; empty without a
    /// place.
    pub fn snippet(&self) -> String {
        let (Some(at), Some(line)) = (self.at, &self.line) else {
            return String::new();
        };
        let before = at.column as usize - 1;
        let skipped = before.saturating_sub(SHOWN_COLUMNS / 2);
        // A tab or control character would move the caret, or the terminal's cursor.
        let shown: String = line
            .chars()
            .skip(skipped)
            .take(SHOWN_COLUMNS)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let room = shown.chars().count().saturating_sub(before - skipped);
        let carets = "^".repeat((at.width as usize).clamp(1, room.max(1)));
        let number = at.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(before - skipped);
        format!("{margin} |\n{number} | {shown}\n{margin} | {indent}{carets}\n")
    }
}

/// On one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.at {
            write!(f, "line {}, column {}: ", at.line, at.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix)?;
        }
        Ok(())
    }
}

/// The name of `names` that was most likely meant by `written`.
pub(crate) fn meant<'n>(
    written: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let written = written.to_lowercase().replace('-', "_");
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&written, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_what_is_meant() {
        let problem = Problem {
            at: Some(Place {
                line: 7,
                column: 4,
                width: 3,
            }),
            line: Some("a: bad".into()),
            ..Problem::error("it is bad; write good".into())
        };
        assert_eq!(problem.snippet(), "  |\n7 | a: bad\n  |    ^^^\n");
        assert_eq!(
            problem.to_string(),
            "line 7, column 4: it is bad; write good"
        );
    }

    #[test]
    fn a_typo_is_told_from_another_word() {
        let names = ["max_connections", "max_headers"];
        assert_eq!(meant("max_conections", names), Some("max_connections"));
        assert_eq!(meant("Max-Headers", names), Some("max_headers"));
        assert_eq!(meant("timeout", names), None);
    }
}
