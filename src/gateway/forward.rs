//! To which of its route's upstreams a request goes, one after another, until one has its answer.
//!
//! Which comes first is the configured order, or drawn by lot ([`Route::order`]). The next one is
//! asked when it comes to nothing: its queue is full or too slow, no endpoint of it may be asked or
//! can be reached, or its answer is one that its own `retry` names, as often as that allows. Each
//! upstream has its own retries, breakers, keys and queue; the client's deadline is one.
//!
//! Invariant: an upstream is asked only when the one before has let go of the request, its slot in
//! the queue included, and none is asked twice.

use std::rc::Rc;

use http::HeaderMap;

use crate::admission::held::More;
use crate::clock::Moment;
use crate::config::Sticky;
use crate::error::{Failure, Kind};
use crate::gateway::Gateway;
use crate::gateway::admit::Waiting;
use crate::gateway::auth::Identity;
use crate::gateway::plan::Plan;
use crate::gateway::route::{Order, Route};
use crate::stream::control::Control;
use crate::stream::life::Place;
use crate::telemetry::cells::RetryReason;
use crate::upstream::attempts::{self, Bounds, Outcome};
use crate::upstream::balance::key_of;
use crate::upstream::send::{Answer, Outgoing};
use crate::upstream::upload::{Upload, UploadState};

/// What a request brings on its way.
pub struct Traveller {
    /// Its line to its client's connection.
    pub control: Rc<Control>,
    /// Who sent it.
    pub identity: Identity,
    /// When its client stops waiting, if that is known.
    pub deadline: Option<Moment>,
    /// Where its slots are kept.
    pub more: Option<Rc<More>>,
}

/// One request's way.
pub struct Forward {
    gateway: Rc<Gateway>,
    plan: Rc<Plan>,
    place: Rc<Place>,
    upstreams: Rc<[usize]>,
    traveller: Traveller,
    bounds: Bounds,
    /// Attempts made at the upstreams before.
    made: u32,
}

impl Forward {
    /// The way on `route`.
    pub fn new(
        gateway: &Rc<Gateway>,
        plan: &Rc<Plan>,
        route: &Route,
        traveller: Traveller,
        bounds: Bounds,
    ) -> Forward {
        let (place, upstreams) = (route.place.clone(), route.upstreams.clone());
        let (gateway, plan) = (gateway.clone(), plan.clone());
        Forward { gateway, plan, place, upstreams, traveller, bounds, made: 0 }
    }

    /// Asks the upstreams in `order`.
    ///
    /// # Errors
    /// That of the one that was asked last.
    pub async fn ask(
        mut self,
        order: Order,
        outgoing: Box<Outgoing>,
        upload: Upload,
    ) -> Result<Answer, Failure> {
        let (state, mut body) = (upload.state(), Box::new(upload));
        let (last, before) = order.last_and_before();
        self.bounds.others = true;
        for target in before {
            let outcome = self.ask_one(target, outgoing.clone(), body, &state).await;
            let Some(whole) = outcome.body else { return outcome.answer };
            body = whole;
            self.made += outcome.attempts;
            if let Some(more) = &self.traveller.more {
                more.slot.take();
            }
            let ground = &self.gateway.ground;
            let left = self.place.targets[target].upstream_index;
            ground.cells.upstream(left).retries(RetryReason::Fallback).inc();
            state.restarted(ground.wheel.now());
        }
        self.bounds.others = false;
        let answer = self.ask_one(last, outgoing, body, &state).await.answer;
        answer.inspect_err(|failure| {
            if let Kind::Limited(limit) = failure.kind
                && limit.of_queue()
            {
                self.gateway.cells().rejections(limit.into()).inc();
            }
        })
    }

    /// Asks one of them, once there is a place.
    async fn ask_one(
        &mut self,
        target: usize,
        outgoing: Box<Outgoing>,
        body: Box<Upload>,
        state: &UploadState,
    ) -> Outcome {
        let Traveller { control, identity, deadline, more } = &self.traveller;
        let ground = &self.gateway.ground;
        self.place.moves(control, &ground.cells, target);
        let upstream = &self.plan.upstreams[self.upstreams[target]];
        if let Some(more) = more
            && let Some(bulkhead) = self.plan.terms.bulkhead(self.upstreams[target])
        {
            let waiting = Waiting {
                ground,
                upstream: self.place.targets[target].upstream_index,
                bulkhead,
                identity,
                queue_wait: upstream.config.queue_wait,
                deadline: *deadline,
                more,
                upload: state,
            };
            if let Err(failure) = waiting.enter().await {
                return Outcome { answer: Err(failure), body: Some(body), attempts: 0 };
            }
        }
        self.bounds.key = sticky_key(&upstream.config.sticky, identity, &outgoing.headers);
        let began = |n| control.attempt(self.made + n);
        attempts::answer(upstream, outgoing, body, &self.bounds, began).await
    }
}

/// What a request has in common with those that should go where it goes.
pub fn sticky_key(sticky: &Sticky, identity: &Identity, headers: &HeaderMap) -> Option<u64> {
    match sticky {
        Sticky::Off => None,
        // By name: an id is another one after a restart.
        Sticky::Tenant => Some(key_of(identity.tenant.as_ref()?.name.as_bytes())),
        Sticky::Header(name) => Some(key_of(headers.get(name)?.as_bytes())),
    }
}
