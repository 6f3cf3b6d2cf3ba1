//! The terminal that a live view is drawn on: keys one by one, its size, and as it was when done.

use std::{
    env,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
    termios::{
        LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
    },
};

use crate::sys::Signals;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    Up,
    Down,
    Left,
    Right,
}

/// Standard input and output as a screen; as before when dropped.
#[derive(Debug)]
pub(crate) struct Screen {
    before: Termios,
    signals: Signals,
}

impl Screen {
    /// None where standard input or output is no terminal that can be drawn on.
    ///
    /// # Errors
    /// When it cannot be set.
    pub(crate) fn open() -> io::Result<Option<Self>> {
        if !can_draw(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(None);
        }
        let signals = Signals::block(&[Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT])?;
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        // Ctrl-C is a key like others, for else nobody would tidy up.
        raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let screen = Self { before, signals };
        print(ENTER)?;
        Ok(Some(screen))
    }

    /// Columns and rows.
    pub(crate) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            _ => (80, 24),
        }
    }

    /// Shows `lines` in place of what was there, as far as they fit.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(crate) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = self.size();
        let mut frame = String::from("\x1b[H");
        for (n, line) in lines.iter().take(rows).enumerate() {
            if n > 0 {
                frame += "\r\n";
            }
            frame.extend(line.chars().take(columns));
            frame += "\x1b[K";
        }
        frame += "\x1b[J";
        print(&frame)
    }

    /// The next key before `deadline`; a signal to end, and the terminal's end, are [`Key::Quit`].
    ///
    /// # Errors
    /// The kernel's own.
    pub(crate) fn key(&self, deadline: Instant) -> io::Result<Option<Key>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let stdin = io::stdin();
            let mut ready = [
                PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, Some(&timespec(left))) {
                Ok(0) => return Ok(None),
                // The window's size has changed, say.
                Err(rustix::io::Errno::INTR) => return Ok(None),
                Err(error) => return Err(error.into()),
                Ok(_) if !ready[1].revents().is_empty() => return Ok(Some(Key::Quit)),
                Ok(_) => {
                    let mut bytes = [0; 16];
                    let count = rustix::io::read(stdin.as_fd(), &mut bytes)?;
                    if count == 0 {
                        return Ok(Some(Key::Quit));
                    }
                    if let Some(key) = key_of(&bytes[..count]) {
                        return Ok(Some(key));
                    }
                }
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = print(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Of words that are to be seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

/// `text` in bold and in that colour where standard output is a terminal and `NO_COLOR` does not forbid it.
pub(crate) fn paint(colour: Colour, text: &str) -> String {
    let is_forbidden = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if is_forbidden || !can_draw(io::stdout().is_terminal()) {
        return text.to_owned();
    }
    format!("\x1b[1;{}m{text}\x1b[0m", colour as u8)
}

/// One that calls itself dumb understands no escapes.
fn can_draw(is_terminal: bool) -> bool {
    is_terminal && env::var_os("TERM").is_none_or(|kind| kind != "dumb")
}

/// Clears standard output if it is a terminal.
pub(crate) fn clear() {
    if can_draw(io::stdout().is_terminal()) {
        let _ = print("\x1b[H\x1b[2J");
    }
}

/// Arrows come as `ESC [ A` or, from some terminals, `ESC O A`; vi's letters do as well.
fn key_of(bytes: &[u8]) -> Option<Key> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    match bytes {
        [b'q' | b'Q' | CTRL_C | CTRL_D, ..] => Some(Key::Quit),
        [0x1b, b'[' | b'O', b'A', ..] | [b'k', ..] => Some(Key::Up),
        [0x1b, b'[' | b'O', b'B', ..] | [b'j', ..] => Some(Key::Down),
        [0x1b, b'[' | b'O', b'C', ..] | [b'l', ..] => Some(Key::Right),
        [0x1b, b'[' | b'O', b'D', ..] | [b'h', ..] => Some(Key::Left),
        _ => None,
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_are_known_in_both_of_their_forms() {
        for (bytes, key) in [
            (&b"\x1b[A"[..], Some(Key::Up)),
            (b"\x1bOB", Some(Key::Down)),
            (b"\x1b[C", Some(Key::Right)),
            (b"h", Some(Key::Left)),
            (b"\x03", Some(Key::Quit)),
            (b"\x1b", None),
            (b"x", None),
        ] {
            assert_eq!(key_of(bytes), key, "{bytes:?}");
        }
    }
}
