//! Outrigger's vocabulary as plain data: what a user may write in a configuration file, and what
//! `proxyctl` and a running proxy say to each other. No sockets and no runtime live here, so the
//! data plane and the capture code can share it without ever meeting.

pub mod control;
mod duration;
mod file;
mod ports;
mod scope;
mod settings;

pub use duration::Span;
pub use file::{Problem, parse, read};
pub use ipnet::IpNet;
pub use ports::PortRange;
pub use scope::Scope;
pub use settings::{
    AccessLog, AccessLogFormat, AccessLogTarget, Capture, Exclude, Include, Limits, Pool, Settings,
    Supervisor, Timeouts,
};
