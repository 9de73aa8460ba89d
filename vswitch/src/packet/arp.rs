//! ARP for IPv4 over Ethernet (RFC 826): a checked view, an answer, a question.

use super::build::Writer;
use super::parse::{is_v4_host, v4_addr as v4};
use super::{Addr, Mac, ethertype};
use crate::drop_reason::DropReason;

/// Ethernet, IPv4, address lengths 6 and 4: the only kind there is here.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What an ARP message does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArpOp {
    /// Who has the target address?
    Request,
    /// The sender does.
    Reply,
}

/// An ARP message. What it claims is not yet checked against anybody's bindings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// Request or reply.
    pub op: ArpOp,
    /// Sender's hardware address; never a group.
    pub sha: Mac,
    /// Sender's address (v4-mapped); 0.0.0.0 in a probe (RFC 5227).
    pub spa: Addr,
    /// Target's hardware address; meaningless in a request.
    pub tha: Mac,
    /// Target's address (v4-mapped).
    pub tpa: Addr,
}

/// Reads the ARP message at `l3_offset` of a head.
///
/// # Errors
/// `BadArp` when it is truncated, of another kind, or its sender is no single host.
pub fn parse(head: &[u8], l3_offset: u16) -> Result<Arp, DropReason> {
    let m = head
        .get(usize::from(l3_offset)..)
        .and_then(|s| s.first_chunk::<28>())
        .ok_or(DropReason::BadArp)?;
    let op = match (m[6], m[7]) {
        (0, 1) => ArpOp::Request,
        (0, 2) => ArpOp::Reply,
        _ => return Err(DropReason::BadArp),
    };
    let arp = Arp {
        op,
        sha: Mac([m[8], m[9], m[10], m[11], m[12], m[13]]),
        spa: v4(m[14], m[15], m[16], m[17]),
        tha: Mac([m[18], m[19], m[20], m[21], m[22], m[23]]),
        tpa: v4(m[24], m[25], m[26], m[27]),
    };
    let probe = arp.spa == v4(0, 0, 0, 0);
    if !m.starts_with(&PREFIX) || arp.sha.is_group() || !(probe || is_v4_host(&arp.spa)) {
        return Err(DropReason::BadArp);
    }
    Ok(arp)
}

/// Writes the answer to `request`: its target address is at `mac`. Returns the frame's length.
pub fn reply(out: &mut [u8; 256], request: &Arp, mac: Mac) -> usize {
    let answer = Arp {
        op: ArpOp::Reply,
        sha: mac,
        spa: request.tpa,
        tha: request.sha,
        tpa: request.spa,
    };
    write(out, request.sha, &answer)
}

/// Writes a broadcast question for `tpa` from `sha` and `spa`. Returns the frame's length.
pub fn request(out: &mut [u8; 256], sha: Mac, spa: Addr, tpa: Addr) -> usize {
    let question = Arp {
        op: ArpOp::Request,
        sha,
        spa,
        tha: Mac::default(),
        tpa,
    };
    write(out, Mac::BROADCAST, &question)
}

/// Writes a message anew, for the host at `dst` or, if that is a group, for all: what it says and
/// nothing more. Returns the frame's length.
pub fn restate(out: &mut [u8; 256], arp: &Arp, dst: Mac) -> usize {
    let dst = if dst.is_group() { Mac::BROADCAST } else { dst };
    let tha = match arp.op {
        ArpOp::Request => Mac::default(),
        ArpOp::Reply => dst,
    };
    write(out, dst, &Arp { tha, ..*arp })
}

fn write(out: &mut [u8; 256], dst: Mac, arp: &Arp) -> usize {
    let mut w = Writer::new(out);
    w.ethernet(dst, arp.sha, ethertype::ARP);
    w.put(&PREFIX);
    w.put16(match arp.op {
        ArpOp::Request => 1,
        ArpOp::Reply => 2,
    });
    for (mac, Addr([.., a, b, c, d])) in [(arp.sha, arp.spa), (arp.tha, arp.tpa)] {
        w.put(&mac.0);
        w.put(&[a, b, c, d]);
    }
    w.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const B: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

    #[test]
    fn question_and_answer() {
        let mut out = [0xee; 256];
        let n = request(&mut out, A, v4(10, 0, 0, 1), v4(10, 0, 0, 2));
        // As written by RFC 826, byte for byte.
        let want = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0,
            1, 0x52, 0x54, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
        ];
        assert_eq!(out[..n], want);
        let asked = parse(&out[..n], 14).unwrap();
        assert_eq!(
            (asked.op, asked.sha, asked.tpa),
            (ArpOp::Request, A, v4(10, 0, 0, 2))
        );

        let n = reply(&mut out, &asked, B);
        assert_eq!((&out[..6], &out[6..12]), (&A.0[..], &B.0[..]));
        let want = Arp {
            op: ArpOp::Reply,
            sha: B,
            spa: v4(10, 0, 0, 2),
            tha: A,
            tpa: v4(10, 0, 0, 1),
        };
        assert_eq!(parse(&out[..n], 14), Ok(want));
    }

    #[test]
    fn malformed() {
        let mut good = [0; 256];
        let n = request(&mut good, A, v4(10, 0, 0, 1), v4(10, 0, 0, 2));
        for len in 0..n {
            assert_eq!(parse(&good[..len], 14), Err(DropReason::BadArp), "{len}");
        }
        // Hardware type, protocol, lengths, operation, group sender, multicast, loopback, 0/8.
        for (at, v) in [
            (15, 6),
            (16, 9),
            (18, 8),
            (19, 16),
            (21, 3),
            (22, 1),
            (28, 224),
            (28, 239),
            (28, 127),
            (28, 0),
        ] {
            let mut bad = good;
            bad[at] = v;
            assert_eq!(parse(&bad[..n], 14), Err(DropReason::BadArp), "{at} {v}");
        }
        let mut probe = good;
        probe[28..32].fill(0);
        assert_eq!(parse(&probe[..n], 14).unwrap().spa, v4(0, 0, 0, 0));
    }
}
