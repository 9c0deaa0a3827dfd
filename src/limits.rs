//! Every fixed limit of the gateway in one place; what users may set lives in [`crate::config`].
//!
//! Invariant: nothing in the gateway grows without one of these, or a configured one, above it.

use std::time::Duration;

/// Length of one tick of the timer wheel. Deadlines are rounded up to whole ticks.
pub const TICK: Duration = Duration::from_millis(100);

/// A client connection must deliver its first byte, and a TLS client finish its handshake, by then.
pub const CLIENT_FIRST_BYTE: Duration = Duration::from_secs(10);
/// Time for one complete request head, counted from its first byte.
pub const CLIENT_HEAD: Duration = Duration::from_secs(10);
/// An HTTP/1.1 client connection without a request is closed after this.
pub const CLIENT_IDLE: Duration = Duration::from_secs(75);
/// Longest wait for the next byte of a request body before it is refused with 408.
pub const CLIENT_BODY_IDLE: Duration = Duration::from_secs(30);
/// Largest request head, bytes, on HTTP/1.1 and HTTP/2; above it: 431.
pub const CLIENT_HEAD_BYTES: usize = 64 * 1024;
/// How much of a request body is read before the upstream is contacted; a body that ends within it
/// is sent with its length known and is known to be well framed.
pub const BODY_PREFETCH: usize = 64 * 1024;

/// Bytes of a response after which its head is committed even without a first event.
pub const COMMIT_BYTES: usize = 16 * 1024;
/// Pause between a flushed error event and the cut, so that slow readers see the event
/// (Node's fetch drops what is not yet consumed when the connection breaks).
pub const CUT_LINGER: Duration = Duration::from_millis(250);
/// An upstream that has sent its terminal mark has this long to end the response.
pub const AFTER_TERMINAL: Duration = Duration::from_secs(5);
/// How much of an upstream's error answer is read to be handed on inside an error event.
pub const ERROR_BODY: usize = 16 * 1024;

/// An idle upstream connection is closed after this; common upstreams close theirs at 60-90 s.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(50);
/// Interval of HTTP/2 keep-alive pings; more frequent ones get some servers to close.
pub const UPSTREAM_PING: Duration = Duration::from_secs(30);
/// Time an HTTP/2 upstream has to answer a ping before its connection is dropped.
pub const UPSTREAM_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A further address of the same host is tried in parallel after this (RFC 8305, section 5).
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);
/// HTTP/2 receive window of one upstream stream, bytes: what a lagging client's stream may hold.
pub const UPSTREAM_STREAM_WINDOW: u32 = 64 * 1024;

/// TCP listen backlog.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Unsent bytes the kernel queues per socket (TCP_NOTSENT_LOWAT).
pub const NOTSENT_LOWAT: u32 = 16 * 1024;
/// Open files kept back from the connection limit for listeners, the admin side and logs.
pub const RESERVED_FILES: u64 = 256;
/// Longest request id taken over from a client, visible ASCII characters.
pub const REQUEST_ID: usize = 128;

const _: () = {
    assert!(COMMIT_BYTES <= BODY_PREFETCH);
    assert!(UPSTREAM_IDLE.as_secs() < 60, "upstreams close idle connections from 60 s on");
    assert!(UPSTREAM_PING.as_secs() >= 30, "servers answer faster pings with GOAWAY");
    assert!(CUT_LINGER.as_millis() > TICK.as_millis());
};
