//! This program's own log, on stderr, by way of a thread: a stderr that nobody reads must not hold
//! up an event loop that has something to say.

use std::{
    fmt,
    io::{self, IsTerminal},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use outrigger_proxy::{
    admin::Levels,
    observe::{LogTarget, LogThread},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::MakeWriter};

/// How long the end waits for stderr to take what was said last.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What is logged: `--log-level`, or else RUST_LOG, or else `info`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn filter(level: Option<&str>) -> Result<EnvFilter, String> {
    let (source, directives) = match level {
        Some(level) => ("--log-level", level.to_owned()),
        None => match std::env::var("RUST_LOG") {
            Ok(directives) if !directives.is_empty() => ("RUST_LOG", directives),
            _ => ("the default", "info".to_owned()),
        },
    };
    let refuse = |why: &str| {
        format!(
            "{source} `{directives}`: {why}; write error, warn, info, debug or trace, for all or by module (`info,outrigger_proxy::accept=debug`)"
        )
    };
    if let Some(word) = misspelt_level(&directives) {
        return Err(refuse(&format!("`{word}` is no level")));
    }
    EnvFilter::try_new(&directives).map_err(|error| refuse(&error.to_string()))
}

/// A word alone that is no level. It would be taken for a module, and everything else fall silent.
fn misspelt_level(directives: &str) -> Option<&str> {
    let mut words = directives.split(',').map(str::trim);
    words.find(|word| {
        let stands_alone = !word.is_empty() && !word.contains(['=', '[', ':']);
        stands_alone && word.parse::<LevelFilter>().is_err()
    })
}

/// Begins to log; what is logged is written until the returned log is closed.
///
/// # Errors
/// When the thread cannot be had.
pub(crate) fn start(filter: EnvFilter, format: LogFormat) -> io::Result<Log> {
    let log = Log {
        thread: Arc::new(LogThread::start(
            "log",
            LogTarget::Stderr,
            1,
            Duration::ZERO,
            Arc::default(),
        )?),
        told: Arc::default(),
        filter: Arc::new(Filter {
            shown: Mutex::default(),
            set: Box::new(|_| Err("the log has not begun".into())),
        }),
    };
    let wants_colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let shown = filter.to_string();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone());
    // Last, for the handle is of the whole of what was built before.
    let set: Set = match format {
        LogFormat::Text => {
            let subscriber = subscriber.with_ansi(wants_colour);
            let subscriber = subscriber.with_env_filter(filter).with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
        }
        LogFormat::Json => {
            let subscriber = subscriber.json().flatten_event(true);
            let subscriber = subscriber.with_env_filter(filter).with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
        }
    };
    let filter = Arc::new(Filter {
        shown: Mutex::new(shown),
        set,
    });
    Ok(Log { filter, ..log })
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    thread: Arc<LogThread>,
    /// Lost lines that have been told of.
    told: Arc<AtomicU64>,
    filter: Arc<Filter>,
}

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// What is logged now, and what changes it.
struct Filter {
    shown: Mutex<String>,
    set: Set,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.shown).finish()
    }
}

impl Levels for Log {
    fn filter(&self) -> String {
        let shown = self.filter.shown.lock();
        shown.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, level: &str) -> Result<(), String> {
        let filter = filter(Some(level))?;
        let text = filter.to_string();
        (self.filter.set)(filter)?;
        let shown = self.filter.shown.lock();
        *shown.unwrap_or_else(PoisonError::into_inner) = text;
        Ok(())
    }
}

impl Log {
    /// What changes the filter.
    pub(crate) fn levels(&self) -> Box<dyn Levels> {
        Box::new(self.clone())
    }

    /// Writes what is left.
    pub(crate) fn close(&self) {
        self.thread.close(PATIENCE);
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl io::Write for Log {
    /// Takes a whole line, as tracing-subscriber gives it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let dropped = self.thread.dropped();
        self.thread.push(0, |out| {
            let untold = dropped - self.told.swap(dropped, Ordering::Relaxed).min(dropped);
            if untold > 0 {
                out.extend_from_slice(
                    format!("{untold} log lines lost: stderr was not read\n").as_bytes(),
                );
            }
            out.extend_from_slice(line);
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
