//! What leads from one side of a wall to another past its subjects, by the rules alone: refused when a policy is loaded.
//!
//! Whoever may open a connection to somebody can get something from him and give him something, so direction makes no
//! difference. What the classifier says decides, not the rules one by one: one that denies before counts. Parties in the
//! same segments are one here. The outside is one party.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::super::error::{FieldError, FieldPath};
use super::super::links::{Links, Piece, outside};
use super::super::model::{Policy, ServiceSpec, qualified};
use super::super::{Classifier, Party, Service, Why, WorkloadFacts};
use super::{Per, Wall};
use crate::packet::Addr;

/// Whoever is alike in the eyes of the policy.
struct Node<'a> {
    /// One of them; `None`: the outside.
    workload: Option<&'a WorkloadFacts>,
    name: String,
    /// Of each party of the outside, an address.
    addrs: Vec<Addr>,
}

struct Graph<'a> {
    policy: &'a Policy,
    classifier: &'a Classifier,
    nodes: Vec<Node<'a>>,
    links: Links<'a>,
    /// By two nodes: the rule that lets one of them open a connection to the other.
    edges: HashMap<(usize, usize), Option<String>>,
}

/// A path for every two sides of a wall that something leads from one to the other of, past the subjects. Walls of
/// transactions have none: their stages hand over to each other.
pub(super) fn leaks(
    policy: &Policy,
    workloads: &[WorkloadFacts],
    (classifier, parties): (&Classifier, &[Party]),
) -> Vec<FieldError> {
    let walls = policy.walls.iter().enumerate();
    let mut walls = walls.filter(|(_, w)| w.per == Per::Ever).peekable();
    if walls.peek().is_none() {
        return Vec::new();
    }
    let mut graph = Graph::new(policy, workloads, (classifier, parties));
    let mut errors = Vec::new();
    for (index, wall) in walls {
        let at = FieldPath::root().item("wall", index, &wall.name);
        let sides: Vec<_> = wall.datasets.iter().map(|d| wall.side(d)).collect();
        for (n, side) in sides.iter().enumerate() {
            let others = sides.iter().skip(n + 1);
            let others: Vec<_> = others.filter(|other| wall.conflict(side, other)).collect();
            for (other, path) in graph.paths(wall, side, &others) {
                errors.push(FieldError::new(
                    at.key("datasets"),
                    format!("{side:?} and {other:?} meet past the wall: {path}"),
                    "deny one of these steps, make who stands between a subject, or declare what it serves with [[sanitised]]",
                ));
            }
        }
    }
    errors
}

impl<'a> Graph<'a> {
    fn new(
        policy: &'a Policy,
        workloads: &'a [WorkloadFacts],
        (classifier, parties): (&'a Classifier, &[Party]),
    ) -> Self {
        let mut nodes: Vec<Node<'a>> = Vec::new();
        let mut members = Vec::new();
        let mut known = BTreeSet::new();
        for (workload, party) in workloads.iter().zip(parties) {
            if known.insert(*party) {
                let tenant = policy.tenant_name(workload.tenant).unwrap_or_default();
                nodes.push(Node {
                    workload: Some(workload),
                    name: qualified(tenant, &workload.name),
                    addrs: Vec::new(),
                });
                members.push(vec![*party]);
            }
        }
        let (outside, addrs) = outside(policy, classifier).into_iter().unzip();
        members.push(outside);
        nodes.push(Node {
            workload: None,
            name: "outside".to_owned(),
            addrs,
        });
        Graph {
            policy,
            classifier,
            nodes,
            links: Links::new(policy, classifier, members.into_iter()),
            edges: HashMap::new(),
        }
    }

    /// The shortest path from a side to each of these others.
    fn paths(&mut self, wall: &Wall, side: &str, others: &[&String]) -> Vec<(String, String)> {
        let policy = self.policy;
        let sides = |node: &Node<'_>| match node.workload {
            Some(workload) => wall.sides_of(policy, workload),
            None => wall.sides_of_the_outside(policy),
        };
        let sides: Vec<_> = self.nodes.iter().map(sides).collect();
        let bound = |node: &Node<'_>| node.workload.is_some_and(|w| wall.binds(policy, w));
        let bound: Vec<_> = self.nodes.iter().map(bound).collect();
        let has = |n: usize, side: &str| sides.get(n).is_some_and(|s| s.iter().any(|s| s == side));
        let mut before: HashMap<usize, (usize, String)> = HashMap::new();
        let starts = (0..self.nodes.len()).filter(|n| has(*n, side));
        let mut queue: VecDeque<_> = starts.collect();
        let mut seen: HashSet<_> = queue.iter().copied().collect();
        let mut found: Vec<(String, String)> = Vec::new();
        while let Some(n) = queue.pop_front() {
            let near = [false, true].map(|back| self.links.near(n, back)).concat();
            for next in near.into_iter().collect::<BTreeSet<_>>() {
                if seen.contains(&next) {
                    continue;
                }
                let ends: Vec<_> = others.iter().filter(|other| has(next, other)).collect();
                if bound.get(next) == Some(&true) && ends.is_empty() {
                    continue;
                }
                let Some(rule) = self.edge(n, next) else {
                    continue;
                };
                seen.insert(next);
                before.insert(next, (n, rule));
                for other in &ends {
                    if !found.iter().any(|(known, _)| known == **other) {
                        found.push(((**other).clone(), self.told(&before, next)));
                    }
                }
                if ends.is_empty() {
                    queue.push_back(next);
                }
            }
        }
        found
    }

    /// A path in words.
    fn told(&self, before: &HashMap<usize, (usize, String)>, end: usize) -> String {
        let name = |n: usize| self.nodes.get(n).map_or("", |node| &node.name);
        let mut text = name(end).to_owned();
        let mut at = end;
        while let Some((from, rule)) = before.get(&at) {
            text = format!("{} - (rule {rule}) - {text}", name(*from));
            at = *from;
        }
        text
    }

    /// The rule that lets one of two nodes open a connection to the other that is not sanitised.
    fn edge(&mut self, a: usize, b: usize) -> Option<String> {
        let pair = (a.min(b), a.max(b));
        if let Some(known) = self.edges.get(&pair) {
            return known.clone();
        }
        let rule = self.opens(a, b).or_else(|| self.opens(b, a));
        self.edges.insert(pair, rule.clone());
        rule
    }

    fn opens(&self, from: usize, to: usize) -> Option<String> {
        let receiver = self.nodes.get(to)?;
        self.links.find(from, to, |piece: Piece| {
            let addr = receiver.addrs.get(piece.parties.1).copied();
            let mut sanitised = self.policy.sanitised.iter();
            let service = piece.service();
            let is_clean = sanitised
                .any(|s| s.serves(service) && s.served_by(self.policy, receiver.workload, addr));
            match piece.judgement.why {
                Why::Rule(rule) if !is_clean => Some(self.classifier.rule_name(rule).to_owned()),
                _ => None,
            }
        })
    }
}

impl ServiceSpec {
    /// Whether it is one of those.
    #[must_use]
    pub fn covers(&self, service: Service) -> bool {
        match (*self, service) {
            (
                ServiceSpec::Ip {
                    protocol,
                    dport,
                    sport,
                },
                Service::Ip {
                    protocol: p,
                    sport: s,
                    dport: d,
                },
            ) => protocol == p && dport.contains(d) && sport.contains(s),
            (ServiceSpec::Ether(own), Service::Ether(ethertype)) => own == ethertype,
            _ => false,
        }
    }
}
