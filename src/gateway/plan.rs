//! What the configuration means to one worker: routes, upstreams, and what is borne from clients.
//!
//! A request keeps the plan it began with until its head is decided, and what its stream goes by
//! for as long as that lives. A reload makes another plan; the old one goes with its last request.
//! URLs that a reload leaves as they are go on with their pools, the other pools are retired.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config::{self, Balance, Config};
use crate::gateway::cors::Cors;
use crate::gateway::route::{Route, Routes};
use crate::gateway::terms::Terms;
use crate::stream::control::Patience;
use crate::stream::ground::Rules;
use crate::stream::life::{Place, Target};
use crate::telemetry::{Cells, Slots};
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
    /// The plan of `terms`, which follows `before`; each connection to an upstream takes one of `files`.
    pub fn new(
        terms: &Arc<Terms>,
        before: Option<&Plan>,
        files: &Arc<Permits>,
        clock: &Clock,
        cells: &Arc<Cells>,
    ) -> Rc<Plan> {
        let config = &terms.config;
        let each = config.upstreams.iter().zip(&terms.known).zip(&terms.slots.upstreams);
        let upstreams = each.map(|((up, known), &slot)| {
            let before = before.and_then(|before| before.upstream_named(&up.name));
            Upstream::new(slot, up.clone(), known.clone(), before, files, clock, cells)
        });
        let stream = &config.stream;
        Rc::new(Plan {
            terms: terms.clone(),
            cors: Cors::of(&config.cors),
            routes: Routes::new(routes(config, &terms.slots)),
            patience: Patience {
                client_stall: stream.client_stall,
                backlog: u32::try_from(stream.backlog).unwrap_or(u32::MAX),
            },
            upstreams: upstreams.collect(),
            commit_after: stream.commit_after,
        })
    }

    /// Lets go of what `next` has not taken over.
    pub fn retire(&self, next: &Plan) {
        for upstream in &self.upstreams {
            upstream.retire(next.upstream_named(&upstream.config.name));
        }
    }

    fn upstream_named(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.config.name == name).map(|found| &**found)
    }
}

/// The routes of `config`, in its order; `slots` are those of its metrics.
pub fn routes(config: &Config, slots: &Slots) -> Vec<Route> {
    let stream = &config.stream;
    let targets = |index: usize, route: &config::Route| {
        let each = route.upstreams.iter().zip(&slots.routes[index]);
        let target = |(&upstream, &route_index): (&usize, &usize)| Target {
            upstream: config.upstreams[upstream].name.clone(),
            route_index,
            upstream_index: slots.upstreams[upstream],
        };
        each.map(target).collect()
    };
    let one = |(index, route): (usize, &config::Route)| Route {
        path: route.path.clone(),
        upstreams: route.upstreams.as_slice().into(),
        weights: (route.balance == Balance::Weighted).then(|| weights(route)),
        sticky: route.sticky.clone(),
        family: route.family,
        auth: route.auth,
        tenants: route.tenants.iter().map(|name| name.as_str().into()).collect(),
        timeout: route.timeout,
        repeatable: route.repeatable,
        body_buffer: usize::try_from(route.body_buffer).unwrap_or(usize::MAX),
        usage: route.usage,
        literal_prefix: route.literal_prefix.as_str().into(),
        place: Rc::new(Place {
            route: route.path.clone(),
            rules: Rules {
                heartbeat: stream.heartbeat,
                style: route.heartbeat_style,
                first_byte: stream.first_byte,
                idle: stream.idle,
                total: stream.total,
                max_event: stream.max_event,
                usage_drain: route.usage_drain,
            },
            targets: targets(index, route),
        }),
    };
    config.routes.iter().enumerate().map(one).collect()
}

/// One for each upstream of a route.
fn weights(route: &config::Route) -> Box<[u32]> {
    let weight = |n: usize| route.weights.get(n).copied().unwrap_or(1);
    (0..route.upstreams.len()).map(weight).collect()
}
