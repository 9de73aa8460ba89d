//! The one pass over a frame's headers: bytes to [`Parsed`], or the reason why not.
//!
//! Every read goes through [`Bytes::at`], which knows both limits: where the packet ends by its own
//! headers (beyond: malformed) and where the private head ends (beyond: `HeadersTooLong`). Nothing
//! here can panic on any input; `fuzz/fuzz_targets/parse.rs` insists.
//!
//! What is refused, beside truncation, is what lets two readers of one packet disagree: overlapping
//! or tiny fragments (RFC 1858, RFC 7112), flags no stack sends, IPv6 addresses that would alias an
//! IPv4 connection, sources that are no host's.

use super::{Addr, Fragment, Inner, L3, Mac, Parsed, Tcp, checksum, ethertype, proto, tcp_flag};
use crate::drop_reason::DropReason;

/// Bytes of an Ethernet header.
const ETH_BYTES: usize = 14;
/// IPv6 extension headers walked before giving up: RFC 8200 section 4.1 lists seven.
const EXTENSIONS_MAX: u32 = 8;
/// Largest window shift (RFC 7323 section 2.3).
const WINDOW_SCALE_MAX: u8 = 14;
/// IGMP, which hosts without an address may send from 0.0.0.0 (RFC 3376 section 4.2.13).
const IGMP: u8 = 2;

/// IPv6 extension headers (IANA).
mod ext {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

/// ICMP and ICMPv6 types the switch tells apart (IANA).
pub mod icmp_type {
    /// ICMP echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// ICMP destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// ICMP source quench (deprecated, still an error message).
    pub const SOURCE_QUENCH: u8 = 4;
    /// ICMP redirect.
    pub const REDIRECT: u8 = 5;
    /// ICMP echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// ICMP time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// ICMP parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// ICMPv6 destination unreachable.
    pub const V6_UNREACHABLE: u8 = 1;
    /// ICMPv6: the first type that is not an error (RFC 4443 section 2.1).
    pub const V6_FIRST_INFORMATIONAL: u8 = 128;
    /// ICMPv6 echo request.
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// ICMPv6 echo reply.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// MLD report (RFC 2710).
    pub const MLD_REPORT: u8 = 131;
    /// MLD done (RFC 2710).
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation (RFC 4861).
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// ND redirect.
    pub const ND_REDIRECT: u8 = 137;
    /// MLDv2 report (RFC 3810).
    pub const MLD2_REPORT: u8 = 143;
}

impl Parsed {
    /// Whether this is an ICMP or ICMPv6 error message: one that quotes another packet and must
    /// never be answered with an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
    #[inline]
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        use icmp_type as t;
        self.l4_offset != 0
            && match self.protocol {
                proto::ICMP => matches!(
                    self.icmp_type,
                    t::UNREACHABLE
                        | t::SOURCE_QUENCH
                        | t::REDIRECT
                        | t::TIME_EXCEEDED
                        | t::PARAMETER_PROBLEM
                ),
                proto::ICMPV6 => self.icmp_type < t::V6_FIRST_INFORMATIONAL,
                _ => false,
            }
    }

    /// Whether a VLAN tag stands inside the (untagged) head.
    #[inline]
    #[must_use]
    pub fn has_inner_tag(&self) -> bool {
        usize::from(self.l3_offset) > ETH_BYTES
    }

    /// Whether this is a neighbour-discovery message, for [`super::nd::parse`].
    #[inline]
    #[must_use]
    pub fn is_nd(&self) -> bool {
        self.l4_offset != 0 && self.protocol == proto::ICMPV6 && is_nd_type(self.icmp_type)
    }
}

fn is_nd_type(t: u8) -> bool {
    (icmp_type::ROUTER_SOLICITATION..=icmp_type::ND_REDIRECT).contains(&t)
}

/// The head, and how to read it.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// `N` bytes at `at`, which must lie before `end` (at most the frame's length), else `bad`.
    #[inline(always)]
    fn at<const N: usize>(
        self,
        at: usize,
        end: usize,
        bad: DropReason,
    ) -> Result<&'a [u8; N], DropReason> {
        match self.0.get(at..at + N).and_then(|s| s.first_chunk::<N>()) {
            Some(bytes) if at + N <= end => Ok(bytes),
            _ if at + N > end => Err(bad),
            _ => Err(DropReason::HeadersTooLong),
        }
    }

    /// As [`Bytes::at`], for a length known at run time.
    #[inline]
    fn range(
        self,
        at: usize,
        len: usize,
        end: usize,
        bad: DropReason,
    ) -> Result<&'a [u8], DropReason> {
        if at + len > end {
            return Err(bad);
        }
        self.0.get(at..at + len).ok_or(DropReason::HeadersTooLong)
    }
}

#[inline]
const fn be16(hi: u8, lo: u8) -> u16 {
    u16::from_be_bytes([hi, lo])
}

/// An offset inside a head: at most 256 and thus never truncated.
#[allow(clippy::cast_possible_truncation)]
#[inline]
const fn offset(at: usize) -> u16 {
    at as u16
}

/// Bytes inside one frame: the caller's `frame_len` is a `u32` and thus never truncated.
#[allow(clippy::cast_possible_truncation)]
#[inline]
const fn bytes32(len: usize) -> u32 {
    len as u32
}

/// Parses an untagged head. `head` holds at least the first 256 bytes of the frame or all of it;
/// `frame_len` is the whole frame in bytes, tail included. One inner VLAN tag is walked, so
/// `l3_offset` is 14 or 18; a frame with more tags is [`L3::Other`] with a VLAN EtherType.
///
/// # Errors
/// The reason to drop the frame: see the *parsing* group of [`DropReason`], and `Runt`,
/// `BadFragment`.
pub fn parse(head: &[u8], frame_len: u32) -> Result<Parsed, DropReason> {
    let mut p = Parsed::EMPTY;
    parse_into(&mut p, head, frame_len)?;
    Ok(p)
}

/// As [`parse`], in place; what `p` holds after an error is what was known until then.
///
/// Costs some tens of cycles for IPv4 or IPv6 with TCP or UDP. Whoever reads `p` at once waits for
/// the stores: parse a whole burst first.
///
/// # Errors
/// As [`parse`].
#[inline]
pub fn parse_into(p: &mut Parsed, head: &[u8], frame_len: u32) -> Result<(), DropReason> {
    let b = Bytes(head);
    *p = Parsed::EMPTY;
    let end = (frame_len as usize).max(head.len());
    let Some(eth) = head.first_chunk::<ETH_BYTES>() else {
        return Err(DropReason::Runt);
    };
    p.dst_mac = Mac([eth[0], eth[1], eth[2], eth[3], eth[4], eth[5]]);
    p.src_mac = Mac([eth[6], eth[7], eth[8], eth[9], eth[10], eth[11]]);
    p.ethertype = be16(eth[12], eth[13]);
    if p.src_mac.is_group() {
        return Err(DropReason::BadSourceAddress);
    }
    let mut l3 = ETH_BYTES;
    if p.ethertype == ethertype::VLAN || p.ethertype == ethertype::QINQ {
        let tag = b.at::<4>(l3, end, DropReason::Runt)?;
        p.ethertype = be16(tag[2], tag[3]);
        l3 += 4;
    }
    p.l3_offset = offset(l3);
    let packet = match p.ethertype {
        ethertype::IPV4 => ipv4(p, b, l3, end)?,
        ethertype::IPV6 => ipv6(p, b, l3, end)?,
        ethertype::ARP => {
            p.l3 = L3::Arp;
            return Ok(());
        }
        _ => return Ok(()),
    };
    if let Some(l4) = packet.l4 {
        transport(p, b, l4, packet.end)?;
    }
    match p.l3 {
        L3::V4 if !is_v4_host(&p.src) => unusual_v4_source(p),
        L3::V6 if !is_v6_host(&p.src) => unusual_v6_source(p),
        _ => Ok(()),
    }
}

/// Where an IP packet's parts are.
struct Packet {
    /// Its transport header; a later fragment has none.
    l4: Option<usize>,
    end: usize,
}

/// An IPv4 address as the switch keeps it.
#[inline]
pub(super) fn v4_addr(a: u8, b: u8, c: u8, d: u8) -> Addr {
    // As one number, so that it is stored in whole words, which is how it is read.
    let low = u32::from_be_bytes([a, b, c, d]);
    Addr((0xffff << 32 | u128::from(low)).to_be_bytes())
}

#[inline]
fn ipv4(p: &mut Parsed, b: Bytes<'_>, l3: usize, frame_end: usize) -> Result<Packet, DropReason> {
    const BAD: DropReason = DropReason::BadIpv4;
    let ip = b.at::<20>(l3, frame_end, BAD)?;
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    let total_len = usize::from(be16(ip[2], ip[3]));
    // Bytes of the frame behind the total length are Ethernet padding.
    let end = l3 + total_len;
    if ip[0] >> 4 != 4 || header_len < 20 || total_len < header_len || end > frame_end {
        return Err(BAD);
    }
    let good = if header_len == 20 {
        checksum::is_good_header(ip)
    } else {
        checksum::fold(checksum::sum(b.range(l3, header_len, end, BAD)?, 0)) == 0xffff
    };
    if !good {
        return Err(BAD);
    }
    p.l3 = L3::V4;
    p.protocol = ip[9];
    p.src = v4_addr(ip[12], ip[13], ip[14], ip[15]);
    p.dst = v4_addr(ip[16], ip[17], ip[18], ip[19]);

    let l4 = l3 + header_len;
    // Flag and offset bits; "don't fragment" and the reserved bit do not concern us.
    let fragment = be16(ip[6], ip[7]) & 0x3fff;
    if fragment != 0 {
        let id = u32::from(be16(ip[4], ip[5]));
        let more = fragment & 0x2000 != 0;
        if set_fragment(p, id, (fragment & 0x1fff) << 3, more, end - l4)? {
            return Ok(Packet { l4: None, end });
        }
    }
    let l4 = Some(l4);
    Ok(Packet { l4, end })
}

/// Whether an IPv4 address can be one host's: not of this network (0/8), loopback (127/8),
/// multicast or limited broadcast (RFC 1122 section 3.2.1.3). Class E can: some networks use it.
#[inline(always)]
pub(super) fn is_v4_host(addr: &Addr) -> bool {
    let [.., a, b, c, d] = addr.0;
    a != 0 && a != 127 && a & 0xf0 != 0xe0 && a & b & c & d != 0xff
}

/// A source that is no host's. 0.0.0.0 may send a DHCP client's requests and IGMP.
#[cold]
fn unusual_v4_source(p: &Parsed) -> Result<(), DropReason> {
    let dhcp = p.protocol == proto::UDP && p.sport == 68 && p.dport == 67;
    if p.src == v4_addr(0, 0, 0, 0) && (dhcp || p.protocol == IGMP) {
        return Ok(());
    }
    Err(DropReason::BadSourceAddress)
}

/// Records a fragment of `len` bytes of the original packet; true for a later one, which has no
/// transport header.
#[cold]
fn set_fragment(
    p: &mut Parsed,
    id: u32,
    at: u16,
    more: bool,
    len: usize,
) -> Result<bool, DropReason> {
    const BAD: DropReason = DropReason::BadFragment;
    let Ok(len16) = u16::try_from(len) else {
        return Err(BAD);
    };
    // Every fragment but the last carries whole units of 8 bytes, and none ends past 64 KiB.
    if len16 == 0 || (more && len16 & 7 != 0) || at.checked_add(len16).is_none() {
        return Err(BAD);
    }
    p.fragment_len = len16;
    if at == 0 {
        p.fragment = Fragment::First { id };
        return Ok(false);
    }
    // The first fragment holds the whole transport header, so this one overlaps it (RFC 1858).
    if p.protocol == proto::TCP && at < 20 {
        return Err(BAD);
    }
    p.fragment = Fragment::Later {
        id,
        offset: at,
        last: !more,
    };
    p.payload_len = u32::from(len16);
    Ok(true)
}

#[inline]
fn ipv6(p: &mut Parsed, b: Bytes<'_>, l3: usize, frame_end: usize) -> Result<Packet, DropReason> {
    const BAD: DropReason = DropReason::BadIpv6;
    let ip = b.at::<40>(l3, frame_end, BAD)?;
    let mut l4 = l3 + 40;
    // A jumbogram (payload length 0) ends before its own hop-by-hop header and is refused there.
    let end = l4 + usize::from(be16(ip[4], ip[5]));
    if ip[0] >> 4 != 6 || end > frame_end {
        return Err(BAD);
    }
    p.l3 = L3::V6;
    let [src, dst] = v6_addrs(b, l3, frame_end)?;
    p.src = src;
    p.dst = dst;
    // They would alias an IPv4 address, and no host may send them (RFC 4942 section 2.2).
    if is_mapped(&p.src) {
        return Err(DropReason::BadSourceAddress);
    }
    if is_mapped(&p.dst) {
        return Err(BAD);
    }
    p.protocol = ip[6];
    if is_extension(p.protocol) {
        let walk = extensions(b, p.protocol, l4, end)?;
        p.protocol = walk.protocol;
        l4 = walk.at;
        if let Some(f) = walk.fragment
            && set_fragment(p, f.id, f.offset, f.more, end - f.data_at)?
        {
            return Ok(Packet { l4: None, end });
        }
    }
    let l4 = Some(l4);
    Ok(Packet { l4, end })
}

/// Source and destination of the IPv6 header at `at`.
#[inline]
fn v6_addrs(b: Bytes<'_>, at: usize, end: usize) -> Result<[Addr; 2], DropReason> {
    let src = b.at::<16>(at + 8, end, DropReason::BadIpv6)?;
    let dst = b.at::<16>(at + 24, end, DropReason::BadIpv6)?;
    Ok([Addr(*src), Addr(*dst)])
}

#[inline]
fn is_mapped(a: &Addr) -> bool {
    u128::from_be_bytes(a.0) >> 32 == 0xffff
}

/// Whether an IPv6 address can be one host's: not multicast, loopback or unspecified.
#[inline(always)]
pub(super) fn is_v6_host(addr: &Addr) -> bool {
    let addr = u128::from_be_bytes(addr.0);
    addr > 1 && addr >> 120 != 0xff
}

/// A source that is no host's. `::` may send router and neighbour solicitations (duplicate
/// address detection, RFC 4862
/// section 5.4.2) and MLD (RFC 3590).
#[cold]
fn unusual_v6_source(p: &Parsed) -> Result<(), DropReason> {
    let nameless = p.l4_offset != 0
        && p.protocol == proto::ICMPV6
        && matches!(
            p.icmp_type,
            icmp_type::ROUTER_SOLICITATION
                | icmp_type::NEIGHBOUR_SOLICITATION
                | icmp_type::MLD_REPORT
                | icmp_type::MLD_DONE
                | icmp_type::MLD2_REPORT
        );
    if p.src == Addr::default() && nameless {
        return Ok(());
    }
    Err(DropReason::BadSourceAddress)
}

struct Walk {
    /// Protocol behind the last extension header.
    protocol: u8,
    /// Where it starts.
    at: usize,
    fragment: Option<FragmentHeader>,
}

struct FragmentHeader {
    id: u32,
    offset: u16,
    more: bool,
    /// Where the fragment's part of the original packet starts.
    data_at: usize,
}

#[inline]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        ext::HOP_BY_HOP | ext::ROUTING | ext::FRAGMENT | ext::AUTHENTICATION | ext::DESTINATION
    )
}

/// Walks IPv6 extension headers. Hop-by-hop comes first or not at all, destination options at most
/// twice, everything else once (RFC 8200 section 4.1). Stops at a later fragment, and before
/// anything it does not know (ESP, no next header).
#[cold]
fn extensions(b: Bytes<'_>, first: u8, at: usize, end: usize) -> Result<Walk, DropReason> {
    let mut w = Walk {
        protocol: first,
        at,
        fragment: None,
    };
    let mut bad = DropReason::BadIpv6Extension;
    let (mut count, mut seen) = (0, 0u64);
    while is_extension(w.protocol) {
        let h = b.at::<8>(w.at, end, bad)?;
        let kind = w.protocol;
        // A second destination options header is remembered as bit 61, which no extension has.
        let bit = match kind {
            ext::DESTINATION if seen & (1 << kind) != 0 => 61,
            _ => kind,
        };
        let misplaced = kind == ext::HOP_BY_HOP && count > 0;
        count += 1;
        if count > EXTENSIONS_MAX || misplaced || seen & (1 << bit) != 0 {
            return Err(DropReason::BadIpv6Extension);
        }
        seen |= 1 << bit;
        let len = match kind {
            ext::FRAGMENT => 8,
            ext::AUTHENTICATION => (usize::from(h[1]) + 2) * 4,
            _ => (usize::from(h[1]) + 1) * 8,
        };
        // Type 0 routing headers must not be processed (RFC 5095); the shortest AH has 12 bytes.
        let deprecated = kind == ext::ROUTING && h[2] == 0 && h[3] != 0;
        if deprecated || len < 8 || (kind == ext::AUTHENTICATION && len < 12) {
            return Err(DropReason::BadIpv6Extension);
        }
        w.protocol = h[0];
        w.at += len;
        if w.at > end {
            return Err(bad);
        }
        if kind == ext::FRAGMENT {
            let field = be16(h[2], h[3]);
            let (offset, more) = (field & 0xfff8, field & 1 != 0);
            // An atomic fragment (RFC 6946) is a whole packet.
            if offset != 0 || more {
                w.fragment = Some(FragmentHeader {
                    id: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
                    offset,
                    more,
                    data_at: w.at,
                });
                // The first fragment holds the whole header chain (RFC 7112).
                bad = DropReason::BadFragment;
            }
            if offset != 0 {
                break;
            }
        }
    }
    Ok(w)
}

/// The transport header at `at`; the packet ends at `end`.
#[inline(always)]
fn transport(p: &mut Parsed, b: Bytes<'_>, at: usize, end: usize) -> Result<(), DropReason> {
    let first = matches!(p.fragment, Fragment::First { .. });
    let bad = if first {
        DropReason::BadFragment
    } else {
        DropReason::BadL4
    };
    let payload_at = match (p.protocol, p.l3) {
        (proto::TCP, _) => tcp(p, b, at, end, bad)?,
        (proto::UDP, _) => {
            let h = b.at::<8>(at, end, bad)?;
            let len = usize::from(be16(h[4], h[5]));
            // A first fragment's length is the whole datagram's. Bytes behind a shorter length
            // are UDP options (RFC 9868).
            if len < 8 || (len > end - at && !first) {
                return Err(DropReason::BadL4);
            }
            p.sport = be16(h[0], h[1]);
            p.dport = be16(h[2], h[3]);
            at + 8
        }
        (proto::SCTP, _) => {
            // RFC 9260 section 3.1: ports, verification tag, checksum.
            let h = b.at::<12>(at, end, bad)?;
            p.sport = be16(h[0], h[1]);
            p.dport = be16(h[2], h[3]);
            at + 12
        }
        (proto::ICMP, L3::V4) | (proto::ICMPV6, L3::V6) => icmp(p, b, at, end, bad)?,
        _ => {
            p.payload_len = bytes32(end - at);
            return Ok(());
        }
    };
    p.l4_offset = offset(at);
    p.payload_offset = offset(payload_at);
    p.payload_len = bytes32(end - payload_at);
    Ok(())
}

/// One bit per sane combination of FIN, SYN, RST, ACK and URG (bits 0 to 4 of the index), as Linux'
/// conntrack has it; PSH, ECE and CWR may stand beside any of them.
const SANE_FLAGS: u32 = {
    const FIN: u32 = 1;
    const SYN: u32 = 2;
    const RST: u32 = 4;
    const ACK: u32 = 8;
    const URG: u32 = 16;
    1 << SYN
        | 1 << (SYN | URG)
        | 1 << (SYN | ACK)
        | 1 << RST
        | 1 << (RST | ACK)
        | 1 << (FIN | ACK)
        | 1 << (FIN | ACK | URG)
        | 1 << ACK
        | 1 << (ACK | URG)
};

#[inline]
fn tcp(
    p: &mut Parsed,
    b: Bytes<'_>,
    at: usize,
    end: usize,
    bad: DropReason,
) -> Result<usize, DropReason> {
    let h = b.at::<20>(at, end, bad)?;
    let header_len = usize::from(h[12] >> 4) * 4;
    if header_len < 20 {
        return Err(DropReason::BadL4);
    }
    let options = b.range(at + 20, header_len - 20, end, bad)?;
    let flags = h[13] & 0x3f;
    let index = flags & 7 | (flags & (tcp_flag::ACK | tcp_flag::URG)) >> 1;
    if SANE_FLAGS >> index & 1 == 0 {
        return Err(DropReason::BadTcpFlags);
    }
    p.sport = be16(h[0], h[1]);
    p.dport = be16(h[2], h[3]);
    p.tcp = Tcp {
        seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
        ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
        window: be16(h[14], h[15]),
        flags,
        window_scale: if flags & tcp_flag::SYN == 0 {
            None
        } else {
            window_scale(options)
        },
    };
    Ok(at + header_len)
}

/// The window scale option. Reading stops at the first malformed option and the last valid scale
/// counts, as in Linux: both ends and we should agree on what was negotiated.
fn window_scale(mut options: &[u8]) -> Option<u8> {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    let mut found = None;
    loop {
        options = match options {
            [] | [END, ..] => return found,
            [NOP, rest @ ..] => rest,
            [WINDOW_SCALE, 3, shift, rest @ ..] => {
                found = Some((*shift).min(WINDOW_SCALE_MAX));
                rest
            }
            [_, len, ..] if *len >= 2 => match options.get(usize::from(*len)..) {
                Some(rest) => rest,
                None => return found,
            },
            _ => return found,
        };
    }
}

#[inline(never)] // so that the others, which are many, have less to keep in registers
fn icmp(
    p: &mut Parsed,
    b: Bytes<'_>,
    at: usize,
    end: usize,
    bad: DropReason,
) -> Result<usize, DropReason> {
    let h = b.at::<8>(at, end, bad)?;
    p.icmp_type = h[0];
    p.icmp_code = h[1];
    let v6 = p.l3 == L3::V6;
    (p.sport, p.dport) = echo_ports(v6, h[0], be16(h[4], h[5])).unwrap_or_default();
    if v6 && is_nd_type(h[0]) && matches!(p.fragment, Fragment::First { .. }) {
        // RFC 6980: it would hide its options from everyone who looks.
        return Err(DropReason::BadFragment);
    }
    p.l4_offset = offset(at);
    if p.is_icmp_error() {
        p.inner = quoted(v6, b, at + 8, end).ok();
    }
    Ok(at + 8)
}

/// The ports of an echo message: its identifier stands for the port of whoever asks, for it is
/// theirs alone (RFC 5508 section 3.1). Both ends may ask each other with the same one.
#[inline]
fn echo_ports(v6: bool, t: u8, id: u16) -> Option<(u16, u16)> {
    match (v6, t) {
        (false, icmp_type::ECHO_REQUEST) | (true, icmp_type::V6_ECHO_REQUEST) => Some((id, 0)),
        (false, icmp_type::ECHO_REPLY) | (true, icmp_type::V6_ECHO_REPLY) => Some((0, id)),
        _ => None,
    }
}

/// The five-tuple an ICMP error quotes. It may be cut after 8 bytes of transport (RFC 792) and its
/// lengths and checksums are the past's business. Any failure just means "about nothing we know".
#[cold]
fn quoted(v6: bool, b: Bytes<'_>, at: usize, end: usize) -> Result<Inner, DropReason> {
    const BAD: DropReason = DropReason::IcmpUnrelated;
    let (src, dst, protocol, l4) = if v6 {
        let ip = b.at::<40>(at, end, BAD)?;
        let [src, dst] = v6_addrs(b, at, end)?;
        let walk = extensions(b, ip[6], at + 40, end)?;
        let later = walk.fragment.is_some_and(|f| f.offset != 0);
        if ip[0] >> 4 != 6 || later || is_mapped(&src) || is_mapped(&dst) {
            return Err(BAD);
        }
        (src, dst, walk.protocol, walk.at)
    } else {
        let ip = b.at::<20>(at, end, BAD)?;
        let header_len = usize::from(ip[0] & 0x0f) * 4;
        if ip[0] >> 4 != 4 || header_len < 20 || be16(ip[6], ip[7]) & 0x1fff != 0 {
            return Err(BAD);
        }
        let src = v4_addr(ip[12], ip[13], ip[14], ip[15]);
        let dst = v4_addr(ip[16], ip[17], ip[18], ip[19]);
        (src, dst, ip[9], at + header_len)
    };
    let h = b.at::<8>(l4, end, BAD)?;
    let echo_protocol = if v6 { proto::ICMPV6 } else { proto::ICMP };
    let (sport, dport) = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => (be16(h[0], h[1]), be16(h[2], h[3])),
        _ if protocol == echo_protocol => echo_ports(v6, h[0], be16(h[4], h[5])).ok_or(BAD)?,
        _ => return Err(BAD),
    };
    Ok(Inner {
        protocol,
        src,
        dst,
        sport,
        dport,
    })
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
