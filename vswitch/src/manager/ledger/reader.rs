//! Reads a ledger, or an archive of one, while others may write to it. Nothing in the file is believed.
//!
//! Records are read some thousand at a time, so that a reader who is slow (a pager) holds no old version of the file, which
//! SQLite would have to keep.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::error::LedgerError;
use super::record::{LedgerId, Record, Row};
use super::schema::{self, COLUMNS, Meta};

/// Records read at once.
const CHUNK: i64 = 4096;

/// No record has this number.
const END: i64 = i64::MAX;

/// Which records are wanted; without any of these, all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this kind.
    pub kind: Option<String>,
    /// About this workload.
    pub workload: Option<String>,
    /// Made at that time or later, by the wall clock.
    pub since_ns: Option<i64>,
}

/// A file that is read.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    db: Connection,
    meta: Meta,
}

impl Reader {
    /// Opens a ledger or an archive.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let (db, meta) = schema::open_read_only(path)?;
        Ok(Reader {
            path: path.to_owned(),
            db,
            meta,
        })
    }

    /// Which ledger it is (of).
    #[must_use]
    pub fn ledger(&self) -> LedgerId {
        self.meta.ledger
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(super) fn db(&self) -> &Connection {
        &self.db
    }

    /// The newest records that are wanted, `limit` at most, the oldest of them first.
    ///
    /// # Errors
    /// The file, or a record in it, cannot be read.
    pub fn newest(&self, filter: &Filter, limit: usize) -> Result<Vec<Record>, LedgerError> {
        let mut found = Vec::new();
        let sql = format!(
            "SELECT {COLUMNS} FROM record WHERE seq < ?1 AND seq > {} ORDER BY seq DESC LIMIT {CHUNK}",
            self.meta.base_seq
        );
        let mut at = Some(END);
        while let Some(below) = at.filter(|_| found.len() < limit) {
            at = self.chunk(&sql, below, |row| {
                if filter.wants(&row) && found.len() < limit {
                    found.push(self.record(&row)?);
                }
                Ok(())
            })?;
        }
        found.reverse();
        Ok(found)
    }

    /// Every record, in order, until `see` has seen enough.
    ///
    /// # Errors
    /// The file, or a record in it, cannot be read; what `see` returns.
    pub fn each<E: From<LedgerError>>(
        &self,
        mut see: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = format!("SELECT {COLUMNS} FROM record WHERE seq > ?1 ORDER BY seq LIMIT {CHUNK}");
        let mut at = Some(self.meta.base_seq);
        while let Some(above) = at {
            let mut records = Vec::new();
            at = self.chunk(&sql, above, |row| {
                records.push(self.record(&row)?);
                Ok(())
            })?;
            records.into_iter().try_for_each(&mut see)?;
        }
        Ok(())
    }

    /// What one statement finds from `at` on; where the next one goes on.
    fn chunk(
        &self,
        sql: &str,
        at: i64,
        mut see: impl FnMut(Row<'_>) -> Result<(), LedgerError>,
    ) -> Result<Option<i64>, LedgerError> {
        let sqlite = LedgerError::sqlite("read it", &self.path);
        let mut select = self.db.prepare(sql).map_err(sqlite)?;
        let mut rows = select.query([at]).map_err(sqlite)?;
        let (mut n, mut last) = (0, (at != END).then_some(at));
        while let Some(row) = rows.next().map_err(sqlite)? {
            let row = schema::row(row).map_err(|(seq, what)| self.damaged(seq, what))?;
            // A file can be damaged so that it would be read for ever.
            let was = last.replace(row.seq);
            if was.is_some_and(|was| was.abs_diff(row.seq) != 1) {
                let what = format!("it stands beside record {}", was.unwrap_or(-1));
                return Err(self.damaged(Some(row.seq), what));
            }
            n += 1;
            see(row)?;
        }
        Ok(last.filter(|_| n == CHUNK))
    }

    fn record(&self, row: &Row<'_>) -> Result<Record, LedgerError> {
        row.record()
            .map_err(|what| self.damaged(Some(row.seq), what))
    }

    fn damaged(&self, seq: Option<i64>, what: String) -> LedgerError {
        LedgerError::Damaged {
            path: self.path.clone(),
            seq: seq.unwrap_or(-1),
            what,
        }
    }
}

impl Filter {
    fn wants(&self, row: &Row<'_>) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == row.kind)
            && (self.workload.is_none() || self.workload.as_deref() == row.workload)
            && self.since_ns.is_none_or(|since| row.wall_ns >= since)
    }
}
