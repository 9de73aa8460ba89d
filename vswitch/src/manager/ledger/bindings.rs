//! Who is bound to which side of a wall: what records of walls and transactions say, in a table beside them, so that nobody has
//! to read all records, and archives take nothing away. Written in the same transaction as its record.

use rusqlite::Connection;

use super::body::Body;

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

/// The subject of a row that stands for an open transaction: nobody's, because they begin with what they are.
pub const TRANSACTION: &str = "transaction";

/// The subject of the row that is there while responses to suspicion are stopped: that outlives the switch as bindings do. Its
/// `connection` says why.
pub const RESPONSES: &str = "responses";

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
}

impl Effect {
    pub(super) fn of(body: &Body) -> Option<Self> {
        Some(match body {
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
        }
        .map(|_rows| ())
    }
}

/// All rows; none in a file from before there were walls, or an archive.
pub(super) fn read(db: &Connection) -> rusqlite::Result<Vec<Bound>> {
    let known = "SELECT count(*) FROM sqlite_schema WHERE name = 'wall'";
    if db.query_row(known, [], |r| r.get::<_, i64>(0))? == 0 {
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
