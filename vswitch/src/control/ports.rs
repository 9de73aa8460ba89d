//! Opening and closing ports: the one place that knows which kinds there are.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::api::XdpInfo;
use super::apply::ApplyError;
use super::state::{PortConfig, PortKind};
use crate::counters::{Counters, PortValues};
use crate::drop_reason::DropReason;
use crate::port::afxdp::{self, AfXdpConfig, AfXdpControl, AfXdpError, Health};
use crate::port::mem::{self, MemConfig, MemEnd, MemError};
use crate::port::pcap::{self, PcapConfig, PcapError};
use crate::port::tap::{self, TapConfig, TapControl, TapError};
use crate::port::vhost::{self, VhostConfig, VhostControl, VhostError};
use crate::port::{Port, PortId};
use crate::sys::netlink::{Netlink, NetlinkError, XdpMode};
use crate::sys::netns::NetNs;
use crate::sys::time::monotonic_ns;

/// Why a port could not be opened: what, where, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// An in-process port.
    #[error(transparent)]
    Mem(#[from] MemError),
    /// An AF_XDP port.
    #[error("{}", chain(.0))]
    AfXdp(#[from] AfXdpError),
    /// A tap port.
    #[error("{}", chain(.0))]
    Tap(#[from] TapError),
    /// A vhost-user port.
    #[error("vhost-user port {port}: {}", chain(.source))]
    Vhost {
        /// The port.
        port: String,
        /// Why.
        #[source]
        source: VhostError,
    },
    /// A pcap port.
    #[error("{}", chain(.0))]
    Pcap(#[from] PcapError),
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

/// A port that is open, and what the control thread needs to keep it so. Dropping it closes it.
#[derive(Debug)]
pub(super) struct OpenPort {
    pub(super) config: PortConfig,
    pub(super) port: Arc<Port>,
    pub(super) control: PortControl,
    /// Its interface is gone or not there yet, and with it every use of this port; one of that name may come.
    pub(super) orphaned: bool,
    /// The namespace a tap's device was moved into.
    netns: Option<(u64, u64)>,
    /// Why the interface that came could not be used, so that it is said once.
    not_renewed: Option<String>,
    /// What an af-xdp port's interface was when it was looked at last.
    health: Option<Health>,
    /// What the counters of its number said when it was opened: numbers are reused.
    baseline: Totals,
}

/// The control side of a port, by kind.
#[derive(Debug)]
pub(super) enum PortControl {
    /// The application's end, until it is taken.
    Mem(Option<MemEnd>),
    /// Its interface and program.
    AfXdp(Box<AfXdpControl>),
    /// Its socket and the guest's session.
    Vhost(Box<VhostControl>),
    /// Files need no care.
    Pcap,
    /// Its device.
    Tap(Box<TapControl>),
    /// Nothing: its interface is not there yet.
    Absent,
}

impl OpenPort {
    /// The namespace that a tap's device belongs in, as it is now; `None` when it is not there.
    fn namespace(config: &PortConfig) -> Option<(u64, u64)> {
        match &config.kind {
            PortKind::Tap { netns: Some(n), .. } => NetNs::open(n).ok()?.id().ok(),
            _ => None,
        }
    }

    /// Opens a port as number `id`. Nothing passes through it before it stands in a snapshot.
    pub(super) fn open(
        id: PortId,
        config: &PortConfig,
        counters: &[Arc<Counters>],
    ) -> Result<Self, PortError> {
        let name = &config.name;
        let mut health = None;
        let (port, control) = match &config.kind {
            PortKind::Mem => {
                let (port, end) = mem::open(id, name, &MemConfig::default())?;
                (port, PortControl::Mem(Some(end)))
            }
            PortKind::AfXdp { interface } => {
                let config = AfXdpConfig {
                    interface: interface.clone(),
                    queues: config.queues,
                    // An uplink's host may have its interface back when we are gone; a container
                    // must never reach the host's stack instead of the firewall.
                    outlive: !config.uplink,
                };
                let (port, mut control) = afxdp::open(id, name, &config)?;
                health = Some(control.check());
                (port, PortControl::AfXdp(Box::new(control)))
            }
            PortKind::VhostUser {
                socket,
                client,
                owner,
            } => {
                let config = VhostConfig {
                    name: name.clone(),
                    socket: socket.clone(),
                    client: *client,
                    owner: *owner,
                    queues: config.queues,
                    mtu: config.mtu,
                };
                let failed = |source| PortError::Vhost {
                    port: name.clone(),
                    source,
                };
                let (port, mut control) = vhost::open(id, config).map_err(failed)?;
                control.tick(monotonic_ns());
                (port, PortControl::Vhost(Box::new(control)))
            }
            PortKind::Tap { interface, netns } => {
                let config = TapConfig {
                    interface: interface.clone(),
                    netns: netns.clone(),
                    queues: config.queues.unwrap_or(1),
                    // The device is the workload's: it has the workload's MAC.
                    mac: config
                        .workloads
                        .first()
                        .and_then(|w| w.mac.first())
                        .copied(),
                    mtu: config.mtu,
                };
                let (port, mut control) = tap::open(id, name, &config)?;
                control.check();
                (port, PortControl::Tap(Box::new(control)))
            }
            PortKind::Pcap { input, output } => {
                let config = PcapConfig {
                    input: input.clone(),
                    output: output.clone(),
                };
                let (port, _) = pcap::open(id, name, &config)?;
                (port, PortControl::Pcap)
            }
        };
        Ok(OpenPort {
            config: config.clone(),
            port,
            control,
            orphaned: false,
            netns: Self::namespace(config),
            not_renewed: None,
            health,
            baseline: Totals::read(counters, id),
        })
    }

    /// A port without queues, in the place of an `optional` one that cannot be opened because its
    /// interface, or the namespace it goes to, is not there; `None` when `error` says something else.
    pub(super) fn absent(
        id: PortId,
        config: &PortConfig,
        counters: &[Arc<Counters>],
        error: &PortError,
    ) -> Option<Self> {
        let missing = match error {
            PortError::AfXdp(AfXdpError::Interface { source, .. }) => {
                matches!(source, NetlinkError::NoLink(_))
            }
            PortError::Tap(TapError::NetNs { source, .. }) => source.is_missing(),
            _ => false,
        };
        if !missing || !config.optional {
            return None;
        }
        warn!("not there yet; attached when it is: {error}");
        Some(OpenPort {
            config: config.clone(),
            port: Arc::new(Port::new(id, &config.name, Vec::new(), Vec::new())),
            control: PortControl::Absent,
            orphaned: true,
            netns: None,
            not_renewed: None,
            health: None,
            baseline: Totals::read(counters, id),
        })
    }

    /// Notices that a tap's namespace is gone, or another of its name is there: a restarted
    /// container's. Nothing tells; the device lives on where nobody is.
    pub(super) fn check_namespace(&mut self) {
        if !self.orphaned && self.netns.is_some() && self.netns != Self::namespace(&self.config) {
            self.orphaned = true;
            self.port.link_up.store(false, Ordering::Relaxed);
            warn!(
                port = self.config.name,
                "its network namespace is gone; attached again when it is back"
            );
        }
    }

    /// Whether what an orphaned port waits for is there: cheap, so that waiting is.
    pub(super) fn interface_is_back(&self) -> bool {
        match &self.config.kind {
            PortKind::AfXdp { interface } => {
                Netlink::new().is_ok_and(|mut netlink| netlink.link(interface).is_ok())
            }
            PortKind::Tap { netns, .. } => netns.as_ref().is_none_or(|n| NetNs::open(n).is_ok()),
            _ => false,
        }
    }

    /// Says why an interface that is back cannot be attached.
    pub(super) fn not_renewed(&mut self, error: &ApplyError) {
        let text = error.to_string();
        if self.not_renewed.as_ref() != Some(&text) {
            warn!(
                port = self.config.name,
                "its interface is there but cannot be attached; tried again every second: {text}"
            );
        }
        self.not_renewed = Some(text);
    }

    /// Why the port is down, or what else is wrong, and what to do; `None` when nothing is.
    pub(super) fn trouble(&self) -> Option<String> {
        if self.orphaned {
            return Some(self.orphan_trouble());
        }
        if let PortControl::Vhost(c) = &self.control {
            return c.trouble();
        }
        if self.port.is_up() {
            return None;
        }
        let text = match (&self.config.kind, &self.health) {
            (PortKind::AfXdp { interface }, Some(Health::ProgramLost)) => format!(
                "somebody took the switch's XDP program off {interface}, or replaced it; remove \
                 theirs (`ip link set dev {interface} xdp off`), then remove and add the port"
            ),
            (PortKind::AfXdp { interface }, _) => format!(
                "{interface} has no carrier or is set down; set it and its peer up \
                 (`ip link set dev {interface} up`)"
            ),
            (PortKind::Tap { interface, netns }, _) => {
                let namespace = netns
                    .as_ref()
                    .map_or_else(String::new, |n| format!(" -n {n}"));
                format!(
                    "{interface} is set down or was deleted; set it up \
                     (`ip{namespace} link set dev {interface} up`), or remove and add the port"
                )
            }
            (PortKind::Mem, _) => "the program's end of it is closed".to_owned(),
            (PortKind::Pcap { .. } | PortKind::VhostUser { .. }, _) => "it is closed".to_owned(),
        };
        Some(text)
    }

    /// What a port without its interface waits for.
    fn orphan_trouble(&self) -> String {
        match (&self.config.kind, &self.not_renewed) {
            (_, Some(why)) if self.interface_is_back() => {
                format!(
                    "its interface is there but cannot be attached, tried again every second: {why}"
                )
            }
            (PortKind::Tap { netns: Some(n), .. }, _) => format!(
                "there is no network namespace {n}; the port is attached when it comes (`ip netns` shows those there are)"
            ),
            (PortKind::AfXdp { interface } | PortKind::Tap { interface, .. }, _) => format!(
                "there is no interface {interface}; the port is attached when it comes (`ip link` shows those there are)"
            ),
            _ => "it waits for its interface".to_owned(),
        }
    }

    /// How an af-xdp port is attached, while it is.
    pub(super) fn xdp(&self) -> Option<XdpInfo> {
        let PortControl::AfXdp(c) = &self.control else {
            return None;
        };
        let info = c.info();
        (!self.orphaned).then(|| XdpInfo {
            mode: match info.mode {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
            }
            .to_owned(),
            copy: if info.zero_copy { "zero-copy" } else { "copy" }.to_owned(),
            multi_buffer: info.multi_buffer,
            queues: info.queues,
            mtu: info.mtu,
        })
    }

    /// The descriptor that is readable when [`OpenPort::ready`] has something to do.
    pub(super) fn fd(&self) -> Option<RawFd> {
        match &self.control {
            PortControl::Mem(_) | PortControl::Pcap | PortControl::Absent => None,
            PortControl::Vhost(c) => Some(c.fd()),
            PortControl::AfXdp(c) => Some(c.events_fd()),
            PortControl::Tap(c) => Some(c.events_fd()),
        }
    }

    /// Serves whatever happened.
    pub(super) fn ready(&mut self, now_ns: u64) {
        match &mut self.control {
            PortControl::Mem(_) | PortControl::Pcap | PortControl::Absent => {}
            PortControl::Vhost(c) => c.ready(now_ns),
            // In a namespace that is gone there is nothing to see.
            PortControl::Tap(_) if self.orphaned => {}
            PortControl::Tap(c) => {
                c.check();
            }
            PortControl::AfXdp(c) => {
                let was_up = self.port.is_up();
                let health = c.check();
                self.health = Some(health.clone());
                match health {
                    Health::Up | Health::NoCarrier if was_up == self.port.is_up() => {}
                    Health::Gone | Health::Renamed(_) if self.orphaned => {}
                    health @ (Health::Gone | Health::Renamed(_)) => {
                        self.orphaned = true;
                        warn!(
                            port = self.config.name,
                            ?health,
                            "interface lost; it is attached again when it is back"
                        );
                    }
                    health => warn!(port = self.config.name, ?health, "interface changed"),
                }
            }
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now_ns: u64) {
        if let PortControl::Vhost(c) = &mut self.control {
            c.tick(now_ns);
        }
    }

    /// When [`OpenPort::tick`] has something to do.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        match &self.control {
            PortControl::Vhost(c) => c.next_deadline(),
            _ => None,
        }
    }

    /// Connections to its socket refused so far.
    pub(super) fn refused_connections(&self) -> u64 {
        match &self.control {
            PortControl::Vhost(c) => c.refused(),
            _ => 0,
        }
    }

    /// The machine that is attached to it, by number: another one has another.
    pub(super) fn machine(&self) -> Option<u64> {
        match &self.control {
            PortControl::Vhost(c) => c.connected(),
            _ => None,
        }
    }

    /// Closes a port that was removed on purpose.
    pub(super) fn close(self) {
        info!(port = self.config.name, "closed");
        if let PortControl::AfXdp(c) = self.control
            && !self.orphaned
            && let Err(e) = c.detach()
        {
            warn!(port = self.config.name, "{}", chain(&e));
        }
    }

    /// Whether the port, as it is open, also serves `config`: only what the snapshot says changes.
    pub(super) fn serves(&self, config: &PortConfig) -> bool {
        let mine = &self.config;
        mine.kind == config.kind && mine.queues == config.queues && mine.mtu == config.mtu
    }

    /// Whether both cannot be open at the same time.
    pub(super) fn collides(&self, config: &PortConfig) -> bool {
        use PortKind::{AfXdp, Tap, VhostUser};
        match (&self.config.kind, &config.kind) {
            (VhostUser { socket: a, .. }, VhostUser { socket: b, .. }) => a == b,
            (AfXdp { interface: a }, AfXdp { interface: b }) => a == b,
            (
                AfXdp { interface: a },
                Tap {
                    interface: b,
                    netns,
                },
            )
            | (
                Tap {
                    interface: b,
                    netns,
                },
                AfXdp { interface: a },
            ) => netns.is_none() && a == b,
            // In a namespace of its own each container's device may be `eth0`.
            (
                Tap {
                    interface: a,
                    netns: of_a,
                },
                Tap {
                    interface: b,
                    netns: of_b,
                },
            ) => (a, of_a) == (b, of_b),
            _ => false,
        }
    }

    /// The port's numbers since it was opened.
    pub(super) fn totals(&self, counters: &[Arc<Counters>]) -> Totals {
        let mut now = Totals::read(counters, self.port.id);
        now.since(&self.baseline);
        now
    }
}

/// One port's counters and drops, all workers together.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    pub(super) pkts: PortValues,
    pub(super) drops: [u64; DropReason::COUNT],
}

impl Default for Totals {
    fn default() -> Self {
        Totals {
            pkts: PortValues::default(),
            drops: [0; DropReason::COUNT],
        }
    }
}

impl Totals {
    pub(super) fn read(counters: &[Arc<Counters>], id: PortId) -> Self {
        let mut totals = Totals::default();
        for worker in counters {
            let Some(cell) = worker.ports.get(usize::from(id.0)) else {
                continue;
            };
            totals.pkts.add(&cell.pkts);
            for (sum, reason) in totals.drops.iter_mut().zip(DropReason::ALL) {
                *sum = sum.wrapping_add(cell.drops.get(*reason));
            }
        }
        totals
    }

    fn since(&mut self, start: &Totals) {
        self.pkts.subtract(&start.pkts);
        for (sum, before) in self.drops.iter_mut().zip(start.drops) {
            *sum = sum.wrapping_sub(before);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Reasons that happened.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .iter()
            .copied()
            .zip(self.drops)
            .filter(|(_, n)| *n != 0)
    }
}
