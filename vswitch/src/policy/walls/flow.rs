//! What leads from one side of a wall to another past its subjects, by the rules alone: refused when a policy is loaded.
//!
//! Whoever may open a connection to somebody can get something from him and give him something, so direction makes no
//! difference. What the classifier says decides, not the rules one by one: one that denies before counts. Parties in the
//! same segments are one here. The outside is one party.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::super::compile::{number, service_ranges};
use super::super::error::{FieldError, FieldPath};
use super::super::model::{ANY, Policy, ServiceSpec, qualified};
use super::super::{Classifier, Party, Query, Service, Verdict, Why, WorkloadFacts};
use super::{Per, Sanitised, Wall};
use crate::packet::{Addr, Cidr};
use crate::policy::management::service;

/// Whoever is alike in the eyes of the policy.
struct Node<'a> {
    /// One of them; `None`: the outside.
    workload: Option<&'a WorkloadFacts>,
    name: String,
    /// Of the outside, with an address each.
    parties: Vec<(Party, Option<Addr>)>,
    /// Rules that it can be the initiator of, and the other end; ascending.
    from: Vec<u32>,
    to: Vec<u32>,
}

struct Graph<'a> {
    policy: &'a Policy,
    classifier: &'a Classifier,
    nodes: Vec<Node<'a>>,
    /// Where what policy says can change: first keys of services, and keys after their last ones.
    keys: Vec<u32>,
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
        let mut known = BTreeSet::new();
        for (workload, party) in workloads.iter().zip(parties) {
            if known.insert(*party) {
                let tenant = policy.tenant_name(workload.tenant).unwrap_or_default();
                nodes.push(Node {
                    workload: Some(workload),
                    name: qualified(tenant, &workload.name),
                    parties: vec![(*party, None)],
                    from: Vec::new(),
                    to: Vec::new(),
                });
            }
        }
        nodes.push(Node {
            workload: None,
            name: "outside".to_owned(),
            parties: outside(policy, classifier),
            from: Vec::new(),
            to: Vec::new(),
        });
        let mut ends = Ends::new(policy);
        for node in &mut nodes {
            (node.from, node.to) = ends.of(policy, node.workload);
        }
        let rules = policy.rules.iter().map(|rule| &rule.service);
        let services = rules.chain(policy.sanitised.iter().map(|s| &s.service));
        let ranges = services.flat_map(|services| service_ranges(services));
        let mut keys: Vec<_> = ranges
            .flat_map(|(low, high, _)| [low, high.saturating_add(1)])
            .collect();
        keys.sort_unstable();
        keys.dedup();
        Graph {
            policy,
            classifier,
            nodes,
            keys,
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
            for next in 0..self.nodes.len() {
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
        let (x, y) = (self.nodes.get(a)?, self.nodes.get(b)?);
        let rule = self.opens(x, y).or_else(|| self.opens(y, x));
        self.edges.insert(pair, rule.clone());
        rule
    }

    fn opens(&self, from: &Node<'_>, to: &Node<'_>) -> Option<String> {
        let both = from.from.iter();
        let both = both.filter(|rule| to.to.binary_search(rule).is_ok());
        let rules = both.filter_map(|n| self.policy.rules.get(*n as usize));
        let mut ranges = rules.flat_map(|rule| service_ranges(&rule.service));
        ranges.find_map(|(low, high, sports)| {
            let first = self.keys.partition_point(|key| *key <= low);
            let end = self.keys.partition_point(|key| *key <= high);
            let inside = self.keys.get(first..end).unwrap_or(&[]);
            let mut keys = std::iter::once(low).chain(inside.iter().copied());
            keys.find_map(|key| self.allowed(from, to, service(key, sports.low)))
        })
    }

    /// The rule that allows it, if it is not sanitised.
    fn allowed(&self, from: &Node<'_>, to: &Node<'_>, service: Service) -> Option<String> {
        let clean = |addr: &Option<Addr>| {
            let mut sanitised = self.policy.sanitised.iter();
            sanitised.any(|s| s.serves(service) && serves(self.policy, s, to.workload, *addr))
        };
        let receivers = to.parties.iter().filter(|(_, addr)| !clean(addr));
        let pairs = receivers.flat_map(|(to, _)| from.parties.iter().map(|(from, _)| (*from, *to)));
        let mut answers = pairs.map(|(from, to)| {
            let query = Query { from, to, service };
            self.classifier.classify(&query)
        });
        answers.find_map(|j| match (j.verdict, j.why) {
            // The built-in rules are about the network itself.
            (Verdict::Allow, Why::Rule(rule)) if self.classifier.rule_written(rule).is_some() => {
                Some(self.classifier.rule_name(rule).to_owned())
            }
            _ => None,
        })
    }
}

/// Whether a workload, or else an address outside, is one of those who serve what is sanitised.
fn serves(
    policy: &Policy,
    sanitised: &Sanitised,
    workload: Option<&WorkloadFacts>,
    addr: Option<Addr>,
) -> bool {
    match workload {
        Some(workload) => policy.refers_to(&sanitised.tenant, &sanitised.segment, workload),
        None => {
            let segment = policy.segment(&sanitised.tenant, &sanitised.segment);
            let ip = addr.map(|addr| addr.to_ip());
            segment.is_some_and(|s| s.cidr.iter().any(|c| ip.is_some_and(|ip| c.contains(ip))))
        }
    }
}

/// Rules that forward anything, by the segments at their ends.
struct Ends<'a> {
    from: HashMap<(&'a str, &'a str), Vec<u32>>,
    to: HashMap<(&'a str, &'a str), Vec<u32>>,
}

impl<'a> Ends<'a> {
    fn new(policy: &'a Policy) -> Self {
        let mut ends = Ends {
            from: HashMap::new(),
            to: HashMap::new(),
        };
        for (n, rule) in policy.rules.iter().enumerate() {
            if !rule.action.admits() || rule.staged {
                continue;
            }
            let lists = [(&mut ends.from, &rule.from), (&mut ends.to, &rule.to)];
            for (map, list) in lists {
                for segment in list {
                    let owner = segment.tenant.as_deref().unwrap_or(&rule.tenant);
                    let rules = map.entry((owner, &*segment.name)).or_default();
                    rules.push(number(n));
                }
            }
        }
        ends
    }

    /// The rules that are about somebody as the initiator, and as the other end.
    fn of(&mut self, policy: &'a Policy, workload: Option<&WorkloadFacts>) -> (Vec<u32>, Vec<u32>) {
        let mut segments: Vec<(&str, &str)> = Vec::new();
        match workload {
            Some(workload) => {
                let held = policy.segments_of(workload);
                segments.extend(held.map(|s| (&*s.tenant, &*s.name)));
                let tenant = policy.tenant_name(workload.tenant).unwrap_or_default();
                segments.push((tenant, ANY));
            }
            None => {
                let outside = policy.segments.iter().filter(|s| !s.cidr.is_empty());
                segments.extend(outside.map(|s| (&*s.tenant, &*s.name)));
            }
        }
        let gather = |map: &HashMap<(&str, &str), Vec<u32>>| {
            let lists = segments.iter().filter_map(|s| map.get(s));
            let mut rules: Vec<u32> = lists.flatten().copied().collect();
            rules.sort_unstable();
            rules.dedup();
            rules
        };
        (gather(&self.from), gather(&self.to))
    }
}

/// Everybody who can be outside, as far as the policy tells them apart.
fn outside(policy: &Policy, classifier: &Classifier) -> Vec<(Party, Option<Addr>)> {
    let mut parties: Vec<(Party, Option<Addr>)> = Vec::new();
    for (tenant, _) in policy.all_tenants() {
        let Some(id) = policy.tenant_id(tenant) else {
            continue;
        };
        let segments = policy.segments.iter().filter(|s| s.tenant == tenant);
        let networks = segments.flat_map(|s| &s.cidr);
        // What an address is changes at a network's first address, and after its last one.
        for addr in networks.flat_map(|cidr| [Some(Addr::from(cidr.network().addr)), after(cidr)]) {
            let Some(addr) = addr else { continue };
            let party = Party {
                tenant: id,
                set: classifier.outside(id, &addr),
            };
            if !parties.iter().any(|(known, _)| *known == party) {
                parties.push((party, Some(addr)));
            }
        }
    }
    parties
}

/// The address after the last one of a network, if there is one.
fn after(cidr: &Cidr) -> Option<Addr> {
    let first = u128::from_be_bytes(Addr::from(cidr.network().addr).0);
    let bits = if cidr.addr.is_ipv4() { 32 } else { 128 };
    let size = 1u128.checked_shl(u32::from(bits - cidr.len.min(bits)))?;
    let next = Addr(first.checked_add(size)?.to_be_bytes());
    (next.is_v4() == cidr.addr.is_ipv4()).then_some(next)
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
