//! What the API socket speaks: one JSON request per line, one JSON reply per line. `watch` keeps
//! sending lines until the client goes away.
//!
//! Requests are here, and what is said of the switch and its ports; other answers have rooms of their own. Every type is both
//! the wire format and what the CLI prints for `--json`: a field is added freely, but renaming or removing one raises [`VERSION`].

mod counts;
mod decisions;
mod explain;
mod policy;
mod quarantine;
mod restart;
mod suspicion;
mod watch;

use std::collections::BTreeMap;

pub use counts::{Conservation, DropInfo, PortStats, Stats};
pub use decisions::{
    AskAnswer, AskInfo, BindingInfo, ProposalInfo, TransactionInfo, WallCarrier, WallInfo,
};
pub use explain::{EndInfo, ExplainQuery, Explanation, Leg};
pub use policy::{Applied, PolicyDiff, PolicyView, RuleInfo};
pub use quarantine::{FreezeInfo, KeptInfo, QuarantineInfo};
pub use restart::{ReadmissionInfo, RestartInfo, RestartState};
use serde::{Deserialize, Serialize};
pub use suspicion::{ContainedInfo, Followed, ResponseInfo, ResponsesInfo, Stopped, SuspicionInfo};
pub use watch::{WatchEvent, WatchFilter};

pub use crate::policy::reach::{Changed, Compared, Found, Grant, Group, How, Level, Opened, Reach};

/// The protocol's version; a daemon refuses another one and says so.
pub const VERSION: u32 = 1;

/// Longest request line, bytes. A policy of 100,000 rules is about 15 MB of TOML.
pub const MAX_REQUEST_BYTES: usize = 32 << 20;

/// A request with its protocol version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What it wants.
    #[serde(flatten)]
    pub request: Request,
}

/// What a client can ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// [`Status`].
    Status,
    /// A list of [`PortInfo`].
    Ports,
    /// Adds the `[[port]]` tables of a TOML text; they last until the daemon ends. [`Applied`].
    PortAdd {
        /// `switch.toml` text holding only `[[port]]` tables.
        toml: String,
        /// The file it came from, for messages; absent when it is none.
        source: Option<String>,
    },
    /// Removes a port. [`Applied`].
    PortDel {
        /// Its name.
        name: String,
    },
    /// A list of [`WorkloadInfo`].
    Workloads,
    /// Changes a workload's tags until the daemon ends. [`Applied`].
    WorkloadTag {
        /// `name`, or `tenant/name`.
        workload: String,
        /// Tags to add.
        add: Vec<String>,
        /// Tags to remove.
        remove: Vec<String>,
    },
    /// Puts a workload into quarantine. [`Applied`].
    WorkloadQuarantine {
        /// `name`, or `tenant/name`.
        workload: String,
        /// Live connections that go on: each as `conn list` shows it, or `WORKLOAD:SERVICE` for all of these.
        keep: Vec<String>,
        /// Why.
        reason: String,
    },
    /// Ends its quarantine. [`Applied`].
    WorkloadRelease {
        /// `name`, or `tenant/name`.
        workload: String,
        /// Why.
        reason: String,
    },
    /// Freezes what is kept of a workload in quarantine. [`Applied`].
    WorkloadFreeze {
        /// `name`, or `tenant/name`.
        workload: String,
        /// For so many seconds at most.
        max_s: u32,
    },
    /// Ends that. [`Applied`].
    WorkloadThaw {
        /// `name`, or `tenant/name`.
        workload: String,
        /// Its guest went back to a snapshot.
        rolled_back: bool,
    },
    /// Quarantines a workload and restarts it. [`RestartInfo`], while it is under way.
    WorkloadRestart {
        /// `name`, or `tenant/name`.
        workload: String,
        /// Why.
        reason: String,
        /// Services (`tcp/873`) that are the reason: connections for them are not readmitted.
        #[serde(default)]
        evidence: Vec<String>,
    },
    /// Restarts under way, and the last ones: a list of [`RestartInfo`].
    Restarts,
    /// A list of [`SegmentInfo`].
    Segments,
    /// [`ConnList`].
    Conns {
        /// Only connections with this workload at an end: NAME or TENANT/NAME.
        workload: Option<String>,
        /// Most connections to return.
        limit: usize,
    },
    /// [`PolicyView`].
    PolicyShow,
    /// What a policy would change. [`PolicyDiff`].
    PolicyDiff {
        /// `policy.toml` text.
        toml: String,
        /// Where it came from, for messages.
        source: String,
    },
    /// Replaces the policy. [`Applied`], when every worker enforces it.
    PolicyApply {
        /// `policy.toml` text.
        toml: String,
        /// Where it came from, for messages.
        source: String,
        /// Revert after so many seconds unless confirmed.
        confirm_s: Option<u64>,
    },
    /// Keeps the policy that waits for confirmation. [`Applied`].
    PolicyConfirm,
    /// What would happen to a connection now. [`Explanation`].
    Explain(ExplainQuery),
    /// A [`WatchEvent`] per line, until the client goes away.
    Watch(WatchFilter),
    /// A list of [`DropInfo`].
    Drops,
    /// [`Stats`].
    Stats,
    /// Whom a workload can connect to, directly and through others. [`Reach`].
    Reach {
        /// NAME or TENANT/NAME, or `outside`.
        workload: String,
        /// Who can connect to it, instead.
        to: bool,
        /// Most groups to list.
        limit: usize,
    },
    /// Questions that wait for an answer: a list of [`AskInfo`].
    Asks,
    /// One of them. [`AskInfo`].
    AskShow {
        /// Its id, or enough of its beginning.
        id: String,
    },
    /// Answers one. The [`AskInfo`] of it.
    Answer(AskAnswer),
    /// A list of [`WallInfo`].
    Walls,
    /// What somebody carries: a list of [`WallCarrier`].
    WallExplain {
        /// A workload, or as `walls` calls whoever is bound: `tag desk:a`, `volume v`, `outside`.
        subject: String,
    },
    /// Frees somebody of what a wall has bound him to, if a second person agrees. [`Applied`].
    WallReset {
        /// The wall.
        wall: String,
        /// As in `WallExplain`.
        subject: String,
        /// Why.
        reason: String,
    },
    /// Open ones: a list of [`TransactionInfo`].
    Transactions,
    /// Opens a transaction. [`Applied`].
    TransactionBegin {
        /// Its name.
        name: String,
        /// The wall that it is one of.
        wall: String,
        /// Workloads whose connections are part of it.
        workloads: Vec<String>,
    },
    /// Ends it: nobody is bound by it any more. [`Applied`].
    TransactionEnd {
        /// Its name.
        name: String,
    },
    /// The newest suspicions: a list of [`SuspicionInfo`].
    Suspicions,
    /// A person has seen to what a workload was suspected of. [`Applied`].
    SuspicionClear {
        /// NAME or TENANT/NAME.
        workload: String,
    },
    /// What follows suspicion. [`ResponsesInfo`].
    Responses,
    /// No response is carried out any more. [`Applied`].
    ResponseStop {
        /// Why.
        reason: String,
    },
    /// Responses are carried out again. [`Applied`].
    ResponseStart,
    /// Reads the configuration files again. [`Applied`].
    Reload,
    /// Changes that wait for a second person: a list of [`ProposalInfo`].
    Proposals,
    /// Makes one. [`Applied`].
    Approve {
        /// Which: its id, or enough of its beginning.
        id: String,
    },
    /// Drops one. The [`ProposalInfo`] of it.
    Disapprove {
        /// Which: its id, or enough of its beginning.
        id: String,
    },
}

/// A reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<T> {
    /// It was done; here is the answer.
    Ok(T),
    /// It was not done, and nothing was changed.
    Error(ApiError),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", .errors.join("\n"))]
pub struct ApiError {
    /// What sort of no.
    pub code: ErrorCode,
    /// What, where, what to do: one line per problem.
    pub errors: Vec<String>,
}

impl ApiError {
    /// An error with one line.
    #[must_use]
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        ApiError {
            code,
            errors: vec![error.into()],
        }
    }
}

/// Sorts of no; the CLI's exit code follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong: unknown name, bad argument. Exit code 2.
    Usage,
    /// The request was understood and refused: an invalid file, a port that cannot open. Exit code 1.
    Refused,
    /// The caller lacks the role, or it is his own affair. Exit code 1.
    Forbidden,
    /// The client speaks another protocol version. Exit code 3.
    Version,
}

/// The switch as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Snapshot generation every worker enforces (or is about to).
    pub generation: u64,
    /// Whether every worker has it.
    pub settled: bool,
    /// Workers.
    pub workers: Vec<WorkerInfo>,
    /// Ports configured.
    pub ports: usize,
    /// Ports whose peer is attached.
    pub ports_up: usize,
    /// Workloads.
    pub workloads: usize,
    /// Rules written in the policy.
    pub rules: usize,
    /// Live connections.
    pub connections: usize,
    /// Connections there is room for.
    pub connections_max: usize,
    /// Where the policy came from.
    pub policy_source: String,
    /// Seconds until an unconfirmed policy is reverted.
    pub confirm_s: Option<u64>,
    /// Events lost because the control thread was slower than the workers.
    pub events_lost: u64,
    /// Why the configuration files, as they are now, are not in force; empty when they are.
    pub refused: Vec<String>,
    /// Workloads in quarantine, by the names they were put there.
    #[serde(default)]
    pub quarantined: Vec<String>,
    /// Those of them that are frozen.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Who answers questions, beside people.
    pub manager: Option<ManagerInfo>,
    /// Workloads that somebody should look at, because a response told of them or took something away, and nobody has cleared.
    #[serde(default)]
    pub suspects: Vec<String>,
}

/// Who answers questions, and what came of them since it began.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ManagerInfo {
    /// The file of its rules, or the address where it is.
    pub source: String,
    /// Rules in that file.
    pub rules: Option<usize>,
    /// Somebody is there.
    pub connected: bool,
    /// Why not, or why not before.
    pub trouble: String,
    /// Questions of rules that its certificate does not list.
    pub unlisted: u64,
    /// Messages of it that made no sense.
    pub malformed: u64,
    /// Questions it was asked.
    pub asked: u64,
    /// Answered with yes or no.
    pub answered: u64,
    /// Left to people, or the deadline.
    pub undecided: u64,
    /// Answers that nobody waited for any more, or that nobody had asked for.
    pub late: u64,
    /// Questions that it was too busy for.
    pub busy: u64,
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Number.
    pub index: usize,
    /// Core it is pinned to.
    pub core: Option<usize>,
    /// Its counters, by name.
    pub counters: BTreeMap<String, u64>,
}

/// One port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortInfo {
    /// Name.
    pub name: String,
    /// `vhost-user`, `af-xdp`, ...
    pub kind: String,
    /// Socket, interface or file.
    pub at: String,
    /// Whether its peer is attached.
    pub up: bool,
    /// Its interface is not there; it is attached when it comes.
    pub missing: bool,
    /// Why it is down, or what else is wrong, and what to do.
    #[serde(default)]
    pub trouble: Option<String>,
    /// How an af-xdp port is attached, while it is.
    #[serde(default)]
    pub xdp: Option<XdpInfo>,
    /// Owner.
    pub tenant: String,
    /// Access VLAN.
    pub vlan: u16,
    /// VLANs carried tagged.
    pub trunk: Vec<u16>,
    /// Carries the outside.
    pub uplink: bool,
    /// Spoof guard.
    pub guard: bool,
    /// Names of its workloads.
    pub workloads: Vec<String>,
    /// Added by command; gone when the daemon ends.
    pub runtime: bool,
    /// Connections it has open as initiator.
    pub connections: u64,
    /// Counters since it was opened, by name.
    pub counters: BTreeMap<String, u64>,
    /// Frames dropped since it was opened.
    pub dropped: u64,
    /// Connections to its socket refused since it was opened: by a second front-end, or by a user
    /// who may not attach.
    pub refused_connections: u64,
}

/// How frames get through an af-xdp port, as probing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpInfo {
    /// `native`: in the driver; `generic`: in the kernel's receive path, on socket buffers (skb).
    pub mode: String,
    /// `zero-copy`, or `copy` by the kernel.
    pub copy: String,
    /// Whether frames longer than one buffer pass.
    pub multi_buffer: bool,
    /// Queues in use.
    pub queues: u32,
    /// The interface's MTU, bytes.
    pub mtu: u32,
}

/// One workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// Name.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Its port.
    pub port: String,
    /// Whether the port's peer is attached.
    pub up: bool,
    /// MACs.
    pub mac: Vec<String>,
    /// Addresses.
    pub ip: Vec<String>,
    /// Tags now.
    pub tags: Vec<String>,
    /// VLAN on its port.
    pub vlan: Option<u16>,
    /// Segments it belongs to.
    pub segments: Vec<String>,
    /// `vm`, `shared-kernel`, `nested` or `none`.
    pub assurance: String,
    /// Its quarantine, when it is in one.
    #[serde(default)]
    pub quarantine: Option<QuarantineInfo>,
}

/// One segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Name.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Selects workloads by these tags.
    pub tags: Vec<String>,
    /// Selects workloads by name.
    pub names: Vec<String>,
    /// Outside addresses.
    pub cidr: Vec<String>,
    /// Workloads in it now.
    pub members: Vec<String>,
}

/// Live connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnList {
    /// Connections that match: all in the table, or those of one workload.
    pub total: usize,
    /// More matched than were asked for.
    pub truncated: bool,
    /// Those asked for.
    pub connections: Vec<ConnInfo>,
    /// Connections that may be opened again after a restart.
    #[serde(default)]
    pub readmissions: Vec<ReadmissionInfo>,
}

/// One live connection, in its original direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnInfo {
    /// `tcp`, `udp`, `icmp`, ...
    pub protocol: String,
    /// Initiator's address.
    pub src: String,
    /// Initiator's port, or echo identifier.
    pub sport: u16,
    /// The other end's address.
    pub dst: String,
    /// The other end's port; 0 when there is none.
    pub dport: u16,
    /// Initiator: NAME, or TENANT/NAME outside the default tenant; `outside(PORT)` behind an uplink.
    pub from: String,
    /// The other end.
    pub to: String,
    /// TCP state, or `replied`/`unreplied`.
    pub state: String,
    /// Rule that admitted it.
    pub rule: String,
    /// Generation it was last judged under.
    pub generation: u64,
    /// Whether that is the present one; if not, its next packet is judged again.
    pub current: bool,
    /// Seconds since its last packet.
    pub idle_s: u32,
    /// Bytes from the initiator.
    pub original_bytes: u64,
    /// Bytes to the initiator.
    pub reply_bytes: u64,
    /// It goes on although one of its ends is in quarantine.
    #[serde(default)]
    pub kept: bool,
    /// One of its ends is frozen.
    #[serde(default)]
    pub frozen: bool,
}
