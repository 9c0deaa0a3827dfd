//! What clients see when something goes wrong: with the upstream (`table`), with the client itself
//! (`lag`, `leave`), or with time (`commit`).

#[path = "faults/commit.rs"]
mod commit;
#[path = "faults/crowd.rs"]
mod crowd;
#[path = "faults/lag.rs"]
mod lag;
#[path = "faults/leave.rs"]
mod leave;
#[path = "faults/reader.rs"]
mod reader;
mod stage;
#[path = "faults/table.rs"]
mod table;
