//! `vswitch wall` and `vswitch transaction`.

use std::fmt::Write as _;

use clap::Subcommand;

use super::client::{Client, Failure};
use super::show::{moment, table, text};
use super::{Answer, Out};
use crate::control::api::{Applied, Request, TransactionInfo, WallCarrier, WallInfo};

#[derive(Debug, Subcommand)]
pub(super) enum WallCommand {
    /// All walls: whom they bind, their sides, and who is bound to which.
    List,
    /// What somebody carries, and which sides he is kept from.
    Explain {
        /// A workload, or whoever `wall list` shows as bound: "tag desk:a", "volume v1", outside.
        subject: String,
    },
    /// Free somebody of what a wall has bound him to. It waits for a second person: see `vswitch approval`.
    Reset {
        /// The wall.
        wall: String,
        /// As for `explain`.
        subject: String,
        /// Why; it is recorded.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TransactionCommand {
    /// Those that are open.
    List,
    /// Open one: the connections of its workloads are part of it, also those that are open already.
    Begin {
        /// What to call it.
        name: String,
        /// The wall that it is a transaction of.
        #[arg(long)]
        wall: String,
        /// A workload whose connections are part of it.
        #[arg(long, required = true)]
        workload: Vec<String>,
    },
    /// End it: nobody is bound by it any more.
    End {
        /// What it was called.
        name: String,
    },
}

impl WallCommand {
    pub(super) fn run(self, client: Client, out: Out) -> Result<Answer, Failure> {
        match self {
            WallCommand::List => {
                let walls: Vec<WallInfo> = client.call(Request::Walls)?;
                out.print(&walls, |walls| list(walls))
            }
            WallCommand::Explain { subject } => {
                let found: Vec<WallCarrier> = client.call(Request::WallExplain { subject })?;
                out.print(&found, |found| carriers(found))
            }
            WallCommand::Reset {
                wall,
                subject,
                reason,
            } => {
                let reset = Request::WallReset {
                    wall,
                    subject,
                    reason,
                };
                let applied: Applied = client.call(reset)?;
                out.applied(&applied)
            }
        }
    }
}

impl TransactionCommand {
    pub(super) fn run(self, client: Client, out: Out) -> Result<Answer, Failure> {
        let request = match self {
            TransactionCommand::List => {
                let open: Vec<TransactionInfo> = client.call(Request::Transactions)?;
                return out.print(&open, |open| transactions(open));
            }
            TransactionCommand::Begin {
                name,
                wall,
                workload,
            } => Request::TransactionBegin {
                name,
                wall,
                workloads: workload,
            },
            TransactionCommand::End { name } => Request::TransactionEnd { name },
        };
        let applied: Applied = client.call(request)?;
        out.applied(&applied)
    }
}

fn list(walls: &[WallInfo]) -> String {
    let mut out = String::new();
    for (n, wall) in walls.iter().enumerate() {
        let gap = if n > 0 { "\n" } else { "" };
        let per = if wall.per_transaction {
            " (within a transaction)"
        } else {
            ""
        };
        let _ = writeln!(out, "{gap}wall {}{per}", wall.name);
        let _ = writeln!(out, "  binds {}", names(&wall.subjects));
        for (side, members) in &wall.sides {
            let _ = writeln!(out, "  side {side}: {}", names(members));
        }
        let mut t = table(&["BOUND", "TO", "TRANSACTION", "STATE", "SINCE", "BY"]);
        for b in &wall.bindings {
            t.add_row([
                b.subject.clone(),
                b.side.clone(),
                b.transaction.clone().unwrap_or_else(|| "-".to_owned()),
                if b.committed { "committed" } else { "reserved" }.to_owned(),
                moment(b.since),
                b.connection.clone(),
            ]);
        }
        for line in text(&t, "nobody is bound").lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    if out.is_empty() {
        "the policy has no walls".to_owned()
    } else {
        out.trim_end().to_owned()
    }
}

fn names(names: &[String]) -> String {
    if names.is_empty() {
        "nobody now".to_owned()
    } else {
        names.join(", ")
    }
}

fn carriers(found: &[WallCarrier]) -> String {
    let mut t = table(&["WALL", "KNOWN BY", "CARRIES", "KEPT FROM"]);
    let dash = |list: &[String]| match list {
        [] => "-".to_owned(),
        list => list.join(", "),
    };
    for c in found {
        t.add_row([
            c.wall.clone(),
            dash(&c.known_by),
            dash(&c.carries),
            dash(&c.kept_from),
        ]);
    }
    text(&t, "the policy has no walls, or no transaction is open")
}

fn transactions(open: &[TransactionInfo]) -> String {
    let mut t = table(&["TRANSACTION", "WALL", "WORKLOADS"]);
    for o in open {
        t.add_row([o.name.clone(), o.wall.clone(), o.workloads.join(", ")]);
    }
    text(&t, "no transaction is open")
}
