//! Rings from the driver's side, split and packed. A ring has a fixed number of *slots*; each slot
//! has a buffer of its own and one chain of descriptors, prepared once. Slots are offered and come
//! back in ring order, which is what `IN_ORDER` asks for.

use std::sync::atomic::{Ordering, fence};

use super::memory::{Memory, Part};
use super::{GuestConfig, GuestError};
use crate::sys::virtio::{NetHdr, vring};

/// One ring and its buffers.
#[derive(Debug)]
pub(super) struct DriverRing {
    layout: Layout,
    size: u16,
    /// Descriptors (or packed ring), driver's part, device's part.
    desc: Part,
    driver: Part,
    device: Part,
    buffers: Part,
    /// Indirect tables, one per slot, when used.
    tables: Option<Part>,
    buf_bytes: usize,
    pieces: usize,
    device_writes: bool,
    event_idx: bool,
    /// Free slots, first in, first out.
    free: std::collections::VecDeque<u16>,
    /// Ring descriptors that each slot's chain has now.
    slot_descs: Vec<u16>,
}

#[derive(Debug)]
enum Layout {
    Split {
        avail: u16,
        published: u16,
        used: u16,
    },
    Packed {
        avail: Position,
        used: Position,
        /// Flags of the first descriptor not yet shown to the device, and where.
        first: Option<(u16, u16)>,
        /// Descriptors written since the last notification check.
        fresh: u16,
    },
}

#[derive(Clone, Copy, Debug)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    fn forward(&mut self, by: u16, size: u16) {
        self.slot += by;
        if self.slot >= size {
            self.slot -= size;
            self.wrap = !self.wrap;
        }
    }
}

const IDX: usize = 2;
const ENTRIES: usize = 4;

impl DriverRing {
    /// Memory one ring needs, generously.
    pub(super) fn bytes(config: &GuestConfig, device_writes: bool) -> usize {
        let n = usize::from(config.ring_size);
        let slots = Self::slots(config);
        let tables = if config.indirect {
            slots * config.pieces * 16
        } else {
            0
        };
        n * 32 + slots * config.bytes_of_buffer(device_writes) + tables + 6 * 4096
    }

    fn slots(config: &GuestConfig) -> usize {
        let per_slot = if config.indirect { 1 } else { config.pieces };
        usize::from(config.ring_size) / per_slot
    }

    pub(super) fn new(
        config: &GuestConfig,
        packed: bool,
        device_writes: bool,
        event_idx: bool,
        memory: &mut Memory,
    ) -> Result<Self, GuestError> {
        let n = usize::from(config.ring_size);
        let slots = Self::slots(config);
        let buf_bytes = config.bytes_of_buffer(device_writes);
        let mut part = |len| memory.part(len).ok_or(GuestError::BadConfig("memory"));
        let (driver_bytes, device_bytes) = if packed {
            (4, 4)
        } else {
            (ENTRIES + 2 * n + 2, ENTRIES + 8 * n + 2)
        };
        let start = Position {
            slot: 0,
            wrap: true,
        };
        let layout = if packed {
            Layout::Packed {
                avail: start,
                used: start,
                first: None,
                fresh: 0,
            }
        } else {
            Layout::Split {
                avail: 0,
                published: 0,
                used: 0,
            }
        };
        let tables = if config.indirect {
            Some(part(slots * config.pieces * 16)?)
        } else {
            None
        };
        let ring = DriverRing {
            layout,
            size: config.ring_size,
            desc: part(n * 16)?,
            driver: part(driver_bytes)?,
            device: part(device_bytes)?,
            buffers: part(slots * buf_bytes)?,
            tables,
            buf_bytes,
            pieces: config.pieces,
            device_writes,
            event_idx,
            #[allow(clippy::cast_possible_truncation)] // at most the ring's size
            free: (0..slots as u16).collect(),
            slot_descs: vec![0; slots],
        };
        ring.want_calls(false);
        Ok(ring)
    }

    /// The addresses of `SET_VRING_ADDR`: descriptors, used (device), available (driver).
    pub(super) fn addresses(&self) -> [u64; 3] {
        [
            self.desc.front_end(),
            self.device.front_end(),
            self.driver.front_end(),
        ]
    }

    /// Where a back-end that starts now goes on: at the first chain it has not returned.
    pub(super) fn base(&self) -> u32 {
        match self.layout {
            // Read from the ring, as QEMU does: the device's own word.
            Layout::Split { .. } => {
                u32::from(u16::from_le(self.device.word(IDX).load(Ordering::Acquire)))
            }
            Layout::Packed { used, .. } => {
                // Chains that were returned and not looked at yet are behind that place.
                let mut at = used;
                while let Some(slot) = self.packed_used_at(at) {
                    let descs = self.slot_descs.get(usize::from(slot)).copied();
                    at.forward(descs.unwrap_or(1).max(1), self.size);
                }
                let word = at.slot | if at.wrap { vring::WRAP_BIT } else { 0 };
                u32::from(word) | u32::from(word) << 16
            }
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Slots there are.
    #[allow(clippy::cast_possible_truncation)] // at most the ring's size
    pub(super) fn slot_count(&self) -> u16 {
        self.slot_descs.len() as u16
    }

    /// Ring descriptors a slot may use.
    pub(super) fn descs_per_slot(&self) -> usize {
        if self.tables.is_some() {
            1
        } else {
            self.pieces
        }
    }

    /// Bytes of a slot's buffer.
    #[inline]
    pub(super) fn buf_bytes(&self) -> usize {
        self.buf_bytes
    }

    /// Slots to offer.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Offset of a slot's buffer in [`DriverRing::buffers`].
    #[inline]
    pub(super) fn at(&self, slot: u16) -> usize {
        usize::from(slot) * self.buf_bytes
    }

    #[inline]
    pub(super) fn buffers(&self) -> &Part {
        &self.buffers
    }

    /// The next slot to fill and offer.
    #[inline]
    pub(super) fn next_free(&self) -> Option<u16> {
        self.free.front().copied()
    }

    /// Offers the next free slot with `len` bytes of its buffer; seen after [`DriverRing::publish`].
    #[inline]
    pub(super) fn offer(&mut self, len: usize) {
        let Some(slot) = self.free.pop_front() else {
            return;
        };
        // Piece 0 is the header alone when there is more than one piece; no piece is empty.
        let data = len.saturating_sub(NetHdr::BYTES);
        let pieces = if self.pieces == 1 {
            1
        } else {
            1 + (self.pieces - 1).min(data.max(1))
        };
        let direction = if self.device_writes {
            vring::DESC_F_WRITE
        } else {
            0
        };
        let piece = |i: usize| -> (usize, usize) {
            if pieces == 1 {
                return (0, len);
            }
            if i == 0 {
                return (0, NetHdr::BYTES);
            }
            let each = data / (pieces - 1);
            let from = NetHdr::BYTES + (i - 1) * each;
            let to = if i + 1 == pieces { len } else { from + each };
            (from, to - from)
        };
        let base = self.at(slot);
        if let Some(tables) = &self.tables {
            let first = usize::from(slot) * self.pieces;
            let packed = matches!(self.layout, Layout::Packed { .. });
            for i in 0..pieces {
                let (from, bytes) = piece(i);
                let addr = self.buffers.guest(base + from);
                let more = i + 1 < pieces;
                let (w0, w1) = if packed {
                    (0, direction)
                } else {
                    let next = if more { vring::DESC_F_NEXT } else { 0 };
                    (direction | next, narrow(i + 1))
                };
                tables.write_desc(first + i, addr, wide(bytes), w0, w1);
            }
            let table = tables.guest(first * 16);
            self.place(slot, 1, |_| {
                (table, wide(pieces * 16), vring::DESC_F_INDIRECT)
            });
        } else {
            let buffers = self.buffers.guest(base);
            self.place(slot, pieces, |i| {
                let (from, bytes) = piece(i);
                (buffers + from as u64, wide(bytes), direction)
            });
        }
    }

    /// Writes a chain of `count` ring descriptors.
    #[inline]
    fn place(&mut self, slot: u16, count: usize, desc: impl Fn(usize) -> (u64, u32, u16)) {
        if let Some(n) = self.slot_descs.get_mut(usize::from(slot)) {
            *n = narrow(count);
        }
        let descs_per_slot = self.descs_per_slot();
        match &mut self.layout {
            Layout::Split { avail, .. } => {
                let head = usize::from(slot) * descs_per_slot;
                for i in 0..count {
                    let (addr, len, flags) = desc(i);
                    let next = if i + 1 < count { vring::DESC_F_NEXT } else { 0 };
                    let index = head + i;
                    self.desc
                        .write_desc(index, addr, len, flags | next, narrow(index + 1));
                }
                let entry = usize::from(*avail & (self.size - 1));
                self.driver
                    .word(ENTRIES + 2 * entry)
                    .store(narrow(head).to_le(), Ordering::Relaxed);
                *avail = avail.wrapping_add(1);
            }
            Layout::Packed {
                avail,
                first,
                fresh,
                ..
            } => {
                for i in 0..count {
                    let (addr, len, flags) = desc(i);
                    let next = if i + 1 < count { vring::DESC_F_NEXT } else { 0 };
                    let mark = if avail.wrap {
                        vring::DESC_F_AVAIL
                    } else {
                        vring::DESC_F_USED
                    };
                    let flags = flags | next | mark;
                    let at = usize::from(avail.slot) * 16;
                    self.desc.write(at, &addr.to_le_bytes());
                    self.desc.write(at + 8, &len.to_le_bytes());
                    self.desc.write(at + 12, &slot.to_le_bytes());
                    if first.is_none() {
                        *first = Some((avail.slot, flags));
                    } else {
                        self.desc
                            .word(at + 14)
                            .store(flags.to_le(), Ordering::Relaxed);
                    }
                    avail.forward(1, self.size);
                    *fresh += 1;
                }
            }
        }
    }

    /// Shows the device what was offered; says whether it wants a kick.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        match &mut self.layout {
            Layout::Split {
                avail, published, ..
            } => {
                let (old, new) = (*published, *avail);
                if old == new {
                    return false;
                }
                // Release: descriptors and buffers before the index that shows them.
                self.driver.word(IDX).store(new.to_le(), Ordering::Release);
                *published = new;
                // Full: the index before we read the device's wish (virtio 1.3 section 2.7.13.4.1).
                fence(Ordering::SeqCst);
                if self.event_idx {
                    let at = ENTRIES + 8 * usize::from(self.size);
                    let event = u16::from_le(self.device.word(at).load(Ordering::Relaxed));
                    vring::need_event(event, new, old)
                } else {
                    let flags = u16::from_le(self.device.word(0).load(Ordering::Relaxed));
                    flags & vring::USED_F_NO_NOTIFY == 0
                }
            }
            Layout::Packed {
                avail,
                first,
                fresh,
                ..
            } => {
                let Some((slot, flags)) = first.take() else {
                    return false;
                };
                // Release: as above; these flags show all that follows them.
                self.desc
                    .word(usize::from(slot) * 16 + 14)
                    .store(flags.to_le(), Ordering::Release);
                let old = avail.slot.wrapping_sub(std::mem::take(fresh));
                fence(Ordering::SeqCst);
                match u16::from_le(self.device.word(2).load(Ordering::Relaxed)) {
                    vring::EVENT_DISABLE => false,
                    vring::EVENT_DESC if self.event_idx => {
                        let event = u16::from_le(self.device.word(0).load(Ordering::Relaxed));
                        let mut at = event & !vring::WRAP_BIT;
                        if (event & vring::WRAP_BIT != 0) != avail.wrap {
                            at = at.wrapping_sub(self.size);
                        }
                        vring::need_event(at, avail.slot, old)
                    }
                    _ => true,
                }
            }
        }
    }

    /// Takes back one chain: its slot and the bytes the device wrote.
    #[inline]
    pub(super) fn take_used(&mut self) -> Option<(u16, u32)> {
        let descs_per_slot = self.descs_per_slot();
        let found = match &mut self.layout {
            Layout::Split { used, .. } => {
                // Acquire: the element and the buffer behind the index.
                let idx = u16::from_le(self.device.word(IDX).load(Ordering::Acquire));
                if idx == *used {
                    return None;
                }
                let entry = usize::from(*used & (self.size - 1));
                let mut element = [0u8; 8];
                self.device.read(ENTRIES + 8 * entry, &mut element);
                *used = used.wrapping_add(1);
                let [a, b, _, _, l0, l1, l2, l3] = element;
                let slot = usize::from(u16::from_le_bytes([a, b])) / descs_per_slot;
                (narrow(slot), u32::from_le_bytes([l0, l1, l2, l3]))
            }
            Layout::Packed { used, .. } => {
                let at = *used;
                let slot = self.packed_used_at(at)?;
                let mut len = [0u8; 4];
                self.desc.read(usize::from(at.slot) * 16 + 8, &mut len);
                let descs = self.slot_descs.get(usize::from(slot)).copied();
                if let Layout::Packed { used, .. } = &mut self.layout {
                    used.forward(descs.unwrap_or(1).max(1), self.size);
                }
                (slot, u32::from_le_bytes(len))
            }
        };
        self.free.push_back(found.0);
        Some(found)
    }

    /// The buffer id of the used descriptor at a position, when there is one.
    #[inline]
    fn packed_used_at(&self, at: Position) -> Option<u16> {
        let byte = usize::from(at.slot) * 16;
        // Acquire: id, length and buffer were written before the mark.
        let flags = u16::from_le(self.desc.word(byte + 14).load(Ordering::Acquire));
        let avail = flags & vring::DESC_F_AVAIL != 0;
        let used = flags & vring::DESC_F_USED != 0;
        if avail != at.wrap || used != at.wrap {
            return None;
        }
        Some(u16::from_le(
            self.desc.word(byte + 12).load(Ordering::Relaxed),
        ))
    }

    /// Whether a chain came back.
    pub(super) fn has_used(&self) -> bool {
        match self.layout {
            Layout::Split { used, .. } => {
                u16::from_le(self.device.word(IDX).load(Ordering::Acquire)) != used
            }
            Layout::Packed { used, .. } => self.packed_used_at(used).is_some(),
        }
    }

    /// Asks for calls, or for none. A full fence follows: look at [`DriverRing::has_used`] after it.
    pub(super) fn want_calls(&self, on: bool) {
        match self.layout {
            Layout::Split { used, .. } => {
                let flags = if on { 0 } else { vring::AVAIL_F_NO_INTERRUPT };
                self.driver.word(0).store(flags.to_le(), Ordering::Relaxed);
                if self.event_idx {
                    // Asked for: at the very next one. Not: half the index space away.
                    let event = if on { used } else { used.wrapping_add(0x8000) };
                    let at = ENTRIES + 2 * usize::from(self.size);
                    self.driver.word(at).store(event.to_le(), Ordering::Relaxed);
                }
            }
            Layout::Packed { .. } => {
                let wish = if on {
                    vring::EVENT_ENABLE
                } else {
                    vring::EVENT_DISABLE
                };
                self.driver.word(2).store(wish.to_le(), Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
    }
}

/// Indices and counts here are bounded by the ring's size.
#[allow(clippy::cast_possible_truncation)]
#[inline]
fn narrow(n: usize) -> u16 {
    n as u16
}

/// Lengths here are bounded by a buffer's size.
#[allow(clippy::cast_possible_truncation)]
#[inline]
fn wide(n: usize) -> u32 {
    n as u32
}
