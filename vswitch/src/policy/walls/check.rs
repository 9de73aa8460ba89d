//! What must hold of walls before anything is made of them.

use super::super::error::{FieldError, FieldPath};
use super::super::model::{ANY, Policy, SegmentRef, qualified};
use super::super::validate::Check;
use super::super::{Party, WorkloadFacts};
use super::Wall;
use crate::policy::Classifier;

/// Checks the policy's walls by themselves.
pub(in crate::policy) fn walls<'a>(check: &mut Check<'a>, policy: &'a Policy) {
    for (index, wall) in policy.walls.iter().enumerate() {
        let at = FieldPath::root().item("wall", index, &wall.name);
        check.name(&at, &wall.name);
        check.tenant(&at, &wall.tenant);
        let mut before = policy.walls.iter().take(index);
        if before.any(|w| (&w.tenant, &w.name) == (&wall.tenant, &wall.name)) {
            check.error(
                at.key("name"),
                format!("duplicate wall {:?}", wall.name),
                "rename one; bindings go by name",
            );
        }
        subjects(check, policy, &at, wall);
        datasets(check, policy, &at, wall);
        conflicts(check, &at, wall);
    }
    for (index, sanitised) in policy.sanitised.iter().enumerate() {
        let at = FieldPath::root().item("sanitised", index, &sanitised.segment.name);
        check.tenant(&at, &sanitised.tenant);
        check.reference(at.key("segment"), &sanitised.tenant, &sanitised.segment);
        if sanitised.segment.name == ANY {
            let todo = "name the segment of those that serve";
            check.error(at.key("segment"), "everybody cannot be sanitised", todo);
        }
        if sanitised.service.is_empty() {
            let todo = "say which, such as \"udp/53\"";
            check.error(at.key("service"), "it names no service", todo);
        }
        let texts = [("reason", &sanitised.reason), ("owner", &sanitised.owner)];
        for (key, text) in texts {
            if text.trim().is_empty() {
                let todo = "an auditor will ask";
                check.error(at.key(key), format!("`{key}` says nothing"), todo);
            }
        }
    }
}

fn subjects(check: &mut Check<'_>, policy: &Policy, at: &FieldPath, wall: &Wall) {
    if wall.subjects.is_empty() {
        let todo = "name the segment of those who are bound";
        check.error(at.key("subjects"), "the wall binds nobody", todo);
    }
    for (n, subject) in wall.subjects.iter().enumerate() {
        let at = at.item("subjects", n, "");
        let segment = policy.segment(&wall.tenant, subject);
        if segment.is_some_and(|s| s.tags.is_empty() && s.names.is_empty()) {
            check.error(
                at.clone(),
                "it selects no workload, and only workloads can be bound",
                "give the segment `tags` or `names`",
            );
        }
        check.reference(at, &wall.tenant, subject);
    }
}

fn datasets(check: &mut Check<'_>, policy: &Policy, at: &FieldPath, wall: &Wall) {
    if wall.datasets.len() < 2 {
        let todo = "name two segments at least";
        check.error(at.key("datasets"), "a wall has two sides", todo);
    }
    for (n, dataset) in wall.datasets.iter().enumerate() {
        let at = at.item("datasets", n, "");
        let side = wall.side(dataset);
        let before = wall.datasets.iter().take(n);
        if before.clone().any(|d| wall.side(d) == side) {
            check.error(
                at.clone(),
                format!("{side:?} is listed twice"),
                "remove one",
            );
        }
        if dataset.name == ANY {
            check.error(at.clone(), "everybody is no side", "name a segment");
        }
        let outside = |d: &&SegmentRef| {
            let segment = policy.segment(&wall.tenant, d);
            segment.is_some_and(|s| !s.cidr.is_empty())
        };
        let other = { before }.find(|d| outside(d) && wall.conflict(&wall.side(d), &side));
        if let Some(other) = other.filter(|_| outside(&dataset)) {
            check.error(
                at.clone(),
                format!(
                    "the outside is one party, and would be on both sides, {:?} and {side:?}",
                    wall.side(other)
                ),
                "remove `cidr` from one of the segments",
            );
        }
        check.reference(at, &wall.tenant, dataset);
    }
}

fn conflicts(check: &mut Check<'_>, at: &FieldPath, wall: &Wall) {
    let sides: Vec<_> = wall.datasets.iter().map(|d| wall.side(d)).collect();
    for (n, pair) in wall.conflicts.iter().enumerate() {
        let at = at.item("conflicts", n, "");
        let [a, b] = pair.each_ref().map(|side| wall.side(side));
        if a == b {
            let todo = "name two sides";
            check.error(
                at.clone(),
                format!("{a:?} is in conflict with itself"),
                todo,
            );
        }
        for side in [a, b] {
            if !sides.contains(&side) {
                check.error(
                    at.clone(),
                    format!("{side:?} is none of the wall's datasets"),
                    "add it to `datasets`, or correct the name",
                );
            }
        }
    }
}

/// Checks the walls against who there is: nobody stands on two sides, and nothing leads past the subjects.
#[must_use]
pub fn against(
    policy: &Policy,
    workloads: &[WorkloadFacts],
    (classifier, parties): (&Classifier, &[Party]),
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, wall) in policy.walls.iter().enumerate() {
        let at = FieldPath::root().item("wall", index, &wall.name);
        for workload in workloads {
            let sides = wall.sides_of(policy, workload);
            let meets = |a: &String| sides.iter().find(|b| wall.conflict(a, b)).cloned();
            let Some((a, b)) = sides.iter().find_map(|a| Some((a, meets(a)?))) else {
                continue;
            };
            let tenant = policy.tenant_name(workload.tenant).unwrap_or_default();
            errors.push(FieldError::new(
                at.key("datasets"),
                format!(
                    "workload {:?} is on both sides, {a:?} and {b:?}",
                    qualified(tenant, &workload.name)
                ),
                "take it out of one of the segments",
            ));
        }
    }
    if errors.is_empty() {
        errors = super::leaks(policy, workloads, (classifier, parties));
    }
    errors
}
