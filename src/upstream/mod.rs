//! The upstream side: pooled connections to OpenAI-compatible servers, and requests on them.
//!
//! Owns everything between a request that is ready to go out and the response that comes back:
//! [`connect`] (addresses, TCP, TLS, protocol), [`transport`] (the bytes), [`pool`] (which
//! connection), [`h1`] and [`h2`] (what one is and how an exchange goes on it), [`send`] (head rules
//! and attempts), [`upload`] and [`download`] (the two bodies). One [`Upstream`] per worker and
//! configured upstream; nothing here is shared between threads but the TLS configuration.
//!
//! Invariant: the upstream is chosen by configuration only. A request that may have been written
//! is never sent twice.

pub mod connect;
pub mod download;
pub mod h1;
pub mod h1_send;
pub mod h2;
pub mod h2_stream;
pub mod pool;
pub mod send;
pub mod tls;
pub mod transport;
pub mod upload;

use std::rc::Rc;
use std::sync::Arc;

use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config;
use crate::error::Failure;
use crate::limits;
use crate::telemetry::cells::Cells;
use crate::upstream::connect::Dialer;
use crate::upstream::pool::{Lease, Pool};

/// One configured upstream as one worker sees it.
pub struct Upstream {
    pub(crate) config: config::Upstream,
    pools: Vec<Rc<Pool>>,
}

impl Upstream {
    /// Pools for every URL of `config`, all empty; `index` is its place in the metrics. `tls` is
    /// [`tls::client_config`]'s, made once for all workers; each connection takes one of `files`.
    pub fn new(
        index: usize,
        config: config::Upstream,
        tls: &rustls::ClientConfig,
        files: &Arc<Permits>,
        clock: Clock,
        cells: Arc<Cells>,
    ) -> Rc<Upstream> {
        let pools = config
            .urls
            .iter()
            .map(|url| {
                let dialer = Dialer::new(url, config.http, tls, config.connect);
                let (idle_max, clock, cells) = (config.pool_idle_max, clock.clone(), cells.clone());
                Pool::new(url.clone(), dialer, files, idle_max, index, clock, cells)
            })
            .collect();
        Rc::new(Upstream { config, pools })
    }

    /// A connection to the first URL that can be reached; the later ones are tried only when
    /// nothing can have been sent.
    ///
    /// # Errors
    /// The last URL's failure.
    pub(crate) async fn checkout(&self) -> Result<Lease, Failure> {
        let mut failed = None;
        for pool in &self.pools {
            match pool.checkout().await {
                Ok(lease) => return Ok(lease),
                Err(failure) if failure.kind.never_sent() => failed = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(failed.expect("the configuration has at least one URL per upstream"))
    }

    /// Closes connections that have been idle for [`limits::UPSTREAM_IDLE`]; called every few
    /// seconds by the worker.
    pub fn close_idle(&self) {
        for pool in &self.pools {
            pool.close_idle(limits::UPSTREAM_IDLE);
        }
    }
}
