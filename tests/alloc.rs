//! What is allocated: nothing per chunk (`chunk`), and how much an idle stream retains (`idle`).

#[path = "alloc/chunk.rs"]
mod chunk;
#[path = "alloc/idle.rs"]
mod idle;
mod stage;

use std::hint::black_box;

use stage::alloc::{Counting, during, process};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The other tests rely on these counts; a counter that sees nothing would make them pass.
#[test]
fn the_counter_sees_what_is_allocated_grown_and_freed() {
    let (mut kept, counts) = during(|| black_box(Vec::<u8>::with_capacity(1000)));
    assert_eq!((counts.allocations, counts.live_bytes), (1, 1000));
    let (_, counts) = during(|| kept.reserve_exact(4000));
    assert_eq!((counts.allocations, counts.live_bytes), (1, 3000));
    let (_, counts) = during(|| drop(kept));
    assert_eq!((counts.allocations, counts.live_bytes), (0, -4000));
    let (_, counts) = during(|| drop(black_box(Box::new([0u64; 4]))));
    assert_eq!((counts.allocations, counts.live_bytes), (1, 0));

    let before = process();
    // Other tests allocate at the same time, but none so much at once.
    let kept = std::thread::spawn(|| black_box(vec![0u8; 1 << 28])).join().expect("no panic");
    let after = process();
    assert!(after.live_bytes - before.live_bytes > 1 << 27, "{before:?} {after:?}");
    assert!(after.allocations > before.allocations);
    drop(kept);
    assert!(process().live_bytes < after.live_bytes - (1 << 27));
}
