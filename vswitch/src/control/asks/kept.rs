//! What is kept about many topics: found by its key, forgotten when its time is over, and so many at most of one workload,
//! whose lowest in rank gives way to a new one. Nothing is searched, however many there are.

use std::collections::BTreeSet;

use ahash::AHashMap as HashMap;
use flowtable::FlowKey;
use slab::Slab;

use crate::datapath::snapshot::AttachmentId;

/// Places in the order of a number.
type Ordered = BTreeSet<(u64, usize)>;

#[derive(Debug)]
struct Entry<V> {
    key: FlowKey,
    value: V,
    owner: AttachmentId,
    rank: u64,
    over_ns: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub(in crate::control) struct Kept<V> {
    entries: Slab<Entry<V>>,
    places: HashMap<FlowKey, usize>,
    /// By owner and rank.
    owned: HashMap<AttachmentId, Ordered>,
    /// By when their time is over, if that comes by itself.
    over: Ordered,
    per_owner: usize,
}

impl<V> Kept<V> {
    /// Nothing yet.
    pub(in crate::control) fn new(per_owner: usize) -> Self {
        Kept {
            entries: Slab::new(),
            places: HashMap::new(),
            owned: HashMap::new(),
            over: BTreeSet::new(),
            per_owner,
        }
    }

    pub(in crate::control) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(in crate::control) fn get(&self, key: &FlowKey) -> Option<&V> {
        let entry = self.entries.get(*self.places.get(key)?)?;
        Some(&entry.value)
    }

    /// All that is kept, in no order.
    pub(in crate::control) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, entry)| &entry.value)
    }

    /// When there is something to be forgotten; `None`: never.
    pub(in crate::control) fn next_ns(&self) -> Option<u64> {
        self.over.first().map(|(at, _)| *at)
    }

    /// Keeps a value, instead of an earlier one, until `over_ns` ([`u64::MAX`]: until it is taken out). Returns what of its owner
    /// had to give way.
    pub(in crate::control) fn insert(
        &mut self,
        key: FlowKey,
        owner: AttachmentId,
        (rank, over_ns): (u64, u64),
        value: V,
    ) -> Option<(FlowKey, V)> {
        self.remove(&key);
        let owned = self.owned.get(&owner);
        let full = owned.filter(|owned| owned.len() >= self.per_owner);
        let lowest = full.and_then(|owned| owned.first());
        let lowest = lowest.map(|(_, place)| *place);
        let gone = lowest.and_then(|place| self.vacate(place));
        let entry = Entry {
            key,
            value,
            owner,
            rank,
            over_ns,
        };
        let place = self.entries.insert(entry);
        self.places.insert(key, place);
        self.owned.entry(owner).or_default().insert((rank, place));
        if over_ns != u64::MAX {
            self.over.insert((over_ns, place));
        }
        gone
    }

    pub(in crate::control) fn remove(&mut self, key: &FlowKey) -> Option<V> {
        let place = *self.places.get(key)?;
        self.vacate(place).map(|(_, value)| value)
    }

    fn vacate(&mut self, place: usize) -> Option<(FlowKey, V)> {
        let entry = self.entries.try_remove(place)?;
        self.places.remove(&entry.key);
        self.over.remove(&(entry.over_ns, place));
        if let Some(owned) = self.owned.get_mut(&entry.owner) {
            owned.remove(&(entry.rank, place));
            if owned.is_empty() {
                self.owned.remove(&entry.owner);
            }
        }
        Some((entry.key, entry.value))
    }

    /// Takes out something whose time is over.
    pub(in crate::control) fn take_over(&mut self, now_ns: u64) -> Option<(FlowKey, V)> {
        let (_, place) = self.over.first().filter(|(at, _)| *at <= now_ns)?;
        self.vacate(*place)
    }

    /// Forgets what is of owners who are gone.
    #[cfg_attr(not(feature = "manager"), allow(dead_code))] // managers' history alone needs it
    pub(in crate::control) fn retain_owners(&mut self, stays: impl Fn(AttachmentId) -> bool) {
        let gone = self.owned.iter().filter(|(owner, _)| !stays(**owner));
        let gone: Vec<_> = gone.flat_map(|(_, owned)| owned).map(|o| o.1).collect();
        for place in gone {
            self.vacate(place);
        }
    }

    /// Takes out all that `gone` says.
    pub(in crate::control) fn take_all(&mut self, gone: impl Fn(&V) -> bool) -> Vec<(FlowKey, V)> {
        let places = self.entries.iter().filter(|(_, e)| gone(&e.value));
        let places: Vec<_> = places.map(|(place, _)| place).collect();
        let taken = places.into_iter().filter_map(|p| self.vacate(p));
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Addr;
    use flowtable::Endpoint;

    fn key(n: u16) -> FlowKey {
        let end = |last, port| Endpoint {
            addr: Addr::from_v4_bytes([10, 0, 0, last]),
            port,
            attachment: 0,
        };
        FlowKey::new(0, 6, &end(1, n), &end(2, 80)).0
    }

    const A: AttachmentId = AttachmentId(1);
    const B: AttachmentId = AttachmentId(2);

    #[test]
    fn one_owner_takes_no_place_of_another() {
        let mut kept = Kept::new(2);
        assert_eq!(kept.insert(key(1), B, (0, 9), "b"), None);
        assert_eq!(kept.insert(key(2), A, (5, 9), "first"), None);
        assert_eq!(kept.insert(key(3), A, (7, 9), "second"), None);
        // In its own place.
        assert_eq!(kept.insert(key(2), A, (8, 9), "again"), None);
        assert_eq!(
            kept.insert(key(4), A, (6, 9), "third"),
            Some((key(3), "second"))
        );
        assert_eq!(kept.get(&key(1)), Some(&"b"));
        assert_eq!(kept.get(&key(2)), Some(&"again"));
        assert_eq!(kept.get(&key(3)), None);
    }

    #[test]
    fn it_is_forgotten_when_its_time_is_over_and_not_before() {
        let mut kept = Kept::new(8);
        kept.insert(key(1), A, (0, 20), 1);
        kept.insert(key(2), A, (0, 10), 2);
        kept.insert(key(3), B, (0, 10), 3);
        kept.insert(key(4), B, (0, u64::MAX), 4);
        assert_eq!((kept.next_ns(), kept.take_over(9)), (Some(10), None));
        assert_eq!(kept.take_over(10), Some((key(2), 2)));
        assert_eq!(kept.take_over(10), Some((key(3), 3)));
        assert_eq!(kept.take_over(10), None);
        assert_eq!(kept.take_all(|n| *n == 1), [(key(1), 1)]);
        assert_eq!((kept.next_ns(), kept.take_over(u64::MAX)), (None, None));
        kept.insert(key(5), A, (0, 10), 5);
        kept.retain_owners(|owner| owner == B);
        assert_eq!((kept.next_ns(), kept.get(&key(5))), (None, None));
        assert_eq!(kept.remove(&key(4)), Some(4));
        assert!(
            kept.is_empty()
                && kept.places.is_empty()
                && kept.owned.is_empty()
                && kept.over.is_empty()
        );
    }
}
