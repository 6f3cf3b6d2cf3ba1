//! Whether the limits of its route and cluster let a request pass, asked once before it is tried.

use http::{HeaderName, HeaderValue};
use tokio::{io::Interest, time::timeout};

use super::{
    Next, Session,
    head::Version,
    io::write_some,
    record::{Outcome, REFUSAL_TAKES},
    request::{Method, RequestHead},
};
use crate::{
    failure::Failure,
    forward::respond,
    rate_limit::{Refusal, Told, Verdict},
};

/// To be added to the answer.
pub(super) type Added = Vec<(HeaderName, HeaderValue)>;

impl Session {
    /// Adds to the request what a service wants added, and tells what is to be added to its answer.
    ///
    /// # Errors
    /// What follows for the client, which has been told why its request goes no further. `body` is
    /// how much of the request's body has arrived, if all of it has.
    pub(super) async fn admit(
        &mut self,
        head: &mut RequestHead,
        body: Option<usize>,
        outcome: &mut Outcome,
    ) -> Result<Added, Next> {
        let told = match self.verdict(head, outcome).await {
            Ok(told) => told,
            Err(Refused::Limited(refusal)) => {
                return Err(self.turn_away(head, body, *refusal, outcome).await);
            }
            Err(Refused::ClientClosed) => {
                outcome.failure = Some(Failure::ClientClosed);
                self.record(Some(head), outcome);
                return Err(Next::Close);
            }
        };
        let Some(told) = told else {
            return Ok(Added::new());
        };
        if !told.request.is_empty() {
            head.add_lines(&told.request, &mut self.input);
        }
        Ok(told.response)
    }

    async fn verdict(
        &self,
        head: &RequestHead,
        outcome: &Outcome,
    ) -> Result<Option<Box<Told>>, Refused> {
        let lines = head.lines(self.input.filled());
        let request = Some(lines.as_request());
        match self.connection.judge(&outcome.routed, request) {
            None => Ok(None),
            Some(Verdict::Admitted(told)) => Ok(told),
            Some(Verdict::Refused(refusal)) => Err(Refused::Limited(refusal)),
            Some(Verdict::Undecided(undecided)) => tokio::select! {
                decided = Box::pin(undecided.decide()) => decided.map_err(Refused::Limited),
                _ = self.client.ready(Interest::ERROR) => Err(Refused::ClientClosed),
            },
        }
    }

    /// Answers in the upstream's place. A request that has arrived as a whole leaves its connection
    /// as it was, for its client will come again.
    async fn turn_away(
        &mut self,
        head: &RequestHead,
        body: Option<usize>,
        refusal: Refusal,
        outcome: &mut Outcome,
    ) -> Next {
        let is_grpc = respond::is_grpc(&head.lines(self.input.filled()));
        let keeps_client = head.keeps_alive
            && head.version == Version::Http11
            && !self.connection.worker.drain.has_started();
        let kept = body.filter(|_| keeps_client);
        outcome.failure = Some(refusal.failure);
        let (answer, body) = respond::limited(refusal, is_grpc);
        outcome.status = Some(answer.status().as_u16());
        let is_head = head.method == Method::Head;
        let response = respond::as_http1(&answer, &body, is_head, kept.is_none());
        let written = timeout(REFUSAL_TAKES, self.write_all(&response)).await;
        if written == Ok(true) {
            outcome.sent += response.len() as u64;
        }
        self.record(Some(head), outcome);
        match kept {
            // A client that takes no answer, or half of one, must not take another for it.
            _ if written != Ok(true) => Next::Reset,
            Some(body) => {
                self.input.consume(head.len + body);
                Next::Request
            }
            None => Next::Linger,
        }
    }

    /// Whether the client took all of it.
    async fn write_all(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match write_some(&self.client, bytes).await {
                Ok(written) => bytes = &bytes[written..],
                Err(_) => return false,
            }
        }
        true
    }
}

enum Refused {
    Limited(Box<Refusal>),
    ClientClosed,
}
