//! Whether one more request may run now: shares and rates at once, then its tokens, then its
//! upstream's queue.
//!
//! Whoever had its own share is told so first (429); that the gateway has no room (503) is said
//! only to those who had not. A refusal gives back what the checks before it took.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName};

use crate::admission::Admission;
use crate::admission::addresses::Refused;
use crate::admission::bulkhead::{Bulkhead, Claim, Class, Entry};
use crate::admission::held::{Held, More};
use crate::admission::permit::{Permit, Permits};
use crate::admission::tenant::Tenant;
use crate::clock::Moment;
use crate::error::{Failure, Kind, Limit, Quota};
use crate::gateway::Gateway;
use crate::gateway::auth::Identity;
use crate::gateway::plan::Plan;
use crate::gateway::route::Route;
use crate::limits;
use crate::stream::ground::Ground;
use crate::upstream::upload::UploadState;

/// Deadlines that OpenAI's SDKs tell, seconds: the first for the next bytes, the second for the whole
/// request.
const DEADLINES: [HeaderName; 2] = [
    HeaderName::from_static("x-stainless-read-timeout"),
    HeaderName::from_static("x-stainless-timeout"),
];
/// Places come back when streams end, and nobody knows when that is.
const PLACE_WAIT: Duration = Duration::from_secs(1);
/// What an answer may take of a tenant's tokens when its request does not bound it.
const ANSWER_TOKENS: u64 = 1024;
/// Bytes of a request per token, about: English is at four to five, code and other scripts below.
const BYTES_PER_TOKEN: u64 = 4;

/// What the request takes of its address's, its tenant's and the process's shares.
///
/// # Errors
/// `Draining`, or `Limited` by memory, streams or a rate.
pub fn admit(
    gateway: &Gateway,
    plan: &Plan,
    route: &Route,
    identity: &Identity,
) -> Result<Held, Failure> {
    if gateway.ground.draining.get() {
        let text = "the gateway shuts down; try again, another instance will answer";
        return Err(Failure::new(Kind::Draining, text));
    }
    let (admission, bounds) = (&gateway.admission, &plan.terms.config.limits);
    if !admission.memory.admits() {
        let max = admission.memory.max();
        let text = format!(
            "limits.memory = {max} bytes is nearly used up by request bodies and clients that lag"
        );
        return Err(Failure::limited(Limit::Memory, limits::MEMORY_WAIT, text));
    }
    let now = gateway.ground.clock.now();
    let mut more = More::default();
    if let Some(per_ip) = &bounds.per_ip {
        let address = &admission.addresses;
        let taken = address.admit(identity.address, per_ip.streams, per_ip.new_per_second, now);
        more.address = Some(taken.map_err(of_address)?);
    }
    let tenant = identity.tenant.as_deref();
    let streams = match of_tenant_and_process(admission, tenant, &mut more, now) {
        Ok(streams) => streams,
        Err(failure) => {
            if let Some(address) = more.address {
                address.give_back(bounds.per_ip.as_ref().and_then(|per_ip| per_ip.new_per_second));
            }
            return Err(failure);
        }
    };
    let queued = route.upstreams.iter().any(|one| plan.terms.bulkhead(*one).is_some());
    let tokens = tenant.is_some_and(|tenant| !tenant.tokens.is_empty());
    let counted = more.address.is_some() || more.tenant.is_some() || queued || tokens;
    Ok(Held::new(streams, counted.then_some(more)))
}

/// Takes the tenant's share into `more`, and the place among all streams.
fn of_tenant_and_process(
    admission: &Admission,
    tenant: Option<&Tenant>,
    more: &mut More,
    now: Moment,
) -> Result<Permit, Failure> {
    if let Some(places) = tenant.and_then(|tenant| tenant.streams.as_ref()) {
        more.tenant = Some(place(places, Limit::TenantStreams, "its tenant's `streams`")?);
    }
    let rate = tenant.and_then(|tenant| tenant.rate.as_ref());
    if let Some(rate) = rate {
        rate.take(now).map_err(|wait| {
            let size = rate.limit();
            let text = format!("its tenant's `new_per_second` = {size} is used up");
            with_requests(Failure::limited(Limit::TenantRate, wait, text), size.into(), 0)
        })?;
    }
    let streams = place(&admission.streams, Limit::Streams, "limits.streams").and_then(|streams| {
        admission.rate.take(now).map_err(|wait| {
            let size = admission.rate.limit();
            let text = format!("limits.new_streams_per_second = {size} is used up");
            Failure::limited(Limit::Rate, wait, text)
        })?;
        Ok(streams)
    });
    if streams.is_err()
        && let Some(rate) = rate
    {
        rate.give_back();
    }
    streams
}

fn place(places: &Arc<Permits>, limit: Limit, name: &str) -> Result<Permit, Failure> {
    places.take().ok_or_else(|| {
        let max = places.max();
        let text = format!("{name} = {max} requests are running; try later");
        with_requests(Failure::limited(limit, PLACE_WAIT, text), max as u64, 0)
    })
}

fn of_address(refused: Refused) -> Failure {
    match refused {
        Refused::Addresses { max } => {
            let text = format!("requests of {max} client addresses are running; try later");
            Failure::limited(Limit::Addresses, PLACE_WAIT, text)
        }
        Refused::Streams { max } => {
            let text =
                format!("limits.per_ip.streams = {max} requests of this address are running");
            with_requests(Failure::limited(Limit::IpStreams, PLACE_WAIT, text), max as u64, 0)
        }
        Refused::Rate { max, wait } => {
            let text = format!("limits.per_ip.new_per_second = {max} is used up");
            with_requests(Failure::limited(Limit::IpRate, wait, text), max.into(), 0)
        }
    }
}

fn with_requests(mut failure: Failure, size: u64, left: u64) -> Failure {
    if let Some(quota) = &mut failure.quota {
        **quota = Quota { requests: Some((size, left)), ..**quota };
    }
    failure
}

/// Reserves tokens for a request whose body is as far known as `upload` is.
///
/// # Errors
/// `Limited` by the tenant's tokens.
pub fn reserve(
    held: &Held,
    identity: &Identity,
    upload: &UploadState,
    now: Moment,
) -> Result<(), Failure> {
    let tenant = identity.tenant.as_ref().filter(|tenant| !tenant.tokens.is_empty());
    let (Some(tenant), Some(more)) = (tenant, held.more()) else { return Ok(()) };
    let (model, answer) = upload.found(|found| (found.model.clone(), found.max_tokens));
    let Some(tokens) = tenant.tokens_of(model.as_deref()) else { return Ok(()) };
    let asked = upload.bytes().div_ceil(BYTES_PER_TOKEN);
    let estimate = asked.saturating_add(answer.unwrap_or(ANSWER_TOKENS));
    let reserved = tokens.reserve(estimate, now).map_err(|wait| {
        let (size, left) = (u64::from(tokens.limit()), u64::from(tokens.remaining(now)));
        let text = format!("its tenant's tokens_per_minute = {size} for this model are used up");
        let mut failure = Failure::limited(Limit::TenantTokens, wait, text);
        if let Some(quota) = &mut failure.quota {
            quota.tokens = Some((size, left));
        }
        failure
    })?;
    more.reserved(reserved);
    Ok(())
}

/// When the client of a request stops waiting: as its headers or its route tell, the earlier, counted
/// from when it `came`.
pub fn deadline(route: &Route, headers: &HeaderMap, came: Moment) -> Option<Moment> {
    let told = DEADLINES.into_iter().filter_map(|name| {
        let seconds: f64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    });
    told.chain(route.timeout).min().map(|wait| came.after(wait))
}

/// A request that needs a place at an upstream of which `max_streams` is limited.
pub struct Waiting<'a> {
    /// The worker's.
    pub ground: &'a Ground,
    /// The upstream's place in the metrics.
    pub upstream: usize,
    /// What gives the places.
    pub bulkhead: &'a Arc<Bulkhead>,
    /// Who asks.
    pub identity: &'a Identity,
    /// The upstream's `queue_wait`.
    pub queue_wait: Duration,
    /// When the client stops waiting.
    pub deadline: Option<Moment>,
    /// Where the place is kept.
    pub more: &'a More,
    /// The request's body.
    pub upload: &'a UploadState,
}

impl Waiting<'_> {
    /// Waits for a place at the upstream. It is kept with what else the request has taken.
    ///
    /// # Errors
    /// `Limited` by the queue's length or by time.
    pub async fn enter(self) -> Result<(), Failure> {
        let mut ticket = match self.bulkhead.enter(self.claim()) {
            Entry::Slot(slot) => {
                self.more.slot.set(Some(slot));
                return Ok(());
            }
            Entry::Full => return Err(self.full()),
            Entry::Wait(ticket) => ticket,
        };
        let (ground, queue_wait) = (self.ground, self.queue_wait);
        let (began, cells) = (ground.clock.now(), ground.cells.upstream(self.upstream));
        let left = self.deadline.map(|deadline| deadline.since(began));
        let wait = left.map_or(queue_wait, |left| left.min(queue_wait));
        // An upstream that was not asked yet cannot be late.
        self.upload.asked_at(ground.wheel.now().after(wait));
        cells.queue_depth.add(1);
        // A client that leaves drops all this: its request has not reached the upstream then.
        let unsent = Left(|| self.more.cancel());
        let left = Left(|| cells.queue_depth.sub(1));
        let granted = ground.wheel.timeout(wait, std::future::poll_fn(|cx| ticket.poll(cx))).await;
        drop(left);
        std::mem::forget(unsent);
        cells.queue_wait.observe(ground.clock.now().since(began));
        match granted {
            Ok(Ok(slot)) => {
                self.upload.asked_at(ground.wheel.now());
                self.more.slot.set(Some(slot));
                Ok(())
            }
            Ok(Err(_evicted)) => Err(self.full()),
            Err(_) if wait < queue_wait => {
                let text = "no place at the upstream came free before the client's deadline";
                Err(Failure::limited(Limit::Deadline, queue_wait, text))
            }
            Err(_) => {
                let text =
                    format!("no place at the upstream came free within {wait:?} (queue_wait)");
                Err(Failure::limited(Limit::QueueWait, queue_wait, text))
            }
        }
    }

    fn claim(&self) -> Claim {
        let tenant = self.identity.tenant.as_ref();
        Claim {
            tenant: tenant.map_or(0, |tenant| tenant.id),
            weight: tenant.map_or(1, |tenant| tenant.weight),
            class: tenant.map_or(Class::Interactive, |tenant| tenant.class),
        }
    }

    fn full(&self) -> Failure {
        let text = "the upstream's `max_streams` and `queue` are both full; try later";
        Failure::limited(Limit::QueueFull, self.queue_wait, text)
    }
}

/// Does something when it is dropped, also with the future that holds it.
struct Left<F: Fn()>(F);

impl<F: Fn()> Drop for Left<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
