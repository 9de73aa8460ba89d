//! Who carries what, and what a pass between two would mean. Pure: no clock, no data path, no ledger.
//!
//! *Carrying.* Somebody carries the sides he is part of and those he is bound to. Payload goes both ways and further: all who
//! are linked by live connections carry the same. So a pass between two is weighed by everything that all who would be linked
//! by it carry: no two sides of it may be in conflict, and what one of them does not carry yet he will.
//!
//! *One who is several.* Workloads that share a key (a tag, a volume) are one party.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::super::attachments::Attachments;
use super::super::state::Desired;
use super::super::validate;
use crate::datapath::passes::{Clean, Walls};
use crate::datapath::snapshot::AttachmentId;
use crate::policy::model::{Per, Wall, qualified};
use crate::policy::walls::Key;

/// Two who are linked, or want to be; the smaller number first.
pub(super) type Pair = (AttachmentId, AttachmentId);

/// A side that somebody carries or shall.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::control) struct Fact {
    /// The wall; of a transaction, followed by a space and its name.
    pub(in crate::control) wall: String,
    pub(in crate::control) who: Key,
    pub(in crate::control) side: String,
}

/// How firmly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hold {
    /// Payload has passed.
    pub(super) committed: bool,
    /// It is on disk that it is reserved.
    pub(super) durable: bool,
    /// Reservations that it is part of.
    pub(super) holders: usize,
    /// Since when, wall clock.
    pub(super) since_ns: i64,
    /// The connection that was its first.
    pub(super) connection: String,
}

/// Why two cannot be linked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) struct Conflict {
    pub(in crate::control) wall: String,
    /// One who would carry both: a subject, where there is one.
    pub(in crate::control) who: Key,
    pub(in crate::control) sides: [String; 2],
}

/// An open transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) struct Transaction {
    /// Its wall, by its qualified name.
    pub(in crate::control) wall: String,
    pub(in crate::control) name: String,
    /// Workloads whose connections are part of it, by their qualified names.
    pub(in crate::control) workloads: BTreeSet<String>,
}

impl Transaction {
    /// What its bindings are kept under. No name holds a space.
    pub(super) fn instance(&self) -> String {
        format!("{} {}", self.wall, self.name)
    }
}

/// Somebody, in the eyes of one wall.
#[derive(Clone, Debug, Default)]
struct Party {
    keys: Vec<Key>,
    /// The sides it is part of.
    own: BTreeSet<String>,
    /// It is bound by the wall.
    subject: bool,
}

impl Party {
    /// What its bindings are written under: what it shares with others, if it does.
    fn lasting(&self) -> impl Iterator<Item = &Key> {
        let shared = self
            .keys
            .iter()
            .any(|k| matches!(k, Key::Tag(_) | Key::Volume(_)));
        let alone = move |k: &&Key| !shared || !matches!(k, Key::Workload(_));
        self.keys.iter().filter(alone)
    }
}

/// A wall, or a wall within one open transaction.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) wall: Wall,
    parties: Vec<Party>,
    /// By attachment, its party.
    pub(super) of: HashMap<AttachmentId, usize>,
    /// Of a transaction: whose connections count.
    pub(super) only: Option<HashSet<AttachmentId>>,
}

/// The walls as they are in force, and whom they mean.
#[derive(Debug, Default)]
pub(in crate::control) struct Model {
    pub(super) instances: Vec<Instance>,
    pub(super) walls: Option<Walls>,
    /// Behind an uplink.
    pub(super) outside: HashSet<AttachmentId>,
    /// When something is sanitised no longer, in seconds since 1970.
    pub(super) expires_s: Option<u64>,
}

impl Model {
    /// From what is desired. `now_s` is the wall clock: what is sanitised no longer counts for nothing.
    pub(super) fn new(
        desired: &Desired,
        attachments: &Attachments,
        open: &[Transaction],
        now_s: u64,
    ) -> Self {
        let policy = &desired.policy;
        if policy.walls.is_empty() {
            return Model::default();
        }
        let mut outside = HashSet::new();
        let mut residents = Vec::new();
        let mut facts = validate::workloads(desired).into_iter();
        for port in &desired.ports {
            if port.uplink {
                outside.extend(attachments.outside_of(port));
            }
            for workload in &port.workloads {
                let fact = facts.next();
                residents.extend(attachments.of(port, workload).zip(fact));
            }
        }
        let mut instances = Vec::new();
        for wall in &policy.walls {
            let mut instance = Instance {
                name: wall.qualified(),
                wall: wall.clone(),
                parties: Vec::new(),
                of: HashMap::new(),
                only: None,
            };
            for (id, workload) in &residents {
                let party = Party {
                    keys: wall.keys(policy, workload),
                    own: wall.sides_of(policy, workload).into_iter().collect(),
                    subject: wall.binds(policy, workload),
                };
                instance.add(*id, party);
            }
            for id in &outside {
                let party = Party {
                    keys: vec![Key::Outside],
                    own: wall.sides_of_the_outside(policy).into_iter().collect(),
                    subject: false,
                };
                instance.add(*id, party);
            }
            match wall.per {
                Per::Ever => instances.push(instance),
                Per::Transaction => {
                    let open = open.iter().filter(|t| t.wall == instance.name);
                    instances.extend(open.map(|transaction| {
                        let names = residents.iter().filter(|(_, w)| {
                            let tenant = policy.tenant_name(w.tenant).unwrap_or_default();
                            transaction.workloads.contains(&qualified(tenant, &w.name))
                        });
                        Instance {
                            name: transaction.instance(),
                            only: Some(names.map(|(id, _)| *id).collect()),
                            ..instance.clone()
                        }
                    }));
                }
            }
        }
        let ends = policy.sanitised.iter().map(|s| s.expires.end_s());
        let expires_s = ends.filter(|end| *end > now_s).min();
        let clean = policy.sanitised.iter();
        let clean = clean.filter(|s| now_s < s.expires.end_s());
        let clean: Vec<_> = clean
            .map(|s| {
                let serves = residents.iter();
                let serves = serves.filter(|(_, w)| policy.refers_to(&s.tenant, &s.segment, w));
                let owner = s.segment.tenant.as_deref().unwrap_or(&s.tenant);
                let segments = policy.segments.iter();
                let mut segment =
                    segments.filter(|g| (&*g.tenant, &g.name) == (owner, &s.segment.name));
                Clean {
                    tenant: policy.tenant_id(owner).unwrap_or_default(),
                    attachments: serves.map(|(id, _)| *id).collect(),
                    cidr: segment.next().map_or_else(Vec::new, |g| g.cidr.clone()),
                    service: s.service.clone(),
                }
            })
            .collect();
        let mut walls = Walls {
            definition: 0,
            clean,
        };
        walls.definition = definition(&instances, &walls);
        Model {
            instances,
            walls: Some(walls),
            outside,
            expires_s,
        }
    }

    /// What passes are given for; 0 without walls.
    pub(super) fn definition(&self) -> u64 {
        self.walls.as_ref().map_or(0, |walls| walls.definition)
    }
}

/// A number for all that a pass depends on.
fn definition(instances: &[Instance], walls: &Walls) -> u64 {
    let mut hasher = DefaultHasher::new();
    for instance in instances {
        (&instance.name, &instance.wall).hash(&mut hasher);
        let mut members: Vec<_> = instance.of.iter().collect();
        members.sort_unstable();
        for (id, party) in members {
            let only = instance.only.as_ref().map(|only| only.contains(id));
            (id, only).hash(&mut hasher);
            if let Some(party) = instance.parties.get(*party) {
                (&party.keys, &party.own, party.subject).hash(&mut hasher);
            }
        }
    }
    for clean in &walls.clean {
        let mut who: Vec<_> = clean.attachments.iter().collect();
        who.sort_unstable();
        (who, &clean.service, format!("{:?}", clean.cidr)).hash(&mut hasher);
    }
    // 0 stands for no walls.
    hasher.finish().max(1)
}

/// Who is linked to whom.
pub(super) struct Links(Vec<usize>);

impl Links {
    pub(super) fn root(&self, mut at: usize) -> usize {
        while let Some(&up) = self.0.get(at)
            && up != at
        {
            at = up;
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(up) = self.0.get_mut(b) {
            *up = a;
        }
    }
}

impl Instance {
    /// Adds somebody, who is one with those who have a key of his.
    fn add(&mut self, id: AttachmentId, party: Party) {
        let same = |p: &Party| p.keys.iter().any(|k| party.keys.contains(k));
        let mut found = (0..self.parties.len()).filter(|n| self.parties.get(*n).is_some_and(same));
        let Some(first) = found.next() else {
            self.of.insert(id, self.parties.len());
            self.parties.push(party);
            return;
        };
        // He may bring together several who were apart.
        let others: Vec<_> = found.collect();
        let mut joined = vec![party];
        for n in &others {
            joined.extend(self.parties.get_mut(*n).map(std::mem::take));
        }
        for to in self.of.values_mut().filter(|to| others.contains(to)) {
            *to = first;
        }
        self.of.insert(id, first);
        if let Some(into) = self.parties.get_mut(first) {
            for party in joined {
                into.keys.extend(party.keys);
                into.own.extend(party.own);
                into.subject |= party.subject;
            }
            into.keys.sort();
            into.keys.dedup();
        }
    }

    /// Whether a connection between two counts.
    fn counts(&self, (a, b): Pair) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.contains(&a) || only.contains(&b))
    }

    /// What a party carries; `firmly` leaves out what is only reserved.
    fn carries(&self, book: &Book, party: &Party, firmly: bool) -> BTreeSet<String> {
        let mut sides = party.own.clone();
        for key in &party.keys {
            let held = book.held.get(key).and_then(|of| of.get(&self.name));
            let held = held.into_iter().flatten();
            let firm = held.filter(|(_, hold)| !firmly || hold.committed);
            sides.extend(firm.map(|(side, _)| side.clone()));
            // Another wall may know what this one wants to know.
            sides.extend(book.history(self, key));
        }
        sides
    }

    /// Who is one by these links.
    pub(super) fn joined(&self, links: &[Pair]) -> Links {
        let mut joined = Links((0..self.parties.len()).collect());
        // A transaction's stages hand over to each other, and what is kept apart is what they use.
        let further: &[Pair] = if self.only.is_some() { &[] } else { links };
        for (a, b) in further {
            if let (Some(a), Some(b)) = (self.of.get(a), self.of.get(b)) {
                joined.join(*a, *b);
            }
        }
        joined
    }

    /// What each party carries, and whether it is bound by the wall.
    pub(super) fn carrying(
        &self,
        book: &Book,
    ) -> impl Iterator<Item = (usize, BTreeSet<String>, bool)> {
        let parties = self.parties.iter().enumerate();
        parties.map(|(n, p)| (n, self.carries(book, p, false), p.subject))
    }

    /// What somebody is bound to, beside what he is part of.
    #[cfg(feature = "manager")]
    pub(super) fn bound(&self, book: &Book, id: AttachmentId) -> BTreeSet<String> {
        let party = self.of.get(&id).and_then(|n| self.parties.get(*n));
        let sides = party.map(|p| (self.carries(book, p, false), &p.own));
        sides.map_or_else(BTreeSet::new, |(sides, own)| &sides - own)
    }

    /// Those who are linked with a pair, by these links.
    fn linked(&self, pair: Pair, links: &[Pair]) -> Vec<usize> {
        let ends = |pair: &Pair| Some((*self.of.get(&pair.0)?, *self.of.get(&pair.1)?));
        let Some((a, b)) = ends(&pair) else {
            return Vec::new();
        };
        let mut joined = self.joined(links);
        joined.join(a, b);
        let root = joined.root(a);
        (0..self.parties.len())
            .filter(|n| joined.root(*n) == root)
            .collect()
    }

    /// Those who are linked with each other, group by group; in a transaction, each subject with whom it is connected to.
    fn groups(&self, links: &[Pair]) -> Vec<Vec<usize>> {
        let links = links.iter().filter(|pair| self.counts(**pair));
        let links: Vec<Pair> = links.copied().collect();
        if self.only.is_none() {
            return links
                .iter()
                .map(|pair| self.linked(*pair, &links))
                .collect();
        }
        let subject = |n: &usize| self.parties.get(*n).is_some_and(|p| p.subject);
        let subjects = (0..self.parties.len()).filter(subject);
        let around = subjects.map(|n| {
            let near = links.iter().map(|pair| self.linked(*pair, &[]));
            let near = near.filter(|both| both.contains(&n)).flatten();
            let mut group = vec![n];
            // What another subject is connected to is its own affair.
            group.extend(near.filter(|other| !subject(other)));
            group
        });
        around.collect()
    }

    /// Two of these sides that do not go together.
    fn clash(&self, all: &BTreeSet<String>) -> Option<[String; 2]> {
        let other = |a: &String| all.iter().find(|b| self.wall.conflict(a, b)).cloned();
        all.iter().find_map(|a| Some([a.clone(), other(a)?]))
    }

    /// What is to be carried when a pair is linked, that is not carried firmly yet.
    fn weigh(&self, book: &Book, pair: Pair, links: &[Pair]) -> Result<Vec<Fact>, Conflict> {
        let linked = self.linked(pair, links);
        let parties = linked.iter().filter_map(|n| self.parties.get(*n));
        let parties: Vec<_> = parties.collect();
        let subjects = parties.iter().any(|p| p.subject);
        if !self.counts(pair) || self.only.is_some() && !subjects {
            return Ok(Vec::new());
        }
        let mut all = BTreeSet::new();
        for party in &parties {
            all.extend(self.carries(book, party, false));
        }
        if let Some(sides) = self.clash(&all) {
            return Err(Conflict {
                wall: self.name.clone(),
                who: whom(&parties, &self.of, pair, &self.parties),
                sides,
            });
        }
        let mut facts = Vec::new();
        for party in parties {
            if self.only.is_some() && !party.subject {
                continue;
            }
            let firm = self.carries(book, party, true);
            for side in all.difference(&firm) {
                facts.extend(party.lasting().map(|who| Fact {
                    wall: self.name.clone(),
                    who: who.clone(),
                    side: side.clone(),
                }));
            }
        }
        Ok(facts)
    }

    /// Everybody with his names and what he is.
    pub(super) fn everybody(&self) -> impl Iterator<Item = (&[Key], bool, &BTreeSet<String>)> {
        self.parties.iter().map(|p| (&*p.keys, p.subject, &p.own))
    }

    /// What somebody with these keys carries.
    pub(super) fn carried_by(&self, book: &Book, keys: &[Key]) -> BTreeSet<String> {
        let mut parties = self.parties.iter();
        let party = parties.find(|p| keys.iter().any(|k| p.keys.contains(k)));
        let stranger = || Party {
            keys: keys.to_vec(),
            ..Party::default()
        };
        self.carries(book, &party.cloned().unwrap_or_else(stranger), false)
    }

    /// Whoever is meant by a key: all of his keys, or, when he is not here, that one.
    pub(super) fn keys_of(&self, key: &Key) -> Vec<Key> {
        let mut parties = self.parties.iter();
        let party = parties.find(|p| p.keys.contains(key));
        party.map_or_else(|| vec![key.clone()], |p| p.keys.clone())
    }
}

/// Whom to name: a subject of the pair, a subject, or whoever is there.
fn whom(
    linked: &[&Party],
    of: &HashMap<AttachmentId, usize>,
    pair: Pair,
    parties: &[Party],
) -> Key {
    let ends = [pair.0, pair.1].map(|id| parties.get(*of.get(&id)?));
    let near = ends.into_iter().flatten();
    let all = near.chain(linked.iter().copied());
    let best = all
        .clone()
        .find(|p| p.subject)
        .or_else(|| all.clone().next());
    let key = best.and_then(|p| p.lasting().next());
    key.cloned().unwrap_or(Key::Outside)
}

/// What is known of everybody.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// By whom and wall, sides.
    held: HashMap<Key, BTreeMap<String, BTreeMap<String, Hold>>>,
}

impl Book {
    /// What somebody carries by what other walls know: sides of the same name are the same.
    fn history(&self, instance: &Instance, key: &Key) -> Vec<String> {
        if instance.only.is_some() {
            return Vec::new();
        }
        let known = self.held.get(key).into_iter().flatten();
        // What a transaction knew ends with it.
        let others = known.filter(|(wall, _)| **wall != instance.name && !wall.contains(' '));
        let firm = others.flat_map(|(_, sides)| sides.iter().filter(|(_, hold)| hold.committed));
        let sides = instance.wall.datasets.iter().map(|d| instance.wall.side(d));
        let sides: Vec<_> = sides.collect();
        let names = firm.map(|(side, _)| side.clone());
        names.filter(|side| sides.contains(side)).collect()
    }

    /// What a pass between two would mean, at all walls.
    pub(super) fn weigh(
        &self,
        model: &Model,
        pair: Pair,
        links: &[Pair],
    ) -> Result<Vec<Fact>, Conflict> {
        let mut facts = Vec::new();
        for instance in &model.instances {
            facts.extend(instance.weigh(self, pair, links)?);
        }
        facts.sort();
        facts.dedup();
        Ok(facts)
    }

    /// Those who are on both sides, or became it: each with what he must be said to carry.
    pub(super) fn breaches(&self, model: &Model, links: &[Pair]) -> Vec<(Conflict, Vec<Fact>)> {
        let mut found = Vec::new();
        for instance in &model.instances {
            let mut seen: HashSet<usize> = HashSet::new();
            for group in instance.groups(links) {
                if group.iter().any(|n| !seen.insert(*n)) && instance.only.is_none() {
                    continue;
                }
                let parties = group.iter().filter_map(|n| instance.parties.get(*n));
                let carried = parties.clone().map(|p| instance.carries(self, p, false));
                let all: BTreeSet<String> = carried.flatten().collect();
                let Some(sides) = instance.clash(&all) else {
                    continue;
                };
                // In a transaction, only what its stages use is bound.
                let bound = parties.filter(|p| instance.only.is_none() || p.subject);
                let facts = bound.flat_map(|p| {
                    let new = sides.iter().filter(|side| !p.own.contains(*side));
                    new.flat_map(|side| {
                        p.lasting().map(|who| Fact {
                            wall: instance.name.clone(),
                            who: who.clone(),
                            side: side.clone(),
                        })
                    })
                });
                let facts: Vec<_> = facts.collect();
                let who = facts.first().map_or(Key::Outside, |fact| fact.who.clone());
                let conflict = Conflict {
                    wall: instance.name.clone(),
                    who,
                    sides,
                };
                found.push((conflict, facts));
            }
        }
        found
    }

    pub(super) fn get(&self, fact: &Fact) -> Option<&Hold> {
        self.held.get(&fact.who)?.get(&fact.wall)?.get(&fact.side)
    }

    pub(super) fn get_mut(&mut self, fact: &Fact) -> Option<&mut Hold> {
        let walls = self.held.get_mut(&fact.who)?;
        walls.get_mut(&fact.wall)?.get_mut(&fact.side)
    }

    pub(super) fn put(&mut self, fact: &Fact, hold: Hold) {
        let walls = self.held.entry(fact.who.clone()).or_default();
        let sides = walls.entry(fact.wall.clone()).or_default();
        sides.insert(fact.side.clone(), hold);
    }

    pub(super) fn remove(&mut self, fact: &Fact) {
        let Some(walls) = self.held.get_mut(&fact.who) else {
            return;
        };
        if let Some(sides) = walls.get_mut(&fact.wall) {
            sides.remove(&fact.side);
        }
        walls.retain(|_, sides| !sides.is_empty());
        if walls.is_empty() {
            self.held.remove(&fact.who);
        }
    }

    /// Forgets all that is bound by one wall, or in one transaction.
    pub(super) fn forget(&mut self, wall: &str) {
        self.held.retain(|_, walls| {
            walls.remove(wall);
            !walls.is_empty()
        });
    }

    /// Forgets what somebody is bound to; whether he was.
    pub(super) fn unbind(&mut self, wall: &str, who: &Key) -> bool {
        let walls = self.held.get_mut(who);
        walls.is_some_and(|walls| walls.remove(wall).is_some())
    }

    /// Everything, in order.
    pub(super) fn facts(&self) -> Vec<(Fact, &Hold)> {
        let each = self.held.iter();
        let each = each.flat_map(|(who, of)| of.iter().map(move |(wall, s)| (who, wall, s)));
        let each = each.flat_map(|(who, wall, sides)| {
            sides.iter().map(move |(side, hold)| {
                let fact = Fact {
                    wall: wall.clone(),
                    who: who.clone(),
                    side: side.clone(),
                };
                (fact, hold)
            })
        });
        let mut all: Vec<_> = each.collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
