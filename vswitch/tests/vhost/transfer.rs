use vswitch::drop_reason::DropReason;
use vswitch::frame::Burst;
use vswitch::guest::{GuestConfig, NetHdr, feature};

use crate::rig::{End, frame};

const BASE: u64 = feature::VERSION_1 | feature::CSUM | feature::GUEST_CSUM;

/// Sends frames of `lens` from one guest to another until all have arrived, and compares.
fn transfer(config: &GuestConfig, lens: &[usize]) {
    let (mut a, mut b) = (End::new(config.clone()), End::new(config.clone()));
    let mut burst = Burst::new();
    let frames: Vec<Vec<u8>> = lens
        .iter()
        .enumerate()
        .map(|(i, &len)| frame(u32::try_from(i).unwrap(), len))
        .collect();
    let hdr = NetHdr::default();
    let (mut sent, mut arrived, mut idle) = (0, 0, 0);
    while arrived < frames.len() {
        // No more under way than the receiver has buffers for the longest of them.
        let window = if sent - arrived < window(config, lens) {
            1
        } else {
            0
        };
        let batch: Vec<(NetHdr, &[u8])> = frames[sent..]
            .iter()
            .take(window * 7)
            .take(window * (window_max(config, lens)))
            .map(|f| (hdr, f.as_slice()))
            .collect();
        sent += a.guest.queue(0).unwrap().send(&batch);
        a.forward(&b, &mut burst);
        let got = b.guest.queue(0).unwrap().recv(64, |hdr, bytes| {
            assert_eq!(bytes, frames[arrived], "frame {arrived} of {config:?}");
            assert_eq!((hdr.flags, hdr.gso_type), (0, 0));
            arrived += 1;
        });
        idle = if got == 0 { idle + 1 } else { 0 };
        assert!(
            idle < 1000,
            "stuck at {arrived} of {sent} sent: {config:?} {:?} {:?}",
            a.control.status(),
            b.control.status()
        );
    }
    assert_eq!(a.guest.queue(0).unwrap().unsent(), 0);
    assert_eq!(a.cell.pkts.rx_pkts.get(), frames.len() as u64);
    assert_eq!(b.cell.pkts.tx_pkts.get(), frames.len() as u64);
    for reason in DropReason::ALL {
        assert_eq!(a.cell.drops.get(*reason) + b.cell.drops.get(*reason), 0);
    }
}

fn slots(config: &GuestConfig) -> usize {
    usize::from(config.ring_size) / if config.indirect { 1 } else { config.pieces }
}

fn per_frame(config: &GuestConfig, lens: &[usize]) -> usize {
    let longest = lens.iter().max().unwrap() + NetHdr::BYTES;
    longest.div_ceil(config.buf_bytes)
}

fn window(config: &GuestConfig, lens: &[usize]) -> usize {
    (slots(config) / per_frame(config, lens)).max(1)
}

fn window_max(config: &GuestConfig, lens: &[usize]) -> usize {
    window(config, lens).div_ceil(2)
}

fn every(layout: u64) {
    for ring_size in [2u16, 4, 64, 1024] {
        for mergeable in [0, feature::MRG_RXBUF] {
            for event_idx in [0, feature::EVENT_IDX] {
                for (indirect, pieces) in [(false, 1), (false, 2), (true, 1), (true, 3)] {
                    for in_order in [0, feature::IN_ORDER] {
                        let config = GuestConfig {
                            ring_size,
                            pieces,
                            indirect,
                            buf_bytes: 2048,
                            features: BASE
                                | layout
                                | mergeable
                                | event_idx
                                | in_order
                                | feature::INDIRECT_DESC,
                            ..GuestConfig::default()
                        };
                        let lens: Vec<usize> = (0..if ring_size > 64 { 2500 } else { 300 })
                            .map(|i| [14, 60, 255, 256, 257, 300, 1514, 2036][i % 8])
                            .collect();
                        transfer(&config, &lens);
                    }
                }
            }
        }
    }
}

#[test]
fn split_rings_carry_every_frame_in_order() {
    every(0);
}

#[test]
fn packed_rings_carry_every_frame_in_order() {
    every(feature::RING_PACKED);
}

#[test]
fn packed_rings_of_any_size() {
    for ring_size in [2u16, 3, 5, 7, 100, 257] {
        let config = GuestConfig {
            ring_size,
            pieces: 2,
            features: BASE | feature::RING_PACKED | feature::MRG_RXBUF | feature::EVENT_IDX,
            ..GuestConfig::default()
        };
        let lens: Vec<usize> = (0..1000).map(|i| 14 + i % 1500).collect();
        transfer(&config, &lens);
    }
}

#[test]
fn frames_of_64_kib_over_many_small_buffers_and_one_large() {
    let lens: Vec<usize> = (0..40).map(|i| 65000 - i * 1601).collect();
    for layout in [0, feature::RING_PACKED] {
        // One sender's buffer holds a whole frame, so the receiver's does too ...
        let whole = GuestConfig {
            buf_bytes: 66000,
            pieces: 17,
            indirect: true,
            features: BASE | layout | feature::INDIRECT_DESC,
            ..GuestConfig::default()
        };
        transfer(&whole, &lens);
        // ... or it has small ones that are merged.
        let (a, mut b) = (
            End::new(whole.clone()),
            End::new(GuestConfig {
                buf_bytes: 1024,
                features: BASE | layout | feature::MRG_RXBUF | feature::EVENT_IDX,
                ..GuestConfig::default()
            }),
        );
        let mut a = a;
        let mut burst = Burst::new();
        for (i, &len) in lens.iter().enumerate() {
            let f = frame(u32::try_from(i).unwrap(), len);
            let sent = a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
            assert_eq!(sent, 1);
            assert_eq!(a.forward(&b, &mut burst), 1);
            let mut seen = 0;
            b.guest.queue(0).unwrap().recv(8, |hdr, bytes| {
                assert_eq!(usize::from(hdr.num_buffers), (len + 12).div_ceil(1024));
                assert_eq!(bytes, f);
                seen += 1;
            });
            assert_eq!(seen, 1);
        }
    }
}

#[test]
fn a_full_ring_drops_whole_frames_and_counts_them() {
    let config = GuestConfig {
        ring_size: 16,
        buf_bytes: 1024,
        features: BASE | feature::MRG_RXBUF,
        ..GuestConfig::default()
    };
    let big = GuestConfig {
        buf_bytes: 8192,
        ..config.clone()
    };
    let (mut a, mut b) = (End::new(big), End::new(config));
    let mut burst = Burst::new();
    // Five frames of three buffers fit into sixteen; the sixth finds one buffer and takes none.
    let f = frame(1, 2500);
    let batch: Vec<(NetHdr, &[u8])> = (0..7).map(|_| (NetHdr::default(), f.as_slice())).collect();
    assert_eq!(a.guest.queue(0).unwrap().send(&batch), 7);
    a.forward(&b, &mut burst);
    assert_eq!(b.cell.pkts.tx_pkts.get(), 5);
    assert_eq!(b.cell.drops.get(DropReason::TxQueueFull), 2);
    // The one left is whole, and takes a small one.
    let small = frame(2, 60);
    a.guest
        .queue(0)
        .unwrap()
        .send(&[(NetHdr::default(), &small)]);
    a.forward(&b, &mut burst);
    let mut lens = Vec::new();
    b.guest
        .queue(0)
        .unwrap()
        .recv(64, |_, bytes| lens.push(bytes.len()));
    assert_eq!(lens, [2500, 2500, 2500, 2500, 2500, 60]);
}

#[test]
fn too_large_for_an_unmergeable_buffer_or_for_the_mtu() {
    let config = GuestConfig {
        buf_bytes: 1024,
        features: BASE,
        ..GuestConfig::default()
    };
    let big = GuestConfig {
        buf_bytes: 4096,
        ..config.clone()
    };
    let mut a = End::new(big.clone());
    let small_buffers = End::new(config);
    let small_mtu = End::try_new(big, 1500).unwrap();
    let mut burst = Burst::new();
    for (to, len) in [(&small_buffers, 1400), (&small_mtu, 1519)] {
        let f = frame(1, len);
        a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
        a.forward(to, &mut burst);
        assert_eq!(to.cell.drops.get(DropReason::TxTooBig), 1);
        assert_eq!(to.cell.pkts.tx_pkts.get(), 0);
    }
}

#[test]
fn bad_frames_are_counted_and_their_buffers_come_back() {
    let mut a = End::new(GuestConfig {
        features: BASE,
        ..GuestConfig::default()
    });
    let b = End::new(GuestConfig::default());
    let tso = NetHdr {
        flags: NetHdr::F_NEEDS_CSUM,
        gso_type: NetHdr::GSO_TCPV4,
        gso_size: 1000,
        ..NetHdr::default()
    };
    let unknown = NetHdr {
        gso_type: 77,
        ..tso
    };
    let runt = [0u8; 13];
    let ok = frame(1, 60);
    let batch = [
        (NetHdr::default(), runt.as_slice()),
        (tso, &ok),
        (unknown, &ok),
        (NetHdr::default(), &ok),
        (NetHdr::default(), &[]),
    ];
    assert_eq!(a.guest.queue(0).unwrap().send(&batch), 5);
    assert_eq!(a.forward(&b, &mut Burst::new()), 1);
    assert_eq!(a.cell.drops.get(DropReason::Runt), 1);
    assert_eq!(a.cell.drops.get(DropReason::BadOffload), 2);
    assert_eq!(a.cell.drops.get(DropReason::BadDescriptor), 1);
    assert_eq!(a.cell.pkts.rx_pkts.get(), 5);
    assert_eq!(a.guest.queue(0).unwrap().unsent(), 0);
    assert_eq!(a.control.status().broken_vrings, 0);
}

#[test]
fn several_queue_pairs_keep_to_themselves() {
    let config = GuestConfig {
        queue_pairs: 4,
        ..GuestConfig::default()
    };
    let (mut a, mut b) = (End::new(config.clone()), End::new(config));
    assert_eq!(a.control.status().live_queue_pairs, 4);
    for q in 0..4u32 {
        let f = frame(q, 100 + q as usize);
        a.guest
            .queue(q as usize)
            .unwrap()
            .send(&[(NetHdr::default(), &f)]);
    }
    assert_eq!(a.forward(&b, &mut Burst::new()), 4);
    for q in 0..4u32 {
        let mut seen = Vec::new();
        b.guest
            .queue(q as usize)
            .unwrap()
            .recv(8, |_, bytes| seen.push(bytes.to_vec()));
        assert_eq!(seen, [frame(q, 100 + q as usize)]);
    }
}
