//! Refuses a policy that would cut a declared management path: denies it, rejects it or asks
//! about it, for any pair of parties and any part of the service.

use std::collections::BTreeSet;

use super::arrange::Placed;
use super::classify::Classifier;
use super::compile::service_ranges;
use super::error::FieldError;
use super::model::{Policy, PortRange, ServiceSpec};
use super::validate::infrastructures;
use super::{Judgement, Party, Query, Service, Verdict, Why};

/// What is known of the management paths, once sets have their numbers.
#[derive(Debug, Default)]
pub(super) struct Management {
    /// For every path in order, who is in its `from`, then who is in its `to`.
    watched: Vec<BTreeSet<Party>>,
    edges: Edges,
}

/// Where policy can change: it is constant between the edges of its entries. Ascending.
#[derive(Debug, Default)]
pub(super) struct Edges {
    keys: Vec<u32>,
    sports: Vec<u16>,
}

impl Edges {
    /// Of entries with these keys and source ports.
    pub(super) fn new(entries: impl Iterator<Item = ((u32, u32), (u16, u16))>) -> Self {
        let (mut keys, mut sports) = (BTreeSet::new(), BTreeSet::new());
        for (key, sport) in entries {
            keys.extend([key.0, key.1.saturating_add(1)]);
            sports.extend([sport.0, sport.1.saturating_add(1)]);
        }
        Edges {
            keys: keys.into_iter().collect(),
            sports: sports.into_iter().collect(),
        }
    }
}

/// The part of ascending numbers that is in a range.
fn within<T: Ord>(numbers: &[T], low: T, high: T) -> &[T] {
    let first = numbers.partition_point(|n| *n < low);
    let end = numbers.partition_point(|n| *n <= high);
    numbers.get(first..end).unwrap_or(&[])
}

impl Management {
    /// `watched` are the ends of all paths, `entries` are all rules'.
    pub(super) fn new(watched: Vec<BTreeSet<Party>>, entries: &[Placed]) -> Self {
        let used = entries.iter().filter(|_| !watched.is_empty());
        let edges = Edges::new(used.map(|(_, _, entry)| (entry.key, entry.sport)));
        Management { watched, edges }
    }

    /// What a policy compiled whole cuts.
    pub(super) fn check(&self, classifier: &Classifier, policy: &Policy) -> Vec<FieldError> {
        let paths = infrastructures(policy).flat_map(|(at, _, infrastructure)| {
            let paths = infrastructure.management.iter().enumerate();
            paths.map(move |(n, path)| (at.item("management", n, ""), path))
        });
        let mut errors = Vec::new();
        for ((at, path), ends) in paths.zip(self.watched.chunks(2)) {
            let [from, to] = ends else { continue };
            let cut = service_ranges(&path.service)
                .find_map(|service| first_cut(classifier, (from, to), service, &[&self.edges]));
            if let Some((service, judgement)) = cut {
                let by = match judgement.why {
                    Why::Rule(rule) => format!("rule {:?}", classifier.rule_name(rule)),
                    Why::DefaultDeny => "the default".to_owned(),
                };
                let does = match classifier.asking(&judgement) {
                    Some(asking) if asking.answer => "asks about",
                    Some(_) => "wants a record of",
                    None => "denies",
                };
                errors.push(FieldError::new(
                    at,
                    format!("{by} {does} {service} on this management path"),
                    "allow it in an earlier tier or before that rule, or remove the path",
                ));
            }
        }
        errors
    }

    /// Whether a policy, edited for these services only, cuts any.
    pub(super) fn is_cut(
        &self,
        classifier: &Classifier,
        policy: &Policy,
        edited: &[(u32, u32, PortRange)],
    ) -> bool {
        let services = edited
            .iter()
            .map(|&(low, high, ports)| ((low, high), (ports.low, ports.high)));
        let own = Edges::new(services);
        let paths = infrastructures(policy).flat_map(|(_, _, of)| &of.management);
        paths.zip(self.watched.chunks(2)).any(|(path, ends)| {
            let [from, to] = ends else { return false };
            service_ranges(&path.service).any(|(low, high, ports)| {
                edited.iter().any(|other| {
                    let both = PortRange {
                        low: ports.low.max(other.2.low),
                        high: ports.high.min(other.2.high),
                    };
                    let service = (low.max(other.0), high.min(other.1), both);
                    let meet = service.0 <= service.1 && both.low <= both.high;
                    let edges = [&self.edges, &own];
                    meet && first_cut(classifier, (from, to), service, &edges).is_some()
                })
            })
        })
    }
}

/// A point of `service` that is not plainly allowed between some pair: one after each edge is enough.
fn first_cut(
    classifier: &Classifier,
    (from, to): (&BTreeSet<Party>, &BTreeSet<Party>),
    (low, high, sports): (u32, u32, PortRange),
    edges: &[&Edges],
) -> Option<(String, Judgement)> {
    let mut keys = vec![low];
    let mut ports = vec![sports.low];
    for edges in edges {
        keys.extend(within(&edges.keys, low, high));
        ports.extend(within(&edges.sports, sports.low, sports.high));
    }
    for &from in from {
        for &to in to {
            for &key in &keys {
                for &sport in &ports {
                    let service = service(key, sport);
                    let judgement = classifier.classify(&Query { from, to, service });
                    if judgement.verdict != Verdict::Allow || judgement.ask {
                        return Some((describe(service), judgement));
                    }
                }
            }
        }
    }
    None
}

/// The service of a key, the other way round.
pub(super) fn service(key: u32, sport: u16) -> Service {
    let [kind, protocol, high, low] = key.to_be_bytes();
    let port = u16::from_be_bytes([high, low]);
    if kind == 0 {
        Service::Ip {
            protocol,
            sport,
            dport: port,
        }
    } else {
        Service::Ether(port)
    }
}

fn describe(service: Service) -> String {
    match service {
        Service::Ip {
            protocol, dport, ..
        } => ServiceSpec::Ip {
            protocol,
            dport: PortRange::one(dport),
            sport: PortRange::ALL,
        }
        .to_string(),
        Service::Ether(ethertype) => ServiceSpec::Ether(ethertype).to_string(),
    }
}
