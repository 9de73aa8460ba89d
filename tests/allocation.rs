#![allow(unsafe_code)]
//! The hot path allocates nothing, neither for established connections nor for new ones.
//!
//! Invariant owned here: the global allocator is the system's, with a counter in front; it changes
//! nothing about a block.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[path = "common/pair.rs"]
mod pair;

use pair::{Pair, datagram};
use vswitch::policy::model::{Action, Rule};

thread_local! {
    /// Allocations this thread made; tests on other threads count their own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|a| a.set(a.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_allocation_per_frame() {
    let Pair {
        shared,
        mut worker,
        mut ends,
    } = Pair::new(
        4096,
        Rule {
            service: vec!["udp/53".parse().unwrap()],
            log: true,
            ..Rule::new("dns", &["a"], &["b"], Action::Allow)
        },
    );
    let mut received = Vec::with_capacity(4096);
    // How many frames arrived, and what the switch allocated for them.
    let mut round = |frames: std::ops::Range<u16>| {
        let (mut arrived, mut allocations) = (0, 0);
        for sport in frames {
            ends[0].send(&datagram(sport, 53, 1000)).unwrap();
            if sport % 100 == 99 {
                let before = ALLOCATIONS.with(Cell::get);
                while worker.step(1) {}
                allocations += ALLOCATIONS.with(Cell::get) - before;
                while ends[1].recv(&mut received).is_some() {
                    arrived += 1;
                }
            }
        }
        (arrived, allocations)
    };
    // The first round picks up the snapshot.
    assert_eq!(round(1000..1100).0, 100);
    assert_eq!(round(1000..1100), (100, 0), "established connections");
    assert_eq!(round(2000..3000), (1000, 0), "new connections");
    assert_eq!(shared.table.len(), 1100);
}
