//! `tidegate-load`, the load generator.
//! Only a skeleton yet: it comes with the comparison of proxies.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("tidegate-load: not built yet");
    ExitCode::FAILURE
}
