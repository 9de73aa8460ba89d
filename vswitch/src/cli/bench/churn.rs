//! `vswitch bench churn` as a person reads it.

use std::fmt::Write as _;

use super::{GENERATOR_BOUND, header, rings, summaries};
use crate::bench::{Churn, Protocol, Report};

pub(super) fn show(report: &Report<Churn>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let (protocol, table) = match c.protocol {
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
    out += &summaries(&[
        ("connections per second", &r.per_second, 0),
        ("busy cycles per connection", &r.cycles_per_connection, 0),
    ]);
    let _ = writeln!(
        out,
        "\nthe worker was busy {:.0} % of the time; {} connections in the table at the end",
        100.0 * r.busy,
        r.in_table
    );
    if r.generator_bound {
        let _ = writeln!(out, "{GENERATOR_BOUND}");
    }
    out
}
