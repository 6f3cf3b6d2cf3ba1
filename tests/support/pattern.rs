//! Bytes of which each position can be checked, so that one lost, doubled or moved is noticed.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

const BLOCK: usize = 64 * 1024;

/// Sends `length` bytes grown from the seed `ours` while it reads and checks as many from `theirs`.
pub fn exchange(stream: TcpStream, length: u64, ours: u64, theirs: u64) -> io::Result<()> {
    let mut to = stream.try_clone()?;
    let sender = thread::spawn(move || {
        send(&mut to, length, ours)?;
        to.shutdown(Shutdown::Write)
    });
    let mut from = stream;
    check(&mut from, length, theirs)?;
    let sent = sender.join().expect("the sender does not panic");
    sent?;
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more bytes than were sent")),
    }
}

/// Sends `length` bytes grown from `seed`.
pub fn send(to: &mut impl Write, length: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut left = length;
    while left > 0 {
        let count = left.min(BLOCK as u64) as usize;
        to.write_all(&pattern.next_block()[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// Reads `length` bytes and checks that they grew from `seed`.
pub fn check(from: &mut impl Read, length: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut heard = vec![0; BLOCK];
    let mut left = length;
    while left > 0 {
        let count = left.min(BLOCK as u64) as usize;
        from.read_exact(&mut heard[..count])?;
        if heard[..count] != pattern.next_block()[..count] {
            let at = length - left;
            return Err(io::Error::other(format!(
                "other bytes within {BLOCK} of {at}"
            )));
        }
        left -= count as u64;
    }
    Ok(())
}

/// One random block, stamped anew with its number for each use: as fast as memory, and no two
/// blocks alike.
struct Pattern {
    block: Vec<u8>,
    number: u64,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        // xorshift64, Marsaglia 2003
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        let block = (0..BLOCK)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        Self { block, number: 0 }
    }

    fn next_block(&mut self) -> &[u8] {
        self.number += 1;
        // A stamp in every page of the block.
        for page in self.block.chunks_mut(4096) {
            page[..8].copy_from_slice(&self.number.to_le_bytes());
        }
        &self.block
    }
}
