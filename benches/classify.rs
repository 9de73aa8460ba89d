//! The classifier alone: a burst of 32 questions, and single ones, over segments of workloads and over a rule set
//! with addresses on both ends. `cargo bench --bench classify`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowtable::Addr;
use vswitch::policy::model::{Action, Policy, Rule, Segment};
use vswitch::policy::{
    Classifier, Judgement, Party, Query, Service, SetId, TenantId, WorkloadFacts, classbench,
};

const BURST: usize = 32;

/// Numbers that look random and are the same every time (Knuth's multiplier, MMIX).
fn numbers() -> impl FnMut(usize) -> usize {
    let mut state = 1u64;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    }
}

fn tcp(dport: usize) -> Service {
    Service::Ip {
        protocol: 6,
        sport: 40_000,
        dport: u16::try_from(dport).unwrap(),
    }
}

/// Forty segments of workloads, four hundred rules between them.
fn segments(c: &mut Criterion) {
    let mut pick = numbers();
    let name = |n: usize| format!("s{n}");
    let policy = Policy {
        segments: (0..40)
            .map(|n| Segment {
                tags: vec![name(n)],
                ..Segment::new(&name(n))
            })
            .collect(),
        rules: (0..400)
            .map(|n| Rule {
                service: vec![format!("tcp/{}", 1000 + n % 16).parse().unwrap()],
                ..Rule::new(
                    &format!("r{n}"),
                    &[&name(pick(40))],
                    &[&name(pick(40))],
                    Action::Allow,
                )
            })
            .collect(),
        ..Policy::default()
    };
    let workloads: Vec<WorkloadFacts> = (0..120)
        .map(|n| WorkloadFacts {
            name: format!("w{n}"),
            tags: vec![name(pick(40)), name(pick(40))],
            ..WorkloadFacts::default()
        })
        .collect();
    let compiled = Classifier::compile(&policy, &workloads, None).unwrap();
    let queries: Vec<Query> = (0..128 * BURST)
        .map(|_| Query {
            from: compiled.parties[pick(120)],
            to: compiled.parties[pick(120)],
            service: tcp(1000 + pick(20)),
        })
        .collect();
    let classifier = &compiled.classifier;
    let mut group = c.benchmark_group("classify/segments");
    group.throughput(Throughput::Elements(queries.len() as u64));
    group.bench_function("burst", |b| {
        let mut judgements = [Judgement::default(); BURST];
        b.iter(|| {
            for queries in queries.chunks(BURST) {
                classifier.classify_burst(queries, &mut judgements);
                black_box(&judgements);
            }
        });
    });
    group.bench_function("single", |b| {
        b.iter(|| {
            for query in &queries {
                black_box(classifier.classify(query));
            }
        });
    });
    group.finish();
}

/// Ten thousand rules between networks, addresses looked up.
fn networks(c: &mut Criterion) {
    let mut pick = numbers();
    let mut text = String::new();
    for _ in 0..10_000 {
        let (a, b, port) = (pick(1 << 14), pick(1 << 14), pick(1000));
        let network =
            |n: usize, octet: usize| format!("{octet}.{}.{}.0/{}", n >> 8, n & 255, 24 + n % 8);
        let (from, to) = (network(a, 10), network(b, 20));
        text += &format!("@{from} {to} 0 : 65535 {port} : {port} 0x06/0xFF 0x0000/0x0000\n");
    }
    let filters = classbench::parse(&text).unwrap();
    let compiled = Classifier::compile(&classbench::policy(&filters), &[], None).unwrap();
    let classifier = &compiled.classifier;
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => Addr::from(IpAddr::V4(Ipv4Addr::from(u32::from(addr) | 1))),
        IpAddr::V6(_) => unreachable!("the set is IPv4"),
    };
    let mut addrs = Vec::new();
    let mut services = Vec::new();
    for _ in 0..1024 * BURST {
        let filter = &filters[pick(filters.len())];
        addrs.extend([addr(filter.src.addr), addr(filter.dst.addr)]);
        services.push(tcp(usize::from(filter.dport.low)));
    }
    let party = |set| Party {
        tenant: TenantId(0),
        set,
    };
    let query = |sets: &[SetId; 2], &service: &Service| Query {
        from: party(sets[0]),
        to: party(sets[1]),
        service,
    };
    let mut group = c.benchmark_group("classify/networks");
    group.throughput(Throughput::Elements(services.len() as u64));
    group.bench_function("burst", |b| {
        let mut sets = [SetId::default(); 2 * BURST];
        let mut judgements = [Judgement::default(); BURST];
        b.iter(|| {
            for (addrs, services) in addrs.chunks(2 * BURST).zip(services.chunks(BURST)) {
                classifier.outside_burst(TenantId(0), addrs, &mut sets);
                let pairs = sets.as_chunks().0;
                let queries: [Query; BURST] =
                    std::array::from_fn(|n| query(&pairs[n], &services[n]));
                classifier.classify_burst(&queries, &mut judgements);
                black_box(&judgements);
            }
        });
    });
    group.bench_function("single", |b| {
        b.iter(|| {
            for (addrs, service) in addrs.as_chunks::<2>().0.iter().zip(&services) {
                let sets = addrs.map(|addr| classifier.outside(TenantId(0), &addr));
                black_box(classifier.classify(&query(&sets, service)));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, segments, networks);
criterion_main!(benches);
