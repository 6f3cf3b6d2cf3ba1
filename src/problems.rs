//! Problems of a configuration as a person reads them.

use std::path::Path;

use outrigger_config::{Problem, Severity};

use crate::terminal::{Colour, paint};

/// As compilers do, so that editors and terminals lead there.
pub(crate) fn one_line(path: &Path, problem: &Problem) -> String {
    let name = path.display();
    let place = match problem.at {
        Some(at) => format!("{name}:{}:{}", at.line, at.column),
        None => name.to_string(),
    };
    let unplaced = Problem {
        at: None,
        ..problem.clone()
    };
    format!("{place}: {unplaced}")
}

/// With the line it is about and a caret, for standard output.
pub(crate) fn in_full(path: &Path, problem: &Problem) -> String {
    let (word, colour) = match problem.severity {
        Severity::Error => ("error", Colour::Red),
        Severity::Warning => ("warning", Colour::Yellow),
    };
    let place = problem
        .at
        .map_or(String::new(), |at| format!(":{}:{}", at.line, at.column));
    let key = match problem.path.as_str() {
        "" => String::new(),
        path => format!("{path}: "),
    };
    let mut text = format!(
        "{} {key}{}\n --> {}{place}\n{}",
        paint(colour, &format!("{word}:")),
        problem.message,
        path.display(),
        problem.snippet(),
    );
    if !problem.fix.is_empty() {
        text += &format!(" {} {}\n", paint(Colour::Cyan, "fix:"), problem.fix);
    }
    text
}
