#![allow(unsafe_code)]
//! The guest's memory: one memfd, mapped here, shared with the back-end. Guest-physical addresses
//! are offsets in it.
//!
//! Invariant owned here: a [`Part`] was cut from the mapping once, overlaps no other, and keeps
//! the mapping alive; its accessors check bounds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use crate::sys::memfd::memfd;
use crate::sys::mmap::Mapping;

/// All of the memory.
#[derive(Debug)]
pub(super) struct Memory {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
    used: usize,
}

/// A piece of it with one user.
#[derive(Debug)]
pub(super) struct Part {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl Memory {
    pub(super) fn new(bytes: usize, huge: bool) -> io::Result<Self> {
        let page = if huge { 2 << 20 } else { 4096 };
        let bytes = bytes.next_multiple_of(page);
        let fd = memfd(c"vswitch-guest", bytes, huge)?;
        let mapping = Arc::new(Mapping::shared(fd.as_fd(), 0, bytes)?);
        Ok(Memory {
            fd,
            mapping,
            used: 0,
        })
    }

    /// Cuts off the next `len` bytes, page-aligned. `None`: used up.
    pub(super) fn part(&mut self, len: usize) -> Option<Part> {
        let offset = self.used.next_multiple_of(4096);
        let end = offset.checked_add(len)?;
        if end > self.mapping.len() {
            return None;
        }
        self.used = end;
        Some(Part {
            mapping: Arc::clone(&self.mapping),
            offset,
            len,
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn bytes(&self) -> usize {
        self.mapping.len()
    }

    /// Where it is in this process: the "front-end's address" of the protocol.
    pub(super) fn front_end(&self) -> u64 {
        self.mapping.as_ptr() as u64
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }
}

impl Part {
    /// Guest-physical address of the byte at `at`.
    #[inline]
    pub(super) fn guest(&self, at: usize) -> u64 {
        (self.offset + at) as u64
    }

    /// The front-end's own address of the first byte.
    pub(super) fn front_end(&self) -> u64 {
        self.mapping.as_ptr() as u64 + self.offset as u64
    }

    #[inline]
    fn ptr(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(
            at.checked_add(bytes).is_some_and(|end| end <= self.len),
            "{at}+{bytes} is outside a part of {}",
            self.len
        );
        // SAFETY: inside this part, which is inside the mapping.
        unsafe { self.mapping.as_ptr().add(self.offset + at) }
    }

    /// A 16-bit word that the back-end may read or write too.
    #[inline]
    pub(super) fn word(&self, at: usize) -> &AtomicU16 {
        let ptr = self.ptr(at, 2);
        assert!(at.is_multiple_of(2), "misaligned");
        // SAFETY: in bounds; parts are page-aligned and `at` is even.
        unsafe { AtomicU16::from_ptr(ptr.cast()) }
    }

    #[inline]
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        let ptr = self.ptr(at, bytes.len());
        // SAFETY: in bounds. A slice of ours never overlaps shared memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr, bytes.len()) };
    }

    #[inline]
    pub(super) fn read(&self, at: usize, bytes: &mut [u8]) {
        let ptr = self.ptr(at, bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(ptr.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Appends `len` bytes to `to`, which grows when it has no room.
    #[inline]
    pub(super) fn append_to(&self, at: usize, len: usize, to: &mut Vec<u8>) {
        let ptr = self.ptr(at, len);
        let old = to.len();
        to.reserve(len);
        let room = to.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: in bounds, and `reserve` made room for `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(ptr.cast_const(), room, len) };
        // SAFETY: these bytes were written just now.
        unsafe { to.set_len(old + len) };
    }

    #[inline]
    pub(super) fn write_desc(&self, index: usize, addr: u64, len: u32, w0: u16, w1: u16) {
        let word =
            u128::from(addr) | u128::from(len) << 64 | u128::from(w0) << 96 | u128::from(w1) << 112;
        self.write(index * 16, &word.to_le_bytes());
    }
}
