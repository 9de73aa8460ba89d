//! Ports: how frames get in and out. A port never sees policy.
//!
//! A port has receive queues and transmit queues, each behind a [`Gate`]. A worker enters a
//! receive queue's gate, fills a burst, processes it, flushes what goes out, clears the burst and
//! only then leaves the gate: that is what keeps tails valid (see `frame`). Dispatch on the kind
//! is one `match` per burst.
//!
//! *Thread-safety.* A receive queue is polled by one worker. A transmit queue may be shared by
//! workers; its gate is taken once per burst. The control thread enters a gate to change what
//! stands behind it (rings, memory); workers never wait for it.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use crate::counters::PortCell;
use crate::frame::{Burst, OutItem};
use crate::sys::gate::Gate;

pub mod afxdp;
pub mod mem;
pub mod pcap;
pub mod tap;
#[cfg(test)]
mod testbed;
pub mod vhost;

/// A port's index in counters and snapshots. Reused only after the port is gone from every worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u16);

/// A port in the data path: its queues. Names and meaning live in the snapshot.
#[derive(Debug)]
pub struct Port {
    /// Index.
    pub id: PortId,
    /// Stable name, for messages.
    pub name: String,
    /// Receive queues.
    pub rxqs: Vec<Gate<RxQueue>>,
    /// Transmit queues; a worker uses [`Port::txq`].
    pub txqs: Vec<Gate<TxQueue>>,
    /// How many of the queue pairs the peer uses: the first so many (a guest decides).
    pub live_txqs: AtomicU16,
    /// Whether a peer is attached and frames can flow.
    pub link_up: AtomicBool,
    /// Whether [`TxQueue::maintain`] does anything: known of the port, so that nobody who asks keeps a worker out of its gates.
    pub is_maintained: bool,
}

impl Port {
    /// A port whose queues are all in use, and whose link is down.
    #[must_use]
    pub fn new(id: PortId, name: &str, rxqs: Vec<Gate<RxQueue>>, txqs: Vec<Gate<TxQueue>>) -> Self {
        let live_txqs = AtomicU16::new(u16::try_from(txqs.len()).unwrap_or(u16::MAX));
        let is_maintained = txqs.first().is_some_and(|q| q.lock().needs_maintenance());
        Port {
            id,
            is_maintained,
            name: name.to_owned(),
            rxqs,
            txqs,
            live_txqs,
            link_up: AtomicBool::new(false),
        }
    }

    /// Queue pairs in use, at least 1.
    #[inline]
    #[must_use]
    pub fn live(&self) -> usize {
        usize::from(self.live_txqs.load(Ordering::Relaxed)).max(1)
    }

    /// The transmit queue for what came in by receive queue number `rxq` of some port: the same
    /// one for all frames of a flow, so that they stay in order, and spread when there are several.
    #[inline]
    #[must_use]
    pub fn txq(&self, rxq: usize) -> Option<&Gate<TxQueue>> {
        self.txqs.get(rxq % self.live())
    }

    /// Whether a peer is attached and frames can flow.
    pub fn is_up(&self) -> bool {
        self.link_up.load(Ordering::Relaxed)
    }
}

/// A receive queue of some kind.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // few, and each for itself behind a gate
pub enum RxQueue {
    /// In-process.
    Mem(mem::Rx),
    /// A network interface.
    AfXdp(afxdp::Rx),
    /// A tap device.
    Tap(tap::Rx),
    /// A guest's transmit ring.
    Vhost(Box<vhost::Rx>),
    /// A capture file.
    Pcap(pcap::Rx),
}

/// A transmit queue of some kind.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // as above
pub enum TxQueue {
    /// In-process.
    Mem(mem::Tx),
    /// A network interface.
    AfXdp(afxdp::Tx),
    /// A tap device.
    Tap(tap::Tx),
    /// A guest's receive ring.
    Vhost(Box<vhost::Tx>),
    /// A capture file.
    Pcap(pcap::Tx),
}

impl RxQueue {
    /// Adds up to `burst.room()` waiting frames to the burst; bad ones are dropped and counted in
    /// `cell`. Does not count `rx_pkts`: the worker does, for every frame in the burst.
    /// (A dropped one is counted by the port in both: it was received.)
    #[inline]
    pub fn rx_burst(&mut self, burst: &mut Burst, cell: &PortCell) {
        match self {
            RxQueue::Mem(q) => q.rx_burst(burst, cell),
            RxQueue::AfXdp(q) => q.rx_burst(burst, cell),
            RxQueue::Tap(q) => q.rx_burst(burst, cell),
            RxQueue::Vhost(q) => q.rx_burst(burst, cell),
            RxQueue::Pcap(q) => q.rx_burst(burst, cell),
        }
    }

    /// Gives the burst's buffers back to the sender, after the last copy. Called once per
    /// iteration in which `rx_burst` ran, before the gate is left. Says whether [`RxQueue::notify`]
    /// must follow.
    #[inline]
    pub fn complete(&mut self, burst: &Burst) -> bool {
        match self {
            RxQueue::Vhost(q) => return q.complete(burst),
            RxQueue::Mem(q) => q.complete(burst),
            RxQueue::AfXdp(q) => q.complete(burst),
            RxQueue::Tap(q) => q.complete(burst),
            RxQueue::Pcap(_) => {}
        }
        false
    }

    /// Tells a sender that sleeps what [`RxQueue::complete`] gave back. A full fence stands between
    /// the two, one for all queues of a burst.
    #[inline]
    pub fn notify(&mut self) {
        match self {
            RxQueue::Vhost(q) => q.notify(),
            // `complete` did what there is to do.
            RxQueue::Mem(_) | RxQueue::AfXdp(_) | RxQueue::Tap(_) | RxQueue::Pcap(_) => {}
        }
    }

    /// Before blocking: asks the sender for notifications, then says whether frames are already
    /// waiting (full fence between the two).
    pub fn arm(&mut self) -> bool {
        match self {
            RxQueue::Mem(q) => q.arm(),
            RxQueue::AfXdp(q) => q.arm(),
            RxQueue::Tap(q) => q.arm(),
            RxQueue::Vhost(q) => q.arm(),
            RxQueue::Pcap(q) => q.arm(),
        }
    }

    /// After blocking: no notifications while polling.
    pub fn disarm(&mut self) {
        match self {
            RxQueue::Mem(q) => q.disarm(),
            // The kernel reports only to who waits.
            RxQueue::Vhost(q) => q.disarm(),
            RxQueue::AfXdp(_) | RxQueue::Tap(_) | RxQueue::Pcap(_) => {}
        }
    }

    /// The descriptor that becomes readable when frames wait and the queue is armed.
    pub fn wake_fd(&self) -> Option<RawFd> {
        match self {
            RxQueue::Mem(q) => q.wake_fd(),
            RxQueue::AfXdp(q) => q.wake_fd(),
            RxQueue::Tap(q) => q.wake_fd(),
            RxQueue::Vhost(q) => q.wake_fd(),
            RxQueue::Pcap(q) => q.wake_fd(),
        }
    }
}

impl TxQueue {
    /// Sends the items in order, each frame (each segment, where one is segmented here) completely
    /// or not at all; [`TxQueue::notify`] follows.
    /// Counts `tx_pkts`, `tx_bytes`, `extra_segments_pkts` and drops in `cell`.
    #[inline]
    pub fn tx_burst(&mut self, burst: &Burst, items: &[OutItem], cell: &PortCell) {
        match self {
            TxQueue::Mem(q) => q.tx_burst(burst, items, cell),
            TxQueue::AfXdp(q) => q.tx_burst(burst, items, cell),
            TxQueue::Tap(q) => q.tx_burst(burst, items, cell),
            TxQueue::Vhost(q) => q.tx_burst(burst, items, cell),
            TxQueue::Pcap(q) => q.tx_burst(burst, items, cell),
        }
    }

    /// Tells a receiver that sleeps what [`TxQueue::tx_burst`] sent. A full fence stands between the
    /// two, one for all queues of a burst.
    #[inline]
    pub fn notify(&mut self) {
        match self {
            TxQueue::Vhost(q) => q.notify(),
            // `tx_burst` did what there is to do.
            TxQueue::Mem(_) | TxQueue::AfXdp(_) | TxQueue::Tap(_) | TxQueue::Pcap(_) => {}
        }
    }

    /// Whether [`TxQueue::maintain`] does anything for this kind.
    fn needs_maintenance(&self) -> bool {
        matches!(self, TxQueue::AfXdp(_))
    }

    /// Housekeeping once per iteration, also when nothing was sent: completions.
    #[inline]
    pub fn maintain(&mut self) {
        match self {
            TxQueue::Mem(_) | TxQueue::Tap(_) | TxQueue::Pcap(_) | TxQueue::Vhost(_) => {}
            TxQueue::AfXdp(q) => q.maintain(),
        }
    }

    /// Frames were sent that the kernel has not taken yet: `maintain` must be called again, so the
    /// worker does not block.
    #[inline]
    pub fn is_pending(&self) -> bool {
        match self {
            TxQueue::Mem(_) | TxQueue::Tap(_) | TxQueue::Pcap(_) | TxQueue::Vhost(_) => false,
            TxQueue::AfXdp(q) => q.is_pending(),
        }
    }
}
