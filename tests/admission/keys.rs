//! Keys, whose they are, and how often one may guess; and whose address counts.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use tidegate::sim::{self, Sim};

use super::stage::client::{CHAT, STREAM};
use super::stage::events::code_of;
use super::stage::program::{self, Program};
use super::stage::{Answer, Client, Http, Setup, Stage, scrape};
use super::{TRUSTED, Tenant, refused, tenant, told_to_wait};

const MESSAGES: &str = "/v1/messages";
/// The stage's route, and one of another family.
const FAMILIES: &str =
    "[[route]]\npath = \"/v1/messages\"\nupstream = \"sim\"\nfamily = \"anthropic\"";

/// A tenant with a good, an expired and a disabled key, and a disabled tenant; the keys in this order.
fn four_keys() -> (String, [String; 4]) {
    let [good, expired, disabled, off] =
        [tenant("a", ""), tenant("b", ""), tenant("c", ""), tenant("d", "disabled = true")];
    let more = format!(
        "[limits]\nfailed_keys_per_minute = 0\n{}{}expires = 2020-01-01\n{}disabled = true\n{}",
        good.section, expired.section, disabled.section, off.section
    );
    (more, [good, expired, disabled, off].map(|tenant| tenant.key.key))
}

/// What of an answer could tell one refusal from another: its status, its fields' names, its body.
fn shape(answer: &Answer) -> (u16, BTreeSet<String>, String) {
    let names = answer.headers.keys().map(ToString::to_string).collect();
    (answer.status, names, answer.text())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_without_a_valid_key_is_refused_alike() {
    let (more, [good, expired, disabled, off]) = four_keys();
    let route = FAMILIES.to_owned();
    let stage = Stage::start(Setup { more, route, ..Setup::default() }).await;
    let unknown = "tidegate-0000000000000000000000000000000000000000000000000000000000000000";
    let bearer = |key: &str| format!("Bearer {key}");
    let mut wrong: Vec<Vec<(&str, String)>> = vec![vec![], vec![("authorization", String::new())]];
    for key in [unknown, &expired, &disabled, &off, "", &good[..good.len() - 1]] {
        wrong.push(vec![("authorization", bearer(key))]);
        wrong.push(vec![("x-api-key", key.to_owned())]);
        wrong.push(vec![("api-key", key.to_owned())]);
    }
    wrong.push(vec![("authorization", format!("Basic {good}"))]);
    wrong.push(vec![("authorization", good.clone())]);
    wrong.push(vec![("x-api-key", bearer(&good))]);
    // Which of two was meant is not for a gateway to guess.
    wrong.push(vec![("authorization", bearer(&good)), ("authorization", bearer(unknown))]);
    let mut asked = 0.0;
    for http in [Http::H1, Http::H2] {
        let mut client = stage.client(http).await;
        for path in [CHAT, MESSAGES] {
            let mut first = None;
            for fields in &wrong {
                let fields: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let answer = client.ask("POST", path, &fields, STREAM).await;
                asked += 1.0;
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{fields:?}");
                let shape = shape(&answer);
                let first = first.get_or_insert_with(|| shape.clone());
                assert_eq!(*first, shape, "{fields:?} is told apart");
            }
            let (status, _, body) = first.expect("many were asked");
            assert_eq!(status, 401);
            let body: Value = serde_json::from_str(&body).expect("JSON");
            if path == MESSAGES {
                assert_eq!(body["type"], "error");
                assert_eq!(body["error"]["type"], "authentication_error");
            } else {
                assert_eq!(code_of(&body.to_string()).as_deref(), Some("invalid_api_key"));
            }
        }
        let answer = client.ask("POST", CHAT, &[("x-api-key", &good)], STREAM).await;
        assert_eq!(answer.status, 200, "the good one is");
    }
    let metrics = stage.metrics().await;
    assert_eq!(refused(&metrics, "key"), asked);
    assert_eq!(stage.sim.counts().requests, 2, "refusals touch no upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_taken_goes_no_further() {
    let files = tempfile::tempdir().expect("a folder");
    let path = files.path().join("key");
    std::fs::write(&path, "sk-upstream").expect("a file");
    for with_credential in [false, true] {
        let one = tenant("a", "");
        let upstream = match with_credential {
            true => format!("credential = {{ file = {path:?} }}"),
            false => String::new(),
        };
        let setup = Setup { more: one.section.clone(), upstream, ..Setup::default() };
        let stage = Stage::start(setup).await;
        let (bearer, key) = (one.bearer.as_str(), one.key.key.as_str());
        let ways: [&[(&str, &str)]; 7] = [
            &[("authorization", bearer)],
            &[("x-api-key", key)],
            &[("api-key", key)],
            // SDKs send it twice when they are told it twice.
            &[("authorization", bearer), ("x-api-key", key)],
            &[("authorization", bearer), ("api-key", key), ("x-api-key", key)],
            &[("x-api-key", key), ("authorization", "Bearer sk-own")],
            &[("authorization", bearer), ("x-api-key", "sk-own")],
        ];
        for (n, fields) in ways.iter().enumerate() {
            for http in [Http::H1, Http::H2] {
                let answer = stage.client(http).await.ask("GET", "/v1/x", fields, "").await;
                assert_eq!(answer.status, 200, "{fields:?}: {}", answer.text());
                let seen = stage.sim.requests().pop().expect("a request");
                let told = seen.headers.iter().find(|(_, value)| value.contains(key));
                assert_eq!(told, None, "the upstream was told the key, sent as {fields:?}");
                let own = ["authorization", "x-api-key"].map(|name| seen.header(name));
                let expected = match (with_credential, n) {
                    (true, _) => [Some("Bearer sk-upstream"), None],
                    (false, 5) => [Some("Bearer sk-own"), None],
                    (false, 6) => [None, Some("sk-own")],
                    (false, _) => [None, None],
                };
                assert_eq!(own, expected, "{fields:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_is_not_the_tenants_is_forbidden() {
    let (one, two) = (tenant("a", ""), tenant("b", ""));
    let more = format!("{}{}", one.section, two.section);
    let route = format!("tenants = [\"b\"]\n{FAMILIES}\ntenants = [\"b\"]");
    let stage = Stage::start(Setup { more, route, ..Setup::default() }).await;
    let mut client = stage.client(Http::H2).await;
    for (path, of) in [(CHAT, "code"), (MESSAGES, "type")] {
        let answer = client.ask("POST", path, &[("authorization", &one.bearer)], STREAM).await;
        let body: Value = serde_json::from_str(&answer.text()).expect("JSON");
        let said = if path == CHAT { "forbidden" } else { "permission_error" };
        assert_eq!((answer.status, &body["error"][of]), (403, &said.into()));
        assert_eq!(answer.header("www-authenticate"), None, "another key is not what is missing");
    }
    assert_eq!(stage.sim.counts().requests, 0);
    let answer = client.ask("POST", CHAT, &[("authorization", &two.bearer)], STREAM).await;
    assert_eq!(answer.status, 200);
    assert_eq!(refused(&stage.metrics().await, "forbidden"), 2.0);
}

/// Asks with a key from an address and returns the status.
async fn from(client: &mut Client, address: &str, key: &str) -> Answer {
    let fields = [("x-forwarded-for", address), ("x-api-key", key)];
    client.ask("GET", "/v1/x", &fields, "").await
}

async fn guarded(server: &str, tenant: &Tenant) -> Stage {
    let more = format!("[limits]\nfailed_keys_per_minute = 3\n{}", tenant.section);
    Stage::start(Setup { more, server: server.to_owned(), ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_are_counted_by_address_and_harm_no_other() {
    let one = tenant("a", "");
    let good = one.key.key.as_str();
    let stage = guarded(TRUSTED, &one).await;
    let mut client = stage.client(Http::H1).await;
    // What stands left of the client's own address is hearsay; a /64 is one customer.
    let guesses = [
        ["9.9.9.9", "6.6.6.1, 9.9.9.9", "6.6.6.2, 9.9.9.9, 127.0.0.7", "6.6.6.3,9.9.9.9:80"],
        ["2001:db8:0:1::1", "[2001:db8:0:1::2]:99", "2001:db8:0:1:ffff::", "2001:db8:0:1:a:b:c:d"],
    ];
    for [own, second, third, fourth] in guesses {
        for address in [own, second, third] {
            assert_eq!(from(&mut client, address, "wrong").await.status, 401, "{address}");
        }
        for key in ["wrong", good] {
            let answer = from(&mut client, fourth, key).await;
            assert_eq!(answer.status, 429, "{fourth}");
            assert_eq!(code_of(&answer.text()).as_deref(), Some("failed_keys_limit"));
            // Three a minute are one in twenty seconds.
            let millis = told_to_wait(&answer);
            assert!((1_000..=20_000).contains(&millis), "{millis}");
            assert_eq!(answer.header("x-should-retry"), None);
        }
    }
    for address in ["6.6.6.1", "9.9.9.8", "2001:db8:0:2::1", "127.0.0.1"] {
        assert_eq!(from(&mut client, address, good).await.status, 200, "{address}");
    }
    let metrics = stage.metrics().await;
    assert_eq!((refused(&metrics, "key"), refused(&metrics, "failed_keys")), (6.0, 4.0));
    assert_eq!(stage.sim.counts().requests, 4, "refusals touch no upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_untrusted_peer_says_of_addresses_is_not_heard() {
    let one = tenant("a", "");
    for server in ["", "trusted_proxies = [\"10.0.0.0/8\"]"] {
        let stage = guarded(server, &one).await;
        let mut client = stage.client(Http::H2).await;
        for (address, status) in
            [("9.9.9.1", 401), ("9.9.9.2", 401), ("10.0.0.1", 401), ("9.9.9.3", 429)]
        {
            let answer = from(&mut client, address, "wrong").await;
            assert_eq!(answer.status, status, "{server} {address}");
        }
    }
}

/// The words of what `tidegate key` prints: the key, and the lines for the configuration.
fn made_key() -> (String, String) {
    let ended = program::run(&["key"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = ended.stdout.lines().collect();
    let is_key = |line: &&&str| line.trim().starts_with("tidegate-") && line.starts_with("  ");
    let key = lines.iter().find(is_key).expect("a key").trim().to_owned();
    let at = lines.iter().position(|line| line.trim() == "[[tenant.key]]").expect("lines to paste");
    assert_eq!(ended.stdout.matches(&key).count(), 1, "it is printed once");
    (key, format!("{}\n", lines[at..].join("\n")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_made_by_the_program_works_as_printed_and_is_told_nobody() {
    let (key, lines) = made_key();
    assert_ne!(key, made_key().0, "each is another");
    let hash: String =
        digest(&SHA256, key.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert!(lines.contains(&format!("sha256 = \"{hash}\"")), "{lines}");
    let any = ([127, 0, 0, 1], 0).into();
    let sim = Sim::start(any, sim::Options::default()).await.expect("an upstream");
    let files = tempfile::tempdir().expect("a folder");
    let path = files.path().join("gateway.toml");
    let text = format!(
        "[limits]\nfailed_keys_per_minute = 4\n[[tenant]]\nname = \"a\"\nnew_per_second = 4\n\
         {lines}[[upstream]]\nurls = [\"http://{}\"]\n",
        sim.addr()
    );
    std::fs::write(&path, text).expect("a file");
    let path = path.to_str().expect("UTF-8");
    let checked = program::run(&["check", "--config", path]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let program = Program::serve(&["--config", path], None);
    let mut client = Client::connect(program.listen, Http::H1, None).await;
    let mut said = String::new();
    let mut statuses = BTreeSet::new();
    // Good, until the rate is used up; then wrong ones that are nearly right, until that is.
    let near = format!("{key}-canary");
    for (key, fault) in [(&key, "none"), (&key, "fin"), (&key, "reset-head"), (&key, "html")]
        .into_iter()
        .chain(std::iter::repeat_n((&key, "none"), 8))
        .chain(std::iter::repeat_n((&near, "none"), 5))
    {
        let fields = [("x-api-key", key.as_str()), ("sim-fault", fault)];
        let mut client = Client::connect(program.listen, Http::H1, None).await;
        let answer = client.ask("POST", CHAT, &fields, STREAM).await;
        statuses.insert(answer.status);
        said += &format!("{:?} {}", answer.headers, answer.text());
    }
    assert_eq!(statuses, BTreeSet::from([200, 401, 429, 502]));
    let bearer = format!("Bearer {key}");
    let mut other = Client::connect(program.listen, Http::H1, None).await;
    let refused = other.ask("GET", "/v1/x", &[("authorization", &bearer)], "").await;
    said += &refused.text();
    let held = client.start("POST", CHAT, &[("sim-fault", "stall")], STREAM).await;
    drop(held);
    for page in ["/metrics", "/streams", "/"] {
        said += &scrape::admin(program.admin, "GET", page).await.1;
    }
    program.terminate();
    drop((client, other));
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("stream ended"), "{}", ended.stdout);
    // Neither the key nor a part of it, nor its hash.
    let secret = &key["tidegate-".len()..];
    for (what, text) in [("answers", &said), ("log", &ended.stdout), ("stderr", &ended.stderr)] {
        for part in [&secret[..16], &secret[48..], &hash[..16], "canary"] {
            assert!(!text.contains(part), "the {what} told {part}: {text}");
        }
    }
}
