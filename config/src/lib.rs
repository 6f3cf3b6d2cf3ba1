//! Outrigger's vocabulary as plain data: what a user may write in a configuration file, and what
//! `proxyctl` and a running proxy say to each other. No sockets and no runtime live here, so the
//! data plane and the capture code can share it without ever meeting.

mod check;
pub mod control;
mod duration;
mod file;
mod network;
mod one_or_many;
mod percent;
mod ports;
mod problem;
mod read;
mod schema;
mod scope;
mod settings;
mod snapshot;
mod yaml;

pub use duration::Span;
pub use file::{Checked, check, parse, parse_endpoints, read, text};
pub use ipnet::IpNet;
pub use network::Network;
pub use one_or_many::OneOrMany;
pub use percent::Percent;
pub use ports::PortRange;
pub use problem::{Place, Problem, Severity};
pub use schema::schema;
pub use scope::Scope;
pub use settings::*;
pub use snapshot::{
    Changes, Decision, Headers, HttpRequest, NoHeaders, RouteTable, Snapshot, Subject, Target,
};
