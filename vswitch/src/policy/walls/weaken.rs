//! What a change takes away from the walls there are: what two people must agree to.
//!
//! Only what walls were there before can be weakened. What a change adds to them, it adds.

use super::super::WorkloadFacts;
use super::super::model::{Policy, Segment, SegmentRef, qualified};
use super::{Binding, Key, Per, Sanitised, Wall};

/// A policy, and who there is.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// All workloads.
    pub workloads: &'a [WorkloadFacts],
}

impl<'a> State<'a> {
    fn workload(&self, like: &WorkloadFacts, of: &State<'_>) -> Option<&'a WorkloadFacts> {
        let name = |state: &State<'_>, w: &WorkloadFacts| {
            qualified(
                state.policy.tenant_name(w.tenant).unwrap_or_default(),
                &w.name,
            )
        };
        let wanted = name(of, like);
        self.workloads.iter().find(|w| name(self, w) == wanted)
    }

    fn name(&self, workload: &WorkloadFacts) -> String {
        let tenant = self.policy.tenant_name(workload.tenant);
        qualified(tenant.unwrap_or_default(), &workload.name)
    }
}

/// What `new` takes away from the walls of `old`, a line each; empty when it takes nothing. `bindings` are those that stand.
#[must_use]
pub fn weakenings(old: State<'_>, new: State<'_>, bindings: &[Binding]) -> Vec<String> {
    let mut lines = Vec::new();
    if old.policy.walls.is_empty() {
        return lines;
    }
    for wall in &old.policy.walls {
        let name = wall.qualified();
        let mut walls = new.policy.walls.iter();
        match walls.find(|w| w.qualified() == name) {
            Some(now) => {
                let change = Change {
                    old,
                    new,
                    wall,
                    now,
                    name,
                };
                change.definition(&mut lines);
                change.members(bindings, &mut lines);
            }
            None => lines.push(format!("wall {name} is removed, and what it bound is free")),
        }
    }
    renamed(old, new, bindings, &mut lines);
    sanitised(old, new, &mut lines);
    lines
}

/// A wall before and after.
struct Change<'a> {
    old: State<'a>,
    new: State<'a>,
    wall: &'a Wall,
    now: &'a Wall,
    name: String,
}

impl Change<'_> {
    /// What is written.
    fn definition(&self, lines: &mut Vec<String>) {
        let Change {
            old,
            new,
            wall,
            now,
            name,
        } = self;
        let ends = [
            ("subjects", &wall.subjects, &now.subjects),
            ("datasets", &wall.datasets, &now.datasets),
        ];
        for (key, before, after) in ends {
            for segment in before {
                let side = wall.side(segment);
                if !after.iter().any(|s| now.side(s) == side) {
                    lines.push(format!("wall {name}: {side} is none of its {key} any more"));
                    continue;
                }
                let find = |state: &State<'_>, of: &Wall, s: &SegmentRef| {
                    state.policy.segment(&of.tenant, s).cloned()
                };
                let both = (find(old, wall, segment), find(new, wall, segment));
                if let (Some(before), Some(after)) = both
                    && !holds_all_of(&after, &before)
                {
                    lines.push(format!("wall {name}: segment {side} selects less"));
                }
            }
        }
        let sides: Vec<_> = wall.datasets.iter().map(|d| wall.side(d)).collect();
        for (n, a) in sides.iter().enumerate() {
            for b in sides.iter().skip(n + 1) {
                if wall.conflict(a, b) && !now.conflict(a, b) {
                    lines.push(format!("wall {name}: {a} and {b} are in conflict no more"));
                }
            }
        }
        // What was nothing in common before can only bind more.
        if wall.same != now.same
            && let Some(same) = &wall.same
        {
            lines.push(format!("wall {name}: same is {same} no more"));
        }
        if (wall.per, now.per) == (Per::Ever, Per::Transaction) {
            lines.push(format!("wall {name}: it binds within a transaction only"));
        }
    }

    /// Who is meant by it.
    fn members(&self, bindings: &[Binding], lines: &mut Vec<String>) {
        let Change {
            old,
            new,
            wall,
            now,
            name,
        } = self;
        for before in old.workloads {
            let Some(after) = new.workload(before, old) else {
                continue;
            };
            let who = old.name(before);
            let bound = |state: &State<'_>, wall: &Wall, w| wall.binds(state.policy, w);
            if bound(old, wall, before) && !bound(new, now, after) {
                lines.push(format!("wall {name}: {who} is no subject any more"));
            }
            let left = now.sides_of(new.policy, after);
            for side in wall.sides_of(old.policy, before) {
                if !left.contains(&side) {
                    lines.push(format!("wall {name}: {who} is no part of {side} any more"));
                }
            }
            let keys = now.keys(new.policy, after);
            for key in wall.keys(old.policy, before) {
                if !keys.contains(&key) {
                    lines.push(format!("wall {name}: {who} leaves {key}"));
                }
            }
        }
        // Whoever was bound and comes again must be meant again.
        for after in new.workloads {
            let known = old.workload(after, new).is_some();
            let key = Key::Workload(new.name(after));
            let binding = |b: &&Binding| b.wall == *name && b.subject == key;
            if known || now.binds(new.policy, after) {
                continue;
            }
            if let Some(binding) = bindings.iter().find(binding) {
                lines.push(format!(
                    "wall {name}: {} comes back as no subject, and is bound to {}",
                    new.name(after),
                    binding.side
                ));
            }
        }
    }
}

/// Whether everybody whom `old` selects is selected by `new`, too, whoever there may be.
fn holds_all_of(new: &Segment, old: &Segment) -> bool {
    let tags = old.tags.is_empty()
        || !new.tags.is_empty() && new.tags.iter().all(|tag| old.tags.contains(tag));
    let names = old.names.iter().all(|name| new.names.contains(name));
    let cidr = old.cidr.iter().all(|cidr| {
        let within = |c: &crate::packet::Cidr| c.len <= cidr.len && c.contains(cidr.addr);
        new.cidr.iter().any(within)
    });
    tags && names && cidr
}

/// Who was bound and is gone, while somebody else has his address.
fn renamed(old: State<'_>, new: State<'_>, bindings: &[Binding], lines: &mut Vec<String>) {
    for before in old.workloads {
        let who = old.name(before);
        let key = Key::Workload(who.clone());
        let mut bound = bindings.iter().filter(|b| b.subject == key);
        if new.workload(before, &old).is_some() {
            continue;
        }
        let Some(binding) = bound.next() else {
            continue;
        };
        let heir = new.workloads.iter().find(|w| {
            let shares = w.ips.iter().any(|ip| before.ips.contains(ip));
            shares && w.tenant == before.tenant && old.workload(w, &new).is_none()
        });
        if let Some(heir) = heir {
            lines.push(format!(
                "{} takes the place of {who}, which wall {} has bound to {}",
                new.name(heir),
                binding.wall,
                binding.side
            ));
        }
    }
}

/// What carries nothing over any more.
fn sanitised(old: State<'_>, new: State<'_>, lines: &mut Vec<String>) {
    for now in &new.policy.sanitised {
        let label = now.label();
        let segment =
            |state: &State<'_>, s: &Sanitised| state.policy.segment(&s.tenant, &s.segment).cloned();
        let same = |s: &&Sanitised| s.label() == label;
        match old.policy.sanitised.iter().find(same) {
            None => lines.push(format!("{label} is sanitised")),
            Some(before) => {
                if before.expires < now.expires {
                    lines.push(format!("{label} is sanitised until {}", now.expires));
                }
                if let (Some(was), Some(is)) = (segment(&old, before), segment(&new, now))
                    && !holds_all_of(&was, &is)
                {
                    lines.push(format!("{label}: the segment selects more"));
                }
                for workload in new.workloads {
                    let is = |state: &State<'_>, s: &Sanitised, w| {
                        state.policy.refers_to(&s.tenant, &s.segment, w)
                    };
                    let was = old.workload(workload, &new);
                    let was = was.is_some_and(|w| is(&old, before, w));
                    if is(&new, now, workload) && !was {
                        lines.push(format!("{} is sanitised as {label}", new.name(workload)));
                    }
                }
            }
        }
    }
}
