#![allow(unsafe_code)]
//! Copies of a few dozen to a few hundred bytes, without a call: half the frames of a network are
//! smaller than what a call of `memcpy` and its dispatch on the length cost.
//!
//! Invariant owned here: exactly `len` bytes are read and written.

/// Copies `len` bytes.
///
/// # Safety
/// `src..src + len` is readable, `dst..dst + len` writable, and they do not overlap.
#[inline(always)]
pub unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    /// Copies one value of `T` at this offset.
    ///
    /// # Safety
    /// `at + size_of::<T>()` is at most the length of both.
    #[inline(always)]
    unsafe fn step<T: Copy>(src: *const u8, dst: *mut u8, at: usize) {
        // SAFETY: by contract.
        let from = unsafe { src.add(at) };
        // SAFETY: as above; `T` is plain bytes.
        let value = unsafe { from.cast::<T>().read_unaligned() };
        // SAFETY: by contract.
        let to = unsafe { dst.add(at) };
        // SAFETY: as above.
        unsafe { to.cast::<T>().write_unaligned(value) };
    }
    /// Whole steps, and a last one that ends where the bytes end.
    ///
    /// # Safety
    /// As [`copy_short`], and `len` is at least one step.
    #[inline(always)]
    unsafe fn steps<T: Copy>(src: *const u8, dst: *mut u8, len: usize) {
        let size = size_of::<T>();
        let mut at = 0;
        while at + size < len {
            // SAFETY: ends before `len`.
            unsafe { step::<T>(src, dst, at) };
            at += size;
        }
        // SAFETY: ends at `len`, which is at least one step.
        unsafe { step::<T>(src, dst, len - size) };
    }
    match len {
        // What a frame of 60 or 64 bytes is: two steps, and no loop around them.
        32..=64 => {
            // SAFETY: by contract, and by the branch taken; so below.
            unsafe { step::<[u128; 2]>(src, dst, 0) };
            // SAFETY: as above.
            unsafe { step::<[u128; 2]>(src, dst, len - 32) };
        }
        // SAFETY: as above.
        65.. => unsafe { steps::<[u128; 2]>(src, dst, len) },
        // SAFETY: as above.
        16.. => unsafe { steps::<u128>(src, dst, len) },
        // SAFETY: as above.
        8.. => unsafe { steps::<u64>(src, dst, len) },
        // SAFETY: as above.
        4.. => unsafe { steps::<u32>(src, dst, len) },
        // SAFETY: as above.
        1.. => unsafe { steps::<u8>(src, dst, len) },
        0 => {}
    }
}

#[cfg(test)]
mod tests {
    use super::copy_short;

    #[test]
    fn copies_all_and_nothing_else() {
        let from: Vec<u8> = (0..=255).chain(0..=255).collect();
        for len in 0..300 {
            for at in [0, 1, 7] {
                let mut to = vec![0xee; 400];
                // SAFETY: both vectors are longer.
                unsafe { copy_short(from[at..].as_ptr(), to[at..].as_mut_ptr(), len) };
                assert_eq!(to[at..at + len], from[at..at + len]);
                assert!(to[..at].iter().chain(&to[at + len..]).all(|b| *b == 0xee));
            }
        }
    }
}
