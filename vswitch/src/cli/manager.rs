//! `vswitch manager …`: answers questions for many switches, or prints what others need to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use tracing::{error, info};

use super::client::Failure;
use super::run::start_log;
use super::{Answer, Out};
use crate::config;
use crate::manager::certificate::Credentials;
use crate::manager::rules::SCHEMA;
use crate::manager::server::{Current, serve};
use crate::manager::wire::PROTOCOL;
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::inotify::{FileWatch, Seen};

/// A file is read this long after its last change, as the daemon's are.
const SAVED: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ManagerCommand {
    #[command(subcommand)]
    print: Option<Print>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Debug, Args)]
struct Serve {
    /// Where switches connect to.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Certificates of the authority that signed the switches' certificates, in PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The manager's certificate, in PEM. It lists the switches and rules that it may answer for.
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Cedar policies; read again when the file changes.
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Print {
    /// Print what rules for decisions are written against: a Cedar schema.
    Schema,
    /// Print the protocol between switch and manager: a protobuf file.
    Protocol,
}

pub(super) fn manager(command: ManagerCommand, mut out: Out) -> Result<Answer, Failure> {
    match (command.print, command.serve) {
        (Some(Print::Schema), _) => out.line(SCHEMA.trim_end())?,
        (Some(Print::Protocol), _) => out.line(PROTOCOL.trim_end())?,
        (None, Some(args)) => run(args)?,
        // clap asks for the arguments.
        (None, None) => {}
    }
    Ok(Answer::Done)
}

/// Serves until a signal ends the process.
fn run(args: Serve) -> Result<(), Failure> {
    start_log();
    let current = Current::new(config::load_rules(&args.rules)?);
    let credentials = Credentials {
        ca: args.ca,
        certificate: args.certificate,
        key: args.key,
    };
    let (rules, followed) = (args.rules, current.clone());
    let watching = move || {
        if let Err(e) = watch(&rules, &followed) {
            error!("cannot watch {}: {e}", rules.display());
        }
    };
    std::thread::Builder::new()
        .name("rules".to_owned())
        .spawn(watching)
        .map_err(|source| Failure::System {
            what: "watch the rules",
            source,
        })?;
    let ready = |address| info!(%address, pid = std::process::id(), "running");
    Ok(serve(args.listen, &credentials, current, ready)?)
}

/// Follows the file. What is wrong is said, and changes nothing.
fn watch(path: &Path, current: &Current) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut files = FileWatch::new(&[path.to_owned()])?;
    let epoll = Epoll::new()?;
    epoll.add(files.as_raw_fd(), 0, Interest::READ)?;
    loop {
        epoll.wait(&mut [Event::EMPTY], -1)?;
        if files.look() != Seen::Saved {
            continue;
        }
        // Until it is whole.
        while epoll.wait(
            &mut [Event::EMPTY],
            i32::try_from(SAVED.as_millis()).unwrap_or(0),
        )? > 0
        {
            files.look();
        }
        match config::load_rules(path) {
            Ok(rules) => {
                info!("{} rules of {} are followed", rules.len(), path.display());
                current.replace(rules);
            }
            Err(errors) => errors.lines().iter().for_each(|e| error!("refused: {e}")),
        }
    }
}
