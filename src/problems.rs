//! Problems of a configuration as a person reads them.

use std::path::Path;

use outrigger_config::{Problem, Severity};

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

/// With the line it is about and a caret; coloured if asked.
pub(crate) fn in_full(path: &Path, problem: &Problem, with_colours: bool) -> String {
    let (word, colour) = match problem.severity {
        Severity::Error => ("error", "31"),
        Severity::Warning => ("warning", "33"),
    };
    let paint = |code: &str, text: &str| match with_colours {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
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
        paint(&format!("1;{colour}"), &format!("{word}:")),
        problem.message,
        path.display(),
        problem.snippet(),
    );
    if !problem.fix.is_empty() {
        text += &format!(" {} {}\n", paint("1;36", "fix:"), problem.fix);
    }
    text
}
