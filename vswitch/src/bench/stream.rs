//! Frames longer than a wire takes: TCP segments as Linux' sends them, for whoever is last to cut them (TSO), with
//! checksums left open.

use super::frames::{IPS, PORTS_AT, Reply, get, headers, ports, put};
use crate::guest::NetHdr;
use crate::packet::{Addr, checksum, proto, tcp_flag};

/// Bytes of headers: Ethernet, IPv4, TCP with a time stamp.
const HEADERS: usize = 66;
/// Payload of the segments it is cut into, at MTU 1500.
const SEGMENT: u16 = 1448;
/// Where sequence number, acknowledgement, checksum and time stamp stand.
const SEQ_AT: usize = 38;
const ACK_AT: usize = 42;
const CHECKSUM_AT: usize = 50;
const STAMP_AT: usize = 58;
/// Bytes compared of a frame's beginning.
pub(super) const COMPARED: usize = 2 * HEADERS;
/// Where the TCP header begins.
const TCP_AT: u16 = 34;
/// No operation twice, and time stamps (RFC 7323): the frame's number, and nothing that is echoed.
const STAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
/// No operation, and the largest window scale: more is never under way.
const SCALE: [u8; 4] = [1, 3, 3, 14];

/// The frames of one direction. Data of a connection follows on what it sent before, and acknowledges what came.
#[derive(Debug)]
pub(super) struct Stream {
    reply: Reply,
    flows: u64,
    payload: u32,
    syn: Vec<u8>,
    data: Vec<u8>,
    opening: bool,
    came: u64,
}

impl Stream {
    pub(super) fn new(bytes: usize, flows: u32, reply: Reply) -> Self {
        let payload = bytes.saturating_sub(HEADERS);
        let syn = match reply {
            Reply::No => tcp_flag::SYN,
            Reply::Yes => tcp_flag::SYN | tcp_flag::ACK,
        };
        Stream {
            reply,
            flows: flows.into(),
            payload: u32::try_from(payload).unwrap_or(0),
            syn: segment(reply, syn, &SCALE, 0),
            data: segment(reply, tcp_flag::PSH | tcp_flag::ACK, &[], payload),
            opening: false,
            came: 0,
        }
    }

    /// From now on, frames that open connections, or data.
    pub(super) fn opens(&mut self, opening: bool) {
        self.opening = opening;
    }

    /// As [`super::frames::Frames::header`].
    #[inline]
    pub(super) fn header(&mut self, came: u64) -> NetHdr {
        self.came = came;
        let open = NetHdr {
            flags: NetHdr::F_NEEDS_CSUM,
            csum_start: TCP_AT,
            csum_offset: 16,
            ..NetHdr::default()
        };
        if self.opening {
            return open;
        }
        #[allow(clippy::cast_possible_truncation)] // 66
        NetHdr {
            gso_type: NetHdr::GSO_TCPV4,
            hdr_len: HEADERS as u16,
            gso_size: SEGMENT,
            ..open
        }
    }

    /// As [`super::frames::Frames::filler`].
    pub(super) fn filler(&mut self) -> Option<&[u8]> {
        (!self.opening).then_some(&self.data)
    }

    /// As [`super::frames::Frames::head`].
    #[inline]
    pub(super) fn head(&mut self, number: u64) -> (&[u8], usize) {
        let written = if self.opening { usize::MAX } else { HEADERS };
        let frame = self.frame(number);
        (frame.get(..written).unwrap_or(frame), frame.len())
    }

    /// Frame `number`.
    #[inline]
    pub(super) fn frame(&mut self, number: u64) -> &[u8] {
        let flow = number % self.flows;
        // Of this connection, data frame number so much is next: of ours, and of the other direction's that come.
        let ours = (number / self.flows) + u64::from(self.opening);
        let theirs = match (self.opening, self.reply) {
            (true, Reply::No) => 0,
            (true, Reply::Yes) => ours,
            (false, _) => self.came.saturating_sub(flow).div_ceil(self.flows),
        };
        let payload = self.payload;
        #[allow(clippy::cast_possible_truncation)] // numbers wrap (RFC 9293 section 3.4)
        let [seq, ack] = [ours, theirs].map(|n| (n as u32).wrapping_mul(payload));
        let frame = if self.opening {
            &mut self.syn
        } else {
            &mut self.data
        };
        #[allow(clippy::cast_possible_truncation)] // below `flows`
        put(frame, PORTS_AT, ports(flow as u32, self.reply));
        put(
            frame,
            SEQ_AT,
            seq.wrapping_sub(self.opening.into()).to_be_bytes(),
        );
        put(frame, ACK_AT, ack.to_be_bytes());
        #[allow(clippy::cast_possible_truncation)] // of four billion, a run has some thousandth
        put(frame, STAMP_AT, (number as u32).to_be_bytes());
        frame
    }

    /// As [`super::frames::Frames::check`]. What it acknowledges is as late as it is, and a checksum that is open is between
    /// the switch and the receiver: neither is compared.
    #[inline]
    pub(super) fn check(&mut self, frame: &[u8], len: usize) -> Option<u64> {
        let number = u32::from_be_bytes(get(frame, STAMP_AT)?).into();
        let sent = self.frame(number);
        let same = |from: usize, to: usize| frame.get(from..to) == sent.get(from..to);
        let right = len == sent.len()
            && same(0, ACK_AT)
            && same(ACK_AT + 4, CHECKSUM_AT)
            && same(CHECKSUM_AT + 2, len.min(COMPARED))
            && frame.last_chunk::<8>() == sent.last_chunk::<8>();
        right.then_some(number)
    }
}

/// A segment of so much payload, ports and numbers to come.
fn segment(reply: Reply, flags: u8, more: &[u8], payload: usize) -> Vec<u8> {
    let options = STAMPS.len() + more.len();
    let bytes = u16::try_from(20 + options + payload).unwrap_or(u16::MAX);
    let mut frame = headers(reply, proto::TCP, bytes.saturating_add(20), 0);
    frame.extend([0; 12]);
    #[allow(clippy::cast_possible_truncation)] // at most 36
    frame.extend([((20 + options) << 2) as u8, flags, 0xff, 0xff]);
    let [from, to] = match reply {
        Reply::No => [IPS[0], IPS[1]],
        Reply::Yes => [IPS[1], IPS[0]],
    };
    let [from, to] = [from, to].map(|ip| Addr::from(std::net::IpAddr::from(ip)));
    let open = checksum::fold(checksum::pseudo(&from, &to, proto::TCP, bytes.into()));
    frame.extend(open.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(STAMPS);
    frame.extend(more);
    // A payload in which a shifted or foreign piece would show.
    #[allow(clippy::cast_possible_truncation)] // a pattern
    frame.extend((0..payload).map(|i| (i * 7) as u8));
    frame
}

#[cfg(test)]
mod tests {
    use super::{HEADERS, Reply, Stream};
    use crate::packet::{Parsed, parse, proto, tcp_flag};

    const BYTES: usize = HEADERS + 45 * 1448;

    fn parsed(frame: &[u8]) -> Parsed {
        let len = u32::try_from(frame.len()).unwrap();
        parse(&frame[..frame.len().min(256)], len).unwrap()
    }

    /// Both ends open a connection, then send data that follows on it and acknowledges all that came.
    #[test]
    fn a_stream_is_a_connection() {
        let flows = 7;
        let [mut a, mut b] = [Reply::No, Reply::Yes].map(|r| Stream::new(BYTES, flows, r));
        for flow in 0..u64::from(flows) {
            let first = 3 * u64::from(flows) + flow;
            a.opens(true);
            b.opens(true);
            let [syn, answer] = [&mut a, &mut b].map(|end| parsed(end.frame(first)));
            assert_eq!(syn.protocol, proto::TCP);
            assert_eq!(syn.tcp.flags, tcp_flag::SYN);
            assert_eq!(answer.tcp.flags, tcp_flag::SYN | tcp_flag::ACK);
            assert_eq!(answer.tcp.ack, syn.tcp.seq.wrapping_add(1));
            assert_eq!((syn.src, syn.sport), (answer.dst, answer.dport));
            a.opens(false);
            b.opens(false);
            let (mut seq, mut ack) = (answer.tcp.ack, answer.tcp.seq.wrapping_add(1));
            for k in 1..4 {
                let number = first + k * u64::from(flows);
                a.header(number);
                let data = parsed(a.frame(number));
                assert_eq!((data.tcp.seq, data.tcp.ack), (seq, ack), "{flow} {k}");
                seq = seq.wrapping_add(data.payload_len);
                b.header(number + 1);
                let data = parsed(b.frame(number));
                assert_eq!((data.tcp.seq, data.tcp.ack), (ack, seq), "{flow} {k}");
                ack = ack.wrapping_add(data.payload_len);
            }
        }
    }

    #[test]
    fn frames_are_what_they_are_checked_against() {
        let [mut a, mut expected] = [(); 2].map(|()| Stream::new(BYTES, 100, Reply::No));
        for opening in [true, false] {
            a.opens(opening);
            expected.opens(opening);
            for number in [0, 99, 100, 123_456] {
                a.header(number / 2);
                let frame = a.frame(number).to_vec();
                assert_eq!(frame.len() == BYTES, !opening);
                assert_eq!(expected.check(&frame, frame.len()), Some(number));
                for at in [0, 30, 35, 39, 46, 47, 56, 59, frame.len() - 1] {
                    let mut damaged = frame.clone();
                    damaged[at] ^= 0x10;
                    let found = expected.check(&damaged, damaged.len());
                    assert_ne!(found, Some(number), "byte {at}");
                }
                let short = &frame[..frame.len() - 1];
                assert_eq!(expected.check(short, short.len()), None);
            }
        }
    }
}
