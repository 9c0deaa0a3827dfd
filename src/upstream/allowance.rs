//! How many connections one upstream may have, and how many of them may be opened at once.
//!
//! Shared by all workers. Whoever needs a connection that there is no room for stands in one line,
//! the longest wait first, with one [`Ticket`] per pool, and leaves it by dropping that. When only a
//! connection that closes can make room, [`Allowance::first`] says for whom: pools with idle
//! connections give one up (`Pool::make_room`).
//!
//! Invariants: a [`Place`], an [`Open`] and a [`Turn`] are given back exactly once, by their drops. Nobody passes
//! by who waits longer. One short lock per connection opened or closed, none per request but while
//! somebody waits for a place; a request loads two atomics.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::admission::permit::Permit;
use crate::clock::Moment;

/// See the module.
#[derive(Debug)]
pub struct Allowance {
    state: Mutex<State>,
    /// Since when the first in line has waited for a place, nanoseconds; [`NOBODY`] if none does.
    wanted: AtomicU64,
    /// More are open than there may be since a reload.
    over: AtomicBool,
}

const NOBODY: u64 = u64::MAX;
/// Open files for which room is kept.
const FILES_KEPT: usize = 64;

#[derive(Debug)]
struct State {
    /// Most connections; 0 is no limit.
    max: usize,
    open: usize,
    /// The open files of those that have begun to connect. They lie here so that a connection carries
    /// one pointer for both; any file is as good as another.
    files: Vec<Permit>,
    /// Most connections that are being opened.
    dials_max: usize,
    dials: usize,
    /// By how long they wait.
    line: VecDeque<Waiting>,
    tickets: u64,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    since: Moment,
    tell: oneshot::Sender<Entry>,
}

/// What it takes to open a connection.
#[derive(Debug)]
pub(crate) struct Entry {
    /// To be [opened](Place::open).
    pub(crate) place: Place,
    /// Kept until the connection is open.
    pub(crate) turn: Turn,
}

/// A place for one connection; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place(Option<Arc<Allowance>>);

/// One connection's place and open file, 8 bytes; dropping it frees both.
#[derive(Debug)]
pub(crate) struct Open(Arc<Allowance>);

/// A turn to open a connection; dropping it ends the turn.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Allowance>);

/// A place in the line; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Ticket {
    allowance: Arc<Allowance>,
    number: u64,
}

impl Allowance {
    /// For `max` connections, 0 being no limit, of which `dials_max`, at least one, are opened at once.
    pub(crate) fn new(max: usize, dials_max: usize) -> Arc<Allowance> {
        let (dials_max, files, line) = (dials_max.max(1), Vec::new(), VecDeque::new());
        let state = State { max, open: 0, files, dials_max, dials: 0, line, tickets: 0 };
        let (wanted, over) = (AtomicU64::new(NOBODY), AtomicBool::new(false));
        Arc::new(Allowance { state: Mutex::new(state), wanted, over })
    }

    /// Other numbers. After lower ones nothing more is given until enough has come back, and
    /// [`Allowance::is_over`].
    pub(crate) fn set(self: &Arc<Allowance>, max: usize, dials_max: usize) {
        let mut state = self.lock();
        (state.max, state.dials_max) = (max, dials_max.max(1));
        drop(state);
        self.serve();
    }

    /// Stands in line for somebody who has waited since `since`. The entry comes through the receiver,
    /// at once if there is room and nobody waits longer.
    pub(crate) fn ask(self: &Arc<Allowance>, since: Moment) -> (Ticket, oneshot::Receiver<Entry>) {
        let (tell, told) = oneshot::channel();
        let mut state = self.lock();
        let number = state.tickets;
        state.tickets += 1;
        let at = state.line.partition_point(|other| other.since <= since);
        state.line.insert(at, Waiting { ticket: number, since, tell });
        drop(state);
        self.serve();
        (Ticket { allowance: self.clone(), number }, told)
    }

    /// An entry that nobody waits for, if there is one.
    pub(crate) fn spare(self: &Arc<Allowance>) -> Option<Entry> {
        let mut state = self.lock();
        (state.line.is_empty() && state.has_place() && state.has_turn()).then(|| {
            state.enter();
            self.entry()
        })
    }

    /// Whether another connection could be had, turns apart.
    pub(crate) fn has_place(&self) -> bool {
        self.lock().has_place()
    }

    /// Whether somebody waits for a place that only a connection that closes can give: since when, and
    /// the number of its ticket.
    pub(crate) fn first(&self) -> Option<(Moment, u64)> {
        if self.wanted.load(Ordering::Relaxed) == NOBODY {
            return None;
        }
        let state = self.lock();
        state.wanted().map(|waiting| (waiting.since, waiting.ticket))
    }

    /// Whether more connections are open than there may be: those that nobody uses are to close.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Gives entries to the first in line, as long as there are any.
    fn serve(self: &Arc<Allowance>) {
        loop {
            let mut state = self.lock();
            let served = match state.has_place() && state.has_turn() {
                true => state.line.pop_front(),
                false => None,
            };
            if served.is_some() {
                state.enter();
            }
            let since = state.wanted().map_or(NOBODY, |waiting| waiting.since.nanos());
            self.wanted.store(since, Ordering::Relaxed);
            self.over.store(state.max > 0 && state.open > state.max, Ordering::Relaxed);
            drop(state);
            let Some(waiting) = served else { return };
            // One who has left in between drops the entry here, where nothing is locked.
            let _ = waiting.tell.send(self.entry());
        }
    }

    fn entry(self: &Arc<Allowance>) -> Entry {
        Entry { place: Place(Some(self.clone())), turn: Turn(self.clone()) }
    }

    /// The counts are whole after every statement, so a panic elsewhere cannot have spoilt them.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_place(&self) -> bool {
        self.max == 0 || self.open < self.max
    }

    fn has_turn(&self) -> bool {
        self.dials < self.dials_max
    }

    fn enter(&mut self) {
        self.open += 1;
        self.dials += 1;
    }

    /// The first in line, if it is a place that it waits for.
    fn wanted(&self) -> Option<&Waiting> {
        self.line.front().filter(|_| !self.has_place() && self.has_turn())
    }
}

impl Ticket {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.allowance.lock().line.retain(|waiting| waiting.ticket != self.number);
        // Who is first now may not be who is asked for.
        self.allowance.serve();
    }
}

impl Place {
    /// The same, and `file` with it.
    pub(crate) fn open(mut self, file: Permit) -> Open {
        let allowance = self.0.take().expect("it is taken here and by the drop only");
        allowance.lock().files.push(file);
        Open(allowance)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(allowance) = self.0.take() else { return };
        allowance.lock().open -= 1;
        allowance.serve();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open -= 1;
        let file = state.files.pop();
        // A crowd's connections are not remembered by their room.
        if state.files.capacity() / 4 > state.files.len().max(FILES_KEPT) {
            let left = state.files.len() * 2;
            state.files.shrink_to(left);
        }
        drop(state);
        drop(file);
        self.0.serve();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().dials -= 1;
        self.0.serve();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admission::permit::Permits;

    fn at(second: u64) -> Moment {
        Moment::default().after(Duration::from_secs(second))
    }

    #[test]
    fn places_and_turns_are_bounded_and_come_back() {
        let allowance = Allowance::new(2, 1);
        let (_, mut first) = allowance.ask(at(1));
        let Entry { place, turn } = first.try_recv().expect("at once");
        let (_second, mut told) = allowance.ask(at(2));
        told.try_recv().expect_err("one at a time");
        assert_eq!(allowance.first(), None, "no connection needs to close for that");
        drop(turn);
        let second = told.try_recv().expect("the first is open");
        drop(second.turn);
        let (third, mut told) = allowance.ask(at(3));
        told.try_recv().expect_err("there are two");
        assert_eq!(allowance.first(), Some((at(3), third.number())));
        assert!(!allowance.has_place() && allowance.spare().is_none());
        drop(place);
        let entry = told.try_recv().expect("one has closed");
        assert_eq!(allowance.first(), None);
        drop((entry, second.place));
        assert!(allowance.has_place() && allowance.spare().is_some());
        let state = allowance.lock();
        assert_eq!((state.open, state.dials, state.line.len()), (0, 0, 0));
    }

    #[test]
    fn who_waits_longest_is_served_first_and_who_leaves_is_not() {
        let allowance = Allowance::new(1, 9);
        let open = allowance.spare().expect("nobody waits");
        let asked = [5, 3, 4, 3].map(|since| allowance.ask(at(since)));
        assert_eq!(allowance.first().map(|(since, _)| since), Some(at(3)));
        let [(late, mut late_told), (left, mut left_told), (mid, mut mid_told), (gone, _told)] =
            asked;
        drop((left, gone));
        left_told.try_recv().expect_err("it has left the line");
        drop(open);
        late_told.try_recv().expect_err("another has waited longer");
        let entry = mid_told.try_recv().expect("the longest wait that is left");
        drop(mid);
        drop(entry);
        late_told.try_recv().expect("the next");
        drop(late);
        assert!(allowance.spare().is_some(), "an entry that was not wanted any more comes back");
    }

    #[test]
    fn an_entry_that_comes_too_late_goes_to_the_next() {
        let allowance = Allowance::new(1, 1);
        let open = allowance.spare();
        let (_gone, told) = allowance.ask(at(1));
        let (_next, mut next) = allowance.ask(at(2));
        drop(told);
        drop(open);
        next.try_recv().expect("nobody heard the first offer");
    }

    #[test]
    fn an_open_connection_gives_back_its_place_and_its_file() {
        let (allowance, files) = (Allowance::new(300, 300), Permits::new(300));
        let file = || files.take().expect("one of 300");
        let one = |_| allowance.spare().expect("a place").place.open(file());
        let open: Vec<_> = (0..300).map(one).collect();
        assert!(files.take().is_none() && !allowance.has_place());
        drop(open);
        assert_eq!((files.used(), allowance.lock().open), (0, 0));
        assert!(allowance.lock().files.capacity() <= 4 * (FILES_KEPT + 1));
        // One that found no file gives back its place only.
        let other = allowance.spare().expect("a place").place.open(file());
        drop(allowance.spare());
        assert_eq!((files.used(), allowance.lock().open), (1, 1));
        drop(other);
        assert_eq!((files.used(), allowance.lock().open), (0, 0));
    }

    #[test]
    fn other_numbers_act_at_once_and_take_nothing_away() {
        let allowance = Allowance::new(0, 2);
        let open: Vec<_> = (0..2).filter_map(|_| allowance.spare()).collect();
        assert!(open.len() == 2 && allowance.spare().is_none(), "two are being opened");
        let (_ticket, mut told) = allowance.ask(at(1));
        allowance.set(2, 9);
        told.try_recv().expect_err("two are open");
        assert!(!allowance.is_over());
        allowance.set(3, 9);
        let third = told.try_recv().expect("a third may be");
        allowance.set(1, 9);
        drop(third);
        assert!(!allowance.has_place() && allowance.is_over());
        drop(open);
        assert!(allowance.has_place() && !allowance.is_over());
    }
}
