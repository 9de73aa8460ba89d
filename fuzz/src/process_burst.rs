//! Frames of any bytes, from any port, with any offload request, through a whole worker: two
//! tenants, VLANs, containers inside a VM, an uplink, a router, and policies that come and go.
//!
//! Never a panic; no frame lost or made up; and whatever a port receives is held against a second
//! reading of the frame and of the policy, which shares no code with the switch: who sent it, for
//! whom, under which rule or answer to what. A burst comes from one port, so every frame received
//! after it comes from there.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use vswitch::config;
use vswitch::control::state::Desired;
use vswitch::control::validate::workloads;
use vswitch::counters::PortValues;
use vswitch::datapath::quota::Groups;
use vswitch::datapath::snapshot::{
    AttachmentId, PortInput, Snapshot, SnapshotInput, WorkloadInput,
};
use vswitch::datapath::worker::{PollMode, Shared, Worker, WorkerConfig};
use vswitch::drop_reason::DropReason;
use vswitch::frame::{BURST_MAX, Csum, Gso, Offload, TxCaps};
use vswitch::policy::Classifier;
use vswitch::port::mem::{self, MemConfig, MemEnd};
use vswitch::port::{Port, PortId};
use vswitch::sys::eventfd::EventFd;

mod expect;
mod world;

use expect::Expect;
use world::{OFFLOADING, PORTS};

/// Small, so that quotas, eviction and a full table are within reach.
const CONNECTIONS: usize = 64;
const QUOTA: u32 = 20;
/// Waits and policies per input: they cost a hundred times what a frame does.
const CHANGES: u32 = 12;
/// Longest frame on the wire: MTU, Ethernet header, one tag.
const WIRE: u32 = 1518;

/// With the policy of `world`, and with one that denies everything.
static DESIRED: LazyLock<[Desired; 2]> = LazyLock::new(|| {
    let tenant = "[[tenant]]\nname = \"t\"\n";
    [world::POLICY, tenant]
        .map(|policy| config::parse(("switch", "policy"), world::SWITCH, policy).expect("valid"))
});

/// Ports and their other ends. They remember nothing once they are empty, as they are after every
/// burst, and are dear to make: one set serves all inputs.
struct Wires {
    ports: Vec<Arc<Port>>,
    ends: Vec<MemEnd>,
}

thread_local! {
    static WIRES: RefCell<Wires> = RefCell::new(Wires::new());
}

impl Wires {
    fn new() -> Wires {
        let (mut ports, mut ends) = (Vec::new(), Vec::new());
        for (id, name) in (0..).zip(PORTS) {
            let offloads = OFFLOADING.contains(&name);
            let config = MemConfig {
                ring_len: BURST_MAX,
                caps: TxCaps {
                    csum: offloads,
                    tso4: offloads,
                    tso6: offloads,
                    uso: offloads,
                    max_frame_bytes: WIRE,
                },
            };
            let (port, end) = mem::open(PortId(id), name, &config).expect("descriptors");
            ports.push(port);
            ends.push(end);
        }
        Wires { ports, ends }
    }
}

/// A switch that has seen nothing yet.
struct Rig<'w> {
    shared: Arc<Shared>,
    worker: Worker,
    wires: &'w mut Wires,
    now_ns: u64,
    groups: Groups,
    expect: Expect,
}

impl<'w> Rig<'w> {
    fn new(wires: &'w mut Wires) -> Rig<'w> {
        let table = flowtable::Config {
            capacity: CONNECTIONS,
            seed: Some([1, 2, 3, 4]),
            ..flowtable::Config::default()
        };
        let shared = Shared::new(1, PORTS.len(), table).expect("memory");
        let config = WorkerConfig {
            index: 0,
            core: None,
            poll: PollMode::Busy,
        };
        let wake = Arc::new(EventFd::new().expect("a descriptor"));
        let worker = Worker::new(Arc::clone(&shared), config, wake).expect("the first one");
        Rig {
            shared,
            worker,
            wires,
            now_ns: 1_000_000_000_000,
            groups: Groups::default(),
            expect: Expect::default(),
        }
    }

    /// Publishes one of the policies: the one of `world`, one that denies everything, none yet.
    fn publish(&mut self, which: u8) {
        let desired = &DESIRED[usize::from(which != 0)];
        let compiled = Classifier::compile(&desired.policy, &workloads(desired), None);
        let compiled = compiled.expect("valid");
        let (groups, segments) = self.groups.assign(&desired.policy, &workloads(desired));
        let mut residents = compiled.parties.into_iter().zip(groups);
        let mut attachment = 100;
        let inputs = desired
            .ports
            .iter()
            .zip(&self.wires.ports)
            .map(|(config, port)| {
                assert_eq!(config.name, port.name);
                let workloads = config.workloads.iter().map(|w| {
                    attachment += 1;
                    let (party, group) = residents.next().expect("one each");
                    WorkloadInput {
                        attachment: AttachmentId(attachment),
                        name: w.name.clone(),
                        party,
                        group,
                        macs: w.mac.clone(),
                        ips: w.ip.clone(),
                        vlan: w.vlan,
                    }
                });
                PortInput {
                    port: Arc::clone(port),
                    tenant: desired.policy.tenant_id(&config.tenant).expect("declared"),
                    vlan: config.vlan,
                    trunk: config.trunk.clone(),
                    uplink: config.uplink,
                    guard: config.guard,
                    routes: config.routes.clone(),
                    mtu: config.mtu,
                    max_connections: QUOTA,
                    attachment: AttachmentId(u32::from(port.id.0)),
                    workloads: workloads.collect(),
                }
            });
        let input = SnapshotInput {
            ports: inputs.collect(),
            classifier: (which < 2).then(|| Arc::new(compiled.classifier)),
            segments,
            workers: 1,
        };
        self.shared.publish(Snapshot::build(input));
        self.expect.allowing = which == 0;
    }

    /// Lets time pass, and the worker look at all connections meanwhile.
    fn wait(&mut self, secs: u64) {
        self.now_ns += secs * 1_000_000_000;
        for _ in 0..self.shared.table.buckets() {
            self.worker.step(self.now_ns);
        }
    }

    fn totals(&self) -> (PortValues, u64) {
        let (mut values, mut drops) = (PortValues::default(), 0);
        for cell in &self.shared.counters[0].ports {
            values.add(&cell.pkts);
            drops += DropReason::ALL
                .iter()
                .map(|r| cell.drops.get(*r))
                .sum::<u64>();
        }
        (values, drops)
    }

    /// Sends a burst by one port and looks at what comes of it.
    fn burst(&mut self, from: usize, frames: &[(Vec<u8>, Offload)]) {
        let (before, _) = self.totals();
        for (bytes, offload) in frames {
            self.wires.ends[from]
                .send_with(bytes, *offload)
                .expect("room for a burst");
        }
        self.worker.step(self.now_ns);
        self.now_ns += 1000;

        let (v, drops) = self.totals();
        assert_eq!(v.rx_pkts - before.rx_pkts, frames.len() as u64);
        assert_eq!(
            v.rx_pkts + v.originated_pkts + v.copies_pkts + v.extra_segments_pkts,
            v.tx_pkts + drops + v.consumed_pkts + (v.held_pkts - v.unheld_pkts),
            "a frame was lost or made up: {v:?}"
        );
        let mut received = 0;
        let mut bytes = Vec::new();
        self.expect.sent(frames);
        for (to, end) in self.wires.ends.iter_mut().enumerate() {
            while let Some(offload) = end.recv(&mut bytes) {
                received += 1;
                takes(PORTS[to], &bytes, offload);
                self.expect.received(PORTS[from], PORTS[to], &bytes);
            }
        }
        assert_eq!(v.tx_pkts - before.tx_pkts, received);
    }
}

/// A port is given nothing it cannot take.
fn takes(port: &str, bytes: &[u8], offload: Offload) {
    if !OFFLOADING.contains(&port) {
        assert_eq!(offload.gso, Gso::None, "{port} cannot segment");
        assert_ne!(offload.csum, Csum::Partial, "{port} cannot sum");
    }
    if offload.gso == Gso::None {
        assert!(bytes.len() <= WIRE as usize, "{port}: {}", bytes.len());
    }
}

/// What one step of an input does.
enum Step {
    Frame(Vec<u8>, Offload),
    Wait(u64),
    Publish(u8),
}

/// Reads one step: where (a port, or above them what else), and for a frame how: bits 0-1 checksum,
/// 2-3 segmentation, 6 complete the IPv4 header's checksum, 7 more frames follow in this burst; the segment
/// size; the frame's length (zeros follow the bytes given); how many bytes are given; the bytes.
fn step<'a>(input: &mut &'a [u8]) -> Option<(usize, bool, Step)> {
    let &[place, how, ref rest @ ..] = *input else {
        return None;
    };
    let place = usize::from(place % 11);
    if place >= PORTS.len() {
        *input = rest;
        let step = match place - PORTS.len() {
            0 => Step::Wait(1 + u64::from(how)),
            _ => Step::Publish(how % 3),
        };
        return Some((0, false, step));
    }
    let &[size_low, size_high, len_low, len_high, given, ref rest @ ..] = rest else {
        return None;
    };
    let (given, rest): (&'a [u8], _) = rest.split_at(usize::from(given).min(rest.len()));
    *input = rest;
    let mut bytes = given.to_vec();
    let len = usize::from(u16::from_le_bytes([len_low, len_high]));
    bytes.resize(len.max(bytes.len()), 0);
    if how & 0x40 != 0 {
        expect::complete_ipv4(&mut bytes);
    }
    let offload = Offload {
        csum: [Csum::Complete, Csum::Partial, Csum::Unknown, Csum::Valid][usize::from(how & 3)],
        gso: [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::UdpL4][usize::from(how >> 2 & 3)],
        gso_size: u16::from_le_bytes([size_low, size_high]),
    };
    Some((place, how & 0x80 != 0, Step::Frame(bytes, offload)))
}

/// See the module documentation.
pub fn run(input: &[u8]) {
    WIRES.with_borrow_mut(|wires| once(Rig::new(wires), input));
}

fn once(mut rig: Rig<'_>, mut input: &[u8]) {
    rig.publish(0);
    let (mut from, mut changes) = (0, 0);
    let mut burst = Vec::new();
    while let Some((place, more, step)) = step(&mut input) {
        let flush = place != from || !matches!(step, Step::Frame(..));
        if flush && !burst.is_empty() {
            rig.burst(from, &burst);
            burst.clear();
        }
        match step {
            Step::Frame(bytes, offload) => {
                from = place;
                burst.push((bytes, offload));
                if !more || burst.len() == BURST_MAX {
                    rig.burst(from, &burst);
                    burst.clear();
                }
            }
            _ if changes == CHANGES => return,
            Step::Wait(secs) => {
                changes += 1;
                rig.wait(secs);
            }
            Step::Publish(which) => {
                changes += 1;
                rig.publish(which);
            }
        }
    }
    if !burst.is_empty() {
        rig.burst(from, &burst);
    }
}
