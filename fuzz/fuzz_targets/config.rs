//! Configuration files: whatever is written, it is either settings, which compile and can be written
//! out and read again as the same, or problems that stand on a line of the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::{Checked, Problem, Snapshot, check, parse};

fuzz_target!(|text: &str| {
    let Checked { settings, problems } = check(text);
    let lines = text.lines().count().max(1) + 1;
    for problem in &problems {
        assert!(problem.at.is_none_or(|at| at.line as usize <= lines), "{problem}");
        let _ = problem.snippet();
    }
    assert_eq!(settings.is_none(), problems.iter().any(Problem::is_error));
    if let Some(settings) = settings {
        let written = serde_json::to_string(&settings).expect("plain data is JSON");
        assert_eq!(parse(&written).as_ref(), Ok(&settings));
        Snapshot::compile(settings, None);
    }
});
