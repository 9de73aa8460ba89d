#![allow(unsafe_code)]
//! Frames that outlive the burst they came in: copied whole, and put into a later burst as if they had just come.
//!
//! Invariant owned here: what [`Kept::put_into`] adds to a burst as a tail lies in memory that this burst keeps alive, so it is
//! readable for as long as the burst is. That memory is reached through raw pointers only.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::Arc;

use super::{Burst, HEAD_CAP, Offload};

/// Longest frame that can be kept: one of 1500 bytes of MTU with all its headers.
pub const KEPT_BYTES: usize = 2048;

/// Memory for one frame.
#[derive(Debug)]
#[repr(align(64))]
struct Room(UnsafeCell<[u8; KEPT_BYTES]>);

/// Memory for frames, shared with the bursts they are put into.
#[derive(Debug)]
pub(super) struct Rooms(Box<[Room]>);

// SAFETY: plain bytes, reached through raw pointers by the one worker that owns the store and its bursts.
unsafe impl Send for Rooms {}
// SAFETY: as above; a reference to the rooms alone gives no access to the bytes.
unsafe impl Sync for Rooms {}

/// A store of frames.
#[derive(Debug)]
pub struct Kept {
    rooms: Arc<Rooms>,
    free: Vec<u16>,
}

/// One frame in a store. Neither `Clone` nor `Copy`: its room is given back once.
#[derive(Debug)]
pub struct KeptFrame {
    room: u16,
    len: u16,
    tci: Option<u16>,
    offload: Offload,
}

impl Kept {
    /// Room for so many frames, at most 65,536. Allocates once.
    #[must_use]
    pub fn new(frames: u16) -> Self {
        let room = || Room(UnsafeCell::new([0; KEPT_BYTES]));
        Kept {
            rooms: Arc::new(Rooms((0..frames).map(|_| room()).collect())),
            free: (0..frames).rev().collect(),
        }
    }

    fn room(&self, n: u16) -> Option<*mut u8> {
        let room = self.rooms.0.get(usize::from(n))?;
        Some(room.0.get().cast())
    }

    /// Copies a frame of a burst; `None` when it is too long, or there is no room.
    pub fn take(&mut self, burst: &Burst, slot: usize) -> Option<KeptFrame> {
        let frame = burst.frame(slot)?;
        let len = u16::try_from(frame.len()).ok()?;
        if usize::from(len) > KEPT_BYTES {
            return None;
        }
        let first = usize::from(frame.seg_first);
        let segs = burst
            .segs
            .get(first..first + usize::from(frame.seg_count))?;
        let room = self.free.pop()?;
        let to = self.room(room)?;
        let head = frame.head();
        // SAFETY: `to` has room for the whole frame, of which this is the first part; nobody borrows it.
        unsafe { ptr::copy(head.as_ptr(), to, head.len()) };
        let mut at = head.len();
        for seg in segs {
            // SAFETY: the pieces' lengths add up to what is left of `len`.
            let to = unsafe { to.add(at) };
            // SAFETY: a burst's pieces are readable until it is cleared, and `to` has room for them.
            unsafe { ptr::copy(seg.ptr, to, seg.len as usize) };
            at += seg.len as usize;
        }
        Some(KeptFrame {
            room,
            len,
            tci: frame.tci,
            offload: frame.offload,
        })
    }

    /// Adds a kept frame to a burst, as it was received. It stays kept, and its bytes must stay as they are until the burst is
    /// cleared: only then is it to be [given back](Kept::give_back). `false` when the burst is full, or has had
    /// frames of another store.
    pub fn put_into(&self, kept: &KeptFrame, burst: &mut Burst) -> bool {
        let keeper = burst.kept.get_or_insert_with(|| Arc::clone(&self.rooms));
        if !Arc::ptr_eq(keeper, &self.rooms) {
            return false;
        }
        let Some(from) = self.room(kept.room) else {
            return false;
        };
        let Some(frame) = burst.push() else {
            return false;
        };
        let len = usize::from(kept.len);
        let macs = if kept.tci.is_some() { 12.min(len) } else { 0 };
        let tag = kept.tci.map_or([0; 4], tag);
        let tag_len = if kept.tci.is_some() { tag.len() } else { 0 };
        let head = frame.fill();
        let rest = (HEAD_CAP - tag_len).min(len) - macs;
        let (before, after) = head.split_at_mut(macs);
        let (tagged, after) = after.split_at_mut(tag_len);
        tagged.copy_from_slice(tag.get(..tag_len).unwrap_or(&[]));
        // SAFETY: the frame has more bytes than these, and nobody writes them now.
        unsafe { ptr::copy(from, before.as_mut_ptr(), macs) };
        // SAFETY: as above; `macs + rest` is at most the frame's length.
        let from = unsafe { from.add(macs) };
        // SAFETY: as above, and `after` has room for `rest`: with the tag they are a head.
        unsafe { ptr::copy(from, after.as_mut_ptr(), rest) };
        frame.set_head_len(macs + tag_len + rest);
        frame.offload = kept.offload;
        #[allow(clippy::cast_possible_truncation)] // at most KEPT_BYTES
        let tail = (len - macs - rest) as u32;
        // SAFETY: where the copied bytes end the tail begins; with no tail, one past the frame.
        let from = unsafe { from.add(rest) };
        // SAFETY: `tail` bytes of the room, which the burst keeps alive.
        tail == 0 || unsafe { burst.add_tail(from, tail) }
    }

    /// Gives a frame's room back.
    pub fn give_back(&mut self, kept: KeptFrame) {
        self.free.push(kept.room);
    }
}

fn tag(tci: u16) -> [u8; 4] {
    let [t0, t1] = crate::packet::ethertype::VLAN.to_be_bytes();
    let [c0, c1] = tci.to_be_bytes();
    [t0, t1, c0, c1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Csum, OutItem, Scratch};

    /// A burst with one frame of these bytes, those beyond a head in two pieces.
    fn burst_of(bytes: &[u8]) -> Burst {
        let mut burst = Burst::new();
        let frame = burst.push().unwrap();
        let head = bytes.len().min(HEAD_CAP);
        frame.fill()[..head].copy_from_slice(&bytes[..head]);
        frame.set_head_len(head);
        frame.offload.csum = Csum::Partial;
        let tail = &bytes[head..];
        let (one, other) = tail.split_at(tail.len() / 2);
        for piece in [one, other] {
            if !piece.is_empty() {
                // SAFETY: `bytes` outlives the burst in these tests.
                assert!(unsafe { burst.add_tail(piece.as_ptr(), piece.len().try_into().unwrap()) });
            }
        }
        burst
    }

    fn bytes_of(burst: &Burst, slot: u16) -> Vec<u8> {
        let mut scratch = Scratch::default();
        let item = OutItem { slot, tag: None };
        let view = burst.view(item, &mut scratch).unwrap();
        let mut bytes = view.head.to_vec();
        for seg in view.segs {
            // SAFETY: the pieces of a burst are readable until it is cleared.
            bytes.extend(unsafe { std::slice::from_raw_parts(seg.ptr, seg.len as usize) });
        }
        bytes
    }

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let mut kept = Kept::new(2);
        let mut later = Burst::new();
        for len in [14, 60, 255, 256, 257, 1514, KEPT_BYTES] {
            let bytes: Vec<u8> = (0..=255).cycle().take(len).collect();
            let frame = kept.take(&burst_of(&bytes), 0).unwrap();
            assert!(kept.put_into(&frame, &mut later));
            assert_eq!(bytes_of(&later, 0), bytes, "{len} bytes");
            assert_eq!(later.frame(0).unwrap().offload.csum, Csum::Partial);
            later.clear();
            kept.give_back(frame);
        }
    }

    #[test]
    fn a_tag_is_put_back() {
        let mut kept = Kept::new(1);
        for len in [18, 60, 256, 1518] {
            let mut bytes: Vec<u8> = (0..=255).cycle().take(len).collect();
            bytes[12..16].copy_from_slice(&[0x81, 0, 0x20, 7]);
            let mut burst = burst_of(&bytes);
            burst.frame_mut(0).unwrap().pop_tag();
            assert_eq!(burst.frame(0).unwrap().tci, Some(0x2007));
            let frame = kept.take(&burst, 0).unwrap();
            let mut later = Burst::new();
            assert!(kept.put_into(&frame, &mut later));
            assert_eq!(bytes_of(&later, 0), bytes, "{len} bytes");
            kept.give_back(frame);
        }
    }

    #[test]
    fn what_has_no_room_is_not_kept() {
        let mut kept = Kept::new(1);
        let long = vec![0; KEPT_BYTES + 1];
        assert!(kept.take(&burst_of(&long), 0).is_none(), "too long");
        let burst = burst_of(&[0; 60]);
        let frame = kept.take(&burst, 0).unwrap();
        assert!(kept.take(&burst, 0).is_none(), "no room");
        let mut other = Burst::new();
        let stranger = Kept::new(1).take(&burst, 0).unwrap();
        assert!(Kept::new(1).put_into(&stranger, &mut other));
        assert!(!kept.put_into(&frame, &mut other), "of another store");
        kept.give_back(frame);
        assert!(kept.take(&burst, 0).is_some());
    }
}
