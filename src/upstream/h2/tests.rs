//! A connection whose peer is played frame by frame.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const QUIET: Duration = Duration::from_millis(20);
const ANSWER: Duration = Duration::from_millis(100);
/// Pings that the peer answers before it goes silent.
const ANSWERED: usize = 3;

const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

fn shared(sender: SendRequest<Bytes>) -> Rc<Shared> {
    Rc::new(Shared {
        sender: RefCell::new(sender),
        ended: Cell::new(false),
        streams_max: Cell::new(UNSETTLED),
        live: Cell::new(0),
        opened: Moment::default(),
        until: Cell::new(Tick(u32::MAX)),
        idle_since: Cell::default(),
        counted: Cell::default(),
        task: RefCell::default(),
    })
}

/// Speaks HTTP/2 just enough, answers some pings, and then reads on without a word. Returns when
/// the connection was closed; how many pings it saw.
async fn black_hole(mut io: DuplexStream) -> usize {
    let mut preface = [0; PREFACE];
    io.read_exact(&mut preface).await.expect("a preface");
    io.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.expect("open");
    let mut pings = 0;
    loop {
        let mut head = [0; HEAD];
        if io.read_exact(&mut head).await.is_err() {
            return pings;
        }
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        io.read_exact(&mut payload).await.expect("a whole frame");
        let answer = match (head[3], head[4] & ACK) {
            (SETTINGS, 0) => true,
            (PING, 0) => {
                pings += 1;
                pings <= ANSWERED
            }
            _ => false,
        };
        if answer {
            head[4] = ACK;
            let payload = if head[3] == SETTINGS { &[][..] } else { &payload };
            head[1..3].copy_from_slice(&[0, u8::try_from(payload.len()).expect("small")]);
            io.write_all(&[&head, payload].concat()).await.expect("open");
        }
    }
}

#[tokio::test]
async fn a_connection_whose_peer_answers_no_ping_is_dropped() {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let peer = tokio::spawn(black_hole(theirs));
    let heard = Rc::new(Cell::new(Instant::now()));
    let io = Heard { io: ours, at: heard.clone() };
    let (sender, mut connection) = builder().handshake(io).await.expect("a handshake");
    let pings = connection.ping_pong().expect("the first to ask");
    let alive = KeepAlive::new(pings, heard, QUIET, ANSWER);
    let shared = shared(sender);
    let mut sender = shared.sender();
    let request = http::Request::get("http://up.example/").body(()).expect("a request");
    let (response, _) = sender.send_request(request, true).expect("sent");
    let begun = Instant::now();
    let limit = Duration::from_secs(20);
    let driven = drive(connection, alive, Weak::new(), shared.clone());
    tokio::time::timeout(limit, driven).await.expect("given up");
    assert!(begun.elapsed() >= QUIET * 4 + ANSWER, "{:?}", begun.elapsed());
    assert!(shared.is_over());
    assert_eq!(shared.room(), 0);
    response.await.expect_err("its streams are told");
    let pings = tokio::time::timeout(limit, peer).await.expect("closed").expect("no panic");
    assert_eq!(pings, ANSWERED + 1);
}

/// Answers each of `streams` requests with as many frames of one byte as its window takes, and
/// returns when the client has read all that.
async fn one_byte_frames(mut io: DuplexStream, streams: usize) {
    let mut preface = [0; PREFACE];
    io.read_exact(&mut preface).await.expect("a preface");
    io.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.expect("open");
    let (mut reader, mut writer) = tokio::io::split(io);
    let (seen, mut requests) = tokio::sync::mpsc::channel(streams);
    let reading = tokio::spawn(async move {
        loop {
            let mut head = [0; HEAD];
            reader.read_exact(&mut head).await.expect("a frame");
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            reader.read_exact(&mut payload).await.expect("a whole frame");
            match (head[3], head[4] & ACK) {
                (HEADERS, _) => {
                    seen.send([head[5], head[6], head[7], head[8]]).await.expect("room")
                }
                (PING, ACK) => return,
                _ => {}
            }
        }
    });
    for _ in 0..streams {
        let id = requests.recv().await.expect("a request");
        // Status 200, the end of the head; then the window's worth of frames.
        let answer = [&[0, 0, 1, HEADERS, 4][..], &id, &[0x88]].concat();
        writer.write_all(&answer).await.expect("open");
        let frame = [&[0, 0, 1, 0, 0][..], &id, b"x"].concat();
        let frames = frame.repeat(limits::UPSTREAM_STREAM_WINDOW as usize);
        writer.write_all(&frames).await.expect("the connection stays");
    }
    let ping = [&[0, 0, 8, PING, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    writer.write_all(&ping).await.expect("the connection stays");
    reading.await.expect("the ping is answered");
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = text.split(' ').nth(1).expect("a field").parse().expect("a number");
    pages * 4096
}

/// More unread frames than h2's own budget for such a window, 2^30 bytes, would allow.
#[tokio::test]
#[ignore = "it takes two gigabytes; run it alone: cargo test --release --lib -- --ignored unread"]
async fn a_hundred_unread_streams_of_one_byte_frames_leave_their_connection_alive() {
    let streams = 100;
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let heard = Rc::new(Cell::new(Instant::now()));
    let io = Heard { io: ours, at: heard.clone() };
    let (sender, mut connection) = builder().handshake(io).await.expect("a handshake");
    let pings = connection.ping_pong().expect("the first to ask");
    let hour = Duration::from_secs(3600);
    let alive = KeepAlive::new(pings, heard, hour, hour);
    let shared = shared(sender);
    let mut driven = std::pin::pin!(drive(connection, alive, Weak::new(), shared.clone()));
    let before = resident_bytes();
    let unread: Vec<_> = (0..streams)
        .map(|_| {
            let request = http::Request::get("http://up.example/").body(()).expect("a request");
            shared.sender().send_request(request, true).expect("sent").0
        })
        .collect();
    let peer = tokio::spawn(one_byte_frames(theirs, streams));
    tokio::select! {
        () = &mut driven => panic!("the connection has ended"),
        done = peer => done.expect("no panic"),
    }
    assert!(!shared.is_over());
    let frames = streams * limits::UPSTREAM_STREAM_WINDOW as usize;
    let each = (resident_bytes() - before) / frames;
    assert!((100..300).contains(&each), "{each} bytes per unread frame");
    drop(unread);
}
