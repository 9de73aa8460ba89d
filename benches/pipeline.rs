//! The whole data path over in-process ports: one worker, one thread, 60-byte UDP frames in
//! bursts of 32. What it costs to parse, guard, look up, track and forward a frame, with the
//! cheapest possible I/O. `cargo bench --bench pipeline`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vswitch::datapath::snapshot::{
    AttachmentId, PortInput, Snapshot, SnapshotInput, WorkloadInput,
};
use vswitch::datapath::worker::{PollMode, Shared, Worker, WorkerConfig};
use vswitch::packet::Mac;
use vswitch::policy::model::{Action, Policy, Rule, Segment};
use vswitch::policy::{Classifier, TenantId, WorkloadFacts};
use vswitch::port::PortId;
use vswitch::port::mem::{self, MemConfig, MemEnd};
use vswitch::sys::eventfd::EventFd;

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn udp(flow: u32) -> Vec<u8> {
    let [_, net, host_hi, host_lo] = flow.to_be_bytes();
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(
            u16::from_be_bytes([host_hi, host_lo]),
            1000 + u16::from(net),
        )
        .write(&mut out, &[0; 18])
        .unwrap();
    out
}

struct Rig {
    worker: Worker,
    ends: Vec<MemEnd>,
    shared: Arc<Shared>,
    now_ns: u64,
    received: Vec<u8>,
}

impl Rig {
    fn new() -> Self {
        let table = flowtable::Config {
            capacity: 1 << 21,
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
            rules: vec![Rule {
                service: vec!["udp".parse().unwrap()],
                ..Rule::new("any", &["a"], &["b"], Action::Allow)
            }],
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
                    macs: vec![mac(i + 1)],
                    ips: vec![[10, 0, 0, i + 1].into()],
                    vlan: None,
                }],
            });
        }
        let classifier = Some(Arc::new(compiled.classifier));
        shared.snapshots.publish(Snapshot::build(SnapshotInput {
            ports,
            classifier,
            workers: 1,
        }));
        Rig {
            worker,
            ends,
            shared,
            now_ns: 1,
            received: Vec::with_capacity(4096),
        }
    }

    /// Sends these frames in bursts of 32 and takes them out at the other end.
    fn pass<'a>(&mut self, frames: impl Iterator<Item = &'a Vec<u8>>) {
        let mut waiting = 0;
        for f in frames {
            self.ends[0].send(f).unwrap();
            waiting += 1;
            if waiting == 32 {
                self.worker.step(self.now_ns);
                while self.ends[1].recv(&mut self.received).is_some() {
                    waiting -= 1;
                }
                assert_eq!(waiting, 0);
            }
        }
    }
}

fn pipeline(c: &mut Criterion) {
    let mut group = c.benchmark_group("pipeline");
    for flows in [1u32, 1 << 10, 1 << 17, 1 << 20] {
        let mut rig = Rig::new();
        let frames: Vec<_> = (0..flows).map(udp).collect();
        rig.pass(frames.iter().cycle().take(frames.len().max(32)));
        assert_eq!(rig.shared.table.len(), flows as usize);
        let mut next = 0;
        group.throughput(Throughput::Elements(1024));
        group.bench_function(BenchmarkId::new("established", flows), |b| {
            b.iter(|| {
                rig.pass(frames.iter().cycle().skip(next).take(1024));
                next = (next + 1024) % frames.len().max(1);
                black_box(&rig.received);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
