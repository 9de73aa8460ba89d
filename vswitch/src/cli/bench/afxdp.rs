//! `vswitch bench afxdp` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, header, summaries};
use crate::bench::{AfXdp, Report};

pub(super) fn show(report: &Report<AfXdp>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let attached = match &r.mode {
        Some(mode) => format!("af-xdp ({mode}), {} rules", c.rules),
        None => format!("another switch between {}", c.on.join(" and ")),
    };
    let what = format!(
        "container to container over veth, {attached}, {}-byte frames, {} connections, {} frames under way each way",
        c.sizes, c.flows, c.window
    );
    let mut out = header(&what, &report.machine);
    let rates = [
        ("Mpps, both directions", &r.mpps, 3),
        ("Gbit/s", &r.gbps, 2),
    ];
    let name = "busy cycles per frame, kernel included";
    let cycles = r.cycles_per_frame.as_ref().map(|c| (name, c, 0));
    out += &summaries(&rates.into_iter().chain(cycles).collect::<Vec<_>>());
    let _ = match (r.busy, r.burst) {
        (Some(busy), Some(burst)) => write!(
            out,
            "\nthe worker was busy {:.0} % of the time, with {burst:.0} frames an iteration",
            100.0 * busy
        ),
        _ => write!(
            out,
            "\nthe generator was busy {:.0} % of the time",
            100.0 * r.generator_busy
        ),
    };
    let _ = writeln!(out, "; {} of {} frames were lost", r.lost, r.sent);
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    out
}
