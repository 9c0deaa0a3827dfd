//! Nothing is allocated per chunk by the parts on its way, each by itself. What hyper allocates to
//! read and to write is not counted here.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate::admission::budget::Budget;
use tidegate::admission::held::Held;
use tidegate::admission::permit::Permits;
use tidegate::clock::Clock;
use tidegate::config::{self, Family, HeartbeatStyle};
use tidegate::sim::{Behaviour, Options, Sim};
use tidegate::stream::control::{Control, IoState, Patience};
use tidegate::stream::core::Stream;
use tidegate::stream::ground::{Ground, Rules, Scratch};
use tidegate::stream::life::{Birth, Life, Live, Place, Target};
use tidegate::stream::relay::{Relay, Verdict};
use tidegate::stream::source::Source;
use tidegate::telemetry::{Cells, Shape};
use tidegate::upstream::attempts::{self, Bounds};
use tidegate::upstream::send::Outgoing;
use tidegate::upstream::tls::ClientTls;
use tidegate::upstream::upload::{BodyRules, RequestBody, Upload};
use tidegate::upstream::{Known, Upstream};
use tidegate::wire::sse::Tracker;
use tidegate::wire::wheel::{Tick, Wheel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::stage::client::STREAM;
use crate::stage::{alloc, soon};

const EVENT: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"tide\"}}]}\n\n";
/// Events of the stream through the core, a chunk each.
const EVENTS: u32 = 1000;

fn cells() -> Arc<Cells> {
    let shape = Shape {
        listeners: vec!["l".into()],
        upstreams: vec!["u".into()],
        routes: vec![("r".into(), 0)],
        ..Shape::default()
    };
    Arc::new(Cells::new(&shape))
}

#[test]
fn the_tracker_allocates_nothing() {
    let piece = EVENT.repeat(1000);
    let mut tracker = Tracker::new(Family::OpenAi, 1 << 20);
    let (events, counts) = alloc::during(|| {
        let whole = tracker.feed(&piece).events;
        let bytes: u32 = piece.chunks(1).map(|byte| tracker.feed(byte).events).sum();
        tracker.heartbeat_written();
        whole + bytes
    });
    assert_eq!((events, counts.allocations), (2000, 0));
}

#[test]
fn the_wheel_allocates_nothing_to_store_move_and_fire_a_deadline() {
    let wheel = Wheel::new();
    let timers: Vec<_> = (0..100).map(|_| wheel.timer()).collect();
    let round = |from: u32| {
        timers.iter().for_each(|timer| timer.set(Tick(from + 50), Waker::noop()));
        timers.iter().for_each(|timer| timer.set(Tick(from + 90), Waker::noop()));
        timers.iter().for_each(|timer| timer.set(Tick(from + 70), Waker::noop()));
        (from..from + 100).map(|tick| wheel.advance(Tick(tick + 1))).sum::<usize>()
    };
    // The first round makes room for the wakers of one tick, which is kept.
    assert_eq!(round(0), 100);
    let (woken, counts) = alloc::during(|| round(100) + round(200));
    assert_eq!((woken, counts.allocations), (200, 0));
}

#[test]
fn the_metric_cells_allocate_nothing() {
    let cells = cells();
    let (_, counts) = alloc::during(|| {
        for n in 0..1000 {
            cells.upstream(0).events.inc();
            cells.backlog_bytes.add(n);
            cells.upstream(0).chunk_interval.observe(Duration::from_millis(n.unsigned_abs()));
        }
    });
    assert_eq!((cells.upstream(0).events.get(), counts.allocations), (1000, 0));
}

/// A request's body as the gateway takes it from hyper.
async fn upload(wheel: &Wheel) -> Upload {
    let (mut client, server) = tokio::io::duplex(1024);
    let head = format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n", STREAM.len());
    let request = head + STREAM;
    client.write_all(request.as_bytes()).await.expect("it fits into the pipe");
    let (tell, told) = oneshot::channel();
    let tell = Cell::new(Some(tell));
    let service = service_fn(move |request: Request<Incoming>| {
        let tell = tell.take().expect("one request");
        tell.send(request.into_body()).expect("it is waited for");
        std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
    });
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let prefetched = async {
        let body = RequestBody::H1(told.await.expect("a body"));
        let time = Duration::from_secs(60);
        let rules = BodyRules { prefetch: 1 << 16, max: 1 << 20, time, rate: 0 };
        Upload::prefetch(body, &rules, wheel, &Budget::new(1 << 20)).await
    };
    tokio::select! {
        _ = serving => panic!("it is never answered"),
        upload = prefetched => upload.unwrap_or_else(|fault| panic!("{fault:?}")),
    }
}

/// A stream of events from `simulator`, as the gateway makes it for a client.
async fn stream(simulator: SocketAddr) -> Stream {
    let (clock, wheel, cells) = (Clock::System, Wheel::new(), cells());
    let text = format!("[[upstream]]\nurls = [\"http://{simulator}\"]\nhttp = 1\n");
    let config = config::parse(&text, "test.toml").unwrap_or_else(|f| panic!("{f}")).config;
    let tls = ClientTls::new(&rustls::RootCertStore::empty(), None, None).expect("nothing to read");
    let (one, files) = (config.upstreams[0].clone(), Permits::new(1));
    let known = Known::new(&one, &tls, None);
    let upstream = Upstream::new(0, one, known, None, &files, &clock, &cells);
    let outgoing = Box::new(Outgoing {
        method: Method::POST,
        uri: Uri::from_static("/v1/chat/completions"),
        literal_prefix: "/v1".into(),
        headers: HeaderMap::new(),
        identity: true,
    });
    let bounds = Bounds {
        clock: clock.clone(),
        wheel: wheel.clone(),
        first_byte: Duration::from_secs(10),
        deadline: None,
        safe: false,
        others: false,
        key: None,
        family: Family::OpenAi,
        max_event: 1 << 20,
    };
    let body = upload(&wheel).await;
    let body = Box::new(body);
    let outcome = attempts::answer(&upstream, outgoing, body, &bounds, |_| ()).await;
    let answer = outcome.answer.unwrap_or_else(|f| panic!("{f:?}"));
    let patience = Patience { client_stall: Duration::from_secs(30), backlog: 1 << 16 };
    let ground = Rc::new(Ground {
        clock,
        wheel,
        cells,
        memory: Budget::new(1 << 20),
        live: Live::default(),
        drains: Permits::new(1),
        draining: Cell::default(),
        cutting: Rc::default(),
        scratch: Scratch::default(),
    });
    let control = Control::new(Rc::<IoState>::default(), &ground, patience);
    let second = Duration::from_secs(1);
    let rules = Rules {
        heartbeat: Some(15 * second),
        style: HeartbeatStyle::Comment,
        first_byte: 60 * second,
        idle: 60 * second,
        total: 600 * second,
        max_event: 1 << 20,
        usage_drain: None,
    };
    let life = Life::begin(Birth {
        ground,
        held: Held::new(Permits::new(1).take().expect("one place"), None),
        place: Rc::new(Place {
            route: "r".into(),
            rules,
            targets: Box::new([Target { upstream: "u".into(), route_index: 0, upstream_index: 0 }]),
        }),
        id: "id".into(),
        trace_id: Some(1),
        control,
    });
    let source = Source::Body(answer.body);
    Stream::events(Family::OpenAi, source, life)
}

/// Everything between an upstream's socket and a client's, both real: reading, unframing, tracking,
/// counting, framing, writing.
#[test]
fn a_relayed_chunk_allocates_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("a runtime");
    runtime.block_on(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let interval = Duration::from_micros(200);
        let defaults = Behaviour { count: EVENTS, size: 200, interval, ..Behaviour::default() };
        let options = Options { defaults, ..Options::default() };
        let sim = Sim::start(any, options).await.expect("the simulated upstream");
        let stream = soon(stream(sim.addr())).await;
        let listener = tokio::net::TcpListener::bind(any).await.expect("a port");
        let dialled = TcpStream::connect(listener.local_addr().expect("an address"));
        let (client, accepted) = tokio::join!(dialled, listener.accept());
        let (mut client, (socket, _)) = (client.expect("connected"), accepted.expect("connected"));
        let mut relay = Relay::new(socket, b"head\r\n\r\n".to_vec(), true, stream, b"");
        let reading = tokio::task::spawn_local(async move {
            let mut text = String::new();
            client.read_to_string(&mut text).await.expect("text");
            text
        });
        let mut polls = Vec::new();
        let verdict = soon(std::future::poll_fn(|cx| {
            let (polled, counts) = alloc::during(|| relay.poll(cx));
            polls.push(counts.allocations);
            polled
        }));
        assert_eq!(verdict.await, Verdict::Complete { keep_alive: true });
        drop(relay);
        let text = soon(reading).await.expect("no panic");
        assert!(text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "the stream came whole");
        let events = u32::try_from(text.matches("data: ").count()).expect("not so many");
        assert_eq!(events, EVENTS + 1, "events and the end mark");
        assert!(polls.len() > 10, "the stream came in {} turns", polls.len());
        // The first turns send the head, and the last ends: it gives the connection back.
        let relayed: u64 = polls[2..polls.len() - 1].iter().sum();
        assert_eq!(relayed, 0, "over {} turns: {polls:?}", polls.len());
    });
}
