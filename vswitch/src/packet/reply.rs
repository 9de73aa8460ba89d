//! What a rejected sender is told: a TCP reset, or an ICMP "administratively prohibited" that quotes
//! his packet; and what a decoy answers. All come from the address he tried to reach, as a router-less switch has none.

use super::build::{Ip, Writer, ip_ethertype};
use super::parse::{icmp_type, is_v4_host, is_v6_host};
use super::segment::{Bare, Tags};
use super::{Addr, Fragment, L3, Parsed, proto, tcp_flag};

/// Most bytes of the offending packet quoted: its IP header and what of the transport lies in the
/// first 128. RFC 1812 section 4.3.2.3 asks for as much as fits 576, RFC 792 for header and 8; a
/// head is all we have, and small answers amplify nothing.
const QUOTE_MAX: usize = 128;
/// ICMP: communication administratively prohibited (RFC 1812 section 5.2.7.1).
const V4_PROHIBITED: u8 = 13;
/// ICMPv6: communication with destination administratively prohibited (RFC 4443 section 3.1).
const V6_PROHIBITED: u8 = 1;

/// Writes what tells the sender of `p` that it was rejected, as an untagged frame (with its inner
/// tag, if it had one), and returns its length: a reset for TCP, an ICMP error for everything else.
/// `None` when nothing may be said: see [`tcp_reset`] and [`unreachable()`].
pub fn reject(out: &mut [u8; 256], head: &[u8], p: &Parsed) -> Option<usize> {
    if p.protocol == proto::TCP {
        tcp_reset(out, head, p)
    } else {
        unreachable(out, head, p)
    }
}

/// Writes the reset a closed port answers a segment with (RFC 9293 section 3.10.7.1). `None` for
/// what is itself a reset, or has no answer (a fragment, whose length is not known, or what was not sent from one host to one).
pub fn tcp_reset(out: &mut [u8; 256], head: &[u8], p: &Parsed) -> Option<usize> {
    let flags = p.tcp.flags;
    if flags & tcp_flag::RST != 0 {
        return None;
    }
    let (seq, ack, answer) = if flags & tcp_flag::ACK != 0 {
        (p.tcp.ack, 0, tcp_flag::RST)
    } else {
        // SYN and FIN take one number each.
        let controls = (flags & (tcp_flag::SYN | tcp_flag::FIN)).count_ones();
        let next = p.tcp.seq.wrapping_add(p.payload_len).wrapping_add(controls);
        (0, next, tcp_flag::RST | tcp_flag::ACK)
    };
    let reset = Bare {
        seq,
        ack,
        flags: answer,
        ..back(head, p)?
    };
    Some(reset.write(out))
}

/// Writes what accepts a SYN, with this number and window, and without options, so that it is never longer than the SYN.
/// Payload that came with it is not acknowledged. `None` for what is no SYN, or has no answer, as above.
pub fn syn_ack(
    out: &mut [u8; 256],
    head: &[u8],
    p: &Parsed,
    (seq, window): (u32, u16),
) -> Option<usize> {
    const SYN: u8 = tcp_flag::SYN;
    if p.tcp.flags & (SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) != SYN {
        return None;
    }
    let accepts = Bare {
        seq,
        ack: p.tcp.seq.wrapping_add(1),
        flags: SYN | tcp_flag::ACK,
        window,
        ..back(head, p)?
    };
    Some(accepts.write(out))
}

/// A segment to where this one came from, if it may have an answer.
fn back(head: &[u8], p: &Parsed) -> Option<Bare> {
    let is_whole = p.protocol == proto::TCP && p.l4_offset != 0 && p.fragment == Fragment::No;
    (is_whole && between_two_hosts(p)).then(|| Bare {
        macs: (p.src_mac, p.dst_mac),
        tags: Tags::of(head, p),
        from: (p.dst, p.dport),
        to: (p.src, p.sport),
        seq: 0,
        ack: 0,
        flags: 0,
        window: 0,
        timestamps: None,
    })
}

/// Writes an ICMP or ICMPv6 "administratively prohibited" that quotes the packet. `None` in answer
/// to an ICMP error, to a later fragment, and to anything not sent from one host to one host (RFC
/// 1122 section 3.2.2, RFC 4443 section 2.4).
pub fn unreachable(out: &mut [u8; 256], head: &[u8], p: &Parsed) -> Option<usize> {
    let later = matches!(p.fragment, Fragment::Later { .. });
    if p.is_icmp_error() || later || !between_two_hosts(p) {
        return None;
    }
    let (protocol, kind, code) = match p.l3 {
        L3::V4 => (proto::ICMP, icmp_type::UNREACHABLE, V4_PROHIBITED),
        L3::V6 => (proto::ICMPV6, icmp_type::V6_UNREACHABLE, V6_PROHIBITED),
        L3::Other | L3::Arp => return None,
    };
    let packet = head.get(usize::from(p.l3_offset)..)?;
    let quote = packet.get(..ip_len(packet, p.l3)?.min(packet.len()).min(QUOTE_MAX))?;
    let ip = Ip::new(p.l3, &p.dst, &p.src, protocol);
    let mut w = Writer::new(out);
    link(&mut w, head, p)?;
    w.ip(&ip, u16::try_from(8 + quote.len()).ok()?);
    let start = w.len();
    w.put(&[kind, code, 0, 0, 0, 0, 0, 0]);
    w.put(quote);
    w.transport_checksum(&ip, start, 2);
    Some(w.len())
}

/// Bytes of the packet by its own header: Ethernet padding is not quoted.
fn ip_len(packet: &[u8], l3: L3) -> Option<usize> {
    let be16 = |at: usize| {
        let bytes = packet.get(at..)?.first_chunk()?;
        Some(usize::from(u16::from_be_bytes(*bytes)))
    };
    if l3 == L3::V6 {
        Some(40 + be16(4)?)
    } else {
        be16(2)
    }
}

/// The link header turned round, an inner tag included.
fn link(w: &mut Writer<'_>, head: &[u8], p: &Parsed) -> Option<()> {
    w.put(&p.src_mac.0);
    w.put(&p.dst_mac.0);
    w.put(head.get(12..usize::from(p.l3_offset).checked_sub(2)?)?);
    w.put16(ip_ethertype(p.l3));
    Some(())
}

/// Neither end is a group or nobody, at either layer.
fn between_two_hosts(p: &Parsed) -> bool {
    let one_host = |a: &Addr| match p.l3 {
        L3::V4 => is_v4_host(a),
        L3::V6 => is_v6_host(a),
        L3::Other | L3::Arp => false,
    };
    !p.dst_mac.is_group() && !p.src_mac.is_group() && one_host(&p.src) && one_host(&p.dst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{self, Mac, checksum, ethertype};
    use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};

    const A: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const B: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

    fn v4_to(dst_mac: Mac, dst: [u8; 4]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2(A.0, dst_mac.0).ipv4([10, 0, 0, 1], dst, 64)
    }

    fn v4() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        v4_to(B, [10, 0, 0, 2])
    }

    fn v6() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let (mut s, mut d) = ([0; 16], [0; 16]);
        (s[0], s[15], d[0], d[15]) = (0xfd, 1, 0xfd, 2);
        PacketBuilder::ethernet2(A.0, B.0).ipv6(s, d, 64)
    }

    macro_rules! build {
        ($step:expr, $payload:expr) => {{
            let mut frame = Vec::new();
            $step.write(&mut frame, &$payload).unwrap();
            frame
        }};
    }

    fn parsed(frame: &[u8]) -> Parsed {
        packet::parse(
            &frame[..frame.len().min(256)],
            u32::try_from(frame.len()).unwrap(),
        )
        .unwrap()
    }

    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xee; 256];
        let head = &frame[..frame.len().min(256)];
        let n = reject(&mut out, head, &parsed(frame))?;
        let answer = out[..n].to_vec();
        // Every answer is a frame our own parser takes, turned round, with a right checksum.
        let (p, q) = (parsed(frame), parsed(&answer));
        assert_eq!((q.src, q.dst), (p.dst, p.src));
        assert_eq!((q.src_mac, q.dst_mac), (p.dst_mac, p.src_mac));
        let l4 = usize::from(q.l4_offset);
        let start = match q.protocol {
            proto::ICMP => 0,
            protocol => checksum::pseudo(&q.src, &q.dst, protocol, u32::try_from(n - l4).unwrap()),
        };
        assert_eq!(checksum::fold(checksum::sum(&answer[l4..], start)), 0xffff);
        Some(answer)
    }

    fn reset_of(frame: &[u8]) -> etherparse::TcpHeader {
        let bytes = answer(frame).unwrap();
        match PacketHeaders::from_ethernet_slice(&bytes)
            .unwrap()
            .transport
        {
            Some(TransportHeader::Tcp(h)) => h,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_syn_is_answered_with_its_length_acknowledged() {
        for frame in [
            build!(v4().tcp(1000, 22, u32::MAX, 5000).syn(), []),
            build!(v6().tcp(1000, 22, u32::MAX, 5000).syn(), []),
        ] {
            let h = reset_of(&frame);
            assert_eq!((h.source_port, h.destination_port), (22, 1000));
            assert_eq!((h.sequence_number, h.acknowledgment_number), (0, 0));
            assert!(h.rst && h.ack && !h.syn);
        }
        // Fast open: data counts.
        let h = reset_of(&build!(v4().tcp(1000, 22, 100, 5000).syn(), [1; 10]));
        assert_eq!(h.acknowledgment_number, 111);
    }

    #[test]
    fn an_acknowledging_segment_is_answered_at_its_acknowledgement() {
        let h = reset_of(&build!(v4().tcp(1000, 22, 7, 5000).ack(4242), [0; 1400]));
        assert_eq!((h.sequence_number, h.rst, h.ack), (4242, true, false));
    }

    #[test]
    fn a_reset_is_never_answered() {
        assert_eq!(answer(&build!(v4().tcp(1, 2, 3, 4).rst(), [])), None);
        assert_eq!(answer(&build!(v4().tcp(1, 2, 3, 4).rst().ack(9), [])), None);
    }

    #[test]
    fn a_syn_is_accepted_by_no_more_than_it_took() {
        let accepted = |frame: &[u8]| {
            let mut out = [0xee; 256];
            let len = syn_ack(&mut out, frame, &parsed(frame), (0xffff_ffff, 536))?;
            assert!(len <= frame.len());
            Some(parsed(&out[..len]))
        };
        for (frame, ack) in [
            (build!(v4().tcp(1000, 22, u32::MAX, 5000).syn(), []), 0),
            (build!(v6().tcp(1000, 22, u32::MAX, 5000).syn(), []), 0),
            // Fast open: data will have to be sent again.
            (build!(v4().tcp(1000, 22, 100, 5000).syn(), [1; 10]), 101),
        ] {
            let (p, q) = (parsed(&frame), accepted(&frame).unwrap());
            assert_eq!((q.src, q.sport, q.dst, q.dport), (p.dst, 22, p.src, 1000));
            assert_eq!((q.src_mac, q.dst_mac), (p.dst_mac, p.src_mac));
            assert_eq!((q.tcp.seq, q.tcp.ack, q.tcp.window), (u32::MAX, ack, 536));
            assert_eq!(q.tcp.flags, tcp_flag::SYN | tcp_flag::ACK);
        }
        for frame in [
            build!(v4().tcp(1000, 22, 1, 5000).ack(1), []),
            build!(v4().tcp(1000, 22, 1, 5000).syn().ack(1), []),
            build!(v4().udp(1000, 22), [0; 20]),
            build!(v4_to(B, [224, 0, 0, 251]).tcp(1, 22, 1, 1).syn(), []),
        ] {
            assert!(accepted(&frame).is_none());
        }
    }

    #[test]
    fn others_are_told_prohibited_with_a_quote() {
        for payload in [0usize, 10, 1400] {
            let udp = build!(v4().udp(5000, 53), vec![7; payload]);
            let told = answer(&udp).unwrap();
            let p = parsed(&told);
            assert_eq!((p.protocol, p.icmp_type, p.icmp_code), (proto::ICMP, 3, 13));
            let inner = p.inner.unwrap();
            assert_eq!(
                (inner.sport, inner.dport, inner.dst),
                (5000, 53, parsed(&udp).dst)
            );
            assert_eq!(told[42..], udp[14..14 + (28 + payload).min(128)]);

            let udp = build!(v6().udp(5000, 53), vec![7; payload]);
            let told = answer(&udp).unwrap();
            let p = parsed(&told);
            assert_eq!(
                (p.protocol, p.icmp_type, p.icmp_code),
                (proto::ICMPV6, 1, 1)
            );
            assert_eq!(p.inner.map(|i| i.dport), Some(53));
            assert_eq!(told[62..], udp[14..14 + (48 + payload).min(128)]);
        }
        // Padding is not quoted.
        let mut udp = build!(v4().udp(5000, 53), [1, 2]);
        udp.resize(60, 0);
        assert_eq!(answer(&udp).unwrap().len(), 14 + 20 + 8 + 30);
        assert!(answer(&build!(v4().icmpv4_echo_request(1, 1), [0; 56])).is_some());
    }

    #[test]
    fn silence_where_an_answer_would_be_wrong() {
        let told = answer(&build!(v4().udp(5000, 53), [0; 20])).unwrap();
        assert_eq!(answer(&told), None, "an error about an error");
        let told = answer(&build!(v6().udp(5000, 53), [0; 20])).unwrap();
        assert_eq!(answer(&told), None, "an error about an error");
        for (mac, ip) in [
            (Mac::BROADCAST, [10, 0, 0, 255]),
            (B, [255; 4]),
            (B, [224, 0, 0, 251]),
            (Mac([1, 0, 0x5e, 0, 0, 1]), [10, 0, 0, 2]),
        ] {
            assert_eq!(
                answer(&build!(v4_to(mac, ip).udp(5000, 53), [])),
                None,
                "{mac} {ip:?}"
            );
            assert_eq!(
                answer(&build!(v4_to(mac, ip).tcp(5000, 53, 1, 1).syn(), [])),
                None
            );
        }
        let dhcp = PacketBuilder::ethernet2(A.0, B.0).ipv4([0; 4], [10, 0, 0, 2], 64);
        assert_eq!(answer(&build!(dhcp.udp(68, 67), [])), None);
        let mut arp = [0; 256];
        let n = packet::arp::request(&mut arp, A, Addr::default(), Addr::default());
        assert_eq!(answer(&arp[..n]), None);

        let frame = build!(v4().udp(5000, 53), [0; 20]);
        let mut later = parsed(&frame);
        later.fragment = Fragment::Later {
            id: 1,
            offset: 32,
            last: true,
        };
        assert_eq!(reject(&mut [0; 256], &frame, &later), None);
    }

    #[test]
    fn an_inner_tag_is_kept() {
        let plain = build!(v4().tcp(1000, 22, 1, 5000).syn(), []);
        let mut tagged = plain[..12].to_vec();
        tagged.extend_from_slice(&[0x81, 0, 0, 30]);
        tagged.extend_from_slice(&plain[12..]);
        let told = answer(&tagged).unwrap();
        assert_eq!(told[12..18], [0x81, 0, 0, 30, 8, 0]);
        assert_eq!(parsed(&told).ethertype, ethertype::IPV4);
    }
}
