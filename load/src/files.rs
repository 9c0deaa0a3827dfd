//! Open files: as many as the system grants, and what to say when they are too few.
//!
//! Owns RLIMIT_NOFILE of this process. Refuses silence: a run of fewer streams says so.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::plan::Plan;

/// Files kept for everything but streams.
const RESERVED: u64 = 64;

/// Raises the soft limit to the hard one; returns what the process may open for streams.
pub(crate) fn raise() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // If it is refused, the limit that is read next is the one that counts.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(RESERVED)
}

/// Cuts the plan down to `files` per process; returns what to tell.
pub(crate) fn fit(plan: &mut Plan, files: u64) -> Option<String> {
    let args = &plan.args;
    let per_connection = if args.http == 2 { u64::from(args.per_connection) } else { 1 };
    let per_process = files.saturating_mul(per_connection);
    let most = per_process.saturating_mul(args.processes.into());
    if plan.streams <= most {
        return None;
    }
    let wanted = plan.streams;
    let processes = wanted.div_ceil(per_process.max(1));
    plan.streams = most;
    Some(format!(
        "{wanted} streams need more open files than the limit grants ({files} per process here): \
         opening {most}; --processes {processes} would open all"
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    #[test]
    fn too_many_streams_are_clamped_aloud() {
        let fitted = |line: &str, files| {
            let words = ["x", "--url", "http://127.0.0.1:1/"].into_iter();
            let args = Args::try_parse_from(words.chain(line.split_whitespace())).unwrap();
            let mut plan = Plan::new(args).unwrap();
            let told = fit(&mut plan, files);
            (plan.streams, told)
        };
        assert_eq!(fitted("-n 1000", 1000), (1000, None));
        let (streams, told) = fitted("-n 2500", 1000);
        assert_eq!(streams, 1000);
        assert!(told.unwrap().contains("--processes 3"));
        assert_eq!(fitted("-n 2500 --processes 3", 1000), (2500, None));
        assert_eq!(fitted("-n 2500 --http 2", 30), (2500, None));
        assert!(raise() > 100);
    }
}
