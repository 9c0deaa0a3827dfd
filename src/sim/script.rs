//! What is sent in which order, whichever protocol carries it.
//!
//! Owns the sequence of an answer's body, including where and how a fault ends it, and the cutting
//! of bytes into pieces. Refuses to sleep or to write; `h1.rs` and `h2.rs` do both.
//! Invariant: with the clock off the data of all steps is what [`expected_body`] returns.
//! Cost: a plain value of some 250 bytes per live stream.

use std::time::Duration;

use bytes::Bytes;

use super::options::{Behaviour, Fault, Split};
use super::payload::{self, Kind, Voice};

/// One thing to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send these bytes of body.
    Data(Bytes),
    /// Announce that the connection takes no further request.
    Goaway,
    /// End the answer; nothing follows.
    End(End),
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As HTTP wants it.
    Clean,
    /// As HTTP wants it, with a trailer section.
    Trailers,
    /// The connection (h2: the stream) stops short.
    Fin,
    /// The connection (h2: the stream) is reset.
    Reset,
    /// The connection goes away, with all its streams.
    Connection,
    /// The same, and HTTP/2 says that it is for the client's behaviour.
    Calm,
    /// Never, until the client leaves.
    Stall,
    /// With a chunk header that is none.
    BadChunk,
    /// In the middle of a chunk.
    ShortChunk,
    /// As if it were complete, though the content-length says it is not.
    Short,
}

/// The body of one answer.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) behaviour: Behaviour,
    content: Content,
    at: At,
    sent: u32,
    opened: bool,
    goaway: bool,
}

#[derive(Clone, Debug)]
enum Content {
    Stream(Voice),
    Fixed(Bytes),
}

/// Where a script stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before what some APIs send ahead of the content.
    Opening,
    /// Among the events with content, or before the one piece of a fixed body.
    Events,
    /// Before what comes between content and mark, such as the usage chunk.
    Closing,
    /// Before the terminal mark.
    Done,
    /// Nothing but the end is left.
    Over,
}

impl Script {
    pub(super) fn stream(behaviour: Behaviour, voice: Voice) -> Self {
        Self::new(behaviour, Content::Stream(voice))
    }

    pub(super) fn fixed(behaviour: Behaviour, body: impl Into<Bytes>) -> Self {
        Self::new(behaviour, Content::Fixed(body.into()))
    }

    fn new(behaviour: Behaviour, content: Content) -> Self {
        let at = match content {
            Content::Stream(_) => At::Opening,
            Content::Fixed(_) => At::Events,
        };
        let mut script = Self { behaviour, content, at, sent: 0, opened: false, goaway: false };
        script.skip_opening();
        script
    }

    /// An API without an opening has none, nor has a stream that begins with its fault.
    fn skip_opening(&mut self) {
        let Content::Stream(voice) = &self.content else { return };
        let fault = self.behaviour.fault;
        let struck = fault.is_mid_stream() && self.after() == 0;
        let none = struck || matches!(fault, Fault::Empty | Fault::ErrorFirst);
        if none || voice.opening(&self.behaviour).is_none() {
            self.at = At::Events;
        }
    }

    /// How long to wait before the next step.
    pub(super) fn wait(&self) -> Duration {
        let Behaviour { first_event, interval, count, fault, .. } = self.behaviour;
        if self.at == At::Opening {
            return first_event;
        }
        if self.at != At::Events || self.goaway_is_next() {
            return Duration::ZERO;
        }
        match self.content {
            Content::Fixed(_) => Duration::ZERO,
            Content::Stream(_) if self.sent == 0 && self.opened => Duration::ZERO,
            Content::Stream(_) if self.sent == 0 => first_event,
            // A mid-stream fault strikes when the next event would be due.
            Content::Stream(_) if self.sent < count || fault.is_mid_stream() => interval,
            Content::Stream(_) => Duration::ZERO,
        }
    }

    /// Moves on by one step. After [`Step::End`] it only repeats it.
    pub(super) fn step(&mut self) -> Step {
        let first =
            self.at == At::Opening || (self.at == At::Events && self.sent == 0 && !self.opened);
        let step = match &self.content {
            Content::Fixed(body) => {
                let body = body.clone();
                self.fixed_step(body)
            }
            Content::Stream(_) => self.stream_step(),
        };
        match step {
            Step::Data(data) if first && self.has_bom() => {
                Step::Data(Bytes::from([b"\xef\xbb\xbf".as_slice(), &data].concat()))
            }
            step => step,
        }
    }

    /// Length of the whole body with the clock as it is set, bytes; the clock's digits are the
    /// only part that may differ from what is sent later.
    pub(super) fn length(&self) -> u64 {
        let mut dry = self.clone();
        let mut length = 0;
        loop {
            match dry.step() {
                Step::Data(data) => length += data.len() as u64,
                Step::Goaway => {}
                Step::End(_) => return length,
            }
        }
    }

    /// A good stream gets no further event, though the last one does not say so; any other goes on.
    pub(super) fn hurry(&mut self) {
        if self.behaviour.fault == Fault::None {
            self.behaviour.count = self.behaviour.count.min(self.sent);
        }
    }

    /// Length of a fixed body before any fault cuts it, bytes.
    pub(super) fn whole(&self) -> Option<usize> {
        match &self.content {
            Content::Stream(_) => None,
            Content::Fixed(body) => Some(body.len()),
        }
    }

    /// Seed for [`Pieces`]: the same for the same stream id.
    pub(super) fn seed(&self) -> u64 {
        match &self.content {
            Content::Stream(voice) => voice.stream,
            Content::Fixed(body) => body.len() as u64,
        }
    }

    fn has_bom(&self) -> bool {
        self.behaviour.framing.bom && matches!(self.content, Content::Stream(_))
    }

    /// Events before the fault.
    fn after(&self) -> u32 {
        self.behaviour.fault_after.min(self.behaviour.count)
    }

    fn goaway_is_next(&self) -> bool {
        let fault = self.behaviour.fault == Fault::Goaway && !self.goaway;
        match self.content {
            Content::Fixed(_) => fault,
            Content::Stream(_) => fault && self.at == At::Events && self.sent == self.after(),
        }
    }

    fn stream_step(&mut self) -> Step {
        if self.goaway_is_next() {
            self.goaway = true;
            return Step::Goaway;
        }
        let Content::Stream(voice) = &self.content else { return Step::End(End::Clean) };
        let behaviour = &self.behaviour;
        let fault = behaviour.fault;
        if self.at == At::Opening {
            (self.at, self.opened) = (At::Events, true);
            if let Some(opening) = voice.opening(behaviour) {
                return Step::Data(opening);
            }
        }
        if self.at == At::Events {
            let struck = fault.is_mid_stream() && self.sent == self.after();
            if fault == Fault::Empty || (struck && fault != Fault::ErrorMiddle) {
                self.at = At::Over;
            } else if struck || fault == Fault::ErrorFirst {
                self.at = At::Over;
                return Step::Data(voice.error(behaviour, self.sent));
            } else if self.sent < behaviour.count {
                self.sent += 1;
                let size = payload::size(behaviour, self.sent);
                return Step::Data(voice.event(behaviour, self.sent, size));
            } else {
                self.at = At::Closing;
            }
        }
        if self.at == At::Closing {
            self.at = At::Done;
            if let Some(closing) = voice.closing(behaviour) {
                return Step::Data(closing);
            }
        }
        if self.at == At::Done {
            self.at = At::Over;
            if fault != Fault::NoDone {
                return Step::Data(voice.done(behaviour));
            }
        }
        Step::End(end(fault))
    }

    fn fixed_step(&mut self, body: Bytes) -> Step {
        if self.goaway_is_next() {
            self.goaway = true;
            return Step::Goaway;
        }
        let fault = self.behaviour.fault;
        if self.at == At::Over || fault == Fault::Empty || body.is_empty() {
            return Step::End(end(fault));
        }
        self.at = At::Over;
        let cut = fault.is_mid_stream() && fault != Fault::ErrorMiddle;
        Step::Data(if cut { body.slice(..body.len() / 2) } else { body })
    }
}

fn end(fault: Fault) -> End {
    match fault {
        Fault::Fin => End::Fin,
        Fault::Rst => End::Reset,
        Fault::Conn => End::Connection,
        Fault::Stall => End::Stall,
        Fault::BadChunk => End::BadChunk,
        Fault::ShortChunk => End::ShortChunk,
        Fault::CalmAway => End::Calm,
        Fault::WrongLength => End::Short,
        Fault::Trailers => End::Trailers,
        _ => End::Clean,
    }
}

/// The body of an event stream that the simulator sends with `sim-clock: off`, byte for byte, up
/// to the end or the fault in `behaviour` (whose own clock setting is ignored).
pub fn expected_body(
    behaviour: &Behaviour,
    kind: Kind,
    stream_id: u64,
    model: &str,
    include_usage: bool,
) -> Vec<u8> {
    let behaviour = Behaviour { clock: false, ..behaviour.clone() };
    let voice = Voice::new(&behaviour, kind, stream_id, model, include_usage);
    let mut script = Script::stream(behaviour, voice);
    let mut body = Vec::new();
    loop {
        match script.step() {
            Step::Data(data) => body.extend_from_slice(&data),
            Step::Goaway => {}
            Step::End(_) => return body,
        }
    }
}

/// Cuts bytes into pieces as `sim-split` asks; the cuts depend on the seed only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    split: Split,
    state: u64,
}

impl Pieces {
    pub(super) fn new(split: Split, seed: u64) -> Self {
        // Any odd constant spreads small seeds; xorshift must not start at zero.
        Self { split, state: seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// Length of the next piece of `left` remaining bytes: at least 1 unless nothing is left.
    pub(super) fn next(&mut self, left: usize) -> usize {
        match self.split {
            Split::None => left,
            Split::Byte => left.min(1),
            Split::Random => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                left.min(1 + (self.state >> 32) as usize % 40)
            }
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.split == Split::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behaviour(fault: Fault) -> Behaviour {
        Behaviour { clock: false, count: 5, fault, fault_after: 2, ..Behaviour::default() }
    }

    fn run(fault: Fault) -> (String, End) {
        let behaviour = behaviour(fault);
        let voice = Voice::new(&behaviour, Kind::Chat, 1, "m", false);
        let mut script = Script::stream(behaviour, voice);
        let mut text = String::new();
        loop {
            match script.step() {
                Step::Data(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                Step::Goaway => text.push_str("GOAWAY\n\n"),
                Step::End(end) => {
                    assert_eq!(script.step(), Step::End(end), "the end repeats");
                    return (text, end);
                }
            }
        }
    }

    #[test]
    fn a_good_stream_has_count_events_and_the_mark() {
        let (text, end) = run(Fault::None);
        assert_eq!(text.matches("\n\n").count(), 6);
        assert!(text.ends_with("data: [DONE]\n\n"));
        assert_eq!(end, End::Clean);
    }

    #[test]
    fn a_hurried_stream_ends_with_its_mark_and_one_with_a_fault_goes_on() {
        for (fault, left) in [(Fault::None, 1), (Fault::NoDone, 3)] {
            let behaviour = behaviour(fault);
            let voice = Voice::new(&behaviour, Kind::Chat, 1, "m", false);
            let mut script = Script::stream(behaviour, voice);
            (0..2).for_each(|_| drop(script.step()));
            script.hurry();
            let mut data = 0;
            while let Step::Data(_) = script.step() {
                data += 1;
            }
            assert_eq!(data, left, "{fault:?}");
        }
    }

    #[test]
    fn mid_stream_faults_strike_after_n_events() {
        let cut = [
            (Fault::Fin, End::Fin),
            (Fault::Rst, End::Reset),
            (Fault::Conn, End::Connection),
            (Fault::Stall, End::Stall),
            (Fault::BadChunk, End::BadChunk),
            (Fault::ShortChunk, End::ShortChunk),
            (Fault::CalmAway, End::Calm),
        ];
        for (fault, expected) in cut {
            let (text, end) = run(fault);
            assert_eq!((text.matches("\n\n").count(), end), (2, expected), "{fault:?}");
        }
        let (text, end) = run(Fault::ErrorMiddle);
        assert_eq!((text.matches("\n\n").count(), end), (3, End::Clean));
        assert!(text.contains(r#"data: {"error":"#) && !text.contains("[DONE]"));
    }

    #[test]
    fn the_other_stream_faults_change_what_they_name() {
        assert_eq!(run(Fault::Empty), (String::new(), End::Clean));
        let (text, _) = run(Fault::ErrorFirst);
        assert!(text.starts_with(r#"data: {"error":"#) && text.matches("\n\n").count() == 1);
        let (text, end) = run(Fault::NoDone);
        assert_eq!((text.matches("\n\n").count(), end), (5, End::Clean));
        let (text, _) = run(Fault::Huge);
        let longest = text.split("\n\n").map(str::len).enumerate().max_by_key(|(_, len)| *len);
        assert!(longest.is_some_and(|(index, len)| index == 1 && len > 3 * 512 * 1024));
        let (text, _) = run(Fault::Goaway);
        assert_eq!(text.split("\n\n").position(|event| event == "GOAWAY"), Some(2));
        assert_eq!(run(Fault::WrongLength).1, End::Short);
        assert_eq!(run(Fault::Trailers).1, End::Trailers);
    }

    #[test]
    fn waits_belong_to_events_and_faults_only() {
        let (first_event, interval) = (Duration::from_secs(1), Duration::from_millis(20));
        let plan = |fault| {
            let behaviour = Behaviour { first_event, interval, ..behaviour(fault) };
            let voice = Voice::new(&behaviour, Kind::Chat, 1, "m", true);
            let mut script = Script::stream(behaviour, voice);
            let mut waits = Vec::new();
            loop {
                waits.push(script.wait().as_millis());
                if matches!(script.step(), Step::End(_)) {
                    return waits;
                }
            }
        };
        assert_eq!(plan(Fault::None), [1000, 20, 20, 20, 20, 0, 0, 0]);
        assert_eq!(plan(Fault::Fin), [1000, 20, 20]);
        assert_eq!(plan(Fault::Goaway), [1000, 20, 0, 20, 20, 20, 0, 0, 0]);
    }

    #[test]
    fn framing_changes_line_ends_and_mark_but_nothing_else() {
        let plain = expected_body(&behaviour(Fault::None), Kind::Chat, 1, "m", true);
        let plain = String::from_utf8(plain).unwrap();
        for (name, line_end) in [("crlf", "\r\n"), ("cr", "\r")] {
            let mut other = behaviour(Fault::None);
            other.apply("sim-line-end", name).unwrap();
            other.apply("sim-bom", "1").unwrap();
            let body = String::from_utf8(expected_body(&other, Kind::Chat, 1, "m", true)).unwrap();
            let rest = body.strip_prefix('\u{feff}').unwrap();
            assert_eq!(rest, plain.replace('\n', line_end));
        }
    }

    #[test]
    fn a_fixed_body_is_halved_by_mid_stream_faults() {
        let data = |fault| Script::fixed(behaviour(fault), "{\"a\":1}").step();
        assert_eq!(data(Fault::None), Step::Data(Bytes::from("{\"a\":1}")));
        assert_eq!(data(Fault::Fin), Step::Data(Bytes::from("{\"a")));
        assert_eq!(data(Fault::Empty), Step::End(End::Clean));
    }

    #[test]
    fn pieces_cover_everything_and_repeat_for_a_seed() {
        let cuts = |split, seed| {
            let mut pieces = Pieces::new(split, seed);
            let (mut left, mut cuts) = (500, Vec::new());
            while left > 0 {
                let piece = pieces.next(left);
                assert!(piece >= 1 && piece <= left);
                left -= piece;
                cuts.push(piece);
            }
            cuts
        };
        assert_eq!(cuts(Split::None, 1), [500]);
        assert_eq!(cuts(Split::Byte, 1).len(), 500);
        let random = cuts(Split::Random, 1);
        assert_eq!(random, cuts(Split::Random, 1));
        assert_ne!(random, cuts(Split::Random, 2));
        assert!(random.iter().any(|&piece| piece > 1) && random.len() > 12);
        assert_eq!(Pieces::new(Split::Random, u64::MAX).next(0), 0);
    }
}
