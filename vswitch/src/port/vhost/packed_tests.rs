//! Packed rings whose device dies between any two of its stores.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::guest_mem::{GuestMem, RegionSpec};
use super::super::vring::{Bufs, Direction, Ring, RingError, Step, Taken, VringConfig};
use super::{Packed, Position, used_mark};
use crate::sys::memfd::memfd;
use crate::sys::virtio::vring;

const START: Position = Position {
    slot: 0,
    wrap: true,
};

const MARKS: u16 = vring::DESC_F_AVAIL | vring::DESC_F_USED;

fn memory() -> Arc<GuestMem> {
    let spec = RegionSpec {
        guest: 0,
        size: 4096,
        front_end: 0,
        offset: 0,
    };
    let fd = memfd(c"test", 4096, false).unwrap();
    Arc::new(GuestMem::map(&[(spec, fd)]).unwrap())
}

fn ring(mem: &Arc<GuestMem>, size: u16, base: Position) -> Packed {
    let config = VringConfig {
        size: size.into(),
        desc: 0,
        driver: 1024,
        device: 1028,
        base: base.to_word().into(),
        features: 0,
    };
    Packed::new(&config, Arc::clone(mem)).unwrap()
}

/// Length, id and flags of every descriptor.
fn words(ring: &Packed) -> Vec<u64> {
    let word = |slot| u64::from_le(ring.rest(slot).load(Ordering::Relaxed));
    (0..ring.size).map(word).collect()
}

fn set(ring: &Packed, slot: u16, word: u64) {
    ring.rest(slot).store(word.to_le(), Ordering::Relaxed);
}

/// Takes such a word apart.
#[allow(clippy::cast_possible_truncation)]
fn parts(word: u64) -> (u32, u16, u16) {
    (word as u32, (word >> 32) as u16, (word >> 48) as u16)
}

fn word(len: u32, id: u16, flags: u16) -> u64 {
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

fn available_mark(wrap: bool) -> u16 {
    if wrap {
        vring::DESC_F_AVAIL
    } else {
        vring::DESC_F_USED
    }
}

/// The driver, as Linux does it. Sees the ring through its own [`Packed`].
struct Driver {
    view: Packed,
    avail: Position,
    used: Position,
    free: Vec<u16>,
    /// Ids and slots of the chains offered and not seen again, in order.
    offered: VecDeque<(u16, u16)>,
}

impl Driver {
    fn new(mem: &Arc<GuestMem>, size: u16) -> Driver {
        Driver {
            view: ring(mem, size, START),
            avail: START,
            used: START,
            free: (0..size).collect(),
            offered: VecDeque::new(),
        }
    }

    fn room(&self) -> u16 {
        self.view.size - self.offered.iter().map(|&(_, slots)| slots).sum::<u16>()
    }

    fn offer(&mut self, slots: u16) {
        let id = self.free.pop().unwrap();
        // The first descriptor last.
        for i in (0..slots).rev() {
            let at = self.avail.forward(i, self.view.size);
            let next = if i + 1 < slots { vring::DESC_F_NEXT } else { 0 };
            let flags = available_mark(at.wrap) | next | vring::DESC_F_WRITE;
            set(&self.view, at.slot, word(64, id, flags));
        }
        self.avail = self.avail.forward(slots, self.view.size);
        self.offered.push_back((id, slots));
    }

    fn offer_some(&mut self, numbers: &mut Numbers, longest: u16) {
        for _ in 0..numbers.below(self.view.size + 1) {
            let slots = 1 + numbers.below(longest);
            if slots <= self.room() {
                self.offer(slots);
            }
        }
    }

    /// Takes back what the device shows; the lengths. Every chain must be the next one.
    fn reap(&mut self) -> Vec<u32> {
        let mut lens = Vec::new();
        while let Some(&(id, slots)) = self.offered.front() {
            let (len, found, flags) = parts(words(&self.view)[usize::from(self.used.slot)]);
            if flags & MARKS != used_mark(self.used.wrap) {
                break;
            }
            assert_eq!(found, id, "returned in order, each once");
            lens.push(len);
            self.offered.pop_front();
            self.free.push(id);
            self.used = self.used.forward(slots, self.view.size);
        }
        lens
    }
}

/// What QEMU does at a base of long ago while nobody serves its transmit ring: whatever looks
/// available there, it throws away, and marks the first descriptors. Where it is then.
fn thrown_away(view: &Packed, mut at: Position) -> Position {
    loop {
        let head = at;
        let (_, id, flags) = parts(words(view)[usize::from(head.slot)]);
        if flags & MARKS != available_mark(head.wrap) {
            return at;
        }
        loop {
            let (_, _, flags) = parts(words(view)[usize::from(at.slot)]);
            at = at.forward(1, view.size);
            if flags & vring::DESC_F_NEXT == 0 {
                break;
            }
        }
        set(view, head.slot, word(0, id, used_mark(head.wrap)));
    }
}

fn take(ring: &mut Packed) -> Option<Taken> {
    match ring.take(Direction::Writable, &mut Bufs::new()).unwrap() {
        Step::Chain(taken) => Some(taken),
        Step::Empty => None,
        Step::NoRoom => unreachable!("there is room for a ring"),
    }
}

/// Deterministic, and any numbers do.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u16::try_from(self.0 % u64::from(n)).unwrap()
    }
}

#[test]
fn a_ring_goes_on_wherever_its_last_user_was_cut_off() {
    for size in [1, 2, 3, 4, 5, 8, 13] {
        for (longest, qemu) in [(1, false), (1, true), (3, false), (3, true)] {
            let lost = die_often(size, longest, qemu);
            assert!(size == 1 || lost > 0, "no burst was ever cut off: {size}");
        }
    }
}

/// Chains returned empty because they were cut off, or thrown away by QEMU.
fn die_often(size: u16, longest: u16, qemu: bool) -> usize {
    let mem = memory();
    let mut numbers = Numbers(u64::from(size) << 8 | 1);
    let mut driver = Driver::new(&mem, size);
    let mut device = ring(&mem, size, START);
    device.resume().unwrap();
    let mut base = START;
    let mut lost = 0;
    // QEMU does it to transmit rings only, where nothing is written.
    let written = if qemu { 0 } else { 9 };
    for round in 0..if cfg!(miri) { 40 } else { 6000 } {
        driver.offer_some(&mut numbers, longest);
        let chains = numbers.below(size + 1);
        let taken: Vec<Taken> = (0..chains).map_while(|_| take(&mut device)).collect();
        if numbers.below(3) > 0 {
            taken.iter().for_each(|&t| device.put(t, written));
            device.publish();
            assert_eq!(driver.reap(), vec![written; taken.len()]);
            assert_eq!(device.next_avail, driver.used);
            continue;
        }
        // Some are returned, the last of them perhaps not by all of its stores. Not shown.
        let puts = usize::from(numbers.below(size + 1)).min(taken.len());
        for (i, &chain) in taken.iter().take(puts).enumerate() {
            let (at, before) = (device.next_used, words(&device));
            device.put(chain, written);
            if i + 1 == puts {
                // One store for a descriptor, the first descriptor's is the last.
                let stores = numbers.below(chain.slots + 1);
                let undone = |j: &u16| *j > stores || *j == 0 && stores < chain.slots;
                for slot in (0..chain.slots)
                    .filter(undone)
                    .map(|j| at.forward(j, size).slot)
                {
                    set(&device, slot, before[usize::from(slot)]);
                }
            }
        }
        assert!(driver.reap().is_empty());
        driver.offer_some(&mut numbers, longest);
        if qemu && numbers.below(2) == 0 {
            base = thrown_away(&driver.view, base);
        }
        device = ring(&mem, size, base);
        let what = format!("size {size}, chains to {longest}, {qemu}, round {round}");
        device.resume().expect(&what);
        let empty = driver.reap();
        assert!(empty.iter().all(|&len| len == 0), "{what}: {empty:?}");
        // One more when the base is by chance just one chain further.
        assert!(qemu || empty.len() <= puts + 1, "{what}: {empty:?}");
        assert_eq!(device.next_avail, driver.used, "{what}");
        lost += empty.len();
    }
    lost
}

#[test]
fn a_ring_made_anew_starts_at_its_start() {
    let mem = memory();
    let mut driver = Driver::new(&mem, 4);
    let mut device = ring(&mem, 4, START);
    for _ in 0..7 {
        driver.offer(1);
        let taken = take(&mut device).unwrap();
        device.put(taken, 7);
        device.publish();
        driver.reap();
    }
    // As the front-end says, or as one says that does not know.
    for base in [device.next_avail, START] {
        let mut device = ring(&mem, 4, base);
        device.resume().unwrap();
        assert_eq!(device.next_avail, driver.used);
    }
    for offered in 0..=4 {
        (0..4).for_each(|slot| set(&device, slot, 0));
        driver = Driver::new(&mem, 4);
        (0..offered).for_each(|_| driver.offer(1));
        let mut device = ring(&mem, 4, START);
        device.resume().unwrap();
        assert_eq!(device.next_avail, START, "{offered}");
    }
}

#[test]
fn a_ring_that_contradicts_itself_is_refused() {
    let mem = memory();
    let mut device = ring(&mem, 4, START);
    // Cut off behind a chain that has no end.
    for slot in 0..4 {
        let used = if slot == 1 { vring::DESC_F_USED } else { 0 };
        let flags = vring::DESC_F_AVAIL | vring::DESC_F_NEXT | used;
        set(&device, slot, word(64, slot, flags));
    }
    assert_eq!(device.resume(), Err(RingError::PositionLost));
    // Whatever else stands there, nothing but an answer comes of it.
    for marks in 0..1u32 << 12 {
        for slot in 0..4 {
            let three = marks >> (3 * slot) & 7;
            let bits = [vring::DESC_F_AVAIL, vring::DESC_F_USED, vring::DESC_F_NEXT];
            let flags = (0..3)
                .map(|i| bits[i] * u16::from(three >> i & 1 != 0))
                .sum();
            set(&device, slot, word(64, slot, flags));
        }
        let mut device = ring(&mem, 4, START);
        if device.resume().is_ok() {
            assert_eq!(device.outstanding, 0, "{marks:#x}");
            assert_eq!(device.next_used, device.next_avail, "{marks:#x}");
        }
    }
}

#[test]
fn positions_wrap_and_come_back() {
    for size in [1u16, 2, 3, 256, 32768] {
        for slot in [0, size / 2, size - 1] {
            for slots in [1, size / 2, size] {
                let p = Position { slot, wrap: true };
                let q = p.forward(slots, size);
                assert!(q.slot < size);
                assert_eq!(q.back(slots, size), p, "{size} {slot} {slots}");
                assert_eq!(p.distance(q, size), u32::from(slots));
            }
        }
    }
}
