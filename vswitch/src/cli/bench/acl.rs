//! `vswitch bench acl` as a person reads it.

use std::fmt::Write as _;

use super::{header, summaries};
use crate::bench::{Acl, Report};

pub(super) fn show(report: &Report<Acl>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "the classifier alone, {} rules of {}, {} KiB to answer from",
        r.rule_count,
        c.rules.display(),
        r.bytes.div_ceil(1024),
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("a question of a burst, ns", &r.burst_ns, 1),
        ("a single question, ns", &r.single_ns, 1),
        ("build, s", &r.build_s, 4),
        ("build after one rule changed, s", &r.change_s, 6),
        ("a question of a burst then, ns", &r.changed_ns, 1),
    ]);
    let _ = writeln!(
        out,
        "\n{} rules changed, one at a time; {} of these changes took a whole build",
        r.changes, r.rebuilt,
    );
    let _ = writeln!(
        out,
        "{} of {} questions meet a rule (15 of 16 are drawn from the rules, one is any packet); {} compared with a linear \
         search: no difference",
        r.matched, c.questions, r.checked,
    );
    out
}
