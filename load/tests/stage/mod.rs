//! A server that does exactly what a test tells it, byte for byte, and a way to run the tool on it.
//!
//! Owns its own bytes: nothing of the gateway or of the tool is used. One thread per connection.
//! It waits until the tool has read what it wrote before it goes on, so that what shares a read
//! does so because the test wants it, and keeps when that was.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use truth::Reading;
use unread::{Held, Kernel};

pub(crate) mod truth;
mod unread;

/// For what happens at once on any machine that is not broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) id: u64,
    pub(crate) head: String,
    pub(crate) body: usize,
    pub(crate) from: IpAddr,
}

/// A server that lives as long as the test process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    reads: Arc<Mutex<Vec<Reading>>>,
}

/// A connection with its request read.
pub(crate) struct Conn {
    pub(crate) tcp: TcpStream,
    pub(crate) id: u64,
    /// When the client was found to have gone.
    pub(crate) gone: Option<u64>,
    kernel: Kernel,
    reads: Arc<Mutex<Vec<Reading>>>,
}

/// Answers each connection with `script`.
pub(crate) fn serve(script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reads = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::new(script);
    let (record, all_reads) = (Arc::clone(&seen), Arc::clone(&reads));
    thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let (script, record) = (Arc::clone(&script), Arc::clone(&record));
            let reads = Arc::clone(&all_reads);
            thread::spawn(move || {
                if let Some((tcp, request)) = accept(tcp) {
                    let id = request.id;
                    record.lock().unwrap().push(request);
                    script(&mut Conn { tcp, id, gone: None, kernel: Kernel::new(), reads });
                }
            });
        }
    });
    Server { address, seen, reads }
}

fn accept(mut tcp: TcpStream) -> Option<(TcpStream, Seen)> {
    tcp.set_nodelay(true).ok()?;
    let mut bytes = Vec::new();
    let mut room = [0; 4096];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match tcp.read(&mut room).ok()? {
            0 => return None,
            read => bytes.extend_from_slice(&room[..read]),
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let length: usize = field("content-length: ")?.parse().ok()?;
    let id = field("sim-stream: ")?.parse().ok()?;
    while bytes.len() < end + length {
        match tcp.read(&mut room).ok()? {
            0 => return None,
            read => bytes.extend_from_slice(&room[..read]),
        }
    }
    let from = tcp.peer_addr().ok()?.ip();
    Some((tcp, Seen { id, head, body: bytes.len() - end, from }))
}

impl Conn {
    pub(crate) fn head(&mut self) -> &mut Self {
        self.told(0, |conn| {
            conn.raw(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                 transfer-encoding: chunked\r\n\r\n",
            );
        })
    }

    /// Writes bytes as they are; a client that left is no matter.
    pub(crate) fn raw(&mut self, text: &str) -> &mut Self {
        let _ = self.tcp.write_all(text.as_bytes());
        self
    }

    /// Writes one chunk.
    pub(crate) fn raw_chunk(&mut self, text: &str) -> &mut Self {
        self.raw(&format!("{:x}\r\n{text}\r\n", text.len()))
    }

    /// One chunk, which the client then has read by itself.
    pub(crate) fn chunk(&mut self, text: &str) -> &mut Self {
        self.raw_chunk(text).until_read();
        self
    }

    /// Events of this stream, each in a chunk which the client then has read by itself.
    pub(crate) fn events(&mut self, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        self.aged_events(numbers, 0, 0)
    }

    /// As [`Self::events`], with a rest after each.
    pub(crate) fn paced_events(
        &mut self,
        numbers: impl IntoIterator<Item = u64>,
        rest_ms: u64,
    ) -> &mut Self {
        self.aged_events(numbers, rest_ms, 0)
    }

    /// As [`Self::paced_events`], the stamp of each so much older than the event.
    pub(crate) fn aged_events(
        &mut self,
        numbers: impl IntoIterator<Item = u64>,
        rest_ms: u64,
        age_ms: u64,
    ) -> &mut Self {
        for number in numbers {
            self.told(number, |conn| {
                conn.raw_chunk(&stamped(conn.id, number, now_ns() - age_ms * 1_000_000));
            });
            pace(rest_ms);
        }
        self
    }

    /// `[DONE]` and the last chunk.
    pub(crate) fn done(&mut self) {
        self.chunk("data: [DONE]\n\n").raw("0\r\n\r\n");
    }

    /// Returns when the client has gone.
    pub(crate) fn until_gone(&mut self) {
        let mut room = [0; 64];
        while matches!(self.tcp.read(&mut room), Ok(1..)) {}
    }

    /// Keeps when the client read what `write` writes.
    fn told(&mut self, number: u64, write: impl FnOnce(&mut Self)) -> &mut Self {
        let from = now_ns();
        write(self);
        if self.until_read() {
            let reading = Reading { stream: self.id, number, from, to: now_ns() };
            self.reads.lock().unwrap().push(reading);
        } else {
            self.gone.get_or_insert_with(now_ns);
        }
        self
    }

    /// Returns when the client has read everything; false if it has gone or does not read.
    pub(crate) fn until_read(&mut self) -> bool {
        let (Ok(own), Ok(client)) = (self.tcp.local_addr(), self.tcp.peer_addr()) else {
            return false;
        };
        let deadline = Instant::now() + PATIENCE;
        let mut rest = Duration::from_micros(50);
        while Instant::now() < deadline {
            // In this order: what has arrived there is looked for there.
            let (ours, theirs) = (self.kernel.held(own, client), self.kernel.held(client, own));
            match (ours, theirs) {
                (Some(Held { unsent: 0, .. }), Some(Held { unread: 0, .. })) => return true,
                (Some(_), Some(_)) => thread::park_timeout(rest),
                _ => return false,
            }
            rest = (2 * rest).min(Duration::from_millis(1));
        }
        false
    }
}

/// Rests, as a server paces itself.
pub(crate) fn pace(ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

pub(crate) fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// An event as the simulator stamps it.
pub(crate) fn event(stream: u64, number: u64) -> String {
    stamped(stream, number, now_ns())
}

pub(crate) fn stamped(stream: u64, seq: u64, sent_ns: u64) -> String {
    format!(
        "data: {{\"id\":\"c\",\"choices\":[{{\"delta\":{{\"content\":\"tide\"}}}}],\
         \"sim\":{{\"stream\":{stream},\"seq\":{seq},\"sent_ns\":{sent_ns}}}}}\n\n"
    )
}

/// What a run of the tool came to.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) json: Value,
    pub(crate) said: String,
    /// How long the whole of it took.
    pub(crate) took: Duration,
}

impl Run {
    /// How long the run took, microseconds.
    pub(crate) fn took_us(&self) -> u64 {
        u64::try_from(self.took.as_micros()).unwrap()
    }

    /// The number at a path of the report, like `/ends/done`.
    #[track_caller]
    pub(crate) fn at(&self, path: &str) -> u64 {
        let value = self.json.pointer(path).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {path} in {:#}", self.json))
    }

    /// A list of counters holds exactly these; all others are zero.
    #[track_caller]
    pub(crate) fn only(&self, list: &str, expected: &[(&str, u64)]) {
        for (name, count) in self.json[list].as_object().unwrap() {
            let wanted = expected.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count);
            assert_eq!(count.as_u64(), Some(wanted), "{list}/{name}\n{:#}", self.json);
        }
    }
}

/// Runs the tool; `line` is its command line but for the URL.
pub(crate) fn run(url: &str, line: &str) -> Run {
    let begun = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate-load"))
        .args(["--url", url, "--json", "-", "--seed", "7"])
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    Run { code: output.status.code().unwrap(), json, said, took: begun.elapsed() }
}

impl Server {
    pub(crate) fn load(&self, line: &str) -> Run {
        run(&format!("http://{}/v1/chat/completions", self.address), line)
    }

    /// What the clients have read so far, as far as it was waited for.
    pub(crate) fn reads(&self) -> Vec<Reading> {
        self.reads.lock().unwrap().clone()
    }
}
