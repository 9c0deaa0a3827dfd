//! What the parts on every chunk's and every request's way cost, one by one: `cargo bench`.
//!
//! Each line is the median of several rounds, in nanoseconds per operation, with the fastest and
//! the slowest round. On a busy machine compare only figures of one run.
#![allow(clippy::print_stdout, reason = "a report is what it is for")]

use std::hint::black_box;
use std::task::Waker;
use std::time::{Duration, Instant};

use tidegate::config::Family;
use tidegate::telemetry::{Cells, Shape};
use tidegate::wire::guard::Guard;
use tidegate::wire::scan::Scanner;
use tidegate::wire::sse::Tracker;
use tidegate::wire::wheel::{Tick, Wheel};

const ROUNDS: usize = 15;
const EACH: u32 = 20_000;

fn measure(what: &str, mut operation: impl FnMut()) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..EACH {
                operation();
            }
            begun.elapsed().as_secs_f64() * 1e9 / f64::from(EACH)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (least, median, most) = (rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]);
    println!("{what:<44} {median:>9.1} ns   ({least:.1} - {most:.1})");
}

fn main() {
    let event = format!("data: {{\"id\":\"chatcmpl-1\",\"pad\":\"{}\"}}\n\n", "x".repeat(200));
    let mut tracker = Tracker::new(Family::OpenAi, 1 << 24);
    measure("framing tracker, one event of 240 bytes", || {
        black_box(tracker.feed(black_box(event.as_bytes())));
    });
    measure("framing tracker, the same byte by byte", || {
        for byte in event.as_bytes() {
            black_box(tracker.feed(std::slice::from_ref(byte)));
        }
    });

    let wheel = Wheel::new();
    let timer = wheel.timer();
    let mut due = Tick(0);
    measure("wheel, store a later deadline", || {
        due = due.after(Duration::from_millis(100));
        timer.set(black_box(due), Waker::noop());
    });
    measure("wheel, file and drop a timer", || {
        wheel.timer().set(black_box(Tick(100)), Waker::noop());
    });

    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nuser-agent: bench\r\n\
        authorization: Bearer sk-0123456789abcdef\r\ncontent-type: application/json\r\n\
        accept: text/event-stream\r\ncontent-length: 0\r\n\r\n";
    let mut guard = Guard::new(1 << 16);
    measure("request guard, a usual head", || {
        let _ = black_box(guard.feed(black_box(head)));
    });

    let words = "a long prompt ".repeat(140);
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{words}"}}],"stream":true}}"#);
    measure("key scanner, a body of 2 kB", || {
        let mut scanner = Scanner::new();
        scanner.feed(black_box(body.as_bytes()));
        black_box(scanner.found().stream);
    });

    let shape = Shape {
        listeners: vec!["l".into()],
        upstreams: vec!["u".into()],
        routes: vec![("r".into(), 0)],
    };
    let cells = Cells::new(&shape);
    measure("metric cells, one counter", || cells.heartbeats.inc());
    let mut interval = Duration::from_millis(7);
    measure("metric cells, one histogram", || {
        interval = black_box(interval);
        cells.upstream(0).chunk_interval.observe(interval);
    });
}
