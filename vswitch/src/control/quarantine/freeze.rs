//! Workloads that are frozen: their guest is paused or goes back to a snapshot, and the peers of what is kept of them are answered in
//! their stead (`datapath/freeze` is what it means to frames).
//!
//! Order matters. Frozen first, then paused: in between, a running guest still sends what it has to send, and what is for it is answered
//! and comes again. Running first, then thawed: what is let through, and what was put aside, meets a guest that takes it. But whoever went
//! back to a snapshot is thawed first: what it says before it was asked what it remembers must not reach anybody.

use super::named::NamedEnd;
use super::*;
use crate::control::api::FreezeInfo;
use crate::datapath::freeze::{Errand, Outcome, Phase, Record as Frozen};
use crate::datapath::worker::WorkerHandle;
use crate::restart::{Task, What};

/// Connections of one peer that may be frozen, of all workloads together: a server's limit of clients is some hundreds (PostgreSQL's
/// `max_connections` is 100) to some ten thousands, and most of it stays for others. Guess.
const PEER_MAX: usize = 1024;
/// Connections that may be frozen, of all workloads together. Each has room for one frame: 32 MiB. Guess.
const ALL_MAX: usize = 16_384;
/// How long a workload may be frozen, seconds: whoever waits for it has other limits.
pub(in crate::control) const MAX_S: u32 = 3600;
const SECOND_NS: u64 = 1_000_000_000;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its peers are answered.
    Frozen,
    /// For too long: its peers were reset.
    Late,
    /// It goes on.
    Thawing,
    /// It went back to a snapshot, and is asked what it remembers.
    Comparing,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Frozen => "frozen",
            Stage::Late => "too long",
            Stage::Thawing => "thawing",
            Stage::Comparing => "comparing",
        }
    }
}

/// A workload that is frozen.
#[derive(Clone, Debug)]
pub(super) struct Freeze {
    since_ns: i64,
    who: String,
    max_s: u32,
    deadline_ns: u64,
    stage: Stage,
    records: BTreeMap<Named, (FlowKey, Arc<Frozen>)>,
    /// What its ends are told now.
    errand: Option<Arc<Errand>>,
    machine: Option<Told>,
    note: String,
}

/// What a machine was told last.
#[derive(Clone, Copy, Debug)]
struct Told {
    job: u64,
    task: Task,
    /// What came of it is known.
    is_over: bool,
}

impl Told {
    fn new(job: u64, task: Task) -> Self {
        Told {
            job,
            task,
            is_over: false,
        }
    }
}

/// Why what was frozen goes on, or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) enum Thaw {
    /// The guest goes on where it was.
    GoesOn,
    /// It went back to a snapshot.
    WentBack,
    /// It was started anew.
    Anew,
}

impl Freeze {
    /// The record of a kept connection.
    pub(super) fn record(&self, named: &Named) -> Option<Arc<Frozen>> {
        self.records
            .get(named)
            .map(|(_, record)| Arc::clone(record))
    }

    /// What became of each: those that go on, and the others.
    fn outcomes(&self) -> (Vec<String>, usize) {
        let mut continues = 0;
        let line = |(named, (_, record)): (&Named, &(FlowKey, Arc<Frozen>))| {
            let outcome = record.outcome().unwrap_or(Outcome::Gone);
            continues += usize::from(outcome.continues());
            format!("{named} {outcome}")
        };
        let lines = self.records.iter().map(line).collect();
        (lines, continues)
    }

    fn info(&self, now_ns: u64) -> FreezeInfo {
        FreezeInfo {
            since: u64::try_from(self.since_ns / 1_000_000_000).unwrap_or_default(),
            who: self.who.clone(),
            state: self.stage.name().to_owned(),
            max_s: self.max_s,
            left_s: self.deadline_ns.saturating_sub(now_ns).div_ceil(SECOND_NS),
            note: self.note.clone(),
        }
    }
}

impl Held {
    /// What there is to say of its freeze.
    pub(super) fn freeze_info(&self, now_ns: u64) -> Option<FreezeInfo> {
        self.freeze.as_ref().map(|freeze| freeze.info(now_ns))
    }
}

impl Quarantines {
    /// When somebody has been frozen for as long as he may.
    pub(in crate::control) fn next_deadline_ns(&self) -> Option<u64> {
        let freezes = self.held.values().filter_map(|held| held.freeze.as_ref());
        let frozen = freezes.filter(|freeze| freeze.stage == Stage::Frozen);
        frozen.map(|freeze| freeze.deadline_ns).min()
    }

    /// What is to be done for connections that are no longer frozen.
    pub(super) fn errands(&self) -> Vec<Arc<Errand>> {
        let freezes = self.held.values().filter_map(|held| held.freeze.as_ref());
        let errands = freezes.filter_map(|freeze| freeze.errand.as_ref());
        errands
            .filter(|errand| !errand.is_done())
            .cloned()
            .collect()
    }

    /// How many connections are frozen, altogether and with each peer.
    fn frozen(&self) -> (usize, HashMap<String, usize>) {
        let (mut all, mut peers) = (0, HashMap::new());
        for held in self.held.values() {
            for named in held.freeze.iter().flat_map(|freeze| freeze.records.keys()) {
                all += 1;
                *peers.entry(held.peer(named)).or_default() += 1;
            }
        }
        (all, peers)
    }

    /// The names of those who are frozen.
    pub(in crate::control) fn frozen_names(&self) -> Vec<String> {
        let held = self.held.iter().filter(|(_, held)| held.freeze.is_some());
        held.map(|(name, _)| name.clone()).collect()
    }
}

impl Held {
    /// Who is at the other end: a workload, or an address outside.
    fn peer(&self, named: &Named) -> String {
        let ours = |end: &&NamedEnd| {
            end.who
                .as_ref()
                .is_some_and(|w| self.marks.names.contains(w))
        };
        let mut peers = named.ends.iter().filter(|end| !ours(end));
        peers.next().map_or_else(String::new, |end| match &end.who {
            Some(who) if who.starts_with("outside(") => format!("{who} {}", end.addr),
            Some(who) => who.clone(),
            None => end.addr.to_string(),
        })
    }
}

fn refused(why: String) -> ApiError {
    ApiError::new(ErrorCode::Refused, why)
}

impl Control {
    /// Freezes what is kept of a workload in quarantine: from when it returns, nothing reaches it, and its peers are answered in its
    /// stead, for `max_s` seconds at most. Where QEMU can be told, it is told then to pause the machine.
    pub(in crate::control) fn freeze(
        &mut self,
        workload: &str,
        max_s: u32,
        who: &str,
        now_ns: u64,
    ) -> Result<Applied, ApiError> {
        let (name, mut applied) = self.freeze_only(workload, max_s, who, now_ns)?;
        let told = self.tell_machine(&name, Task::Pause, who);
        applied.changes.push(told);
        Ok(applied)
    }

    /// The same, without a word to its machine.
    pub(in crate::control) fn freeze_only(
        &mut self,
        workload: &str,
        max_s: u32,
        who: &str,
        now_ns: u64,
    ) -> Result<(String, Applied), ApiError> {
        if max_s == 0 || max_s > MAX_S {
            let text = format!("--max {max_s}: choose a time from 1 s to {MAX_S} s");
            return Err(usage(text));
        }
        let name = self.quarantined_as(workload).map_err(|no| {
            let todo = "quarantine it first, and name what it keeps with --keep";
            usage(format!("{}; {todo}", no.errors.join("; ")))
        })?;
        let Some(held) = self.quarantine.held.get(&name) else {
            return Err(usage(format!("{name} is in no quarantine")));
        };
        if let Some(freeze) = &held.freeze {
            let (state, by) = (freeze.stage.name(), &freeze.who);
            return Err(refused(format!(
                "{name} is frozen already, by {by}: {state}"
            )));
        }
        let (mut all, mut peers) = self.quarantine.frozen();
        let numbers = self.numbers(&self.desired);
        let mut records = BTreeMap::new();
        let mut table: Participant = self.shared.table.participant();
        for named in held.kept.keys() {
            let key = numbers.flow(named).map(|(key, _)| key);
            let Some(key) = key.filter(|key| table.lookup(key).is_some_and(|c| is_live(&c))) else {
                continue;
            };
            all += 1;
            let peer = held.peer(named);
            let of_peer = peers.entry(peer.clone()).or_default();
            *of_peer += 1;
            if *of_peer > PEER_MAX || all > ALL_MAX {
                let (whose, max) = if all > ALL_MAX {
                    ("all".to_owned(), ALL_MAX)
                } else {
                    (peer, PEER_MAX)
                };
                return Err(refused(format!(
                    "more than {max} connections of {whose} would be frozen; quarantine {name} again with fewer in --keep, or thaw others"
                )));
            }
            records.insert(named.clone(), (key, Arc::default()));
        }
        table.offline();
        if records.is_empty() {
            return Err(usage(format!(
                "{name} keeps no connection that could be frozen; `vswitch workload show {name}` shows what it keeps"
            )));
        }
        let count = records.len();
        let freeze = Freeze {
            since_ns: now_wall_ns(),
            who: who.to_owned(),
            max_s,
            deadline_ns: now_ns.saturating_add(u64::from(max_s) * SECOND_NS),
            stage: Stage::Frozen,
            records,
            errand: None,
            machine: None,
            note: String::new(),
        };
        self.put_freeze(&name, Some(freeze));
        let applied = match self.weigh_again() {
            Err(e) if !matches!(e, ApplyError::NotSettled(_)) => {
                self.put_freeze(&name, None);
                return Err(e.into());
            }
            done => done,
        };
        warn!(workload = name, count, max_s, who, "frozen");
        self.tell_quarantine("freeze", &name, &format!("{count} connections, {max_s} s"));
        let generation = self.shared.snapshots.generation();
        let recorded = self.recorder.frozen(generation, &name, (count, max_s));
        // One that has not settled is in force all the same.
        let mut applied = applied?;
        applied.changes.insert(
            0,
            format!(
                "{name} is frozen: {count} connection{} answered, for {max_s} s at most",
                if count == 1 { " is" } else { "s are" },
            ),
        );
        if let Err(why) = recorded {
            let text = format!("it is not recorded, so it ends with the daemon: {why}");
            applied.changes.push(text);
        }
        Ok((name, applied))
    }

    fn put_freeze(&mut self, name: &str, freeze: Option<Freeze>) {
        if let Some(held) = self.quarantine.held.get_mut(name) {
            held.freeze = freeze;
        }
    }

    fn freeze_of(&mut self, name: &str) -> Option<&mut Freeze> {
        self.quarantine.held.get_mut(name)?.freeze.as_mut()
    }

    /// Has its machine paused, or go on, if there is one that can be told; what was done.
    fn tell_machine(&mut self, name: &str, task: Task, who: &str) -> String {
        let given = self.give_task(name, task, who);
        let (done, todo) = match task {
            Task::Pause => ("its machine is told to pause", "pause its guest now"),
            _ => ("its machine is told to go on", "let its guest go on"),
        };
        let note = match &given {
            Some(Ok(_)) => done.to_owned(),
            Some(Err(why)) => format!("its machine cannot be told: {why}; {todo}"),
            None => todo.to_owned(),
        };
        if let Some(freeze) = self.freeze_of(name) {
            let job = given.and_then(Result::ok);
            freeze.machine = job.map(|job| Told::new(job, task));
            freeze.note.clone_from(&note);
        }
        note
    }

    /// Ends a freeze. Where QEMU can be told, it is told to have the machine go on: before that, unless the machine went back to a
    /// snapshot.
    pub(in crate::control) fn thaw(
        &mut self,
        workload: &str,
        rolled_back: bool,
        who: &str,
        now_ns: u64,
    ) -> Result<Applied, ApiError> {
        let name = self.quarantined_as(workload)?;
        let Some(freeze) = self.freeze_of(&name) else {
            return Err(usage(format!("{name} is not frozen")));
        };
        let stage = freeze.stage;
        if !matches!(stage, Stage::Frozen | Stage::Late) {
            return Err(refused(format!(
                "{name} is thawed already: {}",
                stage.name()
            )));
        }
        // One that could not be told is not waited for again.
        let tell = freeze.machine.is_none_or(|told| told.task != Task::GoOn);
        if rolled_back {
            let mut applied = self.thaw_now(&name, Thaw::WentBack, now_ns)?;
            applied
                .changes
                .push(self.tell_machine(&name, Task::GoOn, who));
            return Ok(applied);
        }
        if tell
            && let Some(Ok(job)) = self.give_task(&name, Task::GoOn, who)
            && let Some(freeze) = self.freeze_of(&name)
        {
            freeze.machine = Some(Told::new(job, Task::GoOn));
            "its machine is told to go on".clone_into(&mut freeze.note);
            let text = format!("{name} is thawed when its machine runs: it is told to go on");
            let generation = self.shared.snapshots.generation();
            return Ok(Applied::at(generation, vec![text]));
        }
        self.thaw_now(&name, Thaw::GoesOn, now_ns)
    }

    /// Ends a freeze now, if there is one.
    pub(in crate::control) fn thaw_now(
        &mut self,
        name: &str,
        thaw: Thaw,
        now_ns: u64,
    ) -> Result<Applied, ApiError> {
        let Some(freeze) = self.freeze_of(name) else {
            return Err(usage(format!("{name} is not frozen")));
        };
        for (_, record) in freeze.records.values() {
            match thaw {
                Thaw::GoesOn => record.advance(Phase::Frozen, Phase::GoesOn),
                Thaw::WentBack => record.advance(Phase::Frozen, Phase::Compared),
                Thaw::Anew => {
                    record.conclude(Phase::Frozen, Phase::Ends, Outcome::Forgotten);
                    true
                }
            };
            record.advance(Phase::Owes, Phase::Owed);
        }
        freeze.stage = match thaw {
            Thaw::WentBack => Stage::Comparing,
            Thaw::GoesOn | Thaw::Anew => Stage::Thawing,
        };
        let count = freeze.records.len();
        self.run_errand(name);
        info!(workload = name, ?thaw, "thawed");
        self.tick_freezes(now_ns);
        let text = match thaw {
            Thaw::WentBack => format!(
                "{name} is asked what it remembers of {count} connections; `vswitch workload show {name}` shows what becomes of each"
            ),
            _ => format!("{name} is thawed: {count} connections go on"),
        };
        let generation = self.shared.snapshots.generation();
        Ok(Applied::at(generation, vec![text]))
    }

    /// Has both ends of what was frozen told what has become of it, once every worker knows.
    fn run_errand(&mut self, name: &str) {
        let Some(freeze) = self.freeze_of(name) else {
            return;
        };
        let errand = Arc::new(Errand::new(freeze.records.values().cloned().collect()));
        freeze.errand = Some(Arc::clone(&errand));
        // That it has not settled was logged; they are told all the same.
        self.judge_again();
        errand.go();
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    /// Ends what takes too long, and takes note of what was done.
    pub(in crate::control) fn tick_freezes(&mut self, now_ns: u64) {
        let names = self.quarantine.frozen_names();
        for name in names {
            let Some(freeze) = self.freeze_of(&name) else {
                continue;
            };
            let is_told = freeze
                .errand
                .as_ref()
                .is_some_and(|errand| errand.is_done());
            match freeze.stage {
                Stage::Frozen if freeze.deadline_ns <= now_ns => {
                    freeze.stage = Stage::Late;
                    "its peers were reset; thaw it".clone_into(&mut freeze.note);
                    for (_, record) in freeze.records.values() {
                        record.conclude(Phase::Frozen, Phase::Late, Outcome::Late);
                    }
                    let max_s = freeze.max_s;
                    self.run_errand(&name);
                    let why = format!("frozen for more than {max_s} s: its peers are reset");
                    warn!(workload = name, "{why}");
                    self.tell_quarantine("thaw", &name, &why);
                }
                Stage::Thawing | Stage::Comparing if is_told => self.thawed(&name, now_ns),
                _ => {}
            }
        }
    }

    /// What was frozen goes on or is over, and its ends know.
    fn thawed(&mut self, name: &str, now_ns: u64) {
        let Some(held) = self.quarantine.held.get_mut(name) else {
            return;
        };
        let Some(freeze) = held.freeze.take() else {
            return;
        };
        let (lines, continues) = freeze.outcomes();
        for (named, (_, record)) in &freeze.records {
            let outcome = record.outcome().unwrap_or(Outcome::Gone);
            held.became.insert(named.clone(), outcome);
        }
        let resets = lines.len() - continues;
        let why = format!("{continues} connections continue, {resets} do not");
        info!(workload = name, "{why}");
        self.tell_quarantine("thaw", name, &why);
        let generation = self.shared.snapshots.generation();
        let rolled_back = freeze.stage == Stage::Comparing;
        let recorder = &self.recorder;
        if let Err(why) = recorder.thawed(generation, name, (&freeze.who, rolled_back), &lines) {
            warn!(workload = name, "its thaw is not recorded: {why}");
        }
        self.restart_thawed(name, &why, now_ns);
    }

    /// Whether a workload is frozen, or was and its ends do not know yet.
    pub(in crate::control) fn is_frozen(&self, name: &str) -> bool {
        self.quarantine
            .held
            .get(name)
            .is_some_and(|held| held.freeze.is_some())
    }

    /// What the restarter says of a job that paused a machine, or had one go on. `None` of what: it will not be done.
    pub(in crate::control) fn machine_said(&mut self, job: u64, what: &What, now_ns: u64) {
        let mut held = self.quarantine.held.iter_mut();
        let found = held.find_map(|(name, held)| {
            let freeze = held.freeze.as_mut()?;
            let told = freeze.machine.filter(|told| told.job == job)?;
            Some((name.clone(), told.task, freeze))
        });
        let Some((name, task, freeze)) = found else {
            return;
        };
        let is_over = !matches!(what, What::Step(_));
        freeze.machine = Some(Told { job, task, is_over });
        let can_go_on = matches!(freeze.stage, Stage::Frozen | Stage::Late);
        match (what, task) {
            (What::Step(_), _) => {}
            (What::Done(_), Task::Pause) => "its machine is paused".clone_into(&mut freeze.note),
            (What::Done(_), _) if can_go_on => {
                "its machine runs".clone_into(&mut freeze.note);
                if let Err(e) = self.thaw_now(&name, Thaw::GoesOn, now_ns) {
                    warn!(workload = name, "not thawed: {e}");
                }
            }
            (What::Done(_), _) => "its machine runs".clone_into(&mut freeze.note),
            (What::Failed(why), task) => {
                let text = match task {
                    Task::Pause => "its machine was not paused; pause it",
                    _ => "its machine does not go on; let it go on, and thaw it",
                };
                freeze.note = format!("{text}: {why}");
                warn!(workload = name, "{}", freeze.note);
            }
        }
    }

    /// Nobody will hear of those jobs any more.
    pub(in crate::control) fn machines_gone(&mut self, why: &str, now_ns: u64) {
        let freezes = self
            .quarantine
            .held
            .values()
            .filter_map(|h| h.freeze.as_ref());
        let told = freezes.filter_map(|freeze| freeze.machine);
        let unsaid = told.filter(|told| !told.is_over).map(|told| told.job);
        for job in unsaid.collect::<Vec<_>>() {
            self.machine_said(job, &What::Failed(why.to_owned()), now_ns);
        }
    }
}
