//! The contract as a list: every key path a configuration may hold, and nothing else.
//!
//! One source of truth: the reader refuses what is not here, and the tests set each of these to
//! a value that is not its default and expect it back. A key is removed or renamed only together
//! with docs/CONFIG.md.

/// Every key path. `[]` is not written: `upstream.name` stands for `upstream[0].name` and so on.
const KEYS: &[&str] = &[
    "server.listen",
    "server.workers",
    "server.drain_deadline",
    "server.h2_max_streams",
    "server.trusted_proxies",
    "server.tls.cert",
    "server.tls.key",
    "server.tls.client_ca",
    "admin.listen",
    "stream.heartbeat",
    "stream.commit_after",
    "stream.first_byte",
    "stream.idle",
    "stream.total",
    "stream.client_stall",
    "stream.backlog",
    "stream.max_event",
    "limits.connections",
    "limits.streams",
    "limits.new_streams_per_second",
    "limits.new_streams_burst",
    "limits.per_ip.streams",
    "limits.per_ip.new_per_second",
    "limits.failed_keys_per_minute",
    "limits.memory",
    "limits.body",
    "limits.body_time",
    "limits.body_rate",
    "cors.origins",
    "cors.max_age",
    "log.level",
    "usage.models",
    "tenant.name",
    "tenant.key.sha256",
    "tenant.key.expires",
    "tenant.key.disabled",
    "tenant.disabled",
    "tenant.streams",
    "tenant.new_per_second",
    "tenant.tokens_per_minute",
    "tenant.weight",
    "tenant.priority",
    "upstream.name",
    "upstream.urls",
    "upstream.weights",
    "upstream.balance",
    "upstream.sticky",
    "upstream.retry.attempts",
    "upstream.retry.statuses",
    "upstream.retry.first_event",
    "upstream.retry.budget",
    "upstream.retry.backoff",
    "upstream.retry.backoff_max",
    "upstream.breaker.window",
    "upstream.breaker.requests",
    "upstream.breaker.share",
    "upstream.breaker.consecutive",
    "upstream.breaker.slow",
    "upstream.breaker.open",
    "upstream.breaker.probes",
    "upstream.health.path",
    "upstream.health.interval",
    "upstream.health.timeout",
    "upstream.health.status",
    "upstream.health.changes",
    "upstream.http",
    "upstream.ca",
    "upstream.credential.env",
    "upstream.credential.file",
    "upstream.credential.header",
    "upstream.credential.scheme",
    "upstream.headers",
    "upstream.query",
    "upstream.connect",
    "upstream.resolve",
    "upstream.max_streams",
    "upstream.queue",
    "upstream.queue_wait",
    "upstream.pool_max",
    "upstream.pool_idle_max",
    "upstream.pool_idle",
    "upstream.pool_lifetime",
    "upstream.pool_dials",
    "upstream.pool_warm",
    "route.path",
    "route.upstream",
    "route.weights",
    "route.balance",
    "route.sticky",
    "route.family",
    "route.heartbeat_style",
    "route.auth",
    "route.tenants",
    "route.timeout",
    "route.repeatable",
    "route.body_buffer",
    "route.usage",
    "route.usage_drain",
    "route.resume",
];

/// Every key path of the contract, such as `upstream.credential.env`, without array indices.
///
/// `upstream.headers`, `upstream.query` and `tenant.tokens_per_minute` are tables with names of the
/// user's choice.
pub fn keys() -> &'static [&'static str] {
    KEYS
}

/// The names directly inside `section` (`""` is the top level), each once, in contract order.
pub(super) fn children(section: &str) -> Vec<&'static str> {
    let mut found: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let rest = match section {
            "" => Some(*key),
            _ => key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')),
        };
        let Some(child) = rest.and_then(|rest| rest.split('.').next()) else { continue };
        if !found.contains(&child) {
            found.push(child);
        }
    }
    found
}

/// The sections other than `section` in which `name` would be a valid key.
pub(super) fn homes(name: &str, section: &str) -> Vec<&'static str> {
    KEYS.iter()
        .filter_map(|key| key.rsplit_once('.'))
        .filter(|(home, leaf)| *leaf == name && *home != section)
        .map(|(home, _)| home)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_direct_and_unique() {
        assert_eq!(
            children(""),
            [
                "server", "admin", "stream", "limits", "cors", "log", "usage", "tenant",
                "upstream", "route"
            ]
        );
        assert_eq!(children("server.tls"), ["cert", "key", "client_ca"]);
        assert_eq!(children("limits").iter().filter(|name| **name == "per_ip").count(), 1);
        assert!(children("upstream.headers").is_empty());
        assert!(children("serv").is_empty(), "only whole segments count");
    }

    #[test]
    fn homes_are_other_sections() {
        assert_eq!(homes("idle", "server"), ["stream"]);
        assert_eq!(homes("listen", "server"), ["admin"]);
        assert!(homes("nonsense", "server").is_empty());
    }
}
