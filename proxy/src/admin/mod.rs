//! The admin listener: what an orchestrator, a scraper and a person ask of this process. It runs on
//! the control thread, so that nothing done to it can touch traffic.

mod body;
mod clusters;
mod routes;
mod server;

pub(crate) use server::serve;
