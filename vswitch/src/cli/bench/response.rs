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
        (
            "the same, with a connection kept, ms",
            &r.contained_keeping_ms,
            2,
        ),
        ("known to, ms", &r.resolution_ms, 2),
    ]);
    let f = &r.frozen;
    out += &format!(
        "\n{} connections of {} workloads, frozen\n",
        f.connections, c.frozen
    );
    out += &summaries(&[
        ("freezing one workload more, ms", &f.freeze_ms, 2),
        ("releasing them all, ms", &f.release_ms, 0),
        (
            "established forwarding beside them, by without",
            &f.forwarded_ratio,
            3,
        ),
        ("answers to their peers, a second", &f.answers_per_s, 0),
        ("a change of the policy, ms", &f.change_ms, 2),
        (
            "the same before, with nothing kept, ms",
            &f.change_before_ms,
            2,
        ),
    ]);
    out
}
