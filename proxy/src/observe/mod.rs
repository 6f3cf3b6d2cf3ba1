//! What is told about connections and requests: metrics and the access log.

mod access_log;
mod exposition;
mod line;
mod log_thread;
mod metrics;
mod process;
mod record;
mod refusal_log;
pub(crate) mod trace;
mod traffic;

pub use access_log::AccessLog;
pub use exposition::{Exposition, Format};
pub use log_thread::{LogTarget, LogThread};
pub(crate) use metrics::Totals;
pub use metrics::{DestinationMetrics, Exemplars, IdleUpstream, Metrics};
pub use record::{Protocol, Record, RequestLine};
pub use refusal_log::RefusalLog;
pub use trace::{SpanId, TraceId, TraceIds};
pub(crate) use traffic::traffic;

#[cfg(test)]
pub(crate) use record::tests::record as test_record;
