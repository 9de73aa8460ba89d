//! Which way a frame would go: found in the snapshot in force, and walked with the data path's own
//! functions, so that `explain` cannot say anything else than what would happen.
//!
//! A way has one *leg*, in by one port and out by another, or two: between two L2 domains a router
//! carries the packet out of the first and into the second, and the switch judges both.

use std::cmp::Reverse;

use crate::datapath::l2::{self, Learned};
use crate::datapath::process::Place;
use crate::datapath::snapshot::{DomainId, Owner, OwnerIdx, PortView, Snapshot};
use crate::datapath::{conn, guard};
use crate::drop_reason::DropReason;
use crate::packet::{Addr, L3, Mac, Parsed, ethertype, proto, tcp_flag};
use crate::policy::Service;

/// The MAC of whoever the switch does not know: locally administered (IEEE 802 section 8.4).
const FOREIGN: Mac = Mac([0x02, 0, 0, 0, 0, 0]);

/// What a way is found in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paths<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) learned: &'a Learned,
    pub(super) tick: u32,
}

/// An end of a way.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// The workload; `None` when the address is no workload's.
    pub(super) owner: Option<OwnerIdx>,
    /// Its address in this packet.
    pub(super) addr: Addr,
}

/// What the switch carries in one piece.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    /// Who sends the frame to the switch: the workload, a router for it, or the outside.
    pub(super) from: OwnerIdx,
    /// Who gets it.
    pub(super) to: OwnerIdx,
    /// Others that could carry it as well: their neighbour's routing table decides.
    pub(super) others: Vec<OwnerIdx>,
    /// The frame's headers.
    pub(super) packet: Parsed,
    /// Why it is dropped before policy is asked.
    pub(super) dropped: Option<DropReason>,
}

/// From one end to the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    pub(super) legs: Vec<Leg>,
    /// Where it ends too early.
    pub(super) broken: Option<Broken>,
}

/// Where a way ends too early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    /// Nobody leads out of the first end's domain, to the other end.
    Exit,
    /// Nobody leads into the other end's domain.
    Entry,
}

impl Way {
    /// Whether a frame gets from end to end when policy lets it.
    pub(super) fn is_open(&self) -> bool {
        self.broken.is_none() && self.legs.iter().all(|l| l.dropped.is_none())
    }
}

impl<'a> Paths<'a> {
    /// The way of a packet that asks for `service`.
    pub(super) fn find(&self, from: End, to: End, service: Service) -> Way {
        let leg = |a, b, others| self.leg(a, b, others, from.addr, to.addr, service);
        let home = |end: End| end.owner.and_then(|idx| self.snapshot.owner(idx));
        let legs = match (home(from), home(to)) {
            (Some(a), Some(b)) if a.domain != b.domain => {
                let exits = self.holders(a.domain, to, service);
                let entries = self.holders(b.domain, from, service);
                let (Some(first), Some(sender)) = (exits.first().copied(), from.owner) else {
                    return Way {
                        legs: Vec::new(),
                        broken: Some(Broken::Exit),
                    };
                };
                let mut legs = vec![leg(sender, first, others(&exits, first))];
                // The same box on both sides, where there is one.
                let port = |idx: OwnerIdx| self.snapshot.owner(idx).map(|o| o.port);
                let twin = entries.iter().find(|i| port(**i) == port(first));
                let (Some(second), Some(receiver)) = (twin.or(entries.first()), to.owner) else {
                    return Way {
                        legs,
                        broken: Some(Broken::Entry),
                    };
                };
                legs.push(leg(*second, receiver, others(&entries, *second)));
                // An end that is the router itself has no leg to go to it.
                legs.retain(|l| l.from != l.to);
                legs
            }
            (Some(a), _) => {
                let receivers = self.holders(a.domain, to, service);
                let pair = from.owner.zip(receivers.first().copied());
                let leg = pair.map(|(a, b)| leg(a, b, others(&receivers, b)));
                leg.into_iter().collect()
            }
            (None, Some(b)) => {
                let senders = self.holders(b.domain, from, service);
                let pair = senders.first().copied().zip(to.owner);
                let leg = pair.map(|(a, b)| leg(a, b, others(&senders, a)));
                leg.into_iter().collect()
            }
            (None, None) => {
                let domains = (0..).map(DomainId);
                let ends: Vec<_> = domains
                    .take_while(|d| self.snapshot.domain(*d).is_some())
                    .filter_map(|d| {
                        let first = |e| self.holders(d, e, service).first().copied();
                        first(from).zip(first(to))
                    })
                    .collect();
                let two = ends.iter().find(|(a, b)| a != b);
                let pair = two.or(ends.first());
                pair.map(|(a, b)| leg(*a, *b, Vec::new()))
                    .into_iter()
                    .collect()
            }
        };
        let broken = match (from.owner, legs.is_empty()) {
            (_, false) => None,
            (Some(_), true) => Some(Broken::Exit),
            (None, true) => Some(Broken::Entry),
        };
        Way { legs, broken }
    }

    /// Who speaks for `end` in `domain`: itself when it is there, else routers, the one with the
    /// longest prefix first, and then uplinks.
    fn holders(&self, domain: DomainId, end: End, service: Service) -> Vec<OwnerIdx> {
        let s = self.snapshot;
        let here = |idx: &OwnerIdx| s.owner(*idx).is_some_and(|o| o.domain == domain);
        if let Some(idx) = end.owner.filter(here) {
            return vec![idx];
        }
        let Some(d) = s.domain(domain) else {
            return Vec::new();
        };
        if s.by_addr(domain, end.addr).is_some() {
            // Here the address is somebody else's.
            return Vec::new();
        }
        let prefix = |idx: &OwnerIdx| {
            let owner = s.owner(*idx).filter(|o| !o.outside)?;
            let routes = s.port(owner.port)?.routes.iter();
            let holding = routes.filter(|r| r.contains(end.addr.to_ip()));
            holding.map(|r| r.len).max()
        };
        let mut found: Vec<_> = match service {
            Service::Ip { .. } => d
                .members
                .iter()
                .copied()
                .filter(|i| prefix(i).is_some())
                .collect(),
            // Nobody routes what is not IP.
            Service::Ether(_) => Vec::new(),
        };
        found.sort_by_key(|idx| Reverse(prefix(idx)));
        found.extend(&d.uplinks);
        found
    }

    fn leg(
        &self,
        from: OwnerIdx,
        to: OwnerIdx,
        others: Vec<OwnerIdx>,
        src: Addr,
        dst: Addr,
        service: Service,
    ) -> Leg {
        let mac = |idx| {
            let owner: Option<&Owner> = self.snapshot.owner(idx);
            owner
                .and_then(|o| o.macs.first().copied())
                .unwrap_or(FOREIGN)
        };
        let packet = headers((mac(from), mac(to)), (src, dst), service);
        let walked = self.walk(from, &packet);
        Leg {
            from,
            // The data path has the last word: of several uplinks it chooses.
            to: walked.unwrap_or(to),
            others,
            packet,
            dropped: match walked {
                Ok(reached) if reached == to || self.is_outside(to) => None,
                Ok(_) => Some(DropReason::UnknownDestination),
                Err(reason) => Some(reason),
            },
        }
    }

    fn is_outside(&self, idx: OwnerIdx) -> bool {
        self.snapshot.owner(idx).is_some_and(|o| o.outside)
    }

    /// What the data path does with a frame that `from` sends, up to the question to policy.
    fn walk(&self, from: OwnerIdx, p: &Parsed) -> Result<OwnerIdx, DropReason> {
        let s: &'a Snapshot = self.snapshot;
        let owner = s.owner(from).ok_or(DropReason::UnknownSender)?;
        let port: &PortView = s.port(owner.port).ok_or(DropReason::UnknownSender)?;
        if no_sender(p) {
            return Err(DropReason::BadSourceAddress);
        }
        let (domain, tag) = guard::domain(s, port, owner.tag)?;
        let (src, _) = guard::sender(s, port, domain, tag, p)?;
        let at = Place { domain, tag, src };
        let to = l2::destination(s, self.learned, self.tick, owner.port, at, p)?;
        if conn::is_echo_reply(p) {
            return Err(DropReason::ReplyWithoutRequest);
        }
        if p.is_icmp_error() {
            return Err(DropReason::IcmpUnrelated);
        }
        Ok(to)
    }
}

fn others(all: &[OwnerIdx], chosen: OwnerIdx) -> Vec<OwnerIdx> {
    all.iter().copied().filter(|i| *i != chosen).collect()
}

/// A source address that is no host's; the parser refuses it.
fn no_sender(p: &Parsed) -> bool {
    let ip = p.src.to_ip();
    let broadcast = ip == std::net::Ipv4Addr::BROADCAST;
    p.l3 != L3::Other && (ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() || broadcast)
}

/// The headers of the first frame of a connection.
fn headers((src_mac, dst_mac): (Mac, Mac), (src, dst): (Addr, Addr), service: Service) -> Parsed {
    let p = Parsed {
        src_mac,
        dst_mac,
        ..Parsed::EMPTY
    };
    match service {
        Service::Ether(ethertype) => Parsed { ethertype, ..p },
        Service::Ip {
            protocol,
            sport,
            dport,
        } => {
            let [icmp_type, icmp_code] = match protocol {
                proto::ICMP | proto::ICMPV6 => dport.to_be_bytes(),
                _ => [0, 0],
            };
            let (l3, ethertype) = if src.is_v4() {
                (L3::V4, ethertype::IPV4)
            } else {
                (L3::V6, ethertype::IPV6)
            };
            let mut p = Parsed {
                ethertype,
                l3,
                protocol,
                // After an Ethernet header and the shorter of the two network headers: only that
                // there is one matters.
                l4_offset: 34,
                src,
                dst,
                sport,
                dport,
                icmp_type,
                icmp_code,
                ..p
            };
            p.tcp.flags = tcp_flag::SYN;
            p
        }
    }
}
