//! What happens to one request, from its head to the body of its answer.
//!
//! [`handle`] is the whole way on one screen; [`check`], [`route`], [`auth`], [`admit`] and
//! [`reply`] are its steps. One [`Gateway`] per worker.

pub mod admit;
pub mod auth;
pub mod check;
pub mod handle;
pub mod reply;
pub mod route;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::route::Routes;
use crate::permit::Permits;
use crate::stream::control::Patience;
use crate::stream::ground::{Ground, Rules, Scratch};
use crate::stream::life::{Live, Place};
use crate::telemetry::cells::Cells;
use crate::upstream::Upstream;
use crate::wire::wheel::Wheel;

/// What a worker needs to serve requests.
pub struct Gateway {
    /// Time, wheel and metrics.
    pub ground: Rc<Ground>,
    /// What is borne from clients that lag.
    pub patience: Patience,
    /// Set from the moment a drain begins.
    pub draining: Cell<bool>,
    pub(crate) routes: Routes,
    pub(crate) places: Vec<Rc<Place>>,
    pub(crate) rules: Vec<Rc<Rules>>,
    pub(crate) upstreams: Vec<Rc<Upstream>>,
    pub(crate) streams: Arc<Permits>,
    pub(crate) commit_after: Option<Duration>,
    pub(crate) fault: Option<FaultHook>,
    /// Every response is left to the HTTP library.
    pub no_relay: bool,
}

/// Called with each request's head before it is sent on; tests make it panic.
pub type FaultHook = fn(&http::HeaderMap);

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// The configuration.
    pub config: Arc<Config>,
    /// Places for proxied requests.
    pub streams: Arc<Permits>,
    /// TLS of each upstream, in the order of the configuration.
    pub tls: Vec<Arc<rustls::ClientConfig>>,
    /// See [`FaultHook`].
    pub fault: Option<FaultHook>,
    /// Every response is left to the HTTP library.
    pub no_relay: bool,
}

impl Gateway {
    /// A worker's gateway over what all share.
    pub fn new(shared: &Shared, clock: &Clock, wheel: &Wheel, cells: &Arc<Cells>) -> Rc<Gateway> {
        let config = &shared.config;
        let upstreams: Vec<_> = config
            .upstreams
            .iter()
            .zip(&shared.tls)
            .enumerate()
            .map(|(index, (upstream, tls))| {
                Upstream::new(index, upstream.clone(), tls, clock.clone(), cells.clone())
            })
            .collect();
        let places = config.routes.iter().enumerate().map(|(route_index, route)| {
            Rc::new(Place {
                route: route.path.clone(),
                route_index,
                upstream: config.upstreams[route.upstream].name.clone(),
                upstream_index: route.upstream,
            })
        });
        let stream = &config.stream;
        let rules = config.routes.iter().map(|route| {
            Rc::new(Rules {
                heartbeat: stream.heartbeat,
                style: route.heartbeat_style,
                first_byte: stream.first_byte,
                idle: stream.idle,
                total: stream.total,
                max_event: stream.max_event,
            })
        });
        Rc::new(Gateway {
            ground: Rc::new(Ground {
                clock: clock.clone(),
                wheel: wheel.clone(),
                cells: cells.clone(),
                live: Live::default(),
                cutting: Rc::default(),
                scratch: Scratch::default(),
            }),
            patience: Patience {
                client_stall: stream.client_stall,
                backlog: u32::try_from(stream.backlog).unwrap_or(u32::MAX),
            },
            draining: Cell::new(false),
            routes: Routes::new(&config.routes),
            places: places.collect(),
            rules: rules.collect(),
            upstreams,
            streams: shared.streams.clone(),
            commit_after: stream.commit_after,
            fault: shared.fault,
            no_relay: shared.no_relay,
        })
    }

    /// The worker's metrics.
    pub fn cells(&self) -> &Arc<Cells> {
        &self.ground.cells
    }

    /// Closes upstream connections that have been idle for too long.
    pub fn close_idle(&self) {
        for upstream in &self.upstreams {
            upstream.close_idle();
        }
    }

    /// A drain has begun: nothing new is admitted, and connections close after their response.
    pub fn drain(&self) {
        self.draining.set(true);
        self.ground.wheel.expire_all();
    }

    /// The drain deadline has passed: what still streams ends with an error event.
    pub fn cut(&self) {
        self.ground.cutting.set(true);
        self.ground.wheel.expire_all();
    }
}
