//! `vswitch bench policy` as a person reads it.

use std::fmt::Write as _;

use super::svg::{Axis, Chart, Line};
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

/// The rate before and after a change that denies none of the traffic.
pub(super) fn chart(report: &Report<PolicyChange>) -> Chart {
    let (c, r) = (&report.config, &report.figures);
    let most = r.curve.iter().map(|p| p.1).fold(0.0, f64::max);
    let ends = r.curve.first().zip(r.curve.last());
    let (from, to) = ends.map_or((0.0, 1.0), |(a, b)| (a.0, b.0));
    Chart {
        title: format!(
            "Traffic through a change of policy, {} live connections",
            c.flows
        ),
        subtitle: format!(
            "each is judged again on its next frame; {} rules, mean of {} changes, slices of {} ms; {}",
            c.rules, c.repeats, r.slice_ms, report.machine.cpu
        ),
        x: Axis::linear("ms from the call of apply", from, to),
        y: Axis::from_zero("Mpps, both directions", most),
        lines: vec![Line {
            name: "forwarded".to_owned(),
            points: r.curve.clone(),
        }],
        mark: Some((0.0, "apply")),
    }
}
