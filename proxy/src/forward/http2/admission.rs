//! Whether the limits of its route and cluster let a request pass, asked once before it is tried.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderName, HeaderValue, Method, Response};

use super::{
    account::Account,
    exchange::{Lines, as_request, poll_client_reset},
};
use crate::{
    failure::Failure,
    forward::respond,
    rate_limit::{Refusal, Told, Verdict},
};

/// Adds to the request what a service wants added, and tells what is to be added to its answer.
///
/// # Errors
/// The failure, of which the client has been told.
pub(super) async fn admit(
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
    let told = match verdict(client, account).await {
        Ok(told) => told,
        Err(Some(refusal)) => return Err(turn_away(client, account, *refusal)),
        Err(None) => return Err(Failure::ClientClosed),
    };
    let Some(told) = told else {
        return Ok(Vec::new());
    };
    for (name, value) in told.request {
        account.head.headers.append(name, value);
    }
    Ok(told.response)
}

/// # Errors
/// None where the client has gone.
async fn verdict(
    client: &mut SendResponse<Bytes>,
    account: &Account,
) -> Result<Option<Box<Told>>, Option<Box<Refusal>>> {
    let connection = &account.peers.client.connection;
    if !account.routed.has_rate_limits() {
        return Ok(None);
    }
    let lines = Lines(&account.head.headers);
    let request = as_request(&account.head, &lines);
    match connection.judge(&account.routed, Some(request)) {
        None => Ok(None),
        Some(Verdict::Admitted(told)) => Ok(told),
        Some(Verdict::Refused(refusal)) => Err(Some(refusal)),
        Some(Verdict::Undecided(undecided)) => {
            let mut decided = pin!(undecided.decide());
            poll_fn(|cx| match decided.as_mut().poll(cx) {
                Poll::Ready(decided) => Poll::Ready(decided.map_err(Some)),
                Poll::Pending => poll_client_reset(cx, client).map(|_| Err(None)),
            })
            .await
        }
    }
}

/// Answers in the upstream's place.
fn turn_away(
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
    refusal: Refusal,
) -> Failure {
    let failure = refusal.failure;
    let is_grpc = respond::is_grpc(&Lines(&account.head.headers));
    let (answer, body) = respond::limited(refusal, is_grpc);
    let is_end = body.is_empty() || account.head.method == Method::HEAD;
    let (head, ()) = answer.into_parts();
    account.answered(&head);
    // Each fails only if the client is gone, and then nobody wants it.
    if let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_end)
        && !is_end
    {
        account.add_sent(body.len() as u64);
        let _ = client.send_data(body, true);
    }
    failure
}
