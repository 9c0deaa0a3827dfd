//! What a server costs, read from /proc.
//!
//! Owns the sums over a process and its descendants, and the kernel's own memory for sockets.
//! Refuses to fail a run: a process that is gone is left out and named. Invariant: shared pages are
//! counted once in `pss_kb` and `private_kb`, once per process in `rss_kb`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Serialize;

/// Memory of some processes, kibibytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) processes: u64,
    pub(crate) rss_kb: u64,
    pub(crate) pss_kb: u64,
    pub(crate) private_kb: u64,
    /// The machine's slab, which holds its sockets, and the buffers of TCP; everyone's together.
    pub(crate) machine_slab_kb: u64,
    pub(crate) machine_tcp_kb: u64,
}

/// CPU time of some processes, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    pub(crate) user_s: f64,
    pub(crate) system_s: f64,
}

impl Cpu {
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            user_s: (self.user_s - earlier.user_s).max(0.0),
            system_s: (self.system_s - earlier.system_s).max(0.0),
        }
    }

    pub(crate) fn total_s(&self) -> f64 {
        self.user_s + self.system_s
    }
}

/// The processes `roots` and all that descend from them.
pub(crate) fn family(roots: &[u32]) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid
            && let Some(fields) = stat(pid)
            && let Some(parent) = fields.get(1).and_then(|parent| parent.parse().ok())
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = BTreeSet::new();
    let mut open = roots.to_vec();
    while let Some(pid) = open.pop() {
        if family.insert(pid) {
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    family
}

/// Memory of `pids`; those that are gone add nothing.
pub(crate) fn memory(pids: &BTreeSet<u32>) -> Memory {
    let mut sum = Memory::default();
    for pid in pids {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let of = |name| value_of(&text, name);
        sum.processes += 1;
        sum.rss_kb += of("Rss:");
        sum.pss_kb += of("Pss:");
        sum.private_kb += of("Private_Clean:") + of("Private_Dirty:");
    }
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    sum.machine_slab_kb = value_of(&info, "Slab:");
    let page_kb = rustix::param::page_size() as u64 / 1024;
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = sockets.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let mut words = tcp.split_whitespace().skip_while(|word| *word != "mem").skip(1);
    let pages = words.next().and_then(|pages| pages.parse().ok()).unwrap_or(0u64);
    sum.machine_tcp_kb = pages * page_kb;
    sum
}

/// CPU time of `pids`, their threads that have ended included.
#[expect(clippy::cast_precision_loss, reason = "ticks since the process began")]
pub(crate) fn cpu(pids: &BTreeSet<u32>) -> Cpu {
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut sum = Cpu::default();
    for &pid in pids {
        let Some(fields) = stat(pid) else { continue };
        let of = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok());
        // Fields 14 and 15 of proc_pid_stat(5); the list here begins with field 3.
        sum.user_s += of(11).unwrap_or(0) as f64 / per_second;
        sum.system_s += of(12).unwrap_or(0) as f64 / per_second;
    }
    sum
}

/// The fields of /proc/PID/stat after the name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn value_of(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_process_and_its_child_are_one_family() {
        let piped = || std::process::Stdio::piped();
        let mut child =
            std::process::Command::new("cat").stdin(piped()).stdout(piped()).spawn().unwrap();
        // Its answer shows that it runs; until then it has next to no memory.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let own = std::process::id();
        let family = family(&[own]);
        assert!(family.contains(&own) && family.contains(&child.id()));
        let (all, one) = (memory(&family), memory(&BTreeSet::from([child.id()])));
        // The child waits, so that its memory stays what it is; ours is at least as much again.
        assert!(one.rss_kb > 500 && one.pss_kb > 0 && all.rss_kb > one.rss_kb + 500);
        assert!(all.processes >= 2 && one.processes == 1 && one.machine_slab_kb > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(memory(&BTreeSet::from([u32::MAX])).processes, 0);
    }

    #[test]
    fn work_shows_as_cpu_time() {
        let own = BTreeSet::from([std::process::id()]);
        let before = cpu(&own);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while cpu(&own).since(&before).total_s() < 0.03 {
            assert!(std::time::Instant::now() < deadline);
        }
    }
}
