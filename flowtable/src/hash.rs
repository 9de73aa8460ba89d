//! The seeded hash: NH, the universal hash UMAC is built on (RFC 4418 section 5.2), on 64-bit words,
//! and a keyed finish.
//!
//! NH's theorem is what an attacker is up against: for any two keys chosen without knowing the seed, the
//! 128-bit sums are equal with probability at most 2^-64. The finish folds the sum to 64 well-mixed
//! bits; the table takes three disjoint fields of them (see `Hash`). All products are independent,
//! so the multiplier pipelines them.

use crate::key::{FlowKey, KEY_WORDS};
use std::hash::{BuildHasher, Hasher as _};

/// Bits of a slot's tag.
pub(crate) const TAG_BITS: u32 = 12;
/// Bits of the hash that choose the shard.
pub(crate) const SHARD_BITS: u32 = 20;

/// A key's 64-bit hash and its disjoint fields: bucket (bits 0..32), tag (32..44), shard (44..64).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hash(pub(crate) u64);

impl Hash {
    #[inline]
    pub(crate) fn tag(self) -> u32 {
        ((self.0 >> 32) & ((1 << TAG_BITS) - 1)) as u32
    }

    /// One of `shards` shards, by multiply and shift: no division.
    #[inline]
    pub(crate) fn shard(self, shards: usize) -> usize {
        (((self.0 >> (64 - SHARD_BITS)) * shards as u64) >> SHARD_BITS) as usize
    }

    /// One of `buckets` buckets of the shard.
    #[inline]
    pub(crate) fn bucket(self, buckets: usize) -> usize {
        (((self.0 & 0xffff_ffff) * buckets as u64) >> 32) as usize
    }
}

/// The hash function and its secret.
#[derive(Clone)]
pub(crate) struct Hasher {
    nh: [u64; KEY_WORDS],
    finish: [u64; 2],
}

// Not derived: the secret does not belong in a log.
impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// A hasher whose eight words of key are drawn from `seed`, or from the operating system.
    pub(crate) fn new(seed: Option<[u64; 4]>) -> Hasher {
        let seed = seed.unwrap_or_else(random_seed);
        let mut state = seed;
        let mut next = || {
            // Two rounds of splitmix64 chained through the four seed words: every word of key
            // depends on every word of seed.
            let mut x = 0u64;
            for s in &mut state {
                *s = s.wrapping_add(0x9e37_79b9_7f4a_7c15);
                x = splitmix(x ^ *s);
            }
            splitmix(x)
        };
        Hasher {
            nh: std::array::from_fn(|_| next()),
            finish: [next(), next()],
        }
    }

    /// About 4 ns on its own, 2 ns a key in a burst.
    #[inline]
    pub(crate) fn hash(&self, key: &FlowKey) -> Hash {
        let (w, k) = (key.words(), &self.nh);
        let product = |i: usize| {
            u128::from(w[i].wrapping_add(k[i]))
                .wrapping_mul(u128::from(w[i + 1].wrapping_add(k[i + 1])))
        };
        let mut sum = product(0).wrapping_add(product(2));
        // Between IPv4 addresses these words are 0, and their product the same for all; whether it counts, a bit of
        // the words before tells.
        if key.is_wide() {
            sum = sum.wrapping_add(product(4));
        }
        let [a, b] = self.finish;
        let (low, high) = halves(sum);
        // Twice: one folded product of two dependent halves still shows structure in its low bits.
        let once = fold(low ^ a, high ^ b);
        Hash(fold(once ^ b, low.rotate_left(32) ^ a))
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let (low, high) = halves(u128::from(a).wrapping_mul(u128::from(b)));
    low ^ high
}

#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves are what is wanted"
)]
fn halves(x: u128) -> (u64, u64) {
    (x as u64, (x >> 64) as u64)
}

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
fn splitmix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Four words that depend on the operating system's randomness: the standard library keys its
/// SipHash from it, and a keyed SipHash's output tells nothing about its key.
fn random_seed() -> [u64; 4] {
    let random = std::hash::RandomState::new();
    std::array::from_fn(|i| {
        let mut h = random.build_hasher();
        h.write_usize(i);
        h.finish()
    })
}
