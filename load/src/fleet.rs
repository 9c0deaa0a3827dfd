//! The workers of a run: threads of this process, or processes with threads of their own.
//!
//! Owns starting them, telling them the phase, asking how far they are, and merging their tallies.
//! Between processes it is lines of JSON: phases go in on standard input, progress and at last the
//! tally come out on standard output. Refuses to outlive its parent: the end of input stops a
//! child. Invariant: the conductor sees no difference between the two.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::control::{Control, Gauges, Phase, Progress, real_ns};
use crate::output;
use crate::plan::Plan;
use crate::tally::Tally;
use crate::worker::work;

/// How often a child tells its progress.
const TELL: Duration = Duration::from_millis(100);

/// What a child says, one line each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Progress(Progress),
    Tally(Box<Tally>),
    Failed(String),
}

/// All workers of a run.
pub(crate) enum Fleet {
    Threads(Threads),
    Processes(Vec<Process>),
}

/// The workers of this process.
pub(crate) struct Threads {
    control: Arc<Control>,
    gauges: Arc<Gauges>,
    running: Vec<JoinHandle<Result<Tally>>>,
    ended: Receiver<()>,
}

/// The workers of a child.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    progress: Arc<Mutex<Progress>>,
    reader: JoinHandle<Result<Tally>>,
}

impl Threads {
    /// Starts the threads of process number `process`; the first stream is due at `start_ns` on
    /// CLOCK_REALTIME.
    pub(crate) fn start(plan: &Arc<Plan>, process: u32, start_ns: u64) -> Result<Self> {
        let (control, gauges) = (Arc::new(Control::new()), Arc::new(Gauges::default()));
        if plan.args.hold.is_none() && !plan.args.churn {
            control.enter(Phase::Window);
        }
        let begin = control.mono() + start_ns.saturating_sub(real_ns());
        let (tell, ended) = channel();
        let mut running = Vec::new();
        for thread in 0..plan.args.threads {
            let number = u64::from(process) * u64::from(plan.args.threads) + u64::from(thread);
            let parts = (Arc::clone(plan), Arc::clone(&control), Arc::clone(&gauges));
            let tell: Sender<()> = tell.clone();
            let thread = thread::Builder::new().name(format!("load-{number}")).spawn(move || {
                // Its drop is the news that this thread has ended.
                let _tell = tell;
                let (plan, control, gauges) = parts;
                work(plan, control, gauges, number, begin)
            });
            running.push(thread.context("cannot start a thread")?);
        }
        Ok(Self { control, gauges, running, ended })
    }

    /// Waits so long, or until all threads have ended; returns whether they have.
    fn wait(&self, time: Duration) -> bool {
        matches!(self.ended.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
    }

    fn finish(self) -> Result<Tally> {
        let mut sum = Tally::default();
        for thread in self.running {
            let tally = thread.join().map_err(|_| anyhow!("a worker panicked"))??;
            sum.merge(&tally);
        }
        Ok(sum)
    }
}

impl Process {
    fn start(number: u32, start_ns: u64, seed: u32, streams: u64) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .args([
                format!("--child={number}"),
                format!("--start-ns={start_ns}"),
                format!("--seed={seed}"),
                format!("--streams={streams}"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = BufReader::new(output.context("a child without standard output")?);
        let progress = Arc::new(Mutex::new(Progress::default()));
        let latest = Arc::clone(&progress);
        let reader = thread::spawn(move || {
            for line in output.lines() {
                match serde_json::from_str(&line?).context("a child said what it should not")? {
                    Line::Progress(progress) => {
                        *latest.lock().unwrap_or_else(PoisonError::into_inner) = progress;
                    }
                    Line::Tally(tally) => return Ok(*tally),
                    Line::Failed(why) => return Err(anyhow!("process {number}: {why}")),
                }
            }
            Err(anyhow!("process {number} ended without a tally"))
        });
        Ok(Self { child, input, progress, reader })
    }

    fn finish(mut self) -> Result<Tally> {
        let tally = self.reader.join().map_err(|_| anyhow!("a reader panicked"))?;
        drop(self.input);
        let status = self.child.wait()?;
        let tally = tally?;
        ensure!(status.success(), "a child process ended with {status}");
        Ok(tally)
    }
}

impl Fleet {
    /// Starts all workers; the first stream is due at `start_ns` on CLOCK_REALTIME.
    pub(crate) fn start(plan: &Arc<Plan>, start_ns: u64) -> Result<Self> {
        if plan.args.processes == 1 {
            return Threads::start(plan, 0, start_ns).map(Self::Threads);
        }
        let start = |number| Process::start(number, start_ns, plan.seed, plan.streams);
        (0..plan.args.processes).map(start).collect::<Result<_>>().map(Self::Processes)
    }

    pub(crate) fn enter(&mut self, phase: Phase) -> Result<()> {
        match self {
            Self::Threads(threads) => threads.control.enter(phase),
            Self::Processes(processes) => {
                let line = serde_json::to_string(&phase)? + "\n";
                for process in processes {
                    if let Some(input) = &mut process.input {
                        // A child that has ended shows when its tally is asked for.
                        let _ = input.write_all(line.as_bytes());
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn progress(&self) -> Progress {
        match self {
            Self::Threads(threads) => threads.gauges.progress(),
            Self::Processes(processes) => {
                let mut sum = Progress::default();
                for process in processes {
                    sum.add(&process.progress.lock().unwrap_or_else(PoisonError::into_inner));
                }
                sum
            }
        }
    }

    /// Waits so long, or until all workers have ended; returns whether they have.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        match self {
            Self::Threads(threads) => threads.wait(time),
            Self::Processes(processes) => {
                thread::park_timeout(time);
                processes.iter().all(|process| process.reader.is_finished())
            }
        }
    }

    /// The sum of all tallies; waits for the workers to end.
    pub(crate) fn finish(self) -> Result<Tally> {
        match self {
            Self::Threads(threads) => threads.finish(),
            Self::Processes(processes) => {
                let mut sum = Tally::default();
                let tallies: Vec<_> = processes.into_iter().map(Process::finish).collect();
                for tally in tallies {
                    sum.merge(&tally?);
                }
                Ok(sum)
            }
        }
    }
}

/// What a child process does instead of conducting.
pub(crate) fn serve_parent(plan: &Arc<Plan>, number: u32) -> Result<()> {
    let run = || {
        let threads = Threads::start(plan, number, plan.args.start_ns.unwrap_or(0))?;
        let control = Arc::clone(&threads.control);
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if let Ok(phase) = serde_json::from_str(&line) {
                    control.enter(phase);
                }
            }
            if control.phase() != Phase::Stop {
                control.enter(Phase::Stop);
            }
        });
        while !threads.wait(TELL) {
            output::line(&serde_json::to_string(&Line::Progress(threads.gauges.progress()))?)?;
        }
        output::line(&serde_json::to_string(&Line::Progress(threads.gauges.progress()))?)?;
        threads.finish()
    };
    let line = match run() {
        Ok(tally) => Line::Tally(Box::new(tally)),
        Err(fault) => Line::Failed(format!("{fault:#}")),
    };
    output::line(&serde_json::to_string(&line)?)
}
