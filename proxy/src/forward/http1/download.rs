//! One request's answer on its way to the client: interim responses, the final one, its body.

use std::{future::poll_fn, io, mem, time::Duration};

use outrigger_config::Limits;
use tokio::net::TcpStream;

use super::{
    admission::Added,
    body::Body,
    edit, head,
    io::{read, write_some},
    progress::Progress,
    request::{Method, RequestHead},
    response::{self, Response, ResponseHead},
    upload::SPLICE_FROM,
};
use crate::{
    buffer::Buffer,
    forward::{
        policed::Policed,
        splice::{self, splice_exact},
    },
    retry::{AnswerHead, Fate},
    route::HeaderEdits,
    worker::Worker,
};

pub(super) struct Download<'a> {
    pub(super) worker: &'a Worker,
    /// As they were when the request began.
    pub(super) limits: Limits,
    pub(super) client: &'a TcpStream,
    pub(super) upstream: &'a TcpStream,
    /// Taken from the pool when an answer arrives, and left with what follows it.
    pub(super) output: &'a mut Buffer,
    pub(super) request: &'a RequestHead,
    /// What the route changes in the answer.
    pub(super) edits: Option<&'a HeaderEdits>,
    /// To be added to the answer.
    pub(super) set_cookie: Option<&'a str>,
    /// The same, of its limits.
    pub(super) added: &'a Added,
    /// What may have the request sent again instead of its answer relayed.
    pub(super) policed: Option<&'a Policed>,
    pub(super) progress: &'a Progress,
}

#[derive(Debug)]
pub(super) enum DownloadEnd {
    Complete(Answer),
    /// The connection is HTTP no longer, or no HTTP that we can rely on: the output and all that
    /// follows go to the client as they come, until the end.
    Tunnel,
    /// The request is to be sent again; the client has seen nothing of this answer.
    Discarded(Discarded),
    /// The upstream closed or failed before the final head was whole.
    NoAnswer(io::ErrorKind),
    /// The upstream closed or failed within the body.
    Incomplete,
    ClientLost,
}

/// An answer in whose place another one is asked for.
#[derive(Debug)]
pub(super) struct Discarded {
    pub(super) head: ResponseHead,
    /// Before the next try.
    pub(super) pause: Duration,
    /// Nothing of it is still to come.
    pub(super) is_whole: bool,
}

/// An answer that was relayed whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: ResponseHead,
    /// Whether the client may send another request.
    pub(super) keeps_client: bool,
}

impl Download<'_> {
    pub(super) async fn run(mut self) -> DownloadEnd {
        match self.relay().await {
            Ok(answer) => DownloadEnd::Complete(answer),
            Err(end) => end,
        }
    }

    async fn relay(&mut self) -> Result<Answer, DownloadEnd> {
        let mut head = self.final_head().await?;
        let is_tunnel = head.status == 101
            || (self.request.method == Method::Connect && (200..300).contains(&head.status));
        if is_tunnel {
            return Err(self.tunnel(Some(head.status)));
        }
        let max_trailer_bytes = self.limits.max_header_bytes;
        let mut body = Body::new(head.framing, max_trailer_bytes);
        let Ok(taken) = body.take(&self.output.filled()[head.len..]) else {
            return Err(self.tunnel(Some(head.status)));
        };
        if let Some(pause) = self.pause_before_another(&head) {
            let is_whole = body.is_done() && self.output.len() == head.len + taken;
            return Err(DownloadEnd::Discarded(Discarded {
                head,
                pause,
                is_whole,
            }));
        }
        let keeps_client =
            self.request.keeps_alive && head.keeps_alive && !self.worker.drain.has_started();
        if let Some(edits) = self.edits {
            edit::response(&mut head, edits, self.output.filled());
        }
        if let Some(cookie) = self.set_cookie {
            head.add_line("Set-Cookie", cookie);
        }
        for (name, value) in self.added {
            head.add_line(name.as_str(), value.to_str().unwrap_or_default());
        }
        head.apply_edits(head.keeps_alive && !keeps_client, self.output);
        self.progress.status.set(Some(head.status));
        self.send(head.len + taken).await?;
        while !body.is_done() {
            self.receive_body(&mut body).await?;
        }
        Ok(Answer { head, keeps_client })
    }

    /// Whether the route's policy prefers another try to the answer whose head begins the output.
    fn pause_before_another(&self, head: &ResponseHead) -> Option<Duration> {
        let lines = head.lines(self.output.filled());
        let fate = Fate::Answered(AnswerHead {
            status: head.status,
            headers: &lines,
        });
        let is_kept = self.progress.is_kept(self.request);
        self.policed?.again(fate, is_kept, &self.worker.rng)
    }

    /// The head of the final response, which begins the output; interim ones are sent on.
    async fn final_head(&mut self) -> Result<ResponseHead, DownloadEnd> {
        if self.output.capacity() == 0 {
            // No buffer is held while the upstream makes up its mind.
            let ready = poll_fn(|cx| self.upstream.poll_read_ready(cx)).await;
            ready.map_err(|e| DownloadEnd::NoAnswer(e.kind()))?;
            *self.output = self.worker.buffers.take();
        }
        let limits = self.limits;
        let mut seen = 0;
        loop {
            let arrived = self.output.filled();
            if arrived.len() > seen
                && (head::may_be_whole(arrived, seen) || arrived.len() >= limits.max_header_bytes)
            {
                match response::parse(arrived, self.request, &limits) {
                    Response::Head(head) if head.is_interim() => {
                        // Which a client hears once, however often its request is sent.
                        let is_told =
                            head.status == 100 && self.policed.is_some_and(|p| !p.first_continue());
                        if is_told {
                            self.output.consume(head.len);
                        } else {
                            self.send(head.len).await?;
                        }
                        seen = 0;
                        continue;
                    }
                    Response::Head(head) => return Ok(head),
                    Response::Odd => return Err(self.tunnel(None)),
                    Response::Partial => {}
                }
            }
            seen = self.output.len();
            if self.output.space().is_empty() {
                self.output.grow(limits.max_header_bytes);
            }
            match read(self.upstream, self.output).await {
                Ok(0) => return Err(DownloadEnd::NoAnswer(io::ErrorKind::UnexpectedEof)),
                Ok(_) => self.progress.has_answer_begun.set(true),
                Err(error) => return Err(DownloadEnd::NoAnswer(error.kind())),
            }
        }
    }

    /// Relays some of the body.
    async fn receive_body(&mut self, body: &mut Body) -> Result<(), DownloadEnd> {
        if let Body::Length { left } = body
            && *left >= SPLICE_FROM
        {
            let left = mem::take(left);
            // Large while under way; a connection that never splices must not pay for it.
            return Box::pin(self.splice(left)).await;
        }
        match read(self.upstream, self.output).await {
            Ok(0) if matches!(body, Body::UntilClose) => {
                *body = Body::Length { left: 0 };
                return Ok(());
            }
            Ok(0) | Err(_) => return Err(DownloadEnd::Incomplete),
            Ok(_) => {}
        }
        match body.take(self.output.filled()) {
            Ok(taken) => self.send(taken).await,
            Err(_) => Err(DownloadEnd::Tunnel),
        }
    }

    /// Moves all that is left of the body, inside the kernel.
    async fn splice(&mut self, left: u64) -> Result<(), DownloadEnd> {
        self.worker.buffers.give(mem::take(self.output));
        let sent = &self.progress.sent;
        match splice_exact(self.worker, self.upstream, self.client, left, sent).await {
            splice::End::Complete => Ok(()),
            splice::End::SourceClosed | splice::End::SourceFailed(_) => {
                Err(DownloadEnd::Incomplete)
            }
            splice::End::SinkFailed(_) => Err(DownloadEnd::ClientLost),
        }
    }

    /// Writes the first `count` bytes of the output to the client.
    async fn send(&mut self, mut count: usize) -> Result<(), DownloadEnd> {
        while count > 0 {
            let sent = write_some(self.client, &self.output.filled()[..count]).await;
            let sent = sent.map_err(|_| DownloadEnd::ClientLost)?;
            self.progress.add_sent(sent);
            self.output.consume(sent);
            count -= sent;
        }
        Ok(())
    }

    fn tunnel(&self, status: Option<u16>) -> DownloadEnd {
        self.progress.status.set(status);
        DownloadEnd::Tunnel
    }
}
