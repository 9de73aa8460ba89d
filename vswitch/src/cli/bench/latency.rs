//! `vswitch bench latency` as a person reads it.

use std::fmt::Write as _;

use super::{header, rings};
use crate::bench::{Latency, PERCENTILES, Report};
use crate::cli::show::table;

pub(super) fn show(report: &Report<Latency>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "guest to guest, {}-byte frames, {} connections, {} rules, {}\nthe most is {:.2} Mpps, both directions together",
        c.sizes,
        c.flows,
        c.rules,
        rings(c.rings),
        r.most_mpps
    );
    let mut out = header(&what, &report.machine);
    let names = PERCENTILES.iter().map(|(name, _)| *name);
    let head: Vec<&str> = ["LOAD", "Mpps"]
        .into_iter()
        .chain(names)
        .chain(["LARGEST", "LOST"])
        .collect();
    let mut t = table(&head);
    for l in &r.loads {
        let delays = l
            .percentiles_ns
            .iter()
            .map(|(_, s)| format!("{} ({}-{})", us(s.median), us(s.low), us(s.high)));
        let first = [format!("{} %", l.percent), format!("{:.2}", l.mpps)];
        let last = [us(l.largest_ns), l.lost.to_string()];
        t.add_row(first.into_iter().chain(delays).chain(last));
    }
    let _ = writeln!(
        out,
        "\n{t}\n\nµs from the sender's ring to the receiver: median of the repetitions (lowest-highest)"
    );
    for l in r.loads.iter().filter(|l| l.missed > 0) {
        let _ = writeln!(
            out,
            "at {} % the generator did not get to {} of {} frames: it was the limit there",
            l.percent,
            l.missed,
            l.sent + l.missed
        );
    }
    out
}

fn us(ns: f64) -> String {
    format!("{:.1}", ns / 1e3)
}
