//! One stream of a client: a request, where it goes, and its response.

use std::{
    future::{Future, poll_fn},
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::Request;

use super::{
    account::Account,
    admission,
    answer::{refuse, send_answer},
    asking::{Asking, TryEnd},
    body::Body,
    peers::RunningExchange,
    relay::{Relay, Relayed},
    routing::{answer_of_route, prepare, route, way},
    upload::Upload,
};
use crate::{dispatch::Tried, failure::Failure, forward::respond};

/// Serves one request to its end. What outlives the first poll is prepared here, so that the task
/// holds (and moves) no more than that: there may be a thousand for each client.
pub(super) fn run(
    running: RunningExchange,
    request: Request<RecvStream>,
    mut client: SendResponse<Bytes>,
) -> impl Future<Output = ()> + use<> {
    let (head, body) = request.into_parts();
    let peers = running.peers();
    let mut upload = Upload::new(
        (!body.is_end_stream())
            .then(|| Box::new(Body::new(body, peers.client.window.clone()).replayable())),
    );
    let mut account = Account::open(peers.clone(), head);
    async move {
        let failure = forward(&mut upload, &mut client, &mut account).await.err();
        if let Some(copies) = account.copies.take() {
            copies.send(&account.peers);
        }
        account.close(failure);
        upload.read_off().await;
        drop(running);
    }
}

async fn forward(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(), Failure> {
    let limits = account.peers.client.connection.worker.settings().limits;
    if account.head.headers.len() > limits.max_headers {
        return Err(refuse(client, account, Failure::HeadTooLarge));
    }
    let Some(mut relay) = begin(upload, client, account).await? else {
        return Ok(());
    };
    let relayed = poll_fn(|cx| match relay.poll(cx, upload, account) {
        Poll::Pending => account
            .poll_deadlines(cx, upload, true)
            .map(Relayed::TooLong),
        ready => ready,
    });
    match relayed.await {
        Relayed::Complete => Ok(()),
        Relayed::ClientReset(reason) => {
            relay.upstream.sink.send_reset(reason);
            Err(Failure::ClientClosed)
        }
        Relayed::UpstreamFailed(reason, failure) => {
            // A reset drops what h2 has not sent yet: first let go what was answered before it.
            tokio::task::yield_now().await;
            relay.client.send_reset(reason);
            Err(failure)
        }
        Relayed::TooLong(passed) => {
            let failure = account.passed(passed);
            relay.upstream.sink.send_reset(Reason::CANCEL);
            // A call can be told its status behind what it has got; everything else is cut off.
            let is_told = account.is_grpc()
                && relay
                    .client
                    .send_trailers(respond::grpc_trailers(failure))
                    .is_ok();
            if !is_told {
                tokio::task::yield_now().await;
                relay.client.send_reset(Reason::INTERNAL_ERROR);
            }
            Err(failure)
        }
    }
}

/// Sends the request until an upstream answers it; nothing is left to relay if that is all.
async fn begin(
    upload: &mut Upload,
    client: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Option<Relay>, Failure> {
    let key = route(account);
    account.begin_trace();
    // What its route answers itself or does not admit ends here.
    let mut added = Vec::new();
    if account.routed.has_rate_limits() {
        match Box::pin(admission::admit(client, account)).await? {
            Ok(lines) => added = lines,
            Err(answer) => return send_answer(client, account, *answer),
        }
    }
    if account.routed.route.is_some() {
        if let Some(mut answer) = answer_of_route(client, account).await? {
            answer.headers.extend(added);
            return send_answer(client, account, answer);
        }
        prepare(upload, account);
    }
    if let Some(policed) = &account.policed {
        upload.keep(policed.keeps(None));
    }
    match way(account, &key).choose() {
        Ok(hop) => account.hop = Some(hop),
        Err(failure) => return Err(refuse(client, account, failure)),
    }
    let mut asking = Asking {
        upload,
        client,
        account,
        key,
        added,
        replays: 0,
        refused: None,
        tried: Tried::default(),
        hedge_delay: None,
    };
    if let Some(delay) = asking.account.hedge_delay() {
        // Large while under way, and rare.
        asking.hedge_delay = match Box::pin(asking.collect()).await {
            Ok(is_whole) => is_whole.then_some(delay),
            Err(Failure::ClientClosed) => return Err(Failure::ClientClosed),
            Err(failure) => return Err(refuse(asking.client, asking.account, failure)),
        };
    }
    loop {
        let again = match asking.try_once().await {
            Ok(relay) => return Ok(relay),
            Err(TryEnd::Over(failure)) => return Err(failure),
            Err(TryEnd::Refused(failure)) => Err(failure),
            Err(TryEnd::Elsewhere) => Ok(()),
            Err(TryEnd::Again(pause)) => {
                asking.account.end_attempt();
                Box::pin(asking.another(pause)).await
            }
        };
        match again {
            Ok(()) => asking.account.trace_again(),
            Err(Failure::ClientClosed) => return Err(Failure::ClientClosed),
            Err(failure) => return Err(refuse(asking.client, asking.account, failure)),
        }
    }
}

/// Ready when the client has given up; a client that is gone counts as one that cancels.
pub(super) fn poll_client_reset(
    cx: &mut Context<'_>,
    client: &mut SendResponse<Bytes>,
) -> Poll<Reason> {
    client
        .poll_reset(cx)
        .map(|reset| reset.unwrap_or(Reason::CANCEL))
}
