//! Retention: records are moved, never deleted. A prefix of the ledger is copied into a file of its own and sealed; a record
//! says so; only then is it removed here. The daemon may go on writing meanwhile.

use std::fs::File;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};
use serde::Serialize;

use super::Entry;
use super::body::Archived;
use super::clock::Stamp;
use super::error::LedgerError;
use super::record::Hash;
use super::schema::{self, COLUMNS, Meta};
use super::store::{self, Encoded};

/// Records removed in one commit: some 50 ms, for which the daemon's next commit waits.
const REMOVED: i64 = 8192;

/// Up to where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Records with a smaller number.
    Seq(u64),
    /// Records up to the first that was made then or later, by the wall clock.
    Wall(i64),
}

/// What was moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Moved {
    /// The archive.
    pub file: PathBuf,
    /// Its first record.
    pub first: u64,
    /// Its last one.
    pub last: u64,
    /// That one's hash.
    pub last_hash: Hash,
    /// The record that says so.
    pub record: u64,
}

/// Moves the records before `before` of the ledger at `path` into a new file `to`. `who` asks for it, `now`.
///
/// # Errors
/// Nothing was moved; or the archive is there, and what is left of it in the ledger is removed by the next archiving.
pub fn archive(
    path: &Path,
    before: Before,
    to: &Path,
    who: &str,
    now: Stamp,
) -> Result<Moved, LedgerError> {
    // Also says in clear words what is wrong with a file that is none of ours.
    drop(schema::open_read_only(path)?);
    let sqlite = LedgerError::sqlite("archive it", path);
    let mut db = schema::open_to_write(path).map_err(sqlite)?;
    let meta = schema::check(&db, path)?;
    // What an archiving left that was interrupted.
    remove(&db, meta.base_seq).map_err(sqlite)?;
    let last = end(&db, path, &meta, before)?;
    let copied = copy(&db, path, &meta, last, to);
    let last_hash = copied.inspect_err(|_e| {
        // Only what this call made: whatever stood there before was an error.
        let _ = std::fs::remove_file(partial(to));
    })?;

    let tx = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    if schema::check(&tx, path)? != meta {
        return Err(LedgerError::Request {
            path: path.to_owned(),
            what: format!(
                "somebody else took an archive meanwhile; remove {} and try again",
                to.display()
            ),
        });
    }
    let (head, hash, _) = store::last(&tx, path)?;
    let archived = Archived {
        ledger: meta.ledger.to_string(),
        first: (meta.base_seq + 1).unsigned_abs(),
        last: last.unsigned_abs(),
        last_hash: last_hash.to_string(),
        file: to.display().to_string(),
    };
    let (first, last_seq) = (archived.first, archived.last);
    let record = Encoded::new(now, Entry::by(who, archived));
    let (seq, _) = store::insert_one(&tx, (head, hash), &record).map_err(sqlite)?;
    tx.execute(
        "UPDATE meta SET base_seq = ?1, base_hash = ?2",
        (last, last_hash.0),
    )
    .map_err(sqlite)?;
    tx.commit().map_err(sqlite)?;
    remove(&db, last).map_err(sqlite)?;
    Ok(Moved {
        file: to.to_owned(),
        first,
        last: last_seq,
        last_hash,
        record: seq.unsigned_abs(),
    })
}

/// The last record to be moved.
fn end(db: &Connection, path: &Path, meta: &Meta, before: Before) -> Result<i64, LedgerError> {
    let sqlite = LedgerError::sqlite("read it", path);
    let head: i64 = db
        .query_row("SELECT coalesce(max(seq), -1) FROM record", [], |r| {
            r.get(0)
        })
        .map_err(sqlite)?;
    let last = match before {
        Before::Seq(seq) => i64::try_from(seq).unwrap_or(i64::MAX).saturating_sub(1),
        Before::Wall(ns) => {
            let sql =
                "SELECT coalesce(min(seq) - 1, ?2) FROM record WHERE seq > ?3 AND wall_ns >= ?1";
            db.query_row(sql, (ns, head, meta.base_seq), |r| r.get(0))
                .map_err(sqlite)?
        }
    };
    let last = last.min(head);
    if last <= meta.base_seq {
        return Err(LedgerError::Request {
            path: path.to_owned(),
            what: format!(
                "there is nothing to archive: its first record is {}",
                meta.base_seq + 1
            ),
        });
    }
    Ok(last)
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Copies records into a new, sealed file, and checks each: the last one's hash.
fn copy(
    db: &Connection,
    path: &Path,
    meta: &Meta,
    last: i64,
    to: &Path,
) -> Result<Hash, LedgerError> {
    if to.symlink_metadata().is_ok() {
        return Err(LedgerError::Request {
            path: path.to_owned(),
            what: format!("{} exists; name a new file for the archive", to.display()),
        });
    }
    let name = partial(to);
    let write = LedgerError::sqlite("write the archive", &name);
    File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&name)
        .map_err(LedgerError::io("create the archive", &name))?;
    let mut out = schema::open_to_write(&name).map_err(write)?;
    let tx = out.transaction().map_err(write)?;
    schema::create(&tx, meta).map_err(write)?;
    let hash = copy_records(db, path, meta, last, &tx, &name)?;
    tx.execute_batch(schema::SEAL).map_err(write)?;
    tx.commit().map_err(write)?;
    out.close().map_err(|(_, e)| write(e))?;
    let finish = || {
        let file = File::open(&name)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o400))?;
        file.sync_all()?;
        std::fs::rename(&name, to)?;
        // The directory's own entry, too.
        let dir = to.parent().filter(|d| !d.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    };
    finish().map_err(LedgerError::io("finish the archive", to))?;
    Ok(hash)
}

fn copy_records(
    db: &Connection,
    path: &Path,
    meta: &Meta,
    last: i64,
    out: &Connection,
    name: &Path,
) -> Result<Hash, LedgerError> {
    let read = LedgerError::sqlite("read it", path);
    let write = LedgerError::sqlite("write the archive", name);
    let mut insert = out.prepare(store::INSERT).map_err(write)?;
    let sql = format!("SELECT {COLUMNS} FROM record WHERE seq > ?1 AND seq <= ?2 ORDER BY seq");
    let mut select = db.prepare(&sql).map_err(read)?;
    let mut rows = select.query((meta.base_seq, last)).map_err(read)?;
    let (mut seq, mut hash) = (meta.base_seq, meta.base_hash);
    let damaged = |seq, what: &str| LedgerError::Damaged {
        path: path.to_owned(),
        seq,
        what: what.to_owned(),
    };
    while let Some(row) = rows.next().map_err(read)? {
        let row = schema::row(row).map_err(|(_, what)| damaged(seq + 1, &what))?;
        hash = row.chained(&hash);
        if row.seq != seq + 1 || Hash::of(row.hash) != Some(hash) {
            return Err(damaged(
                seq + 1,
                "it is not what was written, and is not archived",
            ));
        }
        seq = row.seq;
        store::insert_row(&mut insert, &row, &hash).map_err(write)?;
    }
    if seq != last {
        return Err(damaged(seq + 1, "it is missing"));
    }
    Ok(hash)
}

/// Removes records that are in an archive, a part at a time, and from their ports' usage.
fn remove(db: &Connection, last: i64) -> rusqlite::Result<()> {
    loop {
        let tx = rusqlite::Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let up_to: Option<i64> = tx.query_row(
            "SELECT max(seq) FROM (SELECT seq FROM record WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
            (last, REMOVED),
            |r| r.get(0),
        )?;
        let Some(up_to) = up_to else { return Ok(()) };
        store::give_back_usage(&tx, up_to)?;
        tx.execute("DELETE FROM record WHERE seq <= ?1", [up_to])?;
        tx.commit()?;
    }
}
