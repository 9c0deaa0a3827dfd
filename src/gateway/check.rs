//! What of a request's head a gateway must refuse although hyper lets it through.
//!
//! The rules that need the raw bytes (bare LF, `#` in the target, conflicting lengths) are
//! `wire::guard`'s; here are those that the parsed head shows.

use http::{Method, Request};

use crate::error::{Failure, Kind};
use crate::wire::head;

/// Refuses what must not pass.
///
/// # Errors
/// `BadRequest` (400), `Method` (405) or `Upgrade` (501).
pub fn check<B>(request: &Request<B>) -> Result<(), Failure> {
    let headers = request.headers();
    if [Method::CONNECT, Method::TRACE].contains(request.method()) {
        let text = format!("{} cannot pass this gateway", request.method());
        return Err(Failure::new(Kind::Method, text));
    }
    head::check_host(request.version(), request.uri(), headers)
        .map_err(|fault| Failure::new(Kind::BadRequest, fault.to_string()))?;
    if head::wants_upgrade(headers) {
        let text = "WebSocket and other upgrades are not supported; use HTTP and event streams";
        return Err(Failure::new(Kind::Upgrade, text));
    }
    if head::dot_segments(request.uri().path()) {
        let text = "the path has '.' or '..' segments; send it resolved";
        return Err(Failure::new(Kind::BadRequest, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(request: http::request::Builder) -> Option<Kind> {
        let request = request.body(()).expect("a request");
        check(&request).err().map(|failure| failure.kind)
    }

    #[test]
    fn connect_upgrades_and_dot_segments_are_refused() {
        let get = |uri| Request::get(uri).header("host", "t");
        assert_eq!(fault(get("/v1/models")), None);
        assert_eq!(fault(get("/v1/../admin")), Some(Kind::BadRequest));
        assert_eq!(fault(get("/v1/%2e%2e/admin")), Some(Kind::BadRequest));
        let upgrade = |to| get("/v1/x").header("connection", "upgrade").header("upgrade", to);
        assert_eq!(fault(upgrade("websocket")), Some(Kind::Upgrade));
        assert_eq!(fault(upgrade("h2c")), None);
        let connect = Request::builder().method("CONNECT").uri("t:1").header("host", "t:1");
        assert_eq!(fault(connect), Some(Kind::Method));
        assert_eq!(fault(Request::get("/v1/models")), Some(Kind::BadRequest), "no Host");
    }
}
