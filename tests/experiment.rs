//! The two risks the whole design stands on, tried with plain hyper and h2 before anything was built
//! on them, and kept so that an upgrade of hyper, h2 or tokio cannot take them away unnoticed:
//!
//! 1. hyper's HTTP/1.1 and HTTP/2 servers and clients run `!Send` services and bodies on a
//!    `LocalRuntime`;
//! 2. a client that lags behind receives an error event that was written just before an unclean
//!    end, over HTTP/1.1 and over HTTP/2. With hyper the body must never end or fail by itself: it
//!    goes quiet after the event, and whoever owns the connection drops it once the event has left.
//!    With h2 the reset must wait until flow control has let everything go and it has left.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::rt::Executor;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const ERROR_EVENT: &[u8] = b"data: {\"error\":{\"message\":\"upstream died\"}}\n\n";
/// Enough to be far behind in every buffer between the two ends.
const EVENTS: usize = 4000;
const LINGER: Duration = Duration::from_millis(250);

fn on_local_runtime<F: Future>(f: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("a local runtime");
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), f).await })
        .expect("the experiment is done within a minute")
}

/// How the owner of a response learns that its body has nothing more to say and wants the cut.
#[derive(Default)]
struct Cut {
    wanted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Cut {
    async fn wanted(&self) {
        std::future::poll_fn(|cx| {
            if self.wanted.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Events, then the error event, then silence. Not `Send`.
struct Failing {
    left: usize,
    tail: Option<Bytes>,
    cut: Rc<Cut>,
}

impl Failing {
    fn new(cut: Rc<Cut>) -> Failing {
        Failing { left: EVENTS, tail: Some(Bytes::from_static(ERROR_EVENT)), cut }
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.left > 0 {
            self.left -= 1;
            return Some(Bytes::from(format!("data: {:0>240}\n\n", self.left)));
        }
        self.tail.take()
    }
}

impl Body for Failing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = self.next() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        self.cut.wanted.set(true);
        if let Some(waker) = self.cut.waker.borrow_mut().take() {
            waker.wake();
        }
        Poll::Pending
    }
}

/// Runs hyper's h2 tasks on the local runtime.
#[derive(Clone)]
struct LocalExec;

impl<F: Future + 'static> Executor<F> for LocalExec {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move { drop(task.await) });
    }
}

/// Gives h2 only what flow control lets go: what it has taken is on its way when all is given.
async fn send_within_the_window(send: &mut h2::SendStream<Bytes>, mut piece: Bytes) {
    while !piece.is_empty() {
        send.reserve_capacity(piece.len());
        while send.capacity() == 0 {
            let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
            room.expect("an open stream").expect("an open connection");
        }
        let part = piece.split_to(send.capacity().min(piece.len()));
        send.send_data(part, false).expect("an open stream");
    }
}

/// A socket that tells whether hyper has handed over all it had: hyper flushes the socket only
/// after its own buffer is empty.
struct Watched(TcpStream, Rc<Cell<bool>>);

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.set(false);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.1.set(true);
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    (listener, addr)
}

/// A body that is not `Send`, for the clients.
struct Once(Rc<Cell<u32>>, Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.set(self.0.get() + 1);
        Poll::Ready(self.1.take().map(|b| Ok(Frame::data(b))))
    }
}

async fn echo(
    polls: Rc<Cell<u32>>,
    request: Request<Incoming>,
) -> Result<Response<Once>, Infallible> {
    let body = request.into_body().collect().await.expect("the request's body").to_bytes();
    Ok(Response::new(Once(polls, Some(body))))
}

#[test]
fn hyper_runs_not_send_bodies_and_services_on_a_local_runtime() {
    on_local_runtime(async {
        for h2 in [false, true] {
            let (listener, addr) = bind().await;
            let (served, sent) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let polls = served.clone();
            tokio::task::spawn_local(async move {
                let (socket, _) = listener.accept().await.expect("a client");
                let service =
                    hyper::service::service_fn(move |request| echo(polls.clone(), request));
                let io = TokioIo::new(socket);
                let end = if h2 {
                    hyper::server::conn::http2::Builder::new(LocalExec)
                        .serve_connection(io, service)
                        .await
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                };
                end.expect("a clean end");
            });

            let socket = TcpStream::connect(addr).await.expect("the server");
            let request = Request::post("http://localhost/")
                .body(Once(sent.clone(), Some(Bytes::from_static(b"tide"))))
                .expect("a request");
            let response = if h2 {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(LocalExec, TokioIo::new(socket))
                        .await
                        .expect("an h2 handshake");
                tokio::task::spawn_local(connection);
                sender.send_request(request).await
            } else {
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(socket))
                        .await
                        .expect("an h1 handshake");
                tokio::task::spawn_local(connection);
                sender.send_request(request).await
            };
            let body = response.expect("a response").into_body().collect().await.expect("a body");
            assert_eq!(body.to_bytes(), "tide", "h2: {h2}");
            assert!(served.get() > 0 && sent.get() > 0, "both bodies were polled, h2: {h2}");
        }
    });
}

#[test]
fn a_lagging_h1_client_receives_the_error_event_before_the_unclean_end() {
    on_local_runtime(async {
        let (listener, addr) = bind().await;
        tokio::task::spawn_local(async move {
            let (socket, _) = listener.accept().await.expect("a client");
            let flushed = Rc::new(Cell::new(false));
            let cut = Rc::new(Cut::default());
            let body_cut = cut.clone();
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                let body = Failing::new(body_cut.clone());
                async move { Ok::<_, Infallible>(Response::new(body)) }
            });
            let mut connection = hyper::server::conn::http1::Builder::new()
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(Watched(socket, flushed.clone())), service);
            tokio::select! {
                end = Pin::new(&mut connection) => panic!("hyper ended it: {end:?}"),
                () = cut.wanted() => {}
            }
            // The event may still wait in hyper's buffer: run on until the socket has taken it all.
            std::future::poll_fn(|cx| {
                let _ = Pin::new(&mut connection).poll(cx);
                if flushed.get() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            tokio::time::sleep(LINGER).await;
        });

        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(8 * 1024).expect("a small receive buffer");
        let mut client = socket.connect(addr).await.expect("the server");
        client.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.expect("a request");
        let mut got = BytesMut::new();
        let mut laps = 0;
        loop {
            let mut piece = [0u8; 16 * 1024];
            match client.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(n) => got.extend_from_slice(&piece[..n]),
            }
            laps += 1;
            if laps < 60 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let text = String::from_utf8_lossy(&got);
        assert!(text.contains("upstream died"), "the error event arrived");
        assert!(!text.ends_with("0\r\n\r\n"), "and the end is not clean");
    });
}

#[test]
fn a_lagging_h2_client_receives_the_error_event_before_the_reset() {
    on_local_runtime(async {
        let (listener, addr) = bind().await;
        tokio::task::spawn_local(async move {
            let (socket, _) = listener.accept().await.expect("a client");
            let mut connection = h2::server::Builder::new()
                .max_send_buffer_size(16 * 1024)
                .handshake::<_, Bytes>(socket)
                .await
                .expect("an h2 handshake");
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let mut send = respond.send_response(Response::new(()), false).expect("open");
                    let mut body = Failing::new(Rc::default());
                    while let Some(piece) = body.next() {
                        send_within_the_window(&mut send, piece).await;
                    }
                    tokio::time::sleep(LINGER).await;
                    send.send_reset(h2::Reason::CANCEL);
                });
            }
        });

        let socket = TcpStream::connect(addr).await.expect("the server");
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(8 * 1024)
            .handshake::<_, Bytes>(socket)
            .await
            .expect("an h2 handshake");
        tokio::task::spawn_local(connection);
        let mut client = client.ready().await.expect("a ready client");
        let request = Request::get("http://t/").body(()).expect("a request");
        let (response, _) = client.send_request(request, true).expect("a stream");
        let mut body = response.await.expect("a head").into_body();
        let (mut got, mut laps) = (BytesMut::new(), 0);
        let end = loop {
            match body.data().await {
                Some(Ok(piece)) => {
                    let _ = body.flow_control().release_capacity(piece.len());
                    got.extend_from_slice(&piece);
                }
                Some(Err(error)) => break error,
                None => panic!("the stream ended cleanly"),
            }
            laps += 1;
            if laps < 60 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(end.is_reset(), "{end}");
        assert!(got.ends_with(ERROR_EVENT), "the error event arrived");
    });
}
