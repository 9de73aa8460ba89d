//! The frames of the generator: UDP over IPv4 between two guests with declared addresses, each a
//! function of its direction and number alone; those longer than a wire takes: TCP.

use std::net::Ipv4Addr;

use super::stream::{self, Stream};
use crate::guest::NetHdr;
use crate::packet::{Mac, checksum, proto};

/// First destination port; with every 2^15 connections the next one.
const PORT: u16 = 9000;
/// Connections that differ by the initiator's port only.
const PER_PORT: u32 = 1 << 15;
/// First port of the initiator.
pub(super) const FIRST: u16 = 16_384;
/// Most connections: ports up to 9000 + 511.
pub const FLOWS_MAX: u32 = 512 * PER_PORT;
/// Where the source port stands: Ethernet header and IPv4 header without options.
pub(super) const PORTS_AT: usize = 34;
/// Where the frame's number stands: behind the UDP header.
const NUMBER_AT: usize = 42;
/// Bytes of headers and number.
const MIN_BYTES: usize = 50;
/// Longest frame of a wire, without FCS: an IP packet of 1500 bytes.
const WIRE: usize = 1514;
/// Longest frame: an IPv4 packet that is as long as its length can say.
const LONGEST: usize = 14 + 65_535;
/// Bytes compared in a long frame's beginning (to be exact: all that changes, and what is around).
const HEAD: usize = 64;

/// How long frames are, in the ring: without FCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(usize),
    /// Of twelve, seven of 64, four of 570, one of 1514 bytes (the "simple" internet mix).
    Imix,
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sizes::Fixed(bytes) => write!(f, "{bytes}"),
            Sizes::Imix => f.write_str("imix"),
        }
    }
}

impl std::str::FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "imix" {
            return Ok(Sizes::Imix);
        }
        match text.parse() {
            Ok(n) if (MIN_BYTES..=LONGEST).contains(&n) => Ok(Sizes::Fixed(n)),
            _ => Err(format!(
                "write `imix`, or bytes from {MIN_BYTES} to {LONGEST}"
            )),
        }
    }
}

impl Sizes {
    /// Bytes of frames longer than a wire takes.
    pub(super) fn uncut(self) -> Option<usize> {
        match self {
            Sizes::Fixed(bytes) if bytes > WIRE => Some(bytes),
            _ => None,
        }
    }

    /// What a policy says to let such frames pass.
    pub(super) fn service(self) -> &'static str {
        match self.uncut() {
            Some(_) => "tcp",
            None => "udp",
        }
    }
}

/// For links where nobody cuts frames.
pub(super) fn wire_sizes(text: &str) -> Result<Sizes, String> {
    match text.parse::<Sizes>()?.uncut() {
        None => text.parse(),
        Some(_) => Err(format!("write `imix`, or bytes from {MIN_BYTES} to {WIRE}")),
    }
}

/// IMIX, spread so that no two long ones follow each other.
const IMIX: [u8; 12] = [0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 1, 0];
const IMIX_BYTES: [usize; 3] = [64, 570, 1514];

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// From A, who opened the connections.
    No,
    /// From B.
    Yes,
}

impl Reply {
    pub(super) fn other(self) -> Self {
        match self {
            Reply::No => Reply::Yes,
            Reply::Yes => Reply::No,
        }
    }
}

/// MAC and address of A and B, and of two more.
pub(super) const MACS: [Mac; 4] = [mac(1), mac(2), mac(3), mac(4)];
pub(super) const IPS: [Ipv4Addr; 4] = [ip(1), ip(2), ip(3), ip(4)];

const fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xbe, 0, n])
}

const fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, n)
}

/// The frames of one direction.
#[derive(Debug)]
pub(super) struct Frames {
    reply: Reply,
    flows: u32,
    sizes: Sizes,
    templates: Vec<Vec<u8>>,
    /// Instead of these, if they are longer than a wire takes.
    stream: Option<Stream>,
}

impl Frames {
    pub(super) fn new(sizes: Sizes, flows: u32, reply: Reply) -> Self {
        let template = |bytes| template(bytes, reply);
        let templates = match sizes {
            Sizes::Fixed(bytes) => vec![template(bytes)],
            Sizes::Imix => IMIX_BYTES.into_iter().map(template).collect(),
        };
        let flows = flows.clamp(1, FLOWS_MAX);
        Frames {
            reply,
            flows,
            sizes,
            templates,
            stream: sizes.uncut().map(|bytes| Stream::new(bytes, flows, reply)),
        }
    }

    /// From now on, frames that open connections (where these are others than the rest), or the rest.
    pub(super) fn opens(&mut self, opening: bool) {
        if let Some(stream) = &mut self.stream {
            stream.opens(opening);
        }
    }

    /// What goes with the next frames, when all frames of the other direction below this number came, or are lost.
    #[inline]
    pub(super) fn header(&mut self, came: u64) -> NetHdr {
        self.stream
            .as_mut()
            .map_or_else(NetHdr::default, |s| s.header(came))
    }

    /// Mean length.
    pub(super) fn mean_bytes(&self) -> u64 {
        match self.sizes {
            Sizes::Fixed(bytes) => bytes as u64,
            Sizes::Imix => {
                let of = |i: &u8| IMIX_BYTES.get(usize::from(*i)).copied().unwrap_or(0);
                (IMIX.iter().map(of).sum::<usize>() / IMIX.len()) as u64
            }
        }
    }

    #[inline]
    fn template(&mut self, number: u64) -> &mut [u8] {
        let which = match self.sizes {
            Sizes::Fixed(_) => 0,
            #[allow(clippy::cast_possible_truncation)] // below 12
            Sizes::Imix => usize::from(IMIX[(number % 12) as usize]),
        };
        self.templates
            .get_mut(which)
            .map_or(&mut [], Vec::as_mut_slice)
    }

    /// What is new of frame `number` in a buffer that held such a frame before, and its length.
    #[inline]
    pub(super) fn head(&mut self, number: u64) -> (&[u8], usize) {
        if self.stream.is_none() {
            let frame = self.datagram(number);
            return (frame, frame.len());
        }
        let stream = self.stream.as_mut();
        stream.map_or((&[], 0), |s| s.head(number))
    }

    /// What buffers must hold before only heads are written to them, if so.
    pub(super) fn filler(&mut self) -> Option<&[u8]> {
        self.stream.as_mut().and_then(Stream::filler)
    }

    /// How much of a frame's beginning [`Frames::check`] needs.
    #[inline]
    pub(super) fn compared(&self) -> usize {
        match self.stream {
            Some(_) => stream::COMPARED,
            None => usize::MAX,
        }
    }

    /// Frame `number`.
    #[inline]
    pub(super) fn frame(&mut self, number: u64) -> &[u8] {
        if self.stream.is_none() {
            return self.datagram(number);
        }
        self.stream.as_mut().map_or(&[], |s| s.frame(number))
    }

    #[inline]
    fn datagram(&mut self, number: u64) -> &[u8] {
        #[allow(clippy::cast_possible_truncation)] // below `flows`
        let flow = (number % u64::from(self.flows)) as u32;
        let ports = ports(flow, self.reply);
        let frame = self.template(number);
        put(frame, PORTS_AT, ports);
        put(frame, NUMBER_AT, number.to_be_bytes());
        frame
    }

    /// The number of a frame of `len` bytes that arrived, of which there are the beginning ([`Frames::compared`]) and
    /// the end. `None`: it is not what was sent. Of long frames the beginning and the last bytes are compared.
    #[inline]
    pub(super) fn check(&mut self, frame: &[u8], len: usize) -> Option<u64> {
        if let Some(stream) = &mut self.stream {
            return stream.check(frame, len);
        }
        let number = u64::from_be_bytes(get(frame, NUMBER_AT)?);
        let sent = self.datagram(number);
        let same = frame.len() == sent.len()
            && frame.get(..HEAD.min(frame.len())) == sent.get(..HEAD.min(sent.len()))
            && frame.last_chunk::<8>() == sent.last_chunk::<8>();
        same.then_some(number)
    }
}

/// Source and destination port of frames of connection `flow`, below [`FLOWS_MAX`].
#[inline]
pub(super) fn ports(flow: u32, reply: Reply) -> [u8; 4] {
    #[allow(clippy::cast_possible_truncation)] // below 512 and below 2^15
    let (high, low) = ((flow / PER_PORT) as u16, (flow % PER_PORT) as u16);
    let ([a, b], [c, d]) = ((FIRST + low).to_be_bytes(), (PORT + high).to_be_bytes());
    match reply {
        Reply::No => [a, b, c, d],
        Reply::Yes => [c, d, a, b],
    }
}

#[inline]
pub(super) fn put<const N: usize>(frame: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(room) = frame.get_mut(at..at + N) {
        room.copy_from_slice(&bytes);
    }
}

#[inline]
pub(super) fn get<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

/// A frame of that length without UDP checksum (allowed with IPv4, RFC 768), so that ports and
/// payload can change without one.
fn template(bytes: usize, reply: Reply) -> Vec<u8> {
    let ip_bytes = u16::try_from(bytes - 14).unwrap_or(u16::MAX);
    let mut frame = headers(reply, proto::UDP, ip_bytes, 0);
    frame.extend([0; 4]);
    frame.extend((ip_bytes - 20).to_be_bytes());
    frame.extend([0, 0]);
    // A payload in which a shifted or foreign piece would show.
    #[allow(clippy::cast_possible_truncation)] // a pattern
    frame.extend((frame.len()..bytes).map(|i| (i * 7) as u8));
    frame
}

/// Ethernet and IPv4 headers of a packet of `ip_bytes`.
pub(super) fn headers(reply: Reply, protocol: u8, ip_bytes: u16, id: u16) -> Vec<u8> {
    let (from, to) = match reply {
        Reply::No => (0, 1),
        Reply::Yes => (1, 0),
    };
    let (from, to) = ((MACS[from], IPS[from]), (MACS[to], IPS[to]));
    between(from, to, protocol, ip_bytes, id)
}

/// The same between any two.
pub(super) fn between(
    from: (Mac, Ipv4Addr),
    to: (Mac, Ipv4Addr),
    protocol: u8,
    ip_bytes: u16,
    id: u16,
) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend(ip_bytes.to_be_bytes());
    ip.extend(id.to_be_bytes());
    // Don't fragment, time to live 64, checksum to come.
    ip.extend([0x40, 0, 64, protocol, 0, 0]);
    ip.extend(from.1.octets());
    ip.extend(to.1.octets());
    let sum = !checksum::fold(checksum::sum(&ip, 0));
    put(&mut ip, 10, sum.to_be_bytes());
    let mut frame = Vec::with_capacity(usize::from(ip_bytes) + 14);
    frame.extend(to.0.0);
    frame.extend(from.0.0);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame
}

#[cfg(test)]
mod tests {
    use super::{Frames, Reply, Sizes, wire_sizes};
    use crate::packet::{parse, proto};

    #[test]
    fn frames_are_what_they_are_checked_against() {
        for sizes in [Sizes::Fixed(64), Sizes::Fixed(1514), Sizes::Imix] {
            let [mut a, mut b] = [Reply::No, Reply::Yes].map(|r| Frames::new(sizes, 100_000, r));
            for number in (0..200).chain([99_999, 100_000, 123_456]) {
                let frame = a.frame(number).to_vec();
                let len = u32::try_from(frame.len()).unwrap();
                let p = parse(&frame[..frame.len().min(256)], len).unwrap();
                assert_eq!(p.protocol, proto::UDP);
                let answer = b.frame(number).to_vec();
                let q = parse(&answer[..answer.len().min(256)], len).unwrap();
                assert_eq!(
                    (p.src, p.sport, p.dst, p.dport),
                    (q.dst, q.dport, q.src, q.sport)
                );

                let mut expected = Frames::new(sizes, 100_000, Reply::No);
                let mut check = |frame: &[u8]| expected.check(frame, frame.len());
                assert_eq!(check(&frame), Some(number));
                assert_eq!(check(&answer), None, "the other direction's");
                for at in [0, 35, 45, 63.min(frame.len() - 1), frame.len() - 1] {
                    let mut damaged = frame.clone();
                    damaged[at] ^= 0x10;
                    assert_ne!(check(&damaged), Some(number), "byte {at}");
                }
                assert_eq!(check(&frame[..frame.len() - 1]), None);
            }
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, sizes) in [("64", Sizes::Fixed(64)), ("imix", Sizes::Imix)] {
            assert_eq!(text.parse(), Ok(sizes));
            assert_eq!(sizes.to_string(), text);
        }
        for wrong in ["49", "65550", "", "-1"] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
        assert_eq!(wire_sizes("1514"), Ok(Sizes::Fixed(1514)));
        assert!(wire_sizes("1515").is_err());
        assert_eq!(Frames::new(Sizes::Imix, 1, Reply::No).mean_bytes(), 353);
    }
}
