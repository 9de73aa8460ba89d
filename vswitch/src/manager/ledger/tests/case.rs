//! What is handed over of one question, and whether that can be changed unseen.

use std::path::{Path, PathBuf};

use super::super::body::{
    PolicyApplied, PortAdded, Question, Started, Verdict, WallCommitted, WallReserved,
};
use super::super::case::{Case, case};
use super::*;

const CONNECTION: &str = "10.0.0.1:40000 > 10.0.0.2:5432";

/// A ledger with one question that matters, between others; its anchor.
fn made(dir: &Path) -> (PathBuf, PathBuf) {
    let config = config(dir);
    let anchor_file = dir.join("anchor");
    let (ledger, _hand) = open(&config);
    let ask = |id: &str, connection: &str| Ask {
        ask: id.to_owned(),
        from: "web-1".to_owned(),
        to: "db-1".to_owned(),
        connection: connection.to_owned(),
        ..Ask::default()
    };
    let port = |name: &str| PortAdded {
        workloads: vec![name.to_owned()],
        ..PortAdded::default()
    };
    let reserved = WallReserved {
        wall: "trading".to_owned(),
        subject: "workload db-1".to_owned(),
        side: "buy".to_owned(),
        connection: CONNECTION.to_owned(),
    };
    let committed = WallCommitted {
        wall: reserved.wall.clone(),
        subject: reserved.subject.clone(),
        side: reserved.side.clone(),
    };
    let verdict = |id: &str| Verdict {
        ask: id.to_owned(),
        verdict: "allow".to_owned(),
        ..Verdict::default()
    };
    let at_once = Verdict {
        question: Some(Question {
            from: "web-1".to_owned(),
            to: "other".to_owned(),
            connection: "at once".to_owned(),
            ..Question::default()
        }),
        ..verdict("dd00000000000000")
    };
    let entries: Vec<Entry> = vec![
        Entry::by("switch", Started::default()),
        Entry::by("files", PolicyApplied::default()),
        Entry::by("files", port("web-1")).port("p1"),
        Entry::by("files", port("db-1")).port("p2"),
        Entry::by("files", port("other")).port("p3"),
        Entry::by("switch", ask("aa00000000000000", "elsewhere")),
        Entry::by("switch", ask("bb00000000000000", CONNECTION)).port("p1"),
        Entry::by("ann", verdict("aa00000000000000")),
        Entry::by("ann", verdict("bb00000000000000")),
        Entry::by("switch", reserved),
        Entry::by("switch", committed),
        Entry::by("manager", at_once),
        Entry::by("switch", Stopped::default()),
    ];
    let mut first = None;
    for entry in entries {
        let seq = ledger.append(entry).unwrap();
        first.get_or_insert(seq);
    }
    // Beside those, the ledger's own first one.
    assert_eq!(first, Some(1));
    drop(ledger);
    let report = verify(&config.path, &[], None).unwrap();
    let head = super::super::Head {
        ledger: report.ledger,
        seq: report.last.unwrap(),
        hash: report.head.unwrap(),
        wall_ns: 0,
    };
    anchor::append(&anchor_file, &head).unwrap();
    (config.path, anchor_file)
}

fn kinds(case: &Case, anchor: Option<&Path>) -> Vec<(u64, &'static str)> {
    let verdict = case.verify(anchor, None).unwrap();
    assert_eq!(verdict.problems, [""; 0]);
    let records = verdict.records.iter();
    records.map(|r| (r.seq, r.body.kind())).collect()
}

fn seqs(case: &Case) -> Vec<u64> {
    kinds(case, None).into_iter().map(|(seq, _)| seq).collect()
}

#[test]
fn a_case_has_all_of_one_question_and_nothing_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, anchor) = made(dir.path());
    let want = [
        (1, "started"),
        (2, "policy_applied"),
        (3, "port_added"),
        (4, "port_added"),
        (7, "ask"),
        (9, "verdict"),
        (10, "wall_reserved"),
        (11, "wall_committed"),
    ];
    for about in ["bb", "bb00000000000000", CONNECTION] {
        let found = case(&ledger, about, None).unwrap();
        assert_eq!(kinds(&found, None), want, "{about}");
        // Without an anchor nothing else is told.
        let told: usize = found.runs.iter().map(|run| run.records.len()).sum();
        assert_eq!(told, want.len());
        let found = case(&ledger, about, Some(&anchor)).unwrap();
        assert_eq!(kinds(&found, Some(&anchor)), want, "{about}");
        let verdict = found.verify(Some(&anchor), None).unwrap();
        assert_eq!(verdict.anchored, Some(want.len()));
    }
    for about in ["dd", "at once"] {
        let found = case(&ledger, about, None).unwrap();
        let want = [1, 2, 3, 5, 12];
        assert_eq!(seqs(&found), want, "{about}");
    }
    for (about, why) in [("cc", "has no question"), ("", "has no question")] {
        let e = case(&ledger, about, None).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
}

#[test]
fn no_byte_of_a_case_is_changed_unseen() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, anchor) = made(dir.path());
    let at = |name: &str| dir.path().join(name);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    std::fs::write(at("key"), key.serialize_pem()).unwrap();
    std::fs::write(at("public"), key.public_key_pem()).unwrap();
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    std::fs::write(at("other"), other.public_key_pem()).unwrap();

    let mut made = case(&ledger, "bb", Some(&anchor)).unwrap();
    let unsigned = made.clone();
    made.sign(&at("key")).unwrap();
    let said = |case: &Case, key: &str| {
        std::fs::write(at("case"), serde_json::to_vec(case).unwrap()).unwrap();
        let read = Case::read(&at("case")).unwrap();
        let verdict = read.verify(Some(&anchor), Some(&at(key))).unwrap();
        assert_eq!(verdict.intact, verdict.problems.is_empty());
        verdict.problems.join("; ")
    };
    assert_eq!(said(&made, "public"), "");
    assert!(said(&made, "other").contains("signed by another key"));
    assert!(said(&unsigned, "public").contains("it is not signed"));

    // Every text of it, one at a time, with and without a signature.
    let text = serde_json::to_string(&unsigned).unwrap();
    let signed = serde_json::to_string(&made).unwrap();
    let mut tried = 0;
    for (n, _) in text.match_indices(['0', 'a', '1']) {
        let mut bytes = text.clone().into_bytes();
        bytes[n] = if bytes[n] == b'0' { b'2' } else { b'0' };
        let Ok(changed) = serde_json::from_slice::<Case>(&bytes) else {
            continue;
        };
        tried += 1;
        // What is asked for is no record: only a signature says that it was this.
        if changed.about == unsigned.about && changed.records == unsigned.records {
            let verdict = changed.verify(Some(&anchor), None).unwrap();
            assert!(
                !verdict.intact,
                "{n}: {:?}",
                text.get(n.saturating_sub(40)..n + 9)
            );
        }
        let mut bytes = signed.clone().into_bytes();
        bytes[n] = if bytes[n] == b'0' { b'2' } else { b'0' };
        let changed: Case = serde_json::from_slice(&bytes).unwrap();
        assert!(
            !changed
                .verify(Some(&anchor), Some(&at("public")))
                .unwrap()
                .intact,
            "{n}"
        );
    }
    assert!(tried > 100, "{tried}");

    // A rewritten ledger has other heads.
    let other = dir.path().join("other-ledger");
    std::fs::create_dir(&other).unwrap();
    let (_, anchor) = super::case::made(&other);
    let verdict = unsigned.verify(Some(&anchor), None).unwrap();
    assert!(
        verdict.problems[0].contains("the anchor has no such head"),
        "{verdict:?}"
    );
    assert!(
        made.sign(&at("public"))
            .unwrap_err()
            .to_string()
            .contains("no Ed25519 key")
    );
    std::fs::write(at("case"), "{}").unwrap();
    assert!(
        Case::read(&at("case"))
            .unwrap_err()
            .to_string()
            .contains("it is no case")
    );
}
