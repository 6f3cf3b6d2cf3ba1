//! nftables over netlink: no other program is needed.

mod encode;
mod error;
mod read_back;
mod socket;

pub use error::NftError;
pub use read_back::{TableInfo, tables, verify};
pub use socket::NetlinkSocket;

use crate::plan::Table;

/// Makes `table` and its sets, owned by `socket`; nothing passes through it yet.
///
/// # Errors
/// When the kernel refuses, with its reason.
pub fn create(socket: &mut NetlinkSocket, table: &Table) -> Result<(), NftError> {
    // Elements go in their own transactions, which bounds the size of a message; nothing reads
    // the sets before the chains come.
    encode::narrow(table)
        .into_iter()
        .try_for_each(|batch| socket.transact(batch))
}

/// Adds the chains and rules of a table made by [`create`], in one transaction: from here on it
/// works.
///
/// # Errors
/// When the kernel refuses, with its reason; then none of the rules is in force.
pub fn widen(socket: &mut NetlinkSocket, table: &Table) -> Result<(), NftError> {
    socket.transact(encode::widen(table))
}

/// Deletes a table that `socket` owns.
///
/// # Errors
/// When the kernel refuses, with its reason.
pub fn delete(socket: &mut NetlinkSocket, table: &str) -> Result<(), NftError> {
    socket.transact(vec![encode::delete(table)])
}
