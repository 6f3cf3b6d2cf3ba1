//! What a request's route makes of it before it is tried.

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::Method;

use super::{
    account::Account,
    edit,
    exchange::poll_client_reset,
    mirror::{Copies, Recorded},
    request::{Lines, as_request, authority, outgoing},
    upload::Upload,
};
use crate::{
    dispatch::{Key, Way},
    failure::Failure,
    forward::policed::Policed,
    route,
};

/// Where the routes send the request, and what chooses its endpoint there.
pub(super) fn route(account: &mut Account) -> Key {
    let connection = &account.peers.client.connection;
    if !connection.worker.has_routes() {
        return Key::default();
    }
    let headers = Lines(&account.head.headers);
    let routed = connection.route_request(as_request(&account.head, &headers));
    let client = connection.client.0.ip();
    let key = routed.target.key(&connection.worker, client, &headers);
    let is_idempotent = account.head.method.is_idempotent();
    account.policed = Policed::begin(&routed, is_idempotent, &headers, None).map(Rc::new);
    account.routed = routed;
    key
}

/// What the request's route answers in an upstream's place, after the delay that it may ask for.
pub(super) async fn answer_of_route(
    client: &mut SendResponse<Bytes>,
    account: &Account,
) -> Result<Option<route::Answer>, Failure> {
    let connection = &account.peers.client.connection;
    let headers = Lines(&account.head.headers);
    let fault = account.routed.fault(Some(&headers), &connection.worker.rng);
    if let Some(delay) = fault.as_ref().and_then(|fault| fault.delay) {
        let mut slept = Box::pin(tokio::time::sleep(delay));
        let waited = poll_fn(|cx| match slept.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => poll_client_reset(cx, client).map(|_| Err(Failure::ClientClosed)),
        });
        waited.await?;
    }
    if let Some(abort) = fault.and_then(|fault| fault.abort) {
        return Ok(Some(abort));
    }
    if !account.routed.answers_itself() {
        return Ok(None);
    }
    let original = connection.original.0.to_string();
    let authority = authority(&account.head).unwrap_or(original.as_bytes());
    let request = as_request(&account.head, &headers);
    Ok(account.routed.answer(&request, authority))
}

/// Makes of the request what its route wants sent on, and tells of which copies are to be made.
pub(super) fn prepare(upload: &mut Upload, account: &mut Account) {
    let Some(route) = account.routed.route.clone() else {
        return;
    };
    if route.edits_request() {
        edit::request(account, &route);
    }
    let copies = account
        .routed
        .copies(&account.peers.client.connection.worker.rng);
    let largest = copies.iter().map(|copy| copy.max_body_bytes).max();
    let Some(largest) = largest.filter(|_| account.head.method != Method::CONNECT) else {
        return;
    };
    let body = upload.has_body().then(|| Recorded::up_to(largest));
    let copies = Copies {
        copies,
        request: outgoing(account),
        body: body.clone(),
    };
    match body {
        None => copies.send(&account.peers),
        Some(body) => {
            upload.copy_to(body);
            account.copies = Some(Box::new(copies));
        }
    }
}

pub(super) fn way<'a>(account: &'a Account, key: &'a Key) -> Way<'a> {
    let connection = &account.peers.client.connection;
    Way {
        worker: &connection.worker,
        original: connection.original,
        target: &account.routed.target,
        key,
    }
}
