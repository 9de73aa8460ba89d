#![allow(unsafe_code)]
//! Events out of the data path: one bounded single-producer ring per worker, drained by the
//! control thread. A worker never waits for a reader: what does not fit is lost and counted.
//!
//! Invariant owned here: a slot between `head` and `tail` is written and belongs to the consumer;
//! every other slot belongs to the producer. Each index is stored by one end only, with release,
//! after its slot was read or written; the other end loads it with acquire.
//!
//! *Thread-safety.* [`ring`] returns the two ends; each needs `&mut self`, so there is one
//! producer and one consumer by construction. Indices are free running and compared by wrapping
//! subtraction. loom checks the hand-over with one wrap (`--cfg loom`); it does not cover index
//! overflow, which `wraps_around_the_index_type` does.

use std::mem::MaybeUninit;

use crate::drop_reason::DropReason;
use crate::packet::{Addr, Mac};
use sync::{Arc, AtomicU64, AtomicUsize, Ordering, UnsafeCell};

#[cfg(not(loom))]
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    /// loom's interface over the standard cell.
    #[derive(Debug)]
    pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(super) fn new(value: T) -> Self {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        #[inline]
        pub(super) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline]
        pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(loom)]
mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}

/// One index on a cache line of its own: the two ends must not share one.
#[derive(Debug)]
#[repr(align(128))]
struct Index(AtomicUsize);

#[derive(Debug)]
struct Shared<T> {
    /// Next slot to read; stored by the consumer.
    head: Index,
    /// Next slot to write; stored by the producer.
    tail: Index,
    lost: AtomicU64,
    mask: usize,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched by one end at a time (module invariant), and `T: Send` may move
// between the two ends' threads.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above; the slots own plain values.
unsafe impl<T: Send> Send for Shared<T> {}

/// The writing end.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// The consumer's index as last seen: read again only when the ring looks full.
    head_seen: usize,
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
}

/// A ring of at least `len` elements (rounded up to a power of two). Allocates once.
#[must_use]
pub fn ring<T: Copy + Send>(len: usize) -> (Producer<T>, Consumer<T>) {
    ring_at(len, 0)
}

fn ring_at<T: Copy + Send>(len: usize, start: usize) -> (Producer<T>, Consumer<T>) {
    let len = len.max(1).next_power_of_two();
    let shared = Arc::new(Shared {
        head: Index(AtomicUsize::new(start)),
        tail: Index(AtomicUsize::new(start)),
        lost: AtomicU64::new(0),
        mask: len - 1,
        slots: (0..len)
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
            .collect(),
    });
    let producer = Producer {
        shared: Arc::clone(&shared),
        tail: start,
        head_seen: start,
    };
    (
        producer,
        Consumer {
            shared,
            head: start,
        },
    )
}

impl<T: Copy + Send> Producer<T> {
    /// Whether there is room for one more element. When there is none, one is counted as lost: whoever would have to
    /// make it first asks here, and does not.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        let shared = &*self.shared;
        if self.tail.wrapping_sub(self.head_seen) > shared.mask {
            self.head_seen = shared.head.0.load(Ordering::Acquire);
        }
        let room = self.tail.wrapping_sub(self.head_seen) <= shared.mask;
        if !room {
            // The only writer: a load and a store, no locked instruction.
            let lost = shared.lost.load(Ordering::Relaxed);
            shared.lost.store(lost + 1, Ordering::Relaxed);
        }
        room
    }

    /// Appends an element; `false` when there was no room: it is lost, and counted.
    #[inline]
    pub fn push(&mut self, value: T) -> bool {
        if !self.has_room() {
            return false;
        }
        let shared = &*self.shared;
        let Some(slot) = shared.slots.get(self.tail & shared.mask) else {
            return false;
        };
        slot.with_mut(|p| {
            // SAFETY: the slot is outside head..tail, so it is the producer's (module invariant).
            unsafe { (*p).write(value) };
        });
        self.tail = self.tail.wrapping_add(1);
        shared.tail.0.store(self.tail, Ordering::Release);
        true
    }
}

impl<T: Copy + Send> Consumer<T> {
    /// Takes the oldest element.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let shared = &*self.shared;
        if shared.tail.0.load(Ordering::Acquire) == self.head {
            return None;
        }
        let slot = shared.slots.get(self.head & shared.mask)?;
        let value = slot.with(|p| {
            // SAFETY: head != tail, so this slot is the consumer's, and it was written before the
            // tail we loaded with acquire was stored.
            unsafe { p.cast::<T>().read() }
        });
        self.head = self.head.wrapping_add(1);
        shared.head.0.store(self.head, Ordering::Release);
        Some(value)
    }

    /// Elements lost so far because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

/// What happened to a connection, or to a frame that made none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ConnEventKind {
    /// A connection was admitted.
    Allow,
    /// A frame was refused; `reason` says why.
    Deny,
    /// A frame was refused and its sender told.
    Reject,
    /// Somebody met a decoy: had a connection with it, or sent what needs none.
    Decoy,
    /// A staged rule would have decided otherwise; `rule` is that rule. Nothing was enforced.
    Staged,
    /// An established connection was removed because policy no longer allows it.
    Cut,
    /// A connection ended by its own doing (FIN both ways, RST).
    Close,
    /// A connection's timeout passed.
    Expire,
    /// A half-open connection gave its place to another of the same port.
    Evict,
}

impl ConnEventKind {
    /// The name `watch` shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ConnEventKind::Allow => "allow",
            ConnEventKind::Deny => "deny",
            ConnEventKind::Reject => "reject",
            ConnEventKind::Decoy => "decoy",
            ConnEventKind::Staged => "staged",
            ConnEventKind::Cut => "cut",
            ConnEventKind::Close => "close",
            ConnEventKind::Expire => "expire",
            ConnEventKind::Evict => "evict",
        }
    }
}

/// No rule, no attachment.
pub const NONE_U32: u32 = u32::MAX;
/// No port: the highest number a port can have is one less.
pub const NONE_U16: u16 = u16::MAX;

/// One event; plain numbers, made readable by the control thread.
#[derive(Clone, Copy, Debug)]
pub struct ConnEvent {
    /// When, by the worker's monotonic clock.
    pub time_ns: u64,
    /// Generation of the snapshot it was judged under: `rule` counts in that one's policy.
    pub generation: u64,
    /// What.
    pub kind: ConnEventKind,
    /// Why, when a frame was dropped.
    pub reason: Option<DropReason>,
    /// Deciding rule, or [`NONE_U32`].
    pub rule: u32,
    /// Attachment of the initiator (the sender), or [`NONE_U32`].
    pub src_attachment: u32,
    /// Attachment of the other end, or [`NONE_U32`].
    pub dst_attachment: u32,
    /// Port the initiator's frames come in by, or [`NONE_U16`] when it is gone.
    pub port: u16,
    /// EtherType.
    pub ethertype: u16,
    /// IP protocol; 0 when not IP.
    pub protocol: u8,
    /// Source port, or ICMP echo identifier.
    pub sport: u16,
    /// Destination port; for ICMP `type << 8 | code`, and 0 when an exchange ended.
    pub dport: u16,
    /// Initiator's address.
    pub src: Addr,
    /// The other end's address.
    pub dst: Addr,
    /// Initiator's MAC.
    pub src_mac: Mac,
    /// The other end's MAC.
    pub dst_mac: Mac,
    /// Bytes in the original direction, when a connection ended; payload that came to a decoy.
    pub original_bytes: u64,
    /// Bytes in the reply direction.
    pub reply_bytes: u64,
}

/// What a held frame wants to know, or wanted. Plain numbers, as in [`ConnEvent`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AskEvent {
    /// When, by the worker's monotonic clock.
    pub time_ns: u64,
    /// Generation of the snapshot whose rules ask.
    pub generation: u64,
    /// The deciding rule.
    pub rule: u32,
    /// The source tenant's rule where both must allow, or [`NONE_U32`].
    pub also: u32,
    /// The port the frame came in by.
    pub port: u16,
    /// Attachment of the sender.
    pub src_attachment: u32,
    /// Whether that is the outside behind an uplink.
    pub src_outside: bool,
    /// Attachment of the receiver.
    pub dst_attachment: u32,
    /// Whether that is the outside behind an uplink.
    pub dst_outside: bool,
    /// The tenant of both.
    pub tenant: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Source port, or ICMP echo identifier.
    pub sport: u16,
    /// Destination port; for ICMP `type << 8 | code`.
    pub dport: u16,
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// TCP: the segment's number, with which its connection begins.
    pub seq: u32,
    /// Nobody needs the answer any more: the sender gave up.
    pub cancelled: bool,
    /// What it is about.
    pub about: About,
}

/// What an [`AskEvent`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum About {
    /// A rule that asks.
    #[default]
    Rule,
    /// A rule that allows, of somebody who is under suspicion.
    Suspect,
    /// A pass between the two.
    Wall,
    /// No question: a connection on probation has payload.
    Payload,
}

/// What makes a workload suspicious; `docs/suspicion.md` says what each one counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Detector {
    /// Many services were tried in vain.
    PortScan,
    /// Many addresses were.
    AddressScan,
    /// Connections were opened to many workloads.
    FanOut,
    /// A wall refused it several services.
    Wall,
    /// It met decoys.
    Decoy,
    /// Many handshakes were begun and not completed.
    SynFlood,
    /// Many frames came from addresses that are not its own.
    Spoofing,
    /// Many attempts were denied.
    DeniedRate,
}

impl Detector {
    /// All, by their number.
    pub const ALL: [Detector; 8] = [
        Detector::PortScan,
        Detector::AddressScan,
        Detector::FanOut,
        Detector::Wall,
        Detector::Decoy,
        Detector::SynFlood,
        Detector::Spoofing,
        Detector::DeniedRate,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// How many of them, the first ones, count what differs; the others count what happens.
    pub const DISTINCT: usize = 5;

    /// The name in policies, records and lists.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Detector::PortScan => "port-scan",
            Detector::AddressScan => "address-scan",
            Detector::FanOut => "fan-out",
            Detector::Wall => "wall",
            Detector::Decoy => "decoy",
            Detector::SynFlood => "syn-flood",
            Detector::Spoofing => "spoofing",
            Detector::DeniedRate => "denied-rate",
        }
    }
}

/// A workload did as much as its threshold says. Plain numbers, as in [`ConnEvent`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuspicionEvent {
    /// When, by the worker's monotonic clock.
    pub time_ns: u64,
    /// The workload's attachment.
    pub attachment: u32,
    /// By which detector.
    pub detector: Detector,
    /// In its long window.
    pub slow: bool,
    /// How many there were in the window so far.
    pub count: u32,
    /// How long that took, seconds, rounded up.
    pub seconds: u32,
    /// What the last one was for: protocol, address and port, as in [`ConnEvent`].
    pub last: (u8, Addr, u16),
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn in_order_and_losses_counted() {
        let (mut p, mut c) = ring::<u32>(4);
        assert_eq!(c.pop(), None);
        assert!((0..4).all(|i| p.push(i)));
        assert!(!p.push(4));
        assert!(!p.push(5));
        assert_eq!(c.lost(), 2);
        assert_eq!(c.pop(), Some(0));
        assert!(p.push(6));
        assert_eq!(
            std::iter::from_fn(|| c.pop()).collect::<Vec<_>>(),
            [1, 2, 3, 6]
        );
        assert_eq!(c.lost(), 2);
    }

    #[test]
    fn wraps_around_the_index_type() {
        let (mut p, mut c) = ring_at::<u64>(2, usize::MAX - 2);
        for i in 0..10 {
            assert!(p.push(i));
            assert!(p.push(i + 100));
            assert!(!p.push(0));
            assert_eq!(c.pop(), Some(i));
            assert_eq!(c.pop(), Some(i + 100));
            assert_eq!(c.pop(), None);
        }
        assert_eq!(c.lost(), 10);
    }

    #[test]
    fn nothing_is_torn_between_threads() {
        const N: u64 = if cfg!(miri) { 200 } else { 100_000 };
        let (mut p, mut c) = ring::<[u64; 3]>(8);
        std::thread::scope(|s| {
            s.spawn(move || {
                for i in 0..N {
                    while !p.push([i; 3]) {
                        std::thread::yield_now();
                    }
                }
            });
            for want in 0..N {
                let got = loop {
                    match c.pop() {
                        Some(v) => break v,
                        None => std::thread::yield_now(),
                    }
                };
                assert_eq!(got, [want; 3]);
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::ring;

    #[test]
    fn what_is_popped_was_pushed_in_order() {
        loom::model(|| {
            let (mut p, mut c) = ring::<u32>(2);
            let producer = loom::thread::spawn(move || (1..=3).filter(|i| p.push(*i)).count());
            let mut seen = Vec::new();
            for _ in 0..3 {
                seen.extend(c.pop());
            }
            let pushed = producer.join().unwrap();
            seen.extend(std::iter::from_fn(|| c.pop()));
            assert_eq!(seen.len(), pushed);
            assert!(seen.is_sorted());
            assert_eq!(c.lost(), 3 - pushed as u64);
        });
    }
}
