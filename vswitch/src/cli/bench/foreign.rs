//! `vswitch bench foreign` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, header, rings, summaries};
use crate::bench::{Foreign, Report};

pub(super) fn show(report: &Report<Foreign>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "guest to guest through {} and {}, {}-byte frames, {} connections, {}",
        c.a.display(),
        c.b.display(),
        c.traffic.sizes,
        c.traffic.flows,
        rings(c.traffic.rings)
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("Mpps, both directions", &r.mpps, 2),
        ("Gbit/s", &r.gbps, 2),
    ]);
    let _ = writeln!(
        out,
        "\nthe generator was busy {:.0} % of the time",
        100.0 * r.generator_busy
    );
    if let Some(at) = r.first_at {
        let _ = writeln!(
            out,
            "the first frame came through at {at:.6}, seconds since 1970"
        );
    }
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    out
}
