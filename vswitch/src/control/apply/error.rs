//! Why a change is not made.

use crate::control::ports::PortError;
use crate::policy::FieldError;

/// Why a change was not made. Except for [`ApplyError::NotSettled`], nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The desired state cannot stand, or cannot be reached from the one there is.
    #[error("{}", lines(.0))]
    Invalid(Vec<FieldError>),
    /// A port could not be opened.
    #[error("{source}")]
    Port {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: PortError,
    },
    /// More ports than the switch was made for.
    #[error("more than {0} ports; raise max_ports in [switch] and restart the daemon")]
    TooManyPorts(usize),
    /// No such port.
    #[error("there is no port {0}; `vswitch port list` shows them")]
    NoSuchPort(String),
    /// A port of that name exists.
    #[error("there is a port {0} already; choose another name, or remove it first")]
    PortExists(String),
    /// No such workload.
    #[error("there is no workload {0}; `vswitch workload list` shows them")]
    NoSuchWorkload(String),
    /// Several workloads can be meant.
    #[error("{text} can be {one} or {other}; say which")]
    WhichWorkload {
        /// How it was called.
        text: String,
        /// Qualified name of one that is called so.
        one: String,
        /// Of another.
        other: String,
    },
    /// Nothing waits for confirmation.
    #[error("no policy waits for confirmation")]
    NothingToConfirm,
    /// It takes something away from a wall, and no second person has agreed to just that.
    #[error("{}", weakens(.0))]
    TwoPeople(Vec<String>),
    /// The change was published, but a worker did not take it up in time.
    #[error(
        "generation {0} is published, but not every worker enforces it after 5 s: the machine does not run them"
    )]
    NotSettled(u64),
}

fn weakens(lines: &[String]) -> String {
    let what = lines.join("; ");
    format!("this takes something away from a wall, which two people must want: {what}")
}

fn lines(errors: &[FieldError]) -> String {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl ApplyError {
    /// One line per problem.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        match self {
            ApplyError::Invalid(errors) => errors.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}
