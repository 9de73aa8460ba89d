//! What a policy opens and closes that replaces another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::super::links::{Links, Piece, addresses};
use super::super::model::{Policy, PortRange, SegmentRef, qualified};
use super::super::{Classifier, Party, SetId, TenantId, Why, WorkloadFacts, diff};
use super::services::Cells;
use super::{BUDGET, Group, How, NAMES, PAIRS, rules};
use crate::packet::Addr;

/// A pair that another policy says something else about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// From whom,
    pub from: Group,
    /// to whom.
    pub to: Group,
    /// The rule that says so, or said so.
    pub rule: String,
    /// How it could be opened; `None`: it could not.
    pub before: Option<How>,
    /// How it can be then.
    pub after: Option<How>,
    /// Services.
    pub service: Vec<String>,
}

/// What another policy opens and closes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Compared {
    /// What can be opened then, or without asking.
    pub opened: Vec<Changed>,
    /// What can not, or not without asking.
    pub closed: Vec<Changed>,
    /// Changes that are not listed.
    pub more: [usize; 2],
    /// It was too much to look at all of it: there may be others.
    pub cut_off: bool,
}

/// A policy, compiled for these workloads.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// The same, compiled.
    pub classifier: &'a Classifier,
    /// The workloads that it was compiled for.
    pub workloads: &'a [WorkloadFacts],
}

/// What a policy opens and closes that replaces another. `most` changes are listed of each sort.
#[must_use]
pub fn compare(old: &State<'_>, new: &State<'_>, most: usize) -> Compared {
    let states = [old, new];
    let mut members: BTreeMap<String, [Option<Party>; 2]> = BTreeMap::new();
    for (side, state) in states.iter().enumerate() {
        for (workload, party) in state.workloads.iter().zip(state.classifier.parties()) {
            let tenant = state
                .policy
                .tenant_name(workload.tenant)
                .unwrap_or_default();
            let both = members
                .entry(qualified(tenant, &workload.name))
                .or_default();
            both.get_mut(side)
                .into_iter()
                .for_each(|at| *at = Some(*party));
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut parties: [Vec<Vec<Party>>; 2] = Default::default();
    let mut known = HashMap::new();
    // Nobody: in no segment of either.
    let nobody = Party {
        tenant: TenantId(u16::MAX),
        set: SetId(0),
    };
    for (name, both) in members {
        let at = *known.entry(both).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group {
                names: Vec::new(),
                size: 0,
            });
            for (list, party) in parties.iter_mut().zip(both) {
                list.push(vec![party.unwrap_or(nobody)]);
            }
        }
        if let Some(group) = groups.get_mut(at) {
            group.size += 1;
            if group.names.len() < NAMES {
                group.names.push(name);
            }
        }
    }
    let all: BTreeSet<(&str, Addr)> = states.iter().flat_map(|s| addresses(s.policy)).collect();
    let seen = |state: &State<'_>, tenant: &str, addr: &Addr| {
        let tenant = state.policy.tenant_id(tenant);
        tenant.map_or(nobody, |tenant| Party {
            tenant,
            set: state.classifier.outside(tenant, addr),
        })
    };
    let outside: BTreeSet<[Party; 2]> = all
        .iter()
        .map(|(tenant, addr)| states.map(|state| seen(state, tenant, addr)))
        .collect();
    for (side, list) in parties.iter_mut().enumerate() {
        let own = outside.iter().filter_map(|both| both.get(side).copied());
        list.push(own.collect());
    }
    groups.push(Group {
        names: vec!["outside".to_owned()],
        size: 1,
    });
    let [before, after] = parties;
    let links = [
        Links::new(old.policy, old.classifier, before.into_iter()),
        Links::new(new.policy, new.classifier, after.into_iter()),
    ];
    let touched = touched(old.policy, new.policy);
    let [before, after] = &links;
    let [gone, come] = &touched;
    let both = [before.pairs_of(gone, PAIRS), after.pairs_of(come, PAIRS)];
    let mut compared = Compared {
        cut_off: both.iter().any(|pairs| pairs.len() > PAIRS),
        ..Compared::default()
    };
    let [mut pairs, more] = both;
    pairs.extend(more);
    for (a, b) in pairs {
        if before.asked() + after.asked() > BUDGET {
            compared.cut_off = true;
            break;
        }
        let both = [(old, before), (new, after)].map(|(state, links)| said(state, links, (a, b)));
        let (Some(from), Some(to)) = (groups.get(a), groups.get(b)) else {
            continue;
        };
        for ((rule, before, after), cells) in changes(&both) {
            let opens = after.unwrap_or(How::No).is_wider(before.unwrap_or(How::No));
            let (list, more) = if opens {
                (&mut compared.opened, 0)
            } else {
                (&mut compared.closed, 1)
            };
            if list.len() == most {
                compared
                    .more
                    .get_mut(more)
                    .into_iter()
                    .for_each(|n| *n += 1);
                continue;
            }
            list.push(Changed {
                from: from.clone(),
                to: to.clone(),
                rule,
                before,
                after,
                service: cells.services(),
            });
        }
    }
    compared
}

impl How {
    /// Whether more can be opened like this than like that.
    fn is_wider(self, than: How) -> bool {
        let width = |how| match how {
            How::No => 0,
            How::Ask => 1,
            How::Yes | How::Notify | How::Allow => 2,
        };
        width(self) > width(than)
    }
}

/// Rules that are gone or come, or say something else, or are about others.
fn touched(old: &Policy, new: &Policy) -> [BTreeSet<u32>; 2] {
    use diff::Kind;
    let changes = diff::diff(old, new).0;
    let names = |kind| {
        let of = changes.iter().filter(move |c| c.kind == kind);
        of.map(|c| c.name.as_str()).collect::<BTreeSet<_>>()
    };
    let (rules, segments) = (names(Kind::Rule), names(Kind::Segment));
    let all = changes
        .iter()
        .any(|c| matches!(c.kind, Kind::Tenant | Kind::Infrastructure));
    [old, new].map(|policy| {
        let each = (0..).zip(&policy.rules);
        let touched = each.filter(|(_, rule)| {
            let mut ends = rule.from.iter().chain(&rule.to);
            let about = |s: &SegmentRef| {
                let tenant = s.tenant.as_deref().unwrap_or(&rule.tenant);
                segments.contains(&*qualified(tenant, &s.name))
            };
            all || rules.contains(&*qualified(&rule.tenant, &rule.name)) || ends.any(about)
        });
        touched.map(|(n, _)| n).collect()
    })
}

/// What a policy says of a pair: pieces, how, and by which rule.
fn said(state: &State<'_>, links: &Links<'_>, (a, b): (usize, usize)) -> Vec<(Piece, How, String)> {
    let pieces = links.pieces(a, b).into_iter();
    let said = pieces.filter_map(|piece| {
        let judgement = piece.judgement;
        let Why::Rule(rule) = judgement.why else {
            return None;
        };
        let asking = state.classifier.asking(&judgement);
        let how = if asking.is_some_and(|asking| asking.answer) {
            How::Ask
        } else {
            How::Allow
        };
        Some((piece, how, rules(state.classifier, rule, judgement.also)))
    });
    said.collect()
}

/// What differs between what two policies say of a pair.
fn changes(
    both: &[Vec<(Piece, How, String)>; 2],
) -> BTreeMap<(String, Option<How>, Option<How>), Cells> {
    let (mut keys, mut sports) = (BTreeSet::new(), BTreeSet::new());
    let mut parties = BTreeSet::new();
    for (piece, _, _) in both.iter().flatten() {
        keys.extend([piece.keys.0, piece.keys.1 + 1]);
        let PortRange { low, high } = piece.sports;
        sports.extend([u32::from(low), u32::from(high) + 1]);
        parties.insert(piece.parties);
    }
    let windows = |edges: &BTreeSet<u32>| {
        let ends = edges.iter().skip(1).map(|end| end - 1);
        edges.iter().copied().zip(ends).collect::<Vec<_>>()
    };
    let (keys, sports) = (windows(&keys), windows(&sports));
    let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let mut found: BTreeMap<_, Cells> = BTreeMap::new();
    for who in parties {
        for &(low, high) in &keys {
            let of = |side: &Vec<(Piece, How, String)>| {
                let here = side.iter().filter(|(piece, _, _)| {
                    piece.parties == who && (piece.keys.0..=piece.keys.1).contains(&low)
                });
                here.cloned().collect::<Vec<_>>()
            };
            let [before, after] = both.each_ref().map(of);
            for &(first, last) in &sports {
                let sports = PortRange {
                    low: port(first),
                    high: port(last),
                };
                let at = |side: &[(Piece, How, String)]| {
                    let mut side = side.iter();
                    let here = side.find(|(piece, _, _)| piece.sports.contains(sports.low));
                    here.map(|(_, how, rule)| (*how, rule.clone()))
                };
                let (before, after) = (at(&before), at(&after));
                let hows = [&before, &after].map(|s| s.as_ref().map(|(how, _)| *how));
                let Some((_, rule)) = after.or(before).filter(|_| hows[0] != hows[1]) else {
                    continue;
                };
                let cells = found.entry((rule, hows[0], hows[1])).or_default();
                cells.0.insert((low, high, sports.low, sports.high));
            }
        }
    }
    found
}
