//! `vswitch bench response` as a person reads it.

use super::{columns, header, rings, summaries};
use crate::bench::{Report, Responding, Watched};

pub(super) fn show(report: &Report<Responding>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "detectors on and off: {} established connections, frames that are denied, {} TCP connections made; suspects beside {} connections; \
         {} rules, {}",
        c.flows,
        c.opened,
        c.beside,
        c.rules,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    let mut t = columns(&[
        "BUSY CYCLES",
        "DETECTORS ON",
        "OFF",
        "OFF BY ON",
        "LOW",
        "HIGH",
    ]);
    let mut row = |name: &str, w: &Watched| {
        let [on, off] = [&w.on_cycles, &w.off_cycles].map(|s| format!("{:.0}", s.median));
        let ratios = [w.ratio.median, w.ratio.low, w.ratio.high].map(|r| format!("{r:.3}"));
        t.add_row([name.to_owned(), on, off].into_iter().chain(ratios));
    };
    row("by frame of established connections", &r.established);
    row("by frame that is denied", &r.denied);
    row("by TCP connection", &r.connection);
    out += &format!("\n{t}\n");
    out += &summaries(&[
        (
            "established forwarding, detectors on by off",
            &r.forwarded_ratio,
            3,
        ),
        ("from suspicion to quarantine, ms", &r.contained_ms, 2),
        ("known to, ms", &r.resolution_ms, 2),
    ]);
    out
}
