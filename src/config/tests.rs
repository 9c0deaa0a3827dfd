//! Tests of the whole reader: what is read back, what is refused and where, what is said besides.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

/// Whatever a test must never find in a text made from a configuration.
const CANARY: &str = "canary-5b1d";

fn no_env(_: &str) -> Option<OsString> {
    None
}

/// The environment of these tests.
fn env(name: &str) -> Option<OsString> {
    match name {
        "KEY" => Some(format!(" sk-{CANARY}\n").into()),
        "EMPTY" => Some(" ".into()),
        "TWO_LINES" => Some(format!("{CANARY}\n{CANARY}").into()),
        "WITH_SCHEME" => Some(format!("bearer {CANARY}").into()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Loaded, Faults> {
    parse_with(text, "t.toml", &env)
}

fn config(text: &str) -> Config {
    read(text).unwrap_or_else(|faults| panic!("{faults}\n--\n{text}")).config
}

fn faults(text: &str) -> Vec<Fault> {
    match read(text) {
        Ok(_) => panic!("no fault in:\n{text}"),
        Err(faults) => faults.faults,
    }
}

/// The smallest complete configuration, with `more` in front of it.
fn with(more: &str) -> String {
    format!("{more}\n[[upstream]]\nurls = [\"https://h\"]\n")
}

/// An upstream with `more` at its end; its lines start at 3.
fn upstream(more: &str) -> String {
    format!("[[upstream]]\nurls = [\"https://h\"]\n{more}\n")
}

/// A route with `more`; its lines start at 4.
fn route(more: &str) -> String {
    format!("[[upstream]]\nurls = [\"https://h\"]\n[[route]]\n{more}\n")
}

/// A folder with a certificate, its key and a credential.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("cert.pem", &made.cert.pem()).unwrap();
        write("key.pem", &made.signing_key.serialize_pem()).unwrap();
        write("credential", &format!("{CANARY}\n")).unwrap();
        write("broken.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        write("empty", "").unwrap();
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Parses `text` as if it were a file of this folder, so that relative paths lead into it.
    fn read(&self, text: &str) -> Result<Loaded, Faults> {
        parse_with(text, self.path("t.toml").to_str().unwrap(), &env)
    }
}

/// Every key of the contract, each at a value other than its default.
const EVERYTHING: &str = r#"
[server]
listen = ["127.0.0.1:81", "[::1]:82"]
workers = 3
drain_deadline = "30s"
h2_max_streams = 7
trusted_proxies = ["10.0.0.0/8", "fd00::/8"]
tls = { cert = "cert.pem", key = "key.pem", client_ca = "cert.pem" }
[admin]
listen = "127.0.0.1:83"
[stream]
heartbeat = "5s"
commit_after = "off"
first_byte = "60s"
idle = "61s"
total = "10m"
client_stall = "10s"
backlog = "32KiB"
max_event = "2MiB"
[limits]
connections = 10
streams = 11
new_streams_per_second = 12
new_streams_burst = 15
per_ip = { streams = 13, new_per_second = 14 }
failed_keys_per_minute = 16
memory = "15MB"
body = "2MiB"
body_time = "90s"
body_rate = "1KiB"
[cors]
origins = ["https://App.example", "*"]
max_age = "1m"
[log]
level = "debug"
[usage]
models = ["gpt-4.1", "o9", "gpt-4.1"]
[[tenant]]
name = "team"
disabled = true
streams = 17
new_per_second = 18
tokens_per_minute = { "gpt-4.1" = 19, "*" = 20 }
weight = 21
priority = "batch"
[[tenant.key]]
sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
expires = 2027-01-31
disabled = true
[[tenant.key]]
sha256 = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
[[upstream]]
name = "first"
urls = ["https://a.example/openai/v1", "http://b:8000"]
weights = [95, 5]
balance = "fastest"
sticky = "header:X-Session"
retry.attempts = 3
retry.statuses = [529, 429]
retry.first_event = false
retry.budget = "10%"
retry.backoff = "24ms"
retry.backoff_max = "25s"
breaker = { window = "26s", requests = 27, share = "28%", consecutive = 29, slow = "30s", open = "31s", probes = 32 }
health = { path = "/up?x=1", interval = "33s", timeout = "34s", status = 204, changes = 35 }
http = "2"
ca = "cert.pem"
credential = { env = "KEY", header = "x-api-key", scheme = "Key" }
headers = { anthropic-version = "2023-06-01", X-Other = "o" }
query = { "z y" = "1&2", api-version = "2024-10-21" }
connect = "1s"
resolve = "36s"
max_streams = 5
queue = 6
queue_wait = "7s"
pool_max = 37
pool_idle_max = 8
pool_idle = "38s"
pool_lifetime = "39s"
pool_dials = 40
pool_warm = 41
[[upstream]]
name = "second"
urls = ["https://c"]
credential.file = "credential"
[[route]]
path = "/v1/messages"
upstream = ["second", "first"]
weights = [37, 38]
balance = "weighted"
sticky = "tenant"
family = "anthropic"
heartbeat_style = "comment-frame"
auth = "key"
tenants = ["team"]
timeout = "22s"
repeatable = true
body_buffer = "23KiB"
usage = "inject"
usage_drain = "37s"
resume = true
"#;

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tenant() -> Tenant {
    let mut hash = [0; 32];
    for (byte, value) in
        hash.iter_mut().zip([1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(4))
    {
        *byte = value;
    }
    let mut backwards = hash;
    backwards.reverse();
    let backwards = backwards.map(|byte: u8| byte.rotate_left(4));
    let models = [("gpt-4.1", 19), ("*", 20)];
    Tenant {
        name: "team".to_owned(),
        keys: vec![
            Key { sha256: hash, expires: Some(1_801_353_600), disabled: true },
            Key { sha256: backwards, expires: None, disabled: false },
        ],
        disabled: true,
        streams: Some(17),
        new_per_second: Some(18),
        tokens_per_minute: models.map(|(name, tokens)| (name.to_owned(), tokens)).into(),
        weight: 21,
        priority: Priority::Batch,
    }
}

/// What is done when the first upstream fails, and how its connections are kept.
fn resilient() -> Upstream {
    Upstream {
        urls: ["https://a.example/openai/v1", "http://b:8000"]
            .map(|u| url::parse(u).unwrap())
            .into(),
        resolve: Duration::from_secs(36),
        weights: vec![95, 5],
        balance: Balance::Fastest,
        sticky: Sticky::Header(HeaderName::from_static("x-session")),
        retry: RetryRule {
            attempts: 3,
            statuses: [429, 529].into_iter().collect(),
            first_event: false,
            budget: 0.1,
            backoff: Duration::from_millis(24),
            backoff_max: Duration::from_secs(25),
        },
        breaker: Some(BreakerRule {
            window: Duration::from_secs(26),
            requests: 27,
            share: 0.28,
            consecutive: 29,
            slow: Some(Duration::from_secs(30)),
            open: Duration::from_secs(31),
            probes: 32,
        }),
        health: Some(HealthRule {
            path: "/up?x=1".to_owned(),
            interval: Duration::from_secs(33),
            timeout: Duration::from_secs(34),
            status: 204,
            changes: 35,
        }),
        pool: PoolRule {
            max: 37,
            idle_max: 8,
            idle: Duration::from_secs(38),
            lifetime: Some(Duration::from_secs(39)),
            dials: 40,
            warm: 41,
        },
        ..Upstream::new("", url::parse("https://h").unwrap())
    }
}

fn everything(files: &Files) -> Config {
    let mut headers = HeaderMap::new();
    headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
    headers.insert("x-other", HeaderValue::from_static("o"));
    let first = Upstream {
        name: "first".to_owned(),
        http: HttpVersion::H2,
        ca: Some(files.path("cert.pem")),
        credentials: vec![Credential {
            header: HeaderName::from_static("x-api-key"),
            value: HeaderValue::from_str(&format!("Key sk-{CANARY}")).unwrap(),
            scheme: "Key".to_owned(),
            source: CredentialSource::Env("KEY".to_owned()),
        }],
        headers,
        query: "z%20y=1%262&api-version=2024-10-21".to_owned(),
        connect: Duration::from_secs(1),
        max_streams: 5,
        queue: 6,
        queue_wait: Duration::from_secs(7),
        ..resilient()
    };
    let mut second = Upstream::new("second", url::parse("https://c").unwrap());
    second.credentials = vec![Credential {
        header: http::header::AUTHORIZATION,
        value: HeaderValue::from_str(&format!("Bearer {CANARY}")).unwrap(),
        scheme: "Bearer".to_owned(),
        source: CredentialSource::File(files.path("credential")),
    }];
    Config {
        server: Server {
            listen: vec![socket("127.0.0.1:81"), socket("[::1]:82")],
            workers: 3,
            drain_deadline: Duration::from_secs(30),
            h2_max_streams: 7,
            trusted_proxies: ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).into(),
            tls: Some(Tls {
                cert: files.path("cert.pem"),
                key: files.path("key.pem"),
                client_ca: Some(files.path("cert.pem")),
            }),
        },
        admin: Admin { listen: socket("127.0.0.1:83") },
        stream: Stream {
            heartbeat: Some(Duration::from_secs(5)),
            commit_after: None,
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(61),
            total: Duration::from_secs(600),
            client_stall: Duration::from_secs(10),
            backlog: 32 << 10,
            max_event: 2 << 20,
        },
        limits: Limits {
            connections: 10,
            streams: 11,
            new_streams_per_second: 12,
            new_streams_burst: 15,
            per_ip: Some(PerIp { streams: Some(13), new_per_second: Some(14) }),
            failed_keys_per_minute: 16,
            memory: 15_000_000,
            body: 2 << 20,
            body_time: Duration::from_secs(90),
            body_rate: 1024,
        },
        cors: Cors {
            origins: vec!["https://app.example".to_owned()],
            any: true,
            max_age: Duration::from_secs(60),
        },
        log: Log { level: Level::Debug },
        usage: Usage { models: vec!["gpt-4.1".to_owned(), "o9".to_owned()] },
        tenants: vec![tenant()],
        upstreams: vec![first, second],
        routes: vec![messages()],
    }
}

fn messages() -> Route {
    Route {
        path: "/v1/messages".to_owned(),
        literal_prefix: "/v1/messages".to_owned(),
        upstreams: vec![1, 0],
        weights: vec![37, 38],
        balance: Balance::Weighted,
        sticky: Sticky::Tenant,
        family: Family::Anthropic,
        heartbeat_style: HeartbeatStyle::CommentFrame,
        auth: Auth::Key,
        tenants: vec!["team".to_owned()],
        timeout: Some(Duration::from_secs(22)),
        repeatable: true,
        body_buffer: 23 << 10,
        usage: UsageRule::Inject,
        usage_drain: Some(Duration::from_secs(37)),
        resume: true,
    }
}

#[test]
fn every_key_is_read_back() {
    let files = Files::new();
    let loaded = files.read(EVERYTHING).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(loaded.config, everything(&files));
    let value = |n: usize| &loaded.config.upstreams[n].credentials[0].value;
    assert!(value(0).is_sensitive() && value(1).is_sensitive());
    for key in keys() {
        let name = key.rsplit('.').next().unwrap();
        assert!(EVERYTHING.contains(name), "{key} is missing in this test's configuration");
    }
}

#[test]
fn the_least_configuration_has_the_defaults() {
    let all = config(&with(""));
    assert_eq!(all.server, Server::default());
    assert_eq!(all.server.listen, [socket("127.0.0.1:8080")]);
    assert_eq!(all.admin.listen, socket("127.0.0.1:9464"));
    assert_eq!(all.stream, Stream::default());
    assert_eq!(all.limits, Limits::default());
    assert_eq!((all.cors, all.log), (Cors::default(), Log::default()));
    assert_eq!(all.usage, Usage::default());
    assert_eq!(all.tenants, []);
    assert_eq!(all.upstreams, [Upstream::new("main", url::parse("https://h").unwrap())]);
    assert_eq!(all.routes, [Route::new("/v1/{*rest}", 0)]);
    assert_eq!(all.routes[0].literal_prefix, "/v1");
    assert!(read(&with("")).unwrap().notices.is_empty());
}

/// The defaults as the design states them, so that nobody changes one by accident.
#[test]
fn defaults_are_those_of_the_contract() {
    let stated = r#"
[server]
listen = ["127.0.0.1:8080"]
workers = 0
drain_deadline = "10m"
h2_max_streams = 100
trusted_proxies = []
[admin]
listen = "127.0.0.1:9464"
[stream]
heartbeat = "15s"
commit_after = "20s"
first_byte = "120s"
idle = "120s"
total = "1h"
client_stall = "30s"
backlog = "64KiB"
max_event = "16MiB"
[limits]
connections = 18000
streams = 15000
new_streams_per_second = 1000
new_streams_burst = 0
failed_keys_per_minute = 60
memory = "1GiB"
body = "100MiB"
body_time = "10m"
body_rate = "256B"
[cors]
origins = []
max_age = "10m"
[log]
level = "info"
[usage]
models = []
[[upstream]]
name = "main"
urls = ["https://h"]
http = "auto"
headers = {}
query = {}
connect = "3s"
resolve = "30s"
max_streams = 0
queue = 1000
queue_wait = "5s"
pool_max = 0
pool_idle_max = 256
pool_idle = "50s"
pool_lifetime = "1h"
pool_dials = 128
pool_warm = 0
[[route]]
path = "/v1/{*rest}"
upstream = "main"
family = "auto"
heartbeat_style = "comment"
auth = "none"
tenants = []
timeout = "off"
body_buffer = "1MiB"
usage = "off"
usage_drain = "off"
resume = false
"#;
    assert_eq!(config(stated), config(&with("")));
}

/// The dotted or indexed path under which a fault about `key` is reported.
fn reported(key: &str) -> String {
    key.replace("upstream.", "upstream[0].")
        .replace("route.", "route[0].")
        .replace("tenant.key.", "tenant.key[0].")
        .replace("tenant.", "tenant[0].")
}

/// A document in which `key` has `value`, and nothing else is unusual.
fn document(key: &str, value: &str) -> String {
    let (section, rest) = key.split_once('.').unwrap();
    let line = format!("{rest} = {value}\n");
    match section {
        "upstream" if rest == "urls" => format!("[[upstream]]\n{line}"),
        "upstream" => upstream(&line),
        "route" => route(&line),
        "tenant" => match rest.strip_prefix("key.") {
            Some(rest) => with(&format!("[[tenant]]\n[[tenant.key]]\n{rest} = {value}\n")),
            None => with(&format!("[[tenant]]\n{line}")),
        },
        _ => with(&format!("[{section}]\n{line}")),
    }
}

#[test]
fn every_key_of_the_contract_is_known_and_read() {
    assert_eq!(keys().len(), 99);
    for key in keys() {
        // No key takes a float, so each reader must object, and at its own key.
        let found = faults(&document(key, "1.5"));
        let own = found.iter().find(|fault| fault.key == reported(key));
        let own = own.unwrap_or_else(|| panic!("{key} is not read: {found:?}"));
        assert!(own.text.contains("found a float"), "{key}: {}", own.text);
        assert!(own.line.is_some(), "{key}");
    }
}

#[test]
fn every_section_refuses_a_key_it_does_not_know() {
    for key in keys() {
        let (section, name) = key.rsplit_once('.').unwrap();
        let wrong = format!("{section}.{name}_");
        let found = faults(&document(&wrong, "1"));
        let own = found.iter().find(|fault| fault.key == reported(&wrong));
        let own = own.unwrap_or_else(|| panic!("{wrong} is accepted: {found:?}"));
        assert_eq!(own.text, format!("unknown key; nearest valid key: {name}"), "{wrong}");
    }
}

#[test]
fn integers_may_select_the_http_version() {
    let version = |value: &str| config(&upstream(&format!("http = {value}"))).upstreams[0].http;
    assert_eq!(version("1"), HttpVersion::H1);
    assert_eq!(version("\"1\""), HttpVersion::H1);
    assert_eq!(version("2"), HttpVersion::H2);
    assert_eq!(version("\"auto\""), HttpVersion::Auto);
    let clear = config("[[upstream]]\nurls = [\"http://h\"]\nhttp = \"2\"");
    assert_eq!(clear.upstreams[0].http, HttpVersion::H2, "prior knowledge");
}

#[test]
fn heartbeat_and_commit_can_be_off() {
    let stream = config(&with("[stream]\nheartbeat = \"off\"\ncommit_after = \"off\"")).stream;
    assert_eq!((stream.heartbeat, stream.commit_after), (None, None));
}

/// Asserts that `text` has exactly one fault, on `line`, at `key`, saying `part`.
#[track_caller]
fn one_fault(text: &str, line: usize, key: &str, part: &str) {
    let found = faults(text);
    let shown = Faults { faults: found.clone() };
    assert_eq!(found.len(), 1, "{text}\n--\n{shown}");
    assert_eq!((found[0].line, found[0].key.as_str()), (Some(line), key), "{text}\n--\n{shown}");
    assert!(found[0].text.contains(part), "{part:?} not in: {shown}");
}

#[test]
fn faults_of_server_and_admin() {
    for (line, key, part) in [
        ("listen = []", "listen", "is empty"),
        ("listen = \"127.0.0.1:1\"", "listen", "put it in brackets"),
        ("listen = [1]", "listen[0]", "must be a string, found an integer"),
        ("listen = [\":80\"]", "listen[0]", "\"0.0.0.0:80\""),
        ("listen = [\"localhost:80\"]", "listen[0]", "\"127.0.0.1:80\""),
        ("listen = [\"127.0.0.1\"]", "listen[0]", "IP address and a port"),
        ("listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", "listen[1]", "listed twice"),
        ("workers = -1", "workers", "-1 is out of range; write 0 to 1024"),
        ("workers = 0x1000", "workers", "out of range"),
        ("workers = \"2\"", "workers", "must be an integer, found a string"),
        ("workers = true", "workers", "found a boolean"),
        ("h2_max_streams = 0", "h2_max_streams", "write 1 to 65535"),
        ("drain_deadline = 600", "drain_deadline", "must be a duration such as \"15s\""),
        ("drain_deadline = \"200h\"", "drain_deadline", "write 0ms to 168h"),
        ("trusted_proxies = [\"10.0.0.1\"]", "trusted_proxies[0]", "\"10.0.0.1/32\""),
        ("trusted_proxies = [\"10.0.0.1/8\"]", "trusted_proxies[0]", "\"10.0.0.0/8\""),
        ("trusted_proxies = [\"lan\"]", "trusted_proxies[0]", "\"10.0.0.0/8\""),
        ("lisen = []", "lisen", "unknown key; nearest valid key: listen"),
        ("heartbeat = \"15s\"", "heartbeat", "it belongs under stream"),
        ("patience = \"15s\"", "patience", "valid here: listen, workers"),
        ("tls = true", "tls", "must be a table, found a boolean"),
    ] {
        one_fault(&with(&format!("[server]\n{line}")), 2, &format!("server.{key}"), part);
    }
    one_fault(&with("[admin]\nlisten = \"9464\""), 2, "admin.listen", "not a socket address");
    one_fault(&with("\n[admin]\nlisten = \"127.0.0.1:8080\""), 3, "admin.listen", "clashes");
    one_fault(&with("[admin]\nlisten = \"[::]:8080\""), 2, "admin.listen", "clashes");
    one_fault(&with("[[server]]"), 1, "server", "only once; write [server]");
    one_fault(&with("servers = 1"), 1, "servers", "nearest valid key: server");
    one_fault(&with("[streams]"), 1, "streams", "unknown section; nearest valid key: stream");
    one_fault(&with("[tls]\ncert = \"c\""), 1, "tls", "unknown section");
    assert_eq!(config(&with("[server]\nlisten = [\"[::]:0\", \"[::]:0\"]")).server.listen.len(), 2);
}

#[test]
fn faults_of_stream_and_limits() {
    for (line, key, part) in [
        ("heartbeat = 15", "heartbeat", "such as \"15s\" or \"off\", found an integer"),
        ("heartbeat = false", "heartbeat", "or \"off\", found a boolean"),
        ("heartbeat = \"0s\"", "heartbeat", "out of range; write 1ms to 168h or \"off\""),
        ("commit_after = \"of\"", "commit_after", "or \"off\""),
        ("first_byte = \"off\"", "first_byte", "not a duration"),
        ("idle = \"2 minutes\"", "idle", "did you mean \"2m\"?"),
        ("total = \"0s\"", "total", "out of range"),
        ("client_stall = \"30\"", "client_stall", "no unit"),
        ("backlog = 65536", "backlog", "must be a size such as \"64KiB\", found an integer"),
        ("backlog = \"64K\"", "backlog", "did you mean \"64KiB\"?"),
        ("backlog = \"0B\"", "backlog", "write 1KiB to 1GiB"),
        ("max_event = \"2GiB\"", "max_event", "write 1KiB to 1GiB"),
    ] {
        one_fault(&with(&format!("[stream]\n{line}")), 2, &format!("stream.{key}"), part);
    }
    for (line, key, part) in [
        ("connections = 0", "connections", "write 1 to"),
        ("streams = 1e3", "streams", "must be an integer, found a float"),
        ("new_streams_per_second = 0", "new_streams_per_second", "write 1 to"),
        ("memory = \"1KiB\"", "memory", "write 1MiB to 16TiB"),
        ("per_ip = 5", "per_ip", "must be a table, found an integer"),
        ("per_ip = {}", "per_ip", "limits nothing"),
        ("per_ip = { streams = 0 }", "per_ip.streams", "write 1 to"),
        ("per_ip.stream = 1", "per_ip.stream", "nearest valid key: streams"),
    ] {
        let found = faults(&with(&format!("[limits]\n{line}")));
        let own = found.iter().find(|fault| fault.key == format!("limits.{key}"));
        let own = own.unwrap_or_else(|| panic!("{line}: {found:?}"));
        assert_eq!(own.line, Some(2), "{line}");
        assert!(own.text.contains(part), "{line}: {}", own.text);
    }
}

#[test]
fn faults_of_usage() {
    for (line, key, part) in [
        ("models = \"m\"", "models", "put it in brackets"),
        ("models = [\"m\", \"\"]", "models[1]", "not the name of a model"),
        ("models = [\"*\"]", "models[0]", "count as \"*\""),
        ("model = []", "model", "nearest valid key: models"),
    ] {
        one_fault(&with(&format!("[usage]\n{line}")), 2, &format!("usage.{key}"), part);
    }
}

#[test]
fn usage_is_counted_where_it_is_known_whose_it_is() {
    let key =
        format!("[[tenant]]\nname = \"a\"\n[[tenant.key]]\nsha256 = \"{}\"\n", "0".repeat(64));
    let rules = |text: &str| config(text).routes.iter().map(|r| r.usage).collect::<Vec<_>>();
    assert_eq!(rules(&with("")), [UsageRule::Off]);
    assert_eq!(rules(&with(&key)), [UsageRule::Count]);
    let open = "[[route]]\nauth = \"none\"\n[[route]]\npath = \"/b\"\nauth = \"none\"\nusage = \"count\"\n";
    assert_eq!(rules(&with(&format!("{key}{open}"))), [UsageRule::Off, UsageRule::Count]);
}

#[test]
fn faults_of_upstreams() {
    for (line, key, part) in [
        ("name = \"\"", "name", "cannot be a name"),
        ("name = \"a b\"", "name", "cannot be a name"),
        ("http = \"3\"", "http", "\"3\" is not one of auto, 1, 2"),
        ("http = \"atuo\"", "http", "did you mean \"auto\"?"),
        ("ca = \"/no/such/file\"", "ca", "\"/no/such/file\" cannot be read: No such file"),
        ("ca = \"\"", "ca", "path of a file"),
        ("headers = [\"a: b\"]", "headers", "must be a table of strings, found an array"),
        ("headers = { \"a b\" = \"\" }", "headers.\"a b\"", "not a header name"),
        ("headers = { a = 1 }", "headers.a", "must be a string in quotes, found an integer"),
        ("headers = { a = \"\\n\" }", "headers.a", "line breaks"),
        ("headers = { a = \"\", A = \"\" }", "headers.A", "given twice"),
        ("headers = { Connection = \"x\" }", "headers.Connection", "by the gateway itself"),
        ("headers = { TE = \"x\" }", "headers.TE", "by the gateway itself"),
        ("headers = { Host = \"x\" }", "headers.Host", "by the gateway itself"),
        ("headers = { transfer-encoding = \"x\" }", "headers.transfer-encoding", "gateway"),
        ("headers = { accept-encoding = \"x\" }", "headers.accept-encoding", "gateway"),
        ("headers = { Authorization = \"x\" }", "headers.Authorization", "credential = { env"),
        ("headers = { x-api-key = \"x\" }", "headers.x-api-key", "header = \"x-api-key\""),
        ("headers = { api-key = \"x\" }", "headers.api-key", "carries a credential"),
        ("headers = { cookie = \"x\" }", "headers.cookie", "carries a credential"),
        ("query = { v = 2024-10-21 }", "query.v", "in quotes, found a date or time"),
        ("query = { \"\" = \"x\" }", "query.\"\"", "empty name"),
        ("connect = \"0ms\"", "connect", "out of range"),
        ("queue_wait = \"5\"", "queue_wait", "no unit"),
        ("pool_idle_max = 99999", "pool_idle_max", "write 0 to 65536"),
        ("pool_dials = 0", "pool_dials", "write 1 to 65536"),
        ("pool_lifetime = 60", "pool_lifetime", "or \"off\""),
        ("url = \"x\"", "url", "nearest valid key: urls"),
    ] {
        one_fault(&upstream(line), 3, &format!("upstream[0].{key}"), part);
    }
    for (urls, key, part) in [
        ("[]", "urls", "is empty"),
        ("\"https://h\"", "urls", "put it in brackets"),
        ("[\"h\"]", "urls[0]", "no scheme"),
        ("[\"https://u:p@h\"]", "urls[0]", "user information"),
        ("[\"https://h\", \"https://H:443/\"]", "urls[1]", "listed twice"),
        ("[\"https://h\", 2]", "urls[1]", "must be a string"),
    ] {
        let text = format!("[[upstream]]\nurls = {urls}");
        let found = faults(&text);
        let own = found.iter().find(|fault| fault.key == format!("upstream[0].{key}"));
        let own = own.unwrap_or_else(|| panic!("{urls}: {found:?}"));
        assert_eq!(own.line, Some(2), "{urls}");
        assert!(own.text.contains(part), "{urls}: {}", own.text);
    }
    one_fault("\n[[upstream]]\nname = \"a\"", 2, "upstream[0].urls", "is missing");
    one_fault("[upstream]\nurls = []", 1, "upstream", "write [[upstream]]");
    let twice = "[[upstream]]\nurls = [\"http://a\"]\n[[upstream]]\nurls = [\"http://b\"]\n\
                 name = \"main\"\n[[route]]\nupstream = \"main\"";
    one_fault(twice, 5, "upstream[1].name", "taken by upstream[0]");
    let none = faults("[server]\nworkers = 1");
    assert_eq!(none.len(), 1);
    assert_eq!((none[0].line, none[0].key.as_str()), (None, "upstream"));
    assert!(none[0].to_string().starts_with("t.toml: upstream: there is none"), "{}", none[0]);
}

#[test]
fn faults_of_credentials() {
    for (line, key, part) in [
        ("credential = \"sk-1\"", "", "never write the key itself"),
        ("credential = 1", "", "must be a table, found an integer"),
        ("credential = {}", "", "needs env"),
        ("credential = { env = \"KEY\", file = \"/dev/null\" }", "", "has both"),
        ("credential = { env = \"NOT_THERE\" }", ".env", "variable NOT_THERE is not set"),
        ("credential = { env = \"sk-1\" }", ".env", "not the name of a variable"),
        ("credential = { env = \"\" }", ".env", "not the name of a variable"),
        ("credential = { env = \"EMPTY\" }", ".env", "empty credential"),
        ("credential = { env = \"TWO_LINES\" }", ".env", "line break"),
        ("credential = { env = \"WITH_SCHEME\" }", ".env", "already starts with \"Bearer\""),
        ("credential = { file = \"/no/such\" }", ".file", "cannot be read: No such file"),
        ("credential = { file = \"/\" }", ".file", "cannot be read: Is a directory"),
        ("credential = { file = \"/dev/zero\" }", ".file", "larger than 16384 bytes"),
        ("credential = { file = \"/dev/null\" }", ".file", "empty credential"),
        ("credential = { env = \"KEY\", header = \"a b\" }", ".header", "not a header name"),
        ("credential = { env = \"KEY\", header = \"TE\" }", ".header", "gateway itself"),
        ("credential = { env = \"KEY\", scheme = \"Bearer \" }", ".scheme", "one word"),
        ("credential = { env = \"KEY\", shceme = \"x\" }", ".shceme", "nearest valid key: scheme"),
    ] {
        let found = faults(&upstream(line));
        let own = &found[0];
        assert_eq!(own.key, format!("upstream[0].credential{key}"), "{line}: {found:?}");
        assert_eq!(own.line, Some(3), "{line}");
        assert!(own.text.contains(part), "{line}: {}", own.text);
    }
}

#[test]
fn credentials_have_the_scheme_of_their_header() {
    let value = |more: &str| {
        let text = upstream(&format!("credential = {{ env = \"KEY\"{more} }}"));
        let credential = config(&text).upstreams[0].credentials[0].clone();
        (credential.header.to_string(), credential.value.to_str().unwrap().to_owned())
    };
    let expect = |header: &str, value: String| (header.to_owned(), value);
    assert_eq!(value(""), expect("authorization", format!("Bearer sk-{CANARY}")));
    assert_eq!(
        value(", scheme = \"Basic\""),
        expect("authorization", format!("Basic sk-{CANARY}"))
    );
    assert_eq!(value(", scheme = \"\""), expect("authorization", format!("sk-{CANARY}")));
    assert_eq!(value(", header = \"Api-Key\""), expect("api-key", format!("sk-{CANARY}")));
}

#[test]
fn faults_of_routes() {
    for (line, key, part) in [
        ("path = \"v1\"", "path", "must start with a slash"),
        ("path = \"\"", "path", "must start with a slash"),
        ("path = \"/v1/*\"", "path", "pattern of another router"),
        ("path = \"/v1/:id\"", "path", "pattern of another router"),
        ("path = \"/{a}/{*b}/c\"", "path", "must be the last"),
        ("path = \"/{a}-{b}\"", "path", "two parameters in one segment"),
        ("path = \"/{}\"", "path", "invalid parameter"),
        ("path = \"/{a\"", "path", "invalid parameter"),
        ("path = \"/{a/b}\"", "path", "whose name is not"),
        ("path = \"/a}\"", "path", "cannot have"),
        ("path = \"/{{a}}\"", "path", "doubled braces"),
        ("path = \"/{a b}\"", "path", "whose name is not"),
        ("path = \"/v1?x=1\"", "path", "cannot have"),
        ("path = \"/v1/../x\"", "path", "dot segment"),
        ("path = \"//v1\"", "path", "empty segment"),
        ("path = \"/\u{e9}/{*r}\"", "path", "cannot have"),
        ("upstream = \"mian\"", "upstream", "named \"mian\"; did you mean \"main\"?"),
        ("upstream = \"other\"", "upstream", "there is \"main\""),
        ("family = \"claude\"", "family", "not one of auto, openai, responses, anthropic, plain"),
        ("family = \"open-ai\"", "family", "did you mean \"openai\"?"),
        ("heartbeat_style = \"comments\"", "heartbeat_style", "did you mean \"comment\"?"),
        ("usage = \"on\"", "usage", "not one of off, count, inject"),
        ("usage_drain = \"1h\"", "usage_drain", "write 100ms to 10m or \"off\""),
        ("resume = \"yes\"", "resume", "true or false without quotes, found a string"),
        ("pth = \"/\"", "pth", "nearest valid key: path"),
    ] {
        one_fault(&route(line), 4, &format!("route[0].{key}"), part);
    }
    let style = "family = \"openai\"\nheartbeat_style = \"anthropic\"";
    one_fault(&route(style), 3, "route[0].heartbeat_style", "break OpenAI clients");
    let same = "path = \"/a/{b}\"\n[[route]]\npath = \"/a/{b}\"";
    one_fault(&route(same), 6, "route[1].path", "path of an earlier route");
    let conflict = "path = \"/a/{b}\"\n[[route]]\npath = \"/a/{c}\"";
    one_fault(&route(conflict), 6, "route[1].path", "conflicts with the earlier route \"/a/{b}\"");
    one_fault(&with("[route]\npath = \"/\""), 1, "route", "write [[route]]");
}

#[test]
fn several_upstreams_need_routes_that_name_one() {
    let two = "[[upstream]]\nname = \"a\"\nurls = [\"http://a\"]\n\
               [[upstream]]\nname = \"b\"\nurls = [\"http://b\"]\n";
    let none = faults(two);
    assert_eq!((none.len(), none[0].line, none[0].key.as_str()), (1, None, "route"));
    one_fault(&format!("{two}[[route]]\npath = \"/a\""), 7, "route[0].upstream", "name one");
    let routed = config(&format!("{two}[[route]]\nupstream = \"b\""));
    assert_eq!(routed.routes[0].upstreams, [1]);
}

#[test]
fn a_route_may_have_several_upstreams() {
    let of = |line: &str| {
        format!(
            "[[upstream]]\nname = \"a\"\nurls = [\"http://a\"]\n\
             [[upstream]]\nname = \"b\"\nurls = [\"http://b\"]\n[[route]]\n{line}"
        )
    };
    let route = |line: &str| config(&of(line)).routes.remove(0);
    assert_eq!(route("upstream = [\"b\", \"a\"]").upstreams, [1, 0]);
    let split = "upstream = [\"a\", \"b\"]\nbalance = \"weighted\"\nweights = [95, 5]";
    let split = route(split);
    assert_eq!((&split.weights[..], split.balance), (&[95, 5][..], Balance::Weighted));
    for (line, key, part) in [
        ("upstream = []", "upstream", "names no upstream"),
        ("upstream = [\"a\", \"a\"]", "upstream[1]", "\"a\" is named twice"),
        ("upstream = [\"a\", \"c\"]", "upstream[1]", "no upstream is named \"c\""),
        ("upstream = 7", "upstream", "must be an array of strings"),
    ] {
        one_fault(&of(line), 8, &format!("route[0].{key}"), part);
    }
    let both = "upstream = [\"a\", \"b\"]\n";
    for (line, key, part) in [
        ("weights = [1]", "weights", "has 1 entries for 2 upstreams"),
        ("balance = \"fastest\"", "balance", "is not one of ordered, weighted"),
        ("sticky = \"x\"", "sticky", "must be \"off\", \"tenant\" or a header"),
    ] {
        one_fault(&of(&format!("{both}{line}")), 9, &format!("route[0].{key}"), part);
    }
}

#[test]
fn static_and_wider_routes_live_together() {
    let text = "path = \"/v1/messages\"\n[[route]]\n[[route]]\npath = \"/{*rest}\"";
    let prefixes: Vec<_> =
        config(&route(text)).routes.into_iter().map(|route| route.literal_prefix).collect();
    assert_eq!(prefixes, ["/v1/messages", "/v1", ""]);
}

#[test]
fn syntax_errors_have_line_and_column() {
    for (text, line, column) in [
        ("[server]\nworkers = \n", 2, 11),
        ("[server]\nworkers = 1\nworkers = 2\n", 3, 1),
        ("[server\n", 1, 8),
        ("a = \"\u{e9}\" x", 1, 9),
        ("a = \"x", 1, 7),
        ("= 1", 1, 1),
    ] {
        let found = faults(text);
        let at = (found[0].line, found[0].column);
        assert_eq!(at, (Some(line), Some(column)), "{text:?}: {found:?}");
        assert!(found[0].text.starts_with("not valid TOML: "), "{found:?}");
        let shown = found[0].to_string();
        assert!(shown.starts_with(&format!("t.toml:{line}:{column}: not valid TOML")), "{shown}");
    }
}

#[test]
fn only_the_first_syntax_error_is_told_and_every_duplicate() {
    let open = "[server]\nworkers = 1\nworkers = 2\nlisten = [\"x\"\nidle = 1\nidle = 1\ntotal = 2";
    let lines: Vec<_> = faults(open).iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [Some(3), Some(5)], "{:?}", faults(open));
    let text = "[stream]\nidle = 1\n[stream]\n[server]\nworkers = 1\nworkers = 2\nlisen = 1";
    let found = faults(&with(text));
    let at: Vec<_> = found.iter().map(|f| (f.line.unwrap(), f.column.is_some())).collect();
    assert_eq!(at, [(2, false), (3, true), (6, true), (7, false)], "{found:?}");
}

#[test]
fn all_faults_come_at_once_and_in_order() {
    let text = "[server]\nworkers = \"two\"\nlisten = [\"here\", \"127.0.0.1:1\", \"there\"]\n\
                [strem]\n[stream]\nidle = 5\nbacklog = \"1\"\n[[upstream]]\nurls = [\"x\"]\n\
                credential = { env = \"NOT_THERE\" }\nheaders = { te = \"\", cookie = \"\" }\n\
                [[route]]\nupstream = \"mein\"\nfamily = \"none\"\npath = \"/*\"\n";
    let found = faults(text);
    let at: Vec<_> = found.iter().map(|f| (f.line.unwrap(), f.key.as_str())).collect();
    assert_eq!(
        at,
        [
            (2, "server.workers"),
            (3, "server.listen[0]"),
            (3, "server.listen[2]"),
            (4, "strem"),
            (6, "stream.idle"),
            (7, "stream.backlog"),
            (9, "upstream[0].urls[0]"),
            (10, "upstream[0].credential.env"),
            (11, "upstream[0].headers.te"),
            (11, "upstream[0].headers.cookie"),
            (13, "route[0].upstream"),
            (14, "route[0].family"),
            (15, "route[0].path"),
        ]
    );
    let shown = Faults { faults: found }.to_string();
    assert_eq!(shown.lines().count(), 13);
    assert!(shown.starts_with("t.toml:2: server.workers: must be an integer"), "{shown}");
}

#[test]
fn line_ends_and_inline_tables_keep_positions() {
    one_fault(
        "[stream]\r\n\r\nidle = 1\r\n[[upstream]]\r\nurls = [\"http://h\"]",
        3,
        "stream.idle",
        "",
    );
    let lists = "[server]\nlisten = [\n  \"127.0.0.1:1\",\n  \"x\",\n]";
    one_fault(&with(lists), 4, "server.listen[1]", "socket address");
    let inline = "upstream = [{ urls = [\"http://h\"], htp = 1 }]";
    one_fault(inline, 1, "upstream[0].htp", "nearest valid key: http");
    one_fault("upstream = [1]", 1, "upstream[0]", "must be a table");
    one_fault("upstream = []\nroute = []", 1, "upstream", "there is none");
    assert_eq!(config("\u{feff}[[upstream]]\nurls = [\"http://h\"]").upstreams.len(), 1);
}

#[test]
fn tls_files_are_checked() {
    let files = Files::new();
    let tls = |line: &str| {
        let found = files.read(&with(&format!("[server.tls]\n{line}"))).unwrap_err().faults;
        let shown = found.iter().map(|f| format!("{}: {}", f.key, f.text));
        shown.collect::<Vec<_>>().join("\n")
    };
    let missing = tls("cert = \"cert.pem\"");
    assert_eq!(missing, "server.tls.key: is missing; TLS needs both cert and key, as PEM files");
    let broken = tls("cert = \"broken.pem\"\nkey = \"cert.pem\"\nclient_ca = \"empty\"");
    let lines: Vec<_> = broken.lines().collect();
    assert!(
        lines[0].starts_with("server.tls.cert: ") && lines[0].contains("broken PEM"),
        "{broken}"
    );
    assert!(lines[1].contains("holds no PEM private key"), "{broken}");
    assert!(lines[2].contains("holds no PEM certificate"), "{broken}");
    let unreadable = tls("cert = \"no\"\nkey = \"key.pem\"");
    assert!(unreadable.contains("cannot be read: No such file"), "{unreadable}");
    assert!(tls("certificate = \"cert.pem\"").contains("unknown key"));
}

#[test]
fn no_secret_is_ever_shown() {
    let files = Files::new();
    let mut text = EVERYTHING.replace("\"o\"", &format!("\"{CANARY}\""));
    text = text.replace("\"1&2\"", &format!("\"{CANARY}\""));
    let loaded = files.read(&text).unwrap();
    let credential = &loaded.config.upstreams[0].credentials[0];
    assert!(credential.value.to_str().unwrap().contains(CANARY), "the canary is there");
    assert!(!format!("{credential:?}").contains(CANARY));
    assert!(!format!("{loaded:?}").contains(CANARY));
    assert!(!format!("{loaded:#?}").contains(CANARY));
    assert!(format!("{loaded:?}").contains("x-other"), "names are shown");

    let key_like = format!("gsk_{}", "aB3".repeat(14));
    for line in [
        format!("credential = \"{CANARY}\""),
        format!("credential = {{ env = \"{CANARY}\" }}"),
        "credential = { env = \"WITH_SCHEME\" }".to_owned(),
        "credential = { env = \"TWO_LINES\" }".to_owned(),
        format!("credential = {{ value = \"{CANARY}\" }}"),
        format!("credential = {{ env = \"KEY\", scheme = \"{CANARY} x\" }}"),
        format!("headers = {{ Authorization = \"Bearer {CANARY}\" }}"),
        format!("headers = {{ x = \"{CANARY}\\n\" }}"),
        format!("query = {{ \"\" = \"{CANARY}\" }}"),
        format!("query = [\"{CANARY}\"]"),
        format!("key = \"{CANARY}\""),
        format!("urls = [\"https://h?key={CANARY}\"]"),
        format!("headers = {{ x = \"{CANARY}\" y }}"),
    ] {
        let faults = read(&upstream(&line)).unwrap_err();
        assert!(!format!("{faults} {faults:?}").contains(CANARY), "{faults}");
    }
    let faults = read(&upstream(&format!("credential = {{ env = \"{key_like}\" }}"))).unwrap_err();
    assert!(!faults.to_string().contains(&key_like), "{faults}");
    let faults = for_upstream(&format!("https://u:{CANARY}@h")).unwrap_err();
    assert!(!format!("{faults} {faults:?}").contains(CANARY), "{faults}");
}

fn notices(text: &str) -> Vec<(NoticeKind, String, Option<usize>)> {
    let loaded = read(text).unwrap_or_else(|faults| panic!("{faults}"));
    loaded.notices.into_iter().map(|n| (n.kind, n.key, n.line)).collect()
}

#[test]
fn keys_without_effect_are_named_when_they_are_set() {
    let not_yet = |text: &str, key: &str, line: usize| {
        let expected = vec![(NoticeKind::NotYet, key.to_owned(), Some(line))];
        assert_eq!(notices(text), expected, "{text}");
    };
    not_yet(&route("resume = true"), "route[0].resume", 4);
    assert_eq!(notices(&route("resume = false")), []);
    for family in ["auto", "openai", "responses", "anthropic", "plain"] {
        assert_eq!(notices(&route(&format!("family = \"{family}\""))), [], "{family}");
    }
    assert_eq!(notices(&route("heartbeat_style = \"anthropic\"")), [], "on Anthropic's paths only");
}

#[test]
fn advice_is_given_with_lines() {
    let advice = |text: &str, key: &str, line: Option<usize>| {
        let all = notices(text);
        assert!(all.contains(&(NoticeKind::Advice, key.to_owned(), line)), "{key}: {all:?}");
    };
    advice(&with("[stream]\nheartbeat = \"2m\""), "stream.heartbeat", Some(2));
    advice(&with("[stream]\nidle = \"15s\""), "stream.heartbeat", None);
    advice(&with("[stream]\ncommit_after = \"2m\""), "stream.commit_after", Some(2));
    advice(&with("[stream]\ntotal = \"1m\""), "stream.idle", None);
    advice(&with("[stream]\ntotal = \"1m\""), "stream.first_byte", None);
    let public = "[server]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:80\"]";
    advice(&with(public), "limits.per_ip", None);
    advice(&with("[admin]\nlisten = \"0.0.0.0:9464\""), "admin.listen", Some(2));
    let key = "credential = { env = \"KEY\" }";
    advice(&format!("{public}\n{}", upstream(key)), "upstream[0].credential", Some(5));
    let clear = format!("[[upstream]]\nurls = [\"http://h\"]\n{key}");
    advice(&clear, "upstream[0].urls", Some(2));
    advice(&upstream("max_streams = 20000"), "upstream[0].max_streams", Some(3));
    let two = |line: &str| format!("[server]\nworkers = 2\n{}", upstream(line));
    advice(&two("pool_max = 1"), "upstream[0].pool_max", Some(5));
    advice(&two("pool_max = 4\npool_warm = 3"), "upstream[0].pool_warm", Some(6));
    advice(&upstream("pool_idle_max = 1\npool_warm = 2"), "upstream[0].pool_warm", Some(4));
    let files = Files::new();
    let loaded = files.read("[[upstream]]\nurls = [\"http://h\"]\nca = \"cert.pem\"").unwrap();
    assert_eq!(loaded.notices[0].key, "upstream[0].ca");

    let limited = format!("{public}\n[limits]\nper_ip.streams = 5");
    let quiet = notices(&with(&limited));
    assert!(quiet.iter().all(|(kind, ..)| *kind == NoticeKind::NotYet), "{quiet:?}");
    let shown = read(&with("[stream]\nheartbeat = \"2m\"")).unwrap().notices[0].to_string();
    assert_eq!(
        shown,
        "advice: stream.heartbeat (line 2): 2m is not below stream.idle = 2m, so no heartbeat is \
         ever sent"
    );
}

#[test]
fn one_url_is_a_whole_configuration() {
    let paths = |url: &str| {
        let loaded = for_upstream(url).unwrap();
        assert!(loaded.notices.is_empty());
        let main = &loaded.config.upstreams[0];
        assert_eq!((main.name.as_str(), main.credentials.is_empty()), ("main", true));
        loaded.config.routes.into_iter().map(|route| route.path).collect::<Vec<_>>()
    };
    assert_eq!(paths("https://api.openai.com"), ["/v1/{*rest}"]);
    assert_eq!(paths("https://api.openai.com/v1/"), ["/v1/{*rest}"]);
    assert_eq!(paths("http://h:1/openai/v1"), ["/v1/{*rest}", "/openai/v1/{*rest}"]);
    let plain = config("[[upstream]]\nurls = [\"https://h\"]");
    assert_eq!(for_upstream("https://h").unwrap().config, plain);
    let faults = for_upstream("h:80").unwrap_err();
    assert_eq!(faults.to_string(), "--upstream: the URL has no scheme; write \"https://…\"");
}

#[test]
fn limits_yield_to_the_open_file_limit() {
    let mut limits = Limits::default();
    assert!(limits.clamp_to_open_files(1 << 20).is_none());
    assert!(limits.clamp_to_open_files(u64::MAX).is_none());
    assert!(limits.clamp_to_open_files(18_256).is_none(), "exactly enough");
    assert_eq!(limits, Limits::default());

    let notice = limits.clamp_to_open_files(16_000).expect("it was lowered");
    assert_eq!((limits.connections, limits.streams), (15_744, 15_000));
    assert_eq!((notice.kind, notice.key.as_str()), (NoticeKind::Clamped, "limits.connections"));
    for part in ["18000 wanted", "15744 given", "16000 files", "256", "LimitNOFILE="] {
        assert!(notice.text.contains(part), "{}", notice.text);
    }

    assert!(limits.clamp_to_open_files(10).is_some());
    assert_eq!((limits.connections, limits.streams), (1, 15_000), "it starts nevertheless");
}

#[test]
fn files_are_loaded_or_named() {
    let files = Files::new();
    let path = files.path("gate.toml");
    std::fs::write(&path, upstream("credential.file = \"credential\"")).unwrap();
    let loaded = load(&path).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(loaded.config.upstreams[0].credentials.len() == 1, "relative to the file");

    let absent = load(&files.path("absent.toml")).unwrap_err().to_string();
    assert!(absent.contains("absent.toml: cannot be read: No such file"), "{absent}");
    std::fs::write(&path, [0xff]).unwrap();
    let binary = load(&path).unwrap_err().to_string();
    assert!(binary.ends_with("gate.toml: is not UTF-8 text"), "{binary}");
    let endless = load(std::path::Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(endless.contains("larger than"), "{endless}");
}

const MANUAL: &str = include_str!("../../docs/CONFIG.md");

/// The fenced blocks of the manual with this info string.
fn blocks(info: &str) -> Vec<&'static str> {
    let start = format!("\n```{info}\n");
    let parts = MANUAL.split(start.as_str()).skip(1);
    parts.map(|part| part.split("\n```").next().unwrap()).collect()
}

#[test]
fn the_manual_names_every_key() {
    for key in keys() {
        let (section, name) = key.split_once('.').unwrap();
        let heading = if matches!(section, "tenant" | "upstream" | "route") {
            format!("\n## `[[{section}]]`\n")
        } else {
            format!("\n## `[{section}]`\n")
        };
        let part = MANUAL.split(&heading).nth(1).unwrap_or_else(|| panic!("{heading}"));
        let part = part.split("\n## ").next().unwrap();
        assert!(part.contains(&format!("| `{name}` |")), "{key} is not in docs/CONFIG.md");
    }
}

#[test]
fn the_manuals_examples_are_true() {
    for example in blocks("toml") {
        parse_with(example, "t.toml", &env).unwrap_or_else(|faults| panic!("{faults}\n{example}"));
    }
    let wrong = blocks("toml wrong");
    let errors = blocks("text");
    assert!(!wrong.is_empty() && wrong.len() == errors.len());
    for (wrong, error) in wrong.iter().zip(errors) {
        let faults = parse_with(wrong, "tidegate.toml", &no_env).unwrap_err();
        assert_eq!(faults.to_string(), error);
    }
}

#[test]
fn the_shipped_example_is_accepted() {
    let text = include_str!("../../deploy/tidegate.toml");
    let loaded = parse_with(text, "tidegate.toml", &no_env);
    let loaded = loaded.unwrap_or_else(|faults| panic!("{faults}"));
    let not_yet = loaded.notices.iter().find(|notice| notice.kind == NoticeKind::NotYet);
    assert!(not_yet.is_none(), "{not_yet:?}");
    // Every line that is commented out must be valid as well once the comment sign is removed.
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .collect();
    let faults = match parse_with(&uncommented.join("\n"), "tidegate.toml", &|_| Some("k".into())) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.faults,
    };
    let others: Vec<_> = faults.iter().filter(|f| !f.text.contains("cannot be read")).collect();
    assert!(others.is_empty(), "{others:?}");
}

proptest::proptest! {
    /// Neither our checks nor the router's panic on any pattern, alone or after another.
    #[test]
    fn no_route_pattern_panics(one in "/?[/{}*:a\u{e9}%2.~-]{0,12}", two in "/[/{}*ab-]{0,12}") {
        let text = format!("path = {one:?}\n[[route]]\npath = {two:?}\n[[route]]\npath = \"/a\"");
        let _ = read(&route(&text));
    }

    /// No text makes the reader panic, and every fault has a place that exists.
    #[test]
    fn no_text_panics(lines in proptest::collection::vec(LINE, 0..12)) {
        let text = lines.join("\n");
        if let Err(faults) = read(&text) {
            let last = text.split('\n').count();
            assert!(!faults.faults.is_empty());
            assert!(faults.faults.iter().all(|f| f.line.is_none_or(|n| (1..=last).contains(&n))));
        }
    }
}

/// Lines that are often TOML, and often about keys of ours.
const LINE: &str = concat!(
    r"(\[{1,2}(server|stream|limits|upstream|route|x)\]{1,2}",
    r#"|(urls|listen|idle|path|per_ip|credential|headers) ?= ?(1|-1|true|"[a-z0-9:/{}]{0,9}""#,
    r#"|\[["1,]{0,5}\]|\{ ?(env|a) = "?x"? ?\})"#,
    "|.{0,12})",
);
