//! Headers: what it costs to parse a frame, and to sum bytes. `cargo bench --bench packet`.
//!
//! One thread, everything in the first cache. The time for parsing is for one burst of 32 frames, as the data path
//! does it: what is parsed is read when all of them are.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use vswitch::packet::{Parsed, checksum, parse};

const BURST: usize = 32;
const MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]];

/// A frame of each common kind, 64 bytes and more.
fn frames() -> [(&'static str, Vec<u8>); 4] {
    let [src, dst] = MACS;
    let eth = || PacketBuilder::ethernet2(src, dst);
    let v6 = || eth().ipv6([0xfd; 16], [0xfc; 16], 64);
    let write = |b: etherparse::PacketBuilderStep<etherparse::UdpHeader>| {
        let mut frame = Vec::new();
        b.write(&mut frame, &[7; 22]).unwrap();
        frame
    };
    let v4 = || eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let mut tcp = Vec::new();
    v4().tcp(1000, 443, 1, 512)
        .write(&mut tcp, &[7; 22])
        .unwrap();
    // A segment of an established connection: ACK, as nearly all are.
    tcp[47] = 0x10;
    let tagged = eth().single_vlan(5.try_into().unwrap());
    [
        ("UDP over IPv4", write(v4().udp(1000, 53))),
        ("TCP over IPv4", tcp),
        ("UDP over IPv6", write(v6().udp(1000, 53))),
        (
            "UDP over IPv4, tagged",
            write(tagged.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000, 53)),
        ),
    ]
}

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, frame) in frames() {
        let burst = vec![frame; BURST];
        let mut parsed = [Parsed::EMPTY; BURST];
        group.bench_function(name, |b| {
            b.iter(|| {
                for (p, frame) in parsed.iter_mut().zip(&burst) {
                    let len = u32::try_from(frame.len()).unwrap();
                    parse::parse_into(p, black_box(frame), len).unwrap();
                }
                black_box(&parsed);
            });
        });
    }
    group.finish();
}

fn sums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for bytes in [20usize, 64, 1460, 65_483] {
        let data = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("sum", bytes), |b| {
            b.iter(|| checksum::fold(checksum::sum(black_box(&data), 0)));
        });
    }
    let header = [0x45; 20];
    group.throughput(Throughput::Bytes(20));
    group.bench_function("header", |b| {
        b.iter(|| checksum::is_good_header(black_box(&header)));
    });
    group.finish();
}

criterion_group!(benches, parsing, sums);
criterion_main!(benches);
