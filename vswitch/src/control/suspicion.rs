//! From a suspicion to what follows. Workers tell of suspicions (`datapath/suspect`); each one is recorded, told to whoever
//! watches, and answered by every `[[response]]` that is about it, in the order of the policy. One switch stops all of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use tracing::{info, warn};

use super::api::{
    ApiError, Applied, ContainedInfo, ErrorCode, Followed, ResponseInfo, ResponsesInfo, Stopped,
    SuspicionInfo,
};
use super::apply::Control;
use super::events::protocol_name;
use super::quarantine::Wanted;
use super::readmission::Evidence;
use super::state::Desired;
use super::validate::facts;
use super::walls::now_wall_ns;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::worker::Shared;
use crate::event::{Consumer, Detector, SuspicionEvent};
use crate::packet::proto;
use crate::policy::suspicion::{Level, Reaction, Response};

/// Suspicions that are kept to be listed, the newest ones; all are in the ledger.
const LISTED: usize = 256;
/// Suspicions taken from one worker per turn.
const PER_TURN: usize = 1024;
/// Who acts when a suspicion is recorded.
const DETECTOR: &str = "detector";

/// How long rules that answer questions hear of a suspicion: as long as of other answers.
const REMEMBERED_NS: u64 = 3600 * SECOND_NS;
/// Workloads of which that is remembered before old ones are forgotten: as many as there usually are.
const RAISED_MAX: usize = 1024;
const SECOND_NS: u64 = 1_000_000_000;

/// How often a response was carried out, and how often not.
#[derive(Clone, Debug, Default)]
struct Tally {
    done: u64,
    withheld: u64,
    /// When it was carried out, as far back as its limit looks.
    times: VecDeque<u64>,
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
    /// Whom a response takes something away from.
    contained: HashMap<AttachmentId, Contained>,
    /// When whom a response restarted last, by name: it may be another attachment's by then.
    restarted: HashMap<String, Past>,
    /// By which detectors somebody was suspected, and when last.
    raised: HashMap<AttachmentId, BTreeMap<Detector, u64>>,
}

/// Somebody whom a response takes something away from.
#[derive(Clone, Debug)]
struct Contained {
    workload: String,
    response: String,
    action: Reaction,
    until_ns: u64,
}

/// When something happened: so long before the switch knew of it, which may have begun since.
#[derive(Clone, Copy, Debug)]
struct Past {
    known_ns: u64,
    before_ns: u64,
}

impl Past {
    fn at(now_ns: u64) -> Self {
        Past {
            known_ns: now_ns,
            before_ns: 0,
        }
    }

    /// How long ago it was.
    fn ago_ns(self, now_ns: u64) -> u64 {
        let known_for_ns = now_ns.saturating_sub(self.known_ns);
        known_for_ns.saturating_add(self.before_ns)
    }
}

impl Suspicions {
    pub(super) fn new(shared: &Shared) -> Self {
        let rings = (0..shared.counters.len()).filter_map(|i| shared.take_suspicions(i));
        Suspicions {
            rings: rings.collect(),
            recent: VecDeque::new(),
            tallies: HashMap::new(),
            stopped: None,
            contained: HashMap::new(),
            restarted: HashMap::new(),
            raised: HashMap::new(),
        }
    }

    /// Workloads that somebody should look at, and nobody has cleared.
    pub(super) fn open(&self) -> Vec<String> {
        let open = self.recent.iter().filter(|s| s.open).map(|s| &s.workload);
        let contained = self.contained.values().map(|c| &c.workload);
        let mut names: Vec<_> = open.chain(contained).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Suspicions {
    /// By which detectors a workload was suspected within the last hour.
    #[cfg(feature = "manager")]
    pub(super) fn of(&self, workload: AttachmentId, now_ns: u64) -> Vec<String> {
        let raised = self.raised.get(&workload).into_iter().flatten();
        let raised = raised.filter(|(_, at)| now_ns.saturating_sub(**at) < REMEMBERED_NS);
        raised
            .map(|(detector, _)| detector.name().to_owned())
            .collect()
    }

    /// When somebody is let go.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.contained.values().map(|c| c.until_ns).min()
    }

    fn remember(&mut self, e: &SuspicionEvent, now_ns: u64) {
        if self.raised.len() > RAISED_MAX {
            self.raised.retain(|_, raised| {
                let mut times = raised.values();
                times.any(|at| now_ns.saturating_sub(*at) < REMEMBERED_NS)
            });
        }
        let raised = self.raised.entry(AttachmentId(e.attachment)).or_default();
        raised.insert(e.detector, now_ns);
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
                    let asks = self.is_asked_about(id);
                    self.shared.suspects.ask(id, asks);
                }
            }
        }
    }

    /// Whether responses were stopped when the switch ran last, and whom they had restarted.
    pub(super) fn load_responses(&mut self) {
        self.suspicions.stopped = self.recorder.responses_stopped();
        let restarted = self.recorder.let_go().into_iter().map(|(workload, at)| {
            let past = Past {
                known_ns: self.started_ns,
                // Of a clock that was put back, it was just now.
                before_ns: u64::try_from(now_wall_ns().saturating_sub(at)).unwrap_or(0),
            };
            (workload, past)
        });
        self.suspicions.restarted = restarted.collect();
    }

    /// Takes the workers' suspicions, and does what follows.
    pub(super) fn take_suspicions(&mut self, now_ns: u64) {
        let over = self.suspicions.contained.iter();
        let over = over.filter(|(_, c)| c.until_ns <= now_ns);
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        self.ask_no_more(&over);
        let mut rings = std::mem::take(&mut self.suspicions.rings);
        for ring in &mut rings {
            for event in std::iter::from_fn(|| ring.pop()).take(PER_TURN) {
                self.suspected(&event, now_ns);
            }
        }
        self.suspicions.rings = rings;
    }

    fn suspected(&mut self, e: &SuspicionEvent, now_ns: u64) {
        self.suspicions.remember(e, now_ns);
        #[cfg(feature = "manager")]
        self.outdate(Some(AttachmentId(e.attachment)), now_ns);
        let who = self.resident_at(AttachmentId(e.attachment));
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
            let outcome = self.follow(response, (e, &info), now_ns);
            info.open |= outcome.is_ok() && response.action != Reaction::Log;
            let tally = self.suspicions.tallies.entry(response.qualified());
            let tally = tally.or_default();
            match &outcome {
                Ok(_) => tally.done += 1,
                Err(_) => tally.withheld += 1,
            }
            info.followed.push(Followed {
                response: response.qualified(),
                action: response.action.name().to_owned(),
                outcome: outcome.unwrap_or_else(|why| why),
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

    /// Carries a response out; what came of it.
    ///
    /// # Errors
    /// Why it was not.
    fn follow(
        &mut self,
        response: &Response,
        (e, info): (&SuspicionEvent, &SuspicionInfo),
        now_ns: u64,
    ) -> Result<String, String> {
        let id = AttachmentId(e.attachment);
        // What it would be withheld for anyhow is said of a staged one, too.
        let is_held = self.is_held(id);
        if is_held && response.action.cuts() {
            return Err("it is in quarantine".to_owned());
        }
        let is_contained = is_held || self.is_asked_about(id);
        // Whom something is taken away from already spends no more, but every restart counts.
        let renews =
            is_contained && response.action.contains() && response.action != Reaction::Restart;
        if !renews {
            self.within_limits(response, id, now_ns)?;
        }
        if response.staged {
            return Err("staged".to_owned());
        }
        if self.suspicions.stopped.is_some() {
            return Err("stopped".to_owned());
        }
        let workload = &info.workload;
        let name = response.qualified();
        let reason = format!(
            "{}: {} in {} s, last {}",
            info.detector, info.count, info.seconds, info.last
        );
        match response.action {
            Reaction::Log => info!(response = name, workload, reason, "suspicion"),
            Reaction::Notify => warn!(response = name, workload, reason, "suspicion"),
            Reaction::Ask => {
                warn!(response = name, workload, reason, "suspicion");
                let contained = Contained {
                    workload: workload.clone(),
                    response: name.clone(),
                    action: response.action,
                    until_ns: now_ns + u64::from(response.for_s) * SECOND_NS,
                };
                self.suspicions.contained.insert(id, contained);
                self.shared.suspects.ask(id, true);
            }
            Reaction::Quarantine | Reaction::Restart => {}
        }
        let outcome = match response.action {
            Reaction::Quarantine => self
                .shut_in(response, (e, workload), &reason)
                .map(|()| None),
            Reaction::Restart => self.restart_suspect(response, (e, workload), &reason, now_ns),
            _ => Ok(None),
        };
        self.recorder.by(DETECTOR);
        let outcome = outcome.map_err(|e| format!("failed: {}", e.errors.join("; ")))?;
        if response.limit.count > 0 && !renews {
            let tally = self.suspicions.tallies.entry(name).or_default();
            tally.times.push_back(now_ns);
        }
        Ok(outcome.unwrap_or_else(|| "done".to_owned()))
    }

    /// Puts a suspect into quarantine. What the response keeps goes on.
    fn shut_in(
        &mut self,
        response: &Response,
        (e, workload): (&SuspicionEvent, &str),
        reason: &str,
    ) -> Result<(), ApiError> {
        let who = response.actor();
        let keep = self.open_with(response, AttachmentId(e.attachment));
        let done = self.contain(workload, &keep, reason, &who);
        done.map(|_applied| ())
    }

    /// Has a suspect restarted. Where that can't begin, or was done lately and has not helped, it is quarantined instead: what
    /// came of it then.
    fn restart_suspect(
        &mut self,
        response: &Response,
        (e, workload): (&SuspicionEvent, &str),
        reason: &str,
        now_ns: u64,
    ) -> Result<Option<String>, ApiError> {
        let again_ns = u64::from(response.again_s) * SECOND_NS;
        let before = self.suspicions.restarted.get(workload);
        let why_not = if before.is_some_and(|past| past.ago_ns(now_ns) < again_ns) {
            "suspected again after a restart".to_owned()
        } else {
            let (protocol, _, port) = e.last;
            let evidence = match e.detector {
                // What succeeded is what is suspicious.
                Detector::FanOut | Detector::SynFlood => Evidence::Opened,
                _ => Evidence::Tried(protocol, port),
            };
            let who = response.actor();
            let keep = self.open_with(response, AttachmentId(e.attachment));
            match self.restart(workload, (reason, evidence, &keep), &who, now_ns) {
                Ok(_begun) => {
                    let restarted = &mut self.suspicions.restarted;
                    let longest_ns = u64::from(Response::AGAIN_S_MAX) * SECOND_NS;
                    restarted.retain(|_, past| past.ago_ns(now_ns) < longest_ns);
                    restarted.insert(workload.to_owned(), Past::at(now_ns));
                    return Ok(None);
                }
                Err(e) => format!("not restarted, {}", e.errors.join("; ")),
            }
        };
        // It may have got as far as that.
        if !self.is_held(AttachmentId(e.attachment)) {
            let reason = format!("{reason}; {why_not}");
            self.shut_in(response, (e, workload), &reason)?;
        }
        Ok(Some(format!("quarantined: {why_not}")))
    }

    /// A restart has ended well. Whether it has helped is seen from now on.
    pub(super) fn was_restarted(&mut self, workload: &str, now_ns: u64) {
        if let Some(past) = self.suspicions.restarted.get_mut(workload) {
            *past = Past::at(now_ns);
        }
    }

    /// Whether somebody is in quarantine.
    fn is_held(&self, id: AttachmentId) -> bool {
        self.resident_at(id)
            .is_some_and(|(port, workload)| self.is_quarantined(port, workload))
    }

    /// What a response would keep.
    fn open_with(&self, response: &Response, id: AttachmentId) -> Vec<Wanted> {
        let policy = &self.desired.policy;
        let keeps = response.keep.iter().filter_map(|keep| {
            let with = self.residents().filter(|(port, workload)| {
                let tenant = policy.tenant_id(&port.tenant).unwrap_or_default();
                policy.keeps_with(response, keep, &facts(tenant, workload))
            });
            let with = with.filter_map(|(port, workload)| self.attachments.of(port, workload));
            let with: HashSet<_> = with.filter(|peer| *peer != id).collect();
            (!with.is_empty()).then_some(Wanted::Service(with, keep.service))
        });
        keeps.collect()
    }

    /// Whether a response may be carried out once more, and to one more.
    fn within_limits(
        &mut self,
        response: &Response,
        id: AttachmentId,
        now_ns: u64,
    ) -> Result<(), String> {
        let Level { count, within_s } = response.limit;
        let name = response.qualified();
        let times = &mut self.suspicions.tallies.entry(name).or_default().times;
        let within_ns = u64::from(within_s) * SECOND_NS;
        while times
            .front()
            .is_some_and(|at| now_ns.saturating_sub(*at) >= within_ns)
        {
            times.pop_front();
        }
        if count > 0 && times.len() >= count as usize {
            return Err(format!("over its limit of {count} in {within_s} s"));
        }
        if !response.action.contains() {
            return Ok(());
        }
        let policy = &self.desired.policy;
        let members = self.residents().filter(|(port, workload)| {
            let tenant = policy.tenant_id(&port.tenant).unwrap_or_default();
            policy.is_about(response, &facts(tenant, workload))
        });
        let (mut others, mut all) = (0usize, 0usize);
        for (port, workload) in members {
            all += 1;
            let member = self.attachments.of(port, workload);
            let asked = member.is_some_and(|m| self.is_asked_about(m));
            let contained = asked || self.is_quarantined(port, workload);
            others += usize::from(contained && member != Some(id));
        }
        let most = (all * usize::from(response.share_percent) / 100).max(1);
        if others >= most {
            return Err(format!("over its share: {others} of {all} are contained"));
        }
        Ok(())
    }

    /// What rules allow these is not asked about any more.
    fn ask_no_more(&mut self, workloads: &[AttachmentId]) {
        for id in workloads {
            if let Some(contained) = self.suspicions.contained.remove(id) {
                self.shared.suspects.ask(*id, false);
                let (workload, response) = (contained.workload, contained.response);
                info!(workload, response, "let go");
            }
        }
        // What waits for an answer need not any more.
        if !workloads.is_empty() {
            self.withdraw_of_suspects(workloads);
            self.judge_again();
        }
    }

    /// Whether what rules allow somebody is asked about first.
    pub(super) fn is_asked_about(&self, id: AttachmentId) -> bool {
        self.suspicions.contained.contains_key(&id)
    }

    /// The newest suspicions, newest first.
    pub(super) fn suspicion_infos(&self) -> Vec<SuspicionInfo> {
        self.suspicions.recent.iter().rev().cloned().collect()
    }

    pub(super) fn responses_info(&self, now_ns: u64) -> ResponsesInfo {
        let responses = self.desired.policy.responses.iter().map(|response| {
            let name = response.qualified();
            let tally = self.suspicions.tallies.get(&name);
            let tally = tally.cloned().unwrap_or_default();
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
        let contained = self.suspicions.contained.values().map(|c| ContainedInfo {
            workload: c.workload.clone(),
            action: c.action.name().to_owned(),
            response: c.response.clone(),
            left_s: c.until_ns.saturating_sub(now_ns).div_ceil(SECOND_NS),
        });
        let mut contained: Vec<_> = contained.collect();
        contained.sort_unstable_by(|a, b| a.workload.cmp(&b.workload));
        ResponsesInfo {
            contained,
            stopped: self.suspicions.stopped.clone(),
            responses: responses.collect(),
        }
    }

    /// A person has seen to it.
    pub(super) fn clear_suspicion(&mut self, text: &str) -> Result<Applied, ApiError> {
        let suspicions = &self.suspicions;
        let contained = || suspicions.contained.values().map(|c| &c.workload);
        let recent = suspicions.recent.iter().map(|s| &s.workload);
        let known = |name: &str| recent.chain(contained()).any(|s| s == name);
        // It may be gone by now.
        let name = if known(text) {
            text.to_owned()
        } else {
            self.resolve(text)?
        };
        let mut changes = Vec::new();
        let recent = self.suspicions.recent.iter_mut();
        let of: Vec<_> = recent.filter(|s| s.workload == name && s.open).collect();
        let contained = self.suspicions.contained.iter();
        let contained = contained.filter(|(_, c)| c.workload == name);
        let contained: Vec<_> = contained.map(|(id, _)| *id).collect();
        if of.is_empty() && contained.is_empty() {
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
        if !contained.is_empty() {
            changes.push(format!(
                "what rules allow {name} is not asked about any more"
            ));
            self.ask_no_more(&contained);
        }
        let generation = self.shared.snapshots.generation();
        self.recorder.suspicion_cleared(generation, &name);
        Ok(Applied::at(generation, changes))
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
        Ok(Applied::at(generation, vec![change.to_owned()]))
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
        Ok(Applied::at(generation, vec!["responses go on".to_owned()]))
    }
}
