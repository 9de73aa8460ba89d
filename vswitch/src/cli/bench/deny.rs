//! `vswitch bench deny` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, columns, header, rings, summaries};
use crate::bench::{Deny, Report};

pub(super) fn show(report: &Report<Deny>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "frames of 64 bytes, forwarded on {} connections or denied, each from fresh ports; {} rules, {}",
        c.flows,
        c.rules,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("forwarded, Mpps", &r.forwarded_mpps, 2),
        ("denied, Mpps", &r.denied_mpps, 2),
        ("denied by forwarded", &r.ratio, 2),
        ("busy cycles per frame forwarded", &r.forwarded_cycles, 0),
        ("busy cycles per frame denied", &r.denied_cycles, 0),
    ]);
    let _ = writeln!(
        out,
        "\nwhile it denied, the worker was busy {:.0} % of the time",
        100.0 * r.busy
    );
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    if !r.steps.is_empty() {
        let mut t = columns(&["STEP, CYCLES PER FRAME", "FORWARDED", "DENIED"]);
        for (step, forwarded, denied) in &r.steps {
            let cells = [forwarded, denied].map(|c| format!("{c:.0}"));
            t.add_row([(*step).to_owned()].into_iter().chain(cells));
        }
        let _ = writeln!(out, "\n{t}");
    }
    out
}
