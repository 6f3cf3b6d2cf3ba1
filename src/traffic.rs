//! A proxy's traffic by destination, as a table or as JSON: in all, or between two looks.

use std::{cmp::Ordering, collections::HashMap, net::SocketAddr, time::Duration};

use outrigger_config::control::{Counts, DestinationTraffic, Traffic};
use serde_json::{Value, json};

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Column {
    Requests,
    Failed,
    /// Answers of 5xx
    Errors,
    Received,
    Sent,
    P50,
    P99,
    Live,
    Destination,
}

/// One destination, or those that the proxy has forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    destination: Option<SocketAddr>,
    live: u64,
    counts: Counts,
    p50: Option<f64>,
    p99: Option<f64>,
}

/// What is shown of a proxy's traffic.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
    /// Between which two looks; none: since the proxy started.
    span: Option<Duration>,
}

impl Column {
    /// In the order in which they stand.
    const ALL: [Self; 9] = [
        Self::Destination,
        Self::Live,
        Self::Requests,
        Self::Failed,
        Self::Errors,
        Self::Received,
        Self::Sent,
        Self::P50,
        Self::P99,
    ];

    pub(crate) fn step(self, by: isize) -> Self {
        let count = Self::ALL.len() as isize;
        let at = Self::ALL.iter().position(|c| *c == self).unwrap_or(0) as isize;
        Self::ALL[(at + by).rem_euclid(count) as usize]
    }

    fn title(self, is_rate: bool) -> &'static str {
        match self {
            Self::Destination => "DESTINATION",
            Self::Live => "LIVE",
            Self::Requests if is_rate => "REQ/s",
            Self::Requests => "REQUESTS",
            Self::Failed if is_rate => "FAILED/s",
            Self::Failed => "FAILED",
            Self::Errors if is_rate => "5XX/s",
            Self::Errors => "5XX",
            Self::Received if is_rate => "RECV B/s",
            Self::Received => "RECV B",
            Self::Sent if is_rate => "SENT B/s",
            Self::Sent => "SENT B",
            Self::P50 => "P50 ms",
            Self::P99 => "P99 ms",
        }
    }
}

impl Table {
    /// Everything since the proxy started.
    pub(crate) fn totals(traffic: &Traffic) -> Self {
        let bounds = &traffic.latency_bounds;
        let rows = traffic.destinations.iter().map(|of| Row::of(of, bounds));
        let mut rows: Vec<_> = rows.collect();
        if traffic.forgotten.requests > 0 {
            rows.push(Row::new(None, 0, traffic.forgotten.clone(), bounds));
        }
        Self { rows, span: None }
    }

    /// What came between `before` and `now`, which was `span` later. Where nothing came and nothing
    /// lives, there is no row.
    pub(crate) fn between(before: &Traffic, now: &Traffic, span: Duration) -> Self {
        let known: HashMap<_, _> = before
            .destinations
            .iter()
            .map(|of| (of.destination, &of.counts))
            .collect();
        let rows = now.destinations.iter().map(|of| {
            let counts = match known.get(&of.destination) {
                Some(before) => of.counts.since(before),
                None => of.counts.clone(),
            };
            Row::new(Some(of.destination), of.live, counts, &now.latency_bounds)
        });
        Self {
            rows: rows
                .filter(|r| r.live > 0 || r.counts.requests > 0)
                .collect(),
            span: Some(span),
        }
    }

    /// The most of `column` first; addresses in their order.
    pub(crate) fn sort(&mut self, column: Column) {
        let float = |a: Option<f64>, b: Option<f64>| b.partial_cmp(&a).unwrap_or(Ordering::Equal);
        self.rows.sort_by(|a, b| {
            let order = match column {
                Column::Destination => Ordering::Equal,
                Column::Live => b.live.cmp(&a.live),
                Column::Requests => b.counts.requests.cmp(&a.counts.requests),
                Column::Failed => b.counts.failures.cmp(&a.counts.failures),
                Column::Errors => b.counts.server_errors.cmp(&a.counts.server_errors),
                Column::Received => b.counts.received_bytes.cmp(&a.counts.received_bytes),
                Column::Sent => b.counts.sent_bytes.cmp(&a.counts.sent_bytes),
                Column::P50 => float(a.p50, b.p50),
                Column::P99 => float(a.p99, b.p99),
            };
            order
                .then(a.destination.is_none().cmp(&b.destination.is_none()))
                .then(a.destination.cmp(&b.destination))
        });
    }

    /// A line for the titles, with `marked` marked, and one for each row from `first` on, at most
    /// `most`.
    pub(crate) fn lines(&self, marked: Option<Column>, first: usize, most: usize) -> Vec<String> {
        let titles = Column::ALL.map(|column| {
            let title = column.title(self.span.is_some());
            match marked {
                Some(marked) if marked == column => format!("{title}*"),
                _ => title.to_owned(),
            }
        });
        let shown = self.rows.iter().skip(first).take(most);
        let cells: Vec<_> = std::iter::once(titles)
            .chain(shown.map(|row| Column::ALL.map(|column| self.cell(row, column))))
            .collect();
        let widths: [usize; Column::ALL.len()] = std::array::from_fn(|n| {
            let of_column = cells.iter().map(|row| row[n].len());
            of_column.max().unwrap_or(0)
        });
        let line = |row: &[String; Column::ALL.len()]| {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(widths).skip(1) {
                line += &format!("  {cell:>width$}");
            }
            line
        };
        cells.iter().map(line).collect()
    }

    /// The rows as they are, at most `most`; rates are a second's.
    pub(crate) fn as_json(&self, most: usize) -> Vec<Value> {
        let row = |row: &Row| {
            let counts = &row.counts;
            let mut value = json!({
                "destination": row.name(),
                "live": row.live,
                "requests": counts.requests,
                "failures": counts.failures,
                "server_errors": counts.server_errors,
                "received_bytes": counts.received_bytes,
                "sent_bytes": counts.sent_bytes,
                "latency_ms": { "p50": row.p50, "p99": row.p99 },
            });
            if self.span.is_some() {
                value["requests_per_second"] = json!(self.rate(counts.requests));
                value["failures_per_second"] = json!(self.rate(counts.failures));
            }
            value
        };
        self.rows.iter().take(most).map(row).collect()
    }

    fn cell(&self, row: &Row, column: Column) -> String {
        let counts = &row.counts;
        match column {
            Column::Destination => row.name(),
            Column::Live => row.live.to_string(),
            Column::Requests => self.amount(counts.requests),
            Column::Failed => self.amount(counts.failures),
            Column::Errors => self.amount(counts.server_errors),
            Column::Received => self.amount(counts.received_bytes),
            Column::Sent => self.amount(counts.sent_bytes),
            Column::P50 => milliseconds(row.p50),
            Column::P99 => milliseconds(row.p99),
        }
    }

    fn amount(&self, count: u64) -> String {
        match self.span {
            None => short(count as f64, 0),
            Some(_) => short(self.rate(count), 1),
        }
    }

    /// A second's; the count itself where nothing is said of time.
    fn rate(&self, count: u64) -> f64 {
        let seconds = self.span.map_or(1.0, |span| span.as_secs_f64());
        (count as f64 / seconds * 10.0).round() / 10.0
    }
}

impl Row {
    fn of(of: &DestinationTraffic, bounds: &[f64]) -> Self {
        Self::new(Some(of.destination), of.live, of.counts.clone(), bounds)
    }

    fn new(destination: Option<SocketAddr>, live: u64, counts: Counts, bounds: &[f64]) -> Self {
        let rounded = |part| {
            let quantile = counts.quantile(part, bounds)?;
            Some((quantile * 100.0).round() / 100.0)
        };
        Self {
            destination,
            live,
            p50: rounded(0.5),
            p99: rounded(0.99),
            counts,
        }
    }

    fn name(&self) -> String {
        match self.destination {
            Some(destination) => destination.to_string(),
            None => "(forgotten)".into(),
        }
    }
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| short(value, 1))
}

/// Four digits at most, and a letter for thousands, millions and so on.
fn short(value: f64, decimals: usize) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 9_999.5 {
            let decimals = if unit.is_empty() { decimals } else { 1 };
            let decimals = if value < 999.95 { decimals } else { 0 };
            return format!("{value:.decimals$}{unit}");
        }
        value /= 1_000.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(rows: &[(&str, u64, u64)]) -> Traffic {
        let configuration = outrigger_config::control::ConfigurationState {
            generation: 1,
            applied: 0,
            rejected: 0,
            is_latest_good: true,
        };
        Traffic {
            configuration,
            live_connections: 0,
            max_connections: 100,
            latency_bounds: vec![1.0, 10.0],
            destinations: rows
                .iter()
                .map(|(destination, live, requests)| DestinationTraffic {
                    destination: destination.parse().expect("an address"),
                    live: *live,
                    counts: Counts {
                        requests: *requests,
                        latency: vec![*requests, 0, 0],
                        ..Counts::default()
                    },
                })
                .collect(),
            has_more: false,
            forgotten: Counts::default(),
        }
    }

    #[test]
    fn between_two_looks_only_what_lives_or_was_used_has_a_row() {
        let before = traffic(&[("192.0.2.1:80", 0, 10), ("192.0.2.2:80", 1, 5)]);
        let now = traffic(&[
            ("192.0.2.1:80", 0, 10),
            ("192.0.2.2:80", 1, 5),
            ("192.0.2.3:80", 0, 30),
        ]);
        let mut table = Table::between(&before, &now, Duration::from_secs(2));
        table.sort(Column::Requests);
        let names: Vec<_> = table.rows.iter().map(Row::name).collect();
        assert_eq!(names, ["192.0.2.3:80", "192.0.2.2:80"]);
        assert_eq!(table.cell(&table.rows[0], Column::Requests), "15.0");
        assert_eq!(table.cell(&table.rows[1], Column::P99), "-");
    }

    #[test]
    fn columns_line_up_and_the_one_sorted_by_is_marked() {
        let mut table = Table::totals(&traffic(&[
            ("192.0.2.1:80", 0, 3),
            ("[2001:db8::1]:443", 0, 12_345),
        ]));
        table.sort(Column::Requests);
        let lines = table.lines(Some(Column::Requests), 0, 10);
        assert!(lines[0].contains("REQUESTS*"), "{lines:?}");
        assert!(lines[1].starts_with("[2001:db8::1]:443"), "{lines:?}");
        assert!(lines[1].contains("12.3k"), "{lines:?}");
        assert!(
            lines.iter().all(|line| line.len() == lines[0].len()),
            "{lines:?}"
        );
        assert_eq!(table.lines(None, 1, 1).len(), 2);
    }

    #[test]
    fn numbers_stay_short() {
        for (value, text) in [
            (0.0, "0"),
            (9_999.0, "9999"),
            (10_000.0, "10.0k"),
            (999_960.0, "1000k"),
            (12_345_678.0, "12.3M"),
        ] {
            assert_eq!(short(value, 0), text);
        }
        assert_eq!(short(1.25, 1), "1.2");
    }

    #[test]
    fn stepping_goes_round() {
        assert_eq!(Column::Destination.step(-1), Column::P99);
        assert_eq!(Column::P99.step(1), Column::Destination);
    }
}
