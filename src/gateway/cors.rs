//! Web pages of other origins (the Fetch standard, 3.2): preflights are answered here, without a
//! key, and every answer, refusals included, says which page may read it and which headers.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::config;
use crate::error::{Failure, Kind};
use crate::stream::body::ClientBody;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
/// What SDKs in a page want to read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "tidegate-request-id, x-request-id, retry-after, retry-after-ms, x-should-retry, \
     x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
     x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, \
     openai-processing-ms, openai-version, request-id",
);

/// The configured origins.
pub struct Cors {
    origins: Vec<Bytes>,
    any: bool,
    max_age: HeaderValue,
}

impl Cors {
    /// `None` if no origin is configured: then the gateway adds nothing, and upstreams' own
    /// headers pass.
    pub fn of(config: &config::Cors) -> Option<Cors> {
        let origins: Vec<_> = config.origins.iter().map(|o| Bytes::from(o.clone())).collect();
        (config.any || !origins.is_empty()).then(|| Cors {
            origins,
            any: config.any,
            max_age: HeaderValue::from(config.max_age.as_secs()),
        })
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.any || self.origins.iter().any(|known| known.eq_ignore_ascii_case(origin.as_bytes()))
    }

    /// The answer to `request` if it is a preflight.
    ///
    /// # Errors
    /// `Forbidden` (403) for a page of another origin.
    pub fn preflight<B>(
        &self,
        request: &Request<B>,
    ) -> Option<Result<Response<ClientBody>, Failure>> {
        let asked = request.headers();
        let origin = asked.get(header::ORIGIN)?;
        if request.method() != Method::OPTIONS
            || !asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        {
            return None;
        }
        if !self.allows(origin) {
            let text = "cors.origins does not list this origin";
            return Some(Err(Failure::new(Kind::Forbidden, text)));
        }
        let mut response = Response::new(ClientBody::full(Bytes::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        Some(Ok(response))
    }

    /// Says on an answer to a page of `origin` that it may read it. What an upstream said of that
    /// is replaced.
    pub fn decorate(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
        // An answer may be kept for another page, or for none.
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}
