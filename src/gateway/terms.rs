//! What a configuration means to the whole process: tenants with their counts, queues, TLS.
//!
//! Shared by all workers. A reload makes new terms in which everything that has kept its name goes
//! on with its counts; requests keep what they have taken, whatever the new terms say. Making them
//! is what puts a reload's limits in force, so it comes after everything that may fail.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use crate::admission::Sizes;
use crate::admission::bulkhead::{Bulkhead, Class};
use crate::admission::permit::Permits;
use crate::admission::rate::Rate;
use crate::admission::tenant::Tenant;
use crate::admission::tokens::Tokens;
use crate::clock::Moment;
use crate::config::{self, Config, Priority};
use crate::telemetry::Slots;
use crate::upstream::Known;
use crate::upstream::tls::ClientTls;

/// See the module.
pub struct Terms {
    /// The configuration.
    pub config: Arc<Config>,
    /// TLS of each upstream, in the order of the configuration.
    pub tls: Vec<Arc<ClientTls>>,
    /// Where its upstreams and routes are counted.
    pub slots: Slots,
    /// What is known of each upstream, in the order of the configuration.
    pub known: Vec<Arc<Known>>,
    tenants: BTreeMap<String, Arc<Tenant>>,
    /// Numbers of tenants below this one have been given away.
    next_id: u32,
    keys: HashMap<[u8; 32], Key>,
    /// By upstream; `None` where nothing is limited.
    bulkheads: Vec<Option<Arc<Bulkhead>>>,
    /// By name, those in force and those that streams of earlier terms still hold slots of.
    known_bulkheads: BTreeMap<String, Weak<Bulkhead>>,
}

/// What a key leads to.
pub struct Key {
    /// Whose it is.
    pub tenant: Arc<Tenant>,
    /// Its hash, to be compared once more in constant time.
    pub sha256: [u8; 32],
    /// It, or its tenant, is disabled.
    pub disabled: bool,
    /// Seconds since the epoch from which on it is refused.
    pub expires: Option<u64>,
}

impl Terms {
    /// The terms of `config`, which follow `before`.
    pub fn new(
        config: Arc<Config>,
        tls: Vec<Arc<ClientTls>>,
        slots: Slots,
        before: Option<&Terms>,
        now: Moment,
    ) -> Terms {
        let mut tenants = BTreeMap::new();
        let mut keys = HashMap::new();
        // Ids stay with names; a new name gets one that nobody had, since who had it may be queued.
        let mut next_id = before.map_or(1, |terms| terms.next_id);
        for (place, configured) in (1..).zip(&config.tenants) {
            let known = before.and_then(|terms| terms.tenants.get(&configured.name));
            let id = known.map_or(next_id, |known| known.id);
            next_id = next_id.max(id.saturating_add(1));
            let known = known.map(|known| &**known);
            let tenant = Arc::new(tenant(configured, (id, place), known, now));
            for key in &configured.keys {
                let disabled = key.disabled || configured.disabled;
                let (tenant, expires) = (tenant.clone(), key.expires);
                keys.insert(key.sha256, Key { tenant, sha256: key.sha256, disabled, expires });
            }
            tenants.insert(configured.name.clone(), tenant);
        }
        let (bulkheads, known_bulkheads) = bulkheads(&config, before);
        let known = config.upstreams.iter().zip(&tls).map(|(upstream, tls)| {
            let before = before.and_then(|terms| terms.known_of(&upstream.name));
            match before {
                Some((known, config)) if config == upstream && Arc::ptr_eq(&known.tls, tls) => {
                    known.clone()
                }
                before => Known::new(upstream, tls, before.map(|(known, _)| &**known)),
            }
        });
        let known = known.collect();
        Terms { config, tls, known, slots, tenants, next_id, keys, bulkheads, known_bulkheads }
    }

    /// The key with this hash.
    pub fn key(&self, sha256: &[u8; 32]) -> Option<&Key> {
        self.keys.get(sha256)
    }

    /// What is known of the upstream of this name, and how it is configured.
    fn known_of(&self, name: &str) -> Option<(&Arc<Known>, &config::Upstream)> {
        let mut all = self.known.iter().zip(&self.config.upstreams);
        all.find(|(_, upstream)| upstream.name == name)
    }

    /// The queue of an upstream, by its place in the configuration, if it is limited.
    pub fn bulkhead(&self, upstream: usize) -> Option<&Arc<Bulkhead>> {
        self.bulkheads.get(upstream)?.as_ref()
    }

    /// The TLS of the upstream of this name.
    pub fn tls_named(&self, name: &str) -> Option<&Arc<ClientTls>> {
        self.tls.get(self.config.upstreams.iter().position(|upstream| upstream.name == name)?)
    }
}

type Bulkheads = (Vec<Option<Arc<Bulkhead>>>, BTreeMap<String, Weak<Bulkhead>>);

/// The queues of `config`'s upstreams, in its order, and all that are known by name.
fn bulkheads(config: &Config, before: Option<&Terms>) -> Bulkheads {
    let mut known = before.map_or_else(BTreeMap::new, |terms| terms.known_bulkheads.clone());
    known.retain(|_, bulkhead| bulkhead.strong_count() > 0);
    let each = config.upstreams.iter().map(|upstream| {
        let of_name = known.get(&upstream.name).and_then(Weak::upgrade);
        let (max, queue) = (upstream.max_streams, upstream.queue);
        if max == 0 {
            // Nothing is limited any more, so who waits need not.
            of_name.inspect(|bulkhead| bulkhead.set(usize::MAX, queue));
            return None;
        }
        let bulkhead = match of_name {
            Some(of_name) => {
                of_name.set(max, queue);
                of_name
            }
            None => Bulkhead::new(max, queue),
        };
        known.insert(upstream.name.clone(), Arc::downgrade(&bulkhead));
        Some(bulkhead)
    });
    (each.collect(), known)
}

/// What `limits` give to the process.
pub fn sizes(limits: &config::Limits) -> Sizes {
    Sizes {
        streams: limits.streams,
        per_second: limits.new_streams_per_second,
        burst: limits.new_streams_burst,
        memory: usize::try_from(limits.memory).unwrap_or(usize::MAX),
        files: usize::MAX,
    }
}

fn tenant(
    configured: &config::Tenant,
    (id, place): (u32, usize),
    known: Option<&Tenant>,
    now: Moment,
) -> Tenant {
    let streams =
        configured.streams.map(|max| match known.and_then(|known| known.streams.as_ref()) {
            Some(streams) => {
                streams.set_max(max);
                streams.clone()
            }
            None => Permits::new(max),
        });
    let rate = configured.new_per_second.map(|per_second| {
        match known.and_then(|known| known.rate.as_ref()) {
            Some(rate) => {
                rate.set(per_second, 0, now);
                rate.clone()
            }
            None => Arc::new(Rate::new(per_second, 0)),
        }
    });
    let tokens = configured.tokens_per_minute.iter().map(|(model, &per_minute)| {
        let tokens = match known.and_then(|known| known.tokens.get(model)) {
            Some(tokens) => {
                tokens.set(per_minute, now);
                tokens.clone()
            }
            None => Tokens::new(per_minute),
        };
        (model.clone(), tokens)
    });
    Tenant {
        name: configured.name.as_str().into(),
        id,
        place,
        weight: configured.weight,
        class: match configured.priority {
            Priority::Interactive => Class::Interactive,
            Priority::Batch => Class::Batch,
        },
        streams,
        rate,
        tokens: tokens.collect(),
    }
}
