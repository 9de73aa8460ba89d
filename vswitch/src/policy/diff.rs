//! What differs between two policies, by name: for people, and as data.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::model::{Policy, Response, Sanitised, Suspicion, Wall, qualified};

/// Everything that differs, in the order of the new policy; what is gone comes last of its kind.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Diff(pub Vec<Change>);

/// One difference.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Change {
    /// Of what.
    pub kind: Kind,
    /// Its name; `tenant/name` when the tenant is not "default".
    pub name: String,
    /// How.
    #[serde(flatten)]
    pub how: How,
}

/// What a change is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The default tenant's servers and management paths.
    Infrastructure,
    /// A tenant.
    Tenant,
    /// A segment.
    Segment,
    /// A rule.
    Rule,
    /// A Chinese wall.
    Wall,
    /// A shared service that carries nothing over walls.
    Sanitised,
    /// From when on workloads are suspicious.
    Suspicion,
    /// What follows.
    Response,
}

/// How something changed.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum How {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It says something else.
    Changed {
        /// What, key by key.
        fields: Vec<FieldChange>,
    },
    /// It is tried before or after others that it was not before.
    Moved,
}

/// One key that says something else.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FieldChange {
    /// The key.
    pub field: String,
    /// What it said.
    pub old: Value,
    /// What it says now.
    pub new: Value,
}

/// What changes when `new` replaces `old`.
#[must_use]
pub fn diff<'a>(old: &'a Policy, new: &'a Policy) -> Diff {
    let mut changes = Vec::new();
    let infrastructure = |policy: &'a Policy| vec![(String::new(), &policy.infrastructure)];
    let tenants = |policy: &'a Policy| named(&policy.tenants, |t| t.name.clone());
    let segments = |policy: &'a Policy| named(&policy.segments, |s| qualified(&s.tenant, &s.name));
    let rules = |policy: &'a Policy| named(&policy.rules, |r| qualified(&r.tenant, &r.name));
    let both = (infrastructure(old), infrastructure(new));
    compare(Kind::Infrastructure, both, &mut changes);
    compare(Kind::Tenant, (tenants(old), tenants(new)), &mut changes);
    compare(Kind::Segment, (segments(old), segments(new)), &mut changes);
    compare(Kind::Rule, (rules(old), rules(new)), &mut changes);
    let walls = |policy: &'a Policy| named(&policy.walls, Wall::qualified);
    compare(Kind::Wall, (walls(old), walls(new)), &mut changes);
    let sanitised = |policy: &'a Policy| named(&policy.sanitised, Sanitised::label);
    let both = (sanitised(old), sanitised(new));
    compare(Kind::Sanitised, both, &mut changes);
    let suspicions = |policy: &'a Policy| named(&policy.suspicions, Suspicion::qualified);
    let both = (suspicions(old), suspicions(new));
    compare(Kind::Suspicion, both, &mut changes);
    let responses = |policy: &'a Policy| named(&policy.responses, Response::qualified);
    compare(
        Kind::Response,
        (responses(old), responses(new)),
        &mut changes,
    );
    Diff(changes)
}

/// Items with their names.
type Named<'a, T> = Vec<(String, &'a T)>;

fn named<T>(items: &[T], name: impl Fn(&T) -> String) -> Named<'_, T> {
    items.iter().map(|item| (name(item), item)).collect()
}

/// Plain values always serialise.
fn value<T: Serialize>(item: &T) -> Value {
    serde_json::to_value(item).unwrap_or_default()
}

fn compare<T: PartialEq + Serialize>(
    kind: Kind,
    (old, new): (Named<'_, T>, Named<'_, T>),
    changes: &mut Vec<Change>,
) {
    let places: HashMap<&str, usize> = old
        .iter()
        .enumerate()
        .map(|(n, (name, _))| (name.as_str(), n))
        .collect();
    let places_of_new: Vec<Option<usize>> = new
        .iter()
        .map(|(name, _)| places.get(name.as_str()).copied())
        .collect();
    let stayed = match kind {
        // Of these it is decided by their order which one counts.
        Kind::Rule | Kind::Suspicion | Kind::Response => {
            longest_rise(places_of_new.iter().flatten().copied())
        }
        Kind::Infrastructure | Kind::Tenant | Kind::Segment | Kind::Wall | Kind::Sanitised => {
            (0..old.len()).collect()
        }
    };
    for ((name, now), place) in new.iter().zip(&places_of_new) {
        let mut push = |how| {
            changes.push(Change {
                kind,
                name: name.clone(),
                how,
            });
        };
        let Some((place, (_, before))) = place.and_then(|n| Some((n, old.get(n)?))) else {
            push(How::Added);
            continue;
        };
        let fields = fields(*before, *now);
        if !fields.is_empty() {
            push(How::Changed { fields });
        }
        if !stayed.contains(&place) {
            push(How::Moved);
        }
    }
    let kept: HashSet<&str> = new.iter().map(|(name, _)| name.as_str()).collect();
    for (name, _) in &old {
        if !kept.contains(name.as_str()) {
            changes.push(Change {
                kind,
                name: name.clone(),
                how: How::Removed,
            });
        }
    }
}

fn fields<T: PartialEq + Serialize>(old: &T, new: &T) -> Vec<FieldChange> {
    // Most items are the same, and to write them down costs far more than to compare them.
    if old == new {
        return Vec::new();
    }
    let (old, new) = (value(old), value(new));
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return Vec::new();
    };
    // By name: which order a map keeps is decided by the features of whoever else uses it.
    let keys: BTreeSet<_> = new.keys().chain(old.keys()).collect();
    let get = |of: &serde_json::Map<String, Value>, key| of.get(key).cloned().unwrap_or_default();
    let changes = keys.into_iter().map(|key| FieldChange {
        field: key.clone(),
        old: get(old, key),
        new: get(new, key),
    });
    changes.filter(|change| change.old != change.new).collect()
}

/// The largest choice of numbers that ascends: what need not be called moved.
fn longest_rise(numbers: impl Iterator<Item = usize>) -> HashSet<usize> {
    // Patience sorting: the last number of the best rise of each length, and what came before
    // each number.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: HashMap<usize, usize> = HashMap::new();
    for number in numbers {
        let len = ends.partition_point(|&end| end < number);
        let previous = len.checked_sub(1).and_then(|n| ends.get(n)).copied();
        if let Some(previous) = previous {
            before.insert(number, previous);
        }
        match ends.get_mut(len) {
            Some(end) => *end = number,
            None => ends.push(number),
        }
    }
    let mut rise = HashSet::new();
    let mut next = ends.last().copied();
    while let Some(number) = next {
        rise.insert(number);
        next = before.get(&number).copied();
    }
    rise
}

impl fmt::Display for Diff {
    /// `+` added, `-` removed, `~` changed, `>` moved; one line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, change) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{change}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Infrastructure => "infrastructure",
            Kind::Tenant => "tenant",
            Kind::Segment => "segment",
            Kind::Rule => "rule",
            Kind::Wall => "wall",
            Kind::Sanitised => "sanitised",
            Kind::Suspicion => "suspicion",
            Kind::Response => "response",
        };
        let sign = match self.how {
            How::Added => '+',
            How::Removed => '-',
            How::Changed { .. } => '~',
            How::Moved => '>',
        };
        write!(f, "{sign} {kind}")?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        match &self.how {
            How::Added | How::Removed => Ok(()),
            How::Moved => f.write_str(": moved"),
            How::Changed { fields } => {
                for (n, change) in fields.iter().enumerate() {
                    let comma = if n == 0 { ':' } else { ',' };
                    write!(
                        f,
                        "{comma} {} {} -> {}",
                        change.field, change.old, change.new
                    )?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Action, Ask, Otherwise, Rule, Segment, Tenant};
    use super::*;

    fn rules(names: &[&str]) -> Policy {
        Policy {
            rules: names
                .iter()
                .map(|name| Rule::new(name, &["any"], &["any"], Action::Deny))
                .collect(),
            ..Policy::default()
        }
    }

    fn lines(old: &Policy, new: &Policy) -> Vec<String> {
        diff(old, new).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_policies_do_not_differ() {
        let policy = rules(&["a", "b"]);
        assert_eq!(lines(&policy, &policy), [""; 0]);
    }

    #[test]
    fn each_difference_is_named() {
        let mut old = rules(&["a", "gone", "b"]);
        old.segments.push(Segment::new("web"));
        old.tenants.push(Tenant {
            name: "t".into(),
            ..Tenant::default()
        });
        let mut new = rules(&["a", "new", "b"]);
        new.infrastructure.routers.push([10, 0, 0, 1].into());
        let mut web = Segment::new("web");
        web.tags.push("x".into());
        web.max_connections = Some(100);
        new.segments.push(web);
        new.rules[1].tenant = "t".into();
        new.rules[2].action = Action::Ask(Ask::new(Otherwise::Deny));
        new.rules[2].log = true;
        assert_eq!(
            lines(&old, &new),
            [
                "~ infrastructure: routers [] -> [\"10.0.0.1\"]",
                "- tenant t",
                "~ segment web: max_connections null -> 100, tags [] -> [\"x\"]",
                "+ rule t/new",
                "~ rule b: action \"deny\" -> \"ask\", deadline_ms null -> 1000, log false -> true, on_expiry null -> \"keep\", otherwise null -> \"deny\", scope null -> \"service\", ttl_s null -> 3600",
                "- rule gone",
            ]
        );
        let json = serde_json::to_value(diff(&old, &new)).unwrap();
        assert_eq!(json[4]["kind"], "rule");
        assert_eq!(json[4]["change"], "changed");
        assert_eq!(json[4]["fields"][0]["field"], "action");
    }

    #[test]
    fn as_few_rules_as_possible_are_called_moved() {
        let moved = |to: &[&str]| lines(&rules(&["a", "b", "c", "d"]), &rules(to));
        assert_eq!(moved(&["b", "c", "d", "a"]), ["> rule a: moved"]);
        assert_eq!(moved(&["d", "a", "b", "c"]), ["> rule d: moved"]);
        assert_eq!(moved(&["a", "x", "b", "d"]), ["+ rule x", "- rule c"]);
    }
}
