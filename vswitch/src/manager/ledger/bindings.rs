//! Who is bound to which side of a wall, and who is in quarantine: what records say of that, in tables beside them, so that nobody has
//! to read all records, and archives take nothing away. Written in the same transaction as its record.

use rusqlite::Connection;

use super::Entry;
use super::body::{Body, Quarantine};
use crate::policy::suspicion::Response;

/// A row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bound {
    /// The wall; of a transaction, followed by a space and its name.
    pub wall: String,
    /// Who; for a transaction that is open, `transaction`.
    pub subject: String,
    /// The side; for a transaction, its workloads.
    pub side: String,
    /// `reserved`, `committed` or `open`.
    pub state: String,
    /// Since when, wall clock.
    pub since_ns: i64,
    /// By which connection.
    pub connection: String,
}

/// Somebody in quarantine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantined {
    /// Who.
    pub workload: String,
    /// Since when, wall clock.
    pub since_ns: i64,
    /// Who did it.
    pub who: String,
    /// What was recorded.
    pub body: Quarantine,
}

/// The subject of a row that stands for an open transaction: nobody's, because they begin with what they are.
pub const TRANSACTION: &str = "transaction";

/// The subject of the row that is there while responses to suspicion are stopped: that outlives the switch as bindings do. Its
/// `connection` says why.
pub const RESPONSES: &str = "responses";

/// The subject of a row that stands for a workload that is frozen, in the same way. The workload is its `side`.
pub const FROZEN: &str = "frozen";

/// The subject of a row that stands for a workload that is being restarted, in the same way. Its `connection` is the record.
pub const RESTARTED: &str = "restarted";

/// The outcome of a restart that has none yet.
pub const BEGUN: &str = "begun";

/// The subject of a row that says when a response to suspicion let a workload go, which it does when that was restarted, in the same way. The
/// workload is its `side`.
pub const LET_GO: &str = "let-go";

/// What a record does to the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Put {
        row: [String; 3],
        state: &'static str,
        /// `None`: that of the reservation.
        connection: Option<String>,
    },
    Remove([String; 3]),
    /// All of a wall's subject, or of the wall.
    RemoveAll(String, Option<String>),
    /// A workload, who did it, and the record.
    Quarantine([String; 3]),
    /// A workload, and who did it.
    Release([String; 2]),
}

impl Effect {
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let workload = || entry.workload.clone();
        Some(match &entry.body {
            Body::Quarantine(_) => {
                Effect::Quarantine([workload()?, entry.who.clone(), entry.body.to_json()])
            }
            Body::Release(_) => Effect::Release([workload()?, entry.who.clone()]),
            Body::WallReserved(b) => Effect::Put {
                row: [&b.wall, &b.subject, &b.side].map(String::clone),
                state: "reserved",
                connection: Some(b.connection.clone()),
            },
            Body::WallCommitted(b) => Effect::Put {
                row: [&b.wall, &b.subject, &b.side].map(String::clone),
                state: "committed",
                connection: None,
            },
            Body::WallReleased(b) => {
                Effect::Remove([&b.wall, &b.subject, &b.side].map(String::clone))
            }
            Body::WallReset(b) => Effect::RemoveAll(b.wall.clone(), Some(b.subject.clone()?)),
            Body::TransactionBegun(b) => Effect::Put {
                row: [
                    format!("{} {}", b.wall, b.transaction),
                    TRANSACTION.to_owned(),
                    b.workloads.join(" "),
                ],
                state: "open",
                connection: Some(String::new()),
            },
            Body::TransactionEnded(b) => {
                Effect::RemoveAll(format!("{} {}", b.wall, b.transaction), None)
            }
            Body::ResponsesSwitched(b) if b.stopped => Effect::Put {
                row: ["", RESPONSES, ""].map(str::to_owned),
                state: "stopped",
                connection: Some(b.reason.clone()),
            },
            Body::Freeze(b) => Effect::Put {
                row: ["".to_owned(), FROZEN.to_owned(), workload()?],
                state: "frozen",
                connection: Some(format!("{} s", b.max_s)),
            },
            Body::Thaw(_) => Effect::Remove(["".to_owned(), FROZEN.to_owned(), workload()?]),
            Body::Restart(b) => {
                let row = ["".to_owned(), RESTARTED.to_owned(), workload()?];
                if b.outcome == BEGUN {
                    Effect::Put {
                        row,
                        state: "begun",
                        connection: Some(entry.body.to_json()),
                    }
                } else {
                    Effect::Remove(row)
                }
            }
            Body::ResponsesSwitched(_) => Effect::Remove(["", RESPONSES, ""].map(str::to_owned)),
            _ => return None,
        })
    }

    pub(super) fn apply(&self, db: &Connection, now_ns: i64) -> rusqlite::Result<()> {
        match self {
            Effect::Put {
                row: [wall, subject, side],
                state,
                connection,
            } => db.execute(
                "INSERT INTO wall VALUES (?1, ?2, ?3, ?4, ?5, coalesce(?6, '')) ON CONFLICT DO UPDATE SET \
                 state = ?4, connection = coalesce(?6, connection)",
                (wall, subject, side, state, now_ns, connection),
            ),
            Effect::Remove([wall, subject, side]) => db.execute(
                "DELETE FROM wall WHERE wall = ?1 AND subject = ?2 AND side = ?3",
                (wall, subject, side),
            ),
            Effect::RemoveAll(wall, subject) => db.execute(
                "DELETE FROM wall WHERE wall = ?1 AND (?2 IS NULL OR subject = ?2)",
                (wall, subject),
            ),
            Effect::Quarantine([workload, who, body]) => db.execute(
                "INSERT OR REPLACE INTO quarantine VALUES (?1, ?2, ?3, ?4)",
                (workload, now_ns, who, body),
            ),
            Effect::Release([workload, who]) => {
                if who.starts_with(Response::ACTOR) {
                    db.execute(
                        "INSERT OR REPLACE INTO wall VALUES ('', ?1, ?2, 'free', ?3, ?4)",
                        (LET_GO, workload, now_ns, who),
                    )?;
                }
                db.execute("DELETE FROM quarantine WHERE workload = ?1", [workload])
            }
        }
        .map(|_rows| ())
    }
}

fn is_there(db: &Connection, table: &str) -> rusqlite::Result<bool> {
    let known = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    let count: i64 = db.query_row(known, [table], |r| r.get(0))?;
    Ok(count != 0)
}

/// Everybody in quarantine; none in a file from before there was any, or an archive.
pub(super) fn quarantined(db: &Connection) -> rusqlite::Result<Vec<Quarantined>> {
    if !is_there(db, "quarantine")? {
        return Ok(Vec::new());
    }
    let mut select = db.prepare("SELECT workload, since_ns, who, body FROM quarantine")?;
    let rows = select.query_map([], |r| {
        let text: String = r.get(3)?;
        let body = serde_json::from_str(&text).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(e))
        })?;
        Ok(Quarantined {
            workload: r.get(0)?,
            since_ns: r.get(1)?,
            who: r.get(2)?,
            body,
        })
    })?;
    rows.collect()
}

/// All rows about walls; none in a file from before there were any, or an archive.
pub(super) fn read(db: &Connection) -> rusqlite::Result<Vec<Bound>> {
    if !is_there(db, "wall")? {
        return Ok(Vec::new());
    }
    let mut select =
        db.prepare("SELECT wall, subject, side, state, since_ns, connection FROM wall")?;
    let rows = select.query_map([], |r| {
        Ok(Bound {
            wall: r.get(0)?,
            subject: r.get(1)?,
            side: r.get(2)?,
            state: r.get(3)?,
            since_ns: r.get(4)?,
            connection: r.get(5)?,
        })
    })?;
    rows.collect()
}
