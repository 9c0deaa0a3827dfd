//! The operations that are measured: what is on every chunk's, every request's, or the start's way.
//!
//! Each can be repeated without end: it leaves its things as it found them.

use std::hint::black_box;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response};

use tidegate::admission::budget::Budget;
use tidegate::admission::held::Held;
use tidegate::admission::permit::Permits;
use tidegate::clock::Clock;
use tidegate::config::{self, Family, HeartbeatStyle};
use tidegate::gateway::plan;
use tidegate::gateway::route::Routes;
use tidegate::gateway::{check, reply};
use tidegate::stream::control::{Control, IoState, Patience};
use tidegate::stream::deadline::Deadlines;
use tidegate::stream::ground::{Ground, Rules, Scratch};
use tidegate::stream::life::{Birth, Life, Live, Place, Target};
use tidegate::telemetry::line::Pen;
use tidegate::telemetry::log::{self, StreamEnd};
use tidegate::telemetry::{Cells, Reason, Shape, Slots, trace};
use tidegate::wire::chunked::Decoder;
use tidegate::wire::guard::Guard;
use tidegate::wire::head;
use tidegate::wire::scan::Scanner;
use tidegate::wire::sse::{self, Tracker};
use tidegate::wire::usage::UsageScan;
use tidegate::wire::usage::chunk::UsageChunk;
use tidegate::wire::wheel::{Tick, Timer, Wheel};

use crate::admission;

/// Does one operation so many times.
pub(crate) type Repeat = Box<dyn FnMut(u32)>;

/// One line of the report.
pub(crate) struct Operation {
    /// What it does; also its name in the baseline.
    pub(crate) name: &'static str,
    /// How often it is repeated to be counted: the difference of twice as many to as many.
    pub(crate) times: u32,
    /// Makes what it works on.
    pub(crate) build: fn() -> Repeat,
    /// What it may take, nanoseconds, if that is required.
    pub(crate) ns_max: Option<f64>,
}

const fn of(name: &'static str, times: u32, build: fn() -> Repeat) -> Operation {
    Operation { name, times, build, ns_max: None }
}

impl Operation {
    const fn at_most(self, ns: f64) -> Operation {
        Operation { ns_max: Some(ns), ..self }
    }

    /// Whether `ns` nanoseconds are more than it may take.
    pub(crate) fn is_too_slow(&self, ns: f64) -> bool {
        self.ns_max.is_some_and(|max| ns > max)
    }
}

/// Every operation, in the order of the report.
pub(crate) const ALL: &[Operation] = &[
    of("framing tracker, one event of 240 bytes", 1000, tracker_event),
    of("framing tracker, the same byte by byte", 100, tracker_bytes),
    of("framing tracker, 64 KiB of 273 events", 10, tracker_piece),
    of("usage scan, one event of 240 bytes", 1000, usage_scan),
    of("usage chunk looked for, one event of 240 bytes", 1000, usage_chunk),
    of("chunk decoder, one chunk of 240 bytes", 1000, decoder),
    of("wheel, store a later deadline", 1000, wheel_store),
    of("wheel, file and drop a timer", 1000, wheel_file),
    of("wheel, 100 timers set, due and woken", 50, wheel_due),
    of("wheel, 100 timers met that have moved on", 50, wheel_moved),
    of("metric cells, one counter", 1000, cells_counter),
    of("metric cells, one histogram", 1000, cells_histogram),
    of("heartbeats, wheel and metrics of a chunk", 1000, chunk_accounts).at_most(300.0),
    of("request guard, a usual head", 1000, guard),
    of("key scanner, a body of 2 kB", 100, scanner),
    of("request check: host, upgrade, dot segments", 1000, request_check),
    of("request id, a new one", 1000, request_id),
    of("log line of an ended stream", 1000, log_line),
    of("log line of an ended stream, by tracing", 1000, log_line_by_tracing),
    of("hop-by-hop fields put into a head, stripped", 1000, strip),
    of("response head of an event stream rewritten", 1000, response_head),
    of("route of a path, among 12", 1000, route),
    of("family of a path", 1000, family),
    of("admission permit, taken and given back", 1000, permit),
    of("admission of a request, every limit on", 1000, admission::whole).at_most(2_000.0),
    of("configuration of 12 routes, parsed", 10, configuration),
];

fn repeat(mut operation: impl FnMut() + 'static) -> Repeat {
    Box::new(move |times| {
        for _ in 0..times {
            operation();
        }
    })
}

fn event() -> String {
    format!("data: {{\"id\":\"chatcmpl-1\",\"pad\":\"{}\"}}\n\n", "x".repeat(204))
}

fn tracker_event() -> Repeat {
    let (event, mut tracker) = (event(), Tracker::new(Family::OpenAi, 1 << 24));
    assert_eq!(event.len(), 240);
    repeat(move || {
        black_box(tracker.feed(black_box(event.as_bytes())));
    })
}

fn tracker_bytes() -> Repeat {
    let (event, mut tracker) = (event(), Tracker::new(Family::OpenAi, 1 << 24));
    repeat(move || {
        for byte in event.as_bytes() {
            black_box(tracker.feed(std::slice::from_ref(byte)));
        }
    })
}

fn tracker_piece() -> Repeat {
    let (piece, mut tracker) = (event().repeat(273), Tracker::new(Family::OpenAi, 1 << 24));
    repeat(move || {
        black_box(tracker.feed(black_box(piece.as_bytes())));
    })
}

fn usage_scan() -> Repeat {
    let (event, mut scan) = (event(), UsageScan::default());
    repeat(move || black_box(&mut scan).feed(black_box(event.as_bytes())))
}

fn usage_chunk() -> Repeat {
    let head = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
                \"model\":\"gpt-4.1-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"";
    let event = format!("{head}{}\"}}}}]}}\n\n", "x".repeat(240 - head.len() - 7));
    assert_eq!(event.len(), 240);
    let mut chunk = UsageChunk::default();
    repeat(move || assert_eq!(chunk.feed(black_box(event.as_bytes())), None))
}

fn decoder() -> Repeat {
    let (chunk, mut decoder) = (format!("f0\r\n{}\r\n", event()), Decoder::new());
    repeat(move || {
        let mut rest = black_box(chunk.as_bytes());
        while !rest.is_empty() {
            let step = decoder.feed(rest).expect("a good chunk");
            rest = &rest[black_box(step).consumed..];
        }
    })
}

fn wheel_store() -> Repeat {
    let wheel = Wheel::new();
    let (timer, mut due) = (wheel.timer(), Tick(0));
    repeat(move || {
        due = due.after(Duration::from_millis(100));
        timer.set(black_box(due), Waker::noop());
    })
}

fn wheel_file() -> Repeat {
    let wheel = Wheel::new();
    repeat(move || wheel.timer().set(black_box(Tick(100)), Waker::noop()))
}

fn hundred_timers(wheel: &Wheel) -> Vec<Timer> {
    let timers: Vec<Timer> = (0..100).map(|_| wheel.timer()).collect();
    timers.iter().for_each(|timer| timer.set(Tick(1), Waker::noop()));
    timers
}

fn wheel_due() -> Repeat {
    let wheel = Wheel::new();
    let timers = hundred_timers(&wheel);
    repeat(move || {
        let next = Tick(wheel.now().0 + 1);
        timers.iter().for_each(|timer| timer.set(next, Waker::noop()));
        assert_eq!(wheel.advance(next), 100);
    })
}

fn wheel_moved() -> Repeat {
    let wheel = Wheel::new();
    let timers = hundred_timers(&wheel);
    repeat(move || {
        let next = Tick(wheel.now().0 + 1);
        // They are filed under the next tick, which only stores the later deadline.
        timers.iter().for_each(|timer| timer.set(Tick(next.0 + 1), Waker::noop()));
        assert_eq!(wheel.advance(next), 0);
    })
}

fn cells() -> Cells {
    let shape = Shape {
        listeners: vec!["l".into()],
        upstreams: vec!["u".into()],
        routes: vec![("r".into(), 0)],
        ..Shape::default()
    };
    Cells::new(&shape)
}

fn cells_counter() -> Repeat {
    let cells = cells();
    repeat(move || black_box(&cells).heartbeats.inc())
}

fn cells_histogram() -> Repeat {
    let cells = cells();
    repeat(move || {
        let interval = black_box(Duration::from_millis(7));
        black_box(&cells).upstream(0).chunk_interval.observe(interval);
    })
}

/// All that a chunk of one event costs beyond being read, framed and written: the calls that the
/// core, the relay and the client's socket make for it, and nothing else.
fn chunk_accounts() -> Repeat {
    let (clock, wheel, cells) = (Clock::System, Wheel::new(), Arc::new(cells()));
    let io = Rc::<IoState>::default();
    let patience = Patience { client_stall: Duration::from_secs(30), backlog: 1 << 16 };
    let ground = Rc::new(Ground {
        clock: clock.clone(),
        wheel: wheel.clone(),
        cells: cells.clone(),
        memory: Budget::new(1 << 20),
        live: Live::default(),
        drains: Permits::new(1),
        draining: Default::default(),
        cutting: Rc::default(),
        scratch: Scratch::default(),
    });
    let control = Control::new(io.clone(), &ground, patience);
    let second = Duration::from_secs(1);
    let rules = Rules {
        heartbeat: Some(15 * second),
        style: HeartbeatStyle::Comment,
        first_byte: 120 * second,
        idle: 120 * second,
        total: 3600 * second,
        max_event: 1 << 24,
        usage_drain: None,
    };
    let target = Target { upstream: "u".into(), route_index: 0, upstream_index: 0 };
    let place = Place { route: "r".into(), rules: rules.clone(), targets: Box::new([target]) };
    let mut life = Life::begin(Birth {
        ground,
        held: Held::new(Permits::new(1).take().expect("a free place"), None),
        place: Rc::new(place),
        id: "id".into(),
        trace_id: None,
        control: control.clone(),
    });
    let mut tracker = Tracker::new(Family::OpenAi, rules.max_event);
    tracker.feed(event().as_bytes());
    let (timer, mut deadlines) = (wheel.timer(), Deadlines::new(Tick(0), Tick(0)));
    let mut cx = Context::from_waker(Waker::noop());
    repeat(move || {
        // It comes from upstream,
        let now = clock.now();
        deadlines.came(wheel.now());
        life.received(black_box(240), 1, now);
        // is given to the client,
        io.read(clock.now());
        deadlines.went(wheel.now());
        life.gave(black_box(240));
        // is taken by its socket,
        if let Some(relay) = io.wrote(&clock) {
            cells.chunk_relay.observe(relay);
        }
        io.flushed();
        // and nothing more is there. Over HTTP/1.1, the control hears of it only while something waits.
        let (limit, _) = deadlines.limit(black_box(&rules), Some(&tracker), || life.asked());
        let beat = deadlines.heartbeat(black_box(&rules), &tracker);
        timer.set(beat.expect("between two events").min(limit), cx.waker());
        control.waits(0, true);
        assert!(control.poll_cut(&mut cx).is_pending());
    })
}

fn guard() -> Repeat {
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nuser-agent: bench\r\n\
        authorization: Bearer sk-0123456789abcdef\r\ncontent-type: application/json\r\n\
        accept: text/event-stream\r\ncontent-length: 0\r\n\r\n";
    let mut guard = Guard::new(1 << 16);
    repeat(move || black_box(guard.feed(black_box(head))).expect("a good head"))
}

fn scanner() -> Repeat {
    let words = "a long prompt ".repeat(140);
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{words}"}}],"stream":true}}"#);
    repeat(move || {
        let mut scanner = Scanner::new();
        scanner.feed(black_box(body.as_bytes()));
        assert_eq!(scanner.found().stream, Some(true));
    })
}

/// The fields that an SDK sends.
fn fields() -> HeaderMap {
    let fields = [
        ("host", "gateway:8080"),
        ("user-agent", "OpenAI/Python 2.7.1"),
        ("authorization", "Bearer sk-0123456789abcdef"),
        ("content-type", "application/json"),
        ("content-length", "2048"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate"),
        ("x-stainless-lang", "python"),
        ("x-stainless-os", "Linux"),
        ("x-stainless-retry-count", "0"),
    ];
    let typed = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    fields.into_iter().map(typed).collect()
}

fn request_check() -> Repeat {
    let mut request = Request::post("/v1/chat/completions").body(()).expect("a request");
    *request.headers_mut() = fields();
    repeat(move || check::check(black_box(&request)).expect("a good request"))
}

fn request_id() -> Repeat {
    repeat(|| {
        black_box(trace::new_request_id());
    })
}

/// A short request's.
fn ended() -> StreamEnd<'static> {
    StreamEnd {
        id: "01kajc2v8d3f9w0000xq7r5m2n",
        upstream_request_id: Some("req_5b0c2a7e91d34f60"),
        trace_id: Some(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        route: "/v1/{*rest}",
        upstream: "openai",
        status: 200,
        reason: Reason::Completed,
        ttfb: Some(Duration::from_micros(843)),
        duration: Duration::from_micros(1_207),
        events: 3,
        bytes: 731,
        max_gap: Some(Duration::from_micros(211)),
        attempt: 1,
    }
}

/// Written, and handed to nobody.
fn log_line() -> Repeat {
    let (end, mut pen) = (ended(), Pen::new(io::sink()));
    repeat(move || pen.write(black_box(&end)).expect("a sink takes everything"))
}

/// What the line above is instead of.
fn log_line_by_tracing() -> Repeat {
    let json = tracing_subscriber::fmt().json().flatten_event(true).with_writer(io::sink);
    let json = json.with_current_span(false).with_span_list(false).finish();
    let (end, dispatch) = (ended(), tracing::Dispatch::new(json));
    Box::new(move |times| {
        tracing::dispatcher::with_default(&dispatch, || {
            for _ in 0..times {
                log::stream_end(black_box(&end));
            }
        });
    })
}

fn strip() -> Repeat {
    let mut headers = fields();
    let own = headers.len();
    repeat(move || {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        head::strip_hop_by_hop(black_box(&mut headers));
        assert_eq!(headers.len(), own);
    })
}

fn response_head() -> Repeat {
    let response = Response::builder()
        .header("content-type", "text/event-stream")
        .header("date", "Sat, 21 Nov 2026 08:49:00 GMT")
        .header("server", "uvicorn")
        .header("x-request-id", "req-1");
    let mut parts = Some(response.body(()).expect("a response").into_parts().0);
    repeat(move || {
        let mut head = parts.take().expect("put back each time");
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        parts = Some(reply::event_stream_head(Some(black_box(head))).into_parts().0);
    })
}

fn route() -> Repeat {
    let config = config::parse(&twelve_routes(), "bench.toml").expect("a good configuration");
    let slots = Slots {
        upstreams: (0..12).collect(),
        routes: (0..12).map(|slot| vec![slot]).collect(),
        ..Slots::default()
    };
    let routes = Routes::new(plan::routes(&config.config, &slots));
    repeat(move || {
        let found = routes.find(black_box("/v1/chat/completions"));
        black_box(found.map(|route| route.upstreams[0]).expect("a route"));
    })
}

fn family() -> Repeat {
    repeat(|| {
        black_box(sse::family_of(black_box("/v1/chat/completions"), black_box(Family::Auto)));
    })
}

fn permit() -> Repeat {
    let permits = Permits::new(1);
    repeat(move || drop(black_box(permits.take().expect("a free place"))))
}

fn configuration() -> Repeat {
    let text = twelve_routes();
    repeat(move || {
        let loaded = config::parse(black_box(&text), "bench.toml");
        assert_eq!(loaded.expect("a good configuration").config.routes.len(), 12);
    })
}

/// A configuration as a larger site has it.
fn twelve_routes() -> String {
    let mut text = String::from(
        "[server]\nlisten = [\"0.0.0.0:8080\", \"[::]:8080\"]\ndrain_deadline = \"5m\"\n\
         [stream]\nheartbeat = \"10s\"\ncommit_after = \"off\"\nbacklog = \"32KiB\"\n\
         [limits]\nconnections = 9000\nstreams = 8000\n\
         [[upstream]]\nname = \"openai\"\nurls = [\"https://api.openai.com\"]\n\
         [[route]]\npath = \"/v1/{*rest}\"\nupstream = \"openai\"\n",
    );
    for n in 1..12 {
        text += &format!(
            "[[upstream]]\nname = \"team-{n}\"\nurls = [\"https://team-{n}.example/openai/v1\"]\n\
             query = {{ api-version = \"2024-10-21\" }}\nheaders = {{ x-team = \"{n}\" }}\n\
             [[route]]\npath = \"/team-{n}/{{*rest}}\"\nupstream = \"team-{n}\"\n\
             family = \"openai\"\nheartbeat_style = \"comment-frame\"\n",
        );
    }
    text
}
