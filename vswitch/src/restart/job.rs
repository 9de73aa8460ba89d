//! What a restarter is told to do, and what it says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Restarts under way at once: a host that needs more is better stopped. Guess.
pub const UNDER_WAY: usize = 4;

/// `[port.workload.restart]`: how a workload is restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartConfig {
    /// Who does it.
    pub driver: Driver,
    /// How long it may take, seconds.
    pub limit_s: u32,
}

impl RestartConfig {
    /// How long a restart may take unless said: a machine boots in less, emulated ones too. Guess.
    pub const LIMIT_S: u32 = 120;
    /// The longest: whoever needs more is stuck.
    pub const LIMIT_MAX_S: u32 = 3600;
}

/// What restarts a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum Driver {
    /// QEMU, by its machine protocol.
    Qmp {
        /// The socket where QEMU listens for it.
        socket: PathBuf,
        /// What it is told.
        #[serde(flatten)]
        method: Method,
    },
    /// Docker, by its Engine API.
    Docker {
        /// The socket where it listens.
        socket: PathBuf,
        /// The container's name.
        container: String,
        /// What it is made of: `NAME@sha256:...`, or the image's id, `sha256:...`.
        image: String,
    },
    /// A program.
    Command {
        /// It, and its arguments; no shell reads them.
        argv: Vec<String>,
    },
}

/// What becomes of a QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Method {
    /// As with the reset button: what its disk holds, stays.
    SystemReset,
    /// It goes back to a snapshot.
    Loadvm {
        /// The snapshot's name.
        snapshot: String,
    },
    /// It ends, and another one is started from images that were verified.
    Fresh {
        /// Its command line. `{NAME}` stands for the copy of an image.
        argv: Vec<String>,
        /// What it boots from.
        images: Vec<Image>,
    },
}

/// A file that a machine boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What the command line calls it.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// SHA-256 of what must be in it, in 64 hexadecimal digits.
    pub sha256: String,
}

impl Driver {
    /// As it is written, with what is done.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Driver::Qmp { method, .. } => match method {
                Method::SystemReset => "qmp system_reset",
                Method::Loadvm { .. } => "qmp loadvm",
                Method::Fresh { .. } => "qmp fresh",
            },
            Driver::Docker { .. } => "docker",
            Driver::Command { .. } => "command",
        }
    }

    /// Whether the guest goes back to a snapshot: it has not forgotten everything.
    #[must_use]
    pub fn goes_back(&self) -> bool {
        let method = match self {
            Driver::Qmp { method, .. } => Some(method),
            Driver::Docker { .. } | Driver::Command { .. } => None,
        };
        matches!(method, Some(Method::Loadvm { .. }))
    }

    /// What a restart that is to be trusted must have verified; `None`: this driver verifies nothing.
    #[must_use]
    pub fn declared(&self) -> Option<String> {
        match self {
            Driver::Qmp {
                method: Method::Fresh { images, .. },
                ..
            } => Some(digests(images)),
            Driver::Docker { image, .. } => Some(image.clone()),
            Driver::Qmp { .. } | Driver::Command { .. } => None,
        }
    }
}

/// The digests of all images.
pub(super) fn digests(images: &[Image]) -> String {
    let digests = images.iter().map(|i| format!("sha256:{}", i.sha256));
    digests.collect::<Vec<_>>().join(" ")
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// It is restarted. What goes back to a snapshot stays paused there.
    Restart,
    /// It is paused.
    Pause,
    /// It goes on.
    GoOn,
}

/// Something to be done with a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is said of it names this.
    pub id: u64,
    /// What.
    pub task: Task,
    /// Who is restarted: NAME, or TENANT/NAME outside the default tenant.
    pub workload: String,
    /// Why.
    pub reason: String,
    /// How.
    pub how: RestartConfig,
}

/// What is said of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Which.
    pub id: u64,
    /// What.
    pub what: What,
}

/// See [`Said`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It has come so far.
    Step(String),
    /// It was done.
    Done(Done),
    /// It was not, or not all of it, and why.
    Failed(String),
}

/// A restart that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The digest that was verified, of what it runs from now.
    pub verified: Option<String>,
    /// What is worth knowing.
    pub note: String,
}

/// What was heard of the restarter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Of a job.
    Said(Said),
    /// The one of this session has ended: what it was given will not be finished.
    Gone(u64),
}
