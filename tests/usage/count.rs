//! Counters by tenant and model, in every family, and what nobody knows.

use super::stage::client::{CHAT, STREAM};
use super::stage::{Client, End, Gateway, Http, Metrics, Setup, Stage, scrape, soon};
use super::{PROMPT, all_tokens, all_unknown, tenants, tokens, unknown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A request of a model; chats ask for their usage if `usage`.
fn body(model: &str, stream: bool, usage: bool) -> String {
    let options = if usage { "\"stream_options\":{\"include_usage\":true}," } else { "" };
    // As SDKs do: the model comes last.
    format!("{{\"messages\":[],{options}\"stream\":{stream},\"model\":\"{model}\"}}")
}

/// The metrics once `requests` are over.
async fn after(stage: &Stage, requests: f64) -> Metrics {
    let over = |m: &Metrics| m.live() == 0.0 && m.sum("tidegate_streams_ended_total{") == requests;
    stage.until("all are over", over).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_every_family_are_counted_by_tenant_and_model() {
    let (sections, bearers) = tenants(&[("a", "tokens_per_minute = { own = 100000 }"), ("b", "")]);
    let more = format!("[usage]\nmodels = [\"big\"]\n{sections}");
    for upstream_h2 in [false, true] {
        let setup = Setup { more: more.clone(), upstream_h2, ..Setup::default() };
        let stage = Stage::start(setup).await;
        let metrics = stage.metrics().await;
        for (tenant, model) in [("", "*"), ("", "big"), ("a", "own"), ("a", "big"), ("b", "*")] {
            assert_eq!(tokens(&metrics, tenant, model), (0.0, 0.0), "it is there from the start");
        }
        let mut asked = 0.0;
        for http in [Http::H1, Http::H2] {
            let mut client = stage.client(http).await;
            for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"] {
                for (model, stream, split) in
                    [("big", true, "none"), ("own", true, "byte"), ("other", false, "none")]
                {
                    let fields = [
                        ("authorization", bearers[0].as_str()),
                        ("sim-count", "7"),
                        ("sim-split", split),
                        ("accept-encoding", "gzip"),
                    ];
                    let body = body(model, stream, true);
                    let answer = client.ask("POST", path, &fields, body).await;
                    assert_eq!((answer.status, answer.end), (200, End::Clean), "{path} {model}");
                    asked += 1.0;
                }
            }
        }
        let fields = [("authorization", bearers[1].as_str()), ("sim-count", "3")];
        let mut client = stage.client(Http::H1).await;
        client.ask("POST", CHAT, &fields, body("own", false, false)).await;
        let metrics = after(&stage, asked + 1.0).await;
        for model in ["big", "own", "*"] {
            let counted = tokens(&metrics, "a", model);
            assert_eq!(counted, (8.0 * PROMPT, 8.0 * 7.0), "{model}, upstream h2 {upstream_h2}");
        }
        assert_eq!(tokens(&metrics, "b", "*"), (PROMPT, 3.0), "`own` is a's model");
        assert_eq!(tokens(&metrics, "b", "big"), (0.0, 0.0));
        assert_eq!(all_tokens(&metrics), 25.0 * PROMPT + 24.0 * 7.0 + 3.0);
        assert_eq!(all_unknown(&metrics), 0.0);
        let seen = stage.sim.requests();
        let encodings = seen.iter().filter_map(|seen| seen.header("accept-encoding"));
        assert!(encodings.clone().count() > 20 && encodings.clone().all(|e| e == "identity"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_told_is_unknown_and_says_why() {
    let (more, bearers) = tenants(&[("a", "")]);
    for http in [Http::H1, Http::H2] {
        let stage = Stage::start(Setup { more: more.clone(), ..Setup::default() }).await;
        let key = ("authorization", bearers[0].as_str());
        let mut client = stage.client(http).await;
        let ask = |usage| body("m", true, usage);
        // Complete, without usage.
        client.ask("POST", CHAT, &[key], ask(false)).await;
        let metrics = after(&stage, 1.0).await;
        assert_eq!((unknown(&metrics, "not_sent"), all_unknown(&metrics)), (1.0, 1.0));
        // It breaks off; in Anthropic's API after a first, provisional usage.
        for path in [CHAT, "/v1/messages"] {
            let mut client = stage.client(http).await;
            let answer = client.ask("POST", path, &[key, ("sim-fault", "fin")], ask(true)).await;
            assert_eq!(answer.end, End::Cut);
        }
        let metrics = after(&stage, 3.0).await;
        assert_eq!((unknown(&metrics, "failed"), all_unknown(&metrics)), (2.0, 3.0));
        // The client leaves in mid-stream, or while it waits for the head.
        for path in [CHAT, "/v1/messages"] {
            let mut leaver = stage.client(http).await;
            let fields = [key, ("sim-fault", "stall")];
            let mut live = soon(leaver.start("POST", path, &fields, ask(true)).await.head()).await;
            live.until("\"seq\":").await;
            drop(live);
            drop(leaver);
        }
        let metrics = after(&stage, 5.0).await;
        assert_eq!((unknown(&metrics, "client_left"), all_unknown(&metrics)), (2.0, 5.0));
        let before = stage.sim.counts().requests;
        let mut leaver = stage.client(http).await;
        let started =
            leaver.start("POST", CHAT, &[key, ("sim-fault", "stall-head")], ask(true)).await;
        let reached = stage.sim.wait_for(|c| c.requests > before, super::stage::PATIENCE).await;
        reached.expect("the request at the upstream");
        drop(started);
        drop(leaver);
        let metrics = after(&stage, 6.0).await;
        assert_eq!((unknown(&metrics, "client_left"), all_unknown(&metrics)), (3.0, 6.0));
        // Where no model worked, nothing is unknown: an error, a stored answer that is read again,
        // what is no model's.
        for (method, path, status) in [
            ("POST", CHAT, "429"),
            ("POST", CHAT, "500"),
            ("GET", "/v1/responses/resp-1", "200"),
            ("GET", "/v1/models", "200"),
            ("POST", "/v1/files", "200"),
        ] {
            let body = if method == "POST" { ask(false) } else { String::new() };
            let answer = client.ask(method, path, &[key, ("sim-status", status)], body).await;
            assert_eq!(answer.status.to_string(), status);
        }
        let metrics = after(&stage, 11.0).await;
        assert_eq!((all_unknown(&metrics), all_tokens(&metrics)), (6.0, 0.0));
        let refused = client.ask("POST", CHAT, &[], ask(false)).await;
        assert_eq!(refused.status, 401);
        assert_eq!(all_unknown(&stage.metrics().await), 6.0, "without a key there is no request");
    }
}

/// An upstream that answers each request with `answer` and closes.
async fn playing(answer: &'static [u8]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut asked = Vec::new();
            // Every request of these tests ends in a brace.
            while !asked.ends_with(b"}") && socket.read_buf(&mut asked).await.is_ok_and(|n| n > 0) {
            }
            let _ = socket.write_all(answer).await;
            let _ = socket.shutdown().await;
            let _ = socket.read_to_end(&mut asked).await;
        }
    });
    address
}

async fn played(answer: &'static [u8], path: &str) -> Metrics {
    let upstream = playing(answer).await;
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"sim\"\nurls = [\"http://{upstream}\"]\n[[route]]\nusage = \"count\"\n"
    );
    let gateway = Gateway::start(&text, None).await;
    let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
    let answer = client.ask("POST", path, &[], body("m", false, false)).await;
    assert_eq!((answer.status, answer.end), (200, End::Clean));
    let over = |m: &Metrics| m.sum("tidegate_streams_ended_total{") == 1.0;
    scrape::until(gateway.ready.admin, "it is over", over).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoded_answer_is_not_read_and_a_question_about_tokens_takes_none() {
    // What would be found in it, if it were looked for.
    let told: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 18\r\n\r\n\
        {\"total_tokens\":5 }";
    let metrics = played(told, CHAT).await;
    assert_eq!((unknown(&metrics, "not_read"), all_unknown(&metrics)), (1.0, 1.0));
    assert_eq!(all_tokens(&metrics), 0.0);
    let told: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"input_tokens\":5 }";
    let metrics = played(told, "/v1/messages/count_tokens").await;
    assert_eq!((all_tokens(&metrics), all_unknown(&metrics)), (0.0, 0.0));
    let metrics = played(told, "/v1/embeddings").await;
    assert_eq!(tokens(&metrics, "", "*"), (5.0, 0.0), "told is told, whatever the API");
    let told: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"total_tokens\":5 }";
    let metrics = played(told, CHAT).await;
    let unsplit = "tidegate_tokens_total{tenant=\"\",model=\"*\",kind=\"unsplit\"}";
    assert_eq!((metrics.get(unsplit), all_tokens(&metrics)), (5.0, 5.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_named_behind_a_long_prompt_is_found() {
    let more = "[usage]\nmodels = [\"big\"]".to_owned();
    let route = "usage = \"count\"".to_owned();
    let stage = Stage::start(Setup { more, route, ..Setup::default() }).await;
    let prompt = "x".repeat(300_000);
    let body = format!("{{\"messages\":[\"{prompt}\"],\"stream\":false,\"model\":\"big\"}}");
    stage.client(Http::H1).await.ask("POST", CHAT, &[("sim-count", "4")], body).await;
    assert_eq!(tokens(&after(&stage, 1.0).await, "", "big"), (PROMPT, 4.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_counted_where_nobody_asked_for_it() {
    let stage = Stage::start(Setup::default()).await;
    let fields = [("sim-count", "3")];
    let answer = stage.client(Http::H1).await.ask("POST", CHAT, &fields, STREAM).await;
    assert_eq!(answer.status, 200);
    stage.client(Http::H1).await.ask("POST", CHAT, &fields, body("m", false, true)).await;
    let metrics = after(&stage, 2.0).await;
    assert_eq!((all_tokens(&metrics), all_unknown(&metrics)), (0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_go_on_over_reloads_by_name() {
    let upstream = tidegate::sim::Sim::start(([127, 0, 0, 1], 0).into(), Default::default()).await;
    let upstream = upstream.expect("the simulated upstream");
    let (first, keys) = tenants(&[("a", "")]);
    let (second, others) = tenants(&[("b", ""), ("c", "")]);
    let text = |tenants: &str, models: &str| {
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [usage]\nmodels = {models}\n{tenants}\n\
             [[upstream]]\nname = \"sim\"\nurls = [\"http://{}\"]\n",
            upstream.addr()
        )
    };
    let gateway = Gateway::start(&text(&first, "[\"m\"]"), None).await;
    let ask = async |bearer: &str, model: &str| {
        let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
        let fields = [("authorization", bearer), ("sim-count", "2")];
        client.ask("POST", CHAT, &fields, body(model, false, false)).await;
        let quiet = |m: &Metrics| m.live() == 0.0;
        scrape::until(gateway.ready.admin, "it is over", quiet).await
    };
    ask(&keys[0], "m").await;
    // Another order, other tenants, other models.
    gateway.reload(&text(&format!("{second}{first}"), "[\"n\"]")).await.expect("a good file");
    for (bearer, model) in [(&keys[0], "n"), (&keys[0], "m"), (&others[0], "n"), (&others[1], "m")]
    {
        ask(bearer, model).await;
    }
    gateway.reload(&text(&second, "[]")).await.expect("a good file");
    gateway.reload(&text(&first, "[\"m\"]")).await.expect("a good file");
    let metrics = ask(&keys[0], "m").await;
    let one = (PROMPT, 2.0);
    assert_eq!(tokens(&metrics, "a", "m"), (2.0 * PROMPT, 4.0), "before and after it was gone");
    assert_eq!([tokens(&metrics, "a", "n"), tokens(&metrics, "a", "*")], [one, one]);
    assert_eq!([tokens(&metrics, "b", "n"), tokens(&metrics, "c", "*")], [one, one]);
    assert_eq!(all_tokens(&metrics), 6.0 * (PROMPT + 2.0));
}
