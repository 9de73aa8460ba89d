//! Whether a ledger is whole: every record as it was written, in its place, none missing between the first and the last; and,
//! with an anchor, none cut off at the end.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::anchor;
use super::bindings;
use super::body::Body;
use super::error::LedgerError;
use super::reader::Reader;
use super::record::{Hash, Head, LedgerId, Row};
use super::schema::{self, COLUMNS};

/// Problems that are told; whoever finds more needs no list.
const MOST: usize = 100;

/// Something that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// In which file.
    pub file: PathBuf,
    /// With which record, if it is one.
    pub seq: Option<i64>,
    /// What.
    pub what: String,
}

/// What an anchor proves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Proof {
    /// The anchor.
    pub file: PathBuf,
    /// Heads in it that are in the ledger as they were then.
    pub heads: u64,
    /// Heads that lie before the files that were given.
    pub before: u64,
    /// Lines that cannot be read.
    pub unreadable: u64,
    /// The last record that the anchor knows: nothing up to it was cut off.
    pub up_to: Option<u64>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Nothing is wrong.
    pub intact: bool,
    /// The ledger's id.
    pub ledger: LedgerId,
    /// The first record that was checked.
    pub first: Option<u64>,
    /// The last one.
    pub last: Option<u64>,
    /// Its hash.
    pub head: Option<Hash>,
    /// How many.
    pub records: u64,
    /// What is wrong: the first hundred.
    pub problems: Vec<Problem>,
    /// How much more.
    pub more_problems: u64,
    /// What the anchor proves, if there is one. Without one nobody can say whether the end was cut off.
    pub anchor: Option<Proof>,
    /// The files do not go back to the first record: what was before is in archives that were not given.
    pub begins_in_archive: bool,
}

/// Checks a ledger, together with archives of it in any order, and held against an anchor.
///
/// # Errors
/// A file that cannot be opened at all. Everything else is in the report.
pub fn verify(
    path: &Path,
    archives: &[PathBuf],
    anchor: Option<&Path>,
) -> Result<Report, LedgerError> {
    let mut files = Vec::new();
    for archive in archives {
        files.push(Reader::open(archive)?);
    }
    files.sort_by_key(|f| f.meta().base_seq);
    let live = Reader::open(path)?;
    let ledger = live.ledger();
    files.push(live);

    let mut check = Check::new(ledger);
    let heads = anchor.map(anchor::read).transpose()?;
    if let Some((heads, file)) = heads.as_ref().zip(anchor) {
        check.expect(&heads.heads, file);
    }
    for file in &files {
        check.file(file);
        if let Err(e) = bindings::read(file.db()) {
            let what = format!("its table of bindings cannot be read: {e}");
            check.problem(file.path(), None, what);
        }
        if let Err(e) = bindings::quarantined(file.db()) {
            let what = format!("its table of quarantine cannot be read: {e}");
            check.problem(file.path(), None, what);
        }
        if is_short(file) == Some(true) {
            check.problem(file.path(), None, "it is shorter than it says");
        }
    }
    let mut report = check.end();
    if let (Some(proof), Some(heads)) = (&mut report.anchor, heads) {
        proof.unreadable = heads.unreadable;
    }
    Ok(report)
}

/// Whether a file lacks its end. While there is a log beside it, its end may be there.
fn is_short(file: &Reader) -> Option<bool> {
    let len = |path: &Path| std::fs::metadata(path).map(|m| m.len()).ok();
    let mut log = file.path().as_os_str().to_owned();
    log.push("-wal");
    if len(Path::new(&log)).is_some_and(|len| len > 0) {
        return None;
    }
    let pragma = |name| {
        let value = file
            .db()
            .pragma_query_value(None, name, |r| r.get::<_, i64>(0));
        value.ok().and_then(|value| u64::try_from(value).ok())
    };
    let says = pragma("page_count")?.checked_mul(pragma("page_size")?)?;
    Some(len(file.path())? < says)
}

/// Where the chain stands.
#[derive(Clone, Copy)]
struct Link {
    seq: i64,
    /// The record's hash as it is stored.
    hash: Hash,
    /// What it should be, when that is something else.
    should_be: Option<Hash>,
}

struct Check {
    report: Report,
    link: Option<Link>,
    /// Heads that are still to come, in their order.
    heads: VecDeque<Head>,
    /// What archived records say: the last record of each archive, and its hash.
    archived: Vec<(u64, String)>,
    /// Where each file begins after an archive.
    bases: Vec<(PathBuf, i64, Hash)>,
}

impl Check {
    fn new(ledger: LedgerId) -> Self {
        Check {
            report: Report {
                intact: true,
                ledger,
                first: None,
                last: None,
                head: None,
                records: 0,
                problems: Vec::new(),
                more_problems: 0,
                anchor: None,
                begins_in_archive: false,
            },
            link: None,
            heads: VecDeque::new(),
            archived: Vec::new(),
            bases: Vec::new(),
        }
    }

    fn problem(&mut self, file: &Path, seq: Option<i64>, what: impl Into<String>) {
        self.report.intact = false;
        if self.report.problems.len() < MOST {
            self.report.problems.push(Problem {
                file: file.to_owned(),
                seq,
                what: what.into(),
            });
        } else {
            self.report.more_problems += 1;
        }
    }

    /// Heads that must be met.
    fn expect(&mut self, heads: &VecDeque<Head>, file: &Path) {
        let ours: Vec<_> = heads
            .iter()
            .filter(|h| h.ledger == self.report.ledger)
            .copied()
            .collect();
        self.report.anchor = Some(Proof {
            file: file.to_owned(),
            heads: 0,
            before: 0,
            unreadable: 0,
            up_to: None,
        });
        if heads.back().map(|h| h.ledger) != Some(self.report.ledger) {
            let what = match heads.back() {
                Some(other) => format!(
                    "the anchor's last head is of another ledger, {}",
                    other.ledger
                ),
                None => "the anchor has no head".to_owned(),
            };
            self.problem(file, None, what);
        }
        let back = ours.windows(2).find(|w| w[1].seq < w[0].seq);
        if let Some([before, after]) = back {
            let what = format!(
                "the anchor's heads go back, from record {} to {}: records were cut off in between",
                before.seq, after.seq
            );
            self.problem(file, signed(after.seq), what);
        }
        self.heads = ours.into();
        self.heads.make_contiguous().sort_by_key(|h| h.seq);
    }

    fn file(&mut self, file: &Reader) {
        let (meta, path) = (file.meta(), file.path());
        if meta.ledger != self.report.ledger {
            self.problem(
                path,
                None,
                format!("it is of another ledger, {}", meta.ledger),
            );
            return;
        }
        match self.link {
            None => {
                self.report.begins_in_archive = meta.base_seq >= 0;
                if meta.base_seq < 0 && meta.base_hash != Hash::default() {
                    self.problem(path, Some(0), "a ledger's first record follows no other");
                }
                self.link = Some(Link {
                    seq: meta.base_seq,
                    hash: meta.base_hash,
                    should_be: None,
                });
            }
            Some(link) if link.seq == meta.base_seq && link.hash == meta.base_hash => {}
            Some(link) => {
                let what = format!(
                    "it begins after record {}, and the file before it ends with record {}{}",
                    meta.base_seq,
                    link.seq,
                    if link.seq < meta.base_seq {
                        ": give the archive between them"
                    } else {
                        ": one of them is damaged, or given twice"
                    }
                );
                self.problem(path, Some(meta.base_seq + 1), what);
                self.link = Some(Link {
                    seq: meta.base_seq,
                    hash: meta.base_hash,
                    should_be: None,
                });
            }
        }
        if meta.base_seq >= 0 {
            self.bases
                .push((path.to_owned(), meta.base_seq, meta.base_hash));
        }
        if let Err(e) = self.records(file) {
            let seq = self.link.map(|l| l.seq + 1);
            let what =
                format!("the file cannot be read from here on: {e}; it is damaged, or was cut off");
            self.problem(path, seq, what);
        }
    }

    /// All records of a file, in one look, so that what is written meanwhile changes nothing.
    fn records(&mut self, file: &Reader) -> rusqlite::Result<()> {
        let path = file.path();
        let lowest: Option<i64> = file
            .db()
            .query_row("SELECT min(seq) FROM record", [], |r| r.get(0))?;
        if let Some(seq) = lowest.filter(|seq| *seq < 0) {
            self.problem(path, Some(seq), "no record has such a number");
        }
        // Those up to the base are in an archive; taking it was interrupted.
        let sql = format!("SELECT {COLUMNS} FROM record WHERE seq > ?1 ORDER BY seq");
        let mut select = file.db().prepare(&sql)?;
        let mut rows = select.query([file.meta().base_seq])?;
        let mut none = true;
        while let Some(row) = rows.next()? {
            none = false;
            let go_on = match schema::row(row) {
                Ok(row) => self.row(path, &row),
                Err((seq, what)) => {
                    self.problem(path, seq, what);
                    let hash = row.get_ref(10).ok();
                    let hash = hash.and_then(|h| Hash::of(h.as_blob().ok()?));
                    let next = self.link.map_or(0, |l| l.seq + 1);
                    // Its neighbours may be whole.
                    self.link = hash.zip(seq).map(|(hash, seq)| Link {
                        seq,
                        hash,
                        should_be: None,
                    });
                    self.report.records += 1;
                    seq == Some(next)
                }
            };
            if !go_on {
                return Ok(());
            }
        }
        if none {
            self.problem(path, None, "it has no records");
        }
        Ok(())
    }

    /// One record; `false` when the file is in such disorder that nothing after it can be found.
    fn row(&mut self, path: &Path, row: &Row<'_>) -> bool {
        let Some(link) = self.link else { return false };
        let next = link.seq + 1;
        if row.seq <= link.seq {
            let what = format!("it stands after record {}: the file is damaged", link.seq);
            self.problem(path, Some(row.seq), what);
            return false;
        }
        let missing = row.seq > next;
        if missing {
            let what = if row.seq - 1 == next {
                "it is missing".to_owned()
            } else {
                format!("the records up to {} are missing", row.seq - 1)
            };
            self.problem(path, Some(next), what);
        }
        let stored = Hash::of(row.hash);
        let computed = row.chained(&link.hash);
        let mut should_be = None;
        if missing {
            // Nothing says what hash it follows.
        } else if stored != Some(computed) {
            // It may follow from what the record before should have been: then that one's hash was changed, and it was
            // reported there.
            let follows = link.should_be.map(|before| row.chained(&before));
            if follows.is_none() || follows != stored {
                should_be = Some(computed);
                self.problem(
                    path,
                    Some(row.seq),
                    "it is not what was written: its hash differs",
                );
            }
        }
        match row.record() {
            Ok(record) => {
                if let Body::Archived(archived) = &record.body {
                    self.archived
                        .push((archived.last, archived.last_hash.clone()));
                }
                if let Body::Genesis(genesis) = &record.body
                    && (record.seq != 0 || genesis.ledger != self.report.ledger.to_string())
                {
                    self.problem(path, Some(row.seq), "it begins another ledger");
                }
            }
            // Once is enough.
            Err(_) if should_be.is_some() => {}
            Err(what) => self.problem(path, Some(row.seq), what),
        }
        if row.seq == 0 && row.kind != "genesis" {
            self.problem(path, Some(0), "it is not the first record of a ledger");
        }
        self.link = Some(Link {
            seq: row.seq,
            hash: stored.unwrap_or(computed),
            should_be,
        });
        self.report.records += 1;
        let seq = row.seq.unsigned_abs();
        self.report.first.get_or_insert(seq);
        self.report.last = Some(seq);
        self.report.head = stored;
        self.meet(path, seq, stored.unwrap_or(computed));
        true
    }

    /// Holds a record against the heads that the anchor knows.
    fn meet(&mut self, path: &Path, seq: u64, hash: Hash) {
        while let Some(head) = self.heads.front().copied().filter(|h| h.seq <= seq) {
            self.heads.pop_front();
            let Some(proof) = &mut self.report.anchor else {
                return;
            };
            if head.seq < seq {
                // Between two files, or missing, which is told.
                proof.before += 1;
            } else if head.hash == hash {
                proof.heads += 1;
                proof.up_to = Some(seq);
            } else {
                let what =
                    "the anchor knows another record of this number: the ledger was rewritten";
                self.problem(path, signed(seq), what);
            }
        }
    }

    fn end(mut self) -> Report {
        if let (Some(head), Some(proof)) = (self.heads.back().copied(), &self.report.anchor) {
            let (file, last) = (proof.file.clone(), self.report.last);
            let what = format!(
                "the anchor knows record {}, and the ledger ends with {}: its end was cut off",
                head.seq,
                last.map_or("none".to_owned(), |seq| format!("record {seq}"))
            );
            self.problem(&file, last.and_then(|seq| signed(seq + 1)), what);
        }
        for (file, seq, hash) in std::mem::take(&mut self.bases) {
            let said = |(last, last_hash): &(u64, String)| {
                signed(*last) == Some(seq) && *last_hash == hash.to_string()
            };
            if !self.archived.iter().any(said) && self.report.last.is_some() {
                let what = format!(
                    "it begins after record {seq}, and no record says that those before were archived"
                );
                self.problem(&file, Some(seq + 1), what);
            }
        }
        self.report
    }
}

fn signed(seq: u64) -> Option<i64> {
    i64::try_from(seq).ok()
}
