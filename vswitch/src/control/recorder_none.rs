//! In place of `recorder.rs` in a build without the ledger: records nothing, and refuses a configuration that wants it.

use super::api::{AskInfo, RestartInfo, Stopped, SuspicionInfo, WatchEvent};
use super::asks::Answered;
use super::callers::NotYours;
use super::quarantine::Record;
use super::state::{LedgerConfig, PortConfig};
use super::walls::{Mark, Row};
use crate::policy::model::Policy;
use crate::sys::eventfd::EventFd;

/// There is no ledger in this program.
#[derive(Debug, thiserror::Error)]
#[error(
    "[ledger]: this program was built without the ledger; build it with the feature \"manager\", or remove the table"
)]
pub struct RecorderError;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Recorder;

impl Recorder {
    pub(super) fn none() -> Self {
        Recorder
    }

    pub(super) fn open(config: Option<&LedgerConfig>, _: &EventFd) -> Result<Self, RecorderError> {
        config.map_or(Ok(Recorder), |_| Err(RecorderError))
    }

    pub(super) fn by(&mut self, _: impl Into<String>) {}

    pub(super) fn who(&self) -> &'static str {
        "-"
    }

    pub(super) fn applied(&self, _: u64, _: &Policy, _: (&str, Option<u64>), _: &[String]) {}

    pub(super) fn confirmed(&self, _: u64, _: &str) {}

    pub(super) fn port_added(&self, _: u64, _: &PortConfig) {}

    pub(super) fn port_removed(&self, _: u64, _: &PortConfig) {}

    pub(super) fn asked(&self, _: u64, _: &AskInfo, _: &str) {}

    pub(super) fn answered(&self, _: &Answered<'_>) {}

    pub(super) fn answer_first(&self, _: &Answered<'_>, _: u64) -> Result<(), String> {
        Err("there is no ledger".to_owned())
    }

    pub(super) fn records(&self) -> bool {
        false
    }

    pub(super) fn excess(&self, _: u64, _: &str, _: u64) {}

    pub(super) fn proposed(&self, _: u64, _: &str, _: &str, _: &[String]) {}

    pub(super) fn proposal_dropped(&self, _: u64, _: &str) {}

    pub(super) fn approved(&self, _: u64, _: &str, _: &str, _: &[String]) {}

    pub(super) fn role_refused(&self, _: &NotYours) {}

    pub(super) fn restart_begins(&self, _: u64, _: &RestartInfo) {}

    pub(super) fn restart(&self, _: u64, _: &RestartInfo, _: &str) {}

    pub(super) fn in_restart(&self) -> Vec<String> {
        Vec::new()
    }

    pub(super) fn restart_lost(&self, _: &str, _: &str) {}

    pub(super) fn mark(&self, _: u64, _: &Mark<'_>) {}

    pub(super) fn mark_first(&self, _: u64, _: &Mark<'_>, _: u64) -> Result<(), String> {
        Err("there is no ledger".to_owned())
    }

    pub(super) fn recorded(&self) -> Vec<(u64, Result<(), String>)> {
        Vec::new()
    }

    pub(super) fn mark_durably(&self, _: u64, _: &Mark<'_>) -> Result<(), String> {
        Err("there is no ledger".to_owned())
    }

    pub(super) fn bound(&self) -> Vec<Row> {
        Vec::new()
    }

    pub(super) fn met_decoy(&self, _: &WatchEvent) {}

    pub(super) fn suspected(&self, _: u64, _: &SuspicionInfo, _: Option<&str>) {}

    pub(super) fn suspicion_cleared(&self, _: u64, _: &str) {}

    pub(super) fn responses(&self, _: u64, _: Option<&str>) {}

    pub(super) fn responses_stopped(&self) -> Option<Stopped> {
        None
    }

    pub(super) fn let_go(&self) -> Vec<(String, i64)> {
        Vec::new()
    }

    pub(super) fn quarantined(&self, _: u64, _: &Record) -> Result<(), String> {
        Err("there is no ledger".to_owned())
    }

    pub(super) fn released(&self, _: u64, _: &str, _: &str, _: &[String]) -> Result<(), String> {
        Err("there is no ledger".to_owned())
    }

    pub(super) fn frozen(&self, _: u64, _: &str, _: (usize, u32)) -> Result<(), String> {
        Err("there is no ledger".to_owned())
    }

    pub(super) fn thawed(
        &self,
        _: u64,
        _: &str,
        _: (&str, bool),
        _: &[String],
    ) -> Result<(), String> {
        Ok(())
    }

    pub(super) fn in_freeze(&self) -> Vec<String> {
        Vec::new()
    }

    pub(super) fn in_quarantine(&self) -> Vec<Record> {
        Vec::new()
    }

    pub(super) fn close(&mut self, _: u64) {}
}
