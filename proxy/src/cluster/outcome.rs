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
    /// Of a call by its `grpc-status`: what the HTTP status that stands for it would come to, by the table
    /// of `google.rpc.Code` (`google/rpc/code.proto`), as Envoy's outlier detection has it.
    pub fn of_grpc(status: u32) -> Self {
        match status {
            // DEADLINE_EXCEEDED is 504, UNAVAILABLE 503.
            4 | 14 => Self::GatewayFailure,
            // UNKNOWN, UNIMPLEMENTED, INTERNAL and DATA_LOSS are 500 or 501.
            2 | 12 | 13 | 15 => Self::Error,
            // OK, and what the caller did wrong or may try again.
            0..=16 => Self::Success,
            17.. => Self::Error,
        }
    }

    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayFailure,
            500.. => Self::Error,
            _ => Self::Success,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_status_counts_as_the_http_status_that_stands_for_it() {
        // In the order of their numbers.
        const HTTP: [u16; 17] = [
            200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401,
        ];
        for (grpc, http) in HTTP.into_iter().enumerate() {
            assert_eq!(
                Outcome::of_grpc(grpc as u32),
                Outcome::of_status(http),
                "{grpc}"
            );
        }
        assert_eq!(Outcome::of_grpc(17), Outcome::Error);
    }
}
