//! Packet headers: checked views, the one-pass parser, and builders for the few frames the
//! switch sends itself. Knows bytes; knows no ports and no policy.

pub mod arp;
mod build;
pub mod checksum;
pub mod nd;
pub mod parse;
pub mod reply;
pub mod segment;

pub use flowtable::Addr;
pub use parse::parse;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set: multicast or broadcast.
    #[inline]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The address in the low 48 bits, first octet highest: a cheap key.
    #[inline]
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        let m = self.0;
        u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Mac {
    type Err = BadMac;

    fn from_str(s: &str) -> Result<Self, BadMac> {
        let mut mac = [0u8; 6];
        let mut parts = s.split(':');
        for octet in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(BadMac)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_e| BadMac)?;
        }
        if parts.next().is_some() {
            Err(BadMac)
        } else {
            Ok(Mac(mac))
        }
    }
}

/// The text is not six two-digit hexadecimal octets separated by colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address: expected six hexadecimal octets like 52:54:00:00:00:01")]
pub struct BadMac;

/// A network: address and prefix length, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cidr {
    /// Network address.
    pub addr: std::net::IpAddr,
    /// Prefix length in bits: 0-32 or 0-128.
    pub len: u8,
}

impl Cidr {
    /// Whether `addr` lies in the network. An IPv4 network never holds an IPv6 address.
    #[must_use]
    pub fn contains(&self, addr: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        match (self.addr, addr) {
            (V4(net), V4(a)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                (u32::from(net) ^ u32::from(a)) & mask == 0
            }
            (V6(net), V6(a)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.len))
                    .unwrap_or(0);
                (u128::from(net) ^ u128::from(a)) & mask == 0
            }
            _ => false,
        }
    }

    /// The network of one address.
    #[must_use]
    pub const fn host(addr: std::net::IpAddr) -> Self {
        let len = if addr.is_ipv4() { 32 } else { 128 };
        Cidr { addr, len }
    }

    /// The same network with its host bits zero.
    #[must_use]
    pub fn network(&self) -> Self {
        use std::net::IpAddr::{V4, V6};
        let len = u32::from(self.len);
        let addr = match self.addr {
            V4(a) => {
                let host = u32::MAX.checked_shr(len).unwrap_or(0);
                V4((u32::from(a) & !host).into())
            }
            V6(a) => {
                let host = u128::MAX.checked_shr(len).unwrap_or(0);
                V6((u128::from(a) & !host).into())
            }
        };
        Cidr { addr, ..*self }
    }
}

impl std::str::FromStr for Cidr {
    type Err = BadCidr;

    /// Reads `10.0.0.0/8`, or an address alone as the network of one address. Host bits are kept:
    /// compare with [`Cidr::network`].
    fn from_str(s: &str) -> Result<Self, BadCidr> {
        let Some((addr, len)) = s.split_once('/') else {
            return s.parse().map(Cidr::host).map_err(|_e| BadCidr);
        };
        let addr = addr.parse().map_err(|_e| BadCidr)?;
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadCidr);
        }
        let len = len.parse().map_err(|_e| BadCidr)?;
        if len > Cidr::host(addr).len {
            return Err(BadCidr);
        }
        Ok(Cidr { addr, len })
    }
}

/// The text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network: expected an address and a prefix length like 10.0.0.0/8 or fd00::/8")]
pub struct BadCidr;

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// EtherTypes the switch itself understands (IEEE 802 numbers).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Customer VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// Service VLAN tag (802.1ad).
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers the switch tracks (IANA).
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP header flags (RFC 9293 section 3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent field is significant.
    pub const URG: u8 = 0x20;
}

/// What stands above Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum L3 {
    /// Neither IP nor ARP: policy judges it by its EtherType.
    #[default]
    Other,
    /// An ARP message.
    Arp,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether the packet is a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fragment {
    /// A whole packet.
    #[default]
    No,
    /// Offset 0 with more to come: holds the whole L4 header.
    First {
        /// IPv4 identification, or IPv6 fragment identification.
        id: u32,
    },
    /// A later fragment: has no L4 header, `sport`/`dport` are 0.
    Later {
        /// IPv4 identification, or IPv6 fragment identification.
        id: u32,
        /// Offset of this fragment's payload in the packet, in bytes.
        offset: u16,
        /// Whether this is the last fragment.
        last: bool,
    },
}

/// What a frame's headers say. Offsets are from the start of the (untagged) head, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parsed {
    /// Destination MAC.
    pub dst_mac: Mac,
    /// Source MAC.
    pub src_mac: Mac,
    /// EtherType after any inner tags.
    pub ethertype: u16,
    /// Network layer.
    pub l3: L3,
    /// Where the network header starts.
    pub l3_offset: u16,
    /// IP protocol of the transport header (after IPv6 extension headers), 0 when not IP.
    pub protocol: u8,
    /// Where the transport header starts; 0 when there is none (not IP, later fragment).
    pub l4_offset: u16,
    /// Where the transport payload starts; 0 when there is no transport header.
    pub payload_offset: u16,
    /// Bytes of transport payload by the IP header's length (not by the frame's: padding is not payload).
    pub payload_len: u32,
    /// Network source.
    pub src: Addr,
    /// Network destination.
    pub dst: Addr,
    /// TCP/UDP source port; of an ICMP echo request the identifier.
    pub sport: u16,
    /// TCP/UDP destination port; of an ICMP echo reply the identifier.
    pub dport: u16,
    /// ICMP or ICMPv6 type.
    pub icmp_type: u8,
    /// ICMP or ICMPv6 code.
    pub icmp_code: u8,
    /// TCP fields; meaningful when `protocol` is TCP and `l4_offset` is not 0.
    pub tcp: Tcp,
    /// Fragmentation.
    pub fragment: Fragment,
    /// Bytes of the original packet this fragment carries; 0 when it is none.
    pub fragment_len: u16,
    /// For an ICMP error: the packet it is about.
    pub inner: Option<Inner>,
}

impl Parsed {
    /// Nothing known yet.
    pub const EMPTY: Parsed = Parsed {
        dst_mac: Mac([0; 6]),
        src_mac: Mac([0; 6]),
        ethertype: 0,
        l3: L3::Other,
        l3_offset: 0,
        protocol: 0,
        l4_offset: 0,
        payload_offset: 0,
        payload_len: 0,
        src: Addr([0; 16]),
        dst: Addr([0; 16]),
        sport: 0,
        dport: 0,
        icmp_type: 0,
        icmp_code: 0,
        tcp: Tcp {
            seq: 0,
            ack: 0,
            window: 0,
            flags: 0,
            window_scale: None,
        },
        fragment: Fragment::No,
        fragment_len: 0,
        inner: None,
    };
}

/// TCP header fields, host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as on the wire (unscaled).
    pub window: u16,
    /// [`tcp_flag`] bits.
    pub flags: u8,
    /// Window scale option, when present (only read on SYN), at most 14 (RFC 7323 section 2.3).
    pub window_scale: Option<u8>,
}

/// The five-tuple quoted inside an ICMP error (as the quoted packet was sent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Quoted protocol.
    pub protocol: u8,
    /// Quoted source.
    pub src: Addr,
    /// Quoted destination.
    pub dst: Addr,
    /// Quoted source port; of an echo request the identifier.
    pub sport: u16,
    /// Quoted destination port; of an echo reply the identifier.
    pub dport: u16,
}
