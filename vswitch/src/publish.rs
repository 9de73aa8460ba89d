//! One slot that holds the current snapshot: the control thread publishes, workers pick it up.
//!
//! A reader looks at one relaxed generation number per iteration and takes the slot's mutex only
//! when that number changed, and then only by `try_lock`: a control thread that is descheduled
//! inside the (two-instruction) critical section never stops a worker, which simply keeps its
//! snapshot for one more iteration.
//!
//! *Thread-safety.* Any number of readers, one publisher at a time. The publisher keeps the old
//! snapshot until every online reader has acknowledged a newer generation, so a snapshot's
//! destructor always runs on the publisher's thread, and after all that readers did with it. loom
//! checks this for one and two readers (`--cfg loom`).

use std::sync::{Arc, PoisonError};
use sync::{AtomicU64, Mutex, MutexGuard, Ordering};

#[cfg(not(loom))]
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

#[cfg(loom)]
mod sync {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(super) use loom::sync::{Mutex, MutexGuard};
}

/// The acknowledgement of a reader that is gone: it holds no snapshot.
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
    generation: u64,
    held: Arc<T>,
    /// Dropped behind `held`, which is the publisher's to free from then on.
    ack: Ack,
}

/// The generation a reader has let go of everything before; [`OFFLINE`] once it is dropped.
#[derive(Debug)]
struct Ack(Arc<AtomicU64>);

impl Ack {
    /// Release: what was done with older snapshots was done before.
    fn set(&self, generation: u64) {
        self.0.store(generation, Ordering::Release);
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        self.set(OFFLINE);
    }
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
            generation,
            held: Arc::clone(&current),
            ack: Ack(ack),
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
        let mut oldest = OFFLINE;
        lock(&self.readers).retain(|r| {
            let ack = r.load(Ordering::Acquire);
            oldest = oldest.min(ack);
            ack != OFFLINE
        });
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
        self.ack.set(self.generation);
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
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::OnceLock;

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

    /// What was acknowledged when the snapshot ended.
    struct Witness {
        ack: OnceLock<Arc<AtomicU64>>,
        at_end: Arc<AtomicU64>,
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            let ack = self.ack.get().map_or(0, |a| a.load(Ordering::Relaxed));
            self.at_end.store(ack, Ordering::Relaxed);
        }
    }

    /// Readers are made the last holders here, so that the moment they let go can be seen.
    #[test]
    fn a_reader_lets_go_before_it_says_so() {
        let at_end = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let [first, second] = [0, 1].map(|i: usize| Witness {
            ack: OnceLock::new(),
            at_end: Arc::clone(&at_end[i]),
        });
        let p = Publisher::new(first);
        let mut r = p.reader();
        let _ = r.get().ack.set(Arc::clone(&r.ack.0));
        p.publish(second);
        lock(&p.retired).clear();
        assert!(r.refresh());
        assert_eq!(at_end[0].load(Ordering::Relaxed), 1);
        let _ = r.get().ack.set(Arc::clone(&r.ack.0));
        drop(p);
        let ack = Arc::clone(&r.ack.0);
        drop(r);
        assert_eq!(at_end[1].load(Ordering::Relaxed), 2);
        assert_eq!(ack.load(Ordering::Relaxed), OFFLINE);
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

#[cfg(all(test, loom))]
mod loom_tests {
    use super::{Arc, Publisher, Reader};
    use loom::cell::UnsafeCell;
    use loom::thread::{self, ThreadId};

    /// A snapshot that says when a use of it and its end are not in order. Behind std's `Arc`, whose
    /// own order loom does not see: it is the acknowledgement's that is checked.
    struct Probe {
        generation: u64,
        used: UnsafeCell<()>,
        publisher: ThreadId,
    }

    impl Probe {
        /// Of the calling thread.
        fn new(generation: u64) -> Probe {
            Probe {
                generation,
                used: UnsafeCell::new(()),
                publisher: thread::current().id(),
            }
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                assert_eq!(thread::current().id(), self.publisher, "freed by a reader");
                self.used.with_mut(|_| ());
            }
        }
    }

    fn work(r: &Reader<Probe>) {
        r.get().used.with(|_| ());
        assert_eq!(r.get().generation, r.generation());
    }

    #[test]
    fn a_snapshot_is_freed_by_its_publisher_after_its_last_use() {
        loom::model(|| {
            let p = Publisher::new(Probe::new(1));
            let readers = [p.reader(), p.reader()].map(|mut r| {
                thread::spawn(move || {
                    work(&r);
                    r.refresh();
                    work(&r);
                    r
                })
            });
            let g = p.publish(Probe::new(2));
            let settled = p.settled(g);
            let readers = readers.map(|r| r.join().unwrap());
            assert!(!settled || readers.iter().all(|r| r.generation() == g));
            drop(readers);
            assert!(p.settled(g) && p.retired.lock().unwrap().is_empty());
        });
    }

    #[test]
    fn a_reader_that_goes_leaves_its_snapshot_to_the_publisher() {
        loom::model(|| {
            let p = Publisher::new(Probe::new(1));
            let mut r = p.reader();
            let reader = thread::spawn(move || {
                work(&r);
                r.refresh();
                work(&r);
            });
            for generation in 2..=3 {
                let g = p.publish(Probe::new(generation));
                p.settled(g);
            }
            reader.join().unwrap();
            assert!(p.settled(3) && p.retired.lock().unwrap().is_empty());
        });
    }

    #[test]
    fn a_reader_that_comes_meanwhile_is_waited_for() {
        loom::model(|| {
            let p = Arc::new(Publisher::new(Probe::new(1)));
            let q = Arc::clone(&p);
            let newcomer = thread::spawn(move || {
                let r = q.reader();
                work(&r);
                r
            });
            let g = p.publish(Probe::new(2));
            let settled = p.settled(g);
            let r = newcomer.join().unwrap();
            assert!(!settled || r.generation() == g);
        });
    }
}
