//! Two containers behind veth pairs: network namespaces without names, which are gone with this process however it
//! ends.

use std::sync::Arc;

use super::frames::MACS;
use super::rig::{self, RigConfig, port};
use super::{BenchError, Cores};
use crate::control::Switch;
use crate::control::state::PortKind;
use crate::counters::PortCell;
use crate::frame::{BURST_MAX, Burst, Offload, OutItem};
use crate::port::afxdp::{self, AfXdpConfig, AfXdpControl};
use crate::port::mem::{self, MemConfig, MemEnd};
use crate::port::{Port, PortId};
use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;

/// The switch's ends of the pairs, and what the containers' are called.
const HOST: [&str; 2] = ["veth-0", "veth-1"];
const INSIDE: &str = "eth0";

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Veth {
    host: NetNs,
    pub(super) containers: [NetNs; 2],
    /// The number of the first one's workload.
    first: usize,
}

impl Veth {
    /// For the workloads number `first` and the next one.
    pub(super) fn pair(first: usize) -> Result<Self, BenchError> {
        let new = || NetNs::anonymous().map_err(BenchError::NoNamespaces);
        let veth = Veth {
            host: new()?,
            containers: [new()?, new()?],
            first,
        };
        let mut host = Netlink::in_netns(&veth.host)?;
        let macs = MACS.iter().skip(first);
        for ((name, ns), mac) in HOST.iter().zip(&veth.containers).zip(macs) {
            host.create_veth(name, INSIDE, Some(ns), 1)?;
            let mut inside = Netlink::in_netns(ns)?;
            let end = inside.link(INSIDE)?.index;
            inside.set_mac(end, *mac)?;
            inside.set_up(end, true)?;
            let end = host.link(name)?.index;
            host.set_up(end, true)?;
        }
        Ok(veth)
    }

    /// A switch with these two ports.
    pub(super) fn switch(&self, cores: Cores, config: RigConfig) -> Result<Switch, BenchError> {
        let connections = config.connections;
        // Its control thread opens interfaces where it was started.
        let started = self.host.run(|| {
            let switch = rig::switch(cores, config)?;
            for (i, name) in (self.first..).zip(HOST) {
                let kind = PortKind::AfXdp {
                    interface: name.to_owned(),
                };
                switch.add_port(port(i, kind, connections))?;
            }
            rig::wait_up(&switch, HOST.len())?;
            Ok(switch)
        });
        started.map_err(BenchError::NoNamespaces)?
    }

    /// Takes the containers' ends of the pairs, which their kernels no longer get anything from.
    pub(super) fn links([a, b]: &[NetNs; 2]) -> Result<[Link; 2], BenchError> {
        let link = |ns: &NetNs| ns.run(Link::open).map_err(BenchError::NoNamespaces)?;
        Ok([link(a)?, link(b)?])
    }
}

/// A container's end of a pair, through a socket of our own.
#[derive(Debug)]
pub(super) struct Link {
    wire: Arc<Port>,
    /// Keeps it attached.
    _control: AfXdpControl,
    /// Frames as bytes: what a frame is to the ports, and where its rest lies, is theirs to know.
    bytes: Arc<Port>,
    end: MemEnd,
    burst: Burst,
    cell: PortCell,
    frame: Vec<u8>,
}

impl Link {
    fn open() -> Result<Self, BenchError> {
        let config = AfXdpConfig {
            interface: INSIDE.to_owned(),
            queues: None,
            outlive: false,
        };
        let (wire, control) = afxdp::open(PortId(0), INSIDE, &config)?;
        let (bytes, end) = mem::open(PortId(1), INSIDE, &MemConfig::default())?;
        Ok(Link {
            wire,
            _control: control,
            bytes,
            end,
            burst: Burst::new(),
            cell: PortCell::default(),
            frame: Vec::with_capacity(2048),
        })
    }

    /// Puts a frame into the next burst, if there is room.
    #[inline]
    pub(super) fn push(&mut self, frame: &[u8]) -> bool {
        self.end.send(frame).is_ok()
    }

    /// Sends what was pushed.
    #[inline]
    pub(super) fn flush(&mut self) {
        carry(&self.bytes, &self.wire, &mut self.burst, &self.cell);
        if let Some(mut queue) = self.wire.txq(0).and_then(|q| q.enter()) {
            queue.maintain();
        }
    }

    /// Shows every frame that came to `sink`.
    #[inline]
    pub(super) fn receive(&mut self, mut sink: impl FnMut(&[u8])) {
        carry(&self.wire, &self.bytes, &mut self.burst, &self.cell);
        while self.end.recv(&mut self.frame).is_some() {
            sink(&self.frame);
        }
    }
}

/// A burst from one port to the other.
#[inline]
fn carry(from: &Port, to: &Port, burst: &mut Burst, cell: &PortCell) {
    let rx = from.rxqs.first().and_then(|q| q.enter());
    let tx = to.txq(0).and_then(|q| q.enter());
    let (Some(mut rx), Some(mut tx)) = (rx, tx) else {
        return;
    };
    rx.rx_burst(burst, cell);
    for frame in burst.frames_mut() {
        // As it is: nobody here has a checksum to complete.
        frame.offload = Offload::default();
    }
    #[allow(clippy::cast_possible_truncation)] // below BURST_MAX
    let item = |slot: usize| OutItem {
        slot: slot as u16,
        tag: None,
    };
    let items: [OutItem; BURST_MAX] = std::array::from_fn(item);
    if let Some(items) = items.get(..burst.received()) {
        tx.tx_burst(burst, items, cell);
    }
    rx.complete(burst);
    burst.clear();
}
