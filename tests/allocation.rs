#![allow(unsafe_code)]
//! The hot path allocates nothing, neither for established connections nor for new ones.
//!
//! Invariant owned here: the global allocator is the system's, with a counter in front; it changes
//! nothing about a block.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

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

thread_local! {
    /// Allocations this thread made; tests on other threads count their own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|a| a.set(a.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

/// Port 0 may ask port 1 for udp/53, which is logged.
fn switch() -> (Arc<Shared>, Worker, Vec<MemEnd>) {
    let table = flowtable::Config {
        capacity: 4096,
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
            service: vec!["udp/53".parse().unwrap()],
            log: true,
            ..Rule::new("dns", &["a"], &["b"], Action::Allow)
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
            max_connections: 4096,
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
    (shared, worker, ends)
}

fn udp(sport: u16) -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(sport, 53)
        .write(&mut out, &[0; 1000])
        .unwrap();
    out
}

#[test]
fn no_allocation_per_frame() {
    let (shared, mut worker, mut ends) = switch();
    let mut received = Vec::with_capacity(4096);
    // How many frames arrived, and what the switch allocated for them.
    let mut round = |frames: std::ops::Range<u16>| {
        let (mut arrived, mut allocations) = (0, 0);
        for sport in frames {
            ends[0].send(&udp(sport)).unwrap();
            if sport % 100 == 99 {
                let before = ALLOCATIONS.with(Cell::get);
                while worker.step(1) {}
                allocations += ALLOCATIONS.with(Cell::get) - before;
                while ends[1].recv(&mut received).is_some() {
                    arrived += 1;
                }
            }
        }
        (arrived, allocations)
    };
    // The first round picks up the snapshot.
    assert_eq!(round(1000..1100).0, 100);
    assert_eq!(round(1000..1100), (100, 0), "established connections");
    assert_eq!(round(2000..3000), (1000, 0), "new connections");
    assert_eq!(shared.table.len(), 1100);
}
