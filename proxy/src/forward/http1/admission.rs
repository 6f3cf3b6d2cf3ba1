//! Whether the limits of its route and cluster let a request pass, asked once before it is tried.

use http::{HeaderName, HeaderValue};
use tokio::io::Interest;

use super::{Session, request::RequestHead};
use crate::{
    failure::Failure,
    forward::policed,
    rate_limit::Verdict,
    route::{Answer, Routed},
};

/// To be added to the answer.
pub(super) type Added = Vec<(HeaderName, HeaderValue)>;

/// Why a request goes no further.
pub(super) enum Denied {
    /// Its client is told so.
    Answered(Box<Answer>),
    Failed(Failure),
}

impl Session {
    /// Adds to the request what a service wants added, and tells what is to be added to its answer.
    ///
    /// # Errors
    /// When it is not let pass.
    pub(super) async fn admit(
        &mut self,
        head: &mut RequestHead,
        routed: &Routed,
    ) -> Result<Added, Denied> {
        let lines = head.lines(self.input.filled());
        let decided = match self.connection.judge(routed, Some(lines.as_request())) {
            None => return Ok(Added::new()),
            Some(Verdict::Admitted(told)) => Ok(told),
            Some(Verdict::Refused(refusal)) => Err(refusal),
            Some(Verdict::Undecided(undecided)) => tokio::select! {
                // Large while under way, and rare.
                decided = Box::pin(undecided.decide()) => decided,
                _ = self.client.ready(Interest::ERROR) => {
                    return Err(Denied::Failed(Failure::ClientClosed));
                }
            },
        };
        match decided {
            Err(refusal) => {
                let answer = Answer::limited(*refusal, policed::is_grpc(&lines));
                Err(Denied::Answered(Box::new(answer)))
            }
            Ok(None) => Ok(Added::new()),
            Ok(Some(told)) => {
                if !told.request.is_empty() {
                    head.add_lines(&told.request, &mut self.input);
                }
                Ok(told.response)
            }
        }
    }
}
