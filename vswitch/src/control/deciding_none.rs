//! In place of `deciding.rs` in a build without the manager: people answer, and a state that wants rules is refused.

use std::sync::Arc;

use super::api::ManagerInfo;
use super::apply::Control;
use super::state::{Decisions, SwitchConfig};
use crate::datapath::verdicts::Topic;
use crate::policy::{FieldError, FieldPath};
use crate::sys::eventfd::EventFd;

/// How a question ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Allowed,
    Denied,
    Unanswered,
}

/// There is no manager in this program.
#[derive(Debug, thiserror::Error)]
#[error(
    "[manager]: this program was built without the manager; build it with the feature \"manager\", or remove the table"
)]
pub struct ManagerError;

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

    pub(super) fn connect(
        &mut self,
        switch: &SwitchConfig,
        _: &Arc<EventFd>,
    ) -> Result<(), ManagerError> {
        switch
            .manager
            .as_ref()
            .map_or(Ok(()), |_| Err(ManagerError))
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

    pub(super) fn cancel_at_manager(&self, _: u64) {}

    pub(super) fn take_answers(&mut self, _: u64) {}
}
