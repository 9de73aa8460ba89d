#![allow(unsafe_code)]
//! From a burst into the guest's receive ring: the hot path out.
//!
//! Each frame is written completely or not at all; the guest sees the whole burst at once, and is
//! called at most once.
//!
//! Invariant owned here: [`Writer`] writes only inside the pieces it was given, which the ring
//! checked and keeps mapped.

use std::io;
use std::sync::Arc;

use super::queue::Queue;
use super::vring::{Buf, Bufs, Direction, Ring, RingError, Step, Taken, with_ring};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::copy::copy_short;
use crate::frame::{Burst, Gso, OutItem, Scratch, TxCaps};
use crate::offload::{self, Out};
use crate::sys::aio::Signaller;
use crate::sys::virtio::{NetHdr, feature};

/// Receive buffers one frame may fill: a 64 KiB frame in buffers of 256 bytes, and some.
const MERGE_MAX: usize = 512;

/// A transmit queue: the guest's receive ring.
#[derive(Debug)]
pub struct Tx {
    pub(super) queue: Queue,
    pub(super) hdr_bytes: usize,
    pub(super) features: u64,
    pub(super) caps: TxCaps,
    scratch: Scratch,
    parts: Parts,
}

/// The chains one frame goes to.
#[derive(Debug)]
struct Parts {
    bufs: Bufs,
    /// With the bytes each has room for.
    chains: Vec<(Taken, u64)>,
}

impl Tx {
    pub(super) fn new(signaller: Arc<Signaller>) -> io::Result<Self> {
        Ok(Tx {
            queue: Queue::new(signaller)?,
            hdr_bytes: NetHdr::BYTES,
            features: 0,
            caps: TxCaps::default(),
            scratch: Scratch::default(),
            parts: Parts {
                bufs: Bufs::new(),
                chains: Vec::with_capacity(MERGE_MAX),
            },
        })
    }

    /// See [`crate::port::TxQueue::tx_burst`].
    #[inline]
    pub(crate) fn tx_burst(&mut self, burst: &Burst, items: &[OutItem], cell: &PortCell) {
        let Some(vring) = self.queue.live() else {
            cell.drops.add(DropReason::TxNotReady, items.len() as u64);
            return;
        };
        let out = Sender {
            hdr_bytes: self.hdr_bytes,
            features: self.features,
            caps: &self.caps,
            scratch: &mut self.scratch,
            parts: &mut self.parts,
            broken: None,
        };
        if let Some(e) = with_ring!(vring, r => out.run(r, burst, items, cell)) {
            self.queue.set_broken(e);
        }
    }

    #[inline]
    pub(crate) fn notify(&mut self) {
        self.queue.notify();
    }
}

struct Sender<'a> {
    hdr_bytes: usize,
    features: u64,
    caps: &'a TxCaps,
    scratch: &'a mut Scratch,
    parts: &'a mut Parts,
    broken: Option<RingError>,
}

impl Sender<'_> {
    #[inline]
    fn run<R: Ring>(
        mut self,
        ring: &mut R,
        burst: &Burst,
        items: &[OutItem],
        cell: &PortCell,
    ) -> Option<RingError> {
        if let Err(e) = ring.peek(items.len(), Direction::Writable) {
            self.broken = Some(e);
        }
        let mut put = Put {
            ring,
            parts: self.parts,
            broken: self.broken,
            hdr_bytes: self.hdr_bytes,
            features: self.features,
        };
        let (mut pkts, mut bytes) = (0, 0);
        for &item in items {
            if let Some((head, valid)) = burst.plain(item)
                && head.len() <= self.caps.max_frame_bytes as usize
                && put.plain(head, valid)
            {
                pkts += 1;
                bytes += head.len() as u64;
                continue;
            }
            let Some(view) = burst.view(item, self.scratch) else {
                // A slot that the burst does not have: nothing to send, and nothing to lose.
                debug_assert!(false, "{item:?} is not in the burst");
                cell.drops.add(DropReason::TxError, 1);
                continue;
            };
            offload::send(&view, self.caps, cell, &mut |out| put.frame(out));
        }
        cell.pkts.tx_pkts.add(pkts);
        cell.pkts.tx_bytes.add(bytes);
        let broken = put.broken;
        ring.publish();
        ring.ahead(Direction::Writable);
        broken
    }
}

struct Put<'a, R> {
    ring: &'a mut R,
    parts: &'a mut Parts,
    broken: Option<RingError>,
    hdr_bytes: usize,
    features: u64,
}

impl<R: Ring> Put<'_, R> {
    /// Writes a frame that needs nothing done, if the next chain is one piece with room for it, as nearly
    /// all are: as few stores as there can be, since each waits for the one before, and those into the guest's
    /// memory wait for its core to give up the line. `false`: nothing was done.
    #[inline]
    fn plain(&mut self, head: &[u8], valid: bool) -> bool {
        if self.hdr_bytes != NetHdr::BYTES || self.broken.is_some() {
            return false;
        }
        let Some((taken, buf)) = self.ring.take_single(Direction::Writable) else {
            return false;
        };
        let need = NetHdr::BYTES + head.len();
        if (buf.len as usize) < need {
            self.ring.untake(taken);
            return false;
        }
        let valid = valid && self.features & feature::GUEST_CSUM != 0;
        let hdr = NetHdr {
            flags: if valid { NetHdr::F_DATA_VALID } else { 0 },
            num_buffers: 1,
            ..NetHdr::default()
        };
        // SAFETY: the piece has room for header and head.
        unsafe { write_header(buf.ptr, &hdr) };
        let at = buf.ptr.wrapping_add(NetHdr::BYTES);
        // SAFETY: as above; a slice is readable, and private memory does not overlap a guest's.
        unsafe { copy_short(head.as_ptr(), at, head.len()) };
        self.ring.wrote(buf.ptr, need);
        #[allow(clippy::cast_possible_truncation)] // a head is far below 2^32
        self.ring.put(taken, need as u32);
        true
    }

    /// Writes one frame into as many chains as it needs (without `MRG_RXBUF`: one).
    #[inline]
    fn frame(&mut self, out: &Out<'_>) -> Result<(), DropReason> {
        if self.broken.is_some() {
            return Err(DropReason::TxNotReady);
        }
        let need = self.hdr_bytes as u64 + u64::from(out.len());
        if let Some((taken, buf)) = self.ring.take_single(Direction::Writable) {
            if u64::from(buf.len) >= need {
                let mut writer = Writer {
                    rest: &[buf],
                    skip: 0,
                };
                writer.frame(self.hdr_bytes, header(out, self.features, 1), out);
                self.ring.wrote(buf.ptr, buf.len as usize);
                #[allow(clippy::cast_possible_truncation)] // a frame is far below 2^32
                self.ring.put(taken, need as u32);
                return Ok(());
            }
            self.ring.untake(taken);
        }
        self.parts.bufs.clear();
        self.parts.chains.clear();
        if let Err(reason) = self.gather(need) {
            while let Some((taken, _)) = self.parts.chains.pop() {
                self.ring.untake(taken);
            }
            return Err(reason);
        }
        let Parts { bufs, chains } = &*self.parts;
        #[allow(clippy::cast_possible_truncation)] // at most MERGE_MAX
        let hdr = header(out, self.features, chains.len() as u16);
        let mut writer = Writer {
            rest: bufs.range(0, bufs.len()),
            skip: 0,
        };
        writer.frame(self.hdr_bytes, hdr, out);
        for piece in bufs.range(0, bufs.len()) {
            self.ring.wrote(piece.ptr, piece.len as usize);
        }
        let mut left = need;
        for &(taken, room) in chains {
            let here = left.min(room);
            left -= here;
            #[allow(clippy::cast_possible_truncation)] // a frame is far below 2^32
            self.ring.put(taken, here as u32);
        }
        Ok(())
    }

    /// Takes chains until they have room for `need` bytes.
    #[inline]
    fn gather(&mut self, need: u64) -> Result<(), DropReason> {
        let mergeable = self.features & feature::MRG_RXBUF != 0;
        let mut room = 0;
        loop {
            let before = self.parts.bufs.len();
            match self.ring.take(Direction::Writable, &mut self.parts.bufs) {
                Ok(Step::Chain(taken)) => {
                    let pieces = self.parts.bufs.range(before, self.parts.bufs.len());
                    let here: u64 = pieces.iter().map(|b| u64::from(b.len)).sum();
                    self.parts.chains.push((taken, here));
                    room += here;
                }
                Ok(Step::Empty) => return Err(DropReason::TxQueueFull),
                Ok(Step::NoRoom) => return Err(DropReason::TxTooBig),
                Err(e) => {
                    self.broken = Some(e);
                    return Err(DropReason::TxBadDescriptor);
                }
            }
            if room >= need {
                return Ok(());
            }
            if !mergeable || self.parts.chains.len() == MERGE_MAX {
                return Err(DropReason::TxTooBig);
            }
        }
    }
}

/// The guest's header for a frame.
#[inline]
fn header(out: &Out<'_>, features: u64, num_buffers: u16) -> NetHdr {
    let mut hdr = NetHdr {
        num_buffers,
        ..NetHdr::default()
    };
    if let Some((start, offset)) = out.needs_csum {
        hdr.flags = NetHdr::F_NEEDS_CSUM;
        hdr.csum_start = start;
        hdr.csum_offset = offset;
    } else if out.data_valid && features & feature::GUEST_CSUM != 0 {
        hdr.flags = NetHdr::F_DATA_VALID;
    }
    hdr.gso_type = match out.gso {
        Gso::None => return hdr,
        Gso::TcpV4 => NetHdr::GSO_TCPV4,
        Gso::TcpV6 => NetHdr::GSO_TCPV6,
        Gso::UdpL4 => NetHdr::GSO_UDP_L4,
    };
    hdr.gso_size = out.gso_size;
    hdr.hdr_len = out.hdr_len;
    hdr
}

/// Writes a whole header as words: bytes stored one by one and read as words again would stall.
///
/// # Safety
/// [`NetHdr::BYTES`] at `at` are writable.
#[inline]
unsafe fn write_header(at: *mut u8, hdr: &NetHdr) {
    let (low, high) = hdr.to_words();
    // SAFETY: by contract.
    unsafe { at.cast::<u64>().write_unaligned(low.to_le()) };
    let rest = at.wrapping_add(8).cast::<u32>();
    // SAFETY: by contract: four bytes behind the first eight.
    unsafe { rest.write_unaligned(high.to_le()) };
}

/// Writes on across the pieces of the chains; they have room for all of it (`gather`).
struct Writer<'a> {
    rest: &'a [Buf],
    skip: u32,
}

impl Writer<'_> {
    /// Header, head and tail of a frame.
    #[inline]
    fn frame(&mut self, hdr_bytes: usize, hdr: NetHdr, out: &Out<'_>) {
        match self.place() {
            Some((at, NetHdr::BYTES..)) if hdr_bytes == NetHdr::BYTES => {
                // SAFETY: the place has room for it.
                unsafe { write_header(at, &hdr) };
                self.advance(NetHdr::BYTES);
            }
            _ => self.write(hdr.to_bytes().get(..hdr_bytes).unwrap_or(&[])),
        }
        self.write(out.head);
        for (ptr, len) in out.tail.pieces() {
            // SAFETY: a tail's piece is readable for its length while `out` is borrowed.
            unsafe { self.copy(ptr, len) };
        }
    }

    /// Where to write on, and how many bytes this piece has room for.
    #[inline]
    fn place(&self) -> Option<(*mut u8, usize)> {
        let first = self.rest.first()?;
        // SAFETY: `skip` is at most the piece's length.
        let at = unsafe { first.ptr.add(self.skip as usize) };
        Some((at, (first.len - self.skip) as usize))
    }

    /// Goes on by `len` bytes, which this piece has, and to the next piece when it is full.
    #[inline]
    fn advance(&mut self, len: usize) {
        #[allow(clippy::cast_possible_truncation)] // at most the piece's u32 length
        {
            self.skip += len as u32;
        }
        if self.rest.first().is_some_and(|b| b.len == self.skip) {
            self.rest = self.rest.get(1..).unwrap_or(&[]);
            self.skip = 0;
        }
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        match self.place() {
            Some((at, room)) if room >= bytes.len() => {
                // SAFETY: a slice is readable, the place has room for it, and private memory does
                // not overlap a guest's.
                unsafe { copy_short(bytes.as_ptr(), at, bytes.len()) };
                self.advance(bytes.len());
            }
            // SAFETY: as above.
            _ => unsafe { self.copy(bytes.as_ptr(), bytes.len()) },
        }
    }

    /// # Safety
    /// `src..src + len` is readable.
    #[inline]
    unsafe fn copy(&mut self, mut src: *const u8, mut len: usize) {
        while len > 0 {
            let Some((at, room)) = self.place() else {
                debug_assert!(false, "more bytes than room");
                return;
            };
            let n = room.min(len);
            // SAFETY: `n` bytes are readable by contract and writable in the piece. `copy`, not
            // `copy_nonoverlapping`: two guests may share memory with each other, or a guest may
            // offer the same page for sending and receiving.
            unsafe { std::ptr::copy(src, at, n) };
            // SAFETY: at most one past the readable bytes.
            src = unsafe { src.add(n) };
            len -= n;
            self.advance(n);
        }
    }
}
