//! The closed label values: one enum per list, so that a series cannot be born of anything a
//! network sent.
//!
//! Refuses: free text. Labels that come from configuration (listener, route, upstream) are kept in
//! [`Shape`](super::cells::Shape) instead. Invariant: `ALL` lists every value once, in the order of
//! its index, and `as_str` is what scrapers see (contract: renaming one breaks dashboards).

use crate::error::Limit;

/// Declares a closed list of label values: the enum, `ALL`, `as_str`, the index into cell arrays.
macro_rules! closed_list {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$value_meta:meta])* $value:ident = $label:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_meta])* $value,)+ }

        impl $name {
            /// Every value, in the order of its index.
            pub const ALL: &'static [$name] = &[$($name::$value,)+];
            /// Every label value, in the same order.
            pub const LABELS: &'static [&'static str] = &[$($label,)+];
            /// How many values there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label value as scrapers and logs see it.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$value => $label,)+ }
            }

            /// Position in `ALL`, for arrays of cells.
            pub(super) const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

closed_list! {
    /// Protocol of a client connection.
    Proto {
        /// HTTP/1.0 and HTTP/1.1.
        H1 = "h1",
        /// HTTP/2, over TLS or in clear.
        H2 = "h2",
    }
}

closed_list! {
    /// Class of the status that was sent to the client.
    StatusClass {
        /// 100-199; also what is out of range below.
        S1xx = "1xx",
        /// 200-299.
        S2xx = "2xx",
        /// 300-399.
        S3xx = "3xx",
        /// 400-499; 499 (client left before any status) is counted here.
        S4xx = "4xx",
        /// 500-599; also what is out of range above.
        S5xx = "5xx",
    }
}

impl From<u16> for StatusClass {
    /// Never fails: upstreams have sent 999.
    fn from(status: u16) -> StatusClass {
        match status {
            0..=199 => StatusClass::S1xx,
            200..=299 => StatusClass::S2xx,
            300..=399 => StatusClass::S3xx,
            400..=499 => StatusClass::S4xx,
            500.. => StatusClass::S5xx,
        }
    }
}

closed_list! {
    /// How an event stream reaches its client.
    Path {
        /// HTTP/1.1, written to the socket by the gateway's own relay.
        Relay = "relay",
        /// HTTP/2.
        Http2 = "http2",
        /// Through the HTTP library: an HTTP/1.0 client.
        Http10 = "http10",
        /// Through the HTTP library: the request's body was still coming in.
        Upload = "upload",
    }
}

closed_list! {
    /// Which way bytes flow, seen from the gateway.
    Direction {
        /// Read by the gateway.
        In = "in",
        /// Written by the gateway.
        Out = "out",
    }
}

closed_list! {
    /// Whose connection the bytes were on.
    Side {
        /// The client's connection.
        Client = "client",
        /// The upstream's connection.
        Upstream = "upstream",
    }
}

closed_list! {
    /// Why a stream ended; every stream ends with exactly one.
    Reason {
        /// The terminal mark of the stream's family arrived and everything was handed on.
        Completed = "completed",
        /// The client closed or reset its side first.
        ClientClosed = "client_closed",
        /// The client took nothing for `client_stall`.
        ClientStalled = "client_stalled",
        /// The upstream failed: connection error, malformed framing, an error event of its own.
        UpstreamError = "upstream_error",
        /// The upstream ended cleanly, but without its terminal mark.
        UpstreamTruncated = "upstream_truncated",
        /// The upstream was silent for longer than `first_byte` or `idle`.
        UpstreamTimeout = "upstream_timeout",
        /// A configured limit was reached: `total`, `max_event`, memory.
        Limit = "limit",
        /// The drain deadline cut it.
        Drain = "drain",
        /// A fault of the gateway itself.
        Internal = "internal",
    }
}

closed_list! {
    /// Which tokens an upstream told of.
    TokenKind {
        /// Those of the request.
        Input = "input",
        /// Those of the answer.
        Output = "output",
        /// Both together, where only their sum was told.
        Unsplit = "unsplit",
    }
}

closed_list! {
    /// Why nobody knows what a request has used.
    UsageUnknown {
        /// The client left before it was told.
        ClientLeft = "client_left",
        /// The answer failed or was cut before it was told.
        Failed = "failed",
        /// The answer is complete and does not tell.
        NotSent = "not_sent",
        /// The answer is encoded, and was not read.
        NotRead = "not_read",
    }
}

closed_list! {
    /// What came of an answer whose client had left before its usage was known.
    DrainResult {
        /// It was read on, and told its usage.
        Learned = "learned",
        /// It was read on, and did not.
        NotLearned = "not_learned",
        /// Too many others were being read on.
        NoRoom = "no_room",
    }
}

closed_list! {
    /// Outcome of opening one upstream connection.
    ConnectResult {
        /// Connected, TLS handshake included.
        Ok = "ok",
        /// Refused or reset by the peer.
        Refused = "refused",
        /// No address took the connection within `connect`.
        Timeout = "timeout",
        /// The name was not resolved within `connect`.
        DnsTimeout = "dns_timeout",
        /// The TLS handshake did not end within `connect`.
        TlsTimeout = "tls_timeout",
        /// The TLS handshake or the certificate failed.
        Tls = "tls",
        /// The name did not resolve.
        Dns = "dns",
        /// Anything else: unreachable, out of ports, out of files.
        Other = "other",
    }
}

closed_list! {
    /// What an upstream connection is doing.
    ConnState {
        /// Being opened.
        Connecting = "connecting",
        /// Carrying at least one stream.
        Active = "active",
        /// Open in the pool without a stream.
        Idle = "idle",
        /// Too old, given up by its peer or by us: it takes no further streams and closes after its
        /// last. HTTP/2 only.
        Closing = "closing",
    }
}

closed_list! {
    /// Which limit or rule refused a connection or a request.
    Rejection {
        /// `limits.connections`.
        Connections = "connections",
        /// `limits.streams`.
        Streams = "streams",
        /// `limits.new_streams_per_second`.
        Rate = "new_streams",
        /// `limits.per_ip.streams`.
        IpStreams = "ip_streams",
        /// `limits.per_ip.new_per_second`.
        IpRate = "ip_new_streams",
        /// `limits::ADDRESSES`: client addresses with requests that run.
        Addresses = "addresses",
        /// A tenant's `streams`.
        TenantStreams = "tenant_streams",
        /// A tenant's `new_per_second`.
        TenantRate = "tenant_new_streams",
        /// A tenant's `tokens_per_minute`.
        TenantTokens = "tenant_tokens",
        /// An upstream's `queue`.
        QueueFull = "queue",
        /// An upstream's `queue_wait`.
        QueueWait = "queue_wait",
        /// The client's own deadline or its route's `timeout`, while it was queued.
        Deadline = "deadline",
        /// `limits.memory`.
        Memory = "memory",
        /// Open files.
        Files = "open_files",
        /// No key, or one that is none.
        Key = "key",
        /// A tenant on a route that is not open to it, or a web page of another origin.
        Forbidden = "forbidden",
        /// `limits.failed_keys_per_minute`.
        FailedKeys = "failed_keys",
        /// The gateway is draining.
        Drain = "drain",
        /// Malformed or ambiguous framing.
        BadRequest = "bad_request",
        /// No route matches.
        NoRoute = "no_route",
        /// The request head was too large or too slow.
        Head = "head",
        /// The request body was too large or too slow.
        Body = "body",
    }
}

impl From<Limit> for Rejection {
    fn from(limit: Limit) -> Rejection {
        match limit {
            Limit::Streams => Rejection::Streams,
            Limit::Rate => Rejection::Rate,
            Limit::IpStreams => Rejection::IpStreams,
            Limit::IpRate => Rejection::IpRate,
            Limit::Addresses => Rejection::Addresses,
            Limit::TenantStreams => Rejection::TenantStreams,
            Limit::TenantRate => Rejection::TenantRate,
            Limit::TenantTokens => Rejection::TenantTokens,
            Limit::FailedKeys => Rejection::FailedKeys,
            Limit::QueueFull => Rejection::QueueFull,
            Limit::QueueWait => Rejection::QueueWait,
            Limit::Deadline => Rejection::Deadline,
            Limit::Memory => Rejection::Memory,
            Limit::Files => Rejection::Files,
        }
    }
}

closed_list! {
    /// Why another attempt was made; only ever before the first forwarded byte.
    RetryReason {
        /// The connection could not be opened.
        Connect = "connect",
        /// A pooled connection was closed before the request was written to it, or the upstream
        /// refused the stream.
        Unsent = "unsent",
        /// The upstream answered with a status that invites another attempt.
        Status = "status",
        /// The upstream did not know our key, which has changed since it was read.
        Credential = "credential",
        /// Nothing more to try at this upstream: the route's next one was asked.
        Fallback = "fallback",
        /// The stream began with an error event.
        ErrorFirst = "error_first",
        /// The stream ended without any event.
        Empty = "empty",
        /// No response head in time, and the request may be run twice.
        Timeout = "timeout",
        /// The connection broke before the response head, and the request may be run twice.
        Gone = "gone",
    }
}

closed_list! {
    /// State of an upstream's circuit breaker.
    BreakerState {
        /// Requests pass.
        Closed = "closed",
        /// Requests are refused at once.
        Open = "open",
        /// A few requests probe whether the upstream has recovered.
        HalfOpen = "half_open",
    }
}

closed_list! {
    /// Outcome of a client's request to continue a stream.
    ResumeResult {
        /// Continued where the client left off.
        Resumed = "resumed",
        /// The place asked for has left the log; the client was told so.
        Gone = "gone",
        /// No such stream for this client.
        Unknown = "unknown",
    }
}

closed_list! {
    /// Outcome of a configuration reload.
    ReloadResult {
        /// The new configuration is in force.
        Ok = "ok",
        /// It had faults; the old one stays in force.
        Refused = "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_follow_the_list_and_labels_are_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert_eq!(reason.as_str(), Reason::LABELS[index]);
        }
        let lists: &[&[&str]] = &[
            Proto::LABELS,
            StatusClass::LABELS,
            Direction::LABELS,
            Side::LABELS,
            Reason::LABELS,
            ConnectResult::LABELS,
            ConnState::LABELS,
            Rejection::LABELS,
            Path::LABELS,
            RetryReason::LABELS,
            BreakerState::LABELS,
            ResumeResult::LABELS,
            ReloadResult::LABELS,
            TokenKind::LABELS,
            UsageUnknown::LABELS,
            DrainResult::LABELS,
        ];
        for list in lists {
            let unique: std::collections::BTreeSet<_> = list.iter().collect();
            assert_eq!(unique.len(), list.len(), "{list:?}");
            let word = |label: &&str| {
                label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            assert!(list.iter().all(word), "{list:?}");
        }
    }

    #[test]
    fn end_reasons_are_the_contract() {
        assert_eq!(
            Reason::LABELS,
            [
                "completed",
                "client_closed",
                "client_stalled",
                "upstream_error",
                "upstream_truncated",
                "upstream_timeout",
                "limit",
                "drain",
                "internal"
            ]
        );
    }

    #[test]
    fn every_status_has_a_class() {
        let class = |status: u16| StatusClass::from(status).as_str();
        assert_eq!([class(0), class(100), class(199)], ["1xx"; 3]);
        assert_eq!([class(200), class(299)], ["2xx"; 2]);
        assert_eq!([class(300), class(399)], ["3xx"; 2]);
        assert_eq!([class(400), class(499)], ["4xx"; 2]);
        assert_eq!([class(500), class(599), class(999), class(u16::MAX)], ["5xx"; 4]);
    }
}
