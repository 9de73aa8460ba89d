#![allow(unsafe_code)]
//! What split and packed rings have in common: a ring without validated addresses has no methods.
//!
//! [`VringConfig`] is what the front-end said; [`Vring::new`] checks it against the guest's memory
//! and returns a ring whose addresses are good for as long as it lives (it holds the memory).
//! Everything the guest writes into a ring is hostile: each index, length and address is checked
//! when it is used, and read exactly once.
//!
//! Invariant owned here: [`Desc::read`] reads a descriptor once; nothing looks at guest memory
//! twice to decide something.

use std::sync::Arc;

use super::guest_mem::{GuestMem, Span};
use super::packed::Packed;
use super::split::Split;
use crate::sys::virtio::{feature, vring};

/// Pieces of guest memory one chain may have. Linux and QEMU never make more (`VIRTQUEUE_MAX_SIZE`).
pub(super) const CHAIN_MAX: u32 = 1024;

/// What is wrong with a ring. It breaks the ring; nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// Ring size zero, above 32768, or (split) not a power of two.
    #[error("bad ring size")]
    BadSize,
    /// A part of the ring lies outside the guest's memory or is misaligned.
    #[error("the ring is outside the guest's memory, or misaligned")]
    BadAddress,
    /// The packed ring's base is not a position of the ring.
    #[error("the vring base is not a position of the ring")]
    BadBase,
    /// A packed ring's descriptors contradict each other about how far it is.
    #[error("the packed ring does not tell how far it is; reset the guest's device")]
    PositionLost,
    /// The available index is further ahead than the ring is long.
    #[error("the available index jumped further than the ring's size")]
    AvailJump,
    /// A descriptor index is not below the ring's size, or a chain leaves its table.
    #[error("a descriptor index is out of range")]
    BadIndex,
    /// A chain is longer than the ring, or loops.
    #[error("a descriptor chain is too long, or loops")]
    ChainTooLong,
    /// A buffer lies outside the guest's memory.
    #[error("a buffer is outside the guest's memory")]
    OutsideMemory,
    /// A buffer of no bytes.
    #[error("a buffer has no bytes")]
    ZeroLength,
    /// A device-writable buffer where we read, or the reverse.
    #[error("a buffer has the wrong direction")]
    Direction,
    /// An indirect table without the feature, inside another, with a next descriptor, or with a
    /// size that is no multiple of 16.
    #[error("a bad indirect table")]
    BadIndirect,
    /// The peer truncated the memory under us.
    #[error("the guest's memory was truncated")]
    MemoryTruncated,
}

/// A ring as the front-end describes it. Addresses are the front-end's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VringConfig {
    /// Entries.
    pub size: u32,
    /// Descriptor table, or packed ring.
    pub desc: u64,
    /// Available ring, or driver event suppression.
    pub driver: u64,
    /// Used ring, or device event suppression.
    pub device: u64,
    /// Where to start: available index; for packed rings position and wrap bit.
    pub base: u32,
    /// Negotiated features.
    pub features: u64,
}

/// Who may write a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// The guest sends: we read.
    Readable,
    /// The guest receives: we write.
    Writable,
}

/// A piece of a chain in our address space: `len` bytes, valid while the ring lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buf {
    pub(super) ptr: *mut u8,
    pub(super) len: u32,
}

/// Pieces of the chains of one burst; never grows.
#[derive(Debug)]
pub(super) struct Bufs(Vec<Buf>);

// SAFETY: the addresses in it are used only by the queue that owns it, under the ring's validity.
unsafe impl Send for Bufs {}

impl Bufs {
    pub(super) fn new() -> Self {
        Bufs(Vec::with_capacity(CHAIN_MAX as usize))
    }
    #[inline]
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
    #[inline]
    pub(super) fn range(&self, from: usize, to: usize) -> &[Buf] {
        self.0.get(from..to).unwrap_or(&[])
    }
    /// `false` when full.
    #[inline]
    pub(super) fn push(&mut self, buf: Buf) -> bool {
        if self.0.len() == self.0.capacity() {
            return false;
        }
        self.0.push(buf);
        true
    }
    #[inline]
    pub(super) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}

/// A chain taken from a ring and not yet returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Head index (split) or buffer id (packed).
    pub(super) id: u16,
    /// Ring slots the chain occupies (packed; split chains occupy one entry of the available ring).
    pub(super) slots: u16,
}

/// What [`Ring::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A chain; its pieces were appended.
    Chain(Taken),
    /// Nothing waits.
    Empty,
    /// A chain waits, but its pieces do not fit; it was left in the ring.
    NoRoom,
}

/// A ring of either layout, from the device's side. Chains are returned in the order taken.
pub(super) trait Ring {
    /// How many chains wait, at most `max` (an upper bound where only walking can tell); makes ready for
    /// [`Ring::take_single`].
    fn peek(&mut self, max: usize, want: Direction) -> Result<usize, RingError>;
    /// Asks the processor for what the next burst will touch, as far as chains are known to wait:
    /// their buffers' first lines, and the descriptors of the burst after it. The lines are in the
    /// other core's cache; fetched now, they arrive while this burst is worked on.
    fn ahead(&mut self, want: Direction);
    /// Takes the next chain if it is a single direct descriptor inside one region, as nearly all
    /// are, and [`Ring::peek`] counted it. `None`: none such, or [`Ring::take`] has to look.
    fn take_single(&mut self, want: Direction) -> Option<(Taken, Buf)>;
    /// Takes the next chain.
    fn take(&mut self, want: Direction, bufs: &mut Bufs) -> Result<Step, RingError>;
    /// Puts the chain taken last back, as if it had not been taken.
    fn untake(&mut self, taken: Taken);
    /// Returns a chain with `written` bytes; the guest sees it after [`Ring::publish`].
    fn put(&mut self, taken: Taken, written: u32);
    /// Shows the guest what was returned.
    fn publish(&mut self);
    /// Whether the guest wants a call for what was published since this was last asked. A full fence
    /// stands between [`Ring::publish`] and this: the guest writes its wish and then looks at what
    /// was published.
    fn wants_call(&mut self) -> bool;
    /// Asks for kicks, then says whether chains wait already.
    fn arm(&mut self) -> bool;
    /// Asks for no kicks.
    fn disarm(&mut self);
    /// Where to go on: what `GET_VRING_BASE` answers. Nothing taken is outstanding.
    fn base(&self) -> u32;
    /// The guest's memory.
    fn mem(&self) -> &GuestMem;
    /// Whether what is written is marked in the dirty log.
    fn is_logged(&self) -> bool;
    /// Marks these bytes, which were written, where that is wanted.
    #[inline]
    fn wrote(&self, at: *const u8, len: usize) {
        if self.is_logged() {
            self.mem().wrote(at, len);
        }
    }
}

/// A validated ring.
#[derive(Debug)]
pub(super) enum Vring {
    /// virtio 1.3 section 2.7.
    Split(Split),
    /// virtio 1.3 section 2.8.
    Packed(Packed),
}

/// Runs `$body` with `$ring` bound to the ring of either layout.
macro_rules! with_ring {
    ($vring:expr, $ring:ident => $body:expr) => {
        match $vring {
            $crate::port::vhost::vring::Vring::Split($ring) => $body,
            $crate::port::vhost::vring::Vring::Packed($ring) => $body,
        }
    };
}
pub(super) use with_ring;

impl Vring {
    /// Checks a description against the guest's memory.
    pub(super) fn new(config: &VringConfig, mem: &Arc<GuestMem>) -> Result<Self, RingError> {
        if config.features & feature::RING_PACKED != 0 {
            Packed::new(config, Arc::clone(mem)).map(Vring::Packed)
        } else {
            Split::new(config, Arc::clone(mem)).map(Vring::Split)
        }
    }
}

/// Translates a ring part; checks its alignment in our address space.
pub(super) fn ring_part(
    mem: &GuestMem,
    addr: u64,
    len: usize,
    align: usize,
) -> Result<*mut u8, RingError> {
    let ptr = mem
        .from_front_end(addr, len as u64)
        .ok_or(RingError::BadAddress)?;
    if ptr.align_offset(align) != 0 {
        return Err(RingError::BadAddress);
    }
    Ok(ptr)
}

/// A descriptor, read once. The last four bytes differ: split has flags and next, packed has id
/// and flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) w0: u16,
    pub(super) w1: u16,
}

/// Sixteen bytes at any address: indirect tables have no alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Raw(u128);

impl Desc {
    /// # Safety
    /// 16 bytes at `at` are readable.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // taking a word apart
    pub(super) unsafe fn read(at: *const u8) -> Desc {
        // SAFETY: by contract. Volatile: the guest may write at any time, and what was checked
        // must be what is used.
        let Raw(word) = unsafe { at.cast::<Raw>().read_volatile() };
        let word = u128::from_le(word);
        Desc {
            addr: word as u64,
            len: (word >> 64) as u32,
            w0: (word >> 96) as u16,
            w1: (word >> 112) as u16,
        }
    }
}

/// Appends the pieces of one descriptor. `Ok(false)`: no room.
#[inline]
pub(super) fn append(
    mem: &GuestMem,
    hint: &mut usize,
    desc: &Desc,
    bufs: &mut Bufs,
) -> Result<bool, RingError> {
    if desc.len == 0 {
        return Err(RingError::ZeroLength);
    }
    let (ptr, room) = mem.span(desc.addr, hint).ok_or(RingError::OutsideMemory)?;
    if u64::from(desc.len) <= room {
        return Ok(bufs.push(Buf { ptr, len: desc.len }));
    }
    append_across(mem, hint, desc, bufs)
}

/// A buffer that runs from one region into the next: contiguous for the guest, not for us.
#[cold]
fn append_across(
    mem: &GuestMem,
    hint: &mut usize,
    desc: &Desc,
    bufs: &mut Bufs,
) -> Result<bool, RingError> {
    let (mut addr, mut left) = (desc.addr, desc.len);
    while left > 0 {
        let (ptr, room) = mem.span(addr, hint).ok_or(RingError::OutsideMemory)?;
        let len = u32::try_from(room).unwrap_or(u32::MAX).min(left);
        if !bufs.push(Buf { ptr, len }) {
            return Ok(false);
        }
        addr = addr
            .checked_add(u64::from(len))
            .ok_or(RingError::OutsideMemory)?;
        left -= len;
    }
    Ok(true)
}

/// The piece a direct descriptor without a successor describes, when it lies in this part of memory.
#[inline]
pub(super) fn single(near: Span, desc: &Desc, flags: u16, want: Direction) -> Option<Buf> {
    let interesting = vring::DESC_F_NEXT | vring::DESC_F_INDIRECT | vring::DESC_F_WRITE;
    let wanted = match want {
        Direction::Readable => 0,
        Direction::Writable => vring::DESC_F_WRITE,
    };
    if flags & interesting != wanted || desc.len == 0 {
        return None;
    }
    let (ptr, room) = near.find(desc.addr)?;
    (u64::from(desc.len) <= room).then_some(Buf { ptr, len: desc.len })
}

/// Finds the table an indirect descriptor points at: its address and entries, at most
/// [`CHAIN_MAX`]. (The specification also limits it to the ring's size; drivers with small rings
/// and QEMU do not, and nothing here depends on it.)
#[inline]
pub(super) fn indirect_table(
    mem: &GuestMem,
    hint: &mut usize,
    desc: &Desc,
) -> Result<(*const u8, u32), RingError> {
    #[allow(clippy::cast_possible_truncation)] // 16
    const ENTRY: u32 = vring::DESC_BYTES as u32;
    let entries = desc.len / ENTRY;
    if !desc.len.is_multiple_of(ENTRY) || entries == 0 {
        return Err(RingError::BadIndirect);
    }
    if entries > CHAIN_MAX {
        return Err(RingError::ChainTooLong);
    }
    let (ptr, room) = mem.span(desc.addr, hint).ok_or(RingError::OutsideMemory)?;
    if u64::from(desc.len) > room {
        return Err(RingError::OutsideMemory);
    }
    Ok((ptr.cast_const(), entries))
}

/// Asks the processor for a cache line that will be read, or written.
#[inline]
pub(super) fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// As [`prefetch`], for a line that will be written: taken from whoever has it now.
#[inline]
pub(super) fn prefetch_write(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // By hand: the compiler emits it only for targets known to have it, and every x86-64 processor
    // takes it, as a no-op where it is not implemented (Intel SDM, PREFETCHW).
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) ptr, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Chains [`Ring::ahead`] looks at: one burst.
pub(super) const AHEAD: u16 = 32;

/// Asks for the first two lines of a buffer: `virtio_net_hdr` and headers, or a whole small frame.
#[inline]
pub(super) fn prefetch_buffer(ptr: *const u8, want: Direction) {
    let second = ptr.wrapping_add(64);
    match want {
        Direction::Readable => {
            prefetch(ptr);
            prefetch(second);
        }
        Direction::Writable => {
            prefetch_write(ptr);
            prefetch_write(second);
        }
    }
}
