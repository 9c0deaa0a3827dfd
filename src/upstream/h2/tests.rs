//! A connection whose peer is played frame by frame.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const QUIET: Duration = Duration::from_millis(20);
const ANSWER: Duration = Duration::from_millis(100);
/// Pings that the peer answers before it goes silent.
const ANSWERED: usize = 3;

const PREFACE: usize = 24;
const HEAD: usize = 9;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

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
    let shared = Rc::new(Shared {
        sender: RefCell::new(sender),
        ended: Cell::new(false),
        streams_max: Cell::new(UNSETTLED),
        live: Cell::new(0),
        opened: Moment::default(),
        idle_since: Cell::default(),
        task: RefCell::default(),
    });
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
