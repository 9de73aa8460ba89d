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

/// `watched` holds, for every path in order, who is in its `from` and who is in its `to`; `entries`
/// are all rules'.
pub(super) fn check(
    classifier: &Classifier,
    policy: &Policy,
    watched: &[BTreeSet<Party>],
    entries: &[Placed],
) -> Vec<FieldError> {
    let paths = infrastructures(policy).flat_map(|(at, _, infrastructure)| {
        let paths = infrastructure.management.iter().enumerate();
        paths.map(move |(n, path)| (at.item("management", n, ""), path))
    });
    let mut errors = Vec::new();
    for ((at, path), ends) in paths.zip(watched.chunks(2)) {
        let [from, to] = ends else { continue };
        let cut = service_ranges(&path.service)
            .find_map(|service| first_cut(classifier, from, to, service, entries));
        if let Some((service, judgement)) = cut {
            let by = match judgement.why {
                Why::Rule(rule) => format!("rule {:?}", classifier.rule_name(rule)),
                Why::DefaultDeny => "the default".to_owned(),
            };
            let does = match judgement.ask {
                true => "asks about",
                false => "denies",
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

/// A point of `service` that is not plainly allowed between some pair. Policy is constant between
/// the edges of its entries, so one point after each edge is enough.
fn first_cut(
    classifier: &Classifier,
    from: &BTreeSet<Party>,
    to: &BTreeSet<Party>,
    (low, high, sports): (u32, u32, PortRange),
    entries: &[Placed],
) -> Option<(String, Judgement)> {
    let mut keys = BTreeSet::from([low]);
    let mut ports = BTreeSet::from([sports.low]);
    for (_, _, entry) in entries {
        keys.extend([entry.key.0, entry.key.1.saturating_add(1)]);
        ports.extend([entry.sport.0, entry.sport.1.saturating_add(1)]);
    }
    for &from in from {
        for &to in to {
            for &key in keys.range(low..=high) {
                for &sport in ports.range(sports.low..=sports.high) {
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
fn service(key: u32, sport: u16) -> Service {
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
