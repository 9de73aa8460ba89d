#![allow(unsafe_code)]
//! The guest's memory: regions the front-end shares, translation of its addresses, and which of its pages we wrote.
//!
//! Invariant owned here: every pointer that [`GuestMem::span`] and [`GuestMem::from_front_end`]
//! return is valid for reads and writes of the length returned with it for as long as the
//! `GuestMem` lives (truncation by the peer included, see `sys::sigbus`). Queues keep the
//! `GuestMem` they use alive by an `Arc` that only the control thread replaces, inside the
//! queue's gate: so unmapping waits for the worker's last copy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::sys::memfd::{file_size, is_memory};
use crate::sys::mmap::Mapping;
use crate::sys::sigbus::{self, Watched};

/// Regions a guest may have: what we answer to `GET_MAX_MEM_SLOTS` (QEMU's own default limit for
/// a PC is 509 with hot-plug; 64 leaves room for that and bounds the mappings a peer can make).
pub const REGIONS_MAX: usize = 64;
/// Most memory of one guest, bytes. A sparse memfd costs its maker nothing, but us address space, of
/// which there are 2^47 bytes for all ports together: as much as 32 such guests.
pub const GUEST_BYTES_MAX: u64 = 1 << 42;
/// Bytes of guest memory for each bit of a dirty log (QEMU's `VHOST_LOG_PAGE`).
const LOG_PAGE_BYTES: u64 = 4096;
/// Longest dirty log, bytes: for guest-physical addresses of 47 bits, more than processors without a fifth level of page tables have.
const LOG_BYTES_MAX: u64 = 1 << 32;

/// A region as the front-end describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionSpec {
    /// First guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// First address in the front-end's own memory.
    pub front_end: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// Why memory was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// Empty, huge, or wrapping around the address space.
    #[error("memory region {0:?} has an impossible size or address")]
    BadRegion(RegionSpec),
    /// Two regions share addresses.
    #[error("memory region {0:?} overlaps another")]
    Overlap(RegionSpec),
    /// The file ends before the region does.
    #[error("memory region {spec:?} is larger than its file of {file_bytes} bytes")]
    ShortFile {
        /// The region.
        spec: RegionSpec,
        /// Size of the file.
        file_bytes: u64,
    },
    /// All regions together are more than [`GUEST_BYTES_MAX`].
    #[error("memory region {0:?} takes the guest beyond {max} TiB", max = GUEST_BYTES_MAX >> 40)]
    TooMuch(RegionSpec),
    /// A file whose pages come from elsewhere.
    #[error("memory region {0:?} is not in memory: share a memfd, or a file on tmpfs or hugetlbfs")]
    NotMemory(RegionSpec),
    /// More than [`REGIONS_MAX`].
    #[error("more than {REGIONS_MAX} memory regions")]
    TooMany,
    /// Removing what is not there.
    #[error("no such memory region: {0:?}")]
    NoSuchRegion(RegionSpec),
    /// The kernel refused.
    #[error("cannot map guest memory")]
    Map(#[source] io::Error),
}

/// One mapped region.
#[derive(Debug)]
struct Region {
    spec: RegionSpec,
    /// Ends before the mapping does (fields are dropped in order).
    watched: Watched,
    /// The region's first byte; inside `mapping`.
    host: *mut u8,
    _mapping: Mapping,
}

// SAFETY: `host` is an address inside `mapping`, which is Send; see the module's invariant.
unsafe impl Send for Region {}
// SAFETY: as above; nothing here is mutable through a shared reference.
unsafe impl Sync for Region {}

impl Region {
    fn map(spec: RegionSpec, fd: BorrowedFd<'_>) -> Result<Self, MemError> {
        let ends = [
            spec.guest.checked_add(spec.size),
            spec.front_end.checked_add(spec.size),
            spec.offset.checked_add(spec.size),
        ];
        let [Some(_), Some(_), Some(file_end)] = ends else {
            return Err(MemError::BadRegion(spec));
        };
        if spec.size == 0 {
            return Err(MemError::BadRegion(spec));
        }
        if !is_memory(fd) {
            return Err(MemError::NotMemory(spec));
        }
        let (file_bytes, block) = file_size(fd).map_err(MemError::Map)?;
        if file_bytes < file_end {
            return Err(MemError::ShortFile { spec, file_bytes });
        }
        // Huge page files want offset and length in whole pages, which st_blksize tells.
        let block = block.clamp(4096, 1 << 30).next_power_of_two();
        let start = spec.offset & !(block - 1);
        let len = (file_end - start)
            .checked_next_multiple_of(block)
            .and_then(|n| usize::try_from(n).ok())
            .ok_or(MemError::BadRegion(spec))?;
        let skip = usize::try_from(spec.offset - start).map_err(|_e| MemError::BadRegion(spec))?;
        let mapping = Mapping::shared(fd, start, len).map_err(MemError::Map)?;
        let watched = sigbus::watch(mapping.as_ptr(), mapping.len()).map_err(MemError::Map)?;
        // SAFETY: `skip` is less than `len` (the region has at least one byte).
        let host = unsafe { mapping.as_ptr().add(skip) };
        Ok(Region {
            spec,
            watched,
            host,
            _mapping: mapping,
        })
    }
}

/// What translation needs of a region, packed for the cache.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    guest: u64,
    size: u64,
    host: *mut u8,
}

/// A bitmap of the pages that we wrote. The front-end shares it while it copies the guest's memory elsewhere, and copies
/// again what is marked.
#[derive(Clone, Debug)]
pub struct DirtyLog(Arc<Region>);

impl DirtyLog {
    /// Maps `size` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// See [`MemError`].
    pub fn map(size: u64, offset: u64, fd: BorrowedFd<'_>) -> Result<Self, MemError> {
        let spec = RegionSpec {
            guest: 0,
            size,
            front_end: 0,
            offset,
        };
        if size > LOG_BYTES_MAX {
            return Err(MemError::BadRegion(spec));
        }
        Region::map(spec, fd).map(|region| DirtyLog(Arc::new(region)))
    }

    /// Marks the pages of `len` bytes from guest-physical `addr` on. Pages that the front-end made no room for are none of
    /// its guest's.
    fn mark(&self, addr: u64, len: u64) {
        let Region { spec, host, .. } = &*self.0;
        let end = addr.saturating_add(len).div_ceil(LOG_PAGE_BYTES);
        for page in addr / LOG_PAGE_BYTES..end.min(spec.size * 8) {
            #[allow(clippy::cast_possible_truncation)] // below the mapping's length
            let at = host.wrapping_add((page / 8) as usize);
            // SAFETY: below `size`, hence inside the mapping. Others change it by atomic operations too.
            let byte = unsafe { AtomicU8::from_ptr(at) };
            // Release: who sees the mark and copies the page sees what was written.
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}

/// All regions of a guest. Immutable: a change makes a new one that shares the unchanged regions.
#[derive(Clone, Debug, Default)]
pub struct GuestMem {
    /// Sorted by guest-physical address.
    spans: Box<[Span]>,
    regions: Vec<Arc<Region>>,
    log: Option<DirtyLog>,
}

// SAFETY: the raw addresses in `spans` are those of `regions`, which are Send and Sync.
unsafe impl Send for GuestMem {}
// SAFETY: as above; nothing here is mutable through a shared reference.
unsafe impl Sync for GuestMem {}

impl GuestMem {
    /// Maps a whole table.
    ///
    /// # Errors
    /// See [`MemError`]; nothing stays mapped then.
    pub fn map<F: AsFd>(table: &[(RegionSpec, F)]) -> Result<Self, MemError> {
        let mut mem = GuestMem::default();
        for (spec, fd) in table {
            mem = mem.with(*spec, fd)?;
        }
        Ok(mem)
    }

    /// These regions and one more.
    ///
    /// # Errors
    /// See [`MemError`].
    pub fn with(&self, spec: RegionSpec, fd: impl AsFd) -> Result<Self, MemError> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(MemError::TooMany);
        }
        let others: u64 = self.regions.iter().map(|r| r.spec.size).sum();
        if others.saturating_add(spec.size) > GUEST_BYTES_MAX {
            return Err(MemError::TooMuch(spec));
        }
        let apart = |a: u64, b: u64, b_size: u64| {
            a.checked_add(spec.size).is_none_or(|end| end <= b) || a >= b + b_size
        };
        // `b + b_size` cannot overflow: `Region::map` checked it for every region that exists.
        let overlaps = self.regions.iter().any(|r| {
            !apart(spec.guest, r.spec.guest, r.spec.size)
                || !apart(spec.front_end, r.spec.front_end, r.spec.size)
        });
        if overlaps {
            return Err(MemError::Overlap(spec));
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(spec, fd.as_fd())?));
        Ok(Self::of(regions))
    }

    /// These regions without one.
    ///
    /// # Errors
    /// [`MemError::NoSuchRegion`].
    pub fn without(&self, spec: RegionSpec) -> Result<Self, MemError> {
        let at = self.position(spec).ok_or(MemError::NoSuchRegion(spec))?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self::of(regions))
    }

    /// Whether this region is one of these.
    #[must_use]
    pub fn has(&self, spec: RegionSpec) -> bool {
        self.position(spec).is_some()
    }

    fn position(&self, spec: RegionSpec) -> Option<usize> {
        self.regions.iter().position(|r| {
            r.spec.guest == spec.guest
                && r.spec.size == spec.size
                && r.spec.front_end == spec.front_end
        })
    }

    fn of(mut regions: Vec<Arc<Region>>) -> Self {
        regions.sort_by_key(|r| r.spec.guest);
        let spans = regions
            .iter()
            .map(|r| Span {
                guest: r.spec.guest,
                size: r.spec.size,
                host: r.host,
            })
            .collect();
        GuestMem {
            spans,
            regions,
            log: None,
        }
    }

    /// The same memory with this dirty log.
    #[must_use]
    pub fn logged(self, log: Option<DirtyLog>) -> Self {
        GuestMem { log, ..self }
    }

    /// Marks the pages of `len` bytes at `at`, which lie in one region and were written, in the dirty log.
    #[cold]
    pub fn wrote(&self, at: *const u8, len: usize) {
        let Some(log) = &self.log else {
            return;
        };
        for span in &self.spans {
            let offset = (at as u64).wrapping_sub(span.host as u64);
            if offset < span.size {
                log.mark(span.guest + offset, len as u64);
                return;
            }
        }
    }

    /// Where guest-physical `addr` is, and how many bytes follow it in the same region. `None`
    /// outside all regions. `hint` remembers the region for the next call.
    #[inline]
    #[must_use]
    pub fn span(&self, addr: u64, hint: &mut usize) -> Option<(*mut u8, u64)> {
        self.around(addr, hint).find(addr)
    }

    /// The region that `addr` lies in, which `hint` remembers then; outside all, one that does not hold it.
    #[inline]
    #[must_use]
    pub fn around(&self, addr: u64, hint: &mut usize) -> Span {
        let near = self.near(*hint);
        if near.has(addr) {
            return near;
        }
        self.search(addr, hint);
        self.near(*hint)
    }

    /// The region that `hint` remembers; an empty one when there are none.
    #[inline]
    #[must_use]
    pub fn near(&self, hint: usize) -> Span {
        const EMPTY: Span = Span {
            guest: 0,
            size: 0,
            host: std::ptr::null_mut(),
        };
        self.spans.get(hint).copied().unwrap_or(EMPTY)
    }

    fn search(&self, addr: u64, hint: &mut usize) {
        let behind = self.spans.partition_point(|s| s.guest <= addr);
        if let Some(at) = behind.checked_sub(1)
            && self.near(at).has(addr)
        {
            *hint = at;
        }
    }

    /// Where the front-end's own address `addr` is, if `len` bytes follow it in one region: for
    /// ring addresses, which the protocol gives in this form.
    #[must_use]
    pub fn from_front_end(&self, addr: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|r| {
            let span = Span {
                guest: r.spec.front_end,
                size: r.spec.size,
                host: r.host,
            };
            let (ptr, room) = span.find(addr)?;
            (room >= len).then_some(ptr)
        })
    }

    /// Whether a peer truncated a region's file under us, or the log's.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let log = self.log.as_ref().map(|log| &log.0);
        let mut all = self.regions.iter().chain(log);
        all.any(|r| r.watched.is_broken())
    }

    /// Whether there is no memory at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

impl Span {
    /// Whether guest-physical `addr` lies in it.
    #[inline]
    #[must_use]
    pub fn has(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.guest) < self.size
    }

    /// Where guest-physical `addr` is, and how many bytes follow it.
    #[inline]
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<(*mut u8, u64)> {
        let offset = addr.wrapping_sub(self.guest);
        if offset >= self.size {
            return None;
        }
        #[allow(clippy::cast_possible_truncation)] // usize has 64 bits wherever 2^42 bytes map
        let offset_bytes = offset as usize;
        // SAFETY: `offset` is less than the region's size, which is mapped from `host` on.
        let ptr = unsafe { self.host.add(offset_bytes) };
        Some((ptr, self.size - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd::memfd;
    use std::os::fd::AsRawFd;

    fn spec(guest: u64, size: u64, offset: u64) -> RegionSpec {
        RegionSpec {
            guest,
            size,
            front_end: guest + 0x7000_0000_0000,
            offset,
        }
    }

    #[test]
    fn translates_within_bounds() {
        let fd = memfd(c"t", 0x4000, false).unwrap();
        let fd2 = fd.try_clone().unwrap();
        let mem = GuestMem::map(&[
            (spec(0x10000, 0x2000, 0x2000), fd),
            (spec(0x1000, 0x1800, 0x100), fd2),
        ])
        .unwrap();
        let mut hint = 0;
        assert!(mem.span(0xfff, &mut hint).is_none());
        let (a, n) = mem.span(0x1000, &mut hint).unwrap();
        assert_eq!(n, 0x1800);
        assert!(mem.span(0x2800, &mut hint).is_none());
        let (b, n) = mem.span(0x11fff, &mut hint).unwrap();
        assert_eq!((n, hint), (1, 1));
        assert!(mem.span(u64::MAX, &mut hint).is_none());
        // SAFETY: both addresses are inside mapped regions.
        unsafe { b.write(7) };
        let again = mem.from_front_end(0x7000_0001_1fff, 1).unwrap();
        // SAFETY: inside a mapped region, as `b`.
        let seen = unsafe { again.read() };
        assert_eq!(seen, 7);
        assert!(mem.from_front_end(0x7000_0001_1fff, 2).is_none());
        assert_eq!(mem.from_front_end(0x7000_0000_1000, 0x1800).unwrap(), a);
    }

    #[test]
    fn sparse_memory_has_an_end() {
        let tib = 1usize << 40;
        let fd = memfd(c"t", tib, false).unwrap();
        let mut mem = GuestMem::default();
        for i in 0..4 {
            mem = mem.with(spec(i << 41, 1 << 40, 0), &fd).unwrap();
        }
        let more = mem.with(spec(4 << 41, 0x1000, 0), &fd);
        assert!(matches!(more, Err(MemError::TooMuch(_))));
    }

    #[test]
    fn memory_is_in_memory() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let mapped = GuestMem::default().with(spec(0, 0x1000, 0), &file);
        assert!(matches!(mapped, Err(MemError::NotMemory(_))));
    }

    #[test]
    fn refuses_what_cannot_be() {
        let fd = memfd(c"t", 0x4000, false).unwrap();
        let one = |s| GuestMem::default().with(s, &fd);
        assert!(matches!(
            one(spec(0, 0x4001, 0)),
            Err(MemError::ShortFile { .. })
        ));
        assert!(matches!(
            one(spec(0, 0x1000, 0x3001)),
            Err(MemError::ShortFile { .. })
        ));
        assert!(matches!(one(spec(0, 0, 0)), Err(MemError::BadRegion(_))));
        assert!(matches!(
            one(spec(0, u64::MAX, 0)),
            Err(MemError::TooMuch(_))
        ));
        assert!(matches!(
            one(spec(0, 0x1000, u64::MAX)),
            Err(MemError::BadRegion(_))
        ));
        let mem = one(spec(0x1000, 0x2000, 0)).unwrap();
        for guest in [0x0, 0x1000, 0x2fff] {
            let e = mem.with(spec(guest, 0x1001, 0), &fd);
            assert!(matches!(e, Err(MemError::Overlap(_))), "{guest:#x}");
        }
        let both = mem.with(spec(0x3000, 0x1000, 0), &fd).unwrap();
        assert!(mem.without(spec(0x3000, 0x1000, 0)).is_err());
        assert!(both.has(spec(0x3000, 0x1000, 0)) && !mem.has(spec(0x3000, 0x1000, 0)));
        assert!(!both.has(spec(0x3000, 0x800, 0)));
        let back = both.without(spec(0x1000, 0x2000, 0)).unwrap();
        assert!(back.span(0x1000, &mut 0).is_none());
        assert!(back.span(0x3000, &mut 5).is_some());
    }

    #[test]
    fn a_truncated_file_breaks_the_memory_not_the_process() {
        let fd = memfd(c"t", 0x4000, false).unwrap();
        let raw = fd.try_clone().unwrap();
        let mem = GuestMem::map(&[(spec(0, 0x4000, 0), fd)]).unwrap();
        let faults = sigbus::faults();
        let (p, _) = mem.span(0x3000, &mut 0).unwrap();
        // SAFETY: inside the mapped region.
        unsafe { p.write(1) };
        assert!(!mem.is_broken());
        // SAFETY: no pointers.
        let r = unsafe { libc::ftruncate(raw.as_raw_fd(), 0) };
        assert_eq!(r, 0);
        // SAFETY: the region stays mapped; the handler gives it zero pages.
        let seen = unsafe { p.read_volatile() };
        assert_eq!(seen, 0);
        assert!(mem.is_broken());
        assert_ne!(sigbus::faults(), faults);
    }
}
