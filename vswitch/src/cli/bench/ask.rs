//! `vswitch bench ask` as a person reads it.

use super::{header, summaries};
use crate::bench::{Asking, Held, Report};

pub(super) fn show(report: &Report<Asking>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "{} ports ask, {} rules in this process answer, and a ledger in {} records both; {} decisions in all",
        c.ports,
        u32::from(c.rules) + 1,
        c.dir.display(),
        r.decisions
    );
    let mut out = header(&what, &report.machine);
    let held = |h: &Held| {
        summaries(&[
            ("held, µs: half", &h.p50_us, 0),
            ("99 in 100", &h.p99_us, 0),
            ("999 in 1000", &h.p999_us, 0),
        ])
    };
    out += &format!("\n{} questions a second", c.rate);
    out += &held(&r.paced);
    out += &format!(
        "\n{} questions a second, answered over loopback with mutual TLS",
        c.rate
    );
    out += &held(&r.remote);
    out += "\nas many as there can be";
    out += &held(&r.flat_out);
    out += &summaries(&[
        ("decisions a second", &r.decided_per_s, 0),
        (
            "established forwarding beside questions, by without",
            &r.forwarded_ratio,
            3,
        ),
        (
            "busy cycles a frame without questions, by with",
            &r.cycles_ratio,
            3,
        ),
    ]);
    out
}
