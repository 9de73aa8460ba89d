//! What is kept of a policy for changing it ([`super::edit`]): names, and who is meant by what. No
//! question reads it.

use std::hash::Hash;

use ahash::RandomState;

use super::arrange::Heirs;
use super::compile::{Segment, built_in, number, service_ranges};
use super::management::Management;
use super::model::{Policy, PortRange, Rule, SegmentRef};
use super::{Party, SetId};

/// What a change is worked out from.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The policy's segments, by tenant and name.
    pub(super) segments: Names,
    /// Rules, by qualified name.
    pub(super) rules: Names,
    /// The sets of every segment.
    pub(super) sets: Pieces,
    pub(super) heirs: Heirs,
    pub(super) management: Management,
    pub(super) parties: Vec<Party>,
}

impl Known {
    /// The segment that a reference in a rule of this tenant means.
    pub(super) fn segment(
        &self,
        policy: &Policy,
        tenant: &str,
        segment: &SegmentRef,
    ) -> Option<Segment> {
        let owner = segment.tenant.as_deref().unwrap_or(tenant);
        let at = usize::from(policy.tenant_id(owner)?.0);
        let written = || {
            let mut found = self.segments.find((owner, segment.name.as_str()));
            found.find(|&n| {
                let found = policy.segments.get(n as usize);
                found.is_some_and(|s| s.tenant == owner && s.name == segment.name)
            })
        };
        built_in(policy, at, &segment.name).or_else(written)
    }
}

/// Names to numbers, without the names: whoever asks has them.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<(u32, u32)>);

impl Names {
    /// Names are numbered as they come.
    pub(super) fn new<K: Hash>(names: impl Iterator<Item = K>) -> Self {
        let mut list: Vec<_> = names.map(hash).zip(0..).collect();
        list.sort_unstable();
        Names(list)
    }

    /// Numbers that may be this name's.
    pub(super) fn find<K: Hash>(&self, name: K) -> impl Iterator<Item = u32> {
        let hash = hash(name);
        let first = self.0.partition_point(|&(other, _)| other < hash);
        let list = self.0.get(first..).unwrap_or(&[]).iter();
        list.take_while(move |&&(other, _)| other == hash)
            .map(|&(_, number)| number)
    }
}

fn hash<K: Hash>(name: K) -> u32 {
    // Any seeds do: equal hashes only make a search longer.
    let hash = RandomState::with_seeds(1, 2, 3, 4).hash_one(name);
    (hash >> 32) as u32
}

/// For every segment, the ranges of sets in it.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Where a segment's ranges end.
    ends: Vec<u32>,
    ranges: Vec<(u32, u32)>,
}

impl Pieces {
    /// `sets` are the segments of every set.
    pub(super) fn new(segments: usize, sets: &[&Vec<Segment>]) -> Self {
        let mut lists: Vec<Vec<(u32, u32)>> = vec![Vec::new(); segments];
        for (set, list) in (0..).zip(sets) {
            for &segment in *list {
                if let Some(ranges) = lists.get_mut(segment as usize) {
                    join(ranges, (set, set));
                }
            }
        }
        let mut pieces = Pieces::default();
        for list in lists {
            pieces.ranges.extend(list);
            pieces.ends.push(number(pieces.ranges.len()));
        }
        pieces
    }

    fn of(&self, segment: Segment) -> &[(u32, u32)] {
        let at = segment as usize;
        let before = at
            .checked_sub(1)
            .map_or(Some(0), |at| self.ends.get(at).copied());
        let (Some(first), Some(&end)) = (before, self.ends.get(at)) else {
            return &[];
        };
        self.ranges.get(first as usize..end as usize).unwrap_or(&[])
    }
}

/// Adds a range that starts no earlier than the last one.
fn join(ranges: &mut Vec<(u32, u32)>, range: (u32, u32)) {
    match ranges.last_mut() {
        Some(last) if range.0 <= last.1.saturating_add(1) => last.1 = last.1.max(range.1),
        _ => ranges.push(range),
    }
}

/// What a rule is about.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Scope {
    /// Ranges of sets.
    pub(super) from: Vec<(u32, u32)>,
    pub(super) to: Vec<(u32, u32)>,
    pub(super) services: Vec<(u32, u32, PortRange)>,
}

impl Scope {
    /// `None` when it names a segment that is not known.
    pub(super) fn new(known: &Known, policy: &Policy, rule: &Rule) -> Option<Self> {
        let sets = |list: &[SegmentRef]| {
            let mut all = Vec::new();
            for segment in list {
                let segment = known.segment(policy, &rule.tenant, segment)?;
                all.extend(known.sets.of(segment));
            }
            all.sort_unstable();
            let mut ranges = Vec::new();
            all.into_iter().for_each(|range| join(&mut ranges, range));
            Some(ranges)
        };
        Some(Scope {
            from: sets(&rule.from)?,
            to: sets(&rule.to)?,
            services: service_ranges(&rule.service).collect(),
        })
    }

    pub(super) fn holds(&self, from: SetId, to: SetId) -> bool {
        let inside = |ranges: &[(u32, u32)], set: SetId| {
            let at = ranges.partition_point(|&(_, last)| last < set.0);
            ranges.get(at).is_some_and(|&(first, _)| first <= set.0)
        };
        inside(&self.from, from) && inside(&self.to, to)
    }
}
