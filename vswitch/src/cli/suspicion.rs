//! `vswitch suspicion` and `vswitch response`.

use clap::Subcommand;

use super::client::{Client, Failure};
use super::show::{moment, table, text};
use super::{Answer, Out};
use crate::control::api::{Applied, Request, ResponsesInfo, SuspicionInfo};

#[derive(Debug, Subcommand)]
pub(super) enum SuspicionCommand {
    /// The newest suspicions: who, of what, and what followed. All of them are in the ledger.
    List,
    /// You have seen to it: the workload is no suspect any more, and what rules allow it is not asked about.
    Clear {
        /// Workload, or tenant/workload.
        workload: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ResponseCommand {
    /// The responses of the policy, and how often each was carried out.
    List,
    /// Stop all of them, at once. Suspicions are still recorded; what was done stays done.
    Stop {
        /// Why; it is recorded.
        #[arg(long)]
        reason: String,
    },
    /// Let them go on.
    Start,
}

impl SuspicionCommand {
    pub(super) fn run(self, client: Client, out: Out) -> Result<Answer, Failure> {
        match self {
            SuspicionCommand::List => {
                let found: Vec<SuspicionInfo> = client.call(Request::Suspicions)?;
                out.print(&found, |found| suspicions(found))
            }
            SuspicionCommand::Clear { workload } => {
                let applied: Applied = client.call(Request::SuspicionClear { workload })?;
                out.applied(&applied)
            }
        }
    }
}

impl ResponseCommand {
    pub(super) fn run(self, client: Client, out: Out) -> Result<Answer, Failure> {
        let request = match self {
            ResponseCommand::List => {
                let found: ResponsesInfo = client.call(Request::Responses)?;
                return out.print(&found, responses);
            }
            ResponseCommand::Stop { reason } => Request::ResponseStop { reason },
            ResponseCommand::Start => Request::ResponseStart,
        };
        let applied: Applied = client.call(request)?;
        out.applied(&applied)
    }
}

fn suspicions(found: &[SuspicionInfo]) -> String {
    let mut t = table(&[
        "WHEN",
        "WORKLOAD",
        "DETECTOR",
        "COUNT",
        "LAST",
        "WHAT FOLLOWED",
    ]);
    for s in found {
        let followed = s.followed.iter();
        let followed: Vec<_> = followed
            .map(|f| format!("{} ({}): {}", f.response, f.action, f.outcome))
            .collect();
        t.add_row([
            moment(s.at),
            s.workload.clone(),
            s.detector.clone(),
            format!("{} in {} s", s.count, s.seconds),
            s.last.clone(),
            if followed.is_empty() {
                "-".to_owned()
            } else {
                followed.join(", ")
            },
        ]);
    }
    text(&t, "nobody was suspected since the switch started")
}

fn responses(found: &ResponsesInfo) -> String {
    let mut t = table(&["RESPONSE", "ON", "OF", "ACTION", "DONE", "WITHHELD"]);
    for r in &found.responses {
        let staged = if r.staged { " (staged)" } else { "" };
        t.add_row([
            r.name.clone(),
            r.on.join(" "),
            r.of.join(" "),
            format!("{}{staged}", r.action),
            r.done.to_string(),
            r.withheld.to_string(),
        ]);
    }
    let mut list = text(&t, "the policy has no responses");
    if !found.contained.is_empty() {
        let mut t = table(&["CONTAINED", "ACTION", "BY", "LEFT"]);
        for c in &found.contained {
            t.add_row([
                c.workload.clone(),
                c.action.clone(),
                c.response.clone(),
                format!("{} s", c.left_s),
            ]);
        }
        list = format!("{list}\n\n{}", text(&t, ""));
    }
    match &found.stopped {
        Some(stopped) => {
            let (since, why) = (moment(stopped.since), &stopped.reason);
            format!("all are stopped since {since}: {why}\n{list}")
        }
        None => list,
    }
}
