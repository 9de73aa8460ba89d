//! Two mem ports, one workload on each, and a worker that is stepped by hand: the whole data path without threads or a kernel.
//! Also the pipeline benchmark's.

#![allow(
    unreachable_pub,
    reason = "the module is compiled into each file that uses it"
)]

use std::sync::Arc;

use vswitch::datapath::quota::GroupId;
use vswitch::datapath::snapshot::{
    AttachmentId, PortInput, Snapshot, SnapshotInput, WorkloadInput,
};
use vswitch::datapath::worker::{PollMode, Shared, Worker, WorkerConfig};
use vswitch::packet::Mac;
use vswitch::policy::model::{Policy, Rule, Segment};
use vswitch::policy::{Classifier, TenantId, WorkloadFacts};
use vswitch::port::PortId;
use vswitch::port::mem::{self, MemConfig, MemEnd};
use vswitch::sys::eventfd::EventFd;

pub struct Pair {
    pub shared: Arc<Shared>,
    pub worker: Worker,
    /// The workloads' ends: first `a`, then `b`.
    pub ends: Vec<MemEnd>,
}

impl Pair {
    /// Workload `a` on port 0 and `b` on port 1, each a segment; one rule, and room for this many connections.
    pub fn new(connections: usize, rule: Rule) -> Self {
        let table = flowtable::Config {
            capacity: connections,
            ..flowtable::Config::default()
        };
        let shared = Shared::new(1, 4, table).unwrap();
        let config = WorkerConfig {
            index: 0,
            core: None,
            poll: PollMode::Busy,
        };
        let wake = Arc::new(EventFd::new().unwrap());
        let worker = Worker::new(Arc::clone(&shared), config, wake).unwrap();
        let names = ["a", "b"];
        let policy = Policy {
            segments: names
                .map(|n| Segment {
                    names: vec![n.to_owned()],
                    ..Segment::new(n)
                })
                .to_vec(),
            rules: vec![rule],
            ..Policy::default()
        };
        let facts = names.map(|n| WorkloadFacts {
            name: n.to_owned(),
            ..WorkloadFacts::default()
        });
        let compiled = Classifier::compile(&policy, &facts, None).unwrap();
        let mut ends = Vec::new();
        let mut ports = Vec::new();
        for (i, (name, party)) in (0u8..).zip(names.into_iter().zip(compiled.parties)) {
            let config = MemConfig::default();
            let (port, end) = mem::open(PortId(u16::from(i)), name, &config).unwrap();
            ends.push(end);
            ports.push(PortInput {
                port,
                tenant: TenantId(0),
                vlan: 0,
                trunk: Vec::new(),
                uplink: false,
                guard: true,
                routes: Vec::new(),
                mtu: 1500,
                max_connections: u32::MAX,
                attachment: AttachmentId(u32::from(i)),
                workloads: vec![WorkloadInput {
                    attachment: AttachmentId(10 + u32::from(i)),
                    name: name.to_owned(),
                    party,
                    group: GroupId::NONE,
                    macs: vec![mac(i + 1)],
                    ips: vec![[10, 0, 0, i + 1].into()],
                    vlan: None,
                }],
            });
        }
        let classifier = Some(Arc::new(compiled.classifier));
        shared.publish(Snapshot::build(SnapshotInput {
            ports,
            classifier,
            segments: Vec::new(),
            workers: 1,
        }));
        Pair {
            shared,
            worker,
            ends,
        }
    }
}

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

/// A datagram from `a` to `b` with `payload` bytes.
pub fn datagram(sport: u16, dport: u16, payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(sport, dport)
        .write(&mut out, &vec![0; payload])
        .unwrap();
    out
}
