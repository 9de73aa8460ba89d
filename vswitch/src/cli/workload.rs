//! `vswitch workload`.

use std::fmt::Write as _;

use clap::Subcommand;

use super::client::{Client, Failure};
use super::restart::{self, RestartCommand};
use super::show::{list, moment, table, text, up};
use super::{Answer, Out};
use crate::control::api::{ApiError, ErrorCode, Request, RestartInfo, WorkloadInfo};
use crate::policy::model::{DEFAULT_TENANT, qualified};

#[derive(Debug, Subcommand)]
pub(super) enum WorkloadCommand {
    /// All workloads.
    List,
    /// Change a workload's tags until the daemon ends.
    Tag {
        /// Workload, or tenant/workload.
        workload: String,
        /// Tags to add, as in tier:web.
        #[arg(required_unless_present = "remove")]
        add: Vec<String>,
        /// A tag to remove.
        #[arg(long, value_name = "TAG")]
        remove: Vec<String>,
    },
    /// One workload: who it is, and its quarantine with what is kept.
    Show {
        /// Workload, or tenant/workload.
        workload: String,
    },
    /// Cut it off from everybody, but for connections that are named.
    Quarantine {
        /// Workload, or tenant/workload.
        workload: String,
        /// A live connection that goes on, as `conn list` shows it, or all with this workload and service: db-1:tcp/5432.
        #[arg(long, value_name = "CONNECTION|WORKLOAD:SERVICE")]
        keep: Vec<String>,
        /// Why.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// End its quarantine.
    Release {
        /// Workload, or tenant/workload.
        workload: String,
        /// Why.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Freeze what is kept of it: nothing reaches it, and its peers are answered in its stead, until `thaw`.
    Freeze {
        /// Workload, or tenant/workload; it must be in quarantine.
        workload: String,
        /// For so long at most, 1 to 3600; then its peers are reset.
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        max: u32,
    },
    /// End that.
    Thaw {
        /// Workload, or tenant/workload.
        workload: String,
        /// Its guest went back to a snapshot: it is asked first what it remembers. Thaw it before it runs.
        #[arg(long)]
        rolled_back: bool,
    },
    /// Quarantine it and restart it, as its [port.workload.restart] says; it is released when that was done.
    Restart(RestartCommand),
    /// Restarts under way, and the last ones.
    Restarts,
}

impl WorkloadCommand {
    pub(super) fn run(
        self,
        client: impl Fn() -> Result<Client, Failure>,
        out: Out,
    ) -> Result<Answer, Failure> {
        let request = match self {
            WorkloadCommand::List => {
                let workloads: Vec<WorkloadInfo> = client()?.call(Request::Workloads)?;
                return out.print(&workloads, |w| workload_table(w));
            }
            WorkloadCommand::Show { workload } => {
                let all: Vec<WorkloadInfo> = client()?.call(Request::Workloads)?;
                return out.print(named(&all, &workload)?, shown);
            }
            WorkloadCommand::Tag {
                workload,
                add,
                remove,
            } => Request::WorkloadTag {
                workload,
                add,
                remove,
            },
            WorkloadCommand::Quarantine {
                workload,
                keep,
                reason,
            } => Request::WorkloadQuarantine {
                workload,
                keep,
                reason,
            },
            WorkloadCommand::Freeze { workload, max } => Request::WorkloadFreeze {
                workload,
                max_s: max,
            },
            WorkloadCommand::Thaw {
                workload,
                rolled_back,
            } => Request::WorkloadThaw {
                workload,
                rolled_back,
            },
            WorkloadCommand::Restart(command) => return command.run(client, out),
            WorkloadCommand::Restarts => {
                let restarts: Vec<RestartInfo> = client()?.call(Request::Restarts)?;
                return out.print(&restarts, |r| restart::list(r));
            }
            WorkloadCommand::Release { workload, reason } => {
                Request::WorkloadRelease { workload, reason }
            }
        };
        out.applied(&client()?.call(request)?)
    }
}

/// The one that NAME or TENANT/NAME means, as the daemon understands it.
fn named<'w>(all: &'w [WorkloadInfo], called: &str) -> Result<&'w WorkloadInfo, ApiError> {
    let name = |w: &WorkloadInfo| qualified(&w.tenant, &w.name);
    let (tenant, plain) = called.split_once('/').unwrap_or((DEFAULT_TENANT, called));
    let mut exactly = all.iter().filter(|w| w.tenant == tenant && w.name == plain);
    if let Some(found) = exactly.next() {
        return Ok(found);
    }
    let mut others = all.iter().filter(|w| w.name == called);
    let error = match (others.next(), others.next()) {
        (Some(found), None) => return Ok(found),
        (Some(one), Some(other)) => {
            format!(
                "{called} can be {} or {}; say which",
                name(one),
                name(other)
            )
        }
        (None, _) => format!("there is no workload {called}; `vswitch workload list` shows them"),
    };
    Err(ApiError::new(ErrorCode::Usage, error))
}

fn port(w: &WorkloadInfo) -> String {
    match w.vlan {
        Some(vlan) => format!("{} vlan {vlan}", w.port),
        None => w.port.clone(),
    }
}

fn workload_table(workloads: &[WorkloadInfo]) -> String {
    let mut t = table(&[
        "WORKLOAD",
        "TENANT",
        "PORT",
        "LINK",
        "MAC",
        "IP",
        "TAGS",
        "SEGMENTS",
        "ASSURANCE",
        "QUARANTINE",
    ]);
    for w in workloads {
        t.add_row([
            w.name.clone(),
            w.tenant.clone(),
            port(w),
            up(w.up).to_owned(),
            list(&w.mac),
            list(&w.ip),
            list(&w.tags),
            list(&w.segments),
            w.assurance.clone(),
            w.quarantine.as_ref().map_or_else(
                || "-".to_owned(),
                |q| {
                    let frozen = q.freeze.as_ref().map_or("", |_| ", frozen");
                    format!("since {}{frozen}", moment(q.since))
                },
            ),
        ]);
    }
    text(&t, "no workloads")
}

fn shown(w: &WorkloadInfo) -> String {
    let mut out = format!("workload {}\n", qualified(&w.tenant, &w.name));
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "  {name:<12} {value}");
    };
    line("port", &format_args!("{}, {}", port(w), up(w.up)));
    line("mac", &list(&w.mac));
    line("ip", &list(&w.ip));
    line("tags", &list(&w.tags));
    line("segments", &list(&w.segments));
    line("assurance", &w.assurance);
    let Some(q) = &w.quarantine else {
        return out.trim_end().to_owned();
    };
    line(
        "quarantine",
        &format_args!("since {} by {}: {}", moment(q.since), q.who, q.reason),
    );
    if q.name != qualified(&w.tenant, &w.name) {
        line("", &format_args!("as one with {}", q.name));
    }
    if !q.recorded {
        line("", &"in no ledger: it ends with the daemon");
    }
    if let Some(f) = &q.freeze {
        line(
            "frozen",
            &format_args!("since {} by {}: {}", moment(f.since), f.who, f.state),
        );
        line(
            "",
            &format_args!("{} of {} s left; {}", f.left_s, f.max_s, f.note),
        );
    }
    if !q.note.is_empty() {
        line("", &q.note);
    }
    let mut t = table(&[
        "KEPT", "STATE", "PKTS >", "BYTES >", "PKTS <", "BYTES <", "ANSWERS", "THAWED",
    ]);
    for k in &q.kept {
        t.add_row([
            k.connection.clone(),
            k.state.clone(),
            k.original_pkts.to_string(),
            k.original_bytes.to_string(),
            k.reply_pkts.to_string(),
            k.reply_bytes.to_string(),
            k.answers.to_string(),
            k.outcome.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    out + &text(&t, "no connection is kept")
}
