#![allow(unsafe_code)]
//! Receiving: heads are copied out of the UMEM, tails stay in their chunks until the burst is
//! done, then the chunks go back to the fill ring.
//!
//! Invariant owned here: a chunk whose bytes are a burst's tail is in `held` and not in the fill
//! ring, so the kernel does not write to it.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use super::ring::{Consumer, Producer};
use super::socket::Socket;
use super::umem::{CHUNKS, Umem};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{Burst, Csum, HEAD_CAP};

/// Pieces of one frame: a 64 KiB frame in chunks with the kernel's headroom of 256 bytes has 18.
const PIECES_MAX: u32 = 18;

/// A receive queue.
#[derive(Debug)]
pub struct Rx {
    socket: Arc<Socket>,
    ring: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    held: Vec<u64>,
    stopped: bool,
}

impl Rx {
    pub(super) fn new(
        socket: Arc<Socket>,
        ring: Consumer<libc::xdp_desc>,
        mut fill: Producer<u64>,
    ) -> Rx {
        for chunk in Umem::rx_chunks() {
            fill.push(chunk);
        }
        fill.publish();
        Rx {
            socket,
            ring,
            fill,
            held: Vec::with_capacity(CHUNKS as usize),
            stopped: false,
        }
    }

    /// The interface is no longer the one that was opened: nothing is received any more.
    pub(super) fn stop(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    pub(crate) fn rx_burst(&mut self, burst: &mut Burst, cell: &PortCell) {
        // Chunks of an iteration in which every frame was dropped, so that nothing was completed.
        self.give_back();
        if self.stopped {
            return;
        }
        let available = self.ring.available();
        let mut used = 0;
        while burst.room() > 0 && burst.seg_room() > PIECES_MAX as usize {
            let Some(pieces) = self.next_frame(used, available) else {
                break;
            };
            if let Err(reason) = self.take(burst, used, pieces) {
                burst.pop();
                cell.drops.add(reason, 1);
                cell.pkts.rx_pkts.add(1);
            }
            used += pieces;
        }
        if used > 0 {
            self.ring.release(used);
        }
    }

    /// Descriptors of the frame that starts at `from`; `None` when it is not all there yet.
    #[inline]
    fn next_frame(&self, from: u32, available: u32) -> Option<u32> {
        let mut n = from;
        while n < available {
            let last = self.ring.peek(n)?.options & libc::XDP_PKT_CONTD == 0;
            n += 1;
            if last {
                return Some(n - from);
            }
        }
        None
    }

    #[inline]
    fn take(&mut self, burst: &mut Burst, from: u32, pieces: u32) -> Result<(), DropReason> {
        let frame = burst.push().ok_or(DropReason::PortRxError)?;
        // XDP does not say whether the checksum is complete; a veth peer leaves it partial.
        frame.offload.csum = Csum::Unknown;
        let mut filled = 0;
        let mut result = Ok(());
        for i in 0..pieces {
            let desc = self.ring.peek(from + i).ok_or(DropReason::PortRxError)?;
            self.held.push(Umem::chunk(desc.addr));
            if pieces > PIECES_MAX {
                result = Err(DropReason::Oversize);
                continue;
            }
            let Some(start) = self.socket.umem.at(desc.addr, desc.len) else {
                result = Err(DropReason::PortRxError);
                continue;
            };
            // The head is filled from the first pieces, however the driver cut the frame.
            let own = (HEAD_CAP - filled).min(desc.len as usize);
            if own > 0
                && let Some(frame) = burst.last_mut()
            {
                let head = frame.fill().as_mut_ptr().wrapping_add(filled);
                // SAFETY: `own` bytes are readable at `start` (`at` checked more) and writable in
                // the head, whose capacity bounds `filled + own`. The kernel is done with the
                // chunk: its descriptor is in the rx ring.
                unsafe { std::ptr::copy_nonoverlapping(start, head, own) };
                filled += own;
                frame.set_head_len(filled);
            }
            #[allow(clippy::cast_possible_truncation)] // at most HEAD_CAP
            let (own, rest) = (own, desc.len - own as u32);
            if rest > 0 {
                // SAFETY: `own` is at most the piece's length.
                let tail = unsafe { start.add(own) };
                // SAFETY: the chunk is in `held`, so nobody writes to it or unmaps it until
                // `complete`, which the worker calls after the burst's last copy.
                if !unsafe { burst.add_tail(tail, rest) } {
                    result = Err(DropReason::PortRxError);
                }
            }
        }
        result
    }

    pub(crate) fn complete(&mut self, _burst: &Burst) {
        self.give_back();
    }

    /// Returns the chunks of the last burst, which is cleared by now or copied from for the last
    /// time, to the kernel.
    #[inline]
    fn give_back(&mut self) {
        if self.held.is_empty() {
            return;
        }
        for chunk in self.held.drain(..) {
            // There is room: the ring has an entry for each chunk in circulation.
            self.fill.push(chunk);
        }
        self.fill.publish();
        if self.fill.needs_wakeup() {
            self.socket.kick_rx();
        }
    }

    pub(crate) fn arm(&mut self) -> bool {
        // The kernel always reports; there is nothing to ask for.
        !self.stopped && self.ring.available() > 0
    }

    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_fd().as_raw_fd())
    }
}
