//! Outrigger's vocabulary as plain data: what a user may write in a configuration file, and what
//! `proxyctl` and a running proxy say to each other. No sockets and no runtime live here, so the
//! data plane and the capture code can share it without ever meeting.

mod check;
mod collector;
pub mod control;
mod duration;
mod file;
mod fraction;
mod network;
mod pattern;
mod percent;
mod ports;
mod problem;
mod ratio;
mod read;
mod schema;
mod scope;
mod secret;
mod settings;
mod snapshot;
mod yaml;

pub use check::route::is_host;
pub use collector::CollectorUrl;
pub use duration::Span;
pub use file::{Checked, check, parse, parse_endpoints, read, text};
pub use fraction::Fraction;
pub use ipnet::IpNet;
pub use network::Network;
pub use pattern::{MatchRegex, SearchRegex};
pub use percent::Percent;
pub use ports::PortRange;
pub use problem::{Place, Problem, Severity};
pub use ratio::Ratio;
pub use schema::schema;
pub use scope::Scope;
pub use secret::Secret;
pub use settings::*;
pub use snapshot::{
    Action, Branch, Changes, Decision, Headers, HttpRequest, NoHeaders, RequestPolicy, RouteTable,
    Snapshot, Subject, Target,
};
