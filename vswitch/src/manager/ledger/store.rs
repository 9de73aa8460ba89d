//! The ledger's file as its one writer has it: batches in, each one durable when its call returns.
//!
//! Another process may take an archive meanwhile. SQLite keeps the two apart; what the other one changed is read again at
//! the next batch.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};

use super::bindings::{self, Bound, Effect, Quarantined};
use super::body::{Body, Class, Genesis};
use super::clock::Stamp;
use super::error::LedgerError;
use super::record::{Hash, Head, LedgerId, Row};
use super::schema::{self, COLUMNS, FORMAT, Meta};
use super::{Entry, VERSION};
use crate::sys::peer;

/// Pages that are written before they are moved from the log to their place: 2 MiB. The commit that does it takes that much
/// longer: with 16 MiB, the slowest in 100 acknowledgements take more than twice as long in `vswitch bench ledger`.
const CHECKPOINT_PAGES: u32 = 512;
/// A whole record.
pub(super) const INSERT: &str =
    "INSERT INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
/// What a record takes beside its texts, bytes: integers, boot, hash, SQLite's own; measured, rounded up.
const RECORD_BYTES: u64 = 120;

/// A record that waits to be written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) stamp: Stamp,
    pub(super) kind: &'static str,
    pub(super) class: Class,
    pub(super) generation: u64,
    pub(super) who: String,
    pub(super) workload: Option<String>,
    pub(super) port: Option<String>,
    pub(super) body: String,
    pub(super) effect: Option<Effect>,
}

impl Encoded {
    pub(super) fn new(stamp: Stamp, entry: Entry) -> Self {
        let effect = Effect::of(&entry);
        Encoded {
            stamp,
            kind: entry.body.kind(),
            class: entry.body.class(),
            generation: entry.generation,
            who: entry.who,
            workload: entry.workload,
            port: entry.port,
            effect,
            body: entry.body.to_json(),
        }
    }

    /// What it takes on disk, about.
    pub(super) fn size_bytes(&self) -> u64 {
        let texts = [
            Some(&self.who),
            self.workload.as_ref(),
            self.port.as_ref(),
            Some(&self.body),
        ];
        let texts = texts
            .into_iter()
            .flatten()
            .map(|t| t.len() as u64)
            .sum::<u64>();
        RECORD_BYTES + texts
    }

    /// Whose quota an ordinary record is taken from.
    pub(super) fn owner(&self) -> &str {
        owner(self.port.as_deref(), self.workload.as_deref())
    }
}

/// Whose quota a record is taken from: its port's, else its workload's, else everybody's.
pub(super) fn owner<'n>(port: Option<&'n str>, workload: Option<&'n str>) -> &'n str {
    port.or(workload).unwrap_or_default()
}

/// SQLite's integers are signed. Clocks and generations never come near the end.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    db: Connection,
    ledger: LedgerId,
    /// The last record, and when it was made.
    head: (i64, Hash, Stamp),
    /// The kind of the last record that is not the ledger's own, when the file was opened.
    last_kind: Option<String>,
    /// Who was bound to what by walls then.
    bound: Vec<Bound>,
    /// Who was in quarantine then.
    quarantined: Vec<Quarantined>,
    /// Bytes of ordinary records by owner.
    usage: HashMap<String, u64>,
    /// Bytes in use.
    used_bytes: u64,
    /// SQLite's count of what others changed.
    version: i64,
    /// Held for as long as we write.
    _lock: File,
}

impl Store {
    /// Opens the ledger at `path`, or begins one. `now` is the first record's time.
    ///
    /// # Errors
    /// See [`LedgerError`]; a file that exists is left as it is.
    pub(super) fn open(path: &Path, now: Stamp) -> Result<Self, LedgerError> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(LedgerError::io("create its directory", path))?;
        }
        let lock = lock(path)?;
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(LedgerError::NotALedger {
                path: path.to_owned(),
                why: "it is no regular file".to_owned(),
            });
        }
        // SQLite gives its log the mode of the file, and would make the file for everybody to read.
        File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(LedgerError::io("open it", path))?;
        let sqlite = LedgerError::sqlite("open it", path);
        let mut db = schema::open_to_write(path).map_err(sqlite)?;
        // Before anything is changed in a file that is none of ours.
        let fresh = schema::is_fresh(&db).map_err(sqlite)?;
        if !fresh {
            schema::check(&db, path)?;
        }
        db.pragma_update(None, "journal_mode", "WAL")
            .map_err(sqlite)?;
        db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
            .map_err(sqlite)?;
        let log_bytes = 4 * 4096 * i64::from(CHECKPOINT_PAGES);
        db.pragma_update(None, "journal_size_limit", log_bytes)
            .map_err(sqlite)?;
        if fresh {
            begin(&mut db, now).map_err(sqlite)?;
        }
        schema::add_tables(&db).map_err(sqlite)?;
        let meta = schema::check(&db, path)?;
        let bound = bindings::read(&db).map_err(sqlite)?;
        let quarantined = bindings::quarantined(&db).map_err(sqlite)?;
        let mut store = Store {
            path: path.to_owned(),
            db,
            ledger: meta.ledger,
            head: (-1, Hash::default(), now),
            last_kind: None,
            bound,
            quarantined,
            usage: HashMap::new(),
            used_bytes: 0,
            version: 0,
            _lock: lock,
        };
        store.read_again()?;
        store.last_kind = last_kind(&store.db).map_err(sqlite)?;
        Ok(store)
    }

    /// The last record.
    pub(super) fn head(&self) -> Head {
        let (seq, hash, stamp) = self.head;
        Head {
            ledger: self.ledger,
            seq: seq.unsigned_abs(),
            hash,
            wall_ns: stamp.wall_ns,
        }
    }

    /// When the last record was made.
    pub(super) fn last_stamp(&self) -> Stamp {
        self.head.2
    }

    /// The kind of the last record that is not the ledger's own, when the file was opened.
    pub(super) fn last_kind(&self) -> Option<&str> {
        self.last_kind.as_deref()
    }

    /// Who was bound to what when the file was opened; once.
    pub(super) fn take_bound(&mut self) -> Vec<Bound> {
        std::mem::take(&mut self.bound)
    }

    /// Who was in quarantine then; once.
    pub(super) fn take_quarantined(&mut self) -> Vec<Quarantined> {
        std::mem::take(&mut self.quarantined)
    }

    /// Bytes of ordinary records by owner.
    pub(super) fn usage(&self) -> &HashMap<String, u64> {
        &self.usage
    }

    /// Bytes in use, those that an archive has freed not counted.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Writes a batch, and returns the number of its first record when all of it is on disk. `true` with it: somebody else
    /// took an archive, and usage changed.
    ///
    /// # Errors
    /// Nothing of it was written.
    pub(super) fn append<'e>(
        &mut self,
        batch: impl IntoIterator<Item = &'e Encoded>,
    ) -> Result<(u64, bool), LedgerError> {
        let path = &self.path;
        let sqlite = LedgerError::sqlite("write to it", path);
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sqlite)?;
        let version = data_version(&tx).map_err(sqlite)?;
        let changed = version != self.version;
        if changed {
            self.usage = read_usage(&tx).map_err(sqlite)?;
            self.head = last(&tx, path)?;
            self.version = version;
        }
        let mut head = self.head;
        let mut owners: HashMap<&str, u64> = HashMap::new();
        {
            let mut insert = tx.prepare(INSERT).map_err(sqlite)?;
            for e in batch {
                head = insert_after(&mut insert, head, e).map_err(sqlite)?;
                if let Some(effect) = &e.effect {
                    effect.apply(&tx, e.stamp.wall_ns).map_err(sqlite)?;
                }
                if e.class == Class::Ordinary {
                    *owners.entry(e.owner()).or_default() += e.size_bytes();
                }
            }
            let mut usage = tx
                .prepare("INSERT INTO usage VALUES (?1, ?2) ON CONFLICT DO UPDATE SET bytes = ?2")
                .map_err(sqlite)?;
            for (owner, bytes) in &mut owners {
                *bytes += self.usage.get(*owner).copied().unwrap_or(0);
                usage.execute((*owner, signed(*bytes))).map_err(sqlite)?;
            }
        }
        let used_bytes = bytes_in_use(&tx).map_err(sqlite)?;
        tx.commit().map_err(sqlite)?;
        for (owner, bytes) in owners {
            self.usage.insert(owner.to_owned(), bytes);
        }
        let first = self.head.0 + 1;
        (self.head, self.used_bytes) = (head, used_bytes);
        Ok((first.unsigned_abs(), changed))
    }

    /// Looks whether somebody else changed the file; if so, what is known of it is read again.
    pub(super) fn look(&mut self) -> Result<bool, LedgerError> {
        let sqlite = LedgerError::sqlite("read it", &self.path);
        let changed = data_version(&self.db).map_err(sqlite)? != self.version;
        if changed {
            self.read_again()?;
        }
        Ok(changed)
    }

    /// Reads what somebody else may have changed.
    fn read_again(&mut self) -> Result<(), LedgerError> {
        let sqlite = LedgerError::sqlite("read it", &self.path);
        self.head = last(&self.db, &self.path)?;
        self.usage = read_usage(&self.db).map_err(sqlite)?;
        self.used_bytes = bytes_in_use(&self.db).map_err(sqlite)?;
        self.version = data_version(&self.db).map_err(sqlite)?;
        Ok(())
    }
}

/// Takes the lock of a ledger's writer, a file of its own beside it: SQLite has its own use for locks of the ledger.
fn lock(path: &Path) -> Result<File, LedgerError> {
    let mut lock = peer::lock_file(path).map_err(LedgerError::io("create its lock", path))?;
    if !peer::try_lock(&lock).map_err(LedgerError::io("lock it", path))? {
        let mut pid = String::new();
        // Whoever it is may not have said so yet.
        let _ = lock.read_to_string(&mut pid);
        return Err(LedgerError::Busy {
            path: path.to_owned(),
            pid: pid.trim().to_owned(),
        });
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(LedgerError::io("write its lock", path))?;
    Ok(lock)
}

/// Makes an empty file a ledger of one record.
fn begin(db: &mut Connection, now: Stamp) -> rusqlite::Result<()> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let id: [u8; 16] = tx.query_row("SELECT randomblob(16)", [], |r| r.get(0))?;
    let ledger = LedgerId(id);
    let meta = Meta {
        ledger,
        base_seq: -1,
        base_hash: Hash::default(),
    };
    schema::create(&tx, &meta)?;
    let entry = Entry::by(
        "ledger",
        Genesis {
            ledger: ledger.to_string(),
            format: FORMAT,
            version: VERSION.to_owned(),
        },
    );
    insert_one(&tx, (-1, Hash::default()), &Encoded::new(now, entry))?;
    tx.commit()
}

/// Inserts a record after the one with this number and hash, and returns its own.
pub(super) fn insert_one(
    tx: &Transaction<'_>,
    (seq, hash): (i64, Hash),
    e: &Encoded,
) -> rusqlite::Result<(i64, Hash)> {
    let mut insert = tx.prepare(INSERT)?;
    let (seq, hash, _) = insert_after(&mut insert, (seq, hash, e.stamp), e)?;
    Ok((seq, hash))
}

fn insert_after(
    insert: &mut rusqlite::Statement<'_>,
    (seq, before, _): (i64, Hash, Stamp),
    e: &Encoded,
) -> rusqlite::Result<(i64, Hash, Stamp)> {
    let row = Row {
        seq: seq + 1,
        kind: e.kind,
        wall_ns: e.stamp.wall_ns,
        mono_ns: signed(e.stamp.mono_ns),
        boot: &e.stamp.boot,
        generation: signed(e.generation),
        who: &e.who,
        workload: e.workload.as_deref(),
        port: e.port.as_deref(),
        body: &e.body,
        hash: &[],
    };
    let hash = row.chained(&before);
    insert_row(insert, &row, &hash)?;
    Ok((row.seq, hash, e.stamp))
}

/// Inserts a record with its hash, by [`INSERT`].
pub(super) fn insert_row(
    insert: &mut rusqlite::Statement<'_>,
    row: &Row<'_>,
    hash: &Hash,
) -> rusqlite::Result<()> {
    insert.execute((
        row.seq,
        row.kind,
        row.wall_ns,
        row.mono_ns,
        row.boot,
        row.generation,
        row.who,
        row.workload,
        row.port,
        row.body,
        hash.0,
    ))?;
    Ok(())
}

/// Takes the records up to `last` out of their owners' usage, before they are removed.
pub(super) fn give_back_usage(db: &Connection, last: i64) -> rusqlite::Result<()> {
    let mut owners: HashMap<String, i64> = HashMap::new();
    let mut select = db.prepare(
        "SELECT kind, port, workload, length(CAST(who AS BLOB)) + length(CAST(body AS BLOB)) FROM record \
         WHERE seq <= ?1",
    )?;
    let mut rows = select.query([last])?;
    while let Some(row) = rows.next()? {
        if Body::class_of(&row.get::<_, String>(0)?) != Some(Class::Ordinary) {
            continue;
        }
        let (port, workload): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
        let names = [&port, &workload].into_iter().flatten();
        let names = names.map(|n| signed(n.len() as u64)).sum::<i64>();
        let bytes = signed(RECORD_BYTES) + names + row.get::<_, i64>(3)?;
        let owner = owner(port.as_deref(), workload.as_deref());
        *owners.entry(owner.to_owned()).or_default() += bytes;
    }
    let mut usage = db.prepare("UPDATE usage SET bytes = max(0, bytes - ?2) WHERE owner = ?1")?;
    for (owner, bytes) in owners {
        usage.execute((owner, bytes))?;
    }
    Ok(())
}

/// The last record, held against the one before it. A ledger that ends in a damaged record goes no further.
pub(super) fn last(db: &Connection, path: &Path) -> Result<(i64, Hash, Stamp), LedgerError> {
    let sqlite = LedgerError::sqlite("read its last records", path);
    let meta = schema::check(db, path)?;
    let damaged = |seq, what| LedgerError::Damaged {
        path: path.to_owned(),
        seq,
        what,
    };
    let sql = format!(
        "SELECT * FROM (SELECT {COLUMNS} FROM record WHERE seq > ?1 ORDER BY seq DESC LIMIT 2) ORDER BY seq"
    );
    let mut select = db.prepare(&sql).map_err(sqlite)?;
    let mut rows = select.query([meta.base_seq]).map_err(sqlite)?;
    let mut before = (meta.base_seq, meta.base_hash);
    let mut newest = None;
    while let Some(row) = rows.next().map_err(sqlite)? {
        let row = schema::row(row).map_err(|(seq, what)| damaged(seq.unwrap_or(-1), what))?;
        let record = row.record().map_err(|what| damaged(row.seq, what))?;
        let follows = row.seq == before.0 + 1 && row.chained(&before.1) == record.hash;
        before = (row.seq, record.hash);
        newest = Some((record, follows));
    }
    match newest {
        None => Err(damaged(meta.base_seq + 1, "it is missing".to_owned())),
        Some((_, false)) => {
            let what = "it does not follow from the record before it";
            Err(damaged(before.0, what.to_owned()))
        }
        Some((record, true)) => Ok((before.0, record.hash, record.stamp)),
    }
}

/// The kind of the last record that the switch made, not the ledger by itself or an archiving.
fn last_kind(db: &Connection) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT kind FROM record WHERE kind NOT IN \
         ('genesis', 'anchored', 'archived', 'clock_step', 'lost', 'repaired') ORDER BY seq DESC LIMIT 1";
    db.query_row(sql, [], |r| r.get(0)).optional()
}

/// SQLite's count of what other connections changed.
fn data_version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "data_version", |r| r.get(0))
}

fn read_usage(db: &Connection) -> rusqlite::Result<HashMap<String, u64>> {
    let mut select = db.prepare("SELECT owner, bytes FROM usage")?;
    let rows = select.query_map([], |r| {
        Ok((r.get(0)?, r.get::<_, i64>(1)?.max(0).unsigned_abs()))
    })?;
    rows.collect()
}

fn bytes_in_use(db: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name| db.pragma_query_value(None, name, |r| r.get::<_, i64>(0));
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(pages
        .saturating_mul(pragma("page_size")?)
        .max(0)
        .unsigned_abs())
}
