//! One request out, one response head back.
//!
//! [`send`] takes a connection from an endpoint's pool, writes the request as that connection needs it
//! and waits for the head. It tries again only where the connection had closed before a byte of the
//! request was written. Time limits and further attempts are the caller's.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Method, Request, Uri, Version};
use http_body::Body;

use crate::config::{Scheme, Url};
use crate::error::{Failure, Kind};
use crate::limits;
use crate::upstream::Upstream;
use crate::upstream::download::Download;
use crate::upstream::h1_send::{self, Sending};
use crate::upstream::pool::Lease;
use crate::upstream::upload::Upload;
use crate::upstream::{h1, h2_stream};
use crate::wire::head;

/// A request as the gateway hands it over.
#[derive(Clone)]
pub struct Outgoing {
    /// The client's method.
    pub method: Method,
    /// The client's target; only path and query count.
    pub uri: Uri,
    /// The part of the path that a URL's own path replaces, e.g. `/v1`.
    pub literal_prefix: Rc<str>,
    /// The client's headers; hop-by-hop ones are removed here.
    pub headers: HeaderMap,
    /// Ask the upstream not to compress.
    pub identity: bool,
}

/// A response: its head, and its body as it comes.
pub struct Answer {
    /// Status and headers as the upstream sent them.
    pub head: http::response::Parts,
    /// The body; dropping it cancels.
    pub body: Download,
}

/// How an attempt came to nothing.
pub(super) enum Unanswered {
    /// No byte of the request was written: here is its body, whole, for another connection.
    Untouched(Box<Upload>, Failure),
    /// The upstream may have seen it.
    Failed(Failure),
}

/// The headers by which a client proves who it is; none reaches an upstream with its own
/// credential.
const CLIENT_CREDENTIALS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    header::COOKIE,
];

/// Sends a request, made ready by [`prepare`], to the endpoint `index` and waits for the response's
/// head.
///
/// # Errors
/// No connection (`Dns`, `Connect`, `ConnectTimeout`, `Tls`), a connection that broke before the
/// head (`UpstreamGone`), a response that is no HTTP (`UpstreamProtocol`), or the client's own
/// fault in the request body.
pub(super) async fn send(
    upstream: &Upstream,
    index: usize,
    outgoing: &Outgoing,
    mut body: Box<Upload>,
) -> Result<Answer, Unanswered> {
    let mut attempts = 1;
    loop {
        let lease = match upstream.pools[index].checkout().await {
            Ok(lease) => lease,
            Err(failure) => return Err(Unanswered::Untouched(body, failure)),
        };
        let url = lease.url();
        let target = target(url, &outgoing.literal_prefix, &outgoing.uri, &upstream.config.query)?;
        let answered = match lease {
            Lease::Solo(lease) => {
                let host = &lease.pool().url().authority;
                let chunked = body.size_hint().exact().is_none();
                let (method, headers) = (&outgoing.method, &outgoing.headers);
                let head = h1_send::head(method, target.as_str(), host, headers, chunked);
                let sending = Sending::new(head, *body, chunked);
                let answered = h1::exchange(lease, sending, *method == Method::HEAD).await;
                answered.map(|(head, body)| Answer { head, body: body.into() })
            }
            Lease::Shared(lease) => {
                let mut request = Request::new(());
                *request.version_mut() = Version::HTTP_2;
                *request.method_mut() = outgoing.method.clone();
                *request.headers_mut() = outgoing.headers.clone();
                head::detach(request.headers_mut());
                *request.uri_mut() = absolute(lease.pool().url(), target)?;
                let answered = h2_stream::exchange(lease, request, *body).await;
                answered.map(|(head, body)| Answer { head, body: body.into() })
            }
        };
        match answered {
            Err(Unanswered::Untouched(untouched, _)) if attempts < limits::POOL_ATTEMPTS => {
                body = untouched;
                attempts += 1;
            }
            answered => return answered,
        }
    }
}

impl Unanswered {
    /// What went wrong.
    pub(super) fn failure(self) -> Failure {
        match self {
            Unanswered::Untouched(_, failure) | Unanswered::Failed(failure) => failure,
        }
    }
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Unanswered {
        Unanswered::Failed(failure)
    }
}

/// The head rules that hold for every upstream connection.
pub(super) fn prepare(upstream: &Upstream, outgoing: &mut Outgoing, body: &Upload) {
    let config = &upstream.config;
    let headers = &mut outgoing.headers;
    // First what belongs to the client's connection goes, so that a header it nominates cannot
    // strip one of ours.
    head::strip_hop_by_hop(headers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT] {
        headers.remove(name);
    }
    if outgoing.identity {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if !config.credentials.is_empty() {
        for name in CLIENT_CREDENTIALS {
            headers.remove(name);
        }
    }
    for (name, value) in &config.headers {
        headers.insert(name.clone(), value.clone());
    }
    // A server may refuse a body, or the lack of one, without a length (RFC 9110, 8.6).
    match body.size_hint().exact() {
        Some(0) if !matches!(outgoing.method, Method::POST | Method::PUT | Method::PATCH) => {}
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        None => {}
    }
}

/// The target as HTTP/2's pseudo-headers have it.
fn absolute(url: &Url, target: PathAndQuery) -> Result<Uri, Failure> {
    let https = url.scheme == Scheme::Https;
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if https { UriScheme::HTTPS } else { UriScheme::HTTP });
    parts.authority = url.authority.parse::<Authority>().ok();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|_| untransferable())
}

/// The path and query for `url`: its own path replaces the route's literal prefix, the client's
/// query passes byte for byte, the upstream's comes after it.
fn target(
    url: &Url,
    literal_prefix: &str,
    uri: &Uri,
    extra_query: &str,
) -> Result<PathAndQuery, Failure> {
    let path = uri.path();
    let (base, rest) = match &url.base_path {
        Some(base) => (base.as_str(), path.strip_prefix(literal_prefix).unwrap_or(path)),
        None => ("", path),
    };
    let mut target = String::with_capacity(base.len() + rest.len() + extra_query.len() + 16);
    target.push_str(base);
    target.push_str(rest);
    if target.is_empty() {
        target.push('/');
    }
    match (uri.query(), extra_query) {
        (None, "") => {}
        (Some(query), "") => target.extend(["?", query]),
        (None, extra) => target.extend(["?", extra]),
        (Some(query), extra) => target.extend(["?", query, "&", extra]),
    }
    target.try_into().map_err(|_| untransferable())
}

fn untransferable() -> Failure {
    Failure::new(Kind::BadRequest, "the target cannot be passed on")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(base: Option<&str>) -> Url {
        Url {
            scheme: Scheme::Https,
            host: "api.example".into(),
            port: 443,
            authority: "api.example".into(),
            base_path: base.map(Into::into),
        }
    }

    fn to(base: Option<&str>, uri: &'static str, extra: &str) -> String {
        let uri = Uri::from_static(uri);
        target(&url(base), "/v1", &uri, extra).expect("a target").as_str().to_owned()
    }

    #[test]
    fn a_base_path_replaces_the_literal_prefix_and_queries_pass_byte_for_byte() {
        assert_eq!(to(None, "/v1/models", ""), "/v1/models");
        assert_eq!(to(None, "/v1/models?a=%20&b", ""), "/v1/models?a=%20&b");
        assert_eq!(to(Some("/openai/v1"), "/v1/chat?x=1", "api-version=2"), {
            "/openai/v1/chat?x=1&api-version=2"
        });
        assert_eq!(to(Some("/o"), "/v1", "v=1"), "/o?v=1");
        assert_eq!(to(None, "/v1/a%2Fb", ""), "/v1/a%2Fb");
    }
}
