//! What can be wrong with a ledger, and why a record is not taken.

use std::io;
use std::path::{Path, PathBuf};

/// Why a ledger's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The system says no.
    #[error("ledger {}: cannot {what}: {source}{}", path.display(), advice(.source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else writes it.
    #[error(
        "ledger {}: process {pid} writes to it; stop that one, or name another file in [ledger]", path.display()
    )]
    Busy {
        /// The file.
        path: PathBuf,
        /// Who.
        pid: String,
    },
    /// It is something else.
    #[error("{} is no ledger: {why}; name the file of one", path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// We are too old.
    #[error("ledger {}: its format is {format}, newer than ours; use the `vswitch` that made it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: i64,
    },
    /// It was changed.
    #[error(
        "ledger {}: record {seq}: {what}; see what `vswitch ledger verify` says, keep the file, and start with another one",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The record.
        seq: i64,
        /// What is wrong with it.
        what: String,
    },
    /// SQLite says no.
    #[error("ledger {}: cannot {what}: {source}{}", path.display(), sqlite_advice(.source))]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// What was asked for cannot be done to this ledger.
    #[error("ledger {}: {what}", path.display())]
    Request {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
}

impl LedgerError {
    /// For `map_err`.
    pub(super) fn io<'p>(
        what: &'static str,
        path: &'p Path,
    ) -> impl FnOnce(io::Error) -> Self + 'p {
        move |source| LedgerError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// For `map_err`.
    pub(super) fn sqlite<'p>(
        what: &'static str,
        path: &'p Path,
    ) -> impl Fn(rusqlite::Error) -> Self + Copy + 'p {
        move |source| LedgerError::Sqlite {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

fn advice(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root, or as the user it belongs to",
        io::ErrorKind::NotFound => "; name the file that [ledger] in switch.toml names",
        io::ErrorKind::StorageFull => "; make room on that file system",
        _ => "",
    }
}

fn sqlite_advice(e: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode as Code;
    match e.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => {
            "; the file is damaged, cut off, or something else"
        }
        Some(Code::DiskFull) => "; make room on that file system",
        Some(Code::SystemIoFailure) => "; the file system is full, or does not work",
        Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly) => {
            "; run this as root, or as the user it belongs to"
        }
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => "; somebody else has it, try again",
        _ => "",
    }
}

/// Why a record is not taken. What had to be recorded must then not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// More records wait for the disk than there is room for.
    #[error("more records wait for the disk than there is room for")]
    Queue,
    /// Its port, or workload, has used up its quota.
    #[error("its port has used up its quota of records")]
    Quota,
    /// The ledger has reached its size; archive a part of it.
    #[error("the ledger has reached max_bytes; run `vswitch ledger archive`")]
    Size,
    /// The disk does not take it.
    #[error("the disk does not take records")]
    Disk,
    /// It is longer than a record may be.
    #[error("it is longer than a record may be")]
    TooLong,
    /// The ledger was closed.
    #[error("the ledger was closed")]
    Closed,
}

impl Refused {
    /// Its name in a record of what was lost.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Refused::Queue => "queue",
            Refused::Quota => "quota",
            Refused::Size => "size",
            Refused::Disk => "disk",
            Refused::TooLong => "too_long",
            Refused::Closed => "closed",
        }
    }
}
