//! The program's allocator, and giving memory back to the operating system.
//!
//! mimalloc serves each size of block from pages of its own, 64 KiB or more, and gives a page back
//! only when nothing in it is left. Requests need large buffers for a moment, connections to
//! upstreams need some of the same sizes for long, and are made exactly when many requests wait for
//! them: in common pages, each connection kept several pages of a crowd's buffers alive. So what
//! such connections allocate has a heap, and so pages, of its own ([`apart`]).
//!
//! mimalloc also returns freed pages only while it is called: a worker that has fallen idle after a
//! crowd would keep the crowd's memory ([`give_back`]).

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::ptr;

use libmimalloc_sys as mi;
use mimalloc::MiMalloc;

/// mimalloc, to be the program's `#[global_allocator]`. Without it [`apart`] changes nothing.
pub struct Allocator;

thread_local! {
    // Constant and without destructors: an allocator may use them at any time of a thread's life.
    /// This thread's heap for what lasts; null until first needed.
    static LASTING: Cell<*mut mi::mi_heap_t> = const { Cell::new(ptr::null_mut()) };
    /// The heap in use now; null is the thread's own.
    static IN_USE: Cell<*mut mi::mi_heap_t> = const { Cell::new(ptr::null_mut()) };
}

// SAFETY: every call goes to mimalloc with the size and alignment it came with. A heap in
// `IN_USE` belongs to this thread, as mimalloc demands, since it is thread-local, and lives as long
// as the thread. Blocks of any heap are freed alike, on any thread. Nothing here panics.
#[allow(unsafe_code, reason = "an allocator cannot be written without; it only chooses a heap")]
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let heap = IN_USE.get();
        if heap.is_null() {
            // SAFETY: the caller keeps to the contract of `alloc`.
            return unsafe { MiMalloc.alloc(layout) };
        }
        // SAFETY: as above; the heap is valid and this thread's.
        unsafe { mi::mi_heap_malloc_aligned(heap, layout.size(), layout.align()).cast() }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let heap = IN_USE.get();
        if heap.is_null() {
            // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
            return unsafe { MiMalloc.alloc_zeroed(layout) };
        }
        // SAFETY: as above; the heap is valid and this thread's.
        unsafe { mi::mi_heap_zalloc_aligned(heap, layout.size(), layout.align()).cast() }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`; all blocks are mimalloc's.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let heap = IN_USE.get();
        if heap.is_null() {
            // SAFETY: the caller keeps to the contract of `realloc`; all blocks are mimalloc's.
            return unsafe { MiMalloc.realloc(block, layout, size) };
        }
        // SAFETY: as above; the heap is valid and this thread's.
        unsafe { mi::mi_heap_realloc_aligned(heap, block.cast(), size, layout.align()).cast() }
    }
}

/// `future`, polled with everything that it allocates taken from the thread's heap for what lasts:
/// for the tasks of connections that outlive the requests they serve. Costs some nanoseconds a poll.
pub fn apart<F: Future>(future: F) -> impl Future<Output = F::Output> {
    // Boxed within as well: it is most of what a task is.
    let mut future = {
        let _within = Within::enter();
        Box::pin(future)
    };
    poll_fn(move |cx| {
        let _within = Within::enter();
        future.as_mut().poll(cx)
    })
}

/// The time in which this thread uses its heap for what lasts.
struct Within {
    before: *mut mi::mi_heap_t,
}

impl Within {
    fn enter() -> Within {
        if LASTING.get().is_null() {
            // Null when there is no memory for it: then all goes on in the thread's own heap.
            LASTING.set(new_heap());
        }
        Within { before: IN_USE.replace(LASTING.get()) }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        IN_USE.set(self.before);
    }
}

#[allow(unsafe_code, reason = "the allocator's own function has no safe wrapper")]
fn new_heap() -> *mut mi::mi_heap_t {
    // SAFETY: takes nothing; the heap belongs to the calling thread, whose end takes it down.
    unsafe { mi::mi_heap_new() }
}

/// Returns what the calling thread's heaps do not need any more; to be called now and then by
/// every thread that allocates. Costs microseconds when there is nothing to return.
#[allow(unsafe_code, reason = "the allocator's own functions have no safe wrapper")]
pub fn give_back() {
    let lasting = LASTING.get();
    // SAFETY: `mi_collect` takes no pointers, may be called at any time on any thread, and touches
    // only the calling thread's heap and shared structures of the allocator's own that it locks
    // itself; the other does the same for a heap that is valid and this thread's.
    unsafe {
        mi::mi_collect(true);
        if !lasting.is_null() {
            mi::mi_heap_collect(lasting, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(unsafe_code, reason = "the allocator's own function has no safe wrapper")]
    fn is_in(heap: *mut mi::mi_heap_t, block: *mut u8) -> bool {
        // SAFETY: the heap is this thread's; the block is only compared.
        unsafe { mi::mi_heap_contains_block(heap, block.cast()) }
    }

    #[allow(
        unsafe_code,
        reason = "blocks are asked for directly; the tests' own allocator differs"
    )]
    fn block() -> *mut u8 {
        // SAFETY: the size is not zero.
        unsafe { Allocator.alloc(Layout::new::<[u64; 1024]>()) }
    }

    #[allow(unsafe_code, reason = "as above")]
    fn free(block: *mut u8) {
        // SAFETY: it came from `block` or `grown` and is freed once; mimalloc knows its size.
        unsafe { Allocator.dealloc(block, Layout::new::<[u64; 1024]>()) }
    }

    #[allow(unsafe_code, reason = "as above")]
    fn grown(block: *mut u8) -> *mut u8 {
        // SAFETY: it came from `block`; the new one has another size, so both are told.
        unsafe { Allocator.realloc(block, Layout::new::<[u64; 1024]>(), 32 * 1024) }
    }

    #[tokio::test]
    async fn only_what_is_polled_apart_comes_from_the_heap_for_what_lasts() {
        let before = block();
        let within = apart(async {
            let first = block();
            tokio::task::yield_now().await;
            // After a wait, and grown.
            (first, grown(block()))
        });
        let (first, second) = within.await;
        let after = block();
        let lasting = LASTING.get();
        assert!(!lasting.is_null() && IN_USE.get().is_null());
        assert!(is_in(lasting, first) && is_in(lasting, second));
        assert!(!is_in(lasting, before) && !is_in(lasting, after));
        [before, first, second, after].into_iter().for_each(free);
        give_back();
    }

    #[test]
    fn a_panic_leads_back_to_the_threads_own_heap() {
        let caught = std::panic::catch_unwind(|| {
            let _within = Within::enter();
            assert!(!IN_USE.get().is_null());
            panic!("on purpose");
        });
        assert!(caught.is_err() && IN_USE.get().is_null());
    }
}
