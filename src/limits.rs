//! Every fixed limit of the gateway in one place; what users may set lives in [`crate::config`].
//!
//! Invariant: nothing in the gateway grows without one of these, or a configured one, above it.

use std::time::Duration;

/// Length of one tick of the timer wheel. Deadlines are rounded up to whole ticks, counted from the
/// tick that has begun: they come within one tick of their time, before or after it.
pub const TICK: Duration = Duration::from_millis(100);

/// A client connection must deliver its first byte, and a TLS client finish its handshake, by then.
pub const CLIENT_FIRST_BYTE: Duration = Duration::from_secs(10);
/// Bytes of further, pipelined requests that are read while a response streams; beyond it nothing
/// is read until the response is over.
pub const PIPELINED: usize = 16 * 1024;
/// Time for one complete request head, counted from its first byte.
pub const CLIENT_HEAD: Duration = Duration::from_secs(10);
/// An HTTP/1.1 client connection without a request is closed after this.
pub const CLIENT_IDLE: Duration = Duration::from_secs(75);
/// Longest wait for the next byte of a request body before it is refused with 408.
pub const CLIENT_BODY_IDLE: Duration = Duration::from_secs(30);
/// A request body may be slower than `limits.body_rate` for so long.
pub const BODY_RATE_GRACE: Duration = Duration::from_secs(5);
/// What a request body that streams is charged, bytes: the piece on its way to the upstream, and what
/// the client's connection has read behind it.
pub const BODY_STREAMING: usize = 192 * 1024;
/// When a request that found no room in `limits.memory` may come again.
pub const MEMORY_WAIT: Duration = Duration::from_secs(1);
/// Largest request head, bytes, on HTTP/1.1 and HTTP/2; above it: 431.
pub const CLIENT_HEAD_BYTES: usize = 64 * 1024;
/// Most header fields of a request on HTTP/1.1; above it: 431. hyper's own limit is the same.
pub const CLIENT_HEAD_FIELDS: u16 = 100;
/// How much of a request body is read before the upstream is contacted; a body that ends within it
/// is sent with its length known and is known to be well framed.
pub const BODY_PREFETCH: usize = 64 * 1024;

/// Least room for one read of a stream whose client lags, bytes.
pub const READ_LEAST: usize = 1024;

/// Bytes of a response after which its head is committed even without a first event.
pub const COMMIT_BYTES: usize = 16 * 1024;
/// Largest piece of a response handed to a client's connection at once, bytes.
pub const PIECE: usize = 16 * 1024;
/// A shorter piece of a response that waits for an HTTP/2 client is copied, bytes: it could keep a
/// read buffer of its connection alive that is many times as large.
pub const PIECE_SHARED: usize = 8 * 1024;
/// A worker's read buffer, bytes: the most that is read of one stream before the next has its turn.
pub const SCRATCH: usize = 64 * 1024;
/// Bytes of that buffer that nothing is read into, at each of its ends: room for the framing of what
/// goes on, so that it is written in one piece. A chunk's size line has at most 18 bytes.
pub const SCRATCH_MARGIN: usize = 32;
/// Pause between a flushed error event and the cut, so that slow readers see the event
/// (Node's fetch drops what is not yet consumed when the connection breaks).
pub const CUT_LINGER: Duration = Duration::from_millis(250);
/// An upstream that has sent its terminal mark has this long to end the response.
pub const AFTER_TERMINAL: Duration = Duration::from_secs(5);
/// Largest event that is taken for a chunk that only tells usage, where such are withheld, bytes; so much of
/// one event is held back at most. They have some 300.
pub const USAGE_CHUNK: usize = 4 * 1024;
/// Answers whose clients have left that are read on at once to learn their usage, over all workers
/// (`usage_drain`); a further one is cancelled as if there were no such key.
pub const USAGE_DRAINS: usize = 256;
/// How much of an upstream's error answer is read to be handed on inside an error event.
pub const ERROR_BODY: usize = 16 * 1024;

/// Interval of HTTP/2 keep-alive pings; more frequent ones get some servers to close.
pub const UPSTREAM_PING: Duration = Duration::from_secs(30);
/// Time an HTTP/2 upstream has to answer a ping before its connection is dropped.
pub const UPSTREAM_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A further address of the same host is tried in parallel after this (RFC 8305, section 5).
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);
/// HTTP/2 receive window of one upstream stream, bytes: what a lagging client's stream may hold.
pub const UPSTREAM_STREAM_WINDOW: u32 = 64 * 1024;
/// What h2 may queue of one request body, bytes, while the upstream's window is open.
pub const UPSTREAM_SEND_BUFFER: usize = 64 * 1024;
/// Streams on one HTTP/2 connection whose whole windows may be filled with frames of one byte,
/// unread because their clients lag, before h2 gives the connection up.
pub const UPSTREAM_LAGGING: usize = 1024;
/// Compression table that an upstream may use for its response heads, bytes (RFC 7541, 4.2). None: heads
/// come once per stream and are mostly dates and ids, which would fill a table of 4 KiB, with h2's own
/// 12 KiB around it, on every connection.
pub const UPSTREAM_HEADER_TABLE: u32 = 0;
/// h2's budget for small DATA frames that nobody has read, bytes: h2 charges each of them 256 bytes
/// less its payload. It is as large as [`UPSTREAM_LAGGING`] streams need, since what one of them can
/// hold is bounded by its window: some 130 kB in frames of a token each (250 bytes), and at the very
/// worst, in frames of one byte, some 17 MB.
pub const UPSTREAM_FRAME_BUDGET: usize = UPSTREAM_LAGGING * UPSTREAM_STREAM_WINDOW as usize * 255;
/// Streams that were reset and are remembered for a second, so that what was still on its way for
/// them is passed over in silence; a frame for any further one is answered with another reset.
pub const UPSTREAM_RESETS: usize = 16;
/// Largest head of an upstream's response, bytes, interim (1xx) heads before it included.
pub const RESPONSE_HEAD_BYTES: usize = 64 * 1024;
/// Most fields in a head of an HTTP/1.1 response.
pub const RESPONSE_HEAD_FIELDS: usize = 128;
/// How much is read at once while an HTTP/1.1 response's head is awaited, bytes. It lies on the
/// stack; what comes with the head's end is kept until it is asked for.
pub const RESPONSE_HEAD_READ: usize = 8 * 1024;

/// Most bytes of chunk extensions in one message.
pub const CHUNK_EXTENSION_BYTES: u16 = 4 * 1024;
/// Most bytes of trailer lines in one message, line ends included.
pub const CHUNK_TRAILER_BYTES: u16 = 16 * 1024;
/// Longest value of a watched JSON key that is kept, bytes of UTF-8.
pub const SCANNED_VALUE_BYTES: usize = 256;
/// Most upstreams of a configuration, and most that metrics are kept for in the life of a process,
/// over all its reloads.
pub const UPSTREAMS: usize = 256;
/// Most routes of a configuration, and most pairs of a path and an upstream that metrics are kept for
/// in the life of a process, over all its reloads.
pub const ROUTES: usize = 1024;
/// Upstreams of one route.
pub const ROUTE_UPSTREAMS: usize = 8;
/// Most pairs of a tenant and a model whose tokens are counted apart in the life of a process, over all
/// its reloads; the tokens of further ones are counted together. A pair costs seven series, and 56
/// bytes on each worker.
pub const USAGE_PAIRS: usize = 4096;
/// Text of the log that waits for the writing thread, bytes: some 4,000 lines. Further lines are
/// dropped and counted. As much again may be in that thread's hands.
pub const LOG_QUEUE: usize = 2 << 20;

/// Most that one request is charged of its tenant's tokens, minutes' worth of that limit: a day. A
/// count that is nonsense does not shut the tenant out until the next start.
pub const TOKEN_MINUTES: u32 = 24 * 60;
/// Client addresses (an IPv6 one is its /64) whose streams, rate and failed attempts are
/// remembered at once; for one more, an idle one is forgotten. At 100 bytes each at most they cost
/// up to 6.6 MB; a test of `admission::addresses` measures it.
pub const ADDRESSES: usize = 65_536;

/// First pause after a failed accept (out of files).
pub const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause after failed accepts.
pub const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// TCP listen backlog.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Unsent bytes the kernel queues per socket (TCP_NOTSENT_LOWAT).
pub const NOTSENT_LOWAT: u32 = 16 * 1024;
/// Open files kept back from the connection limit for listeners, the admin side and logs.
pub const RESERVED_FILES: u64 = 256;
/// When a request for which no file could be opened may come again.
pub const FILES_WAIT: Duration = Duration::from_secs(1);
/// Unacknowledged data or probes on any socket give it up after this (TCP_USER_TIMEOUT).
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections dialled at once towards one HTTP/2 endpoint by one worker.
pub const DIALS_AT_ONCE: usize = 16;
/// While connections to an upstream are as many as `pool_max`, a worker serves its own requests before
/// those of another worker that have waited at most so much longer: taking a connection from one worker
/// to another is a handshake.
pub const POOL_YIELD: Duration = Duration::from_secs(1);
/// Pause before connections are opened in advance again (`pool_warm`), after one that failed.
pub const WARM_PAUSE: Duration = Duration::from_secs(10);
/// How long a new HTTP/2 upstream connection is expected to make room once its SETTINGS come.
pub const SETTINGS_WAIT: Duration = Duration::from_secs(1);
/// Attempts to find a live pooled connection before a request fails; each lost one had closed
/// before a byte of the request was written.
pub const POOL_ATTEMPTS: usize = 4;
/// A response of known length that has all come over HTTP/2 must be ended by its stream within
/// this, or the stream is reset.
pub const REUSE_WAIT: Duration = Duration::from_secs(1);
/// How long a reload waits for a worker to go by the new configuration before it is reported; a
/// worker that takes longer does so at its next turn.
pub const RELOAD_WAIT: Duration = Duration::from_secs(5);
/// After the drain deadline: time for error events to reach clients before the process ends.
pub const CUT_WAIT: Duration = Duration::from_secs(5);
/// After an unclean end the gateway reads on and discards for so long, so that unread bytes of the
/// client do not turn the FIN into a reset that takes our last bytes with it.
pub const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How much is read and discarded then, bytes.
pub const CLOSE_BYTES: usize = 256 * 1024;
/// Receive window of one client HTTP/2 stream, bytes: what of a request body is under way.
pub const CLIENT_STREAM_WINDOW: u32 = 64 * 1024;
/// Receive window of one client HTTP/2 connection, bytes.
pub const CLIENT_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What small DATA frames of request bodies that nobody has taken yet may cost one client HTTP/2
/// connection, bytes over their contents; beyond it: GOAWAY. A frame of one byte costs 255.
pub const CLIENT_FRAMES_BUDGET: usize = 512 * 1024;
/// Frames handed to one client HTTP/2 connection in a row before it has its turn to write them, of
/// [`PIECE`] bytes at most: what h2 holds of answers when the socket stops taking any. It also keeps
/// some 400 bytes for each of the most that ever waited.
pub const CLIENT_FRAMES_QUEUED: u32 = 32;
/// Streams of one client HTTP/2 connection that are remembered after we reset them.
pub const CLIENT_RESETS_KEPT: usize = 10;
/// Streams of one client HTTP/2 connection that it may reset before we have looked at them; beyond
/// it: GOAWAY.
pub const CLIENT_RESETS_UNSEEN: usize = 20;
/// Connections the admin listener serves at once.
pub const ADMIN_CONNECTIONS: usize = 64;
/// An admin connection is closed after this.
pub const ADMIN_CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Longest request id taken over from a client, visible ASCII characters.
pub const REQUEST_ID: usize = 128;
/// The last part of `limits.memory` is kept for work that has begun: one in so many. New requests
/// are refused once 95 % are used.
pub const MEMORY_RESERVE: usize = 20;
/// While requests of both classes wait for an upstream, one grant in so many goes to `batch`; and
/// the queue's part that `interactive` requests cannot take from it is one in so many.
pub const BATCH_SHARE: usize = 8;

const _: () = {
    assert!(COMMIT_BYTES <= BODY_PREFETCH);
    assert!(UPSTREAM_PING.as_secs() >= 30, "servers answer faster pings with GOAWAY");
    assert!(BATCH_SHARE >= 2, "`interactive` is served first");
    assert!(CUT_LINGER.as_millis() > TICK.as_millis());
};

/// How long an upstream's key rests that has had its share, when the upstream does not say.
pub const KEY_REST: Duration = Duration::from_secs(10);
/// The longest that it rests, whatever the upstream says.
pub const KEY_REST_MAX: Duration = Duration::from_secs(600);
/// How often files with keys are looked at, at most.
pub const KEY_LOOK: Duration = Duration::from_secs(5);
/// Connections that the health check of one endpoint may have open; one is used.
pub const HEALTH_FILES: usize = 4;
/// How often an HTTP/1.1 client that is in the middle of a body is looked after, should nobody read it:
/// whether it has left shows nowhere else.
pub const LEFT_LOOK: Duration = Duration::from_secs(1);
