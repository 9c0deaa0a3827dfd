//! Finds how many tokens an answer took, while its bytes pass by.
//!
//! Families tell it at different places of events and bodies, but by the same few keys, so bytes
//! are searched for those keys and the number behind them, whatever JSON lies around. What a model
//! quotes in its text has its quotation marks escaped and is not found. Refuses: to parse, to
//! allocate, to guess: an answer without such a number has no usage.
//! Cost: one `memmem` over the bytes (`make bench`, "usage scan"), and 52 bytes kept for as long as the
//! stream lives, which need not be touched while events come whole and tell nothing ([`may_tell`]).

pub mod ask;
pub mod chunk;

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What every key ends in.
const TAIL: &[u8] = b"_tokens\"";
/// From a key's first quotation mark to the end of its number: 19 and 10 bytes, and what stands between
/// and behind them, with some space.
const REACH: usize = 38;

/// Made once: it looks at the needle for longer than at most events.
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(TAIL));

/// What an answer tells of; the last number of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tokens of the request.
    pub input: Option<u32>,
    /// Tokens of the answer.
    pub output: Option<u32>,
    /// Both together.
    pub total: Option<u32>,
}

impl Told {
    /// The tokens of request and answer together; `None` if nobody told.
    pub fn total(&self) -> Option<u64> {
        let sum = || Some(u64::from(self.input?) + u64::from(self.output.unwrap_or(0)));
        self.total.map(u64::from).or_else(sum)
    }
}

/// See the module.
#[derive(Debug)]
pub struct UsageScan {
    /// By [`Which`].
    numbers: [u32; 3],
    /// Which of them were told, a bit each.
    told: u8,
    held: u8,
    /// The last bytes that passed: a key or its number may go on in the next.
    before: [u8; REACH],
}

/// Whether a piece of an answer may tell something, alone or together with what follows, given that
/// what came before it leaves nothing open ([`UsageScan::is_clear`]).
pub fn may_tell(bytes: &[u8]) -> bool {
    !ends_event(bytes) || FINDER.find(bytes).is_some()
}

/// Whether `bytes` end in an empty line, behind which no key or number goes on.
fn ends_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n")
}

/// A number's place.
#[derive(Clone, Copy)]
enum Which {
    Input,
    Output,
    Total,
}

impl Default for UsageScan {
    fn default() -> Self {
        UsageScan { numbers: [0; 3], told: 0, held: 0, before: [0; REACH] }
    }
}

impl UsageScan {
    /// Looks at the next bytes of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        let held = usize::from(self.held);
        let mut seam = [0; 2 * REACH];
        let more = bytes.len().min(REACH);
        seam[..held].copy_from_slice(&self.before[..held]);
        seam[held..held + more].copy_from_slice(&bytes[..more]);
        self.search(&seam[..held + more]);
        self.search(bytes);
        if ends_event(bytes) {
            self.held = 0;
        } else if bytes.len() >= REACH {
            self.before.copy_from_slice(&bytes[bytes.len() - REACH..]);
            self.held = REACH as u8;
        } else {
            let kept = (held + more).min(REACH);
            self.before[..kept].copy_from_slice(&seam[held + more - kept..held + more]);
            self.held = kept as u8;
        }
    }

    /// Whether what has passed leaves nothing open: no key or number can go on.
    pub fn is_clear(&self) -> bool {
        self.held == 0
    }

    /// What was told so far.
    pub fn told(&self) -> Told {
        let get = |which: Which| {
            (self.told & 1 << which as u8 != 0).then_some(self.numbers[which as usize])
        };
        Told { input: get(Which::Input), output: get(Which::Output), total: get(Which::Total) }
    }

    fn search(&mut self, bytes: &[u8]) {
        for at in FINDER.find_iter(bytes) {
            let (head, rest) = (&bytes[..at], &bytes[at + TAIL.len()..]);
            let which = if head.ends_with(b"\"total") {
                Which::Total
            } else if head.ends_with(b"\"input") || head.ends_with(b"\"prompt") {
                Which::Input
            } else if head.ends_with(b"\"output") || head.ends_with(b"\"completion") {
                Which::Output
            } else {
                continue;
            };
            if let Some(number) = number(rest) {
                self.told |= 1 << which as u8;
                self.numbers[which as usize] = number;
            }
        }
    }
}

/// The whole number behind a key; what ends it must have been seen.
fn number(rest: &[u8]) -> Option<u32> {
    let rest = after_space(after_space(rest)?.strip_prefix(b":")?)?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let after = rest.get(digits)?;
    if digits == 0 || matches!(after, b'.' | b'e' | b'E') {
        return None;
    }
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// What follows white space; `None` behind an empty line, where another event begins.
fn after_space(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.trim_ascii_start();
    let space = &bytes[..bytes.len() - rest.len()];
    let ends = (1..=space.len()).any(|end| ends_event(&space[..end]));
    (!ends).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPENAI: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\
        \"completion_tokens\": 30,\"total_tokens\":42,\"prompt_tokens_details\":\
        {\"cached_tokens\":7}}}\n\ndata: [DONE]\n\n";
    const ANTHROPIC: &str = "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":25,\
        \"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"usage\":{\"output_tokens\":15}}\n\n";

    const RESPONSES: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":\
        {\"max_output_tokens\":null,\"usage\":null}}\n\nevent: response.completed\ndata: {\"response\":\
        {\"usage\":{\"input_tokens\":9,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":4,\
        \"output_tokens_details\":{\"reasoning_tokens\":2},\"total_tokens\":13}}}\n\n";

    fn total(pieces: &[&[u8]]) -> Option<u64> {
        let mut scan = UsageScan::default();
        pieces.iter().for_each(|piece| scan.feed(piece));
        scan.told().total()
    }

    #[test]
    fn usage_is_found_however_the_bytes_are_split() {
        for (text, tokens) in [(OPENAI, 42), (ANTHROPIC, 40), (RESPONSES, 13)] {
            let bytes = text.as_bytes();
            assert_eq!(total(&[bytes]), Some(tokens));
            for at in 0..=bytes.len() {
                assert_eq!(total(&[&bytes[..at], &bytes[at..]]), Some(tokens), "split at {at}");
            }
            for size in 1..40 {
                let pieces: Vec<_> = bytes.chunks(size).collect();
                assert_eq!(total(&pieces), Some(tokens), "pieces of {size}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_that_may_not_tell_need_not_be_seen(
            parts in proptest::collection::vec(
                prop_oneof![
                    4 => Just("\"total_tokens\"".to_owned()),
                    2 => Just("\"input_tokens\"".to_owned()),
                    4 => Just(":".to_owned()),
                    4 => "[0-9]{1,3}",
                    8 => "[ ,\n]",
                    2 => Just("\r\n".to_owned()),
                    3 => Just("\n\n".to_owned()),
                    2 => Just("\r\n\r\n".to_owned()),
                    1 => Just("data: {}".to_owned()),
                ],
                0..40,
            ),
            sizes in proptest::collection::vec(1..60usize, 1..20),
        ) {
            let text = parts.concat();
            let mut rest = text.as_bytes();
            let (mut all, mut some, mut whole) =
                (UsageScan::default(), UsageScan::default(), UsageScan::default());
            whole.feed(rest);
            for size in sizes.iter().cycle() {
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                all.feed(piece);
                if !some.is_clear() || may_tell(piece) {
                    some.feed(piece);
                }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(all.told(), some.told());
            prop_assert_eq!(all.told(), whole.told());
        }
    }

    #[test]
    fn a_usual_event_is_not_seen() {
        for event in ["data: {\"choices\":[]}\n\n", "event: a\r\ndata: {}\r\n\r\n"] {
            assert!(!may_tell(event.as_bytes()), "{event:?}");
            let mut scan = UsageScan::default();
            scan.feed(b"data: {\"a\":");
            assert!(!scan.is_clear());
            scan.feed(event.as_bytes());
            assert!(scan.is_clear(), "{event:?}");
        }
        for event in ["data: {}\n", "data: {\"total_tokens\":1}\n\n"] {
            assert!(may_tell(event.as_bytes()), "{event:?}");
        }
    }

    #[test]
    fn it_stays_small() {
        assert!(size_of::<UsageScan>() <= 52, "{}", size_of::<UsageScan>());
    }

    #[test]
    fn each_kind_is_told_apart() {
        let told = |text: &str| {
            let mut scan = UsageScan::default();
            scan.feed(text.as_bytes());
            let Told { input, output, total } = scan.told();
            (input, output, total)
        };
        assert_eq!(told(OPENAI), (Some(12), Some(30), Some(42)));
        assert_eq!(told(ANTHROPIC), (Some(25), Some(15), None), "the last output counts");
        assert_eq!(told(RESPONSES), (Some(9), Some(4), Some(13)));
        assert_eq!(told("{\"total_tokens\":0}"), (None, None, Some(0)));
        assert_eq!(told("{}"), (None, None, None));
    }

    #[test]
    fn what_is_no_number_of_tokens_is_not_found() {
        for text in [
            "data: {\"usage\":null}\n\n",
            "data: {\"content\":\"{\\\"total_tokens\\\": 5}\"}\n\n",
            "{\"total_tokens\": \"5\"}",
            "{\"total_tokens\": 5.5}",
            "{\"total_tokens\": -5}",
            "{\"total_tokens\": 99999999999999999999999}",
            "{\"grand_total_tokens\": 5 }",
            "{\"total_tokens\": 5",
            "{\"max_tokens\": 5}",
        ] {
            assert_eq!(total(&[text.as_bytes()]), None, "{text}");
        }
        let late = "{\"total_tokens\":1} {\"total_tokens\" : 2 }";
        assert_eq!(total(&[late.as_bytes()]), Some(2), "the last one told");
    }
}
