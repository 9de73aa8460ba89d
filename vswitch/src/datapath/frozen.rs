//! A hash map that is built once and then only read: open addressing at a quarter full, so that
//! a lookup is one line almost always.
//!
//! Keys come from the operator's files, so nobody can aim at its (unseeded) hash; a hostile
//! *lookup* key only walks a run that honest keys made.

use crate::packet::Addr;

/// A key that can be hashed cheaply.
pub trait FrozenKey: Copy + Eq {
    /// A well-spread 64-bit hash.
    fn hash(&self) -> u64;
}

/// 2^64 / golden ratio (Knuth, multiplicative hashing).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl FrozenKey for u64 {
    #[inline]
    fn hash(&self) -> u64 {
        let h = self.wrapping_mul(SPREAD);
        h ^ (h >> 32)
    }
}

impl FrozenKey for (u16, Addr) {
    #[inline]
    fn hash(&self) -> u64 {
        let [hi, lo] = [0, 8].map(|i| {
            let mut word = [0u8; 8];
            word.copy_from_slice(self.1.0.get(i..i + 8).unwrap_or(&[0; 8]));
            u64::from_be_bytes(word)
        });
        let h = (lo ^ u64::from(self.0) << 48).wrapping_mul(SPREAD) ^ hi;
        let h = (h ^ (h >> 29)).wrapping_mul(SPREAD);
        h ^ (h >> 32)
    }
}

/// See the module documentation. The first of equal keys wins.
#[derive(Debug)]
pub struct FrozenMap<K> {
    slots: Box<[Option<(K, u32)>]>,
    mask: usize,
}

impl<K: FrozenKey> FrozenMap<K> {
    /// Builds the map.
    #[must_use]
    pub fn new(entries: Vec<(K, u32)>) -> Self {
        let len = (entries.len() * 4).next_power_of_two().max(4);
        let mut map = FrozenMap {
            slots: vec![None; len].into(),
            mask: len - 1,
        };
        for (key, value) in entries {
            let mut at = map.first(&key);
            while let Some(slot) = map.slots.get_mut(at) {
                match slot {
                    Some((k, _)) if *k == key => break,
                    Some(_) => at = (at + 1) & map.mask,
                    None => {
                        *slot = Some((key, value));
                        break;
                    }
                }
            }
        }
        map
    }

    #[inline]
    fn first(&self, key: &K) -> usize {
        #[allow(clippy::cast_possible_truncation)] // masked at once
        {
            key.hash() as usize & self.mask
        }
    }

    /// The value for `key`.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<u32> {
        let mut at = self.first(key);
        // Three quarters of the slots are empty, so the walk ends.
        while let Some(Some((k, value))) = self.slots.get(at) {
            if k == key {
                return Some(*value);
            }
            at = (at + 1) & self.mask;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::FrozenMap;

    #[test]
    fn finds_what_was_put_in_and_nothing_else() {
        let key = |k: u32| u64::from(k) << 40 | u64::from(k);
        let map = FrozenMap::new((0..1000).map(|k| (key(k), k)).collect());
        for k in 0..1000 {
            assert_eq!(map.get(&key(k)), Some(k));
            assert_eq!(map.get(&(key(k) + 1)), None);
        }
        assert_eq!(FrozenMap::<u64>::new(Vec::new()).get(&7), None);
        assert_eq!(FrozenMap::new(vec![(1u64, 5), (1, 6)]).get(&1), Some(5));
    }
}
