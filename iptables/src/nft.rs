//! nftables over netlink: no other program is needed.

mod encode;
mod error;
mod read_back;
mod socket;
mod watch;

pub use error::NftError;
pub use read_back::{TableInfo, is_leased, tables, verify};
pub use socket::NetlinkSocket;
pub use watch::{chains_ahead, change_socket, log_socket};

use netlink_packet_netfilter::NetfilterProtoFamily;

use crate::plan::{Family, Table};

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

/// Whether the kernel takes a table like `trial`, which is made and deleted in one transaction. Without
/// the privilege to try, that it does.
///
/// To close `socket` waits until the kernel has freed the table, which takes it some 10 ms.
pub(crate) fn is_possible(socket: &mut NetlinkSocket, trial: &Table) -> bool {
    let mut steps: Vec<_> = encode::narrow(trial).into_iter().flatten().collect();
    steps.push(encode::delete(&trial.name));
    let tried = socket.transact(steps);
    !matches!(tried, Err(error) if error.cause.raw_os_error() != Some(libc::EPERM))
}

/// Deletes a table that `socket` owns, or that nobody does.
///
/// # Errors
/// When the kernel refuses, with its reason.
pub fn delete(socket: &mut NetlinkSocket, table: &str) -> Result<(), NftError> {
    socket.transact(vec![encode::delete(table)])
}

/// Deletes a table of iptables-nft with its chain OUTPUT, in one transaction and only if nothing else
/// is in it.
///
/// # Errors
/// When the kernel refuses, because something is in it above all.
pub fn delete_empty(
    socket: &mut NetlinkSocket,
    family: Family,
    table: &str,
) -> Result<(), NftError> {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    socket.transact_in(family, encode::delete_empty(table, "OUTPUT"))
}
