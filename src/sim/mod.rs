//! A simulated LLM API (OpenAI's completions and Responses, Anthropic's Messages), for `tidegate demo`,
//! `tidegate simulate`, every integration test and load tests with 10,000 streams and more.
//!
//! Owns the whole way from the listener to the bytes, with faults that real upstreams have.
//! Refuses to share code with the gateway: it writes its own HTTP/1.1 and uses the `h2` crate
//! directly, so that both cannot be wrong in the same way. Invariant: every request it counts ends
//! as exactly one of completed, cancelled or aborted; dropping [`Sim`] ends everything.
//! Cost: one small task per stream and no buffer while a stream is quiet.
//!
//! A request's way: `listen::connection` → `h1`/`h2` `exchange` → [`answer::plan`] →
//! [`script::Script::step`] → `send`.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio::time::Instant;

mod answer;
mod args;
mod certificate;
mod counts;
mod h1;
mod h1_head;
mod h2;
mod listen;
mod messages;
mod options;
mod payload;
mod request;
mod responses;
mod script;

pub use args::SimulateArgs;
pub use certificate::{Certificate, CertificateError, make_certificate};
pub use counts::{Counts, Seen};
pub use options::{Behaviour, Fault, Framing, LineEnd, NAMES, Options, Split, Tls};
pub use payload::Kind;
pub use script::expected_body;

use crate::limits;
use counts::Ledger;

/// What all connections share.
struct Shared {
    ledger: Arc<Ledger>,
    defaults: RwLock<Arc<Behaviour>>,
    requests: AtomicU64,
    h1: bool,
    h2: bool,
    h2_max_streams: Option<u32>,
    window: Option<u32>,
    slow_accept: Duration,
    hurry: AtomicBool,
}

impl Shared {
    /// See [`Sim::hurry`].
    fn hurries(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    fn defaults(&self) -> Arc<Behaviour> {
        // The value is replaced whole, so a poisoned lock holds a good one.
        Arc::clone(&self.defaults.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number for `x-request-id`, counted from 1.
    fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A running simulator; dropping it closes the listener and every connection.
pub struct Sim {
    addr: SocketAddr,
    shared: Arc<Shared>,
    running: AbortHandle,
}

impl Sim {
    /// Listens on `listen` (port 0 for any) and serves on the current tokio runtime, whichever
    /// flavour that is.
    ///
    /// # Errors
    /// The address cannot be bound, the certificate is unusable, or no protocol is left on.
    pub async fn start(listen: SocketAddr, options: Options) -> io::Result<Self> {
        let Options { defaults, tls, h2, h1, h2_max_streams, slow_accept, window } = options;
        if !h1 && !h2 {
            let fault = "both HTTP/1.1 and HTTP/2 are switched off";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        let tls = match tls {
            None => None,
            Some(tls) => Some(
                certificate::acceptor(&tls.certificate, h1, h2)
                    .map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, fault))?,
            ),
        };
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(limits::LISTEN_BACKLOG.unsigned_abs())?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            ledger: Arc::default(),
            defaults: RwLock::new(Arc::new(defaults)),
            requests: AtomicU64::new(0),
            h1,
            h2,
            h2_max_streams,
            window,
            slow_accept,
            hurry: AtomicBool::new(false),
        });
        let task = tokio::spawn(listen::run(listener, tls, Arc::clone(&shared)));
        Ok(Self { addr, shared, running: task.abort_handle() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A live snapshot of the counters.
    pub fn counts(&self) -> Counts {
        self.shared.ledger.counts()
    }

    /// Waits until `what` holds for the counters; woken by each change, it never polls.
    ///
    /// # Errors
    /// The counts at the deadline, if it did not come true by then.
    pub async fn wait_for(
        &self,
        what: impl Fn(&Counts) -> bool,
        deadline: Duration,
    ) -> Result<(), Counts> {
        self.shared.ledger.wait_for(what, deadline).await
    }

    /// The last 64 requests, oldest first, each recorded when its body has ended.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.ledger.seen()
    }

    /// How many requests with this `sim-stream`, and with `sim-fault-times`, have come; of the last
    /// 1,024 such streams.
    pub fn attempts(&self, stream: u64) -> u32 {
        self.shared.ledger.attempts(stream)
    }

    /// Good streams, those that run and those to come, end with the events that they have sent and
    /// their mark, whatever `sim-count` had asked for.
    pub fn hurry(&self) {
        self.shared.hurry.store(true, Ordering::Relaxed);
    }

    /// Zeroes the counters and forgets the requests seen, as `GET /sim/reset` does.
    pub fn reset(&self) {
        self.shared.ledger.reset();
    }

    /// Changes the behaviour of requests from now on, so that an upstream can fail and recover.
    pub fn set_defaults(&self, behaviour: Behaviour) {
        let mut defaults = self.shared.defaults.write().unwrap_or_else(PoisonError::into_inner);
        *defaults = Arc::new(behaviour);
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Keeps the rhythm of a stream: each wait counts from when the one before was due, so that the
/// cost of sending does not add up.
struct Pace {
    due: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { due: Instant::now() }
    }

    /// When to go on after `wait`; `None` for at once. A stream that was held up for longer goes
    /// on from now instead of catching up in a burst.
    fn next(&mut self, wait: Duration) -> Option<Instant> {
        if wait.is_zero() {
            return None;
        }
        self.due = (self.due + wait).max(Instant::now());
        Some(self.due)
    }
}
