//! In place of `deciding.rs` in a build without the manager: people answer, and a state that wants rules is refused.

use super::api::ManagerInfo;
use super::apply::Control;
use super::state::Decisions;
use crate::datapath::verdicts::Topic;
use crate::policy::{FieldError, FieldPath};

/// How a question ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Allowed,
    Denied,
    Unanswered,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Deciding;

/// Nothing to be followed.
#[derive(Debug, Default)]
pub(super) struct Checked;

impl Deciding {
    pub(super) fn new() -> Self {
        Deciding
    }

    pub(super) fn check(decisions: Option<&Decisions>) -> Result<Checked, Vec<FieldError>> {
        decisions.map_or(Ok(Checked), |_| {
            Err(vec![FieldError::new(
                FieldPath::root().key("manager"),
                "this program was built without the manager",
                "build it with the feature \"manager\", or remove the table",
            )])
        })
    }

    pub(super) fn describe(_: Option<&Decisions>) -> String {
        String::new()
    }

    pub(super) fn concluded(&mut self, _: &Topic, _: Outcome, _: u64) {}

    pub(super) fn info(&self) -> Option<ManagerInfo> {
        None
    }
}

impl Control {
    pub(super) fn decide_by(&mut self, _: Checked, _: bool) {}

    pub(super) fn ask_manager(&mut self, _: u64, _: u64) {}

    pub(super) fn take_answers(&mut self, _: u64) {}
}
