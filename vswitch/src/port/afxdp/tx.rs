#![allow(unsafe_code)]
//! Sending: frames are copied into UMEM chunks and handed to the kernel, one call a burst.
//!
//! Invariant owned here: a chunk is in `free`, or in the kernel's hands, never both.

use std::sync::Arc;

use super::ring::{Consumer, Producer};
use super::socket::{Kick, Socket};
use super::umem::{CHUNK, CHUNKS, Umem};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{Burst, OutItem, Scratch, TxCaps};
use crate::offload::{self, Out};

/// A transmit queue.
#[derive(Debug)]
pub struct Tx {
    socket: Arc<Socket>,
    ring: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    free: Vec<u64>,
    caps: TxCaps,
    scratch: Scratch,
    stopped: bool,
    /// What the kernel said last: the interface is down. What it had not taken stays in the ring.
    down: bool,
    /// The kernel has frames that need another call.
    pending: bool,
}

impl Tx {
    pub(super) fn new(
        socket: Arc<Socket>,
        ring: Producer<libc::xdp_desc>,
        completion: Consumer<u64>,
        caps: TxCaps,
    ) -> Tx {
        Tx {
            socket,
            ring,
            completion,
            free: Umem::tx_chunks().collect(),
            caps,
            scratch: Scratch::default(),
            stopped: false,
            down: false,
            pending: false,
        }
    }

    /// The interface is no longer the one that was opened: nothing is sent any more.
    pub(super) fn stop(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// The interface is up again: what waits in the ring is sent.
    pub(super) fn resume(&mut self) {
        self.kick();
    }

    pub(super) fn set_max_frame_bytes(&mut self, bytes: u32) {
        self.caps.max_frame_bytes = bytes;
    }

    pub(crate) fn tx_burst(&mut self, burst: &Burst, items: &[OutItem], cell: &PortCell) {
        if items.is_empty() {
            return;
        }
        // Asked anew with each burst: the first one after the interface went up again passes,
        // whether or not the control thread has seen that it was down.
        if self.down && !self.stopped {
            self.kick();
        }
        if self.stopped || self.down {
            cell.drops.add(DropReason::TxNotReady, items.len() as u64);
            return;
        }
        if self.free.len() < CHUNKS as usize / 2 {
            self.reap();
        }
        let Tx {
            socket,
            ring,
            free,
            caps,
            scratch,
            ..
        } = self;
        for item in items {
            let Some(view) = burst.view(*item, scratch) else {
                cell.drops.add(DropReason::TxTooBig, 1);
                continue;
            };
            offload::send(&view, caps, cell, &mut |out| put(socket, ring, free, out));
        }
        self.ring.publish();
        self.kick();
    }

    pub(crate) fn maintain(&mut self) {
        self.reap();
        if self.pending && !self.down {
            self.kick();
        }
    }

    /// Frames wait for another call of [`Tx::maintain`].
    pub(crate) fn is_pending(&self) -> bool {
        self.pending && !self.down
    }

    #[inline]
    fn kick(&mut self) {
        self.pending = self.ring.is_pending();
        self.down = false;
        if !self.pending || !self.ring.needs_wakeup() {
            return;
        }
        match self.socket.kick_tx() {
            Kick::Done | Kick::Again => self.pending = self.ring.is_pending(),
            Kick::Down => self.down = true,
        }
    }

    /// Takes back the chunks of frames that were sent.
    #[inline]
    fn reap(&mut self) {
        let n = self.completion.available();
        for i in 0..n {
            if let Some(address) = self.completion.peek(i) {
                self.free.push(Umem::chunk(address));
            }
        }
        if n > 0 {
            self.completion.release(n);
        }
    }
}

/// Copies one frame into as many chunks as it needs, and puts them in the ring together.
#[inline]
fn put(
    socket: &Socket,
    ring: &mut Producer<libc::xdp_desc>,
    free: &mut Vec<u64>,
    out: &Out<'_>,
) -> Result<(), DropReason> {
    let chunks = out.len().div_ceil(CHUNK);
    if free.len() < chunks as usize || !ring.has_room(chunks) {
        return Err(DropReason::TxQueueFull);
    }
    // The head always fits the first chunk.
    let mut writer = Writer {
        socket,
        ring,
        free,
        chunk: 0,
        filled: 0,
    };
    writer.open()?;
    // SAFETY: the head's bytes are readable, being a slice.
    unsafe { writer.copy(out.head.as_ptr(), out.head.len()) }?;
    for (piece, len) in out.tail.pieces() {
        // SAFETY: the piece is readable while `out` lives.
        unsafe { writer.copy(piece, len) }?;
    }
    writer.close(0);
    Ok(())
}

struct Writer<'a> {
    socket: &'a Socket,
    ring: &'a mut Producer<libc::xdp_desc>,
    free: &'a mut Vec<u64>,
    chunk: u64,
    filled: u32,
}

impl Writer<'_> {
    #[inline]
    fn open(&mut self) -> Result<(), DropReason> {
        self.chunk = self.free.pop().ok_or(DropReason::TxQueueFull)?;
        self.filled = 0;
        Ok(())
    }

    #[inline]
    fn close(&mut self, options: u32) {
        self.ring.push(libc::xdp_desc {
            addr: self.chunk,
            len: self.filled,
            options,
        });
    }

    /// Appends bytes; a full chunk is put in the ring, with more to follow.
    ///
    /// # Safety
    /// `src..src + len` is readable.
    #[inline]
    unsafe fn copy(&mut self, src: *const u8, len: usize) -> Result<(), DropReason> {
        let mut done = 0;
        while done < len {
            if self.filled == CHUNK {
                self.close(libc::XDP_PKT_CONTD);
                self.open()?;
            }
            #[allow(clippy::cast_possible_truncation)] // at most CHUNK
            let n = (len - done).min((CHUNK - self.filled) as usize) as u32;
            let to = self
                .socket
                .umem
                .at(self.chunk + u64::from(self.filled), n)
                .ok_or(DropReason::TxError)?;
            // SAFETY: `done < len`, so the address is inside the caller's bytes.
            let from = unsafe { src.add(done) };
            // SAFETY: `n` bytes are readable at `from`, and writable at `to`: the chunk came from
            // `free`, so nobody else uses it.
            unsafe { std::ptr::copy_nonoverlapping(from, to, n as usize) };
            self.filled += n;
            done += n as usize;
        }
        Ok(())
    }
}
