//! Who may open a connection to whom, by the rules: what walls and `reach` are worked out from.
//!
//! What the classifier says decides, not the rules one by one: one that denies before counts. Its answer changes only where
//! the service of a rule about the pair begins or ends, so one question between each two such edges is enough. The built-in
//! rules are about the network itself, and left out. Parties in the same segments are one node.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use super::compile::{number, service_ranges};
use super::known::Scope;
use super::management::service;
use super::model::{Policy, PortRange, Rule};
use super::walls::Sanitised;
use super::{Classifier, Judgement, Party, Query, Service, Verdict, Why, WorkloadFacts};
use crate::packet::{Addr, Cidr};

/// A service that one may open to another, as far as all of it is judged alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Keys of the service: the first and the last.
    pub(super) keys: (u32, u32),
    pub(super) sports: PortRange,
    /// Which of the parties of each node.
    pub(super) parties: (usize, usize),
    pub(super) judgement: Judgement,
}

impl Piece {
    /// The first service of it.
    pub(super) fn service(&self) -> Service {
        service(self.keys.0, self.sports.low)
    }
}

#[derive(Debug)]
struct Node {
    parties: Vec<Party>,
    /// Ends of rules that it is in: as the initiator, and as the other end.
    ends: [Vec<u32>; 2],
}

/// The same segments at one end of rules.
#[derive(Debug, Default)]
struct End {
    nodes: Vec<u32>,
    /// What stands at the other end of rules that forward something.
    facing: Vec<u32>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Links<'a> {
    policy: &'a Policy,
    classifier: &'a Classifier,
    nodes: Vec<Node>,
    /// Of initiators, and of those they connect to.
    ends: [Vec<End>; 2],
    /// By both ends; ascending. Staged ones say nothing.
    rules: HashMap<(u32, u32), Vec<u32>>,
    /// Where sanitised services begin and end.
    sanitised: Vec<(u32, u32, PortRange)>,
    /// Questions that the classifier was asked.
    asked: Cell<u64>,
}

impl<'a> Links<'a> {
    /// `nodes` are the parties of each node: one, or, of the outside, all that the policy tells apart.
    pub(super) fn new(
        policy: &'a Policy,
        classifier: &'a Classifier,
        nodes: impl Iterator<Item = Vec<Party>>,
    ) -> Self {
        let nodes = nodes.map(|parties| Node {
            parties,
            ends: Default::default(),
        });
        let mut nodes: Vec<Node> = nodes.collect();
        let mut known: [HashMap<Vec<(u32, u32)>, u32>; 2] = Default::default();
        let mut rules: HashMap<(u32, u32), Vec<u32>> = HashMap::new();
        let mut facing = BTreeSet::new();
        for (n, rule) in policy.rules.iter().enumerate() {
            let scope = Scope::new(&classifier.whole.known, policy, rule);
            let Some(scope) = scope.filter(|_| !rule.staged) else {
                continue;
            };
            let [from, to] = &mut known;
            let of = [(from, scope.from), (to, scope.to)].map(|(known, sets)| {
                let next = number(known.len());
                *known.entry(sets).or_insert(next)
            });
            let pair = (of[0], of[1]);
            rules.entry(pair).or_default().push(number(n));
            if rule.action.admits() {
                facing.insert(pair);
            }
        }
        let mut by_set: Vec<(u32, u32)> = Vec::new();
        for (n, node) in (0..).zip(&nodes) {
            by_set.extend(node.parties.iter().map(|party| (party.set.0, n)));
        }
        by_set.sort_unstable();
        by_set.dedup();
        let mut ends: [Vec<End>; 2] = Default::default();
        for (side, (ends, known)) in ends.iter_mut().zip(known).enumerate() {
            ends.resize_with(known.len(), End::default);
            for (sets, at) in known {
                let inside = sets.iter().flat_map(|&(low, high)| {
                    let first = by_set.partition_point(|(set, _)| *set < low);
                    let end = by_set.partition_point(|(set, _)| *set <= high);
                    by_set.get(first..end).unwrap_or(&[])
                });
                let members: BTreeSet<u32> = inside.map(|(_, n)| *n).collect();
                for n in &members {
                    let node = nodes.get_mut(*n as usize);
                    let of = node.and_then(|node| node.ends.get_mut(side));
                    of.into_iter().for_each(|of| of.push(at));
                }
                if let Some(end) = ends.get_mut(at as usize) {
                    end.nodes.extend(members);
                }
            }
        }
        for (from, to) in facing {
            let [initiators, others] = &mut ends;
            let both = [(initiators, from, to), (others, to, from)];
            for (ends, at, other) in both {
                let end = ends.get_mut(at as usize);
                end.into_iter().for_each(|end| end.facing.push(other));
            }
        }
        let sanitised = policy.sanitised.iter();
        let sanitised = sanitised.flat_map(|s| service_ranges(&s.service));
        Links {
            sanitised: sanitised.collect(),
            asked: Cell::new(0),
            policy,
            classifier,
            nodes,
            ends,
            rules,
        }
    }

    /// How much was asked so far.
    pub(super) fn asked(&self) -> u64 {
        self.asked.get()
    }

    /// Nodes that a rule may let this one connect to; with `back`, those that it may let connect to this one. Ascending.
    pub(super) fn near(&self, node: usize, back: bool) -> Vec<usize> {
        let (own, other) = (usize::from(back), usize::from(!back));
        let side = |side: usize| self.ends.get(side).map_or(&[][..], Vec::as_slice);
        let (own_ends, other_ends) = (side(own), side(other));
        let node = self.nodes.get(node).and_then(|node| node.ends.get(own));
        let ends = node.into_iter().flatten();
        let ends = ends.filter_map(|end| own_ends.get(*end as usize));
        let facing: BTreeSet<u32> = ends.flat_map(|end| end.facing.iter().copied()).collect();
        let facing = facing
            .iter()
            .filter_map(|end| other_ends.get(*end as usize));
        let mut found: Vec<usize> = facing.flat_map(|e| &e.nodes).map(|n| *n as usize).collect();
        // To go through them costs something, too: a sixteenth of a question. Guess.
        self.asked.set(self.asked.get() + found.len() as u64 / 16);
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Pairs of nodes that these rules are about; not all, when there are more than `most`.
    pub(super) fn pairs_of(&self, rules: &BTreeSet<u32>, most: usize) -> BTreeSet<(usize, usize)> {
        let [from, to] = &self.ends;
        let mut pairs = BTreeSet::new();
        for ((a, b), about) in &self.rules {
            if !about.iter().any(|rule| rules.contains(rule)) {
                continue;
            }
            let both = (from.get(*a as usize), to.get(*b as usize));
            let (Some(from), Some(to)) = both else {
                continue;
            };
            for a in &from.nodes {
                if pairs.len() > most {
                    return pairs;
                }
                pairs.extend(to.nodes.iter().map(|b| (*a as usize, *b as usize)));
            }
        }
        pairs
    }

    /// Rules about a pair, in file order.
    fn about(&self, from: &Node, to: &Node) -> Vec<&'a Rule> {
        let ([from, _], [_, to]) = (&from.ends, &to.ends);
        let both = from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b)));
        let rules = both.filter_map(|both| self.rules.get(&both));
        let rules: BTreeSet<u32> = rules.flatten().copied().collect();
        let rules = rules.iter();
        rules
            .filter_map(|n| self.policy.rules.get(*n as usize))
            .collect()
    }

    /// The first thing that `found` makes of what one node may open to another.
    pub(super) fn find<T>(
        &self,
        from: usize,
        to: usize,
        mut found: impl FnMut(Piece) -> Option<T>,
    ) -> Option<T> {
        let (x, y) = (self.nodes.get(from)?, self.nodes.get(to)?);
        let about = self.about(x, y);
        let admitting = about.iter().filter(|rule| rule.action.admits());
        let admitting = admitting.flat_map(|rule| service_ranges(&rule.service));
        let admitted: Vec<_> = admitting.collect();
        if admitted.is_empty() {
            return None;
        }
        let all = about.iter().flat_map(|rule| service_ranges(&rule.service));
        let (mut keys, mut sports) = (BTreeSet::new(), BTreeSet::new());
        for (low, high, ports) in all.chain(self.sanitised.iter().copied()) {
            keys.extend([low, high.saturating_add(1)]);
            sports.extend([u32::from(ports.low), u32::from(ports.high) + 1]);
        }
        let windows = |edges: &BTreeSet<u32>| {
            let ends = edges.iter().skip(1).map(|end| end - 1);
            edges.iter().copied().zip(ends).collect::<Vec<_>>()
        };
        let (keys, sports) = (windows(&keys), windows(&sports));
        let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        for &(first, last) in &keys {
            let here = |(low, high, _): &&(u32, u32, PortRange)| (*low..=*high).contains(&first);
            let here: Vec<_> = admitted.iter().filter(here).collect();
            for &(low, high) in &sports {
                let sports = PortRange {
                    low: port(low),
                    high: port(high),
                };
                if !here.iter().any(|(_, _, all)| all.contains(sports.low)) {
                    continue;
                }
                for (n, from) in x.parties.iter().enumerate() {
                    for (m, to) in y.parties.iter().enumerate() {
                        let piece = Piece {
                            keys: (first, last),
                            sports,
                            parties: (n, m),
                            judgement: self.judge(*from, *to, service(first, sports.low)),
                        };
                        let made = self.opens(&piece).then(|| found(piece)).flatten();
                        if made.is_some() {
                            return made;
                        }
                    }
                }
            }
        }
        None
    }

    /// Everything that one node may open to another.
    pub(super) fn pieces(&self, from: usize, to: usize) -> Vec<Piece> {
        let mut all = Vec::new();
        self.find(from, to, |piece| {
            all.push(piece);
            None::<()>
        });
        all
    }

    fn judge(&self, from: Party, to: Party, service: Service) -> Judgement {
        self.asked.set(self.asked.get() + 1);
        self.classifier.classify(&Query { from, to, service })
    }

    fn opens(&self, piece: &Piece) -> bool {
        let written = |rule| self.classifier.rule_written(rule).is_some();
        match (piece.judgement.verdict, piece.judgement.why) {
            (Verdict::Allow, Why::Rule(rule)) => written(rule),
            _ => false,
        }
    }
}

impl Sanitised {
    /// Whether a workload, or else an address outside, is one of those who serve it.
    pub(super) fn served_by(
        &self,
        policy: &Policy,
        workload: Option<&WorkloadFacts>,
        addr: Option<Addr>,
    ) -> bool {
        match workload {
            Some(workload) => policy.refers_to(&self.tenant, &self.segment, workload),
            None => {
                let segment = policy.segment(&self.tenant, &self.segment);
                let ip = addr.map(|addr| addr.to_ip());
                segment.is_some_and(|s| s.cidr.iter().any(|c| ip.is_some_and(|ip| c.contains(ip))))
            }
        }
    }
}

/// An address, with its tenant's name, of everybody who can be outside as far as the policy tells them apart, and of some of
/// them another.
pub(super) fn addresses(policy: &Policy) -> BTreeSet<(&str, Addr)> {
    let mut found = BTreeSet::new();
    for segment in &policy.segments {
        // What an address is changes at a network's first address, and after its last one.
        let networks = segment.cidr.iter();
        let edges = networks.flat_map(|c| [Some(Addr::from(c.network().addr)), after(c)]);
        found.extend(edges.flatten().map(|addr| (&*segment.tenant, addr)));
    }
    found
}

/// Everybody who can be outside, with an address each.
pub(super) fn outside(policy: &Policy, classifier: &Classifier) -> Vec<(Party, Addr)> {
    let mut known = BTreeSet::new();
    let all = addresses(policy).into_iter();
    let parties = all.filter_map(|(tenant, addr)| {
        let tenant = policy.tenant_id(tenant)?;
        let set = classifier.outside(tenant, &addr);
        Some((Party { tenant, set }, addr))
    });
    parties.filter(|(party, _)| known.insert(*party)).collect()
}

/// The address after the last one of a network, if there is one.
fn after(cidr: &Cidr) -> Option<Addr> {
    let first = u128::from_be_bytes(Addr::from(cidr.network().addr).0);
    let bits = if cidr.addr.is_ipv4() { 32 } else { 128 };
    let size = 1u128.checked_shl(u32::from(bits - cidr.len.min(bits)))?;
    let next = Addr(first.checked_add(size)?.to_be_bytes());
    (next.is_v4() == cidr.addr.is_ipv4()).then_some(next)
}
