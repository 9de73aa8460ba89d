//! Chinese walls as they are written (`docs/walls.md`): who is bound, the sides, what must not meet. What is bound to which
//! side is not known here: that is history, which the control thread keeps.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::model::{ANY, Policy, SegmentRef, ServiceSpec, qualified};
use super::{Service, WorkloadFacts};

pub(super) mod check;
mod flow;
mod weaken;

pub use check::against;
use flow::leaks;
pub use weaken::{State, weakenings};

/// `[[wall]]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Wall {
    /// Stable name, unique within its tenant: bindings go by it.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Who is bound: segments of workloads.
    pub subjects: Vec<SegmentRef>,
    /// Which workloads are one subject; `None`: each is one of its own.
    pub same: Option<Same>,
    /// The sides.
    pub datasets: Vec<SegmentRef>,
    /// Which of them must not meet; empty: every two.
    pub conflicts: Vec<[SegmentRef; 2]>,
    /// How long a binding lasts.
    pub per: Per,
}

/// `same`: what makes several workloads one subject.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Same {
    /// `"tag:desk"`: the same tag `desk:...`.
    Tag(String),
    /// `"volume"`: a declared volume.
    Volume,
}

impl FromStr for Same {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("tag:") {
            Some(tag) if !tag.is_empty() => Ok(Same::Tag(tag.to_owned())),
            None if text == "volume" => Ok(Same::Volume),
            _ => Err("nothing that workloads can share"),
        }
    }
}

impl fmt::Display for Same {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Same::Tag(tag) => write!(f, "tag:{tag}"),
            Same::Volume => f.write_str("volume"),
        }
    }
}

impl Serialize for Same {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// `per`: how long a binding lasts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// For ever.
    #[default]
    Ever,
    /// While the transaction is open that it is part of.
    Transaction,
}

impl Wall {
    /// What it is called in records and listings.
    #[must_use]
    pub fn qualified(&self) -> String {
        qualified(&self.tenant, &self.name)
    }

    /// What a side is called.
    #[must_use]
    pub fn side(&self, dataset: &SegmentRef) -> String {
        let tenant = dataset.tenant.as_deref().unwrap_or(&self.tenant);
        qualified(tenant, &dataset.name)
    }

    /// Whether two of its datasets must not meet.
    #[must_use]
    pub fn conflict(&self, a: &str, b: &str) -> bool {
        let is = |pair: &[SegmentRef; 2]| {
            let [x, y] = pair.each_ref().map(|side| self.side(side));
            (x == a && y == b) || (x == b && y == a)
        };
        a != b && (self.conflicts.is_empty() || self.conflicts.iter().any(is))
    }

    /// Whether this workload is bound by it.
    #[must_use]
    pub fn binds(&self, policy: &Policy, workload: &WorkloadFacts) -> bool {
        let mut subjects = self.subjects.iter();
        subjects.any(|s| policy.refers_to(&self.tenant, s, workload))
    }

    /// The sides that this workload is part of.
    #[must_use]
    pub fn sides_of(&self, policy: &Policy, workload: &WorkloadFacts) -> Vec<String> {
        let sides = self.datasets.iter();
        let sides = sides.filter(|d| policy.refers_to(&self.tenant, d, workload));
        sides.map(|d| self.side(d)).collect()
    }

    /// The sides that the outside is part of: it is one party, whoever of it is meant.
    #[must_use]
    pub fn sides_of_the_outside(&self, policy: &Policy) -> Vec<String> {
        let sides = self.datasets.iter().filter(|d| {
            let segment = policy.segment(&self.tenant, d);
            segment.is_some_and(|segment| !segment.cidr.is_empty())
        });
        sides.map(|d| self.side(d)).collect()
    }

    /// What this workload is known by: its name, and what it shares with those it is one with.
    #[must_use]
    pub fn keys(&self, policy: &Policy, workload: &WorkloadFacts) -> Vec<Key> {
        let tenant = policy.tenant_name(workload.tenant).unwrap_or_default();
        let mut keys = vec![Key::Workload(qualified(tenant, &workload.name))];
        match &self.same {
            None => {}
            Some(Same::Tag(tag)) => {
                let has = |t: &&String| t.strip_prefix(&**tag).is_some_and(|t| t.starts_with(':'));
                if self.binds(policy, workload) {
                    let tags = workload.tags.iter().filter(has);
                    keys.extend(tags.map(|t| Key::Tag(qualified(tenant, t))));
                }
            }
            // Whoever has the volume has what is on it.
            Some(Same::Volume) => {
                let volumes = workload.volumes.iter();
                keys.extend(volumes.map(|v| Key::Volume(qualified(tenant, v))));
            }
        }
        keys
    }
}

/// By what somebody who carries a side is known, whatever address or port he has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A workload, by its qualified name.
    Workload(String),
    /// All with that tag.
    Tag(String),
    /// All with that volume.
    Volume(String),
    /// Everybody outside.
    Outside,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Workload(name) => write!(f, "workload {name}"),
            Key::Tag(tag) => write!(f, "tag {tag}"),
            Key::Volume(volume) => write!(f, "volume {volume}"),
            Key::Outside => f.write_str("outside"),
        }
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |kind| text.strip_prefix(kind).map(str::to_owned);
        let tag = || name("tag ").map(Key::Tag);
        let volume = || name("volume ").map(Key::Volume);
        let outside = || (text == "outside").then_some(Key::Outside);
        let key = name("workload ").map(Key::Workload);
        let key = key.or_else(tag).or_else(volume).or_else(outside);
        key.ok_or_else(|| format!("{text:?} is nobody who can carry a side"))
    }
}

/// Somebody carries a side of a wall.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Binding {
    /// The wall, by its qualified name.
    pub wall: String,
    /// Who.
    pub subject: Key,
    /// The side.
    pub side: String,
}

/// `[[sanitised]]`: a shared service that carries nothing over.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Sanitised {
    /// Owner of the segment.
    pub tenant: String,
    /// Who serves.
    pub segment: SegmentRef,
    /// What.
    pub service: Vec<ServiceSpec>,
    /// Why it carries nothing over.
    pub reason: String,
    /// Who answers for that.
    pub owner: String,
    /// The last day on which it is believed, in UTC.
    pub expires: Day,
}

impl Sanitised {
    /// What it is called in listings.
    #[must_use]
    pub fn label(&self) -> String {
        let services: Vec<_> = self.service.iter().map(ToString::to_string).collect();
        let tenant = self.segment.tenant.as_deref().unwrap_or(&self.tenant);
        format!(
            "{} {}",
            qualified(tenant, &self.segment.name),
            services.join(" ")
        )
    }

    /// Whether it serves this.
    #[must_use]
    pub fn serves(&self, service: Service) -> bool {
        self.service.iter().any(|spec| spec.covers(service))
    }
}

/// A day in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Day {
    year: u16,
    month: u8,
    day: u8,
}

impl Day {
    /// The day of a moment, in seconds since 1970.
    #[must_use]
    pub fn of(at_s: u64) -> Self {
        // Years that begin in March, so that the odd day is their last; 400 of them have 146,097 days.
        let days = at_s / 86_400 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        let small = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
        Day {
            year: u16::try_from(year + era * 400 + next).unwrap_or(u16::MAX),
            month: small(month),
            day: small(day),
        }
    }

    /// When it is over, in seconds since 1970.
    #[must_use]
    pub fn end_s(self) -> u64 {
        let leap =
            |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
        let years = (1970..u64::from(self.year)).map(|y| 365 + u64::from(leap(y)));
        let months = (1..self.month).map(|m| u64::from(days_in(self.year, m)));
        let days = years.sum::<u64>() + months.sum::<u64>() + u64::from(self.day);
        days * 86_400
    }
}

/// Days of a month.
fn days_in(year: u16, month: u8) -> u8 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 => 28 + u8::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl FromStr for Day {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "that is no day";
        let plain = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
        let mut parts = text.split('-');
        let (Some(y), Some(m), Some(d), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(WRONG);
        };
        if !(plain(y, 4) && plain(m, 2) && plain(d, 2)) {
            return Err(WRONG);
        }
        let day = Day {
            year: y.parse().map_err(|_e| WRONG)?,
            month: m.parse().map_err(|_e| WRONG)?,
            day: d.parse().map_err(|_e| WRONG)?,
        };
        let right = day.year >= 1970
            && (1..=12).contains(&day.month)
            && (1..=days_in(day.year, day.month)).contains(&day.day);
        right.then_some(day).ok_or(WRONG)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Policy {
    /// The segment that a reference of this tenant's means; none for `any`.
    pub(super) fn segment(
        &self,
        tenant: &str,
        segment: &SegmentRef,
    ) -> Option<&super::model::Segment> {
        let owner = segment.tenant.as_deref().unwrap_or(tenant);
        let mut segments = self.segments.iter();
        segments.find(|s| s.tenant == owner && s.name == segment.name)
    }

    /// Whether a reference of this tenant's means this workload, too.
    #[must_use]
    pub fn refers_to(&self, tenant: &str, segment: &SegmentRef, workload: &WorkloadFacts) -> bool {
        let owner = segment.tenant.as_deref().unwrap_or(tenant);
        if self.tenant_name(workload.tenant) != Some(owner) {
            return false;
        }
        let named = || self.segment(tenant, segment);
        segment.name == ANY || named().is_some_and(|segment| segment.holds(workload))
    }
}

#[cfg(test)]
mod tests;
