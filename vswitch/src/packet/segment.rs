//! TCP segments without payload that the switch writes itself, in the name of one end of a connection.

use super::build::{Ip, Writer, ip_ethertype};
use super::{Addr, L3, Mac, Parsed, proto};

/// Between a frame's MACs and its EtherType there can be this much: two tags.
const TAGS_MAX: usize = 8;

/// What stands between MACs and EtherType of a frame whose outer tag was taken off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    bytes: [u8; TAGS_MAX],
    len: u8,
}

impl Tags {
    /// Those of a frame.
    #[must_use]
    pub fn of(head: &[u8], p: &Parsed) -> Self {
        let mut tags = Tags::default();
        let end = usize::from(p.l3_offset).saturating_sub(2);
        if let Some(found) = head.get(12..end)
            && let Some(room) = tags.bytes.get_mut(..found.len())
        {
            room.copy_from_slice(found);
            // At most eight.
            tags.len = u8::try_from(found.len()).unwrap_or(0);
        }
        tags
    }
}

/// The timestamps option (RFC 7323 section 3.2): the sender's clock, and what it echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// `TSval`.
    pub value: u32,
    /// `TSecr`.
    pub echo: u32,
}

impl Timestamps {
    /// Those of a TCP segment.
    #[must_use]
    pub fn of(head: &[u8], p: &Parsed) -> Option<Self> {
        const END: u8 = 0;
        const NOP: u8 = 1;
        const TIMESTAMPS: u8 = 8;
        let tcp = head.get(usize::from(p.l4_offset)..)?;
        let header_len = usize::from(*tcp.get(12)? >> 4) * 4;
        let mut options = tcp.get(20..header_len)?;
        loop {
            options = match options {
                [] | [END, ..] => return None,
                [NOP, rest @ ..] => rest,
                [TIMESTAMPS, 10, v0, v1, v2, v3, e0, e1, e2, e3, ..] => {
                    return Some(Timestamps {
                        value: u32::from_be_bytes([*v0, *v1, *v2, *v3]),
                        echo: u32::from_be_bytes([*e0, *e1, *e2, *e3]),
                    });
                }
                [_, len, ..] if *len >= 2 => options.get(usize::from(*len)..)?,
                _ => return None,
            };
        }
    }

    /// Those of whoever answers a segment with these, with nothing newer to say.
    #[must_use]
    pub fn turned(self) -> Self {
        Timestamps {
            value: self.echo,
            echo: self.value,
        }
    }
}

/// A segment without payload.
#[derive(Clone, Copy, Debug)]
pub struct Bare {
    /// Destination and source MAC.
    pub macs: (Mac, Mac),
    /// What follows the MACs.
    pub tags: Tags,
    /// Source address and port.
    pub from: (Addr, u16),
    /// Destination address and port.
    pub to: (Addr, u16),
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// [`super::tcp_flag`] bits.
    pub flags: u8,
    /// Window, as on the wire.
    pub window: u16,
    /// Timestamps, where the connection has them.
    pub timestamps: Option<Timestamps>,
}

impl Bare {
    /// Writes it as a frame without outer tag, and returns its length.
    pub fn write(&self, out: &mut [u8; 256]) -> usize {
        let l3 = if self.from.0.is_v4() { L3::V4 } else { L3::V6 };
        let ip = Ip::new(l3, &self.from.0, &self.to.0, proto::TCP);
        let header_len: u8 = if self.timestamps.is_some() { 32 } else { 20 };
        let mut w = Writer::new(out);
        w.put(&self.macs.0.0);
        w.put(&self.macs.1.0);
        w.put(
            self.tags
                .bytes
                .get(..usize::from(self.tags.len))
                .unwrap_or(&[]),
        );
        w.put16(ip_ethertype(l3));
        w.ip(&ip, u16::from(header_len));
        let start = w.len();
        w.put16(self.from.1);
        w.put16(self.to.1);
        w.put32(self.seq);
        w.put32(self.ack);
        // The header's length in words of four bytes, in the upper half.
        w.put(&[header_len << 2, self.flags]);
        w.put16(self.window);
        w.put(&[0; 4]);
        if let Some(stamps) = self.timestamps {
            w.put(&[1, 1, 8, 10]);
            w.put32(stamps.value);
            w.put32(stamps.echo);
        }
        w.transport_checksum(&ip, start, 16);
        w.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{self, tcp_flag};

    fn bare(from: &str, to: &str, timestamps: Option<Timestamps>) -> Bare {
        let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
        Bare {
            macs: (Mac([2; 6]), Mac([4; 6])),
            tags: Tags::default(),
            from: (addr(from), 80),
            to: (addr(to), 4000),
            seq: 0xffff_fff0,
            ack: 7,
            flags: tcp_flag::ACK,
            window: 0,
            timestamps,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let stamps = Timestamps {
            value: 0x0102_0304,
            echo: 0xf1f2_f3f4,
        };
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            for timestamps in [None, Some(stamps), Some(stamps.turned())] {
                let (mut out, segment) = ([0xee; 256], bare(from, to, timestamps));
                let len = segment.write(&mut out);
                let frame = &out[..len];
                let p = packet::parse(frame, u32::try_from(len).unwrap()).unwrap();
                assert_eq!((p.dst_mac, p.src_mac), segment.macs);
                assert_eq!(
                    ((p.src, p.sport), (p.dst, p.dport)),
                    (segment.from, segment.to)
                );
                assert_eq!(
                    (p.tcp.seq, p.tcp.ack, p.tcp.flags),
                    (0xffff_fff0, 7, tcp_flag::ACK)
                );
                assert_eq!((p.tcp.window, p.payload_len), (0, 0));
                assert_eq!(Timestamps::of(frame, &p), timestamps);
                let l4 = usize::from(p.l4_offset);
                let sum =
                    packet::checksum::pseudo(&p.src, &p.dst, 6, u32::try_from(len - l4).unwrap());
                let sum = packet::checksum::sum(&frame[l4..], sum);
                assert_eq!(packet::checksum::fold(sum), 0xffff);
            }
        }
    }

    #[test]
    fn tags_are_kept_and_malformed_options_are_none() {
        let mut out = [0; 256];
        let len = bare("10.0.0.1", "10.0.0.2", None).write(&mut out);
        let mut tagged = out[..12].to_vec();
        tagged.extend([0x81, 0, 0, 30]);
        tagged.extend(&out[12..len]);
        let p = packet::parse(&tagged, u32::try_from(tagged.len()).unwrap()).unwrap();
        let mut again = bare("10.0.0.1", "10.0.0.2", None);
        again.tags = Tags::of(&tagged, &p);
        let len = again.write(&mut out);
        assert_eq!(out[..len], tagged[..]);

        let stamps = Timestamps { value: 1, echo: 2 };
        let len = bare("10.0.0.1", "10.0.0.2", Some(stamps)).write(&mut out);
        let p = packet::parse(&out[..len], u32::try_from(len).unwrap()).unwrap();
        let options = usize::from(p.l4_offset) + 20;
        for (at, byte) in [(2, 0), (2, 9), (3, 1), (3, 200), (3, 9)] {
            let mut bad = out;
            bad[options + at] = byte;
            assert_eq!(Timestamps::of(&bad[..len], &p), None, "{at} {byte}");
        }
        assert_eq!(Timestamps::of(&out[..len - 1], &p), None, "cut off");
    }
}
