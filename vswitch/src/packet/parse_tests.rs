use super::*;
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type,
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, NetHeaders, PacketHeaders, TcpHeader,
    TransportHeader, UdpHeader,
};
use proptest::prelude::*;

const SRC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const DST: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

fn eth(ethertype: u16) -> Vec<u8> {
    let header = Ethernet2Header {
        source: SRC.0,
        destination: DST.0,
        ether_type: EtherType(ethertype),
    };
    header.to_bytes().to_vec()
}

fn v4_header(payload: usize, protocol: u8) -> Ipv4Header {
    Ipv4Header::new(
        u16::try_from(payload).unwrap(),
        64,
        IpNumber(protocol),
        [10, 0, 0, 1],
        [10, 0, 0, 2],
    )
    .unwrap()
}

/// An Ethernet frame with this IPv4 header (its checksum is computed here) and `l4`.
fn v4(mut header: Ipv4Header, l4: &[u8]) -> Vec<u8> {
    header.header_checksum = header.calc_header_checksum();
    let mut f = eth(ethertype::IPV4);
    f.extend_from_slice(&header.to_bytes());
    f.extend_from_slice(l4);
    f
}

fn v6_header(payload: usize, next: u8) -> Ipv6Header {
    let mut source = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut destination = source;
    source[15] = 1;
    destination[15] = 2;
    Ipv6Header {
        payload_length: u16::try_from(payload).unwrap(),
        next_header: IpNumber(next),
        hop_limit: 255,
        source,
        destination,
        ..Default::default()
    }
}

fn v6(header: &Ipv6Header, rest: &[u8]) -> Vec<u8> {
    let mut f = eth(ethertype::IPV6);
    f.extend_from_slice(&header.to_bytes());
    f.extend_from_slice(rest);
    f
}

fn go(frame: &[u8]) -> Result<Parsed, DropReason> {
    parse(
        &frame[..frame.len().min(256)],
        u32::try_from(frame.len()).unwrap(),
    )
}

fn tcp_bytes(flags: u8, options: &[u8], payload: usize) -> Vec<u8> {
    let mut h = TcpHeader::new(40000, 5432, 0x0102_0304, 1000);
    h.acknowledgment_number = 0x0a0b_0c0d;
    h.set_options_raw(options).unwrap();
    let mut bytes = h.to_bytes().to_vec();
    bytes[13] = flags;
    bytes.resize(bytes.len() + payload, 0x5a);
    bytes
}

fn udp_bytes(sport: u16, dport: u16, payload: usize) -> Vec<u8> {
    let mut h = UdpHeader::without_ipv4_checksum(sport, dport, payload).unwrap();
    h.checksum = 0;
    let mut bytes = h.to_bytes().to_vec();
    bytes.resize(8 + payload, 0xa5);
    bytes
}

fn v4_tcp(flags: u8) -> Vec<u8> {
    let l4 = tcp_bytes(flags, &[], 0);
    v4(v4_header(l4.len(), proto::TCP), &l4)
}

fn addr4(a: [u8; 4]) -> Addr {
    Addr::from(std::net::IpAddr::from(a))
}

#[test]
fn sctp_has_ports() {
    let mut l4 = vec![0x13, 0x88, 0x0e, 0x98]; // 5000 to 3736
    l4.extend([0; 24]);
    let frame = v4(v4_header(l4.len(), proto::SCTP), &l4);
    let p = parse(&frame, u32::try_from(frame.len()).unwrap()).unwrap();
    assert_eq!((p.sport, p.dport, p.payload_len), (5000, 3736, 16));
    let short = v4(v4_header(8, proto::SCTP), &l4[..8]);
    let refused = parse(&short, u32::try_from(short.len()).unwrap());
    assert_eq!(refused.unwrap_err(), DropReason::BadL4);
}

#[test]
fn ipv4_tcp() {
    let l4 = tcp_bytes(tcp_flag::SYN, &[2, 4, 5, 0xb4, 1, 3, 3, 7], 0);
    let mut frame = v4(v4_header(l4.len(), proto::TCP), &l4);
    frame.resize(80, 0); // padding is not payload
    let p = go(&frame).unwrap();
    assert_eq!((p.src_mac, p.dst_mac, p.l3), (SRC, DST, L3::V4));
    assert_eq!((p.l3_offset, p.l4_offset, p.payload_offset), (14, 34, 62));
    assert_eq!(p.payload_len, 0);
    assert_eq!((p.src, p.dst), (addr4([10, 0, 0, 1]), addr4([10, 0, 0, 2])));
    assert_eq!((p.protocol, p.sport, p.dport), (proto::TCP, 40000, 5432));
    let want = Tcp {
        seq: 0x0102_0304,
        ack: 0x0a0b_0c0d,
        window: 1000,
        flags: tcp_flag::SYN,
        window_scale: Some(7),
    };
    assert_eq!(p.tcp, want);
}

#[test]
fn window_scale_options() {
    let scale = |o: &[u8]| window_scale(o);
    assert_eq!(scale(&[3, 3, 9]), Some(9));
    assert_eq!(scale(&[3, 3, 15]), Some(14), "RFC 7323: at most 14");
    assert_eq!(scale(&[1, 1, 3, 3, 0]), Some(0));
    assert_eq!(scale(&[0, 3, 3, 9]), None, "behind the end of the list");
    assert_eq!(scale(&[3, 4, 9, 9]), None, "wrong length");
    assert_eq!(scale(&[8, 0, 3, 3, 9]), None, "option without length");
    assert_eq!(scale(&[8, 10, 3, 3, 9]), None, "option past the header");
    assert_eq!(scale(&[3, 3]), None);
    assert_eq!(scale(&[3, 3, 2, 3, 3, 5]), Some(5), "the last one counts");
    // Only a SYN negotiates.
    let l4 = tcp_bytes(tcp_flag::ACK, &[3, 3, 7, 0], 0);
    let p = go(&v4(v4_header(l4.len(), proto::TCP), &l4)).unwrap();
    assert_eq!(p.tcp.window_scale, None);
}

#[test]
fn sane_and_insane_tcp_flags() {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN, URG};
    for flags in [
        SYN,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        ACK,
        PSH | ACK,
        FIN | PSH | ACK | URG,
    ] {
        assert!(go(&v4_tcp(flags)).is_ok(), "{flags:02x}");
        assert!(go(&v4_tcp(flags | 0xc0)).is_ok(), "{flags:02x} with ECN");
    }
    for flags in [
        0,
        PSH,
        FIN,
        FIN | URG | PSH,
        SYN | FIN,
        SYN | RST,
        FIN | RST | ACK,
        URG,
        0x3f,
    ] {
        assert_eq!(
            go(&v4_tcp(flags)).unwrap_err(),
            DropReason::BadTcpFlags,
            "{flags:02x}"
        );
    }
}

#[test]
fn a_large_frame_is_judged_by_its_head() {
    let l4 = tcp_bytes(tcp_flag::ACK, &[], 60_000);
    let frame = v4(v4_header(l4.len(), proto::TCP), &l4);
    assert_eq!(go(&frame).unwrap().payload_len, 60_000);
    // The same head of a shorter frame lies about its length.
    assert_eq!(parse(&frame[..256], 1000).unwrap_err(), DropReason::BadIpv4);
}

#[test]
fn inner_tag_is_walked_once() {
    let whole = v4_tcp(tcp_flag::ACK);
    let tagged = |tags: &[[u8; 4]]| {
        let mut f = whole[..12].to_vec();
        f.extend(tags.iter().flatten());
        f.extend_from_slice(&whole[12..]);
        f
    };
    let p = go(&tagged(&[[0x81, 0, 0, 20]])).unwrap();
    assert_eq!(
        (p.l3, p.l3_offset, p.ethertype),
        (L3::V4, 18, ethertype::IPV4)
    );
    let p = go(&tagged(&[[0x88, 0xa8, 0, 20], [0x81, 0, 0, 20]])).unwrap();
    assert_eq!((p.l3, p.ethertype), (L3::Other, ethertype::VLAN));
    assert_eq!(
        go(&tagged(&[[0x81, 0, 0, 20]])[..16]).unwrap_err(),
        DropReason::Runt
    );
}

#[test]
fn not_ip() {
    assert_eq!(go(&eth(0x88cc)).unwrap().l3, L3::Other);
    assert_eq!(go(&eth(ethertype::ARP)).unwrap().l3, L3::Arp);
    assert_eq!(go(&[0; 13]).unwrap_err(), DropReason::Runt);
    assert_eq!(go(&[]).unwrap_err(), DropReason::Runt);
}

#[test]
fn bad_ipv4_headers() {
    let good = v4_tcp(tcp_flag::ACK);
    let bad = |at: usize, value: u8| {
        let mut f = good.clone();
        f[at] = value;
        f[24..26].fill(0);
        let sum = !checksum::fold(checksum::sum(&f[14..34], 0));
        f[24..26].copy_from_slice(&sum.to_be_bytes());
        go(&f).unwrap_err()
    };
    assert_eq!(bad(14, 0x65), DropReason::BadIpv4, "version");
    assert_eq!(bad(14, 0x44), DropReason::BadIpv4, "header length below 20");
    assert_eq!(
        bad(14, 0x4f),
        DropReason::BadIpv4,
        "header longer than the packet"
    );
    assert_eq!(
        bad(17, 19),
        DropReason::BadIpv4,
        "total length below the header"
    );
    assert_eq!(
        bad(16, 1),
        DropReason::BadIpv4,
        "total length beyond the frame"
    );
    let mut f = good.clone();
    f[22] ^= 1; // TTL, without mending the checksum
    assert_eq!(go(&f).unwrap_err(), DropReason::BadIpv4);
}

#[test]
fn every_truncation_has_a_reason() {
    let l4 = tcp_bytes(tcp_flag::SYN, &[1; 20], 10);
    let tcp4 = v4(v4_header(l4.len(), proto::TCP), &l4);
    let tcp6 = v6(&v6_header(l4.len(), proto::TCP), &l4);
    for frame in [tcp4, tcp6] {
        for len in 0..frame.len() {
            let short = &frame[..len];
            let e = go(short).unwrap_err();
            let want = if len < 14 {
                [DropReason::Runt; 2]
            } else {
                [DropReason::BadIpv4, DropReason::BadIpv6]
            };
            assert!(want.contains(&e), "{len}: {e:?}");
            // The same bytes as the head of a whole frame: headers cut off are too long, others fit.
            let cut = parse(short, u32::try_from(frame.len()).unwrap());
            match cut {
                Ok(p) => assert!(usize::from(p.payload_offset) <= len),
                Err(e) => assert!(matches!(e, DropReason::Runt | DropReason::HeadersTooLong)),
            }
        }
    }
}

#[test]
fn transport_must_fit_the_packet() {
    for (protocol, len) in [(proto::TCP, 19), (proto::UDP, 7), (proto::ICMP, 7)] {
        let f = v4(v4_header(len, protocol), &[0; 64]);
        assert_eq!(go(&f).unwrap_err(), DropReason::BadL4, "{protocol}");
    }
    let mut l4 = tcp_bytes(tcp_flag::ACK, &[], 0);
    l4[12] = 0x60; // says 24 bytes, has 20
    assert_eq!(
        go(&v4(v4_header(20, proto::TCP), &l4)).unwrap_err(),
        DropReason::BadL4
    );
    l4[12] = 0x40;
    assert_eq!(
        go(&v4(v4_header(20, proto::TCP), &l4)).unwrap_err(),
        DropReason::BadL4
    );
    for len in [7u16, 30] {
        let mut l4 = udp_bytes(1, 2, 20);
        l4[4..6].copy_from_slice(&len.to_be_bytes());
        assert_eq!(
            go(&v4(v4_header(28, proto::UDP), &l4)).unwrap_err(),
            DropReason::BadL4
        );
    }
    // Unknown protocols have no transport header.
    let p = go(&v4(v4_header(4, 50), &[0; 4])).unwrap();
    assert_eq!((p.protocol, p.l4_offset, p.payload_len), (50, 0, 4));
}

#[test]
fn echo_identifier_is_the_port_of_whoever_asks() {
    let echo = IcmpEchoHeader { id: 0x1234, seq: 5 };
    let h = Icmpv4Header::new(Icmpv4Type::EchoRequest(echo));
    let p = go(&v4(v4_header(8, proto::ICMP), &h.to_bytes())).unwrap();
    assert_eq!((p.icmp_type, p.sport, p.dport), (8, 0x1234, 0));
    assert!(!p.is_icmp_error());
    let h = Icmpv6Header::new(Icmpv6Type::EchoReply(echo));
    let p = go(&v6(&v6_header(8, proto::ICMPV6), &h.to_bytes())).unwrap();
    assert_eq!((p.icmp_type, p.sport, p.dport), (129, 0, 0x1234));
    // An ICMPv6 number over IPv4 is nothing we know.
    let p = go(&v4(
        v4_header(8, proto::ICMPV6),
        &[128, 0, 0, 0, 1, 2, 3, 4],
    ))
    .unwrap();
    assert_eq!((p.l4_offset, p.sport), (0, 0));
}

#[test]
fn icmp_errors_quote_the_packet_they_are_about() {
    let quoted = |l4: &[u8], protocol| {
        let inner = v4(v4_header(1000, protocol), l4);
        let mut icmp = vec![3, 13, 0, 0, 0, 0, 0, 0];
        icmp.extend_from_slice(&inner[14..]);
        go(&v4(v4_header(icmp.len(), proto::ICMP), &icmp)).unwrap()
    };
    let p = quoted(&tcp_bytes(tcp_flag::SYN, &[], 0)[..8], proto::TCP);
    assert!(p.is_icmp_error());
    let want = Inner {
        protocol: proto::TCP,
        src: addr4([10, 0, 0, 1]),
        dst: addr4([10, 0, 0, 2]),
        sport: 40000,
        dport: 5432,
    };
    assert_eq!(p.inner, Some(want));
    let p = quoted(&[8, 0, 0, 0, 7, 7, 0, 1], proto::ICMP);
    let ends = |p: &Parsed| p.inner.map(|i| (i.protocol, i.sport, i.dport));
    assert_eq!(ends(&p), Some((1, 0x0707, 0)));
    let p = quoted(&[0, 0, 0, 0, 7, 7, 0, 1], proto::ICMP);
    assert_eq!(ends(&p), Some((1, 0, 0x0707)));
    // Seven bytes are not enough; an error about an error is about nothing.
    assert_eq!(quoted(&[0; 7], proto::UDP).inner, None);
    assert_eq!(quoted(&[3, 0, 0, 0, 0, 0, 0, 0], proto::ICMP).inner, None);

    let mut icmp = vec![1, 1, 0, 0, 0, 0, 0, 0];
    let dest_opts = [proto::UDP, 0, 1, 4, 0, 0, 0, 0];
    icmp.extend_from_slice(&v6_header(900, ext::DESTINATION).to_bytes());
    icmp.extend_from_slice(&dest_opts);
    icmp.extend_from_slice(&udp_bytes(53, 4000, 0));
    let p = go(&v6(&v6_header(icmp.len(), proto::ICMPV6), &icmp)).unwrap();
    assert_eq!(
        p.inner.map(|i| (i.protocol, i.sport, i.dport)),
        Some((17, 53, 4000))
    );
}

#[test]
fn ipv4_fragments() {
    let fragment = |offset: u16, more: bool, protocol: u8, l4: &[u8]| {
        let mut h = v4_header(l4.len(), protocol);
        h.identification = 0xbeef;
        h.more_fragments = more;
        h.dont_fragment = false;
        h.fragment_offset = IpFragOffset::try_new(offset / 8).unwrap();
        go(&v4(h, l4))
    };
    let first = fragment(0, true, proto::UDP, &{
        let mut l4 = udp_bytes(1000, 2000, 24);
        l4[4..6].copy_from_slice(&3000u16.to_be_bytes()); // the whole datagram's
        l4
    });
    let p = first.unwrap();
    assert_eq!(p.fragment, Fragment::First { id: 0xbeef });
    assert_eq!((p.fragment_len, p.sport, p.payload_len), (32, 1000, 24));
    let p = fragment(32, false, proto::UDP, &[1; 9]).unwrap();
    let want = Fragment::Later {
        id: 0xbeef,
        offset: 32,
        last: true,
    };
    assert_eq!((p.fragment, p.fragment_len, p.payload_len), (want, 9, 9));
    assert_eq!(
        (p.sport, p.dport, p.l4_offset, p.payload_offset),
        (0, 0, 0, 0)
    );

    let bad = |r: Result<Parsed, DropReason>| assert_eq!(r.unwrap_err(), DropReason::BadFragment);
    bad(fragment(
        0,
        true,
        proto::TCP,
        &tcp_bytes(tcp_flag::ACK, &[], 0)[..16],
    ));
    bad(fragment(
        0,
        true,
        proto::TCP,
        &tcp_bytes(tcp_flag::ACK, &[], 1),
    ));
    bad(fragment(8, false, proto::TCP, &[0; 30]));
    bad(fragment(32, true, proto::UDP, &[0; 9]));
    bad(fragment(32, true, proto::UDP, &[]));
    bad(fragment(65528, false, proto::UDP, &[0; 16]));
}

fn v6_fragment(offset_flags: u16, next: u8, rest: &[u8]) -> Result<Parsed, DropReason> {
    let mut l4 = vec![next, 0];
    l4.extend_from_slice(&offset_flags.to_be_bytes());
    l4.extend_from_slice(&0xcafe_f00du32.to_be_bytes());
    l4.extend_from_slice(rest);
    go(&v6(&v6_header(l4.len(), ext::FRAGMENT), &l4))
}

#[test]
fn ipv6_fragments() {
    let udp = udp_bytes(5, 6, 16);
    let p = v6_fragment(1, proto::UDP, &udp).unwrap();
    assert_eq!(p.fragment, Fragment::First { id: 0xcafe_f00d });
    assert_eq!((p.fragment_len, p.sport, p.l4_offset), (24, 5, 62));
    let p = v6_fragment(0, proto::UDP, &udp).unwrap();
    assert_eq!((p.fragment, p.dport), (Fragment::No, 6), "atomic");
    let p = v6_fragment(24 | 1, proto::UDP, &[0; 8]).unwrap();
    let later = Fragment::Later {
        id: 0xcafe_f00d,
        offset: 24,
        last: false,
    };
    assert_eq!((p.fragment, p.fragment_len, p.l4_offset), (later, 8, 0));

    let bad = |r: Result<Parsed, DropReason>| assert_eq!(r.unwrap_err(), DropReason::BadFragment);
    bad(v6_fragment(
        1,
        proto::TCP,
        &tcp_bytes(tcp_flag::ACK, &[], 0)[..16],
    ));
    bad(v6_fragment(
        1,
        ext::DESTINATION,
        &[proto::UDP, 3, 0, 0, 0, 0, 0, 0],
    ));
    bad(v6_fragment(1, proto::ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]));
    // The header chain before the transport header counts as carried data.
    let mut rest = vec![proto::UDP, 0, 1, 4, 0, 0, 0, 0];
    rest.extend_from_slice(&udp);
    let p = v6_fragment(1, ext::DESTINATION, &rest).unwrap();
    assert_eq!((p.fragment_len, p.sport), (32, 5));
}

#[test]
fn ipv6_extension_rules() {
    let chain = |kinds: &[u8]| {
        let mut rest = Vec::new();
        for (i, &kind) in kinds.iter().enumerate() {
            let next = *kinds.get(i + 1).unwrap_or(&proto::UDP);
            match kind {
                ext::AUTHENTICATION => {
                    rest.extend_from_slice(&[next, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9]);
                }
                ext::FRAGMENT => rest.extend_from_slice(&[next, 0, 0, 0, 0, 0, 0, 1]),
                ext::ROUTING => rest.extend_from_slice(&[next, 0, 4, 0, 0, 0, 0, 0]),
                _ => rest.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        rest.extend_from_slice(&udp_bytes(7, 8, 4));
        let first = *kinds.first().unwrap_or(&proto::UDP);
        go(&v6(&v6_header(rest.len(), first), &rest))
    };
    use ext::ROUTING as RH;
    use ext::{AUTHENTICATION as AH, DESTINATION as DO, FRAGMENT as FR, HOP_BY_HOP as HBH};
    let p = chain(&[HBH, DO, RH, FR, AH, DO]).unwrap();
    assert_eq!(
        (p.protocol, p.sport, p.l4_offset),
        (proto::UDP, 7, 14 + 40 + 56)
    );
    for bad in [
        &[DO, HBH][..],
        &[HBH, HBH],
        &[RH, RH],
        &[FR, FR],
        &[AH, AH],
        &[DO, DO, DO],
    ] {
        assert_eq!(
            chain(bad).unwrap_err(),
            DropReason::BadIpv6Extension,
            "{bad:?}"
        );
    }
    // No next header, ESP and unknown protocols end the walk without a transport header.
    for last in [59, 50, 135] {
        let rest = [last, 0, 1, 4, 0, 0, 0, 0];
        let p = go(&v6(&v6_header(8, DO), &rest)).unwrap();
        assert_eq!((p.protocol, p.l4_offset), (last, 0));
    }
    // Type 0 routing with segments left; a header running past the packet.
    let routing0 = [
        proto::UDP,
        2,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let e = go(&v6(&v6_header(24, RH), &routing0)).unwrap_err();
    assert_eq!(e, DropReason::BadIpv6Extension);
    let e = go(&v6(&v6_header(8, DO), &[proto::UDP, 1, 0, 0, 0, 0, 0, 0])).unwrap_err();
    assert_eq!(e, DropReason::BadIpv6Extension);
    // Honest, but longer than what we keep private.
    let mut rest = vec![proto::UDP, 30];
    rest.resize(31 * 8, 0);
    rest.extend_from_slice(&udp_bytes(7, 8, 4));
    let e = go(&v6(&v6_header(rest.len(), DO), &rest)).unwrap_err();
    assert_eq!(e, DropReason::HeadersTooLong);
}

#[test]
fn source_addresses() {
    let from4 = |src: [u8; 4], protocol, l4: &[u8]| {
        let mut h = v4_header(l4.len(), protocol);
        h.source = src;
        go(&v4(h, l4)).map(|_| ())
    };
    const BAD: Result<(), DropReason> = Err(DropReason::BadSourceAddress);
    let udp = udp_bytes(1, 2, 0);
    for src in [
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [239, 1, 1, 1],
        [255; 4],
        [0; 4],
        [0, 1, 2, 3],
    ] {
        assert_eq!(from4(src, proto::UDP, &udp), BAD, "{src:?}");
    }
    assert_eq!(from4([250, 0, 0, 1], proto::UDP, &udp), Ok(()));
    assert_eq!(from4([0; 4], proto::UDP, &udp_bytes(68, 67, 0)), Ok(()));
    assert_eq!(from4([0; 4], IGMP, &[0; 8]), Ok(()));

    let from6 = |src: u128, protocol, l4: &[u8]| {
        let mut h = v6_header(l4.len(), protocol);
        h.source = src.to_be_bytes();
        go(&v6(&h, l4)).map(|_| ())
    };
    for src in [0, 1, 0xff02 << 112 | 1, 0xffff_0a00_0001] {
        assert_eq!(from6(src, proto::UDP, &udp), BAD, "{src:x}");
    }
    assert_eq!(from6(0xfe80 << 112 | 1, proto::UDP, &udp), Ok(()));
    assert_eq!(from6(0, proto::ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]), Ok(()));
    assert_eq!(from6(0, proto::ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]), BAD);
    let mut mapped = v6_header(8, proto::UDP);
    mapped.destination = 0xffff_0a00_0001u128.to_be_bytes();
    assert_eq!(go(&v6(&mapped, &udp)).unwrap_err(), DropReason::BadIpv6);

    let mut group = v4_tcp(tcp_flag::ACK);
    group[6] |= 1;
    assert_eq!(go(&group).map(|_| ()), BAD);
}

/// What stands above IP in a random packet.
#[derive(Clone, Debug)]
enum L4 {
    Tcp { flags: u8, options: Vec<u8> },
    Udp,
    Echo(u16),
    Other(u8),
}

fn any_l4() -> impl Strategy<Value = L4> {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN};
    let flags = prop::sample::select(vec![
        SYN,
        SYN | ACK,
        ACK,
        PSH | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
    ]);
    prop_oneof![
        (flags, prop::collection::vec(any::<u8>(), 0..=10)).prop_map(|(flags, o)| L4::Tcp {
            flags,
            options: o.iter().flat_map(|b| [*b; 4]).collect(),
        }),
        Just(L4::Udp),
        any::<u16>().prop_map(L4::Echo),
        // Neither extension headers nor what the switch or etherparse look into.
        (90u8..=130).prop_map(L4::Other),
    ]
}

prop_compose! {
    /// Extension headers in the order etherparse writes them.
    fn any_extensions()(
        hop in prop::option::of(0usize..4), dst in prop::option::of(0usize..4),
        routing in prop::option::of(0usize..3), last in prop::option::of(0usize..2),
        atomic: bool,
    ) -> Ipv6Extensions {
        let raw = |n: usize| Ipv6RawExtHeader::new_raw(IpNumber(0), &vec![4; 6 + 8 * n]).unwrap();
        Ipv6Extensions {
            hop_by_hop_options: hop.map(raw),
            destination_options: routing.and(dst).map(raw),
            routing: routing.map(|n| Ipv6RoutingExtensions {
                routing: raw(n),
                final_destination_options: last.map(raw),
            }),
            fragment: atomic.then(|| Ipv6FragmentHeader::new(
                IpNumber(0), IpFragOffset::ZERO, false, 7)),
            auth: None,
        }
    }
}

prop_compose! {
    /// A whole random frame: headers of every kind, a payload, Ethernet padding, maybe an inner tag.
    fn any_frame()(
        l4 in any_l4(), v6: bool, tag: bool, ports: (u16, u16), seq: (u32, u32, u16),
        src in 1u8..127, host: [u8; 3], options in 0usize..=10, exts in any_extensions(),
        payload in 0usize..600, padding in 0usize..10,
    ) -> Vec<u8> {
        let (protocol, mut bytes) = match &l4 {
            L4::Tcp { flags, options } => {
                let mut h = TcpHeader::new(ports.0, ports.1, seq.0, seq.2);
                h.acknowledgment_number = seq.1;
                h.set_options_raw(options).unwrap();
                let mut bytes = h.to_bytes().to_vec();
                bytes[13] = *flags;
                (proto::TCP, bytes)
            }
            L4::Udp => (proto::UDP, udp_bytes(ports.0, ports.1, payload)[..8].to_vec()),
            L4::Echo(id) => {
                let echo = IcmpEchoHeader { id: *id, seq: 1 };
                if v6 {
                    let h = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo));
                    (proto::ICMPV6, h.to_bytes().to_vec())
                } else {
                    let h = Icmpv4Header::new(Icmpv4Type::EchoReply(echo));
                    (proto::ICMP, h.to_bytes().to_vec())
                }
            }
            L4::Other(n) => (*n, Vec::new()),
        };
        bytes.resize(bytes.len() + payload, 0x33);
        let mut net = if v6 {
            IpHeaders::Ipv6(v6_header(0, 0), exts)
        } else {
            let mut h = v4_header(0, protocol);
            h.source = [src, host[0], host[1], host[2]];
            h.options = Ipv4Options::try_from(&vec![1u8; options * 4][..]).unwrap();
            IpHeaders::Ipv4(h, Default::default())
        };
        net.set_payload_len(bytes.len()).unwrap();
        net.set_next_headers(IpNumber(protocol));
        let kind = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
        if let IpHeaders::Ipv4(h, _) = &mut net {
            h.header_checksum = h.calc_header_checksum();
        }
        let mut frame = eth(if tag { ethertype::VLAN } else { kind });
        if tag {
            frame.extend_from_slice(&[0, 30]);
            frame.extend_from_slice(&kind.to_be_bytes());
        }
        net.write(&mut frame).unwrap();
        frame.extend_from_slice(&bytes);
        frame.resize(frame.len() + padding, 0);
        frame
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 2000 }))]

    #[test]
    fn agrees_with_etherparse(frame in any_frame()) {
        let theirs = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let ours = match go(&frame) {
            // Extension headers and TCP options can pass the head together.
            Err(DropReason::HeadersTooLong) => {
                prop_assert!(frame.len() > 256);
                return Ok(());
            }
            other => other.unwrap(),
        };
        // They take a length of 0 for a jumbogram's, and the padding for its payload (RFC 2675 asks for an option with it).
        let empty = matches!(&theirs.net, Some(NetHeaders::Ipv6(h, _)) if h.payload_length == 0);
        let l3_len = match theirs.net.unwrap() {
            NetHeaders::Ipv4(h, exts) => {
                prop_assert_eq!(ours.l3, L3::V4);
                prop_assert_eq!(ours.src, addr4(h.source));
                prop_assert_eq!(ours.dst, addr4(h.destination));
                prop_assert_eq!(ours.protocol, h.protocol.0);
                h.header_len() + exts.header_len()
            }
            NetHeaders::Ipv6(h, exts) => {
                prop_assert_eq!(ours.l3, L3::V6);
                prop_assert_eq!((ours.src.0, ours.dst.0), (h.source, h.destination));
                prop_assert_eq!(ours.protocol, exts.next_header(h.next_header).unwrap().0);
                h.header_len() + exts.header_len()
            }
            NetHeaders::Arp(_) => unreachable!(),
        };
        let l4 = usize::from(ours.l3_offset) + l3_len;
        let payload = match theirs.transport {
            Some(TransportHeader::Tcp(h)) => {
                prop_assert_eq!((ours.sport, ours.dport), (h.source_port, h.destination_port));
                prop_assert_eq!(ours.tcp.seq, h.sequence_number);
                prop_assert_eq!(ours.tcp.ack, h.acknowledgment_number);
                prop_assert_eq!(ours.tcp.window, h.window_size);
                l4 + h.header_len()
            }
            Some(TransportHeader::Udp(h)) => {
                prop_assert_eq!((ours.sport, ours.dport), (h.source_port, h.destination_port));
                l4 + 8
            }
            Some(_) => l4 + 8,
            None => {
                prop_assert_eq!(ours.l4_offset, 0);
                let len = if empty { 0 } else { theirs.payload.slice().len() };
                prop_assert_eq!(ours.payload_len as usize, len);
                return Ok(());
            }
        };
        prop_assert_eq!(usize::from(ours.l4_offset), l4);
        prop_assert_eq!(usize::from(ours.payload_offset), payload);
        prop_assert_eq!(ours.payload_len as usize, theirs.payload.slice().len());
        prop_assert_eq!(ours.fragment, Fragment::No);
    }

    /// Bytes changed at random in a valid frame, cut at random: never a panic, offsets in order.
    #[test]
    fn damage_never_panics(
        mut frame in any_frame(), damage in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
        cut in 0usize..700, mend: bool,
    ) {
        for (at, value) in damage {
            if let Some(b) = frame.get_mut(at) {
                *b = value;
            }
        }
        if mend && frame[12..14] == [8, 0] {
            frame[24..26].fill(0);
            let len = usize::from(frame[14] & 15) * 4;
            let sum = checksum::fold(checksum::sum(&frame[14..(14 + len).min(frame.len())], 0));
            frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
        }
        frame.truncate(cut);
        check_any(&frame);
    }

    #[test]
    fn noise_never_panics(frame in prop::collection::vec(any::<u8>(), 0..300), len: u32) {
        check_any(&frame);
        let _ = parse(&frame, len);
    }
}

fn check_any(frame: &[u8]) {
    if let Ok(p) = go(frame) {
        assert!(p.l4_offset == 0 || p.l3_offset < p.l4_offset);
        assert!(p.payload_offset == 0 || p.l4_offset < p.payload_offset);
        assert!(usize::from(p.payload_offset) + p.payload_len as usize <= frame.len());
    }
}
