//! The core on a clock of the test's own: no socket, no runtime, no waiting.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::drain::Drain;
use super::*;
use crate::admission::budget::Budget;
use crate::admission::held::Held;
use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config::HeartbeatStyle;
use crate::stream::control::{IoState, Patience};
use crate::stream::ground::{Ground, Rules, Scratch};
use crate::stream::life::{Birth, Live, Place, Target};
use crate::stream::source::Said;
use crate::stream::usage::Usage;
use crate::telemetry::cells::{DrainResult, TokenKind, UsageUnknown};
use crate::telemetry::{Cells, Shape};
use crate::wire::wheel::Wheel;

const EVENT: &[u8] = b"data: {\"n\":1}\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// One stream, its scripted upstream and the time, all in the test's hands.
pub(in crate::stream) struct Bench {
    time: Rc<Cell<Duration>>,
    ground: Rc<Ground>,
    said: Rc<RefCell<VecDeque<Said>>>,
    permits: Arc<Permits>,
    stream: Option<Stream>,
}

#[derive(Default)]
struct Got(Vec<u8>);

impl Out for Got {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

impl Bench {
    pub(in crate::stream) fn new(family: Option<Family>) -> Bench {
        let time = Rc::new(Cell::new(Duration::from_secs(1)));
        let clock = Clock::Manual(time.clone());
        let wheel = Wheel::new();
        wheel.advance(Tick(clock.now().ticks()));
        let shape = Shape {
            usage: vec![("*".into(), "*".into())],
            listeners: vec!["l".into()],
            upstreams: vec!["u".into()],
            routes: vec![("r".into(), 0)],
        };
        let cells = Arc::new(Cells::new(&shape));
        let ground = Rc::new(Ground {
            clock: clock.clone(),
            wheel: wheel.clone(),
            cells: cells.clone(),
            memory: Budget::new(usize::MAX),
            live: Live::default(),
            drains: Permits::new(1),
            draining: Cell::default(),
            cutting: Rc::default(),
            scratch: Scratch::default(),
        });
        let rules = Rules {
            heartbeat: Some(Duration::from_secs(15)),
            style: HeartbeatStyle::Comment,
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(40),
            total: Duration::from_secs(600),
            max_event: 1000,
            usage_drain: Some(Duration::from_secs(20)),
        };
        let permits = Permits::new(1);
        let patience = Patience { client_stall: Duration::from_secs(30), backlog: 65536 };
        let control = Control::new(Rc::<IoState>::default(), &ground, patience);
        let life = Life::begin(Birth {
            ground: ground.clone(),
            held: Held::new(permits.take().expect("one place"), None),
            place: Rc::new(Place {
                route: "r".into(),
                rules,
                targets: Box::new([Target {
                    upstream: "u".into(),
                    route_index: 0,
                    upstream_index: 0,
                }]),
            }),
            id: "id".into(),
            trace_id: Some(7),
            control,
        });
        let said = Rc::<RefCell<VecDeque<Said>>>::default();
        let source = Source::Script(said.clone());
        let stream = match family {
            Some(family) => Stream::events(family, source, life),
            None => Stream::opaque(source, life),
        };
        Bench { time, ground, said, permits, stream: Some(stream) }
    }

    pub(in crate::stream) fn says(&self, bytes: &[u8]) {
        self.said.borrow_mut().push_back(Some(Ok(Bytes::copy_from_slice(bytes))));
    }

    pub(in crate::stream) fn ends(&self) {
        self.said.borrow_mut().push_back(None);
    }

    pub(in crate::stream) fn fails(&self, kind: Kind) {
        self.said.borrow_mut().push_back(Some(Err(Failure::new(kind, "it broke"))));
    }

    pub(in crate::stream) fn pass(&self, time: Duration) {
        self.time.set(self.time.get() + time);
        self.ground.wheel.advance(Tick(self.ground.clock.now().ticks()));
    }

    /// All that comes now, and the end if it came.
    fn fill(&mut self) -> (String, Option<End>) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut got = Got::default();
        let stream = self.stream.as_mut().expect("not dropped");
        let end = loop {
            match stream.poll_fill(&mut cx, &mut got) {
                Poll::Ready(Fill::Data) => {}
                Poll::Ready(Fill::End(end)) => break Some(end),
                Poll::Pending => break None,
            }
        };
        (String::from_utf8(got.0).expect("text"), end)
    }

    fn prime(&mut self, commit_at: Option<Tick>) -> Poll<Result<(), Kind>> {
        let mut cx = Context::from_waker(Waker::noop());
        let stream = self.stream.as_mut().expect("not dropped");
        stream.poll_prime(&mut cx, commit_at).map_err(|failure| failure.kind)
    }

    /// The gateway has asked for the stream's usage, and counts it.
    fn asks_for_usage(mut self) -> Bench {
        let mut usage = Usage::new(Some(0), true);
        usage.asked();
        let stream = self.stream.as_mut().expect("not dropped");
        stream.control().attempt(1);
        stream.life().uses(usage);
        self
    }

    /// The stream, for a sink; the bench goes on as its upstream and its clock.
    pub(in crate::stream) fn take(&mut self) -> Stream {
        self.stream.take().expect("not taken")
    }

    /// Drops the stream; the reasons counted.
    pub(in crate::stream) fn settle(&mut self) -> Vec<Reason> {
        self.stream = None;
        assert_eq!(self.permits.used(), 0, "the permit came back");
        assert!(self.ground.live.is_empty(), "the row is gone");
        assert_eq!(self.ground.cells.route(0).streams_live.get(), 0);
        let upstream = self.ground.cells.upstream(0);
        let counted = |reason: &Reason| upstream.ended(*reason).get() as usize;
        Reason::ALL.iter().flat_map(|r| std::iter::repeat_n(*r, counted(r))).collect()
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn heartbeats_come_only_between_events_and_only_when_it_is_quiet() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    assert_eq!(bench.fill(), ("data: {\"n\":1}\n\n".into(), None));
    bench.pass(seconds(14));
    assert_eq!(bench.fill(), (String::new(), None), "not yet");
    bench.pass(seconds(2));
    assert_eq!(bench.fill(), (": ping\n".into(), None));
    bench.says(b"data: {\"half");
    assert_eq!(bench.fill().0, "data: {\"half");
    bench.pass(seconds(20));
    assert_eq!(bench.fill(), (String::new(), None), "never inside an event");
    bench.says(b"\":2}\n\n");
    assert_eq!(bench.fill().0, "\":2}\n\n");
    assert_eq!(bench.ground.cells.heartbeats.get(), 1);
}

#[test]
fn heartbeats_do_not_hide_a_dead_upstream() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.fill();
    let mut got = String::new();
    let end = loop {
        bench.pass(seconds(1));
        let (text, end) = bench.fill();
        got += &text;
        if end.is_some() {
            break end;
        }
    };
    assert_eq!(got.matches(": ping\n").count(), 2, "at 15 s and 30 s of 40 s");
    assert!(got.contains("upstream_idle_timeout") && got.ends_with("\n\n"), "{got}");
    assert_eq!(end, Some(End::Cut));
    assert_eq!(bench.settle(), [Reason::UpstreamTimeout]);
}

#[test]
fn a_first_event_that_never_comes_is_a_failure_before_the_commit_and_an_error_event_after() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(b": thinking\n");
    assert!(bench.prime(None).is_pending(), "a comment does not commit");
    bench.pass(seconds(61));
    assert_eq!(bench.prime(None), Poll::Ready(Err(Kind::FirstByte)));

    let mut bench = Bench::new(Some(Family::OpenAi));
    let commit_at = Some(bench.ground.wheel.now().after(seconds(20)));
    assert!(bench.prime(commit_at).is_pending());
    bench.pass(seconds(21));
    assert_eq!(bench.prime(commit_at), Poll::Ready(Ok(())));
    assert_eq!(bench.fill(), (": ping\n".into(), None), "heartbeats start with the commit");
    bench.pass(seconds(45));
    let (text, end) = bench.fill();
    assert!(text.contains("upstream_first_byte_timeout"), "{text}");
    assert_eq!(end, Some(End::Cut));
    assert_eq!(bench.settle(), [Reason::UpstreamTimeout]);
}

#[test]
fn the_total_limit_ends_a_busy_stream() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    let end = loop {
        bench.says(EVENT);
        let (text, end) = bench.fill();
        if end.is_some() {
            assert!(text.contains("total_timeout"), "{text}");
            break end;
        }
        bench.pass(seconds(5));
    };
    assert_eq!(end, Some(End::Cut));
    assert!(bench.time.get() <= seconds(611));
    assert_eq!(bench.settle(), [Reason::Limit]);
}

#[test]
fn only_the_terminal_mark_makes_an_end_complete() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.says(DONE);
    bench.ends();
    assert_eq!(bench.fill(), ("data: {\"n\":1}\n\ndata: [DONE]\n\n".into(), Some(End::Clean)));
    assert_eq!(bench.settle(), [Reason::Completed]);

    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.ends();
    let (text, end) = bench.fill();
    assert!(text.starts_with("data: {\"n\":1}\n\ndata: {\"error\":"), "{text}");
    assert_eq!((text.matches("\"error\"").count(), end), (1, Some(End::Cut)));
    assert_eq!(bench.settle(), [Reason::UpstreamTruncated]);

    let mut bench = Bench::new(Some(Family::Plain));
    bench.says(EVENT);
    bench.ends();
    assert_eq!(bench.fill().1, Some(End::Clean), "plain streams end with their body");
    assert_eq!(bench.settle(), [Reason::Completed]);
}

#[test]
fn an_error_in_mid_event_stands_alone_and_the_upstreams_own_is_not_doubled() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(b"data: {\"half");
    bench.fails(Kind::Truncated);
    let (text, end) = bench.fill();
    assert!(text.starts_with("data: {\"half\n\ndata: {\"error\":"), "{text}");
    assert_eq!(end, Some(End::Cut));
    assert_eq!(bench.settle(), [Reason::UpstreamTruncated]);

    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.says(b"data: {\"error\":{\"message\":\"full\"}}\n\n");
    bench.ends();
    let (text, end) = bench.fill();
    assert_eq!((text.matches("\"error\"").count(), end), (1, Some(End::Cut)));
    assert_eq!(bench.settle(), [Reason::UpstreamError]);
}

#[test]
fn after_the_terminal_mark_nothing_can_go_wrong_any_more() {
    for how in ["fails", "stays open"] {
        let mut bench = Bench::new(Some(Family::OpenAi));
        bench.says(DONE);
        if how == "fails" {
            bench.fails(Kind::Truncated);
        }
        let (text, mut end) = bench.fill();
        assert_eq!(text, "data: [DONE]\n\n");
        if how == "stays open" {
            assert_eq!(end, None);
            bench.pass(limits::AFTER_TERMINAL + limits::TICK);
            let (text, later) = bench.fill();
            assert_eq!(text, "", "and no heartbeat after it");
            end = later;
        }
        assert_eq!(end, Some(End::Clean), "{how}");
        assert_eq!(bench.settle(), [Reason::Completed]);
    }
}

#[test]
fn a_client_that_leaves_after_the_terminal_mark_has_everything() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.fill();
    assert_eq!(bench.settle(), [Reason::ClientClosed]);

    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(DONE);
    bench.fill();
    assert_eq!(bench.settle(), [Reason::Completed]);
}

#[test]
fn an_error_or_an_end_first_is_a_failure_before_the_commit() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(b"data: {\"error\":{\"message\":\"full\",\"code\":429}}\n\n");
    assert_eq!(bench.prime(None), Poll::Ready(Err(Kind::ErrorFirst)));
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.ends();
    assert_eq!(bench.prime(None), Poll::Ready(Err(Kind::Empty)));
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(&[EVENT, b"data: {\"error\":{\"message\":\"later\"}}\n\n"].concat());
    assert_eq!(bench.prime(None), Poll::Ready(Ok(())), "the first event was good");
}

#[test]
fn an_event_beyond_its_limit_is_cut_and_counted() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.says(&[b"data: ".as_slice(), &[b'x'; 2000]].concat());
    let (text, end) = bench.fill();
    assert!(text.contains("event_too_long"), "{text}");
    assert_eq!(end, Some(End::Cut));
    assert_eq!(bench.settle(), [Reason::Limit]);
}

#[test]
fn a_drain_deadline_ends_a_stream_with_an_error_event() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.fill();
    bench.ground.cutting.set(true);
    let (text, end) = bench.fill();
    assert!(text.contains("\"draining\"") && end == Some(End::Cut), "{text}");
    assert_eq!(bench.settle(), [Reason::Drain]);
}

#[test]
fn other_responses_pass_without_additions_and_end_uncleanly_without_words() {
    let mut bench = Bench::new(None);
    bench.says(b"{\"half\":");
    assert_eq!(bench.fill().0, "{\"half\":");
    bench.pass(seconds(20));
    assert_eq!(bench.fill(), (String::new(), None), "no heartbeat");
    bench.fails(Kind::Truncated);
    assert_eq!(bench.fill(), (String::new(), Some(End::Cut)));
    assert_eq!(bench.settle(), [Reason::UpstreamTruncated]);
}

#[test]
fn a_panic_ends_its_own_stream_uncleanly_and_is_counted() {
    struct Breaks;
    impl Out for Breaks {
        fn put(&mut self, _: &[u8]) {
            panic!("a test wants it");
        }
    }
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    let mut cx = Context::from_waker(Waker::noop());
    let stream = bench.stream.as_mut().expect("not dropped");
    let fill = stream.poll_fill_guarded(&mut cx, &mut Breaks);
    assert_eq!(fill, Poll::Ready(Fill::End(End::Cut)));
    assert_eq!(bench.fill(), (String::new(), Some(End::Cut)), "and nothing more comes of it");
    assert_eq!(bench.settle(), [Reason::Internal]);
}

#[test]
fn the_clean_end_is_known_with_the_last_byte_where_the_source_knows_it() {
    let mut bench = Bench::new(None);
    bench.says(b"all of it");
    bench.ends();
    let over = |bench: &Bench| bench.stream.as_ref().expect("not dropped").over();
    assert!(!over(&bench));
    assert_eq!(bench.fill(), ("all of it".into(), Some(End::Clean)));
    assert!(over(&bench));
    let mut bench = Bench::new(None);
    bench.fails(Kind::Truncated);
    assert_eq!(bench.fill().1, Some(End::Cut));
    assert!(!over(&bench), "an unclean end is none");
}

const USAGE: &[u8] = b"data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n";

#[test]
fn what_the_gateway_asked_for_is_withheld_and_heartbeats_keep_their_places() {
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(EVENT);
    assert_eq!(bench.fill().0.as_bytes(), EVENT);
    bench.pass(seconds(16));
    bench.says(&USAGE[..30]);
    assert_eq!(bench.fill(), (String::new(), None), "neither a half event nor a heartbeat in it");
    bench.says(&USAGE[30..]);
    assert_eq!(bench.fill(), (": ping\n".into(), None), "where it would have been is a boundary");
    bench.says(&[USAGE, DONE].concat());
    bench.ends();
    assert_eq!(bench.fill(), ("data: [DONE]\n\n".into(), Some(End::Clean)));
    assert_eq!(bench.settle(), [Reason::Completed]);
}

#[test]
fn an_event_of_which_nothing_went_on_is_taken_back_when_the_stream_fails() {
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(&[EVENT, &USAGE[..30]].concat());
    bench.fails(Kind::Truncated);
    let (text, end) = bench.fill();
    assert!(text.starts_with("data: {\"n\":1}\n\ndata: {\"error\":{"), "{text}");
    assert_eq!(end, Some(End::Cut));
    assert_eq!(bench.settle(), [Reason::UpstreamTruncated]);
    // One that went on in part is ended, as ever.
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(b"data: {\"choices\":[{");
    bench.fails(Kind::Truncated);
    assert!(bench.fill().0.starts_with("data: {\"choices\":[{\n\ndata: {\"error\":{"));
}

#[test]
fn what_is_held_at_a_clean_end_goes_on() {
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(&[DONE, &USAGE[..30]].concat());
    bench.ends();
    let (text, end) = bench.fill();
    assert_eq!((text.as_bytes(), end), (&*[DONE, &USAGE[..30]].concat(), Some(End::Clean)));
    let mut bench = Bench::new(None).asks_for_usage();
    bench.says(USAGE);
    bench.ends();
    assert_eq!(bench.fill().0.as_bytes(), USAGE, "what is no stream of events passes");
}

#[test]
fn a_stream_that_begins_with_what_is_withheld_begins() {
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(b"\xEF");
    bench.says(&[b"\xBB\xBF", USAGE, DONE].concat());
    bench.ends();
    assert_eq!(bench.prime(None), Poll::Ready(Ok(())));
    assert_eq!(bench.fill(), ("data: [DONE]\n\n".into(), Some(End::Clean)));
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(b"\xEF");
    bench.says(b"x\n");
    bench.says(&[b"\n", EVENT].concat());
    assert_eq!(bench.prime(None), Poll::Ready(Ok(())));
    let stream = bench.stream.as_ref().expect("not dropped");
    let ahead: Vec<u8> = stream.ahead.iter().flatten().copied().collect();
    assert_eq!(ahead, [b"\xEFx\n\n", EVENT].concat(), "what was no byte order mark is not lost");
}

/// Drains that ended so, and tokens that were counted.
fn drained(bench: &Bench, result: DrainResult) -> (u64, u64) {
    let cells = &bench.ground.cells;
    let tokens = TokenKind::ALL.iter().map(|kind| cells.usage(0).tokens(*kind).get());
    (cells.drained(result).get(), tokens.sum())
}

fn poll(drain: &mut Option<Drain>) -> Poll<()> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(drain.as_mut().expect("it is read on")).poll(&mut cx)
}

#[test]
fn a_stream_without_its_client_is_read_on_to_learn_its_usage() {
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.says(EVENT);
    bench.fill();
    let mut drain = bench.take().drain();
    assert!(poll(&mut drain).is_pending());
    let live = |bench: &Bench| (bench.permits.used(), bench.ground.cells.usage_drains.get());
    assert_eq!(live(&bench), (1, 1), "it keeps its place");
    for n in 0..40 {
        bench.says(EVENT);
        assert!(n % 20 != 19 || poll(&mut drain).is_pending());
    }
    bench.says(&[USAGE, DONE].concat());
    assert!(poll(&mut drain).is_pending(), "others get their turn");
    while poll(&mut drain).is_pending() && !bench.said.borrow().is_empty() {}
    assert!(poll(&mut drain).is_pending(), "the end is still to come");
    bench.ends();
    assert_eq!(poll(&mut drain), Poll::Ready(()));
    drop(drain);
    assert_eq!(live(&bench), (0, 0));
    assert_eq!(drained(&bench, DrainResult::Learned), (1, 3));
    assert_eq!(bench.settle(), [Reason::ClientClosed], "the client has not got it, whatever came");
    assert_eq!(bench.ground.cells.usage(0).unknown(UsageUnknown::ClientLeft).get(), 0);
}

#[test]
fn reading_on_ends_with_its_time_and_with_every_limit() {
    type End = fn(&Bench);
    let ends: [(&str, End); 7] = [
        ("its time is up", |bench| bench.pass(seconds(20) + limits::TICK)),
        ("the process drains", |bench| bench.ground.draining.set(true)),
        ("the process ends", |bench| bench.ground.cutting.set(true)),
        ("it ends", |bench| bench.ends()),
        ("it breaks", |bench| bench.fails(Kind::Truncated)),
        ("an event is too long", |bench| {
            bench.says(&[b"data: ", [b'x'; 2000].as_slice()].concat())
        }),
        ("it is too old", |bench| bench.pass(seconds(19))),
    ];
    for (what, end) in ends {
        let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
        for _ in 0..if what == "it is too old" { 31 } else { 1 } {
            bench.says(EVENT);
            bench.fill();
            bench.pass(seconds(if what == "it is too old" { 19 } else { 1 }));
        }
        bench.says(EVENT);
        bench.fill();
        let mut drain = bench.take().drain();
        assert!(poll(&mut drain).is_pending(), "{what}");
        end(&bench);
        assert_eq!(poll(&mut drain), Poll::Ready(()), "{what}");
        drop(drain);
        assert_eq!(drained(&bench, DrainResult::NotLearned), (1, 0), "{what}");
        assert_eq!(bench.settle(), [Reason::ClientClosed], "{what}");
        let unknown = bench.ground.cells.usage(0).unknown(UsageUnknown::ClientLeft);
        assert_eq!(unknown.get(), 1, "{what}");
    }
}

#[test]
fn an_end_mark_is_waited_behind_as_ever() {
    let mut bench = Bench::new(Some(Family::Anthropic)).asks_for_usage();
    bench.says(
        b"event: message_start\ndata: {\"usage\":{\"input_tokens\":4,\"output_tokens\":1}}\n\n",
    );
    bench.fill();
    let mut drain = bench.take().drain();
    bench.says(b"event: message_delta\ndata: {\"usage\":{\"output_tokens\":6}}\n\n");
    bench.says(b"event: message_stop\ndata: {}\n\n");
    assert!(poll(&mut drain).is_pending());
    bench.pass(limits::AFTER_TERMINAL + limits::TICK);
    assert_eq!(poll(&mut drain), Poll::Ready(()));
    drop(drain);
    assert_eq!(drained(&bench, DrainResult::Learned), (1, 10), "what was told at its end");
}

#[test]
fn what_is_known_or_wanted_by_nobody_is_not_read_on_nor_more_than_there_are_places_for() {
    let begun = |bench: &mut Bench, text: &[u8]| {
        bench.says(text);
        bench.fill();
        bench.take().drain().is_some()
    };
    let mut bench = Bench::new(Some(Family::OpenAi));
    assert!(!begun(&mut bench, EVENT), "nobody counts it");
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    assert!(!begun(&mut bench, USAGE), "it is known");
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    assert!(!begun(&mut bench, DONE), "it is complete");
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.stream.as_ref().expect("not dropped").control().end(Reason::Limit);
    assert!(!begun(&mut bench, EVENT), "it was cut for its memory");
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.stream.as_ref().expect("not dropped").control().end(Reason::ClientStalled);
    assert!(begun(&mut bench, EVENT), "a client that stalls has left as well");
    assert_eq!(bench.settle(), [Reason::ClientStalled]);
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    bench.stream.as_mut().expect("not dropped").source =
        Source::Awaiting(Box::pin(std::future::pending()));
    assert!(!begun(&mut bench, EVENT), "there is no answer yet");
    let mut bench = Bench::new(Some(Family::OpenAi)).asks_for_usage();
    let place = bench.ground.drains.take();
    assert!(!begun(&mut bench, EVENT), "others have all places");
    assert_eq!(drained(&bench, DrainResult::NoRoom), (1, 0));
    assert_eq!(bench.ground.cells.usage_drains.get(), 0);
    drop(place);
}
