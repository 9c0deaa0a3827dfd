//! What happens to one request, from its head to the body of its answer.
//!
//! [`handle`] is the whole way on one screen; [`check`], [`route`], [`auth`], [`admit`], [`usage`],
//! [`forward`] and [`reply`] are its steps, [`plan`] what the configuration means to it. One [`Gateway`]
//! per worker.

pub mod admit;
pub mod auth;
pub mod check;
pub mod cors;
pub mod forward;
pub mod handle;
pub mod plan;
pub mod reply;
pub mod route;
pub mod terms;
pub mod usage;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::admission::Admission;
use crate::clock::Clock;
use crate::gateway::plan::Plan;
use crate::gateway::terms::Terms;
use crate::stream::ground::{Ground, Scratch};
use crate::stream::life::Live;
use crate::telemetry::cells::Cells;
use crate::upstream::leaks;
use crate::wire::wheel::Wheel;

/// What a worker needs to serve requests.
pub struct Gateway {
    /// Time, wheel and metrics.
    pub ground: Rc<Ground>,
    plan: RefCell<Rc<Plan>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) fault: Option<FaultHook>,
    /// Every response is left to the HTTP library.
    pub no_relay: bool,
}

/// Called with each request's head before it is sent on; tests make it panic.
pub type FaultHook = fn(&http::HeaderMap);

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// What the process has to give.
    pub admission: Arc<Admission>,
    /// What the configuration at the start means.
    pub terms: Arc<Terms>,
    /// See [`FaultHook`].
    pub fault: Option<FaultHook>,
    /// Every response is left to the HTTP library.
    pub no_relay: bool,
}

impl Gateway {
    /// A worker's gateway over what all share.
    pub fn new(shared: &Shared, clock: &Clock, wheel: &Wheel, cells: &Arc<Cells>) -> Rc<Gateway> {
        let files = &shared.admission.files;
        let plan = Plan::new(&shared.terms, None, files, clock, cells);
        let gateway = Rc::new(Gateway {
            ground: Rc::new(Ground {
                clock: clock.clone(),
                wheel: wheel.clone(),
                cells: cells.clone(),
                memory: shared.admission.memory.clone(),
                live: Live::default(),
                drains: shared.admission.drains.clone(),
                draining: Cell::new(false),
                cutting: Rc::default(),
                scratch: Scratch::default(),
            }),
            plan: RefCell::new(plan),
            admission: shared.admission.clone(),
            fault: shared.fault,
            no_relay: shared.no_relay,
        });
        gateway.warm();
        gateway
    }

    /// What the configuration in force means; who keeps it goes on as it began.
    pub fn plan(&self) -> Rc<Plan> {
        self.plan.borrow().clone()
    }

    /// New requests go by `terms` from now on.
    pub fn adopt(&self, terms: &Arc<Terms>) {
        let before = self.plan();
        let plan = Plan::new(
            terms,
            Some(&before),
            &self.admission.files,
            &self.ground.clock,
            &self.ground.cells,
        );
        self.plan.replace(plan.clone());
        before.retire(&plan);
        self.warm();
    }

    /// The worker's metrics.
    pub fn cells(&self) -> &Arc<Cells> {
        &self.ground.cells
    }

    /// Looks after the upstream connections: closes what was idle for too long or is too old, opens what
    /// is to be there in advance, and counts what was never given back. Called every few seconds.
    pub fn look_after_pools(&self) {
        self.plan().upstreams.iter().for_each(|upstream| upstream.close_idle());
        self.warm();
        self.look_for_leaks();
    }

    fn warm(&self) {
        if !self.ground.draining.get() {
            self.plan().upstreams.iter().for_each(|upstream| upstream.warm());
        }
    }

    /// Gives up upstream connections for which other workers wait; called once a tick.
    pub fn make_room(&self) {
        self.plan.borrow().upstreams.iter().for_each(|upstream| upstream.make_room());
    }

    /// Counts upstream connections that no stream can have any more and that were not given back.
    pub fn look_for_leaks(&self) {
        let cells = self.cells();
        let mut streams = vec![0; cells.upstreams().count()];
        self.ground.live.for_each(|row| streams[row.target().upstream_index] += 1);
        for (slot, (cells, streams)) in cells.upstreams().zip(streams).enumerate() {
            let leaks = leaks::look(cells, streams);
            if leaks > 0 {
                let plan = self.plan();
                let upstream = plan.upstreams.iter().find(|upstream| upstream.slot() == slot);
                let upstream = upstream.map_or("a removed one", |up| up.config.name.as_str());
                let text = "connections were kept for longer than their streams: report this bug";
                tracing::error!(upstream, leaks, "{text}");
            }
        }
    }

    /// Ends the streams of the largest backlogs until the process is within its memory budget again;
    /// to be called once a tick.
    pub fn shed(&self) {
        let memory = &self.admission.memory;
        if memory.excess() == 0 {
            return;
        }
        let mut lagging = Vec::new();
        self.ground.live.for_each(|row| lagging.push((row.control.charged(), row.control.clone())));
        lagging.retain(|(bytes, _)| *bytes > 0);
        lagging.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut shed = 0;
        for (_, control) in lagging {
            // Each gives its charge back at once, so that no other worker cuts for the same excess.
            if memory.excess() == 0 {
                break;
            }
            control.shed();
            shed += 1;
        }
        if shed > 0 {
            let max = memory.max();
            tracing::warn!(shed, max, "limits.memory is used up: the largest backlogs were cut");
        }
    }

    /// A drain has begun: nothing new is admitted, connections close after their response, and nothing is
    /// read on for clients that have left.
    pub fn drain(&self) {
        self.ground.draining.set(true);
        self.ground.wheel.expire_all();
    }

    /// The drain deadline has passed: what still streams ends with an error event.
    pub fn cut(&self) {
        self.ground.cutting.set(true);
        self.ground.wheel.expire_all();
    }
}
