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

pub mod allowance;
pub mod attempts;
pub mod balance;
pub mod breaker;
pub mod connect;
pub mod credential;
mod dial;
pub mod download;
pub mod h1;
pub mod h1_send;
pub mod h2;
pub mod h2_stream;
pub mod health;
pub mod leaks;
pub mod pool;
pub mod resolve;
pub mod retry;
pub mod send;
pub mod tls;
pub mod transport;
pub mod upload;

use std::rc::Rc;
use std::sync::Arc;

use crate::admission::permit::Permits;
use crate::clock::{Clock, Moment};
use crate::config;
use crate::telemetry::cells::{BreakerState, Cells, UpstreamCells};
use crate::upstream::allowance::Allowance;
use crate::upstream::balance::{Endpoint, Endpoints};
use crate::upstream::connect::Dialer;
use crate::upstream::credential::Keys;
use crate::upstream::pool::Pool;
use crate::upstream::retry::Budget;
use crate::upstream::tls::ClientTls;

/// What all workers know of one upstream.
pub struct Known {
    /// Its endpoints.
    pub endpoints: Endpoints,
    /// What is left for retries.
    pub budget: Budget,
    /// Its keys.
    pub keys: Arc<Keys>,
    /// TLS towards it.
    pub tls: Arc<ClientTls>,
    /// Its connections of all workers.
    allowance: Arc<Allowance>,
}

impl Known {
    /// Of an upstream that nobody has asked yet; of endpoints that were there `before`, with what was
    /// known of them.
    pub fn new(
        config: &config::Upstream,
        tls: &Arc<ClientTls>,
        before: Option<&Known>,
    ) -> Arc<Known> {
        let endpoints = Endpoints::new(config, before.map(|before| &before.endpoints));
        let keys = Arc::new(Keys::new(&config.credentials));
        let (max, dials) = (config.pool.max, config.pool.dials);
        let allowance = match before {
            Some(before) => {
                before.allowance.set(max, dials);
                before.allowance.clone()
            }
            None => Allowance::new(max, dials),
        };
        Arc::new(Known { endpoints, budget: Budget::default(), keys, tls: tls.clone(), allowance })
    }
}

impl Known {
    /// What its breakers say together: open if nobody may be asked, closed if anybody may freely.
    pub fn breaker(&self, now: Moment) -> BreakerState {
        let endpoints = self.endpoints.list().iter();
        let states = endpoints.map(|e| e.breaker().map_or(BreakerState::Closed, |b| b.state(now)));
        let best = |state: &BreakerState| match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        };
        states.min_by_key(best).unwrap_or(BreakerState::Closed)
    }
}

/// One configured upstream as one worker sees it.
pub struct Upstream {
    pub(crate) config: config::Upstream,
    known: Arc<Known>,
    /// One for each of its endpoints.
    pools: Vec<Rc<Pool>>,
    slot: usize,
    cells: Arc<Cells>,
}

impl Upstream {
    /// The upstream of `config`, of which all workers know `known`, and whose metrics are at `slot`.
    /// Endpoints that are reached just as in `before`, the upstream of this name in the configuration
    /// before, keep their pools, which go by the new `pool_…`; the pools of others are empty. Each
    /// connection takes one of `files`.
    pub fn new(
        slot: usize,
        config: config::Upstream,
        known: Arc<Known>,
        before: Option<&Upstream>,
        files: &Arc<Permits>,
        clock: &Clock,
        cells: &Arc<Cells>,
    ) -> Rc<Upstream> {
        let before = before.filter(|before| before.connects_as(&config, &known));
        let pool = |endpoint: &Arc<Endpoint>| {
            let known_pool = before.and_then(|before| {
                before.pools.iter().find(|pool| Arc::ptr_eq(&pool.endpoint, endpoint))
            });
            if let Some(pool) = known_pool {
                pool.adopt(config.pool);
                return pool.clone();
            }
            let dialer = Dialer::new(endpoint, config.http, &known.tls.config, config.connect);
            let (allowance, endpoint) = (known.allowance.clone(), endpoint.clone());
            let (clock, cells) = (clock.clone(), cells.clone());
            Pool::new(endpoint, dialer, files, config.pool, allowance, slot, clock, cells)
        };
        let pools = known.endpoints.list().iter().map(pool).collect();
        Rc::new(Upstream { config, known, pools, slot, cells: cells.clone() })
    }

    fn connects_as(&self, config: &config::Upstream, known: &Known) -> bool {
        let own = &self.config;
        Arc::ptr_eq(&self.known.tls, &known.tls)
            && (own.http, own.connect) == (config.http, config.connect)
    }

    /// Whether it may refuse a request after having taken it: only HTTP/2 can.
    fn may_refuse(&self) -> bool {
        self.pools.iter().any(|pool| pool.may_be_h2())
    }

    /// Lets go of the pools that `next`, the upstream of this name in the configuration after this
    /// one, has not taken over: their idle connections close at once, the others after the
    /// exchanges that use them.
    pub fn retire(&self, next: Option<&Upstream>) {
        let kept = |pool| next.is_some_and(|next| next.pools.iter().any(|p| Rc::ptr_eq(p, pool)));
        self.pools.iter().filter(|pool| !kept(pool)).for_each(Pool::retire);
    }

    /// Where its metrics are.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    fn cells(&self) -> &UpstreamCells {
        self.cells.upstream(self.slot)
    }

    /// Closes connections that have been idle for `pool_idle` or are older than `pool_lifetime`;
    /// called every few seconds by the worker.
    pub fn close_idle(&self) {
        self.pools.iter().for_each(Pool::close_idle);
    }

    /// Opens connections until each pool has `pool_warm` of them, as far as that can be done now.
    pub fn warm(&self) {
        self.pools.iter().for_each(Pool::warm);
    }

    /// Gives up connections for which other workers or URLs wait; called each tick by the worker.
    pub fn make_room(&self) {
        self.pools.iter().for_each(Pool::make_room);
    }
}
