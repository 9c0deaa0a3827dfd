//! `raw-relay` between a client and an upstream of ours: bytes, ends and aborts pass unchanged.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

struct Relay {
    child: Child,
    address: SocketAddr,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn relay(upstream: SocketAddr) -> Relay {
    let mut child = Command::new(env!("CARGO_BIN_EXE_raw-relay"))
        .args(["--listen", "127.0.0.1:0", "--threads", "2"])
        .args(["--upstream", &upstream.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("raw-relay: listening on ").unwrap();
    let address = address.split(',').next().unwrap().parse().unwrap();
    Relay { child, address }
}

/// An upstream that treats each connection as told; the relay before it; a way to connect.
fn behind(script: impl Fn(TcpStream) + Clone + Send + 'static) -> Relay {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let script = script.clone();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            thread::spawn(move || script(tcp));
        }
    });
    relay(upstream)
}

fn connect(relay: &Relay) -> TcpStream {
    let tcp = TcpStream::connect(relay.address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp
}

/// Bytes that repeat at no power of two, so that a lost or doubled buffer shows.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n + seed) % 251) as u8).collect()
}

fn echo(mut tcp: TcpStream) {
    let mut bytes = [0; 8192];
    while let Ok(n @ 1..) = tcp.read(&mut bytes) {
        tcp.write_all(&bytes[..n]).unwrap();
    }
}

#[test]
fn bytes_pass_unchanged_both_ways() {
    let relay = behind(echo);
    let mut tcp = connect(&relay);
    for len in [1, 2, 1000, 65_535, 65_536, 65_537] {
        let sent = pattern(len, len);
        let mut writer = tcp.try_clone().unwrap();
        let writing: JoinHandle<()> = thread::spawn(move || writer.write_all(&sent).unwrap());
        let mut got = vec![0; len];
        tcp.read_exact(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == pattern(len, len), "{len} bytes");
    }
}

#[test]
fn a_slow_reader_gets_everything_and_holds_the_sender_back() {
    // More than four sockets' buffers can grow to.
    const LEN: usize = 40_000_000;
    let (tell, told) = std::sync::mpsc::channel();
    let relay = behind(move |mut tcp| {
        tcp.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let all = pattern(LEN, 0);
        let mut sent = 0;
        while sent < LEN {
            match tcp.write(&all[sent..]) {
                Ok(n) => sent += n,
                Err(fault) if fault.kind() == ErrorKind::WouldBlock => tell.send(sent).unwrap(),
                Err(fault) => panic!("{fault}"),
            }
        }
    });
    let mut tcp = connect(&relay);
    // Nothing is read until the sender is stuck: the relay does not take what it cannot pass on.
    let stuck = told.recv_timeout(PATIENCE).unwrap();
    assert!(stuck < LEN);
    let memory = std::fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak < 8000, "{peak} KiB");
    let mut got = Vec::new();
    let mut bytes = [0; 1009];
    while let Ok(n @ 1..) = tcp.read(&mut bytes) {
        got.extend_from_slice(&bytes[..n]);
    }
    assert!(got == pattern(LEN, 0), "{} bytes", got.len());
}

#[test]
fn a_half_closed_side_still_gets_its_answer() {
    let relay = behind(|mut tcp| {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).unwrap();
        all.reverse();
        tcp.write_all(&all).unwrap();
    });
    let mut tcp = connect(&relay);
    tcp.write_all(b"abc").unwrap();
    tcp.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    tcp.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"cba");
}

#[test]
fn an_upstream_that_ends_first_ends_the_client() {
    let relay = behind(|mut tcp| tcp.write_all(b"bye").unwrap());
    let mut got = Vec::new();
    connect(&relay).read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    // Closing with unread bytes resets.
    let relay = behind(|mut tcp| tcp.read_exact(&mut [0; 1]).unwrap());
    let mut tcp = connect(&relay);
    tcp.write_all(b"ab").unwrap();
    let fault = tcp.read(&mut [0; 8]).unwrap_err();
    assert_eq!(fault.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn an_upstream_that_is_not_there_aborts_the_client_only() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relay = relay(nobody);
    for _ in 0..3 {
        // The abort may come before our connect has returned, or after.
        let Ok(mut tcp) = TcpStream::connect(relay.address) else { continue };
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let read = tcp.read(&mut [0; 8]);
        assert!(!matches!(&read, Err(fault) if fault.kind() == ErrorKind::WouldBlock), "{read:?}");
    }
}

#[test]
fn two_hundred_connections_do_not_mix_and_leave_nothing_behind() {
    let relay = behind(echo);
    let files = || std::fs::read_dir(format!("/proc/{}/fd", relay.child.id())).unwrap().count();
    let idle = files();
    let mut all: Vec<_> = (0..200).map(|_| connect(&relay)).collect();
    for round in 0..3 {
        for (n, tcp) in all.iter_mut().enumerate() {
            tcp.write_all(&pattern(500, n * 7 + round)).unwrap();
        }
        for (n, tcp) in all.iter_mut().enumerate() {
            let mut got = vec![0; 500];
            tcp.read_exact(&mut got).unwrap();
            assert!(got == pattern(500, n * 7 + round), "connection {n}");
        }
    }
    assert_eq!(files(), idle + 400);
    for tcp in &mut all {
        tcp.shutdown(Shutdown::Write).unwrap();
        assert_eq!(tcp.read(&mut [0; 8]).unwrap(), 0);
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    while files() > idle {
        assert!(std::time::Instant::now() < deadline, "{} files left", files() - idle);
        thread::yield_now();
    }
}
