//! What reloads leave behind: no memory, no file, no series. Alone in its process, since it counts
//! what the whole process allocates.

mod stage;

use stage::alloc::{Counting, process};
use stage::{Client, End, Gateway, Http, scrape};
use tidegate::sim::{self, Sim};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a hundred reloads may add to the live memory of the process, bytes. One configuration of this
/// test that is kept by mistake, with what it means, takes twice as much.
const MOST: i64 = 128 * 1024;

/// Fifty tenants, ten upstreams and fifty routes whose names take turns, and one of each that stays.
fn config(sim: &Sim, n: usize) -> String {
    let (turn, address) = (n % 2, sim.addr());
    let mut text = "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n[admin]\n\
                    listen = \"127.0.0.1:0\"\n"
        .to_owned();
    for t in 0..50 {
        // A hash of its own for each reload, as keys are rotated.
        let hash = format!("{:064x}", n * 50 + t + 1);
        text += &format!(
            "[[tenant]]\nname = \"t{turn}-{t}\"\nstreams = 9\nnew_per_second = 9\n\
             tokens_per_minute = {{ \"*\" = 900 }}\n[[tenant.key]]\nsha256 = \"{hash}\"\n"
        );
    }
    let upstream = |name: &str, more: &str| {
        format!("[[upstream]]\nname = \"{name}\"\nurls = [\"http://{address}\"]\n{more}\n")
    };
    let route = |path: &str, upstream: &str| {
        format!("[[route]]\npath = \"{path}\"\nupstream = \"{upstream}\"\nauth = \"none\"\n")
    };
    text += &upstream("stays", "");
    for u in 0..10 {
        text += &upstream(&format!("u{turn}-{u}"), "max_streams = 5");
    }
    text += &route("/stays/{*rest}", "stays");
    text += &route("/turns/{*rest}", &format!("u{turn}-0"));
    for r in 0..50 {
        text += &route(&format!("/r{turn}-{r}/{{*rest}}"), &format!("u{turn}-{}", r % 10));
    }
    text
}

/// So many reloads with a request to either kind of upstream after each, then everything at rest.
async fn reloads(
    gateway: &Gateway,
    sim: &Sim,
    numbers: std::ops::Range<usize>,
) -> (i64, f64, usize) {
    for n in numbers {
        gateway.reload(&config(sim, n)).await.unwrap_or_else(|refused| panic!("{refused}"));
        let mut client = Client::connect(gateway.ready.listen[0], Http::H1, None).await;
        for path in ["/stays/x", "/turns/x"] {
            let answer = client.ask("GET", path, &[], "").await;
            assert_eq!((answer.status, answer.end), (200, End::Clean));
        }
    }
    let metrics = scrape::until(gateway.ready.admin, "at rest", |m| {
        m.live() == 0.0 && m.sum("tidegate_connections_live") == 0.0
    })
    .await;
    let series = scrape::admin(gateway.ready.admin, "GET", "/metrics").await.1.lines().count();
    // This scrape's own connection may still be closing on either side.
    (process().live_bytes, metrics.get("process_open_fds"), series)
}

#[tokio::test]
async fn a_hundred_reloads_leave_nothing_behind() {
    let any = ([127, 0, 0, 1], 0).into();
    let sim = Sim::start(any, sim::Options::default()).await.expect("an upstream");
    let gateway = Gateway::start(&config(&sim, 0), None).await;
    let (before, files, series) = reloads(&gateway, &sim, 1..41).await;
    let (after, files_after, series_after) = reloads(&gateway, &sim, 41..141).await;
    eprintln!("{} bytes after 100 reloads, {files} and {files_after} files", after - before);
    assert_eq!(series_after, series);
    assert!(files_after <= files + 4.0, "{files} files were open, {files_after} are");
    assert!(after - before < MOST, "{} bytes", after - before);
}
