//! What an operator sees, with the programs that he sees it with: a real Prometheus, promtool, files
//! that fill up, pipes that nobody reads, scrapers that stall, a browser's requests.

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod ask;
mod cardinality;
mod faults;
mod monitoring;
mod prometheus;
