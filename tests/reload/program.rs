//! The real program and SIGHUP.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::stage::client::{CHAT, STREAM};
use super::stage::program::Program;
use super::stage::{Client, End, Http, Metrics, scrape, soon};
use super::{reloads, route, sim, upstream};

fn lines(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

async fn status(program: &Program, path: &str) -> u16 {
    let mut client = Client::connect(program.listen, Http::H1, None).await;
    client.ask("GET", path, &[], "").await.status
}

async fn reloaded(program: &Program, ok: f64, refused: f64) -> Metrics {
    let counted = |m: &Metrics| reloads(m) == (ok, refused);
    scrape::until(program.admin, &format!("{ok} reloads, {refused} refused"), counted).await
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.toml");
    (folder, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_the_file_again() {
    let sim = sim(false).await;
    let (_folder, path) = file();
    let text = |level: &str, routes: &[&str]| {
        let routes = routes.iter().map(|path| route(path, "sim", ""));
        let log = format!("[log]\nlevel = \"{level}\"\n");
        format!("{log}{}{}", upstream("sim", &sim, ""), routes.collect::<String>())
    };
    write(&path, &text("warn", &["/one/{*rest}"]));
    let program = Program::serve(&["--config", path.to_str().expect("UTF-8")], None);
    let mut holder = Client::connect(program.listen, Http::H1, None).await;
    let fields = [("sim-interval", "50ms"), ("sim-count", "30"), ("x-request-id", "long")];
    let chat = format!("/one{CHAT}");
    let mut live = holder.start("POST", &chat, &fields, STREAM).await.head().await;
    live.until("data:").await;
    assert_eq!((status(&program, "/one/x").await, status(&program, "/two/x").await), (200, 404));

    // The addresses of the command line stay above those of the file, and are no change.
    write(&path, &text("info", &["/one/{*rest}", "/two/{*rest}"]));
    program.hang_up();
    reloaded(&program, 1.0, 0.0).await;
    assert_eq!((status(&program, "/one/x").await, status(&program, "/two/x").await), (200, 200));
    program.logged("configuration reloaded").await;

    write(&path, "[server]\nlisten = 5\n[log]\nlevel = \"loud\"\n[[upstream]]\nurls = []\n");
    program.hang_up();
    reloaded(&program, 1.0, 1.0).await;
    assert_eq!((status(&program, "/one/x").await, status(&program, "/two/x").await), (200, 200));
    std::fs::remove_file(&path).expect("it is there");
    program.hang_up();
    reloaded(&program, 1.0, 2.0).await;

    write(&path, &text("info", &["/two/{*rest}"]));
    for _ in 0..20 {
        program.hang_up();
    }
    // However many signals were one: the last is followed by a reload.
    scrape::until(program.admin, "reloaded", |m| reloads(m).0 >= 2.0).await;
    let gone = async {
        while status(&program, "/one/x").await != 404 {
            tokio::task::yield_now().await;
        }
    };
    soon(Box::pin(gone)).await;
    assert_eq!(status(&program, "/two/x").await, 200);
    assert_eq!(live.rest().await.end, End::Clean, "it went on all the time");
    drop(holder);

    let before = reloads(&scrape::metrics(program.admin).await);
    let mut holder = Client::connect(program.listen, Http::H1, None).await;
    let fields = [("sim-interval", "50ms"), ("sim-count", "30")];
    let chat = format!("/two{CHAT}");
    let mut live = holder.start("POST", &chat, &fields, STREAM).await.head().await;
    live.until("data:").await;
    program.terminate();
    program.logged("draining").await;
    program.hang_up();
    program.logged("a reload during a drain is ignored").await;
    assert_eq!(reloads(&scrape::metrics(program.admin).await), before);
    assert_eq!(live.rest().await.end, End::Clean);
    drop(holder);
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let log = lines(&ended.stdout);
    let at = |text: &str| {
        let found = log.iter().position(|line| line["message"].as_str().is_some_and(|m| m == text));
        found.unwrap_or_else(|| panic!("never {text}: {}", ended.stdout))
    };
    let first = at("configuration reloaded");
    assert_eq!(log[first]["changes"], "[log]; route added: /two/{*rest}");
    let ends = |of: &[Value]| of.iter().filter(|line| line["message"] == "stream ended").count();
    assert_eq!(ends(&log[..first]), 0, "`warn` had no such lines");
    assert!(ends(&log[first..]) > 2, "`info` has");
    let errors: Vec<&str> = log
        .iter()
        .filter(|line| line["level"] == "ERROR")
        .filter_map(|line| line["message"].as_str())
        .collect();
    let name = path.to_str().expect("UTF-8");
    for fault in [":2: server.listen: ", ":4: log.level: ", ":6: upstream[0].urls: "] {
        let fault = format!("{name}{fault}");
        assert!(errors.iter().any(|line| line.starts_with(&fault)), "{fault}: {errors:?}");
    }
    assert!(errors.iter().any(|line| line.contains("cannot be read")), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_file_sighup_says_that_there_is_nothing_to_read() {
    let sim = sim(false).await;
    let url = format!("http://{}", sim.addr());
    let program = Program::serve(&["--upstream", &url], None);
    program.hang_up();
    program.logged("there is nothing to read again").await;
    reloaded(&program, 0.0, 1.0).await;
    assert_eq!(status(&program, "/v1/x").await, 200, "it serves on");
}
