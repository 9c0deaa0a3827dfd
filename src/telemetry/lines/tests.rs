//! The writer's output is in the test's hands: each write waits until the test has looked at it.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Tells of each write, and ends it as it is told.
struct Watched {
    writes: Sender<Vec<u8>>,
    verdicts: Receiver<io::Result<()>>,
}

impl Write for Watched {
    fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
        // Nobody looks any more at the end of a test.
        let _ = self.writes.send(batch.to_vec());
        self.verdicts.recv().unwrap_or(Ok(())).map(|()| batch.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Seen {
    writes: Receiver<Vec<u8>>,
    verdicts: Sender<io::Result<()>>,
}

impl Seen {
    /// The next write, which is under way until [`Seen::end`].
    fn begun(&self) -> String {
        String::from_utf8(self.writes.recv_timeout(DEADLINE).unwrap()).unwrap()
    }

    fn end(&self, verdict: io::Result<()>) {
        self.verdicts.send(verdict).unwrap();
    }
}

fn watched() -> (Lines, Guard, Seen) {
    let (tell, writes) = channel();
    let (verdicts, told) = channel();
    let (lines, guard) = start(Watched { writes: tell, verdicts: told }).unwrap();
    (lines, guard, Seen { writes, verdicts })
}

fn hand_over(mut lines: &Lines, line: &str) {
    lines.write_all(line.as_bytes()).unwrap();
}

#[test]
fn a_line_is_written_without_another_and_after_any_rest() {
    let (lines, _guard, seen) = watched();
    for line in ["one\n", "two\n", "three\n"] {
        hand_over(&lines, line);
        assert_eq!(seen.begun(), line);
        seen.end(Ok(()));
    }
    assert_eq!(lines.dropped(), 0);
}

#[test]
fn what_gathers_is_written_in_one_piece() {
    let (lines, _guard, seen) = watched();
    hand_over(&lines, "first\n");
    assert_eq!(seen.begun(), "first\n");
    let many: Vec<String> = (0..1000).map(|n| format!("line {n}\n")).collect();
    for line in &many {
        hand_over(&lines, line);
    }
    seen.end(Ok(()));
    assert_eq!(seen.begun(), many.concat());
    seen.end(Ok(()));
}

#[test]
fn lines_of_many_threads_stay_whole_and_in_each_ones_order() {
    const EACH: usize = 2000;
    let out = Arc::new(Mutex::new(Vec::new()));
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(batch)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (lines, guard) = start(Shared(out.clone())).unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            let lines = &lines;
            scope.spawn(move || {
                (0..EACH).for_each(|n| hand_over(lines, &format!("{thread} {n}\n")));
            });
        }
    });
    // Its end writes what still waits.
    drop(guard);
    let text = String::from_utf8(out.lock().unwrap().clone()).unwrap();
    let mut next = [0; 4];
    for line in text.lines() {
        let (thread, n) = line.split_once(' ').unwrap();
        let next = &mut next[thread.parse::<usize>().unwrap()];
        assert_eq!(n.parse::<usize>().unwrap(), *next, "{line}");
        *next += 1;
    }
    assert_eq!((next, lines.dropped()), ([EACH; 4], 0));
}

#[test]
fn beside_a_writer_that_is_stuck_the_queue_is_bounded_and_each_lost_line_counted() {
    let (lines, _guard, seen) = watched();
    hand_over(&lines, "first\n");
    seen.begun();
    let line = format!("{}\n", "x".repeat(1023));
    let fits = limits::LOG_QUEUE / line.len();
    for _ in 0..fits + 7 {
        hand_over(&lines, &line);
    }
    assert_eq!(lines.dropped(), 7);
    seen.end(Ok(()));
    assert_eq!(seen.begun().len(), limits::LOG_QUEUE);
    // There is room again while that is being written.
    hand_over(&lines, "last\n");
    seen.end(Ok(()));
    assert_eq!(seen.begun(), "last\n");
    seen.end(Ok(()));
    assert_eq!(lines.dropped(), 7);
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_later_ones_are_tried() {
    let (lines, _guard, seen) = watched();
    hand_over(&lines, "first\n");
    seen.begun();
    hand_over(&lines, "second\n");
    hand_over(&lines, "third\n");
    seen.end(Err(io::ErrorKind::BrokenPipe.into()));
    assert_eq!(seen.begun(), "second\nthird\n");
    assert_eq!(lines.dropped(), 1);
    seen.end(Err(io::ErrorKind::BrokenPipe.into()));
    hand_over(&lines, "fourth\n");
    assert_eq!(seen.begun(), "fourth\n");
    assert_eq!(lines.dropped(), 3);
    seen.end(Ok(()));
}

#[test]
fn after_the_end_nothing_gathers() {
    let (lines, guard, seen) = watched();
    hand_over(&lines, "first\n");
    seen.begun();
    hand_over(&lines, "second\n");
    seen.end(Ok(()));
    seen.end(Ok(()));
    drop(guard);
    assert_eq!(seen.begun(), "second\n");
    hand_over(&lines, "too late\n");
    assert_eq!(lines.dropped(), 1);
    assert!(lines.0.lock().text.is_empty());
}
