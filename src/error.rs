//! What can go wrong with a request, told once: what, on whose side, and whether the same request
//! may safely be sent again.
//!
//! A client that leaves is an outcome, not a failure. Every failure has one HTTP status and one
//! code from a closed list; how they look on the wire is `stream::shape`'s business.

use std::time::Duration;

use bytes::Bytes;

/// A request that could not be answered as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", kind.code())]
pub struct Failure {
    /// What happened.
    pub kind: Kind,
    /// What to tell the client: the limit, the value, the remedy; never a secret.
    pub detail: String,
    /// The upstream's own error object (`{"error": …}` or alike), when it sent one.
    pub upstream_error: Option<Bytes>,
    /// When to try again and what is left, for a limit of ours.
    pub quota: Option<Box<Quota>>,
}

/// What a client is told of the limit that refused it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// When the same request may pass.
    pub retry_after: Duration,
    /// The limit's size and what is left of it, if it counts requests.
    pub requests: Option<(u64, u64)>,
    /// The same if it counts tokens.
    pub tokens: Option<(u64, u64)>,
}

/// The limits of admission: whose share of what was used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.streams`.
    Streams,
    /// `limits.new_streams_per_second`.
    Rate,
    /// `limits.per_ip.streams`.
    IpStreams,
    /// `limits.per_ip.new_per_second`.
    IpRate,
    /// `limits::ADDRESSES` client addresses, each with a request that runs.
    Addresses,
    /// A tenant's `streams`.
    TenantStreams,
    /// A tenant's `new_per_second`.
    TenantRate,
    /// A tenant's `tokens_per_minute`.
    TenantTokens,
    /// `limits.failed_keys_per_minute`.
    FailedKeys,
    /// An upstream's `queue`.
    QueueFull,
    /// An upstream's `queue_wait`.
    QueueWait,
    /// The client's own deadline, or the route's `timeout`.
    Deadline,
    /// `limits.memory`.
    Memory,
    /// Open files.
    Files,
}

impl Limit {
    /// Whether it is one of a queue before an upstream.
    pub fn of_queue(self) -> bool {
        matches!(self, Limit::QueueFull | Limit::QueueWait | Limit::Deadline)
    }

    /// The `code` of the error body.
    pub fn code(self) -> &'static str {
        match self {
            Limit::Streams => "streams_limit",
            Limit::Rate => "new_streams_limit",
            Limit::IpStreams => "address_streams_limit",
            Limit::IpRate => "address_rate_limit",
            Limit::Addresses => "addresses_limit",
            Limit::TenantStreams => "tenant_streams_limit",
            Limit::TenantRate => "tenant_rate_limit",
            Limit::TenantTokens => "tenant_tokens_limit",
            Limit::FailedKeys => "failed_keys_limit",
            Limit::QueueFull => "queue_full",
            Limit::QueueWait => "queue_timeout",
            Limit::Deadline => "queue_deadline",
            Limit::Memory => "memory_limit",
            Limit::Files => "open_files_limit",
        }
    }

    /// Whether it is the gateway that has no room, not this client that had its share.
    pub fn overload(self) -> bool {
        match self {
            Limit::Streams
            | Limit::Rate
            | Limit::Addresses
            | Limit::QueueFull
            | Limit::QueueWait
            | Limit::Deadline
            | Limit::Memory
            | Limit::Files => true,
            Limit::IpStreams
            | Limit::IpRate
            | Limit::TenantStreams
            | Limit::TenantRate
            | Limit::TenantTokens
            | Limit::FailedKeys => false,
        }
    }
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureSide {
    /// The request itself.
    Client,
    /// The gateway: a limit, a drain, a bug.
    Gateway,
    /// The upstream or the way to it.
    Upstream,
}

/// The closed list of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Framing, Host, target or method that a gateway must refuse.
    BadRequest,
    /// The request head is larger than `limits::CLIENT_HEAD_BYTES`.
    HeadTooLarge,
    /// The request head did not come to its end in time.
    HeadSlow,
    /// The request body stopped coming.
    BodySlow,
    /// No route has this path.
    NoRoute,
    /// CONNECT, TRACE and other methods that cannot pass.
    Method,
    /// An Upgrade request (WebSocket, realtime).
    Upgrade,
    /// A limit of admission was reached.
    Limited(Limit),
    /// The request has no key, or one that is none.
    Key,
    /// The key's tenant, or the page's origin, may not.
    Forbidden,
    /// The request's body is larger than `limits.body`, or than what its route can collect.
    BodyTooLarge,
    /// The gateway is shutting down.
    Draining,
    /// A bug of ours.
    Internal,
    /// The upstream's name does not resolve.
    Dns,
    /// No address of the upstream took the connection.
    Connect,
    /// The upstream's name was not resolved within its `connect`.
    DnsTimeout,
    /// No address of the upstream took the connection within its `connect`.
    ConnectTimeout,
    /// The TLS handshake did not end within the upstream's `connect`.
    TlsTimeout,
    /// TLS with the upstream failed: certificate, name or protocol.
    Tls,
    /// The breakers of all the upstream's endpoints are open.
    BreakerOpen,
    /// The upstream refused the stream before it did anything (HTTP/2 REFUSED_STREAM, GOAWAY).
    Refused,
    /// The upstream broke the connection before its response head.
    UpstreamGone,
    /// The upstream sent bytes that are no HTTP.
    UpstreamProtocol,
    /// No response head or no event within `first_byte`.
    FirstByte,
    /// The upstream went quiet in mid-stream for longer than `idle`.
    Idle,
    /// The stream reached `total`.
    Total,
    /// One event grew beyond `max_event`.
    EventTooLong,
    /// The upstream ended the stream without its terminal mark, or broke it off.
    Truncated,
    /// A stream without a single event.
    Empty,
    /// The upstream's first event was an error.
    ErrorFirst,
    /// The upstream answered with this status after the head had been committed.
    UpstreamStatus(u16),
}

impl Failure {
    /// A failure with its explanation.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Failure {
        Failure { kind, detail: detail.into(), upstream_error: None, quota: None }
    }

    /// Refused by `limit`; the same request may pass after `retry_after`.
    pub fn limited(limit: Limit, retry_after: Duration, detail: impl Into<String>) -> Failure {
        let quota = Quota { retry_after, ..Quota::default() };
        Failure { quota: Some(Box::new(quota)), ..Failure::new(Kind::Limited(limit), detail) }
    }

    /// With the upstream's own error object to hand on.
    pub fn with_upstream_error(mut self, body: Bytes) -> Failure {
        self.upstream_error = Some(body);
        self
    }
}

impl Kind {
    /// The HTTP status a client gets when the head is not committed yet.
    pub fn status(self) -> u16 {
        match self {
            Kind::BadRequest => 400,
            Kind::Key => 401,
            Kind::Forbidden => 403,
            Kind::NoRoute => 404,
            Kind::Method => 405,
            Kind::HeadSlow | Kind::BodySlow => 408,
            Kind::BodyTooLarge => 413,
            Kind::Limited(limit) if !limit.overload() => 429,
            Kind::HeadTooLarge => 431,
            Kind::Upgrade => 501,
            Kind::Internal => 500,
            Kind::Limited(_) | Kind::Draining | Kind::BreakerOpen => 503,
            Kind::FirstByte
            | Kind::Idle
            | Kind::DnsTimeout
            | Kind::ConnectTimeout
            | Kind::TlsTimeout
            | Kind::Total => 504,
            Kind::Dns
            | Kind::Connect
            | Kind::Tls
            | Kind::Refused
            | Kind::UpstreamGone
            | Kind::UpstreamProtocol
            | Kind::EventTooLong
            | Kind::Truncated
            | Kind::Empty
            | Kind::ErrorFirst
            | Kind::UpstreamStatus(_) => 502,
        }
    }

    /// The `code` of the error body, a closed list.
    pub fn code(self) -> &'static str {
        match self {
            Kind::BadRequest => "bad_request",
            Kind::HeadTooLarge => "head_too_large",
            Kind::HeadSlow => "head_timeout",
            Kind::BodySlow => "body_timeout",
            Kind::NoRoute => "no_route",
            Kind::Method => "method_not_allowed",
            Kind::Upgrade => "upgrade_not_supported",
            Kind::Limited(limit) => limit.code(),
            Kind::Key => "invalid_api_key",
            Kind::Forbidden => "forbidden",
            Kind::BodyTooLarge => "body_too_large",
            Kind::Draining => "draining",
            Kind::Internal => "internal",
            Kind::Dns => "upstream_dns",
            Kind::Connect => "upstream_connect",
            Kind::DnsTimeout => "upstream_dns_timeout",
            Kind::ConnectTimeout => "upstream_connect_timeout",
            Kind::TlsTimeout => "upstream_tls_timeout",
            Kind::Tls => "upstream_tls",
            Kind::BreakerOpen => "upstream_unavailable",
            Kind::Refused => "upstream_refused",
            Kind::UpstreamGone => "upstream_gone",
            Kind::UpstreamProtocol => "upstream_protocol",
            Kind::FirstByte => "upstream_first_byte_timeout",
            Kind::Idle => "upstream_idle_timeout",
            Kind::Total => "total_timeout",
            Kind::EventTooLong => "event_too_long",
            Kind::Truncated => "upstream_truncated",
            Kind::Empty => "upstream_empty",
            Kind::ErrorFirst => "upstream_error",
            Kind::UpstreamStatus(_) => "upstream_status",
        }
    }

    /// Whose fault it is.
    pub fn side(self) -> FailureSide {
        match self {
            Kind::BadRequest
            | Kind::HeadTooLarge
            | Kind::HeadSlow
            | Kind::BodySlow
            | Kind::NoRoute
            | Kind::Method
            | Kind::Upgrade
            | Kind::Key
            | Kind::Forbidden
            | Kind::BodyTooLarge => FailureSide::Client,
            Kind::Limited(_)
            | Kind::Draining
            | Kind::Internal
            | Kind::Total
            | Kind::EventTooLong => FailureSide::Gateway,
            Kind::Dns
            | Kind::Connect
            | Kind::DnsTimeout
            | Kind::ConnectTimeout
            | Kind::TlsTimeout
            | Kind::Tls
            | Kind::BreakerOpen
            | Kind::Refused
            | Kind::UpstreamGone
            | Kind::UpstreamProtocol
            | Kind::FirstByte
            | Kind::Idle
            | Kind::Truncated
            | Kind::Empty
            | Kind::ErrorFirst
            | Kind::UpstreamStatus(_) => FailureSide::Upstream,
        }
    }

    /// Whether the upstream certainly never saw the request, so that another attempt is safe.
    pub fn never_sent(self) -> bool {
        matches!(
            self,
            Kind::Dns
                | Kind::Connect
                | Kind::DnsTimeout
                | Kind::ConnectTimeout
                | Kind::TlsTimeout
                | Kind::Tls
                | Kind::BreakerOpen
                | Kind::Refused
        )
    }
}
