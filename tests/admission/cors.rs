//! Web pages of other origins: what they may read, whatever the answer is.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::stage::client::CHAT;
use super::stage::{Answer, Client, End, Gateway, Http, Setup, Stage};
use super::{hold, refused, tenant};

const PAGE: &str = "https://app.example";
const ALLOWED: &str = "access-control-allow-origin";
const METHOD: (&str, &str) = ("access-control-request-method", "POST");

fn varies(answer: &Answer) -> bool {
    let values = answer.headers.get_all("vary").iter();
    values.filter_map(|v| v.to_str().ok()).any(|v| v.to_ascii_lowercase().contains("origin"))
}

/// The page may read the answer and what SDKs look for in it.
fn assert_readable(answer: &Answer, what: &str) {
    assert_eq!(answer.header(ALLOWED), Some(PAGE), "{what}");
    assert!(varies(answer), "{what}: a cache may give it to another page");
    let exposed = answer.header("access-control-expose-headers").unwrap_or_default();
    for name in ["retry-after", "retry-after-ms", "x-should-retry", "tidegate-request-id"] {
        assert!(exposed.split(',').any(|e| e.trim() == name), "{what}: {name} in {exposed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_needs_no_key_and_no_upstream() {
    let more = format!("[cors]\norigins = [\"{PAGE}\"]\n{}", tenant("a", "").section);
    let stage = Stage::start(Setup { more, ..Setup::default() }).await;
    for http in [Http::H1, Http::H2] {
        let mut client = stage.client(http).await;
        let headers = ("access-control-request-headers", "authorization, content-type");
        let answer = client.ask("OPTIONS", CHAT, &[("origin", PAGE), METHOD, headers], "").await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{http:?}");
        assert_eq!(answer.header(ALLOWED), Some(PAGE));
        assert_eq!(answer.header("access-control-allow-headers"), Some(headers.1));
        let methods = answer.header("access-control-allow-methods").unwrap_or_default();
        assert!(methods.contains("POST") && methods.contains("GET"), "{methods}");
        assert_eq!(answer.header("access-control-max-age"), Some("600"));
        assert!(varies(&answer));
        // Origins are compared whole.
        for other in ["https://app.example.evil", "http://app.example", "null", "https://app"] {
            let answer = client.ask("OPTIONS", CHAT, &[("origin", other), METHOD], "").await;
            assert_eq!((answer.status, answer.header(ALLOWED)), (403, None), "{other}");
            assert!(varies(&answer));
        }
        // What is no preflight is a request, and needs a key.
        let answer = client.ask("OPTIONS", CHAT, &[("origin", PAGE)], "").await;
        assert_eq!(answer.status, 401);
        assert_readable(&answer, "an OPTIONS of the page's own");
    }
    assert_eq!(stage.sim.counts().requests, 0);
    assert_eq!(refused(&stage.metrics().await, "forbidden"), 8.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_says_which_page_may_read_it() {
    let (one, two) = (tenant("a", "streams = 1"), tenant("b", ""));
    let more = format!(
        "[cors]\norigins = [\"https://first.example\", \"{PAGE}\"]\n[limits]\nstreams = 2\n{}{}",
        one.section, two.section
    );
    let stream = "commit_after = \"300ms\"".to_owned();
    let stage = Stage::start(Setup { more, stream, ..Setup::default() }).await;
    let (page, a, b) = (
        ("origin", PAGE),
        ("authorization", one.bearer.as_str()),
        ("authorization", two.bearer.as_str()),
    );
    for http in [Http::H1, Http::H2] {
        let mut client = stage.client(http).await;
        let json = client.ask("GET", "/v1/models", &[page, a], "").await;
        assert_eq!(json.status, 200);
        assert_readable(&json, "JSON");
        let stream = client.stream(&[page, a]).await;
        assert_eq!((stream.status, &stream.end), (200, &End::Clean));
        assert!(stream.text().ends_with("data: [DONE]\n\n"));
        assert_readable(&stream, "an event stream");
        let slow = [page, a, ("sim-first-byte", "1s")];
        let promised = client.stream(&slow).await;
        assert_eq!((promised.status, &promised.end), (200, &End::Clean), "{}", promised.text());
        assert_readable(&promised, "a stream that was promised");
        let failed = client.stream(&[page, a, ("sim-fault", "reset-head")]).await;
        assert_eq!(failed.status, 502);
        assert_readable(&failed, "502");
        let none = client.ask("GET", "/nowhere", &[page], "").await;
        assert_eq!(none.status, 404);
        assert_readable(&none, "404");
        let unknown = client.stream(&[page]).await;
        assert_eq!(unknown.status, 401);
        assert_readable(&unknown, "401");

        let first = hold(&stage, http, &[a]).await;
        let share = client.stream(&[page, a]).await;
        assert_eq!(share.status, 429);
        assert_readable(&share, "429");
        let second = hold(&stage, http, &[b]).await;
        let full = client.stream(&[page, b]).await;
        assert_eq!(full.status, 503);
        assert_readable(&full, "503");
        drop((first, second));
        super::quiet(&stage).await;

        // A page that is not listed, and no page at all: the answer is theirs to get, not to read.
        for fields in [&[a, ("origin", "https://evil.example")][..], &[a]] {
            let answer = client.stream(fields).await;
            assert_eq!((answer.status, answer.header(ALLOWED)), (200, None));
            assert!(varies(&answer));
        }
    }
}

/// An upstream with opinions of its own on who may read its answers; it closes after each.
async fn opinionated() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && socket.read_buf(&mut head).await.is_ok() {}
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\
                access-control-allow-origin: https://theirs.example\r\n\
                access-control-allow-credentials: true\r\nvary: accept\r\n\r\nok";
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_section_it_is_the_upstreams_business() {
    let upstream = opinionated().await;
    for (section, allowed, credentials) in [
        ("", Some("https://theirs.example"), Some("true")),
        ("[cors]\norigins = [\"*\"]\n", Some(PAGE), None),
        ("[cors]\norigins = [\"https://other.example\"]\n", None, None),
    ] {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n{section}\
             [[upstream]]\nname = \"sim\"\nurls = [\"http://{upstream}\"]\n"
        );
        let gateway = Gateway::start(&text, None).await;
        let connect = || Client::connect(gateway.ready.listen[0], Http::H1, None);
        let answer = connect().await.ask("GET", "/v1/x", &[("origin", PAGE)], "").await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
        assert_eq!(answer.header(ALLOWED), allowed, "{section}");
        assert_eq!(answer.header("access-control-allow-credentials"), credentials, "{section}");
        let vary = answer.headers.get_all("vary").iter().any(|v| v == "accept");
        assert!(vary, "the upstream's own stays");
        assert_eq!(varies(&answer), !section.is_empty());
        if section.is_empty() {
            let answer =
                connect().await.ask("OPTIONS", CHAT, &[("origin", PAGE), METHOD], "").await;
            assert_eq!(answer.text(), "ok", "a preflight passes like anything else");
            assert_eq!(answer.header(ALLOWED), allowed);
        }
    }
}
