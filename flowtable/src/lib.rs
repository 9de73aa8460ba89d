//! A lock-free, sharded, bounded connection table.

/// 16 bytes, IPv4 as v4-mapped IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr(pub [u8; 16]);

impl From<std::net::IpAddr> for Addr {
    fn from(ip: std::net::IpAddr) -> Self {
        match ip {
            std::net::IpAddr::V4(v4) => Addr(v4.to_ipv6_mapped().octets()),
            std::net::IpAddr::V6(v6) => Addr(v6.octets()),
        }
    }
}
