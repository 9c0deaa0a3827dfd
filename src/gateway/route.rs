//! Which configured route a path belongs to.

use std::rc::Rc;

use crate::config;
use crate::error::{Failure, Kind};

/// The routes of the configuration, by path.
pub struct Routes {
    by_path: matchit::Router<usize>,
    routes: Vec<Route>,
}

/// One route as a request needs it.
pub struct Route {
    /// Its place in the configuration and the metrics.
    pub index: usize,
    /// Its upstream's place.
    pub upstream: usize,
    /// The family as configured.
    pub family: config::Family,
    /// See [`config::Route`].
    pub literal_prefix: Rc<str>,
}

impl Routes {
    /// The configuration has checked that the paths are valid and do not conflict.
    pub fn new(configured: &[config::Route]) -> Routes {
        let mut by_path = matchit::Router::new();
        let mut routes = Vec::new();
        for (index, route) in configured.iter().enumerate() {
            by_path.insert(&route.path, index).expect("the configuration checked the paths");
            routes.push(Route {
                index,
                upstream: route.upstream,
                family: route.family,
                literal_prefix: route.literal_prefix.as_str().into(),
            });
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
