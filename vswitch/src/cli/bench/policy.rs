//! `vswitch bench policy` as a person reads it.

use std::fmt::Write as _;

use super::{header, rings, summaries};
use crate::bench::{PolicyChange, Report};

pub(super) fn show(report: &Report<PolicyChange>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "policy changed under {} live connections flat out, 64-byte frames, {} rules, {}",
        c.flows,
        c.rules,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        (
            "apply called to last frame it denies, µs",
            &r.last_frame_us,
            0,
        ),
        ("apply called to its return, µs", &r.apply_us, 0),
        ("of that, publish to the last worker, µs", &r.settle_us, 0),
        (
            "Mpps before a change that denies none of it",
            &r.before_mpps,
            2,
        ),
        ("slowest slice after it, by that", &r.lowest, 2),
        ("time below 90 %, ms", &r.dip_ms, 0),
    ]);
    let _ = writeln!(out, "\nslices of {} ms", r.slice_ms);
    out
}
