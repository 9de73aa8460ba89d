//! Services that somebody may open, in words.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Service;
use super::super::classify::key;
use super::super::links::Piece;
use super::super::management::service;
use super::super::model::{PortRange, ServiceSpec};
use crate::packet::proto;

/// What of a piece this service is, if any.
pub(super) fn part(piece: &Piece, of: Service) -> Option<Piece> {
    let key = key(of);
    let inside = (piece.keys.0..=piece.keys.1).contains(&key);
    inside.then_some(Piece {
        keys: (key, key),
        sports: PortRange::ALL,
        ..*piece
    })
}

/// Services: keys, and source ports.
#[derive(Debug, Default)]
pub(super) struct Cells(pub(super) BTreeSet<(u32, u32, u16, u16)>);

impl Cells {
    pub(super) fn add(&mut self, piece: &Piece) {
        let (keys, sports) = (piece.keys, piece.sports);
        self.0.insert((keys.0, keys.1, sports.low, sports.high));
    }

    /// In words, as few as there are.
    pub(super) fn services(self) -> Vec<String> {
        let mut by_sports: BTreeMap<(u16, u16), Vec<(u32, u32)>> = BTreeMap::new();
        let mut same: Option<(u32, u32, u16, u16)> = None;
        let mut put = |(low, high, first, last): (u32, u32, u16, u16)| {
            let keys = by_sports.entry((first, last)).or_default();
            match keys.last_mut() {
                // An EtherType is no neighbour of an IP protocol.
                Some(before) if before.1 + 1 == low && low != 1 << 24 => before.1 = high,
                _ => keys.push((low, high)),
            }
        };
        for cell in self.0 {
            match &mut same {
                Some(s) if (s.0, s.1) == (cell.0, cell.1) && s.3.saturating_add(1) == cell.2 => {
                    s.3 = cell.3;
                }
                _ => {
                    same.replace(cell).into_iter().for_each(&mut put);
                }
            }
        }
        same.into_iter().for_each(&mut put);
        let mut texts = Vec::new();
        for ((low, high), keys) in by_sports {
            let sport = PortRange { low, high };
            for (low, high) in keys {
                describe(low, high, sport, &mut texts);
            }
        }
        texts
    }
}

/// Keys of services in words.
fn describe(low: u32, high: u32, sport: PortRange, texts: &mut Vec<String>) {
    let from = if sport == PortRange::ALL {
        String::new()
    } else {
        format!(" from {sport}")
    };
    if low >= 1 << 24 {
        let all = (low..=high).map(|key| text(service(key, 0)));
        texts.extend(all);
        return;
    }
    let split = |key: u32| {
        let [_, protocol, a, b] = key.to_be_bytes();
        (protocol, u16::from_be_bytes([a, b]))
    };
    let ((first, a), (last, b)) = (split(low), split(high));
    if first == last {
        texts.push(ports(first, PortRange { low: a, high: b }) + &from);
        return;
    }
    // Of the first and the last protocol perhaps a part, and all between them.
    let (mut whole, mut end) = (u16::from(first), u16::from(last));
    if a > 0 {
        texts.push(
            ports(
                first,
                PortRange {
                    low: a,
                    high: u16::MAX,
                },
            ) + &from,
        );
        whole += 1;
    }
    let tail = (b < u16::MAX).then(|| ports(last, PortRange { low: 0, high: b }) + &from);
    end -= u16::from(tail.is_some());
    match (whole, end) {
        (0, 255) => texts.push(format!("any{from}")),
        (whole, end) if whole < end => texts.push(format!("ip/{whole}-{end}{from}")),
        (whole, end) if whole == end => {
            let protocol = u8::try_from(whole).unwrap_or(u8::MAX);
            texts.push(ports(protocol, PortRange::ALL) + &from);
        }
        _ => {}
    }
    texts.extend(tail);
}

/// A protocol with some of its ports.
fn ports(protocol: u8, ports: PortRange) -> String {
    let spec = |dport| ServiceSpec::Ip {
        protocol,
        dport,
        sport: PortRange::ALL,
    };
    let is_icmp = matches!(protocol, proto::ICMP | proto::ICMPV6);
    if !is_icmp || ports == PortRange::ALL || ports.low == ports.high {
        return spec(ports).to_string();
    }
    let name = spec(PortRange::ALL);
    let [[type_low, code_low], [type_high, code_high]] =
        [ports.low, ports.high].map(u16::to_be_bytes);
    match (type_low == type_high, code_low, code_high) {
        (true, 0, 255) => format!("{name}/{type_low}"),
        (true, low, high) => format!("{name}/{type_low}/{low}-{high}"),
        (false, _, _) => format!("{name}/{type_low}-{type_high}"),
    }
}

/// One service in words.
pub(super) fn text(service: Service) -> String {
    match service {
        Service::Ip {
            protocol, dport, ..
        } => ports(protocol, PortRange::one(dport)),
        Service::Ether(ethertype) => ServiceSpec::Ether(ethertype).to_string(),
    }
}
