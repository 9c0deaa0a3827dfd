//! Driving hyper's HTTP/1.1 server for one client.
//!
//! After each step of hyper the connection looks at what hyper does not know: a fault the guard
//! has found, a response that wants to be cut, a client that takes nothing, an idle or half-sent
//! head, a drain.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;

use crate::error::{Failure, Kind};
use crate::gateway::handle::handle;
use crate::gateway::{Gateway, reply};
use crate::limits;
use crate::server::connection::Seat;
use crate::server::handoff::{self, Asked, Offer, Slot};
use crate::server::io::{ClientIo, Inbound};
use crate::server::worker::Floor;
use crate::stream::body::ClientBody;
use crate::stream::control::{Control, Cut, IoState};
use crate::telemetry::cells::Rejection;
use crate::telemetry::trace;
use crate::upstream::upload::RequestBody;
use crate::wire::guard::Fault;
use crate::wire::wheel::{Tick, Timer};

/// hyper's smallest buffer: its limit is one for both directions, so a head that the guard lets
/// through must fit, or hyper refuses it in its own words.
const HYPER_BUFFER_MIN: usize = limits::CLIENT_HEAD_BYTES + 8 * 1024;

/// Why hyper's part is over.
enum Verdict {
    /// hyper ended it.
    Done,
    /// hyper refused a request by itself, in its own words: what the guard does not judge.
    Refused(Rejection),
    /// A response has to end uncleanly.
    Cut(Cut),
    /// A response is to stream outside of hyper.
    HandOff(Offer),
    /// The next request must not reach hyper.
    Refuse(Fault),
    /// A request head did not come to its end.
    HeadSlow,
    /// No request came, or the client took nothing.
    Expired,
}

/// Serves `io` until it is closed, or until a response streams.
pub async fn serve(mut io: ClientIo, seat: Seat, floor: Rc<Floor>) {
    let gateway = floor.gateway.clone();
    let Some(peer) = io.peer() else { return };
    let (inbound, state) = (io.inbound(), io.state());
    let current: Rc<RefCell<Weak<Control>>> = Rc::default();
    let slot: Rc<Slot> = Rc::default();
    let service = {
        let (gateway, current, state) = (gateway.clone(), current.clone(), state.clone());
        let (slot, inbound) = (slot.clone(), inbound.clone());
        service_fn(move |request: Request<Incoming>| {
            inbound.taken();
            let ground = &gateway.ground;
            let patience = gateway.plan().patience;
            let control = Control::new(state.clone(), ground, patience);
            *current.borrow_mut() = Rc::downgrade(&control);
            let asked = Asked::of(request.version(), request.headers());
            let (gateway, slot, state) = (gateway.clone(), slot.clone(), state.clone());
            let request = request.map(RequestBody::H1);
            async move {
                let no_relay = gateway.no_relay;
                let response = handle(gateway, control, peer, request).await;
                if no_relay {
                    return Ok(response);
                }
                match handoff::park(&slot, asked, &state, response) {
                    Ok(()) => std::future::pending().await,
                    Err(response) => Ok::<_, Infallible>(*response),
                }
            }
        })
    };
    let mut hyper = Builder::new()
        .max_buf_size((gateway.plan().patience.backlog as usize).max(HYPER_BUFFER_MIN))
        .serve_connection(TokioIo::new(io), service);
    let now = gateway.ground.wheel.now();
    let timer = gateway.ground.wheel.timer();
    let (idle_since, told, nudged) = (now, false, false);
    let mut watch =
        Watch { gateway, inbound, state, current, slot, timer, idle_since, told, nudged };
    let verdict = std::future::poll_fn(|cx| watch.step(&mut hyper, cx)).await;
    let cells = watch.gateway.cells().clone();
    // Only now may hyper's part go: its fall settles the request it was busy with.
    let (io, read) = match verdict {
        Verdict::Done => return,
        Verdict::Refused(limit) => return cells.rejections(limit).inc(),
        _ => {
            let parts = hyper.into_parts();
            (parts.io.into_inner(), parts.read_buf)
        }
    };
    match verdict {
        Verdict::Done | Verdict::Refused(_) => {}
        Verdict::HandOff(offer) => handoff::start(offer, io, read, seat, floor),
        Verdict::Cut(Cut::Close) => io.close().await,
        Verdict::Cut(Cut::Reset) => io.reset(),
        Verdict::Expired => {}
        Verdict::Refuse(fault) => {
            let head = fault.status() == 431;
            let (kind, limit) = match head {
                true => (Kind::HeadTooLarge, Rejection::Head),
                false => (Kind::BadRequest, Rejection::BadRequest),
            };
            cells.rejections(limit).inc();
            refuse(io, fault.status(), &Failure::new(kind, fault.to_string())).await;
        }
        Verdict::HeadSlow => {
            cells.rejections(Rejection::Head).inc();
            let text = format!("the request head took over {} s", limits::CLIENT_HEAD.as_secs());
            refuse(io, 408, &Failure::new(Kind::HeadSlow, text)).await;
        }
    }
}

async fn refuse(io: ClientIo, status: u16, failure: &Failure) {
    let raw = reply::refused_raw(status, failure, &trace::new_request_id());
    io.say_and_close(&raw).await;
}

struct Watch {
    gateway: Rc<Gateway>,
    inbound: Rc<Inbound>,
    state: Rc<IoState>,
    current: Rc<RefCell<Weak<Control>>>,
    slot: Rc<Slot>,
    timer: Timer,
    idle_since: Tick,
    told: bool,
    /// hyper was polled once more for the request that waits.
    nudged: bool,
}

impl Watch {
    fn step<S>(
        &mut self,
        hyper: &mut Connection<TokioIo<ClientIo>, S>,
        cx: &mut Context<'_>,
    ) -> Poll<Verdict>
    where
        S: HttpService<Incoming, ResBody = ClientBody>,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let ground = &self.gateway.ground;
        if self.gateway.ground.draining.get() && !self.told {
            self.told = true;
            Pin::new(&mut *hyper).graceful_shutdown();
        }
        if let Poll::Ready(ended) = Pin::new(&mut *hyper).poll(cx) {
            if let Err(error) = ended {
                tracing::debug!(%error, "a client's HTTP/1.1 connection ended");
                if error.is_parse_too_large() {
                    return Poll::Ready(Verdict::Refused(Rejection::Head));
                }
                if error.is_parse() {
                    return Poll::Ready(Verdict::Refused(Rejection::BadRequest));
                }
            }
            return Poll::Ready(Verdict::Done);
        }
        if let Some(offer) = handoff::take(&self.slot, &self.state) {
            return Poll::Ready(Verdict::HandOff(offer));
        }
        let now = ground.wheel.now();
        let control = self.current.borrow().upgrade();
        if let Some(control) = control {
            self.idle_since = now;
            self.nudged = false;
            // Armed all the same: a drain wakes whoever has a timer.
            let mut due = now.after(limits::CLIENT_IDLE);
            if self.inbound.in_body() {
                // Turns for other reasons do not put it off.
                let look = now.after(limits::LEFT_LOOK);
                match self.timer.due().filter(|due| *due <= look) {
                    Some(armed) if armed > now => due = armed,
                    Some(_) => {
                        self.inbound.ask();
                        cx.waker().wake_by_ref();
                        due = look;
                    }
                    None => due = look,
                }
            }
            self.timer.set(due, cx.waker());
            return control.poll_cut(cx).map(Verdict::Cut);
        }
        let blocked = self.state.blocked_since();
        if self.inbound.waiting() > 0 && blocked.is_none() && !self.nudged {
            // hyper 1.12 can end its turn with a pipelined request in its buffer when the answer
            // before was flushed late, and nothing would wake it.
            self.nudged = true;
            cx.waker().wake_by_ref();
        }
        if let Some(since) = blocked {
            let stalled = since.after(self.gateway.plan().patience.client_stall);
            if now >= stalled {
                return Poll::Ready(Verdict::Cut(Cut::Reset));
            }
            self.timer.set(stalled, cx.waker());
            return Poll::Pending;
        }
        if let Some(fault) = self.inbound.fault() {
            return Poll::Ready(Verdict::Refuse(fault));
        }
        let (due, verdict) = match self.inbound.head_since() {
            Some(since) => (since.after(limits::CLIENT_HEAD), Verdict::HeadSlow),
            None => (self.idle_since.after(limits::CLIENT_IDLE), Verdict::Expired),
        };
        if now >= due {
            return Poll::Ready(verdict);
        }
        self.timer.set(due, cx.waker());
        Poll::Pending
    }
}
