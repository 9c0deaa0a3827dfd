//! Which configured route a path belongs to.

use std::rc::Rc;
use std::time::Duration;

use crate::config;
use crate::error::{Failure, Kind};
use crate::gateway::auth::Identity;
use crate::limits;
use crate::stream::ground::Rules;
use crate::stream::life::Place;
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
    /// Its upstream's place in the plan.
    pub upstream: usize,
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
    /// See [`config::Route`].
    pub literal_prefix: Rc<str>,
    /// Names and places in the metrics.
    pub place: Rc<Place>,
    /// Limits and habits of its streams.
    pub rules: Rc<Rules>,
}

impl Route {
    /// What is asked of a request's body, and how much of it is read before anything is decided.
    pub fn body_rules(
        &self,
        bounds: &config::Limits,
        identity: &Identity,
        upstream: &config::Upstream,
    ) -> BodyRules {
        let tenant = identity.tenant.as_ref();
        let counted = tenant.is_some_and(|tenant| !tenant.tokens.is_empty());
        let prefetch = match counted || upstream.retry.replays() {
            true => self.body_buffer.max(limits::BODY_PREFETCH),
            false => limits::BODY_PREFETCH,
        };
        let config::Limits { body: max, body_time: time, body_rate: rate, .. } = *bounds;
        BodyRules { prefetch, max, time, rate }
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
