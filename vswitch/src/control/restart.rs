//! Restarting workloads: what the restarter is told, and what comes of it (`docs/restart.md`).
//!
//! Who is to be restarted is quarantined first. The restarter, a process of its own (`restart`), then has the time that the
//! workload's configuration gives it; the control thread never waits for it. When the workload was restarted it is released.
//! In all other cases, of which some are that nobody knows, it stays quarantined, and that is said.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::api::{ApiError, ErrorCode, RestartInfo, RestartState};
use super::apply::Control;
use super::ids::{self, Ids};
use super::quarantine::{self, Thaw, Wanted};
use super::readmission::{Evidence, Grant, Readmissions};
use super::state::{Driver, Method, RestartConfig};
use crate::datapath::snapshot::AttachmentId;
use crate::policy::model::qualified;
use crate::restart::{Done, Heard, Helper, Job, Task, UNDER_WAY, What};

/// Restarts of one workload within [`OFTEN_NS`]; what needs more is not mended by restarts. Guess.
const OFTEN: usize = 3;
/// See [`OFTEN`].
const OFTEN_NS: u64 = 600_000_000_000;
/// How much longer than its limit a restart is waited for: a driver that keeps it says so itself.
const GRACE_NS: u64 = 5_000_000_000;
/// How long whoever was restarted has others' stale connections refused in his stead: what is not heard of for so long has
/// given up (RFC 9293 section 3.8.3: at least 100 s). Guess.
const REBORN_NS: u64 = 300_000_000_000;
/// Restarts remembered after their end.
const PAST: usize = 64;
const MS_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;

const NO_RESTARTER: &str =
    "this switch has no restarter; say which program does it with SwitchBuilder::restarter";

/// How long it may take a guest that went back to say what it remembers, and its peers to be told.
const MEMORY_NS: u64 = 60_000_000_000;

/// How far a restart is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It is being made.
    Made,
    /// It went back to a snapshot, and is to go on.
    GoesOn,
    /// It was made; the ends of what was frozen are told what becomes of it.
    Thaws,
}

/// A restart that is being made.
#[derive(Debug)]
struct UnderWay {
    info: RestartInfo,
    stage: Stage,
    /// What its driver said in the end.
    done: Done,
    how: RestartConfig,
    /// The restarter that was given it.
    session: u64,
    begun_ns: u64,
    deadline_ns: u64,
    workload: AttachmentId,
    /// Its port, and the machine that was attached there.
    port: String,
    machine: Option<u64>,
    /// What it had open.
    openings: Vec<Grant>,
    /// The quarantine that ends with it.
    held: Option<Held>,
}

/// A quarantine: since when, by whom, why. Another one does not end with a restart that was begun in this.
type Held = (u64, String, String);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    program: Option<PathBuf>,
    helper: Option<Helper>,
    under_way: HashMap<u64, UnderWay>,
    /// The newest last.
    past: VecDeque<RestartInfo>,
    /// By workload, when it was restarted lately.
    begun: HashMap<String, VecDeque<u64>>,
    ids: Ids,
    pub(super) readmissions: Readmissions,
    /// Who has forgotten his connections, and until when that matters.
    reborn: Vec<(AttachmentId, u64)>,
}

impl Restarts {
    /// By this program.
    pub(super) fn by(program: Option<PathBuf>) -> Self {
        Restarts {
            program,
            ..Restarts::default()
        }
    }

    /// When there is something to do without being asked.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        let under_way = self.under_way.values().map(|u| u.deadline_ns);
        let reborn = self.reborn.iter().map(|(_, at)| *at);
        under_way
            .chain(reborn)
            .chain(self.readmissions.next_look_ns())
            .min()
    }

    /// Who has forgotten his connections lately.
    pub(super) fn reborn(&self) -> Vec<AttachmentId> {
        self.reborn.iter().map(|(who, _)| *who).collect()
    }

    /// Why this one is not restarted now.
    fn refuses(&mut self, workload: &str, now_ns: u64) -> Option<String> {
        if let Some(other) = self
            .under_way
            .values()
            .find(|u| u.info.workload == workload)
        {
            let (id, by) = (&other.info.id, &other.info.by);
            return Some(format!(
                "{workload} is being restarted already, by {by} ({id})"
            ));
        }
        if self.under_way.len() >= UNDER_WAY {
            return Some(format!(
                "{UNDER_WAY} restarts are under way; wait for one to end"
            ));
        }
        self.begun.retain(|_, begun| {
            begun.retain(|at| now_ns.saturating_sub(*at) < OFTEN_NS);
            !begun.is_empty()
        });
        let often = self.begun.get(workload).map_or(0, VecDeque::len) >= OFTEN;
        let minutes = OFTEN_NS / SECOND_NS / 60;
        let text = "find out why before it is restarted again";
        often.then(|| {
            format!("{workload} was restarted {OFTEN} times within {minutes} minutes; {text}")
        })
    }

    fn remember(&mut self, info: RestartInfo) {
        self.past.push_back(info);
        if self.past.len() > PAST {
            self.past.pop_front();
        }
    }
}

fn refused(why: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Refused, why)
}

impl Control {
    /// Has a restarter when somebody can be restarted, and otherwise none.
    pub(super) fn restarts_are(&mut self) {
        let wanted = self.residents().any(|(_, w)| w.restart.is_some());
        if !wanted {
            self.restarts.helper = None;
            return;
        }
        let (None, Some(program)) = (&self.restarts.helper, &self.restarts.program) else {
            return;
        };
        let wake = self.shared.control.get().map(Arc::clone);
        match Helper::start(program, wake) {
            Ok(helper) => self.restarts.helper = Some(helper),
            Err(e) => error!("nobody can be restarted: {e}"),
        }
    }

    /// Quarantines a workload, but for what `keep` names, and has it restarted. Connections for services that are the evidence
    /// against it are not readmitted.
    pub(super) fn restart(
        &mut self,
        workload: &str,
        (reason, evidence, keep): (&str, Evidence<'_>, &[Wanted]),
        who: &str,
        now_ns: u64,
    ) -> Result<RestartInfo, ApiError> {
        self.hear_restarts(now_ns);
        let (port, config) = self.resident(workload)?;
        let name = qualified(&port.tenant, &config.name);
        let Some(how) = config.restart.clone() else {
            let todo = "add [port.workload.restart] to switch.toml, see docs/restart.md";
            return Err(refused(format!(
                "{name} says nowhere how it is restarted; {todo}"
            )));
        };
        let is_held = self.is_quarantined(port, config);
        let Some(attachment) = self.attachments.of(port, config) else {
            return Err(refused(format!("{name} is attached nowhere")));
        };
        let port = port.name.clone();
        if let Some(why) = self.restarts.refuses(&name, now_ns) {
            return Err(refused(why));
        }
        if self.restarts.helper.is_none() {
            return Err(refused(NO_RESTARTER));
        }
        // Before quarantine ends them.
        let openings = self.openings(attachment, evidence);
        if !is_held {
            self.contain(&name, keep, reason, who)?;
        }
        let held = self.held_as(&name);
        if how.driver.goes_back() && !self.is_frozen(&name) {
            // Where nothing is kept there is nothing to be frozen.
            let max_s = how.limit_s.saturating_add(1).min(quarantine::MAX_S);
            match self.freeze_only(&name, max_s, who, now_ns) {
                Ok(_) => {}
                Err(no) => info!(workload = name, "nothing is frozen: {no}"),
            }
        }
        // Also of who was quarantined before it was.
        self.restarts.readmissions.forget(attachment);
        let id = self.restarts.ids.another();
        let info = RestartInfo {
            id: ids::text(id),
            workload: name.clone(),
            by: who.to_owned(),
            reason: reason.to_owned(),
            driver: how.driver.name().to_owned(),
            state: RestartState::UnderWay,
            said: "begun".to_owned(),
            image: None,
            trusted: false,
            readmitted: 0,
            took_ms: 0,
            data_ms: None,
        };
        let job = Job {
            id,
            task: Task::Restart,
            workload: name.clone(),
            reason: reason.to_owned(),
            how,
        };
        let generation = self.shared.snapshots.generation();
        self.recorder.restart_begins(generation, &info);
        let given = self.give_job(&job);
        let limit_ns = u64::from(job.how.limit_s) * SECOND_NS;
        let mut under_way = UnderWay {
            info,
            stage: Stage::Made,
            done: Done::default(),
            how: job.how,
            session: 0,
            begun_ns: now_ns,
            deadline_ns: now_ns.saturating_add(limit_ns + GRACE_NS),
            workload: attachment,
            machine: self.machine(&port),
            port,
            openings,
            held,
        };
        match given {
            Ok(session) => {
                under_way.session = session;
                let begun = self.restarts.begun.entry(name).or_default();
                begun.push_back(now_ns);
                let info = under_way.info.clone();
                info!(
                    workload = info.workload,
                    driver = info.driver,
                    reason,
                    "restart"
                );
                self.tell_restart(&info);
                self.restarts.under_way.insert(id, under_way);
                Ok(info)
            }
            Err(why) => {
                let info = self.restart_failed(under_way, why, now_ns);
                Err(refused(info.said))
            }
        }
    }

    /// Has somebody's machine paused, or go on; the number of the job. `None`: there is no machine that can be told.
    pub(super) fn give_task(
        &mut self,
        workload: &str,
        task: Task,
        who: &str,
    ) -> Option<Result<u64, String>> {
        let (_, config) = self.resident(workload).ok()?;
        let how = config.restart.clone();
        let how = how.filter(|how| matches!(how.driver, Driver::Qmp { .. }))?;
        let id = self.restarts.ids.another();
        let job = Job {
            id,
            task,
            workload: workload.to_owned(),
            reason: format!("frozen by {who}"),
            how,
        };
        Some(self.give_job(&job).map(|_session| id))
    }

    fn give_job(&self, job: &Job) -> Result<u64, String> {
        match &self.restarts.helper {
            Some(helper) => helper.give(job),
            None => Err(NO_RESTARTER.to_owned()),
        }
    }

    fn machine(&self, port: &str) -> Option<u64> {
        let open = self.ports.iter().find(|p| p.config.name == port)?;
        open.machine()
    }

    /// The quarantine of a workload that is there by itself, not with others of its VM.
    fn held_as(&self, name: &str) -> Option<Held> {
        let (port, workload) = self.resident(name).ok()?;
        let held = self.quarantine_info(port, workload)?;
        (held.name == name).then_some((held.since, held.who, held.reason))
    }

    /// Restarts under way, and the last ones before them.
    pub(super) fn restart_infos(&self, now_ns: u64) -> Vec<RestartInfo> {
        let mut now: Vec<_> = self.restarts.under_way.values().collect();
        now.sort_by_key(|u| u.begun_ns);
        let now = now.into_iter().map(|u| RestartInfo {
            took_ms: now_ns.saturating_sub(u.begun_ns) / MS_NS,
            ..u.info.clone()
        });
        self.restarts.past.iter().cloned().chain(now).collect()
    }

    /// Takes what was heard, and gives up what takes too long.
    pub(super) fn tick_restarts(&mut self, now_ns: u64) {
        self.hear_restarts(now_ns);
        self.look_for_data(now_ns);
        let before = self.restarts.reborn.len();
        self.restarts.reborn.retain(|(_, until)| *until > now_ns);
        if self.restarts.reborn.len() != before {
            self.judge_again();
        }
        let late = self
            .restarts
            .under_way
            .values()
            .find(|u| u.deadline_ns <= now_ns);
        let Some(session) = late.map(|u| u.session) else {
            return;
        };
        // It keeps no time, so nothing that it says can be relied upon.
        if let Some(helper) = &self.restarts.helper {
            helper.end();
        }
        self.restarter_gone(session, "its driver hung, and was ended", now_ns);
    }

    fn hear_restarts(&mut self, now_ns: u64) {
        let heard = self.restarts.helper.as_ref().map(Helper::take);
        for heard in heard.into_iter().flatten() {
            match heard {
                Heard::Gone(session) => {
                    self.machines_gone("the restarter ended in the midst of it", now_ns);
                    self.restarter_gone(session, "the restarter ended in the midst of it", now_ns);
                }
                Heard::Said(said) => self.restart_said(said.id, said.what, now_ns),
            }
        }
    }

    fn restart_said(&mut self, id: u64, what: What, now_ns: u64) {
        if !self.restarts.under_way.contains_key(&id) {
            self.machine_said(id, &what, now_ns);
            return;
        }
        let under_way = &mut self.restarts.under_way;
        match what {
            What::Step(step) => {
                let Some(under_way) = under_way.get_mut(&id) else {
                    return;
                };
                under_way.info.said = step;
                let info = under_way.info.clone();
                info!(workload = info.workload, "restart: {}", info.said);
                self.tell_restart(&info);
            }
            What::Done(done) => {
                if let Some(under_way) = under_way.remove(&id) {
                    self.restart_made(id, under_way, done, now_ns);
                }
            }
            What::Failed(why) => {
                if let Some(under_way) = under_way.remove(&id) {
                    self.restart_failed(under_way, why, now_ns);
                }
            }
        }
    }

    /// What that restarter was given will not be finished.
    fn restarter_gone(&mut self, session: u64, why: &str, now_ns: u64) {
        let under_way = &mut self.restarts.under_way;
        let gone = under_way.extract_if(|_, u| u.session <= session && u.stage != Stage::Thaws);
        for (_, under_way) in gone.collect::<Vec<_>>() {
            self.restart_failed(under_way, why.to_owned(), now_ns);
        }
    }

    /// Its driver has done what it was told.
    fn restart_made(&mut self, id: u64, mut under_way: UnderWay, done: Done, now_ns: u64) {
        let name = under_way.info.workload.clone();
        let goes_back = under_way.how.driver.goes_back();
        if under_way.stage == Stage::Made {
            under_way.done = done;
        }
        if under_way.stage == Stage::Made && goes_back {
            // Before it says anything: what it says is compared.
            if self.is_frozen(&name)
                && let Err(no) = self.thaw_now(&name, Thaw::WentBack, now_ns)
            {
                warn!(workload = name, "not thawed: {no}");
            }
            let job = Job {
                id,
                task: Task::GoOn,
                workload: name,
                reason: under_way.info.reason.clone(),
                how: under_way.how.clone(),
            };
            under_way.stage = Stage::GoesOn;
            match self.give_job(&job) {
                Ok(session) => {
                    under_way.session = session;
                    self.restarts.under_way.insert(id, under_way);
                }
                Err(why) => {
                    self.restart_failed(under_way, why, now_ns);
                }
            }
            return;
        }
        if !goes_back && self.is_frozen(&name) {
            // It has forgotten what was frozen.
            if let Err(no) = self.thaw_now(&name, Thaw::Anew, now_ns) {
                warn!(workload = name, "not thawed: {no}");
            }
        }
        if self.is_frozen(&name) {
            under_way.stage = Stage::Thaws;
            under_way.deadline_ns = now_ns.saturating_add(MEMORY_NS);
            self.restarts.under_way.insert(id, under_way);
            return;
        }
        let done = std::mem::take(&mut under_way.done);
        self.restart_done(under_way, done, now_ns);
    }

    /// The ends of what was frozen of somebody know what has become of it.
    pub(super) fn restart_thawed(&mut self, workload: &str, became: &str, now_ns: u64) {
        let under_way = &mut self.restarts.under_way;
        let of = |u: &UnderWay| u.info.workload == workload;
        if let Some(u) = under_way.values_mut().find(|u| of(u)) {
            u.done.note = format!("{}; {became}", u.done.note);
        }
        let thaws = |_: &u64, u: &mut UnderWay| of(u) && u.stage == Stage::Thaws;
        let found: Vec<_> = under_way.extract_if(thaws).collect();
        for (_, mut under_way) in found {
            let done = std::mem::take(&mut under_way.done);
            self.restart_done(under_way, done, now_ns);
        }
    }

    fn restart_done(&mut self, under_way: UnderWay, done: Done, now_ns: u64) {
        let declared = under_way.how.driver.declared();
        if done.verified != declared {
            let why = "the driver has not verified what is declared";
            self.restart_failed(under_way, why.to_owned(), now_ns);
            return;
        }
        let is_fresh = matches!(
            under_way.how.driver,
            Driver::Qmp {
                method: Method::Fresh { .. },
                ..
            }
        );
        let remembers = under_way.how.driver.goes_back();
        // A QEMU that was taken over may have left somebody behind who holds on to the port.
        let machine = self.machine(&under_way.port);
        if is_fresh && machine.is_some() && machine == under_way.machine {
            let why = "the old machine is still attached to its port";
            self.restart_failed(under_way, why.to_owned(), now_ns);
            return;
        }
        let UnderWay {
            mut info,
            openings,
            workload,
            held,
            begun_ns,
            ..
        } = under_way;
        info.state = RestartState::Done;
        info.trusted = declared.is_some();
        info.image = declared;
        info.said = done.note;
        info.took_ms = now_ns.saturating_sub(begun_ns) / MS_NS;
        if info.trusted {
            info.readmitted = self.readmit(openings, (&info.id, begun_ns), now_ns);
        }
        if !remembers {
            let until = now_ns.saturating_add(REBORN_NS);
            self.restarts.reborn.retain(|(who, _)| *who != workload);
            self.restarts.reborn.push((workload, until));
        }
        self.was_restarted(&info.workload, now_ns);
        let trusted = if info.trusted { "trusted" } else { "untrusted" };
        info!(workload = info.workload, trusted, "restarted");
        if let Err(why) = self.release_restarted(&info, held) {
            warn!(workload = info.workload, "not released: {why}");
            info.said = format!("{why}; {} stays quarantined", info.workload);
            info.readmitted = 0;
            self.restarts.readmissions.forget(workload);
            self.judge_again();
        }
        let generation = self.shared.snapshots.generation();
        let outcome = if self.held_as(&info.workload).is_some() {
            format!("done, but {}", info.said)
        } else {
            "done".to_owned()
        };
        self.recorder.restart(generation, &info, &outcome);
        self.tell_restart(&info);
        self.restarts.remember(info);
    }

    /// Data passes again on a connection that was readmitted after this restart.
    pub(super) fn restart_returned(&mut self, id: &str, data_ms: u64) {
        let mut past = self.restarts.past.iter_mut();
        let Some(info) = past.find(|info| info.id == id && info.data_ms.is_none()) else {
            return;
        };
        info.data_ms = Some(data_ms);
        let info = info.clone();
        let outcome = format!("data flows again, {data_ms} ms after it was begun");
        info!(workload = info.workload, "restart: {outcome}");
        let generation = self.shared.snapshots.generation();
        self.recorder.restart(generation, &info, &outcome);
        self.tell_restart(&info);
    }

    /// Ends the quarantine of who was restarted, if it is the one that he was restarted in.
    fn release_restarted(&mut self, info: &RestartInfo, held: Option<Held>) -> Result<(), String> {
        let now = self.held_as(&info.workload);
        if now.is_none() || now != held {
            return Err(
                "it is in quarantine for other reasons, too, or was put there again".to_owned(),
            );
        }
        let trusted = if info.trusted { "trusted" } else { "untrusted" };
        let why = format!("restarted, {trusted}: {}", info.id);
        let released = self.release(&info.workload, &why, &info.by);
        released.map(|_| ()).map_err(|e| e.to_string())
    }

    fn restart_failed(&mut self, mut under_way: UnderWay, why: String, now_ns: u64) -> RestartInfo {
        let info = &mut under_way.info;
        info.state = RestartState::Failed;
        info.said = format!("{why}; {} stays quarantined", info.workload);
        info.took_ms = now_ns.saturating_sub(under_way.begun_ns) / MS_NS;
        warn!(workload = info.workload, "restart failed: {}", info.said);
        let generation = self.shared.snapshots.generation();
        let outcome = format!("failed: {}", info.said);
        self.recorder.restart(generation, info, &outcome);
        self.tell_restart(&under_way.info);
        self.restarts.remember(under_way.info.clone());
        under_way.info
    }
}
