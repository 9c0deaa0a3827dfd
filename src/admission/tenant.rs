//! What one tenant has taken of what it may have.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admission::bulkhead::Class;
use crate::admission::permit::Permits;
use crate::admission::rate::Rate;
use crate::admission::tokens::Tokens;

/// A tenant as requests meet it. A reload makes another one of the same counts.
#[derive(Debug)]
pub struct Tenant {
    /// Its name in the configuration.
    pub name: Box<str>,
    /// Tells it from others where requests queue; 0 is nobody's.
    pub id: u32,
    /// Its place in the configuration, from 1.
    pub place: usize,
    /// Its share where requests queue.
    pub weight: u32,
    /// Its class where requests queue.
    pub class: Class,
    /// Its places, if they are limited.
    pub streams: Option<Arc<Permits>>,
    /// Its rate of new requests, if that is limited.
    pub rate: Option<Arc<Rate>>,
    /// Its tokens per minute by model; `*` is any other model.
    pub tokens: BTreeMap<String, Arc<Tokens>>,
}

impl Tenant {
    /// The limit on tokens that `model` falls under, if any.
    pub fn tokens_of(&self, model: Option<&str>) -> Option<&Arc<Tokens>> {
        model.and_then(|model| self.tokens.get(model)).or_else(|| self.tokens.get("*"))
    }
}
