//! What a command prints on standard output. std's `println!` panics where that cannot be written:
//! a reader that has seen enough (`| head`) would end in a backtrace.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

static IS_LOST: AtomicBool = AtomicBool::new(false);
/// The reader has left.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// As std's, but never panics.
macro_rules! println {
    ($($argument:tt)*) => { $crate::output::line(format_args!($($argument)*)) };
}

pub(crate) fn line(text: fmt::Arguments<'_>) {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => {}
        // The reader left by its own choice.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            IS_OVER.store(true, Ordering::Relaxed);
        }
        Err(error) => {
            if !IS_LOST.swap(true, Ordering::Relaxed) {
                eprintln!(
                    "proxyctl: the result could not be written to standard output: {error}; what the command was to do it has done"
                );
            }
        }
    }
}

/// `1 rule`, `2 rules`.
pub(crate) fn count(number: impl Display + From<u8> + PartialEq, of: &str) -> String {
    let plural = if number == 1.into() { "" } else { "s" };
    format!("{number} {of}{plural}")
}

/// Whether somebody still reads, for a command that goes on and on.
pub(crate) fn is_wanted() -> bool {
    !IS_OVER.load(Ordering::Relaxed) && !IS_LOST.load(Ordering::Relaxed)
}

/// The exit code of a command that ends with `code`: no success where its result was lost.
pub(crate) fn judge(code: ExitCode) -> ExitCode {
    if code == ExitCode::SUCCESS && IS_LOST.load(Ordering::Relaxed) {
        return ExitCode::FAILURE;
    }
    code
}
