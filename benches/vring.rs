//! Rings of guests: what it costs to take a burst from one, to put a burst into one, and to cut a frame of 64 KiB into
//! segments for a guest that cannot take it whole. `cargo bench --bench vring`.
//!
//! Two guests of our own and both ports on one thread, so that no line has to come from another core: the least that
//! the work itself costs. The time is for one burst of 32 frames of 60 bytes, or for one long frame.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use vswitch::counters::PortCell;
use vswitch::frame::{BURST_MAX, Burst, OutItem, Scratch, TxCaps};
use vswitch::guest::GuestConfig;
use vswitch::offload;
use vswitch::packet::parse;
use vswitch::sys::virtio::{NetHdr, feature};

#[allow(dead_code, reason = "the port's tests use more of it")]
#[path = "../vswitch/tests/vhost/rig.rs"]
mod rig;

use rig::{End, frame};

fn guest(packed: bool) -> GuestConfig {
    let default = GuestConfig::default();
    let layout = if packed { feature::RING_PACKED } else { 0 };
    GuestConfig {
        features: default.features | layout,
        ..default
    }
}

/// A burst through two rings, timed at one of them: `rx` at the sender's, else at the receiver's.
fn step(
    a: &mut End,
    b: &mut End,
    burst: &mut Burst,
    sent: &[(NetHdr, &[u8])],
    rx: bool,
) -> Duration {
    assert_eq!(a.guest.queue(0).unwrap().send(sent), sent.len());
    let (mut from, mut to) = (
        a.port.rxqs[0].enter().unwrap(),
        b.port.txqs[0].enter().unwrap(),
    );
    let start = Instant::now();
    from.rx_burst(burst, &a.cell);
    let mut taken = start.elapsed();
    let slots = 0..u16::try_from(burst.received()).unwrap();
    let items: Vec<_> = slots.map(|slot| OutItem { slot, tag: None }).collect();
    let start = Instant::now();
    to.tx_burst(burst, &items, &b.cell);
    let put = start.elapsed();
    let start = Instant::now();
    from.complete(burst);
    taken += start.elapsed();
    burst.clear();
    from.notify();
    to.notify();
    let received = b.guest.queue(0).unwrap().recv(sent.len(), |_, f| {
        black_box(f);
    });
    assert_eq!(received, sent.len());
    if rx { taken } else { put }
}

fn rings(c: &mut Criterion) {
    let mut group = c.benchmark_group("vring");
    group.throughput(Throughput::Elements(BURST_MAX as u64));
    let small = frame(1, 60);
    let sent = [(NetHdr::default(), &small[..]); BURST_MAX];
    for (layout, packed) in [("split", false), ("packed", true)] {
        let (mut a, mut b) = (End::new(guest(packed)), End::new(guest(packed)));
        let mut burst = Burst::new();
        for (name, rx) in [("rx", true), ("tx", false)] {
            group.bench_function(format!("{layout} {name}"), |bench| {
                bench.iter_custom(|n| {
                    (0..n)
                        .map(|_| step(&mut a, &mut b, &mut burst, &sent, rx))
                        .sum()
                });
            });
        }
    }
    group.finish();
}

fn segmentation(c: &mut Criterion) {
    let mut long = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 443, 1, 512)
        .ack(1)
        .write(&mut long, &[7; 65_160])
        .unwrap();
    let hdr = NetHdr {
        flags: NetHdr::F_NEEDS_CSUM,
        gso_type: NetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let mut a = End::new(GuestConfig {
        buf_bytes: 1 << 17,
        ..GuestConfig::default()
    });
    assert_eq!(a.guest.queue(0).unwrap().send(&[(hdr, &long)]), 1);
    let mut burst = Burst::new();
    // Its tail stays in the guest's memory for as long as the gate is held.
    let mut from = a.port.rxqs[0].enter().unwrap();
    from.rx_burst(&mut burst, &a.cell);
    let received = burst.frame_mut(0).unwrap();
    let (head, len, parsed) = received.head_and_parsed();
    parse::parse_into(parsed, head, len).unwrap();
    offload::normalise(received).unwrap();
    let mut scratch = Scratch::default();
    let view = burst
        .view(OutItem { slot: 0, tag: None }, &mut scratch)
        .unwrap();
    let caps = TxCaps {
        max_frame_bytes: 1514,
        ..TxCaps::default()
    };
    let cell = PortCell::default();
    let mut out = Vec::with_capacity(2048);
    let mut group = c.benchmark_group("segmentation");
    group.throughput(Throughput::Bytes(long.len() as u64));
    group.bench_function("64 KiB into 45 frames", |b| {
        b.iter(|| {
            offload::send(&view, &caps, &cell, &mut |segment| {
                out.clear();
                out.extend_from_slice(segment.head);
                segment.tail.append_to(&mut out);
                black_box(&out);
                Ok(())
            });
        });
    });
    assert_eq!(cell.pkts.tx_pkts.get() % 45, 0, "not 45 segments each time");
    group.finish();
    from.complete(&burst);
    burst.clear();
}

criterion_group!(benches, rings, segmentation);
criterion_main!(benches);
