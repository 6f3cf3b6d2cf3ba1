//! `proxyctl top`: where traffic goes, now.

use std::{
    io,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use outrigger_config::{Span, control::Traffic};
use outrigger_iptables::Refusal;
use serde_json::json;

use crate::{
    install_rules::finish,
    settings::Instance,
    status::elsewhere,
    terminal::{Key, Screen},
    traffic::{Column, Table},
};

/// Show the destinations that connections and requests go to, now
///
/// On a terminal a table that is drawn anew every interval: q quits, up and down scroll, left and right
/// choose the column that it is sorted by. Elsewhere one table, of one interval.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    instance: Instance,
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Span,
    /// The column to sort by, the most first
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t = Column::Requests)]
    sort: Column,
    /// Print one interval's table as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Root and the proxy's own user may ask. Bytes are counted when a request or connection ends.

Examples:
  sudo proxyctl top
  sudo proxyctl top --sort failed --interval 5s
  sudo proxyctl top --json | jq '.destinations[0]'

Exit codes:
  0  shown
  1  no proxy runs there; or it does not answer, or not this user
  2  the command line or the configuration is wrong";

pub(crate) fn run(args: Args) -> ExitCode {
    let port = match args.instance.port(args.json) {
        Ok(port) => port,
        Err(code) => return code,
    };
    let screen = match Screen::open() {
        _ if args.json => None,
        Ok(screen) => screen,
        Err(error) => {
            eprintln!("proxyctl top: the terminal cannot be set: {error}");
            None
        }
    };
    if let Some(screen) = screen {
        return match (Live {
            port,
            args,
            screen,
            first: 0,
        })
        .run()
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("proxyctl top: the terminal: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let looked = once(port, args.interval.0);
    let is_there = matches!(looked, Ok(Some(_)));
    let told = finish(
        looked,
        args.json,
        |looked| match looked {
            None => {
                println!("no proxy runs on port {port}");
                println!("  {}", elsewhere("top", port));
            }
            Some((table, traffic)) => {
                let mut table = table.clone();
                table.sort(args.sort);
                println!("{}", summary(traffic));
                for line in table.lines(Some(args.sort), 0, usize::MAX) {
                    println!("{line}");
                }
                if table.rows.is_empty() {
                    println!(
                        "no connection lives, and no request ended within {}",
                        args.interval
                    );
                }
            }
        },
        |looked| match looked {
            None => json!({
                "result": "no proxy",
                "other_ports": outrigger_iptables::other_ports(port),
            }),
            Some((table, traffic)) => {
                let mut table = table.clone();
                table.sort(args.sort);
                json!({
                    "result": "shown",
                    "interval_seconds": args.interval.0.as_secs_f64(),
                    "live_connections": traffic.live_connections,
                    "max_connections": traffic.max_connections,
                    "configuration": traffic.configuration,
                    "destinations": table.as_json(usize::MAX),
                })
            }
        },
    );
    if is_there { told } else { ExitCode::FAILURE }
}

/// Two looks and what came between them.
fn once(port: u16, interval: Duration) -> Result<Option<(Table, Traffic)>, Refusal> {
    let Some(before) = outrigger_iptables::traffic(port)? else {
        return Ok(None);
    };
    let began = Instant::now();
    thread::sleep(interval);
    let now = outrigger_iptables::traffic(port)?;
    Ok(now.map(|now| (Table::between(&before, &now, began.elapsed()), now)))
}

/// The view on a terminal.
struct Live {
    port: u16,
    args: Args,
    screen: Screen,
    /// The first row that is shown.
    first: usize,
}

impl Live {
    fn run(mut self) -> io::Result<()> {
        let mut before: Option<(Instant, Traffic)> = None;
        let mut shown = vec!["looking …".to_owned()];
        let mut table = None;
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                next = Instant::now() + self.args.interval.0;
                let at = Instant::now();
                match outrigger_iptables::traffic(self.port) {
                    Ok(Some(traffic)) => {
                        let text = summary(&traffic);
                        table = Some((
                            text,
                            match &before {
                                Some((then, before)) => {
                                    Table::between(before, &traffic, at.duration_since(*then))
                                }
                                None => Table::totals(&traffic),
                            },
                        ));
                        // Rates are wanted; the first totals only bridge the first interval.
                        before = Some((at, traffic));
                    }
                    Ok(None) => {
                        (table, before) = (None, None);
                        shown = vec![
                            format!("no proxy runs on port {}", self.port),
                            elsewhere("top", self.port),
                        ];
                    }
                    Err(refusal) => {
                        (table, before) = (None, None);
                        shown = vec![refusal.to_string(), refusal.advice()];
                    }
                }
            }
            if let Some((text, table)) = &mut table {
                table.sort(self.args.sort);
                shown = self.frame(text, table);
            }
            self.screen.draw(&shown)?;
            match self.screen.key(next)? {
                None => {}
                Some(Key::Quit) => return Ok(()),
                Some(Key::Up) => self.first = self.first.saturating_sub(1),
                Some(Key::Down) => self.first += 1,
                Some(Key::Left) => self.args.sort = self.args.sort.step(-1),
                Some(Key::Right) => self.args.sort = self.args.sort.step(1),
            }
        }
    }

    fn frame(&mut self, text: &str, table: &Table) -> Vec<String> {
        let (_, rows) = self.screen.size();
        let room = rows.saturating_sub(4).max(1);
        self.first = self.first.min(table.rows.len().saturating_sub(room));
        let last = (self.first + room).min(table.rows.len());
        let mut lines = vec![text.to_owned()];
        lines.extend(table.lines(Some(self.args.sort), self.first, room));
        lines.resize(rows.saturating_sub(1).max(lines.len()), String::new());
        lines.push(format!(
            "{} to {last} of {} in use; q quits, arrows scroll and sort",
            (self.first + 1).min(last),
            table.rows.len()
        ));
        lines
    }
}

fn summary(traffic: &Traffic) -> String {
    format!(
        "{} of at most {} connections live; configuration generation {}{}",
        traffic.live_connections,
        traffic.max_connections,
        traffic.configuration.generation,
        if traffic.configuration.is_latest_good {
            ""
        } else {
            ", and a newer file was refused"
        }
    )
}

/// Not so short that the proxy does little else but answer.
pub(crate) fn interval(text: &str) -> Result<Span, String> {
    const SHORTEST: Duration = Duration::from_millis(100);
    let interval: Span = text.parse()?;
    if interval.0 < SHORTEST {
        return Err("it is too short; 100ms is the shortest".into());
    }
    Ok(interval)
}
