#![allow(unsafe_code)]
//! The table's memory: zeroed regions taken at start and given back at the end, and prefetching.
//!
//! **The invariant this file owns**: a [`Region`] is `len` values of `T` at a valid, aligned address that
//! nobody else has, zeroed (a valid `T`, by [`Zeroed`]) before the first reference to it, alive until the
//! region is dropped, and reached only through shared references. Only `tags` has
//! `unsafe` in it besides.

use crate::bucket::Bucket;
use crate::entry::{Entry, Far};
use std::ops::Index;

/// Values for which zeroed memory is a valid value, and that need no drop.
///
/// # Safety
/// All-zero bytes must be a valid value of the type.
pub(crate) unsafe trait Zeroed: Sized {
    /// A zero value, for the checker that can't make one from bytes.
    #[cfg(loom)]
    fn zeroed() -> Self;
}

// SAFETY: atomic integers only (see the struct), for which zero is a value; no drop glue.
unsafe impl Zeroed for Bucket {
    #[cfg(loom)]
    fn zeroed() -> Bucket {
        Bucket::zeroed()
    }
}

// SAFETY: as for `Bucket`.
unsafe impl Zeroed for Entry {
    #[cfg(loom)]
    fn zeroed() -> Entry {
        Entry::zeroed()
    }
}

// SAFETY: as for `Bucket`.
unsafe impl Zeroed for Far {
    #[cfg(loom)]
    fn zeroed() -> Far {
        Far::zeroed()
    }
}

/// Zeroed values at a fixed place. Indexing refers to the one value only, not to all as a slice does: that is less
/// to argue about, and miri's cost of a reference grows with its size.
#[derive(Debug)]
pub(crate) struct Region<T> {
    memory: imp::Memory<T>,
}

impl<T: Zeroed> Region<T> {
    /// Room for `len` values (at least one). With `huge_pages`, all of it is backed by memory now, by the
    /// huge pages the system reserved if it has enough of them; without, pages come on first touch.
    /// Transparent huge pages are asked for in either case.
    pub(crate) fn new(len: usize, huge_pages: bool) -> std::io::Result<Region<T>> {
        const { assert!(!std::mem::needs_drop::<T>() || cfg!(loom)) };
        Ok(Region {
            memory: imp::Memory::new(len, huge_pages)?,
        })
    }

    /// How many values there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Bytes taken from the system.
    pub(crate) fn size_bytes(&self) -> usize {
        self.memory.size_bytes()
    }

    /// Which of the values `value` is; beyond the last for one of another region.
    #[inline]
    pub(crate) fn position(&self, value: &T) -> usize {
        let address = |value: &T| std::ptr::from_ref(value).addr();
        address(value).wrapping_sub(address(self.memory.at(0))) / size_of::<T>()
    }
}

impl<T> Index<usize> for Region<T> {
    type Output = T;

    #[inline]
    fn index(&self, i: usize) -> &T {
        self.memory.at(i)
    }
}

#[cfg(not(any(miri, loom)))]
mod imp {
    use std::io;
    use std::ptr::{self, NonNull};

    /// The size of a huge page on x86-64, and on arm64 with 4 KiB pages.
    const HUGE_PAGE_BYTES: usize = 2 << 20;

    #[derive(Debug)]
    pub(super) struct Memory<T> {
        start: NonNull<T>,
        len: usize,
        size_bytes: usize,
    }

    // SAFETY: the memory is the region's own, so moving the region to another thread moves its values.
    unsafe impl<T: Send> Send for Memory<T> {}
    // SAFETY: a shared region gives shared references to its values only.
    unsafe impl<T: Sync> Sync for Memory<T> {}

    impl<T> Memory<T> {
        pub(super) fn new(len: usize, huge_pages: bool) -> io::Result<Memory<T>> {
            let bytes = len
                .checked_mul(size_of::<T>())
                .and_then(|b| b.checked_next_multiple_of(HUGE_PAGE_BYTES))
                .filter(|b| *b > 0)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
            let reserved = if huge_pages {
                map(bytes, libc::MAP_HUGETLB | libc::MAP_POPULATE)
            } else {
                None
            };
            let start = match reserved {
                Some(start) => start,
                None => map_aligned(bytes, huge_pages)?,
            };
            Ok(Memory {
                start: start.cast(),
                len,
                size_bytes: bytes,
            })
        }

        pub(super) fn size_bytes(&self) -> usize {
            self.size_bytes
        }

        #[inline]
        pub(super) fn len(&self) -> usize {
            self.len
        }

        #[inline]
        pub(super) fn at(&self, i: usize) -> &T {
            assert!(i < self.len, "beyond the region");
            // SAFETY: `i` is below `len`, so the value is inside what `new` took.
            let value = unsafe { self.start.add(i) };
            // SAFETY: `new` got aligned zeroed memory, valid by `Zeroed`; `drop` alone gives it back, and
            // nobody takes a mutable reference.
            unsafe { value.as_ref() }
        }
    }

    impl<T> Drop for Memory<T> {
        fn drop(&mut self) {
            unmap(self.start.cast(), self.size_bytes);
        }
    }

    /// Private zeroed memory at a multiple of a page.
    fn map(bytes: usize, flags: libc::c_int) -> Option<NonNull<u8>> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            None
        } else {
            NonNull::new(start.cast())
        }
    }

    fn unmap(start: NonNull<u8>, bytes: usize) {
        if bytes > 0 {
            // SAFETY: callers pass a part of a mapping of their own that nothing refers to.
            unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
        }
    }

    /// A mapping at a multiple of a huge page, so that the kernel can back all of it with huge pages.
    fn map_aligned(bytes: usize, populate: bool) -> io::Result<NonNull<u8>> {
        let wider = bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let all = map(wider, 0).ok_or_else(io::Error::last_os_error)?;
        let before = all.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let at = |offset: usize| {
            // SAFETY: every offset below is at most `wider`, the length of the mapping.
            unsafe { all.add(offset) }
        };
        let start = at(before);
        unmap(all, before);
        unmap(at(before + bytes), HUGE_PAGE_BYTES - before);
        // SAFETY: the mapping is ours; advice changes no contents.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        if populate {
            // SAFETY: as above.
            let r =
                unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
            let error = io::Error::last_os_error();
            // A kernel before 5.14 does not know it: pages then come on first touch.
            if r < 0 && error.raw_os_error() != Some(libc::EINVAL) {
                unmap(start, bytes);
                return Err(error);
            }
        }
        Ok(start)
    }
}

/// Miri has no huge pages; zeroed memory from the allocator lets it check the rest.
#[cfg(all(miri, not(loom)))]
mod imp {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;
    use std::ptr::NonNull;

    #[derive(Debug)]
    pub(super) struct Memory<T> {
        start: NonNull<T>,
        len: usize,
    }

    // SAFETY: the memory is the region's own, so moving the region to another thread moves its values.
    unsafe impl<T: Send> Send for Memory<T> {}
    // SAFETY: a shared region gives shared references to its values only.
    unsafe impl<T: Sync> Sync for Memory<T> {}

    fn layout<T>(len: usize) -> io::Result<Layout> {
        Layout::array::<T>(len)
            .ok()
            .filter(|l| l.size() > 0)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    impl<T> Memory<T> {
        pub(super) fn new(len: usize, _huge_pages: bool) -> io::Result<Memory<T>> {
            let layout = layout::<T>(len)?;
            // SAFETY: the layout's size is not zero.
            let start = unsafe { alloc_zeroed(layout) };
            let start = NonNull::new(start.cast())
                .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
            Ok(Memory { start, len })
        }

        pub(super) fn size_bytes(&self) -> usize {
            self.len * size_of::<T>()
        }

        #[inline]
        pub(super) fn len(&self) -> usize {
            self.len
        }

        #[inline]
        pub(super) fn at(&self, i: usize) -> &T {
            assert!(i < self.len, "beyond the region");
            // SAFETY: `i` is below `len`, so the value is inside what `new` took.
            let value = unsafe { self.start.add(i) };
            // SAFETY: `new` got aligned zeroed memory, valid by `Zeroed`; `drop` alone gives it back, and
            // nobody takes a mutable reference.
            unsafe { value.as_ref() }
        }
    }

    impl<T> Drop for Memory<T> {
        fn drop(&mut self) {
            if let Ok(layout) = layout::<T>(self.len) {
                // SAFETY: allocated in `new` with this layout.
                unsafe { dealloc(self.start.as_ptr().cast(), layout) };
            }
        }
    }
}

/// Loom's atomics are not plain memory: build them one by one.
#[cfg(loom)]
mod imp {
    use super::Zeroed;
    use std::io;

    #[derive(Debug)]
    pub(super) struct Memory<T>(Box<[T]>);

    impl<T> Memory<T> {
        pub(super) fn new(len: usize, _huge_pages: bool) -> io::Result<Memory<T>>
        where
            T: Zeroed,
        {
            Ok(Memory((0..len).map(|_| T::zeroed()).collect()))
        }

        pub(super) fn size_bytes(&self) -> usize {
            std::mem::size_of_val(&*self.0)
        }

        pub(super) fn len(&self) -> usize {
            self.0.len()
        }

        pub(super) fn at(&self, i: usize) -> &T {
            &self.0[i]
        }
    }
}

/// Asks for the cache line at `at`; costs one instruction and never faults.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing the program can see; `at` is valid anyway.
        unsafe { _mm_prefetch(std::ptr::from_ref(at).cast::<i8>(), _MM_HINT_T0) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, loom)))))]
    let _ = at;
}
