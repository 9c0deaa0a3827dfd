//! `[[route]]`: which paths go to which upstream, and how their streams are treated.
//!
//! Paths are those of the `matchit` router; the same router judges them here, so that what loads
//! also routes. Refuses patterns of other routers (`/v1/*`, `/:id`), which it would take literally.

use std::ops::RangeInclusive;
use std::time::Duration;

use matchit::{InsertError, Router};

use super::nearest::nearest;
use super::read::{Place, Reading, Section};
use super::resilience::{Balance, Sticky, read_sticky, read_weights};
use super::tenant::Tenant;
use super::units::quoted;
use super::upstream::Upstream;
use super::url::{Url, check_path};
use crate::limits::{ROUTE_UPSTREAMS, ROUTES};

/// One path pattern and its upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `matchit` pattern, such as `/v1/{*rest}`.
    pub path: String,
    /// The pattern up to its first segment with a parameter, without a trailing slash: `/v1` for
    /// `/v1/{*rest}`, empty for `/{*rest}`, everything if there is no parameter. An upstream's
    /// base path replaces it.
    pub literal_prefix: String,
    /// Indices into the configuration's upstreams, at least one, none twice.
    pub upstreams: Vec<usize>,
    /// How likely each of them is to come first, relative to the others; equal if empty.
    pub weights: Vec<u32>,
    /// Which of them comes first: `Ordered` or `Weighted`.
    pub balance: Balance,
    /// What keeps requests with the same upstream, with `Weighted`.
    pub sticky: Sticky,
    /// Whose API the route speaks.
    pub family: Family,
    /// How heartbeats are written.
    pub heartbeat_style: HeartbeatStyle,
    /// What a client has to show.
    pub auth: Auth,
    /// Names of the tenants that may use it; all if empty.
    pub tenants: Vec<String>,
    /// Longest wait of a request in a queue, from its arrival; `None` = `upstream.queue_wait` alone.
    pub timeout: Option<Duration>,
    /// Whether its requests may be run twice, though nobody knows what became of them the first time.
    pub repeatable: bool,
    /// How much of a request body is collected before it is sent on, where that is needed, bytes.
    pub body_buffer: u64,
    /// What is done about the tokens that its answers take.
    pub usage: UsageRule,
    /// How long an answer is read on after its client has left, to learn its usage; `None` = not at all.
    pub usage_drain: Option<Duration>,
    /// True if streams survive their client and can be taken up again.
    pub resume: bool,
}

/// What a route asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Nothing; a credential that they bring goes to the upstream, if that has none of its own.
    None,
    /// A tenant's key; it does not go on to the upstream.
    Key,
}

impl Auth {
    const ALL: [(&'static str, Auth); 2] = [("none", Auth::None), ("key", Auth::Key)];
}

/// Whether the usage that answers tell of is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageRule {
    /// Nobody looks for it.
    Off,
    /// It is counted where the upstream tells it.
    Count,
    /// And the streams of OpenAI's completions are asked to tell it.
    Inject,
}

impl UsageRule {
    const ALL: [(&'static str, UsageRule); 3] =
        [("off", UsageRule::Off), ("count", UsageRule::Count), ("inject", UsageRule::Inject)];

    /// Without a word about it: counted where it is known whose it is.
    fn of(auth: Auth) -> UsageRule {
        match auth {
            Auth::Key => UsageRule::Count,
            Auth::None => UsageRule::Off,
        }
    }
}

/// Whose API a route speaks: what marks the end of a stream, and how errors look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Known by the request's path (`wire::sse::family_of`).
    Auto,
    /// OpenAI chat completions and their many imitators: `data: [DONE]`.
    OpenAi,
    /// OpenAI Responses: `response.completed`, `response.failed`, `response.incomplete`; its errors
    /// are events of that API.
    Responses,
    /// Anthropic Messages: `message_stop`.
    Anthropic,
    /// Any event stream; its end completes it.
    Plain,
}

impl Family {
    const ALL: [(&'static str, Family); 5] = [
        ("auto", Family::Auto),
        ("openai", Family::OpenAi),
        ("responses", Family::Responses),
        ("anthropic", Family::Anthropic),
        ("plain", Family::Plain),
    ];

    /// The name as the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Auto => "auto",
            Family::OpenAi => "openai",
            Family::Responses => "responses",
            Family::Anthropic => "anthropic",
            Family::Plain => "plain",
        }
    }
}

/// How a heartbeat is written between two events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatStyle {
    /// The bare line `: ping\n`, which every client tried accepts.
    Comment,
    /// `: ping\n\n`, for readers that want whole frames.
    CommentFrame,
    /// `event: ping` with `data: {"type":"ping"}`, as Anthropic sends it; the comment where a
    /// request turns out to be one of OpenAI's APIs.
    Anthropic,
    /// None.
    Off,
}

impl HeartbeatStyle {
    const ALL: [(&'static str, HeartbeatStyle); 4] = [
        ("comment", HeartbeatStyle::Comment),
        ("comment-frame", HeartbeatStyle::CommentFrame),
        ("anthropic", HeartbeatStyle::Anthropic),
        ("off", HeartbeatStyle::Off),
    ];

    /// The name as the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            HeartbeatStyle::Comment => "comment",
            HeartbeatStyle::CommentFrame => "comment-frame",
            HeartbeatStyle::Anthropic => "anthropic",
            HeartbeatStyle::Off => "off",
        }
    }
}

const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=super::LONGEST;
/// How they may be balanced; what is shorter or faster is known of one upstream's endpoints only.
const BALANCE: [(&str, Balance); 2] =
    [("ordered", Balance::Ordered), ("weighted", Balance::Weighted)];
const DRAIN: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
const DEFAULT_PATH: &str = "/v1/{*rest}";

impl Route {
    /// A route to an upstream, everything else at its default. `path` must be a pattern that the
    /// router accepts; it is not checked here.
    pub fn new(path: impl Into<String>, upstream: usize) -> Self {
        let path = path.into();
        Route {
            literal_prefix: literal_prefix(&path),
            path,
            upstreams: vec![upstream],
            weights: Vec::new(),
            balance: Balance::Ordered,
            sticky: Sticky::Off,
            family: Family::Auto,
            heartbeat_style: HeartbeatStyle::Comment,
            auth: Auth::None,
            tenants: Vec::new(),
            timeout: None,
            repeatable: false,
            body_buffer: 1 << 20,
            usage: UsageRule::Off,
            usage_drain: None,
            resume: false,
        }
    }
}

/// The routes of `serve --upstream URL`: those of OpenAI, and those under the URL's own base path,
/// so that a client may be pointed at either.
pub(super) fn for_url(url: &Url) -> Vec<Route> {
    let mut routes = vec![Route::new(DEFAULT_PATH, 0)];
    if let Some(base_path) = url.base_path.as_deref()
        && base_path != routes[0].literal_prefix
    {
        routes.push(Route::new(format!("{base_path}/{{*rest}}"), 0));
    }
    routes
}

/// With `tenants` a key is asked for unless a route says otherwise.
pub(super) fn read(
    r: &mut Reading<'_>,
    root: &Section<'_>,
    upstreams: &[Upstream],
    tenants: &[Tenant],
) -> Vec<Route> {
    let auth = if !tenants.is_empty() { Auth::Key } else { Auth::None };
    let sections = r.sections(root, "route");
    if r.lacks(root, "route") {
        if upstreams.len() > 1 {
            let nowhere = r.place("route");
            r.fault(&nowhere, "there is none; with several upstreams, write a [[route]] for each");
        }
        return vec![Route { auth, usage: UsageRule::of(auth), ..Route::new(DEFAULT_PATH, 0) }];
    }
    if sections.len() > ROUTES {
        let place = r.place("route");
        r.fault(&place, format!("there are more than {ROUTES}"));
    }
    let mut router = Router::new();
    let mut routes = Vec::new();
    for section in sections.iter().take(ROUTES) {
        let mut route = read_one(r, section, upstreams, &mut router, routes.len());
        route.auth = r.choice(section, "auth", &Auth::ALL, auth);
        let usage = UsageRule::of(route.auth);
        route.usage = r.choice(section, "usage", &UsageRule::ALL, usage);
        route.tenants = read_tenants(r, section, tenants, route.auth);
        if route.auth == Auth::Key && tenants.is_empty() {
            let place = section.place.below("auth");
            r.fault(&place, "asks for keys, but there are none; write a [[tenant]]");
        }
        routes.push(route);
    }
    routes
}

fn read_one(
    r: &mut Reading<'_>,
    s: &Section<'_>,
    upstreams: &[Upstream],
    router: &mut Router<usize>,
    n: usize,
) -> Route {
    let (place, path) = match r.text(s, "path") {
        Some((place, path)) => (place, path),
        None => (s.place.clone(), DEFAULT_PATH),
    };
    match check_pattern(path) {
        Ok(()) => insert(r, &place, path, router, n),
        Err(reason) => r.fault(&place, format!("{} {reason}", quoted(path))),
    }
    let mut route = Route::new(path, 0);
    route.upstreams = read_upstreams(r, s, upstreams);
    route.weights = read_weights(r, s, route.upstreams.len(), "upstreams");
    route.balance = r.choice(s, "balance", &BALANCE, route.balance);
    route.sticky = read_sticky(r, s);
    route.family = r.choice(s, "family", &Family::ALL, route.family);
    route.heartbeat_style =
        r.choice(s, "heartbeat_style", &HeartbeatStyle::ALL, route.heartbeat_style);
    route.timeout = r.duration_or_off(s, "timeout", &TIMEOUT, route.timeout);
    route.repeatable = r.flag(s, "repeatable", route.repeatable);
    route.body_buffer = r.size(s, "body_buffer", 0..=1 << 30, route.body_buffer);
    route.usage_drain = r.duration_or_off(s, "usage_drain", &DRAIN, route.usage_drain);
    route.resume = r.flag(s, "resume", route.resume);

    if route.resume {
        r.not_yet(s, "resume", "has no effect yet: streams end with their client");
    }
    if route.heartbeat_style == HeartbeatStyle::Anthropic
        && matches!(route.family, Family::OpenAi | Family::Responses)
    {
        r.fault(
            &s.place.below("heartbeat_style"),
            "\"anthropic\" heartbeats break OpenAI clients, which take them for chunks; \
             write \"comment\"",
        );
    }
    route
}

fn read_tenants(
    r: &mut Reading<'_>,
    s: &Section<'_>,
    tenants: &[Tenant],
    auth: Auth,
) -> Vec<String> {
    let mut named = Vec::new();
    for (place, wanted) in r.texts(s, "tenants", 10_000).unwrap_or_default() {
        if !tenants.iter().any(|tenant| tenant.name == wanted) {
            let hint = nearest(wanted, tenants.iter().map(|tenant| tenant.name.as_str()));
            let hint = hint.map(|near| format!("; did you mean {}?", quoted(near)));
            let text = format!("no tenant is named {}{}", quoted(wanted), hint.unwrap_or_default());
            r.fault(&place, text);
        } else if auth == Auth::None {
            r.fault(&place, "needs auth = \"key\": without a key nobody is known");
        }
        named.push(wanted.to_owned());
    }
    named
}

/// One name, or several in the order in which they are asked.
fn read_upstreams(r: &mut Reading<'_>, s: &Section<'_>, upstreams: &[Upstream]) -> Vec<usize> {
    let wanted = match r.field(s, "upstream") {
        Some((_, value)) if value.get_ref().is_str() => Vec::from_iter(r.text(s, "upstream")),
        Some((place, _)) => {
            let Some(names) = r.texts(s, "upstream", ROUTE_UPSTREAMS) else { return vec![0] };
            if names.is_empty() {
                r.fault(&place, "names no upstream");
            }
            names
        }
        None => {
            if upstreams.len() > 1 {
                let text = "is missing; with several upstreams, name one";
                r.fault(&s.place.below("upstream"), text);
            }
            return vec![0];
        }
    };
    let mut found = Vec::new();
    for (place, name) in &wanted {
        let Some(index) = index_of(r, place, name, upstreams) else { continue };
        if found.contains(&index) {
            r.fault(place, format!("{} is named twice", quoted(name)));
        }
        found.push(index);
    }
    if found.is_empty() {
        found.push(0);
    }
    found
}

fn index_of(
    r: &mut Reading<'_>,
    place: &Place,
    wanted: &str,
    upstreams: &[Upstream],
) -> Option<usize> {
    let names = || upstreams.iter().map(|upstream| upstream.name.as_str());
    if let Some(n) = names().position(|name| name == wanted) {
        return Some(n);
    }
    // Without any upstream that is the one fault to report.
    if !upstreams.is_empty() {
        let hint = match nearest(wanted, names()) {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => format!("there is {}", names().map(quoted).collect::<Vec<_>>().join(", ")),
        };
        r.fault(place, format!("no upstream is named {}; {hint}", quoted(wanted)));
    }
    None
}

fn insert(r: &mut Reading<'_>, place: &Place, path: &str, router: &mut Router<usize>, n: usize) {
    let Err(error) = router.insert(path, n) else { return };
    let reason = match error {
        InsertError::Conflict { with } if with == path => {
            "is the path of an earlier route; remove one".to_owned()
        }
        InsertError::Conflict { with } => {
            format!("conflicts with the earlier route {}: both match the same paths", quoted(&with))
        }
        InsertError::InvalidParamSegment => {
            "has two parameters in one segment; only one is possible".to_owned()
        }
        InsertError::InvalidCatchAll => {
            "has a catch-all before its end; {*rest} must be the last, whole segment".to_owned()
        }
        _ => "has an invalid parameter; write {name}, or {*rest} at the end".to_owned(),
    };
    r.fault(place, format!("{} {reason}", quoted(path)));
}

/// What the router would take without complaint, but which cannot be meant. The router must see
/// ASCII only: it cuts paths between bytes, and panics in its conflict message otherwise.
fn check_pattern(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err("must start with a slash".to_owned());
    }
    if path.len() > 512 {
        return Err("is longer than 512 bytes".to_owned());
    }
    if path.contains("{{") || path.contains("}}") {
        return Err("holds doubled braces, which no request path can match".to_owned());
    }
    let name = |c: char| c.is_ascii_alphanumeric() || "_-*".contains(c);
    let mut literal = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '{' => inside = true,
            '}' if inside => {
                inside = false;
                literal.push('_');
            }
            c if !inside => literal.push(c),
            c if name(c) => {}
            _ => return Err("has a parameter whose name is not letters, digits and _".to_owned()),
        }
    }
    check_path(&literal)?;
    for segment in literal.split('/') {
        if segment.contains('*') || segment.starts_with(':') {
            return Err("has a pattern of another router; write {name} for one segment, \
                        {*rest} for the rest of the path"
                .to_owned());
        }
    }
    Ok(())
}

fn literal_prefix(path: &str) -> String {
    let literal = match path.find('{') {
        Some(brace) => &path[..path[..brace].rfind('/').unwrap_or(0)],
        None => path,
    };
    literal.strip_suffix('/').unwrap_or(literal).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_prefixes() {
        for (path, prefix) in [
            ("/v1/{*rest}", "/v1"),
            ("/{*rest}", ""),
            ("/", ""),
            ("/v1/", "/v1"),
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/models/{id}/x", "/v1/models"),
            ("/v1/model-{id}/x", "/v1"),
        ] {
            assert_eq!(literal_prefix(path), prefix, "{path}");
        }
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for (name, family) in Family::ALL {
            assert_eq!(family.as_str(), name);
        }
        for (name, style) in HeartbeatStyle::ALL {
            assert_eq!(style.as_str(), name);
        }
    }
}
