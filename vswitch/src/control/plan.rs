//! What a change does to ports, worked out as data before anything is done.

use super::apply::ApplyError;
use super::ports::OpenPort;
use super::state::{Desired, PortConfig};
use crate::policy::{FieldError, FieldPath, diff};

/// What to do about ports, worked out before anything is done.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// Opened, by index into the desired ports.
    pub(super) open: Vec<usize>,
    /// Kept, by name; what the snapshot says of them may change.
    pub(super) keep: Vec<String>,
    /// Closed, by name, after the workers have let go.
    pub(super) close: Vec<String>,
}

/// What turns the open ports into the desired ones. A port whose interface is gone stays as it is
/// unless it is the one to `renew`: another change must not wait for an interface.
pub(super) fn plan(
    open: &[OpenPort],
    desired: &[PortConfig],
    renew: Option<&str>,
) -> Result<Plan, ApplyError> {
    let mut plan = Plan {
        open: Vec::new(),
        keep: Vec::new(),
        close: Vec::new(),
    };
    let mut errors = Vec::new();
    for (index, config) in desired.iter().enumerate() {
        let usable = |o: &OpenPort| renew != Some(&o.config.name);
        let same = open
            .iter()
            .find(|o| o.config.name == config.name && usable(o) && o.serves(config));
        if same.is_some() {
            plan.keep.push(config.name.clone());
            continue;
        }
        if open.iter().any(|o| usable(o) && o.collides(config)) {
            errors.push(FieldError::new(
                FieldPath::root().item("port", index, &config.name),
                "its queues, MTU or mode cannot change while it is open",
                "remove the port, apply, then add it again",
            ));
        }
        plan.open.push(index);
    }
    if !errors.is_empty() {
        return Err(ApplyError::Invalid(errors));
    }
    plan.close = open
        .iter()
        .map(|o| &o.config.name)
        .filter(|name| !plan.keep.contains(name))
        .cloned()
        .collect();
    Ok(plan)
}

/// What a change does, one line each.
pub(super) fn describe(plan: &Plan, old: &Desired, new: &Desired) -> Vec<String> {
    let mut changes = Vec::new();
    for name in plan.open.iter().filter_map(|i| new.ports.get(*i)) {
        changes.push(format!("port {} opened", name.name));
    }
    for name in &plan.close {
        changes.push(format!("port {name} closed"));
    }
    for name in &plan.keep {
        let find = |d: &Desired| d.ports.iter().find(|p| &p.name == name).cloned();
        if find(old) != find(new) {
            changes.push(format!("port {name} changed"));
        }
    }
    let policy = diff(&old.policy, &new.policy);
    changes.extend(policy.0.iter().map(ToString::to_string));
    changes
}
