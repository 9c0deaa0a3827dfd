//! `raw-relay`: carries bytes between two TCP connections and looks at none of them.
//!
//! The floor of the comparison: what a relay costs that parses nothing, so that the kernel's share
//! can be told from a proxy's own. One thread per core, each with a `SO_REUSEPORT` listener, one
//! edge-triggered epoll and one scratch buffer of 64 KiB; one upstream connection per client.
//! Refuses to be a proxy: no timeouts, no retries, no log. Invariant: nothing is read from a side
//! while bytes for the other wait, so at most one scratch buffer's worth is kept per direction.
//! Cost per chunk: one read, one send, and a share of an epoll_wait.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Bytes moved at once, per thread.
const SCRATCH: usize = 64 * 1024;
/// Reads from one side before others get their turn.
const TURN: usize = 16;
const EVENTS: usize = 256;
const BACKLOG: i32 = 4096;
/// What the listener's events carry; pairs carry twice their place, plus one for the upstream.
const LISTENER: u64 = u64::MAX;
/// Which of a pair's sockets is the upstream's; the client's is 0.
const UPSTREAM: usize = 1;

/// Relay TCP connections without looking at what they carry.
#[derive(Clone, Debug, Parser)]
#[command(name = "raw-relay", version)]
struct Args {
    /// Address to listen on
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Where each connection is carried to
    #[arg(long, value_name = "ADDR")]
    upstream: SocketAddr,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("raw-relay: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it is refused, the relay stops accepting earlier.
    let _ = setrlimit(Resource::Nofile, limit);
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => thread::available_parallelism()?.get(),
    };
    let first = listen(args.listen)?;
    let address = SocketAddr::try_from(net::getsockname(&first)?)?;
    let mut loops = vec![Loop::new(first, args.upstream)?];
    for _ in 1..threads {
        loops.push(Loop::new(listen(address)?, args.upstream)?);
    }
    eprintln!("raw-relay: listening on {address}, {threads} threads");
    thread::scope(|scope| {
        let running: Vec<_> = loops.into_iter().map(|one| scope.spawn(|| one.run())).collect();
        running.into_iter().try_for_each(|one| match one.join() {
            Ok(ended) => ended,
            Err(_) => Err(io::Error::other("a thread panicked")),
        })
    })
}

fn stream_socket(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if to.is_ipv4() { net::AddressFamily::INET } else { net::AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    net::socket_with(family, SocketType::STREAM, flags, None)
}

fn listen(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let listener = stream_socket(address)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    net::bind(&listener, &address)?;
    net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// One way through a pair: from the socket of the same number to the other one.
#[derive(Default)]
struct Way {
    /// Read, but not taken by the other socket yet; empty unless that one is full.
    waiting: Vec<u8>,
    /// How much of `waiting` is sent.
    sent: usize,
    /// There may be something to read.
    readable: bool,
    /// The source said that no more will come: read on until it shows.
    ending: bool,
    /// The end of the source was read.
    ended: bool,
    /// The end was passed on.
    shut: bool,
    /// Stands in `Loop::again`.
    queued: bool,
}

/// A client, its upstream connection, and what is under way between them.
struct Pair {
    sockets: [OwnedFd; 2],
    ways: [Way; 2],
    /// The upstream connection stands; until then nothing is sent to it.
    connected: bool,
}

/// Why a pair's turn is over.
enum Turn {
    /// Nothing to do until the next event.
    Idle,
    /// There is more, but others come first.
    More,
    /// A connection failed: the pair is aborted.
    Failed,
}

impl Pair {
    /// Carries what there is from socket `from` to the other one.
    fn carry(&mut self, from: usize, scratch: &mut [u8]) -> Turn {
        let (source, sink) = (&self.sockets[from], &self.sockets[1 - from]);
        let way = &mut self.ways[from];
        if !self.connected {
            return Turn::Idle;
        }
        for _ in 0..TURN {
            if !way.waiting.is_empty() {
                match send(sink, &way.waiting[way.sent..]) {
                    Ok(sent) => way.sent += sent,
                    Err(_) => return Turn::Failed,
                }
                if way.sent < way.waiting.len() {
                    return Turn::Idle;
                }
                // Given back, not kept: idle streams are what memory is counted on.
                (way.waiting, way.sent) = (Vec::new(), 0);
            }
            if way.ended && !way.shut {
                way.shut = true;
                if net::shutdown(sink, Shutdown::Write).is_err() {
                    return Turn::Failed;
                }
            }
            if !way.readable {
                return Turn::Idle;
            }
            let read = match rustix::io::read(source, &mut *scratch) {
                Ok(read) => read,
                Err(Errno::AGAIN) => {
                    way.readable = false;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(_) => return Turn::Failed,
            };
            way.ended = read == 0;
            // A short read emptied the socket (epoll(7)); what comes later raises a new edge.
            way.readable = read == scratch.len() || (way.ending && !way.ended);
            match send(sink, &scratch[..read]) {
                Ok(sent) => way.waiting.extend_from_slice(&scratch[sent..read]),
                Err(_) => return Turn::Failed,
            }
        }
        Turn::More
    }

    fn is_over(&self) -> bool {
        self.ways.iter().all(|way| way.shut)
    }

    /// Both sides are to see an abort, not a clean end.
    fn abort(self) {
        for socket in &self.sockets {
            let _ = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
        }
    }
}

/// Sends what fits; 0 if nothing does.
fn send(to: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    loop {
        match net::send(to, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// One thread's sockets.
struct Loop {
    epoll: OwnedFd,
    listener: OwnedFd,
    upstream: SocketAddr,
    pairs: Vec<Option<Pair>>,
    /// Empty places in `pairs`.
    free: Vec<usize>,
    /// Places emptied during this round; events of the round may still name them.
    freed: Vec<usize>,
    /// Pairs that have more to do: place and direction.
    again: Vec<(usize, usize)>,
    /// Off while files have run out, until a pair ends.
    accepting: bool,
}

impl Loop {
    fn new(listener: OwnedFd, upstream: SocketAddr) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let (pairs, free, freed, again) = Default::default();
        Ok(Self { epoll, listener, upstream, pairs, free, freed, again, accepting: true })
    }

    fn run(mut self) -> io::Result<()> {
        let mut scratch = vec![0; SCRATCH];
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let timeout = (!self.again.is_empty()).then_some(&at_once);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(fault) => return Err(fault.into()),
            }
            for (place, from) in std::mem::take(&mut self.again) {
                if let Some(pair) = &mut self.pairs[place] {
                    pair.ways[from].queued = false;
                }
                self.carry(place, from, &mut scratch);
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    token => self.wake(token, event.flags, &mut scratch),
                }
            }
            if !self.freed.is_empty() {
                self.free.append(&mut self.freed);
                self.set_accepting(true)?;
            }
        }
    }

    fn set_accepting(&mut self, on: bool) -> rustix::io::Result<()> {
        if self.accepting != on {
            self.accepting = on;
            let flags = if on { EventFlags::IN } else { EventFlags::empty() };
            epoll::modify(&self.epoll, &self.listener, EventData::new_u64(LISTENER), flags)?;
        }
        Ok(())
    }

    fn accept(&mut self) -> rustix::io::Result<()> {
        for _ in 0..TURN {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let opened = match net::accept_with(&self.listener, flags) {
                Ok(client) => self.open(client),
                Err(fault) => Err(fault),
            };
            match opened {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::MFILE | Errno::NFILE) => return self.set_accepting(false),
                // This client's own misfortune: its connection is closed.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Connects upstream for an accepted client.
    fn open(&mut self, client: OwnedFd) -> rustix::io::Result<()> {
        let upstream = stream_socket(self.upstream)?;
        sockopt::set_tcp_nodelay(&client, true)?;
        sockopt::set_tcp_nodelay(&upstream, true)?;
        match net::connect(&upstream, &self.upstream) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            // Out of local ports; not to be taken for an empty accept queue.
            Err(Errno::AGAIN) => return Err(Errno::ADDRNOTAVAIL),
            Err(fault) => return Err(fault),
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let pair = Pair { sockets: [client, upstream], ways: Default::default(), connected: false };
        for (side, socket) in pair.sockets.iter().enumerate() {
            let token = EventData::new_u64((place * 2 + side) as u64);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if let Err(fault) = epoll::add(&self.epoll, socket.as_fd(), token, flags) {
                self.freed.push(place);
                return Err(fault);
            }
        }
        self.pairs[place] = Some(pair);
        Ok(())
    }

    fn wake(&mut self, token: u64, flags: EventFlags, scratch: &mut [u8]) {
        let place = usize::try_from(token / 2).expect("a place was made from a usize");
        let side = usize::from(token % 2 == 1);
        let Some(pair) = self.pairs.get_mut(place).and_then(Option::as_mut) else { return };
        let way = &mut pair.ways[side];
        let failed = flags.contains(EventFlags::ERR);
        let ending = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        way.ending |= ending;
        way.readable |= !way.ended && (ending || flags.contains(EventFlags::IN));
        let mut both = flags.contains(EventFlags::OUT);
        if side == UPSTREAM && !pair.connected && both && !failed {
            pair.connected = true;
        }
        both |= ending;
        self.carry(place, side, scratch);
        if both {
            self.carry(place, 1 - side, scratch);
        }
        // Whatever came before the reset is passed on by now, as far as the other side took it.
        if failed && let Some(pair) = self.pairs[place].take() {
            self.freed.push(place);
            pair.abort();
        }
    }

    /// Carries one way of a pair and ends the pair if it is over.
    fn carry(&mut self, place: usize, from: usize, scratch: &mut [u8]) {
        let Some(pair) = self.pairs[place].as_mut() else { return };
        let turn = pair.carry(from, scratch);
        match turn {
            Turn::Idle if !pair.is_over() => return,
            Turn::More => {
                if !std::mem::replace(&mut pair.ways[from].queued, true) {
                    self.again.push((place, from));
                }
                return;
            }
            Turn::Idle | Turn::Failed => {}
        }
        let Some(pair) = self.pairs[place].take() else { return };
        self.freed.push(place);
        if matches!(turn, Turn::Failed) {
            pair.abort();
        }
    }
}
