//! `vswitch workload restart`, and the process that does it.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;

use super::client::{Client, Failure};
use super::{Answer, Out, show};
use crate::control::api::{ApiError, ErrorCode, Request, RestartInfo, RestartState};

/// How often whoever waits asks how far it is.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct RestartCommand {
    /// Workload, or tenant/workload.
    workload: String,
    /// Why, for the ledger.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// A service (tcp/873) that is the reason: connections for it are not readmitted.
    #[arg(long, value_name = "SERVICE")]
    evidence: Vec<String>,
    /// Wait for the end. Exit code 1: it was not restarted, and stays quarantined.
    #[arg(long)]
    wait: bool,
}

impl RestartCommand {
    /// Has a workload restarted, and waits for the end if that is wanted.
    pub(super) fn run(
        self,
        client: impl Fn() -> Result<Client, Failure>,
        out: Out,
    ) -> Result<Answer, Failure> {
        let request = Request::WorkloadRestart {
            workload: self.workload,
            reason: self.reason,
            evidence: self.evidence,
        };
        let mut info: RestartInfo = client()?.call(request)?;
        let mut said = String::new();
        while self.wait && info.state == RestartState::UnderWay {
            if info.said != said {
                said.clone_from(&info.said);
                eprintln!("vswitch: {}: {said}", info.workload);
            }
            std::thread::sleep(LOOK);
            let all: Vec<RestartInfo> = client()?.call(Request::Restarts)?;
            info = all.into_iter().find(|i| i.id == info.id).ok_or_else(|| {
                let text =
                    "the daemon knows nothing of it any more; `vswitch ledger show --kind restart` may";
                ApiError::new(ErrorCode::Refused, text)
            })?;
        }
        let failed = info.state == RestartState::Failed;
        out.print(&info, line)?;
        Ok(if failed { Answer::No } else { Answer::Done })
    }
}

fn line(info: &RestartInfo) -> String {
    let RestartInfo { workload, said, .. } = info;
    match info.state {
        RestartState::UnderWay => format!("{workload} is being restarted ({}): {said}", info.id),
        RestartState::Failed => format!("{workload} was not restarted: {said}"),
        RestartState::Done => {
            let mut line = format!("{workload} was restarted, {}", trust(info));
            if let Some(image) = &info.image {
                let _ = write!(line, " ({image})");
            }
            if info.readmitted > 0 {
                let _ = write!(line, ", {} connections readmitted", info.readmitted);
            }
            if !said.is_empty() {
                let _ = write!(line, ": {said}");
            }
            line
        }
    }
}

fn trust(info: &RestartInfo) -> &'static str {
    if info.trusted { "trusted" } else { "untrusted" }
}

/// Restarts, as a table.
pub(super) fn list(infos: &[RestartInfo]) -> String {
    let mut table = show::table(&[
        "ID", "WORKLOAD", "DRIVER", "STATE", "TOOK", "DATA", "BY", "REASON", "SAID",
    ]);
    for info in infos {
        let state = match info.state {
            RestartState::UnderWay => "under way",
            RestartState::Done => trust(info),
            RestartState::Failed => "failed",
        };
        table.add_row([
            info.id.clone(),
            info.workload.clone(),
            info.driver.clone(),
            state.to_owned(),
            format!("{} ms", info.took_ms),
            info.data_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            info.by.clone(),
            info.reason.clone(),
            info.said.clone(),
        ]);
    }
    show::text(&table, "nobody was restarted since the daemon started")
}

/// Does what the switch at the other end of standard input wants, until that is gone.
#[cfg(feature = "manager")]
pub(super) fn restarter() -> Result<Answer, Failure> {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    let system = |what| move |source| Failure::System { what, source };
    crate::sys::privileges::close_others().map_err(system("close descriptors"))?;
    super::run::start_log();
    crate::sys::privileges::give_up(&crate::sys::privileges::OF_THE_SWITCH)
        .map_err(system("give up capabilities"))?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = UnixStream::from(socket.map_err(system("use standard input"))?);
    if socket.peer_addr().is_err() {
        let text =
            "`vswitch restarter` is started by a switch, with a socket as its standard input";
        return Err(ApiError::new(ErrorCode::Usage, text).into());
    }
    crate::restart::serve(socket).map_err(system("understand the switch"))?;
    Ok(Answer::Done)
}
