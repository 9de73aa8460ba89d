//! `vswitch bench churn` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, header, on, rings, summaries};
use crate::bench::{Churn, Protocol, Report};

pub(super) fn show(report: &Report<Churn>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let (protocol, table) = match c.protocol {
        Protocol::Udp if r.in_table.is_none() => ("UDP", "each from other ports"),
        Protocol::Udp => ("UDP", "from an empty table"),
        Protocol::Tcp => ("TCP", "each in the place of one that was closed"),
    };
    let what = format!(
        "{} new {protocol} connections a repetition, {table}; {} frames each, {} rules, {}",
        c.connections,
        r.frames_per_connection,
        c.rules,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    let rate = ("connections per second", &r.per_second, 0);
    let cycles = r.cycles_per_connection.as_ref();
    let cycles = cycles.map(|c| ("busy cycles per connection", c, 0));
    out += &summaries(&[rate].into_iter().chain(cycles).collect::<Vec<_>>());
    let _ = match (r.busy, r.in_table) {
        (Some(busy), Some(n)) => writeln!(
            out,
            "\nthe worker was busy {:.0} % of the time; {n} connections in the table at the end",
            100.0 * busy
        ),
        _ => writeln!(out, "\n{}", on(&c.on, r.generator_busy)),
    };
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    out
}
