//! `vswitch bench table` as a person reads it.

use std::fmt::Write as _;

use super::{header, summaries};
use crate::bench::{Report, TableAlone};

pub(super) fn show(report: &Report<TableAlone>) -> String {
    let (c, r) = (&report.config, &report.figures);
    let what = format!(
        "the connection table alone, {} connections (IPv4, UDP) in {} pages, {:.0} bytes mapped for each",
        c.connections,
        if c.huge { "2 MiB" } else { "4 KiB" },
        r.bytes_per_connection,
    );
    let mut out = header(&what, &report.machine);
    out += &summaries(&[
        ("look up in a burst, there, ns", &r.hit_ns, 1),
        ("look up in a burst, not there, ns", &r.miss_ns, 1),
        ("look up singly, there, ns", &r.hit_single_ns, 1),
        ("look up singly, not there, ns", &r.miss_single_ns, 1),
        ("insert, ns", &r.insert_ns, 1),
        ("look up in a burst, then insert, ns", &r.open_ns, 1),
        ("expire, ns", &r.expire_ns, 1),
    ]);
    if let Some(bytes) = r.touched_bytes_per_connection {
        let _ = writeln!(
            out,
            "\nmemory these connections took: {bytes:.0} bytes each"
        );
    }
    let s = &r.stalls;
    let _ = writeln!(
        out,
        "while all expire, a step of a worker's sweep takes: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, at most {:.1} us",
        s.p50_us, s.p99_us, s.p999_us, s.max_us
    );
    if let Some(two) = &r.two_threads {
        let _ = writeln!(
            out,
            "two threads do as much as one: {:.2} times looking up, {:.2} times with one insertion to nine lookups ({:.2} times where nothing is shared: keys made and hashed)",
            two.lookups.median, two.mixed.median, two.keys.median
        );
    }
    if r.refused > 0 {
        let _ = writeln!(out, "{} connections found no room", r.refused);
    }
    out
}
