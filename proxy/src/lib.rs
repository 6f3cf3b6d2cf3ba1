//! Outrigger's data plane: takes captured connections, recovers where each was going, and forwards
//! it there.
//!
//! [`app::bind`] is the one place where everything is put together; [`connection`] tells the way of
//! a connection from accept to the end, and every other module is one step of it.

pub mod accept;
pub mod address;
pub mod admin;
pub mod app;
mod aside;
pub mod buffer;
pub mod cluster;
pub mod configuration;
pub mod connection;
pub mod control;
pub mod deadline;
pub mod detect;
pub mod direct;
pub mod dispatch;
pub mod drain;
mod explain;
pub mod failure;
pub mod fd_store;
mod file_watch;
pub mod forward;
mod front;
mod grpc;
pub mod live;
pub mod observe;
pub mod pulse;
pub mod rate_limit;
pub mod readiness;
pub mod reload;
pub mod retry;
pub mod route;
pub mod shared;
mod signals;
pub mod supervised;
mod sys;
#[cfg(test)]
mod testing;
#[cfg(any(test, feature = "uncaptured"))]
pub mod uncaptured;
pub mod upstream;
mod watchdog;
pub mod worker;

pub use reload::Source;
