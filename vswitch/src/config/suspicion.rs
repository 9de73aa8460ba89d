//! `[[suspicion]]` and `[[response]]` of `policy.toml`.

use super::policy::{owner, segments, staged};
use super::read::Section;
use crate::event::Detector;
use crate::policy::model::{ANY, SegmentRef};
use crate::policy::suspicion::{
    COUNT_MAX, DISTINCT_MAX, Level, Reaction, Response, Suspicion, Threshold, WITHIN_S_MAX,
};

const DETECTORS: fn() -> [(&'static str, Detector); Detector::COUNT] =
    || Detector::ALL.map(|detector| (detector.name(), detector));

pub(super) fn suspicion(mut table: Section<'_>) -> Suspicion {
    let name = table.required("name", "give it a name");
    let (tenant, of) = (owner(&mut table), whom(&mut table));
    let mut thresholds = Vec::new();
    for detector in Detector::ALL {
        if let Some(section) = table.table(detector.name()) {
            thresholds.push((detector, threshold(section, detector)));
        }
    }
    for field in table.strings("off") {
        let Some(detector) = field.word(&DETECTORS()) else {
            continue;
        };
        if thresholds.iter().any(|(known, _)| *known == detector) {
            let todo = "remove one of the two";
            field.error("it is off, and has a threshold, or is listed twice", todo);
        } else {
            thresholds.push((detector, Threshold::default()));
        }
    }
    table.finish();
    Suspicion {
        name,
        tenant,
        of,
        thresholds,
    }
}

fn whom(table: &mut Section<'_>) -> Vec<SegmentRef> {
    if table.has("of") {
        segments(table, "of")
    } else {
        table.allow(&["of"]);
        vec![ANY.into()]
    }
}

fn threshold(mut table: Section<'_>, detector: Detector) -> Threshold {
    let distinct = (detector as usize) < Detector::DISTINCT;
    let most = u64::from(if distinct { DISTINCT_MAX } else { COUNT_MAX });
    let threshold = Threshold {
        fast: level(&mut table, ("count", "within_s"), most),
        slow: if table.has("slow_count") || table.has("slow_within_s") {
            level(&mut table, ("slow_count", "slow_within_s"), most)
        } else {
            table.allow(&["slow_count", "slow_within_s"]);
            Level::default()
        },
    };
    table.finish();
    threshold
}

fn level(
    table: &mut Section<'_>,
    (count, within_s): (&'static str, &'static str),
    most: u64,
) -> Level {
    for key in [count, within_s] {
        if !table.has(key) {
            let todo = format!("give both, {count} and {within_s}");
            table.error(key, format!("missing key {key:?}"), todo);
        }
    }
    Level {
        count: table.integer(count, 1, most).unwrap_or(1),
        within_s: table
            .integer(within_s, 1, u64::from(WITHIN_S_MAX))
            .unwrap_or(1),
    }
}

pub(super) fn response(mut table: Section<'_>) -> Response {
    let name = table.required("name", "give the response a name");
    let (tenant, of) = (owner(&mut table), whom(&mut table));
    let todo = "name a detector, such as \"port-scan\", or a list of them";
    if !table.has("on") {
        table.error("on", "missing key \"on\"", todo);
    }
    let on = table.one_or_more("on", todo);
    let on = on.iter().filter_map(|field| field.word(&DETECTORS()));
    let on = on.collect();
    table.required("action", "say what is done, such as \"log\" or \"notify\"");
    let action = table
        .string("action")
        .and_then(|word| word.word(&Reaction::ALL.map(|action| (action.name(), action))));
    // Where it is wrong, nothing more is said of what belongs to it.
    let contains = action.is_none_or(Reaction::contains);
    if !contains {
        let todo = "remove it, or use action = \"ask\"";
        for (key, what) in [
            ("for_s", "it does nothing that could end"),
            ("share_percent", "it takes nothing away from anybody"),
        ] {
            table.refuse(key, what, todo);
        }
    }
    if action.is_some_and(|action| !action.cuts()) {
        let todo = "remove it, or use action = \"quarantine\" or \"restart\"";
        table.refuse("keep", "it cuts nothing that could be kept", todo);
    }
    if action.is_some_and(|action| action != Reaction::Restart) {
        let todo = "remove it, or use action = \"restart\"";
        table.refuse("again_s", "it restarts nobody", todo);
    }
    if action.is_some_and(Reaction::cuts) {
        let todo = "remove it: `vswitch workload release` ends a quarantine";
        table.refuse("for_s", "a quarantine does not end by itself", todo);
    }
    let limit = match table.table("limit") {
        Some(mut limit) => {
            let level = level(&mut limit, ("count", "within_s"), u64::from(COUNT_MAX));
            limit.finish();
            level
        }
        None if contains => Response::LIMIT,
        None => Level::default(),
    };
    let response = Response {
        name,
        tenant,
        on,
        of,
        action: action.unwrap_or(Reaction::Log),
        again_s: table
            .integer("again_s", 1, u64::from(Response::AGAIN_S_MAX))
            .unwrap_or(Response::AGAIN_S),
        keep: table.parsed(
            "keep",
            "write WORKLOAD:SERVICE or SEGMENT:SERVICE, such as \"db:tcp/5432\"",
        ),
        for_s: table
            .integer("for_s", 1, u64::from(WITHIN_S_MAX))
            .unwrap_or(Response::FOR_S),
        share_percent: table
            .integer("share_percent", 1, 100)
            .unwrap_or(Response::SHARE_PERCENT),
        limit,
        staged: staged(&mut table),
    };
    table.finish();
    response
}
