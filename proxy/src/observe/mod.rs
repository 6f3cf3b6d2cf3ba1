//! What is told about connections and requests: metrics and the access log.

mod access_log;
mod decision;
mod exposition;
mod log_thread;
mod metrics;
mod process;
mod record;
mod refusal_log;
mod route_traffic;
pub(crate) mod trace;
mod traffic;

pub use access_log::{AccessLogs, Captured, Sinks, Unopened, Wanted};
pub use exposition::{Exposition, Format};
pub use log_thread::{LogTarget, LogThread};
pub use metrics::{Exemplars, IdleUpstream, Metrics, Traffic};
pub(crate) use metrics::{SharedLatency, Totals};
pub use record::{FailedTries, FailedTry, Protocol, Record, RequestLine};
pub use refusal_log::RefusalLog;
pub(crate) use route_traffic::RouteTraffic;
pub use trace::{SpanId, TraceId, TraceIds};
pub(crate) use traffic::traffic;

#[cfg(test)]
pub(crate) use record::tests::record as test_record;
