//! Ids: one per request for the log and the client, and W3C trace context.
//!
//! Refuses to be a source of secrets: ids are unique, not unguessable. Invariant: request ids of
//! one thread ascend, whatever the clock does, and threads and processes differ by 56 random bits.
//! Cost: one wall-clock read and one allocation per id; no lock, no dependency.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of what [`new_request_id`] returns.
pub const REQUEST_ID_LEN: usize = 26;

/// Digits of Crockford's base 32, lower case: their order is that of ASCII, and none is mistaken
/// for another when read aloud.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Bits of the counter within one millisecond.
const COUNTER_BITS: u32 = 24;

/// A new request id: 26 letters and digits that sort by time (48 bits of milliseconds, 24 bits of
/// counter, 56 random bits of the thread).
pub fn new_request_id() -> String {
    thread_local! {
        /// Milliseconds and counter of the thread's last id, as one ascending number.
        static LAST: Cell<u128> = const { Cell::new(0) };
        static THREAD: u128 = u128::from(seed() >> 8);
    }
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    // A clock that stands still or goes back only makes the counter go on (and run over into the
    // milliseconds, should it ever come to that).
    let stamp = LAST.with(|last| {
        let stamp = (now_ms << COUNTER_BITS).max(last.get() + 1);
        last.set(stamp);
        stamp
    });
    encode((stamp << 56) | THREAD.with(|bits| *bits))
}

/// The 128 bits as 26 digits, the most significant first.
fn encode(bits: u128) -> String {
    let digit = |i: usize| DIGITS[(bits >> (5 * (REQUEST_ID_LEN - 1 - i)) & 31) as usize];
    (0..REQUEST_ID_LEN).map(|i| char::from(digit(i))).collect()
}

/// A new `traceparent` for a request that came without one (W3C Trace Context, section 3.2), and its
/// trace id: version 00, random ids, not sampled, since the gateway records no spans. Written digit
/// by digit: formatting took a twentieth of a short request's instructions.
pub fn new_traceparent() -> (String, u128) {
    let trace = (u128::from(random()) << 64 | u128::from(random())).max(1);
    let parent = random().max(1);
    let mut text = String::with_capacity(55);
    text.push_str("00-");
    push_hex(&mut text, (trace >> 64) as u64);
    push_hex(&mut text, trace as u64);
    text.push('-');
    push_hex(&mut text, parent);
    text.push_str("-00");
    (text, trace)
}

/// Sixteen hexadecimal digits.
fn push_hex(text: &mut String, bits: u64) {
    for shift in (0..16).rev() {
        text.push(char::from(b"0123456789abcdef"[(bits >> (4 * shift) & 15) as usize]));
    }
}

/// The trace id of a `traceparent` header, or `None` if the header is malformed. Versions above 00
/// may carry more fields behind the known ones (W3C Trace Context, section 3.2.4).
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let (version, rest) = field(traceparent, 2)?;
    let (trace, rest) = field(rest.strip_prefix('-')?, 32)?;
    let (parent, rest) = field(rest.strip_prefix('-')?, 16)?;
    let (_flags, rest) = field(rest.strip_prefix('-')?, 2)?;
    let ends_well = rest.is_empty() || (version != "00" && rest.starts_with('-'));
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    (version != "ff" && ends_well && !zero(trace) && !zero(parent)).then_some(trace)
}

/// Takes `len` lower-case hexadecimal digits off the front.
fn field(text: &str, len: usize) -> Option<(&str, &str)> {
    let (head, rest) = text.split_at_checked(len)?;
    head.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some((head, rest))
}

/// 64 bits that differ per call, thread and process: the keys of a fresh hasher, which the standard
/// library seeds from the operating system.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The thread's next pseudo-random number: SplitMix64 (Steele, Lea, Flood 2014). No secret.
pub fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(seed());
    }
    let state = STATE.with(|state| {
        state.set(state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        state.get()
    });
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn request_ids_are_visible_and_ascend() {
        let ids: Vec<String> = (0..10_000).map(|_| new_request_id()).collect();
        for id in &ids {
            assert_eq!(id.len(), REQUEST_ID_LEN);
            assert!(id.bytes().all(|b| DIGITS.contains(&b)), "{id}");
        }
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn request_ids_of_threads_differ() {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| (0..5_000).map(|_| new_request_id()).collect::<Vec<_>>())
            })
            .collect();
        let ids: Vec<String> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 40_000);
    }

    #[test]
    fn ids_of_a_later_millisecond_sort_later() {
        let first = encode((1_700_000_000_000 << 80) | ((1 << 80) - 1));
        let second = encode(1_700_000_000_001 << 80);
        assert!(first < second);
        assert_eq!(encode(0), "0".repeat(26));
        assert_eq!(encode(u128::MAX), format!("7{}", "z".repeat(25)));
    }

    #[test]
    fn new_traceparents_are_valid_and_differ() {
        let all: HashSet<(String, u128)> = (0..1_000).map(|_| new_traceparent()).collect();
        assert_eq!(all.len(), 1_000);
        for (traceparent, trace) in &all {
            assert_eq!(traceparent.len(), 55);
            assert_eq!(trace_id(traceparent), Some(&*format!("{trace:032x}")));
        }
    }

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn trace_id_is_found() {
        assert_eq!(trace_id(GOOD), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        let later = format!("cc{}-what-comes", &GOOD[2..]);
        assert_eq!(trace_id(&later), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    }

    #[test]
    fn malformed_traceparents_have_no_trace_id() {
        for end in 0..GOOD.len() {
            assert_eq!(trace_id(&GOOD[..end]), None, "cut at {end}");
        }
        for at in 0..GOOD.len() {
            for wrong in ["é", "F", "g", " "] {
                let bad = format!("{}{wrong}{}", &GOOD[..at], &GOOD[at + 1..]);
                assert_eq!(trace_id(&bad), None, "{bad}");
            }
        }
        for bad in [
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }
}
