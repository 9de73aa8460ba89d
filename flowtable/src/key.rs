//! What identifies a connection: addresses, ports, protocol, zone, and the attachment at each end.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in 16 bytes, network order. IPv4 is held as v4-mapped IPv6 (RFC 4291 section
/// 2.5.5.2), so both families share one key layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The v4-mapped form of four IPv4 bytes in network order.
    #[inline]
    pub const fn from_v4_bytes(v4: [u8; 4]) -> Addr {
        let [a, b, c, d] = v4;
        Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Whether this is a v4-mapped address.
    #[inline]
    pub const fn is_v4(&self) -> bool {
        u128::from_be_bytes(self.0) >> 32 == 0xffff
    }

    /// The address as the standard library writes it; v4-mapped becomes [`IpAddr::V4`].
    pub fn to_ip(&self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.0);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    #[inline]
    const fn bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    #[inline]
    const fn from_words(high: u64, low: u64) -> Addr {
        Addr((((high as u128) << 64) | low as u128).to_be_bytes())
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Addr {
        Addr::from_v4_bytes(ip.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Addr {
        Addr(ip.octets())
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// One end of a connection. `attachment` is where the end is plugged in, a number the caller gives
/// a meaning to: the same addresses and ports between other attachments are another connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// The end's address.
    pub addr: Addr,
    /// The end's port, host order; protocols without ports put an identifier or 0 here.
    pub port: u16,
    /// Where the end is attached.
    pub attachment: u32,
}

/// Which end of a [`FlowKey`] in its canonical order: `Low` compares less than `High`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The end that compares less (or equal, when both ends are the same).
    Low,
    /// The end that compares greater.
    High,
}

impl Side {
    /// The other end.
    #[inline]
    #[must_use]
    pub const fn other(self) -> Side {
        match self {
            Side::Low => Side::High,
            Side::High => Side::Low,
        }
    }
}

/// A connection's identity in six 64-bit words, the same for both directions. The last three are 0 between two IPv4
/// addresses, so that such a connection is told by the first three.
///
/// | word | holds |
/// |---|---|
/// | 0 | bits 0 to 31 of the low end's address (an IPv4 address), of the high end's |
/// | 1 | low port, high port, zone (16 bits each), protocol (8), 8 bits of which one says that words 3 to 5 are not 0 |
/// | 2 | low attachment, high attachment |
/// | 3 | bits 64 to 127 of the low end's address |
/// | 4 | bits 64 to 127 of the high end's address |
/// | 5 | bits 32 to 63 of the low end's address, of the high end's, without those of a v4-mapped one |
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    words: [u64; KEY_WORDS],
}

/// Words in a [`FlowKey`].
pub(crate) const KEY_WORDS: usize = 6;
/// Of these, the ones that are 0 between IPv4 addresses.
pub(crate) const WIDE_WORDS: usize = 3;
/// The others.
pub(crate) const NARROW_WORDS: usize = KEY_WORDS - WIDE_WORDS;
/// The word whose lowest eight bits are zero but for [`WIDE`]; an entry keeps the initiator there.
pub(crate) const SPARE_WORD: usize = 1;
/// Set in the spare word when any of the wide words is not 0.
const WIDE: u64 = 1 << 1;
/// What an entry may add to the spare word.
pub(crate) const INITIATOR: u64 = 1;
/// Bits 32 to 63 of a v4-mapped address, twice.
const V4_MAPPED: u64 = 0xffff << 32 | 0xffff;
const _: () = assert!(size_of::<FlowKey>() == 48);

impl FlowKey {
    /// The key of a packet from `src` to `dst`, and the side `src` is on. Both directions of a
    /// connection give equal keys and opposite sides; when both ends are the same, `src` is low.
    #[inline]
    pub fn new(zone: u16, proto: u8, src: &Endpoint, dst: &Endpoint) -> (FlowKey, Side) {
        let order = |e: &Endpoint| u64::from(e.port) << 32 | u64::from(e.attachment);
        let (src_addr, dst_addr) = (src.addr.bits(), dst.addr.bits());
        let forward = src_addr < dst_addr || src_addr == dst_addr && order(src) <= order(dst);
        let (low, low_addr, high, high_addr, side) = if forward {
            (src, src_addr, dst, dst_addr, Side::Low)
        } else {
            (dst, dst_addr, src, src_addr, Side::High)
        };
        let (a, b) = (lower(low_addr), lower(high_addr));
        let wide = [
            upper(low_addr),
            upper(high_addr),
            (a & UPPER_HALF | b >> 32) ^ V4_MAPPED,
        ];
        let is_wide = wide[0] | wide[1] | wide[2] != 0;
        let words = [
            a << 32 | b & !UPPER_HALF,
            u64::from(low.port) << 48
                | u64::from(high.port) << 32
                | u64::from(zone) << 16
                | u64::from(proto) << 8
                | if is_wide { WIDE } else { 0 },
            u64::from(low.attachment) << 32 | u64::from(high.attachment),
            wide[0],
            wide[1],
            wide[2],
        ];
        (FlowKey { words }, side)
    }

    /// The key of a packet between the same two ends in the same zone that differs in protocol and ports only, sent by the
    /// end on side `src`, which is the same then: cheaper than [`FlowKey::new`]. `None` where it may not be, because the
    /// ends' addresses are alike and the ports tell which one is low.
    #[inline]
    #[must_use]
    pub fn sibling(&self, src: Side, proto: u8, src_port: u16, dst_port: u16) -> Option<FlowKey> {
        const SAME: u64 = 0xffff << 16 | WIDE;
        let mut words = self.words;
        if words[0] >> 32 == words[0] & !UPPER_HALF {
            return None;
        }
        let (low, high) = match src {
            Side::Low => (src_port, dst_port),
            Side::High => (dst_port, src_port),
        };
        words[SPARE_WORD] = u64::from(low) << 48
            | u64::from(high) << 32
            | u64::from(proto) << 8
            | words[SPARE_WORD] & SAME;
        Some(FlowKey { words })
    }

    /// The end that compares less.
    #[inline]
    pub fn low(&self) -> Endpoint {
        let w = &self.words;
        let rest = (w[5] ^ V4_MAPPED) & UPPER_HALF | w[0] >> 32;
        Endpoint {
            addr: Addr::from_words(w[3], rest),
            port: (w[1] >> 48) as u16,
            attachment: (w[2] >> 32) as u32,
        }
    }

    /// The end that compares greater.
    #[inline]
    pub fn high(&self) -> Endpoint {
        let w = &self.words;
        let rest = (w[5] ^ V4_MAPPED) << 32 | w[0] & !UPPER_HALF;
        Endpoint {
            addr: Addr::from_words(w[4], rest),
            port: ((w[1] >> 32) & 0xffff) as u16,
            attachment: (w[2] & 0xffff_ffff) as u32,
        }
    }

    /// The end on `side`.
    #[inline]
    pub fn endpoint(&self, side: Side) -> Endpoint {
        match side {
            Side::Low => self.low(),
            Side::High => self.high(),
        }
    }

    /// The zone: tuples in different zones are different connections.
    #[inline]
    pub fn zone(&self) -> u16 {
        ((self.words[SPARE_WORD] >> 16) & 0xffff) as u16
    }

    /// The IP protocol number.
    #[inline]
    pub fn proto(&self) -> u8 {
        ((self.words[SPARE_WORD] >> 8) & 0xff) as u8
    }

    #[inline]
    pub(crate) fn words(&self) -> &[u64; KEY_WORDS] {
        &self.words
    }

    /// Whether an address is not IPv4, so that the wide words count.
    #[inline]
    pub(crate) fn is_wide(&self) -> bool {
        self.words[SPARE_WORD] & WIDE != 0
    }

    /// The key of an entry that holds these words; `wide` is asked for if they count.
    #[inline]
    pub(crate) fn from_entry(
        [a, mut b, c]: [u64; NARROW_WORDS],
        wide: impl FnOnce() -> [u64; WIDE_WORDS],
    ) -> FlowKey {
        b &= !INITIATOR;
        let [d, e, f] = if b & WIDE == 0 {
            [0; WIDE_WORDS]
        } else {
            wide()
        };
        FlowKey {
            words: [a, b, c, d, e, f],
        }
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowKey")
            .field("zone", &self.zone())
            .field("proto", &self.proto())
            .field("low", &self.low())
            .field("high", &self.high())
            .finish()
    }
}

/// The upper half of a word.
const UPPER_HALF: u64 = 0xffff_ffff << 32;

#[inline]
const fn upper(bits: u128) -> u64 {
    (bits >> 64) as u64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
#[inline]
const fn lower(bits: u128) -> u64 {
    bits as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn end(ip: &str, port: u16, attachment: u32) -> Endpoint {
        Endpoint {
            addr: ip.parse::<IpAddr>().expect("an address").into(),
            port,
            attachment,
        }
    }

    #[test]
    fn addresses_round_trip() {
        for ip in [
            "10.1.2.3",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1:2",
            "2001:db8::",
        ] {
            let ip: IpAddr = ip.parse().expect("an address");
            let addr = Addr::from(ip);
            assert_eq!(addr.to_ip(), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4());
            assert_eq!(addr.to_string(), ip.to_string());
        }
        assert_eq!(
            Addr::from_v4_bytes([10, 1, 2, 3]).to_ip().to_string(),
            "10.1.2.3"
        );
    }

    #[test]
    fn both_directions_are_one_key() {
        let a = end("10.0.0.1", 40000, 7);
        let b = end("10.0.0.2", 443, 3);
        let (k1, s1) = FlowKey::new(5, 6, &a, &b);
        let (k2, s2) = FlowKey::new(5, 6, &b, &a);
        assert_eq!(k1, k2);
        assert_eq!(s1, s2.other());
        assert_eq!(k1.endpoint(s1), a);
        assert_eq!(k1.endpoint(s2), b);
        assert_eq!((k1.zone(), k1.proto()), (5, 6));
        assert!(k1.low() < k1.high());
    }

    #[test]
    fn a_sibling_is_the_key_made_anew() {
        let ends = [
            ("10.0.0.1", "10.0.0.2"),
            ("10.0.0.2", "10.0.0.1"),
            ("10.0.0.1", "fe80::1"),
            ("2001:db8::2", "2001:db8::1"),
        ];
        for (from, to) in ends {
            let new = |proto, sport, dport| {
                FlowKey::new(9, proto, &end(from, sport, 7), &end(to, dport, 3))
            };
            let (first, side) = new(6, 40000, 443);
            for (proto, sport, dport) in [(17, 53, 65535), (255, 0, 0), (6, 443, 40000)] {
                let sibling = first.sibling(side, proto, sport, dport);
                assert_eq!(sibling, Some(new(proto, sport, dport).0), "{from} to {to}");
            }
        }
        let alone = end("10.0.0.1", 1, 7);
        let (key, side) = FlowKey::new(9, 6, &alone, &end("10.0.0.1", 2, 3));
        assert_eq!(key.sibling(side, 6, 2, 1), None, "the ports order the ends");
    }

    #[test]
    fn order_falls_back_to_port_then_attachment() {
        let a = end("::1", 1, 9);
        assert_eq!(FlowKey::new(0, 17, &a, &end("::1", 2, 0)).1, Side::Low);
        assert_eq!(FlowKey::new(0, 17, &a, &end("::1", 1, 8)).1, Side::High);
        assert_eq!(FlowKey::new(0, 17, &a, &a).1, Side::Low);
    }

    #[test]
    fn every_field_tells_keys_apart() {
        let (a, b) = (end("10.0.0.1", 1, 1), end("10.0.0.2", 2, 2));
        let base = FlowKey::new(1, 6, &a, &b).0;
        let others = [
            FlowKey::new(2, 6, &a, &b).0,
            FlowKey::new(1, 17, &a, &b).0,
            FlowKey::new(1, 6, &end("10.0.0.3", 1, 1), &b).0,
            FlowKey::new(1, 6, &end("10.0.0.1", 3, 1), &b).0,
            FlowKey::new(1, 6, &end("10.0.0.1", 1, 3), &b).0,
            FlowKey::new(1, 6, &a, &end("10.0.0.2", 2, 3)).0,
            // The ports change ends: the same numbers, another connection.
            FlowKey::new(1, 6, &end("10.0.0.1", 2, 1), &end("10.0.0.2", 1, 2)).0,
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn every_bit_of_an_address_tells_keys_apart_and_comes_back() {
        let plain = |addr: Addr| Endpoint {
            addr,
            port: 1,
            attachment: 1,
        };
        for (one, other) in [
            ("10.0.0.1", "10.0.0.2"),
            ("10.0.0.1", "::1"),
            ("::", "::"),
            ("2001:db8::1", "fe80::ffff:a00:1"),
        ] {
            let [one, other] = [one, other].map(|ip| end(ip, 1, 1).addr);
            let both_v4 = one.is_v4() && other.is_v4();
            let (key, side) = FlowKey::new(0, 6, &plain(one), &plain(other));
            assert_eq!(key.endpoint(side).addr, one);
            assert_eq!(key.endpoint(side.other()).addr, other);
            assert_eq!(key.is_wide(), !both_v4);
            for bit in 0..128 {
                let turned = Addr((one.bits() ^ 1 << bit).to_be_bytes());
                let (turned_key, side) = FlowKey::new(0, 6, &plain(turned), &plain(other));
                assert_ne!(turned_key, key, "bit {bit} of {one}");
                assert_eq!(turned_key.endpoint(side).addr, turned);
            }
        }
    }
}
