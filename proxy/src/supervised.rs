//! The link between a proxy and the supervisor that started it, a socket pair of which the proxy has
//! one end as its standard input. Down it come the configuration and the listening sockets, which
//! outlive any one proxy; up it goes the word that the proxy serves; and its end tells each side that
//! the other one is gone.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// What one message can carry beside it (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;
/// In bytes, of a configuration in JSON: far above 100,000 endpoints.
const MAX_OFFER: usize = 64 << 20;
/// The proxy has all that it needs and would bind next.
const PREPARED: &[u8] = b"prepared\n";
const READY: &[u8] = b"ready\n";
const DONE: &[u8] = b"done\n";
/// The answer to [`PREPARED`].
const GO: u8 = b'g';

/// What a supervisor asks of a proxy that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Leave the listeners, the control socket and the admin listener to another proxy.
    Yield,
    /// Take them back.
    Resume,
    /// Let go of the capture, since another proxy has one in force. Live connections go on.
    Release,
    /// End, since all that was captured for have ended. It is not answered.
    Desert,
}

/// What a proxy is started with instead of what it would find or bind by itself.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets, in place of `listen`.
    pub listeners: Vec<OwnedFd>,
    /// In place of `admin`.
    pub admin: Option<OwnedFd>,
    /// Of an earlier process of this service, with the names of their tables.
    pub anchors: Vec<(String, OwnedFd)>,
    /// The listeners are to outlive this process in the service manager's store.
    pub are_stored: bool,
    pub supervisor: Option<Supervisor>,
}

impl Inherited {
    /// Every socket that came with it.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().chain(&self.admin).map(AsFd::as_fd)
    }
}

/// The proxy's end of the link.
#[derive(Debug)]
pub struct Supervisor(StdUnixStream);

/// How a supervisor leaves its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// It was killed.
    Gone,
    /// There is nobody left to be captured for.
    Deserted,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    /// The text of the configuration file.
    config: String,
    listeners: usize,
    has_admin: bool,
}

/// The supervisor's side: what the proxy at the other end of `link` is to serve.
///
/// # Errors
/// When the proxy is gone, or does not take it within the link's timeout.
pub fn offer(
    link: &StdUnixStream,
    config: &str,
    listeners: &[impl AsFd],
    admin: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let offer = Offer {
        config: config.into(),
        listeners: listeners.len(),
        has_admin: admin.is_some(),
    };
    let mut line = serde_json::to_vec(&offer)?;
    line.push(b'\n');
    let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).chain(admin).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("more sockets than one message can carry"));
    }
    let sent = sendmsg(
        link,
        &[IoSlice::new(&line)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    (&*link).write_all(&line[sent..])
}

/// The supervisor's side: waits for the word that the proxy serves.
///
/// # Errors
/// When it ends before, or past the link's timeout.
pub fn await_ready(link: &StdUnixStream) -> io::Result<()> {
    await_word(link, READY)
}

/// The supervisor's side: waits for a proxy that only the sockets are missing to.
///
/// # Errors
/// As [`await_ready`].
pub fn await_prepared(link: &StdUnixStream) -> io::Result<()> {
    await_word(link, PREPARED)
}

/// The supervisor's side: lets a prepared proxy serve.
///
/// # Errors
/// When it is gone.
pub fn go(mut link: &StdUnixStream) -> io::Result<()> {
    link.write_all(&[GO])
}

/// The supervisor's side: has a serving proxy do something.
///
/// # Errors
/// When it is gone, or does not do it within the link's timeout.
pub fn say(mut link: &StdUnixStream, word: Word) -> io::Result<()> {
    link.write_all(&[word.letter()])?;
    await_word(link, DONE)
}

fn await_word(mut link: &StdUnixStream, expected: &[u8]) -> io::Result<()> {
    let mut word = vec![0; expected.len()];
    link.read_exact(&mut word)?;
    if word == expected {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

impl Word {
    fn letter(self) -> u8 {
        match self {
            Self::Yield => b'y',
            Self::Resume => b'r',
            Self::Release => b'l',
            Self::Desert => b'd',
        }
    }

    fn of(letter: u8) -> Option<Self> {
        [Self::Yield, Self::Resume, Self::Release, Self::Desert]
            .into_iter()
            .find(|word| word.letter() == letter)
    }
}

/// The supervisor's side: asks the proxy to end, since all that it was captured for have ended.
///
/// # Errors
/// When it is gone, or does not take it within the link's timeout.
pub fn desert(mut link: &StdUnixStream) -> io::Result<()> {
    link.write_all(&[Word::Desert.letter()])
}

/// The proxy's side: takes over what the supervisor offers, and the text of the configuration.
///
/// # Errors
/// When `link` is no such link, or breaks.
pub fn take(link: OwnedFd) -> io::Result<(String, Inherited)> {
    let link = StdUnixStream::from(link);
    let mut text = Vec::new();
    let mut descriptors = Vec::new();
    while text.last() != Some(&b'\n') {
        if receive(&link, &mut text, &mut descriptors)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if text.len() > MAX_OFFER {
            return Err(invalid("the configuration does not end"));
        }
    }
    let offer: Offer = serde_json::from_slice(&text)?;
    if descriptors.len() != offer.listeners + usize::from(offer.has_admin) {
        return Err(invalid("not as many sockets came as were announced"));
    }
    let admin = offer.has_admin.then(|| descriptors.pop()).flatten();
    let inherited = Inherited {
        listeners: descriptors,
        admin,
        supervisor: Some(Supervisor(link)),
        ..Inherited::default()
    };
    Ok((offer.config, inherited))
}

impl Supervisor {
    /// Says that this proxy is prepared, and waits until it may bind: another one may serve still.
    ///
    /// # Errors
    /// When the supervisor is gone, or has no use for this proxy.
    pub(crate) fn await_turn(&self) -> io::Result<()> {
        (&self.0).write_all(PREPARED)?;
        let mut go = [0];
        (&self.0).read_exact(&mut go)?;
        if go == [GO] {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// Says that this proxy serves.
    ///
    /// # Errors
    /// When the runtime cannot watch the link.
    pub(crate) async fn serve(self) -> io::Result<Link> {
        self.0.set_nonblocking(true)?;
        let mut link = UnixStream::from_std(self.0)?;
        // A supervisor that is gone already is told from the next read.
        let _ = link.write_all(READY).await;
        Ok(Link(link))
    }
}

/// The link of a proxy that serves.
#[derive(Debug)]
pub(crate) struct Link(UnixStream);

impl Link {
    /// What the supervisor asks for next; none once it is gone.
    pub(crate) async fn next(&mut self) -> Option<Word> {
        let mut letter = [0];
        self.0.read_exact(&mut letter).await.ok()?;
        Word::of(letter[0])
    }

    pub(crate) async fn done(&mut self) {
        let _ = self.0.write_all(DONE).await;
    }
}

fn receive(
    link: &StdUnixStream,
    text: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut chunk = [0; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        link,
        &mut [IoSliceMut::new(&mut chunk)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    text.extend_from_slice(&chunk[..message.bytes]);
    Ok(message.bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener, thread};

    use super::*;
    use crate::testing::run;

    #[test]
    fn what_is_offered_arrives_whole() {
        let (ours, theirs) = StdUnixStream::pair().expect("a pair");
        let config = "# a long one\n".repeat(100_000);
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("bound"));
        let admin = TcpListener::bind("127.0.0.1:0").expect("bound");
        let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect();
        let (text, inherited) = thread::scope(|scope| {
            let taking = scope.spawn(|| take(theirs.into()));
            offer(&ours, &config, &listeners, Some(admin.as_fd())).expect("taken");
            taking.join().expect("no panic").expect("an offer")
        });
        assert_eq!(text, config);
        assert_eq!(inherited.sockets().count(), 3);
        let arrived: Vec<_> = inherited
            .listeners
            .into_iter()
            .map(|fd| TcpListener::from(fd).local_addr())
            .collect();
        assert_eq!(format!("{arrived:?}"), format!("{addresses:?}"));
    }

    #[test]
    fn readiness_goes_up_and_the_end_comes_down() {
        for (part, last) in [
            (drop as fn(StdUnixStream), None),
            (|link| desert(&link).expect("taken"), Some(Word::Desert)),
        ] {
            let (ours, theirs) = StdUnixStream::pair().expect("a pair");
            let proxy = thread::spawn(move || {
                run(async {
                    let mut link = Supervisor(theirs).serve().await.expect("served");
                    assert_eq!(link.next().await, Some(Word::Yield));
                    link.done().await;
                    assert_eq!(link.next().await, last);
                });
            });
            await_ready(&ours).expect("ready");
            say(&ours, Word::Yield).expect("done");
            assert!(!proxy.is_finished());
            part(ours);
            proxy.join().expect("it noticed");
        }
    }

    #[test]
    fn another_standard_input_is_no_link() {
        let nothing = File::open("/dev/null").expect("there");
        assert!(take(nothing.into()).is_err());
    }
}
