//! What people are shown of walls, and transactions, which they begin and end.

use std::collections::{BTreeMap, BTreeSet};

use super::super::api::{
    ApiError, Applied, BindingInfo, ErrorCode, TransactionInfo, WallCarrier, WallInfo,
};
use super::super::apply::Control;
#[cfg(feature = "manager")]
use super::Walls;
use super::book::{Pair, Transaction};
use super::{Apart, Mark, pair};
#[cfg(feature = "manager")]
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::snapshot::Owner;
use crate::packet::Addr;
use crate::policy::bad_name;
use crate::policy::model::Per;
use crate::policy::walls::Key;
use crate::policy::{Service, TenantId};

/// Somebody who may be freed of what a wall has bound him to.
#[derive(Debug)]
pub(in crate::control) struct Reset {
    /// Who.
    pub(in crate::control) key: Key,
    /// Of what, in words.
    pub(in crate::control) takes_away: String,
}

fn usage(text: String) -> ApiError {
    ApiError::new(ErrorCode::Usage, text)
}

#[cfg(feature = "manager")]
impl Walls {
    /// Sides that somebody is bound to, each as `wall/side`.
    pub(in crate::control) fn bound(&self, id: AttachmentId) -> Vec<String> {
        let instances = self.model.instances.iter();
        let sides = instances.flat_map(|instance| {
            let bound = instance.bound(&self.book, id).into_iter();
            let wall = instance.wall.qualified();
            bound.map(move |side| format!("{wall}/{side}"))
        });
        let sides: BTreeSet<_> = sides.collect();
        sides.into_iter().collect()
    }
}

impl Control {
    /// Every wall, with who is bound.
    pub(in crate::control) fn wall_infos(&self) -> Vec<WallInfo> {
        let walls = &self.desired.policy.walls;
        let facts = self.walls.book.facts();
        let infos = walls.iter().map(|wall| {
            let name = wall.qualified();
            let mut instances = self.walls.model.instances.iter();
            let model = instances.find(|i| i.wall.qualified() == name);
            let mut subjects = BTreeSet::new();
            let mut sides: BTreeMap<String, Vec<String>> = BTreeMap::new();
            sides.extend(wall.datasets.iter().map(|d| (wall.side(d), Vec::new())));
            for (keys, subject, own) in model.into_iter().flat_map(|m| m.everybody()) {
                let names = keys.iter().filter_map(|key| match key {
                    Key::Workload(name) => Some(name.clone()),
                    Key::Outside => Some("outside".to_owned()),
                    Key::Tag(_) | Key::Volume(_) => None,
                });
                let names: Vec<_> = names.collect();
                if subject {
                    subjects.extend(names.iter().cloned());
                }
                for side in own {
                    sides
                        .entry(side.clone())
                        .or_default()
                        .extend(names.iter().cloned());
                }
            }
            let of = |fact: &str| fact == name || fact.starts_with(&format!("{name} "));
            let bindings = facts.iter().filter(|(fact, _)| of(&fact.wall));
            WallInfo {
                per_transaction: wall.per == Per::Transaction,
                subjects: subjects.into_iter().collect(),
                sides,
                bindings: bindings
                    .map(|(fact, hold)| BindingInfo {
                        subject: fact.who.to_string(),
                        side: fact.side.clone(),
                        transaction: fact.wall.split_once(' ').map(|(_, t)| t.to_owned()),
                        committed: hold.committed,
                        since: since(hold.since_ns),
                        connection: hold.connection.clone(),
                    })
                    .collect(),
                name,
            }
        });
        infos.collect()
    }

    /// Whoever may carry a side, as people call him: a workload, or as `wall list` shows him.
    fn key_of(&self, who: &str) -> Result<Key, ApiError> {
        match who.parse() {
            Ok(key) => Ok(key),
            Err(_) => Ok(Key::Workload(self.resolve(who)?)),
        }
    }

    /// What somebody carries, and what he is kept from.
    pub(in crate::control) fn wall_explain(&self, who: &str) -> Result<Vec<WallCarrier>, ApiError> {
        let key = self.key_of(who)?;
        let instances = self.walls.model.instances.iter();
        let seen = instances.map(|instance| {
            let keys = instance.keys_of(&key);
            let carries = instance.carried_by(&self.walls.book, &keys);
            let sides = instance.wall.datasets.iter().map(|d| instance.wall.side(d));
            let clash = |side: &String| carries.iter().any(|c| instance.wall.conflict(c, side));
            WallCarrier {
                wall: instance.name.clone(),
                known_by: keys.iter().map(ToString::to_string).collect(),
                kept_from: sides.filter(clash).collect(),
                carries: carries.into_iter().collect(),
            }
        });
        Ok(seen.collect())
    }

    /// Who would be freed of what, if he were.
    pub(in crate::control) fn wall_reset(&self, wall: &str, who: &str) -> Result<Reset, ApiError> {
        let mut instances = self.walls.model.instances.iter();
        let instance = instances.find(|i| i.name == wall);
        let instance = instance.ok_or_else(|| {
            usage(format!(
                "there is no wall {wall}; `vswitch wall list` shows them"
            ))
        })?;
        let key = self.key_of(who)?;
        let sides = instance.carried_by(&self.walls.book, &instance.keys_of(&key));
        if sides.is_empty() {
            return Err(usage(format!("wall {wall} has bound {who} to nothing")));
        }
        let sides: Vec<_> = sides.into_iter().collect();
        let takes_away = format!("wall {wall}: {key} is free of {}", sides.join(", "));
        Ok(Reset { key, takes_away })
    }

    /// Who is linked, or is about to be.
    fn linked(&self) -> Vec<Pair> {
        let reserved = self.walls.reserved.keys().copied();
        let mut links = self.links();
        links.extend(reserved);
        links
    }

    /// Who is kept from whom now.
    pub(in crate::control) fn apart(&self) -> Apart {
        if self.walls.model.walls.is_none() {
            return Apart::default();
        }
        Apart::new(&self.walls.book, &self.walls.model, &self.linked())
    }

    /// Why a wall stands between two, if one does.
    pub(in crate::control) fn wall_between(
        &self,
        (from, to): (&Owner, &Owner),
        addr: Addr,
        service: Service,
    ) -> Option<String> {
        let walls = self.walls.model.walls.as_ref()?;
        let tenant: TenantId = to.party.tenant;
        let server = (to.attachment, to.outside.then_some(addr));
        if !walls.carries(tenant, server, service) {
            return None;
        }
        let links = self.linked();
        let both = pair(from.attachment, to.attachment);
        let conflict = self
            .walls
            .book
            .weigh(&self.walls.model, both, &links)
            .err()?;
        Some(format!(
            "wall {} stands between: {} would carry both {} and {}; `vswitch wall list` shows who is bound",
            conflict.wall, conflict.who, conflict.sides[0], conflict.sides[1]
        ))
    }

    pub(in crate::control) fn transaction_infos(&self) -> Vec<TransactionInfo> {
        let open = self.walls.open.iter();
        open.map(|t| TransactionInfo {
            name: t.name.clone(),
            wall: t.wall.clone(),
            workloads: t.workloads.iter().cloned().collect(),
        })
        .collect()
    }

    /// Records what somebody waits for; returns when it is on disk.
    fn mark_durably(&self, mark: &Mark<'_>) -> Result<(), ApiError> {
        let generation = self.shared.snapshots.generation();
        let marked = self.recorder.mark_durably(generation, mark);
        if marked.is_ok() {
            self.tell_wall(mark);
        }
        marked
            .map_err(|why| ApiError::new(ErrorCode::Refused, format!("it is not recorded: {why}")))
    }

    /// Opens a transaction: what these workloads are connected to from now on, and what they are already, is part of it.
    pub(in crate::control) fn transaction_begin(
        &mut self,
        name: &str,
        wall: &str,
        workloads: &[String],
    ) -> Result<Applied, ApiError> {
        if let Some(what) = bad_name(name) {
            return Err(usage(format!("transaction {name:?}: {what}")));
        }
        let mut walls = self.desired.policy.walls.iter();
        match walls.find(|w| w.qualified() == wall).map(|w| w.per) {
            Some(Per::Transaction) => {}
            Some(Per::Ever) => {
                let text = format!(
                    "wall {wall} has no transactions; `per = \"transaction\"` in the policy gives it some"
                );
                return Err(usage(text));
            }
            None => {
                return Err(usage(format!(
                    "there is no wall {wall}; `vswitch wall list` shows them"
                )));
            }
        }
        if workloads.is_empty() {
            return Err(usage("name a workload at least".to_owned()));
        }
        if self.walls.open.iter().any(|t| t.name == name) {
            let text = format!(
                "transaction {name} is open; `vswitch transaction list` shows those that are"
            );
            return Err(ApiError::new(ErrorCode::Refused, text));
        }
        let named = workloads.iter().map(|w| self.resolve(w));
        let transaction = Transaction {
            wall: wall.to_owned(),
            name: name.to_owned(),
            workloads: named.collect::<Result<_, _>>()?,
        };
        // What would be forgotten does not begin.
        self.mark_durably(&Mark::Begun(&transaction))?;
        self.walls.open.push(transaction);
        let mut applied = self.weigh_again()?;
        applied.changes.push(format!("transaction {name} is open"));
        Ok(applied)
    }

    /// Ends one: nobody is bound by it any more.
    pub(in crate::control) fn transaction_end(&mut self, name: &str) -> Result<Applied, ApiError> {
        let Some(at) = self.walls.open.iter().position(|t| t.name == name) else {
            let text = format!(
                "no transaction {name} is open; `vswitch transaction list` shows those that are"
            );
            return Err(usage(text));
        };
        if let Some(transaction) = self.walls.open.get(at) {
            // Nor does it end for those who ask, and go on when we were killed.
            self.mark_durably(&Mark::Ended(transaction))?;
        }
        let transaction = self.walls.open.remove(at);
        self.walls.book.forget(&transaction.instance());
        let mut applied = self.weigh_again()?;
        applied
            .changes
            .push(format!("transaction {name} has ended"));
        Ok(applied)
    }
}

/// The wall clock, to the second.
fn since(ns: i64) -> u64 {
    u64::try_from(ns / 1_000_000_000).unwrap_or(0)
}
