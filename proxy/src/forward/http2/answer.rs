//! Answers in an upstream's place.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Method, Response};

use super::{account::Account, relay::Relay, request::Lines};
use crate::{
    failure::Failure,
    forward::{policed::is_grpc, respond},
    route,
};

/// Answers in the upstream's place.
pub(super) fn refuse(
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
    failure: Failure,
) -> Failure {
    let is_grpc = is_grpc(&Lines(&account.head.headers));
    let (head, body) = if is_grpc {
        (respond::grpc(failure), Bytes::new())
    } else {
        respond::http2(failure)
    };
    // Nothing follows the head of either.
    let is_head = is_grpc || account.head.method == Method::HEAD;
    let (head, ()) = head.into_parts();
    account.answered(&head);
    // Each fails only if the client is gone, and then nobody wants it.
    if let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_head)
        && !is_head
    {
        account.add_sent(body.len() as u64);
        let _ = client.send_data(body, true);
    }
    failure
}

/// Answers in an upstream's place, as the route wants it.
pub(super) fn send_answer(
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
    answer: route::Answer,
) -> Result<Option<Relay>, Failure> {
    let is_end = account.head.method == Method::HEAD || answer.body.is_empty();
    let (head, ()) = respond::http2_answer(&answer).into_parts();
    account.answered(&head);
    let Ok(mut client) = client.send_response(Response::from_parts(head, ()), is_end) else {
        return Err(Failure::ClientClosed);
    };
    if !is_end {
        account.add_sent(answer.body.len() as u64);
        // Fails only if the client is gone, and then nobody wants it.
        let _ = client.send_data(answer.body, true);
    }
    answer.failure.map_or(Ok(None), Err)
}
