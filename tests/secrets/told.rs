//! What the gateway tells clients, operators and its log, while everything is asked of it that is
//! known to go wrong.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tidegate::sim::{Behaviour, Options, Sim};

use crate::canary::{Canary, assert_none, found};
use crate::stage::client::{CHAT, STREAM};
use crate::stage::program::{Program, run};
use crate::stage::{Answer, Client, Gateway, Http, scrape};

/// All that clients and operators have heard, heads included.
#[derive(Default)]
struct Heard(Vec<u8>);

impl Heard {
    fn answer(&mut self, answer: &Answer) {
        self.0.extend_from_slice(format!("{} {:?}\n", answer.status, answer.headers).as_bytes());
        self.0.extend_from_slice(&answer.body);
    }

    async fn admin(&mut self, addr: SocketAddr) {
        for path in ["/metrics", "/streams", "/healthz", "/readyz", "/", "/nothing"] {
            self.0.extend_from_slice(scrape::admin(addr, "GET", path).await.1.as_bytes());
        }
    }
}

/// The secrets of this test, and the folder of the files that hold some of them.
struct Secrets {
    all: Vec<Canary>,
    files: tempfile::TempDir,
}

/// What an upstream's credential, a tenant's key, or a client's is called.
const NAMES: [&str; 16] = [
    "env", "file", "rotated", "first", "second", "custom", "down", "open", "tenant", "other",
    "limited", "expired", "wrong", "client", "cookie", "query",
];

impl Secrets {
    fn new() -> Secrets {
        let files = tempfile::tempdir().expect("a folder");
        let all: Vec<_> = NAMES.into_iter().map(Canary::new).collect();
        let secrets = Secrets { all, files };
        for name in ["file", "first", "second", "custom", "down", "open"] {
            secrets.write(name, &secrets.of(name).text);
        }
        secrets
    }

    fn of(&self, name: &str) -> &Canary {
        self.all.iter().find(|secret| secret.name == name).expect("one of NAMES")
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.files.path().join(file), text).expect("a file");
    }

    fn file(&self, name: &str) -> String {
        format!("{{ file = {:?} }}", self.files.path().join(name))
    }

    /// A tenant whose key is the secret of its name.
    fn tenant(&self, name: &str, lines: &str, key: &str) -> String {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.of(name).text.as_bytes());
        let sha256: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "[[tenant]]\nname = \"{name}\"\n{lines}\n[[tenant.key]]\nsha256 = \"{sha256}\"\n{key}\n"
        )
    }

    fn config(&self, sim: &Sim, nobody: SocketAddr) -> String {
        let at = format!("\"http://{}\"", sim.addr());
        let down = format!("\"http://{nobody}\"");
        let mut text = "[log]\nlevel = \"trace\"\n[stream]\nfirst_byte = \"500ms\"\n".to_owned();
        text += &self.tenant("tenant", "", "");
        text += &self.tenant("other", "", "");
        text += &self.tenant("limited", "new_per_second = 1", "");
        text += &self.tenant("expired", "", "expires = 2020-01-01");
        let several = format!("[{}, {}]", self.file("first"), self.file("second"));
        let custom = self.file("custom").replace('}', ", header = \"x-api-key\" }");
        let breaker = "breaker = { consecutive = 1, open = \"1h\" }";
        for (name, urls, lines, auth) in [
            ("env", &at, "credential = { env = \"CANARY\" }".to_owned(), "key"),
            ("file", &at, format!("credential = {}", self.file("file")), "none"),
            ("several", &at, format!("credential = {several}"), "none"),
            ("custom", &at, format!("credential = {custom}"), "none"),
            ("down", &down, format!("credential = {}", self.file("down")), "none"),
            ("open", &at, format!("credential = {}\n{breaker}", self.file("open")), "none"),
            ("plain", &at, String::new(), "none"),
        ] {
            text += &format!(
                "[[upstream]]\nname = \"{name}\"\nurls = [{urls}]\n{lines}\n\
                 [[route]]\npath = \"/{name}/v1/{{*rest}}\"\nupstream = \"{name}\"\nauth = \"{auth}\"\n"
            );
            if auth == "key" {
                text += "tenants = [\"tenant\", \"limited\", \"expired\"]\n";
            }
        }
        text
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_told_to_clients_operators_or_the_log() {
    let secrets = Secrets::new();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sim = Sim::start(any, Options::default()).await.expect("an upstream");
    // Taken, so that nobody else gets it, and nobody listens there.
    let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let taken = taken.expect("a socket");
    taken.bind(&any.into()).expect("a port");
    let nobody = taken.local_addr().expect("an address").as_socket().expect("an IP address");
    let config = secrets.files.path().join("gateway.toml");
    let good = secrets.config(&sim, nobody);
    std::fs::write(&config, &good).expect("a file");
    let path = config.to_str().expect("UTF-8");
    let variables = [("CANARY", secrets.of("env").text.as_str())];
    let program = Program::serve_with(&["--config", path], &variables);
    let mut heard = Heard::default();
    for http in [Http::H1, Http::H2] {
        good_days(&secrets, &program, http, &mut heard).await;
        bad_days(&secrets, &program, http, &mut heard).await;
    }
    malformed(&secrets, &program, &mut heard).await;
    bad_reloads(&secrets, &program, &config, &good).await;
    heard.admin(program.admin).await;
    assert_none(&secrets.all, "a client or an operator", &heard.0);

    // The upstreams did get their keys, and the search would have found them in what was heard: this
    // one says what it was sent.
    let client = ("authorization", secrets.of("tenant").bearer());
    let fields = [(client.0, client.1.as_str())];
    let mut plant = Heard::default();
    let mut asking = Client::connect(program.listen, Http::H1, None).await;
    plant.answer(&asking.ask("GET", "/env/v1/echo", &fields, "").await);
    assert_eq!(found(&secrets.all, &plant.0), ["env"], "the upstream's own words");
    let sent = format!("{:?}", sim.requests());
    assert!(found(&secrets.all, sent.as_bytes()).contains(&"client"), "it was passed on");

    program.terminate();
    let ended = program.ended().await;
    let log = ended.stdout + &ended.stderr;
    for word in ["stream ended", "\"canaries-sing\"", "connecting failed", "refused", "read anew"] {
        assert!(log.contains(word), "the log was searched, and it has no {word:?}: {log}");
    }
    assert_none(&secrets.all, "the log", log);
}

/// A stream at every upstream, looked at while it lives; keys that rest and keys that change.
async fn good_days(secrets: &Secrets, program: &Program, http: Http, heard: &mut Heard) {
    let (client, cookie) = (secrets.of("client").bearer(), secrets.of("cookie").text.clone());
    let basic = format!("Basic {}", secrets.of("client").text);
    for place in ["env", "file", "several", "custom", "plain"] {
        let key = if place == "env" { secrets.of("tenant").bearer() } else { client.clone() };
        let fields = [
            ("authorization", key.as_str()),
            ("proxy-authorization", &basic),
            ("cookie", &cookie),
            ("x-request-id", "canaries-sing"),
            ("sim-interval", "50ms"),
            ("sim-count", "4"),
        ];
        let query = format!("/{place}{CHAT}?key={}", secrets.of("query").text);
        let mut asking = Client::connect(program.listen, http, None).await;
        let mut live = asking.start("POST", &query, &fields, STREAM).await.head().await;
        live.until("data:").await;
        heard.admin(program.admin).await;
        let answer = live.rest().await;
        assert_eq!(answer.status, 200, "{place}: {}", answer.text());
        heard.answer(&answer);
    }
    let mut asking = Client::connect(program.listen, http, None).await;
    let limited = [("sim-status", "429"), ("sim-retry-after", "1")];
    heard.answer(&asking.ask("POST", &format!("/several{CHAT}"), &limited, STREAM).await);
    // Refused with what the file held, and again with what it holds now.
    secrets.write("file", &secrets.of("rotated").text);
    let refused = [("sim-status", "401")];
    heard.answer(&asking.ask("POST", &format!("/file{CHAT}"), &refused, STREAM).await);
    secrets.write("file", "");
    heard.answer(&asking.ask("POST", &format!("/file{CHAT}"), &refused, STREAM).await);
    secrets.write("file", &secrets.of("file").text);
}

/// Everything that is refused, and every upstream that fails.
async fn bad_days(secrets: &Secrets, program: &Program, http: Http, heard: &mut Heard) {
    let mut asking = Client::connect(program.listen, http, None).await;
    let wrong = secrets.of("wrong").text.clone();
    for (name, status) in
        [("wrong", 401), ("expired", 401), ("other", 403), ("limited", 200), ("limited", 429)]
    {
        let bearer = secrets.of(name).bearer();
        let fields = [("authorization", bearer.as_str()), ("api-key", &wrong)];
        let answer = asking.ask("POST", &format!("/env{CHAT}"), &fields, STREAM).await;
        // The other client's one of this second may have been the one that was let through.
        let told = answer.status == status || name == "limited" && answer.status == 429;
        assert!(told, "{name}: {}", answer.text());
        heard.answer(&answer);
    }
    let client = secrets.of("client").bearer();
    for (path, field, status) in [
        (format!("/down{CHAT}"), ("x", "x"), 502),
        (format!("/open{CHAT}"), ("sim-status", "500"), 0),
        (format!("/open{CHAT}"), ("x", "x"), 503),
        (format!("/file{CHAT}"), ("sim-fault", "stall-head"), 504),
        (format!("/file{CHAT}"), ("sim-fault", "reset-head"), 502),
        (format!("/file{CHAT}"), ("sim-fault", "error-first"), 502),
        (format!("/plain{CHAT}"), ("sim-fault", "fin"), 200),
        (format!("/plain{CHAT}"), ("sim-status", "401"), 401),
        (format!("/nowhere/{wrong}"), ("x", "x"), 404),
    ] {
        let mut asking = Client::connect(program.listen, http, None).await;
        let fields = [("authorization", client.as_str()), field];
        let answer = asking.ask("POST", &path, &fields, STREAM).await;
        assert!(status == 0 || answer.status == status, "{path} {field:?}: {}", answer.text());
        heard.answer(&answer);
    }
}

/// Requests that are no HTTP, with keys in them where the fault is.
async fn malformed(secrets: &Secrets, program: &Program, heard: &mut Heard) {
    let key = &secrets.of("wrong").text;
    for request in [
        format!("GET /plain/v1/x HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {key}\0\r\n\r\n"),
        format!("GET /plain/v1/x HTTP/1.1\r\nhost: g\r\nauthorization : {key}\r\n\r\n"),
        format!("GET /plain/v1/x HTTP/1.1\r\nhost: {key}:{key}\r\n\r\n"),
        format!("GET /{key} {key}\r\n\r\n"),
        format!("GET\t{key} /plain/v1/x HTTP/1.1\r\nhost: g\r\n\r\n"),
        format!("GET /plain/v1/x HTTP/1.1\r\nhost: g\r\nx: {}{key}\r\n\r\n", "x".repeat(200_000)),
        format!("POST /plain/v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: {key}\r\n\r\n"),
        format!("POST /plain/v1/x HTTP/1.1\r\nhost: g\r\ntransfer-encoding: {key}\r\n\r\n"),
        format!(
            "POST /plain/v1/x HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n{key}\r\n"
        ),
    ] {
        let mut asking = Client::connect(program.listen, Http::H1, None).await;
        asking.raw(request.as_bytes()).await;
        let remains = asking.remains().await;
        let answer = String::from_utf8_lossy(&remains);
        assert!(answer.starts_with("HTTP/1.1 4"), "{request:.100}: {answer}");
        heard.0.extend_from_slice(&remains);
    }
}

/// Configurations that have a key where none belongs, or a fault beside one: as a reload, and as
/// `tidegate check` sees them.
async fn bad_reloads(secrets: &Secrets, program: &Program, config: &Path, good: &str) {
    let key = &secrets.of("wrong").text;
    let upstream = |line: &str| format!("[[upstream]]\nurls = [\"http://h\"]\n{line}\n");
    let bad = [
        upstream(&format!("credential = \"{key}\"")),
        upstream(&format!("credential = {{ env = \"{key}\" }}")),
        upstream(&format!("credential = {{ env = \"sk-{key}\" }}")),
        upstream(&format!("credential = {{ env = \"X\", scheme = \"{key} {key}\" }}")),
        upstream(&format!("credential = {{ key = \"{key}\" }}")),
        upstream(&format!("headers = {{ authorization = \"Bearer {key}\", cookie = \"{key}\" }}")),
        upstream(&format!("headers = {{ x-secret = \"{key}\\u0000\" }}")),
        upstream(&format!("query = \"{key}\"")),
        format!("[[upstream]]\nurls = [\"https://user:{key}@h/v1\"]\n"),
        format!("[[upstream]]\nurls = [\"https://h/v1?key={key}\"]\n"),
        // Its key instead of the key's hash.
        format!("[[tenant]]\nname = \"t\"\n[[tenant.key]]\nsha256 = \"{key}\"\n") + &upstream(""),
        format!("[[tenant]]\nname = \"t\"\nkey = \"{key}\"\n") + &upstream(""),
        // No TOML, in the line of a key.
        upstream(&format!("credential = {{ env = \"{key}")),
        upstream(&format!("credential = {{ file = {key} }}")),
    ];
    for (n, text) in bad.iter().enumerate() {
        std::fs::write(config, text).expect("a file");
        program.hang_up();
        let refused = "tidegate_config_reloads_total{result=\"refused\"}";
        let counted = (n + 1) as f64;
        scrape::until(program.admin, text, |m| m.get(refused) == counted).await;
        let checked = run(&["check", "--config", config.to_str().expect("UTF-8")]);
        assert_eq!(checked.code, Some(78), "{text}: {}", checked.stdout);
        let told = checked.stdout + &checked.stderr;
        assert!(told.contains("gateway.toml:"), "{told}");
        assert_none(&secrets.all, &format!("who checks {text}"), told);
    }
    std::fs::write(config, good).expect("a file");
    let checked = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["check", "--config", config.to_str().expect("UTF-8")])
        .env("CANARY", &secrets.of("env").text)
        .output()
        .expect("it runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_none(&secrets.all, "who checks what is good", [checked.stdout, checked.stderr].concat());
}

/// Fails as a bug of ours would, wherever a request is handled.
fn panics(headers: &http::HeaderMap) {
    assert!(!headers.contains_key("x-panic"), "a test wants it");
}

/// Runs in a process of its own, whose output the test below searches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a_panic_tells_no_secret"]
async fn a_gateway_that_panics() {
    let Some(key) = std::env::var_os("CANARY") else { panic!("run by a_panic_tells_no_secret") };
    let key = key.into_string().expect("UTF-8");
    let _guard = tidegate::telemetry::log::init("trace", tidegate::telemetry::log::Format::Json);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options { defaults: Behaviour::default(), ..Options::default() };
    let sim = Sim::start(any, options).await.expect("an upstream");
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nurls = [\"http://{}\"]\ncredential = {{ env = \"CANARY\" }}\n",
        sim.addr()
    );
    let gateway = Gateway::start(&text, Some(panics)).await;
    for http in [Http::H1, Http::H2] {
        let mut client = Client::connect(gateway.ready.listen[0], http, None).await;
        let bearer = format!("Bearer {key}");
        let fields = [("x-panic", "1"), ("authorization", bearer.as_str())];
        let answer = client.ask("POST", CHAT, &fields, STREAM).await;
        assert_eq!(answer.status, 500);
        assert!(!format!("{:?}{}", answer.headers, answer.text()).contains(&key));
    }
}

#[test]
fn a_panic_tells_no_secret() {
    let secret = Canary::new("panicking");
    let program = std::env::current_exe().expect("this test's program");
    let ran = Command::new(program)
        .args(["--exact", "told::a_gateway_that_panics", "--ignored", "--nocapture"])
        .env("CANARY", &secret.text)
        .env("RUST_BACKTRACE", "full")
        .output()
        .expect("it runs");
    let told = [ran.stdout, ran.stderr].concat();
    let text = String::from_utf8_lossy(&told);
    assert!(ran.status.success(), "{text}");
    assert_eq!(text.matches("a test wants it").count(), 2, "it panicked twice: {text}");
    assert_none(&[secret], "who reads the process's output", &told);
}
