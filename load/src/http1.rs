//! A stream over HTTP/1.1: one connection, one request, one response.
//!
//! Owns the socket's side of a stream. Refuses keep-alive: what is measured is a stream from its
//! connection on. Invariant: all streams of a worker read into one buffer, which is borrowed for
//! one read at a time. Cost: one write and, per chunk, one read; no allocation after the head.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::body::{BadFraming, Body};
use crate::dial::Io;
use crate::head::{self, HEAD_MAX};
use crate::stream::{Pace, Stream};
use crate::tally::{End, Failure};
use crate::worker::{Worker, pauses};

/// Request bodies up to this ride in the same write as the head, bytes.
const ONE_WRITE: usize = 16 * 1024;
/// How often a stalled reader looks whether it was cut.
const STALL_LOOK: Duration = Duration::from_millis(250);

/// How the reading of a body came to its end.
enum Over {
    Clean,
    Short(End),
    Leave,
}

/// Runs one stream to its end.
pub(crate) async fn run(worker: &Worker, stream: &mut Stream, number: u64) {
    match open(worker, stream, number).await {
        Err(failure) => stream.fail(failure),
        Ok((mut io, body, rest)) => {
            let over = match stream.pace {
                Pace::Stalled => stall(worker, stream, &io).await,
                Pace::Full | Pace::Slow => follow(worker, stream, &mut io, body, rest).await,
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

/// From nothing to a good head; returns also what came with it of the body.
async fn open(
    worker: &Worker,
    stream: &mut Stream,
    number: u64,
) -> Result<(Io, Body, Vec<u8>), Failure> {
    let args = &worker.plan.args;
    let mut io = timeout(args.connect_timeout, worker.dialer.dial(number, stream.pace))
        .await
        .map_err(|_| Failure::ConnectTimeout)??;
    let exchange = exchange(worker, stream, &mut io);
    let (body, rest) =
        timeout(args.head_timeout, exchange).await.map_err(|_| Failure::HeadTimeout)??;
    Ok((io, body, rest))
}

async fn exchange(
    worker: &Worker,
    stream: &mut Stream,
    io: &mut Io,
) -> Result<(Body, Vec<u8>), Failure> {
    let body = &worker.plan.body;
    let mut request = format!("{}{}\r\n\r\n", worker.head, stream.id()).into_bytes();
    if body.len() <= ONE_WRITE {
        request.extend_from_slice(body);
    }
    // A server may answer before it has read everything, so a write that fails is no verdict yet.
    let mut written = io.write_all(&request).await;
    if written.is_ok() && body.len() > ONE_WRITE {
        written = io.write_all(body).await;
    }
    if written.is_ok() {
        written = io.flush().await;
    }
    drop(request);
    let mut bytes = Vec::with_capacity(1024);
    loop {
        match head::read(&bytes).map_err(|_| Failure::BadHead)? {
            Some(head) if head.status / 100 == 1 => {
                bytes.drain(..head.length);
            }
            Some(head) => {
                stream.check_head(head.status, head.is_event_stream)?;
                stream.opened();
                return Ok((head.body, bytes.split_off(head.length)));
            }
            None if bytes.len() > HEAD_MAX => return Err(Failure::BadHead),
            None => match io.read_buf(&mut bytes).await {
                Ok(0) if bytes.is_empty() && written.is_ok() => return Err(Failure::Closed),
                Ok(0) => {
                    return Err(if written.is_ok() { Failure::BadHead } else { Failure::Reset });
                }
                Ok(_) => {}
                Err(_) => return Err(Failure::Reset),
            },
        }
    }
}

/// Reads the body to its end, or until we are to leave.
async fn follow(
    worker: &Worker,
    stream: &mut Stream,
    io: &mut Io,
    mut body: Body,
    rest: Vec<u8>,
) -> Over {
    if !rest.is_empty()
        && let Some(over) = take(stream, &mut body, &rest)
    {
        return over;
    }
    drop(rest);
    if body.is_done() {
        return Over::Clean;
    }
    let mut times = pauses(worker, stream);
    let mut sleep = pin!(sleep_until(Instant::from_std(times.wake)));
    poll_fn(|cx| {
        loop {
            if !times.is_paused(worker) {
                let read = poll_take(worker, stream, io, &mut body, cx, times.share);
                if let Poll::Ready(over) = read {
                    match over {
                        Some(over) => return Poll::Ready(over),
                        None if times.pause(worker) => {
                            sleep.as_mut().reset(Instant::from_std(times.wake));
                        }
                        None => continue,
                    }
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

/// One read into the worker's buffer; ready with None if there may be more.
fn poll_take(
    worker: &Worker,
    stream: &mut Stream,
    io: &mut Io,
    body: &mut Body,
    cx: &mut Context<'_>,
    share: usize,
) -> Poll<Option<Over>> {
    let mut buffer = worker.buffer.borrow_mut();
    let room = buffer.len().min(share);
    let mut room = ReadBuf::new(&mut buffer[..room]);
    let read = std::task::ready!(Pin::new(io).poll_read(cx, &mut room));
    Poll::Ready(match read {
        Ok(()) if room.filled().is_empty() && body.may_end() => Some(Over::Clean),
        Ok(()) if room.filled().is_empty() => Some(Over::Short(End::Cut)),
        Ok(()) => take(stream, body, room.filled()),
        Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => Some(Over::Short(End::Cut)),
        Err(_) => Some(Over::Short(End::Reset)),
    })
}

fn take(stream: &mut Stream, body: &mut Body, bytes: &[u8]) -> Option<Over> {
    let fed = stream.read(|each| body.feed(bytes, |piece| each(piece)));
    match fed {
        Err(BadFraming) => Some(Over::Short(End::BadFraming)),
        Ok(()) if body.is_done() => Some(Over::Clean),
        Ok(()) => None,
    }
}

/// Never reads; ends when the server cuts, as far as that shows without reading.
async fn stall(worker: &Worker, stream: &Stream, io: &Io) -> Over {
    let times = pauses(worker, stream);
    loop {
        if timeout(STALL_LOOK, io.is_closed_unread()).await == Ok(true) {
            return Over::Short(End::Cut);
        }
        if times.is_time_to_leave(worker) {
            return Over::Leave;
        }
        sleep(STALL_LOOK).await;
    }
}
