//! The ledger as its callers and readers see it. Time is a hand that is moved; nothing waits for it.

mod case;
mod damage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::archive::{Before, archive};
use super::body::{Ask, Body, Stopped};
use super::clock::{Clock, Stamp};
use super::reader::{Filter, Reader};
use super::verify::{Report, verify};
use super::{Config, Entry, Ledger, Quota, Record, Refused, anchor};
use crate::sys::eventfd::EventFd;

const S: u64 = 1_000_000_000;

/// A clock that stands until it is moved.
#[derive(Clone, Default)]
struct Hand {
    mono_ns: Arc<AtomicU64>,
    wall_off_ns: Arc<AtomicI64>,
}

impl Hand {
    fn pass(&self, ns: u64) {
        self.mono_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Moves the wall clock alone.
    fn set(&self, ns: i64) {
        self.wall_off_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> Stamp {
        let mono_ns = self.mono_ns.load(Ordering::Relaxed);
        let off = self.wall_off_ns.load(Ordering::Relaxed);
        Stamp {
            wall_ns: 1_790_000_000_000_000_000 + off + i64::try_from(mono_ns).unwrap(),
            mono_ns,
            boot: [7; 16],
        }
    }
}

fn config(dir: &Path) -> Config {
    Config {
        ballast_bytes: 1 << 16,
        ..Config::new(dir.join("ledger.db"))
    }
}

fn open(config: &Config) -> (Ledger, Hand) {
    let hand = Hand::default();
    let ledger = Ledger::open_by(config, EventFd::new().unwrap(), Box::new(hand.clone()));
    (ledger.unwrap(), hand)
}

fn stopped(reason: &str) -> Entry {
    Entry::by(
        "test",
        Stopped {
            reason: reason.to_owned(),
        },
    )
}

fn ask(port: &str, n: u64) -> Entry {
    let ask = Ask {
        ask: n.to_string(),
        ..Ask::default()
    };
    Entry::by("test", ask)
        .port(port)
        .workload("w")
        .generation(3)
}

fn records(path: &Path) -> Vec<Record> {
    let reader = Reader::open(path).unwrap();
    let newest = reader.newest(&Filter::default(), usize::MAX).unwrap();
    let mut each = Vec::new();
    let all = reader.each(|record| -> Result<(), super::LedgerError> {
        each.push(record);
        Ok(())
    });
    all.unwrap();
    assert_eq!(newest, each, "two ways to read the same");
    each
}

fn kinds(path: &Path) -> Vec<&'static str> {
    records(path).iter().map(|r| r.body.kind()).collect()
}

fn check(path: &Path) -> Report {
    verify(path, &[], None).unwrap()
}

#[test]
fn what_is_acknowledged_is_there_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let wake = EventFd::new().unwrap();
    let ours = wake.try_clone().unwrap();
    let ledger = Ledger::open(&config, wake).unwrap();
    assert_eq!(ledger.after(), "first");
    assert_eq!(ledger.append(stopped("one")), Ok(1));
    for token in 0..1000 {
        ledger.submit(ask("p", token), token).unwrap();
    }
    assert_eq!(ledger.append(stopped("two")), Ok(1002));
    assert!(ours.drain() > 0);
    let acks = ledger.drain();
    assert_eq!(acks.len(), 1000);
    for (n, ack) in (0..).zip(&acks) {
        assert_eq!((ack.token, ack.result), (n, Ok(n + 2)));
    }
    assert_eq!(ledger.head().seq, 1002);
    // A reader needs nobody to stop writing.
    assert_eq!(records(&config.path).len(), 1003);
    assert!(check(&config.path).intact);
    drop(ledger);

    let ledger = Ledger::open(&config, EventFd::new().unwrap()).unwrap();
    assert_eq!(ledger.after(), "stopped");
    assert_eq!(ledger.append(ask("p", 0)), Ok(1003));
    drop(ledger);
    let (ledger, _hand) = open(&config);
    assert_eq!(ledger.after(), "died");
    drop(ledger);
    let found = records(&config.path);
    let (first, last) = (found.first().unwrap(), found.last().unwrap());
    assert!(matches!(&first.body, Body::Genesis(g) if g.format == 1));
    assert_eq!(last.body, ask("p", 0).body);
    assert_eq!(found[5].port.as_deref(), Some("p"));
    assert_eq!((found[5].generation, found[5].who.as_str()), (3, "test"));
    let report = check(&config.path);
    assert!(report.intact && report.anchor.is_none(), "{report:?}");
    assert_eq!((report.records, report.last), (1004, Some(1003)));
    assert_eq!(report.head, Some(last.hash));
}

#[test]
fn a_filter_finds_what_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (ledger, hand) = open(&config);
    for n in 0..10 {
        ledger.note(ask("p", n)).unwrap();
        hand.pass(S);
        ledger.note(stopped(&n.to_string()).workload("db")).unwrap();
    }
    drop(ledger);
    let reader = Reader::open(&config.path).unwrap();
    let find = |filter: &Filter, limit| {
        let found = reader.newest(filter, limit).unwrap();
        found.iter().map(|r| r.seq).collect::<Vec<_>>()
    };
    let asks = Filter {
        kind: Some("ask".to_owned()),
        ..Filter::default()
    };
    assert_eq!(find(&asks, 3), [15, 17, 19]);
    let db = Filter {
        workload: Some("db".to_owned()),
        since_ns: Some(1_790_000_000_000_000_000 + 9 * 1_000_000_000),
        ..Filter::default()
    };
    assert_eq!(find(&db, 100), [18, 20]);
    assert!(find(&db, 0).is_empty());
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _ledger = open(&config);
    let second = Ledger::open(&config, EventFd::new().unwrap());
    let said = second.unwrap_err().to_string();
    let pid = std::process::id().to_string();
    assert!(said.contains(&pid) && said.contains("ledger.db"), "{said}");
}

#[test]
fn a_record_that_is_too_long_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _hand) = open(&config(dir.path()));
    let long = "x".repeat(70_000);
    assert_eq!(ledger.append(stopped(&long)), Err(Refused::TooLong));
    let nobody = Entry {
        who: long,
        ..stopped("")
    };
    assert_eq!(ledger.note(nobody), Err(Refused::TooLong));
    assert_eq!(ledger.standing().refused, 2);
}

#[test]
fn records_are_not_changed_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (ledger, _hand) = open(&config);
    ledger.append(stopped("one")).unwrap();
    let db = rusqlite::Connection::open(&config.path).unwrap();
    for sql in [
        "UPDATE record SET who = 'x' WHERE seq = 1",
        "DELETE FROM record WHERE seq = 1",
        "DELETE FROM record",
    ] {
        let said = db.execute(sql, []).unwrap_err().to_string();
        assert!(said.contains("a record is never"), "{sql}: {said}");
    }
    assert!(check(&config.path).intact);
}

#[test]
fn a_step_of_the_wall_clock_is_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (ledger, hand) = open(&config);
    ledger.append(stopped("a")).unwrap();
    hand.pass(100 * S);
    hand.set(-400_000_000);
    ledger.append(stopped("less than the bound")).unwrap();
    hand.set(-3_600_000_000_000);
    ledger.append(stopped("back an hour")).unwrap();
    hand.pass(S);
    ledger.append(stopped("and on")).unwrap();
    drop(ledger);
    assert_eq!(
        kinds(&config.path),
        [
            "genesis",
            "stopped",
            "stopped",
            "clock_step",
            "stopped",
            "stopped"
        ]
    );
    let found = records(&config.path);
    let Body::ClockStep(step) = &found[3].body else {
        panic!("{:?}", found[3]);
    };
    assert_eq!(step.found_ns - step.expected_ns, -3_600_000_000_000);
    // Also between two runs: the second hand stands where the first one began.
    let (ledger, _hand) = open(&config);
    ledger.append(stopped("again")).unwrap();
    drop(ledger);
    assert_eq!(kinds(&config.path)[6..], ["clock_step", "stopped"]);
}

#[test]
fn over_its_quota_a_port_is_refused_others_are_not_and_the_loss_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        quota: Quota {
            per_s: 10,
            burst: 100,
            share: 4,
        },
        ..config(dir.path())
    };
    let (ledger, hand) = open(&config);
    hand.pass(S);
    let taken = (0..1000).filter(|n| ledger.submit(ask("loud", *n), *n).is_ok());
    assert_eq!(taken.count(), 100);
    assert!(ledger.append(ask("quiet", 0)).is_ok());
    assert!(ledger.append(stopped("reserved records have none")).is_ok());
    assert_eq!(ledger.standing().refused, 900);
    hand.pass(2 * S);
    assert_eq!(ledger.submit(ask("loud", 0), 0), Ok(()));
    drop(ledger);
    let found = records(&config.path);
    let lost: Vec<_> = found
        .iter()
        .filter_map(|r| match &r.body {
            Body::Lost(lost) => Some(lost),
            _ => None,
        })
        .collect();
    // The writer may have met them in one piece or in several.
    assert_eq!(lost.iter().map(|l| l.count).sum::<u64>(), 900);
    assert_eq!(lost.iter().map(|l| l.owners["loud"]).sum::<u64>(), 900);
    assert!(lost.iter().all(|l| l.reasons.keys().eq(["quota"])));
    assert_eq!(found.iter().filter(|r| r.body.kind() == "ask").count(), 102);
    assert!(check(&config.path).intact);
}

#[test]
fn losses_are_recorded_while_there_are_more_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        quota: Quota {
            burst: 0,
            ..Quota::default()
        },
        ..config(dir.path())
    };
    let (ledger, hand) = open(&config);
    hand.pass(10 * S);
    // A bound on waiting for a second; the writer looks once in one.
    let start = std::time::Instant::now();
    while ledger.head().seq == 0 {
        assert_eq!(ledger.note(ask("loud", 0)), Err(Refused::Quota));
        assert!(start.elapsed().as_secs() < 60, "nothing was recorded");
    }
    drop(ledger);
    assert_eq!(kinds(&config.path)[1], "lost");
}

#[test]
fn a_full_ledger_refuses_ordinary_records_until_an_archive_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        max_bytes: 200_000,
        quota: Quota {
            share: 1,
            ..Quota::default()
        },
        ..config(dir.path())
    };
    let (ledger, hand) = open(&config);
    let refused = (0..10_000).find_map(|n| ledger.append(ask("p", n)).err());
    // By its own account the port has used up its share a little earlier, or later, than the file's pages say.
    assert!(matches!(refused, Some(Refused::Size | Refused::Quota)));
    hand.pass(S);
    let last = ledger.append(stopped("reserved records go on")).unwrap();
    assert!(ledger.append(ask("q", 0)).is_err() || refused == Some(Refused::Quota));

    let to = dir.path().join("archive.db");
    let moved = archive(
        &config.path,
        Before::Seq(last - 10),
        &to,
        "test",
        Stamp::default(),
    );
    let moved = moved.unwrap();
    assert_eq!((moved.first, moved.last), (0, last - 11));
    // The next commit sees what somebody else did.
    let next = ledger.append(stopped("after it")).unwrap();
    assert!(next > moved.record);
    hand.pass(100 * S);
    assert!(ledger.append(ask("p", 1)).is_ok());
    drop(ledger);
    let report = verify(&config.path, std::slice::from_ref(&to), None).unwrap();
    assert!(report.intact && !report.begins_in_archive, "{report:?}");
    assert_eq!(report.first, Some(0));
}

/// A ledger of some records with an anchor, closed.
fn anchored(dir: &Path, n: u64) -> (Config, PathBuf) {
    let anchor = dir.join("anchor");
    let config = Config {
        anchor: Some(anchor.clone()),
        ..config(dir)
    };
    let (ledger, _hand) = open(&config);
    for n in 0..n {
        ledger.append(ask("p", n)).unwrap();
    }
    drop(ledger);
    (config, anchor)
}

#[test]
fn an_anchor_proves_that_nothing_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (config, anchor) = anchored(dir.path(), 20);
    let report = verify(&config.path, &[], Some(&anchor)).unwrap();
    let proof = report.anchor.unwrap();
    assert!(report.intact && proof.heads > 0);
    assert_eq!(proof.up_to, report.last, "the last head is told at the end");

    // Cut off as somebody would who knows how, and hashes hold.
    damage::change(&config.path, |db| {
        db.execute("DELETE FROM record WHERE seq > 15", []).unwrap();
    });
    assert!(check(&config.path).intact, "nothing in the file tells");
    let report = verify(&config.path, &[], Some(&anchor)).unwrap();
    assert!(!report.intact);
    assert!(report.problems[0].what.contains("cut off"), "{report:?}");
    assert_eq!(report.problems[0].seq, Some(16));

    // And grown again, so that the numbers are there.
    let (ledger, _hand) = open(&config);
    for n in 0..20 {
        ledger.append(ask("p", n)).unwrap();
    }
    drop(ledger);
    assert!(check(&config.path).intact);
    let told = kinds(&config.path)
        .iter()
        .filter(|k| **k == "anchored")
        .count();
    assert!(told >= 2, "begun, and that the anchor contradicts");
    assert!(!verify(&config.path, &[], Some(&anchor)).unwrap().intact);
}

#[test]
fn another_ledger_in_its_place_is_found() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, anchor) = anchored(dir.path(), 5);
    let (config, _) = anchored(other.path(), 50);
    let report = verify(&config.path, &[], Some(&anchor)).unwrap();
    assert!(!report.intact);
    assert!(
        report.problems[0].what.contains("another ledger"),
        "{report:?}"
    );
    std::fs::write(&anchor, "").unwrap();
    assert!(!verify(&config.path, &[], Some(&anchor)).unwrap().intact);
}

#[test]
fn an_anchor_that_cannot_be_written_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        anchor: Some(dir.path().join("not/there")),
        ..config(dir.path())
    };
    let (ledger, _hand) = open(&config);
    ledger.append(stopped("one")).unwrap();
    drop(ledger);
    // The thread may have been too late to say so; then the log has it.
    let (ledger, _hand) = open(&config);
    while ledger.head().seq < 2 {
        ledger.append(stopped("more")).unwrap();
    }
    drop(ledger);
    std::fs::create_dir(dir.path().join("not")).unwrap();
    let (ledger, _hand) = open(&config);
    drop(ledger);
    let heads = anchor::read(config.anchor.as_ref().unwrap()).unwrap();
    assert_eq!(heads.heads.back().map(|h| h.seq), check(&config.path).last);
}

#[test]
fn archives_and_ledger_are_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (config, anchor) = anchored(dir.path(), 100);
    let path = &config.path;
    let to = |n: u8| dir.path().join(format!("archive-{n}.db"));
    let (ledger, hand) = open(&config);
    let half_time = hand.now().wall_ns;
    let now = hand.now();
    archive(path, Before::Seq(40), &to(0), "me", now).unwrap();
    ledger.append(stopped("between")).unwrap();
    hand.pass(S);
    ledger.append(stopped("later")).unwrap();
    let moved = archive(path, Before::Wall(half_time + 1), &to(1), "me", now).unwrap();
    assert_eq!(moved.first, 40);
    // Heads are told of between any two.
    assert!(moved.record < ledger.append(stopped("after")).unwrap());
    drop(ledger);

    let found = records(path);
    assert_eq!(found[0].seq, moved.last + 1);
    let said = found.iter().find_map(|r| match &r.body {
        Body::Archived(a) => Some((a, r)),
        _ => None,
    });
    let (said, record) = said.unwrap();
    assert_eq!(record.seq, moved.record);
    assert_eq!((said.first, said.last), (40, moved.last));
    assert_eq!(
        (said.file.as_str(), record.who.as_str()),
        (to(1).to_str().unwrap(), "me")
    );

    let all = verify(path, &[to(1), to(0)], Some(&anchor)).unwrap();
    assert!(all.intact && !all.begins_in_archive, "{all:?}");
    assert_eq!(
        (all.first, all.last, all.records),
        (
            Some(0),
            said.last.checked_add(found.len() as u64),
            all.last.unwrap() + 1
        )
    );
    let alone = verify(path, &[], Some(&anchor)).unwrap();
    assert!(alone.intact && alone.begins_in_archive, "{alone:?}");
    // An archive by itself, too.
    assert!(verify(&to(0), &[], None).unwrap().intact);
    assert_eq!(records(&to(0)).len(), 40);
    let gap = verify(path, &[to(0)], None).unwrap();
    assert!(
        !gap.intact && gap.problems[0].what.contains("between them"),
        "{gap:?}"
    );
    let twice = verify(path, &[to(0), to(0), to(1)], None).unwrap();
    assert!(!twice.intact);

    // It is sealed, and stays as it is.
    let db = rusqlite::Connection::open(to(0)).unwrap();
    for sql in [
        "DELETE FROM record",
        "INSERT INTO record SELECT 1000, kind, wall_ns, mono_ns, boot, generation, who, workload, port, body, hash FROM record LIMIT 1",
    ] {
        assert!(db.execute(sql, []).is_err(), "{sql}");
    }
    let again = archive(path, Before::Seq(moved.last + 5), &to(0), "me", now);
    assert!(again.unwrap_err().to_string().contains("exists"));
    archive(path, Before::Seq(moved.last + 3), &to(3), "me", now).unwrap();
    assert_eq!(open(&config).0.after(), "stopped", "then it was archived");
    let none = archive(path, Before::Seq(3), &to(2), "me", now);
    assert!(none.unwrap_err().to_string().contains("nothing to archive"));
}

#[test]
fn a_damaged_ledger_is_not_archived_and_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = anchored(dir.path(), 20);
    let path = &config.path;
    let spoil = |seq: u64| {
        damage::change(path, |db| {
            db.execute(
                "UPDATE record SET who = 'x' WHERE seq = ?1",
                [seq.cast_signed()],
            )
            .unwrap();
        });
    };
    spoil(7);
    let to = dir.path().join("archive.db");
    let said = archive(path, Before::Seq(10), &to, "me", Stamp::default()).unwrap_err();
    assert!(said.to_string().contains("record 7"), "{said}");
    assert_eq!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|f| {
                f.as_ref()
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .starts_with("archive")
            })
            .count(),
        0
    );
    let (ledger, _hand) = open(&config);
    drop(ledger);
    spoil(check(path).last.unwrap());
    let said = Ledger::open(&config, EventFd::new().unwrap()).unwrap_err();
    assert!(said.to_string().contains("verify"), "{said}");
}
