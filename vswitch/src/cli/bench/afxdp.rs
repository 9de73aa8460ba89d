//! `vswitch bench afxdp` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, header, summaries};
use crate::bench::{AfXdp, Report};

pub(super) fn show(report: &Report<AfXdp>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "container to container over veth, af-xdp ({}), {}-byte frames, {} connections, {} rules, {} frames under way each way",
        r.mode, c.sizes, c.flows, c.rules, c.window
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("Mpps, both directions", &r.mpps, 3),
        ("Gbit/s", &r.gbps, 2),
        (
            "busy cycles per frame, kernel included",
            &r.cycles_per_frame,
            0,
        ),
    ]);
    let _ = writeln!(
        out,
        "\nthe worker was busy {:.0} % of the time, with {:.0} frames an iteration; {} of {} frames were lost",
        100.0 * r.busy,
        r.burst,
        r.lost,
        r.sent
    );
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    out
}
