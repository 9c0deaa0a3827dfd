//! A client's socket as hyper sees it, TLS or not.
//!
//! Everything an HTTP/1.1 client sends passes the guard first; after a fault hyper gets nothing
//! more. Writes and flushes are noted for the [`IoState`] by which lagging clients are known.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::limits;
use crate::server::tls_stream::TlsStream;
use crate::stream::control::IoState;
use crate::stream::ground::Ground;
use crate::wire::guard::{Expecting, Fault, Guard};
use crate::wire::wheel::Tick;

/// The transport under a client connection.
pub enum Socket {
    /// Cleartext.
    Plain(TcpStream),
    /// TLS after its handshake.
    Tls(Box<TlsStream>),
}

/// The guard of an HTTP/1.1 connection, and what it knows of the requests on it.
pub struct Inbound {
    guard: RefCell<Guard>,
    fault: Cell<Option<Fault>>,
    /// Since when a head is incomplete.
    head_since: Cell<Option<Tick>>,
    /// Complete heads that hyper has not made a request of.
    waiting: Cell<u32>,
    /// A body has begun and not come to its end.
    in_body: Cell<bool>,
    /// The socket is to be asked whether the client has left.
    ask: Cell<bool>,
}

impl Default for Inbound {
    /// Before the first request, or between two.
    fn default() -> Inbound {
        Inbound {
            guard: RefCell::new(Guard::new(limits::CLIENT_HEAD_BYTES)),
            fault: Cell::default(),
            head_since: Cell::default(),
            waiting: Cell::default(),
            in_body: Cell::default(),
            ask: Cell::default(),
        }
    }
}

impl Inbound {
    /// Lets `bytes` through, up to a fault: how many are clean.
    fn inspect(&self, bytes: &[u8], now: Tick) -> usize {
        let mut guard = self.guard.borrow_mut();
        let heads = guard.heads();
        let clean = guard.feed(bytes).map_or_else(
            |(clean, fault)| {
                self.fault.set(Some(fault));
                clean
            },
            |()| bytes.len(),
        );
        let more = u32::try_from(guard.heads() - heads).unwrap_or(u32::MAX);
        self.waiting.set(self.waiting.get().saturating_add(more));
        self.in_body.set(guard.expecting() == Expecting::Body);
        match (guard.expecting() == Expecting::Head, self.head_since.get()) {
            (true, None) => self.head_since.set(Some(now)),
            (false, Some(_)) => self.head_since.set(None),
            _ => {}
        }
        clean
    }

    /// Whether it is as good as a new one: between two requests, with nothing noted.
    fn rests(&self) -> bool {
        self.guard.borrow().is_fresh() && self.fault.get().is_none() && self.waiting.get() == 0
    }

    /// Why hyper gets nothing more, if so.
    pub fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// hyper made a request of a head.
    pub fn taken(&self) {
        self.waiting.set(self.waiting.get().saturating_sub(1));
    }

    /// How many complete heads wait for hyper.
    pub fn waiting(&self) -> u32 {
        self.waiting.get()
    }

    /// Whether a request's body has begun and not come to its end: while nobody reads it, nobody sees
    /// behind it that the client has left.
    pub fn in_body(&self) -> bool {
        self.in_body.get()
    }

    /// With its next flush, which hyper makes in each of its turns, the socket is asked for that.
    pub fn ask(&self) {
        self.ask.set(true);
    }

    /// Since when a request head is incomplete.
    pub fn head_since(&self) -> Option<Tick> {
        self.head_since.get()
    }
}

/// Bytes to be read before those of the socket; never none.
struct Ahead {
    bytes: Vec<u8>,
    /// They have passed the guard.
    inspected: bool,
}

impl Ahead {
    fn of(bytes: Vec<u8>, inspected: bool) -> Option<Box<Ahead>> {
        (!bytes.is_empty()).then(|| Box::new(Ahead { bytes, inspected }))
    }
}

/// See the module.
pub struct ClientIo {
    socket: Socket,
    /// Read already: to tell HTTP/2 from HTTP/1.1, or behind a request whose response is over.
    ahead: Option<Box<Ahead>>,
    /// Made with the first byte that is to be inspected.
    inbound: Option<Rc<Inbound>>,
    /// HTTP/1.1, which is guarded.
    guarded: bool,
    state: Rc<IoState>,
    ground: Rc<Ground>,
}

impl ClientIo {
    /// A socket of which `ahead` was read already; HTTP/1.1 ones are guarded.
    pub fn new(socket: Socket, ahead: Vec<u8>, guarded: bool, ground: &Rc<Ground>) -> ClientIo {
        ClientIo {
            socket,
            ahead: Ahead::of(ahead, false),
            inbound: None,
            guarded,
            state: Rc::default(),
            ground: ground.clone(),
        }
    }

    /// The connection between two requests, `read` having been read from it.
    pub fn resume(mut self, read: Vec<u8>) -> ClientIo {
        debug_assert!(self.ahead.is_none(), "hyper reads what is ahead before it reads on");
        self.ahead = Ahead::of(read, true);
        self
    }

    /// Who is at the other end; `None` once the connection is gone.
    pub fn peer(&self) -> Option<IpAddr> {
        let tcp = match &self.socket {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => tls.io(),
        };
        tcp.peer_addr().ok().map(|address| address.ip().to_canonical())
    }

    /// What the guard knows.
    pub fn inbound(&mut self) -> Rc<Inbound> {
        self.inbound.get_or_insert_default().clone()
    }

    /// Lets go of the guard while it knows nothing: a response that streams needs none before its
    /// client speaks again. `read` is what the client has sent behind its request.
    pub fn rest(&mut self, read: &[u8]) {
        if read.is_empty() {
            self.inbound.take_if(|inbound| inbound.rests());
        }
    }

    /// What the socket does.
    pub fn state(&self) -> Rc<IoState> {
        self.state.clone()
    }

    /// Lets the bytes from `passed` on through the guard; holds back what follows a fault.
    fn inspect(&mut self, buf: &mut ReadBuf<'_>, passed: usize) {
        if self.guarded {
            let inbound = self.inbound.get_or_insert_default();
            let clean = inbound.inspect(&buf.filled()[passed..], self.ground.wheel.now());
            buf.set_filled(passed + clean);
        }
    }

    /// Why hyper gets nothing more, if so.
    fn fault(&self) -> Option<Fault> {
        self.inbound.as_ref()?.fault()
    }

    fn tcp(&self) -> &TcpStream {
        match &self.socket {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => tls.io(),
        }
    }

    fn tcp_mut(&mut self) -> &mut TcpStream {
        match &mut self.socket {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => tls.io_mut(),
        }
    }

    /// Closes with RST.
    pub fn reset(self) {
        // A failure leaves the ordinary FIN.
        let _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Writes `last` and closes; a client that does not take it has no right to be told.
    pub async fn say_and_close(mut self, last: &[u8]) {
        let wheel = self.ground.wheel.clone();
        let said = wheel.timeout(limits::CLOSE_WAIT, async {
            self.write_all(last).await?;
            self.flush().await
        });
        if let Ok(Ok(())) = said.await {
            self.close().await;
        }
    }

    /// Closes with FIN, below TLS, so that a TLS client too sees that the end is not clean; reads
    /// on for a moment so that the kernel does not make it an RST that overtakes our last bytes.
    pub async fn close(mut self) {
        let wheel = self.ground.wheel.clone();
        let tcp = self.tcp_mut();
        if socket2::SockRef::from(&*tcp).shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let _ = wheel.timeout(limits::CLOSE_WAIT, discard(tcp)).await;
    }
}

/// Whether the other end will send no more than what lies here unread.
fn has_left(tcp: &TcpStream) -> bool {
    let mut asked = [PollFd::new(tcp, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0)
}

async fn discard(tcp: &TcpStream) {
    let mut discarded = 0;
    while discarded < limits::CLOSE_BYTES {
        if tcp.readable().await.is_err() {
            return;
        }
        // Not held while waiting: it would make every connection's task 4 KiB larger.
        let mut scratch = [0; 4096];
        match tcp.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(n) => discarded += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if let (Some(fault), true) = (me.fault(), me.ahead.is_none()) {
            return held_back(fault);
        }
        let passed = buf.filled().len();
        if let Some(ahead) = &mut me.ahead {
            let taken = ahead.bytes.len().min(buf.remaining());
            buf.put_slice(&ahead.bytes[..taken]);
            ahead.bytes.drain(..taken);
            let (inspected, over) = (ahead.inspected, ahead.bytes.is_empty());
            if over {
                me.ahead = None;
            }
            if inspected {
                return Poll::Ready(Ok(()));
            }
            // The rest of the head is usually here as well: in one piece it fits hyper's first
            // buffer. If there is nothing, or an end, the next read will tell.
            if let (true, Socket::Plain(tcp)) = (over, &mut me.socket) {
                let _ = Pin::new(tcp).poll_read(cx, buf);
            }
        } else {
            ready!(match &mut me.socket {
                Socket::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
                Socket::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            })?;
            if buf.filled().len() == passed {
                return Poll::Ready(Ok(()));
            }
        }
        me.inspect(buf, passed);
        match me.fault() {
            Some(fault) if buf.filled().len() == passed => held_back(fault),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// What hyper gets instead of the bytes from a fault on. A broken body fails its request, which
/// answers 400; a head is refused by whoever drives the connection, after this step.
fn held_back(fault: Fault) -> Poll<io::Result<()>> {
    match fault {
        Fault::BadChunk(_) => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault))),
        _ => Poll::Pending,
    }
}

impl ClientIo {
    fn written(&self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Ready(Ok(_)) => {
                if let Some(relay) = self.state.wrote(&self.ground.clock) {
                    self.ground.cells.chunk_relay.observe(relay);
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.blocked(self.ground.wheel.now()),
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = match &mut me.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Socket::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        };
        me.written(&polled);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = match &mut me.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Socket::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, pieces),
        };
        me.written(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        // h2, which is the one without a guard, then gathers frames of up to 1 KiB into one write; else it
        // makes a write of every frame of more than 256 bytes, which events usually are.
        if !self.guarded {
            return false;
        }
        match &self.socket {
            Socket::Plain(tcp) => tcp.is_write_vectored(),
            Socket::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let ask = me.inbound.as_ref().is_some_and(|inbound| inbound.ask.take());
        if ask && has_left(me.tcp()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let polled = match &mut me.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_flush(cx),
        };
        match &polled {
            Poll::Ready(Ok(())) => me.state.flushed(),
            Poll::Ready(Err(_)) => {}
            // TLS buffers what the socket does not take.
            Poll::Pending => me.state.blocked(me.ground.wheel.now()),
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
