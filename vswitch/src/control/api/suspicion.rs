//! Who was suspected, and what followed.

use serde::{Deserialize, Serialize};

/// A suspicion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspicionInfo {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Whom: NAME or TENANT/NAME.
    pub workload: String,
    /// By which detector.
    pub detector: String,
    /// How many there had been.
    pub count: u32,
    /// Within so many seconds.
    pub seconds: u32,
    /// What the last one was for: `tcp 10.0.0.2:22`.
    pub last: String,
    /// What followed, response by response.
    pub followed: Vec<Followed>,
    /// The workload has not been cleared since, and a response told of it or took something away.
    pub open: bool,
}

/// What a response did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its name.
    pub response: String,
    /// Its action.
    pub action: String,
    /// `done`, or why not: `staged`, `stopped`, ...
    pub outcome: String,
}

/// All responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponsesInfo {
    /// None is carried out.
    pub stopped: Option<Stopped>,
    /// In the order of the policy.
    pub responses: Vec<ResponseInfo>,
    /// Whom they take something away from.
    pub contained: Vec<ContainedInfo>,
}

/// Somebody whom a response takes something away from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainedInfo {
    /// Who: NAME or TENANT/NAME.
    pub workload: String,
    /// How: `ask`.
    pub action: String,
    /// By which response.
    pub response: String,
    /// For so many seconds more, unless somebody clears it, or it is suspected anew.
    pub left_s: u64,
}

/// Somebody has stopped all responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why, and who.
    pub reason: String,
}

/// One response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseInfo {
    /// Its name; outside the default tenant with the tenant's.
    pub name: String,
    /// The detectors that it answers to.
    pub on: Vec<String>,
    /// Whose suspicion.
    pub of: Vec<String>,
    /// What is done.
    pub action: String,
    /// It only says what it would do.
    pub staged: bool,
    /// How often it was carried out since the switch started.
    pub done: u64,
    /// How often it was not, because it is staged, or stopped, or over a limit, or it failed.
    pub withheld: u64,
}
