//! What must hold of a policy before it is compiled. Every error is reported, not the first.

use ahash::{AHashMap as HashMap, AHashSet as HashSet};

use super::error::{FieldError, FieldPath};
use super::model::{ANY, Action, DEFAULT_TENANT, Infrastructure, Policy, Rule, SegmentRef};
use super::{suspicion, walls};
use crate::packet::Cidr;

/// Longest name, bytes: keeps a line of `watch` readable.
const MAX_NAME_LEN: usize = 63;

/// Everything wrong with the policy by itself; empty when it can be compiled.
#[must_use]
pub fn validate(policy: &Policy) -> Vec<FieldError> {
    let mut check = Check {
        errors: Vec::new(),
        suggested: 0,
        tenants: HashSet::from([DEFAULT_TENANT]),
        segments: HashSet::new(),
    };
    check.tenants(policy);
    check.segments(policy);
    check.rules(policy);
    walls::check::walls(&mut check, policy);
    suspicion::check(&mut check, policy);
    for (at, tenant, infrastructure) in infrastructures(policy) {
        check.infrastructure(&at, tenant, infrastructure);
    }
    check.errors
}

/// Every tenant's `infrastructure` with its path and tenant.
pub(super) fn infrastructures(
    policy: &Policy,
) -> impl Iterator<Item = (FieldPath, &str, &Infrastructure)> {
    policy
        .all_tenants()
        .enumerate()
        .map(|(n, (tenant, infrastructure))| {
            let root = FieldPath::root();
            let at = match n.checked_sub(1) {
                None => root,
                Some(index) => root.item("tenant", index, tenant),
            };
            (at.key("infrastructure"), tenant, infrastructure)
        })
}

/// What is wrong with a name, if anything.
pub(crate) fn bad_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("the name is empty")
    } else if name.len() > MAX_NAME_LEN {
        Some("the name is longer than 63 bytes")
    } else if name
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | '"' | '\\'))
    {
        Some("the name holds a space, a control character, a slash, a quote or a backslash")
    } else {
        None
    }
}

/// What is wrong with a network, if anything: (what, what to do).
pub(crate) fn bad_cidr(cidr: &Cidr) -> Option<(String, String)> {
    let bits = if cidr.addr.is_ipv4() { 32 } else { 128 };
    if cidr.len > bits {
        return Some((
            format!("prefix length {} is longer than {bits} bits", cidr.len),
            format!("use a length from 0 to {bits}"),
        ));
    }
    let network = cidr.network();
    (network != *cidr).then(|| {
        (
            format!("{cidr} has bits set beyond its prefix"),
            format!("write {network}"),
        )
    })
}

/// Unknown names of a policy for which the nearest known one is looked for: that takes a look at
/// every name there is.
const MAX_SUGGESTIONS: usize = 100;

pub(super) struct Check<'a> {
    errors: Vec<FieldError>,
    /// Suggestions made so far.
    suggested: usize,
    tenants: HashSet<&'a str>,
    segments: HashSet<(&'a str, &'a str)>,
}

impl<'a> Check<'a> {
    pub(super) fn error(
        &mut self,
        at: FieldPath,
        what: impl Into<String>,
        todo: impl Into<String>,
    ) {
        self.errors.push(FieldError::new(at, what, todo));
    }

    pub(super) fn name(&mut self, at: &FieldPath, name: &str) {
        if let Some(what) = bad_name(name) {
            self.error(
                at.key("name"),
                what,
                "use letters, digits, '-', '_', '.' or ':'",
            );
        }
    }

    fn tenants(&mut self, policy: &'a Policy) {
        let mut first = HashMap::new();
        for (index, tenant) in policy.tenants.iter().enumerate() {
            let at = FieldPath::root().item("tenant", index, &tenant.name);
            self.name(&at, &tenant.name);
            if tenant.name == DEFAULT_TENANT {
                self.error(
                    at.key("name"),
                    "tenant \"default\" always exists",
                    "remove this table; its servers go into [infrastructure]",
                );
            } else if tenant.name == "infrastructure" {
                self.error(
                    at.key("name"),
                    "\"infrastructure\" is the name of the built-in rules",
                    "choose another name",
                );
            } else if first.insert(&tenant.name, index).is_some() {
                self.error(
                    at.key("name"),
                    format!("duplicate tenant {:?}", tenant.name),
                    "merge the two, or rename one",
                );
            }
            self.tenants.insert(&tenant.name);
        }
        if policy.tenants.len() >= usize::from(u16::MAX) {
            self.error(
                FieldPath::root().item("tenant", usize::from(u16::MAX) - 1, ""),
                "more tenants than a switch can number (65535)",
                "remove some",
            );
        }
    }

    pub(super) fn tenant(&mut self, at: &FieldPath, tenant: &str) {
        if !self.tenants.contains(tenant) {
            let known = self.tenants.iter().copied();
            let todo = suggest(
                &mut self.suggested,
                tenant,
                known,
                "declare it with [[tenant]]",
            );
            self.error(at.key("tenant"), format!("unknown tenant {tenant:?}"), todo);
        }
    }

    fn segments(&mut self, policy: &'a Policy) {
        for (index, segment) in policy.segments.iter().enumerate() {
            let at = FieldPath::root().item("segment", index, &segment.name);
            self.name(&at, &segment.name);
            self.tenant(&at, &segment.tenant);
            if segment.name == ANY {
                self.error(
                    at.key("name"),
                    "\"any\" is the built-in segment of every workload",
                    "choose another name",
                );
            } else if !self.segments.insert((&segment.tenant, &segment.name)) {
                self.error(
                    at.key("name"),
                    format!("duplicate segment {:?}", segment.name),
                    "merge the two, or rename one",
                );
            }
            if segment.tags.is_empty() && segment.names.is_empty() && segment.cidr.is_empty() {
                self.error(
                    at.clone(),
                    format!("segment {:?} selects nobody", segment.name),
                    "give it `tags`, `names` or `cidr`",
                );
            }
            let no_workloads = segment.tags.is_empty() && segment.names.is_empty();
            match segment.max_connections {
                Some(0) => self.error(
                    at.key("max_connections"),
                    "a segment that may open 0 connections opens none",
                    "deny by a rule instead, or leave it out for no limit",
                ),
                Some(_) if no_workloads => self.error(
                    at.key("max_connections"),
                    "it limits workloads, and the segment selects none",
                    "set it on the uplink's port, or give the segment `tags` or `names`",
                ),
                _ => {}
            }
            for (n, cidr) in segment.cidr.iter().enumerate() {
                if let Some((what, todo)) = bad_cidr(cidr) {
                    self.error(at.item("cidr", n, ""), what, todo);
                }
            }
        }
    }

    fn rules(&mut self, policy: &'a Policy) {
        let mut names = HashSet::new();
        for (index, rule) in policy.rules.iter().enumerate() {
            let at = FieldPath::root().item("rule", index, &rule.name);
            self.name(&at, &rule.name);
            self.tenant(&at, &rule.tenant);
            if !names.insert((&rule.tenant, &rule.name)) {
                self.error(
                    at.key("name"),
                    format!("duplicate rule {:?}", rule.name),
                    "rename one; hit counts and limits go by name",
                );
            }
            self.ends(&at, &rule.tenant, &rule.from, &rule.to);
            self.decision(&at, rule);
        }
    }

    fn ends(&mut self, at: &FieldPath, tenant: &str, from: &[SegmentRef], to: &[SegmentRef]) {
        for (key, list) in [("from", from), ("to", to)] {
            if list.is_empty() {
                self.error(
                    at.key(key),
                    format!("`{key}` names nobody"),
                    "name a segment, or \"any\" for every workload",
                );
            }
            for (n, segment) in list.iter().enumerate() {
                self.reference(at.item(key, n, ""), tenant, segment);
            }
        }
        let own = |list: &[SegmentRef]| {
            list.iter()
                .any(|segment| segment.tenant.as_deref().is_none_or(|t| t == tenant))
        };
        if !from.is_empty() && !to.is_empty() && !own(from) && !own(to) {
            self.error(
                at.key("from"),
                format!("neither end belongs to tenant {tenant:?}"),
                "a tenant judges only its own traffic: name one of its segments",
            );
        }
    }

    pub(super) fn reference(&mut self, at: FieldPath, tenant: &str, segment: &SegmentRef) {
        let owner = segment.tenant.as_deref().unwrap_or(tenant);
        if !self.tenants.contains(owner) {
            let known = self.tenants.iter().copied();
            let todo = suggest(
                &mut self.suggested,
                owner,
                known,
                "declare it with [[tenant]]",
            );
            self.error(at, format!("unknown tenant {owner:?}"), todo);
        } else if segment.name != ANY && !self.segments.contains(&(owner, segment.name.as_str())) {
            let known = self
                .segments
                .iter()
                .filter(|(t, _)| *t == owner)
                .map(|(_, name)| *name)
                .chain([ANY]);
            let otherwise = "declare it with [[segment]]";
            let todo = suggest(&mut self.suggested, &segment.name, known, otherwise);
            self.error(
                at,
                format!("unknown segment {:?}", segment.to_string()),
                todo,
            );
        }
    }

    fn decision(&mut self, at: &FieldPath, rule: &Rule) {
        if let Some(limit) = &rule.limit {
            let at = at.key("limit");
            if !rule.action.admits() {
                self.error(
                    at.clone(),
                    format!(
                        "a rule that says {} admits nothing to limit",
                        rule.action.name()
                    ),
                    "remove `limit`, or put it on the rule that allows",
                );
            }
            if limit.connections.is_none() && limit.bits.is_none() {
                self.error(
                    at.clone(),
                    "the limit limits nothing",
                    "give `connections` or `bits`, per second",
                );
            }
            for (key, value) in [("connections", limit.connections), ("bits", limit.bits)] {
                if value == Some(0) {
                    self.error(
                        at.key(key),
                        "a limit of 0 admits nothing",
                        "use action = \"deny\" instead",
                    );
                }
            }
        }
        if rule.action == Action::Pass && rule.log {
            self.error(
                at.key("log"),
                "a rule that passes decides nothing to record",
                "put `log` on the rule that decides",
            );
        }
    }

    fn infrastructure(&mut self, at: &FieldPath, tenant: &str, infrastructure: &Infrastructure) {
        for (key, list) in [
            ("dhcp_servers", &infrastructure.dhcp_servers),
            ("routers", &infrastructure.routers),
        ] {
            for (n, ip) in list.iter().enumerate() {
                if ip.is_unspecified() || ip.is_multicast() {
                    self.error(
                        at.item(key, n, ""),
                        format!("{ip} is nobody's address"),
                        "give the server's own address",
                    );
                }
            }
        }
        for (n, path) in infrastructure.management.iter().enumerate() {
            self.ends(&at.item("management", n, ""), tenant, &path.from, &path.to);
        }
    }
}

/// What to do about an unknown name.
fn suggest<'a>(
    suggested: &mut usize,
    wrong: &str,
    known: impl Iterator<Item = &'a str>,
    otherwise: &str,
) -> String {
    *suggested += 1;
    let looked_for = *suggested <= MAX_SUGGESTIONS;
    match looked_for.then(|| nearest(wrong, known)).flatten() {
        Some(name) => format!("did you mean {name:?}?"),
        None => otherwise.to_owned(),
    }
}

/// The known word most like `wrong`, if one is like it at all: at most a third of its letters
/// differ.
pub(crate) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|word| (edits(wrong, word), word))
        .filter(|(edits, word)| {
            let len = word.chars().count();
            *edits < len && *edits * 3 <= len.max(3)
        })
        .min()
        .map(|(_, word)| word)
}

/// Edit distance (insert, delete, replace, swap of neighbours). Names are at most
/// [`MAX_NAME_LEN`] long when they are right; what is far longer is like nothing.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(2 * MAX_NAME_LEN).collect();
    let b: Vec<char> = b.chars().take(2 * MAX_NAME_LEN).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let replace = last[j] + usize::from(x != y);
            let mut best = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::model::{Limit, Segment, Tenant};
    use super::*;

    fn lines(policy: &Policy) -> Vec<String> {
        validate(policy).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nearest_word_is_found_or_none() {
        let known = || ["socket", "mode", "owner"].into_iter();
        assert_eq!(nearest("sokcet", known()), Some("socket"));
        assert_eq!(nearest("mod", known()), Some("mode"));
        assert_eq!(nearest("interface", known()), None);
    }

    #[test]
    fn an_empty_policy_is_valid() {
        assert_eq!(lines(&Policy::default()), [""; 0]);
    }

    #[test]
    fn every_error_is_reported_at_once() {
        let mut web = Segment::new("web");
        web.tags.push("tier:web".into());
        let mut bad = Segment::new("bad");
        bad.cidr.push(Cidr {
            addr: "10.0.0.1".parse().unwrap(),
            len: 8,
        });
        bad.max_connections = Some(5);
        let mut stray = Rule::new("stray", &["weeb"], &["other/db"], Action::Deny);
        stray.limit = Some(Limit {
            connections: Some(0),
            bits: None,
        });
        let mut foreign = Rule::new("foreign", &["t/any"], &["t/any"], Action::Pass);
        foreign.log = true;
        let policy = Policy {
            tenants: vec![Tenant {
                name: "t".into(),
                ..Tenant::default()
            }],
            segments: vec![
                web.clone(),
                web,
                bad,
                Segment::new("any"),
                Segment::new("a b"),
            ],
            rules: vec![stray.clone(), stray, foreign],
            ..Policy::default()
        };
        assert_eq!(
            lines(&policy),
            [
                "segment[web].name: duplicate segment \"web\"; merge the two, or rename one",
                "segment[bad].max_connections: it limits workloads, and the segment selects none; set it on the uplink's port, or give the segment `tags` or `names`",
                "segment[bad].cidr[0]: 10.0.0.1/8 has bits set beyond its prefix; write 10.0.0.0/8",
                "segment[any].name: \"any\" is the built-in segment of every workload; choose another name",
                "segment[any]: segment \"any\" selects nobody; give it `tags`, `names` or `cidr`",
                "segment[a b].name: the name holds a space, a control character, a slash, a quote or a backslash; use letters, digits, '-', '_', '.' or ':'",
                "segment[a b]: segment \"a b\" selects nobody; give it `tags`, `names` or `cidr`",
                "rule[stray].from[0]: unknown segment \"weeb\"; did you mean \"web\"?",
                "rule[stray].to[0]: unknown tenant \"other\"; declare it with [[tenant]]",
                "rule[stray].limit: a rule that says deny admits nothing to limit; remove `limit`, or put it on the rule that allows",
                "rule[stray].limit.connections: a limit of 0 admits nothing; use action = \"deny\" instead",
                "rule[stray].name: duplicate rule \"stray\"; rename one; hit counts and limits go by name",
                "rule[stray].from[0]: unknown segment \"weeb\"; did you mean \"web\"?",
                "rule[stray].to[0]: unknown tenant \"other\"; declare it with [[tenant]]",
                "rule[stray].limit: a rule that says deny admits nothing to limit; remove `limit`, or put it on the rule that allows",
                "rule[stray].limit.connections: a limit of 0 admits nothing; use action = \"deny\" instead",
                "rule[foreign].from: neither end belongs to tenant \"default\"; a tenant judges only its own traffic: name one of its segments",
                "rule[foreign].log: a rule that passes decides nothing to record; put `log` on the rule that decides",
            ]
        );
    }
}
