//! What each client address may: streams at once, new streams a second, failed attempts to
//! authenticate a minute.
//!
//! Invariant: at most [`ADDRESSES`] addresses are remembered, and one with live streams is
//! never forgotten. When a new one finds no room, an idle one goes: of the next few in turn
//! ([`SAMPLE`]) the one whose rates are full again, or nearest to it. So whoever commands many
//! addresses can make us forget, and gains a fresh burst by it, never our memory; who waits
//! longest, which is who guesses keys, is forgotten last of those looked at. Cost: one lock of
//! one in 64 shards, one look-up: 0.1 to 0.2 µs to admit and end a stream, 0.2 to 0.7 µs with a
//! newcomer to a full table (`cargo test --release --lib addresses -- --ignored --nocapture`),
//! and at the very worst one look over a shard's 1,024 entries, 3 µs, when nearly all of them
//! have live streams.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::rate::{Pace, fine};
use crate::clock::Moment;
use crate::limits::ADDRESSES;

const SHARDS: usize = 64;
/// Addresses of one shard.
const ROOM: usize = ADDRESSES / SHARDS;
/// How many of a full shard are looked at for one to forget.
const SAMPLE: usize = 16;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Whom limits per address hold: an IPv4 address, or the /64 of an IPv6 address, which is what one
/// customer has at least. An IPv4-mapped IPv6 address is the IPv4 address. 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressKey(u64);

impl AddressKey {
    /// Upper half of an IPv4 address's key. As a /64 it would be multicast (RFC 4291, 2.7), from which
    /// nobody connects.
    const V4: u64 = 0xFFFF_FFFF << 32;

    /// The key of a client's address.
    pub fn of(address: IpAddr) -> AddressKey {
        AddressKey(match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4 | u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        })
    }
}

impl fmt::Display for AddressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & Self::V4 {
            Self::V4 => Ipv4Addr::from_bits(self.0 as u32).fmt(f),
            _ => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(self.0) << 64)),
        }
    }
}

/// Why an address gets no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It has as many streams as it may.
    Streams {
        /// The limit.
        max: usize,
    },
    /// It has just begun as many streams as it may.
    Rate {
        /// The limit, new streams per second.
        max: u32,
        /// How long until it may begin one; `Duration::MAX` if never, at a limit of 0.
        wait: Duration,
    },
    /// There is no room for one more address beside those with live streams. It is not the
    /// address's fault, and cannot come before some 55,000 addresses stream at once.
    Addresses {
        /// The limit, [`ADDRESSES`].
        max: usize,
    },
}

/// One address, 32 bytes.
#[derive(Debug)]
struct Entry {
    key: AddressKey,
    /// Buckets, see [`Pace`]: new streams, and attempts that may still fail.
    streams: u64,
    attempts: u64,
    live: u32,
}

/// The entries are never more than [`ROOM`], and change their places never.
#[derive(Debug, Default)]
struct Shard {
    entries: Vec<Entry>,
    index: HashMap<AddressKey, u16>,
    /// Entries without live streams.
    idle: usize,
    /// Where the search for an entry to forget goes on.
    hand: usize,
}

/// All client addresses that are remembered, shared by all workers.
pub struct Addresses {
    shards: Box<[Mutex<Shard>]>,
    /// Random, so that nobody can aim at a shard.
    hasher: RandomState,
}

/// A live stream of an address, 16 bytes; dropping it ends the count.
#[derive(Debug)]
#[must_use = "dropped, the stream is no longer counted"]
pub struct AddressPermit {
    addresses: Arc<Addresses>,
    key: AddressKey,
}

impl Addresses {
    /// No address yet.
    pub fn new() -> Arc<Addresses> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Addresses { shards, hasher: RandomState::new() })
    }

    /// Lets an address begin a stream, if it has fewer than `streams` and there is a token in its
    /// bucket, which holds a second's worth of `new_per_second`; `None` is no limit.
    ///
    /// # Errors
    /// The limit that refuses. Nothing is counted then.
    pub fn admit(
        self: &Arc<Addresses>,
        key: AddressKey,
        streams: Option<usize>,
        new_per_second: Option<u32>,
        now: Moment,
    ) -> Result<AddressPermit, Refused> {
        let now = fine(now);
        let mut shard = self.shard(key);
        let slot = shard.find(key);
        let (live, bucket) = slot.map_or((0, 0), |slot| {
            let entry = &shard.entries[slot];
            (entry.live, entry.streams)
        });
        if let Some(max) = streams.filter(|max| live as usize >= *max) {
            return Err(Refused::Streams { max });
        }
        let bucket = match new_per_second {
            None => bucket,
            Some(max) => Pace::new(max, SECOND, 0)
                .take(bucket, 1, now)
                .map_err(|wait| Refused::Rate { max, wait })?,
        };
        let slot = slot.or_else(|| shard.insert(key, now));
        let slot = slot.ok_or(Refused::Addresses { max: ADDRESSES })?;
        shard.entries[slot].streams = bucket;
        shard.entries[slot].live += 1;
        shard.idle -= usize::from(live == 0);
        drop(shard);
        Ok(AddressPermit { addresses: self.clone(), key })
    }

    /// Whether an address may try to authenticate: whether its failed attempts have left a token in
    /// its bucket, which holds a minute's worth of `per_minute`. It takes none.
    ///
    /// # Errors
    /// How long until it may try again; `Duration::MAX` if never, at a limit of 0.
    pub fn may_try(&self, key: AddressKey, per_minute: u32, now: Moment) -> Result<(), Duration> {
        let shard = self.shard(key);
        let bucket = shard.find(key).map_or(0, |slot| shard.entries[slot].attempts);
        drop(shard);
        Pace::new(per_minute, MINUTE, 0).take(bucket, 1, fine(now)).map(drop)
    }

    /// Counts an attempt that failed. Attempts that were under way together all count, also beyond
    /// the limit. Not counted is one of a new address that finds no room at all, see
    /// [`Refused::Addresses`]; that address gets no stream either.
    pub fn failed(&self, key: AddressKey, per_minute: u32, now: Moment) {
        let now = fine(now);
        let mut shard = self.shard(key);
        if let Some(slot) = shard.find(key).or_else(|| shard.insert(key, now)) {
            let attempts = &mut shard.entries[slot].attempts;
            *attempts = Pace::new(per_minute, MINUTE, 0).charge(*attempts, 1, now);
        }
    }

    fn shard(&self, key: AddressKey) -> MutexGuard<'_, Shard> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").finish_non_exhaustive()
    }
}

impl Shard {
    fn find(&self, key: AddressKey) -> Option<usize> {
        self.index.get(&key).map(|slot| usize::from(*slot))
    }

    /// An entry for a key that has none, idle and with its buckets full. `None` if all entries have
    /// live streams.
    fn insert(&mut self, key: AddressKey, now: u64) -> Option<usize> {
        let entry = Entry { key, streams: 0, attempts: 0, live: 0 };
        let slot = if self.entries.len() < ROOM {
            self.entries.push(entry);
            self.idle += 1;
            self.entries.len() - 1
        } else {
            let slot = self.forgettable(now)?;
            let old = std::mem::replace(&mut self.entries[slot], entry);
            self.index.remove(&old.key);
            slot
        };
        self.index.insert(key, slot as u16);
        Some(slot)
    }

    /// The entry to forget: the idle one that is nearest to full among the next [`SAMPLE`] entries, or
    /// the first idle one after them.
    fn forgettable(&mut self, now: u64) -> Option<usize> {
        if self.idle == 0 {
            return None;
        }
        let mut best: Option<(u64, usize)> = None;
        for looked_at in 0..self.entries.len() {
            if looked_at >= SAMPLE && best.is_some() {
                break;
            }
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = &self.entries[slot];
            let full_at = entry.streams.max(entry.attempts);
            if entry.live > 0 || best.is_some_and(|(least, _)| least <= full_at) {
                continue;
            }
            best = Some((full_at, slot));
            if full_at <= now {
                break;
            }
        }
        best.map(|(_, slot)| slot)
    }
}

impl AddressPermit {
    /// Ends the count of a stream that a later limit refused, and puts the token back which `admit`
    /// took under the same `new_per_second`.
    pub fn give_back(self, new_per_second: Option<u32>) {
        let Some(max) = new_per_second else { return };
        let mut shard = self.addresses.shard(self.key);
        let slot = shard.find(self.key).expect("an entry with live streams is not forgotten");
        let bucket = &mut shard.entries[slot].streams;
        *bucket = Pace::new(max, SECOND, 0).give_back(*bucket, 1);
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut shard = self.addresses.shard(self.key);
        let slot = shard.find(self.key).expect("an entry with live streams is not forgotten");
        shard.entries[slot].live -= 1;
        if shard.entries[slot].live == 0 {
            shard.idle += 1;
            // Where idle ones are few, the next search need not go round for it.
            if shard.idle <= SAMPLE {
                shard.hand = slot;
            }
        }
    }
}

const _: () = {
    assert!(ROOM * SHARDS == ADDRESSES);
    assert!(ROOM <= 1 << 16, "places are u16");
};

#[cfg(test)]
mod tests;
