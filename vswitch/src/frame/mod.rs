#![allow(unsafe_code)]
//! Frames and bursts.
//!
//! A frame is a private *head* and an optional *tail*. The head (the whole frame when it has at
//! most [`HEAD_CAP`] bytes) is copied from the sender once, judged here, and these very bytes are
//! delivered. The tail is payload that stays in the sender's memory and is copied once, straight
//! into the receiver's.
//!
//! Invariant owned here: the addresses in a burst's tails are valid for reads until the burst is
//! cleared. The port that adds a tail promises it ([`Burst::add_tail`]); it keeps the promise by
//! holding its receive queue's gate until the burst was cleared. A sender may change tail bytes at
//! any time, so they are only ever copied through raw pointers, never borrowed as a slice.

pub mod copy;
pub mod kept;

use crate::drop_reason::DropReason;
use crate::packet::Parsed;

/// Bytes of a frame that are private: enough for Ethernet, two tags, IPv6 with extension headers
/// and TCP with options. (OVS and VPP look at 128; 256 also makes every small frame tail-less.)
pub const HEAD_CAP: usize = 256;
/// Room before the head for one VLAN tag.
const HEADROOM: u16 = 4;
/// Frames one receive burst may hold (DPDK's and OVS's burst: 32 covers the cache misses in flight).
pub const BURST_MAX: usize = 32;
/// Slots for frames the switch makes itself while it processes one burst.
pub const ORIGINATED_MAX: usize = 32;
const SLOTS: usize = BURST_MAX + ORIGINATED_MAX;
/// Tail pieces per burst: a 64 KiB frame in 4 KiB pages has 17, times 32, and some room.
const SEGS_MAX: usize = 1024;

/// A piece of a tail in the sender's memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive] // only `Burst::add_tail` makes one: `offload` relies on its promise
pub struct Seg {
    /// First byte.
    pub ptr: *const u8,
    /// Bytes.
    pub len: u32,
}

/// What is known about a frame's transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Csum {
    /// The field is complete, as far as the sender said; nobody verified it.
    #[default]
    Complete,
    /// The field holds the pseudo-header's sum only (virtio `NEEDS_CSUM`, Linux `CHECKSUM_PARTIAL`).
    Partial,
    /// As `Complete` or `Partial`: the sender cannot say (XDP on veth). Resolved after parsing, by
    /// comparing the field with the pseudo-header's sum.
    Unknown,
    /// Complete, and verified by the sender's device or host (virtio `DATA_VALID`).
    Valid,
}

/// Segmentation a sender left to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// A frame as it goes on the wire.
    #[default]
    None,
    /// TCP over IPv4, to be cut into `gso_size` bytes of payload.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of `gso_size` bytes of payload each (virtio `GSO_UDP_L4`, USO).
    UdpL4,
}

/// What the sender's port says about a frame; believed only as far as the parsed headers agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// Transport checksum.
    pub csum: Csum,
    /// Segmentation.
    pub gso: Gso,
    /// Payload bytes per segment when `gso` is not `None`.
    pub gso_size: u16,
}

impl Offload {
    /// Whether nothing is asked for.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.gso == Gso::None && self.csum != Csum::Partial
    }
}

/// One frame of a burst.
pub struct Frame {
    buf: [u8; HEADROOM as usize + HEAD_CAP],
    start: u16,
    end: u16,
    seg_first: u16,
    seg_count: u16,
    tail_len: u32,
    /// The outer VLAN tag that was taken off.
    pub tci: Option<u16>,
    /// The sender's offload request.
    pub offload: Offload,
    /// What the headers say; filled by the data path.
    pub parsed: Parsed,
    /// Private to the port that received the frame (descriptor head, UMEM address).
    pub token: u64,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("head", &self.head())
            .field("tail_len", &self.tail_len)
            .finish()
    }
}

impl Frame {
    const fn new() -> Self {
        Frame {
            buf: [0; HEADROOM as usize + HEAD_CAP],
            start: HEADROOM,
            end: HEADROOM,
            seg_first: 0,
            seg_count: 0,
            tail_len: 0,
            tci: None,
            offload: Offload {
                csum: Csum::Complete,
                gso: Gso::None,
                gso_size: 0,
            },
            parsed: Parsed::EMPTY,
            token: 0,
        }
    }

    fn reset(&mut self) {
        self.start = HEADROOM;
        self.end = HEADROOM;
        self.seg_count = 0;
        self.tail_len = 0;
        self.offload = Offload::default();
    }

    /// The private bytes, from the destination MAC on.
    #[inline]
    #[must_use]
    pub fn head(&self) -> &[u8] {
        self.buf
            .get(self.start as usize..self.end as usize)
            .unwrap_or(&[])
    }

    /// The private bytes, how many bytes the whole frame has, and what they are parsed into.
    #[inline]
    pub fn head_and_parsed(&mut self) -> (&[u8], u32, &mut Parsed) {
        let len = self.len();
        let head = self.buf.get(self.start as usize..self.end as usize);
        (head.unwrap_or(&[]), len, &mut self.parsed)
    }

    /// The private bytes, to be edited.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.buf
            .get_mut(self.start as usize..self.end as usize)
            .unwrap_or(&mut [])
    }

    /// The whole private buffer of a fresh frame, for a port to copy into; then call
    /// [`Frame::set_head_len`].
    #[inline]
    pub fn fill(&mut self) -> &mut [u8; HEAD_CAP] {
        self.start = HEADROOM;
        // The range has HEAD_CAP bytes by construction of `buf`.
        self.buf
            .last_chunk_mut::<HEAD_CAP>()
            .unwrap_or_else(|| unreachable!())
    }

    /// As [`Frame::fill`], for a received frame that is written anew: nothing of it stays, neither
    /// tail nor offload request.
    pub fn refill(&mut self) -> &mut [u8; HEAD_CAP] {
        self.reset();
        self.fill()
    }

    /// Says how many bytes were filled, at most [`HEAD_CAP`].
    #[inline]
    pub fn set_head_len(&mut self, len: usize) {
        #[allow(clippy::cast_possible_truncation)] // at most 260
        {
            self.end = self.start + len.min(HEAD_CAP) as u16;
        }
    }

    /// Bytes of the frame: head and tail, without FCS.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::from(self.end - self.start) + self.tail_len
    }

    /// Whether the frame has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves an outer VLAN tag of a received frame into `tci`, so that everything behind works on untagged frames.
    #[inline]
    pub fn pop_tag(&mut self) {
        use crate::packet::ethertype::{QINQ, VLAN};
        // Where the EtherType of a frame is that nobody has moved yet; of a very short one, there may be anything.
        const AT: usize = HEADROOM as usize + 12;
        let ethertype = u16::from_be_bytes([self.buf[AT], self.buf[AT + 1]]);
        self.tci = if ethertype == VLAN || ethertype == QINQ {
            self.take_tag()
        } else {
            None
        };
    }

    #[cold]
    fn take_tag(&mut self) -> Option<u16> {
        debug_assert_eq!(self.start, HEADROOM, "its tag was taken before");
        let head = self.head_mut();
        let &[_, _, _, _, _, _, _, _, _, _, _, _, _, _, c0, c1, _, _, ..] = &*head else {
            return None;
        };
        head.copy_within(0..12, 4);
        self.start += 4;
        Some(u16::from_be_bytes([c0, c1]))
    }
}

/// Frames of one iteration: those received, then those the switch made.
#[derive(Debug)]
pub struct Burst {
    frames: Box<[Frame]>,
    received: usize,
    originated: usize,
    segs: Vec<Seg>,
    /// Where kept frames that were put here lie.
    kept: Option<std::sync::Arc<kept::Rooms>>,
}

// SAFETY: a burst belongs to one worker; the raw addresses in `segs` are only dereferenced by the
// functions below, under the promise of `add_tail`, whichever thread the burst was created on.
unsafe impl Send for Burst {}

impl Default for Burst {
    fn default() -> Self {
        Burst::new()
    }
}

impl Burst {
    /// An empty burst. Allocates once; everything later is in place.
    #[must_use]
    pub fn new() -> Self {
        Burst {
            frames: (0..SLOTS).map(|_| Frame::new()).collect(),
            received: 0,
            originated: 0,
            segs: Vec::with_capacity(SEGS_MAX),
            kept: None,
        }
    }

    /// Forgets all frames and tails.
    #[inline]
    pub fn clear(&mut self) {
        self.received = 0;
        self.originated = 0;
        self.segs.clear();
    }

    /// As [`Burst::clear`]; the next kept frames may come from another store.
    pub fn clear_kept(&mut self) {
        self.clear();
        self.kept = None;
    }

    /// How many more frames a port may add.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        BURST_MAX - self.received
    }

    /// Tail pieces that still fit.
    #[inline]
    #[must_use]
    pub fn seg_room(&self) -> usize {
        SEGS_MAX - self.segs.len()
    }

    /// Adds a received frame; `None` when the burst is full. A port that finds the frame bad
    /// afterwards calls [`Burst::pop`].
    #[inline]
    pub fn push(&mut self) -> Option<&mut Frame> {
        if self.received == BURST_MAX {
            return None;
        }
        let frame = self.frames.get_mut(self.received)?;
        self.received += 1;
        frame.reset();
        #[allow(clippy::cast_possible_truncation)] // at most SEGS_MAX
        {
            frame.seg_first = self.segs.len() as u16;
        }
        Some(frame)
    }

    /// The frame added last, to be filled further.
    #[inline]
    pub fn last_mut(&mut self) -> Option<&mut Frame> {
        self.frames.get_mut(self.received.checked_sub(1)?)
    }

    /// Takes back the frame added last.
    #[inline]
    pub fn pop(&mut self) {
        if let Some(last) = self.received.checked_sub(1) {
            self.received = last;
            if let Some(f) = self.frames.get(last) {
                self.segs.truncate(f.seg_first as usize);
            }
        }
    }

    /// Appends a piece of tail to the frame added last. `false` when the burst's room for pieces
    /// is used up (the port drops the frame and counts it).
    ///
    /// # Safety
    /// `ptr..ptr + len` must stay mapped and readable until [`Burst::clear`]. Its bytes may change.
    #[inline]
    pub unsafe fn add_tail(&mut self, ptr: *const u8, len: u32) -> bool {
        let Some(last) = self.received.checked_sub(1) else {
            return false;
        };
        let Some(frame) = self.frames.get_mut(last) else {
            return false;
        };
        if self.segs.len() == SEGS_MAX {
            return false;
        }
        self.segs.push(Seg { ptr, len });
        frame.seg_count += 1;
        frame.tail_len += len;
        true
    }

    /// Adds a frame of the switch's own; `None` when this burst's room for those is used up.
    pub fn originate(&mut self) -> Option<(usize, &mut Frame)> {
        if self.originated == ORIGINATED_MAX {
            return None;
        }
        let slot = BURST_MAX + self.originated;
        let frame = self.frames.get_mut(slot)?;
        self.originated += 1;
        frame.reset();
        Some((slot, frame))
    }

    /// Frames received.
    #[inline]
    #[must_use]
    pub fn received(&self) -> usize {
        self.received
    }

    /// A frame by slot: `0..received()`, or what [`Burst::originate`] returned.
    #[inline]
    #[must_use]
    pub fn frame(&self, slot: usize) -> Option<&Frame> {
        self.frames.get(slot)
    }

    /// As [`Burst::frame`], to be edited.
    #[inline]
    pub fn frame_mut(&mut self, slot: usize) -> Option<&mut Frame> {
        self.frames.get_mut(slot)
    }

    /// The received frames.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get(..self.received).unwrap_or(&[])
    }

    /// The received frames, to be edited.
    #[inline]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        self.frames.get_mut(..self.received).unwrap_or(&mut [])
    }

    /// The whole frame, and whether its checksum is verified, if it goes out as it lies here: without tag,
    /// tail or offload request.
    #[inline]
    #[must_use]
    pub fn plain(&self, item: OutItem) -> Option<(&[u8], bool)> {
        let frame = self.frames.get(item.slot as usize)?;
        (item.tag.is_none() && frame.seg_count == 0 && frame.offload.is_plain())
            .then(|| (frame.head(), frame.offload.csum == Csum::Valid))
    }

    /// What a port sends for `item`. `scratch` is used only when a tag must be pushed.
    #[inline]
    pub fn view<'a>(&'a self, item: OutItem, scratch: &'a mut Scratch) -> Option<TxView<'a>> {
        let frame = self.frames.get(item.slot as usize)?;
        let first = frame.seg_first as usize;
        let segs = self.segs.get(first..first + frame.seg_count as usize)?;
        let (head, tagged) = match item.tag {
            None => (frame.head(), 0),
            Some(tci) => (scratch.tagged(frame.head(), tci)?, 4),
        };
        Some(TxView {
            head,
            segs,
            tail_len: frame.tail_len,
            offload: frame.offload,
            parsed: &frame.parsed,
            shift: tagged,
        })
    }
}

/// A decision: this frame goes to that port (the port is the batch the item stands in).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutItem {
    /// Slot in the burst.
    pub slot: u16,
    /// VLAN TCI to push (802.1Q), for a trunk.
    pub tag: Option<u16>,
}

/// Room for one head with a tag pushed.
#[derive(Debug)]
pub struct Scratch([u8; HEADROOM as usize + HEAD_CAP]);

impl Default for Scratch {
    fn default() -> Self {
        Scratch([0; HEADROOM as usize + HEAD_CAP])
    }
}

impl Scratch {
    fn tagged(&mut self, head: &[u8], tci: u16) -> Option<&[u8]> {
        let (macs, rest) = head.split_at_checked(12)?;
        let out = self.0.get_mut(..head.len() + 4)?;
        let (m, after) = out.split_at_mut_checked(12)?;
        m.copy_from_slice(macs);
        let (tag, body) = after.split_at_mut_checked(4)?;
        let [t0, t1] = crate::packet::ethertype::VLAN.to_be_bytes();
        let [c0, c1] = tci.to_be_bytes();
        tag.copy_from_slice(&[t0, t1, c0, c1]);
        body.copy_from_slice(rest);
        Some(out)
    }
}

/// A frame as a port sends it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive] // only `Burst::view` makes one: `offload` relies on its tails' promise
pub struct TxView<'a> {
    /// Private bytes (with the tag, when one is pushed).
    pub head: &'a [u8],
    /// The rest, in the sender's memory; see `offload::TailSlice`.
    pub segs: &'a [Seg],
    /// Bytes in `segs`.
    pub tail_len: u32,
    /// Normalised by the data path: `csum` is never `Unknown`, `gso` agrees with the headers.
    pub offload: Offload,
    /// Parsed headers; their offsets count from the untagged head: add `shift`.
    pub parsed: &'a Parsed,
    /// Bytes the pushed tag moved the headers by: 0 or 4.
    pub shift: u16,
}

impl TxView<'_> {
    /// Bytes of the frame without FCS.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // a head has at most 260 bytes
        {
            self.head.len() as u32 + self.tail_len
        }
    }

    /// Whether the frame has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a receiver can take; a frame that asks for more is completed or segmented in software.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxCaps {
    /// Takes partial checksums.
    pub csum: bool,
    /// Takes TCP over IPv4 to be segmented.
    pub tso4: bool,
    /// Takes TCP over IPv6 to be segmented.
    pub tso6: bool,
    /// Takes UDP to be segmented.
    pub uso: bool,
    /// Longest frame on the wire (after segmentation), bytes without FCS.
    pub max_frame_bytes: u32,
}

/// A frame refused by the sending side.
pub type TxResult = Result<(), DropReason>;
