//! An allocator that counts, for this thread and for the process.
//!
//! A test binary that wants it says
//! `#[global_allocator] static ALLOCATOR: Counting = Counting;`; without that the counts stay at
//! zero. It counts the bytes that were asked for, not what an allocator makes of them. Memory that
//! one thread frees for another counts against the one that frees it, so only [`process`] tells
//! what is live where threads hand things over.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// The system's allocator, counted.
pub struct Counting;

/// What was counted up to a moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How often memory was asked for; growing or shrinking a block counts as well.
    pub allocations: u64,
    /// Bytes allocated and not freed.
    pub live_bytes: i64,
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

thread_local! {
    // Constant and without a destructor: an allocator may use it at any time of a thread's life.
    static THREAD: Cell<Counts> = const { Cell::new(Counts { allocations: 0, live_bytes: 0 }) };
}

/// Everything counted in this process so far.
pub fn process() -> Counts {
    Counts { allocations: ALLOCATIONS.load(Relaxed), live_bytes: LIVE_BYTES.load(Relaxed) }
}

/// Everything counted on this thread so far.
pub fn thread() -> Counts {
    THREAD.get()
}

/// What `f` does on this thread.
pub fn during<T>(f: impl FnOnce() -> T) -> (T, Counts) {
    let before = thread();
    let result = f();
    let after = thread();
    let counts = Counts {
        allocations: after.allocations - before.allocations,
        live_bytes: after.live_bytes - before.live_bytes,
    };
    (result, counts)
}

fn count(allocations: u64, bytes: i64) {
    ALLOCATIONS.fetch_add(allocations, Relaxed);
    LIVE_BYTES.fetch_add(bytes, Relaxed);
    let mut counts = THREAD.get();
    counts.allocations += allocations;
    counts.live_bytes += bytes;
    THREAD.set(counts);
}

/// A layout is never larger than `isize::MAX`.
fn signed(bytes: usize) -> i64 {
    bytes as i64
}

// SAFETY: every call goes to the system's allocator with its arguments unchanged, and what that
// returns is returned; counting allocates nothing and cannot panic.
#[allow(unsafe_code, reason = "an allocator cannot be written without; it only forwards")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -signed(layout.size()));
        // SAFETY: the caller keeps to the contract of `dealloc`; the block came from `System`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, signed(size) - signed(layout.size()));
        // SAFETY: the caller keeps to the contract of `realloc`; the block came from `System`.
        unsafe { System.realloc(block, layout, size) }
    }
}
