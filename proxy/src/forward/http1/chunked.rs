//! The chunked transfer coding, scanned and never decoded: a relay forwards the bytes as they are
//! and needs to know only where the body ends, and that sender and receiver agree on it.

use super::head::is_token;

/// Bytes of one chunk-size line. Extensions in use (signatures) take about 100.
const MAX_SIZE_LINE: usize = 4096;

/// Digits of a chunk size that a 64-bit count can hold.
const MAX_DIGITS: u8 = 16;

/// A scanner of one chunked body; feed it the body in pieces of any size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    /// Bytes left of the current chunk's data.
    left: u64,
    /// Bytes of the current size line, or of the whole trailer section.
    line: usize,
    digits: u8,
    max_trailer_bytes: usize,
    /// The trailer section as it came, with the empty line after it; only if somebody asked.
    trailers: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl State {
    fn is_trailer(self) -> bool {
        matches!(
            self,
            Self::TrailerStart
                | Self::TrailerName
                | Self::TrailerValue
                | Self::TrailerLf
                | Self::EndLf
        )
    }
}

impl Chunked {
    pub fn new(max_trailer_bytes: usize) -> Self {
        Self {
            state: State::Size,
            left: 0,
            line: 0,
            digits: 0,
            max_trailer_bytes,
            trailers: None,
        }
    }

    /// From here on; to be asked before the first byte.
    pub fn keep_trailers(&mut self) {
        self.trailers = Some(Vec::new());
    }

    pub fn trailers(&self) -> Option<&[u8]> {
        self.trailers.as_deref()
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many of `bytes` belong to the body: all, unless it ends among them.
    ///
    /// # Errors
    /// What is wrong, at the first byte that strict framing (RFC 9112, section 7.1) does not allow.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let here = self.left.min((bytes.len() - at) as u64);
                self.left -= here;
                at += here as usize;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
            } else {
                if let Some(trailers) = &mut self.trailers
                    && self.state.is_trailer()
                {
                    trailers.push(bytes[at]);
                }
                self.state = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, &'static str> {
        self.count_line()?;
        Ok(match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.add_digit(byte)?;
                State::Size
            }
            (State::Size, _) if self.digits == 0 => return Err("a chunk size is missing"),
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, b';') => State::Extension,
            (State::Size, _) => return Err("a chunk size holds something else than digits"),
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => State::Extension,
            (State::Extension, _) => return Err("a chunk extension holds a forbidden byte"),
            (State::SizeLf, b'\n') => {
                (self.digits, self.line) = (0, 0);
                if self.left == 0 {
                    State::TrailerStart
                } else {
                    State::Data
                }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size
            }
            (State::DataCr | State::DataLf, _) => return Err("a chunk is longer than its size"),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => State::TrailerName,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerStart | State::TrailerName, _) => {
                return Err("a trailer name is malformed or a line is folded");
            }
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => State::TrailerValue,
            (State::TrailerValue, _) => return Err("a trailer holds a forbidden byte"),
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::SizeLf | State::TrailerLf | State::EndLf, _) => {
                return Err("a line of the chunked body does not end with CRLF");
            }
            (State::Data | State::Done, _) => unreachable!("scanned without steps"),
        })
    }

    fn add_digit(&mut self, digit: u8) -> Result<(), &'static str> {
        self.digits += 1;
        if self.digits > MAX_DIGITS {
            return Err("a chunk size is too large");
        }
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            _ => (digit | 0x20) - b'a' + 10,
        };
        self.left = self.left << 4 | u64::from(value);
        Ok(())
    }

    fn count_line(&mut self) -> Result<(), &'static str> {
        self.line += 1;
        match self.state {
            State::Size | State::Extension if self.line > MAX_SIZE_LINE => {
                Err("a chunk extension is too long")
            }
            State::TrailerStart | State::TrailerName | State::TrailerValue
                if self.line > self.max_trailer_bytes =>
            {
                Err("the trailer section is too long")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(body: &[u8]) -> Result<(usize, bool), &'static str> {
        let mut scanner = Chunked::new(1024);
        let taken = scanner.scan(body)?;
        Ok((taken, scanner.is_done()))
    }

    fn scan_in_pieces(body: &[u8], cuts: &[usize]) -> Result<(usize, bool), &'static str> {
        let mut scanner = Chunked::new(1024);
        let mut taken = 0;
        let mut rest = body;
        for cut in cuts.iter().map(|c| c % (body.len() + 1)) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            taken += scanner.scan(piece)?;
            rest = after;
        }
        taken += scanner.scan(rest)?;
        Ok((taken, scanner.is_done()))
    }

    #[test]
    fn the_body_ends_where_it_says() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A;name=value;flag\r\n0123456789\r\n000\r\n\r\n",
            "1\r\nx\r\n0;last\r\nDigest: abc\r\nX:\r\n\r\n",
        ] {
            let with_more = format!("{body}GET / HTTP/1.1\r\n");
            assert_eq!(
                scan(with_more.as_bytes()),
                Ok((body.len(), true)),
                "{body:?}"
            );
        }
    }

    #[test]
    fn what_two_parsers_might_read_differently_is_refused() {
        for body in [
            "\r\n",
            ";ext\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-1\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5\nhello\r\n",
            "5\r\rhello\r\n",
            "5;a\nb\r\nhello\r\n",
            "5;a\r\rhello\r\n",
            "5;\0\r\nhello\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "10000000000000000\r\n",
            "00000000000000005\r\nhello\r\n",
            "0\r\n folded: x\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\r\n\n",
            "0\r\nA: \0\r\n\r\n",
            "0\r\n\n",
            "g\r\n",
        ] {
            assert!(scan(body.as_bytes()).is_err(), "{body:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let extension = format!("5;{}", "x".repeat(MAX_SIZE_LINE));
        assert!(scan(extension.as_bytes()).is_err());
        let trailers = format!("0\r\n{}", "A: b\r\n".repeat(1000));
        assert!(scan(trailers.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_result(
            body in proptest::collection::vec(
                proptest::sample::select(&b"0135aF;=xyz: \t\r\n\0"[..]), 0..60),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
        ) {
            prop_assert_eq!(scan(&body), scan_in_pieces(&body, &cuts));
        }

        #[test]
        fn well_formed_bodies_are_taken_whole_in_pieces_of_any_size(
            chunks in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 1..300), 0..6),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend(format!("{:x};e=1\r\n", chunk.len()).bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\nT: v\r\n\r\n");
            prop_assert_eq!(scan_in_pieces(&body, &cuts), Ok((body.len(), true)));
        }
    }
}
