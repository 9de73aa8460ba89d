//! `vswitch bench memory` as a person reads it.

use std::fmt::Write as _;

use super::{header, rings};
use crate::bench::{Memory, Report, Resident};
use crate::cli::show::table;

pub(super) fn show(report: &Report<Memory>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "resident memory of a switch with room for {} connections and {} rules, {}",
        c.connections,
        c.rules,
        rings(c.rings)
    );
    let mut out = header(&what, &report.machine);
    let mut t = table(&["MiB", "ALL", "ANONYMOUS", "2 MiB PAGES", "PROGRAM"]);
    let used = format!("two guests, {} connections", r.open);
    let rows = [
        ("before there was a switch", &r.before),
        ("idle, without ports", &r.idle),
        (&used, &r.used),
    ];
    for (
        name,
        Resident {
            total,
            anonymous,
            files,
            huge,
        },
    ) in rows
    {
        let cells = [total, anonymous, huge, files].map(|b| mib(*b));
        t.add_row([name.to_owned()].into_iter().chain(cells));
    }
    let _ = writeln!(
        out,
        "\n{t}\n\n{:.0} bytes by connection there is room for",
        r.by_connection
    );
    out
}

#[allow(clippy::cast_precision_loss)] // far below 2^53
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
