//! Whom somebody can connect to, directly and through others, and what that would become: by a yes, or by another policy.
//!
//! Workloads that nothing tells apart are one party, so what it costs depends on how many there are to be told apart. Each
//! pair that a rule is about is judged once, and when [`BUDGET`] questions have been asked of the classifier it ends there and
//! says so. A way ends at the outside: what the outside may open is its own affair, whoever connects to it.

mod compare;
mod services;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use compare::{Changed, Compared, State, compare};
use services::{Cells, part, text};

use super::links::{Links, Piece, outside};
use super::model::{Policy, SegmentRef, qualified};
use super::walls::Day;
use super::{Classifier, Party, RuleId, Service, Why, WorkloadFacts};
use crate::packet::Addr;

/// Questions to the classifier that one answer may cost: a fifth of a second's. Guess.
const BUDGET: u64 = 2_000_000;
/// Pairs that are compared at most. Guess.
const PAIRS: usize = 200_000;
/// Names of alike workloads that are listed.
const NAMES: usize = 3;

/// Who can be at an end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// A workload, by its position.
    Workload(usize),
    /// That address outside, or anybody there.
    Outside(Option<IpAddr>),
}

/// An answer to a question that stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Who asked.
    pub from: End,
    /// To connect to him.
    pub to: End,
    /// For this.
    pub service: Service,
    /// Yes or no.
    pub yes: bool,
}

/// Says why a wall stands between two.
pub type Walls<'a> = &'a dyn Fn(End, End, bool) -> Option<String>;

/// What there is to be known.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// The same, compiled for these workloads.
    pub classifier: &'a Classifier,
    /// Workloads.
    pub workloads: &'a [WorkloadFacts],
    /// Workloads with other numbers are told apart, though the policy does not.
    pub apart: &'a [u64],
    /// Answers that stand.
    pub answers: &'a [Standing],
    /// Why a wall stands between two, if one does: who are next to each other, or, if that is false, on the same way. What the
    /// first one has goes all the way, unless it is within a transaction.
    pub walls: Option<Walls<'a>>,
    /// What is sanitised is so on that day.
    pub today: Day,
}

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// How a connection can be opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Somebody says yes.
    Ask,
    /// It is allowed.
    Allow,
    /// It is, and reported.
    Notify,
    /// Somebody has said yes, and that stands.
    Yes,
    /// Somebody has said no, and that stands.
    No,
}

impl How {
    /// As it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            How::Ask => "ask",
            How::Allow => "allow",
            How::Notify => "notify",
            How::Yes => "yes",
            How::No => "no",
        }
    }
}

/// What somebody may open to somebody.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// The rule that says so; of two tenants, both.
    pub rule: String,
    /// How.
    pub how: How,
    /// Services.
    pub service: Vec<String>,
    /// Of the outside: the segments that the rule names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<String>,
    /// A wall stands between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<String>,
}

/// Workloads that nothing tells apart, or the outside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Names of the first ones.
    pub names: Vec<String>,
    /// How many there are.
    pub size: usize,
}

/// How far somebody can be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Now.
    Open,
    /// If somebody says yes, on the way or at its end.
    Ask,
    /// Were it not for a wall.
    Walled,
}

/// Somebody who can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Who.
    pub who: Group,
    /// How far.
    pub level: Level,
    /// Through these, in order; empty: directly. Each is in the list, too.
    pub through: Vec<String>,
    /// What may be opened to him, or by him, by the one next to him.
    pub by: Vec<Grant>,
}

/// Whom somebody can connect to, or who to him.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reach {
    /// Who.
    pub of: String,
    /// Who can connect to him, not the other way.
    pub to: bool,
    /// The nearest first; of those who are reached now, of those behind a question, of those behind a wall.
    pub found: Vec<Found>,
    /// Groups that are not listed.
    pub more: usize,
    /// Workloads by level, listed or not.
    pub workloads: [usize; 3],
    /// It was too much to look at all of it: there may be others.
    pub cut_off: bool,
}

/// What a yes would open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// From whom,
    pub from: String,
    /// to whom,
    pub to: String,
    /// for what.
    pub service: String,
    /// He can connect to him already, for something else or through others.
    pub known: bool,
    /// A wall stands between them, so a yes opens nothing.
    pub wall: Option<String>,
    /// Who is reached through it, and was not before.
    pub through: Vec<Found>,
    /// Groups that are not listed.
    pub more_through: usize,
    /// Who gets there, too, because he can connect to the one who asks.
    pub others: Vec<Group>,
    /// Groups that are not listed.
    pub more_others: usize,
    /// Pairs of workloads that can connect then, directly or through others, and cannot before.
    pub pairs: u64,
    /// It was too much to look at all of it: there may be others.
    pub cut_off: bool,
}

/// Whom a workload, or the outside, can connect to; with `to`, who can connect to it. `most` groups are listed.
#[must_use]
pub fn reach(world: &World<'_>, of: End, to: bool, most: usize) -> Reach {
    let graph = Graph::new(*world, &[of]);
    let start = graph.node(of);
    let walk = graph.walk(start, to, Level::Walled);
    let mut workloads = [0; 3];
    for step in &walk.steps {
        if let Some(n) = workloads.get_mut(step.level as usize) {
            *n += graph.size(step.node);
        }
    }
    Reach {
        of: graph.name(start),
        to,
        found: walk
            .steps
            .iter()
            .take(most)
            .map(|s| graph.found(&walk, s))
            .collect(),
        more: walk.steps.len().saturating_sub(most),
        workloads,
        cut_off: walk.cut_off,
    }
}

/// What a yes to this question would open. `most` groups are listed of each sort.
#[must_use]
pub fn opened(world: &World<'_>, (from, to, service): (End, End, Service), most: usize) -> Opened {
    let graph = Graph::new(*world, &[from, to]);
    let (a, b) = (graph.node(from), graph.node(to));
    let before = graph.walk(a, false, Level::Open);
    let outside = graph.is_outside(b);
    let beyond = if outside {
        Walk::at(b)
    } else {
        graph.walk(b, false, Level::Open)
    };
    let new = |walk: &Walk, n: usize| {
        if n == walk.start {
            !walk.itself
        } else {
            !walk.has(n)
        }
    };
    let known = !new(&before, b);
    let about = |j: &Judged| j.clean && part(&j.piece, service).is_some();
    let is_clean = graph.judge(a, b).iter().any(about);
    let wall = graph.wall(a, b, true).filter(|_| !is_clean);
    let sources = if graph.is_outside(a) {
        Walk::at(a)
    } else {
        graph.walk(a, true, Level::Open)
    };
    let mut cut_off = before.cut_off || beyond.cut_off || sources.cut_off;
    let targets: Vec<usize> = beyond.steps.iter().map(|s| s.node).chain([b]).collect();
    let count = |walk: &Walk| {
        let free = |n: usize| wall.is_none() && graph.wall(walk.start, n, false).is_none();
        let new = targets.iter().filter(|n| new(walk, **n) && free(**n));
        // Nobody connects to himself.
        let other = |n: &usize| graph.size(*n) - usize::from(*n == walk.start);
        new.map(other).sum::<usize>() * graph.size(walk.start)
    };
    let mut pairs = count(&before) as u64;
    let mut others = Vec::new();
    for step in &sources.steps {
        if graph.is_spent() {
            cut_off = true;
            break;
        }
        let before = graph.walk(step.node, false, Level::Open);
        let gained = count(&before) as u64;
        if gained > 0 {
            pairs += gained;
            others.push(graph.group(step.node));
        }
    }
    let through = beyond.steps.iter().filter(|s| {
        let free = || wall.is_none() && graph.wall(a, s.node, false).is_none();
        s.node != a && new(&before, s.node) && free()
    });
    let through: Vec<_> = through.collect();
    let listed = through.iter().take(most);
    let listed: Vec<_> = listed.map(|s| graph.found(&beyond, s)).collect();
    Opened {
        from: graph.name(a),
        to: graph.name(b),
        service: text(service),
        known,
        more_through: through.len() - listed.len(),
        through: listed,
        more_others: others.len().saturating_sub(most),
        others: others.into_iter().take(most).collect(),
        pairs,
        wall,
        cut_off,
    }
}

/// Somebody who was reached.
#[derive(Clone, Copy, Debug)]
struct Step {
    node: usize,
    level: Level,
    /// From whom.
    via: usize,
}

/// Who was reached from somebody.
#[derive(Debug)]
struct Walk {
    start: usize,
    back: bool,
    steps: Vec<Step>,
    /// By node, its step.
    at: HashMap<usize, usize>,
    /// Those who are alike with the first one reach each other.
    itself: bool,
    cut_off: bool,
}

impl Walk {
    /// Nobody.
    fn at(start: usize) -> Self {
        Walk {
            start,
            back: false,
            steps: Vec::new(),
            at: HashMap::new(),
            itself: false,
            cut_off: false,
        }
    }

    fn has(&self, node: usize) -> bool {
        self.at.contains_key(&node)
    }

    /// Those on the way to somebody, himself first, and the first one last.
    fn way(&self, to: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(to), |n| {
            let step = self.at.get(n).and_then(|n| self.steps.get(*n));
            step.map(|step| step.via)
        })
    }

    fn reached(&mut self, step: Step) {
        self.at.insert(step.node, self.steps.len());
        self.steps.push(step);
    }
}

/// Whoever is alike.
#[derive(Debug, Default)]
struct Node {
    /// Positions; of the outside, none.
    workloads: Vec<usize>,
    /// Of the outside, who can be there, and of each an address.
    parties: Vec<Party>,
    addrs: Vec<Addr>,
}

/// Something that may be opened.
#[derive(Debug)]
struct Judged {
    piece: Piece,
    how: How,
    /// It carries nothing over, so walls do not mind.
    clean: bool,
}

impl Judged {
    fn level(&self, wall: bool) -> Option<Level> {
        match (wall && !self.clean, self.how) {
            (_, How::No) => None,
            (true, _) => Some(Level::Walled),
            (false, How::Ask) => Some(Level::Ask),
            (false, _) => Some(Level::Open),
        }
    }
}

struct Graph<'a> {
    world: World<'a>,
    links: Links<'a>,
    nodes: Vec<Node>,
    /// By workload.
    node_of: Vec<usize>,
    /// Answers that stand, by nodes.
    answers: HashMap<(usize, usize), Vec<Standing>>,
    /// Pairs that walls were asked about.
    asked: Cell<u64>,
}

impl<'a> Graph<'a> {
    /// Workloads of `own` are told apart from all others.
    fn new(world: World<'a>, own: &[End]) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        let mut parties: Vec<Vec<Party>> = Vec::new();
        let mut node_of = Vec::new();
        let mut known = HashMap::new();
        let answers = world.answers.iter();
        let apart: BTreeSet<usize> = answers
            .flat_map(|a| [a.from, a.to])
            .chain(own.iter().copied())
            .filter_map(|end| match end {
                End::Workload(n) => Some(n),
                End::Outside(_) => None,
            })
            .collect();
        for (n, party) in world.classifier.parties().iter().enumerate() {
            let number = world.apart.get(n).copied().unwrap_or_default();
            let alone = apart.contains(&n).then_some(n);
            let at = *known.entry((*party, number, alone)).or_insert(nodes.len());
            if at == nodes.len() {
                nodes.push(Node::default());
                parties.push(vec![*party]);
            }
            node_of.push(at);
            let node = nodes.get_mut(at);
            node.into_iter().for_each(|node| node.workloads.push(n));
        }
        let outside = outside(world.policy, world.classifier).into_iter();
        let (outside, addrs): (Vec<Party>, _) = outside.unzip();
        parties.push(outside.clone());
        nodes.push(Node {
            parties: outside,
            addrs,
            ..Node::default()
        });
        let mut graph = Graph {
            links: Links::new(world.policy, world.classifier, parties.into_iter()),
            world,
            nodes,
            node_of,
            answers: HashMap::new(),
            asked: Cell::new(0),
        };
        for answer in world.answers {
            let pair = (graph.node(answer.from), graph.node(answer.to));
            graph.answers.entry(pair).or_default().push(*answer);
        }
        graph
    }

    fn node(&self, end: End) -> usize {
        let outside = self.nodes.len() - 1;
        match end {
            End::Workload(n) => self.node_of.get(n).copied().unwrap_or(outside),
            End::Outside(_) => outside,
        }
    }

    fn is_outside(&self, node: usize) -> bool {
        node + 1 == self.nodes.len()
    }

    fn is_spent(&self) -> bool {
        self.links.asked() + self.asked.get() > BUDGET
    }

    fn end(&self, node: usize) -> End {
        let first = self.nodes.get(node).and_then(|n| n.workloads.first());
        first.map_or(End::Outside(None), |n| End::Workload(*n))
    }

    /// What one may open to another.
    fn judge(&self, from: usize, to: usize) -> Vec<Judged> {
        let mut all = Vec::new();
        for piece in self.links.pieces(from, to) {
            let asking = self.world.classifier.asking(&piece.judgement);
            let asks = asking.is_some_and(|asking| asking.answer);
            let how = match (asks, piece.judgement.notify) {
                (true, _) => How::Ask,
                (false, true) => How::Notify,
                (false, false) => How::Allow,
            };
            let clean = self.is_clean(&piece, to);
            if asks {
                let answers = self.answers.get(&(from, to)).into_iter().flatten();
                let (a, b) = piece.parties;
                let answers =
                    answers.filter(|s| self.means(s.from, (from, a)) && self.means(s.to, (to, b)));
                let about = answers.filter_map(|a| Some((part(&piece, a.service)?, a.yes)));
                all.extend(about.map(|(piece, yes)| Judged {
                    piece,
                    how: if yes { How::Yes } else { How::No },
                    clean,
                }));
            }
            all.push(Judged { piece, how, clean });
        }
        all
    }

    /// Whether an end of an answer is this party of a node.
    fn means(&self, end: End, (node, party): (usize, usize)) -> bool {
        let party = self.nodes.get(node).and_then(|n| n.parties.get(party));
        match (end, party) {
            (End::Outside(Some(ip)), Some(party)) => {
                let set = self.world.classifier.outside(party.tenant, &ip.into());
                set == party.set
            }
            _ => true,
        }
    }

    /// Whether what is opened carries nothing over.
    fn is_clean(&self, piece: &Piece, to: usize) -> bool {
        let policy = self.world.policy;
        let workload = match self.end(to) {
            End::Workload(n) => self.world.workloads.get(n),
            End::Outside(_) => None,
        };
        let addr = self
            .nodes
            .get(to)
            .and_then(|n| n.addrs.get(piece.parties.1));
        let service = piece.service();
        let valid = policy
            .sanitised
            .iter()
            .filter(|s| s.expires >= self.world.today);
        let mut serving = valid.filter(|s| s.serves(service));
        serving.any(|s| s.served_by(policy, workload, addr.copied()))
    }

    /// Why a wall stands between two, who are next to each other or on the same way.
    fn wall(&self, a: usize, b: usize, next: bool) -> Option<String> {
        let walls = self.world.walls?;
        self.asked.set(self.asked.get() + 1);
        walls(self.end(a), self.end(b), next)
    }

    /// The same between somebody and all those on a walk's way to the one next to him.
    fn wall_on(&self, walk: &Walk, via: usize, next: usize) -> Option<String> {
        self.world.walls?;
        let wall = self.wall(via, next, true);
        let before = || {
            walk.way(via)
                .skip(1)
                .find_map(|n| self.wall(n, next, false))
        };
        wall.or_else(before)
    }

    /// Everybody who is reached from somebody, as far as `most` goes; each pair is judged once.
    fn walk(&self, start: usize, back: bool, most: Level) -> Walk {
        let mut walk = Walk {
            back,
            ..Walk::at(start)
        };
        let mut queue = VecDeque::from([(start, Level::Open)]);
        let mut later: VecDeque<Step> = VecDeque::new();
        let mut walled: Vec<Step> = Vec::new();
        loop {
            while let Some((n, level)) = queue.pop_front() {
                if n != start && self.is_outside(n) {
                    continue;
                }
                for next in self.links.near(n, back) {
                    let is_start = next == start && (walk.itself || self.size(start) == 1);
                    if is_start || walk.has(next) {
                        continue;
                    }
                    if self.is_spent() {
                        walk.cut_off = true;
                        return walk;
                    }
                    let (from, to) = if back { (next, n) } else { (n, next) };
                    let judged = self.judge(from, to);
                    if judged.is_empty() {
                        continue;
                    }
                    let wall = self.wall_on(&walk, n, next).is_some();
                    let Some(found) = judged.iter().filter_map(|j| j.level(wall)).min() else {
                        continue;
                    };
                    let step = Step {
                        node: next,
                        level: found.max(level),
                        via: n,
                    };
                    match found {
                        _ if next == start => walk.itself |= step.level == Level::Open,
                        _ if found > most => {}
                        Level::Walled => walled.push(step),
                        _ if step.level == level => {
                            walk.reached(step);
                            queue.push_back((next, level));
                        }
                        _ => later.push_back(step),
                    }
                }
            }
            // Only when all that is open has been seen is anybody behind a question.
            let Some(step) = later.pop_front() else {
                break;
            };
            if !walk.has(step.node) {
                walk.reached(step);
                queue.push_back((step.node, step.level));
            }
        }
        for step in walled {
            if !walk.has(step.node) {
                walk.reached(step);
            }
        }
        walk
    }

    fn size(&self, node: usize) -> usize {
        self.nodes.get(node).map_or(0, |n| n.workloads.len().max(1))
    }

    fn workload(&self, n: usize) -> String {
        let workload = self.world.workloads.get(n);
        let tenant = workload.and_then(|w| self.world.policy.tenant_name(w.tenant));
        qualified(tenant.unwrap_or_default(), workload.map_or("", |w| &w.name))
    }

    fn group(&self, node: usize) -> Group {
        let workloads = self.nodes.get(node).map_or(&[][..], |n| &n.workloads);
        let names: Vec<_> = workloads
            .iter()
            .take(NAMES)
            .map(|n| self.workload(*n))
            .collect();
        Group {
            names: if names.is_empty() {
                vec!["outside".to_owned()]
            } else {
                names
            },
            size: self.size(node),
        }
    }

    fn name(&self, node: usize) -> String {
        self.group(node).names.swap_remove(0)
    }

    fn found(&self, walk: &Walk, step: &Step) -> Found {
        let (from, to) = if walk.back {
            (step.node, step.via)
        } else {
            (step.via, step.node)
        };
        let way = walk.way(step.via).filter(|n| *n != walk.start);
        let mut through: Vec<_> = way.map(|n| self.name(n)).collect();
        if !walk.back {
            through.reverse();
        }
        Found {
            who: self.group(step.node),
            level: step.level,
            through,
            by: self.grants(from, to, self.wall_on(walk, step.via, step.node).as_ref()),
        }
    }

    fn grants(&self, from: usize, to: usize, wall: Option<&String>) -> Vec<Grant> {
        type Key = (RuleId, Option<RuleId>, How, Vec<String>, bool);
        let mut by: BTreeMap<Key, Cells> = BTreeMap::new();
        for judged in self.judge(from, to) {
            let judgement = judged.piece.judgement;
            let Why::Rule(rule) = judgement.why else {
                continue;
            };
            let outside = self.outside_of(rule, (from, to), &judged.piece);
            let key = (rule, judgement.also, judged.how, outside, judged.clean);
            by.entry(key).or_default().add(&judged.piece);
        }
        by.into_iter()
            .map(|((rule, also, how, outside, clean), cells)| Grant {
                rule: rules(self.world.classifier, rule, also),
                how,
                service: cells.services(),
                outside,
                wall: wall.filter(|_| !clean).cloned(),
            })
            .collect()
    }

    /// The segments outside that a rule means, where one of the two is there.
    fn outside_of(&self, rule: RuleId, (from, to): (usize, usize), piece: &Piece) -> Vec<String> {
        let policy = self.world.policy;
        let written = self.world.classifier.rule_written(rule);
        let Some(rule) = written.and_then(|n| policy.rules.get(n as usize)) else {
            return Vec::new();
        };
        let of = |node: usize, party: usize, named: &[SegmentRef]| {
            let addr = self.nodes.get(node).and_then(|n| n.addrs.get(party))?;
            let ip = addr.to_ip();
            let holds = |s: &&SegmentRef| {
                let segment = policy.segment(&rule.tenant, s);
                segment.is_some_and(|s| s.cidr.iter().any(|c| c.contains(ip)))
            };
            Some(
                named
                    .iter()
                    .filter(holds)
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
            )
        };
        let (a, b) = piece.parties;
        let found = of(from, a, &rule.from).or_else(|| of(to, b, &rule.to));
        found.unwrap_or_default()
    }
}

fn rules(classifier: &Classifier, rule: RuleId, also: Option<RuleId>) -> String {
    let name = classifier.rule_name(rule);
    also.map_or_else(
        || name.to_owned(),
        |also| format!("{} and {name}", classifier.rule_name(also)),
    )
}

#[cfg(test)]
mod tests;
