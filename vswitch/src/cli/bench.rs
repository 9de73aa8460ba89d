//! `vswitch bench …`.

use std::fmt::Write as _;

use clap::Subcommand;
use indicatif::ProgressBar;

use super::client::Failure;
use super::show::table;
use super::{Answer, Out};
use crate::bench::{self, Loopback, LoopbackReport, Sizes, Summary};

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Guest to guest through the switch: two virtio guests of our own open connections over vhost-user, then
    /// both send flat out, and every frame is checked on arrival.
    Loopback {
        /// Bytes of each frame without FCS, or imix.
        #[arg(long, default_value = "64")]
        size: Sizes,
        /// Connections.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=bench::FLOWS_MAX as i64))]
        flows: u32,
        /// Rules in the policy; the last one admits the load.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rules: u32,
        /// Entries of each ring.
        #[arg(long, default_value_t = 1024, value_parser = ring)]
        ring: u16,
        /// Packed rings instead of split ones.
        #[arg(long)]
        packed: bool,
        /// Guests' memory in 2 MiB pages (sysctl vm.nr_hugepages).
        #[arg(long)]
        huge: bool,
        /// Repetitions.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        repeats: u32,
        /// Seconds each.
        #[arg(long, default_value_t = 0.5, value_parser = seconds)]
        seconds: f64,
        /// Once more, with the cycles of each step.
        #[arg(long)]
        profile: bool,
    },
}

fn ring(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n.is_power_of_two() && (32..=32_768).contains(&n) => Ok(n),
        _ => Err("write a power of two from 32 to 32768".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.01..=3600.0).contains(&s) => Ok(s),
        _ => Err("write seconds from 0.01 to 3600".to_owned()),
    }
}

pub(super) fn bench(command: BenchCommand, out: Out) -> Result<Answer, Failure> {
    match command {
        BenchCommand::Loopback {
            size,
            flows,
            rules,
            ring,
            packed,
            huge,
            repeats,
            seconds,
            profile,
        } => {
            let config = Loopback {
                sizes: size,
                flows,
                rules,
                ring,
                packed,
                huge,
                repeats,
                seconds,
                profile,
            };
            // On standard error, if that is a terminal.
            let progress = ProgressBar::new_spinner();
            let report = bench::loopback(&config, |text| {
                progress.set_message(text.to_owned());
                progress.tick();
            });
            progress.finish_and_clear();
            out.print(&report?, loopback)
        }
    }
}

fn loopback(r: &LoopbackReport) -> String {
    let (c, m) = (&r.config, &r.machine);
    let mut out = format!(
        "guest to guest, {}-byte frames, {} connections, {} rules, {} rings of {}, {} pages\n\
         {}, TSC {:.2} GHz, kernel {}, steal {:.1} %\n",
        c.sizes,
        c.flows,
        c.rules,
        if c.packed { "packed" } else { "split" },
        c.ring,
        if c.huge { "2 MiB" } else { "4 KiB" },
        m.cpu,
        ghz(m.tsc_hz),
        m.kernel,
        100.0 * m.steal,
    );
    let _ = match (m.cores.worker, m.cores.generator) {
        (Some(w), Some(g)) => writeln!(out, "switch on core {w}, generator on core {g}"),
        _ => writeln!(
            out,
            "one core for switch and generator: figures mean little"
        ),
    };
    let mut t = table(&["", "MEDIAN", "LOW", "HIGH"]);
    let mut row = |name: &str, s: &Summary, digits: usize| {
        let cell = |v: f64| format!("{v:.digits$}");
        t.add_row([name.to_owned(), cell(s.median), cell(s.low), cell(s.high)]);
    };
    row("Mpps, both directions", &r.mpps, 2);
    row("Gbit/s", &r.gbps, 2);
    row("busy cycles per frame", &r.cycles_per_frame, 0);
    let _ = writeln!(out, "\n{t}\n");
    let _ = writeln!(
        out,
        "the worker was busy {:.0} % of the time, with {:.0} frames an iteration; {:.2} % of them found no room",
        100.0 * r.busy,
        r.burst,
        100.0 * r.dropped,
    );
    if r.generator_bound {
        let _ = writeln!(
            out,
            "generator-bound: the switch could have done more than the generator offered"
        );
    }
    if !r.steps.is_empty() {
        let mut t = table(&["STEP", "CYCLES PER FRAME"]);
        for (step, cycles) in &r.steps {
            t.add_row([(*step).to_owned(), format!("{cycles:.0}")]);
        }
        let _ = writeln!(out, "\n{t}");
    }
    out.truncate(out.trim_end().len());
    out
}

#[allow(clippy::cast_precision_loss)] // a few GHz
fn ghz(hz: u64) -> f64 {
    hz as f64 / 1e9
}
