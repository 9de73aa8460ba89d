#![allow(unsafe_code)]
//! A tap device: a container's (or the host's) interface whose other end is the switch.
//!
//! Whole TCP and UDP segmentation units and partial checksums cross it both ways, in a
//! `virtio_net_hdr` before each frame (`IFF_VNET_HDR`), so that bulk TCP costs a system call per
//! 64 KiB instead of per segment. One call per frame is the interface's nature; a burst bounds
//! them. The device is made inside the container's network namespace, and it is not persistent: it
//! goes when this process ends, however it ends, so a dead switch leaves no path.
//!
//! Kernel documentation: `Documentation/networking/tuntap.rst`; header: virtio 1.3 section 5.1.6.
//!
//! Invariant owned here: a receive buffer whose bytes are a burst's tail is not read into again
//! before `complete`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net as net;

use super::{Port, PortId, RxQueue, TxQueue};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{BURST_MAX, Burst, Csum, Gso, HEAD_CAP, Offload, OutItem, Scratch, TxCaps};
use crate::offload::{self, Out};
use crate::packet::Mac;
use crate::sys::gate::Gate;
use crate::sys::mmap::Mapping;
use crate::sys::netlink::{LinkEvents, Netlink, NetlinkError};
use crate::sys::netns::{NetNs, NetNsError};

/// The device of devices.
const DEVICE: &str = "/dev/net/tun";
/// Bytes of `struct virtio_net_hdr` without `num_buffers`: the default of `TUNSETVNETHDRSZ`.
const HEADER_LEN: usize = 10;
/// Room for the part of a frame behind its head: a 64 KiB packet, and whole pages.
const BUFFER_LEN: usize = 64 * 1024 + 4096;
/// Pieces one write gathers; a frame of more is gathered by hand first.
const PIECES_MAX: usize = 64;
/// Bytes a frame has beyond the MTU: Ethernet header and one VLAN tag.
const OVERHEAD: u32 = 18;
/// Most queues of a device (`MAX_TAP_QUEUES`, linux/if_tun.h).
const QUEUES_MAX: u16 = 256;
/// `TUN_F_USO4 | TUN_F_USO6`, since Linux 6.2.
const TUN_F_USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
const TUN_F_TCP: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// How to open a tap port.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Name of the device: at most 15 bytes.
    pub interface: String,
    /// Namespace the device lives in (a name under `/run/netns`, or a path); `None`: the calling
    /// thread's.
    pub netns: Option<String>,
    /// Queues; at least 1.
    pub queues: u16,
    /// The device's MAC; `None`: the kernel's choice.
    pub mac: Option<Mac>,
    /// Longest L3 packet, bytes.
    pub mtu: u16,
}

/// What opening found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TapInfo {
    /// The device's MAC: the container's.
    pub mac: Mac,
    /// Its index in its namespace.
    pub index: u32,
    /// Whether UDP crosses unsegmented (Linux 6.2).
    pub uso: bool,
}

/// What to do when the namespace is not there; the source says how to see which ones are.
fn later(error: &NetNsError) -> &'static str {
    if error.is_missing() {
        " (`optional = true` waits for one that comes later)"
    } else {
        ""
    }
}

/// Why a tap port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No device of devices.
    #[error(
        "tap port {port}: cannot open {DEVICE}; load the module (`modprobe tun`), or give the \
         container this process runs in access to it"
    )]
    Device {
        /// The port.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The interface cannot be made.
    #[error("tap port {port}: cannot create the interface {interface}{hint}")]
    Create {
        /// The port.
        port: String,
        /// Its name.
        interface: String,
        /// What to do about it.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks an offload every kernel since 2.6.27 has.
    #[error("tap port {port}: the kernel refuses checksum and TCP offloads")]
    Offload {
        /// The port.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Out of memory.
    #[error("tap port {port}: no memory for receive buffers")]
    Memory {
        /// The port.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The namespace is not there, or may not be entered.
    #[error("tap port {port}: its network namespace cannot be used{}", later(.source))]
    NetNs {
        /// The port.
        port: String,
        /// What went wrong.
        #[source]
        source: NetNsError,
    },
    /// The interface was made but cannot be set up.
    #[error("tap port {port}: its interface cannot be set up")]
    Interface {
        /// The port.
        port: String,
        /// What went wrong.
        #[source]
        source: NetlinkError,
    },
}

/// Creates the device, sets MAC and MTU, and sets it up. Addresses are its user's business.
///
/// # Errors
/// See [`TapError`]; nothing is left behind.
pub fn open(
    id: PortId,
    name: &str,
    config: &TapConfig,
) -> Result<(Arc<Port>, TapControl), TapError> {
    let port = || name.to_owned();
    let netns = match &config.netns {
        Some(ns) => NetNs::open(ns),
        None => NetNs::current(),
    };
    netns
        .and_then(|ns| ns.run(|| open_here(id, name, config)))
        .map_err(|source| TapError::NetNs {
            port: port(),
            source,
        })?
}

/// [`open`], on a thread that is in the right namespace.
fn open_here(
    id: PortId,
    name: &str,
    config: &TapConfig,
) -> Result<(Arc<Port>, TapControl), TapError> {
    let interface_error = |source| TapError::Interface {
        port: name.to_owned(),
        source,
    };
    let mut netlink = Netlink::new().map_err(interface_error)?;
    let queues = config.queues.clamp(1, QUEUES_MAX);
    let (mut rxqs, mut txqs) = (Vec::new(), Vec::new());
    let mut uso = true;
    for _ in 0..queues {
        let device = Arc::new(attach(name, &config.interface, queues > 1)?);
        uso &= set_offloads(name, &device)?;
        let memory =
            Mapping::anonymous(BURST_MAX * BUFFER_LEN).map_err(|source| TapError::Memory {
                port: name.to_owned(),
                source,
            })?;
        rxqs.push(Gate::new(RxQueue::Tap(Rx {
            device: device.clone(),
            memory,
            used: 0,
            drained: false,
        })));
        txqs.push(device);
    }
    let caps = TxCaps {
        csum: true,
        tso4: true,
        tso6: true,
        uso,
        max_frame_bytes: u32::from(config.mtu) + OVERHEAD,
    };
    let txqs = txqs
        .into_iter()
        .map(|device| {
            Gate::new(TxQueue::Tap(Tx {
                device,
                caps,
                scratch: Scratch::default(),
                gathered: Vec::new(),
            }))
        })
        .collect();
    let events = LinkEvents::new().map_err(interface_error)?;
    let index = netlink
        .link(&config.interface)
        .map_err(interface_error)?
        .index;
    if let Some(mac) = config.mac {
        netlink.set_mac(index, mac).map_err(interface_error)?;
    }
    netlink
        .set_mtu(index, u32::from(config.mtu))
        .map_err(interface_error)?;
    netlink.set_up(index, true).map_err(interface_error)?;
    let link = netlink.link_by_index(index).map_err(interface_error)?;
    let port = Arc::new(Port::new(id, name, rxqs, txqs));
    port.link_up.store(true, Ordering::Relaxed);
    let control = TapControl {
        netlink,
        events,
        info: TapInfo {
            mac: link.mac,
            index,
            uso,
        },
        port: port.clone(),
    };
    Ok((port, control))
}

/// The control thread's side of a port.
#[derive(Debug)]
pub struct TapControl {
    netlink: Netlink,
    events: LinkEvents,
    info: TapInfo,
    port: Arc<Port>,
}

impl TapControl {
    /// What opening found.
    #[must_use]
    pub fn info(&self) -> TapInfo {
        self.info
    }

    /// Readable when some interface in the device's namespace changed: then call
    /// [`TapControl::check`].
    #[must_use]
    pub fn events_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// Sets the port's link by the device's state, and says whether it is up. A device that was
    /// deleted or moved elsewhere stays down: open the port anew.
    pub fn check(&mut self) -> bool {
        self.events.drain();
        let up = self
            .netlink
            .link_by_index(self.info.index)
            .is_ok_and(|l| l.up);
        self.port.link_up.store(up, Ordering::Relaxed);
        up
    }
}

/// Opens one queue of the device, which the first one creates.
fn attach(port: &str, interface: &str, multi_queue: bool) -> Result<File, TapError> {
    let create = |hint, source| TapError::Create {
        port: port.to_owned(),
        interface: interface.to_owned(),
        hint,
        source,
    };
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .map_err(|source| TapError::Device {
            port: port.to_owned(),
            source,
        })?;
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.is_empty() || interface.len() >= request.ifr_name.len() {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(create(": a name has 1 to 15 bytes", source));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    #[allow(clippy::cast_possible_truncation)] // the field is 16 bits, and so are the flags
    {
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
    }
    // SAFETY: TUNSETIFF reads an ifreq, which lives until the call returns.
    let r = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if r < 0 {
        let source = io::Error::last_os_error();
        let hint = match source.raw_os_error() {
            Some(libc::EPERM) => "; it needs CAP_NET_ADMIN",
            Some(libc::EBUSY) => "; another process uses it",
            Some(libc::EINVAL) => "; an interface of that name and of another kind exists",
            _ => "",
        };
        return Err(create(hint, source));
    }
    Ok(device)
}

/// Says what the kernel may leave to us. Returns whether that includes UDP.
fn set_offloads(port: &str, device: &File) -> Result<bool, TapError> {
    for (offloads, uso) in [(TUN_F_TCP | TUN_F_USO, true), (TUN_F_TCP, false)] {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let r = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            )
        };
        if r == 0 {
            return Ok(uso);
        }
    }
    Err(TapError::Offload {
        port: port.to_owned(),
        source: io::Error::last_os_error(),
    })
}

/// A receive queue.
#[derive(Debug)]
pub struct Rx {
    device: Arc<File>,
    /// [`BURST_MAX`] buffers.
    memory: Mapping,
    /// Buffers the present burst uses.
    used: usize,
    /// The last look found nothing more.
    drained: bool,
}

impl Rx {
    pub(crate) fn rx_burst(&mut self, burst: &mut Burst, cell: &PortCell) {
        self.drained = false;
        while burst.seg_room() > 0 && self.used < BURST_MAX {
            let buffer = self.memory.as_ptr().wrapping_add(self.used * BUFFER_LEN);
            let Some(frame) = burst.push() else { return };
            let mut header = [0u8; HEADER_LEN];
            let pieces = [
                iovec(header.as_mut_ptr(), HEADER_LEN),
                iovec(frame.fill().as_mut_ptr(), HEAD_CAP),
                iovec(buffer, BUFFER_LEN),
            ];
            // SAFETY: three pieces, each writable for its length: two borrowed here, and a buffer
            // no tail points into, because `used` counts those that one does.
            let n = unsafe { libc::readv(self.device.as_raw_fd(), pieces.as_ptr(), 3) };
            let Some(len) = usize::try_from(n)
                .ok()
                .and_then(|n| n.checked_sub(HEADER_LEN))
            else {
                // Nothing more, or the device is gone, which `check` finds out.
                burst.pop();
                self.drained = true;
                return;
            };
            let head = len.min(HEAD_CAP);
            frame.set_head_len(head);
            match request(header) {
                Some(offload) => frame.offload = offload,
                None => {
                    burst.pop();
                    cell.pkts.rx_pkts.add(1);
                    cell.drops.add(DropReason::BadOffload, 1);
                    continue;
                }
            }
            if len > head {
                self.used += 1;
                #[allow(clippy::cast_possible_truncation)] // at most BUFFER_LEN
                // SAFETY: the buffer lives as long as the queue, and is not read into before
                // `complete`, which the worker calls after the burst's last copy.
                unsafe {
                    burst.add_tail(buffer, (len - head) as u32)
                };
            }
        }
    }

    pub(crate) fn complete(&mut self, _burst: &Burst) {
        self.used = 0;
    }

    pub(crate) fn arm(&mut self) -> bool {
        // A frame that comes after the last look makes the descriptor readable.
        !self.drained
    }

    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        Some(self.device.as_raw_fd())
    }
}

/// A transmit queue.
#[derive(Debug)]
pub struct Tx {
    device: Arc<File>,
    caps: TxCaps,
    scratch: Scratch,
    /// A tail of too many pieces; grows once.
    gathered: Vec<u8>,
}

impl Tx {
    pub(crate) fn tx_burst(&mut self, burst: &Burst, items: &[OutItem], cell: &PortCell) {
        let Tx {
            device,
            caps,
            scratch,
            gathered,
        } = self;
        for item in items {
            let Some(view) = burst.view(*item, scratch) else {
                cell.drops.add(DropReason::TxTooBig, 1);
                continue;
            };
            offload::send(&view, caps, cell, &mut |out| write(device, gathered, out));
        }
    }
}

/// Sends one frame: one system call, which copies head and tail into the kernel.
#[inline]
fn write(device: &File, gathered: &mut Vec<u8>, out: &Out<'_>) -> Result<(), DropReason> {
    let header = header(out);
    let mut pieces = [iovec(std::ptr::null_mut(), 0); PIECES_MAX];
    let [first, second, rest @ ..] = &mut pieces;
    *first = iovec(header.as_ptr().cast_mut(), HEADER_LEN);
    *second = iovec(out.head.as_ptr().cast_mut(), out.head.len());
    let mut n = 2;
    let mut tail = out.tail.pieces();
    for (piece, (ptr, len)) in rest.iter_mut().zip(&mut tail) {
        *piece = iovec(ptr.cast_mut(), len);
        n += 1;
    }
    if tail.next().is_some() {
        gathered.clear();
        out.tail.append_to(gathered);
        let [_, _, piece, ..] = &mut pieces;
        *piece = iovec(gathered.as_mut_ptr(), gathered.len());
        n = 3;
    }
    // SAFETY: the first `n` pieces are readable for their lengths: private memory borrowed here,
    // and tails that are readable while `out` lives. writev writes to none of them.
    let r = unsafe { libc::writev(device.as_raw_fd(), pieces.as_ptr(), n) };
    if r >= 0 {
        return Ok(());
    }
    Err(match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::TxQueueFull,
        // Set down, or deleted.
        Some(libc::EIO | libc::EBADFD) => DropReason::TxNotReady,
        _ => DropReason::TxError,
    })
}

#[inline]
fn iovec(ptr: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: ptr.cast(),
        iov_len: len,
    }
}

#[allow(clippy::cast_possible_truncation)] // bytes by the specification; the C header has no types
mod hdr {
    use super::net;

    pub(super) const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    pub(super) const DATA_VALID: u8 = net::VIRTIO_NET_HDR_F_DATA_VALID as u8;
    pub(super) const GSO_NONE: u8 = net::VIRTIO_NET_HDR_GSO_NONE as u8;
    pub(super) const GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    pub(super) const GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
    pub(super) const GSO_UDP_L4: u8 = net::VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
}

/// What the kernel leaves to us, by its header; `None` for what it was not told that it may.
/// Fields are in the machine's byte order, as `TUNSETVNETLE` was not asked for.
#[inline]
fn request(header: [u8; HEADER_LEN]) -> Option<Offload> {
    let [flags, gso_type, _, _, s0, s1, ..] = header;
    let gso = match gso_type {
        hdr::GSO_NONE => Gso::None,
        hdr::GSO_TCPV4 => Gso::TcpV4,
        hdr::GSO_TCPV6 => Gso::TcpV6,
        hdr::GSO_UDP_L4 => Gso::UdpL4,
        _ => return None,
    };
    Some(Offload {
        csum: if flags & hdr::NEEDS_CSUM != 0 {
            Csum::Partial
        } else if flags & hdr::DATA_VALID != 0 {
            Csum::Valid
        } else {
            Csum::Complete
        },
        gso,
        gso_size: if gso == Gso::None {
            0
        } else {
            u16::from_ne_bytes([s0, s1])
        },
    })
}

/// What is left to the kernel.
#[inline]
fn header(out: &Out<'_>) -> [u8; HEADER_LEN] {
    let flags = match (out.needs_csum, out.data_valid) {
        (Some(_), _) => hdr::NEEDS_CSUM,
        (None, true) => hdr::DATA_VALID,
        (None, false) => 0,
    };
    let gso = match out.gso {
        Gso::None => hdr::GSO_NONE,
        Gso::TcpV4 => hdr::GSO_TCPV4,
        Gso::TcpV6 => hdr::GSO_TCPV6,
        Gso::UdpL4 => hdr::GSO_UDP_L4,
    };
    let (start, offset) = out.needs_csum.unwrap_or((0, 0));
    let [h0, h1] = out.hdr_len.to_ne_bytes();
    let [s0, s1] = out.gso_size.to_ne_bytes();
    let [a0, a1] = start.to_ne_bytes();
    let [b0, b1] = offset.to_ne_bytes();
    [flags, gso, h0, h1, s0, s1, a0, a1, b0, b1]
}

#[cfg(test)]
mod tests {
    use super::super::testbed::{
        LIMIT, addresses, forward_while, netns, set_address, tcp, udp_arrives,
    };
    use super::*;
    use crate::sys::epoll::{Epoll, Event, Interest};

    fn config(ns: &NetNs, queues: u16) -> TapConfig {
        TapConfig {
            interface: "eth0".to_owned(),
            netns: Some(format!("/proc/self/fd/{}", ns.as_raw_fd())),
            queues,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
        }
    }

    #[test]
    fn headers_say_what_offloads_mean() {
        let all = [0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(request(all), None, "UFO was never offered");
        let tso = [1, 1, 0, 0, 0, 5, 0, 0, 0, 0];
        assert_eq!(
            request(tso),
            Some(Offload {
                csum: Csum::Partial,
                gso: Gso::TcpV4,
                gso_size: u16::from_ne_bytes([0, 5]),
            })
        );
        assert_eq!(request([2; HEADER_LEN]), None);
        let valid = [2, 0, 9, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(
            request(valid),
            Some(Offload {
                csum: Csum::Valid,
                ..Offload::default()
            })
        );
    }

    #[test]
    fn tcp_crosses_unsegmented() {
        let (Some(a), Some(b)) = (netns(), netns()) else {
            return;
        };
        for queues in [1, 4] {
            let (pa, ca) = open(PortId(0), "a", &config(&a, queues)).unwrap();
            let mut other = config(&b, queues);
            other.mac = None;
            let (pb, cb) = open(PortId(1), "b", &other).unwrap();
            assert_eq!(ca.info().mac, Mac([2, 0, 0, 0, 0, 1]));
            assert_ne!(cb.info().mac, ca.info().mac);
            assert_eq!(pa.rxqs.len(), usize::from(queues));
            set_address(&a, "eth0", 1);
            set_address(&b, "eth0", 2);
            let moved = forward_while([&pa, &pb], || {
                tcp(&a, &b, addresses(2).0, 1, 20_000_000);
                tcp(&b, &a, addresses(1).1, 2, 5_000_000);
                for len in [0, 213, 214, 215, 1472] {
                    assert!(udp_arrives(&a, &b, addresses(2).0, len, LIMIT));
                }
            });
            let to_b = &moved.cells[1].pkts;
            let mean = to_b.tx_bytes.get() / to_b.tx_pkts.get();
            println!("{queues} queues: mean frame {mean} bytes {}", moved.drops());
            assert!(mean > 1514, "mean frame of {mean} bytes");
        }
    }

    #[test]
    fn tso_is_translated_for_a_port_that_has_none() {
        let (Some(a), Some(b), Some(host)) = (netns(), netns(), netns()) else {
            return;
        };
        let (pa, _ca) = open(PortId(0), "a", &config(&a, 1)).unwrap();
        set_address(&a, "eth0", 1);
        Netlink::in_netns(&host)
            .unwrap()
            .create_veth("host", "eth0", Some(&b), 1)
            .unwrap();
        super::super::testbed::configure(&b, "eth0", 1500, 2);
        let afxdp = super::super::afxdp::AfXdpConfig {
            interface: "host".to_owned(),
            queues: None,
            outlive: false,
        };
        let (pb, _cb) = host
            .run(|| super::super::afxdp::open(PortId(1), "b", &afxdp))
            .unwrap()
            .unwrap();
        let moved = forward_while([&pa, &pb], || {
            tcp(&a, &b, addresses(2).0, 1, 4_000_000);
            tcp(&b, &a, addresses(1).0, 1, 4_000_000);
            tcp(&a, &b, addresses(2).1, 1, 1_000_000);
            tcp(&b, &a, addresses(1).1, 1, 1_000_000);
        });
        let to_b = &moved.cells[1].pkts;
        assert!(to_b.extra_segments_pkts.get() > 1000, "{}", moved.drops());
    }

    #[test]
    fn a_blocked_worker_is_woken_and_a_deleted_device_is_seen() {
        let Some(ns) = netns() else { return };
        let (port, mut control) = open(PortId(0), "a", &config(&ns, 1)).unwrap();
        set_address(&ns, "eth0", 1);
        let mut rxq = port.rxqs[0].enter().unwrap();
        let poll = Epoll::new().unwrap();
        poll.add(rxq.wake_fd().unwrap(), 0, Interest::READ.edge())
            .unwrap();
        let (mut burst, cell) = (Burst::new(), PortCell::default());
        while rxq.arm() {
            burst.clear();
            rxq.rx_burst(&mut burst, &cell);
            rxq.complete(&burst);
        }
        // An earlier edge, for what was taken above.
        poll.wait(&mut [Event::EMPTY], 0).unwrap();
        ns.run(|| {
            let s = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
            s.send_to(&[1], "10.9.0.77:9").unwrap();
        })
        .unwrap();
        assert_eq!(poll.wait(&mut [Event::EMPTY], 30_000).unwrap(), 1);
        burst.clear();
        rxq.rx_burst(&mut burst, &cell);
        assert!(burst.received() > 0);
        drop(rxq);

        assert!(control.check() && port.is_up());
        let mut netlink = Netlink::in_netns(&ns).unwrap();
        netlink.delete_link(control.info().index).unwrap();
        assert!(!control.check() && !port.is_up());
        let item = OutItem { slot: 0, tag: None };
        port.txqs[0]
            .enter()
            .unwrap()
            .tx_burst(&burst, &[item], &cell);
        assert_eq!(cell.drops.get(DropReason::TxNotReady), 1);
    }

    #[test]
    fn a_scattered_frame_is_gathered() {
        let Some(ns) = netns() else { return };
        let (port, control) = open(PortId(0), "a", &config(&ns, 1)).unwrap();
        set_address(&ns, "eth0", 1);
        let socket = ns
            .run(|| std::net::UdpSocket::bind("10.9.0.1:7000").unwrap())
            .unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let payload: Vec<u8> = (0..1400u16).map(|i| i.to_le_bytes()[0]).collect();
        let mut wire = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], control.info().mac.0)
            .ipv4([10, 9, 0, 9], [10, 9, 0, 1], 64)
            .udp(9, 7000)
            .write(&mut wire, &payload)
            .unwrap();
        for pieces in [1, PIECES_MAX - 2, PIECES_MAX - 1, 300] {
            let (head, tail) = wire.split_at(HEAD_CAP);
            let mut burst = Burst::new();
            let frame = burst.push().unwrap();
            frame.fill().copy_from_slice(head);
            frame.set_head_len(HEAD_CAP);
            for piece in tail.chunks(tail.len().div_ceil(pieces)) {
                let len = u32::try_from(piece.len()).unwrap();
                // SAFETY: `wire` outlives the burst.
                assert!(unsafe { burst.add_tail(piece.as_ptr(), len) });
            }
            let cell = PortCell::default();
            let item = OutItem { slot: 0, tag: None };
            port.txqs[0]
                .enter()
                .unwrap()
                .tx_burst(&burst, &[item], &cell);
            assert_eq!(cell.pkts.tx_pkts.get(), 1);
            let mut got = [0; 2048];
            let n = socket.recv(&mut got).unwrap();
            assert_eq!(got[..n], payload);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let Some(ns) = netns() else { return };
        let error = |c: &TapConfig| open(PortId(0), "a", c).unwrap_err().to_string();
        let mut c = config(&ns, 1);
        let _held = open(PortId(0), "a", &c).unwrap();
        assert!(error(&c).contains("another process uses it"));
        c.interface = "lo".to_owned();
        assert!(error(&c).contains("another kind"));
        c.interface = "sixteen-bytes-xx".to_owned();
        assert!(error(&c).contains("1 to 15 bytes"));
        c.netns = Some("no-such-namespace".to_owned());
        let e = open(PortId(0), "a", &c).unwrap_err();
        let source = std::error::Error::source(&e).unwrap().to_string();
        assert!(source.contains("/run/netns/no-such-namespace"), "{source}");
    }
}
