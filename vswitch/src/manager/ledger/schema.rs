//! The file: an SQLite database of exactly these tables, opened with every precaution against one that somebody else made.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::error::LedgerError;
use super::record::{Hash, LedgerId, MAX_BODY_BYTES, Row};

/// The format that this program writes.
pub(super) const FORMAT: u32 = 1;

/// How long somebody else may have the file: an archive that is taken removes some thousand records at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a ledger's file consists of. `sqlite_schema` keeps these texts as they are, so a file whose texts differ was made, or
/// changed, by somebody else. `meta` says where the file begins: the record before its first one, which is in an archive (or
/// -1 and zeros). `usage` is what each port's ordinary records take, for its quota: bookkeeping, no record.
///
/// The triggers are against accidents. Against intent there is the chain, and the anchor.
pub(super) const SCHEMA: [&str; 5] = [
    "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), ledger BLOB NOT NULL, format INTEGER NOT NULL, \
     base_seq INTEGER NOT NULL, base_hash BLOB NOT NULL) STRICT",
    "CREATE TABLE usage (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE record (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, wall_ns INTEGER NOT NULL, mono_ns INTEGER NOT NULL, \
     boot BLOB NOT NULL, generation INTEGER NOT NULL, who TEXT NOT NULL, workload TEXT, port TEXT, body TEXT NOT NULL, \
     hash BLOB NOT NULL) STRICT",
    "CREATE TRIGGER record_unchanged BEFORE UPDATE ON record BEGIN \
     SELECT RAISE(ABORT, 'a record is never changed'); END",
    "CREATE TRIGGER record_kept BEFORE DELETE ON record WHEN OLD.seq > (SELECT base_seq FROM meta) BEGIN \
     SELECT RAISE(ABORT, 'a record is never deleted before it is in an archive'); END",
];

/// Who is bound to what, as the records say: written with them, and not lost when they go to an archive. A ledger made before
/// there were walls has none until it is opened to be written.
pub(super) const WALLS: &str = "CREATE TABLE wall (wall TEXT NOT NULL, subject TEXT NOT NULL, side TEXT NOT NULL, \
     state TEXT NOT NULL, since_ns INTEGER NOT NULL, connection TEXT NOT NULL, PRIMARY KEY (wall, subject, side)) \
     STRICT, WITHOUT ROWID";

/// Who is in quarantine, in the same way.
pub(super) const QUARANTINE: &str = "CREATE TABLE quarantine (workload TEXT PRIMARY KEY, since_ns INTEGER NOT NULL, \
     who TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID";

/// In an archive too: it takes no more records.
pub(super) const SEAL: &str = "CREATE TRIGGER record_sealed BEFORE INSERT ON record BEGIN \
     SELECT RAISE(ABORT, 'an archive takes no more records'); END";

/// What [`row`] reads, in its order.
pub(super) const COLUMNS: &str =
    "seq, kind, wall_ns, mono_ns, boot, generation, who, workload, port, body, hash";

/// `meta`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) ledger: LedgerId,
    /// The record before the first one here; -1 when there is none.
    pub(super) base_seq: i64,
    /// Its hash.
    pub(super) base_hash: Hash,
}

/// Opens a file to be read only, and checks that it is a ledger's.
pub(super) fn open_read_only(path: &Path) -> Result<(Connection, Meta), LedgerError> {
    let meta = std::fs::metadata(path).map_err(LedgerError::io("read it", path))?;
    let not = |why: &str| LedgerError::NotALedger {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    // SQLite would wait for whoever writes into a pipe.
    if !meta.is_file() {
        return Err(not("it is no regular file"));
    }
    if meta.len() == 0 {
        return Err(not("it is empty"));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = LedgerError::sqlite("read it", path);
    let db = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    harden(&db).map_err(sqlite)?;
    let meta = check(&db, path)?;
    Ok((db, meta))
}

/// Opens a file that exists, to be written; every commit is on disk when it returns.
pub(super) fn open_to_write(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    harden(&db)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}

/// Settings for a file that anybody may have made: nothing in it is run, and no value in it is larger than ours are.
fn harden(db: &Connection) -> rusqlite::Result<()> {
    db.set_limit(Limit::SQLITE_LIMIT_LENGTH, 16 * limit(MAX_BODY_BYTES))?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.busy_timeout(PATIENCE)?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "mmap_size", 0)?;
    Ok(())
}

fn limit(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

/// Makes an empty file's tables.
pub(super) fn create(db: &Connection, meta: &Meta) -> rusqlite::Result<()> {
    // Records come last in the file: whatever is torn off its end is missed.
    let [begins, usage, records @ ..] = SCHEMA;
    for sql in [begins, usage, WALLS, QUARANTINE]
        .into_iter()
        .chain(records)
    {
        db.execute_batch(sql)?;
    }
    db.execute(
        "INSERT INTO meta VALUES (1, ?1, ?2, ?3, ?4)",
        (meta.ledger.0, FORMAT, meta.base_seq, meta.base_hash.0),
    )?;
    Ok(())
}

/// Makes the tables of bindings and of quarantine, where there are none.
pub(super) fn add_tables(db: &Connection) -> rusqlite::Result<()> {
    let known = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    for (name, sql) in [("wall", WALLS), ("quarantine", QUARANTINE)] {
        if db.query_row(known, [name], |r| r.get::<_, i64>(0))? == 0 {
            db.execute_batch(sql)?;
        }
    }
    Ok(())
}

/// Whether nothing was ever created in the file: a new one, or one whose maker died at once.
pub(super) fn is_fresh(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |r| r.get(0))
}

/// Checks that the file is a ledger's before anything else is asked of it.
pub(super) fn check(db: &Connection, path: &Path) -> Result<Meta, LedgerError> {
    let sqlite = LedgerError::sqlite("read it", path);
    let not = |why: &str| LedgerError::NotALedger {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let mut found = Vec::new();
    {
        let mut schema = db
            .prepare("SELECT sql FROM sqlite_schema")
            .map_err(sqlite)?;
        let mut rows = schema.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let sql: Option<String> = row.get(0).map_err(sqlite)?;
            found.push(sql.unwrap_or_default());
            if found.len() > SCHEMA.len() + 3 {
                break;
            }
        }
    }
    let beside = [SEAL, WALLS, QUARANTINE];
    let known = |sql: &String| SCHEMA.contains(&sql.as_str()) || beside.contains(&sql.as_str());
    if !found.iter().all(known) || !SCHEMA.iter().all(|sql| found.iter().any(|f| f == sql)) {
        return Err(not(
            "its tables and triggers are not those of a ledger, or were changed",
        ));
    }
    let row = db
        .query_row(
            "SELECT ledger, format, base_seq, base_hash FROM meta",
            [],
            |r| {
                let blob = |i| {
                    r.get_ref(i)
                        .map(|v| v.as_blob().unwrap_or_default().to_vec())
                };
                Ok((blob(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?, blob(3)?))
            },
        )
        .optional()
        .map_err(sqlite)?;
    let Some((ledger, format, base_seq, base_hash)) = row else {
        return Err(not("it does not say which ledger it is"));
    };
    if format > i64::from(FORMAT) {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            format,
        });
    }
    match (LedgerId::of(&ledger), Hash::of(&base_hash)) {
        (Some(ledger), Some(base_hash)) if format == i64::from(FORMAT) && base_seq >= -1 => {
            Ok(Meta {
                ledger,
                base_seq,
                base_hash,
            })
        }
        _ => Err(not("what it says of itself cannot be read")),
    }
}

/// A row of [`COLUMNS`].
///
/// # Errors
/// A value of another type than ours: the number of the record (if that is one), and which column.
pub(super) fn row<'r>(r: &'r rusqlite::Row<'_>) -> Result<Row<'r>, (Option<i64>, String)> {
    let seq = match r.get_ref(0) {
        Ok(ValueRef::Integer(seq)) => seq,
        _ => return Err((None, "it has no number".to_owned())),
    };
    let bad = |what: &str| {
        (
            Some(seq),
            format!("its {what} is of another type than ours"),
        )
    };
    let integer = |i, what| match r.get_ref(i) {
        Ok(ValueRef::Integer(n)) => Ok(n),
        _ => Err(bad(what)),
    };
    let text = |i, what| match r.get_ref(i) {
        Ok(ValueRef::Text(t)) => std::str::from_utf8(t).map_err(|_e| bad(what)),
        _ => Err(bad(what)),
    };
    let optional = |i, what| match r.get_ref(i) {
        Ok(ValueRef::Null) => Ok(None),
        _ => text(i, what).map(Some),
    };
    let blob = |i, what| match r.get_ref(i) {
        Ok(ValueRef::Blob(b)) => Ok(b),
        _ => Err(bad(what)),
    };
    Ok(Row {
        seq,
        kind: text(1, "kind")?,
        wall_ns: integer(2, "wall clock")?,
        mono_ns: integer(3, "monotonic clock")?,
        boot: blob(4, "boot")?,
        generation: integer(5, "generation")?,
        who: text(6, "who")?,
        workload: optional(7, "workload")?,
        port: optional(8, "port")?,
        body: text(9, "body")?,
        hash: blob(10, "hash")?,
    })
}
