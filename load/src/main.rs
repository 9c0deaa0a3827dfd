//! `tidegate-load`: opens thousands of event streams and measures what a gateway does with them.
//!
//! One page from the command line to the exit status; how to read the figures is in README.md.

mod args;
mod body;
mod conduct;
mod control;
mod dial;
mod event;
mod files;
mod fleet;
mod head;
mod http1;
mod http2;
mod output;
mod plan;
mod proc;
mod report;
mod sequence;
mod sse;
mod stream;
mod tally;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;

use crate::args::Args;
use crate::plan::Plan;
use crate::report::Report;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(fault) => {
            output::say(&format!("{fault:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<u8> {
    let mut plan = Plan::new(args)?;
    let clamped = files::fit(&mut plan, files::raise());
    if let Some(number) = plan.args.child {
        return fleet::serve_parent(&Arc::new(plan), number).map(|()| 0);
    }
    if let Some(told) = clamped {
        output::say(&told);
    }
    if plan.sources > plan.args.sources {
        output::say(&format!("using {} source addresses: ports would run out", plan.sources));
    }
    if plan.args.seed.is_none() {
        plan.seed = (control::real_ns() / 1_000_000) as u32 & 0xf_ffff;
    }
    let plan = Arc::new(plan);
    let measured = conduct::conduct(&plan)?;
    let report = Report::new(&plan, &measured);
    output::publish(&report, plan.args.json.as_deref(), plan.args.quiet)?;
    Ok(report.exit_code())
}
