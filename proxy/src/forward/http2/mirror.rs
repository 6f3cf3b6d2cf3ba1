//! Copies of an HTTP/2 request on their way: sent by tasks of their own, for nobody waits for them.
//!
//! Failure edges: a copy that cannot be sent, or whose answer takes too long, is lost and counted.

use std::{cell::RefCell, rc::Rc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, header::HOST};

use super::{edit, peers::Peers};
use crate::{
    cluster::Outcome,
    dispatch::Way,
    failure::Failure,
    route::{Copy, shadow},
};

/// Copies that are made of a request once it is whole.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) copies: Vec<Copy>,
    pub(super) request: Request<()>,
    /// None if the request has no body.
    pub(super) body: Option<Rc<RefCell<Recorded>>>,
}

/// A body as it goes through, within a limit.
#[derive(Debug)]
pub(super) struct Recorded {
    max: usize,
    bytes: BytesMut,
    trailers: Option<HeaderMap>,
    is_whole: bool,
    is_too_long: bool,
}

impl Recorded {
    pub(super) fn up_to(max: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            max,
            bytes: BytesMut::new(),
            trailers: None,
            is_whole: false,
            is_too_long: false,
        }))
    }

    pub(super) fn add(&mut self, chunk: &[u8]) {
        if self.bytes.len() + chunk.len() > self.max {
            self.is_too_long = true;
            self.bytes = BytesMut::new();
        }
        if !self.is_too_long {
            self.bytes.extend_from_slice(chunk);
        }
    }

    pub(super) fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.is_whole = !self.is_too_long;
        self.trailers = trailers.cloned();
    }
}

impl Copies {
    /// Sends those of a request that came whole.
    pub(super) fn send(self, peers: &Rc<Peers>) {
        let (body, trailers) = match &self.body {
            None => (Bytes::new(), None),
            Some(body) => {
                let mut body = body.borrow_mut();
                if body.is_too_long {
                    self.copies.iter().for_each(Copy::dropped);
                }
                if !body.is_whole {
                    return;
                }
                (body.bytes.split().freeze(), body.trailers.take())
            }
        };
        for copy in self.copies {
            let worker = &peers.client.connection.worker;
            let Some(place) = copy.place(worker, body.len()) else {
                continue;
            };
            let request = as_copy(self.request.clone(), &copy);
            let (body, trailers) = (body.clone(), trailers.clone());
            place.spawn(send(peers.clone(), copy, request, body, trailers));
        }
    }
}

fn as_copy(request: Request<()>, copy: &Copy) -> Request<()> {
    if !copy.shadow_host {
        return request;
    }
    let (mut head, ()) = request.into_parts();
    let authority = head.uri.authority().map(|a| a.as_str().as_bytes());
    let host = authority.or(head.headers.get(HOST).map(HeaderValue::as_bytes));
    if let Some(Ok(host)) = host.map(|host| String::from_utf8(shadow(host))) {
        edit::name_host(&mut head, &host);
    }
    Request::from_parts(head, ())
}

async fn send(
    peers: Rc<Peers>,
    copy: Copy,
    request: Request<()>,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Result<(), Failure> {
    let connection = &peers.client.connection;
    let target = copy.target(connection.original.0);
    let key = target.key_of_source(connection.client.0.ip());
    let way = Way {
        worker: &connection.worker,
        original: connection.original,
        target: &target,
        key: &key,
    };
    let mut hop = way.choose()?;
    let sessions = peers.sessions(&hop);
    let place = match sessions.place(None) {
        Some(place) => place,
        None => match sessions.wait_for_place(None).await {
            Ok(place) => place,
            Err(failure) => {
                hop.report(Outcome::LocalOriginFailure, Instant::now());
                return Err(failure);
            }
        },
    };
    let is_end = body.is_empty() && trailers.is_none();
    let sent = place.session.send(request, is_end);
    let (response, mut sink) = sent.map_err(|_| Failure::UpstreamClosed)?;
    // h2 keeps what the peer does not take yet; there is no more of it than a copy may have.
    if !body.is_empty() {
        let is_last = trailers.is_none();
        sink.send_data(body, is_last)
            .map_err(|_| Failure::UpstreamClosed)?;
    }
    if let Some(trailers) = trailers {
        sink.send_trailers(trailers)
            .map_err(|_| Failure::UpstreamClosed)?;
    }
    let answered = response.await;
    let outcome = match &answered {
        Ok(response) => Outcome::of_status(response.status().as_u16()),
        Err(_) => Outcome::LocalOriginFailure,
    };
    hop.report(outcome, Instant::now());
    let mut body = answered.map_err(|_| Failure::UpstreamClosed)?.into_body();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|_| Failure::UpstreamIncomplete)?;
        // Fails only for more bytes than were received.
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    Ok(())
}
