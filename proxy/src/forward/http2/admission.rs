//! Whether the limits of its route and cluster let a request pass, asked once before it is tried.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderName, HeaderValue};

use super::{
    account::Account,
    exchange::poll_client_reset,
    request::{Lines, as_request},
};
use crate::{failure::Failure, forward::policed, rate_limit::Verdict, route::Answer};

/// Adds to the request what a service wants added, and tells what is to be added to its answer; or
/// what its client is told when it is not let pass.
///
/// # Errors
/// `ClientClosed` when the client goes meanwhile.
pub(super) async fn admit(
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Result<Vec<(HeaderName, HeaderValue)>, Box<Answer>>, Failure> {
    let connection = &account.peers.client.connection;
    let lines = Lines(&account.head.headers);
    let request = as_request(&account.head, &lines);
    let decided = match connection.judge(&account.routed, Some(request)) {
        None => return Ok(Ok(Vec::new())),
        Some(Verdict::Admitted(told)) => Ok(told),
        Some(Verdict::Refused(refusal)) => Err(refusal),
        Some(Verdict::Undecided(undecided)) => {
            let mut decided = pin!(undecided.decide());
            poll_fn(|cx| match decided.as_mut().poll(cx) {
                Poll::Ready(decided) => Poll::Ready(Ok(decided)),
                Poll::Pending => poll_client_reset(cx, client).map(|_| Err(Failure::ClientClosed)),
            })
            .await?
        }
    };
    Ok(match decided {
        Err(refusal) => Err(Box::new(Answer::limited(
            *refusal,
            policed::is_grpc(&lines),
        ))),
        Ok(None) => Ok(Vec::new()),
        Ok(Some(told)) => {
            for (name, value) in told.request {
                account.head.headers.append(name, value);
            }
            Ok(told.response)
        }
    })
}
