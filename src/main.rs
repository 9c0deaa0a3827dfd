//! The `tidegate` program: reads the command line and hands over to the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tidegate::memory::Allocator = tidegate::memory::Allocator;

fn main() -> ExitCode {
    tidegate::cli::main()
}
