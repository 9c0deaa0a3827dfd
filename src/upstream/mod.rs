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
use crate::upstream::tls::ClientTls;

/// One configured upstream as one worker sees it.
pub struct Upstream {
    pub(crate) config: config::Upstream,
    tls: Arc<ClientTls>,
    pools: Vec<Rc<Pool>>,
}

impl Upstream {
    /// The upstream of `config`, whose metrics are at `slot`. URLs that are reached just as in
    /// `before`, the upstream of this name in the configuration before, keep their pools; the
    /// pools of others are empty. Each connection takes one of `files`.
    pub fn new(
        slot: usize,
        config: config::Upstream,
        tls: &Arc<ClientTls>,
        before: Option<&Upstream>,
        files: &Arc<Permits>,
        clock: &Clock,
        cells: &Arc<Cells>,
    ) -> Rc<Upstream> {
        let before = before.filter(|before| before.connects_as(&config, tls));
        let pool = |url: &config::Url| {
            let known = before.and_then(|before| before.pools.iter().find(|p| p.url == *url));
            known.cloned().unwrap_or_else(|| {
                let dialer = Dialer::new(url, config.http, &tls.config, config.connect);
                let (clock, cells) = (clock.clone(), cells.clone());
                Pool::new(url.clone(), dialer, files, config.pool_idle_max, slot, clock, cells)
            })
        };
        let pools = config.urls.iter().map(pool).collect();
        Rc::new(Upstream { config, tls: tls.clone(), pools })
    }

    fn connects_as(&self, config: &config::Upstream, tls: &Arc<ClientTls>) -> bool {
        let own = &self.config;
        Arc::ptr_eq(&self.tls, tls)
            && (own.http, own.connect, own.pool_idle_max)
                == (config.http, config.connect, config.pool_idle_max)
    }

    /// Lets go of the pools that `next`, the upstream of this name in the configuration after this
    /// one, has not taken over: their idle connections close at once, the others after the
    /// exchanges that use them.
    pub fn retire(&self, next: Option<&Upstream>) {
        let kept = |pool| next.is_some_and(|next| next.pools.iter().any(|p| Rc::ptr_eq(p, pool)));
        self.pools.iter().filter(|pool| !kept(pool)).for_each(Pool::retire);
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
