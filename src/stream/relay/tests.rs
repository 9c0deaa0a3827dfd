//! The relay on connections of the test's own making: ones that take what they like when they like.

use std::io;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Family;
use crate::error::Kind;
use crate::stream::core::tests::Bench;
use crate::telemetry::cells::Reason;
use crate::wire::chunked::Decoder;

const EVENT: &[u8] = b"data: {\"n\":1}\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

/// A connection that takes what `takes` says, call by call: 0 is nothing now. Then everything.
#[derive(Default)]
struct Fickle {
    takes: Vec<usize>,
    /// Taken, not flushed (as under TLS).
    below: Vec<u8>,
    got: Vec<u8>,
    calls: usize,
    /// What the client sends; `Some(0 bytes)` is its end.
    sends: Option<Vec<u8>>,
    broken: bool,
}

impl Fickle {
    fn next(&mut self) -> usize {
        self.takes.pop().unwrap_or(usize::MAX)
    }
}

impl AsyncRead for Fickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.sends.take() {
            Some(bytes) => {
                buf.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Fickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        self.calls += 1;
        match self.next().min(bytes.len()) {
            0 => Poll::Pending,
            taken => {
                self.below.extend_from_slice(&bytes[..taken]);
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        self.poll_write(cx, &whole)
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.next() == 0 {
            return Poll::Pending;
        }
        let below = std::mem::take(&mut self.below);
        self.got.extend(below);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn relay(bench: &mut Bench, io: Fickle) -> Relay<Fickle> {
    Relay::new(io, HEAD.to_vec(), true, bench.take(), b"")
}

fn poll(relay: &mut Relay<Fickle>) -> Poll<Verdict> {
    relay.poll(&mut Context::from_waker(Waker::noop()))
}

/// The payload of the chunks behind the head, and whether the last chunk was there.
fn decoded(got: &[u8]) -> (Vec<u8>, bool) {
    let mut rest = got.strip_prefix(HEAD).expect("the head first");
    let (mut decoder, mut payload) = (Decoder::new(), Vec::new());
    while !rest.is_empty() {
        let step = decoder.feed(rest).expect("well framed");
        payload.extend_from_slice(&rest[step.data.clone()]);
        rest = &rest[step.consumed..];
        if step.done {
            assert!(rest.is_empty(), "nothing behind the last chunk");
        }
    }
    (payload, decoder.is_done())
}

#[test]
fn sizes_are_written_in_hexadecimal() {
    for len in [1usize, 9, 10, 15, 16, 255, 256, 4096, 65535, 65536, usize::MAX] {
        let mut line = [0; SIZE_LINE];
        assert_eq!(size_line(len, &mut line), format!("{len:x}\r\n").as_bytes());
    }
}

#[test]
fn the_head_and_the_first_event_go_out_in_one_write() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    let mut relay = relay(&mut bench, Fickle::default());
    assert_eq!(poll(&mut relay), Poll::Pending);
    assert_eq!(relay.line.io.calls, 1);
    assert_eq!(decoded(&relay.line.io.got), (EVENT.to_vec(), false));
    bench.says(EVENT);
    assert_eq!(poll(&mut relay), Poll::Pending);
    assert_eq!(relay.line.io.calls, 2, "one write for one chunk");
    assert!(relay.line.backlog.is_none(), "nothing is kept for a client that keeps up");
}

#[test]
fn the_head_goes_out_though_nothing_follows_yet() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    let mut relay = relay(&mut bench, Fickle::default());
    assert_eq!(poll(&mut relay), Poll::Pending);
    assert_eq!(relay.line.io.got, HEAD);
}

#[test]
fn a_full_backlog_stops_reading_and_an_empty_one_goes_on() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    let mut relay = relay(&mut bench, Fickle { takes: vec![0; 1000], ..Fickle::default() });
    let piece = [b"data: ", &[b'x'; 900][..], b"\n\n"].concat();
    for _ in 0..100 {
        bench.says(&piece);
    }
    for _ in 0..20 {
        assert_eq!(poll(&mut relay), Poll::Pending);
    }
    let (held, limit) = (relay.line.held(), 65536);
    assert!((limit..limit + 2 * piece.len()).contains(&held), "{held} bytes are held");
    relay.line.io.takes.clear();
    bench.says(DONE);
    bench.ends();
    let verdict = loop {
        if let Poll::Ready(verdict) = poll(&mut relay) {
            break verdict;
        }
    };
    assert_eq!(verdict, Verdict::Complete { keep_alive: true });
    let (payload, done) = decoded(&relay.line.io.got);
    assert_eq!((payload.len(), done), (100 * piece.len() + DONE.len(), true));
}

#[test]
fn an_unclean_end_has_the_error_event_and_no_last_chunk() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    bench.fails(Kind::Truncated);
    let mut relay = relay(&mut bench, Fickle::default());
    assert_eq!(poll(&mut relay), Poll::Pending, "not before it is flushed");
    // The wrapper of real sockets notes this.
    relay.stream.control().io().flushed();
    assert_eq!(poll(&mut relay), Poll::Pending, "the client gets time to see it");
    bench.pass(Duration::from_secs(1));
    assert_eq!(poll(&mut relay), Poll::Ready(Verdict::Cut(Cut::Close)));
    let (payload, done) = decoded(&relay.line.io.got);
    assert!(!done && payload.starts_with(EVENT));
    assert!(String::from_utf8_lossy(&payload).contains("upstream_truncated"));
    drop(relay);
    assert_eq!(bench.settle(), [Reason::UpstreamTruncated]);
}

#[test]
fn a_client_that_takes_nothing_is_reset_after_its_patience() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    let mut relay = relay(&mut bench, Fickle { takes: vec![0; 1000], ..Fickle::default() });
    assert_eq!(poll(&mut relay), Poll::Pending);
    // The wrapper of real sockets notes this.
    relay.stream.control().io().blocked(relay.stream.control().now());
    bench.pass(Duration::from_secs(29));
    assert_eq!(poll(&mut relay), Poll::Pending);
    bench.pass(Duration::from_secs(2));
    assert_eq!(poll(&mut relay), Poll::Ready(Verdict::Cut(Cut::Reset)));
    drop(relay);
    assert_eq!(bench.settle(), [Reason::ClientStalled]);
}

#[test]
fn a_client_that_leaves_is_noticed_and_one_that_pipelines_is_read() {
    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    let sends = Some(b"GET / HTTP/1.1".to_vec());
    let mut relay = relay(&mut bench, Fickle { sends, ..Fickle::default() });
    assert_eq!(poll(&mut relay), Poll::Pending);
    assert_eq!(**relay.pipelined.as_ref().expect("read"), b"GET / HTTP/1.1");
    relay.line.io.sends = Some(Vec::new());
    assert_eq!(poll(&mut relay), Poll::Ready(Verdict::Gone));
    drop(relay);
    assert_eq!(bench.settle(), [Reason::ClientClosed]);

    let mut bench = Bench::new(Some(Family::OpenAi));
    bench.says(EVENT);
    let mut relay = self::relay(&mut bench, Fickle { broken: true, ..Fickle::default() });
    assert_eq!(poll(&mut relay), Poll::Ready(Verdict::Gone));
}

proptest! {
    /// Whatever the connection takes when, the client gets the stream, whole and in order.
    #[test]
    fn whatever_is_taken_when_the_client_gets_all(
        takes in proptest::collection::vec(prop_oneof![Just(0usize), 1usize..40, Just(5000)], 0..200),
        pieces in proptest::collection::vec((1usize..300, 0usize..4), 1..40),
    ) {
        let mut bench = Bench::new(Some(Family::OpenAi));
        let mut relay = relay(&mut bench, Fickle { takes, ..Fickle::default() });
        let mut sent = Vec::new();
        for (n, (len, polls)) in pieces.iter().enumerate() {
            let piece = format!("data: {n} {}\n\n", "x".repeat(*len));
            sent.extend_from_slice(piece.as_bytes());
            bench.says(piece.as_bytes());
            for _ in 0..*polls {
                prop_assert_eq!(poll(&mut relay), Poll::Pending);
            }
        }
        sent.extend_from_slice(DONE);
        bench.says(DONE);
        bench.ends();
        let mut verdict = Poll::Pending;
        for _ in 0..1000 {
            verdict = poll(&mut relay);
            if verdict.is_ready() {
                break;
            }
        }
        prop_assert_eq!(verdict, Poll::Ready(Verdict::Complete { keep_alive: true }));
        prop_assert_eq!(decoded(&relay.line.io.got), (sent, true));
        drop(relay);
        prop_assert_eq!(bench.settle(), [Reason::Completed]);
    }
}
