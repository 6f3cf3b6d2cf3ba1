//! Metrics that have a series, or several, for each of many things: written some at a time.

use std::{fmt, ops::Range, sync::Arc};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::{
    Format, encode,
    series::{Series, open},
};

/// Things in one piece; of destinations, the histograms take some 200 KiB.
const ROWS_PER_PIECE: usize = 128;

/// A metric with a series, or several, for each row.
#[derive(Debug)]
pub(super) struct Family<R: 'static> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    pub(super) encode: fn(&mut Series<'_, '_>, &R) -> fmt::Result,
}

/// All families of all rows, as pieces of text.
#[derive(Debug)]
pub(super) struct Pages<R: 'static> {
    format: Format,
    families: &'static [Family<R>],
    rows: Arc<[R]>,
    family: usize,
    position: usize,
}

impl<R> Pages<R> {
    pub(super) fn new(format: Format, families: &'static [Family<R>], rows: Arc<[R]>) -> Self {
        Self {
            format,
            families,
            rows,
            family: 0,
            position: 0,
        }
    }
}

impl<R: fmt::Debug + Send + Sync> Iterator for Pages<R> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let family = self.families.get(self.family)?;
        let start = self.position;
        let end = (start + ROWS_PER_PIECE).min(self.rows.len());
        let piece = encode(
            Piece {
                family,
                format: self.format,
                rows: self.rows.clone(),
                range: start..end,
            },
            self.format,
        );
        if end < self.rows.len() {
            self.position = end;
        } else {
            (self.family, self.position) = (self.family + 1, 0);
        }
        Some(match start {
            0 => piece,
            // Each message names its metric, and several may name one.
            _ if self.format == Format::Protobuf => piece,
            _ => without_head(piece),
        })
    }
}

/// Some rows' series of one family.
#[derive(Debug)]
struct Piece<R: 'static> {
    family: &'static Family<R>,
    format: Format,
    rows: Arc<[R]>,
    range: Range<usize>,
}

impl<R: fmt::Debug + Send + Sync> Collector for Piece<R> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let family = self.family;
        let mut name = family.name.to_owned();
        let mut encoder = open(
            &mut encoder,
            self.format,
            &mut name,
            family.help,
            family.kind,
        )?;
        let mut series = Series {
            encoder: &mut encoder,
            format: self.format,
        };
        for row in &self.rows[self.range.clone()] {
            (family.encode)(&mut series, row)?;
        }
        Ok(())
    }
}

/// Drops the description that a metric's first piece has already given.
fn without_head(mut piece: Vec<u8>) -> Vec<u8> {
    let lines = piece.split_inclusive(|b| *b == b'\n');
    let head: usize = lines
        .take_while(|line| line.starts_with(b"#"))
        .map(<[u8]>::len)
        .sum();
    piece.drain(..head);
    piece
}
