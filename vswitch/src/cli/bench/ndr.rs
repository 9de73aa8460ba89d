//! `vswitch bench ndr` as a person reads it.

use std::fmt::Write as _;

use super::{header, rings};
use crate::bench::{Ndr, Report};
use crate::cli::show::table;

pub(super) fn show(report: &Report<Ndr>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "guest to guest, {}-byte frames, {} connections, {} rules, {}; {} trials of {} s\nflat out {:.2} Mpps",
        c.traffic.sizes,
        c.traffic.flows,
        c.rules,
        rings(c.traffic.rings),
        r.trials,
        c.trial,
        r.overload_mpps
    );
    let mut out = header(&what, &report.machine);
    let mut t = table(&["", "LOSS", "Mpps", "CARRIED", "NOT CARRIED"]);
    for g in &r.goals {
        t.add_row([
            g.goal.to_owned(),
            format!("{} %", 100.0 * g.loss),
            format!("{:.3}", g.mpps),
            format!("{:.3}", g.lower_mpps),
            g.upper_mpps.map_or("-".to_owned(), |u| format!("{u:.3}")),
        ]);
    }
    let _ = writeln!(out, "\n{t}\n\nboth directions together");
    for g in &r.goals {
        if !g.converged {
            let _ = writeln!(
                out,
                "{}: not done when the time was over; a longer --at-most gets closer",
                g.goal
            );
        }
        if g.generator_bound {
            let _ = writeln!(
                out,
                "{}: beyond it was the generator that could not follow",
                g.goal
            );
        }
    }
    out
}
