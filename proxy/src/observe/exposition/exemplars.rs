//! Exemplars, written behind the buckets that they are of. The library that encodes the rest has no
//! way to be given any.

use std::collections::HashMap;

use crate::{
    observe::metrics::{OfBuckets, bucket_of_bound},
    shared::Shared,
};

const BUCKET: &str = "outrigger_request_duration_seconds_bucket{";

/// By destination; only of those that have any.
pub(super) struct Annotations(HashMap<String, OfBuckets>);

impl Annotations {
    pub(super) fn of(shared: &Shared) -> Self {
        let known = shared.registry.all();
        let exemplars = known
            .iter()
            .filter_map(|d| Some((d.address.to_string(), d.exemplars.all()?)));
        Self(exemplars.collect())
    }

    /// The same piece of text with exemplars.
    pub(super) fn annotate(&self, piece: String) -> String {
        if self.0.is_empty() || !piece.contains(BUCKET) {
            return piece;
        }
        let mut annotated = String::with_capacity(piece.len() * 2);
        for line in piece.lines() {
            annotated.push_str(line);
            if let Some(exemplar) = self.exemplar(line) {
                annotated.push_str(&exemplar);
            }
            annotated.push('\n');
        }
        annotated
    }

    fn exemplar(&self, line: &str) -> Option<String> {
        let labels = line.strip_prefix(BUCKET)?;
        let bucket = bucket_of_bound(label(labels, "le=\"")?.parse().ok()?);
        let exemplars = self.0.get(label(labels, "destination=\"")?)?;
        Some(exemplars[bucket].as_ref()?.to_string())
    }
}

/// A value that holds no quotes, which neither addresses nor numbers do.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(name)?;
    Some(rest.split_once('"')?.0)
}
