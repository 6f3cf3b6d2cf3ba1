//! One direction of a stream: DATA frames, then the end or trailers, from one connection to the
//! other, under the flow control of both.
//!
//! What is read is acknowledged to its sender when the other side has taken it, so that a slow reader
//! slows the writer and nobody else. While the other side takes nothing, reading goes on until the
//! sender's stream window is used up: frames left in h2 would count against its limit of small
//! frames, and small ones can be joined here.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::{
    hedge::Whole, held::Held, mirror::Recorded, settings::SEND_BUFFER, window::ReceiveWindow,
};

/// Bytes of a request body kept, until its response begins, to be sent again if the upstream did not
/// process it. Most gRPC messages fit.
const KEPT_FOR_REPLAY: usize = 64 * 1024;

/// A direction under way.
#[derive(Debug)]
pub(super) struct Body {
    source: RecvStream,
    /// The account of the connection of `source`.
    window: Rc<ReceiveWindow>,
    held: Held,
    /// How many of the held bytes, the first ones, were acknowledged when they were sent before.
    acknowledged: usize,
    /// Set once the source has been read to its end.
    end: Option<End>,
    kept: Option<Kept>,
    /// Whoever makes copies of it.
    copy: Option<Rc<RefCell<Recorded>>>,
    has_sent: bool,
    received: u64,
    /// Kept for whoever wants to know them.
    trailers: Option<Box<HeaderMap>>,
    keeps_trailers: bool,
}

#[derive(Clone, Debug)]
enum End {
    Data,
    Trailers(Box<HeaderMap>),
}

#[derive(Debug)]
struct Kept {
    bytes: Held,
    /// Bytes; with more, nothing is kept.
    most: usize,
}

impl Kept {
    fn new(most: usize) -> Self {
        Self {
            bytes: Held::default(),
            most,
        }
    }
}

/// How a direction ended.
#[derive(Debug)]
pub(super) enum Ended {
    Complete,
    /// The source was reset or its connection is gone.
    SourceFailed(h2::Error),
    /// The sink takes no more: it was reset or its connection is gone.
    SinkClosed,
}

impl Body {
    pub(super) fn new(source: RecvStream, window: Rc<ReceiveWindow>) -> Self {
        Self {
            source,
            window,
            held: Held::default(),
            acknowledged: 0,
            end: None,
            kept: None,
            copy: None,
            has_sent: false,
            received: 0,
            trailers: None,
            keeps_trailers: false,
        }
    }

    /// Keeps what is sent, within a limit, until [`Self::forget`].
    pub(super) fn replayable(mut self) -> Self {
        self.kept = Some(Kept::new(KEPT_FOR_REPLAY));
        self
    }

    /// Keeps at least `bytes`, where anything is kept.
    pub(super) fn keep(&mut self, bytes: usize) {
        if let Some(kept) = &mut self.kept {
            kept.most = kept.most.max(bytes);
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether the source has been read to its end.
    pub(super) fn is_received(&self) -> bool {
        self.end.is_some()
    }

    /// Has `copy` see what is read from the source, from the first byte on.
    pub(super) fn copy_to(&mut self, copy: Rc<RefCell<Recorded>>) {
        self.copy = Some(copy);
    }

    /// Bytes read from the source.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Keeps the trailers, once there are any.
    pub(super) fn keep_trailers(&mut self) {
        self.keeps_trailers = true;
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_deref()
    }

    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    /// Starts again from the first byte, for another sink. False when that is no longer possible.
    pub(super) fn rewind(&mut self) -> bool {
        let Some(mut kept) = self.kept.take() else {
            return false;
        };
        self.kept = Some(Kept::new(kept.most));
        self.acknowledged += kept.bytes.len();
        self.held.push_front(kept.bytes.chunks());
        self.has_sent = false;
        true
    }

    /// Reads the source to its end, holding all of it; false when that is more than `most` bytes.
    pub(super) fn poll_collect(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<bool, h2::Error>> {
        while self.end.is_none() {
            if self.held.len() > most {
                return Poll::Ready(Ok(false));
            }
            match ready!(self.source.poll_data(cx)) {
                Some(chunk) => {
                    let chunk = chunk?;
                    self.note_received(&chunk);
                    self.window.hold(chunk.len());
                    self.held.push(chunk);
                }
                None => {
                    let trailers = ready!(self.source.poll_trailers(cx))?;
                    self.note_end(match trailers {
                        Some(trailers) => End::Trailers(Box::new(trailers)),
                        None => End::Data,
                    });
                }
            }
        }
        Poll::Ready(Ok(self.held.len() <= most))
    }

    /// A body that has been collected.
    pub(super) fn whole(&mut self) -> Whole {
        Whole {
            chunks: self.held.chunks(),
            trailers: match &self.end {
                Some(End::Trailers(trailers)) => Some((**trailers).clone()),
                Some(End::Data) | None => None,
            },
        }
    }

    /// What is held will not be sent from here.
    pub(super) fn finish(&mut self) {
        while !self.held.is_empty() {
            let len = self.held.pop(usize::MAX).len();
            let before = self.acknowledged.min(len);
            self.acknowledged -= before;
            self.window.let_go(len - before);
            // Fails only for more bytes than were received.
            let _ = self.source.flow_control().release_capacity(len - before);
        }
    }

    /// Reads and drops what still comes, until there is more of it than `most` bytes.
    pub(super) async fn read_off(&mut self, most: usize) {
        self.finish();
        let mut left = most;
        while let Some(Ok(chunk)) = self.source.data().await {
            // Fails only for more bytes than were received.
            let _ = self.source.flow_control().release_capacity(chunk.len());
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }

    /// Relays as far as both sides let it; after [`Ended`] only [`Self::rewind`] makes sense.
    pub(super) fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut SendStream<Bytes>,
    ) -> Poll<Ended> {
        loop {
            let is_blocked = match self.poll_send_held(cx, sink) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(SinkClosed)) => return Poll::Ready(Ended::SinkClosed),
                Poll::Pending => true,
            };
            if self.end.is_some() {
                return if is_blocked {
                    Poll::Pending
                } else {
                    Poll::Ready(self.send_end(sink))
                };
            }
            match ready!(self.source.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    self.note_received(&chunk);
                    if is_blocked || !self.has_room(chunk.len(), sink) {
                        self.window.hold(chunk.len());
                        self.held.push(chunk);
                        continue;
                    }
                    let is_last = self.end.is_some();
                    if self.send(chunk, is_last, sink).is_err() {
                        return Poll::Ready(Ended::SinkClosed);
                    }
                    if is_last {
                        return Poll::Ready(Ended::Complete);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Ended::SourceFailed(error)),
                None => match ready!(self.source.poll_trailers(cx)) {
                    Ok(Some(trailers)) => {
                        let trailers = Box::new(trailers);
                        if self.keeps_trailers {
                            self.trailers = Some(trailers.clone());
                        }
                        self.note_end(End::Trailers(trailers));
                    }
                    Ok(None) => self.note_end(End::Data),
                    Err(error) => return Poll::Ready(Ended::SourceFailed(error)),
                },
            }
        }
    }

    fn note_received(&mut self, chunk: &Bytes) {
        self.received += chunk.len() as u64;
        if let Some(copy) = &self.copy {
            copy.borrow_mut().add(chunk);
        }
        if self.source.is_end_stream() {
            self.note_end(End::Data);
        }
    }

    fn note_end(&mut self, end: End) {
        if let Some(copy) = &self.copy {
            copy.borrow_mut().end(match &end {
                End::Data => None,
                End::Trailers(trailers) => Some(trailers),
            });
        }
        self.end = Some(end);
    }

    /// Whether `sink` takes `len` bytes now. The first chunk of a body, at most one frame, always
    /// goes: most bodies are no longer, and h2 keeps it until it may leave.
    fn has_room(&self, len: usize, sink: &mut SendStream<Bytes>) -> bool {
        if !self.has_sent {
            return true;
        }
        sink.reserve_capacity(len);
        sink.capacity() >= len
    }

    /// Sends what is held; pending when the sink does not take all of it now.
    fn poll_send_held(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), SinkClosed>> {
        while !self.held.is_empty() {
            // No more than can be sent at once: what is reserved is kept from other streams.
            sink.reserve_capacity(self.held.len().min(SEND_BUFFER));
            let mut room = sink.capacity();
            if room == 0 {
                match ready!(sink.poll_capacity(cx)) {
                    Some(Ok(capacity)) => room = capacity,
                    Some(Err(_)) | None => return Poll::Ready(Err(SinkClosed)),
                }
            }
            let chunk = self.held.pop(room);
            let before = self.acknowledged.min(chunk.len());
            self.window.let_go(chunk.len() - before);
            self.send(chunk, false, sink)?;
        }
        Poll::Ready(Ok(()))
    }

    fn send(
        &mut self,
        chunk: Bytes,
        is_last: bool,
        sink: &mut SendStream<Bytes>,
    ) -> Result<(), SinkClosed> {
        let len = chunk.len();
        if let Some(kept) = &mut self.kept {
            if kept.bytes.len() + len <= kept.most {
                kept.bytes.push(chunk.clone());
            } else {
                self.kept = None;
            }
        }
        self.has_sent = true;
        sink.send_data(chunk, is_last).map_err(|_| SinkClosed)?;
        let before = self.acknowledged.min(len);
        self.acknowledged -= before;
        if !is_last {
            // Fails only for more bytes than were received.
            let _ = self.source.flow_control().release_capacity(len - before);
        }
        Ok(())
    }

    fn send_end(&mut self, sink: &mut SendStream<Bytes>) -> Ended {
        let end = if self.kept.is_some() {
            self.end.clone()
        } else {
            self.end.take()
        };
        let sent = match end {
            Some(End::Trailers(trailers)) => {
                if self.keeps_trailers {
                    self.trailers = Some(trailers.clone());
                }
                sink.send_trailers(*trailers)
            }
            Some(End::Data) | None => sink.send_data(Bytes::new(), true),
        };
        match sent {
            Ok(()) => Ended::Complete,
            Err(_) => Ended::SinkClosed,
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.window
            .let_go(self.held.len() - self.acknowledged.min(self.held.len()));
    }
}

#[derive(Debug)]
struct SinkClosed;
