//! The HTTP/2 server, on the `h2` crate.
//!
//! Owns one task per connection and one per stream. Refuses nothing of its own: h2 judges the
//! frames. Invariant: a fault that cuts a stream or the connection strikes after the frames before
//! it were handed to the socket ([`Command::Flush`]), because h2 forgets queued frames on a reset.
//! Cost: per stream one small task and what h2 keeps; no buffer of ours.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::answer::{self, Answer, Endpoint, Length, TRAILER};
use super::counts::{Connected, Live, Outcome};
use super::listen::Io;
use super::options::{Behaviour, Fault};
use super::request::{Intake, Request};
use super::script::{End, Pieces, Step};
use super::{Pace, Shared};

/// Bytes of one stream queued inside h2 while the client lags.
const SEND_BUFFER: usize = 64 * 1024;

/// What a stream asks of its connection.
enum Command {
    /// Tell when everything queued so far went to the socket, as far as it takes it.
    Flush(oneshot::Sender<()>),
    /// Graceful GOAWAY.
    Goaway,
    /// GOAWAY with ENHANCE_YOUR_CALM, which ends all streams.
    Calm,
    /// Drop the connection.
    Cut,
}

/// The client (or the connection) went away: an outcome, not an error.
struct Gone;

/// Serves one connection to its end.
pub(super) async fn serve(io: Io, connected: Connected, shared: Arc<Shared>) {
    let mut builder = h2::server::Builder::new();
    builder.max_send_buffer_size(SEND_BUFFER);
    if let Some(streams) = shared.h2_max_streams {
        builder.max_concurrent_streams(streams);
    }
    if let Some(window) = shared.window {
        builder.initial_window_size(window);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    let (commands, mut inbox) = mpsc::channel(16);
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            // Accepting first drives the connection, so that a command finds its frames written.
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (parts, body) = request.into_parts();
                    let request = describe(&parts, connected.number);
                    let stream = Stream { shared: shared.clone(), commands: commands.clone() };
                    streams.spawn(stream.exchange(request, body, respond));
                }
                Some(Err(_)) | None => break,
            },
            Some(command) = inbox.recv() => match command {
                // A stream that is gone by now needs no answer.
                Command::Flush(done) => drop(done.send(())),
                Command::Goaway => connection.graceful_shutdown(),
                Command::Calm => connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM),
                Command::Cut => break,
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
    drop((connection, inbox));
    // Each stream learns from h2 that its connection is gone and counts itself out.
    while streams.join_next().await.is_some() {}
}

/// The request as the rest of the simulator knows it; pseudo fields come first.
fn describe(parts: &http::request::Parts, connection: u64) -> Request {
    let mut headers = Vec::with_capacity(parts.headers.len() + 2);
    if let Some(authority) = parts.uri.authority() {
        headers.push((":authority".to_owned(), authority.to_string()));
    }
    if let Some(scheme) = parts.uri.scheme_str() {
        headers.push((":scheme".to_owned(), scheme.to_owned()));
    }
    for (name, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.push((name.as_str().to_owned(), value));
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let method = parts.method.as_str().to_owned();
    Request { method, target, headers, version: "HTTP/2", connection }
}

/// What one stream's task knows.
struct Stream {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Stream {
    /// One request and its answer. A client that leaves drops `live`, which counts it.
    async fn exchange(self, request: Request, body: RecvStream, respond: SendResponse<Bytes>) {
        let endpoint = Endpoint::of(request.path());
        let ledger = &self.shared.ledger;
        let live = if endpoint.is_control() { Live::uncounted() } else { Live::new(ledger) };
        if let Ok(outcome) = self.answer(request, endpoint, body, respond).await {
            live.end(outcome);
        }
    }

    async fn answer(
        &self,
        request: Request,
        endpoint: Endpoint,
        mut body: RecvStream,
        mut respond: SendResponse<Bytes>,
    ) -> Result<Outcome, Gone> {
        let planned = answer::behaviour(&self.shared, &request);
        let behaviour = planned.as_deref().ok();
        let early = behaviour.is_some_and(|b| b.fault == Fault::Early);
        let mut intake = Intake::new(endpoint);
        let received = if early {
            Ok(())
        } else {
            receive(&request, behaviour, &mut body, &mut respond, &mut intake).await
        };
        if !endpoint.is_control() {
            self.shared.ledger.record(intake.seen(&request, received.is_ok() && !early));
        }
        received?;
        let answer = match planned {
            Ok(behaviour) => answer::plan(&self.shared, &request, &intake, *behaviour),
            Err(answer) => answer,
        };
        drop((request, intake));
        // The body stays until the end: dropped unread it would tell the client to stop sending.
        let outcome = self.send(answer, respond).await;
        drop(body);
        outcome
    }

    async fn send(
        &self,
        mut answer: Box<Answer>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<Outcome, Gone> {
        let mut pace = Pace::new();
        let first_byte = answer.script.behaviour.first_byte;
        pause(&mut pace, first_byte, |cx| respond.poll_reset(cx).map(|_| Gone)).await?;
        match answer.fault() {
            Fault::StallHead => {
                return Err(poll_fn(|cx| respond.poll_reset(cx).map(|_| Gone)).await);
            }
            Fault::ResetHead => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                return Ok(Outcome::Aborted);
            }
            Fault::Refuse => {
                respond.send_reset(Reason::REFUSED_STREAM);
                return Ok(Outcome::Aborted);
            }
            Fault::Calm => {
                respond.send_reset(Reason::ENHANCE_YOUR_CALM);
                return Ok(Outcome::Aborted);
            }
            Fault::Informational => {
                for _ in 0..2 {
                    respond.send_informational(early_hints()).map_err(|_| Gone)?;
                }
            }
            _ => {}
        }
        let bodiless = answer.head_only || answer.length == Length::None;
        let mut stream = respond.send_response(head(&answer), bodiless).map_err(|_| Gone)?;
        if bodiless {
            return Ok(Outcome::Completed);
        }
        answer.fields = Vec::new();
        let mut pieces = Pieces::new(answer.script.behaviour.framing.split, answer.script.seed());
        loop {
            let wait = answer.script.wait();
            pause(&mut pace, wait, |cx| stream.poll_reset(cx).map(|_| Gone)).await?;
            if self.shared.hurries() {
                answer.script.hurry();
            }
            match answer.script.step() {
                Step::Data(mut data) => {
                    while !data.is_empty() {
                        let piece = data.split_to(pieces.next(data.len()));
                        send_data(&mut stream, piece).await?;
                    }
                }
                Step::Goaway => self.command(Command::Goaway).await,
                Step::End(end) => return self.end(end, &mut stream).await,
            }
        }
    }

    async fn end(&self, end: End, stream: &mut SendStream<Bytes>) -> Result<Outcome, Gone> {
        match end {
            End::Clean | End::Short => {
                stream.send_data(Bytes::new(), true).map_err(|_| Gone)?;
                let short = end == End::Short;
                return Ok(if short { Outcome::Aborted } else { Outcome::Completed });
            }
            End::Trailers => {
                let (name, value) = TRAILER;
                let mut fields = HeaderMap::with_capacity(1);
                fields.insert(name, HeaderValue::from_static(value));
                stream.send_trailers(fields).map_err(|_| Gone)?;
                return Ok(Outcome::Completed);
            }
            End::Stall => return Err(poll_fn(|cx| stream.poll_reset(cx).map(|_| Gone)).await),
            End::Fin
            | End::ShortChunk
            | End::Reset
            | End::BadChunk
            | End::Connection
            | End::Calm => {}
        }
        let (flushed, done) = oneshot::channel();
        self.command(Command::Flush(flushed)).await;
        // An error means that the connection is gone already, and its frames with it.
        let _ = done.await;
        match end {
            End::Connection => {
                self.command(Command::Cut).await;
                // Held until the connection is gone: dropped earlier, h2 would still send a reset.
                let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            End::Calm => {
                self.command(Command::Calm).await;
                let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            End::Fin | End::ShortChunk => stream.send_reset(Reason::INTERNAL_ERROR),
            _ => stream.send_reset(Reason::CANCEL),
        }
        Ok(Outcome::Aborted)
    }

    /// A connection that is gone needs no command any more.
    async fn command(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }
}

async fn receive(
    request: &Request,
    behaviour: Option<&Behaviour>,
    body: &mut RecvStream,
    respond: &mut SendResponse<Bytes>,
    intake: &mut Intake,
) -> Result<(), Gone> {
    if let Some(behaviour) = behaviour {
        let mut pace = Pace::new();
        pause(&mut pace, behaviour.read_delay, |cx| respond.poll_reset(cx).map(|_| Gone)).await?;
    }
    if !body.is_end_stream() && request.has_token("expect", "100-continue") {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::CONTINUE;
        respond.send_informational(head).map_err(|_| Gone)?;
    }
    while let Some(data) = body.data().await {
        let data = data.map_err(|_| Gone)?;
        intake.push(&data);
        // Fails only for more than was received.
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok(())
}

/// Sends one DATA frame, or as many as the windows make of it.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Gone> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        if stream.capacity() == 0 {
            poll_fn(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Gone));
                }
                match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => Poll::Ready(Ok(())),
                    Poll::Ready(_) => Poll::Ready(Err(Gone)),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await?;
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        if !piece.is_empty() {
            stream.send_data(piece, false).map_err(|_| Gone)?;
        }
    }
    Ok(())
}

async fn pause(
    pace: &mut Pace,
    wait: Duration,
    mut poll_gone: impl FnMut(&mut Context<'_>) -> Poll<Gone>,
) -> Result<(), Gone> {
    let Some(until) = pace.next(wait) else {
        // Lets the connection write, too: h2 would queue a whole fast stream otherwise.
        tokio::task::coop::consume_budget().await;
        return poll_fn(|cx| match poll_gone(cx) {
            Poll::Ready(gone) => Poll::Ready(Err(gone)),
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await;
    };
    let mut sleep = pin!(tokio::time::sleep_until(until));
    poll_fn(|cx| match poll_gone(cx) {
        Poll::Ready(gone) => Poll::Ready(Err(gone)),
        Poll::Pending => sleep.as_mut().poll(cx).map(Ok),
    })
    .await
}

fn early_hints() -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::EARLY_HINTS;
    head.headers_mut().insert("link", HeaderValue::from_static("</sim>; rel=preconnect"));
    head
}

fn head(answer: &Answer) -> Response<()> {
    let mut head = Response::new(());
    // Both were checked where they came from; a default is better than a panic all the same.
    *head.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
    for (name, value) in &answer.fields {
        if let Ok(value) = HeaderValue::from_str(value) {
            head.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    if let Length::Declared(length) = answer.length {
        head.headers_mut().insert("content-length", HeaderValue::from(length));
    }
    head
}
