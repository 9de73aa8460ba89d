//! Frames are built, and results checked, by `etherparse`: an implementation of its own.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::frame::{Burst, Offload, OutItem, Scratch};
use crate::packet::{Addr, Tcp};

const V4: TxCaps = TxCaps {
    csum: false,
    tso4: false,
    tso6: false,
    uso: false,
    max_frame_bytes: 1514,
};
const ALL: TxCaps = TxCaps {
    csum: true,
    tso4: true,
    tso6: true,
    uso: true,
    max_frame_bytes: 1514,
};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Ip {
    V4,
    V6,
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + i / 256).to_le_bytes()[0])
        .collect()
}

fn tcp(ip: Ip, payload: &[u8]) -> Vec<u8> {
    let mut h = TcpHeader::new(4000, 80, 0xffff_f000, 512);
    (h.ack, h.psh, h.fin, h.cwr, h.acknowledgment_number) = (true, true, true, true, 99);
    h.set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])
        .unwrap();
    let b = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let b = match ip {
        Ip::V4 => b.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        Ip::V6 => b.ipv6([0xfd; 16], [0xfe; 16], 64),
    };
    let mut out = Vec::new();
    b.tcp_header(h).write(&mut out, payload).unwrap();
    out
}

fn udp(ip: Ip, payload: &[u8]) -> Vec<u8> {
    let b = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let b = match ip {
        Ip::V4 => b.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        Ip::V6 => b.ipv6([0xfd; 16], [0xfe; 16], 64),
    };
    let mut out = Vec::new();
    b.udp(53, 5353).write(&mut out, payload).unwrap();
    out
}

/// What the data path's parser would say.
fn parsed(frame: &[u8]) -> Parsed {
    let s = SlicedPacket::from_ethernet(frame).unwrap();
    let (l3, l4_offset, src, dst) = match s.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let h = ip.header();
            (
                L3::V4,
                34,
                h.source_addr().into(),
                h.destination_addr().into(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let h = ip.header();
            (
                L3::V6,
                54,
                h.source_addr().into(),
                h.destination_addr().into(),
            )
        }
        NetSlice::Arp(_) => unreachable!(),
    };
    let (src, dst): (std::net::IpAddr, std::net::IpAddr) = (src, dst);
    let (src, dst) = (Addr::from(src), Addr::from(dst));
    let (protocol, header, payload, flags) = match s.transport.as_ref().unwrap() {
        TransportSlice::Tcp(t) => (
            proto::TCP,
            t.header_slice().len(),
            t.payload().len(),
            t.slice()[13],
        ),
        TransportSlice::Udp(u) => (proto::UDP, 8, u.payload().len(), 0),
        _ => unreachable!(),
    };
    Parsed {
        l3,
        l3_offset: 14,
        protocol,
        l4_offset,
        payload_offset: l4_offset + u16::try_from(header).unwrap(),
        payload_len: u32::try_from(payload).unwrap(),
        src,
        dst,
        tcp: Tcp {
            flags,
            ..Tcp::default()
        },
        ..Parsed::EMPTY
    }
}

/// A burst with one frame whose tail is cut into `cuts`-sized pieces of separate memory, each at
/// an odd address every second time.
struct One {
    burst: Burst,
    _memory: Vec<Vec<u8>>,
}

#[allow(unsafe_code)]
fn one(frame: &[u8], head_len: usize, cuts: &[usize], offload: Offload) -> One {
    let (head, mut tail) = frame.split_at(frame.len().min(head_len));
    let mut burst = Burst::new();
    let f = burst.push().unwrap();
    f.fill()[..head.len()].copy_from_slice(head);
    f.set_head_len(head.len());
    f.offload = offload;
    f.parsed = parsed(frame);
    let mut memory = Vec::new();
    let mut cuts = cuts.iter().copied().cycle();
    while !tail.is_empty() {
        let (piece, rest) = tail.split_at(cuts.next().unwrap().clamp(1, 4096).min(tail.len()));
        let mut m = vec![0; memory.len() % 2];
        m.extend_from_slice(piece);
        // SAFETY: the vector lives in the returned value beside the burst.
        assert!(unsafe {
            burst.add_tail(
                m.as_ptr().wrapping_add(memory.len() % 2),
                u32::try_from(piece.len()).unwrap(),
            )
        });
        memory.push(m);
        tail = rest;
    }
    One {
        burst,
        _memory: memory,
    }
}

#[derive(Debug, PartialEq)]
struct Sent {
    bytes: Vec<u8>,
    needs_csum: Option<(u16, u16)>,
    gso: Gso,
    gso_size: u16,
    hdr_len: u16,
    data_valid: bool,
}

/// [`send`] without its counters: the frames sent, or why not.
fn emit(
    view: &TxView<'_>,
    caps: &TxCaps,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) -> Result<u32, DropReason> {
    if view.offload.is_plain() {
        emit_plain(view, caps, sink)
    } else {
        emit_offloaded(view, caps, sink)
    }
}

fn run(one: &One, tag: Option<u16>, caps: &TxCaps) -> Result<Vec<Sent>, DropReason> {
    let mut scratch = Scratch::default();
    let view = one
        .burst
        .view(OutItem { slot: 0, tag }, &mut scratch)
        .unwrap();
    let mut sent = Vec::new();
    let n = emit(&view, caps, &mut |out| {
        let mut bytes = out.head.to_vec();
        out.tail.append_to(&mut bytes);
        assert_eq!(bytes.len(), out.len() as usize);
        sent.push(Sent {
            bytes,
            needs_csum: out.needs_csum,
            gso: out.gso,
            gso_size: out.gso_size,
            hdr_len: out.hdr_len,
            data_valid: out.data_valid,
        });
        Ok(())
    })?;
    assert_eq!(n as usize, sent.len());
    Ok(sent)
}

/// Sets the checksum field to the pseudo-header's sum, as Linux does for `CHECKSUM_PARTIAL`.
fn make_partial(frame: &mut [u8]) {
    let p = parsed(frame);
    let l = Layout::of(&p, 0, frame.len()).unwrap();
    let sum = checksum::fold(pseudo(&p, l.l4_len));
    put16(frame, l.l4 + l.field_offset(), sum).unwrap();
}

/// Checks every checksum and returns (sequence number, flags, IPv4 id, payload).
fn check(frame: &[u8]) -> (u32, u8, u16, Vec<u8>) {
    let s = SlicedPacket::from_ethernet(frame).unwrap();
    let mut id = 0;
    let mut net6 = None;
    let mut net4 = None;
    match s.net.as_ref().unwrap() {
        NetSlice::Ipv4(v4) => {
            let h = v4.header().to_header();
            assert_eq!(h.calc_header_checksum(), h.header_checksum);
            assert_eq!(usize::from(h.total_len), frame.len() - 14 - vlan(frame));
            id = h.identification;
            net4 = Some(h);
        }
        NetSlice::Ipv6(v6) => {
            let h = v6.header().to_header();
            assert_eq!(
                usize::from(h.payload_length),
                frame.len() - 54 - vlan(frame)
            );
            net6 = Some(h);
        }
        NetSlice::Arp(_) => unreachable!(),
    }
    match s.transport.as_ref().unwrap() {
        TransportSlice::Tcp(t) => {
            let h = t.to_header();
            let sum = match (net4, net6) {
                (Some(ip), _) => h.calc_checksum_ipv4(&ip, t.payload()),
                (_, Some(ip)) => h.calc_checksum_ipv6(&ip, t.payload()),
                _ => unreachable!(),
            };
            assert_eq!(sum.unwrap(), h.checksum, "TCP checksum");
            (h.sequence_number, t.slice()[13], id, t.payload().to_vec())
        }
        TransportSlice::Udp(u) => {
            let h = u.to_header();
            let sum = match (net4, net6) {
                (Some(ip), _) => h.calc_checksum_ipv4(&ip, u.payload()),
                (_, Some(ip)) => h.calc_checksum_ipv6(&ip, u.payload()),
                _ => unreachable!(),
            };
            assert_eq!(usize::from(h.length), 8 + u.payload().len());
            assert_eq!(sum.unwrap(), h.checksum, "UDP checksum");
            (0, 0, id, u.payload().to_vec())
        }
        _ => unreachable!(),
    }
}

fn vlan(frame: &[u8]) -> usize {
    if frame[12..14] == [0x81, 0] { 4 } else { 0 }
}

const fn asks(csum: Csum, gso: Gso, gso_size: u16) -> Offload {
    Offload {
        csum,
        gso,
        gso_size,
    }
}

#[test]
fn a_complete_frame_passes_untouched() {
    let frame = tcp(Ip::V4, &bytes(1000));
    for (csum, valid) in [(Csum::Complete, false), (Csum::Valid, true)] {
        let mut o = one(&frame, 256, &[333], asks(csum, Gso::None, 0));
        normalise(o.burst.frame_mut(0).unwrap()).unwrap();
        for caps in [&V4, &ALL] {
            let sent = run(&o, None, caps).unwrap();
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].bytes, frame);
            assert_eq!((sent[0].needs_csum, sent[0].data_valid), (None, valid));
        }
    }
    let o = one(&frame, 256, &[333], Offload::default());
    let small = TxCaps {
        max_frame_bytes: 1000,
        ..V4
    };
    assert_eq!(run(&o, None, &small), Err(DropReason::TxTooBig));
}

#[test]
fn unknown_checksums_are_told_apart_exactly() {
    for ip in [Ip::V4, Ip::V6] {
        for complete in [tcp(ip, &bytes(301)), udp(ip, &bytes(301)), udp(ip, &[])] {
            let mut o = one(&complete, 256, &[7], asks(Csum::Unknown, Gso::None, 0));
            normalise(o.burst.frame_mut(0).unwrap()).unwrap();
            assert_eq!(o.burst.frames()[0].offload.csum, Csum::Complete);

            let mut partial = complete.clone();
            make_partial(&mut partial);
            let mut o = one(&partial, 256, &[7], asks(Csum::Unknown, Gso::None, 0));
            normalise(o.burst.frame_mut(0).unwrap()).unwrap();
            assert_eq!(o.burst.frames()[0].offload.csum, Csum::Partial);
            assert_eq!(run(&o, None, &V4).unwrap()[0].bytes, complete);
            assert_eq!(
                check(&run(&o, Some(5), &V4).unwrap()[0].bytes),
                check(&complete)
            );
            let whole = run(&o, None, &ALL).unwrap();
            assert_eq!(whole[0].bytes, partial);
            let l4 = if ip == Ip::V4 { 34 } else { 54 };
            let field = if complete[if ip == Ip::V4 { 23 } else { 20 }] == 6 {
                16
            } else {
                6
            };
            assert_eq!(whole[0].needs_csum, Some((l4, field)));
            assert_eq!(
                run(&o, Some(5), &ALL).unwrap()[0].needs_csum,
                Some((l4 + 4, field))
            );
        }
    }
}

#[test]
fn padding_is_not_part_of_the_checksum() {
    let complete = tcp(Ip::V4, &[]);
    let mut frame = complete.clone();
    make_partial(&mut frame);
    frame.resize(80, 0xaa);
    let mut o = one(&frame, 256, &[1], asks(Csum::Unknown, Gso::None, 0));
    // The parser goes by the IP header's length.
    o.burst.frame_mut(0).unwrap().parsed = parsed(&complete);
    normalise(o.burst.frame_mut(0).unwrap()).unwrap();
    for caps in [&V4, &ALL] {
        let sent = run(&o, None, caps).unwrap();
        assert_eq!(sent[0].needs_csum, None, "a receiver would sum the padding");
        assert_eq!(sent[0].bytes[..complete.len()], complete);
        assert_eq!(sent[0].bytes.len(), 80);
    }
}

#[test]
fn a_lied_about_field_is_recomputed() {
    let complete = tcp(Ip::V6, &bytes(700));
    let mut frame = complete.clone();
    frame[54 + 16] ^= 0x5a;
    let mut o = one(&frame, 256, &[100], asks(Csum::Partial, Gso::None, 0));
    normalise(o.burst.frame_mut(0).unwrap()).unwrap();
    assert_eq!(run(&o, None, &V4).unwrap()[0].bytes, complete);
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    // Payload words chosen so that the sum is 0xffff: take the complement of what is missing.
    let mut payload = vec![0, 0];
    let partial = udp(Ip::V4, &payload);
    let field = u16::from_be_bytes([partial[40], partial[41]]);
    payload.copy_from_slice(&field.to_be_bytes());
    let mut frame = udp(Ip::V4, &payload);
    assert_eq!(frame[40..42], [0xff, 0xff]);
    make_partial(&mut frame);
    let mut o = one(&frame, 256, &[1], asks(Csum::Partial, Gso::None, 0));
    normalise(o.burst.frame_mut(0).unwrap()).unwrap();
    assert_eq!(run(&o, None, &V4).unwrap()[0].bytes[40..42], [0xff, 0xff]);
}

#[test]
fn tso_passes_whole_or_is_cut() {
    for (ip, gso) in [(Ip::V4, Gso::TcpV4), (Ip::V6, Gso::TcpV6)] {
        let payload = bytes(if cfg!(miri) { 3_001 } else { 40_001 });
        let mut frame = tcp(ip, &payload);
        let (seq, flags, id, _) = check(&frame);
        make_partial(&mut frame);
        for (head_len, cuts) in [
            (256, vec![1448]),
            (130, vec![4096, 1, 3, 999]),
            (90, vec![61]),
        ] {
            let mut o = one(&frame, head_len, &cuts, asks(Csum::Partial, gso, 1400));
            normalise(o.burst.frame_mut(0).unwrap()).unwrap();

            let whole = run(&o, None, &ALL).unwrap();
            assert_eq!(whole.len(), 1);
            assert_eq!(whole[0].bytes, frame);
            assert_eq!((whole[0].gso, whole[0].gso_size), (gso, 1400));
            let headers = frame.len() - payload.len();
            assert_eq!(usize::from(whole[0].hdr_len), headers);
            assert!(whole[0].needs_csum.is_some());

            for tag in [None, Some(0x2007)] {
                let caps = TxCaps {
                    max_frame_bytes: 1518,
                    ..V4
                };
                let sent = run(&o, tag, &caps).unwrap();
                assert_eq!(sent.len(), payload.len().div_ceil(1400));
                let mut all = Vec::new();
                for (i, s) in sent.iter().enumerate() {
                    assert_eq!((s.needs_csum, s.gso, s.hdr_len), (None, Gso::None, 0));
                    if tag.is_some() {
                        assert_eq!(s.bytes[12..16], [0x81, 0, 0x20, 0x07]);
                    }
                    let (q, f, n, p) = check(&s.bytes);
                    assert_eq!(q, seq.wrapping_add(u32::try_from(all.len()).unwrap()));
                    let last = i + 1 == sent.len();
                    let expect = flags
                        & if i == 0 { 0xff } else { !TCP_CWR }
                        & if last {
                            0xff
                        } else {
                            !(tcp_flag::FIN | tcp_flag::PSH)
                        };
                    assert_eq!(f, expect);
                    if ip == Ip::V4 {
                        assert_eq!(n, id.wrapping_add(u16::try_from(i).unwrap()));
                    }
                    all.extend(p);
                }
                assert_eq!(all, payload);
            }

            // A receiver that completes checksums but does not segment.
            let caps = TxCaps { csum: true, ..V4 };
            for s in run(&o, None, &caps).unwrap() {
                let (start, offset) = s.needs_csum.unwrap();
                let mut done = s.bytes.clone();
                let at = usize::from(start + offset);
                let sum = checksum::sum(&done[usize::from(start)..], 0);
                put16(&mut done, at, !checksum::fold(sum)).unwrap();
                check(&done);
            }
        }
    }
}

#[test]
fn udp_datagrams_are_cut() {
    for ip in [Ip::V4, Ip::V6] {
        let payload = bytes(5000);
        let mut o = one(
            &udp(ip, &payload),
            256,
            &[17, 800],
            asks(Csum::Partial, Gso::UdpL4, 1201),
        );
        normalise(o.burst.frame_mut(0).unwrap()).unwrap();
        assert_eq!(run(&o, None, &ALL).unwrap().len(), 1);
        let sent = run(&o, None, &V4).unwrap();
        assert_eq!(sent.len(), 5);
        let all: Vec<u8> = sent.iter().flat_map(|s| check(&s.bytes).3).collect();
        assert_eq!(all, payload);
    }
}

#[test]
fn requests_that_disagree_with_the_headers_are_refused() {
    let long = tcp(Ip::V4, &bytes(3000));
    let refuse = |frame: &[u8], offload: Offload, edit: fn(&mut Frame)| {
        let mut o = one(frame, 256, &[500], offload);
        let f = o.burst.frame_mut(0).unwrap();
        edit(f);
        normalise(f).unwrap_err()
    };
    let tso = asks(Csum::Partial, Gso::TcpV4, 1000);
    let bad = DropReason::BadOffload;
    assert_eq!(
        refuse(&long, asks(Csum::Partial, Gso::TcpV6, 1000), |_| {}),
        bad
    );
    assert_eq!(
        refuse(&long, asks(Csum::Partial, Gso::UdpL4, 1000), |_| {}),
        bad
    );
    assert_eq!(
        refuse(&long, asks(Csum::Partial, Gso::TcpV4, 0), |_| {}),
        bad
    );
    assert_eq!(refuse(&long, tso, |f| f.parsed.protocol = proto::ICMP), bad);
    assert_eq!(refuse(&long, tso, |f| f.parsed.l3 = L3::Arp), bad);
    assert_eq!(refuse(&long, tso, |f| f.parsed.payload_offset = 300), bad);
    assert_eq!(refuse(&long, tso, |f| f.parsed.payload_len += 1), bad);
    assert_eq!(refuse(&long, tso, |f| f.parsed.payload_len -= 1), bad);
    assert_eq!(
        refuse(&long, tso, |f| f.parsed.fragment =
            Fragment::First { id: 1 }),
        bad
    );
    assert_eq!(
        refuse(&long, tso, |f| f.parsed.tcp.flags |= tcp_flag::SYN),
        bad
    );
    assert_eq!(
        refuse(&long, asks(Csum::Partial, Gso::TcpV4, 23), |_| {}),
        DropReason::TooManySegments
    );
    let mut udp = udp(Ip::V4, &bytes(100));
    udp[39] -= 1;
    assert_eq!(
        refuse(&udp, asks(Csum::Partial, Gso::None, 0), |f| {
            f.parsed.payload_len = 100;
        }),
        bad
    );
    // One segment only: an ordinary frame.
    let mut o = one(&long, 256, &[500], asks(Csum::Partial, Gso::TcpV4, 3000));
    let f = o.burst.frame_mut(0).unwrap();
    normalise(f).unwrap();
    assert_eq!(f.offload, asks(Csum::Partial, Gso::None, 0));
    // Segments longer than the receiver's wire.
    let mut o = one(&long, 256, &[500], asks(Csum::Partial, Gso::TcpV4, 1500));
    normalise(o.burst.frame_mut(0).unwrap()).unwrap();
    assert_eq!(run(&o, None, &ALL), Err(DropReason::TxTooBig));
}

#[test]
fn counters_balance_when_the_receiver_stops_midway() {
    let mut o = one(
        &tcp(Ip::V4, &bytes(10_000)),
        256,
        &[500],
        asks(Csum::Partial, Gso::TcpV4, 1000),
    );
    normalise(o.burst.frame_mut(0).unwrap()).unwrap();
    for room in 0..=10 {
        let cell = PortCell::default();
        let mut scratch = Scratch::default();
        let view = o
            .burst
            .view(OutItem { slot: 0, tag: None }, &mut scratch)
            .unwrap();
        let mut left = room;
        send(&view, &V4, &cell, &mut |_| {
            if left == 0 {
                return Err(DropReason::TxQueueFull);
            }
            left -= 1;
            Ok(())
        });
        let dropped = cell.drops.get(DropReason::TxQueueFull);
        assert_eq!(dropped, u64::from(room < 10));
        assert_eq!(cell.pkts.tx_pkts.get(), room);
        assert_eq!(1 + cell.pkts.extra_segments_pkts.get(), room + dropped);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    /// Whatever the split into head and pieces: the tail's bytes and sums are those of the frame.
    #[test]
    fn tails_are_the_frames_bytes(
        len in 0usize..3000,
        head in 1usize..=256,
        // At least three bytes: a burst has room for 1024 pieces.
        cuts in proptest::collection::vec(3usize..400, 1..20),
        from in 0u32..3100,
        n in 0u32..3100,
    ) {
        let frame = tcp(Ip::V4, &bytes(len));
        let head = head.max(66);
        let o = one(&frame, head, &cuts, Offload::default());
        let mut scratch = Scratch::default();
        let view = o.burst.view(OutItem { slot: 0, tag: None }, &mut scratch).unwrap();
        let expect = &frame[frame.len().min(head)..];
        let (from_, to) = ((from as usize).min(expect.len()), (from as usize + n as usize).min(expect.len()));
        let expect = &expect[from_..to];
        let part = TailSlice::whole(&view).part(from, n);
        let mut got = Vec::new();
        part.append_to(&mut got);
        prop_assert_eq!(&got, expect);
        prop_assert_eq!(checksum::fold(part.sum(0)), checksum::fold(checksum::sum(expect, 0)));
        prop_assert_eq!(part.pieces().map(|(_, n)| n).sum::<usize>(), expect.len());
        // A part of a part.
        let mut again = Vec::new();
        part.part(3, 50).append_to(&mut again);
        prop_assert_eq!(&again[..], &expect[expect.len().min(3)..expect.len().min(53)]);
    }

    /// Any request on any headers: never a panic, and what is sent has good checksums.
    #[test]
    fn any_request_is_refused_or_right(
        v6: bool,
        is_udp: bool,
        len in 0usize..6000,
        size in 0u16..3000,
        gso in 0u8..4,
        head in 14usize..=256,
        // At least six bytes: a burst has room for 1024 pieces.
        cuts in proptest::collection::vec(6usize..2000, 1..8),
        caps_bits in 0u8..16,
        tag: Option<u16>,
    ) {
        let ip = if v6 { Ip::V6 } else { Ip::V4 };
        let payload = bytes(len);
        let frame = if is_udp { udp(ip, &payload) } else { tcp(ip, &payload) };
        let gso = [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::UdpL4][usize::from(gso)];
        let mut o = one(&frame, head, &cuts, asks(Csum::Partial, gso, size));
        let caps = TxCaps {
            csum: caps_bits & 1 != 0,
            tso4: caps_bits & 2 != 0,
            tso6: caps_bits & 4 != 0,
            uso: caps_bits & 8 != 0,
            max_frame_bytes: 9018,
        };
        if normalise(o.burst.frame_mut(0).unwrap()).is_ok() {
            let sent = run(&o, tag, &caps).unwrap();
            let mut all = Vec::new();
            for s in sent {
                let mut b = s.bytes;
                if let Some((start, offset)) = s.needs_csum {
                    prop_assert!(caps.csum);
                    let sum = checksum::sum(&b[usize::from(start)..], 0);
                    put16(&mut b, usize::from(start + offset), finish(sum, if is_udp { 17 } else { 6 })).unwrap();
                }
                all.extend(check(&b).3);
            }
            prop_assert_eq!(all, payload);
        }
    }

    /// Raw `Parsed` values that no parser would produce do no harm.
    #[test]
    fn nonsense_offsets_are_refused(
        l3_offset: u16, l4_offset: u16, payload_offset: u16, payload_len: u32, shift: bool, gso in 0u8..4,
    ) {
        let frame = tcp(Ip::V4, &bytes(2000));
        let gso = [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::UdpL4][usize::from(gso)];
        let mut o = one(&frame, 256, &[100], asks(Csum::Partial, gso, 500));
        let f = o.burst.frame_mut(0).unwrap();
        f.parsed.l3_offset = l3_offset % 300;
        f.parsed.l4_offset = l4_offset % 300;
        f.parsed.payload_offset = payload_offset % 300;
        f.parsed.payload_len = payload_len;
        let _ = run(&o, shift.then_some(1), &V4);
        let f = o.burst.frame_mut(0).unwrap();
        let _ = normalise(f);
        let _ = run(&o, shift.then_some(1), &V4);
    }
}
