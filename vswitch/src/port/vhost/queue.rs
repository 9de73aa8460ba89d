//! What the receive and the transmit queue of a pair have in common: the ring, if one runs, the
//! descriptors for notifications, and whether the ring is broken.
//!
//! *Thread-safety.* Used only inside the queue's gate. The control thread replaces ring, memory
//! and descriptors there, so memory is also unmapped on the control thread; descriptors are closed by
//! the port's closer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::guest_mem::GuestMem;
use super::vring::{Ring, RingError, Vring, VringConfig, with_ring};
use crate::sys::aio::Signaller;
use crate::sys::closer::PeerFd;
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::eventfd::{self, EventFd};
use crate::sys::sigbus;

/// One vring's end in the switch.
#[derive(Debug)]
pub(super) struct Queue {
    ring: Option<Vring>,
    config: VringConfig,
    enabled: bool,
    broken: Option<RingError>,
    /// Whether frames may pass, for who only asks: behind the gate he would keep a worker out.
    is_live: Arc<AtomicBool>,
    /// `sigbus::faults()` when the memory was last known whole.
    faults: u32,
    kick: Option<PeerFd>,
    call: Option<PeerFd>,
    err: Option<PeerFd>,
    signaller: Arc<Signaller>,
    /// Holds `kick` and `nudge`, edge-triggered: becomes readable once per kick, and nobody ever
    /// reads the peer's descriptor, which could be made to block us. What waits on it needs to
    /// know only this one descriptor, which never changes.
    wake: Epoll,
    /// From the control thread: look at the ring again.
    nudge: EventFd,
}

impl Queue {
    pub(super) fn new(signaller: Arc<Signaller>) -> io::Result<Self> {
        let wake = Epoll::new()?;
        let nudge = EventFd::new()?;
        wake.add(nudge.fd(), 0, Interest::READ.edge())?;
        Ok(Queue {
            ring: None,
            config: VringConfig::default(),
            enabled: false,
            broken: None,
            is_live: Arc::default(),
            faults: 0,
            kick: None,
            call: None,
            err: None,
            signaller,
            wake,
            nudge,
        })
    }

    /// The ring, when frames may pass.
    #[inline]
    pub(super) fn live(&mut self) -> Option<&mut Vring> {
        if !self.enabled || self.broken.is_some() {
            return None;
        }
        if self.faults != sigbus::faults() && !self.still_whole() {
            return None;
        }
        self.ring.as_mut()
    }

    /// The ring, also when it is broken: chains taken before that go back.
    #[inline]
    pub(super) fn ring_mut(&mut self) -> Option<&mut Vring> {
        self.ring.as_mut()
    }

    #[cold]
    fn still_whole(&mut self) -> bool {
        self.faults = sigbus::faults();
        let truncated = match &self.ring {
            Some(vring) => with_ring!(vring, r => r.mem().is_broken()),
            None => false,
        };
        if truncated {
            self.set_broken(RingError::MemoryTruncated);
        }
        !truncated
    }

    /// Stops using the ring until the front-end sets it up again.
    #[cold]
    pub(super) fn set_broken(&mut self, error: RingError) {
        self.broken = Some(error);
        self.is_live.store(false, Ordering::Relaxed);
        if let Some(err) = &self.err {
            self.signaller.signal(err.as_fd());
        }
    }

    pub(super) fn broken(&self) -> Option<RingError> {
        self.broken
    }

    /// See [`crate::port::RxQueue::notify`].
    #[inline]
    pub(super) fn notify(&mut self) {
        // Also when the ring was found broken meanwhile: what was published is good.
        if let Some(vring) = &mut self.ring
            && with_ring!(vring, r => r.wants_call())
        {
            self.signal_call();
        }
    }

    #[inline]
    fn signal_call(&self) {
        if let Some(call) = &self.call {
            self.signaller.signal(call.as_fd());
        }
    }

    /// Whether frames may pass: what is read there is true, or was a moment ago.
    pub(super) fn is_live(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_live)
    }

    /// Changes it as the front-end says.
    pub(super) fn change<T>(&mut self, f: impl FnOnce(&mut Queue) -> T) -> T {
        let done = f(self);
        let is_live = self.enabled && self.ring.is_some() && self.broken.is_none();
        self.is_live.store(is_live, Ordering::Relaxed);
        done
    }

    /// Validates and starts the ring where the front-end says, a packed one where it says itself:
    /// a front-end whose back-end died does not know. When the ring does not say it either, it counts
    /// as broken, and the front-end is not refused: it would only try the same again.
    pub(super) fn start(
        &mut self,
        config: &VringConfig,
        mem: &Arc<GuestMem>,
    ) -> Result<(), RingError> {
        self.start_at_base(config, mem)?;
        if let Some(Vring::Packed(ring)) = &mut self.ring
            && let Err(e) = ring.resume()
        {
            self.set_broken(e);
        }
        self.wake_both();
        Ok(())
    }

    fn start_at_base(
        &mut self,
        config: &VringConfig,
        mem: &Arc<GuestMem>,
    ) -> Result<(), RingError> {
        self.faults = sigbus::faults();
        self.broken = None;
        self.config = *config;
        match Vring::new(config, mem) {
            Ok(mut ring) => {
                with_ring!(&mut ring, r => r.disarm());
                self.ring = Some(ring);
            }
            Err(e) => {
                self.ring = None;
                self.set_broken(e);
                return Err(e);
            }
        }
        Ok(())
    }

    /// A notification may have been lost with whoever served this ring before.
    fn wake_both(&self) {
        self.signal_call();
        self.nudge.signal();
    }

    /// Stops the ring; says where to go on, when it ran.
    pub(super) fn stop(&mut self) -> Option<u32> {
        self.broken = None;
        let ring = self.ring.take()?;
        Some(with_ring!(&ring, r => r.base()))
    }

    /// Moves a running ring to other memory.
    pub(super) fn move_to(&mut self, mem: &Arc<GuestMem>) -> Result<(), RingError> {
        let broken = self.broken;
        let Some(base) = self.stop() else {
            return Ok(());
        };
        let config = VringConfig {
            base,
            ..self.config
        };
        self.start_at_base(&config, mem)?;
        self.wake_both();
        // What the guest did wrong stays wrong until it sets the ring up again.
        if broken != Some(RingError::MemoryTruncated) {
            self.broken = broken;
        }
        Ok(())
    }

    pub(super) fn enable(&mut self, on: bool) {
        self.enabled = on;
        self.nudge.signal();
    }

    pub(super) fn set_kick(&mut self, fd: Option<PeerFd>) -> io::Result<()> {
        if let Some(old) = self.kick.take() {
            // By hand: the peer holds the same open file, so closing ours would not remove it.
            self.wake.remove(old.as_fd().as_raw_fd())?;
        }
        if let Some(fd) = fd.map(eventfd::from_peer).transpose()? {
            self.wake
                .add(fd.as_fd().as_raw_fd(), 1, Interest::READ.edge())?;
            self.kick = Some(fd);
        }
        self.nudge.signal();
        Ok(())
    }

    pub(super) fn set_call(&mut self, fd: Option<PeerFd>) -> io::Result<()> {
        self.call = fd.map(eventfd::from_peer).transpose()?;
        if self.ring.is_some() {
            self.signal_call();
        }
        Ok(())
    }

    pub(super) fn set_err(&mut self, fd: Option<PeerFd>) -> io::Result<()> {
        self.err = fd.map(eventfd::from_peer).transpose()?;
        Ok(())
    }

    pub(super) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// See [`crate::port::RxQueue::arm`].
    pub(super) fn arm(&mut self) -> bool {
        let kickless = self.kick.is_none();
        match self.live() {
            // A peer that gave no descriptor to kick wants to be polled.
            Some(vring) => with_ring!(vring, r => r.arm()) || kickless,
            None => false,
        }
    }

    /// See [`crate::port::RxQueue::disarm`].
    pub(super) fn disarm(&mut self) {
        // Takes the edges; an error would only mean another wake-up.
        let _ = self.wake.wait(&mut [Event::EMPTY; 4], 0);
        if let Some(vring) = self.live() {
            with_ring!(vring, r => r.disarm());
        }
    }
}
