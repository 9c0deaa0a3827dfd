//! What a request has used: read from its answer as that passes, settled once at its end.
//!
//! Families tell it in their last events, so an answer that breaks off, or whose client leaves, told
//! nothing or something provisional: it counts as unknown then, and never as 0. Invariant: an
//! answer that may have taken tokens is counted once at most, by its tokens or as unknown. Cost: 64
//! bytes for a request that is counted or whose tenant has token limits, 32 more where the gateway asked for
//! the usage, a pointer for any other.

use crate::admission::held::Held;
use crate::clock::Moment;
use crate::telemetry::cells::{Cells, Reason, TokenKind, UsageUnknown};
use crate::wire::usage::chunk::UsageChunk;
use crate::wire::usage::{Told, UsageScan};

/// See the module.
#[derive(Debug)]
pub struct Usage {
    scan: UsageScan,
    /// Where it is counted; [`NOWHERE`].
    slot: u16,
    /// It counts as unknown if nobody tells it.
    expected: bool,
    answer: Answer,
    /// Withholds what the gateway asked for and the client did not.
    chunk: Option<Box<UsageChunk>>,
}

/// Which pieces of an answer have to be seen: kept where each chunk is at work anyhow, so that the many
/// that tell nothing do not touch memory that lies elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// None.
    Never,
    /// One that [may tell](crate::wire::usage::may_tell) something by itself.
    IfItTells,
    /// The next, whatever it is.
    Always,
}

/// What is known of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It can be read.
    Readable,
    /// It is encoded.
    Encoded,
    /// It was read to its end after its client had left.
    Complete,
}

/// The slot of what is read for the tenant's limit alone.
const NOWHERE: u16 = u16::MAX;

impl Usage {
    /// Of a request that is counted under `slot`, if it is counted. `expected`: it is one that a model
    /// answers, so that an answer without usage is worth telling.
    pub fn new(slot: Option<u16>, expected: bool) -> Usage {
        let slot = slot.unwrap_or(NOWHERE);
        Usage { scan: UsageScan::default(), slot, expected, answer: Answer::Readable, chunk: None }
    }

    /// The gateway has asked for the stream's usage: its client does not get to see it.
    pub fn asked(&mut self) {
        self.chunk = Some(Box::default());
    }

    /// See [`Life::instead`](crate::stream::life::Life::instead).
    pub(super) fn instead(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.chunk.as_mut()?.feed(bytes)
    }

    /// See [`Life::withheld`](crate::stream::life::Life::withheld).
    pub(super) fn withheld(&mut self) -> Vec<u8> {
        self.chunk.as_mut().map(|chunk| chunk.take()).unwrap_or_default()
    }

    /// The model is known better now.
    pub fn moves(&mut self, slot: u16) {
        if self.slot != NOWHERE {
            self.slot = slot;
        }
    }

    /// The answer went on with `bytes`.
    pub fn reads(&mut self, bytes: &[u8]) {
        if self.answer != Answer::Encoded {
            self.scan.feed(bytes);
        }
    }

    /// What of the answer's next piece it has to see.
    pub(super) fn looks(&self) -> Looks {
        if self.chunk.is_some() {
            Looks::Always
        } else if self.answer == Answer::Encoded {
            Looks::Never
        } else if self.scan.is_clear() {
            Looks::IfItTells
        } else {
            Looks::Always
        }
    }

    /// The answer is encoded.
    pub fn unreadable(&mut self) {
        self.answer = Answer::Encoded;
    }

    /// It was read to its end, though its client has left.
    pub(super) fn completed(&mut self) {
        self.answer = Answer::Complete;
    }

    /// Whether reading on may bring to light what is not known yet.
    pub(super) fn is_missing(&self) -> bool {
        self.expected && self.answer == Answer::Readable && self.known(false).is_none()
    }

    /// Whether it is known, though its client has left.
    pub(super) fn is_learned(&self) -> bool {
        self.known(false).is_some()
    }

    /// No model worked on it.
    pub fn nothing_used(&mut self) {
        self.expected = false;
    }

    /// What was told, if it stands: a sum is told at the end only; where there is none, as in
    /// Anthropic's API, numbers are provisional until the answer is complete.
    fn known(&self, complete: bool) -> Option<Told> {
        let (told, complete) = (self.scan.told(), complete || self.answer == Answer::Complete);
        (told.total.is_some() || complete && told.input.is_some()).then_some(told)
    }

    /// Its request is over: counts, and settles what was reserved for it. `sent`: the upstream may have
    /// seen it.
    pub fn settle(&self, held: &Held, cells: &Cells, reason: Reason, sent: bool, now: Moment) {
        let known = self.known(reason == Reason::Completed);
        if let Some(tokens) = known.as_ref().and_then(Told::total) {
            held.settle(tokens, now);
        }
        if self.slot == NOWHERE {
            return;
        }
        let cells = cells.usage(self.slot);
        match known {
            Some(told) => {
                for (kind, tokens) in split(told) {
                    cells.tokens(kind).add(tokens.into());
                }
            }
            None if self.expected && sent => cells.unknown(self.why(reason)).inc(),
            None => {}
        }
    }

    fn why(&self, reason: Reason) -> UsageUnknown {
        match reason {
            Reason::ClientClosed | Reason::ClientStalled => UsageUnknown::ClientLeft,
            Reason::Completed if self.answer == Answer::Encoded => UsageUnknown::NotRead,
            Reason::Completed => UsageUnknown::NotSent,
            Reason::UpstreamError
            | Reason::UpstreamTruncated
            | Reason::UpstreamTimeout
            | Reason::Limit
            | Reason::Drain
            | Reason::Internal => UsageUnknown::Failed,
        }
    }
}

/// What was told as tokens of each kind; what is not told follows from the sum, if that is.
fn split(told: Told) -> [(TokenKind, u32); 2] {
    use TokenKind::{Input, Output, Unsplit};
    let rest = |part: u32| told.total.map_or(0, |total| total.saturating_sub(part));
    match (told.input, told.output) {
        (Some(input), Some(output)) => [(Input, input), (Output, output)],
        (Some(input), None) => [(Input, input), (Output, rest(input))],
        (None, Some(output)) => [(Input, rest(output)), (Output, output)],
        (None, None) => [(Unsplit, rest(0)), (Output, 0)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::permit::Permits;
    use crate::telemetry::Shape;

    #[test]
    fn it_is_small() {
        assert!(size_of::<Usage>() <= 64, "{}", size_of::<Usage>());
    }

    /// Tokens by kind, and unknown ones by reason, of one answer.
    fn counted(text: &str, reason: Reason, with: impl FnOnce(&mut Usage)) -> ([u64; 3], [u64; 4]) {
        let shape = Shape { usage: vec![("*".into(), "*".into()); 2], ..Shape::default() };
        let cells = Cells::new(&shape);
        let held = Held::new(Permits::new(1).take().expect("one place"), None);
        let mut usage = Usage::new(Some(1), true);
        usage.reads(text.as_bytes());
        with(&mut usage);
        usage.settle(&held, &cells, reason, true, Moment::default());
        let cells = cells.usage(1);
        let tokens = TokenKind::ALL.iter().map(|kind| cells.tokens(*kind).get());
        let unknown = UsageUnknown::ALL.iter().map(|why| cells.unknown(*why).get());
        let (tokens, unknown): (Vec<_>, Vec<_>) = (tokens.collect(), unknown.collect());
        (tokens.try_into().expect("three"), unknown.try_into().expect("four"))
    }

    const NONE: [u64; 3] = [0; 3];

    #[test]
    fn tokens_are_counted_by_kind() {
        for (text, expected) in [
            ("\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12,", [5, 7, 0]),
            ("\"prompt_tokens\":5,\"total_tokens\":12,", [5, 7, 0]),
            ("\"output_tokens\":7,\"total_tokens\":12,", [5, 7, 0]),
            ("\"input_tokens\":5,\"output_tokens\":7,", [5, 7, 0]),
            ("\"input_tokens\":5,", [5, 0, 0]),
            ("\"total_tokens\":12,", [0, 0, 12]),
        ] {
            assert_eq!(counted(text, Reason::Completed, |_| ()), (expected, [0; 4]), "{text}");
        }
    }

    #[test]
    fn what_is_not_told_is_unknown_and_why() {
        for (reason, unknown) in [
            (Reason::ClientClosed, [1, 0, 0, 0]),
            (Reason::ClientStalled, [1, 0, 0, 0]),
            (Reason::UpstreamTruncated, [0, 1, 0, 0]),
            (Reason::Drain, [0, 1, 0, 0]),
            (Reason::Completed, [0, 0, 1, 0]),
        ] {
            assert_eq!(counted("{}", reason, |_| ()), (NONE, unknown), "{reason:?}");
        }
        let encoded = |usage: &mut Usage| usage.unreadable();
        assert_eq!(counted("{}", Reason::Completed, encoded), (NONE, [0, 0, 0, 1]));
        let unused = |usage: &mut Usage| usage.nothing_used();
        assert_eq!(counted("{}", Reason::UpstreamError, unused), (NONE, [0; 4]));
    }

    #[test]
    fn provisional_numbers_do_not_stand_when_an_answer_breaks_off() {
        let begun = "{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}";
        assert_eq!(counted(begun, Reason::ClientClosed, |_| ()), (NONE, [1, 0, 0, 0]));
        assert_eq!(counted(begun, Reason::UpstreamError, |_| ()), (NONE, [0, 1, 0, 0]));
        let sum = "{\"prompt_tokens\":2,\"completion_tokens\":3,\"total_tokens\":5}";
        assert_eq!(counted(sum, Reason::ClientClosed, |_| ()), ([2, 3, 0], [0; 4]));
        assert_eq!(counted(sum, Reason::UpstreamError, |_| ()), ([2, 3, 0], [0; 4]));
    }
}
