//! The HTTP/2 settings and limits of both sides, each with its reason.

use h2::{client, server};
use outrigger_config::Limits;

/// Bytes a stream may send before we take them: a full-speed stream over 10 ms at 200 Mbit/s.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;

/// Bytes all streams of a connection may send before we take them, on top of what stalled streams
/// hold (see [`super::window`]).
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Streams a client may have open, Envoy's default.
const CONCURRENT_STREAMS: u32 = 1024;

/// Bytes queued per stream for a peer whose socket does not take them.
pub(super) const SEND_BUFFER: usize = 64 * 1024;

/// Streams that we have reset and still know, for a second, so that frames already under way to us
/// are ignored rather than counted as errors. h2's 50 is too few where 1,024 streams may be cancelled
/// at once.
const REMEMBERED_RESETS: usize = CONCURRENT_STREAMS as usize;

/// Streams that a client opened and reset before we saw them ("rapid reset"); more end the
/// connection. Twice what a client library cancels in one go when a call with 64 legs fails.
const UNSEEN_RESETS: usize = 128;

/// Overhead of small DATA frames waiting in h2, in its own measure (256 bytes less the payload each).
/// A turn of a connection reads at most 64 KiB (see [`super::wire`]), which is at most 6,554 frames
/// or 1.7 MB of overhead, and every stream takes its frames out of h2 each turn, stalled or not. So
/// no legitimate stream of small messages reaches this, and h2's own, smaller default would kill some.
const SMALL_FRAME_BUDGET: usize = 4 * 1024 * 1024;

/// How many streams a server takes is known with its SETTINGS only; until then, one.
pub(super) const STREAMS_BEFORE_SETTINGS: usize = 1;

/// Towards clients.
pub(super) fn server(limits: &Limits, connect_protocol: bool) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .max_header_list_size(header_list_size(limits))
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(UNSEEN_RESETS)
        .data_frame_budget(SMALL_FRAME_BUDGET);
    if connect_protocol {
        builder.enable_connect_protocol();
    }
    builder
}

/// Towards destinations.
pub(super) fn client(limits: &Limits) -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .max_header_list_size(header_list_size(limits))
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // Counted over the life of the connection: late frames of streams that clients cancelled
        // would in time end a connection that others still use.
        .max_local_error_reset_streams(None)
        .data_frame_budget(SMALL_FRAME_BUDGET);
    builder
}

fn header_list_size(limits: &Limits) -> u32 {
    u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX)
}
