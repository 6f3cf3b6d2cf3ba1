//! The admin listener: what an orchestrator, a scraper and a person ask of this process. It runs on
//! the control thread, so that nothing done to it can touch traffic.

mod body;
mod clusters;
mod guard;
mod heap;
mod levels;
mod listener;
mod paths;
mod profile;
mod redact;
mod reports;
mod routes;
mod server;
mod turns;

pub use guard::Token;
pub use levels::Levels;
pub use listener::AdminListener;
pub(crate) use server::serve;
