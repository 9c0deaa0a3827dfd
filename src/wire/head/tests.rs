//! Each rule, with what it must and must not take.

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        headers.append(name, value);
    }
    headers
}

#[test]
fn hop_by_hop_headers_stay_here() {
    let mut all = headers(&[
        ("connection", "close, X-Mine ,, keep-alive"),
        ("connection", "authorization"),
        ("connection", "not a token"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic x"),
        ("proxy-authorization", "Basic y"),
        ("proxy-anything", "x"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("x-mine", "1"),
        ("x-mine", "2"),
        ("authorization", "Bearer k"),
        ("x-yours", "stays"),
        ("proxied", "stays"),
        ("content-type", "application/json"),
    ]);
    strip_hop_by_hop(&mut all);
    let mut left: Vec<&str> = all.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["content-type", "proxied", "x-yours"]);
}

#[test]
fn nothing_is_stripped_without_need() {
    let all = [("host", "a"), ("accept", "*/*"), ("x-request-id", "1")];
    let mut stripped = headers(&all);
    strip_hop_by_hop(&mut stripped);
    assert_eq!(stripped, headers(&all));
}

fn host(version: Version, target: &str, hosts: &[&str]) -> Result<(), HostFault> {
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|host| ("host", *host)).collect();
    check_host(version, &target.parse().unwrap(), &headers(&hosts))
}

#[test]
fn http11_needs_one_good_host() {
    let v11 = Version::HTTP_11;
    for good in ["a", "example.com", "example.com:8080", "127.0.0.1:1", "[::1]", "[::1]:443", "a:"]
    {
        assert_eq!(host(v11, "/", &[good]), Ok(()), "{good}");
        assert_eq!(host(Version::HTTP_10, "/", &[good]), Ok(()), "{good}");
    }
    for bad in [
        "", " ", "a b", "user@a", "a/b", "a?b", "a#b", "a\\b", "http://a", "a:b", "a:65536",
        "a:1:2", "a:-1", "a:+1", ":80", "[::1", "[]", "[x]", "[::1]x", "::1", "a\tb", "<a>",
    ] {
        assert_eq!(host(v11, "/", &[bad]), Err(HostFault::Malformed), "{bad:?}");
        assert_eq!(host(Version::HTTP_10, "/", &[bad]), Err(HostFault::Malformed), "{bad:?}");
    }
    assert_eq!(host(v11, "/", &[]), Err(HostFault::Missing));
    assert_eq!(host(v11, "http://a/", &[]), Err(HostFault::Missing));
    assert_eq!(host(Version::HTTP_10, "/", &[]), Ok(()));
    assert_eq!(host(v11, "/", &["a", "a"]), Err(HostFault::Multiple));
    assert_eq!(host(Version::HTTP_10, "/", &["a", "b"]), Err(HostFault::Multiple));
    let mut raw = HeaderMap::new();
    raw.insert(HOST, HeaderValue::from_bytes(b"caf\xe9").unwrap());
    assert_eq!(check_host(v11, &Uri::from_static("/"), &raw), Err(HostFault::Malformed));
}

#[test]
fn an_absolute_target_must_agree_with_the_host() {
    let v11 = Version::HTTP_11;
    assert_eq!(host(v11, "http://a/x", &["a"]), Ok(()));
    assert_eq!(host(v11, "http://A.example/x", &["a.EXAMPLE:80"]), Ok(()));
    assert_eq!(host(v11, "https://a:443/", &["a"]), Ok(()));
    assert_eq!(host(v11, "http://a/x", &["b"]), Err(HostFault::Contradicts));
    assert_eq!(host(v11, "http://a:81/", &["a"]), Err(HostFault::Contradicts));
    assert_eq!(host(v11, "https://a/", &["a:80"]), Err(HostFault::Contradicts));
    assert_eq!(host(v11, "http://user@a/", &["a"]), Err(HostFault::Malformed));
    assert_eq!(host(Version::HTTP_10, "http://a/", &["b"]), Err(HostFault::Contradicts));
    assert_eq!(host(Version::HTTP_10, "http://a/", &[]), Ok(()));
}

#[test]
fn http2_needs_an_authority_or_a_host() {
    let v2 = Version::HTTP_2;
    assert_eq!(host(v2, "https://a/x", &[]), Ok(()));
    assert_eq!(host(v2, "https://a/x", &["a"]), Ok(()));
    assert_eq!(host(v2, "/x", &["a"]), Ok(()));
    assert_eq!(host(v2, "/x", &[]), Err(HostFault::Missing));
    assert_eq!(host(v2, "https://a/x", &["b"]), Err(HostFault::Contradicts));
    assert_eq!(host(v2, "https://u@a/x", &[]), Err(HostFault::Malformed));
    assert_eq!(host(v2, "https://a/x", &["a", "a"]), Err(HostFault::Multiple));
}

#[test]
fn dot_segments_are_seen_in_every_spelling() {
    for bad in [
        ".",
        "..",
        "/.",
        "/..",
        "/./",
        "/../",
        "/v1/../admin",
        "/v1/./x",
        "/v1/..",
        "/v1/%2e%2E/x",
        "/v1/.%2e",
        "/v1/%2e/x",
        "/v1/..\\admin",
        "/v1\\..\\admin",
        "/v1%2f../x",
        "/v1/..%2Fx",
        "/v1%5C%2e%2e%5cx",
        "/v1/..;a=b/x",
        "/v1/.;/x",
    ] {
        assert!(dot_segments(bad), "{bad}");
    }
    for good in [
        "",
        "/",
        "/v1/chat/completions",
        "/v1/...",
        "/v1/..a",
        "/v1/a..",
        "/v1/.well-known",
        "/v1/gpt-4.1/x",
        "/a.b/c..d",
        "/v1/%2e%2e%2e",
        "/v1/%252e%252e/",
        "/v1/..%20/",
        "//",
        "/;..",
        "/%2",
        "/%",
    ] {
        assert!(!dot_segments(good), "{good}");
    }
}

#[test]
fn request_ids_are_short_and_visible() {
    let ok = |bytes: &[u8]| request_id_ok(&HeaderValue::from_bytes(bytes).unwrap());
    assert!(ok(b"a") && ok(b"req_01-~!") && ok(&[b'x'; 128]));
    assert!(!ok(b"") && !ok(b"a b") && !ok(b"a\tb") && !ok(b"caf\xe9") && !ok(&[b'x'; 129]));
}

#[test]
fn traceparents_follow_the_w3c() {
    let ok = |text: &str| traceparent_ok(&HeaderValue::from_str(text).unwrap());
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert!(ok(good));
    assert!(ok(&good.replacen("00-", "01-", 1)));
    assert!(ok(&format!("{}-what-ever", good.replacen("00-", "cc-", 1))));
    for bad in [
        String::new(),
        good[..54].to_owned(),
        format!("{good}-x"),
        format!("{good}0"),
        good.replacen("00-", "ff-", 1),
        good.replacen("00-", "0g-", 1),
        format!("{}x", good.replacen("00-", "01-", 1)),
        good.to_uppercase(),
        good.replace('-', "_"),
        format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)),
        good.replace("-01", "-0x"),
    ] {
        assert!(!ok(&bad), "{bad}");
    }
}

#[test]
fn the_content_type_tells_an_event_stream() {
    let is = |value: &str| is_event_stream(&headers(&[("content-type", value)]));
    assert!(is("text/event-stream") && is("Text/Event-Stream; charset=utf-8"));
    assert!(is("text/event-stream ;x") && is("text/event-stream;"));
    assert!(!is("application/json") && !is("text/event-streams") && !is("") && !is("text/plain"));
    assert!(!is("text/plain; text/event-stream"));
    assert!(!is_event_stream(&HeaderMap::new()));
}

#[test]
fn only_leaving_http_is_an_upgrade() {
    let wants = |pairs: &[(&str, &str)]| wants_upgrade(&headers(pairs));
    assert!(wants(&[("connection", "Upgrade"), ("upgrade", "websocket")]));
    assert!(wants(&[("upgrade", "WebSocket")]));
    assert!(wants(&[("upgrade", "h2c, websocket")]));
    assert!(wants(&[("upgrade", "h2c"), ("upgrade", "foo/2")]));
    assert!(!wants(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]));
    assert!(!wants(&[("connection", "upgrade")]) && !wants(&[("upgrade", " ")]) && !wants(&[]));
}

#[test]
fn a_detached_value_is_the_same_elsewhere() {
    let block = bytes::Bytes::from_static(b"secret\xe9 and a long block around it");
    let mut headers = HeaderMap::new();
    let mut value = HeaderValue::from_maybe_shared(block.slice(..7)).expect("a value");
    value.set_sensitive(true);
    headers.insert("x-a", value);
    detach(&mut headers);
    let value = &headers["x-a"];
    assert_eq!((value.as_bytes(), value.is_sensitive()), (&block[..7], true));
    assert_ne!(value.as_bytes().as_ptr(), block.as_ptr());
}

#[test]
fn only_what_comes_again_may_enter_a_compression_table() {
    let mut headers = HeaderMap::new();
    for name in ["traceparent", "accept", "x-request-id", "tidegate-request-id"] {
        headers.insert(name, HeaderValue::from_static("1"));
    }
    detach(&mut headers);
    let kept: Vec<_> = headers.iter().filter(|(_, value)| !value.is_sensitive()).collect();
    assert_eq!(kept, [(&http::header::ACCEPT, &HeaderValue::from_static("1"))]);
}
