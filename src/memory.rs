//! Giving memory back to the operating system.
//!
//! mimalloc returns freed pages as it goes, but only while it is called: a worker that has fallen
//! idle after a crowd would keep the crowd's memory.

/// Returns what the calling thread's heap does not need any more; to be called now and then by
/// every thread that allocates. Costs microseconds when there is nothing to return.
#[allow(unsafe_code, reason = "the allocator's own function has no safe wrapper")]
pub fn give_back() {
    // SAFETY: takes no pointers, may be called at any time on any thread, and touches only the
    // calling thread's heap and shared structures of the allocator's own that it locks itself.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
