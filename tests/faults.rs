//! What clients see when something goes wrong: with the upstream (`table`, `families`), with the
//! client itself (`lag`, `leave`), or with time (`commit`, `late_end`).

#![allow(clippy::large_futures, reason = "four cases at once are held by one test, once")]

#[path = "faults/commit.rs"]
mod commit;
#[path = "faults/crowd.rs"]
mod crowd;
#[path = "faults/families.rs"]
mod families;
#[path = "faults/lag.rs"]
mod lag;
#[path = "faults/late_end.rs"]
mod late_end;
#[path = "faults/leave.rs"]
mod leave;
#[path = "faults/reader.rs"]
mod reader;
mod stage;
#[path = "faults/table.rs"]
mod table;

use stage::Http;

/// Runs `test` for each pair of client and upstream (whether it speaks HTTP/2) at the same time.
async fn over_every_pair(test: impl AsyncFn(Http, bool)) {
    tokio::join!(
        test(Http::H1, false),
        test(Http::H1, true),
        test(Http::H2, false),
        test(Http::H2, true)
    );
}
