//! Learned MACs: which uplink a station of the outside is behind.
//!
//! Workloads are never learned: their MACs are declared, and a declared MAC is refused as a
//! source anywhere else. What is learned only chooses between uplinks; the frame is judged
//! against the port it really leaves by, and only uplinks are chosen from, so a wrong entry can
//! misdirect outside traffic within the outside and nothing more.
//!
//! *Thread-safety.* Shared by all workers. A slot is two words written one after the other; a
//! reader that catches a slot half-written sees the key of one station with the place of another,
//! which is the harmless wrong entry above.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::datapath::snapshot::{DomainId, mac_key};
use crate::packet::Mac;
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
/// Ports that can learn; matches `PortId`'s use as an index.
const PORTS: usize = 1024;

#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    /// Port (16 bits) over tick (32 bits).
    place: AtomicU64,
}

/// The table of learned stations.
#[derive(Debug)]
pub struct Learned {
    slots: Box<[Slot]>,
    per_port: Box<[AtomicU32]>,
}

fn pack(port: PortId, tick: u32) -> u64 {
    u64::from(port.0) << 32 | u64::from(tick)
}

#[allow(clippy::cast_possible_truncation)] // two fields of the word
fn unpack(place: u64) -> (PortId, u32) {
    (PortId((place >> 32) as u16), place as u32)
}

impl Default for Learned {
    fn default() -> Self {
        Learned {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            per_port: (0..PORTS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl Learned {
    fn ways(&self, key: u64) -> &[Slot] {
        let h = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        #[allow(clippy::cast_possible_truncation)] // masked
        let first = (h as usize & (SLOTS - 1)) & !(WAYS - 1);
        self.slots.get(first..first + WAYS).unwrap_or(&[])
    }

    /// Notes that `mac` was seen in `domain` behind `port`. Bounded, no allocation; a full bucket
    /// or a port at its limit learns nothing (frames for it then go to every uplink).
    pub fn learn(&self, domain: DomainId, mac: Mac, port: PortId, tick: u32) {
        let key = mac_key(domain, mac);
        let mut free = None;
        for slot in self.ways(key) {
            let seen = slot.key.load(Ordering::Relaxed);
            let (old_port, old_tick) = unpack(slot.place.load(Ordering::Relaxed));
            if seen == key {
                if (old_port, old_tick) != (port, tick) {
                    slot.place.store(pack(port, tick), Ordering::Relaxed);
                    if old_port != port {
                        self.count(old_port, false);
                        self.count(port, true);
                    }
                }
                return;
            }
            if free.is_none() && (seen == 0 || tick.wrapping_sub(old_tick) > AGEING_TICKS) {
                free = Some((slot, seen, old_port));
            }
        }
        let Some((slot, seen, old_port)) = free else {
            return;
        };
        let used = self
            .per_port
            .get(port.0 as usize)
            .map_or(u32::MAX, |c| c.load(Ordering::Relaxed));
        if used >= PER_PORT_MAX {
            return;
        }
        if slot
            .key
            .compare_exchange(seen, key, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            slot.place.store(pack(port, tick), Ordering::Relaxed);
            if seen != 0 {
                self.count(old_port, false);
            }
            self.count(port, true);
        }
    }

    fn count(&self, port: PortId, up: bool) {
        if let Some(c) = self.per_port.get(port.0 as usize) {
            let step = |n: u32| {
                Some(if up {
                    n.saturating_add(1)
                } else {
                    n.saturating_sub(1)
                })
            };
            // `step` always returns a value, so the update cannot fail.
            let _ = c.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        }
    }

    /// The port `mac` was last seen behind, not longer than [`AGEING_TICKS`] ago.
    pub fn find(&self, domain: DomainId, mac: Mac, tick: u32) -> Option<PortId> {
        let key = mac_key(domain, mac);
        let slot = self
            .ways(key)
            .iter()
            .find(|s| s.key.load(Ordering::Relaxed) == key)?;
        let (port, then) = unpack(slot.place.load(Ordering::Relaxed));
        (tick.wrapping_sub(then) <= AGEING_TICKS).then_some(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DomainId = DomainId(1);

    fn mac(i: u32) -> Mac {
        let [a, b, c, d] = i.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    #[test]
    fn learns_moves_and_ages() {
        let t = Learned::default();
        t.learn(D, mac(1), PortId(3), 10);
        assert_eq!(t.find(D, mac(1), 10), Some(PortId(3)));
        assert_eq!(t.find(DomainId(2), mac(1), 10), None);
        t.learn(D, mac(1), PortId(4), 11);
        assert_eq!(t.find(D, mac(1), 11 + AGEING_TICKS), Some(PortId(4)));
        assert_eq!(t.find(D, mac(1), 12 + AGEING_TICKS), None);
    }

    #[test]
    fn one_port_cannot_take_the_whole_table() {
        let t = Learned::default();
        for i in 0..100_000 {
            t.learn(D, mac(i), PortId(1), 1);
        }
        let held = (0..100_000)
            .filter(|i| t.find(D, mac(*i), 1).is_some())
            .count();
        assert_eq!(held, PER_PORT_MAX as usize);
        t.learn(D, mac(200_001), PortId(2), 1);
        assert_eq!(t.find(D, mac(200_001), 1), Some(PortId(2)));
    }
}
