//! Whose usage a request is, under which model it is counted, and whether the upstream is asked for it.

use http::Method;
use http::header::{self, HeaderName};
use http::request::Parts;

use crate::config::{Family, UsageRule};
use crate::gateway::auth::Identity;
use crate::gateway::plan::Plan;
use crate::gateway::route::Route;
use crate::stream::life::Life;
use crate::stream::usage::Usage;
use crate::telemetry::UsageSlots;
use crate::upstream::upload::{Upload, UploadState};
use crate::wire::usage::ask::for_usage;

/// Asks how many tokens a request would take; no model works on it.
const COUNT_TOKENS: &str = "/count_tokens";
/// What says of a request's body that it must not be changed: how it is encoded, and sums over it.
const SEALS: [HeaderName; 6] = [
    header::CONTENT_ENCODING,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("x-amz-content-sha256"),
];

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

/// Has the request ask for its stream's usage where the route wants that and its client does not ask; the
/// client does not get to see it then.
pub fn ask(life: &mut Life, route: &Route, family: Family, head: &Parts, upload: &mut Upload) {
    let may = route.asks_for_usage(family)
        && head.method == Method::POST
        && !SEALS.iter().any(|name| head.headers.contains_key(name));
    let Some(usage) = life.usage().filter(|_| may) else { return };
    if upload.splice(for_usage) {
        usage.asked();
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
