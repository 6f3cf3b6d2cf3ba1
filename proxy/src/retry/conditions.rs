//! Which failures are reason to try again (Envoy's retry-on), and which tries may be repeated at all.

use outrigger_config::{Headers, RetriableHeader, Retry, RetryOn};

use super::grpc;

/// What came of a try, of which the client has seen nothing yet.
#[derive(Clone, Copy, Debug)]
pub enum Fate<'a> {
    /// No connection, so nothing was sent.
    NotConnected,
    /// The endpoint says that it did not process the request.
    Refused,
    /// It ended without an answer.
    Reset {
        /// Whether any of the request had left.
        has_left: bool,
    },
    /// It took longer than one try may.
    TimedOut,
    Answered(AnswerHead<'a>),
}

/// The head of an answer, of whichever protocol.
#[derive(Clone, Copy, Debug)]
pub struct AnswerHead<'a> {
    pub status: u16,
    pub headers: &'a dyn Headers,
}

impl AnswerHead<'_> {
    fn has(&self, name: &str) -> bool {
        let mut has = false;
        self.headers.each(name, &mut |_| has = true);
        has
    }
}

impl Fate<'_> {
    /// Whether one of the policy's conditions holds.
    pub fn is_reason(&self, policy: &Retry) -> bool {
        let is_met = policy.on.iter().any(|on| self.meets(*on, policy));
        let Self::Answered(head) = self else {
            return is_met;
        };
        let on_ratelimited = policy.on.contains(&RetryOn::EnvoyRatelimited);
        // Whose header decides alone where it stands; most answers need not be looked through for it.
        if is_met != on_ratelimited && head.has("x-envoy-ratelimited") {
            on_ratelimited
        } else {
            is_met
        }
    }

    /// Whether the endpoint cannot have acted upon the request.
    pub fn is_unseen(&self) -> bool {
        match self {
            Self::NotConnected | Self::Refused | Self::Reset { has_left: false } => true,
            Self::Reset { has_left: true } | Self::TimedOut | Self::Answered(_) => false,
        }
    }

    fn meets(&self, on: RetryOn, policy: &Retry) -> bool {
        match self {
            Self::Answered(head) => is_met_by_answer(on, head, policy),
            Self::NotConnected => {
                matches!(on, RetryOn::ConnectFailure | RetryOn::ResetBeforeRequest)
                    || is_met_by_silence(on)
            }
            Self::Refused => on == RetryOn::RefusedStream || is_met_by_silence(on),
            Self::Reset { has_left } => {
                is_met_by_silence(on) || !has_left && on == RetryOn::ResetBeforeRequest
            }
            Self::TimedOut => is_met_by_silence(on),
        }
    }
}

/// An endpoint that says nothing at all would have become a 502 or 504.
fn is_met_by_silence(on: RetryOn) -> bool {
    matches!(
        on,
        RetryOn::Status5xx | RetryOn::GatewayError | RetryOn::Reset
    )
}

fn is_met_by_answer(on: RetryOn, head: &AnswerHead<'_>, policy: &Retry) -> bool {
    let status = head.status;
    let is_grpc = |code| grpc::status(head.headers) == Some(code);
    match on {
        RetryOn::Status5xx => (500..600).contains(&status),
        RetryOn::GatewayError => (502..=504).contains(&status),
        RetryOn::Retriable4xx => status == 409,
        RetryOn::RetriableStatusCodes => policy.retriable_status_codes.contains(&status),
        RetryOn::RetriableHeaders => policy.retriable_headers.iter().any(|h| is_in(h, head.headers)),
        RetryOn::Cancelled => is_grpc(1),
        RetryOn::DeadlineExceeded => is_grpc(4),
        RetryOn::ResourceExhausted => is_grpc(8),
        RetryOn::Internal => is_grpc(13),
        RetryOn::Unavailable => is_grpc(14),
        RetryOn::Reset
        | RetryOn::ResetBeforeRequest
        | RetryOn::ConnectFailure
        | RetryOn::RefusedStream
        // Seen to before.
        | RetryOn::EnvoyRatelimited
        | RetryOn::Http3PostConnectFailure => false,
    }
}

fn is_in(wanted: &RetriableHeader, headers: &dyn Headers) -> bool {
    let mut is_in = false;
    headers.each(&wanted.name, &mut |value| {
        is_in |= (wanted.exact.as_ref()).is_none_or(|exact| value == exact.as_bytes())
            && (wanted.prefix.as_ref()).is_none_or(|prefix| value.starts_with(prefix.as_bytes()));
    });
    is_in
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A head for tests.
    #[derive(Debug, Default)]
    pub(crate) struct Head(pub(crate) u16, pub(crate) Vec<(&'static str, &'static str)>);

    impl Head {
        pub(crate) fn fate(&self) -> Fate<'_> {
            Fate::Answered(AnswerHead {
                status: self.0,
                headers: self,
            })
        }
    }

    impl Headers for Head {
        fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
            for (_, value) in self.1.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)) {
                visit(value.as_bytes());
            }
        }
    }

    const ALL: [RetryOn; 16] = [
        RetryOn::Status5xx,
        RetryOn::GatewayError,
        RetryOn::Reset,
        RetryOn::ResetBeforeRequest,
        RetryOn::ConnectFailure,
        RetryOn::EnvoyRatelimited,
        RetryOn::Retriable4xx,
        RetryOn::RefusedStream,
        RetryOn::RetriableStatusCodes,
        RetryOn::RetriableHeaders,
        RetryOn::Http3PostConnectFailure,
        RetryOn::Cancelled,
        RetryOn::DeadlineExceeded,
        RetryOn::Internal,
        RetryOn::ResourceExhausted,
        RetryOn::Unavailable,
    ];

    fn policy(on: &[RetryOn]) -> Retry {
        Retry {
            on: on.to_vec(),
            retriable_status_codes: vec![418, 429],
            retriable_headers: vec![
                RetriableHeader {
                    name: "x-again".into(),
                    exact: None,
                    prefix: None,
                },
                RetriableHeader {
                    name: "x-why".into(),
                    exact: None,
                    prefix: Some("busy".into()),
                },
                RetriableHeader {
                    name: "x-how".into(),
                    exact: Some("soon".into()),
                    prefix: None,
                },
            ],
            ..Retry::default()
        }
    }

    /// By the names of the conditions that hold.
    fn held(fate: Fate<'_>) -> Vec<RetryOn> {
        let holds = |on: &RetryOn| fate.is_reason(&policy(&[*on]));
        ALL.into_iter().filter(holds).collect()
    }

    fn answered(status: u16, headers: &[(&'static str, &'static str)]) -> Vec<RetryOn> {
        held(Head(status, headers.to_vec()).fate())
    }

    #[test]
    fn every_kind_of_silence_meets_the_conditions_that_envoy_has_for_it() {
        use RetryOn::*;
        assert_eq!(
            held(Fate::NotConnected),
            [
                Status5xx,
                GatewayError,
                Reset,
                ResetBeforeRequest,
                ConnectFailure
            ]
        );
        assert_eq!(
            held(Fate::Refused),
            [Status5xx, GatewayError, Reset, RefusedStream]
        );
        assert_eq!(
            held(Fate::Reset { has_left: true }),
            [Status5xx, GatewayError, Reset]
        );
        assert_eq!(
            held(Fate::Reset { has_left: false }),
            [Status5xx, GatewayError, Reset, ResetBeforeRequest]
        );
        assert_eq!(held(Fate::TimedOut), [Status5xx, GatewayError, Reset]);
    }

    #[test]
    fn every_status_meets_the_conditions_that_envoy_has_for_it() {
        use RetryOn::*;
        for status in 200..600 {
            let mut expected = Vec::new();
            if status >= 500 {
                expected.push(Status5xx);
            }
            if (502..=504).contains(&status) {
                expected.push(GatewayError);
            }
            if status == 409 {
                expected.push(Retriable4xx);
            }
            if status == 418 || status == 429 {
                expected.push(RetriableStatusCodes);
            }
            assert_eq!(answered(status, &[]), expected, "{status}");
        }
    }

    #[test]
    fn headers_are_reason_by_presence_value_or_beginning() {
        use RetryOn::*;
        assert_eq!(answered(200, &[("x-again", "")]), [RetriableHeaders]);
        assert_eq!(answered(200, &[("x-why", "busy now")]), [RetriableHeaders]);
        assert_eq!(answered(200, &[("x-why", "not busy")]), []);
        assert_eq!(answered(200, &[("x-how", "soon")]), [RetriableHeaders]);
        assert_eq!(answered(200, &[("x-how", "sooner")]), []);
    }

    #[test]
    fn a_grpc_status_in_the_head_is_reason_and_no_other_number_is() {
        use RetryOn::*;
        for code in 0..=20 {
            let text: &'static str = Box::leak(code.to_string().into_boxed_str());
            let expected: &[RetryOn] = match code {
                1 => &[Cancelled],
                4 => &[DeadlineExceeded],
                8 => &[ResourceExhausted],
                13 => &[Internal],
                14 => &[Unavailable],
                _ => &[],
            };
            assert_eq!(answered(200, &[("grpc-status", text)]), expected, "{code}");
        }
    }

    #[test]
    fn what_envoy_limited_is_never_reason_unless_that_is_asked_for() {
        let limited = [("x-envoy-ratelimited", "true")];
        assert_eq!(answered(503, &limited), [RetryOn::EnvoyRatelimited]);
        assert_eq!(answered(429, &limited), [RetryOn::EnvoyRatelimited]);
    }

    #[test]
    fn only_what_no_endpoint_can_have_seen_is_unseen() {
        assert!(Fate::NotConnected.is_unseen());
        assert!(Fate::Refused.is_unseen());
        assert!(Fate::Reset { has_left: false }.is_unseen());
        assert!(!Fate::Reset { has_left: true }.is_unseen());
        assert!(!Fate::TimedOut.is_unseen());
        assert!(!Head(503, Vec::new()).fate().is_unseen());
    }

    proptest! {
        /// A policy holds exactly if one of its conditions holds alone.
        #[test]
        fn conditions_do_not_disturb_each_other(
            chosen in prop::collection::vec(any::<bool>(), ALL.len()),
            kind in 0..5_u8,
            has_left: bool,
            status in 200..600_u16,
            headers in prop::sample::subsequence(
                vec![("x-again", "1"), ("grpc-status", "14"), ("x-envoy-ratelimited", "")], 0..=3),
        ) {
            let head = Head(status, headers);
            let fate = match kind {
                0 => Fate::NotConnected,
                1 => Fate::Refused,
                2 => Fate::Reset { has_left },
                3 => Fate::TimedOut,
                _ => head.fate(),
            };
            let on: Vec<_> = ALL.into_iter().zip(chosen).filter(|(_, c)| *c).map(|(o, _)| o).collect();
            let alone = on.iter().any(|o| fate.is_reason(&policy(&[*o])));
            prop_assert_eq!(fate.is_reason(&policy(&on)), alone);
        }
    }
}
