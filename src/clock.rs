//! Time as the gateway sees it: nanoseconds since the process began to look, monotonic, the same
//! on every thread. Tests own theirs.
//!
//! Invariant: no other room asks the operating system for the time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use crate::limits::TICK;

/// A point in time, nanoseconds since the process's first look at the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment and `wait` more.
    pub fn after(self, wait: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Nanoseconds since the process's first look at the clock.
    pub fn nanos(self) -> u64 {
        self.0
    }

    /// The tick of the timer wheel this moment falls into, whole ticks since the start.
    pub fn ticks(self) -> u32 {
        u32::try_from(u128::from(self.0) / TICK.as_nanos()).unwrap_or(u32::MAX)
    }
}

/// Where the time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The operating system's monotonic clock.
    #[default]
    System,
    /// A clock that stands still until its owner, a test, moves it.
    Manual(Rc<Cell<Duration>>),
}

impl Clock {
    /// The present.
    pub fn now(&self) -> Moment {
        let elapsed = match self {
            Clock::System => {
                static START: OnceLock<Instant> = OnceLock::new();
                START.get_or_init(Instant::now).elapsed()
            }
            Clock::Manual(time) => time.get(),
        };
        Moment::default().after(elapsed)
    }
}

/// The current date as a `Date` header's value (RFC 9110, 6.6.1), made once a second and thread.
pub fn http_date() -> HeaderValue {
    thread_local! {
        static MADE: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    MADE.with_borrow_mut(|made| match made {
        Some((second, value)) if *second == now => value.clone(),
        made => {
            let value = date_of(now);
            *made = Some((now, value.clone()));
            value
        }
    })
}

fn date_of(second: u64) -> HeaderValue {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
    HeaderValue::from_str(&text).expect("a date is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_order_and_subtract() {
        let time = Rc::new(Cell::new(Duration::from_millis(250)));
        let clock = Clock::Manual(time.clone());
        let first = clock.now();
        time.set(Duration::from_secs(1));
        let second = clock.now();
        assert!(first < second);
        assert_eq!(second.since(first), Duration::from_millis(750));
        assert_eq!(first.since(second), Duration::ZERO);
        assert_eq!((first.ticks(), second.ticks()), (2, 10));
        assert_eq!(first.after(Duration::from_millis(750)), second);
        assert_eq!(second.nanos(), 1_000_000_000);
    }

    #[test]
    fn dates_have_the_fixed_form_and_are_of_now() {
        assert_eq!(date_of(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        let text = http_date();
        let parsed = httpdate::parse_http_date(text.to_str().expect("ASCII")).expect("a date");
        let off = SystemTime::now().duration_since(parsed).expect("not of the future");
        assert!(off < Duration::from_secs(60), "{off:?}");
    }
}
