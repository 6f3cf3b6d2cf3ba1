//! nftables' registers, whose bytes may be unknown.

use std::rc::Rc;

use super::{Known, Machine, REGISTERS};

impl Machine<'_, '_> {
    pub(super) fn put(
        &mut self,
        at: usize,
        length: usize,
        value: Known<Vec<u8>>,
        label: &'static str,
    ) {
        if self.status.is_some_and(|(status, _)| status == at) {
            self.status = None;
        }
        let end = (at + length).next_multiple_of(4).min(REGISTERS);
        let (bytes, reason) = match value {
            Ok(bytes) => (bytes, None),
            Err(reason) => (vec![0; length], Some(reason)),
        };
        for at in at / 4..end / 4 {
            self.unknown[at].clone_from(&reason);
            self.label[at] = label;
        }
        self.bytes[at..end].fill(0);
        let length = bytes.len().min(REGISTERS.saturating_sub(at));
        self.bytes[at..at + length].copy_from_slice(&bytes[..length]);
    }

    pub(super) fn known(&self, at: usize, length: usize) -> Known<Vec<u8>> {
        let end = (at + length).min(REGISTERS);
        match self.unknown[at / 4..end.div_ceil(4)]
            .iter()
            .flatten()
            .next()
        {
            Some(reason) => Err(reason.clone()),
            None => Ok(self.bytes[at..end].to_vec()),
        }
    }

    /// As [`known`](Self::known), and without it a doubt.
    pub(super) fn get(&mut self, at: usize, length: usize) -> Option<Vec<u8>> {
        match self.known(at, length) {
            Ok(bytes) => Some(bytes),
            Err(reason) => {
                self.doubt(reason.to_string());
                None
            }
        }
    }

    pub(super) fn number(&self, at: usize) -> Known<u32> {
        let bytes = self.known(at, 4)?;
        Ok(u32::from_ne_bytes(
            bytes.try_into().map_err(|_| Rc::from("a register"))?,
        ))
    }
}
