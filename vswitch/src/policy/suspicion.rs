//! From when on a workload is suspicious (`[[suspicion]]`), and what follows (`[[response]]`). What detectors count, and why
//! the defaults are what they are, is in `docs/suspicion.md`.

use std::str::FromStr;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::WorkloadFacts;
use super::error::FieldPath;
use super::model::{ANY, Ask, BadService, Otherwise, Policy, SegmentRef, ServiceSpec, qualified};
use super::validate::Check;
use crate::event::Detector;

/// Most that differ and can be told apart by a sketch of the data path's size.
pub const DISTINCT_MAX: u32 = 1000;
/// Most of what happens: a worker's counter is a number of 31 bits.
pub const COUNT_MAX: u32 = 1_000_000_000;
/// The longest window: a day.
pub const WITHIN_S_MAX: u32 = 86_400;

/// What a suspect's questions are like. Half a minute: a person has seen it by then, and a client still retries.
pub(super) const ASK: Ask = Ask {
    deadline_ms: 30_000,
    ..Ask::new(Otherwise::Deny)
};
/// Stands for that among the definitions of rules ([`super::Asking`]): an answer to a suspect's question outlives the rule that
/// would have allowed it. No rule's, but by a chance of one in 2^64.
pub const ASKED: u64 = 0x5355_5350_4543_5421;

/// So many within so long. `count` 0: never; of a limit, no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Level {
    /// How many.
    pub count: u32,
    /// Seconds.
    pub within_s: u32,
}

/// When a detector says something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Threshold {
    /// So many, fast.
    pub fast: Level,
    /// So many, slowly: for whoever has time.
    pub slow: Level,
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("count", &self.fast.count)?;
        map.serialize_entry("within_s", &self.fast.within_s)?;
        if self.slow.count > 0 {
            map.serialize_entry("slow_count", &self.slow.count)?;
            map.serialize_entry("slow_within_s", &self.slow.within_s)?;
        }
        map.end()
    }
}

/// One workload's thresholds, by detector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thresholds(pub [Threshold; Detector::COUNT]);

impl Default for Thresholds {
    /// Of the scans: Zeek's `scan` policy has 15 ports and 25 addresses in five minutes, of failed attempts; a minute is
    /// enough for tools in a hurry, and an hour finds `nmap -T1`, a probe every 15 s. What a wall or the guard refuses,
    /// honest programs do not try. The others are guesses: more than a busy client's, less than a flood.
    fn default() -> Self {
        let of = |count, within_s, slow_count, slow_within_s| Threshold {
            fast: Level { count, within_s },
            slow: Level {
                count: slow_count,
                within_s: slow_within_s,
            },
        };
        Thresholds(Detector::ALL.map(|detector| match detector {
            Detector::PortScan => of(20, 60, 60, 3600),
            Detector::AddressScan => of(25, 60, 75, 3600),
            // No number fits a web server and what monitors a thousand of them.
            Detector::FanOut => of(0, 0, 0, 0),
            Detector::Wall => of(3, 60, 10, 3600),
            // Whoever has a decoy made knows that nobody has business there.
            Detector::Decoy => of(1, 60, 0, 0),
            Detector::SynFlood => of(1000, 10, 0, 0),
            Detector::Spoofing => of(50, 60, 0, 0),
            Detector::DeniedRate => of(2000, 10, 0, 0),
        }))
    }
}

impl Thresholds {
    /// A detector's.
    #[must_use]
    pub fn of(&self, detector: Detector) -> Threshold {
        self.0.get(detector as usize).copied().unwrap_or_default()
    }

    fn of_mut(&mut self, detector: Detector) -> Option<&mut Threshold> {
        self.0.get_mut(detector as usize)
    }
}

/// `[[suspicion]]`: thresholds of some workloads, instead of the default ones.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Suspicion {
    /// Stable name, unique within its tenant.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Whom it is about.
    pub of: Vec<SegmentRef>,
    /// Those it states; [`Threshold::default`] turns a detector off.
    #[serde(flatten, serialize_with = "by_name")]
    pub thresholds: Vec<(Detector, Threshold)>,
}

fn by_name<S: Serializer>(list: &[(Detector, Threshold)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(list.iter().map(|(d, threshold)| (d.name(), threshold)))
}

impl Suspicion {
    /// Its name; outside the default tenant with the tenant's.
    #[must_use]
    pub fn qualified(&self) -> String {
        qualified(&self.tenant, &self.name)
    }
}

/// `action` of a response.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reaction {
    /// A line in the switch's log.
    Log,
    /// A warning there, and in `status` until somebody has cleared the workload.
    Notify,
    /// The rules that would allow it something ask first.
    Ask,
    /// It is put into quarantine.
    Quarantine,
    /// It is put into quarantine, restarted, and released when that was done.
    Restart,
}

impl Reaction {
    /// All.
    pub const ALL: [Reaction; 5] = [
        Reaction::Log,
        Reaction::Notify,
        Reaction::Ask,
        Reaction::Quarantine,
        Reaction::Restart,
    ];

    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Reaction::Log => "log",
            Reaction::Notify => "notify",
            Reaction::Ask => "ask",
            Reaction::Quarantine => "quarantine",
            Reaction::Restart => "restart",
        }
    }

    /// Whether it takes something away from the workload.
    #[must_use]
    pub const fn contains(self) -> bool {
        !matches!(self, Reaction::Log | Reaction::Notify)
    }

    /// Whether it ends what the workload has open.
    #[must_use]
    pub const fn cuts(self) -> bool {
        matches!(self, Reaction::Quarantine | Reaction::Restart)
    }
}

/// `[[response]]`: what follows when a workload is suspected.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Response {
    /// Stable name, unique within its tenant.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Of what.
    #[serde(serialize_with = "names")]
    pub on: Vec<Detector>,
    /// Who.
    pub of: Vec<SegmentRef>,
    /// What is done.
    pub action: Reaction,
    /// For how long, seconds.
    pub for_s: u32,
    /// What a quarantine leaves open.
    pub keep: Vec<Keep>,
    /// Who was restarted so lately, in seconds, is quarantined instead.
    pub again_s: u32,
    /// It is done to at most this share of those it is about at a time, but to one always.
    pub share_percent: u8,
    /// It is done so often.
    pub limit: Level,
    /// It only says what it would do.
    pub staged: bool,
}

/// `WORKLOAD:SERVICE` or `SEGMENT:SERVICE`: what is open between the suspect and these, for this service.
#[derive(Clone, PartialEq, Debug)]
pub struct Keep {
    /// A workload, or a segment of the response's tenant.
    pub who: String,
    /// For what.
    pub service: ServiceSpec,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (who, service) = text.rsplit_once(':').ok_or("there is no service")?;
        if who.is_empty() {
            return Err("there is no name".to_owned());
        }
        let service = service.parse().map_err(|e: BadService| e.to_string())?;
        Ok(Keep {
            who: who.to_owned(),
            service,
        })
    }
}

impl Serialize for Keep {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{}:{}", self.who, self.service))
    }
}

fn names<S: Serializer>(list: &[Detector], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(list.iter().map(|detector| detector.name()))
}

impl Response {
    /// An hour: by then somebody has looked, or it is suspected anew.
    pub const FOR_S: u32 = 3600;
    /// An hour: what was restarted from what is trusted, and does it again, was not helped by that.
    pub const AGAIN_S: u32 = 3600;
    /// Thirty days: as long as an answer may hold.
    pub const AGAIN_S_MAX: u32 = 30 * 86_400;
    /// What serves is left with three quarters of itself.
    pub const SHARE_PERCENT: u8 = 25;
    /// Of what contains: more is no incident, but an attack by way of us.
    pub const LIMIT: Level = Level {
        count: 10,
        within_s: 3600,
    };
    /// What [`Response::actor`] begins with.
    pub const ACTOR: &str = "response ";

    /// Its name; outside the default tenant with the tenant's.
    #[must_use]
    pub fn qualified(&self) -> String {
        qualified(&self.tenant, &self.name)
    }

    /// Who acts when it is carried out; no person has such a name.
    #[must_use]
    pub fn actor(&self) -> String {
        format!("{}{}", Self::ACTOR, self.qualified())
    }
}

impl Policy {
    /// From when on this workload is suspicious: of each detector, what the first `[[suspicion]]` says that is about it and
    /// says something of it.
    #[must_use]
    pub fn thresholds_of(&self, workload: &WorkloadFacts) -> Thresholds {
        let mut all = Thresholds::default();
        // The first ones last, so that they count.
        for suspicion in self.suspicions.iter().rev() {
            if self.means(&suspicion.tenant, &suspicion.of, workload) {
                for (detector, threshold) in &suspicion.thresholds {
                    if let Some(of) = all.of_mut(*detector) {
                        *of = *threshold;
                    }
                }
            }
        }
        all
    }

    /// What follows when `detector` suspects this workload, in the order of the file.
    pub fn responses_to<'a>(
        &'a self,
        detector: Detector,
        workload: &'a WorkloadFacts,
    ) -> impl Iterator<Item = &'a Response> {
        self.responses.iter().filter(move |response| {
            response.on.contains(&detector) && self.means(&response.tenant, &response.of, workload)
        })
    }

    /// Whether what a response keeps may be with this workload.
    #[must_use]
    pub fn keeps_with(&self, response: &Response, keep: &Keep, workload: &WorkloadFacts) -> bool {
        let segment = SegmentRef {
            tenant: None,
            name: keep.who.clone(),
        };
        self.tenant_name(workload.tenant) == Some(response.tenant.as_str())
            && (workload.name == keep.who || self.refers_to(&response.tenant, &segment, workload))
    }

    /// Whether a response is about this workload.
    #[must_use]
    pub fn is_about(&self, response: &Response, workload: &WorkloadFacts) -> bool {
        self.means(&response.tenant, &response.of, workload)
    }

    fn means(&self, tenant: &str, of: &[SegmentRef], workload: &WorkloadFacts) -> bool {
        let mut of = of.iter();
        of.any(|segment| self.refers_to(tenant, segment, workload))
    }
}

/// Checks thresholds and responses by themselves.
pub(super) fn check<'a>(check: &mut Check<'a>, policy: &'a Policy) {
    for (index, suspicion) in policy.suspicions.iter().enumerate() {
        let at = FieldPath::root().item("suspicion", index, &suspicion.name);
        let before = policy.suspicions.iter().take(index);
        let known = before.map(|s| (&s.tenant, &s.name));
        named(
            check,
            &at,
            "suspicion",
            (&suspicion.tenant, &suspicion.name),
            known,
        );
        segments(check, policy, &at, &suspicion.tenant, &suspicion.of);
        if suspicion.thresholds.is_empty() {
            let todo = "state a threshold, such as port-scan = { count = 50, within_s = 60 }, or remove it";
            check.error(at, "it changes nothing", todo);
        }
    }
    for (index, response) in policy.responses.iter().enumerate() {
        let at = FieldPath::root().item("response", index, &response.name);
        let before = policy.responses.iter().take(index);
        let known = before.map(|r| (&r.tenant, &r.name));
        named(
            check,
            &at,
            "response",
            (&response.tenant, &response.name),
            known,
        );
        segments(check, policy, &at, &response.tenant, &response.of);
        if response.on.is_empty() {
            let todo = "name a detector, such as \"port-scan\"";
            check.error(at.key("on"), "it answers to nothing", todo);
        }
    }
}

fn named<'a>(
    check: &mut Check<'a>,
    at: &FieldPath,
    what: &str,
    own: (&'a String, &'a String),
    mut known: impl Iterator<Item = (&'a String, &'a String)>,
) {
    check.name(at, own.1);
    check.tenant(at, own.0);
    if known.any(|other| other == own) {
        let text = format!("duplicate {what} {:?}", own.1);
        check.error(at.key("name"), text, "rename one");
    }
}

fn segments(
    check: &mut Check<'_>,
    policy: &Policy,
    at: &FieldPath,
    tenant: &str,
    of: &[SegmentRef],
) {
    for (n, segment) in of.iter().enumerate() {
        let at = at.item("of", n, "");
        if segment
            .tenant
            .as_deref()
            .is_some_and(|other| other != tenant)
        {
            let text = format!("{segment} is another tenant's");
            check.error(at, text, "name a segment of its own tenant");
            continue;
        }
        let found = policy.segment(tenant, segment);
        if segment.name != ANY && found.is_some_and(|s| s.tags.is_empty() && s.names.is_empty()) {
            check.error(
                at.clone(),
                "it selects no workload, and only workloads are suspected",
                "give the segment `tags` or `names`",
            );
        }
        check.reference(at, tenant, segment);
    }
}
