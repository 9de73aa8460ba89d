//! What a port may receive. Reads frames and policy by itself; nothing here calls the switch.

use std::collections::HashSet;

use super::world::{ANY, ETHER, MAY_OPEN, WHO, Who};
use vswitch::frame::{Csum, Gso, Offload};

/// What is known so far.
#[derive(Default)]
pub(super) struct Expect {
    /// The policy with rules is in force.
    pub(super) allowing: bool,
    /// What was delivered because a rule allows it: its answers may follow.
    opened: HashSet<Tuple>,
    /// The burst's frames without their tags; empty when an offload may change them.
    sent: Vec<Vec<u8>>,
}

/// Who to whom: protocol, addresses and ports (ICMP: an echo's identifier is the
/// port of whoever asks).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Tuple {
    from: Who,
    to: Who,
    protocol: u8,
    src: [u8; 16],
    dst: [u8; 16],
    sport: u16,
    dport: u16,
}

impl Tuple {
    fn back(self) -> Tuple {
        Tuple {
            from: self.to,
            to: self.from,
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            ..self
        }
    }
}

/// A frame as it was delivered, without the tag.
struct Seen {
    dst_mac: [u8; 6],
    src_mac: [u8; 6],
    what: What,
}

enum What {
    Arp { request: bool },
    Ip(Ip),
    Ether(u16),
}

struct Ip {
    protocol: u8,
    src: [u8; 16],
    dst: [u8; 16],
    /// A part of a packet.
    fragment: bool,
    /// Not the first fragment: no ports.
    later: bool,
    /// The transport header's first bytes.
    l4: [u8; 6],
}

impl Ip {
    fn ports(&self) -> (u16, u16) {
        match self.protocol {
            6 | 17 | 132 => (be16(&self.l4, 0), be16(&self.l4, 2)),
            1 | 58 if self.icmp(&[8], &[128]) => (be16(&self.l4, 4), 0),
            1 | 58 if self.icmp(&[0], &[129]) => (0, be16(&self.l4, 4)),
            _ => (0, 0),
        }
    }

    fn icmp(&self, v4: &[u8], v6: &[u8]) -> bool {
        !self.later
            && match self.protocol {
                1 => v4.contains(&self.l4[0]),
                58 => v6.contains(&self.l4[0]),
                _ => false,
            }
    }

    fn is_error(&self) -> bool {
        self.icmp(&[3, 4, 5, 11, 12], &(0..128).collect::<Vec<u8>>())
    }

    /// What a rule's service is compared with.
    fn asks(&self) -> u16 {
        match self.protocol {
            1 | 58 => be16(&self.l4, 0),
            _ => self.ports().1,
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8)
}

fn without_tag(frame: &[u8]) -> Vec<u8> {
    if frame.len() >= 18 && is_tag(be16(frame, 12)) {
        [&frame[..12], &frame[16..]].concat()
    } else {
        frame.to_vec()
    }
}

/// Completes the header checksum of an IPv4 frame, tagged or not.
pub(super) fn complete_ipv4(frame: &mut [u8]) {
    let mut at = 12;
    while frame.len() >= at + 6 && is_tag(be16(frame, at)) {
        at += 4;
    }
    if frame.len() < at + 22 || be16(frame, at) != 0x0800 {
        return;
    }
    let ip = &mut frame[at + 2..];
    let len = (usize::from(ip[0] & 15) * 4)
        .clamp(20, 60)
        .min(ip.len() & !1);
    ip[10..12].fill(0);
    let mut sum: u32 = ip[..len].chunks(2).map(|c| u32::from(be16(c, 0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn v4(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out[10..12].fill(0xff);
    out[12..].copy_from_slice(bytes);
    out
}

/// Reads a delivered frame. It was parsed by the switch, so its headers are whole.
fn read(frame: &[u8]) -> Seen {
    let mut at = 14;
    let mut ethertype = be16(frame, 12);
    // One inner tag is part of the frame.
    if is_tag(ethertype) {
        ethertype = be16(frame, 16);
        at = 18;
    }
    let what = match ethertype {
        0x0806 => What::Arp {
            request: be16(frame, at + 6) == 1,
        },
        0x0800 => {
            let ip = &frame[at..];
            let mut l4 = [0; 6];
            let payload = &ip[usize::from(ip[0] & 15) * 4..];
            let n = payload.len().min(6);
            l4[..n].copy_from_slice(&payload[..n]);
            What::Ip(Ip {
                protocol: ip[9],
                src: v4(&ip[12..16]),
                dst: v4(&ip[16..20]),
                fragment: be16(ip, 6) & 0x3fff != 0,
                later: be16(ip, 6) & 0x1fff != 0,
                l4,
            })
        }
        0x86dd => What::Ip(ipv6(&frame[at..])),
        other => What::Ether(other),
    };
    Seen {
        dst_mac: frame[..6].try_into().expect("six bytes"),
        src_mac: frame[6..12].try_into().expect("six bytes"),
        what,
    }
}

fn ipv6(ip: &[u8]) -> Ip {
    let (mut protocol, mut at, mut fragment, mut later) = (ip[6], 40, false, false);
    loop {
        let len = match protocol {
            0 | 43 | 60 => 8 + usize::from(ip[at + 1]) * 8,
            51 => 8 + usize::from(ip[at + 1]) * 4,
            44 => {
                fragment |= be16(ip, at + 2) & 0xfff9 != 0;
                later |= be16(ip, at + 2) & 0xfff8 != 0;
                8
            }
            _ => break,
        };
        protocol = ip[at];
        at += len;
        if later {
            break;
        }
    }
    let mut l4 = [0; 6];
    let payload = ip.get(at..).unwrap_or(&[]);
    let n = payload.len().min(6);
    l4[..n].copy_from_slice(&payload[..n]);
    Ip {
        protocol,
        src: ip[8..24].try_into().expect("16 bytes"),
        dst: ip[24..40].try_into().expect("16 bytes"),
        fragment,
        later,
        l4,
    }
}

fn mac(who: &Who) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, who.mac]
}

/// fe80:: and the MAC in EUI-64 form.
fn link_local(who: &Who) -> [u8; 16] {
    [
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0, 0, who.mac,
    ]
}

/// Whether `frame` is what was sent, or of ARP and neighbour discovery what was said.
fn is_of(sent: &[u8], frame: &[u8], what: &What) -> bool {
    let says = |field: &[u8]| sent.windows(field.len()).any(|w| w == field);
    match what {
        // RFC 826 for Ethernet and IPv4: nothing rides on it, nor in a field that means nothing.
        What::Arp { request } => {
            frame.len() == 42
                && says(&frame[12..32])
                && says(&frame[38..42])
                && (!request || frame[32..38] == [0; 6])
        }
        // Source and target are its, and there is one option at most.
        What::Ip(ip) if ip.icmp(&[], &[135, 136]) => {
            matches!(frame.len(), 78 | 86) && says(&frame[22..38]) && says(&frame[62..78])
        }
        _ => sent == frame,
    }
}

fn has(who: &Who, addr: &[u8; 16]) -> bool {
    let mut own6 = [0; 16];
    (own6[0], own6[15]) = (0xfd, who.v4[1]);
    who.name != "outside"
        && (*addr == v4(&[10, 0, who.v4[0], who.v4[1]]) || who.v6 && *addr == own6)
}

fn local(domain: (&str, u16), addr: &[u8; 16]) -> bool {
    let own = |w: &Who| has(w, addr) || w.name != "outside" && *addr == link_local(w);
    WHO.iter().any(|w| w.domain == domain && own(w))
}

fn routed(who: &Who, addr: &[u8; 16]) -> bool {
    who.name == "router" && addr[..14] == v4(&[10, 9, 0, 0])[..14]
}

/// Whether `who` may send from this address.
fn sends_from(who: &Who, ip: &Ip) -> bool {
    if who.name == "outside" {
        return !local(who.domain, &ip.src);
    }
    // Membership from an address that is nobody's is consumed.
    let discovery = ip.icmp(&[], &[135, 136]);
    let unspecified = ip.src == [0; 16] || ip.src == v4(&[0; 4]);
    let dhcp = ip.protocol == 17 && ip.ports() == (68, 67);
    has(who, &ip.src)
        || routed(who, &ip.src)
        || ip.src == link_local(who)
        || unspecified && (dhcp || discovery || ip.icmp(&[], &[133]))
        || ip.src[0] == 0xfe && ip.src[1] & 0xc0 == 0x80 && discovery
}

/// Whether a unicast packet for this address may be delivered to `who`.
fn accepts(who: &Who, addr: &[u8; 16]) -> bool {
    if who.name == "outside" {
        return !local(who.domain, addr);
    }
    has(who, addr) || routed(who, addr) || *addr == link_local(who)
}

fn may_open(from: &Who, to: &Who, asks: Option<(u8, u16)>) -> bool {
    MAY_OPEN.iter().any(|&(f, t, protocol, low, high)| {
        (f, t) == (from.name, to.name)
            && asks.is_none_or(|(p, what)| {
                protocol == ANY || protocol == p && (low..=high).contains(&what)
            })
    })
}

impl Expect {
    /// Another burst.
    pub(super) fn sent(&mut self, frames: &[(Vec<u8>, Offload)]) {
        let plain =
            |o: &Offload| o.gso == Gso::None && matches!(o.csum, Csum::Complete | Csum::Valid);
        self.sent.clear();
        if frames.iter().all(|(_, offload)| plain(offload)) {
            self.sent
                .extend(frames.iter().map(|(bytes, _)| without_tag(bytes)));
        }
    }

    /// One frame that `to_port` received after a burst from `from_port`.
    pub(super) fn received(&mut self, from_port: &str, to_port: &str, frame: &[u8]) {
        let at = |port, tag| WHO.iter().find(|w: &&Who| w.port == port && w.tag == tag);
        // Only these ports know tags; a tag elsewhere would be read as the receiver's VLAN.
        let tag = is_tag(be16(frame, 12)).then(|| be16(frame, 14) & 0xfff);
        let to =
            at(to_port, tag).unwrap_or_else(|| panic!("{to_port} got a frame with tag {tag:?}"));
        let frame = if tag.is_some() {
            without_tag(frame)
        } else {
            frame.to_vec()
        };
        let seen = read(&frame);
        let group = seen.dst_mac[0] & 1 == 1;
        if from_port == to_port && self.is_answer(to, &seen) {
            return;
        }
        assert!(
            self.sent.is_empty() || self.sent.iter().any(|s| is_of(s, &frame, &seen.what)),
            "nobody sent what {} received",
            to.name
        );
        let mut senders = WHO
            .iter()
            .filter(|w| w.port == from_port && w.domain == to.domain);
        let declared = WHO
            .iter()
            .any(|w| w.domain == to.domain && mac(w) == seen.src_mac);
        let from = senders
            .find(|w| {
                if w.name == "outside" {
                    !declared
                } else {
                    mac(w) == seen.src_mac
                }
            })
            .unwrap_or_else(|| panic!("{from_port} spoke for another, to {}", to.name));
        assert!(from != to, "{} got its own frame", to.name);
        if to.name == "outside" {
            let known = WHO
                .iter()
                .any(|w| w.domain == to.domain && mac(w) == seen.dst_mac);
            assert!(!known, "a workload's frame went out");
        } else {
            assert!(
                group || mac(to) == seen.dst_mac,
                "{} got another's",
                to.name
            );
        }
        let (f, t) = (from.name, to.name);
        match &seen.what {
            // Questions go out, answers come in.
            What::Arp { request: true } => assert_eq!(t, "outside", "{f} asked"),
            What::Arp { request: false } => assert!(f == "outside" && !group, "{f} answered {t}"),
            What::Ip(ip) if ip.icmp(&[], &[135]) => assert_eq!(t, "outside", "{f} asked"),
            What::Ip(ip) if ip.icmp(&[], &[136]) => {
                assert!(f == "outside" && !group, "{f} answered {t}")
            }
            What::Ether(ethertype) => {
                assert!(
                    self.allowing && (f, t, *ethertype) == ETHER,
                    "{ethertype:#x} from {f} to {t}"
                );
            }
            What::Ip(ip) => self.ip(from, to, ip, group),
        }
    }

    fn ip(&mut self, from: &Who, to: &Who, ip: &Ip, group: bool) {
        let (f, t) = (from.name, to.name);
        let told = format!("protocol {} {:?} from {f} to {t}", ip.protocol, ip.l4);
        assert!(self.allowing, "nothing is allowed: {told}");
        assert!(sends_from(from, ip), "{f} sent from {:x?}: {told}", ip.src);
        assert!(
            group || accepts(to, &ip.dst),
            "{t} got what is for {:x?}: {told}",
            ip.dst
        );
        let before = |other: &Who| self.opened.iter().any(|o| o.from == *other);
        let (sport, dport) = ip.ports();
        let tuple = Tuple {
            from: *from,
            to: *to,
            protocol: ip.protocol,
            src: ip.src,
            dst: ip.dst,
            sport,
            dport,
        };
        assert!(!group || ip.protocol != 6, "TCP to a group: {told}");
        let membership = ip.protocol == 2 || ip.icmp(&[], &[130, 131, 132, 143]);
        let forwards = |who: &Who| matches!(who.name, "outside" | "router");
        assert!(
            !group || !membership || forwards(from) || forwards(to),
            "membership between neighbours: {told}"
        );
        assert!(!group || !ip.fragment, "a fragment to a group: {told}");
        let allowed = if ip.later {
            may_open(from, to, None) || may_open(to, from, None) && before(to)
        } else if ip.is_error() {
            may_open(from, to, None) && before(from) || may_open(to, from, None) && before(to)
        } else if ip.icmp(&[0], &[129]) {
            // An answer opens nothing.
            self.opened.contains(&tuple.back())
        } else if may_open(from, to, Some((ip.protocol, ip.asks()))) {
            self.opened.insert(tuple);
            true
        } else {
            // Of ICMP, only echoes have answers.
            !matches!(ip.protocol, 1 | 58) && self.opened.contains(&tuple.back())
        };
        assert!(allowed, "no rule allows {told}");
    }

    /// What the switch itself says to who sent the burst: ARP and ND answers, for a rejected
    /// packet a reset or an ICMP error, and what a decoy says (only "web" has rules that reject or lure).
    fn is_answer(&self, to: &Who, seen: &Seen) -> bool {
        // Not for the uplink's peers, whom only themselves know.
        if to.name != "outside" && seen.dst_mac != mac(to) {
            return false;
        }
        match &seen.what {
            What::Arp { request } => !request,
            What::Ip(ip) if ip.icmp(&[], &[136]) => true,
            What::Ip(ip) => {
                let reset = ip.protocol == 6;
                to.name == "web" && self.allowing && (reset || ip.icmp(&[3], &[1]))
            }
            What::Ether(_) => false,
        }
    }
}
