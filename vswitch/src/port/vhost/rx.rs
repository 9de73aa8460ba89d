#![allow(unsafe_code)]
//! From the guest's transmit ring into a burst: the hot path in.
//!
//! Three passes over the burst: take the chains (and prefetch their first bytes), copy header and
//! head of each frame, leave the rest as tail pieces. The chains go back in [`Rx::complete`], after
//! the burst's last copy.
//!
//! Invariant owned here: bytes of a guest's buffer are read once into the frame's private head, and
//! never again; the tail pieces handed to the burst belong to chains that stay taken, in memory
//! that stays mapped, until `complete`, which runs inside the same gate.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use super::queue::Queue;
use super::vring::{
    Buf, Bufs, Direction, Ring, RingError, Step, Taken, prefetch, prefetch_buffer, with_ring,
};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::copy::copy_short;
use crate::frame::{BURST_MAX, Burst, Csum, Gso, HEAD_CAP, Offload};
use crate::sys::aio::Signaller;
use crate::sys::virtio::{NetHdr, feature};

/// Longest frame: an IPv6 packet of 65535 bytes of payload and its header, Ethernet, two tags.
const FRAME_MAX: u64 = 65535 + 40 + 14 + 8;
/// Shortest: an Ethernet header.
const FRAME_MIN: u64 = 14;

/// A receive queue: the guest's transmit ring.
#[derive(Debug)]
pub struct Rx {
    pub(super) queue: Queue,
    pub(super) hdr_bytes: usize,
    pub(super) features: u64,
    bufs: Bufs,
    /// Chains of this burst, in the order taken.
    chains: Vec<Chain>,
}

/// A chain of a burst.
#[derive(Clone, Copy, Debug)]
struct Chain {
    taken: Taken,
    /// Its only piece, if it has one only.
    first: Buf,
    /// The end of its pieces in `bufs`; the end of those before it when it has one only.
    end: usize,
}

// SAFETY: the address in it is used only by the queue that owns it, under the ring's validity.
unsafe impl Send for Chain {}

impl Rx {
    pub(super) fn new(signaller: Arc<Signaller>) -> io::Result<Self> {
        Ok(Rx {
            queue: Queue::new(signaller)?,
            hdr_bytes: NetHdr::BYTES,
            features: 0,
            bufs: Bufs::new(),
            chains: Vec::with_capacity(BURST_MAX),
        })
    }

    /// See [`crate::port::RxQueue::rx_burst`].
    #[inline]
    pub(crate) fn rx_burst(&mut self, burst: &mut Burst, cell: &PortCell) {
        debug_assert!(self.chains.is_empty(), "complete() was not called");
        let Some(vring) = self.queue.live() else {
            return;
        };
        let (bufs, chains) = (&mut self.bufs, &mut self.chains);
        let result = with_ring!(vring, r => take_chains(r, bufs, chains, burst));
        let mut from = 0;
        for chain in &*chains {
            let pieces = if chain.end == from {
                std::slice::from_ref(&chain.first)
            } else {
                bufs.range(from, chain.end)
            };
            from = chain.end;
            add_frame(pieces, self.hdr_bytes, self.features, burst, cell);
        }
        // Not on an empty poll: the guest would have to fetch its lines back each time.
        if !self.chains.is_empty()
            && let Some(vring) = self.queue.ring_mut()
        {
            with_ring!(vring, r => r.ahead(Direction::Readable));
        }
        if let Err(e) = result {
            cell.pkts.rx_pkts.add(1);
            cell.drops.add(DropReason::BadDescriptor, 1);
            self.queue.set_broken(e);
        }
    }

    /// See [`crate::port::RxQueue::complete`].
    #[inline]
    pub(crate) fn complete(&mut self, _burst: &Burst) -> bool {
        if self.chains.is_empty() {
            return false;
        }
        let chains = &self.chains;
        // Also when the ring was found broken after these were taken: they were good.
        if let Some(vring) = self.queue.ring_mut() {
            with_ring!(vring, r => {
                for chain in chains {
                    r.put(chain.taken, 0);
                }
                r.publish();
            });
        }
        self.chains.clear();
        true
    }

    #[inline]
    pub(crate) fn notify(&mut self) {
        self.queue.notify();
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    pub(crate) fn disarm(&mut self) {
        self.queue.disarm();
    }

    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        Some(self.queue.wake_fd())
    }
}

/// Takes as many chains as the burst has room for.
#[inline]
fn take_chains<R: Ring>(
    ring: &mut R,
    bufs: &mut Bufs,
    chains: &mut Vec<Chain>,
    burst: &Burst,
) -> Result<(), RingError> {
    bufs.clear();
    let waiting = ring.peek(burst.room(), Direction::Readable)?;
    for _ in 0..waiting {
        let end = bufs.len();
        // Each chain may need room for a tail's pieces.
        let room = burst.seg_room().saturating_sub(chains.len());
        if end < room
            && let Some((taken, first)) = ring.take_single(Direction::Readable)
        {
            chains.push(Chain { taken, first, end });
            continue;
        }
        let taken = match ring.take(Direction::Readable, bufs)? {
            // More pieces than the burst can hold: the rest of them waits for the next one.
            Step::Chain(taken) if bufs.len() > room && !chains.is_empty() => {
                bufs.truncate(end);
                ring.untake(taken);
                break;
            }
            Step::Chain(taken) => taken,
            Step::Empty => break,
            Step::NoRoom if !chains.is_empty() => break,
            Step::NoRoom => return Err(RingError::ChainTooLong),
        };
        for (piece, second) in bufs.range(end, bufs.len()).iter().zip([false, true]) {
            if second {
                prefetch(piece.ptr);
            } else {
                prefetch_buffer(piece.ptr, Direction::Readable);
            }
        }
        if let Some(&first) = bufs.range(end, bufs.len()).first() {
            chains.push(Chain {
                taken,
                first,
                end: bufs.len(),
            });
        }
    }
    Ok(())
}

/// Copies header and head of one chain, and adds the frame, or counts why not.
#[inline]
fn add_frame(pieces: &[Buf], hdr_bytes: usize, features: u64, burst: &mut Burst, cell: &PortCell) {
    // A small frame in one piece, as nearly all are: header and frame are copied without a cursor.
    if let [piece] = pieces
        && hdr_bytes == NetHdr::BYTES
        && let Some(len) = (piece.len as usize).checked_sub(NetHdr::BYTES)
        && (FRAME_MIN..=HEAD_CAP as u64).contains(&(len as u64))
    {
        add_small(piece.ptr.cast_const(), len, features, burst, cell);
        return;
    }
    let total: u64 = pieces.iter().map(|b| u64::from(b.len)).sum();
    let bytes = total.saturating_sub(hdr_bytes as u64);
    if let Err(reason) = try_frame(pieces, bytes, hdr_bytes, features, burst) {
        cell.pkts.rx_pkts.add(1);
        cell.pkts.rx_bytes.add(bytes);
        cell.drops.add(reason, 1);
    }
}

/// [`add_frame`] for a piece of a header and `len` bytes, at most [`HEAD_CAP`].
#[inline]
fn add_small(at: *const u8, len: usize, features: u64, burst: &mut Burst, cell: &PortCell) {
    // SAFETY: the ring checked the piece, which begins with a header.
    let low = unsafe { at.cast::<u64>().read_unaligned() };
    let rest = at.wrapping_add(8).cast::<u32>();
    // SAFETY: as above: four bytes behind the first eight.
    let high = unsafe { rest.read_unaligned() };
    let hdr = NetHdr::from_words(u64::from_le(low), u32::from_le(high));
    let Some(frame) = burst.push() else {
        cell.pkts.rx_pkts.add(1);
        cell.drops.add(DropReason::BadDescriptor, 1);
        return;
    };
    let (from, to) = (at.wrapping_add(NetHdr::BYTES), frame.fill().as_mut_ptr());
    // SAFETY: `len` bytes follow the header in the piece, and the head has room for `HEAD_CAP`;
    // private memory does not overlap a guest's.
    unsafe { copy_short(from, to, len) };
    frame.set_head_len(len);
    // See `try_frame`.
    compiler_fence(Ordering::SeqCst);
    match offload(&hdr, features) {
        Some(request) => frame.offload = request,
        None => {
            burst.pop();
            cell.pkts.rx_pkts.add(1);
            cell.pkts.rx_bytes.add(len as u64);
            cell.drops.add(DropReason::BadOffload, 1);
        }
    }
}

#[inline]
fn try_frame(
    pieces: &[Buf],
    bytes: u64,
    hdr_bytes: usize,
    features: u64,
    burst: &mut Burst,
) -> Result<(), DropReason> {
    if bytes == 0 {
        return Err(DropReason::BadDescriptor);
    }
    if bytes < FRAME_MIN {
        return Err(DropReason::Runt);
    }
    if bytes > FRAME_MAX {
        return Err(DropReason::Oversize);
    }
    let mut cursor = Cursor {
        rest: pieces,
        skip: 0,
    };
    let mut hdr = [0u8; NetHdr::BYTES];
    cursor.copy_to(hdr.get_mut(..hdr_bytes).unwrap_or(&mut []));
    let frame = burst.push().ok_or(DropReason::BadDescriptor)?;
    #[allow(clippy::cast_possible_truncation)] // at most FRAME_MAX
    let head_len = (bytes as usize).min(HEAD_CAP);
    cursor.copy_to(frame.fill().get_mut(..head_len).unwrap_or(&mut []));
    frame.set_head_len(head_len);
    let request = offload(&NetHdr::from_bytes(hdr), features);
    // Reordering by the compiler would not matter to anybody but us: what was copied above is
    // what is judged, so no load of guest memory may move behind this point.
    compiler_fence(Ordering::SeqCst);
    match request {
        Some(offload) => frame.offload = offload,
        None => {
            burst.pop();
            return Err(DropReason::BadOffload);
        }
    }
    while let Some((ptr, len)) = cursor.next_piece() {
        // SAFETY: the piece lies in guest memory that stays mapped while this queue's gate is
        // held, and the burst is cleared before the gate is left (see `port`).
        if !unsafe { burst.add_tail(ptr, len) } {
            burst.pop();
            return Err(DropReason::BadDescriptor);
        }
    }
    Ok(())
}

/// What the guest asks for, when it may.
#[inline]
fn offload(hdr: &NetHdr, features: u64) -> Option<Offload> {
    if hdr.gso_type == NetHdr::GSO_NONE && hdr.flags & NetHdr::F_NEEDS_CSUM == 0 {
        Some(Offload::default())
    } else {
        request(hdr, features)
    }
}

/// [`offload`] for a header that asks for something.
fn request(hdr: &NetHdr, features: u64) -> Option<Offload> {
    if hdr.gso_type == NetHdr::GSO_NONE {
        return (features & feature::CSUM != 0).then_some(Offload {
            csum: Csum::Partial,
            ..Offload::default()
        });
    }
    let (gso, needed) = match hdr.gso_type {
        NetHdr::GSO_TCPV4 => (Gso::TcpV4, feature::HOST_TSO4),
        NetHdr::GSO_TCPV6 => (Gso::TcpV6, feature::HOST_TSO6),
        NetHdr::GSO_UDP_L4 => (Gso::UdpL4, feature::HOST_USO),
        _ => return None,
    };
    // virtio 1.3 section 5.1.6.2: a segmentation request needs the partial checksum.
    let ok = features & needed != 0 && hdr.flags & NetHdr::F_NEEDS_CSUM != 0 && hdr.gso_size != 0;
    ok.then_some(Offload {
        csum: Csum::Partial,
        gso,
        gso_size: hdr.gso_size,
    })
}

/// A place in a chain's pieces.
struct Cursor<'a> {
    rest: &'a [Buf],
    skip: u32,
}

impl Cursor<'_> {
    /// Copies the next bytes; the chain has them (the caller compared the lengths).
    #[inline]
    fn copy_to(&mut self, mut dst: &mut [u8]) {
        while !dst.is_empty() {
            let Some(first) = self.rest.first() else {
                return;
            };
            let here = (first.len - self.skip) as usize;
            let n = here.min(dst.len());
            let (now, later) = dst.split_at_mut(n);
            let src = first.ptr.wrapping_add(self.skip as usize).cast_const();
            // SAFETY: `skip` is at most the piece's length, `n` bytes remain behind it, and the
            // ring checked that the piece is mapped. Private memory does not overlap a guest's.
            unsafe { copy_short(src, now.as_mut_ptr(), n) };
            dst = later;
            if n == here {
                self.rest = self.rest.get(1..).unwrap_or(&[]);
                self.skip = 0;
            } else {
                #[allow(clippy::cast_possible_truncation)] // less than the piece's u32 length
                {
                    self.skip += n as u32;
                }
            }
        }
    }

    /// What is left of the present piece.
    #[inline]
    fn next_piece(&mut self) -> Option<(*const u8, u32)> {
        let (first, rest) = self.rest.split_first()?;
        let skip = std::mem::take(&mut self.skip);
        self.rest = rest;
        // SAFETY: `skip` is less than the piece's length.
        let ptr = unsafe { first.ptr.add(skip as usize) }.cast_const();
        Some((ptr, first.len - skip))
    }
}
