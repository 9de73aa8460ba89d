//! `vswitch bench loopback` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, header, rings, summaries};
use crate::bench::{Loopback, Report};
use crate::cli::show::table;

pub(super) fn show(report: &Report<Loopback>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "guest to guest, {}-byte frames, {} connections, {} rules, {}",
        c.traffic.sizes,
        c.traffic.flows,
        c.rules,
        rings(c.traffic.rings)
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("Mpps, both directions", &r.mpps, 2),
        ("Gbit/s", &r.gbps, 2),
        ("busy cycles per frame", &r.cycles_per_frame, 0),
    ]);
    let _ = writeln!(
        out,
        "\nthe worker was busy {:.0} % of the time, with {:.0} frames an iteration; {:.2} % of them found no room",
        100.0 * r.busy,
        r.burst,
        100.0 * r.dropped,
    );
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    if !r.steps.is_empty() {
        let mut t = table(&["STEP", "CYCLES PER FRAME"]);
        for (step, cycles) in &r.steps {
            t.add_row([(*step).to_owned(), format!("{cycles:.0}")]);
        }
        let _ = writeln!(out, "\n{t}");
    }
    out
}
