//! Whom somebody can connect to, and what a yes or another policy would open ([`crate::policy::reach`]): what the control
//! thread gives to be worked out elsewhere, so that nobody waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::api::{ApiError, AskInfo, ErrorCode, PolicyDiff};
use super::apply::Control;
use super::state::Desired;
use super::validate;
use super::walls::Apart;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::verdicts::Topic;
use crate::packet::Addr;
use crate::policy::model::{Policy, qualified};
use crate::policy::reach::{End, Opened, Reach, Standing, State, World, compare, opened, reach};
use crate::policy::walls::Day;
use crate::policy::{Classifier, Service, WorkloadFacts};

/// What the outside is called.
const OUTSIDE: &str = "outside";
/// Groups that are listed, at most: what a person reads.
const LISTED: usize = 20;
/// Of each question in a list.
const LISTED_EACH: usize = 3;
/// How long a list of questions may take; `ask show` tells what it leaves out.
const PATIENCE: Duration = Duration::from_millis(300);

/// What holds until something is applied.
#[derive(Debug)]
struct Fixed {
    generation: u64,
    policy: Policy,
    classifier: Arc<Classifier>,
    workloads: Vec<WorkloadFacts>,
    /// By workload.
    ids: Vec<Option<AttachmentId>>,
    ends: HashMap<AttachmentId, End>,
    outside: Option<AttachmentId>,
}

/// What was worked out for the last question, if anything.
#[derive(Debug, Default)]
pub(super) struct Known(Option<Arc<Fixed>>);

/// All that is to be known, at one moment.
#[derive(Debug)]
pub(super) struct Moment {
    fixed: Arc<Fixed>,
    walls: Apart,
    classes: Vec<u64>,
    answers: Vec<Standing>,
    today: Day,
}

/// The end that is meant by an attachment, and an address if it is outside.
fn end(fixed: &Fixed, id: AttachmentId, addr: Option<Addr>) -> Option<End> {
    match fixed.ends.get(&id)? {
        End::Outside(_) => Some(End::Outside(addr.map(|addr| addr.to_ip()))),
        workload @ End::Workload(_) => Some(*workload),
    }
}

/// What a question is about.
fn subject(fixed: &Fixed, topic: &Topic) -> Option<(End, End, Service)> {
    let service = Service::Ip {
        protocol: topic.protocol,
        sport: 0,
        dport: topic.dport,
    };
    let from = end(fixed, topic.from, topic.from_addr)?;
    Some((from, end(fixed, topic.to, topic.to_addr)?, service))
}

impl Control {
    /// All that is to be known now.
    pub(super) fn moment(&mut self, now_ns: u64) -> Result<Moment, ApiError> {
        let generation = self.shared.snapshots.generation();
        let known = self.reach.0.take();
        let known = known.filter(|fixed| fixed.generation == generation);
        let fixed = known.or_else(|| self.fixed(generation).map(Arc::new));
        let none = || ApiError::new(ErrorCode::Refused, "no policy is in force yet");
        let fixed = fixed.ok_or_else(none)?;
        self.reach.0 = Some(Arc::clone(&fixed));
        let walls = self.apart();
        let class = |id: &Option<AttachmentId>| id.map_or(0, |id| walls.class(id));
        let standing = self.asks.standing(now_ns);
        let answers = standing.filter_map(|(topic, yes)| {
            let (from, to, service) = subject(&fixed, topic)?;
            Some(Standing {
                from,
                to,
                service,
                yes,
            })
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Moment {
            classes: fixed.ids.iter().map(class).collect(),
            answers: answers.collect(),
            today: Day::of(now.map_or(0, |now| now.as_secs())),
            walls,
            fixed,
        })
    }

    fn fixed(&self, generation: u64) -> Option<Fixed> {
        let desired = &self.desired;
        let mut fixed = Fixed {
            generation,
            policy: desired.policy.clone(),
            classifier: Arc::clone(self.classifier()?),
            workloads: validate::workloads(desired),
            ids: Vec::new(),
            ends: HashMap::new(),
            outside: None,
        };
        for port in &desired.ports {
            if let Some(id) = self.attachments.outside_of(port).filter(|_| port.uplink) {
                fixed.ends.insert(id, End::Outside(None));
                fixed.outside = Some(id);
            }
            for workload in &port.workloads {
                let id = self.attachments.of(port, workload);
                let end = End::Workload(fixed.ids.len());
                fixed.ends.extend(id.map(|id| (id, end)));
                fixed.ids.push(id);
            }
        }
        Some(fixed)
    }

    /// Somebody, by his name.
    pub(super) fn reached_as(&self, text: &str) -> Result<String, ApiError> {
        match text {
            OUTSIDE => Ok(text.to_owned()),
            text => Ok(self.resolve(text)?),
        }
    }

    /// The state that there would be with another policy; its diff is worked out elsewhere.
    pub(super) fn with_policy(&self, policy: Policy) -> Desired {
        Desired {
            policy,
            ..self.desired.clone()
        }
    }
}

impl Moment {
    fn with<T>(&self, work: impl FnOnce(&World<'_>) -> T) -> T {
        let fixed = &*self.fixed;
        let id = |end| match end {
            End::Workload(n) => fixed.ids.get(n).copied().flatten(),
            End::Outside(_) => fixed.outside,
        };
        let walls = |a: End, b: End, next: bool| self.walls.between((id(a)?, id(b)?), next);
        work(&World {
            policy: &fixed.policy,
            classifier: &fixed.classifier,
            workloads: &fixed.workloads,
            apart: &self.classes,
            answers: &self.answers,
            walls: (!self.walls.is_empty()).then_some(&walls),
            today: self.today,
        })
    }

    /// Whom somebody of that name can connect to, or who to him.
    pub(super) fn reach(&self, name: &str, to: bool, most: usize) -> Result<Reach, ApiError> {
        let policy = &self.fixed.policy;
        let is_meant = |w: &WorkloadFacts| {
            let tenant = policy.tenant_name(w.tenant).unwrap_or_default();
            qualified(tenant, &w.name) == name
        };
        let of = if name == OUTSIDE {
            End::Outside(None)
        } else {
            let at = self.fixed.workloads.iter().position(is_meant);
            // Its name was known a moment before.
            let gone = || ApiError::new(ErrorCode::Usage, format!("there is no workload {name}"));
            End::Workload(at.ok_or_else(gone)?)
        };
        Ok(self.with(|world| reach(world, of, to, most)))
    }

    /// What a yes would open.
    fn opened(&self, topic: &Topic, most: usize) -> Option<Opened> {
        let about = subject(&self.fixed, topic)?;
        Some(self.with(|world| opened(world, about, most)))
    }

    /// A question, with what a yes would open.
    pub(super) fn ask(&self, (ask, topic): (AskInfo, Topic)) -> AskInfo {
        let opens = self.opened(&topic, LISTED);
        AskInfo { opens, ..ask }
    }

    /// Questions, the first of them with what a yes would open.
    pub(super) fn asks(&self, asks: Vec<(AskInfo, Topic)>) -> Vec<AskInfo> {
        let start = Instant::now();
        let shown = asks.into_iter().map(|(ask, topic)| {
            let is_time = start.elapsed() < PATIENCE;
            let opens = is_time.then(|| self.opened(&topic, LISTED_EACH)).flatten();
            AskInfo { opens, ..ask }
        });
        shown.collect()
    }

    /// What another state's policy opens and closes, beside what is said of it already.
    pub(super) fn compare(&self, after: &Desired, diff: PolicyDiff) -> PolicyDiff {
        let fixed = &*self.fixed;
        match validate::compile(after, None) {
            Ok(compiled) => {
                let old = State {
                    policy: &fixed.policy,
                    classifier: &fixed.classifier,
                    workloads: &fixed.workloads,
                };
                let new = State {
                    policy: &after.policy,
                    classifier: &compiled.classifier,
                    workloads: &validate::workloads(after),
                };
                PolicyDiff {
                    pairs: Some(compare(&old, &new, LISTED)),
                    ..diff
                }
            }
            Err(errors) => PolicyDiff {
                refused: errors.iter().map(ToString::to_string).collect(),
                ..diff
            },
        }
    }
}
