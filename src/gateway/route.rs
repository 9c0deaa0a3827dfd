//! Which configured route a path belongs to.

use std::rc::Rc;
use std::time::Duration;

use crate::config::{self, Sticky};
use crate::error::{Failure, Kind};
use crate::gateway::auth::Identity;
use crate::limits;
use crate::stream::life::Place;
use crate::upstream::balance;
use crate::upstream::upload::BodyRules;

/// The routes of the configuration, by path.
pub struct Routes {
    by_path: matchit::Router<usize>,
    routes: Vec<Route>,
}

/// One route as a request needs it.
pub struct Route {
    /// Its path's pattern, as configured.
    pub path: String,
    /// Its upstreams' places in the plan, as in `place.targets`.
    pub upstreams: Rc<[usize]>,
    /// How likely each of them is to be asked first, if that is drawn by lot.
    pub weights: Option<Box<[u32]>>,
    /// What keeps requests with the same upstream then.
    pub sticky: Sticky,
    /// The family as configured.
    pub family: config::Family,
    /// What it asks of clients.
    pub auth: config::Auth,
    /// The tenants that may use it; all if empty.
    pub tenants: Box<[Box<str>]>,
    /// Longest wait in a queue, from the request's arrival.
    pub timeout: Option<Duration>,
    /// Its requests may be run twice.
    pub repeatable: bool,
    /// How much of a body is collected where that is needed, bytes.
    pub body_buffer: usize,
    /// Whether the tokens of its answers are counted.
    pub usage: config::UsageRule,
    /// See [`config::Route`].
    pub literal_prefix: Rc<str>,
    /// What its streams go by: names, places in the metrics, limits and habits.
    pub place: Rc<Place>,
}

/// A route's upstreams in the order in which one request asks them. 9 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    targets: [u8; limits::ROUTE_UPSTREAMS],
    len: u8,
}

impl Order {
    /// The upstream that is asked first.
    pub fn first(self) -> usize {
        self.targets[0].into()
    }

    /// The one that is asked last, and those before it.
    pub fn last_and_before(self) -> (usize, impl Iterator<Item = usize>) {
        let last = usize::from(self.len) - 1;
        (self.targets[last].into(), self.targets.into_iter().take(last).map(usize::from))
    }
}

impl Route {
    /// The order for one request: as configured, or drawn by lot, each upstream as likely to be
    /// first as its weight. With a `key` the lot is the key's own; `random` is another each time.
    pub fn order(&self, key: Option<u64>, random: u64) -> Order {
        let len = self.upstreams.len();
        let mut order = Order { targets: [0, 1, 2, 3, 4, 5, 6, 7], len: len as u8 };
        if let Some(weights) = &self.weights {
            let cost = |target: &u8| {
                let target = usize::from(*target);
                let name = &self.place.targets[target].upstream;
                balance::weighted_cost(&(key.unwrap_or(random), name), weights[target])
            };
            order.targets[..len].sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        }
        order
    }

    /// What is asked of a request's body, and how much of it is read before anything is decided.
    pub fn body_rules(
        &self,
        config: &config::Config,
        identity: &Identity,
        family: config::Family,
    ) -> BodyRules {
        let tenant = identity.tenant.as_ref();
        let counted = tenant.is_some_and(|tenant| !tenant.tokens.is_empty());
        let several = self.upstreams.len() > 1;
        let kept = self.upstreams.iter().any(|upstream| {
            let rule = &config.upstreams[*upstream].retry;
            rule.replays() || several && rule.names_answers()
        });
        let prefetch = match counted || kept || self.asks_for_usage(family) {
            true => self.body_buffer.max(limits::BODY_PREFETCH),
            false => limits::BODY_PREFETCH,
        };
        let config::Limits { body: max, body_time: time, body_rate: rate, .. } = config.limits;
        BodyRules { prefetch, max, time, rate }
    }

    /// Whether requests of this family are made to ask for their stream's usage.
    pub fn asks_for_usage(&self, family: config::Family) -> bool {
        self.usage == config::UsageRule::Inject && family == config::Family::OpenAi
    }
}

impl Routes {
    /// The configuration has checked that the paths are valid and do not conflict.
    pub fn new(routes: Vec<Route>) -> Routes {
        let mut by_path = matchit::Router::new();
        for (index, route) in routes.iter().enumerate() {
            by_path.insert(&route.path, index).expect("the configuration checked the paths");
        }
        Routes { by_path, routes }
    }

    /// The route of `path`.
    ///
    /// # Errors
    /// `NoRoute` (404).
    pub fn find(&self, path: &str) -> Result<&Route, Failure> {
        match self.by_path.at(path) {
            Ok(found) => Ok(&self.routes[*found.value]),
            Err(_) => {
                Err(Failure::new(Kind::NoRoute, "no [[route]] of this gateway has this path"))
            }
        }
    }
}
