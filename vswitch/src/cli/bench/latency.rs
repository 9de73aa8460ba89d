//! `vswitch bench latency` as a person reads it.

use std::fmt::Write as _;

use super::svg::{Axis, Chart, Line, Scale};
use super::{header, rings};
use crate::bench::{Latency, PERCENTILES, Report};
use crate::cli::show::table;

pub(super) fn show(report: &Report<Latency>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "guest to guest, {}-byte frames, {} connections, {} rules, {}\nthe most is {:.2} Mpps, both directions together",
        c.traffic.sizes,
        c.traffic.flows,
        c.rules,
        rings(c.traffic.rings),
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

/// The delays of all frames from short to long, as is the custom: the further right, the rarer.
pub(super) fn chart(report: &Report<Latency>) -> Chart {
    let (c, r) = (&report.config, &report.figures);
    // One in so many frames took as long or longer; the last one stands for all frames.
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    let lines = r.loads.iter().map(|l| {
        let rare = |share: f64| (1.0 / (1.0 - share)).min(l.sent.max(1) as f64);
        let points = l
            .curve_ns
            .iter()
            .map(|&(share, ns)| (rare(share), ns / 1e3));
        Line {
            name: format!("{} % ({:.2} Mpps)", l.percent, l.mpps),
            points: points.collect(),
        }
    });
    let lines: Vec<_> = lines.collect();
    let all = || lines.iter().flat_map(|l| &l.points);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(1.0, f64::max);
    let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let rarest = most(|p| p.0).max(10.0);
    let names = [
        "0 %",
        "90 %",
        "99 %",
        "99.9 %",
        "99.99 %",
        "99.999 %",
        "99.9999 %",
    ];
    let ticks = names.iter().zip((0..).map(|n| 10f64.powi(n)));
    let ticks = ticks.filter(|(_, at)| *at <= rarest);
    Chart {
        title: format!("Delay from guest to guest, {}-byte frames", c.traffic.sizes),
        subtitle: format!(
            "{} connections, {} rules; the most is {:.2} Mpps; {}",
            c.traffic.flows, c.rules, r.most_mpps, report.machine.cpu
        ),
        x: Axis {
            label: "share of the frames that took no longer",
            from: 1.0,
            to: rarest,
            scale: Scale::Log,
            ticks: ticks.map(|(name, at)| (at, (*name).to_owned())).collect(),
        },
        y: Axis::log(
            "µs",
            if least.is_finite() {
                least.max(0.01)
            } else {
                1.0
            },
            most(|p| p.1),
        ),
        lines,
        mark: None,
    }
}
