//! Failures as small numbers, for arrays and packed keys.

use crate::failure::Failure;

/// How many there are.
pub(super) const COUNT: usize = ALL.len();

/// Each failure at its own number.
const ALL: [Failure; 29] = [
    Failure::NotRedirected,
    Failure::Loop,
    Failure::ConnectionLimit,
    Failure::OutOfResources,
    Failure::BadRequest(""),
    Failure::HeadTooLarge,
    Failure::HeadTimeout,
    Failure::ClientClosed,
    Failure::ConnectRefused,
    Failure::ConnectUnreachable,
    Failure::ConnectTimeout,
    Failure::UpstreamClosed,
    Failure::UpstreamIncomplete,
    Failure::UpstreamProtocol,
    Failure::IdleTimeout,
    Failure::HalfCloseTimeout,
    Failure::Drained,
    Failure::Internal,
    Failure::NoEndpoint,
    Failure::BreakerTripped,
    Failure::Overflow,
    Failure::Shed,
    Failure::NotHttp,
    Failure::FaultInjected,
    Failure::RequestTimeout,
    Failure::TryTimeout,
    Failure::StreamTimeout,
    Failure::RateLimited,
    Failure::RateLimitService,
];

pub(super) fn number(failure: Failure) -> usize {
    match failure {
        Failure::NotRedirected => 0,
        Failure::Loop => 1,
        Failure::ConnectionLimit => 2,
        Failure::OutOfResources => 3,
        Failure::BadRequest(_) => 4,
        Failure::HeadTooLarge => 5,
        Failure::HeadTimeout => 6,
        Failure::ClientClosed => 7,
        Failure::ConnectRefused => 8,
        Failure::ConnectUnreachable => 9,
        Failure::ConnectTimeout => 10,
        Failure::UpstreamClosed => 11,
        Failure::UpstreamIncomplete => 12,
        Failure::UpstreamProtocol => 13,
        Failure::IdleTimeout => 14,
        Failure::HalfCloseTimeout => 15,
        Failure::Drained => 16,
        Failure::Internal => 17,
        Failure::NoEndpoint => 18,
        Failure::BreakerTripped => 19,
        Failure::Overflow => 20,
        Failure::Shed => 21,
        Failure::NotHttp => 22,
        Failure::FaultInjected => 23,
        Failure::RequestTimeout => 24,
        Failure::TryTimeout => 25,
        Failure::StreamTimeout => 26,
        Failure::RateLimited => 27,
        Failure::RateLimitService => 28,
    }
}

pub(super) fn label(number: usize) -> &'static str {
    ALL[number].label()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_stands_at_its_own_number() {
        for (place, failure) in ALL.into_iter().enumerate() {
            assert_eq!(number(failure), place, "{failure:?}");
        }
    }
}
