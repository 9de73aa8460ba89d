#![allow(unsafe_code)]
//! The gate in front of a queue: whoever is inside owns the queue.
//!
//! A worker enters a receive queue's gate for the whole iteration in which it uses the queue's
//! frames, so the gate *is* the lifetime rule of guest memory: the control thread unmaps memory,
//! stops a ring or answers GET_VRING_BASE only from inside the gates of all the port's queues.
//! A worker never waits for the control thread (it skips the queue or counts a drop), and waits
//! for another worker only inside one burst's copy.
//!
//! Invariant owned here: the value is reachable only through a guard, and at most one guard
//! exists at a time.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU8, Ordering};

const FREE: u8 = 0;
const WORKER: u8 = 1;
const CONTROL: u8 = 2;

/// See the module documentation.
#[derive(Debug)]
pub struct Gate<T> {
    state: AtomicU8,
    value: UnsafeCell<T>,
}

// SAFETY: the state word admits one guard at a time, so `&Gate` gives exclusive access to `T`
// just as a mutex does; `T: Send` because the value is used from whichever thread enters.
unsafe impl<T: Send> Sync for Gate<T> {}

/// Exclusive access to the queue behind a [`Gate`].
#[derive(Debug)]
pub struct GateGuard<'a, T> {
    gate: &'a Gate<T>,
}

impl<T> Gate<T> {
    /// A free gate.
    pub const fn new(value: T) -> Self {
        Gate {
            state: AtomicU8::new(FREE),
            value: UnsafeCell::new(value),
        }
    }

    /// For a worker: enters when the gate is free; waits while another *worker* is inside (it
    /// leaves within one burst); gives up at once when the control thread is.
    #[inline]
    pub fn enter(&self) -> Option<GateGuard<'_, T>> {
        loop {
            match self
                .state
                .compare_exchange(FREE, WORKER, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Some(GateGuard { gate: self }),
                Err(CONTROL) => return None,
                Err(_) => std::hint::spin_loop(),
            }
        }
    }

    /// For the control thread: waits for the worker inside to finish its burst.
    pub fn lock(&self) -> GateGuard<'_, T> {
        let mut spins = 0u32;
        while self
            .state
            .compare_exchange(FREE, CONTROL, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spins += 1;
            if spins > 64 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        GateGuard { gate: self }
    }
}

impl<T> Deref for GateGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one (the state word is not FREE while it lives).
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> DerefMut for GateGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` excludes a second borrow through this guard.
        unsafe { &mut *self.gate.value.get() }
    }
}

impl<T> Drop for GateGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.gate.state.store(FREE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[test]
    fn a_worker_never_waits_for_control() {
        let g = Gate::new(1);
        let held = g.lock();
        assert!(g.enter().is_none());
        drop(held);
        *g.enter().unwrap() += 1;
        assert_eq!(*g.lock(), 2);
    }

    #[test]
    fn excludes() {
        let g = Gate::new(0u32);
        std::thread::scope(|s| {
            for control in [true, false, false] {
                let g = &g;
                s.spawn(move || {
                    for _ in 0..1000 {
                        if control {
                            *g.lock() += 1;
                        } else {
                            loop {
                                if let Some(mut v) = g.enter() {
                                    *v += 1;
                                    break;
                                }
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(*g.lock(), 3000);
    }
}
