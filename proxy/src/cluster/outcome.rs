//! How a request ended, as far as it tells of the endpoint.

/// What outlier detection, breakers and counters distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Any answer below 500: whatever it says, the endpoint works.
    Success,
    /// 5xx other than a gateway's.
    Error,
    /// 502, 503 or 504.
    GatewayFailure,
    /// No answer: the connection failed, timed out, or was reset before one.
    LocalOriginFailure,
}

impl Outcome {
    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayFailure,
            500.. => Self::Error,
            _ => Self::Success,
        }
    }
}
