//! The atomics the crate uses, in one place: `std`'s, or loom's under `--cfg loom`.
//!
//! No other file names `std::sync::atomic`, so what loom checks is what runs. The sizes that decide
//! how many steps a model has are here too, for the same reason.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// Slots of a bucket.
#[cfg(not(loom))]
pub(crate) const SLOTS: usize = 14;
/// Two under loom: each load is a step the model explores.
#[cfg(loom)]
pub(crate) const SLOTS: usize = 2;

/// Lists of free entries in a shard; as many insertions long is the notice that memory gets of the entry it must bring.
#[cfg(not(loom))]
pub(crate) const LANES: usize = 8;
/// The steps of one list are those of all.
#[cfg(loom)]
pub(crate) const LANES: usize = 1;

/// Participant records allocated at a time; more are chained on when a program has more threads.
#[cfg(not(loom))]
pub(crate) const RECORDS_PER_CHUNK: usize = 16;
/// Enough for a model's two threads, one handed-over limbo list, and the thread that checks.
#[cfg(loom)]
pub(crate) const RECORDS_PER_CHUNK: usize = 4;

/// Keeps what one thread writes out of the cache lines other threads read. 128 because x86 fetches
/// lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);
