//! One slot that holds the current snapshot: the control thread publishes, workers pick it up.
//!
//! A reader looks at one relaxed generation number per iteration and takes the slot's mutex only
//! when that number changed, and then only by `try_lock`: a control thread that is descheduled
//! inside the (two-instruction) critical section never stops a worker, which simply keeps its
//! snapshot for one more iteration.
//!
//! *Thread-safety.* Any number of readers, one publisher at a time. The publisher keeps the old
//! snapshot until every online reader has acknowledged a newer generation, so a snapshot's
//! destructor always runs on the publisher's thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The generation of an offline reader's acknowledgement: it holds no snapshot.
const OFFLINE: u64 = u64::MAX;

#[derive(Debug)]
struct Slot<T> {
    generation: AtomicU64,
    current: Mutex<Arc<T>>,
}

/// The publishing end.
#[derive(Debug)]
pub struct Publisher<T> {
    slot: Arc<Slot<T>>,
    readers: Mutex<Vec<Arc<AtomicU64>>>,
    /// Superseded snapshots that some reader may still use, with the generation that replaced them.
    retired: Mutex<Vec<(u64, Arc<T>)>>,
}

/// A worker's end: at most one snapshot at a time.
#[derive(Debug)]
pub struct Reader<T> {
    slot: Arc<Slot<T>>,
    ack: Arc<AtomicU64>,
    generation: u64,
    held: Arc<T>,
}

impl<T> Publisher<T> {
    /// A slot whose first snapshot has generation 1.
    pub fn new(first: T) -> Self {
        let slot = Arc::new(Slot {
            generation: AtomicU64::new(1),
            current: Mutex::new(Arc::new(first)),
        });
        Publisher {
            slot,
            readers: Mutex::new(Vec::new()),
            retired: Mutex::new(Vec::new()),
        }
    }

    /// Adds a reader, which starts with the current snapshot.
    pub fn reader(&self) -> Reader<T> {
        let current = lock(&self.slot.current);
        let generation = self.slot.generation.load(Ordering::Acquire);
        let ack = Arc::new(AtomicU64::new(generation));
        lock(&self.readers).push(Arc::clone(&ack));
        Reader {
            slot: Arc::clone(&self.slot),
            ack,
            generation,
            held: Arc::clone(&current),
        }
    }

    /// The current snapshot, for the control thread's own questions.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&lock(&self.slot.current))
    }

    /// The current generation.
    pub fn generation(&self) -> u64 {
        self.slot.generation.load(Ordering::Acquire)
    }

    /// Replaces the snapshot and returns the new generation. One store makes it visible.
    pub fn publish(&self, next: T) -> u64 {
        let mut current = lock(&self.slot.current);
        let old = std::mem::replace(&mut *current, Arc::new(next));
        let generation = self.slot.generation.load(Ordering::Relaxed) + 1;
        self.slot.generation.store(generation, Ordering::Release);
        drop(current);
        lock(&self.retired).push((generation, old));
        generation
    }

    /// Whether every online reader has `generation` or a newer one. Frees, on this thread, the
    /// snapshots that nobody can hold any more.
    pub fn settled(&self, generation: u64) -> bool {
        let oldest = {
            let mut readers = lock(&self.readers);
            readers.retain(|r| Arc::strong_count(r) > 1);
            readers
                .iter()
                .map(|r| r.load(Ordering::Acquire))
                .min()
                .unwrap_or(OFFLINE)
        };
        lock(&self.retired).retain(|(replaced_by, _)| *replaced_by > oldest);
        oldest >= generation
    }
}

impl<T> Reader<T> {
    /// Takes the newest snapshot if there is a newer one; says whether it changed. The previous
    /// one is acknowledged as no longer used.
    pub fn refresh(&mut self) -> bool {
        let generation = self.slot.generation.load(Ordering::Relaxed);
        if generation == self.generation {
            return false;
        }
        let Ok(current) = self.slot.current.try_lock() else {
            return false;
        };
        // Read again under the lock: the pair (generation, snapshot) must match.
        self.generation = self.slot.generation.load(Ordering::Acquire);
        self.held = Arc::clone(&current);
        drop(current);
        self.ack.store(self.generation, Ordering::Release);
        true
    }

    /// The snapshot this reader works under.
    pub fn get(&self) -> &Arc<T> {
        &self.held
    }

    /// The generation of [`Reader::get`].
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// A poisoned lock only means that a control thread panicked between two plain stores; the data
/// is a pointer and stays valid.
fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_snapshot_lives_until_acknowledged() {
        let p = Publisher::new(1u32);
        let mut r = p.reader();
        let weak = Arc::downgrade(r.get());
        let g = p.publish(2);
        assert!(!p.settled(g));
        assert_eq!(**r.get(), 1);
        assert!(r.refresh());
        assert!(!r.refresh());
        assert!(
            weak.upgrade().is_some(),
            "freed by the publisher, not the reader"
        );
        assert!(p.settled(g));
        assert!(weak.upgrade().is_none());
        assert_eq!(**r.get(), 2);
    }

    #[test]
    fn a_gone_reader_holds_nothing_back() {
        let p = Publisher::new(1u32);
        let r = p.reader();
        let g = p.publish(2);
        drop(r);
        assert!(p.settled(g));
    }
}
