//! Whose usage a request is, and under which model it is counted.

use http::Method;
use http::request::Parts;

use crate::config::{Family, UsageRule};
use crate::gateway::auth::Identity;
use crate::gateway::plan::Plan;
use crate::gateway::route::Route;
use crate::stream::life::Life;
use crate::stream::usage::Usage;
use crate::telemetry::UsageSlots;
use crate::upstream::upload::UploadState;

/// Asks how many tokens a request would take; no model works on it.
const COUNT_TOKENS: &str = "/count_tokens";

/// Where a client's tokens are counted.
pub fn slots<'p>(plan: &'p Plan, identity: &Identity) -> Option<&'p UsageSlots> {
    let tenant = identity.tenant.as_ref().map_or(0, |tenant| tenant.place);
    plan.terms.slots.usage.get(tenant)
}

/// Has the answer's usage read where it is counted, or where tokens were reserved for it. Only what is
/// posted makes a model work; a stored answer that is read again was counted before.
pub fn begin(
    life: &mut Life,
    slots: Option<&UsageSlots>,
    route: &Route,
    family: Family,
    head: &Parts,
    upload: &UploadState,
) {
    let counts = route.usage >= UsageRule::Count
        && head.method == Method::POST
        && !head.uri.path().ends_with(COUNT_TOKENS);
    let slot = slots.filter(|_| counts).map(|slots| slot(slots, upload));
    if slot.is_some() || life.held().counts_tokens() {
        life.uses(Usage::new(slot, family != Family::Plain));
    }
}

/// Has it counted under the model that the request's body has named by now.
pub fn model(life: &mut Life, slots: Option<&UsageSlots>, upload: &UploadState) {
    if let (Some(usage), Some(slots)) = (life.usage(), slots) {
        usage.moves(slot(slots, upload));
    }
}

fn slot(slots: &UsageSlots, upload: &UploadState) -> u16 {
    upload.found(|found| slots.of(found.model.as_deref()))
}
