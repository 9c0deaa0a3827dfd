//! Lines on their way to standard output: handed over by any thread, written by one.
//!
//! What is handed over gathers for [`BATCH`] and is then written in one piece. The reason is the
//! cost of waking: a writer that is woken for every line costs a short request more than its line
//! does (`make compare`; docs/ARCHITECTURE.md has the figures). Refuses to wait for a slow reader:
//! what does not fit into [`limits::LOG_QUEUE`] is dropped and counted. Invariants: lines are
//! written whole and in the order they were handed over; who hands over waits for nothing but the
//! copy of another line. Cost: one copy of the line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::limits;

/// How long lines gather before they are written: short for who reads them, long beside what a busy
/// process logs (300 lines at 30,000 requests per second).
const BATCH: Duration = Duration::from_millis(10);

/// Text that does not wait for more, bytes.
const MUCH: usize = limits::LOG_QUEUE / 2;

/// Most that the end of the process waits for what is still to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The buffers are kept up to this size, bytes; what a burst made larger is given back.
const KEPT: usize = 128 * 1024;

/// Where lines are handed over; clones hand over to the same writer. Each `write` takes one line.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Tells the writer of a first line, of much text, or of the end.
    wake: Condvar,
    /// Tells who ends the log that all is written.
    done: Condvar,
    /// Lines that were never written.
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whole lines, not yet taken by the writer.
    text: Vec<u8>,
    lines: u64,
    writer: Writing,
    /// No more is to come.
    ended: bool,
}

/// What the writing thread is at, as far as others need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writing {
    /// Looks again by itself: it writes, or lets lines gather.
    #[default]
    Awake,
    /// Sleeps until it is told.
    Asleep,
    /// Has written all, and is gone.
    Gone,
}

/// Starts the thread that writes to `out`. Dropping the guard ends it.
///
/// # Errors
/// That of a thread that cannot be started.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(Lines, Guard)> {
    let lines = Lines(Arc::new(Shared {
        waiting: Mutex::default(),
        wake: Condvar::new(),
        done: Condvar::new(),
        dropped: AtomicU64::new(0),
    }));
    let shared = lines.0.clone();
    thread::Builder::new().name("log".into()).spawn(move || shared.write(out))?;
    Ok((lines.clone(), Guard(lines)))
}

/// Keeps the writer at work; dropping it writes what still waits, for at most a second.
#[derive(Debug)]
#[must_use = "dropping the guard ends the log"]
pub struct Guard(Lines);

impl Drop for Guard {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut waiting = shared.lock();
        waiting.ended = true;
        shared.wake.notify_one();
        let writes = |waiting: &mut Waiting| waiting.writer != Writing::Gone;
        // A poisoned lock or a reader that does not read: the process ends all the same.
        let _ = shared.done.wait_timeout_while(waiting, PATIENCE, writes);
    }
}

impl Lines {
    /// Lines lost so far: there was no room for them, or they could not be written.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Nothing panics while it holds the lock, and if it did, the text would still be whole lines.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.ended || waiting.text.len() + line.len() > limits::LOG_QUEUE {
            drop(waiting);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.text.extend_from_slice(line);
        waiting.lines += 1;
        // Telling costs a system call, also where nobody sleeps: only for a first line, and once it is
        // time not to let more gather.
        let much = waiting.text.len() - line.len() < MUCH && waiting.text.len() >= MUCH;
        let tell = waiting.writer == Writing::Asleep || much;
        waiting.writer = Writing::Awake;
        drop(waiting);
        if tell {
            self.wake.notify_one();
        }
    }

    /// The writing thread's life.
    fn write(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        while let Some(lines) = self.take(&mut batch) {
            // What cannot be written now will not be written later: a pipe without a reader.
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                self.dropped.fetch_add(lines, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(KEPT);
        }
        self.lock().writer = Writing::Gone;
        self.done.notify_all();
    }

    /// Waits for lines and takes all there are into the empty `batch`; how many, or `None` at the
    /// end.
    fn take(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut waiting = self.lock();
        while waiting.text.is_empty() {
            if waiting.ended {
                return None;
            }
            waiting.writer = Writing::Asleep;
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.writer = Writing::Awake;
        let gathers = |waiting: &mut Waiting| !waiting.ended && waiting.text.len() < MUCH;
        let gathered = self.wake.wait_timeout_while(waiting, BATCH, gathers);
        let mut waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut waiting.text, batch);
        Some(std::mem::take(&mut waiting.lines))
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.hand_over(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> &'a Lines {
        self
    }
}

#[cfg(test)]
mod tests;
