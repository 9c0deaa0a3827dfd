//! Streams over HTTP/2: many on one connection.
//!
//! Owns the lanes (a lane is a place for a connection) and the `h2` side of a stream. Refuses to
//! retry: a stream whose connection is lost is cut. Invariant: `--per-connection` places share a
//! lane, and a lane has at most one connection that takes new streams. Cost: what `h2` needs, some
//! kilobytes per stream; data is looked at where `h2` has put it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use crate::head;
use crate::stream::{Pace, Stream};
use crate::tally::{End, Failure};
use crate::worker::{Worker, pauses};

/// Receive window of one stream, bytes; what a stalled reader makes the server hold back.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Added to the streams' windows, so that stalled streams never starve their neighbours, bytes.
const SPARE_WINDOW: u32 = 1024 * 1024;

/// The place of a connection.
#[derive(Default)]
pub(crate) struct Lane(Mutex<Option<SendRequest<Bytes>>>);

/// How the reading of a body came to its end.
enum Over {
    Clean,
    Short(End),
    Leave,
}

/// Runs one stream to its end on the connection of `lane`.
pub(crate) async fn run(worker: &Rc<Worker>, stream: &mut Stream, lane: usize) {
    match open(worker, stream, lane).await {
        Err(failure) => stream.fail(failure),
        Ok((send, recv)) => {
            let over = match stream.pace {
                Pace::Stalled => stall(worker, stream, send).await,
                Pace::Full | Pace::Slow => follow(worker, stream, recv).await,
            };
            match over {
                Over::Clean => stream.end_clean(),
                Over::Short(end) => stream.end_short(end),
                // The drop of the stream counts it.
                Over::Leave => {}
            }
        }
    }
}

async fn open(
    worker: &Rc<Worker>,
    stream: &mut Stream,
    lane: usize,
) -> Result<(SendStream<Bytes>, RecvStream), Failure> {
    let args = &worker.plan.args;
    let sender = timeout(args.connect_timeout, connection(worker, lane))
        .await
        .map_err(|_| Failure::ConnectTimeout)??;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(|fault| failure(&fault))?;
        let body = worker.plan.body.clone();
        let request = request(worker, stream.id()).map_err(|_| Failure::BadHead)?;
        let (response, mut send) =
            sender.send_request(request, body.is_empty()).map_err(|fault| failure(&fault))?;
        drop(sender);
        // A server may answer before it has read everything.
        let _ = send.send_data(body, true);
        let response = response.await.map_err(|fault| failure(&fault))?;
        let content_type = response.headers().get(http::header::CONTENT_TYPE);
        let is_stream = content_type.is_some_and(|value| head::is_stream(value.as_bytes()));
        stream.check_head(response.status().as_u16(), is_stream)?;
        stream.opened();
        Ok((send, response.into_body()))
    };
    timeout(args.head_timeout, exchange).await.map_err(|_| Failure::HeadTimeout)?
}

/// The lane's connection, made anew if it has gone.
async fn connection(worker: &Rc<Worker>, lane: usize) -> Result<SendRequest<Bytes>, Failure> {
    let mut place = worker.lanes[lane].0.lock().await;
    if let Some(sender) = place.as_ref() {
        let mut probe = sender.clone();
        let state = poll_fn(|cx| Poll::Ready(probe.poll_ready(cx))).await;
        if !matches!(state, Poll::Ready(Err(_))) {
            return Ok(sender.clone());
        }
        *place = None;
    }
    let number = worker.number + lane as u64 * worker.plan.workers();
    let io = worker.dialer.dial(number, Pace::Full).await?;
    let streams = worker.plan.args.per_connection;
    let window = STREAM_WINDOW.saturating_mul(streams).saturating_add(SPARE_WINDOW);
    let (sender, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window.min(i32::MAX as u32))
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|_| Failure::Handshake)?;
    tokio::task::spawn_local(async move {
        // Its end shows in every stream on it.
        let _ = connection.await;
    });
    *place = Some(sender.clone());
    Ok(sender)
}

fn request(worker: &Worker, id: u64) -> Result<http::Request<()>, http::Error> {
    let plan = &worker.plan;
    let scheme = if plan.tls { "https" } else { "http" };
    let mut request = http::Request::post(format!("{scheme}://{}{}", plan.authority, plan.path))
        .version(http::Version::HTTP_2)
        .header("content-length", plan.body.len())
        .header("sim-stream", id);
    for (name, value) in &plan.headers {
        request = request.header(name, value);
    }
    request.body(())
}

fn failure(fault: &h2::Error) -> Failure {
    if fault.is_io() || fault.is_go_away() { Failure::Closed } else { Failure::Reset }
}

fn end(fault: &h2::Error) -> End {
    if fault.is_io() || (fault.is_go_away() && fault.is_remote()) {
        End::Cut
    } else if fault.is_remote() {
        End::Reset
    } else {
        End::BadFraming
    }
}

/// Reads the body to its end, or until we are to leave.
async fn follow(worker: &Worker, stream: &mut Stream, mut recv: RecvStream) -> Over {
    let mut times = pauses(worker, stream);
    let mut sleep = pin!(sleep_until(Instant::from_std(times.wake)));
    poll_fn(|cx| {
        loop {
            if !times.is_paused(worker) {
                let (over, took) = stream.read(|each| {
                    let mut took = 0;
                    let over = loop {
                        match poll_take(&mut recv, cx, each) {
                            Poll::Pending => break None,
                            Poll::Ready(Ok(bytes)) => took += bytes,
                            Poll::Ready(Err(over)) => break Some(over),
                        }
                        if took >= times.share {
                            break None;
                        }
                    };
                    (over, took)
                });
                if let Some(over) = over {
                    return Poll::Ready(over);
                }
                if took > 0 && times.pause_for(worker, took) {
                    sleep.as_mut().reset(Instant::from_std(times.wake));
                } else if took >= times.share {
                    continue;
                }
            }
            std::task::ready!(sleep.as_mut().poll(cx));
            if times.is_time_to_leave(worker) {
                return Poll::Ready(Over::Leave);
            }
            if times.is_idle(worker, stream) {
                return Poll::Ready(Over::Short(End::Timeout));
            }
            sleep.as_mut().reset(Instant::from_std(times.wake));
        }
    })
    .await
}

/// One DATA frame.
fn poll_take(
    recv: &mut RecvStream,
    cx: &mut Context<'_>,
    each: &mut dyn FnMut(&[u8]),
) -> Poll<Result<usize, Over>> {
    Poll::Ready(match std::task::ready!(recv.poll_data(cx)) {
        None => Err(Over::Clean),
        Some(Err(fault)) => Err(Over::Short(end(&fault))),
        Some(Ok(bytes)) => {
            each(&bytes);
            // Only fails for more than was received.
            let _ = recv.flow_control().release_capacity(bytes.len());
            Ok(bytes.len())
        }
    })
}

/// Never reads, so the stream's window fills; ends when the server resets the stream.
async fn stall(worker: &Worker, stream: &Stream, mut send: SendStream<Bytes>) -> Over {
    let times = pauses(worker, stream);
    let mut sleep = pin!(sleep_until(Instant::from_std(times.leave())));
    poll_fn(|cx| {
        if send.poll_reset(cx).is_ready() {
            return Poll::Ready(Over::Short(End::Reset));
        }
        sleep.as_mut().poll(cx).map(|()| Over::Leave)
    })
    .await
}
