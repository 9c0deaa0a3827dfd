//! What the configuration means to one worker: routes, upstreams, and what is borne from clients.
//!
//! A request keeps the plan it began with. A reload makes another plan; the old one goes with its
//! last request. Upstreams that a reload leaves as they are go on with their pools.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::cors::Cors;
use crate::gateway::route::{Route, Routes};
use crate::gateway::terms::Terms;
use crate::stream::control::Patience;
use crate::stream::ground::Rules;
use crate::stream::life::Place;
use crate::telemetry::cells::Cells;
use crate::upstream::Upstream;

/// See the module.
pub struct Plan {
    /// What all workers go by.
    pub terms: Arc<Terms>,
    /// What web pages are told, if any may come.
    pub cors: Option<Cors>,
    /// Routes by path.
    pub routes: Routes,
    /// What is borne from clients that lag.
    pub patience: Patience,
    pub(crate) upstreams: Vec<Rc<Upstream>>,
    pub(crate) commit_after: Option<Duration>,
}

impl Plan {
    /// The plan of `terms`; each connection to an upstream takes one of `files`.
    pub fn new(
        terms: &Arc<Terms>,
        files: &Arc<Permits>,
        clock: &Clock,
        cells: &Arc<Cells>,
    ) -> Rc<Plan> {
        let config = &terms.config;
        let upstreams =
            config.upstreams.iter().zip(&terms.tls).enumerate().map(|(index, (up, tls))| {
                Upstream::new(index, up.clone(), tls, files, clock.clone(), cells.clone())
            });
        let stream = &config.stream;
        Rc::new(Plan {
            terms: terms.clone(),
            cors: Cors::of(&config.cors),
            routes: Routes::new(routes(config)),
            patience: Patience {
                client_stall: stream.client_stall,
                backlog: u32::try_from(stream.backlog).unwrap_or(u32::MAX),
            },
            upstreams: upstreams.collect(),
            commit_after: stream.commit_after,
        })
    }
}

/// The routes of `config`, in its order.
pub fn routes(config: &Config) -> Vec<Route> {
    let stream = &config.stream;
    let one = |(index, route): (usize, &crate::config::Route)| Route {
        path: route.path.clone(),
        upstream: route.upstream,
        family: route.family,
        auth: route.auth,
        tenants: route.tenants.iter().map(|name| name.as_str().into()).collect(),
        timeout: route.timeout,
        body_buffer: usize::try_from(route.body_buffer).unwrap_or(usize::MAX),
        literal_prefix: route.literal_prefix.as_str().into(),
        place: Rc::new(Place {
            route: route.path.clone(),
            route_index: index,
            upstream: config.upstreams[route.upstream].name.clone(),
            upstream_index: route.upstream,
        }),
        rules: Rc::new(Rules {
            heartbeat: stream.heartbeat,
            style: route.heartbeat_style,
            first_byte: stream.first_byte,
            idle: stream.idle,
            total: stream.total,
            max_event: stream.max_event,
        }),
    };
    config.routes.iter().enumerate().map(one).collect()
}
