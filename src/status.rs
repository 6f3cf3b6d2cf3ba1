//! `proxyctl status`: whether capture is on, by whom, since when, and how much goes through it.

mod told;

pub(crate) use self::told::elsewhere;

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use outrigger_config::{
    Span,
    control::{Status, Traffic},
};
use outrigger_iptables::Refusal;

use crate::{install_rules::finish, output, settings::Instance, terminal, top, traffic::Table};

/// Tell whether connections are captured, by which proxy, and since when
///
/// The proxy itself is asked, over its control socket: it knows whether its rules are at work, which
/// connections went past them, who changed them, and what went where. Other proxies here are asked whether
/// their captures overlap with this one's.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    instance: Instance,
    /// Tell it again and again, every 2 s or as often as is said; traffic is then what came in between
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "2s",
        value_parser = top::interval
    )]
    watch: Option<Span>,
    /// Print the result as one JSON object, with --watch one a line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Root and the proxy's own user may ask.

Examples:
  sudo proxyctl status
  sudo proxyctl status --port 15001 --json
  sudo proxyctl status --watch 5s

Exit codes:
  0  connections are captured
  1  they are not: direct, lapsed, stale or given up; or the proxy does not answer, or not this user
  2  the command line or the configuration is wrong";

/// What the proxy told.
struct Look {
    at: Instant,
    /// None: no proxy runs there.
    status: Option<Status>,
    /// Or why there is none.
    traffic: Result<Traffic, String>,
    /// The traffic of an earlier look, and how much earlier.
    before: Option<(Traffic, Duration)>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let port = match args.instance.port(args.json) {
        Ok(port) => port,
        Err(code) => return code,
    };
    let Some(interval) = args.watch else {
        return tell(port, &Look::now(port), args.json);
    };
    let mut before: Option<Look> = None;
    loop {
        let mut look = Look::now(port);
        if let (Ok(look), Some(before)) = (&mut look, before.take()) {
            look.compare(before);
        }
        if !args.json {
            terminal::clear();
        }
        let code = tell(port, &look, args.json);
        if !output::is_wanted() {
            return code;
        }
        before = look.ok();
        thread::sleep(interval.0);
    }
}

fn tell(port: u16, look: &Result<Look, Refusal>, as_json: bool) -> ExitCode {
    let is_captured = look.as_ref().is_ok_and(Look::is_captured);
    let told = finish(
        look.as_ref(),
        as_json,
        |look| told::describe(port, look),
        |look| told::as_json(port, look),
    );
    if is_captured { told } else { ExitCode::FAILURE }
}

impl Look {
    fn now(port: u16) -> Result<Self, Refusal> {
        let status = outrigger_iptables::status(port)?;
        let traffic = match &status {
            None => Err("no proxy runs".into()),
            Some(_) => match outrigger_iptables::traffic(port) {
                Ok(Some(traffic)) => Ok(traffic),
                Ok(None) => Err("the proxy has just ended".into()),
                Err(refusal) => Err(refusal.to_string()),
            },
        };
        Ok(Self {
            at: Instant::now(),
            status,
            traffic,
            before: None,
        })
    }

    /// From now on it tells what came since `before`, if both saw the same process.
    fn compare(&mut self, before: Self) {
        let instance = |look: &Self| look.status.as_ref().map(|s| s.proxy.instance.clone());
        if instance(self) == instance(&before)
            && let Ok(traffic) = before.traffic
        {
            self.before = Some((traffic, self.at.duration_since(before.at)));
        }
    }

    fn table(&self) -> Option<Table> {
        let now = self.traffic.as_ref().ok()?;
        Some(match &self.before {
            Some((before, span)) => Table::between(before, now, *span),
            None => Table::totals(now),
        })
    }

    /// What time the table is about; none: all of the proxy's.
    fn seconds(&self) -> Option<f64> {
        let (_, span) = self.before.as_ref()?;
        Some((span.as_secs_f64() * 10.0).round() / 10.0)
    }

    fn period(&self) -> String {
        match self.seconds() {
            Some(seconds) => format!("in the last {seconds} s"),
            None => "since the proxy started".into(),
        }
    }

    fn is_captured(&self) -> bool {
        let status = self.status.as_ref();
        status.is_some_and(|s| s.is_captured && told::scope_problem(s).is_none())
    }
}
