//! What the control thread records in the ledger, when there is one: that the switch started and ended, every policy, every
//! port. Each is in force already when it is recorded: a rule that denies must not wait for a disk. What the ledger does not
//! take is an error in the log; it tells of that itself as soon as it can.

use tracing::error;

use super::api::{AskInfo, RestartInfo, Stopped as ResponsesStopped, SuspicionInfo, WatchEvent};
use super::asks::Answered;
use super::callers::NotYours;
use super::quarantine::Record;
use super::state::{LedgerConfig, PortConfig};
use super::walls::{Mark, Row};
pub use crate::manager::ledger::LedgerError as RecorderError;
use crate::manager::ledger::bindings::{
    BEGUN, Bound, FROZEN, LET_GO, Quarantined, RESPONSES, RESTARTED,
};
use crate::manager::ledger::body::{
    Admitted, Approved, Ask, Decoy, Excess, Freeze, PolicyApplied, PolicyConfirmed, PortAdded,
    PortRemoved, ProposalDropped, Proposed, Quarantine, Question, Release, ResponsesSwitched,
    Restart, RoleRefused, Started, Stopped, Suspicion, SuspicionCleared, Thaw, TransactionBegun,
    TransactionEnded, Verdict, WallBreached, WallCommitted, WallDenied, WallReleased, WallReserved,
    WallReset,
};
use crate::manager::ledger::record::digest;
use crate::manager::ledger::{Ack, Body, Config, Entry, Ledger};
use crate::policy::model::{Policy, Scope, qualified};
use crate::sys::eventfd::EventFd;

/// Changes listed in one record; who changes more has a file that says what.
const LISTED: usize = 100;

/// What a record of a release says of kept connections, bytes: it must fit ([`crate::manager::ledger::record::MAX_BODY_BYTES`]).
const KEPT_BYTES: usize = 48 << 10;

/// The switch itself, as the one who acts.
const SWITCH: &str = "switch";

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Who acts now. The control thread does one thing at a time.
    who: String,
    ledger: Option<Ledger>,
}

impl Recorder {
    /// Records nothing.
    pub(super) fn none() -> Self {
        Recorder {
            who: SWITCH.to_owned(),
            ledger: None,
        }
    }

    /// Opens the ledger, if there shall be one, and records that the switch starts.
    pub(super) fn open(
        config: Option<&LedgerConfig>,
        wake: &EventFd,
    ) -> Result<Self, RecorderError> {
        let Some(config) = config else {
            return Ok(Self::none());
        };
        let wake = wake.try_clone().map_err(|source| RecorderError::Io {
            what: "be woken by it",
            path: config.path.clone(),
            source,
        })?;
        let file = Config {
            anchor: config.anchor.clone(),
            max_bytes: config.max_bytes,
            ..Config::new(&config.path)
        };
        let ledger = Ledger::open(&file, wake)?;
        let started = Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            after: ledger.after().to_owned(),
        };
        let recorder = Recorder {
            ledger: Some(ledger),
            ..Self::none()
        };
        recorder.note(Entry::by(SWITCH, started));
        Ok(recorder)
    }

    /// From now on `who` acts.
    pub(super) fn by(&mut self, who: impl Into<String>) {
        self.who = who.into();
    }

    /// Who acts now.
    pub(super) fn who(&self) -> &str {
        &self.who
    }

    /// A policy, or another view of who is who, is in force.
    pub(super) fn applied(
        &self,
        generation: u64,
        policy: &Policy,
        (source, confirm_s): (&str, Option<u64>),
        changes: &[String],
    ) {
        if self.ledger.is_none() {
            return;
        }
        // Plain values with string keys: serialising them cannot fail.
        let text = serde_json::to_vec(policy).unwrap_or_default();
        let record = PolicyApplied {
            source: source.to_owned(),
            digest: digest(&text).to_string(),
            changes: changes.iter().take(LISTED).cloned().collect(),
            more_changes: changes.len().saturating_sub(LISTED) as u64,
            confirm_s,
        };
        self.note(self.entry(generation, record));
    }

    /// Somebody keeps the policy that would have gone back by itself.
    pub(super) fn confirmed(&self, generation: u64, source: &str) {
        let source = source.to_owned();
        self.note(self.entry(generation, PolicyConfirmed { source }));
    }

    /// A port was opened.
    pub(super) fn port_added(&self, generation: u64, port: &PortConfig) {
        let kind = serde_json::to_value(&port.kind).unwrap_or_default();
        let kind = kind.get("kind").and_then(|k| k.as_str());
        let record = PortAdded {
            kind: kind.unwrap_or_default().to_owned(),
            tenant: port.tenant.clone(),
            workloads: workloads(port),
        };
        self.note(self.entry(generation, record).port(&port.name));
    }

    /// A port was closed.
    pub(super) fn port_removed(&self, generation: u64, port: &PortConfig) {
        let workloads = workloads(port);
        let record = PortRemoved { workloads };
        self.note(self.entry(generation, record).port(&port.name));
    }

    /// Somebody is asked.
    pub(super) fn asked(&self, generation: u64, ask: &AskInfo, port: &str) {
        let Question {
            from,
            to,
            service,
            connection,
            rule,
        } = question(ask);
        let record = Ask {
            ask: ask.id.clone(),
            from,
            to,
            service,
            connection,
            rule,
        };
        let entry = self.entry(generation, record).workload(&ask.from);
        self.note(entry.port(port));
    }

    /// Whoever acts now answered.
    pub(super) fn answered(&self, answered: &Answered<'_>) {
        self.note(self.verdict(answered));
    }

    /// The same, and [`Recorder::recorded`] will say of `id` when that is durable.
    pub(super) fn answer_first(&self, answered: &Answered<'_>, id: u64) -> Result<(), String> {
        self.submit(self.verdict(answered), id)
    }

    /// What has become durable, or will not, since the last call.
    pub(super) fn recorded(&self) -> Vec<(u64, Result<(), String>)> {
        let acks = self.ledger.iter().flat_map(Ledger::drain);
        let result = |ack: Ack| ack.result.map(|_| ()).map_err(|why| why.to_string());
        acks.map(|ack| (ack.token, result(ack))).collect()
    }

    /// Whether the ledger takes what workloads cause.
    pub(super) fn records(&self) -> bool {
        let standing = self.ledger.as_ref().map(Ledger::standing);
        standing.is_some_and(|standing| standing.refuses.is_none())
    }

    /// So many questions of this port were too many in the last second, and denied.
    pub(super) fn excess(&self, generation: u64, port: &str, count: u64) {
        self.note(self.entry(generation, Excess { count }).port(port));
    }

    fn verdict(&self, answered: &Answered<'_>) -> Entry {
        let ask = answered.ask;
        let record: Body = if answered.asked {
            let scope = match answered.scope {
                Scope::Connection => "connection",
                Scope::Service => "service",
            };
            let record = Verdict {
                ask: ask.id.clone(),
                verdict: if answered.yes { "allow" } else { "deny" }.to_owned(),
                reason: answered.why.to_owned(),
                scope: scope.to_owned(),
                ttl_s: answered.ttl_s,
                question: answered.fresh.then(|| question(ask)),
            };
            record.into()
        } else {
            let record = Admitted {
                connection: ask.connection(),
                from: ask.from.clone(),
                to: ask.to.clone(),
                service: ask.service.clone(),
                rule: ask.rule.clone(),
            };
            record.into()
        };
        let entry = self.entry(answered.generation, record);
        entry.workload(&ask.from).port(answered.port)
    }

    /// Whoever acts now wants something that takes this away from walls.
    pub(super) fn proposed(&self, generation: u64, id: &str, call: &str, weakens: &[String]) {
        let record = Proposed {
            proposal: id.to_owned(),
            call: call.to_owned(),
            weakens: weakens.iter().take(LISTED).cloned().collect(),
        };
        self.note(self.entry(generation, record));
    }

    /// Somebody dropped that.
    pub(super) fn proposal_dropped(&self, generation: u64, id: &str) {
        let proposal = id.to_owned();
        self.note(self.entry(generation, ProposalDropped { proposal }));
    }

    /// `second` agreed to what whoever acts now proposed.
    pub(super) fn approved(&self, generation: u64, id: &str, second: &str, weakens: &[String]) {
        let record = Approved {
            proposal: id.to_owned(),
            second: second.to_owned(),
            weakens: weakens.iter().take(LISTED).cloned().collect(),
        };
        self.note(self.entry(generation, record));
    }

    /// Whoever acts now may not do what he asked for.
    pub(super) fn role_refused(&self, no: &NotYours) {
        let record = RoleRefused {
            call: no.call.to_owned(),
            needs: no.needs.clone(),
        };
        self.note(Entry::by(&self.who, record));
    }

    /// A restart begins.
    pub(super) fn restart_begins(&self, generation: u64, info: &RestartInfo) {
        self.restart(generation, info, BEGUN);
    }

    /// This came of a restart.
    pub(super) fn restart(&self, generation: u64, info: &RestartInfo, outcome: &str) {
        let record = Restart {
            driver: info.driver.clone(),
            image: info.image.clone(),
            trusted: info.trusted,
            outcome: outcome.to_owned(),
            reason: info.reason.clone(),
        };
        let entry = Entry::by(&info.by, record).generation(generation);
        self.note(entry.workload(&info.workload));
    }

    /// Something about walls.
    pub(super) fn mark(&self, generation: u64, mark: &Mark<'_>) {
        if self.ledger.is_some() {
            self.note(self.marked(generation, mark));
        }
    }

    /// The same, and [`Recorder::recorded`] will say of `token` when that is durable.
    pub(super) fn mark_first(
        &self,
        generation: u64,
        mark: &Mark<'_>,
        token: u64,
    ) -> Result<(), String> {
        self.submit(self.marked(generation, mark), token)
    }

    /// The same, and waits until it is durable: for what people do, not for what workloads do.
    pub(super) fn mark_durably(&self, generation: u64, mark: &Mark<'_>) -> Result<(), String> {
        self.append(self.marked(generation, mark))
    }

    fn marked(&self, generation: u64, mark: &Mark<'_>) -> Entry {
        let texts = |[a, b]: &[String; 2]| vec![a.clone(), b.clone()];
        let body: Body = match mark {
            Mark::Reserved(fact, connection) => WallReserved {
                wall: fact.wall.clone(),
                subject: fact.who.to_string(),
                side: fact.side.clone(),
                connection: (*connection).to_owned(),
            }
            .into(),
            Mark::Committed(fact) => WallCommitted {
                wall: fact.wall.clone(),
                subject: fact.who.to_string(),
                side: fact.side.clone(),
            }
            .into(),
            Mark::Released(fact, reason) => WallReleased {
                wall: fact.wall.clone(),
                subject: fact.who.to_string(),
                side: fact.side.clone(),
                reason: (*reason).to_owned(),
            }
            .into(),
            Mark::Denied(conflict, connection) => WallDenied {
                wall: conflict.wall.clone(),
                subject: conflict.who.to_string(),
                sides: texts(&conflict.sides),
                connection: (*connection).to_owned(),
            }
            .into(),
            Mark::Breached(conflict) => WallBreached {
                wall: conflict.wall.clone(),
                subject: conflict.who.to_string(),
                sides: texts(&conflict.sides),
            }
            .into(),
            Mark::Begun(transaction) => TransactionBegun {
                transaction: transaction.name.clone(),
                wall: transaction.wall.clone(),
                workloads: transaction.workloads.iter().cloned().collect(),
            }
            .into(),
            Mark::Ended(transaction) => TransactionEnded {
                transaction: transaction.name.clone(),
                wall: transaction.wall.clone(),
            }
            .into(),
            Mark::Reset(wall, who, second, why) => WallReset {
                wall: (*wall).to_owned(),
                subject: Some(who.to_string()),
                change: "reset".to_owned(),
                second: (*second).to_owned(),
                reason: (*why).to_owned(),
            }
            .into(),
        };
        self.entry(generation, body)
    }

    /// Who was bound to what when the ledger was opened.
    pub(super) fn bound(&self) -> Vec<Row> {
        let rows = self.ledger.iter().flat_map(Ledger::bound);
        let row = |b: &Bound| Row {
            wall: b.wall.clone(),
            subject: b.subject.clone(),
            side: b.side.clone(),
            state: b.state.clone(),
            since_ns: b.since_ns,
            connection: b.connection.clone(),
        };
        rows.map(row).collect()
    }

    /// Somebody met a decoy.
    pub(super) fn met_decoy(&self, event: &WatchEvent) {
        let record = Decoy {
            from: event.from.clone(),
            to: event.to.clone(),
            service: format!("{}/{}", event.protocol, event.dport),
            connection: event.connection(),
            rule: event.rule.clone().unwrap_or_default(),
            bytes: event.original_bytes,
        };
        let entry = Entry::by(SWITCH, record).generation(event.generation);
        self.note(entry.workload(&event.from).port(&event.port));
    }

    /// Somebody is suspected, and this followed.
    pub(super) fn suspected(&self, generation: u64, info: &SuspicionInfo, port: Option<&str>) {
        let followed = info.followed.iter();
        let record = Suspicion {
            detector: info.detector.clone(),
            count: u64::from(info.count),
            seconds: u64::from(info.seconds),
            last: info.last.clone(),
            responses: followed
                .map(|f| format!("{} ({}): {}", f.response, f.action, f.outcome))
                .collect(),
        };
        let entry = self.entry(generation, record).workload(&info.workload);
        self.note(match port {
            Some(port) => entry.port(port),
            None => entry,
        });
    }

    /// Whoever acts now has seen to it.
    pub(super) fn suspicion_cleared(&self, generation: u64, workload: &str) {
        let entry = self.entry(generation, SuspicionCleared {});
        self.note(entry.workload(workload));
    }

    /// Responses are stopped, for this reason, or go on.
    pub(super) fn responses(&self, generation: u64, stopped: Option<&str>) {
        let record = ResponsesSwitched {
            stopped: stopped.is_some(),
            reason: stopped.unwrap_or_default().to_owned(),
        };
        self.note(self.entry(generation, record));
    }

    /// Whether they were stopped when the ledger was opened.
    pub(super) fn responses_stopped(&self) -> Option<ResponsesStopped> {
        let mut rows = self.ledger.iter().flat_map(Ledger::bound);
        let row = rows.find(|row| row.subject == RESPONSES)?;
        Some(ResponsesStopped {
            since: u64::try_from(row.since_ns / 1_000_000_000).unwrap_or(0),
            reason: row.connection.clone(),
        })
    }

    /// Who was being restarted when the ledger was opened.
    pub(super) fn in_restart(&self) -> Vec<String> {
        let rows = self.ledger.iter().flat_map(Ledger::bound);
        let begun = rows.filter(|row| row.subject == RESTARTED);
        begun.map(|row| row.side.clone()).collect()
    }

    /// This is all that is known of what came of that.
    pub(super) fn restart_lost(&self, workload: &str, outcome: &str) {
        let mut rows = self.ledger.iter().flat_map(Ledger::bound);
        let row = rows.find(|row| (&*row.subject, &*row.side) == (RESTARTED, workload));
        let begun = row.and_then(|row| serde_json::from_str::<Restart>(&row.connection).ok());
        let record = Restart {
            outcome: outcome.to_owned(),
            ..begun.unwrap_or_default()
        };
        self.note(Entry::by(SWITCH, record).workload(workload));
    }

    /// Whom responses had let go when the ledger was opened, after a restart, and when (wall clock).
    pub(super) fn let_go(&self) -> Vec<(String, i64)> {
        let rows = self.ledger.iter().flat_map(Ledger::bound);
        let rows = rows.filter(|row| row.subject == LET_GO);
        rows.map(|row| (row.side.clone(), row.since_ns)).collect()
    }

    /// Somebody is in quarantine; waits until that is durable.
    pub(super) fn quarantined(&self, generation: u64, record: &Record) -> Result<(), String> {
        let body = Quarantine {
            reason: record.reason.clone(),
            keep: record.keep.clone(),
            workloads: record.workloads.clone(),
            addresses: record.addresses.clone(),
        };
        self.append(self.entry(generation, body).workload(&record.workload))
    }

    /// He is released; the same. `kept` is what was kept of him.
    pub(super) fn released(
        &self,
        generation: u64,
        workload: &str,
        reason: &str,
        kept: &[String],
    ) -> Result<(), String> {
        let body = Release {
            reason: reason.to_owned(),
            kept: fitting(kept),
        };
        self.append(self.entry(generation, body).workload(workload))
    }

    /// So many connections of somebody are frozen, for so many seconds at most; waits until that is durable.
    pub(super) fn frozen(
        &self,
        generation: u64,
        workload: &str,
        (connections, max_s): (usize, u32),
    ) -> Result<(), String> {
        let body = Freeze {
            connections: connections as u64,
            max_s: max_s.into(),
        };
        self.append(self.entry(generation, body).workload(workload))
    }

    /// They no longer are, and this became of them; the same.
    pub(super) fn thawed(
        &self,
        generation: u64,
        workload: &str,
        (who, rolled_back): (&str, bool),
        outcomes: &[String],
    ) -> Result<(), String> {
        let body = Thaw {
            rolled_back,
            outcomes: fitting(outcomes),
        };
        let entry = Entry::by(who, body).generation(generation);
        self.append(entry.workload(workload))
    }

    /// Who was frozen when the ledger was opened.
    pub(super) fn in_freeze(&self) -> Vec<String> {
        let rows = self.ledger.iter().flat_map(Ledger::bound);
        let frozen = rows.filter(|row| row.subject == FROZEN);
        frozen.map(|row| row.side.clone()).collect()
    }

    /// Who was in quarantine when the ledger was opened.
    pub(super) fn in_quarantine(&self) -> Vec<Record> {
        let record = |q: &Quarantined| Record {
            workload: q.workload.clone(),
            since_ns: q.since_ns,
            who: q.who.clone(),
            reason: q.body.reason.clone(),
            keep: q.body.keep.clone(),
            workloads: q.body.workloads.clone(),
            addresses: q.body.addresses.clone(),
        };
        let all = self.ledger.iter().flat_map(Ledger::quarantined);
        all.map(record).collect()
    }

    /// The switch has ended. Returns when that is on disk.
    pub(super) fn close(&mut self, generation: u64) {
        let reason = "shut down".to_owned();
        self.note(Entry::by(SWITCH, Stopped { reason }).generation(generation));
        self.ledger = None;
    }

    fn entry(&self, generation: u64, body: impl Into<Body>) -> Entry {
        Entry::by(&self.who, body).generation(generation)
    }

    fn append(&self, entry: Entry) -> Result<(), String> {
        let ledger = self.ledger.as_ref().ok_or("there is no ledger")?;
        let recorded = ledger.append(entry);
        recorded.map(|_seq| ()).map_err(|why| why.to_string())
    }

    fn submit(&self, entry: Entry, token: u64) -> Result<(), String> {
        let ledger = self.ledger.as_ref().ok_or("there is no ledger")?;
        ledger.submit(entry, token).map_err(|why| why.to_string())
    }

    fn note(&self, entry: Entry) {
        let Some(ledger) = &self.ledger else { return };
        let kind = entry.body.kind();
        if let Err(why) = ledger.note(entry) {
            error!("{kind} is not recorded: {why}");
        }
    }
}

fn question(ask: &AskInfo) -> Question {
    Question {
        from: ask.from.clone(),
        to: ask.to.clone(),
        service: ask.service.clone(),
        connection: ask.connection(),
        rule: ask.rule.clone(),
    }
}

/// As many lines as fit a record.
fn fitting(lines: &[String]) -> Vec<String> {
    let mut room = KEPT_BYTES;
    let fits = |text: &&String| {
        room = room.saturating_sub(text.len());
        room > 0
    };
    lines.iter().take_while(fits).cloned().collect()
}

fn workloads(port: &PortConfig) -> Vec<String> {
    let names = port
        .workloads
        .iter()
        .map(|w| qualified(&port.tenant, &w.name));
    names.collect()
}
