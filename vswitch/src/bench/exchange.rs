//! Connections from their first frame to their last, as two guests make them. Each frame is a function of its
//! connection's number and its step alone: whoever gets one knows which it is, what it must look like, and what
//! follows. No guest keeps anything of a connection.

use clap::ValueEnum;
use serde::Serialize;

use super::frames::{IPS, PORTS_AT, Reply, get, headers, ports, put};
use crate::packet::{Addr, checksum, proto, tcp_flag};

/// Of which connections are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A datagram and its answer.
    Udp,
    /// Handshake, request, reply, FIN and FIN: eight segments.
    Tcp,
}

/// Most steps that an exchange has.
pub(super) const STEPS_MAX: usize = 8;
/// Bytes of request and reply; a datagram has as many with its headers.
pub(super) const PAYLOAD: u16 = 64;
/// Least bytes of an Ethernet frame, without FCS (802.3).
const FRAME_MIN: usize = 60;
/// Where the second byte of the IPv4 identification stands: the step.
const STEP_AT: usize = 19;
/// Where a datagram's payload begins: the number.
const NUMBER_AT: usize = 42;
/// Where a segment's sequence number and acknowledgement stand.
const SEQ_AT: usize = 38;
const ACK_AT: usize = 42;
/// Where its checksum stands.
const CHECKSUM_AT: usize = 50;
/// First sequence numbers: the connection's number times this (Knuth's multiplicative hash), for A; plus one half of the
/// numbers there are, for B.
const SPREAD: u32 = 0x9e37_79b1;
/// Times [`SPREAD`] it is 1, modulo 2^32.
const GATHER: u32 = inverse(SPREAD);
const B_AFTER_A: u32 = 1 << 31;

/// Newton's iteration; each round doubles the right bits, of which an odd number's own are three.
const fn inverse(odd: u32) -> u32 {
    let mut x = odd;
    let mut round = 0;
    while round < 4 {
        x = x.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x
}

/// A frame of an exchange.
struct Step {
    from: Reply,
    flags: u8,
    payload: u16,
    /// What its sender sent before: its number beyond its first one.
    seq: u32,
    /// What the other end sent before.
    ack: u32,
    /// What its receiver sends in turn.
    next: &'static [u8],
}

const fn step(
    from: Reply,
    flags: u8,
    payload: u16,
    (seq, ack): (u32, u32),
    next: &'static [u8],
) -> Step {
    Step {
        from,
        flags,
        payload,
        seq,
        ack,
        next,
    }
}

const UDP: [Step; 2] = [
    step(Reply::No, 0, PAYLOAD - 42, (0, 0), &[1]),
    step(Reply::Yes, 0, PAYLOAD - 42, (0, 0), &[]),
];

const P: u32 = PAYLOAD as u32;
const TCP: [Step; STEPS_MAX] = {
    use tcp_flag::{ACK, FIN, PSH, SYN};
    [
        step(Reply::No, SYN, 0, (0, 0), &[1]),
        step(Reply::Yes, SYN | ACK, 0, (0, 1), &[2, 3]),
        step(Reply::No, ACK, 0, (1, 1), &[]),
        step(Reply::No, PSH | ACK, PAYLOAD, (1, 1), &[4]),
        step(Reply::Yes, PSH | ACK, PAYLOAD, (1, 1 + P), &[5]),
        step(Reply::No, FIN | ACK, 0, (1 + P, 1 + P), &[6]),
        step(Reply::Yes, FIN | ACK, 0, (1 + P, 2 + P), &[7]),
        step(Reply::No, ACK, 0, (2 + P, 2 + P), &[]),
    ]
};

impl Protocol {
    fn steps(self) -> &'static [Step] {
        match self {
            Protocol::Udp => &UDP,
            Protocol::Tcp => &TCP,
        }
    }

    /// Frames of a connection.
    pub(super) fn frames(self) -> usize {
        self.steps().len()
    }

    /// Whether the connection is over when that step arrived.
    pub(super) fn is_last(self, step: u8) -> bool {
        usize::from(step) + 1 == self.frames()
    }

    /// The steps with which the receiver of `step` answers.
    pub(super) fn answers(self, step: u8) -> &'static [u8] {
        self.steps().get(usize::from(step)).map_or(&[], |s| s.next)
    }
}

/// The frames of all connections.
#[derive(Debug)]
pub(super) struct Exchange {
    protocol: Protocol,
    /// Connections with ports of their own; the next one has the first one's again.
    tuples: u32,
    /// By step: the frame, and the sum of what its checksum covers and does not change.
    templates: Vec<(Vec<u8>, u64)>,
}

impl Exchange {
    pub(super) fn new(protocol: Protocol, tuples: u32) -> Self {
        let template = |(i, s): (u16, &Step)| match protocol {
            Protocol::Udp => (datagram(s, i), 0),
            Protocol::Tcp => segment(s, i),
        };
        Exchange {
            protocol,
            tuples: tuples.max(1),
            templates: (0..).zip(protocol.steps()).map(template).collect(),
        }
    }

    /// The frame of that connection and step.
    #[inline]
    pub(super) fn frame(&mut self, number: u32, step: u8) -> &[u8] {
        let at = usize::from(step);
        let (Some(s), Some((frame, sum))) =
            (self.protocol.steps().get(at), self.templates.get_mut(at))
        else {
            return &[];
        };
        let ports = ports(number % self.tuples, s.from);
        put(frame, PORTS_AT, ports);
        match self.protocol {
            Protocol::Udp => put(frame, NUMBER_AT, number.to_be_bytes()),
            Protocol::Tcp => {
                let a = number.wrapping_mul(SPREAD);
                let b = a.wrapping_add(B_AFTER_A);
                let (mine, other) = match s.from {
                    Reply::No => (a, b),
                    Reply::Yes => (b, a),
                };
                let seq = mine.wrapping_add(s.seq).to_be_bytes();
                let ack = match s.flags & tcp_flag::ACK {
                    0 => [0; 4],
                    _ => other.wrapping_add(s.ack).to_be_bytes(),
                };
                put(frame, SEQ_AT, seq);
                put(frame, ACK_AT, ack);
                let sum = [ports, seq, ack]
                    .iter()
                    .fold(*sum, |sum, w| checksum::sum(w, sum));
                put(frame, CHECKSUM_AT, (!checksum::fold(sum)).to_be_bytes());
            }
        }
        frame
    }

    /// Connection and step of a frame that arrived. `None`: it is not what was sent.
    #[inline]
    pub(super) fn check(&mut self, frame: &[u8]) -> Option<(u32, u8)> {
        let [step] = get(frame, STEP_AT)?;
        let s = self.protocol.steps().get(usize::from(step))?;
        let number = match self.protocol {
            Protocol::Udp => u32::from_be_bytes(get(frame, NUMBER_AT)?),
            Protocol::Tcp => {
                let first = u32::from_be_bytes(get(frame, SEQ_AT)?).wrapping_sub(s.seq);
                let a = match s.from {
                    Reply::No => first,
                    Reply::Yes => first.wrapping_sub(B_AFTER_A),
                };
                a.wrapping_mul(GATHER)
            }
        };
        (self.frame(number, step) == frame).then_some((number, step))
    }
}

fn datagram(s: &Step, step: u16) -> Vec<u8> {
    let bytes = 8 + s.payload;
    let mut frame = headers(s.from, proto::UDP, 20 + bytes, step);
    frame.extend([0; 4]);
    frame.extend(bytes.to_be_bytes());
    // No checksum (allowed with IPv4, RFC 768).
    frame.extend([0, 0]);
    frame.extend(pattern(s.payload));
    frame
}

fn segment(s: &Step, step: u16) -> (Vec<u8>, u64) {
    let bytes = 20 + s.payload;
    let mut frame = headers(s.from, proto::TCP, 20 + bytes, step);
    // Ports and numbers to come, a header of five words, the largest window without scaling.
    frame.extend([0; 12]);
    frame.extend([5 << 4, s.flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(pattern(s.payload));
    let [from, to] = match s.from {
        Reply::No => [IPS[0], IPS[1]],
        Reply::Yes => [IPS[1], IPS[0]],
    };
    let [from, to] = [from, to].map(|ip| Addr::from(std::net::IpAddr::from(ip)));
    let covered = frame.get(PORTS_AT..).unwrap_or(&[]);
    let sum = checksum::sum(
        covered,
        checksum::pseudo(&from, &to, proto::TCP, bytes.into()),
    );
    frame.resize(frame.len().max(FRAME_MIN), 0);
    (frame, sum)
}

/// A payload in which a shifted or foreign piece would show.
fn pattern(bytes: u16) -> impl Iterator<Item = u8> {
    #[allow(clippy::cast_possible_truncation)] // a pattern
    (0..bytes).map(|i| (i * 7) as u8)
}

#[cfg(test)]
mod tests {
    use super::{Exchange, Protocol, Reply};
    use crate::packet::{checksum, parse, proto, tcp_flag};

    #[test]
    fn frames_are_sound_and_known_again() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let [mut sent, mut expected] = [(); 2].map(|()| Exchange::new(protocol, 1000));
            for number in [0, 1, 999, 1000, 123_456, u32::MAX] {
                for step in 0..u8::try_from(protocol.frames()).unwrap() {
                    let frame = sent.frame(number, step).to_vec();
                    let len = u32::try_from(frame.len()).unwrap();
                    assert!(len >= 60);
                    let p = parse(&frame, len).unwrap();
                    if protocol == Protocol::Tcp {
                        assert_eq!(p.protocol, proto::TCP);
                        let end = 14 + 40 + usize::try_from(p.payload_len).unwrap();
                        let l4 = u32::try_from(end - 34).unwrap();
                        let pseudo = checksum::pseudo(&p.src, &p.dst, proto::TCP, l4);
                        assert_eq!(
                            checksum::fold(checksum::sum(&frame[34..end], pseudo)),
                            0xffff
                        );
                    }
                    assert_eq!(expected.check(&frame), Some((number, step)));
                    for at in [0, 19, 30, 36, 42, frame.len() - 1] {
                        let mut damaged = frame.clone();
                        damaged[at] ^= 0x10;
                        assert_ne!(expected.check(&damaged), Some((number, step)), "byte {at}");
                    }
                }
            }
        }
    }

    /// Each step acknowledges what came before, and the chain of answers runs through all of them.
    #[test]
    fn an_exchange_is_a_connection() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut exchange = Exchange::new(protocol, 10);
            let (mut due, mut seen) = (vec![0], Vec::new());
            let mut sent = [None; 2];
            while !due.is_empty() {
                let step: u8 = due.remove(0);
                let frame = exchange.frame(7, step).to_vec();
                let p = parse(&frame, u32::try_from(frame.len()).unwrap()).unwrap();
                let from = usize::from(protocol.steps()[usize::from(step)].from == Reply::Yes);
                if protocol == Protocol::Tcp {
                    let controls = (p.tcp.flags & (tcp_flag::SYN | tcp_flag::FIN)).count_ones();
                    assert!(sent[from].is_none_or(|end| end == p.tcp.seq), "step {step}");
                    if p.tcp.flags & tcp_flag::ACK != 0 {
                        assert_eq!(Some(p.tcp.ack), sent[1 - from], "step {step}");
                    }
                    sent[from] = Some(p.tcp.seq.wrapping_add(p.payload_len).wrapping_add(controls));
                }
                seen.push(step);
                due.extend(protocol.answers(step));
            }
            let all: Vec<u8> = (0..u8::try_from(protocol.frames()).unwrap()).collect();
            assert_eq!(seen, all);
            assert!(protocol.is_last(*all.last().unwrap()) && !protocol.is_last(0));
        }
    }
}
