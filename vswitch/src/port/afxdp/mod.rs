//! A network interface through AF_XDP, on libc alone.
//!
//! [`open`] binds one socket per queue, loads a program that redirects each queue's frames to its
//! socket, and attaches it: native or generic, frames in one or several buffers, copied or
//! zero-copy, as the driver can. Kernel documentation: `Documentation/networking/af_xdp.rst`.
//!
//! **Fails closed.** Where no socket stands behind a queue the program drops. With
//! [`AfXdpConfig::outlive`] (a container's interface) the program is attached through rtnetlink and
//! stays when this process ends, however it ends: a container behind it reaches nobody, neither
//! the host nor a neighbour, until the switch is back (it recognises its own program and replaces
//! it without a gap) or the port is removed ([`AfXdpControl::detach`]). Without it (an uplink,
//! which the host may need) the program goes with the process.
//!
//! The interface is pinned by index and namespace: when it is removed, renamed or moved, the port
//! goes down ([`AfXdpControl::check`]) and a new interface of the old name is not adopted; open
//! the port anew for that.
//!
//! *Limits.* veth keeps VLAN tags beside the frame while its peer offloads them, where XDP does
//! not see them: a trunk needs `ethtool -K PEER txvlan off`. Partial checksums are recognised for
//! TCP and UDP, not for SCTP and not inside tunnels.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Port, PortId, RxQueue, TxQueue};
use crate::frame::TxCaps;
use crate::sys::ethtool;
use crate::sys::gate::Gate;
use crate::sys::netlink::{Link, LinkEvents, Netlink, NetlinkError, XdpMode};

mod bpf;
mod ring;
mod rx;
mod socket;
#[cfg(test)]
mod tests;
mod tx;
mod umem;

pub use rx::Rx;
pub use tx::Tx;

use bpf::{Program, SocketMap};
use socket::{Failed, Socket, Step};

/// How long a queue may look used after its socket was closed: the kernel frees it from a work
/// queue, after an RCU grace period. Seen: some 10 ms; the rest is for a busy machine.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// Bytes a frame has beyond the interface's MTU: Ethernet header and one VLAN tag.
const OVERHEAD: u32 = 18;

/// How to open an AF_XDP port.
#[derive(Clone, Debug)]
pub struct AfXdpConfig {
    /// The interface, in the calling thread's network namespace.
    pub interface: String,
    /// Most queues to use; `None`: as many as the interface has. Frames of queues beyond are
    /// dropped by the program, so fewer than it has is for tests.
    pub queues: Option<u16>,
    /// The program, and with it the drop, stays when this process ends.
    pub outlive: bool,
}

/// What probing found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AfXdpInfo {
    /// How the program is attached.
    pub mode: XdpMode,
    /// Whether frames reach and leave the driver without a copy by the kernel.
    pub zero_copy: bool,
    /// Whether frames longer than one buffer pass.
    pub multi_buffer: bool,
    /// Queues in use.
    pub queues: u32,
    /// The interface's MTU when it was last looked at, bytes.
    pub mtu: u32,
}

/// What a socket, or all of a port's, lost inside the kernel. Frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KernelDrops {
    /// No room, for another reason than the two below.
    pub rx_dropped: u64,
    /// The rx ring was full: we were too slow.
    pub rx_ring_full: u64,
    /// The fill ring was empty: as above, for a driver that takes buffers ahead.
    pub fill_ring_empty: u64,
    /// Descriptors of ours that the kernel refused; a bug when not 0.
    pub invalid_descriptors: u64,
}

/// Whether the interface is what it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// As opened, with a carrier.
    Up,
    /// As opened, but set down or without a carrier. It may come back.
    NoCarrier,
    /// Removed, or moved to another namespace.
    Gone,
    /// The interface now has another name, given here.
    Renamed(String),
    /// The program was taken off, or replaced, by somebody else.
    ProgramLost,
}

/// What to do when the interface is not there; the source says how to see which ones are.
fn later(error: &NetlinkError) -> &'static str {
    match error {
        NetlinkError::NoLink(_) => " (`optional = true` waits for one that comes later)",
        _ => "",
    }
}

/// Why an AF_XDP port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// The interface is not there, or cannot be read or set.
    #[error("af-xdp port {port}: its interface cannot be used{}", later(.source))]
    Interface {
        /// The port.
        port: String,
        /// What went wrong.
        #[source]
        source: NetlinkError,
    },
    /// A program of somebody else's is on the interface.
    #[error(
        "af-xdp port {port}: {interface} already has an XDP program (id {id}{name}), and only one \
         can be attached; remove it with `ip link set dev {interface} xdp off`"
    )]
    ForeignProgram {
        /// The port.
        port: String,
        /// The interface.
        interface: String,
        /// The program's id.
        id: u32,
        /// `, name …`, or why the name is not known.
        name: String,
    },
    /// Another process has a socket on the queue.
    #[error(
        "af-xdp port {port}: queue {queue} of {interface} is used by another AF_XDP socket; is \
         another vswitch running?"
    )]
    InUse {
        /// The port.
        port: String,
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// A capability is missing.
    #[error(
        "af-xdp port {port}: cannot {what} without {capability}; run the switch as root, or give it these"
    )]
    Permission {
        /// The port.
        port: String,
        /// What was tried.
        what: &'static str,
        /// Which capability allows it.
        capability: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not enough lockable memory.
    #[error(
        "af-xdp port {port}: the kernel may not lock {bytes} bytes of frame memory for this \
         process; it needs CAP_IPC_LOCK, or a higher limit (`ulimit -l`, LimitMEMLOCK=)"
    )]
    Memory {
        /// The port.
        port: String,
        /// How much was asked for.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The driver takes no program in any mode.
    #[error("af-xdp port {port}: no XDP program can be attached to {interface}")]
    Unsupported {
        /// The port.
        port: String,
        /// The interface.
        interface: String,
        /// The last refusal.
        #[source]
        source: io::Error,
    },
    /// Anything else the kernel refused.
    #[error("af-xdp port {port}: cannot {what} for {interface}")]
    Kernel {
        /// The port.
        port: String,
        /// The interface.
        interface: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Opens a port on an interface of the calling thread's network namespace, and sets the interface
/// up. The port's link is up when [`AfXdpControl::check`], called here once, says so.
///
/// Waits up to two seconds for a queue that is in use: the kernel frees one only a moment after its
/// socket was closed.
///
/// # Errors
/// See [`AfXdpError`]; the interface is left as it was, a drop of ours included.
pub fn open(
    id: PortId,
    name: &str,
    config: &AfXdpConfig,
) -> Result<(Arc<Port>, AfXdpControl), AfXdpError> {
    let context = Context {
        port: name,
        interface: &config.interface,
    };
    let mut netlink = Netlink::new().map_err(|e| context.interface(e))?;
    let events = LinkEvents::new().map_err(|e| context.interface(e))?;
    let link = netlink
        .link(&config.interface)
        .map_err(|e| context.interface(e))?;
    let old = context.leftover(&link)?;
    if !link.up {
        netlink
            .set_up(link.index, true)
            .map_err(|e| context.interface(e))?;
    }
    let has = ethtool::rx_queues(&config.interface)
        .map_err(|source| context.kernel("count the queues", source))?;
    let queues = has.min(config.queues.map_or(u32::MAX, u32::from)).max(1);

    let map = SocketMap::new(has).map_err(|e| context.bpf("create a BPF map", e))?;
    let mut opened = Vec::new();
    for queue in 0..queues {
        let o = open_socket(link.index, queue).map_err(|e| context.socket(queue, e))?;
        map.set(queue, o.socket.as_fd())
            .map_err(|e| context.kernel("put a socket into the map", e))?;
        opened.push(o);
    }
    // Last, so that from the first moment there is a socket behind it.
    let attachment = attach(&context, &mut netlink, &link, &map, old, config.outlive)?;

    let multi_buffer = attachment.frags && opened.iter().all(|o| o.socket.multi_buffer);
    let info = AfXdpInfo {
        mode: attachment.mode,
        zero_copy: opened.iter().all(|o| o.socket.zero_copy),
        multi_buffer,
        queues,
        mtu: link.mtu,
    };
    let caps = TxCaps {
        max_frame_bytes: max_frame_bytes(&info),
        ..TxCaps::default()
    };
    let (mut rxqs, mut txqs, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
    for o in opened {
        let socket = Arc::new(o.socket);
        rxqs.push(Gate::new(RxQueue::AfXdp(Rx::new(
            socket.clone(),
            o.rx,
            o.fill,
        ))));
        txqs.push(Gate::new(TxQueue::AfXdp(Tx::new(
            socket.clone(),
            o.tx,
            o.completion,
            caps,
        ))));
        sockets.push(socket);
    }
    let port = Arc::new(Port::new(id, name, rxqs, txqs));
    let mut control = AfXdpControl {
        netlink,
        events,
        index: link.index,
        interface: config.interface.clone(),
        program_id: None,
        attachment,
        info,
        sockets,
        port: port.clone(),
        stopped: false,
    };
    control.program_id = control
        .netlink
        .link_by_index(link.index)
        .ok()
        .and_then(|l| l.xdp.first().copied());
    control.check();
    Ok((port, control))
}

/// Opens a socket on a queue that a predecessor may have closed a moment ago.
fn open_socket(interface: u32, queue: u32) -> Result<socket::Opened, Failed> {
    let deadline = Instant::now() + RELEASE_WAIT;
    loop {
        match Socket::open(interface, queue) {
            Err(e) if e.is_busy() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn max_frame_bytes(info: &AfXdpInfo) -> u32 {
    let by_mtu = info.mtu.saturating_add(OVERHEAD);
    if info.multi_buffer {
        by_mtu
    } else {
        by_mtu.min(umem::CHUNK)
    }
}

/// Attaches the program in the best way the driver has: native before generic, several buffers
/// before one.
fn attach(
    context: &Context<'_>,
    netlink: &mut Netlink,
    link: &Link,
    map: &SocketMap,
    old: Option<Program>,
    outlive: bool,
) -> Result<Attachment, AfXdpError> {
    let old = match old {
        Some(old) if !outlive => {
            // A link cannot take the place of a program without one, so there is a gap here.
            for mode in [XdpMode::Native, XdpMode::Generic] {
                let _ = netlink.detach_xdp(link.index, old.fd.as_raw_fd(), mode);
            }
            None
        }
        old => old,
    };
    let mut last = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    for (mode, frags) in [
        (XdpMode::Native, true),
        (XdpMode::Native, false),
        (XdpMode::Generic, true),
        (XdpMode::Generic, false),
    ] {
        let program = match Program::load(map, frags) {
            Ok(program) => program,
            // Linux before 5.18 does not know the flag.
            Err(e) if frags && e.raw_os_error() == Some(libc::EINVAL) => continue,
            Err(e) => return Err(context.bpf("load the XDP program", e)),
        };
        let result = if outlive {
            let instead = old.as_ref().map(|p| p.fd.as_raw_fd());
            netlink
                .attach_xdp(link.index, program.fd.as_raw_fd(), mode, instead)
                .map(|()| None)
                .map_err(|e| match e {
                    NetlinkError::Refused { source, .. } => Ok(source),
                    e => Err(context.interface(e)),
                })
        } else {
            program.link(link.index, mode).map(Some).map_err(Ok)
        };
        last = match result {
            Ok(link) => {
                return Ok(Attachment {
                    program,
                    _link: link,
                    mode,
                    frags,
                    outlive,
                });
            }
            Err(Err(e)) => return Err(e),
            Err(Ok(e)) => e,
        };
        match last.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                return Err(context.bpf("attach the XDP program", last));
            }
            // A program came since we looked. (With an old one it may only stand in the other mode.)
            Some(libc::EBUSY | libc::EEXIST) if old.is_none() => {
                return Err(AfXdpError::ForeignProgram {
                    port: context.port.to_owned(),
                    interface: context.interface.to_owned(),
                    id: 0,
                    name: ", attached a moment ago".to_owned(),
                });
            }
            _ => {}
        }
    }
    Err(AfXdpError::Unsupported {
        port: context.port.to_owned(),
        interface: context.interface.to_owned(),
        source: last,
    })
}

#[derive(Debug)]
struct Attachment {
    program: Program,
    /// Detaches when closed; `None` for a program that outlives us.
    _link: Option<OwnedFd>,
    mode: XdpMode,
    frags: bool,
    outlive: bool,
}

/// The control thread's side of a port. Dropping it leaves the program of an
/// [outliving](AfXdpConfig::outlive) port in place, dropping everything.
#[derive(Debug)]
pub struct AfXdpControl {
    netlink: Netlink,
    events: LinkEvents,
    index: u32,
    interface: String,
    program_id: Option<u32>,
    attachment: Attachment,
    info: AfXdpInfo,
    sockets: Vec<Arc<Socket>>,
    port: Arc<Port>,
    stopped: bool,
}

impl AfXdpControl {
    /// What probing found.
    #[must_use]
    pub fn info(&self) -> AfXdpInfo {
        self.info
    }

    /// Readable when some interface changed: then call [`AfXdpControl::check`].
    #[must_use]
    pub fn events_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// Looks at the interface and sets the port's link accordingly. When it is no longer the one
    /// that was opened, the queues stop, for good: open the port anew. A changed MTU is adopted.
    /// Waits for a worker's present burst at most.
    pub fn check(&mut self) -> Health {
        self.events.drain();
        let health = match self.netlink.link_by_index(self.index) {
            Err(_) => Health::Gone,
            Ok(link) if link.name != self.interface => Health::Renamed(link.name),
            Ok(link) if self.program_id.is_none_or(|id| !link.xdp.contains(&id)) => {
                Health::ProgramLost
            }
            Ok(link) => {
                if link.mtu != self.info.mtu {
                    self.info.mtu = link.mtu;
                    let bytes = max_frame_bytes(&self.info);
                    self.each_tx(|tx| tx.set_max_frame_bytes(bytes));
                }
                if link.running {
                    Health::Up
                } else {
                    Health::NoCarrier
                }
            }
        };
        let stop = !matches!(health, Health::Up | Health::NoCarrier);
        if stop && !self.stopped {
            self.stopped = true;
            self.each_tx(|tx| tx.stop(true));
            for q in &self.port.rxqs {
                if let RxQueue::AfXdp(rx) = &mut *q.lock() {
                    rx.stop(true);
                }
            }
        }
        let up = health == Health::Up && !self.stopped;
        let was_up = self.port.link_up.swap(up, Ordering::Relaxed);
        if up && !was_up {
            self.each_tx(Tx::resume);
        }
        health
    }

    fn each_tx(&self, mut f: impl FnMut(&mut Tx)) {
        for q in &self.port.txqs {
            if let TxQueue::AfXdp(tx) = &mut *q.lock() {
                f(tx);
            }
        }
    }

    /// What the kernel dropped at this port's sockets, since they were opened.
    #[must_use]
    pub fn kernel_drops(&self) -> KernelDrops {
        let mut sum = KernelDrops::default();
        for s in self.sockets.iter().filter_map(|s| s.statistics().ok()) {
            sum.rx_dropped += s.rx_dropped;
            sum.rx_ring_full += s.rx_ring_full;
            sum.fill_ring_empty += s.rx_fill_ring_empty_descs;
            sum.invalid_descriptors += s.rx_invalid_descs + s.tx_invalid_descs;
        }
        sum
    }

    /// Takes the program off the interface: from now on its frames go to the host's stack. For a
    /// port that is removed on purpose.
    ///
    /// # Errors
    /// The program on the interface is not ours any more, or no CAP_NET_ADMIN.
    pub fn detach(mut self) -> Result<(), AfXdpError> {
        self.port.link_up.store(false, Ordering::Relaxed);
        if !self.attachment.outlive {
            return Ok(());
        }
        let result = self.netlink.detach_xdp(
            self.index,
            self.attachment.program.fd.as_raw_fd(),
            self.attachment.mode,
        );
        match result {
            // The interface went, and the program with it.
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
            Err(source) => Err(AfXdpError::Interface {
                port: self.port.name.clone(),
                source,
            }),
            Ok(()) => Ok(()),
        }
    }
}

/// What errors say about the port.
struct Context<'a> {
    port: &'a str,
    interface: &'a str,
}

impl Context<'_> {
    /// Our own program, left by a predecessor; `None` when the interface has none.
    fn leftover(&self, link: &Link) -> Result<Option<Program>, AfXdpError> {
        let Some(id) = link.xdp.first().copied() else {
            return Ok(None);
        };
        let foreign = |name: String| AfXdpError::ForeignProgram {
            port: self.port.to_owned(),
            interface: self.interface.to_owned(),
            id,
            name,
        };
        let program = Program::open(id).map_err(|e| {
            foreign(match e.raw_os_error() {
                Some(libc::EPERM) => {
                    "; telling whether it was left by vswitch needs CAP_SYS_ADMIN".to_owned()
                }
                _ => format!("; it cannot be opened: {e}"),
            })
        })?;
        let name = program.name().map_err(|e| foreign(format!("; {e}")))?;
        if name == bpf::NAME && link.xdp.len() == 1 {
            Ok(Some(program))
        } else {
            Err(foreign(format!(", name {name}")))
        }
    }

    fn interface(&self, source: NetlinkError) -> AfXdpError {
        AfXdpError::Interface {
            port: self.port.to_owned(),
            source,
        }
    }

    fn kernel(&self, what: &'static str, source: io::Error) -> AfXdpError {
        AfXdpError::Kernel {
            port: self.port.to_owned(),
            interface: self.interface.to_owned(),
            what,
            source,
        }
    }

    fn permission(
        &self,
        what: &'static str,
        capability: &'static str,
        source: io::Error,
    ) -> AfXdpError {
        AfXdpError::Permission {
            port: self.port.to_owned(),
            what,
            capability,
            source,
        }
    }

    fn bpf(&self, what: &'static str, source: io::Error) -> AfXdpError {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                self.permission(what, "CAP_BPF and CAP_NET_ADMIN", source)
            }
            _ => self.kernel(what, source),
        }
    }

    fn socket(&self, queue: u32, failed: Failed) -> AfXdpError {
        let Failed { step, source } = failed;
        match (step, source.raw_os_error()) {
            (Step::Create, Some(libc::EPERM)) => {
                self.permission("open an AF_XDP socket", "CAP_NET_RAW", source)
            }
            (Step::Create, Some(libc::EAFNOSUPPORT)) => self.kernel(
                "open an AF_XDP socket (the kernel has none: CONFIG_XDP_SOCKETS)",
                source,
            ),
            (Step::Memory, Some(libc::ENOBUFS | libc::EPERM | libc::ENOMEM)) => {
                AfXdpError::Memory {
                    port: self.port.to_owned(),
                    bytes: 2 * u64::from(umem::CHUNKS) * u64::from(umem::CHUNK),
                    source,
                }
            }
            (Step::Bind, Some(libc::EBUSY)) => AfXdpError::InUse {
                port: self.port.to_owned(),
                interface: self.interface.to_owned(),
                queue,
            },
            (Step::Create, _) => self.kernel("open an AF_XDP socket", source),
            (Step::Memory, _) => self.kernel("register frame memory", source),
            (Step::Rings, _) => self.kernel("set up the rings of an AF_XDP socket", source),
            (Step::Bind, _) => self.kernel("bind an AF_XDP socket", source),
        }
    }
}
