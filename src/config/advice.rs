//! Advice: combinations of values that work, but probably not as intended.
//!
//! Looks at the typed configuration only, so that it can be asked again after command-line
//! arguments have changed it. Never refuses anything.

use super::fault::{Notice, NoticeKind};
use super::units::show_duration;
use super::url::Scheme;
use super::{Config, HttpVersion, Stream, Upstream};

impl Config {
    /// Advice on this configuration, without lines. `load` and `parse` have already given it, with
    /// lines; ask again after changing a value.
    pub fn advice(&self) -> Vec<Notice> {
        let mut advice = Vec::new();
        let mut say = |key: String, text: String| {
            advice.push(Notice { kind: NoticeKind::Advice, key, line: None, text });
        };
        advise_stream(&self.stream, &mut say);
        advise_exposure(self, &mut say);
        for (n, upstream) in self.upstreams.iter().enumerate() {
            advise_upstream(self, n, upstream, &mut say);
        }
        advice
    }
}

fn advise_stream(stream: &Stream, say: &mut impl FnMut(String, String)) {
    let show = show_duration;
    if let Some(heartbeat) = stream.heartbeat
        && heartbeat >= stream.idle
    {
        let (heartbeat, idle) = (show(heartbeat), show(stream.idle));
        say(
            "stream.heartbeat".to_owned(),
            format!("{heartbeat} is not below stream.idle = {idle}, so no heartbeat is ever sent"),
        );
    }
    if let Some(commit_after) = stream.commit_after
        && commit_after >= stream.first_byte
    {
        let (commit_after, first_byte) = (show(commit_after), show(stream.first_byte));
        say(
            "stream.commit_after".to_owned(),
            format!(
                "{commit_after} is not below stream.first_byte = {first_byte}, so no head is \
                 ever committed early"
            ),
        );
    }
    for (name, value) in [("first_byte", stream.first_byte), ("idle", stream.idle)] {
        if value >= stream.total {
            let (value, total) = (show(value), show(stream.total));
            say(
                format!("stream.{name}"),
                format!("{value} is not below stream.total = {total}, so it never ends a stream"),
            );
        }
    }
}

fn advise_exposure(config: &Config, say: &mut impl FnMut(String, String)) {
    let exposed = config.server.listen.iter().find(|address| !address.ip().is_loopback());
    if let Some(address) = exposed
        && config.limits.per_ip.is_none()
    {
        say(
            "limits.per_ip".to_owned(),
            format!(
                "one client of {address} may take every stream; consider \
                 per_ip = {{ streams = 100, new_per_second = 20 }}"
            ),
        );
    }
    let admin = config.admin.listen;
    if !admin.ip().is_loopback() {
        say(
            "admin.listen".to_owned(),
            format!("whoever reaches {admin} can read the metrics and begin a drain"),
        );
    }
}

fn advise_upstream(
    config: &Config,
    n: usize,
    upstream: &Upstream,
    say: &mut impl FnMut(String, String),
) {
    let key = |name: &str| format!("upstream[{n}].{name}");
    let exposed = config.server.listen.iter().find(|address| !address.ip().is_loopback());
    if let Some(address) = exposed
        && !upstream.credentials.is_empty()
    {
        say(
            key("credential"),
            format!(
                "whoever reaches {address} spends this credential; keep the address private, or \
                 leave credential out to forward the client's own"
            ),
        );
    }
    let clear = upstream.urls.iter().find(|url| url.scheme == Scheme::Http && !url.is_loopback());
    if let Some(url) = clear
        && !upstream.credentials.is_empty()
    {
        say(key("urls"), format!("{url} gets the credential in cleartext; use https if it can"));
    }
    let https = upstream.urls.iter().any(|url| url.scheme == Scheme::Https);
    if upstream.ca.is_some() && !https {
        say(key("ca"), "has no effect: no url of this upstream is https".to_owned());
    }
    let streams = config.limits.streams;
    if upstream.max_streams > streams {
        say(key("max_streams"), format!("limits.streams = {streams} is reached first"));
    }
    advise_pool(config, upstream, &mut |name, text| say(key(name), text));
}

fn advise_pool(config: &Config, upstream: &Upstream, say: &mut impl FnMut(&str, String)) {
    let workers = match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        fixed => fixed,
    };
    let (pool, pools) = (upstream.pool, workers.saturating_mul(upstream.urls.len()));
    if pool.max > 0 && pool.max < pools {
        let text = format!(
            "{} is less than one for each worker and url ({pools}), so they close connections for \
             each other; raise it, or bound requests by max_streams",
            pool.max
        );
        say("pool_max", text);
    }
    let wanted = pool.warm.saturating_mul(pools);
    if pool.max > 0 && pool.max < wanted {
        let text = format!("pool_max = {} is reached first: that makes {wanted}", pool.max);
        say("pool_warm", text);
    }
    if pool.warm > pool.idle_max && upstream.http != HttpVersion::H2 {
        let text = format!("pool_idle_max = {} is reached first over HTTP/1.1", pool.idle_max);
        say("pool_warm", text);
    }
}
