//! One exchange at a time, with a peer that the test plays.

use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::admission::permit::Permits;
use crate::clock::Clock;
use crate::config::{HttpVersion, PoolRule, Scheme, Url};
use crate::telemetry::Shape;
use crate::telemetry::cells::Cells;
use crate::upstream::allowance::Allowance;
use crate::upstream::balance::Endpoint;
use crate::upstream::connect::Dialer;
use crate::upstream::h1_send;
use crate::upstream::tls;
use crate::upstream::transport::TcpIo;
use crate::upstream::upload::Upload;
use crate::wire::wheel::Wheel;

/// A pool that keeps connections and dials none.
fn pool() -> Rc<Pool> {
    let url = Url {
        scheme: Scheme::Http,
        host: "up.example".into(),
        port: 80,
        authority: "up.example".into(),
        base_path: None,
    };
    let none = rustls::RootCertStore::empty();
    let tls = tls::ClientTls::new(&none, None, None).expect("a configuration");
    let endpoint = Endpoint::new(url, Duration::from_secs(30), None);
    let dialer = Dialer::new(&endpoint, HttpVersion::H1, &tls.config, Duration::from_secs(1));
    let shape = Shape {
        listeners: vec!["l".into()],
        upstreams: vec!["u".into()],
        routes: vec![("r".into(), 0)],
        ..Shape::default()
    };
    let (files, cells) = (Permits::new(0), std::sync::Arc::new(Cells::new(&shape)));
    let (rule, allowance) = (PoolRule::default(), Allowance::new(0, 1));
    Pool::new(endpoint, dialer, &files, rule, allowance, 0, Clock::System, cells)
}

/// A connection in use, and its peer.
async fn leased(pool: &Rc<Pool>) -> (SoloLease, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = listener.local_addr().expect("an address");
    let (ours, theirs) = tokio::join!(TcpStream::connect(to), listener.accept());
    let transport = Transport::Plain(TcpIo::new(ours.expect("connected")));
    let (theirs, _) = theirs.expect("accepted");
    theirs.set_nodelay(true).expect("open");
    (SoloLease::new(pool, transport), theirs)
}

fn get() -> Sending {
    let head = h1_send::head(&Method::GET, "/", "h", &HeaderMap::new(), false);
    Sending::new(head, Upload::made_of(&[], &Wheel::new()), false)
}

/// What becomes of an answer: its body, how it ended, and whether the connection is kept.
async fn answered(answer: &[u8], pieces: usize) -> (Vec<u8>, Option<Kind>, bool) {
    let pool = pool();
    let (lease, mut peer) = leased(&pool).await;
    let says = async {
        for piece in answer.chunks(pieces) {
            // It is not read to its end if it is wrong.
            if peer.write_all(piece).await.is_err() {
                return peer;
            }
            tokio::task::yield_now().await;
        }
        let _ = peer.shutdown().await;
        peer
    };
    let hears = async {
        let answered = exchange(lease, get(), false).await;
        let Ok((_, mut body)) = answered else { panic!("no head") };
        let (mut came, mut scratch) = (Vec::new(), vec![0; 300]);
        let kind = loop {
            match std::future::poll_fn(|cx| body.poll_data(cx, &mut scratch)).await {
                Some(Ok(data)) => came.extend_from_slice(data.bytes(&scratch)),
                Some(Err(failure)) => break Some(failure.kind),
                None => break None,
            }
        };
        assert!(body.over());
        (came, kind)
    };
    let ((came, kind), _peer) = tokio::join!(hears, says);
    let kept = pool.cells().connections(ConnState::Idle).get() == 1;
    assert_eq!(pool.cells().connections(ConnState::Active).get(), 0);
    (came, kind, kept)
}

#[test]
fn what_stays_while_a_response_streams_is_small() {
    assert!(size_of::<Body>() <= 136, "{}", size_of::<Body>());
    assert!(size_of::<SoloLease>() <= 64, "{}", size_of::<SoloLease>());
}

#[test]
fn chunks_of_one_read_are_moved_together_however_they_are_cut() {
    let body =
        b"5;a=\"b\"\r\nhello\r\n1\r\n,\r\n00A\r\n wide worl\r\n1\r\nd\r\n0\r\nx-trailer: 1\r\n\r\n";
    for first in 0..=body.len() {
        for second in first..=body.len() {
            let (mut decoder, mut came) = (Decoder::new(), Vec::new());
            for part in [&body[..first], &body[first..second], &body[second..]] {
                let mut part = part.to_vec();
                let (data, used) = join_chunks(&mut decoder, &mut part);
                assert_eq!(used, Ok(part.len()));
                came.extend_from_slice(&part[data]);
            }
            assert!(decoder.is_done());
            assert_eq!(came, b"hello, wide world", "{first} {second}");
        }
    }
}

#[test]
fn what_came_before_malformed_framing_is_kept() {
    let mut bytes = *b"2\r\nab\r\n2\r\ncd\r\nx\r\n";
    let mut decoder = Decoder::new();
    let (data, used) = join_chunks(&mut decoder, &mut bytes);
    assert_eq!((&bytes[data], used), (b"abcd".as_slice(), Err(ChunkError::Size)));
    let mut more = *b"2\r\nef\r\n";
    assert_eq!(join_chunks(&mut decoder, &mut more), (0..0, Err(ChunkError::Size)));
    let mut bytes = *b"1\r\na\r\n0\r\n\r\nHTTP/1.1";
    let (data, used) = join_chunks(&mut Decoder::new(), &mut bytes);
    assert_eq!((&bytes[data], used), (b"a".as_slice(), Ok(11)), "what follows is left");
}

#[tokio::test]
async fn bodies_end_where_their_framing_says() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunks = "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nt: 1\r\n\r\n";
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let chunked = "transfer-encoding: chunked\r\n";
    let table: &[(String, Option<Kind>, bool)] = &[
        (format!("{ok}content-length: 7\r\n\r\nabcdefg"), None, true),
        (format!("{ok}{chunked}\r\n{chunks}"), None, true),
        (format!("{interim}{ok}{chunked}\r\n{chunks}"), None, true),
        (format!("{ok}\r\nabcdefg"), None, false),
        ("HTTP/1.0 200 OK\r\n\r\nabcdefg".to_owned(), None, false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\nabcdefg".to_owned(), None, false),
        (format!("{ok}connection: close\r\n{chunked}\r\n{chunks}"), None, false),
        (format!("{ok}content-length: 9\r\n{chunked}\r\n{chunks}"), None, false),
        // The connection closed too early.
        (format!("{ok}content-length: 8\r\n\r\nabcdefg"), Some(Kind::Truncated), false),
        (format!("{ok}{chunked}\r\n3\r\nabc\r\n4\r\ndefg"), Some(Kind::Truncated), false),
        (format!("{ok}{chunked}\r\n7\r\nabcdefg\r\n0\r\n"), Some(Kind::Truncated), false),
        // No chunks.
        (format!("{ok}{chunked}\r\n7\r\nabcdefg\n0\r\n\r\n"), Some(Kind::UpstreamProtocol), false),
        (format!("{ok}{chunked}\r\n7\r\nabcdefg\r\n-1\r\n"), Some(Kind::UpstreamProtocol), false),
    ];
    for (answer, ends, reused) in table {
        for pieces in [1, 7, 4096] {
            let (came, kind, kept) = answered(answer.as_bytes(), pieces).await;
            assert_eq!(came, b"abcdefg", "{answer:?} by {pieces}");
            assert_eq!((kind, kept), (*ends, *reused), "{answer:?} by {pieces}");
        }
    }
    // Something after the end, read together with it.
    for framed in ["content-length: 7\r\n\r\nabcdefg".to_owned(), format!("{chunked}\r\n{chunks}")]
    {
        let (came, kind, kept) = answered(format!("{ok}{framed}\n").as_bytes(), 4096).await;
        assert_eq!(
            (came.as_slice(), kind, kept),
            (b"abcdefg".as_slice(), None, false),
            "{framed:?}"
        );
    }
}

#[tokio::test]
async fn a_request_of_which_nothing_was_written_comes_back_whole() {
    let pool = pool();
    let wheel = Wheel::new();
    for pieces in [&[][..], &["{\"a\":", "1}"]] {
        let (mut lease, peer) = leased(&pool).await;
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("open");
        drop(peer);
        // Until the reset is here.
        while lease.transport().is_quiet() {
            tokio::task::yield_now().await;
        }
        let upload = Upload::made_of(pieces, &wheel);
        let sending = Sending::new(b"POST / HTTP/1.1\r\n\r\n".to_vec(), upload, false);
        let Err(Unanswered::Untouched(upload, failure)) = exchange(lease, sending, false).await
        else {
            panic!("it was not handed back")
        };
        assert_eq!(failure.kind, Kind::UpstreamGone);
        assert_eq!(upload.pieces().concat(), pieces.concat().as_bytes());
    }
    assert_eq!(pool.cells().connections(ConnState::Active).get(), 0);
}

#[tokio::test]
async fn what_the_server_said_before_it_broke_is_heard() {
    let pool = pool();
    let (lease, mut peer) = leased(&pool).await;
    let piece = "x".repeat(1 << 20);
    let upload = Upload::made_of(&[piece.as_str(); 16], &Wheel::new());
    let sending = Sending::new(b"PUT / HTTP/1.1\r\n\r\n".to_vec(), upload, false);
    let says = async {
        let mut some = [0; 100];
        peer.read_exact(&mut some).await.expect("the request's beginning");
        let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge";
        peer.write_all(answer).await.expect("written");
        // Unread bytes make it a reset.
        drop(peer);
    };
    let hears = async {
        let Ok((head, mut body)) = exchange(lease, sending, false).await else {
            panic!("no answer")
        };
        let mut scratch = [0; 64];
        let data = std::future::poll_fn(|cx| body.poll_data(cx, &mut scratch)).await;
        let data = data.expect("a body").expect("whole").bytes(&scratch).to_vec();
        (head.status.as_u16(), data)
    };
    let (heard, ()) = tokio::join!(hears, says);
    assert_eq!(heard, (413, b"large".to_vec()));
    assert_eq!(pool.cells().connections(ConnState::Idle).get(), 0, "kept");
}

#[tokio::test]
async fn a_dropped_exchange_resets_its_connection() {
    let pool = pool();
    let (lease, mut peer) = leased(&pool).await;
    let mut exchange = Box::pin(exchange(lease, get(), false));
    let mut request = [0; 16];
    tokio::select! {
        _ = &mut exchange => panic!("no answer was given"),
        read = peer.read(&mut request) => assert!(read.expect("open") > 0),
    }
    drop(exchange);
    let end = loop {
        match peer.read(&mut request).await {
            Ok(1..) => {}
            end => break end,
        }
    };
    let end = end.map_err(|error| error.kind());
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    assert_eq!(pool.cells().connections(ConnState::Active).get(), 0);
}
