//! Files that somebody changed, and files that were never ledgers.

use std::path::Path;

use proptest::prelude::*;
use rusqlite::Connection;

use super::{check, config, open, records, stopped};
use crate::manager::ledger::archive::{Before, archive};
use crate::manager::ledger::clock::Stamp;
use crate::manager::ledger::reader::{Filter, Reader};
use crate::manager::ledger::verify::verify;
use crate::manager::ledger::{Config, Entry, Ledger, schema};
use crate::sys::eventfd::EventFd;

/// Changes a file behind the triggers' back.
pub(super) fn change(path: &Path, f: impl FnOnce(&Connection)) {
    let db = Connection::open(path).unwrap();
    let triggers = schema::SCHEMA.iter().filter(|s| s.contains("TRIGGER"));
    db.execute_batch("DROP TRIGGER record_unchanged; DROP TRIGGER record_kept")
        .unwrap();
    f(&db);
    triggers.for_each(|sql| db.execute_batch(sql).unwrap());
}

const COLUMNS: [&str; 11] = [
    "seq",
    "kind",
    "wall_ns",
    "mono_ns",
    "boot",
    "generation",
    "who",
    "workload",
    "port",
    "body",
    "hash",
];

/// Flips a bit of a stored value; `None` when there is none.
fn flip(db: &Connection, seq: i64, column: &str, at: usize) -> Option<i64> {
    use rusqlite::types::Value;
    let read = format!("SELECT {column} FROM record WHERE seq = ?1");
    let value: Value = db.query_row(&read, [seq], |r| r.get(0)).unwrap();
    let flip = |mut bytes: Vec<u8>| {
        let bit = at.checked_rem(8 * bytes.len())?;
        bytes[bit / 8] ^= 1 << (bit % 8);
        Some(bytes)
    };
    let (value, cast) = match value {
        Value::Integer(n) => (Value::Integer(n ^ (1 << (at % 64))), "?2"),
        // Text may be any bytes, once somebody has put them there.
        Value::Text(text) => (Value::Blob(flip(text.into_bytes())?), "CAST(?2 AS TEXT)"),
        Value::Blob(bytes) => (Value::Blob(flip(bytes)?), "?2"),
        Value::Null | Value::Real(_) => return None,
    };
    let write = format!("UPDATE record SET {column} = {cast} WHERE seq = ?1");
    let moved = match value {
        Value::Integer(n) => n,
        _ => seq,
    };
    // Another record has that number.
    db.execute(&write, (seq, value)).ok()?;
    Some(if column == "seq" { moved } else { seq })
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter)
}

fn entry() -> impl Strategy<Value = Entry> {
    let names = (
        text(),
        proptest::option::of(text()),
        proptest::option::of(text()),
    );
    (names, text(), 0u64..1 << 40).prop_map(|((who, workload, port), reason, generation)| Entry {
        who,
        workload,
        port,
        generation,
        ..stopped(&reason)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn records_come_back_and_a_flipped_bit_is_located(
        entries in proptest::collection::vec(entry(), 1..20),
        (which, column, at) in (any::<prop::sample::Index>(), 0..COLUMNS.len(), any::<usize>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (ledger, _hand) = open(&config);
        entries.iter().for_each(|e| ledger.note(e.clone()).unwrap());
        drop(ledger);
        let found = records(&config.path);
        prop_assert_eq!(found.len(), entries.len() + 1);
        for (record, entry) in found[1..].iter().zip(&entries) {
            prop_assert_eq!(&record.who, &entry.who);
            prop_assert_eq!(&record.workload, &entry.workload);
            prop_assert_eq!(&record.port, &entry.port);
            prop_assert_eq!(&record.body, &entry.body);
            prop_assert_eq!(record.generation, entry.generation);
        }
        prop_assert!(check(&config.path).intact);

        let seq = i64::try_from(which.index(found.len())).unwrap();
        let mut moved = None;
        change(&config.path, |db| moved = flip(db, seq, COLUMNS[column], at));
        let report = check(&config.path);
        match moved {
            None => prop_assert!(report.intact, "nothing was flipped: {report:?}"),
            Some(moved) => {
                prop_assert!(!report.intact);
                let located = |s: Option<i64>| s == Some(seq) || s == Some(moved);
                prop_assert!(located(report.problems[0].seq), "{seq} {}: {report:?}", COLUMNS[column]);
            }
        }
    }
}

/// A whole, small ledger in one file, and an anchor.
fn small(dir: &Path) -> Config {
    let config = Config {
        anchor: Some(dir.join("anchor")),
        ..config(dir)
    };
    let (ledger, _hand) = open(&config);
    for n in 0..30 {
        ledger.note(stopped(&format!("reason {n}"))).unwrap();
    }
    drop(ledger);
    config
}

#[test]
fn a_changed_byte_of_the_file_is_found_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let was = records(&config.path);
    let whole = std::fs::read(&config.path).unwrap();
    let changed = dir.path().join("changed.db");
    let mut found = 0;
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&changed, &bytes).unwrap();
        match verify(&changed, &[], config.anchor.as_deref()) {
            Ok(report) if report.intact => assert!(records(&changed) == was, "byte {at}"),
            _ => found += 1,
        }
        // Never a panic, whatever is read.
        let _ = Reader::open(&changed).and_then(|r| r.newest(&Filter::default(), 10));
    }
    assert!(found > 100, "only {found} were found");
}

#[test]
fn a_file_that_was_cut_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let whole = std::fs::read(&config.path).unwrap();
    let cut = dir.path().join("cut.db");
    for len in (0..whole.len()).step_by(512) {
        std::fs::write(&cut, &whole[..len]).unwrap();
        let intact = verify(&cut, &[], None).is_ok_and(|r| r.intact);
        assert!(!intact, "{len} of {} bytes", whole.len());
    }
    // Torn: the end is there, and not what it was.
    let mut torn = whole.clone();
    let from = whole.len() - 2048;
    torn[from..].fill(0);
    std::fs::write(&cut, &torn).unwrap();
    assert!(!verify(&cut, &[], None).is_ok_and(|r| r.intact));
}

#[test]
fn what_is_no_ledger_is_told_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let db = dir.path().join("other.db");
    Connection::open(&db)
        .unwrap()
        .execute_batch(
            "CREATE TABLE record (seq INTEGER PRIMARY KEY); CREATE VIEW meta AS SELECT 1",
        )
        .unwrap();
    let other = std::fs::read(&db).unwrap();
    for bytes in [
        &b""[..],
        b"SQLite format 3\0",
        b"garbage\n",
        &[0; 8192],
        &other,
    ] {
        std::fs::write(&path, bytes).unwrap();
        let said = [
            verify(&path, &[], None).map(drop),
            Reader::open(&path).map(drop),
            archive(
                &path,
                Before::Seq(1),
                &dir.path().join("to"),
                "me",
                Stamp::default(),
            )
            .map(drop),
        ];
        for said in said {
            let said = said.unwrap_err().to_string();
            assert!(said.contains("file"), "{said}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "it was changed");
    }
    for path in [&path, dir.path()] {
        let opened = Ledger::open(&Config::new(path), EventFd::new().unwrap());
        assert!(opened.is_err(), "{}", path.display());
    }
    assert!(std::fs::read(&path).unwrap() == other, "it was changed");
    assert!(verify(&dir.path().join("none"), &[], None).is_err());
    assert!(verify(dir.path(), &[], None).is_err());
    assert!(verify(Path::new("/dev/zero"), &[], None).is_err());
}

#[test]
fn a_trigger_that_somebody_added_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let db = Connection::open(&config.path).unwrap();
    db.execute_batch("CREATE TRIGGER t AFTER INSERT ON record BEGIN DELETE FROM usage; END")
        .unwrap();
    let said = verify(&config.path, &[], None).unwrap_err().to_string();
    assert!(said.contains("were changed"), "{said}");
    assert!(Ledger::open(&config, EventFd::new().unwrap()).is_err());
}
