//! Numbers of attachments, and who has them.

use std::collections::HashMap;

use super::state::{PortConfig, WorkloadConfig};
use crate::datapath::snapshot::AttachmentId;
use crate::policy::model::qualified;

/// Numbers for (port, workload) pairs, for the life of the process. Workloads by their qualified
/// names: on a port that went to another tenant nobody is who he was.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    numbers: HashMap<(String, String), AttachmentId>,
    names: Vec<(String, String)>,
}

impl Attachments {
    /// The pair's number. "" stands for whoever is not a declared workload.
    pub(super) fn intern(&mut self, port: &str, workload: impl Into<String>) -> AttachmentId {
        let pair = (port.to_owned(), workload.into());
        let next = AttachmentId(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        *self.numbers.entry(pair).or_insert_with_key(|pair| {
            self.names.push(pair.clone());
            next
        })
    }

    /// The number of a pair that has one.
    pub(super) fn of(&self, port: &PortConfig, workload: &WorkloadConfig) -> Option<AttachmentId> {
        let name = qualified(&port.tenant, &workload.name);
        self.numbers.get(&(port.name.clone(), name)).copied()
    }

    /// The number of the outside behind a port.
    pub(super) fn outside_of(&self, port: &PortConfig) -> Option<AttachmentId> {
        let pair = (port.name.clone(), String::new());
        self.numbers.get(&pair).copied()
    }

    /// Who has that number, also when he is gone: a workload's qualified name, `outside(PORT)`, or
    /// `-` when nobody has it.
    pub(super) fn name(&self, number: u32) -> String {
        match self.names.get(number as usize) {
            Some((port, workload)) if workload.is_empty() => format!("outside({port})"),
            Some((_, workload)) => workload.clone(),
            None => "-".to_owned(),
        }
    }
}
