//! Several upstreams of one route: who is asked first, and what becomes of a request when that one
//! comes to nothing.

use std::net::SocketAddr;
use std::time::Duration;

use tidegate::sim::{Behaviour, Fault, Sim};

use crate::endpoints::{asks, nobody, sim};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::{Client, End, Gateway, Http, scrape, soon};

/// What goes on to the next upstream without being asked there twice.
const ONCE: &str = "retry = { attempts = 1, statuses = [503] }";

/// A gateway with one route to these upstreams, `a`, `b` and so on, each with lines of its own.
async fn gateway(upstreams: &[(SocketAddr, &str)], h2: bool, route: &str) -> Gateway {
    let http = if h2 { 2 } else { 1 };
    let mut text = "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
                    [stream]\nfirst_byte = \"2s\"\n"
        .to_owned();
    let mut names = Vec::new();
    for ((addr, lines), name) in upstreams.iter().zip(["a", "b", "c"]) {
        text += &format!(
            "[[upstream]]\nname = \"{name}\"\nhttp = \"{http}\"\nurls = [\"http://{addr}\"]\n{lines}\n"
        );
        names.push(format!("\"{name}\""));
    }
    text += &format!("[[route]]\nupstream = [{}]\n{route}\n", names.join(", "));
    Gateway::start(&text, None).await
}

async fn bad(h2: bool) -> Sim {
    sim(Behaviour { status: Some(503), ..Behaviour::default() }, h2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_upstream_is_asked_when_one_comes_to_nothing() {
    for h2 in [false, true] {
        let (refusing, good) = (bad(h2).await, sim(Behaviour::default(), h2).await);
        let upstreams = [(nobody(), ""), (refusing.addr(), ONCE), (good.addr(), "")];
        let gateway = gateway(&upstreams, h2, "").await;
        let admin = gateway.ready.admin;
        for _ in 0..3 {
            let answer = asks(&gateway, &[]).await;
            assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
        }
        assert_eq!((refusing.counts().requests, good.counts().requests), (3, 3));
        let metrics = scrape::until(admin, "nothing is left", |m| m.live() == 0.0).await;
        for (name, fallbacks, ended) in [("a", 3.0, 0.0), ("b", 3.0, 0.0), ("c", 0.0, 3.0)] {
            let of = |metric: &str, label: &str| {
                metrics.get(&format!("{metric}{{upstream=\"{name}\",{label}}}"))
            };
            assert_eq!(of("tidegate_retries_total", "reason=\"fallback\""), fallbacks, "{name}");
            assert_eq!(of("tidegate_streams_ended_total", "reason=\"completed\""), ended, "{name}");
        }
        // One request each, whichever upstreams it was with.
        let answered = "tidegate_requests_total{route=\"/v1/{*rest}\",status_class=\"2xx\"}";
        assert_eq!(metrics.get(answered), 3.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_leads_to_the_next_upstream_and_asks_nobody() {
    let (refusing, good) = (bad(false).await, sim(Behaviour::default(), false).await);
    let breaker = format!("{ONCE}\nbreaker = {{ consecutive = 1, open = \"10m\" }}");
    let upstreams = [(refusing.addr(), &*breaker), (good.addr(), "")];
    let gateway = gateway(&upstreams, false, "").await;
    for _ in 0..3 {
        assert_eq!(asks(&gateway, &[]).await.status, 200);
    }
    assert_eq!((refusing.counts().requests, good.counts().requests), (1, 3));
    let metrics = scrape::metrics(gateway.ready.admin).await;
    let left = "tidegate_retries_total{upstream=\"a\",reason=\"fallback\"}";
    assert_eq!(metrics.get(left), 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_goes_to_the_next_upstream_whole_and_with_the_clients_own_credential() {
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(key.path(), "ours").expect("written");
    let own = format!("{ONCE}\ncredential.file = {:?}", key.path());
    let (refusing, good) = (bad(false).await, sim(Behaviour::default(), false).await);
    let gateway = gateway(&[(refusing.addr(), &own), (good.addr(), "")], false, "").await;
    let body =
        format!(r#"{{"model":"tide-1","stream":true,"messages":["{}"]}}"#, "x".repeat(60_000));
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let answer =
        client.ask("POST", CHAT, &[("authorization", "Bearer theirs")], body.clone()).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
    for (sim, shown) in [(&refusing, "Bearer ours"), (&good, "Bearer theirs")] {
        let seen = sim.requests();
        let [seen] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(seen.header("authorization"), Some(shown));
        assert_eq!((seen.body_length, seen.body_complete), (body.len() as u64, true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_to_the_next_upstream_that_may_have_run_or_was_not_named() {
    let gone = || Behaviour { fault: Fault::ResetHead, ..Behaviour::default() };
    for (first, lines, route, status, second) in [
        (bad(false).await, "retry = { attempts = 1, statuses = [500] }", "", 503, 0),
        (sim(gone(), false).await, ONCE, "", 502, 0),
        (sim(gone(), false).await, ONCE, "repeatable = true", 200, 1),
    ] {
        let good = sim(Behaviour::default(), false).await;
        let gateway = gateway(&[(first.addr(), lines), (good.addr(), "")], false, route).await;
        assert_eq!(asks(&gateway, &[]).await.status, status, "{route}");
        assert_eq!((first.counts().requests, good.counts().requests), (1, second), "{route}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_leads_to_the_next_upstream_and_its_slot_comes_back() {
    let slow = Behaviour { interval: Duration::from_secs(600), ..Behaviour::default() };
    let (first, second) = (sim(slow.clone(), false).await, sim(slow, false).await);
    let limits = "max_streams = 1\nqueue = 0";
    let upstreams = [(first.addr(), limits), (second.addr(), limits)];
    let gateway = gateway(&upstreams, false, "").await;
    let (listen, admin) = (gateway.ready.listen[0], gateway.ready.admin);
    let mut live = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(listen, Http::H1, None).await;
        let mut answer = soon(client.start("POST", CHAT, &[], STREAM).await.head()).await;
        answer.until("data:").await;
        live.push(client);
    }
    let of = |name: &str| {
        format!("tidegate_streams_live{{route=\"/v1/{{*rest}}\",upstream=\"{name}\"}}")
    };
    let metrics = scrape::metrics(admin).await;
    assert_eq!((metrics.get(&of("a")), metrics.get(&of("b"))), (1.0, 1.0));
    let refused = asks(&gateway, &[]).await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("queue_full"), "{}", refused.text());
    let metrics = scrape::metrics(admin).await;
    assert_eq!(metrics.get("tidegate_rejections_total{limit=\"queue\"}"), 1.0, "one request");
    assert_eq!((first.counts().requests, second.counts().requests), (1, 1));
    // The first upstream's slot was given back by those that went on.
    live.remove(0);
    scrape::until(admin, "one is left", |m| m.live() == 1.0).await;
    let mut client = Client::connect(listen, Http::H1, None).await;
    soon(client.start("POST", CHAT, &[], STREAM).await.head()).await.until("data:").await;
    assert_eq!((first.counts().requests, second.counts().requests), (2, 1));
    drop((live, client));
    let metrics = scrape::until(admin, "nothing is left", |m| m.live() == 0.0).await;
    assert_eq!((metrics.get(&of("a")), metrics.get(&of("b"))), (0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_gets_its_share_and_keeps_whom_it_has() {
    let (main, canary) =
        (sim(Behaviour::default(), false).await, sim(Behaviour::default(), false).await);
    let route = "balance = \"weighted\"\nweights = [95, 5]\nsticky = \"header:x-session\"";
    let gateway = gateway(&[(main.addr(), ""), (canary.addr(), "")], false, route).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let mut homes = Vec::new();
    for round in 0..2 {
        for session in 0..200 {
            let before = canary.counts().requests;
            let session = format!("session-{session}");
            let answer = client.ask("GET", "/v1/models", &[("x-session", &session)], "").await;
            assert_eq!(answer.status, 200);
            homes.push((round, canary.counts().requests > before));
        }
    }
    let of = |wanted| homes.iter().filter(move |(round, _)| *round == wanted).map(|(_, c)| *c);
    assert!(of(0).eq(of(1)), "who was with the canary stays with it");
    // Ten are expected, three is a standard deviation; the lots are the names' own.
    let share = of(0).filter(|canary| *canary).count();
    assert!((2..=22).contains(&share), "{share}");
    for _ in 0..400 {
        assert_eq!(client.ask("GET", "/v1/models", &[], "").await.status, 200);
    }
    let drawn = canary.counts().requests as usize - 2 * share;
    assert!((4..=45).contains(&drawn), "{drawn} of 400");
}
