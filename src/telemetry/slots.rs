//! Which cells belong to which route and upstream, for as long as the process lives.
//!
//! A reload may bring routes and upstreams, change and remove them, while streams of the former
//! configuration still count. So a name keeps its slot, and the counts in it, from its first
//! configuration on: one that is removed keeps its series, one that comes back goes on with it.
//! Invariants: slots are only ever added, as many as [`limits`] allow; a slot's cells exist on every
//! worker before anybody is told of it. Cost: 16 bytes per possible slot and worker (20 KiB), and
//! one branch more per access than a plain list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use super::cells::Shape;
use crate::limits;

/// The slots of one configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// By upstream, in the order of the configuration.
    pub upstreams: Vec<usize>,
    /// By route, in the order of the configuration, and by its upstreams.
    pub routes: Vec<Vec<usize>>,
    /// Those of requests without a tenant, then by tenant, in the order of the configuration.
    pub usage: Vec<UsageSlots>,
}

/// Where the tokens of one tenant are counted, by model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageSlots {
    other: u16,
    models: BTreeMap<Box<str>, u16>,
}

impl UsageSlots {
    /// The slot of `model`.
    pub fn of(&self, model: Option<&str>) -> u16 {
        let named = model.and_then(|model| self.models.get(model));
        named.copied().unwrap_or(self.other)
    }

    /// How many slots are the tenant's own.
    pub(super) fn own(&self) -> usize {
        self.models.len() + usize::from(self.other != SHARED)
    }
}

/// Stands for any model that has no series of its own, and for any tenant that found no place: no
/// tenant may be named so, and `tokens_per_minute` calls such models that.
const ANY: &str = "*";
/// The slot of those: it has the first place.
const SHARED: u16 = 0;

/// There is no slot left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "metrics are kept for {most} different {what} at most in the life of a process, those removed \
     by earlier reloads included; restart to begin anew, or use names that were there before"
)]
pub struct Full {
    what: &'static str,
    most: usize,
}

impl Shape {
    /// Finds the slots of `upstreams`, by name, and of `routes`, by path and places in `upstreams`;
    /// adds what is not there yet.
    ///
    /// # Errors
    /// [`Full`]; nothing was added then.
    pub fn join(&mut self, upstreams: &[&str], routes: &[(&str, &[usize])]) -> Result<Slots, Full> {
        let (upstreams_before, routes_before) = (self.upstreams.len(), self.routes.len());
        let mut slots = Slots::default();
        for name in upstreams {
            let known = self.upstreams.iter().position(|known| known == name);
            slots.upstreams.push(known.unwrap_or_else(|| {
                self.upstreams.push((*name).to_owned());
                self.upstreams.len() - 1
            }));
        }
        for (path, upstreams) in routes {
            let one = |upstream: &usize| {
                let upstream = slots.upstreams[*upstream];
                let known = self.routes.iter().position(|(p, u)| p == path && *u == upstream);
                known.unwrap_or_else(|| {
                    self.routes.push(((*path).to_owned(), upstream));
                    self.routes.len() - 1
                })
            };
            slots.routes.push(upstreams.iter().map(one).collect());
        }
        let full = |what, len, most| if len > most { Err(Full { what, most }) } else { Ok(()) };
        let fits = full("upstreams", self.upstreams.len(), limits::UPSTREAMS)
            .and_then(|()| full("routes", self.routes.len(), limits::ROUTES));
        if fits.is_err() {
            self.upstreams.truncate(upstreams_before);
            self.routes.truncate(routes_before);
        }
        fits.map(|()| slots)
    }
}

impl Shape {
    /// Finds the slots of tenants, each with its models; adds what is not there yet. The first tenant
    /// is nobody, the empty name. Each has a slot for other models, called `*`, before any has one for
    /// a model of its own; who finds no place shares a slot: a model with its tenant's others, a
    /// tenant with all of those. Tenants come and go, so that no reload is refused for this.
    pub fn join_usage<'n>(
        &mut self,
        tenants: impl Iterator<Item = (&'n str, BTreeSet<&'n str>)> + Clone,
    ) -> Vec<UsageSlots> {
        let mut known: HashMap<(Box<str>, Box<str>), u16> =
            self.usage.iter().cloned().zip(0..).collect();
        let mut slot = |tenant: &str, model: &str| {
            let pair = (Box::from(tenant), Box::from(model));
            if let Some(slot) = known.get(&pair) {
                return Some(*slot);
            }
            if self.usage.len() >= limits::USAGE_PAIRS {
                return None;
            }
            let slot = u16::try_from(self.usage.len()).ok()?;
            self.usage.push(pair.clone());
            known.insert(pair, slot);
            Some(slot)
        };
        slot(ANY, ANY);
        let others: Vec<u16> =
            tenants.clone().map(|(tenant, _)| slot(tenant, ANY).unwrap_or(SHARED)).collect();
        let each = tenants.zip(others).map(|((tenant, models), other)| {
            let found =
                models.into_iter().filter_map(|model| Some((model.into(), slot(tenant, model)?)));
            UsageSlots { other, models: found.collect() }
        });
        each.collect()
    }
}

/// Cells by slot: read by everyone, added to by whoever brings a configuration.
#[derive(Debug)]
pub(super) struct Table<T>(Box<[OnceLock<Box<T>>]>);

impl<T> Table<T> {
    /// Room for `most`, all empty.
    pub(super) fn new(most: usize) -> Table<T> {
        Table((0..most).map(|_| OnceLock::new()).collect())
    }

    /// Makes the cells of the first `count` slots, where they are not there yet.
    pub(super) fn grow(&self, count: usize, make: fn() -> T) {
        for slot in &self.0[..count] {
            slot.get_or_init(|| Box::new(make()));
        }
    }

    /// The cells of a slot that was handed out; panics for any other.
    pub(super) fn get(&self, slot: usize) -> &T {
        self.0[slot].get().expect("cells are made before their slot is told")
    }

    /// All cells that are there, by slot.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map_while(|slot| slot.get().map(|cells| &**cells))
    }

    /// Bytes, those of the cells that are there included.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0) + self.iter().count() * size_of::<T>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(upstreams: [usize; 2], routes: [usize; 2]) -> Slots {
        let routes = routes.map(|slot| vec![slot]).into();
        Slots { upstreams: upstreams.into(), routes, ..Slots::default() }
    }

    #[test]
    fn a_name_keeps_its_slot() {
        let mut shape = Shape::default();
        let first = shape.join(&["a", "b"], &[("/1", &[0]), ("/2", &[1])]).expect("room");
        assert_eq!(first, slots([0, 1], [0, 1]));
        // `a` is gone, `c` is new, `/2` leads elsewhere: a series of its own.
        let second = shape.join(&["c", "b"], &[("/2", &[0]), ("/3", &[1])]).expect("room");
        assert_eq!(second, slots([2, 1], [2, 3]));
        let third = shape.join(&["b", "a"], &[("/1", &[1]), ("/2", &[0])]).expect("room");
        assert_eq!(third, slots([1, 0], [0, 1]));
        assert_eq!(shape.upstreams, ["a", "b", "c"]);
        assert_eq!(shape.routes.len(), 4);
        // A second upstream of a route is a series beside the first.
        let fourth = shape.join(&["b", "a"], &[("/1", &[1, 0])]).expect("room");
        assert_eq!(fourth.routes, [[0, 4]]);
    }

    #[test]
    fn slots_are_bounded_and_a_refusal_adds_nothing() {
        let mut shape = Shape::default();
        for n in 0..limits::UPSTREAMS - 1 {
            shape.join(&[&format!("u{n}")], &[]).expect("room");
        }
        let before = shape.clone();
        let full = shape.join(&["x", "y"], &[("/1", &[0])]).expect_err("one place is left");
        assert!(full.to_string().contains("256 different upstreams"), "{full}");
        assert_eq!(shape, before);
        shape.join(&["x", "u0"], &[("/1", &[0])]).expect("the last place");
        shape.join(&["u7", "x"], &[("/1", &[1])]).expect("known names need none");

        let paths: Vec<String> = (0..limits::ROUTES).map(|n| format!("/r{n}")).collect();
        let routes: Vec<(&str, &[usize])> =
            paths.iter().map(|path| (path.as_str(), &[0][..])).collect();
        let before = shape.clone();
        let full = shape.join(&["x"], &routes).expect_err("one is taken");
        assert!(full.to_string().contains("1024 different routes"), "{full}");
        assert_eq!(shape, before);
        shape.join(&["x"], &routes[1..]).expect("just enough");
    }

    #[test]
    fn a_tenant_and_its_models_keep_their_slots() {
        let mut shape = Shape::default();
        let both = || BTreeSet::from(["m", "n"]);
        let first = shape.join_usage([("", both()), ("a", BTreeSet::from(["m"]))].into_iter());
        let named = |slots: &UsageSlots, model: &str| {
            let (tenant, model) = &shape.usage[usize::from(slots.of(Some(model)))];
            format!("{tenant}/{model}")
        };
        assert_eq!([named(&first[0], "m"), named(&first[0], "x")], ["/m", "/*"]);
        assert_eq!([named(&first[1], "m"), named(&first[1], "n")], ["a/m", "a/*"]);
        assert_eq!(first[1].of(None), first[1].of(Some("x")), "no model is another model");
        let before = shape.clone();
        let again = shape.join_usage([("", both()), ("b", both()), ("a", both())].into_iter());
        assert_eq!(again[0], first[0]);
        assert_eq!(again[2].of(Some("m")), first[1].of(Some("m")));
        assert_eq!(shape.usage[..before.usage.len()], before.usage);
        assert_eq!(shape.usage.len(), before.usage.len() + 4, "b, its two models, and n of a");
    }

    #[test]
    fn usage_slots_are_bounded_and_what_finds_none_shares_one() {
        let mut shape = Shape::default();
        let names: Vec<String> = (0..limits::USAGE_PAIRS).map(|n| format!("t{n}")).collect();
        let tenants = || {
            let named = names.iter().map(|name| (name.as_str(), BTreeSet::from(["m"])));
            std::iter::once(("", BTreeSet::from(["m"]))).chain(named)
        };
        let slots = shape.join_usage(tenants());
        assert_eq!(shape.usage.len(), limits::USAGE_PAIRS);
        assert_eq!(slots.len(), names.len() + 1);
        let pair = |slot: u16| {
            let (tenant, model) = &shape.usage[usize::from(slot)];
            (&**tenant, &**model)
        };
        assert_eq!(pair(slots[0].of(Some("m"))), ("", "*"), "tenants come before models");
        assert_eq!(pair(slots[1].of(None)), ("t0", "*"));
        assert_eq!(pair(slots[names.len()].of(Some("m"))), ("*", "*"), "the last two find none");
        assert_eq!(pair(slots[names.len() - 1].of(None)), ("*", "*"));
        assert_eq!(pair(slots[names.len() - 2].of(None)).1, "*");
        assert_ne!(pair(slots[names.len() - 2].of(None)).0, "*");
    }
}
