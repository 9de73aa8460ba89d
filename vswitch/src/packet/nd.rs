//! Neighbour discovery for IPv6 (RFC 4861): a checked view, and the advertisement that answers a
//! solicitation.

use super::build::{Ip, Writer};
use super::parse::icmp_type;
use super::{Addr, L3, Mac, Parsed, checksum, ethertype, proto};
use crate::drop_reason::DropReason;

/// All nodes on the link.
const ALL_NODES: Addr = Addr([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const UNSPECIFIED: Addr = Addr([0; 16]);
/// Option types.
const SOURCE_LLADDR: u8 = 1;
const TARGET_LLADDR: u8 = 2;

/// What a neighbour-discovery message does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdKind {
    /// Are there routers?
    RouterSolicitation,
    /// I am a router.
    RouterAdvertisement,
    /// Who has the target address (or, from `::`, does anybody)?
    NeighbourSolicitation,
    /// The target address is here.
    NeighbourAdvertisement,
    /// A better next hop for a destination is the target.
    Redirect,
}

/// A neighbour-discovery message. What it claims is not yet checked against anybody's bindings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nd {
    /// Which message.
    pub kind: NdKind,
    /// Target address; `::` in router solicitations and advertisements, which have none.
    pub target: Addr,
    /// The link-layer address it gives: the target's in an advertisement or redirect, else the
    /// sender's. Never a group.
    pub lladdr: Option<Mac>,
    /// An advertisement's flags: [`ROUTER`], [`SOLICITED`], [`OVERRIDE`]; else 0.
    pub flags: u8,
}

/// The target is a router (RFC 4861 section 4.4, as the next two).
pub const ROUTER: u8 = 0x80;
/// The advertisement answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// What was known of the target before does not count.
pub const OVERRIDE: u8 = 0x20;

/// Reads and verifies the message of a head for which [`Parsed::is_nd`] holds: hop limit, code,
/// length, checksum, addresses and options (RFC 4861 sections 6.1, 7.1 and 8.1). A message longer
/// than the head (256 bytes) is refused whole, since its options could not be judged.
///
/// # Errors
/// `BadNd`, or `HeadersTooLong`.
pub fn parse(head: &[u8], p: &Parsed) -> Result<Nd, DropReason> {
    const BAD: DropReason = DropReason::BadNd;
    if !p.is_nd() || p.l3 != L3::V6 {
        return Err(BAD);
    }
    let start = usize::from(p.l4_offset);
    // The parser counts the 8 bytes common to all kinds as header.
    let len = 8 + p.payload_len as usize;
    let m = head
        .get(start..start + len)
        .ok_or(DropReason::HeadersTooLong)?;
    let hop_limit = head.get(usize::from(p.l3_offset) + 7);
    let pseudo = checksum::pseudo(&p.src, &p.dst, proto::ICMPV6, 8 + p.payload_len);
    if hop_limit != Some(&255)
        || p.icmp_code != 0
        || checksum::fold(checksum::sum(m, pseudo)) != 0xffff
    {
        return Err(BAD);
    }
    let (kind, fixed) = match p.icmp_type {
        icmp_type::ROUTER_SOLICITATION => (NdKind::RouterSolicitation, 8),
        icmp_type::ROUTER_ADVERTISEMENT => (NdKind::RouterAdvertisement, 16),
        icmp_type::NEIGHBOUR_SOLICITATION => (NdKind::NeighbourSolicitation, 24),
        icmp_type::NEIGHBOUR_ADVERTISEMENT => (NdKind::NeighbourAdvertisement, 24),
        _ => (NdKind::Redirect, 40),
    };
    let target = match kind {
        NdKind::RouterSolicitation | NdKind::RouterAdvertisement => UNSPECIFIED,
        _ => Addr(*m.get(8..).and_then(|s| s.first_chunk()).ok_or(BAD)?),
    };
    let from_target = matches!(kind, NdKind::NeighbourAdvertisement | NdKind::Redirect);
    let wanted = if from_target {
        TARGET_LLADDR
    } else {
        SOURCE_LLADDR
    };
    let lladdr = lladdr(m.get(fixed..).ok_or(BAD)?, wanted)?;

    let nameless = p.src == UNSPECIFIED;
    let flags = match kind {
        NdKind::NeighbourAdvertisement => {
            m.get(4).map_or(0, |f| f & (ROUTER | SOLICITED | OVERRIDE))
        }
        _ => 0,
    };
    let solicited = flags & SOLICITED != 0;
    let lawful = !is_multicast(&target)
        && match kind {
            NdKind::RouterSolicitation => !nameless || lladdr.is_none(),
            NdKind::NeighbourSolicitation => {
                !nameless || (lladdr.is_none() && is_solicited_node(&p.dst))
            }
            NdKind::NeighbourAdvertisement => !solicited || !is_multicast(&p.dst),
            NdKind::RouterAdvertisement | NdKind::Redirect => is_link_local(&p.src),
        };
    if !lawful {
        return Err(BAD);
    }
    Ok(Nd {
        kind,
        target,
        lladdr,
        flags,
    })
}

/// Walks all options, each a type, a length in units of 8 bytes (not 0), and a value.
fn lladdr(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let (option, rest) = options
            .split_at_checked(usize::from(units) * 8)
            .filter(|_| units != 0)
            .ok_or(DropReason::BadNd)?;
        if kind == wanted {
            let &[_, 1, a, b, c, d, e, f] = option else {
                return Err(DropReason::BadNd);
            };
            let mac = Mac([a, b, c, d, e, f]);
            // Two would let two readers of one message learn two things.
            if mac.is_group() || found.replace(mac).is_some() {
                return Err(DropReason::BadNd);
            }
        }
        options = rest;
    }
    if options.is_empty() {
        Ok(found)
    } else {
        Err(DropReason::BadNd)
    }
}

fn is_multicast(a: &Addr) -> bool {
    a.0[0] == 0xff
}

/// fe80::/10.
fn is_link_local(a: &Addr) -> bool {
    a.0[0] == 0xfe && a.0[1] & 0xc0 == 0x80
}

/// ff02::1:ff00:0/104.
fn is_solicited_node(a: &Addr) -> bool {
    a.0.starts_with(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff])
}

/// Writes the advertisement that answers the solicitation `nd` of the frame `p`: its target is at
/// `mac`. Duplicate address detection (from `::`) is answered to all nodes. `router` must be right:
/// an advertisement without it takes a router out of its hearers' list (RFC 4861 section 7.2.5).
/// Returns the frame's length.
pub fn advertisement(out: &mut [u8; 256], nd: &Nd, p: &Parsed, mac: Mac, router: bool) -> usize {
    let (dst, dst_mac, solicited) = if p.src == UNSPECIFIED {
        (ALL_NODES, ALL_NODES_MAC, 0)
    } else {
        (p.src, p.src_mac, SOLICITED)
    };
    let answer = Nd {
        kind: NdKind::NeighbourAdvertisement,
        target: nd.target,
        lladdr: Some(mac),
        flags: OVERRIDE | solicited | if router { ROUTER } else { 0 },
    };
    write(out, &answer, (mac, nd.target), (dst_mac, dst))
}

/// Writes the solicitation or advertisement `nd` of the frame `p` anew, as RFC 4861 has it: what it
/// says and nothing more, without further options and headers. A solicitation goes to the target, or
/// to the target's group. Returns the frame's length.
pub fn restate(out: &mut [u8; 256], nd: &Nd, p: &Parsed) -> usize {
    let group = is_multicast(&p.dst) || p.dst_mac.is_group();
    let to = match (nd.kind, group) {
        (NdKind::NeighbourAdvertisement, _) => (p.dst_mac, p.dst),
        (_, false) => (p.dst_mac, nd.target),
        (_, true) => solicited_node(&nd.target),
    };
    write(out, nd, (p.src_mac, p.src), to)
}

/// ff02::1:ffXX:XXXX with the target's last three bytes, and its MAC (RFC 4291 section 2.7.1, RFC 2464
/// section 7).
fn solicited_node(&Addr([.., a, b, c]): &Addr) -> (Mac, Addr) {
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    (Mac([0x33, 0x33, 0xff, a, b, c]), Addr(group))
}

/// Writes a solicitation, or else an advertisement.
fn write(
    out: &mut [u8; 256],
    nd: &Nd,
    (src_mac, src): (Mac, Addr),
    (dst_mac, dst): (Mac, Addr),
) -> usize {
    let (kind, option) = match nd.kind {
        NdKind::NeighbourSolicitation => (icmp_type::NEIGHBOUR_SOLICITATION, SOURCE_LLADDR),
        _ => (icmp_type::NEIGHBOUR_ADVERTISEMENT, TARGET_LLADDR),
    };
    let ip = Ip {
        hop_limit: 255,
        ..Ip::new(L3::V6, &src, &dst, proto::ICMPV6)
    };
    let mut w = Writer::new(out);
    w.ethernet(dst_mac, src_mac, ethertype::IPV6);
    w.ip(&ip, if nd.lladdr.is_some() { 32 } else { 24 });
    let start = w.len();
    w.put(&[kind, 0, 0, 0, nd.flags, 0, 0, 0]);
    w.put(&nd.target.0);
    if let Some(mac) = nd.lladdr {
        w.put(&[option, 1]);
        w.put(&mac.0);
    }
    w.transport_checksum(&ip, start, 2);
    w.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet;

    const A: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const B: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().unwrap())
    }

    /// A frame from `src` with a right checksum.
    fn frame(src: &str, dst: &str, message: &[u8]) -> Vec<u8> {
        let (src, dst) = (addr(src), addr(dst));
        let ip = Ip {
            hop_limit: 255,
            ..Ip::new(L3::V6, &src, &dst, proto::ICMPV6)
        };
        let mut out = [0; 256];
        let mut w = Writer::new(&mut out);
        w.ethernet(B, A, ethertype::IPV6);
        w.ip(&ip, u16::try_from(message.len()).unwrap());
        let start = w.len();
        w.put(message);
        w.transport_checksum(&ip, start, 2);
        let n = w.len();
        out[..n].to_vec()
    }

    fn message(kind: u8, flags: u8, rest: &[&[u8]]) -> Vec<u8> {
        let mut m = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        m.extend(rest.iter().copied().flatten());
        m
    }

    fn go(frame: &[u8]) -> Result<Nd, DropReason> {
        let p = packet::parse(frame, u32::try_from(frame.len()).unwrap())?;
        parse(frame, &p)
    }

    const SLLA: [u8; 8] = [1, 1, 0x52, 0x54, 0, 0, 0, 1];
    const TLLA: [u8; 8] = [2, 1, 0x52, 0x54, 0, 0, 0, 1];

    #[test]
    fn solicitation_and_answer() {
        let target = addr("fe80::2");
        let ns = message(135, 0, &[&target.0, &SLLA]);
        let f = frame("fe80::1", "ff02::1:ff00:2", &ns);
        let asked = go(&f).unwrap();
        let want = Nd {
            kind: NdKind::NeighbourSolicitation,
            target,
            lladdr: Some(A),
            flags: 0,
        };
        assert_eq!(asked, want);

        let mut out = [0xee; 256];
        let p = packet::parse(&f, 86).unwrap();
        let n = advertisement(&mut out, &asked, &p, B, true);
        assert_eq!(n, 86);
        let na = &out[..n];
        assert_eq!((&na[..6], &na[6..12]), (&A.0[..], &B.0[..]));
        assert_eq!(na[58], 0xe0, "router, solicited, override");
        let q = packet::parse(na, 86).unwrap();
        assert_eq!((q.src, q.dst), (target, addr("fe80::1")));
        let want = Nd {
            kind: NdKind::NeighbourAdvertisement,
            target,
            lladdr: Some(B),
            flags: ROUTER | SOLICITED | OVERRIDE,
        };
        assert_eq!(parse(na, &q), Ok(want));
        let theirs = etherparse::PacketHeaders::from_ethernet_slice(na).unwrap();
        assert!(matches!(
            theirs.transport,
            Some(etherparse::TransportHeader::Icmpv6(_))
        ));
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_all() {
        let target = addr("fe80::2");
        let f = frame("::", "ff02::1:ff00:2", &message(135, 0, &[&target.0]));
        let asked = go(&f).unwrap();
        assert_eq!(asked.lladdr, None);
        let mut out = [0; 256];
        let n = advertisement(&mut out, &asked, &packet::parse(&f, 78).unwrap(), B, false);
        assert_eq!(out[..6], ALL_NODES_MAC.0);
        assert_eq!(out[58], 0x20, "override only");
        let q = packet::parse(&out[..n], 86).unwrap();
        assert_eq!(q.dst, ALL_NODES);
        assert!(parse(&out[..n], &q).is_ok());
    }

    #[test]
    fn every_kind() {
        let t = addr("fe80::2").0;
        let good = [
            (
                NdKind::RouterSolicitation,
                frame("::", "ff02::2", &message(133, 0, &[])),
            ),
            (
                NdKind::RouterSolicitation,
                frame("fe80::1", "ff02::2", &message(133, 0, &[&SLLA])),
            ),
            (
                NdKind::RouterAdvertisement,
                frame("fe80::1", "ff02::1", &message(134, 0, &[&[0; 8], &SLLA])),
            ),
            (
                NdKind::NeighbourAdvertisement,
                frame("fe80::2", "ff02::1", &message(136, 0x20, &[&t, &TLLA])),
            ),
            (
                NdKind::Redirect,
                frame(
                    "fe80::1",
                    "fe80::9",
                    &message(137, 0, &[&t, &t, &TLLA, &[4, 1, 0, 0, 0, 0, 0, 0]]),
                ),
            ),
        ];
        for (kind, f) in good {
            assert_eq!(go(&f).map(|n| n.kind), Ok(kind));
        }
    }

    #[test]
    fn malformed() {
        let t = addr("fe80::2").0;
        let group = [1, 1, 1, 0, 0x5e, 0, 0, 1];
        let bad = [
            (
                "short",
                frame("fe80::1", "fe80::2", &message(135, 0, &[&t[..8]])),
            ),
            (
                "multicast target",
                frame("fe80::1", "fe80::2", &message(135, 0, &[&ALL_NODES.0])),
            ),
            (
                "option of length 0",
                frame(
                    "fe80::1",
                    "fe80::2",
                    &message(135, 0, &[&t, &[1, 0, 0, 0, 0, 0, 0, 0]]),
                ),
            ),
            (
                "option past the end",
                frame(
                    "fe80::1",
                    "fe80::2",
                    &message(135, 0, &[&t, &[1, 2, 0, 0, 0, 0, 0, 0]]),
                ),
            ),
            (
                "half an option",
                frame("fe80::1", "fe80::2", &message(135, 0, &[&t, &[1]])),
            ),
            (
                "group address",
                frame("fe80::1", "fe80::2", &message(135, 0, &[&t, &group])),
            ),
            (
                "two addresses",
                frame("fe80::1", "fe80::2", &message(135, 0, &[&t, &SLLA, &SLLA])),
            ),
            (
                "detection with address",
                frame("::", "ff02::1:ff00:2", &message(135, 0, &[&t, &SLLA])),
            ),
            (
                "detection by unicast",
                frame("::", "fe80::2", &message(135, 0, &[&t])),
            ),
            (
                "nameless router query with address",
                frame("::", "ff02::2", &message(133, 0, &[&SLLA])),
            ),
            (
                "solicited to all",
                frame("fe80::2", "ff02::1", &message(136, 0x40, &[&t])),
            ),
            (
                "router not link-local",
                frame("2001:db8::1", "ff02::1", &message(134, 0, &[&[0; 8]])),
            ),
            (
                "redirect not link-local",
                frame("2001:db8::1", "fe80::9", &message(137, 0, &[&t, &t])),
            ),
        ];
        for (what, f) in &bad {
            assert_eq!(go(f), Err(DropReason::BadNd), "{what}");
        }
        let good = frame("fe80::1", "fe80::2", &message(135, 0, &[&t, &SLLA]));
        assert!(go(&good).is_ok());
        for at in [21, 55, 60, 80] {
            // Hop limit, code, then two places the checksum covers.
            let mut f = good.clone();
            f[at] ^= 2;
            assert_eq!(go(&f), Err(DropReason::BadNd), "byte {at}");
        }
        let p = packet::parse(&good, 86).unwrap();
        assert_eq!(parse(&good[..80], &p), Err(DropReason::HeadersTooLong));
    }
}
