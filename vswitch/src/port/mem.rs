#![allow(unsafe_code)]
//! In-process ports, for embedding and for tests: two bounded rings of owned frames.
//!
//! [`open`] makes a port and its application end. Each direction is a ring with one producer and
//! one consumer and no lock; its slots keep their buffers, so that nothing is allocated once they
//! have grown to the frames that pass. A frame the switch receives stays in its slot while the
//! switch copies from it: its tail is the slot's own buffer.
//!
//! Invariant owned here: the slots from `head` up to `tail` (counters modulo 2^64) belong to the
//! consumer, all others to the producer; only the producer writes `tail`, only the consumer writes
//! `head`, and there is one of each ([`Producer`] and [`Consumer`] are not cloned).

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::{Port, PortId, RxQueue, TxQueue};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{Burst, Csum, Gso, HEAD_CAP, Offload, OutItem, Scratch, TxCaps};
use crate::offload;
use crate::sys::epoll::wait_readable;
use crate::sys::eventfd::EventFd;
use crate::sys::gate::Gate;

/// Longest frame either side may put into a ring: a 64 KiB IP packet with Ethernet and two tags.
pub const FRAME_MAX: usize = 65_535 + 22;
/// A slot's first buffer: a full Ethernet frame with tags fits without growing.
const SLOT_BYTES: usize = 2048;

/// How to open a mem port.
#[derive(Clone, Copy, Debug)]
pub struct MemConfig {
    /// Frames each direction holds; rounded up to a power of two, at least 2.
    pub ring_len: usize,
    /// What the application takes. Without offloads every frame it receives is complete.
    pub caps: TxCaps,
}

impl Default for MemConfig {
    /// 1024 frames a direction, MTU 1500 with one VLAN tag, no offloads.
    fn default() -> Self {
        MemConfig {
            ring_len: 1024,
            caps: TxCaps {
                max_frame_bytes: 1518,
                ..TxCaps::default()
            },
        }
    }
}

/// Why a mem port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// The process is out of descriptors.
    #[error("mem port {port}: cannot create an eventfd; raise the limit of open files")]
    EventFd {
        /// The port.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why the application could not send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The switch has not taken the frames before it yet.
    #[error("the ring is full")]
    Full,
    /// Longer than [`FRAME_MAX`].
    #[error("the frame is longer than {FRAME_MAX} bytes")]
    TooLong,
    /// The port was removed from the switch.
    #[error("the port is closed")]
    Closed,
}

/// Opens a port; the end is for the application. The link is up until the end is dropped.
///
/// # Errors
/// The process is out of descriptors.
pub fn open(id: PortId, name: &str, config: &MemConfig) -> Result<(Arc<Port>, MemEnd), MemError> {
    let pair = || {
        pair(config.ring_len).map_err(|source| MemError::EventFd {
            port: name.to_owned(),
            source,
        })
    };
    let (to_switch, rx) = pair()?;
    let (tx, from_switch) = pair()?;
    let rxq = Gate::new(RxQueue::Mem(Rx { ring: rx, taken: 0 }));
    let txq = Gate::new(TxQueue::Mem(Tx {
        ring: tx,
        caps: config.caps,
        scratch: Scratch::default(),
    }));
    let port = Arc::new(Port::new(id, name, vec![rxq], vec![txq]));
    port.link_up.store(true, Ordering::Relaxed);
    let link = Arc::new(Link(Arc::downgrade(&port)));
    let end = MemEnd {
        tx: MemSender {
            ring: to_switch,
            link: link.clone(),
        },
        rx: MemReceiver {
            ring: from_switch,
            _link: link,
        },
    };
    Ok((port, end))
}

/// Takes the port's link down when the last half of the application's end is dropped.
#[derive(Debug)]
struct Link(Weak<Port>);

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(port) = self.0.upgrade() {
            port.link_up.store(false, Ordering::Relaxed);
        }
    }
}

/// The application's end of a mem port.
#[derive(Debug)]
pub struct MemEnd {
    tx: MemSender,
    rx: MemReceiver,
}

impl MemEnd {
    /// As [`MemSender::send`].
    ///
    /// # Errors
    /// As [`MemSender::send`].
    pub fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        self.tx.send(frame)
    }

    /// As [`MemSender::send_with`].
    ///
    /// # Errors
    /// As [`MemSender::send_with`].
    pub fn send_with(&mut self, frame: &[u8], offload: Offload) -> Result<(), SendError> {
        self.tx.send_with(frame, offload)
    }

    /// As [`MemReceiver::recv`].
    pub fn recv(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        self.rx.recv(into)
    }

    /// As [`MemReceiver::recv_timeout`].
    ///
    /// # Errors
    /// As [`MemReceiver::recv_timeout`].
    pub fn recv_timeout(
        &mut self,
        into: &mut Vec<u8>,
        timeout: Duration,
    ) -> io::Result<Option<Offload>> {
        self.rx.recv_timeout(into, timeout)
    }

    /// Frames that can be sent before the ring is full.
    pub fn room(&mut self) -> usize {
        self.tx.ring.room()
    }

    /// Frames waiting to be received.
    pub fn waiting(&mut self) -> usize {
        self.rx.ring.waiting()
    }

    /// The two halves, for two threads.
    #[must_use]
    pub fn split(self) -> (MemSender, MemReceiver) {
        (self.tx, self.rx)
    }
}

/// Sends frames into the switch.
#[derive(Debug)]
pub struct MemSender {
    ring: Producer,
    link: Arc<Link>,
}

impl MemSender {
    /// Sends a complete frame: destination MAC first, no FCS.
    ///
    /// # Errors
    /// See [`SendError`]; the frame was not sent then.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        self.send_with(frame, Offload::default())
    }

    /// Sends a frame whose checksum or segmentation is left to the switch.
    ///
    /// # Errors
    /// See [`SendError`]; the frame was not sent then.
    pub fn send_with(&mut self, frame: &[u8], offload: Offload) -> Result<(), SendError> {
        if frame.len() > FRAME_MAX {
            return Err(SendError::TooLong);
        }
        if self.link.0.strong_count() == 0 {
            return Err(SendError::Closed);
        }
        let slot = self.ring.slot().ok_or(SendError::Full)?;
        slot.bytes.clear();
        slot.bytes.extend_from_slice(frame);
        slot.offload = offload;
        self.ring.push();
        self.ring.publish();
        Ok(())
    }
}

/// Receives the switch's frames.
#[derive(Debug)]
pub struct MemReceiver {
    ring: Consumer,
    _link: Arc<Link>,
}

impl MemReceiver {
    /// Takes the next frame, replacing what `into` held; `None` when none waits. The answer says
    /// what is left to do to the frame, within what [`MemConfig::caps`] allows.
    pub fn recv(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        let slot = self.ring.peek(0)?;
        into.clear();
        into.extend_from_slice(&slot.bytes);
        let offload = slot.offload;
        self.ring.release(1);
        Some(offload)
    }

    /// As [`MemReceiver::recv`], and waits up to `timeout` for a frame.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn recv_timeout(
        &mut self,
        into: &mut Vec<u8>,
        timeout: Duration,
    ) -> io::Result<Option<Offload>> {
        if let Some(offload) = self.recv(into) {
            return Ok(Some(offload));
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.arm() {
                wait_readable(self.fd(), left)?;
            }
            self.disarm();
            if let Some(offload) = self.recv(into) {
                return Ok(Some(offload));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// The descriptor that becomes readable when a frame comes after [`MemReceiver::arm`].
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.ring.shared.wake.fd()
    }

    /// Asks for the descriptor to be signalled; `true` when frames wait already.
    pub fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    /// Ends [`MemReceiver::arm`] and clears the descriptor.
    pub fn disarm(&mut self) {
        self.ring.disarm();
    }
}

/// The switch's receiving side.
#[derive(Debug)]
pub struct Rx {
    ring: Consumer,
    /// Slots the present burst uses.
    taken: u64,
}

impl Rx {
    pub(crate) fn rx_burst(&mut self, burst: &mut Burst, _cell: &PortCell) {
        while burst.room() > 0 && burst.seg_room() > 0 {
            let Some(slot) = self.ring.peek(self.taken) else {
                return;
            };
            let Some(frame) = burst.push() else { return };
            let (head, tail) = slot.bytes.split_at(slot.bytes.len().min(HEAD_CAP));
            frame.fill()[..head.len()].copy_from_slice(head);
            frame.set_head_len(head.len());
            frame.offload = slot.offload;
            if !tail.is_empty() {
                #[allow(clippy::cast_possible_truncation)] // at most FRAME_MAX
                let len = tail.len() as u32;
                // SAFETY: the slot is the consumer's, and thus unchanged, until `complete`
                // releases it, which the worker calls after the burst's last copy.
                unsafe { burst.add_tail(tail.as_ptr(), len) };
            }
            self.taken += 1;
        }
    }

    pub(crate) fn complete(&mut self, _burst: &Burst) {
        if self.taken > 0 {
            self.ring.release(self.taken);
            self.taken = 0;
        }
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    pub(crate) fn disarm(&mut self) {
        self.ring.disarm();
    }

    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        Some(self.ring.shared.wake.fd())
    }
}

/// The switch's sending side.
#[derive(Debug)]
pub struct Tx {
    ring: Producer,
    caps: TxCaps,
    scratch: Scratch,
}

impl Tx {
    pub(crate) fn tx_burst(&mut self, burst: &Burst, items: &[OutItem], cell: &PortCell) {
        let ring = &mut self.ring;
        for item in items {
            let Some(view) = burst.view(*item, &mut self.scratch) else {
                cell.drops.add(DropReason::TxTooBig, 1);
                continue;
            };
            offload::send(&view, &self.caps, cell, &mut |out| {
                if out.len() as usize > FRAME_MAX {
                    return Err(DropReason::TxTooBig);
                }
                let slot = ring.slot().ok_or(DropReason::TxQueueFull)?;
                slot.bytes.clear();
                slot.bytes.extend_from_slice(out.head);
                out.tail.append_to(&mut slot.bytes);
                slot.offload = Offload {
                    csum: match (out.needs_csum, out.data_valid) {
                        (Some(_), _) => Csum::Partial,
                        (None, true) => Csum::Valid,
                        (None, false) => Csum::Complete,
                    },
                    gso: out.gso,
                    gso_size: out.gso_size,
                };
                ring.push();
                Ok(())
            });
        }
        ring.publish();
    }
}

/// One frame in a ring.
#[derive(Debug)]
struct Slot {
    bytes: Vec<u8>,
    offload: Offload,
}

#[derive(Debug)]
struct Shared {
    slots: Box<[UnsafeCell<Slot>]>,
    /// Frames ever taken out; written by the consumer.
    head: CachePadded<AtomicU64>,
    /// Frames ever put in; written by the producer.
    tail: CachePadded<AtomicU64>,
    /// The consumer wants `wake` to be signalled.
    armed: CachePadded<AtomicBool>,
    wake: EventFd,
}

// SAFETY: a slot is reached only by the side it belongs to (see the module), and changes sides by
// a release store of `tail` or `head` that the other side loads with acquire.
unsafe impl Sync for Shared {}

impl Shared {
    #[inline]
    fn slot(&self, index: u64) -> *mut Slot {
        #[allow(clippy::cast_possible_truncation)] // masked to the ring's length
        let i = (index & (self.slots.len() as u64 - 1)) as usize;
        self.slots[i].get()
    }
}

/// The side that puts frames in.
#[derive(Debug)]
struct Producer {
    shared: Arc<Shared>,
    tail: u64,
    /// `head` as last seen.
    head: u64,
    published: u64,
}

/// The side that takes frames out.
#[derive(Debug)]
struct Consumer {
    shared: Arc<Shared>,
    head: u64,
    /// `tail` as last seen.
    tail: u64,
}

fn pair(len: usize) -> io::Result<(Producer, Consumer)> {
    let shared = Arc::new(Shared {
        slots: (0..len.clamp(2, 1 << 20).next_power_of_two())
            .map(|_| {
                UnsafeCell::new(Slot {
                    bytes: Vec::with_capacity(SLOT_BYTES),
                    offload: Offload {
                        csum: Csum::Complete,
                        gso: Gso::None,
                        gso_size: 0,
                    },
                })
            })
            .collect(),
        head: CachePadded::new(AtomicU64::new(0)),
        tail: CachePadded::new(AtomicU64::new(0)),
        armed: CachePadded::new(AtomicBool::new(false)),
        wake: EventFd::new()?,
    });
    Ok((
        Producer {
            shared: shared.clone(),
            tail: 0,
            head: 0,
            published: 0,
        },
        Consumer {
            shared,
            head: 0,
            tail: 0,
        },
    ))
}

impl Producer {
    /// Free slots, after a fresh look at the consumer.
    fn room(&mut self) -> usize {
        self.head = self.shared.head.load(Ordering::Acquire);
        self.shared.slots.len() - usize::try_from(self.tail - self.head).unwrap_or(0)
    }

    /// The next free slot; `None` when the ring is full.
    #[inline]
    fn slot(&mut self) -> Option<&mut Slot> {
        if self.tail - self.head == self.shared.slots.len() as u64 && self.room() == 0 {
            return None;
        }
        let slot = self.shared.slot(self.tail);
        // SAFETY: `tail - head` is less than the ring's length, so the slot is the producer's;
        // `&mut self` makes this the only borrow of it.
        Some(unsafe { &mut *slot })
    }

    /// Puts the slot last returned by [`Producer::slot`] in line.
    #[inline]
    fn push(&mut self) {
        self.tail += 1;
    }

    /// Shows what was pushed to the consumer, and wakes it when it asked for that.
    #[inline]
    fn publish(&mut self) {
        if self.published == self.tail {
            return;
        }
        self.published = self.tail;
        self.shared.tail.store(self.tail, Ordering::Release);
        // Pairs with the fence in `arm`: either we see `armed`, or the consumer sees `tail`.
        fence(Ordering::SeqCst);
        if self.shared.armed.load(Ordering::Relaxed)
            && self.shared.armed.swap(false, Ordering::Relaxed)
        {
            self.shared.wake.signal();
        }
    }
}

impl Consumer {
    /// Frames in the ring, after a fresh look at the producer.
    fn waiting(&mut self) -> usize {
        self.tail = self.shared.tail.load(Ordering::Acquire);
        usize::try_from(self.tail - self.head).unwrap_or(0)
    }

    /// The frame `n` places behind the next one.
    #[inline]
    fn peek(&mut self, n: u64) -> Option<&Slot> {
        if self.tail - self.head <= n && self.waiting() as u64 <= n {
            return None;
        }
        let slot = self.shared.slot(self.head + n);
        // SAFETY: the slot lies between `head` and `tail`, so it is the consumer's, who only
        // reads it until `release` (which needs `&mut self`).
        Some(unsafe { &*slot })
    }

    /// Gives the first `n` slots back.
    #[inline]
    fn release(&mut self, n: u64) {
        self.head += n;
        self.shared.head.store(self.head, Ordering::Release);
    }

    fn arm(&mut self) -> bool {
        self.shared.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.waiting() > 0
    }

    fn disarm(&mut self) {
        self.shared.armed.store(false, Ordering::Relaxed);
        self.shared.wake.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Burst;
    use crate::sys::epoll::{Epoll, Event, Interest};

    /// Forwards one burst from port to port; returns the frames moved.
    fn forward(from: &Port, to: &Port, cell: &PortCell) -> usize {
        let mut burst = Burst::new();
        let mut rxq = from.rxqs[0].enter().unwrap();
        rxq.rx_burst(&mut burst, cell);
        let items: Vec<OutItem> = (0..burst.received())
            .map(|slot| OutItem {
                slot: u16::try_from(slot).unwrap(),
                tag: None,
            })
            .collect();
        to.txqs[0].enter().unwrap().tx_burst(&burst, &items, cell);
        rxq.complete(&burst);
        items.len()
    }

    fn two(config: &MemConfig) -> ((Arc<Port>, MemEnd), (Arc<Port>, MemEnd)) {
        (
            open(PortId(0), "a", config).unwrap(),
            open(PortId(1), "b", config).unwrap(),
        )
    }

    fn frame(len: usize, seed: usize) -> Vec<u8> {
        (0..len)
            .map(|i| ((i + seed) % 251).to_le_bytes()[0])
            .collect()
    }

    #[test]
    fn frames_pass_intact_and_in_order() {
        let ((a, mut ea), (b, mut eb)) = two(&MemConfig::default());
        let cell = PortCell::default();
        let sizes = [14, 60, 255, 256, 257, 1000, 1514];
        let mut got = Vec::new();
        for round in 0..300 {
            for (i, len) in sizes.into_iter().enumerate() {
                ea.send(&frame(len, round + i)).unwrap();
            }
            assert_eq!(forward(&a, &b, &cell), sizes.len());
            for (i, len) in sizes.into_iter().enumerate() {
                assert_eq!(eb.recv(&mut got), Some(Offload::default()));
                assert_eq!(got, frame(len, round + i));
            }
            assert!(eb.recv(&mut got).is_none());
        }
        assert_eq!(cell.pkts.tx_pkts.get(), 2100);
        assert_eq!(
            cell.pkts.tx_bytes.get(),
            300 * sizes.iter().sum::<usize>() as u64
        );
    }

    #[test]
    fn full_rings_and_long_frames_are_refused_and_counted() {
        let config = MemConfig {
            ring_len: 3,
            ..MemConfig::default()
        };
        let ((a, mut ea), (b, mut eb)) = two(&config);
        let cell = PortCell::default();
        assert_eq!(ea.send(&vec![0; FRAME_MAX + 1]), Err(SendError::TooLong));
        for _ in 0..4 {
            ea.send(&frame(60, 1)).unwrap();
        }
        assert_eq!(ea.send(&frame(60, 1)), Err(SendError::Full));
        assert_eq!(forward(&a, &b, &cell), 4);
        ea.send(&frame(60, 2)).unwrap();
        forward(&a, &b, &cell);
        assert_eq!(cell.drops.get(DropReason::TxQueueFull), 1);
        let mut got = Vec::new();
        assert_eq!(eb.waiting(), 4);
        assert!(eb.recv(&mut got).is_some());
        ea.send(&frame(1519, 0)).unwrap();
        forward(&a, &b, &cell);
        assert_eq!(cell.drops.get(DropReason::TxTooBig), 1);
    }

    #[test]
    fn ends_know_of_each_other() {
        let (port, end) = open(PortId(0), "a", &MemConfig::default()).unwrap();
        assert!(port.is_up());
        let (tx, rx) = end.split();
        drop(rx);
        assert!(port.is_up());
        drop(tx);
        assert!(!port.is_up());

        let (port, mut end) = open(PortId(0), "a", &MemConfig::default()).unwrap();
        end.send(&[0; 60]).unwrap();
        drop(port);
        assert_eq!(end.send(&[0; 60]), Err(SendError::Closed));
    }

    #[test]
    fn an_armed_queue_is_woken_and_nothing_is_lost() {
        const N: u32 = 20_000;
        // Nothing may be dropped towards the receiver, however slow it is.
        let config = MemConfig {
            ring_len: N as usize,
            ..MemConfig::default()
        };
        let ((a, ea), (b, eb)) = two(&config);
        let cell = PortCell::default();
        let (mut tx, _) = ea.split();
        let (_, mut rx) = eb.split();
        std::thread::scope(|s| {
            s.spawn(move || {
                for i in 0..N {
                    while tx.send(&i.to_be_bytes()) == Err(SendError::Full) {
                        std::thread::yield_now();
                    }
                }
                tx
            });
            s.spawn(|| {
                let poll = Epoll::new().unwrap();
                let fd = a.rxqs[0].enter().unwrap().wake_fd().unwrap();
                poll.add(fd, 0, Interest::READ).unwrap();
                while cell.pkts.tx_pkts.get() < u64::from(N) {
                    if forward(&a, &b, &cell) == 0 {
                        if !a.rxqs[0].enter().unwrap().arm() {
                            poll.wait(&mut [Event::EMPTY], -1).unwrap();
                        }
                        a.rxqs[0].enter().unwrap().disarm();
                    }
                }
            });
            let mut got = Vec::new();
            for i in 0..N {
                rx.recv_timeout(&mut got, Duration::from_secs(60))
                    .unwrap()
                    .expect("a frame within a minute");
                assert_eq!(got, i.to_be_bytes());
            }
        });
        assert_eq!(cell.drops.get(DropReason::TxQueueFull), 0);
        let mut got = Vec::new();
        assert!(rx.recv_timeout(&mut got, Duration::ZERO).unwrap().is_none());
    }
}
