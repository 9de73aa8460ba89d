//! Whose a MAC is, and which uplink a station of the outside is behind.
//!
//! Workloads are never learned: their MACs are declared, and a declared MAC is refused as a
//! source anywhere else. What is learned only chooses between uplinks; the frame is judged
//! against the port it really leaves by, and only uplinks are chosen from, so a wrong entry can
//! misdirect outside traffic within the outside and nothing more.
//!
//! *Thread-safety.* Shared by all workers. A slot is two words written one after the other; a
//! reader that catches a slot half-written sees the key of one station with the place of another,
//! which is the harmless wrong entry above. Whoever replaces a place by compare-and-swap counts for
//! both ports, so that the counts stay right whoever comes in between.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::datapath::guard;
use crate::datapath::process::Place;
use crate::datapath::snapshot::{DomainId, OwnerIdx, Snapshot, mac_key};
use crate::drop_reason::DropReason;
use crate::packet::{L3, Mac, Parsed};
use crate::port::PortId;

/// Stations remembered: more than a data-centre VLAN has, 64 KiB.
const SLOTS: usize = 4096;
/// Slots a key may use: one cache line of keys.
const WAYS: usize = 8;
/// Stations one port may have in the table, so that a neighbour's flood of source MACs cannot
/// push out everybody else's.
const PER_PORT_MAX: u32 = 1024;
/// An entry unused for this long is free (IEEE 802.1Q-2018 table 8-6 recommends 300 s).
pub const AGEING_TICKS: u32 = 300;

#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    /// Port plus one over tick (32 bits); 0: empty.
    place: AtomicU64,
}

/// The table of learned stations.
#[derive(Debug)]
pub struct Learned {
    slots: Box<[Slot]>,
    /// Slots each port holds, aged ones included until they are given to another.
    per_port: Box<[AtomicU32]>,
    /// Where a port at its limit looks next for slots that have aged.
    hand: AtomicUsize,
}

fn pack(port: PortId, tick: u32) -> u64 {
    (u64::from(port.0) + 1) << 32 | u64::from(tick)
}

#[allow(clippy::cast_possible_truncation)] // two fields of the word
fn port_of(place: u64) -> Option<PortId> {
    Some(PortId(((place >> 32) as u16).wrapping_sub(1))).filter(|_| place != 0)
}

/// Whether a place holds a station that was seen lately. Workers read the clock each for itself:
/// a tick from the future is now.
#[allow(clippy::cast_possible_truncation)] // a field of the word
fn is_live(place: u64, tick: u32) -> bool {
    place != 0 && tick.saturating_sub(place as u32) <= AGEING_TICKS
}

impl Learned {
    /// An empty table for `ports` ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Learned {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            per_port: (0..ports).map(|_| AtomicU32::new(0)).collect(),
            hand: AtomicUsize::new(0),
        }
    }

    /// The bucket with this number; a larger number wraps.
    fn bucket(&self, number: usize) -> &[Slot] {
        let first = number % (SLOTS / WAYS) * WAYS;
        self.slots.get(first..first + WAYS).unwrap_or(&[])
    }

    fn ways(&self, key: u64) -> &[Slot] {
        #[allow(clippy::cast_possible_truncation)] // any bits will do
        self.bucket((key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize / WAYS)
    }

    /// Notes that `mac` was seen in `domain` behind `port`, and says whether it was behind another
    /// before. Bounded, no allocation; with a full bucket, or from a port at its limit, nothing is
    /// learned: frames for a station unknown go to the domain's first uplink, and one that moved is
    /// looked for where it was until that has aged.
    pub fn learn(&self, domain: DomainId, mac: Mac, port: PortId, tick: u32) -> bool {
        let key = mac_key(domain, mac);
        let mut free = None;
        for slot in self.ways(key) {
            let seen = slot.place.load(Relaxed);
            if !is_live(seen, tick) {
                free = free.or(Some((slot, seen)));
            } else if slot.key.load(Relaxed) == key {
                let moved = port_of(seen) != Some(port);
                let noted = seen != pack(port, tick) && self.replace(slot, seen, port, tick);
                return noted && moved;
            }
        }
        if let Some((slot, seen)) = free
            && self.replace(slot, seen, port, tick)
        {
            slot.key.store(key, Relaxed);
        }
        false
    }

    /// Writes a slot in which `seen` stood, unless that makes `port` hold more than it may or
    /// another worker was faster.
    fn replace(&self, slot: &Slot, seen: u64, port: PortId, tick: u32) -> bool {
        let more = port_of(seen) != Some(port);
        if more && !self.has_room(port, tick) {
            return false;
        }
        let place = pack(port, tick);
        let done = slot.place.compare_exchange(seen, place, Relaxed, Relaxed);
        if more && done.is_ok() {
            self.release(seen);
            if let Some(count) = self.per_port.get(port.0 as usize) {
                count.fetch_add(1, Relaxed);
            }
        }
        done.is_ok()
    }

    /// Whether `port` may have one more station. At its limit, what has aged is given up first: one
    /// bucket at each attempt, so that an attempt costs the same whatever the table holds.
    fn has_room(&self, port: PortId, tick: u32) -> bool {
        let Some(count) = self.per_port.get(port.0 as usize) else {
            return false;
        };
        if count.load(Relaxed) >= PER_PORT_MAX {
            for slot in self.bucket(self.hand.fetch_add(1, Relaxed)) {
                let seen = slot.place.load(Relaxed);
                let aged = seen != 0 && !is_live(seen, tick);
                if aged
                    && slot
                        .place
                        .compare_exchange(seen, 0, Relaxed, Relaxed)
                        .is_ok()
                {
                    self.release(seen);
                }
            }
        }
        count.load(Relaxed) < PER_PORT_MAX
    }

    /// A place is no longer in the table.
    fn release(&self, place: u64) {
        let count = port_of(place).and_then(|port| self.per_port.get(port.0 as usize));
        if let Some(count) = count {
            count.fetch_sub(1, Relaxed);
        }
    }

    /// The port `mac` was last seen behind, not longer than [`AGEING_TICKS`] ago.
    pub fn find(&self, domain: DomainId, mac: Mac, tick: u32) -> Option<PortId> {
        let key = mac_key(domain, mac);
        let places = self.ways(key).iter().filter_map(|slot| {
            let place = slot.place.load(Relaxed);
            (slot.key.load(Relaxed) == key && is_live(place, tick)).then_some(place)
        });
        places.map(port_of).next().flatten()
    }
}

/// 01:80:c2:00:00:00 to 0f: between neighbours on a link, never forwarded (802.1Q-2018 table 8-1).
pub(crate) fn is_link_local_group(p: &Parsed) -> bool {
    matches!(p.dst_mac.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
}

/// Whose the destination MAC is. A workload's is declared; any other goes to an uplink: the one
/// it was learned behind, else the domain's first.
#[inline]
pub(crate) fn destination(
    snapshot: &Snapshot,
    learned: &Learned,
    tick: u32,
    in_port: PortId,
    at: Place,
    p: &Parsed,
) -> Result<OwnerIdx, DropReason> {
    if let Some(idx) = snapshot.by_mac(at.domain, p.dst_mac) {
        let owner = snapshot.owner(idx).ok_or(DropReason::UnknownDestination)?;
        if idx == at.src {
            return Err(DropReason::SamePort);
        }
        if matches!(p.l3, L3::V4 | L3::V6) && !owner.has_ip(&p.dst) {
            let port = snapshot
                .port(owner.port)
                .ok_or(DropReason::UnknownDestination)?;
            let routed_to_local = snapshot.by_addr(at.domain, p.dst).is_some_and(|o| o != idx);
            if routed_to_local || !guard::accepts(port, owner, &p.dst) {
                return Err(DropReason::DestinationMismatch);
            }
        }
        return Ok(idx);
    }
    if snapshot.owner(at.src).is_none_or(|sender| sender.outside) {
        // The outside reaches workloads only; it is not a transit network.
        return Err(DropReason::UnknownDestination);
    }
    let uplinks = &snapshot
        .domain(at.domain)
        .ok_or(DropReason::UnknownDestination)?
        .uplinks;
    let behind = learned.find(at.domain, p.dst_mac, tick);
    let chosen = uplinks
        .iter()
        .copied()
        .find(|i| snapshot.owner(*i).map(|o| o.port) == behind && behind.is_some())
        .or(uplinks.first().copied())
        .ok_or(DropReason::UnknownDestination)?;
    if snapshot.owner(chosen).is_some_and(|o| o.port == in_port) {
        return Err(DropReason::SamePort);
    }
    // A local workload's address behind a foreign MAC would go round that workload's firewall.
    if matches!(p.l3, L3::V4 | L3::V6) && snapshot.by_addr(at.domain, p.dst).is_some() {
        return Err(DropReason::DestinationMismatch);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DomainId = DomainId(1);
    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn mac(i: u32) -> Mac {
        let [a, b, c, d] = i.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn table() -> Learned {
        Learned::new(3)
    }

    /// Makes `port` use up its limit, from station `first` on.
    fn fill(t: &Learned, port: PortId, first: u32, tick: u32) {
        for i in first..first + 5_000 {
            t.learn(D, mac(i), port, tick);
        }
        assert_eq!(held(t, port), PER_PORT_MAX);
    }

    fn held(t: &Learned, port: PortId) -> u32 {
        t.per_port[port.0 as usize].load(Relaxed)
    }

    #[test]
    fn learns_moves_and_ages() {
        let t = table();
        assert!(!t.learn(D, mac(1), A, 10));
        assert_eq!(t.find(D, mac(1), 10), Some(A));
        assert_eq!(t.find(DomainId(2), mac(1), 10), None);
        assert!(t.learn(D, mac(1), B, 11), "moved");
        assert!(!t.learn(D, mac(1), B, 11), "once");
        assert_eq!((held(&t, A), held(&t, B)), (0, 1));
        assert_eq!(t.find(D, mac(1), 11 + AGEING_TICKS), Some(B));
        assert_eq!(t.find(D, mac(1), 12 + AGEING_TICKS), None);
        // A worker whose clock is a second behind sees it all the same.
        assert_eq!(t.find(D, mac(1), 10), Some(B));
        assert!(!t.learn(D, mac(2), PortId(3), 1), "no such port");
        assert_eq!(t.find(D, mac(2), 1), None);
    }

    #[test]
    fn one_port_cannot_take_the_whole_table() {
        let t = table();
        fill(&t, A, 0, 1);
        let found = (0..5_000).filter(|i| t.find(D, mac(*i), 1).is_some());
        assert_eq!(found.count(), PER_PORT_MAX as usize);
        t.learn(D, mac(200_001), B, 1);
        assert_eq!(t.find(D, mac(200_001), 1), Some(B));
    }

    /// Nor by saying that it is everybody else.
    #[test]
    fn a_move_is_bound_by_the_limit() {
        let t = table();
        fill(&t, A, 0, 1);
        t.learn(D, mac(200_001), B, 1);
        assert!(!t.learn(D, mac(200_001), A, 1));
        assert_eq!(t.find(D, mac(200_001), 1), Some(B));
        assert_eq!((held(&t, A), held(&t, B)), (PER_PORT_MAX, 1));
    }

    #[test]
    fn what_has_aged_makes_room() {
        let t = table();
        fill(&t, A, 0, 1);
        let later = 2 + AGEING_TICKS;
        // One try a bucket, at worst.
        for _ in 0..SLOTS / WAYS {
            t.learn(D, mac(200_001), A, later);
        }
        assert_eq!(t.find(D, mac(200_001), later), Some(A));
        fill(&t, A, 300_000, later);
        // And another port's stations take the place of aged ones, which their port is rid of.
        fill(&t, B, 500_000, later + later);
        assert!(held(&t, A) < PER_PORT_MAX);
    }

    #[test]
    fn workers_at_once_count_right() {
        let t = table();
        std::thread::scope(|s| {
            for port in [A, B] {
                let t = &t;
                s.spawn(move || {
                    for i in 0..20_000u32 {
                        t.learn(D, mac(i % 600), port, i * AGEING_TICKS / 2000);
                    }
                });
            }
        });
        for port in [A, B] {
            let places = t.slots.iter().map(|s| port_of(s.place.load(Relaxed)));
            let there = places.filter(|p| *p == Some(port)).count();
            assert_eq!(held(&t, port) as usize, there);
        }
    }
}
