//! `vswitch run`: the daemon.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;

use super::Answer;
use super::client::Failure;
use super::files::{self, Files};
use super::progress;
use crate::control::Switch;

/// Logs to standard error; `VSWITCH_LOG` chooses what (tracing's filter syntax).
pub(super) fn start_log() {
    // The netlink crate warns about every attribute that is newer than itself.
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("VSWITCH_LOG").unwrap_or_else(|_unset| {
            tracing_subscriber::EnvFilter::new("info,netlink_packet_route=error")
        });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // There is a log already only when a test calls us twice.
    let _ = log.try_init();
}

/// Runs until a signal ends it.
pub(super) fn run(config: &Path, socket: Option<PathBuf>) -> Result<Answer, Failure> {
    start_log();
    let system = |what| move |source| Failure::System { what, source };
    // Before anything is started, so that a signal is never missed.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system("catch signals"))?;
    // A file that is not there is the command line's mistake, not the configuration's.
    files::read(config)?;
    let reading = format!("reading {}", config.display());
    let (files, desired) = progress::during(&reading, || Files::open(config, socket))?;
    let socket = desired.switch.socket.clone();
    let switch = Switch::builder()
        .desired(desired)
        .api(&socket)
        .loader(Box::new(files))
        // The very program that runs, also when another one stands in its place by now.
        .restarter("/proc/self/exe")
        .spawn()?;
    info!(socket = %socket.display(), pid = std::process::id(), "running");
    for signal in signals.forever() {
        if signal == SIGHUP {
            // Refused: logged line by line where it was refused.
            let _ = switch.reload();
        } else {
            info!(signal, "shutting down");
            break;
        }
    }
    switch.shutdown();
    Ok(Answer::Done)
}
