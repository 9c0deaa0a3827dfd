//! What the gateway bears and what it refuses: request bodies (`body`), memory (`memory`), open files
//! (`files`). None of it may touch an upstream once it is refused, or leave anything behind.

#[path = "overload/body.rs"]
mod body;
#[path = "overload/files.rs"]
mod files;
#[path = "overload/memory.rs"]
mod memory;
#[path = "faults/reader.rs"]
mod reader;
mod stage;

use stage::{Answer, Metrics, Stage, events};

const MEMORY: &str = "tidegate_memory_bytes";

/// Whether `answer` is our refusal with `code`.
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(events::code_of(&answer.text()).as_deref(), Some(code), "{}", answer.text());
}

/// Waits until nothing of any request is left.
async fn nothing_left(stage: &Stage) -> Metrics {
    let gone = |m: &Metrics| {
        let gauges = ["tidegate_backlog_bytes", "tidegate_stalled_streams", MEMORY];
        m.live() == 0.0 && gauges.iter().all(|gauge| m.get(gauge) == 0.0)
    };
    stage.until("nothing is left", gone).await
}
