//! What a running proxy tells of its data plane. Each question has a deadline: a proxy that hangs must
//! not make the one who looks for the reason hang too.

use std::{net::SocketAddr, time::Duration};

use outrigger_config::control::{Explanation, Identity, Question, Reply, Request, Traffic};

use crate::{
    control::{Proxy, unexpected},
    error::Refusal,
};

/// A healthy proxy answers within a millisecond, one that is short of CPU within some hundred.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pages of destinations that are asked for: more than a proxy remembers, so that one that makes up
/// ever more of them comes to an end.
const MOST_PAGES: usize = 200;

/// Who would take a connection, and what would become of it there.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    pub proxy: Identity,
    pub explanation: Explanation,
}

/// Asks the proxy that listens on `listener`; `None`: there is none of ours.
///
/// # Errors
/// When it does not answer, or not this user, or is of another version.
pub fn explain(listener: SocketAddr, question: &Question) -> Result<Option<Explained>, Refusal> {
    let Some(mut control) = Proxy::connect_within(listener.port(), PATIENCE)? else {
        return Ok(None);
    };
    let proxy = control.hello()?;
    let is_there = |own: &SocketAddr| {
        own.port() == listener.port() && (own.ip() == listener.ip() || own.ip().is_unspecified())
    };
    if !proxy.listeners.iter().any(is_there) {
        return Ok(None);
    }
    let doing = "asking the proxy what it would do";
    match control.ask(doing, &Request::Explain(Box::new(question.clone())))? {
        Reply::Explanation(explanation) => Ok(Some(Explained {
            proxy,
            explanation: *explanation,
        })),
        other => Err(unexpected(doing, &other)),
    }
}

/// What goes through the proxy of `port`, all of its pages in one; `None`: none runs there.
///
/// # Errors
/// As [`explain`].
pub fn traffic(port: u16) -> Result<Option<Traffic>, Refusal> {
    let Some(mut control) = Proxy::connect_within(port, PATIENCE)? else {
        return Ok(None);
    };
    control.hello()?;
    let mut traffic = page(&mut control, None)?;
    for _ in 1..MOST_PAGES {
        if !traffic.has_more {
            break;
        }
        let last = traffic.destinations.last().map(|d| d.destination);
        let next = page(&mut control, last)?;
        traffic.destinations.extend(next.destinations);
        traffic.has_more = next.has_more;
        // A destination that was forgotten in between is told here and not in a row.
        traffic.forgotten = next.forgotten;
    }
    Ok(Some(traffic))
}

fn page(control: &mut Proxy, after: Option<SocketAddr>) -> Result<Traffic, Refusal> {
    let doing = "asking the proxy for its traffic";
    match control.ask(doing, &Request::Traffic { after })? {
        Reply::Traffic(traffic) => Ok(*traffic),
        other => Err(unexpected(doing, &other)),
    }
}
