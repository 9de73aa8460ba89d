//! The client's end of the API socket, and what can go wrong for a command.

use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::progress;
use crate::bench::BenchError;
use crate::control::SwitchError;
use crate::control::api::{
    ApiError, Envelope, ErrorCode, MAX_REQUEST_BYTES, Reply, Request, VERSION,
};

/// How long an answer may take: a policy of 100,000 rules is read in seconds (and compiled in less
/// than one), on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a command failed; the exit code follows.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody answers.
    #[error("cannot reach the daemon at {}: {source}; {}", path.display(), advice(.source))]
    Unreachable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What answers is not our daemon, or went away.
    #[error("the daemon's answer cannot be understood: {0}; is it of another version?")]
    BadAnswer(String),
    /// It ended, or closed this connection.
    #[error(
        "the daemon at {} closed the connection; if it ended, its log says why: start it again with `vswitch run -c switch.toml`", .0.display()
    )]
    Closed(PathBuf),
    /// The daemon would drop us.
    #[error(
        "the request is longer than {} MiB, the most the daemon takes; use fewer rules, or let the daemon read the file itself: name it as `policy` in switch.toml", MAX_REQUEST_BYTES >> 20
    )]
    TooLong,
    /// The daemon said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Nothing could be measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A file cannot be read.
    #[error("cannot read {}: {source}; name a file that this user may read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}; name a file that this user may write", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Configuration is wrong.
    #[error("{0}")]
    Config(#[from] crate::config::Errors),
    /// The switch could not start.
    #[error("{0}")]
    Start(#[from] SwitchError),
    /// The ledger's file cannot be used.
    #[cfg(feature = "manager")]
    #[error(transparent)]
    Ledger(#[from] crate::manager::ledger::LedgerError),
    /// There is no case, or it cannot be checked.
    #[cfg(feature = "manager")]
    #[error(transparent)]
    Case(#[from] crate::manager::ledger::case::CaseError),
    /// Switches cannot be served.
    #[cfg(feature = "manager")]
    #[error(transparent)]
    Manager(#[from] crate::manager::server::ServerError),
    /// Our own process: signals.
    #[error("cannot {what}: {source}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// Standard output is gone.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

fn advice(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => {
            "only root, the daemon's own user and the people of its [[person]] tables may; try sudo"
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start it with `vswitch run -c switch.toml`, or name its socket with --socket or VSWITCH_SOCKET"
        }
        _ => "see whether it runs, or name its socket with --socket or VSWITCH_SOCKET",
    }
}

impl Failure {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Failure::Unreachable { .. } | Failure::BadAnswer(_) | Failure::Closed(_) => 3,
            Failure::Api(e) => match e.code {
                ErrorCode::Usage => 2,
                ErrorCode::Refused | ErrorCode::Forbidden => 1,
                ErrorCode::Version => 3,
            },
            Failure::File { .. } | Failure::Write { .. } => 2,
            #[cfg(feature = "manager")]
            Failure::Ledger(e) => match e {
                crate::manager::ledger::LedgerError::Io { .. } => 2,
                _ => 1,
            },
            #[cfg(feature = "manager")]
            Failure::Case(crate::manager::ledger::case::CaseError::Ledger(_)) => 1,
            #[cfg(feature = "manager")]
            Failure::Case(_) => 2,
            #[cfg(feature = "manager")]
            Failure::Manager(_) => 1,
            Failure::TooLong
            | Failure::Config(_)
            | Failure::Start(_)
            | Failure::System { .. }
            | Failure::Output(_)
            | Failure::Bench(_) => 1,
        }
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub(super) struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(super) fn connect(path: &Path) -> Result<Self, Failure> {
        let unreachable = |source| Failure::Unreachable {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(unreachable)?;
        Ok(Client {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    fn unreachable(&self, source: io::Error) -> Failure {
        Failure::Unreachable {
            path: self.path.clone(),
            source,
        }
    }

    fn send(&mut self, request: Request) -> Result<(), Failure> {
        let envelope = Envelope {
            version: VERSION,
            request,
        };
        // Plain values with string keys: serialising them cannot fail.
        let mut line = serde_json::to_string(&envelope).unwrap_or_default();
        line.push('\n');
        if line.len() > MAX_REQUEST_BYTES {
            return Err(Failure::TooLong);
        }
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        sent.map_err(|e| self.unreachable(e))
    }

    /// The next line.
    fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let mut line = String::new();
        let n = self.stream.read_line(&mut line);
        if n.map_err(|e| self.unreachable(e))? == 0 {
            return Err(Failure::Closed(self.path.clone()));
        }
        match serde_json::from_str(&line) {
            Ok(Reply::Ok(answer)) => Ok(answer),
            Ok(Reply::Error(e)) => Err(e.into()),
            Err(e) => Err(Failure::BadAnswer(e.to_string())),
        }
    }

    /// One request, one answer.
    pub(super) fn call<T: DeserializeOwned>(mut self, request: Request) -> Result<T, Failure> {
        progress::during("waiting for the daemon", || {
            self.send(request)?;
            self.receive()
        })
    }

    /// One request, answers until the daemon ends or `see` fails: it has no other end.
    pub(super) fn stream<T: DeserializeOwned>(
        mut self,
        request: Request,
        mut see: impl FnMut(&T) -> Result<(), Failure>,
    ) -> Result<Infallible, Failure> {
        self.send(request)?;
        let unlimited = self.stream.get_ref().set_read_timeout(None);
        unlimited.map_err(|e| self.unreachable(e))?;
        loop {
            see(&self.receive()?)?;
        }
    }
}
