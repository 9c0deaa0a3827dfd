//! Reloads while clients are there: what runs goes on, what is new goes by the new configuration,
//! what is faulty changes nothing.

#[path = "reload/load.rs"]
mod load;
#[path = "reload/program.rs"]
mod program;
mod stage;

use std::time::Duration;

use stage::client::{CHAT, STREAM};
use stage::{Client, End, Gateway, Http, Metrics, PATIENCE, scrape, soon};
use tidegate::gateway::auth;
use tidegate::sim::{self, Counts, Sim};

const RELOADS: &str = "tidegate_config_reloads_total";

async fn sim(h2: bool) -> Sim {
    let options = sim::Options { h1: !h2, h2, ..sim::Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.expect("an upstream")
}

/// A configuration whose listeners take free ports.
fn config(more: &str) -> String {
    format!("[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}\n")
}

fn upstream(name: &str, sim: &Sim, more: &str) -> String {
    let address = sim.addr();
    format!("[[upstream]]\nname = \"{name}\"\nurls = [\"http://{address}\"]\n{more}\n")
}

fn route(path: &str, upstream: &str, more: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nupstream = \"{upstream}\"\n{more}\n")
}

/// One upstream `sim`, which everything goes to.
fn plain(sim: &Sim, more: &str) -> String {
    config(&format!("{more}\n{}", upstream("sim", sim, "http = 1")))
}

async fn reload(gateway: &Gateway, config: &str) {
    gateway.reload(config).await.unwrap_or_else(|refused| panic!("{refused}\n{config}"));
}

async fn client(gateway: &Gateway, http: Http) -> Client {
    Client::connect(gateway.ready.listen[0], http, None).await
}

async fn status(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> u16 {
    client(gateway, Http::H1).await.ask("GET", path, fields, "").await.status
}

async fn metrics(gateway: &Gateway) -> Metrics {
    scrape::metrics(gateway.ready.admin).await
}

async fn until(gateway: &Gateway, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
    scrape::until(gateway.ready.admin, what, wanted).await
}

async fn sees(sim: &Sim, what: &str, wanted: impl Fn(&Counts) -> bool) {
    assert!(sim.wait_for(wanted, PATIENCE).await.is_ok(), "{what}: {:?}", sim.counts());
}

fn connections(metrics: &Metrics, upstream: &str) -> f64 {
    metrics.sum(&format!("tidegate_upstream_connections{{upstream=\"{upstream}\""))
}

fn reloads(metrics: &Metrics) -> (f64, f64) {
    let of = |result| metrics.get(&format!("{RELOADS}{{result=\"{result}\"}}"));
    (of("ok"), of("refused"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_refused_from_then_on_and_its_stream_goes_on() {
    let sim = sim(false).await;
    let (old, new) = (auth::new_key().expect("a key"), auth::new_key().expect("a key"));
    let with = |hash: &str| {
        let tenant = "[[tenant]]\nname = \"a\"\nstreams = 9\n[[tenant.key]]\nsha256 = ";
        plain(&sim, &format!("{tenant}\"{hash}\"\n"))
    };
    let gateway = Gateway::start(&with(&old.sha256), None).await;
    let fields = |key: &'static str| [("x-api-key", key), ("sim-interval", "50ms")];
    let (old_key, new_key): (&str, &str) = (old.key.leak(), new.key.leak());
    for http in [Http::H1, Http::H2] {
        reload(&gateway, &with(&old.sha256)).await;
        assert_eq!(status(&gateway, "/v1/x", &fields(new_key)).await, 401, "not yet");
        let mut holder = client(&gateway, http).await;
        let mut live = holder.start("POST", CHAT, &fields(old_key), STREAM).await.head().await;
        live.until("\"seq\":3").await;
        reload(&gateway, &with(&new.sha256)).await;
        assert_eq!(status(&gateway, "/v1/x", &fields(old_key)).await, 401, "revoked");
        assert_eq!(status(&gateway, "/v1/x", &fields(new_key)).await, 200, "added");
        let answer = live.rest().await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean));
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
        // Nor does the connection remember whose it was.
        let again = holder.ask("GET", "/v1/x", &fields(old_key), "").await;
        assert_eq!(again.status, 401);
    }
}

/// Two upstreams on routes of their own, one worker; `goes` is left out of the second text.
fn with_and_without(stays: &Sim, goes: &Sim, http: &str) -> (String, String) {
    let of = |name: &str, sim: &Sim| {
        (upstream(name, sim, http), route(&format!("/{name}/{{*rest}}"), name, ""))
    };
    let ((stays, to_stays), (goes, to_goes)) = (of("stays", stays), of("goes", goes));
    let one_worker = |more: String| config(&more).replace("[admin]", "workers = 1\n[admin]");
    // The one that goes stands first, so that the other one's place changes.
    let both = one_worker(format!("{goes}{stays}{to_goes}{to_stays}"));
    (both, one_worker(format!("{stays}{to_stays}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_upstream_drains_and_one_that_stays_keeps_its_connections() {
    for (h2, http) in [(false, "http = 1"), (true, "http = 2")] {
        let (stays, goes) = (sim(h2).await, sim(h2).await);
        let (both, one) = with_and_without(&stays, &goes, http);
        let gateway = Gateway::start(&both, None).await;
        let fields = [("sim-interval", "50ms"), ("sim-count", "20")];
        let mut holder = client(&gateway, Http::H1).await;
        let path = format!("/goes{CHAT}");
        let mut live = holder.start("POST", &path, &fields, STREAM).await.head().await;
        live.until("\"seq\":2").await;
        assert_eq!(status(&gateway, "/goes/x", &[]).await, 200);
        assert_eq!(status(&gateway, "/stays/x", &[]).await, 200);
        // Over HTTP/1.1 one connection streams and one is idle, over HTTP/2 one does for both.
        let open: u32 = if h2 { 1 } else { 2 };
        until(&gateway, "all at rest", |m| connections(m, "goes") == f64::from(open)).await;
        assert_eq!(goes.counts().connections_live, u64::from(open));

        reload(&gateway, &one).await;
        assert_eq!(status(&gateway, "/goes/x", &[]).await, 404, "its route is gone");
        assert_eq!(status(&gateway, "/stays/x", &[]).await, 200);
        sees(&goes, "what is idle closes at once", |c| c.connections_live == 1).await;
        until(&gateway, "and is told", |m| connections(m, "goes") == 1.0).await;
        assert_eq!(goes.counts().live, 1, "what streams goes on");

        let answer = live.rest().await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean));
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
        sees(&goes, "the last stream takes its connection along", |c| c.connections_live == 0)
            .await;
        let end = until(&gateway, "and that is told", |m| connections(m, "goes") == 0.0).await;
        assert_eq!(end.live(), 0.0);
        let ended = "tidegate_streams_ended_total{upstream=\"goes\",reason=\"completed\"}";
        assert_eq!(end.get(ended), 2.0, "its series stay");
        assert_eq!(stays.counts().connections, 1, "one connection served both configurations");

        // Back again it is dialled anew, and its counts go on.
        reload(&gateway, &both).await;
        assert_eq!(status(&gateway, "/goes/x", &[]).await, 200);
        until(&gateway, "counted on", |m| m.get(ended) == 3.0).await;
        assert_eq!(goes.counts().connections, if h2 { 2 } else { 3 });
        assert_eq!(stays.counts().connections, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_their_way_to_a_removed_upstream_arrive() {
    for (h2, http) in [(false, "http = 1"), (true, "http = 2")] {
        let stays = sim(h2).await;
        // Its first answer to a new connection takes long enough for the reload to come first.
        let slow_accept = Duration::from_millis(500);
        let options = sim::Options { h1: !h2, h2, slow_accept, ..sim::Options::default() };
        let goes = Sim::start(([127, 0, 0, 1], 0).into(), options).await.expect("an upstream");
        let (both, one) = with_and_without(&stays, &goes, http);
        let gateway = Gateway::start(&both, None).await;
        let mut asking = client(&gateway, Http::H1).await;
        let path = format!("/goes{CHAT}");
        let asked = asking.start("POST", &path, &[], STREAM).await;
        until(&gateway, "admitted", |m| m.live() == 1.0).await;
        assert_eq!(goes.counts().requests, 0, "it is still connecting");
        reload(&gateway, &one).await;
        let answer = soon(asked.head()).await.rest().await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean));
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
        sees(&goes, "nothing stays open", |c| c.connections_live == 0 && c.completed == 1).await;
        until(&gateway, "as is told", |m| connections(m, "goes") == 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_url_leads_new_requests_elsewhere_and_another_header_keeps_the_connections() {
    let (first, second) = (sim(false).await, sim(false).await);
    let text = |sim: &Sim, header: &str| {
        let header = format!("headers = {{ x-mark = \"{header}\" }}");
        config(&upstream("sim", sim, &header)).replace("[admin]", "workers = 1\n[admin]")
    };
    let gateway = Gateway::start(&text(&first, "one"), None).await;
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200);
    reload(&gateway, &text(&first, "two")).await;
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200);
    let seen = first.requests();
    let marks: Vec<_> = seen.iter().filter_map(|seen| seen.header("x-mark")).collect();
    assert_eq!(marks, ["one", "two"]);
    assert_eq!(seen[0].connection, seen[1].connection, "the same connection");
    reload(&gateway, &text(&second, "two")).await;
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200);
    assert_eq!((first.counts().requests, second.counts().requests), (2, 1));
    sees(&first, "the old address is left at once", |c| c.connections_live == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lower_limits_take_nothing_away_and_give_nothing_more() {
    let sim = sim(false).await;
    let text = |streams| plain(&sim, &format!("[limits]\nstreams = {streams}\n"));
    let gateway = Gateway::start(&text(10), None).await;
    let fields = [("sim-interval", "100ms"), ("sim-count", "15")];
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(client(&gateway, Http::H1).await);
    }
    let mut live = Vec::new();
    for client in &mut clients {
        let mut one = client.start("POST", CHAT, &fields, STREAM).await.head().await;
        one.until("data:").await;
        live.push(one);
    }
    reload(&gateway, &text(2)).await;
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 503, "three of two places are taken");
    reload(&gateway, &text(4)).await;
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200, "there is room again");
    reload(&gateway, &text(2)).await;
    for one in live {
        let answer = one.rest().await;
        assert_eq!((answer.status, &answer.end), (200, &End::Clean));
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    }
    let end = until(&gateway, "all over", |m| m.live() == 0.0).await;
    assert_eq!(end.get("tidegate_rejections_total{limit=\"streams\"}"), 1.0);
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200, "two places are free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_queues_goes_on_when_the_limit_is_raised_or_lifted() {
    let sim = sim(false).await;
    let text = |max: usize| {
        config(&upstream("sim", &sim, &format!("max_streams = {max}\nqueue_wait = \"60s\"")))
    };
    let depth = "tidegate_queue_depth{upstream=\"sim\"}";
    for lifted in [2, 0] {
        let gateway = Gateway::start(&text(1), None).await;
        let mut holder = client(&gateway, Http::H1).await;
        let stall = [("sim-fault", "stall")];
        let mut live = holder.start("POST", CHAT, &stall, STREAM).await.head().await;
        live.until("data:").await;
        let mut waits = client(&gateway, Http::H1).await;
        let waiting = waits.start("GET", "/v1/x", &[], "").await;
        until(&gateway, "it queues", |m| m.get(depth) == 1.0).await;
        reload(&gateway, &text(1)).await;
        assert_eq!(metrics(&gateway).await.get(depth), 1.0, "a reload alone frees nothing");
        reload(&gateway, &text(lifted)).await;
        assert_eq!(soon(waiting.head()).await.rest().await.status, 200, "{lifted}");
        until(&gateway, "nobody queues", |m| m.get(depth) == 0.0).await;
        // Back to one place: the stream that has it is still counted.
        reload(&gateway, &text(1)).await;
        let mut again = client(&gateway, Http::H1).await;
        let waiting = again.start("GET", "/v1/x", &[], "").await;
        until(&gateway, "it queues again", |m| m.get(depth) == 1.0).await;
        drop(holder);
        assert_eq!(soon(waiting.head()).await.rest().await.status, 200);
        until(&gateway, "all over", |m| m.get(depth) == 0.0 && m.live() == 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_streams_keep_their_rules_and_new_ones_have_the_new() {
    let sim = sim(false).await;
    let quiet = plain(&sim, "[stream]\nheartbeat = \"off\"\n");
    let beating = plain(
        &sim,
        "[stream]\nheartbeat = \"100ms\"\n[cors]\norigins = [\"https://app.example\"]\n",
    );
    let gateway = Gateway::start(&quiet, None).await;
    let fields = [("sim-interval", "400ms"), ("sim-count", "4"), ("origin", "https://app.example")];
    let (mut before, mut after) =
        (client(&gateway, Http::H1).await, client(&gateway, Http::H2).await);
    let mut old = before.start("POST", CHAT, &fields, STREAM).await.head().await;
    old.until("data:").await;
    reload(&gateway, &beating).await;
    let new = after.stream(&fields).await;
    let (allows, old) = ("access-control-allow-origin", old.rest().await);
    assert!(!old.text().contains(": ping"), "{}", old.text());
    assert_eq!(old.header(allows), None);
    assert!(new.text().contains(": ping"), "{}", new.text());
    assert_eq!(new.header(allows), Some("https://app.example"));
    let again = before.stream(&fields).await;
    assert!(again.text().contains(": ping"), "the connection itself keeps nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_configuration_changes_nothing_and_every_fault_is_told() {
    let (sim, other) = (sim(false).await, sim(false).await);
    let key = auth::new_key().expect("a key");
    let tenant = format!("[[tenant]]\nname = \"a\"\n[[tenant.key]]\nsha256 = \"{}\"\n", key.sha256);
    let gateway = Gateway::start(&plain(&sim, &tenant), None).await;
    let fields = [("x-api-key", key.key.as_str())];
    let answers = async || {
        assert_eq!(status(&gateway, "/v1/x", &fields).await, 200);
        assert_eq!(status(&gateway, "/v1/x", &[]).await, 401);
        assert_eq!(status(&gateway, "/new/x", &fields).await, 404);
    };
    answers().await;
    let files = tempfile::tempdir().expect("a folder");
    let broken = files.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .expect("a file");
    let good = config(&format!(
        "[limits]\nstreams = 1\n{}{}",
        upstream("sim", &other, ""),
        route("/new/{*rest}", "sim", "")
    ));
    let faulty = format!("workerz = 3\n{}", good.replace("streams = 1", "streams = 0"));
    let faulty = format!("{faulty}[[tenant]]\nname = \"no name\"\n");
    let refused = gateway.reload(&faulty).await.expect_err("three faults");
    assert_eq!(refused.0.len(), 3, "{refused}");
    for part in ["test.toml:1: workerz: ", "limits.streams: ", "tenant[0].name: "] {
        assert!(refused.to_string().contains(part), "{part}: {refused}");
    }
    answers().await;
    // Files that are no good are found before anything changes, and all of them.
    let with_ca = good.replace("name = \"sim\"", &format!("name = \"sim\"\nca = {broken:?}"));
    let twice =
        format!("{with_ca}[[upstream]]\nname = \"b\"\nurls = [\"http://h\"]\nca = {broken:?}\n");
    let refused = gateway.reload(&twice).await.expect_err("no certificates");
    assert_eq!(refused.0.len(), 2, "{refused}");
    assert!(refused.0.iter().all(|fault| fault.contains("broken.pem")), "{refused}");
    answers().await;
    assert_eq!(other.counts().connections, 0, "nobody went there");
    assert_eq!(reloads(&metrics(&gateway).await), (0.0, 2.0));
    reload(&gateway, &good).await;
    assert_eq!(status(&gateway, "/new/x", &[]).await, 200);
    assert_eq!(reloads(&metrics(&gateway).await), (1.0, 2.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_change_is_named_and_the_rest_is_taken_over() {
    let sim = sim(false).await;
    let gateway = Gateway::start(&plain(&sim, ""), None).await;
    let wanted = format!(
        "[server]\nlisten = [\"127.0.0.1:1\"]\nworkers = 7\nh2_max_streams = 7\n[admin]\n\
         listen = \"127.0.0.1:2\"\n{}{}",
        upstream("sim", &sim, ""),
        route("/new/{*rest}", "sim", "")
    );
    for _ in 0..2 {
        let notices = gateway.reload(&wanted).await.expect("it is valid");
        let said: Vec<_> = notices.iter().map(ToString::to_string).collect();
        let named =
            |key: &str| said.iter().any(|line| line.starts_with(&format!("restart: {key}: ")));
        for key in ["server.listen", "server.workers", "admin.listen"] {
            assert!(named(key), "{key}: {said:?}");
        }
        assert_eq!(said.iter().filter(|line| line.starts_with("restart")).count(), 3, "{said:?}");
        assert_eq!(status(&gateway, "/new/x", &[]).await, 200);
        let mut client = client(&gateway, Http::H2).await;
        assert_eq!(client.ask("GET", "/new/x", &[], "").await.status, 200);
        let Client::H2(sender) = client else { panic!("HTTP/2") };
        assert_eq!(sender.current_max_send_streams(), 7, "new connections are told");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again() {
    let sim = sim(false).await;
    let files = tempfile::tempdir().expect("a folder");
    let write = |made: &sim::Certificate| {
        for (name, text) in [("cert", &made.chain_pem), ("key", &made.key_pem)] {
            std::fs::write(files.path().join(name), text).expect("a file");
        }
    };
    let made = || sim::make_certificate(&["localhost"]).expect("a certificate");
    let (old, new) = (made(), made());
    write(&old);
    let paths = ["cert", "key"].map(|name| files.path().join(name));
    let text = plain(&sim, &format!("[server.tls]\ncert = {:?}\nkey = {:?}\n", paths[0], paths[1]));
    let gateway = Gateway::start(&text, None).await;
    let address = gateway.ready.listen[0];
    let fields = [("sim-interval", "50ms")];
    let mut holder = Client::connect(address, Http::H1, Some(&old.ca_pem)).await;
    let mut live = holder.start("POST", CHAT, &fields, STREAM).await.head().await;
    live.until("data:").await;
    // Half-way through a change the key is not the certificate's: that is refused.
    std::fs::write(&paths[0], &new.chain_pem).expect("a file");
    let refused = gateway.reload(&text).await.expect_err("another's key");
    assert!(refused.to_string().starts_with("server.tls: "), "{refused}");
    let mut client = Client::connect(address, Http::H2, Some(&old.ca_pem)).await;
    assert_eq!(client.ask("GET", "/v1/x", &[], "").await.status, 200);
    write(&new);
    reload(&gateway, &text).await;
    let mut client = Client::connect(address, Http::H2, Some(&new.ca_pem)).await;
    assert_eq!(client.ask("GET", "/v1/x", &[], "").await.status, 200);
    let answer = live.rest().await;
    assert_eq!((answer.status, &answer.end), (200, &End::Clean));
    assert_eq!(holder.ask("GET", "/v1/x", &[], "").await.status, 200, "it is as it was");
    // Without TLS clients would suddenly speak in the clear.
    let notices = gateway.reload(&plain(&sim, "")).await.expect("it is valid");
    assert!(notices.iter().any(|notice| notice.key == "server.tls"), "{notices:?}");
    let mut client = Client::connect(address, Http::H1, Some(&new.ca_pem)).await;
    assert_eq!(client.ask("GET", "/v1/x", &[], "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_bounded_over_the_life_of_the_process() {
    let sim = sim(false).await;
    let text = |prefix: &str, count: usize| {
        let upstreams = (0..count).map(|n| upstream(&format!("{prefix}{n}"), &sim, ""));
        let route = route("/v1/{*rest}", &format!("{prefix}0"), "");
        config(&format!("{}{route}", upstreams.collect::<String>()))
    };
    let gateway = Gateway::start(&text("a", 100), None).await;
    reload(&gateway, &text("b", 100)).await;
    let refused = gateway.reload(&text("c", 57)).await.expect_err("257 in all");
    assert!(refused.to_string().contains("restart"), "{refused}");
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200);
    let events = |m: &Metrics, name: &str| {
        m.get(&format!("tidegate_streams_ended_total{{upstream=\"{name}\",reason=\"completed\"}}"))
    };
    until(&gateway, "the refused one is not in force", |m| events(m, "b0") == 1.0).await;
    reload(&gateway, &text("c", 56)).await;
    reload(&gateway, &text("a", 100)).await;
    assert_eq!(status(&gateway, "/v1/x", &[]).await, 200);
    until(&gateway, "counted where it was", |m| events(m, "a0") == 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_during_a_drain_is_ignored() {
    let sim = sim(false).await;
    let gateway = Gateway::start(&plain(&sim, ""), None).await;
    let mut holder = client(&gateway, Http::H1).await;
    let fields = [("sim-interval", "50ms")];
    let mut live = holder.start("POST", CHAT, &fields, STREAM).await.head().await;
    live.until("data:").await;
    gateway.stop();
    soon(async {
        while scrape::admin(gateway.ready.admin, "GET", "/readyz").await.0 != 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = gateway.reload(&plain(&sim, "")).await.expect_err("a drain");
    assert!(refused.to_string().contains("drain"), "{refused}");
    assert_eq!(reloads(&metrics(&gateway).await), (0.0, 0.0), "neither one nor the other");
    assert_eq!(live.rest().await.end, End::Clean);
    drop(holder);
    gateway.ended().await;
}
