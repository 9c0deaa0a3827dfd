//! What an address may, how much is remembered of how many, and threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::admission::rate::Rate;

fn at(millis: u64) -> Moment {
    Moment::default().after(Duration::from_millis(millis))
}

/// The n-th of many /64s, spread over the whole space.
fn nth(n: u64) -> AddressKey {
    AddressKey(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn key(address: &str) -> AddressKey {
    AddressKey::of(address.parse().expect("an address"))
}

impl Addresses {
    /// Remembered addresses, and the live streams of all of them. Checks what holds always.
    fn count(&self) -> (usize, usize) {
        let (mut entries, mut live) = (0, 0);
        for shard in &self.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.entries.len() <= ROOM && shard.index.len() == shard.entries.len());
            for (n, entry) in shard.entries.iter().enumerate() {
                assert_eq!(shard.find(entry.key), Some(n));
                live += entry.live as usize;
            }
            assert_eq!(shard.idle, shard.entries.iter().filter(|entry| entry.live == 0).count());
            entries += shard.entries.len();
        }
        (entries, live)
    }

    /// Keys that fall into one shard, without end.
    fn neighbours(&self) -> impl Iterator<Item = AddressKey> {
        let shard = |key: AddressKey| self.hasher.hash_one(key) as usize % SHARDS;
        (0..).map(nth).filter(move |key| shard(*key) == 0)
    }
}

#[test]
fn an_address_is_whole_in_ipv4_and_its_64_in_ipv6() {
    for (a, b, same) in [
        ("203.0.113.7", "203.0.113.7", true),
        ("203.0.113.7", "203.0.113.8", false),
        ("203.0.113.7", "::ffff:203.0.113.7", true),
        ("203.0.113.7", "::203.0.113.7", false),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
        ("::1", "0.0.0.1", false),
        ("255.255.255.255", "0.0.0.0", false),
    ] {
        assert_eq!(key(a) == key(b), same, "{a} {b}");
    }
    assert_eq!(key("::ffff:203.0.113.7").to_string(), "203.0.113.7");
    assert_eq!(key("2001:db8:1:2:3::4").to_string(), "2001:db8:1:2::/64");
    assert_eq!((size_of::<AddressKey>(), size_of::<AddressPermit>()), (8, 16));
    assert_eq!((size_of::<Entry>(), size_of::<(AddressKey, u16)>()), (32, 16));
}

#[test]
fn streams_are_counted_until_they_end() {
    let (all, a, b) = (Addresses::new(), key("192.0.2.1"), key("192.0.2.2"));
    let one = all.admit(a, Some(2), None, at(0)).unwrap();
    let two = all.admit(a, Some(2), None, at(0)).unwrap();
    let refused = all.admit(a, Some(2), None, at(0)).unwrap_err();
    assert_eq!(refused, Refused::Streams { max: 2 });
    let other = all.admit(b, Some(2), None, at(0)).unwrap();
    assert_eq!(all.count(), (2, 3));
    drop(one);
    let again = all.admit(a, Some(2), None, at(0)).unwrap();
    drop((two, other, again));
    assert_eq!(all.count(), (2, 0));
    let never = all.admit(a, Some(0), None, at(0)).unwrap_err();
    assert_eq!(never, Refused::Streams { max: 0 });
}

#[test]
fn new_streams_come_at_the_rate() {
    let (all, a) = (Addresses::new(), key("2001:db8::1"));
    for _ in 0..20 {
        drop(all.admit(a, Some(1), Some(20), at(7)).unwrap());
    }
    let wait = Duration::from_millis(50);
    for _ in 0..3 {
        let refused = all.admit(a, Some(1), Some(20), at(7)).unwrap_err();
        assert_eq!(refused, Refused::Rate { max: 20, wait }, "a refusal costs nothing");
    }
    let held = all.admit(a, Some(1), Some(20), at(57)).unwrap();
    let refused = all.admit(a, Some(1), Some(20), at(500)).unwrap_err();
    assert_eq!(refused, Refused::Streams { max: 1 });
    drop(held);
    let refused = all.admit(a, None, Some(1000), at(57)).unwrap_err();
    let wait = Duration::from_millis(1);
    assert_eq!(refused, Refused::Rate { max: 1000, wait }, "what was empty stays so in a reload");
    assert!(all.admit(a, None, Some(1000), at(58)).is_ok(), "and the new limit holds at once");
    let b = key("2001:db8:0:1::1");
    let refused = all.admit(b, None, Some(0), at(0)).unwrap_err();
    assert_eq!(refused, Refused::Rate { max: 0, wait: Duration::MAX });
    assert_eq!(all.count(), (1, 0), "who was refused is not remembered");
}

#[test]
fn failed_attempts_are_a_limit_of_their_own() {
    let (all, a) = (Addresses::new(), key("198.51.100.1"));
    for _ in 0..10 {
        assert_eq!(all.may_try(a, 10, at(0)), Ok(()));
        all.failed(a, 10, at(0));
    }
    assert_eq!(all.may_try(a, 10, at(0)), Err(Duration::from_secs(6)));
    assert_eq!(all.may_try(a, 10, at(5000)), Err(Duration::from_secs(1)));
    assert_eq!(all.may_try(key("198.51.100.2"), 10, at(0)), Ok(()));
    assert!(all.admit(a, Some(1), Some(1), at(0)).is_ok(), "streams have their own bucket");
    assert_eq!(all.may_try(a, 10, at(6000)), Ok(()));
    assert_eq!(all.may_try(a, 10, at(6000)), Ok(()), "to ask costs nothing");
    // Several that were under way together.
    for _ in 0..3 {
        all.failed(a, 10, at(6000));
    }
    assert_eq!(all.may_try(a, 10, at(6000)), Err(Duration::from_secs(18)));
    assert_eq!(all.may_try(a, 0, at(6000)), Err(Duration::MAX));
}

#[test]
fn who_streams_is_never_forgotten_and_without_room_a_newcomer_waits() {
    let all = Addresses::new();
    let mut keys = all.neighbours();
    let mut permits: Vec<_> = (&mut keys)
        .take(ROOM)
        .map(|key| all.admit(key, Some(1), None, at(0)).expect("there is room"))
        .collect();
    let newcomer = keys.next().unwrap();
    let full = Refused::Addresses { max: 65_536 };
    assert_eq!(all.admit(newcomer, None, None, at(0)).unwrap_err(), full);
    all.failed(newcomer, 1, at(0));
    assert_eq!(all.may_try(newcomer, 1, at(0)), Ok(()), "not counted, but no stream either");
    let refused = all.admit(permits[7].key, Some(1), None, at(0)).unwrap_err();
    assert_eq!(refused, Refused::Streams { max: 1 }, "it is remembered");
    // Whichever goes idle is found, wherever it is.
    for ended in [500, 0, ROOM - 3] {
        let forgotten = permits.swap_remove(ended).key;
        let shard = all.shard(forgotten);
        assert_eq!(shard.find(forgotten), Some(shard.hand), "and at once");
        drop(shard);
        permits.push(all.admit(keys.next().unwrap(), Some(1), None, at(0)).expect("room again"));
        assert!(all.shard(forgotten).find(forgotten).is_none());
        assert_eq!(all.admit(newcomer, None, None, at(0)).unwrap_err(), full);
    }
    assert_eq!(all.count(), (ROOM, ROOM));
    drop(permits);
    assert_eq!(all.count(), (ROOM, 0));
}

#[test]
fn the_deepest_in_debt_is_forgotten_last() {
    let all = Addresses::new();
    let mut keys = all.neighbours();
    let guesser = keys.next().unwrap();
    for _ in 0..10 {
        all.failed(guesser, 10, at(0));
    }
    for key in keys.take(20 * ROOM) {
        drop(all.admit(key, Some(9), Some(20), at(0)).unwrap());
    }
    assert_eq!(all.may_try(guesser, 10, at(0)), Err(Duration::from_secs(6)));
    assert_eq!(all.count(), (ROOM, 0));
}

#[test]
fn who_is_full_again_is_forgotten_before_who_is_not() {
    let all = Addresses::new();
    let mut keys = all.neighbours();
    let mut recent: Vec<_> = (&mut keys).take(ROOM).collect();
    for (n, key) in recent.iter().enumerate() {
        let time = if n == SAMPLE - 1 { 0 } else { 2000 };
        drop(all.admit(*key, None, Some(1), at(time)).unwrap());
    }
    let old = recent.remove(SAMPLE - 1);
    drop(all.admit(keys.next().unwrap(), None, Some(1), at(2500)).unwrap());
    assert!(all.shard(old).find(old).is_none());
    let known = recent.iter().filter(|key| all.shard(**key).find(**key).is_some()).count();
    assert_eq!(known, ROOM - 1);
}

#[test]
fn a_million_addresses_stay_within_the_bound() {
    let all = Addresses::new();
    let mut held = Vec::new();
    for n in 0..1_000_000 {
        let permit = all.admit(nth(n), Some(2), Some(20), at(n / 1000)).expect("there is room");
        if n % 100 == 0 {
            held.push(permit);
        } else if n % 100 == 1 {
            all.failed(nth(n), 10, at(n / 1000));
        }
    }
    let (entries, live) = all.count();
    assert_eq!((entries, live), (ADDRESSES, 10_000));
    let bytes: usize = all
        .shards
        .iter()
        .map(|shard| {
            let shard = shard.lock().unwrap();
            assert_eq!(shard.entries.capacity(), ROOM);
            // A hash table has a byte for each slot, and uses seven eighths of them.
            let slots = (shard.index.capacity() * 8).div_ceil(7);
            assert!(slots <= 4 * ROOM, "{slots}");
            ROOM * size_of::<Entry>() + slots * (size_of::<(AddressKey, u16)>() + 1)
        })
        .sum();
    assert!(bytes <= 6_600_000, "{bytes}");
    drop(held);
    assert_eq!(all.count(), (ADDRESSES, 0));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Admit(u64),
    End(usize),
    Fail(u64),
    MayTry(u64),
    Wait(u64),
}

proptest! {
    /// While there is room, an address is what a count and two buckets of its own would be.
    #[test]
    fn an_address_is_a_count_and_two_buckets(
        streams in 1..5_usize,
        new_per_second in 1..10_u32,
        per_minute in 1..10_u32,
        ops in proptest::collection::vec(prop_oneof![
            6 => (0..4_u64).prop_map(Op::Admit),
            4 => any::<usize>().prop_map(Op::End),
            2 => (0..4_u64).prop_map(Op::Fail),
            2 => (0..4_u64).prop_map(Op::MayTry),
            2 => (0..3000_u64).prop_map(Op::Wait),
        ], 1..150),
    ) {
        let all = Addresses::new();
        let rates: Vec<_> = (0..4).map(|_| Rate::new(new_per_second, 0)).collect();
        let fails: Vec<_> = (0..4).map(|_| Rate::per(MINUTE, per_minute, 0)).collect();
        let (mut open, mut now) = (Vec::<(u64, AddressPermit)>::new(), 0);
        for op in ops {
            match op {
                Op::Admit(n) => {
                    let live = open.iter().filter(|(of, _)| *of == n).count();
                    let expected = match () {
                        () if live == streams => Err(Refused::Streams { max: streams }),
                        () => rates[n as usize].take(at(now))
                            .map_err(|wait| Refused::Rate { max: new_per_second, wait }),
                    };
                    let found = all.admit(nth(n), Some(streams), Some(new_per_second), at(now));
                    prop_assert_eq!(found.as_ref().map(|_| ()).map_err(|refused| *refused), expected);
                    open.extend(found.ok().map(|permit| (n, permit)));
                }
                Op::End(n) if !open.is_empty() => drop(open.swap_remove(n % open.len())),
                Op::End(_) => {}
                Op::Fail(n) => {
                    all.failed(nth(n), per_minute, at(now));
                    fails[n as usize].charge(1, at(now));
                }
                Op::MayTry(n) => {
                    let expected = fails[n as usize].take(at(now));
                    if expected.is_ok() {
                        fails[n as usize].give_back();
                    }
                    prop_assert_eq!(all.may_try(nth(n), per_minute, at(now)), expected);
                }
                Op::Wait(millis) => now += millis,
            }
            prop_assert_eq!(all.count().1, open.len());
        }
    }
}

/// Admits and ends streams of fifty addresses with three each, and counts beside it what is live.
/// Returns how many were admitted and how many refused.
fn contend(all: &Arc<Addresses>, live: &[AtomicUsize], thread: usize) -> (usize, usize) {
    let (mut held, mut admitted) = (Vec::new(), 0);
    let end = |(n, permit): (usize, AddressPermit)| {
        live[n].fetch_sub(1, Ordering::SeqCst);
        drop(permit);
    };
    for i in 0..50_000 {
        let n = (i * 7 + thread * 13) % 50;
        if let Ok(permit) = all.admit(nth(n as u64), Some(3), None, at(i as u64)) {
            let now = live[n].fetch_add(1, Ordering::SeqCst) + 1;
            assert!(now <= 3, "{now}");
            admitted += 1;
            held.push((n, permit));
        }
        if !held.is_empty() && (held.len() > 60 || i % 3 == 0) {
            end(held.swap_remove(i % held.len()));
        }
    }
    held.into_iter().for_each(end);
    (admitted, 50_000 - admitted)
}

#[test]
fn threads_never_exceed_an_addresss_streams() {
    let all = Addresses::new();
    let live: Vec<_> = (0..50).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn({
                    let (all, live) = (&all, &live);
                    move || contend(all, live, thread)
                })
            })
            .collect();
        for thread in threads {
            let (admitted, refused) = thread.join().expect("no panic");
            assert!(admitted > 1000 && refused > 1000, "{admitted} {refused}");
        }
    });
    assert_eq!(all.count(), (50, 0));
}

/// Not a test of anything but what it costs: run it in a release build.
#[test]
#[ignore = "prints timings"]
fn timings() {
    let all = Addresses::new();
    let time = |what: &str, count: u64, step: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        for n in 0..count {
            step(n);
        }
        eprintln!("{what}: {:.0} ns", start.elapsed().as_nanos() as f64 / count as f64);
    };
    let (count, one) = (1_000_000, key("192.0.2.1"));
    time("one address, admitted and ended", count, &mut |n| {
        drop(all.admit(one, Some(2), Some(2_000_000), at(n)).expect("admitted"));
    });
    time("may_try", count, &mut |n| all.may_try(one, 10, at(n)).expect("never failed"));
    time("a flood of /64s, admitted and ended", count, &mut |n| {
        drop(all.admit(nth(n), Some(2), Some(20), at(n / 1000)).expect("admitted"));
    });
    time("a flood within one moment", count, &mut |n| {
        drop(all.admit(nth(count + n), Some(2), Some(20), at(5000)).expect("admitted"));
    });
    let mut held = Vec::new();
    time("a flood, one in twenty stays", count, &mut |n| {
        let permit = all.admit(nth(3 * count + n), Some(2), Some(20), at(9000)).expect("admitted");
        held.extend((n % 20 == 0).then_some(permit));
    });
    drop(held);
    for places in 1..4 {
        let keys: Vec<_> = all.neighbours().take(ROOM + 5000).collect();
        let admit = |key| all.admit(key, None, Some(20), at(9000)).expect("admitted");
        let _held: Vec<_> = keys[places..ROOM].iter().map(|key| admit(*key)).collect();
        time(&format!("{places} places in a shard"), 5000, &mut |n| {
            drop(admit(keys[ROOM + n as usize]));
        });
    }
    let rate = Rate::new(1_000_000_000, 0);
    time("Rate::take", count, &mut |n| rate.take(at(n)).expect("granted"));
}
