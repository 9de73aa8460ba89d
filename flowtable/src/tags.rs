#![allow(unsafe_code)]
//! Which slots of a bucket have a tag: the one comparison every lookup makes, with the vector instructions that every
//! x86-64 has, and one by one elsewhere.
//!
//! **The invariant this file owns**: it reads the one bucket it is given a reference to, as relaxed atomic loads
//! would.

use crate::bucket::{Bucket, TAG_MASK};
#[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
use std::arch::x86_64::__m128i;

/// One bit for each slot whose tag is `tag`, free or not.
#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom)))))]
#[inline]
pub(crate) fn equal(bucket: &Bucket, tag: u32) -> u32 {
    use crate::sync::Ordering::Relaxed;
    (0..).zip(&bucket.slots).fold(0, |found, (i, slot)| {
        let differ = (slot.load(Relaxed) ^ tag) & TAG_MASK;
        found | u32::from(differ == 0) << i
    })
}

/// One bit for each slot whose tag is `tag`, free or not.
#[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
#[inline]
pub(crate) fn equal(bucket: &Bucket, tag: u32) -> u32 {
    let (a, b, c, d): (__m128i, __m128i, __m128i, __m128i);
    // SAFETY: reads the 64 aligned bytes that `bucket` refers to. To Rust these are relaxed atomic loads of its
    // control word and slots: aligned vector loads are made of whole quadwords at least, and because it is not
    // `pure` it is done as often as it is written.
    unsafe {
        std::arch::asm!(
            "movdqa {a}, [{line}]",
            "movdqa {b}, [{line} + 16]",
            "movdqa {c}, [{line} + 32]",
            "movdqa {d}, [{line} + 48]",
            line = in(reg) std::ptr::from_ref(bucket),
            a = out(xmm_reg) a,
            b = out(xmm_reg) b,
            c = out(xmm_reg) c,
            d = lateout(xmm_reg) d,
            options(readonly, nostack, preserves_flags),
        );
    }
    // SAFETY: every x86-64 has SSE2.
    let all = unsafe { compare([a, b, c, d], tag) };
    // The control word is the first two of the sixteen.
    all >> 2
}

/// One bit for each 32-bit lane with that tag, in their order.
#[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
#[target_feature(enable = "sse2")]
#[inline]
fn compare(lanes: [__m128i; 4], tag: u32) -> u32 {
    use std::arch::x86_64::{
        _mm_and_si128, _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32,
        _mm_set1_epi32,
    };
    let mask = _mm_set1_epi32(TAG_MASK.cast_signed());
    let tag = _mm_set1_epi32(tag.cast_signed());
    let equal = |four| _mm_cmpeq_epi32(_mm_and_si128(four, mask), tag);
    let [a, b, c, d] = lanes;
    // Sixteen bits each, then eight, then one.
    let ab = _mm_packs_epi32(equal(a), equal(b));
    let cd = _mm_packs_epi32(equal(c), equal(d));
    _mm_movemask_epi8(_mm_packs_epi16(ab, cd)).cast_unsigned()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::equal;
    use crate::bucket::{Bucket, SLOTS, TAG_MASK};
    use crate::sync::{AtomicU32, AtomicU64};

    #[test]
    fn every_slot_is_found_by_its_tag_alone() {
        let bucket = |slots: [u32; SLOTS]| Bucket {
            control: AtomicU64::new(u64::MAX),
            slots: slots.map(AtomicU32::new),
        };
        for tag in [0, 1, 0x7ff, TAG_MASK] {
            for at in 0..SLOTS {
                for bit in 0..32 {
                    let mut slots = [!tag; SLOTS];
                    slots[at] = tag | 0xabcd_e000;
                    assert_eq!(equal(&bucket(slots), tag), 1 << at);
                    slots[at] ^= 1 << bit;
                    let expected = u32::from(TAG_MASK >> bit & 1 == 0) << at;
                    assert_eq!(equal(&bucket(slots), tag), expected, "bit {bit}");
                }
            }
            assert_eq!(equal(&bucket([tag; SLOTS]), tag), (1 << SLOTS) - 1);
        }
    }
}
