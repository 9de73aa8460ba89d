//! The `vswitch` command: arguments, and what each subcommand does.
//!
//! Exit codes: 0 done, 1 the answer is no (denied, invalid, differs), 2 usage, 3 cannot reach the
//! daemon.

mod bench;
mod client;
mod files;
#[cfg(feature = "manager")]
mod ledger;
#[cfg(feature = "manager")]
mod manager;
mod progress;
mod reach;
mod restart;
mod run;
mod show;
mod suspicion;
mod walls;
mod workload;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::control::api::{
    ApiError, Applied, AskAnswer, AskInfo, ConnList, DropInfo, ErrorCode, ExplainQuery,
    Explanation, PolicyDiff, PolicyView, PortInfo, ProposalInfo, Reach, Request, SegmentInfo,
    Stats, Status, WatchEvent, WatchFilter,
};
#[cfg(feature = "demo")]
use crate::demo;
use crate::policy::model::Scope;
use client::{Client, Failure};

/// Where the daemon's API socket is unless said.
const SOCKET: &str = "/run/vswitch/vswitch.sock";

#[derive(Debug, Parser)]
#[command(
    name = "vswitch",
    version,
    about = "A userspace virtual switch with a stateful firewall between any two workloads",
    after_help = "Exit codes: 0 done; 1 the answer is no (denied, invalid, differs); 2 usage; 3 cannot reach the daemon."
)]
struct Cli {
    /// The daemon's API socket.
    #[arg(long, global = true, env = "VSWITCH_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON: one document, or one object per line when streaming.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what the switch does, on this machine, without configuration: guests and, as root, containers on one switch;
    /// or `finance`, decisions and Chinese walls; or `contain`, suspicion and restart. Exit code 0: everything it showed held.
    #[cfg(feature = "demo")]
    Demo {
        /// What to show.
        #[arg(value_enum, default_value_t)]
        topic: demo::Topic,
        /// Stay until Ctrl-C, to look around.
        #[arg(long)]
        keep: bool,
    },
    /// Measure the switch on this machine, in this process; no daemon is asked.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Run the switch in the foreground until SIGTERM or Ctrl-C.
    Run {
        /// switch.toml.
        #[arg(
            short,
            long,
            value_name = "FILE",
            default_value = "/etc/vswitch/switch.toml"
        )]
        config: PathBuf,
    },
    /// Check configuration files without touching anything; needs no privileges.
    Check {
        /// switch.toml.
        file: PathBuf,
    },
    /// The switch as a whole.
    Status,
    /// Ports.
    #[command(subcommand)]
    Port(PortCommand),
    /// Workloads.
    #[command(subcommand)]
    Workload(workload::WorkloadCommand),
    /// Segments.
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Live connections.
    #[command(subcommand)]
    Conn(ConnCommand),
    /// The policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Questions of rules that ask.
    #[command(subcommand)]
    Ask(AskCommand),
    /// Chinese walls, and who is bound.
    #[command(subcommand)]
    Wall(walls::WallCommand),
    /// Transactions of walls that bind within one.
    #[command(subcommand)]
    Transaction(walls::TransactionCommand),
    /// Who was suspected of what, and what followed.
    #[command(subcommand)]
    Suspicion(suspicion::SuspicionCommand),
    /// What follows suspicion by itself.
    #[command(subcommand)]
    Response(suspicion::ResponseCommand),
    /// Changes that wait for a second person, because they take something away from a wall.
    #[command(subcommand)]
    Approval(ApprovalCommand),
    /// Read the configuration files again. Where there are walls nothing else does.
    Reload,
    /// What would happen to a connection now, and which rule says so. Exit code 0: allowed; 1: denied or rejected.
    Explain {
        /// Workload or address that opens the connection.
        #[arg(long, value_name = "WORKLOAD|IP")]
        from: String,
        /// Workload or address at the other end.
        #[arg(long, value_name = "WORKLOAD|IP")]
        to: String,
        /// What for: tcp/5432, udp/53, icmp, ...
        #[arg(long)]
        service: String,
        /// The initiator's port, to mean one connection.
        #[arg(long)]
        src_port: Option<u16>,
    },
    /// Whom a workload can connect to, directly and through others, and by which rules.
    Reach {
        /// Workload, or `outside`.
        workload: String,
        /// Who can connect to it, instead.
        #[arg(long)]
        to: bool,
        /// Whom it can connect to; this is what is shown unless said.
        #[arg(long, conflicts_with = "to")]
        from: bool,
        /// List at most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// What happens, as it does: denials and cuts, connections of rules with `log = true`, questions and answers, whom
    /// walls bind, who is suspected, and who is restarted.
    Watch {
        /// Only with this workload at an end.
        #[arg(long)]
        workload: Option<String>,
        /// Only these kinds: allow, deny, reject, decoy, staged, cut, close, expire, evict; ask, yes, no; wall; suspicion; quarantine, release, freeze, thaw; restart.
        #[arg(long, value_delimiter = ',')]
        kind: Vec<String>,
    },
    /// Why frames were dropped, by reason and port.
    Drops {
        /// Also reasons that did not happen.
        #[arg(long)]
        all: bool,
    },
    /// Counters, and whether every frame is accounted for.
    Stats,
    /// Answer the questions of many switches by rules (Cedar policies), over gRPC with mutual TLS, until SIGTERM or Ctrl-C.
    #[cfg(feature = "manager")]
    Manager(manager::ManagerCommand),
    /// The record of decisions; reads its file, no daemon is asked.
    #[cfg(feature = "manager")]
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Restart workloads for the switch that started this process.
    #[cfg(feature = "manager")]
    #[command(hide = true)]
    Restarter,
    /// Print a completion script.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum PortCommand {
    /// All ports.
    List,
    /// One port: what it is, how it is attached, and why it is down.
    Show {
        /// Its name.
        name: String,
    },
    /// Add ports; they last until the daemon ends.
    Add(Box<PortAdd>),
    /// Remove a port.
    Del {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct PortAdd {
    /// A TOML file with `[[port]]` tables, instead of the arguments below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "kind", "at"])]
    file: Option<PathBuf>,
    /// Name of the port, and of its workload.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// vhost-user, af-xdp or tap.
    #[arg(long, default_value = "vhost-user")]
    kind: String,
    /// Socket of a vhost-user port, interface of the others.
    #[arg(
        long,
        value_name = "SOCKET|INTERFACE",
        required_unless_present = "file"
    )]
    at: Option<String>,
    /// vhost-user: the guest's side listens and we connect.
    #[arg(long)]
    client: bool,
    /// The workload's MAC.
    #[arg(long)]
    mac: Vec<String>,
    /// The workload's address.
    #[arg(long)]
    ip: Vec<String>,
    /// The workload's tag.
    #[arg(long)]
    tag: Vec<String>,
    /// Access VLAN.
    #[arg(long)]
    vlan: Option<u16>,
    /// Network namespace of a tap port's device.
    #[arg(long)]
    netns: Option<String>,
    /// The port carries the outside, and has no workload.
    #[arg(long)]
    uplink: bool,
}

#[derive(Debug, Subcommand)]
enum SegmentCommand {
    /// All segments with their members.
    List,
}

#[derive(Debug, Subcommand)]
enum ConnCommand {
    /// Live connections.
    List {
        /// Only with this workload at an end.
        #[arg(long)]
        workload: Option<String>,
        /// Show at most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Replace the policy; returns when every worker enforces it.
    Apply {
        /// policy.toml.
        file: PathBuf,
        /// Revert after this time unless `policy confirm` is run: 60s, 5m.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        confirm: Option<Duration>,
    },
    /// Keep the policy that waits for confirmation.
    Confirm,
    /// The policy in force, with hit counts.
    Show,
    /// What a policy would change. Exit code 0: nothing; 1: it differs.
    Diff {
        /// policy.toml.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ApprovalCommand {
    /// Those that wait.
    List,
    /// Agree to one: it is made now. Another person proposed it.
    Allow {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Drop one.
    Deny {
        /// Its id, or the beginning of it.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum AskCommand {
    /// Those that wait for an answer, and how much a yes would open.
    List,
    /// One of them, and what a yes would open.
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Say yes to one.
    Allow {
        /// Its id, or the beginning of it.
        id: String,
        /// How long the answer holds: 60s, 5m, 1h; without it, as long as the rule admits.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        ttl: Option<Duration>,
        /// Only for the connection that was asked about.
        #[arg(long)]
        once: bool,
    },
    /// Say no to one.
    Deny {
        /// Its id, or the beginning of it.
        id: String,
        /// How long the answer holds: 60s, 5m, 1h; without it, as long as the rule admits.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        ttl: Option<Duration>,
    },
}

impl AskCommand {
    /// The answer that this gives.
    fn answer(self) -> Option<AskAnswer> {
        let (id, yes, ttl, once) = match self {
            AskCommand::List | AskCommand::Show { .. } => return None,
            AskCommand::Allow { id, ttl, once } => (id, true, ttl, once),
            AskCommand::Deny { id, ttl } => (id, false, ttl, false),
        };
        Some(AskAnswer {
            id,
            yes,
            scope: once.then_some(Scope::Connection),
            ttl_s: ttl.map(|ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
        })
    }
}

/// `60s`, `5m`, `1h`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60),
        Some(number) if text.ends_with('h') => (number, 3600),
        Some(number) => (number, 1),
        None => (text, 1),
    };
    let wrong = || "write a time like 60s, 5m or 1h".to_owned();
    let n: u64 = number.parse().map_err(|_e| wrong())?;
    Ok(Duration::from_secs(n.checked_mul(unit).ok_or_else(wrong)?))
}

/// The answer, as an exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Done,
    No,
}

/// Runs the command line and says how the process shall end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        // Whoever read our output has seen enough.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.to_string().lines() {
                eprintln!("vswitch: {line}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<Answer, Failure> {
    let socket = cli.socket;
    let at = socket.clone().unwrap_or_else(|| SOCKET.into());
    let client = || Client::connect(&at);
    let out = Out {
        json: cli.json,
        to: io::stdout(),
    };
    match cli.command {
        #[cfg(feature = "demo")]
        Command::Demo { topic, keep } => {
            let options = demo::Options {
                topic,
                keep,
                json: cli.json,
            };
            let held = demo::run(options);
            Ok(if held { Answer::Done } else { Answer::No })
        }
        Command::Bench(command) => bench::bench(command, out),
        Command::Run { config } => run::run(&config, socket),
        Command::Check { file } => check(&file, out),
        Command::Status => {
            let status: Status = client()?.call(Request::Status)?;
            out.print(&status, show::status)
        }
        Command::Ask(AskCommand::Show { id }) => {
            let ask: AskInfo = client()?.call(Request::AskShow { id })?;
            out.print(&ask, reach::ask)
        }
        Command::Ask(command) => match command.answer() {
            None => {
                let asks: Vec<AskInfo> = client()?.call(Request::Asks)?;
                out.print(&asks, |a| show::asks(a))
            }
            Some(answer) => {
                let answered: AskInfo = client()?.call(Request::Answer(answer))?;
                out.print(&answered, show::answered)
            }
        },
        Command::Wall(command) => command.run(client()?, out),
        Command::Transaction(command) => command.run(client()?, out),
        Command::Suspicion(command) => command.run(client()?, out),
        Command::Response(command) => command.run(client()?, out),
        Command::Approval(ApprovalCommand::List) => {
            let proposals: Vec<ProposalInfo> = client()?.call(Request::Proposals)?;
            out.print(&proposals, |p| show::proposals(p))
        }
        Command::Approval(ApprovalCommand::Allow { id }) => {
            out.applied(&client()?.call(Request::Approve { id })?)
        }
        Command::Approval(ApprovalCommand::Deny { id }) => {
            let dropped: ProposalInfo = client()?.call(Request::Disapprove { id })?;
            out.print(&dropped, |p| format!("dropped: {} by {}", p.call, p.by))
        }
        Command::Reload => out.applied(&client()?.call(Request::Reload)?),
        Command::Port(PortCommand::List) => {
            let ports: Vec<PortInfo> = client()?.call(Request::Ports)?;
            out.print(&ports, |p| show::ports(p))
        }
        Command::Port(PortCommand::Show { name }) => {
            let mut ports: Vec<PortInfo> = client()?.call(Request::Ports)?;
            ports.retain(|p| p.name == name);
            let port = ports.pop().ok_or_else(|| {
                let error = format!("there is no port {name}; `vswitch port list` shows them");
                ApiError::new(ErrorCode::Usage, error)
            })?;
            out.print(&port, show::port)
        }
        Command::Port(PortCommand::Add(add)) => {
            let (toml, source) = add.toml()?;
            out.applied(&client()?.call(Request::PortAdd { toml, source })?)
        }
        Command::Port(PortCommand::Del { name }) => {
            out.applied(&client()?.call(Request::PortDel { name })?)
        }
        Command::Workload(command) => command.run(client, out),
        Command::Segment(SegmentCommand::List) => {
            let segments: Vec<SegmentInfo> = client()?.call(Request::Segments)?;
            out.print(&segments, |s| show::segments(s))
        }
        Command::Conn(ConnCommand::List { workload, limit }) => {
            let conns: ConnList = client()?.call(Request::Conns { workload, limit })?;
            out.print(&conns, show::conns)
        }
        Command::Policy(command) => policy(command, client, out),
        Command::Explain {
            from,
            to,
            service,
            src_port,
        } => {
            let answer: Explanation = client()?.call(Request::Explain(ExplainQuery {
                from,
                to,
                service,
                src_port,
            }))?;
            out.print(&answer, show::explanation)?;
            Ok(if answer.verdict == "allow" {
                Answer::Done
            } else {
                Answer::No
            })
        }
        Command::Reach {
            workload,
            to,
            from: _,
            limit,
        } => {
            let request = Request::Reach {
                workload,
                to,
                limit,
            };
            let found: Reach = client()?.call(request)?;
            out.print(&found, reach::reach)
        }
        Command::Watch { workload, kind } => {
            let filter = WatchFilter {
                workload,
                kinds: kind,
            };
            watch(client()?, filter, out)
        }
        Command::Drops { all } => {
            let mut drops: Vec<DropInfo> = client()?.call(Request::Drops)?;
            drops.retain(|d| all || d.total != 0);
            out.print(&drops, |d| show::drops(d))
        }
        Command::Stats => {
            let stats: Stats = client()?.call(Request::Stats)?;
            out.print(&stats, show::stats)
        }
        #[cfg(feature = "manager")]
        Command::Ledger(command) => ledger::ledger(command, out),
        #[cfg(feature = "manager")]
        Command::Manager(command) => manager::manager(command, out),
        #[cfg(feature = "manager")]
        Command::Restarter => restart::restarter(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vswitch", &mut script);
            io::stdout().write_all(&script).map_err(Failure::Output)?;
            Ok(Answer::Done)
        }
    }
}

fn policy(
    command: PolicyCommand,
    client: impl Fn() -> Result<Client, Failure>,
    out: Out,
) -> Result<Answer, Failure> {
    match command {
        PolicyCommand::Apply { file, confirm } => {
            let (toml, source) = files::read(&file)?;
            let confirm_s = confirm.map(|c| c.as_secs());
            out.applied(&client()?.call(Request::PolicyApply {
                toml,
                source,
                confirm_s,
            })?)
        }
        PolicyCommand::Confirm => out.applied(&client()?.call(Request::PolicyConfirm)?),
        PolicyCommand::Show => {
            let view: PolicyView = client()?.call(Request::PolicyShow)?;
            out.print(&view, show::policy)
        }
        PolicyCommand::Diff { file } => {
            let (toml, source) = files::read(&file)?;
            let diff: PolicyDiff = client()?.call(Request::PolicyDiff { toml, source })?;
            out.print(&diff, reach::diff)?;
            Ok(if diff.differs {
                Answer::No
            } else {
                Answer::Done
            })
        }
    }
}

fn check(file: &std::path::Path, out: Out) -> Result<Answer, Failure> {
    files::read(file)?;
    let reading = format!("checking {}", file.display());
    match progress::during(&reading, || crate::config::load(file)) {
        Ok(desired) => {
            let workloads: usize = desired.ports.iter().map(|p| p.workloads.len()).sum();
            let good = serde_json::json!({
                "valid": true,
                "ports": desired.ports.len(),
                "workloads": workloads,
                "segments": desired.policy.segments.len(),
                "rules": desired.policy.rules.len(),
                "decisions": desired.decisions.as_ref().map(|d| &d.name),
            });
            out.print(&good, |_| {
                format!(
                    "{}: valid: {}, {}, {}, {}{}",
                    file.display(),
                    show::n(desired.ports.len(), "port"),
                    show::n(workloads, "workload"),
                    show::n(desired.policy.segments.len(), "segment"),
                    show::n(desired.policy.rules.len(), "rule"),
                    desired.decisions.as_ref().map_or_else(String::new, |d| {
                        format!("; questions answered by {}", d.name)
                    })
                )
            })
        }
        Err(errors) => {
            if out.json {
                let bad = serde_json::json!({
                    "valid": false,
                    "errors": errors.shown,
                    "more": errors.more,
                });
                out.print(&bad, |_| String::new())?;
            } else {
                // Like a compiler, so that editors find the place.
                eprintln!("{errors}");
                let n = errors.shown.len() + errors.more;
                eprintln!("vswitch: {n} error{}", if n == 1 { "" } else { "s" });
            }
            Ok(Answer::No)
        }
    }
}

fn watch(client: Client, filter: WatchFilter, mut out: Out) -> Result<Answer, Failure> {
    let end = client.stream(Request::Watch(filter), |event: &WatchEvent| {
        let line = if out.json {
            serde_json::to_string(event).unwrap_or_default()
        } else {
            show::event(event)
        };
        out.line(&line)
    })?;
    match end {}
}

/// Standard output, in the form that was asked for.
struct Out {
    json: bool,
    to: io::Stdout,
}

impl Out {
    fn print<T: Serialize + ?Sized>(
        mut self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<Answer, Failure> {
        let text = if self.json {
            // Plain values with string keys: serialising them cannot fail.
            serde_json::to_string_pretty(value).unwrap_or_default()
        } else {
            table(value)
        };
        self.line(&text)?;
        Ok(Answer::Done)
    }

    fn applied(self, applied: &Applied) -> Result<Answer, Failure> {
        self.print(applied, show::applied)
    }

    fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.to, "{text}").map_err(Failure::Output)
    }
}

impl PortAdd {
    /// The `[[port]]` tables of the file, with its path, or the one the arguments stand for.
    fn toml(self) -> Result<(String, Option<String>), Failure> {
        if let Some(file) = &self.file {
            let (toml, source) = files::read(file)?;
            return Ok((toml, Some(source)));
        }
        use toml::Value;
        let strings = |list: Vec<String>| Value::Array(list.into_iter().map(Value::from).collect());
        let name = self.name.unwrap_or_default();
        let mut port = toml::Table::new();
        let key = if self.kind == "vhost-user" {
            "socket"
        } else {
            "interface"
        };
        port.insert("name".into(), name.clone().into());
        port.insert("kind".into(), self.kind.into());
        port.insert(key.into(), self.at.unwrap_or_default().into());
        if self.client {
            port.insert("mode".into(), "client".into());
        }
        if let Some(vlan) = self.vlan {
            port.insert("vlan".into(), i64::from(vlan).into());
        }
        if let Some(netns) = self.netns {
            port.insert("netns".into(), netns.into());
        }
        if self.uplink {
            port.insert("uplink".into(), true.into());
        } else {
            let mut workload = toml::Table::new();
            workload.insert("name".into(), name.into());
            workload.insert("mac".into(), strings(self.mac));
            workload.insert("ip".into(), strings(self.ip));
            workload.insert("tags".into(), strings(self.tag));
            port.insert("workload".into(), Value::Array(vec![workload.into()]));
        }
        let mut root = toml::Table::new();
        root.insert("port".into(), Value::Array(vec![port.into()]));
        Ok((root.to_string(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::{Cli, duration};
    use clap::CommandFactory;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in [
            "",
            "s",
            "-1s",
            "1d",
            "99999999999999999999h",
            "9999999999999999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
