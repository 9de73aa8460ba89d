//! Any bytes as a ledger's file, and as an anchor: never a panic, never without end; what is found intact is read the same in
//! each way, and follows from what is read.

use std::fs;
use std::path::{Path, PathBuf};

use vswitch::manager::ledger::reader::{Filter, Reader};
use vswitch::manager::ledger::verify::verify;
use vswitch::manager::ledger::{LedgerError, Record, anchor};

/// Longer inputs find nothing shorter ones don't, slowly.
const LONGEST: usize = 64 << 10;

/// SQLite reads files; this one goes with the value, and what SQLite makes beside it.
struct Scratch(PathBuf);

impl Scratch {
    fn of(bytes: &[u8]) -> Self {
        // Threads of one process have names of their own.
        let name = format!(
            "vswitch-fuzz-ledger-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).expect("the temporary directory is writable");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm", "-journal"] {
            let mut name = self.0.as_os_str().to_owned();
            name.push(end);
            let _ = fs::remove_file(name);
        }
    }
}

/// See the module documentation.
pub fn run(input: &[u8]) {
    if input.len() > LONGEST {
        return;
    }
    let file = Scratch::of(input);
    let path = file.0.as_path();
    if let Ok(heads) = anchor::read(path) {
        for head in heads.heads {
            let again = anchor::parse(&anchor::line(&head)).expect("we read what we write");
            assert_eq!((again.seq, again.hash), (head.seq, head.hash));
        }
    }
    let each = each(path);
    let newest = Reader::open(path).and_then(|r| r.newest(&Filter::default(), usize::MAX));
    let filter = Filter {
        kind: Some("stopped".to_owned()),
        ..Filter::default()
    };
    let _ = Reader::open(path).and_then(|r| r.newest(&filter, 3));
    match verify(path, &[], Some(path)) {
        Ok(report) => {
            // An SQLite file is no anchor.
            assert!(!report.intact);
            assert!(!report.problems.is_empty());
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    let Ok(report) = verify(path, &[], None) else {
        return;
    };
    assert_eq!(report.intact, report.problems.is_empty());
    if report.intact {
        let (each, newest) = (each.expect("it is intact"), newest.expect("it is intact"));
        assert_eq!(each, newest);
        assert_eq!(each.len() as u64, report.records);
        assert_eq!(each.first().map(|r| r.seq), report.first);
        assert_eq!(each.last().map(|r| r.seq), report.last);
        assert_eq!(each.last().map(|r| r.hash), report.head);
    }
}

fn each(path: &Path) -> Result<Vec<Record>, LedgerError> {
    let mut records = Vec::new();
    Reader::open(path)?.each(|record| -> Result<(), LedgerError> {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}
