//! Restarts of workloads.

use serde::{Deserialize, Serialize};

/// A restart, under way or over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartInfo {
    /// What to call it: 16 hexadecimal digits.
    pub id: String,
    /// Who is restarted: NAME, or TENANT/NAME outside the default tenant.
    pub workload: String,
    /// Who wanted it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// What does it.
    pub driver: String,
    /// How far it is.
    pub state: RestartState,
    /// The last that was heard: how far it has come, what went wrong, or what is worth knowing.
    pub said: String,
    /// Digest that was verified, of what the workload runs since.
    pub image: Option<String>,
    /// The declared digest was verified.
    pub trusted: bool,
    /// Connections that it may open again without a question, when it was trusted.
    pub readmitted: u32,
    /// How long it has taken.
    pub took_ms: u64,
    /// How long after it was begun data passed again on a connection that was readmitted; `None`: not yet, or none was.
    pub data_ms: Option<u64>,
}

/// Connections that a restarted workload may open again without a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadmissionInfo {
    /// Who.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What for, such as tcp/5432.
    pub service: String,
    /// How many.
    pub left: u32,
    /// For how long, seconds.
    pub expires_s: u64,
    /// After which restart.
    pub restart: String,
}

/// How far a restart is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartState {
    /// It is being made.
    UnderWay,
    /// It was made, and the workload is released.
    Done,
    /// It was not, and the workload stays quarantined.
    Failed,
}
