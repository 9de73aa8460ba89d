//! `vswitch bench …`. A measurement is one line in each of the two lists below, and a file that shows its figures.

mod acl;
mod afxdp;
#[cfg(feature = "manager")]
mod ask;
mod churn;
mod deny;
mod foreign;
mod idle;
mod latency;
#[cfg(feature = "manager")]
mod ledger;
mod loopback;
mod memory;
mod ndr;
mod policy;
mod response;
mod start;
mod svg;
mod table;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::client::Failure;
use super::show::table as columns;
use super::{Answer, Out, files};
use svg::Chart;

use crate::bench::{self, Bench, Machine, On, Report, Rings, Summary};

// A measurement with a picture. (A documentation comment would be the command's help.)
#[derive(Debug, Args)]
pub(super) struct Drawn<B: Args> {
    #[command(flatten)]
    bench: B,
    /// Draws the result into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    Loopback(bench::Loopback),
    Ndr(bench::Ndr),
    Latency(Drawn<bench::Latency>),
    Churn(bench::Churn),
    Deny(bench::Deny),
    Table(bench::TableAlone),
    Policy(Drawn<bench::PolicyChange>),
    Afxdp(bench::AfXdp),
    Foreign(bench::Foreign),
    Start(bench::Start),
    Memory(bench::Memory),
    Idle(bench::Idle),
    Acl(bench::Acl),
    Response(bench::Responding),
    #[cfg(feature = "manager")]
    Ask(bench::Asking),
    #[cfg(feature = "manager")]
    Ledger(bench::Recording),
}

pub(super) fn bench(command: BenchCommand, out: Out) -> Result<Answer, Failure> {
    match command {
        BenchCommand::Loopback(config) => measure(config, out, loopback::show),
        BenchCommand::Ndr(config) => measure(config, out, ndr::show),
        BenchCommand::Latency(drawn) => draw(drawn, out, latency::show, latency::chart),
        BenchCommand::Deny(config) => measure(config, out, deny::show),
        BenchCommand::Table(config) => measure(config, out, table::show),
        BenchCommand::Policy(drawn) => draw(drawn, out, policy::show, policy::chart),
        BenchCommand::Afxdp(config) => measure(config, out, afxdp::show),
        BenchCommand::Foreign(config) => measure(config, out, foreign::show),
        BenchCommand::Start(config) => measure(config, out, start::show),
        BenchCommand::Memory(config) => measure(config, out, memory::show),
        BenchCommand::Idle(config) => measure(config, out, idle::show),
        BenchCommand::Acl(config) => measure(config, out, acl::show),
        BenchCommand::Response(config) => measure(config, out, response::show),
        #[cfg(feature = "manager")]
        BenchCommand::Ask(config) => measure(config, out, ask::show),
        #[cfg(feature = "manager")]
        BenchCommand::Ledger(config) => measure(config, out, ledger::show),
        BenchCommand::Churn(config) => measure(config, out, churn::show),
    }
}

const GENERATOR_BOUND: &str =
    "generator-bound: the switch could have done more than the generator offered";

fn measure<B: Bench>(
    config: B,
    out: Out,
    show: fn(&Report<B>) -> String,
) -> Result<Answer, Failure> {
    let report = run(config)?;
    print(&report, out, show)
}

fn draw<B: Bench + Args>(
    drawn: Drawn<B>,
    out: Out,
    show: fn(&Report<B>) -> String,
    chart: fn(&Report<B>) -> Chart,
) -> Result<Answer, Failure> {
    let Drawn { bench, svg } = drawn;
    // Before the time is spent.
    svg.as_deref().map_or(Ok(()), files::writable)?;
    let report = run(bench)?;
    if let Some(path) = svg {
        files::write(&path, &chart(&report).svg())?;
    }
    print(&report, out, show)
}

fn run<B: Bench>(config: B) -> Result<Report<B>, Failure> {
    // On standard error, if that is a terminal.
    let progress = ProgressBar::new_spinner();
    let report = bench::run(config, |text| {
        progress.set_message(text.to_owned());
        progress.tick();
    });
    progress.finish_and_clear();
    Ok(report?)
}

fn print<B: Bench>(
    report: &Report<B>,
    out: Out,
    show: fn(&Report<B>) -> String,
) -> Result<Answer, Failure> {
    out.print(report, |report| {
        let mut text = show(report);
        text.truncate(text.trim_end().len());
        text
    })
}

/// What was measured, and where.
fn header(what: &str, m: &Machine) -> String {
    let mut out = format!(
        "{what}\n{}, TSC {:.2} GHz, kernel {}, {} free pages of 2 MiB, THP {}, steal {:.1} %\n",
        m.cpu,
        ghz(m.tsc_hz),
        m.kernel,
        m.huge_pages_free,
        m.thp,
        100.0 * m.steal,
    );
    let _ = match (m.cores.worker, m.cores.generator) {
        (Some(w), Some(g)) => writeln!(out, "switch on core {w}, generator on core {g}"),
        _ => writeln!(
            out,
            "one core for switch and generator: figures mean little"
        ),
    };
    if cfg!(debug_assertions) {
        let _ = writeln!(out, "a debug build: its figures say little");
    }
    out
}

fn rings(r: Rings) -> String {
    let kind = if r.packed { "packed" } else { "split" };
    let pages = if r.huge { "2 MiB" } else { "4 KiB" };
    format!("{kind} rings of {}, {pages} pages", r.ring)
}

/// Of another switch: where it is, and how busy the generator was.
fn on(on: &On, generator_busy: f64) -> String {
    let sockets: Vec<_> = on.on.iter().map(|s| s.display().to_string()).collect();
    format!(
        "through {}; the generator was busy {:.0} % of the time",
        sockets.join(" and "),
        100.0 * generator_busy
    )
}

/// A table of figures, each with its number of decimals.
fn summaries(rows: &[(&str, &Summary, usize)]) -> String {
    let mut t = columns(&["", "MEDIAN", "LOW", "HIGH"]);
    for &(name, s, digits) in rows {
        let cell = |v: f64| format!("{v:.digits$}");
        t.add_row([name.to_owned(), cell(s.median), cell(s.low), cell(s.high)]);
    }
    format!("\n{t}\n")
}

#[allow(clippy::cast_precision_loss)] // a few GHz
fn ghz(hz: u64) -> f64 {
    hz as f64 / 1e9
}
