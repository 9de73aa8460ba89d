//! Who is kept from whom at one moment, for whoever has more time than the control thread.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};

use super::book::{Book, Instance, Model, Pair};
use crate::datapath::snapshot::AttachmentId;
use crate::policy::model::Wall;

/// What those carry who are linked.
#[derive(Debug, Default)]
struct Group {
    carries: BTreeSet<String>,
    subject: bool,
}

/// One wall, or a wall within one transaction.
#[derive(Debug)]
struct Divided {
    name: String,
    wall: Wall,
    /// By attachment, its group.
    of: HashMap<AttachmentId, usize>,
    groups: HashMap<usize, Group>,
    /// Of a transaction: whose connections count.
    only: Option<HashSet<AttachmentId>>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(in crate::control) struct Apart(Vec<Divided>);

impl Apart {
    /// As things are, with those linked who are.
    pub(super) fn new(book: &Book, model: &Model, links: &[Pair]) -> Self {
        let divided = |instance: &Instance| {
            let joined = instance.joined(links);
            let mut groups: HashMap<usize, Group> = HashMap::new();
            for (n, carries, subject) in instance.carrying(book) {
                let group = groups.entry(joined.root(n)).or_default();
                group.carries.extend(carries);
                group.subject |= subject;
            }
            let of = instance.of.iter();
            Divided {
                name: instance.name.clone(),
                wall: instance.wall.clone(),
                of: of.map(|(id, n)| (*id, joined.root(*n))).collect(),
                groups,
                only: instance.only.clone(),
            }
        };
        Apart(model.instances.iter().map(divided).collect())
    }

    /// Whether there are no walls.
    pub(in crate::control) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why two cannot be linked, if they cannot: directly, or else through others.
    pub(in crate::control) fn between(&self, (a, b): Pair, directly: bool) -> Option<String> {
        self.0.iter().find_map(|divided| {
            let [x, y] = [a, b].map(|id| divided.groups.get(divided.of.get(&id)?));
            let (x, y) = (x?, y?);
            if let Some(only) = &divided.only {
                // A transaction's stages hand over to each other.
                if !directly {
                    return None;
                }
                let counts = only.contains(&a) || only.contains(&b);
                if !counts || !(x.subject || y.subject) {
                    return None;
                }
            }
            let all: Vec<_> = x.carries.union(&y.carries).collect();
            let conflict = |a: &str| all.iter().find(|b| divided.wall.conflict(a, b));
            let (a, b) = all.iter().find_map(|a| Some((a, conflict(a)?)))?;
            Some(format!("{}: {a} and {b}", divided.name))
        })
    }

    /// Of those who have the same number, [`Apart::between`] says the same.
    pub(in crate::control) fn class(&self, id: AttachmentId) -> u64 {
        let mut hasher = DefaultHasher::new();
        for divided in &self.0 {
            let group = divided.of.get(&id).and_then(|n| divided.groups.get(n));
            group.map(|g| (&g.carries, g.subject)).hash(&mut hasher);
            let counts = divided.only.as_ref().map(|only| only.contains(&id));
            counts.hash(&mut hasher);
        }
        hasher.finish()
    }
}
