#![allow(unsafe_code)]
//! The hot path allocates nothing, neither for established connections nor for new ones, nor for what decoys answer.
//!
//! Invariant owned here: the global allocator is the system's, with a counter in front; it changes
//! nothing about a block.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[path = "common/pair.rs"]
mod pair;

use etherparse::PacketBuilder;
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

#[test]
fn no_allocation_per_decoy() {
    let Pair {
        shared,
        mut worker,
        mut ends,
    } = Pair::new(
        16,
        Rule {
            log: true,
            ..Rule::new("lure", &["a"], &["b"], Action::Decoy)
        },
    );
    let segment = |sport, ack: Option<u32>| {
        let tcp = PacketBuilder::ethernet2([0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let (mut out, seq) = (Vec::new(), 99 + u32::from(ack.is_some()));
        let tcp = tcp.tcp(sport, 22, seq, 64_000);
        let (tcp, payload) = match ack {
            Some(ack) => (tcp.ack(ack), &b"hello"[..]),
            None => (tcp.syn(), &b""[..]),
        };
        tcp.write(&mut out, payload).unwrap();
        out
    };
    let mut received = Vec::with_capacity(4096);
    // Sends a segment and waits for the answer: its number.
    let mut exchange = |segment: &[u8]| {
        ends[0].send(segment).unwrap();
        let before = ALLOCATIONS.with(Cell::get);
        while worker.step(1) {}
        let allocations = ALLOCATIONS.with(Cell::get) - before;
        ends[0].recv(&mut received).expect("an answer");
        let number = received[38..42].try_into().unwrap();
        (u32::from_be_bytes(number), allocations)
    };
    // The first one picks up the snapshot.
    exchange(&segment(1, None));
    for sport in 2..1000 {
        let (cookie, allocations) = exchange(&segment(sport, None));
        assert_eq!(allocations, 0, "a SYN");
        let ack = cookie.wrapping_add(1);
        assert_eq!(exchange(&segment(sport, Some(ack))), (ack, 0), "a reset");
    }
    assert_eq!(shared.table.len(), 0);
}
