//! Writes headers for the few frames the switch sends itself.

use super::{Addr, L3, Mac, checksum, ethertype, proto};

/// Hop limit of the switch's own packets (the default of RFC 1700 and of Linux).
const TTL: u8 = 64;

/// Appends to a head. The largest frame built is 18 bytes of Ethernet, 40 of IPv6, 8 of ICMPv6 and
/// 128 quoted: it always fits; were it not so, bytes past the end would be left out.
pub(super) struct Writer<'a> {
    buf: &'a mut [u8; 256],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(buf: &'a mut [u8; 256]) -> Self {
        Writer { buf, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.buf.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    pub(super) fn put16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn put32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn ethernet(&mut self, dst: Mac, src: Mac, ethertype: u16) {
        self.put(&dst.0);
        self.put(&src.0);
        self.put16(ethertype);
    }

    /// An IP header without options for `len` bytes of payload.
    pub(super) fn ip(&mut self, h: &Ip<'_>, len: u16) {
        let ([.., s0, s1, s2, s3], [.., d0, d1, d2, d3]) = (h.src.0, h.dst.0);
        if h.v6 {
            self.put(&[0x60, 0, 0, 0]);
            self.put16(len);
            self.put(&[h.protocol, h.hop_limit]);
            self.put(&h.src.0);
            self.put(&h.dst.0);
            return;
        }
        let start = self.len;
        self.put(&[0x45, 0]);
        self.put16(20 + len);
        // Identification 0 is right for what may not be fragmented (RFC 6864 section 4.1).
        self.put(&[0, 0, 0x40, 0, h.hop_limit, h.protocol, 0, 0]);
        self.put(&[s0, s1, s2, s3, d0, d1, d2, d3]);
        self.checksum(start, 10, 0);
    }

    /// Completes the transport checksum at `field` bytes behind `start`, where the header begins.
    pub(super) fn transport_checksum(&mut self, h: &Ip<'_>, start: usize, field: usize) {
        // At most 256 bytes.
        let len = u32::try_from(self.len - start).unwrap_or(0);
        let pseudo = match h.protocol {
            proto::ICMP => 0,
            protocol => checksum::pseudo(h.src, h.dst, protocol, len),
        };
        self.checksum(start, field, pseudo);
    }

    /// Sums everything from `start` into the (still zero) field.
    fn checksum(&mut self, start: usize, field: usize, initial: u64) {
        let data = self.buf.get(start..self.len).unwrap_or(&[]);
        let sum = !checksum::fold(checksum::sum(data, initial));
        if let Some(room) = self.buf.get_mut(start + field..start + field + 2) {
            room.copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// What an IP header of ours says.
pub(super) struct Ip<'a> {
    pub(super) v6: bool,
    pub(super) src: &'a Addr,
    pub(super) dst: &'a Addr,
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
}

impl<'a> Ip<'a> {
    pub(super) fn new(l3: L3, src: &'a Addr, dst: &'a Addr, protocol: u8) -> Self {
        Ip {
            v6: l3 == L3::V6,
            src,
            dst,
            protocol,
            hop_limit: TTL,
        }
    }
}

/// The EtherType of IPv4 or IPv6.
pub(super) fn ip_ethertype(l3: L3) -> u16 {
    if l3 == L3::V6 {
        ethertype::IPV6
    } else {
        ethertype::IPV4
    }
}
