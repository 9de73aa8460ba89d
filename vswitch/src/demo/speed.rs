//! Our own guest driver flat out: one guest sends, the switch judges and forwards, another guest
//! receives and checks.

use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet,
    Ipv4Repr, UdpPacket, UdpRepr,
};

use super::scene::{LOAD, Member, Scene};
use super::{Halt, Stop};
use crate::guest::{GuestQueue, NetHdr};
use crate::sys::affinity::pin_thread;

/// Frames in one call of the driver.
const BURST: usize = 32;
/// Connections the frames are spread over.
pub(super) const FLOWS: u16 = 1000;
/// First source port.
const FIRST_PORT: u16 = 10_000;
/// "discard" (RFC 863); the policy's rule names it.
const PORT: u16 = 9;
/// Not counted: connections are made, caches fill.
const WARM_UP: Duration = Duration::from_millis(200);
/// Counted.
const RUN: Duration = Duration::from_secs(2);
/// How long the last frames may take to arrive.
const DRAIN: Duration = Duration::from_millis(50);
/// Where the UDP source port stands in an Ethernet frame with IPv4 without options.
const SPORT_AT: usize = 34;
/// Where the UDP payload begins; the sequence number stands there.
const PAYLOAD_AT: usize = 42;

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    /// Frames that arrived in the counted time.
    pub(super) received: u64,
    /// That time.
    pub(super) time: Duration,
    /// Frames sent, warm-up included.
    pub(super) sent: u64,
    /// Frames that arrived, warm-up included.
    pub(super) arrived: u64,
    /// Of those: not as they were sent, or out of order.
    pub(super) wrong: u64,
}

impl Measured {
    /// Million frames a second.
    #[allow(clippy::cast_precision_loss)] // far below 2^53 frames in two seconds
    pub(super) fn mpps(&self) -> f64 {
        self.received as f64 / self.time.as_secs_f64() / 1e6
    }

    /// Gigabits of frames a second.
    #[allow(clippy::cast_precision_loss)] // as above
    pub(super) fn gbps(&self, frame_bytes: usize) -> f64 {
        self.mpps() * frame_bytes as f64 * 8.0 / 1e3
    }
}

/// A UDP frame with a payload of zeros and no UDP checksum (allowed with IPv4, RFC 768), so that
/// port and payload can change without one.
pub(super) fn udp_frame(from: Member, to: Member, source: Member, frame_bytes: usize) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: FIRST_PORT,
        dst_port: PORT,
    };
    let payload = frame_bytes.saturating_sub(PAYLOAD_AT);
    let ip = Ipv4Repr {
        src_addr: source.ip(),
        dst_addr: to.ip(),
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload,
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(from.mac().0),
        dst_addr: EthernetAddress(to.mac().0),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; PAYLOAD_AT + payload];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    datagram.set_src_port(udp.src_port);
    datagram.set_dst_port(udp.dst_port);
    // At most 1480.
    datagram.set_len(u16::try_from(udp.header_len() + payload).unwrap_or(u16::MAX));
    bytes
}

/// The sending side.
struct Source<'a> {
    queue: &'a mut GuestQueue,
    frames: Vec<Vec<u8>>,
    sent: u64,
}

impl Source<'_> {
    fn step(&mut self) -> usize {
        for (frame, n) in self.frames.iter_mut().zip(self.sent..) {
            // Below FLOWS.
            let flow = u16::try_from(n % u64::from(FLOWS)).unwrap_or(0);
            put(frame, SPORT_AT, &(FIRST_PORT + flow).to_be_bytes());
            put(frame, PAYLOAD_AT, &n.to_be_bytes());
        }
        let burst: [(NetHdr, &[u8]); BURST] = std::array::from_fn(|i| {
            let frame = self.frames.get(i).map_or(&[][..], Vec::as_slice);
            (NetHdr::default(), frame)
        });
        let sent = self.queue.send(&burst);
        self.sent += sent as u64;
        sent
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = frame.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// The receiving side.
struct Drain<'a> {
    queue: &'a mut GuestQueue,
    frame_bytes: usize,
    arrived: u64,
    wrong: u64,
    next: u64,
}

impl Drain<'_> {
    fn step(&mut self) -> usize {
        let (expected, wrong, next) = (self.frame_bytes, &mut self.wrong, &mut self.next);
        let n = self.queue.recv(2 * BURST, |_, frame| {
            let number = frame
                .get(PAYLOAD_AT..)
                .and_then(|rest| rest.first_chunk())
                .map(|bytes| u64::from_be_bytes(*bytes));
            match number {
                Some(n) if frame.len() == expected && n >= *next => *next = n + 1,
                _ => *wrong += 1,
            }
        });
        self.arrived += n as u64;
        n
    }
}

/// Sends frames of that length for two seconds, after a warm-up.
pub(super) fn measure(scene: &mut Scene, frame_bytes: usize) -> Result<Measured, Halt> {
    let stop = scene.stop.clone();
    let [from, to] = LOAD;
    let frame = udp_frame(from, to, from, frame_bytes);
    let no_queue = || Halt::failed("the guest has no queue".to_owned());
    let mut source = Source {
        queue: scene.generator.queue(0).ok_or_else(no_queue)?,
        frames: vec![frame; BURST],
        sent: 0,
    };
    let mut drain = Drain {
        queue: scene.sink.queue(0).ok_or_else(no_queue)?,
        frame_bytes,
        arrived: 0,
        wrong: 0,
        next: 0,
    };
    // A core for each guest beside the worker's; with fewer, one thread is both guests.
    let (first, second) = match scene.cores.as_slice() {
        [a, b, _, ..] => (Some(*a), Some(*b)),
        [a, _] => (Some(*a), None),
        _ => (None, None),
    };
    let measured = std::thread::scope(|s| {
        let receiver = if second.is_some() {
            s.spawn(|| {
                pin(first);
                let start = Instant::now();
                while start.elapsed() < WARM_UP + RUN && !stop.is_set() {
                    if source.step() == 0 {
                        std::hint::spin_loop();
                    }
                }
            });
            s.spawn(|| {
                pin(second);
                receive(&mut drain, &stop, || {})
            })
        } else {
            s.spawn(|| {
                pin(first);
                receive(&mut drain, &stop, || {
                    source.step();
                })
            })
        };
        receiver.join()
    });
    stop.check()?;
    let (received, time) =
        measured.map_err(|_panic| Halt::failed("the measuring thread died".to_owned()))?;
    Ok(Measured {
        received,
        time,
        sent: source.sent,
        arrived: drain.arrived,
        wrong: drain.wrong,
    })
}

/// Receives, with `work` in between: through the warm-up, through the counted time, and until no
/// more comes. Returns what was counted.
fn receive(drain: &mut Drain<'_>, stop: &Stop, mut work: impl FnMut()) -> (u64, Duration) {
    let mut phase = |drain: &mut Drain<'_>, limit: Duration| {
        let start = Instant::now();
        let before = drain.arrived;
        while start.elapsed() < limit && !stop.is_set() {
            work();
            if drain.step() == 0 {
                std::hint::spin_loop();
            }
        }
        (drain.arrived - before, start.elapsed())
    };
    phase(drain, WARM_UP);
    let counted = phase(drain, RUN);
    let mut last = Instant::now();
    while last.elapsed() < DRAIN && !stop.is_set() {
        if drain.step() > 0 {
            last = Instant::now();
        }
    }
    counted
}

/// Where a thread cannot be pinned it runs where the kernel puts it.
fn pin(core: Option<usize>) {
    if let Some(core) = core {
        let _ = pin_thread(core);
    }
}
