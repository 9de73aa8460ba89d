//! How one policy differs from another, in lines a person can read.

use std::collections::HashMap;

use serde_json::Value;

use crate::policy::model::Policy;

/// One line per difference, `+`, `-` or `~` first; empty when the two are the same.
pub(super) fn policies(old: &Policy, new: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    let tables = |p: &Policy| -> [(&'static str, Vec<Named>); 3] {
        [
            (
                "tenant",
                p.tenants.iter().map(|t| named("", &t.name, t)).collect(),
            ),
            (
                "segment",
                p.segments
                    .iter()
                    .map(|s| named(&s.tenant, &s.name, s))
                    .collect(),
            ),
            (
                "rule",
                p.rules
                    .iter()
                    .map(|r| named(&r.tenant, &r.name, r))
                    .collect(),
            ),
        ]
    };
    for ((kind, old), (_, new)) in tables(old).iter().zip(&tables(new)) {
        table(kind, old, new, &mut lines);
    }
    if old.infrastructure != new.infrastructure {
        lines.push("~ infrastructure".to_owned());
    }
    lines
}

/// An item by name, with its fields.
type Named = (String, Value);

fn named(tenant: &str, name: &str, item: &impl serde::Serialize) -> Named {
    let name = match tenant {
        "" | crate::policy::model::DEFAULT_TENANT => name.to_owned(),
        tenant => format!("{tenant}/{name}"),
    };
    // Plain values with string keys: serialising them cannot fail.
    (name, serde_json::to_value(item).unwrap_or_default())
}

fn table(kind: &str, old: &[Named], new: &[Named], lines: &mut Vec<String>) {
    let index = |list: &'_ [Named]| -> HashMap<String, Value> { list.iter().cloned().collect() };
    let (before, after) = (index(old), index(new));
    for (name, was) in old {
        match after.get(name) {
            None => lines.push(format!("- {kind} {name}")),
            Some(is) if is != was => {
                lines.push(format!("~ {kind} {name}: {}", fields(was, is)));
            }
            Some(_) => {}
        }
    }
    for (name, _) in new {
        if !before.contains_key(name) {
            lines.push(format!("+ {kind} {name}"));
        }
    }
    // The order of rules is part of their meaning.
    let kept = old.iter().filter(|(n, _)| after.contains_key(n));
    let in_new = new.iter().filter(|(n, _)| before.contains_key(n));
    if kind == "rule" && !kept.map(|(n, _)| n).eq(in_new.map(|(n, _)| n)) {
        lines.push("~ order of rules".to_owned());
    }
}

fn fields(old: &Value, new: &Value) -> String {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return String::new();
    };
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let show = |v: Option<&Value>| v.map_or_else(|| "none".to_owned(), ToString::to_string);
    keys.into_iter()
        .filter(|k| old.get(*k) != new.get(*k))
        .map(|k| format!("{k} {} -> {}", show(old.get(k)), show(new.get(k))))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::policies;
    use crate::policy::model::{Action, Policy, Rule, Segment};

    #[test]
    fn every_difference_is_one_line() {
        let rule = |name: &str| Rule::new(name, &["any"], &["any"], Action::Allow);
        let old = Policy {
            segments: vec![Segment::new("gone")],
            rules: vec![rule("a"), rule("b"), rule("c")],
            ..Policy::default()
        };
        assert!(policies(&old, &old).is_empty());
        let mut denied = rule("b");
        denied.action = Action::Deny;
        let new = Policy {
            rules: vec![rule("c"), rule("a"), denied, rule("d")],
            ..Policy::default()
        };
        assert_eq!(
            policies(&old, &new),
            [
                "- segment gone",
                "~ rule b: action \"allow\" -> \"deny\"",
                "+ rule d",
                "~ order of rules",
            ]
        );
    }
}
