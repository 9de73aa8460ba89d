//! `vswitch bench idle` as a person reads it.

use std::fmt::Write as _;

use super::{header, rings};
use crate::bench::{Idle, Report};
use crate::cli::show::table;

pub(super) fn show(report: &Report<Idle>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "two guests and {} containers attached, {} connections open, nothing sent for {} s; {}",
        r.containers,
        c.flows,
        c.seconds,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    if let Some(why) = &r.no_containers {
        let _ = writeln!(out, "no containers: {why}");
    }
    let mut t = table(&["THREAD", "% OF A CORE"]);
    for (name, share) in &r.threads {
        t.add_row([name.clone(), format!("{:.3}", 100.0 * share)]);
    }
    t.add_row(["together".to_owned(), format!("{:.3}", 100.0 * r.share)]);
    let _ = writeln!(out, "\n{t}");
    let mut t = table(&["SEND TO RECEIVE, µs", "p50", "p90", "LARGEST"]);
    for (name, p) in [
        ("right after another frame", r.awake_us),
        ("the first one after idling", r.asleep_us),
    ] {
        let cells = [p.p50, p.p90, p.largest].map(|v| format!("{v:.1}"));
        t.add_row([name.to_owned()].into_iter().chain(cells));
    }
    let _ = writeln!(out, "\n{t}");
    out
}
