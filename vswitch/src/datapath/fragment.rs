//! Fragments follow their first one's verdict.
//!
//! Only the first fragment of a packet has a transport header, so only it can be judged. What was
//! decided about it (the caller's business) is remembered for a short time; later fragments get
//! it. One before its first, one after its first was refused, and one that covers bytes another
//! brought already, is dropped: nothing is queued, and nothing is reassembled but a list of
//! ranges. A packet with an overlap is lost as a whole (RFC 5722): its entry is kept, marked bad.
//!
//! *Ownership.* A table belongs to one worker and is keyed by the receiving port. All fragments of a
//! packet usually arrive on one queue, as hashes of fragments cover the addresses only; where a
//! sender spreads them over queues of different workers, the later ones are dropped and counted
//! as `fragment_without_first`, and the packet is lost.
//!
//! *Bounds.* Each port has at most [`PER_PORT`] packets under way; then its oldest expired one
//! makes room, or the new one is refused. One port's flood of fragments takes nobody else's room.

use crate::drop_reason::DropReason;
use crate::packet::{Addr, Fragment, L3, Parsed};
use crate::port::PortId;

/// Packets under way per port and worker. A lookup compares at most so many keys.
const PER_PORT: usize = 64;
/// Disjoint ranges per packet: in-order fragments need one, and 16 holes are no honest network.
const RANGES: usize = 16;
/// Coarse ticks after which a packet is forgotten. A tick is at least a second, and Linux waits
/// 30 seconds for the rest (`ipfrag_time`).
const LIFETIME_TICKS: u32 = 30;

/// What the fragments of one packet share. The identification alone says little: it is unique per
/// addresses and protocol (RFC 791), for IPv6 per addresses (RFC 8200 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    id: u32,
    protocol: u8,
    src: Addr,
    dst: Addr,
}

impl Key {
    fn of(p: &Parsed, id: u32) -> Key {
        Key {
            id,
            protocol: if p.l3 == L3::V6 { 0 } else { p.protocol },
            src: p.src,
            dst: p.dst,
        }
    }
}

/// One packet under way.
#[derive(Clone, Copy, Debug)]
struct Packet<W> {
    key: Key,
    word: W,
    since: u32,
    /// Where the packet ends, once the last fragment was seen.
    end: Option<u32>,
    bad: bool,
    covered: Ranges,
}

impl<W> Packet<W> {
    fn is_over(&self, tick: u32) -> bool {
        tick.wrapping_sub(self.since) > LIFETIME_TICKS
    }

    /// Takes the bytes `from..to` if nobody brought one of them before.
    fn add(&mut self, from: u32, to: u32, last: bool) -> Result<(), DropReason> {
        let beyond = match self.end {
            Some(end) => to > end || last,
            None => last && self.covered.end() > to,
        };
        if self.bad || beyond || !self.covered.add(from, to) {
            self.bad = true;
            return Err(DropReason::BadFragment);
        }
        if last {
            self.end = Some(to);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        !self.bad && self.end.is_some_and(|end| self.covered.is_just(end))
    }
}

/// Disjoint, non-adjacent byte ranges in ascending order.
#[derive(Clone, Copy, Debug)]
struct Ranges {
    len: usize,
    at: [(u32, u32); RANGES],
}

impl Ranges {
    const EMPTY: Ranges = Ranges {
        len: 0,
        at: [(0, 0); RANGES],
    };

    fn used(&self) -> &[(u32, u32)] {
        self.at.get(..self.len).unwrap_or(&[])
    }

    /// One past the last byte.
    fn end(&self) -> u32 {
        self.used().last().map_or(0, |r| r.1)
    }

    /// Whether this is `0..end` without a hole.
    fn is_just(&self, end: u32) -> bool {
        self.used() == [(0, end)]
    }

    /// Adds `from..to`; `false` when it overlaps or there are too many holes.
    fn add(&mut self, from: u32, to: u32) -> bool {
        // The first range that does not end before the new one begins.
        let i = self.used().partition_point(|r| r.1 < from);
        let (left, right) = match (self.at.get(i), self.at.get(i + 1)) {
            (Some(&l), r) if i < self.len => (Some(l), r.copied().filter(|_| i + 1 < self.len)),
            _ => (None, None),
        };
        match (left, right) {
            // It continues one range, and perhaps closes the hole to the next.
            (Some(l), next) if l.1 == from => match next {
                Some(r) if r.0 < to => false,
                Some(r) if r.0 == to => {
                    self.put(i, (l.0, r.1));
                    self.remove(i + 1);
                    true
                }
                _ => {
                    self.put(i, (l.0, to));
                    true
                }
            },
            (Some(r), _) if r.0 < to => false,
            (Some(r), _) if r.0 == to => {
                self.put(i, (from, r.1));
                true
            }
            _ => self.insert(i, (from, to)),
        }
    }

    fn put(&mut self, i: usize, range: (u32, u32)) {
        if let Some(r) = self.at.get_mut(i) {
            *r = range;
        }
    }

    fn remove(&mut self, i: usize) {
        if let Some(rest) = self.at.get_mut(i..self.len)
            && !rest.is_empty()
        {
            rest.rotate_left(1);
            self.len -= 1;
        }
    }

    fn insert(&mut self, i: usize, range: (u32, u32)) -> bool {
        let Some(rest) = self.at.get_mut(i..=self.len) else {
            return false;
        };
        rest.rotate_right(1);
        self.len += 1;
        self.put(i, range);
        true
    }
}

/// A port's packets.
type Slots<W> = Box<[Option<Packet<W>>; PER_PORT]>;

/// The packets under way on one worker, by receiving port; `W` is what was decided about one.
#[derive(Debug)]
pub struct FragmentTable<W> {
    /// Allocated at a port's first fragment, for most ports never see one.
    ports: Box<[Option<Slots<W>>]>,
}

impl<W: Copy> FragmentTable<W> {
    /// An empty table for port numbers below `ports`.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        FragmentTable {
            ports: (0..ports).map(|_| None).collect(),
        }
    }

    /// Remembers `word` for the later fragments of the packet whose admitted first fragment is `p`.
    /// Allocates at the first fragment a port ever sends; else compares at most 64 keys.
    ///
    /// # Errors
    /// `BadFragment` when that packet has a first fragment already, or is bad; `FragmentTableFull`
    /// when the port has too many packets under way.
    pub fn first(
        &mut self,
        port: PortId,
        p: &Parsed,
        word: W,
        tick: u32,
    ) -> Result<(), DropReason> {
        const FULL: DropReason = DropReason::FragmentTableFull;
        let Fragment::First { id } = p.fragment else {
            return Err(DropReason::BadFragment);
        };
        let key = Key::of(p, id);
        let slots = self.ports.get_mut(usize::from(port.0)).ok_or(FULL)?;
        let slots = slots.get_or_insert_with(|| Box::new([None; PER_PORT]));
        if let Some(known) = find(slots.as_mut_slice(), &key, tick).and_then(Option::as_mut) {
            known.bad = true;
            return Err(DropReason::BadFragment);
        }
        let free = |slot: &&mut Option<Packet<W>>| slot.as_ref().is_none_or(|k| k.is_over(tick));
        let slot = slots.iter_mut().find(free).ok_or(FULL)?;
        let mut packet = Packet {
            key,
            word,
            since: tick,
            end: None,
            bad: false,
            covered: Ranges::EMPTY,
        };
        packet.add(0, u32::from(p.fragment_len), false)?;
        *slot = Some(packet);
        Ok(())
    }

    /// The word remembered for the packet of a later fragment. A packet that is complete now is
    /// forgotten.
    ///
    /// # Errors
    /// `FragmentWithoutFirst`, or `BadFragment` when it overlaps another, ends past the last one, or
    /// leaves more holes than are counted.
    pub fn later(&mut self, port: PortId, p: &Parsed, tick: u32) -> Result<W, DropReason> {
        const UNKNOWN: DropReason = DropReason::FragmentWithoutFirst;
        let Fragment::Later { id, offset, last } = p.fragment else {
            return Err(DropReason::BadFragment);
        };
        let slots = self.ports.get_mut(usize::from(port.0)).ok_or(UNKNOWN)?;
        let slots = slots.as_mut().ok_or(UNKNOWN)?;
        let slot = find(slots.as_mut_slice(), &Key::of(p, id), tick).ok_or(UNKNOWN)?;
        let packet = slot.as_mut().ok_or(UNKNOWN)?;
        let from = u32::from(offset);
        packet.add(from, from + u32::from(p.fragment_len), last)?;
        let word = packet.word;
        if packet.is_complete() {
            *slot = None;
        }
        Ok(word)
    }
}

fn find<'a, W>(
    slots: &'a mut [Option<Packet<W>>],
    key: &Key,
    tick: u32,
) -> Option<&'a mut Option<Packet<W>>> {
    slots.iter_mut().find(|slot| {
        slot.as_ref()
            .is_some_and(|k| k.key == *key && !k.is_over(tick))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::proto;
    use proptest::prelude::*;

    const PORT: PortId = PortId(1);
    const BAD: DropReason = DropReason::BadFragment;
    const UNKNOWN: DropReason = DropReason::FragmentWithoutFirst;

    fn packet(id: u32) -> Parsed {
        Parsed {
            l3: L3::V4,
            protocol: proto::UDP,
            src: Addr([1; 16]),
            dst: Addr([2; 16]),
            fragment: Fragment::First { id },
            fragment_len: 1480,
            ..Parsed::EMPTY
        }
    }

    fn rest(id: u32, offset: u16, len: u16, last: bool) -> Parsed {
        Parsed {
            fragment: Fragment::Later { id, offset, last },
            fragment_len: len,
            ..packet(id)
        }
    }

    fn table() -> FragmentTable<u64> {
        FragmentTable::new(4)
    }

    #[test]
    fn later_ones_get_the_first_ones_word() {
        let mut t = table();
        t.first(PORT, &packet(7), 99, 0).unwrap();
        assert_eq!(t.later(PORT, &rest(7, 1480, 1480, false), 1), Ok(99));
        assert_eq!(t.later(PORT, &rest(7, 2960, 100, true), 1), Ok(99));
        // Complete and forgotten: the identification may come again.
        assert_eq!(t.later(PORT, &rest(7, 2960, 100, true), 1), Err(UNKNOWN));
        t.first(PORT, &packet(7), 100, 2).unwrap();
        assert_eq!(t.later(PORT, &rest(7, 2960, 100, true), 2), Ok(100));
        assert_eq!(t.later(PORT, &rest(7, 1480, 1480, false), 2), Ok(100));
    }

    #[test]
    fn without_its_first() {
        let mut t = table();
        assert_eq!(t.later(PORT, &rest(7, 1480, 8, true), 0), Err(UNKNOWN));
        t.first(PORT, &packet(7), 99, 0).unwrap();
        assert_eq!(
            t.later(PORT, &rest(8, 1480, 8, true), 0),
            Err(UNKNOWN),
            "another packet"
        );
        assert_eq!(
            t.later(PortId(2), &rest(7, 1480, 8, true), 0),
            Err(UNKNOWN),
            "another port"
        );
        assert_eq!(
            t.later(PortId(9), &rest(7, 1480, 8, true), 0),
            Err(UNKNOWN),
            "no such port"
        );
        let mut other = rest(7, 1480, 8, true);
        other.protocol = proto::TCP;
        assert_eq!(t.later(PORT, &other, 0), Err(UNKNOWN), "another protocol");
        // IPv6 fragments of one packet may name different next headers.
        let mut six = packet(9);
        six.l3 = L3::V6;
        t.first(PORT, &six, 5, 0).unwrap();
        other = rest(9, 1480, 8, true);
        (other.l3, other.protocol) = (L3::V6, 60);
        assert_eq!(t.later(PORT, &other, 0), Ok(5));
    }

    #[test]
    fn overlaps_end_the_packet() {
        for (offset, len) in [(1472, 16), (8, 8), (2000, 2000), (2992, 8), (2984, 24)] {
            let mut t = table();
            t.first(PORT, &packet(7), 99, 0).unwrap();
            assert_eq!(t.later(PORT, &rest(7, 2960, 40, false), 0), Ok(99));
            assert_eq!(
                t.later(PORT, &rest(7, offset, len, false), 0),
                Err(BAD),
                "{offset}"
            );
            assert_eq!(
                t.later(PORT, &rest(7, 1480, 1480, false), 0),
                Err(BAD),
                "{offset}"
            );
        }
        let mut t = table();
        t.first(PORT, &packet(7), 99, 0).unwrap();
        assert_eq!(t.first(PORT, &packet(7), 98, 0), Err(BAD), "two first ones");
        assert_eq!(t.later(PORT, &rest(7, 1480, 8, true), 0), Err(BAD));
    }

    #[test]
    fn nothing_comes_behind_the_last() {
        let mut t = table();
        t.first(PORT, &packet(7), 99, 0).unwrap();
        assert_eq!(t.later(PORT, &rest(7, 2960, 8, true), 0), Ok(99));
        assert_eq!(t.later(PORT, &rest(7, 4000, 8, false), 0), Err(BAD));
        t.first(PORT, &packet(8), 99, 0).unwrap();
        assert_eq!(t.later(PORT, &rest(8, 4000, 8, false), 0), Ok(99));
        assert_eq!(t.later(PORT, &rest(8, 2960, 8, true), 0), Err(BAD));
        t.first(PORT, &packet(9), 99, 0).unwrap();
        assert_eq!(t.later(PORT, &rest(9, 4000, 8, true), 0), Ok(99));
        assert_eq!(
            t.later(PORT, &rest(9, 2960, 8, true), 0),
            Err(BAD),
            "two last ones"
        );
    }

    #[test]
    fn bounded_per_port_and_in_time() {
        let mut t = table();
        for id in (0u32..).take(PER_PORT) {
            t.first(PORT, &packet(id), 1, 10).unwrap();
        }
        let full = Err(DropReason::FragmentTableFull);
        assert_eq!(t.first(PORT, &packet(1000), 1, 10 + LIFETIME_TICKS), full);
        assert_eq!(
            t.first(PortId(4), &packet(1000), 1, 10),
            full,
            "no such port"
        );
        t.first(PortId(2), &packet(1000), 1, 10).unwrap();
        t.first(PORT, &packet(1000), 1, 11 + LIFETIME_TICKS)
            .unwrap();
        let late = t.later(PORT, &rest(5, 1480, 8, true), 11 + LIFETIME_TICKS);
        assert_eq!(late, Err(UNKNOWN));
        // Ticks wrap.
        t.first(PortId(3), &packet(1), 1, u32::MAX).unwrap();
        assert_eq!(t.later(PortId(3), &rest(1, 1480, 8, true), 5), Ok(1));
    }

    #[test]
    fn holes_are_bounded() {
        let mut t = table();
        t.first(PORT, &packet(7), 1, 0).unwrap();
        for i in (1u16..).take(RANGES - 1) {
            assert_eq!(t.later(PORT, &rest(7, 1480 + i * 16, 8, false), 0), Ok(1));
        }
        let more = rest(7, 1480 + 1600, 8, false);
        assert_eq!(t.later(PORT, &more, 0), Err(BAD));
    }

    proptest! {
        /// Against a set of bytes.
        #[test]
        fn ranges_are_a_set(adds in prop::collection::vec((0u32..60, 1u32..12), 1..40)) {
            let mut ranges = Ranges::EMPTY;
            let mut bytes = std::collections::BTreeSet::new();
            for (from, len) in adds {
                let new: std::collections::BTreeSet<_> = (from..from + len).collect();
                let overlaps = !bytes.is_disjoint(&new);
                prop_assert_eq!(ranges.add(from, from + len), !overlaps);
                if !overlaps {
                    bytes.extend(new);
                }
                let listed: Vec<_> = ranges.used().iter().flat_map(|r| r.0..r.1).collect();
                prop_assert_eq!(listed, bytes.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.used().windows(2).all(|w| w[0].1 < w[1].0));
            }
        }

        /// In whatever order the later ones come, all are let through.
        #[test]
        fn any_order(order in Just((1u16..12).collect::<Vec<_>>()).prop_shuffle()) {
            let mut t = table();
            t.first(PORT, &packet(7), 3, 0).unwrap();
            for i in order {
                prop_assert_eq!(t.later(PORT, &rest(7, i * 1480, 1480, i == 11), 0), Ok(3));
            }
            prop_assert_eq!(t.later(PORT, &rest(7, 1480, 1480, false), 0), Err(UNKNOWN));
        }
    }
}
