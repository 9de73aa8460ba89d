//! What is recorded of questions and answers.
//!
//! Rules answer most questions within a moment, and each record costs as much as the rules do: so a question that is answered
//! within [`FRESH_NS`] is recorded with its answer, as one. Who waits longer, or is given up, has a record of the question by
//! itself, whatever becomes of it. A switch that dies within that moment has admitted nothing: its frames were held.

use std::sync::atomic::Ordering::Relaxed;

use flowtable::FlowKey;

use super::{Asks, Pending, SECOND_NS};
use crate::control::api::AskInfo;
use crate::control::apply::Control;
use crate::control::recorder::Recorder;
use crate::datapath::verdicts::Answer;
use crate::drop_reason::DropReason;
use crate::policy::model::{Record, Rule, Scope};

/// How long a question may wait before it is recorded by itself: longer than rules take, here or elsewhere, shorter than people do.
const FRESH_NS: u64 = 100_000_000;
/// How often what was asked too much is recorded.
pub(super) const EXCESS_NS: u64 = SECOND_NS;
/// How long a record may take to be durable: no disk that works needs as long.
const RECORD_NS: u64 = 5_000_000_000;

/// An answer, as it is recorded.
#[derive(Debug)]
// Without a ledger nobody reads it.
#[cfg_attr(not(feature = "manager"), allow(dead_code))]
pub(in crate::control) struct Answered<'a> {
    /// To this.
    pub(in crate::control) ask: &'a AskInfo,
    /// No record tells yet that it was asked.
    pub(in crate::control) fresh: bool,
    /// Whose port asked.
    pub(in crate::control) port: &'a str,
    /// Under which rules.
    pub(in crate::control) generation: u64,
    /// Somebody was asked; if not, only the record was waited for.
    pub(in crate::control) asked: bool,
    /// Yes or no.
    pub(in crate::control) yes: bool,
    /// Why.
    pub(in crate::control) why: &'a str,
    /// What it is about.
    pub(in crate::control) scope: Scope,
    /// For how long.
    pub(in crate::control) ttl_s: u64,
}

/// An answer that is given when its record is durable.
#[derive(Debug)]
pub(super) struct Concluded {
    about: FlowKey,
    answer: Answer,
    why: String,
}

/// What is recorded of an answer.
fn verdict<'a>(pending: &'a Pending, answer: &Answer, why: &'a str, now_ns: u64) -> Answered<'a> {
    Answered {
        ask: &pending.shown,
        fresh: !pending.recorded,
        port: &pending.port,
        generation: pending.first.generation,
        asked: pending.asking.answer,
        yes: answer.yes,
        why,
        scope: if answer.once {
            Scope::Connection
        } else {
            Scope::Service
        },
        ttl_s: answer.expires_ns.saturating_sub(now_ns) / SECOND_NS,
    }
}

impl Pending {
    /// Records that it was asked, if nothing tells yet.
    pub(super) fn record(&mut self, recorder: &Recorder) {
        if !std::mem::replace(&mut self.recorded, true) {
            recorder.asked(self.first.generation, &self.shown, &self.port);
        }
    }
}

impl Asks {
    /// When a question has waited so long that it is recorded.
    pub(super) fn next_record_ns(&self) -> Option<u64> {
        self.fresh.front().map(|(asked_ns, _)| asked_ns + FRESH_NS)
    }

    /// Takes the next of these.
    fn take_waiting(&mut self, now_ns: u64) -> Option<u64> {
        self.next_record_ns().filter(|at| *at <= now_ns)?;
        self.fresh.pop_front().map(|(_, id)| id)
    }
}

impl Control {
    /// Records questions that have waited a moment.
    pub(in crate::control) fn record_waiting(&mut self, now_ns: u64) {
        while let Some(id) = self.asks.take_waiting(now_ns) {
            if let Some(pending) = self.asks.pending.get_mut(&id) {
                pending.record(&self.recorder);
            }
        }
    }

    /// What a port had dropped for asking too much.
    pub(super) fn over_budget(&self, port: u16) -> u64 {
        let cells = self.shared.counters.iter();
        let cells = cells.filter_map(|c| c.ports.get(usize::from(port)));
        cells
            .map(|cell| cell.drops.get(DropReason::AskOverBudget))
            .sum()
    }

    /// What was dropped for asking too much is one record of each port.
    pub(super) fn record_excess(&mut self) {
        let generation = self.shared.snapshots.generation();
        for open in &self.ports {
            let port = open.port.id.0;
            let now = self.over_budget(port);
            let before = self.asks.excess.insert(port, now).unwrap_or_default();
            if now > before {
                let name = &open.config.name;
                self.recorder.excess(generation, name, now - before);
            }
        }
    }

    /// Somebody has decided, or something: it is recorded, and the answer given; before that, if its rule says so, what is to be
    /// admitted must be durable.
    pub(super) fn decided(
        &mut self,
        about: FlowKey,
        (id, mut pending): (u64, Box<Pending>),
        answer: Answer,
        why: &str,
        now_ns: u64,
    ) {
        let record = verdict(&pending, &answer, why, now_ns);
        if !answer.yes || pending.asking.record == Record::No {
            self.recorder.answered(&record);
            self.give(about, &pending, answer, why, now_ns);
            return;
        }
        let concluded = Concluded {
            about,
            answer,
            why: why.to_owned(),
        };
        match self.recorder.answer_first(&record, id) {
            Ok(()) => {
                pending.deadline_ns = now_ns + RECORD_NS;
                pending.recorded = true;
                self.asks.remember(id, pending);
                self.asks.recording.insert(id, concluded);
            }
            Err(refused) => self.unrecorded(&pending, concluded, &refused, now_ns),
        }
    }

    /// Gives the answers whose records are durable.
    pub(in crate::control) fn take_recorded(&mut self, now_ns: u64) {
        for (id, result) in self.recorder.recorded() {
            let Some(concluded) = self.asks.recording.remove(&id) else {
                self.wall_recorded(id, result, now_ns);
                continue;
            };
            let Some(pending) = self.asks.forget(id) else {
                continue;
            };
            match result {
                Ok(()) => {
                    let Concluded { about, answer, why } = concluded;
                    self.give(about, &pending, answer, &why, now_ns);
                }
                Err(refused) => self.unrecorded(&pending, concluded, &refused, now_ns),
            }
        }
        let records = self.recorder.records();
        if self.shared.verdicts.records().swap(records, Relaxed) != records {
            let strict = |rule: &Rule| rule.require_record == Record::Strict;
            if self.desired.policy.rules.iter().any(strict) {
                self.judge_again();
            }
        }
    }

    /// What was to be admitted is not: there is no record of it.
    pub(super) fn unrecorded(
        &mut self,
        pending: &Pending,
        concluded: Concluded,
        refused: &str,
        now_ns: u64,
    ) {
        let why = format!("{}, but not recorded: {refused}", concluded.why);
        let answer = Answer {
            yes: false,
            once: false,
            ..concluded.answer
        };
        if pending.asking.answer {
            // The question may have been in what is refused.
            let record = Answered {
                fresh: true,
                ..verdict(pending, &answer, &why, now_ns)
            };
            self.recorder.answered(&record);
        }
        self.give(concluded.about, pending, answer, &why, now_ns);
    }
}
