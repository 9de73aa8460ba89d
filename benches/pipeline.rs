//! The whole data path over in-process ports: one worker, one thread, 60-byte UDP frames in
//! bursts of 32. What it costs to parse, guard, look up, track and forward a frame, with the
//! cheapest possible I/O. `cargo bench --bench pipeline`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[path = "../tests/common/pair.rs"]
mod pair;

use pair::{Pair, datagram};
use vswitch::policy::model::{Action, Rule};

/// A datagram of flow number `flow`.
fn frame(flow: u32) -> Vec<u8> {
    let [_, net, host_hi, host_lo] = flow.to_be_bytes();
    datagram(
        u16::from_be_bytes([host_hi, host_lo]),
        1000 + u16::from(net),
        18,
    )
}

struct Rig {
    pair: Pair,
    received: Vec<u8>,
}

impl Rig {
    fn new() -> Self {
        let rule = Rule {
            service: vec!["udp".parse().unwrap()],
            ..Rule::new("any", &["a"], &["b"], Action::Allow)
        };
        Rig {
            pair: Pair::new(1 << 21, rule),
            received: Vec::with_capacity(4096),
        }
    }

    /// Sends these frames in bursts of 32 and takes them out at the other end.
    fn pass<'a>(&mut self, frames: impl Iterator<Item = &'a Vec<u8>>) {
        let mut waiting = 0;
        for f in frames {
            self.pair.ends[0].send(f).unwrap();
            waiting += 1;
            if waiting == 32 {
                self.pair.worker.step(1);
                while self.pair.ends[1].recv(&mut self.received).is_some() {
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
        let frames: Vec<_> = (0..flows).map(frame).collect();
        rig.pass(frames.iter().cycle().take(frames.len().max(32)));
        assert_eq!(rig.pair.shared.table.len(), flows as usize);
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
