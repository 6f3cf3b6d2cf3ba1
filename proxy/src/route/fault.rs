//! Faults that a route asks for.

use std::time::Duration;

use outrigger_config::Headers;
use tokio::{io::Interest, net::TcpStream, time::sleep};

use super::{Answer, Routed};
use crate::{cluster::Rng, failure::Failure};

/// What happens to one connection or request.
#[derive(Debug, Default)]
pub struct Injected {
    pub delay: Option<Duration>,
    pub abort: Option<Answer>,
}

impl Routed {
    /// The fault that `rng` draws for this one, if its route has any; `headers` are those of a
    /// request.
    pub fn fault(&self, headers: Option<&dyn Headers>, rng: &Rng) -> Option<Injected> {
        let fault = self.policy()?.fault.as_ref()?;
        let is_meant = fault.headers.iter().all(|condition| {
            headers.is_some_and(|h| condition.holds(h.joined(&condition.name).as_deref()))
        });
        if !is_meant {
            return None;
        }
        let delay = fault
            .delay
            .as_ref()
            .filter(|delay| delay.percent.includes(rng.word()));
        let abort = fault
            .abort
            .as_ref()
            .filter(|abort| abort.percent.includes(rng.word()));
        let injected = Injected {
            delay: delay.map(|delay| delay.fixed.0),
            abort: abort.map(Answer::aborted),
        };
        (injected.delay.is_some() || injected.abort.is_some()).then_some(injected)
    }

    /// Admits a connection of which nothing is understood.
    ///
    /// # Errors
    /// When the route has no place for it.
    pub async fn admit_opaque(&self, rng: &Rng, client: &TcpStream) -> Result<(), Failure> {
        if self.answers_itself() {
            return Err(Failure::NotHttp);
        }
        let Some(injected) = self.fault(None, rng) else {
            return Ok(());
        };
        if let Some(delay) = injected.delay {
            wait(delay, client).await?;
        }
        match injected.abort {
            Some(_) => Err(Failure::FaultInjected),
            None => Ok(()),
        }
    }
}

/// Waits for `delay`.
///
/// # Errors
/// `ClientClosed` when `client` is reset meanwhile.
pub(crate) async fn wait(delay: Duration, client: &TcpStream) -> Result<(), Failure> {
    tokio::select! {
        () = sleep(delay) => Ok(()),
        _ = client.ready(Interest::ERROR) => Err(Failure::ClientClosed),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::{NoHeaders, Snapshot, Subject, parse};

    use super::*;
    use crate::{cluster::Clusters, rate_limit::RateLimits, route::Route};

    fn routed(fault: &str) -> Routed {
        let text =
            format!("routes: [{{ match: {{}}, cluster: original_destination, fault: {fault} }}]");
        let snapshot = Snapshot::compile(parse(&text).unwrap(), None);
        let decision = snapshot.routes.iter().next().unwrap();
        let route = Arc::new(Route::resolve(
            decision,
            &Clusters::default(),
            &RateLimits::new(std::time::Instant::now()),
        ));
        let subject = Subject::at("192.0.2.1:80".parse().unwrap());
        Routed::decide(&subject, Some(&route), None, &Rng::new(1))
    }

    #[test]
    fn delay_and_abort_are_drawn_each_by_itself() {
        let routed =
            routed("{ delay: { fixed: 1s, percent: 50 }, abort: { status: 503, percent: 50 } }");
        let rng = Rng::new(7);
        let mut seen = [0; 4];
        for _ in 0..4000 {
            let injected = routed.fault(None, &rng).unwrap_or_default();
            seen[usize::from(injected.delay.is_some()) * 2
                + usize::from(injected.abort.is_some())] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }

    #[test]
    fn a_fault_for_a_header_leaves_others_alone() {
        let routed = routed("{ abort: { grpc_status: 14 }, headers: [{ name: x-chaos }] }");
        assert!(routed.fault(Some(&NoHeaders), &Rng::new(1)).is_none());
        assert!(routed.fault(None, &Rng::new(1)).is_none());
    }

    #[test]
    fn a_grpc_client_is_told_in_its_own_words() {
        let routed = routed("{ abort: { grpc_status: 14 } }");
        let answer = routed.fault(None, &Rng::new(1)).unwrap().abort.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["grpc-status"], "14");
        assert_eq!(answer.headers["content-type"], "application/grpc");
    }
}
