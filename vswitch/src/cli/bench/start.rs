//! `vswitch bench start` as a person reads it.

use super::{header, rings, summaries};
use crate::bench::{Report, Start};

pub(super) fn show(report: &Report<Start>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "a switch with room for {} connections and {} rules, from nothing; {}",
        c.connections,
        c.rules,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("until it runs, ms", &r.started_ms, 1),
        ("until two guests are attached, ms", &r.attached_ms, 1),
        (
            "until their first frame and its answer, ms",
            &r.forwarded_ms,
            1,
        ),
    ]);
    out
}
