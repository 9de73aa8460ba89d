//! From a suspicion to what follows. Workers tell of suspicions (`datapath/suspect`); each one is recorded, told to whoever
//! watches, and answered by every `[[response]]` that is about it, in the order of the policy. One switch stops all of them.

use std::collections::{HashMap, HashSet, VecDeque};

use tracing::{info, warn};

use super::api::{
    ApiError, Applied, ErrorCode, Followed, ResponseInfo, ResponsesInfo, Stopped, SuspicionInfo,
};
use super::apply::Control;
use super::events::protocol_name;
use super::state::Desired;
use super::validate::facts;
use super::walls::now_wall_ns;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::worker::Shared;
use crate::event::{Consumer, SuspicionEvent};
use crate::packet::proto;
use crate::policy::suspicion::{Reaction, Response};

/// Suspicions that are kept to be listed, the newest ones; all are in the ledger.
const LISTED: usize = 256;
/// Suspicions taken from one worker per turn.
const PER_TURN: usize = 1024;
/// Who acts when a suspicion is recorded.
const DETECTOR: &str = "detector";

/// How often a response was carried out, and how often not.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    done: u64,
    withheld: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Suspicions {
    rings: Vec<Consumer<SuspicionEvent>>,
    /// Oldest first.
    recent: VecDeque<SuspicionInfo>,
    /// By the qualified name of the response.
    tallies: HashMap<String, Tally>,
    stopped: Option<Stopped>,
}

impl Suspicions {
    pub(super) fn new(shared: &Shared) -> Self {
        let rings = (0..shared.counters.len()).filter_map(|i| shared.take_suspicions(i));
        Suspicions {
            rings: rings.collect(),
            recent: VecDeque::new(),
            tallies: HashMap::new(),
            stopped: None,
        }
    }

    /// Workloads that a `notify` response told of, and nobody has cleared.
    pub(super) fn open(&self) -> Vec<String> {
        let open = self.recent.iter().filter(|s| s.open);
        let mut names: Vec<_> = open.map(|s| s.workload.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// What the last attempt was for.
fn last((protocol, to, port): (u8, crate::packet::Addr, u16)) -> String {
    let name = protocol_name(protocol);
    match protocol {
        0 => to.to_string(),
        proto::ICMP | proto::ICMPV6 => format!("{name} {to}"),
        _ if to.is_v4() => format!("{name} {to}:{port}"),
        _ => format!("{name} [{to}]:{port}"),
    }
}

fn now_s() -> u64 {
    u64::try_from(now_wall_ns() / 1_000_000_000).unwrap_or(0)
}

impl Control {
    /// From when on everybody is suspicious, as the policy says that was just put in force.
    pub(super) fn watch_out(&self, desired: &Desired) {
        for port in &desired.ports {
            let tenant = desired.policy.tenant_id(&port.tenant).unwrap_or_default();
            for workload in &port.workloads {
                if let Some(id) = self.attachments.of(port, workload) {
                    let thresholds = desired.policy.thresholds_of(&facts(tenant, workload));
                    self.shared.suspects.set(id, &thresholds);
                }
            }
        }
    }

    /// Whether responses were stopped when the switch ran last.
    pub(super) fn load_responses(&mut self) {
        self.suspicions.stopped = self.recorder.responses_stopped();
    }

    /// Takes the workers' suspicions, and does what follows.
    pub(super) fn take_suspicions(&mut self) {
        let mut rings = std::mem::take(&mut self.suspicions.rings);
        for ring in &mut rings {
            for event in std::iter::from_fn(|| ring.pop()).take(PER_TURN) {
                self.suspected(&event);
            }
        }
        self.suspicions.rings = rings;
    }

    fn suspected(&mut self, e: &SuspicionEvent) {
        let id = Some(AttachmentId(e.attachment));
        let who = self
            .residents()
            .find(|(p, w)| self.attachments.of(p, w) == id);
        let policy = &self.desired.policy;
        let (port, responses) = who.map_or((None, Vec::new()), |(port, workload)| {
            let tenant = policy.tenant_id(&port.tenant).unwrap_or_default();
            let facts = facts(tenant, workload);
            let responses = policy.responses_to(e.detector, &facts);
            (Some(port.name.clone()), responses.cloned().collect())
        });
        let mut info = SuspicionInfo {
            at: now_s(),
            workload: self.attachments.name(e.attachment),
            detector: e.detector.name().to_owned(),
            count: e.count,
            seconds: e.seconds,
            last: last(e.last),
            ..SuspicionInfo::default()
        };
        let before = self.recorder.who().to_owned();
        self.recorder.by(DETECTOR);
        for response in &responses {
            let outcome = self.follow(response, &mut info);
            let tally = self.suspicions.tallies.entry(response.qualified());
            let tally = tally.or_default();
            match &outcome {
                Ok(()) => tally.done += 1,
                Err(_) => tally.withheld += 1,
            }
            info.followed.push(Followed {
                response: response.qualified(),
                action: response.action.name().to_owned(),
                outcome: outcome.err().unwrap_or_else(|| "done".to_owned()),
            });
        }
        let generation = self.shared.snapshots.generation();
        self.recorder.suspected(generation, &info, port.as_deref());
        self.tell_suspicion(&info);
        self.recorder.by(before);
        let suspicions = &mut self.suspicions;
        suspicions.recent.push_back(info);
        if suspicions.recent.len() > LISTED {
            suspicions.recent.pop_front();
        }
    }

    /// Carries a response out.
    ///
    /// # Errors
    /// Why it was not.
    fn follow(&mut self, response: &Response, info: &mut SuspicionInfo) -> Result<(), String> {
        if response.staged {
            return Err("staged".to_owned());
        }
        if self.suspicions.stopped.is_some() {
            return Err("stopped".to_owned());
        }
        let SuspicionInfo {
            workload,
            detector,
            count,
            seconds,
            last,
            ..
        } = &*info;
        let name = response.qualified();
        match response.action {
            Reaction::Log => {
                info!(
                    response = name,
                    workload, detector, count, seconds, last, "suspicion"
                );
            }
            Reaction::Notify => {
                warn!(
                    response = name,
                    workload, detector, count, seconds, last, "suspicion"
                );
                info.open = true;
            }
        }
        Ok(())
    }

    /// The newest suspicions, newest first.
    pub(super) fn suspicion_infos(&self) -> Vec<SuspicionInfo> {
        self.suspicions.recent.iter().rev().cloned().collect()
    }

    pub(super) fn responses_info(&self) -> ResponsesInfo {
        let responses = self.desired.policy.responses.iter().map(|response| {
            let name = response.qualified();
            let tally = self.suspicions.tallies.get(&name);
            let tally = tally.copied().unwrap_or_default();
            ResponseInfo {
                name,
                on: response.on.iter().map(|d| d.name().to_owned()).collect(),
                of: response.of.iter().map(ToString::to_string).collect(),
                action: response.action.name().to_owned(),
                staged: response.staged,
                done: tally.done,
                withheld: tally.withheld,
            }
        });
        ResponsesInfo {
            stopped: self.suspicions.stopped.clone(),
            responses: responses.collect(),
        }
    }

    /// A person has seen to it.
    pub(super) fn clear_suspicion(&mut self, text: &str) -> Result<Applied, ApiError> {
        let known = |name: &str| self.suspicions.recent.iter().any(|s| s.workload == name);
        // It may be gone by now.
        let name = if known(text) {
            text.to_owned()
        } else {
            self.resolve(text)?
        };
        let mut changes = Vec::new();
        let recent = self.suspicions.recent.iter_mut();
        let of: Vec<_> = recent.filter(|s| s.workload == name && s.open).collect();
        if of.is_empty() {
            let error =
                format!("{name} is not under suspicion; `vswitch suspicion list` shows who is");
            return Err(ApiError::new(ErrorCode::Usage, error));
        }
        let detectors: HashSet<_> = of.iter().map(|s| s.detector.clone()).collect();
        for suspicion in of {
            suspicion.open = false;
        }
        for detector in detectors {
            changes.push(format!("{name} is cleared of {detector}"));
        }
        changes.sort_unstable();
        let generation = self.shared.snapshots.generation();
        self.recorder.suspicion_cleared(generation, &name);
        Ok(applied(generation, changes))
    }

    /// Stops every response.
    pub(super) fn stop_responses(&mut self, reason: &str) -> Result<Applied, ApiError> {
        if self.suspicions.stopped.is_some() {
            let error = "responses are stopped already; `vswitch response start` lets them go on";
            return Err(ApiError::new(ErrorCode::Usage, error));
        }
        let reason = format!("{} ({})", reason, self.recorder.who());
        let generation = self.shared.snapshots.generation();
        self.recorder.responses(generation, Some(&reason));
        self.suspicions.stopped = Some(Stopped {
            since: now_s(),
            reason,
        });
        warn!("responses are stopped");
        let change = "no response is carried out until `vswitch response start`";
        Ok(applied(generation, vec![change.to_owned()]))
    }

    /// Lets them go on. What was withheld meanwhile does not follow.
    pub(super) fn start_responses(&mut self) -> Result<Applied, ApiError> {
        if self.suspicions.stopped.take().is_none() {
            let error = "responses are not stopped";
            return Err(ApiError::new(ErrorCode::Usage, error));
        }
        let generation = self.shared.snapshots.generation();
        self.recorder.responses(generation, None);
        info!("responses go on");
        Ok(applied(generation, vec!["responses go on".to_owned()]))
    }
}

fn applied(generation: u64, changes: Vec<String>) -> Applied {
    Applied {
        generation,
        changes,
        settle_us: 0,
        confirm_s: None,
    }
}
