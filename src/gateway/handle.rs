//! A request's way, on one screen: check → route → identify → admit → forward → commit → relay.
//!
//! Invariant: exactly one answer per request, and the permit travels inside it.

use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Version};

use crate::config::Family;
use crate::error::{Failure, Kind, Limit};
use crate::gateway::forward::{Forward, Traveller, sticky_key};
use crate::gateway::plan::Plan;
use crate::gateway::route::Route;
use crate::gateway::{Gateway, admit, auth, check, reply, usage};
use crate::limits;
use crate::stream::body::ClientBody;
use crate::stream::control::Control;
use crate::stream::core::Stream;
use crate::stream::life::{Birth, Life};
use crate::stream::source::Source;
use crate::telemetry::cells::{Path, Reason, Rejection, StatusClass};
use crate::telemetry::trace;
use crate::upstream::attempts::Bounds;
use crate::upstream::download::Download;
use crate::upstream::send::{Answer, Outgoing};
use crate::upstream::upload::{RequestBody, Upload, UploadState};
use crate::wire::head;
use crate::wire::sse;
use crate::wire::wheel::Tick;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

type Sending = Pin<Box<dyn Future<Output = Result<Answer, Failure>>>>;

/// Answers one request that came over a connection with `peer`.
pub async fn handle(
    gateway: Rc<Gateway>,
    control: Rc<Control>,
    peer: IpAddr,
    request: Request<RequestBody>,
) -> Response<ClientBody> {
    let id = request_id(request.headers());
    let plan = gateway.plan();
    let path = request.uri().path();
    let route = plan.routes.find(path).ok();
    let family = sse::family_of(path, route.map_or(Family::Auto, |route| route.family));
    let origin = plan.cors.as_ref().and(request.headers().get(header::ORIGIN).cloned());
    let retried = reply::is_retry(request.headers());
    let proxied = Box::pin(proxy(&gateway, &plan, &control, peer, &id, request));
    let mut response = match catch_panic(&control, proxied).await {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => reply::refused(family, &failure, retried),
        Err(failure) => {
            tracing::error!(id, "a panic while handling a request; this request only is lost");
            reply::refused(family, &failure, retried)
        }
    };
    if let Some(cors) = &plan.cors {
        cors.decorate(origin.as_ref(), response.headers_mut());
    }
    if let Some(route) = route {
        let class = StatusClass::from(response.status().as_u16());
        // Its series is the sum over the route's upstreams.
        gateway.cells().route(route.place.targets[0].route_index).requests(class).inc();
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(reply::REQUEST_ID, id);
    }
    response
}

async fn proxy(
    gateway: &Rc<Gateway>,
    plan: &Rc<Plan>,
    control: &Rc<Control>,
    peer: IpAddr,
    id: &str,
    mut request: Request<RequestBody>,
) -> Result<Response<ClientBody>, Failure> {
    let refused = |failure| counted(gateway, failure);
    check::check(&request).map_err(refused)?;
    if let Some(answered) = plan.cors.as_ref().and_then(|cors| cors.preflight(&request)) {
        return answered.map_err(refused);
    }
    let route = plan.routes.find(request.uri().path()).map_err(refused)?;
    let identity = auth::identify(gateway, plan, route, request.headers_mut(), peer);
    let identity = identity.map_err(refused)?;
    let held = admit::admit(gateway, plan, route, &identity).map_err(refused)?;

    let client = request.version();
    let family = sse::family_of(request.uri().path(), route.family);
    let (traceparent, trace_id) = trace_context(request.headers());
    let key = sticky_key(&route.sticky, &identity, request.headers());
    let order = route.order(key, trace::random());
    control.leads_to(order.first());
    let mut life = Life::begin(Birth {
        ground: gateway.ground.clone(),
        held,
        place: route.place.clone(),
        id: id.to_owned(),
        trace_id,
        control: control.clone(),
    });
    if let Some(fault) = gateway.fault {
        fault(request.headers());
    }
    let before_body = gateway.ground.clock.now();
    let wheel = &gateway.ground.wheel;
    let (mut head, body) = request.into_parts();
    let memory = &gateway.admission.memory;
    let rules = route.body_rules(&plan.terms.config, &identity, family);
    let mut upload = match Upload::prefetch(body, &rules, wheel, memory).await {
        Ok(upload) => upload,
        Err(failure) => return Err(failed(&mut life, family, counted_body(gateway, failure))),
    };
    let after_body = gateway.ground.clock.now();
    let upload_state = upload.state();
    life.uploads(upload_state.clone());
    if let Err(failure) = admit::reserve(life.held(), &identity, &upload_state, after_body) {
        return Err(failed(&mut life, family, refused(failure)));
    }
    let slots = usage::slots(plan, &identity);
    usage::begin(&mut life, slots, route, family, &head, &upload_state);
    usage::ask(&mut life, route, family, &head, &mut upload);
    mark(&mut head.headers, id, traceparent);
    let bodiless = head.method == Method::HEAD;
    let deadline = admit::deadline(route, &head.headers, life.started());
    let bounds = Bounds { deadline, ..bounds(gateway, route, family) };
    let outgoing = Box::new(Outgoing {
        identity: life.usage().is_some() || may_stream(&head.headers, &upload_state),
        method: head.method,
        uri: head.uri,
        literal_prefix: route.literal_prefix.clone(),
        headers: head.headers,
    });
    let own_time = gateway.ground.clock.now().since(life.started());
    gateway.cells().overhead.observe(own_time.saturating_sub(after_body.since(before_body)));
    let more = life.held().more().cloned();
    let traveller = Traveller { control: control.clone(), identity, deadline, more };
    let forward = Forward::new(gateway, plan, route, traveller, bounds);
    let sending: Sending = Box::pin(forward.ask(order, outgoing, upload));

    let exchange = Exchange { gateway, plan, control, route, family, client, bodiless };
    let headed = exchange.await_head(sending, &upload_state, &life).await;
    usage::model(&mut life, slots, &upload_state);
    upload_state.forget();
    match headed {
        Ok(Head::Answered(answer)) => exchange.relay(answer, life).await,
        Ok(Head::Promised(sending)) => Ok(exchange.promise(sending, life)),
        Err(failure) => Err(failed(&mut life, family, counted_body(gateway, failure))),
    }
}

/// Counts a refusal.
fn counted(gateway: &Gateway, failure: Failure) -> Failure {
    if let Some(rejection) = reply::rejection(failure.kind) {
        gateway.cells().rejections(rejection).inc();
    }
    failure
}

/// Counts what went wrong with a request's body, if it was that.
fn counted_body(gateway: &Gateway, failure: Failure) -> Failure {
    let rejection = match failure.kind {
        Kind::BadRequest | Kind::BodySlow | Kind::BodyTooLarge => Rejection::Body,
        Kind::Limited(Limit::Memory) => Rejection::Memory,
        _ => return failure,
    };
    gateway.cells().rejections(rejection).inc();
    failure
}

/// What one request's last steps share.
struct Exchange<'a> {
    gateway: &'a Rc<Gateway>,
    plan: &'a Plan,
    control: &'a Rc<Control>,
    route: &'a Route,
    family: Family,
    client: Version,
    /// The answer has no body whatever its head says: it is to a HEAD.
    bodiless: bool,
}

/// How the wait for the upstream's head came out.
#[allow(clippy::large_enum_variant, reason = "made and taken apart within one step")]
enum Head {
    Answered(Answer),
    /// `commit_after` came first: the client gets its 200 now.
    Promised(Sending),
}

impl Exchange<'_> {
    fn commit_at(&self, life: &Life) -> Option<Tick> {
        let started = Tick(life.started().ticks());
        self.plan.commit_after.map(|wait| started.after(wait))
    }

    /// Waits for the upstream's head; until `commit_after` if the body asked for a stream.
    async fn await_head(
        &self,
        mut sending: Sending,
        upload: &Rc<UploadState>,
        life: &Life,
    ) -> Result<Head, Failure> {
        let ground = &self.gateway.ground;
        let timer = ground.wheel.timer();
        let first_byte = self.route.place.rules.first_byte;
        let commit_at = self.commit_at(life);
        let answered = std::future::poll_fn(|cx| {
            if let Poll::Ready(answered) = sending.as_mut().poll(cx) {
                return Poll::Ready(answered.map(Some));
            }
            let now = ground.wheel.now();
            let limit = life.asked().after(first_byte);
            if ground.cutting.get() {
                let text = "the gateway shuts down; server.drain_deadline has passed";
                return Poll::Ready(Err(Failure::new(Kind::Draining, text)));
            }
            if now >= limit {
                let text = format!("no response head within stream.first_byte = {first_byte:?}");
                return Poll::Ready(Err(Failure::new(Kind::FirstByte, text)));
            }
            // A body still on its way may yet say that it wants a stream.
            let commit_at = commit_at.filter(|_| upload.found(|f| f.stream) == Some(true));
            if commit_at.is_some_and(|at| now >= at) {
                return Poll::Ready(Ok(None));
            }
            let due = commit_at.map_or(limit, |at| at.min(limit));
            timer.set(due, cx.waker());
            Poll::Pending
        })
        .await?;
        Ok(answered.map_or_else(|| Head::Promised(sending), Head::Answered))
    }

    /// Passes the upstream's answer on: an event stream event by event, anything else as it is.
    async fn relay(&self, answer: Answer, mut life: Life) -> Result<Response<ClientBody>, Failure> {
        let Answer { head, body } = answer;
        let request_id = head.headers.get(X_REQUEST_ID).and_then(|v| v.to_str().ok());
        life.answered(head.status.as_u16(), request_id);
        if head.status.is_client_error() || head.status.is_server_error() {
            life.nothing_used();
        }
        if let Some(usage) = life.usage().filter(|_| head::is_encoded(&head.headers)) {
            usage.unreadable();
        }
        let commit_at = self.commit_at(&life);
        let bodiless = self.bodiless || head::is_bodiless(head.status);
        if bodiless || !is_tracked(&head) {
            let mut source = Source::Body(body);
            if bodiless {
                // Nobody will ask for a body even once.
                source.settle();
            }
            let stream = Stream::opaque(source, life);
            let head = reply::passed_on(head);
            return Ok(reply::streamed(head, self.client, stream, self.control));
        }
        let source = Source::Body(body);
        let mut stream = Stream::events(self.family, source, life);
        if let Err(failure) = std::future::poll_fn(|cx| stream.poll_prime(cx, commit_at)).await {
            return Err(failed(stream.life(), self.family, failure));
        }
        self.path(stream.life());
        let head = reply::event_stream_head(Some(head));
        Ok(reply::streamed(head, self.client, stream, self.control))
    }

    /// How HTTP/1 clients get their streams is decided where their connection is.
    fn path(&self, life: &Life) {
        if self.client == Version::HTTP_2 {
            life.takes(Path::Http2);
        }
    }

    /// Commits a 200 before the upstream's head is there, so that heartbeats can start.
    fn promise(&self, sending: Sending, mut life: Life) -> Response<ClientBody> {
        life.answered(200, None);
        let source = Source::Awaiting(Box::pin(kept(sending)));
        let mut stream = Stream::events(self.family, source, life);
        self.path(stream.life());
        reply::streamed(reply::event_stream_head(None), self.client, stream, self.control)
    }
}

/// A promised stream: anything but an event stream is an error inside it now.
async fn kept(sending: Sending) -> Result<Download, Failure> {
    let Answer { head, mut body } = sending.await?;
    if is_tracked(&head) {
        return Ok(body);
    }
    let mut said = Vec::new();
    let mut scratch = vec![0; limits::ERROR_BODY];
    while said.len() < limits::ERROR_BODY {
        match std::future::poll_fn(|cx| body.poll_data(cx, &mut scratch)).await {
            Some(Ok(data)) => said.extend_from_slice(data.bytes(&scratch)),
            Some(Err(_)) | None => break,
        }
    }
    let status = head.status.as_u16();
    let text = format!("the upstream answered {status} without an event stream");
    Err(Failure::new(Kind::UpstreamStatus(status), text).with_upstream_error(said.into()))
}

/// Records why a request got no stream.
fn failed(life: &mut Life, family: Family, failure: Failure) -> Failure {
    let status = reply::refused(family, &failure, false).status().as_u16();
    life.answered(status, None);
    life.failed(failure.kind);
    failure
}

/// Whether an answer is a stream of events to be followed.
fn is_tracked(head: &http::response::Parts) -> bool {
    let tracked = head::is_tracked(head);
    if !tracked && head.status.is_success() && head::is_event_stream(&head.headers) {
        tracing::warn!("an encoded event stream passes untracked, without heartbeats");
    }
    tracked
}

/// What every attempt at a route goes by.
fn bounds(gateway: &Gateway, route: &Route, family: Family) -> Bounds {
    Bounds {
        clock: gateway.ground.clock.clone(),
        wheel: gateway.ground.wheel.clone(),
        first_byte: route.place.rules.first_byte,
        deadline: None,
        safe: route.repeatable,
        others: false,
        key: None,
        family,
        max_event: route.place.rules.max_event,
    }
}

/// Whether the answer may be an event stream, which must come uncompressed.
fn may_stream(headers: &HeaderMap, upload: &UploadState) -> bool {
    let accepts = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|accept| memchr::memmem::find(accept.as_bytes(), b"text/event-stream").is_some());
    let asked = upload.found(|found| found.stream);
    accepts || asked == Some(true) || (asked.is_none() && !upload.received())
}

/// The client's own id if it is fit to be taken over, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(X_REQUEST_ID).filter(|id| head::request_id_ok(id));
    own.and_then(|id| id.to_str().ok()).map_or_else(trace::new_request_id, str::to_owned)
}

/// Names the request to the upstream.
fn mark(headers: &mut HeaderMap, id: &str, traceparent: HeaderValue) {
    headers.insert(TRACEPARENT, traceparent);
    if !headers.get(X_REQUEST_ID).is_some_and(head::request_id_ok) {
        headers.insert(X_REQUEST_ID, HeaderValue::from_str(id).expect("visible ASCII"));
    }
}

/// The client's trace context passed on untouched if valid, else a new one; and its trace id.
fn trace_context(headers: &HeaderMap) -> (HeaderValue, Option<u128>) {
    let Some(value) = headers.get(TRACEPARENT).filter(|v| head::traceparent_ok(v)).cloned() else {
        let (text, id) = trace::new_traceparent();
        return (HeaderValue::try_from(text).expect("hex digits and dashes"), Some(id));
    };
    let id = value.to_str().ok().and_then(trace::trace_id);
    let id = id.and_then(|digits| u128::from_str_radix(digits, 16).ok());
    (value, id)
}

/// Runs `request`; a panic in it becomes an `Internal` failure and is its life's end reason.
async fn catch_panic<F: Future>(
    control: &Control,
    mut request: Pin<Box<F>>,
) -> Result<F::Output, Failure> {
    std::future::poll_fn(|cx| {
        let step = AssertUnwindSafe(|| request.as_mut().poll(cx));
        match std::panic::catch_unwind(step) {
            Ok(polled) => polled.map(Ok),
            Err(_) => {
                control.end(Reason::Internal);
                let text = "the gateway failed on this request; its log has the cause";
                Poll::Ready(Err(Failure::new(Kind::Internal, text)))
            }
        }
    })
    .await
}
