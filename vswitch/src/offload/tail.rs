#![allow(unsafe_code)]
//! A stretch of a frame's tail: payload in the sender's memory.
//!
//! Invariant owned here: a `TailSlice` comes from a [`TxView`] only, whose pieces are readable
//! while it is borrowed (the promise of `Burst::add_tail`), and a part never exceeds its whole.
//! The sender may write at any time: bytes are copied through raw pointers into private memory
//! before they are looked at, never borrowed.

use std::ptr;

use crate::frame::{Seg, TxView};
use crate::packet::checksum;

/// Bytes summed at a time: they are copied to private memory first, and stay in the L1 cache.
const SUM_CHUNK: usize = 2048;

/// A stretch of a frame's tail.
#[derive(Clone, Copy, Debug)]
pub struct TailSlice<'a> {
    segs: &'a [Seg],
    /// Bytes of the first piece that come before the stretch.
    skip: u32,
    len: u32,
}

impl<'a> TailSlice<'a> {
    /// All of the tail.
    #[inline]
    pub(super) fn whole(view: &TxView<'a>) -> Self {
        TailSlice {
            segs: view.segs,
            skip: 0,
            len: view.tail_len,
        }
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `from` on, or as many as there are.
    #[inline]
    #[must_use]
    pub fn part(&self, from: u32, len: u32) -> TailSlice<'a> {
        let from = from.min(self.len);
        let len = len.min(self.len - from);
        let mut segs = self.segs;
        let mut skip = self.skip + from;
        while let Some((first, rest)) = segs.split_first() {
            if skip < first.len {
                break;
            }
            skip -= first.len;
            segs = rest;
        }
        TailSlice { segs, skip, len }
    }

    /// The pieces in order, for a receiver whose buffers are scattered too: readable while the
    /// slice lives, but changing under the reader, so only ever to be copied from.
    #[inline]
    #[must_use]
    pub fn pieces(&self) -> Pieces<'a> {
        Pieces { rest: *self }
    }

    /// Copies all bytes to `dst`.
    ///
    /// # Safety
    /// `dst..dst + len()` must be writable and not overlap the tail.
    #[inline]
    pub unsafe fn copy_to(&self, dst: *mut u8) {
        let mut dst = dst;
        for (src, len) in self.pieces() {
            // SAFETY: `src..src + len` is readable (see the module), the caller gave room for the
            // sum of all lengths, which is `self.len`.
            unsafe { ptr::copy_nonoverlapping(src, dst, len) };
            // SAFETY: at most one past the caller's room.
            dst = unsafe { dst.add(len) };
        }
    }

    /// Appends all bytes to `to`, which grows when it has no room.
    pub fn append_to(&self, to: &mut Vec<u8>) {
        let old = to.len();
        to.reserve(self.len as usize);
        let room = to.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `reserve` made room for `len` bytes behind the old ones; fresh private memory
        // does not overlap a sender's.
        unsafe { self.copy_to(room) };
        // SAFETY: these bytes were written just now.
        unsafe { to.set_len(old + self.len as usize) };
    }

    /// The ones-complement sum of all bytes, added to `start`, as `packet::checksum::sum` has it:
    /// the first byte is the high half of a word.
    #[must_use]
    pub fn sum(&self, start: u64) -> u64 {
        let mut private = [0u8; SUM_CHUNK];
        let mut acc = start;
        let mut odd = false;
        for (src, len) in self.pieces() {
            let mut done = 0;
            while done < len {
                let n = (len - done).min(SUM_CHUNK);
                // SAFETY: `done < len`, so the address is inside the piece.
                let from = unsafe { src.add(done) };
                // SAFETY: `n` bytes remain in the readable piece, and `private` has room for them.
                unsafe { ptr::copy_nonoverlapping(from, private.as_mut_ptr(), n) };
                let bytes = private.get(..n).unwrap_or(&[]);
                acc = if odd {
                    checksum::sum_odd(bytes, acc)
                } else {
                    checksum::sum(bytes, acc)
                };
                odd ^= n % 2 == 1;
                done += n;
            }
        }
        acc
    }
}

/// Iterates over a [`TailSlice`]: address and bytes of each piece.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    rest: TailSlice<'a>,
}

impl Iterator for Pieces<'_> {
    type Item = (*const u8, usize);

    #[inline]
    fn next(&mut self) -> Option<(*const u8, usize)> {
        while self.rest.len > 0 {
            let (first, rest) = self.rest.segs.split_first()?;
            let skip = self.rest.skip.min(first.len);
            let len = (first.len - skip).min(self.rest.len);
            self.rest = TailSlice {
                segs: rest,
                skip: 0,
                len: self.rest.len - len,
            };
            if len > 0 {
                // SAFETY: `skip` is at most the piece's length.
                let ptr = unsafe { first.ptr.add(skip as usize) };
                return Some((ptr, len as usize));
            }
        }
        None
    }
}
