//! `vswitch bench ledger` as a person reads it.

use super::{header, summaries};
use crate::bench::{AckDelays, Recording, Report};

pub(super) fn show(report: &Report<Recording>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "asks and verdicts recorded in {}, {}; {} under way at most",
        c.dir.display(),
        r.file_system,
        c.under_way
    );
    let mut out = header(&what, &report.machine);
    let table = |d: &AckDelays| {
        summaries(&[
            ("records a second", &d.per_s, 0),
            ("until acknowledged, µs: half", &d.p50_us, 0),
            ("99 in 100", &d.p99_us, 0),
            ("999 in 1000", &d.p999_us, 0),
            ("the longest", &d.largest_us, 0),
        ])
    };
    out += "\nas many as it takes";
    out += &table(&r.most);
    out += &format!("\n{} a second offered", c.rate);
    out += &table(&r.paced);
    out += &summaries(&[
        ("bytes a record", &r.record_bytes, 0),
        ("records verified a second", &r.verified_per_s, 0),
    ]);
    out
}
