//! Raw bytes over a stream, in the words of a test.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

pub trait Speak {
    /// Writes all of `bytes`.
    fn say(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()>;
    /// Reads exactly `count` bytes.
    fn hear(&mut self, count: usize) -> io::Result<Vec<u8>>;
    /// Reads up to and including `end`, byte for byte, so that what follows stays unread.
    fn hear_until(&mut self, end: &str) -> io::Result<String>;
    /// Reads until the other side closes.
    fn hear_to_end(&mut self) -> io::Result<Vec<u8>>;
    /// Reads one HTTP/1 response with `Content-Length` or chunked body: (head, body as sent).
    fn hear_response(&mut self) -> io::Result<(String, String)>;
    /// Says that nothing more will be said.
    fn finish(&self) -> io::Result<()>;
    /// Ends with a reset.
    fn reset(self) -> io::Result<()>;
}

impl Speak for TcpStream {
    fn say(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.write_all(bytes.as_ref())
    }

    fn hear(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn hear_until(&mut self, end: &str) -> io::Result<String> {
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            let mut byte = [0];
            if self.read(&mut byte)? == 0 {
                let heard = String::from_utf8_lossy(&heard);
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("closed before {end:?}; heard {heard:?}"),
                ));
            }
            heard.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&heard).into_owned())
    }

    fn hear_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        self.read_to_end(&mut heard)?;
        Ok(heard)
    }

    fn hear_response(&mut self) -> io::Result<(String, String)> {
        let head = self.hear_until("\r\n\r\n")?;
        let lower = head.to_ascii_lowercase();
        let body = if lower.contains("transfer-encoding: chunked") {
            self.hear_until("0\r\n\r\n")?
        } else {
            let length = lower
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap_or(0);
            String::from_utf8_lossy(&self.hear(length)?).into_owned()
        };
        Ok((head, body))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn reset(self) -> io::Result<()> {
        socket2::SockRef::from(&self).set_linger(Some(Duration::ZERO))
    }
}
