//! A server that does exactly what a test tells it, byte for byte, and a way to run the tool on it.
//!
//! Owns its own bytes: nothing of the gateway or of the tool is used. One thread per connection.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

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
}

/// A connection with its request read.
pub(crate) struct Conn {
    pub(crate) tcp: TcpStream,
    pub(crate) id: u64,
}

/// Answers each connection with `script`.
pub(crate) fn serve(script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::new(script);
    let record = Arc::clone(&seen);
    thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let (script, record) = (Arc::clone(&script), Arc::clone(&record));
            thread::spawn(move || {
                if let Some((mut conn, request)) = accept(tcp) {
                    record.lock().unwrap().push(request);
                    script(&mut conn);
                }
            });
        }
    });
    Server { address, seen }
}

fn accept(mut tcp: TcpStream) -> Option<(Conn, Seen)> {
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
    Some((Conn { tcp, id }, Seen { id, head, body: bytes.len() - end, from }))
}

impl Conn {
    pub(crate) fn head(&mut self) -> &mut Self {
        self.raw(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
             transfer-encoding: chunked\r\n\r\n",
        )
    }

    /// Writes bytes as they are; a client that left is no matter.
    pub(crate) fn raw(&mut self, text: &str) -> &mut Self {
        let _ = self.tcp.write_all(text.as_bytes());
        self
    }

    /// Writes one chunk, then rests a moment so that the next one is read by itself.
    pub(crate) fn chunk(&mut self, text: &str) -> &mut Self {
        self.raw(&format!("{:x}\r\n{text}\r\n", text.len()));
        pace(20);
        self
    }

    /// Events of this stream, each in a chunk.
    pub(crate) fn events(&mut self, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        for number in numbers {
            self.chunk(&event(self.id, number));
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
}

/// Runs a test of times up to three times: on a crowded machine a run may be late, but not each.
pub(crate) fn in_quiet(test: fn()) {
    for _ in 0..2 {
        if std::panic::catch_unwind(test).is_ok() {
            return;
        }
    }
    test();
}

/// Rests, as a server paces itself.
pub(crate) fn pace(ms: u64) {
    let until = std::time::Instant::now() + Duration::from_millis(ms);
    while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
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
}

impl Run {
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
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate-load"))
        .args(["--url", url, "--json", "-", "--seed", "7"])
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    Run { code: output.status.code().unwrap(), json, said }
}

impl Server {
    pub(crate) fn load(&self, line: &str) -> Run {
        run(&format!("http://{}/v1/chat/completions", self.address), line)
    }
}
