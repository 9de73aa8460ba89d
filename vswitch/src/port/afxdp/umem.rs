#![allow(unsafe_code)]
//! UMEM: the memory a socket's frames live in, cut into chunks.
//!
//! The lower half of the chunks circulates through fill and rx ring, the upper half through tx and
//! completion ring, so that the two sides of a queue share no free list.
//!
//! Invariant owned here: an address handed out by [`Umem::at`] lies inside the mapping, with as
//! many bytes behind it as were asked for.

use std::io;

use crate::sys::mmap::Mapping;

/// Bytes of a chunk. A page: the largest the kernel takes without huge pages, so that a frame of
/// MTU 9000 needs three.
pub(super) const CHUNK: u32 = 4096;
/// Chunks, and ring entries, each way. 1024 full-sized frames; 4 MiB a direction and queue.
pub(super) const CHUNKS: u32 = 1024;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Umem(Mapping);

impl Umem {
    pub(super) fn new() -> io::Result<Umem> {
        Mapping::anonymous(2 * CHUNKS as usize * CHUNK as usize).map(Umem)
    }

    pub(super) fn base(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    /// Chunks received frames lie in.
    pub(super) fn rx_chunks() -> impl Iterator<Item = u64> {
        (0..u64::from(CHUNKS)).map(|i| i * u64::from(CHUNK))
    }

    /// Chunks frames are sent from.
    pub(super) fn tx_chunks() -> impl Iterator<Item = u64> {
        (u64::from(CHUNKS)..2 * u64::from(CHUNKS)).map(|i| i * u64::from(CHUNK))
    }

    /// The chunk an address lies in.
    #[inline]
    pub(super) fn chunk(address: u64) -> u64 {
        address & !(u64::from(CHUNK) - 1)
    }

    /// Where `len` bytes at `address` are; `None` when they are not all inside.
    #[inline]
    pub(super) fn at(&self, address: u64, len: u32) -> Option<*mut u8> {
        let end = address.checked_add(u64::from(len))?;
        if end > self.bytes() {
            return None;
        }
        let offset = usize::try_from(address).ok()?;
        // SAFETY: `offset` is at most the mapping's length, checked above.
        Some(unsafe { self.0.as_ptr().add(offset) })
    }
}
