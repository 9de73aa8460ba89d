//! The anchor: where the ledger ends, told to somewhere else, so that nobody can cut its end off unseen.
//!
//! A line of an anchor file is a head: `{"ledger":…,"seq":…,"hash":…,"time":…}`. Lines are only ever added. The file may lie on
//! another host's mount, which may hang: so it has a thread of its own, for which nobody waits.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::body::Anchored;
use super::clock::{date, parse_date};
use super::error::LedgerError;
use super::queue::{Queue, Reply};
use super::record::{Hash, Head, LedgerId};
use super::{COMPONENT, Entry};

/// How often at most a head is written: what a reader of the file may miss.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the end of the switch waits for the last one.
const PATIENCE: Duration = Duration::from_secs(2);
/// A line has about 180 bytes.
const MAX_LINE_BYTES: u64 = 1024;
/// Heads of an anchor file that are used, the last ones: eleven days of one each second.
const MAX_HEADS: usize = 1_000_000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ledger: String,
    seq: u64,
    hash: String,
    time: String,
}

/// The head as a line of an anchor file, without its end.
#[must_use]
pub fn line(head: &Head) -> String {
    let line = Line {
        ledger: head.ledger.to_string(),
        seq: head.seq,
        hash: head.hash.to_string(),
        time: date(head.wall_ns),
    };
    // Plain values with string keys: serialising them cannot fail.
    serde_json::to_string(&line).unwrap_or_default()
}

/// The head that a line tells.
///
/// # Errors
/// It is not such a line.
pub fn parse(line: &str) -> Result<Head, String> {
    let line: Line = serde_json::from_str(line).map_err(|e| e.to_string())?;
    Ok(Head {
        ledger: line.ledger.parse::<LedgerId>()?,
        seq: line.seq,
        hash: line.hash.parse::<Hash>()?,
        wall_ns: parse_date(&line.time)?,
    })
}

/// Adds the head to an anchor file, and returns when it is there.
///
/// # Errors
/// What the system says.
pub fn append(path: &Path, head: &Head) -> io::Result<()> {
    // Opened each time: the file may be on a mount that comes and goes, and be moved away when it has grown.
    let mut file = File::options()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    // A line that was cut off stays one.
    let mut end = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut end)?;
    }
    let begin = if end == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{begin}{}\n", line(head)).as_bytes())?;
    file.sync_data()
}

/// What an anchor file knows.
#[derive(Clone, Debug, Default)]
pub struct Heads {
    /// Heads, the last million, in the order of the file.
    pub heads: VecDeque<Head>,
    /// Lines that are none, such as one that was cut off while it was written.
    pub unreadable: u64,
}

/// Reads an anchor file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<Heads, LedgerError> {
    let failed = LedgerError::io("read the anchor", path);
    let read = || -> io::Result<Heads> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut file = BufReader::new(file);
        let mut found = Heads::default();
        let mut text = Vec::new();
        loop {
            text.clear();
            // A longer line is several that cannot be read.
            if (&mut file)
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut text)?
                == 0
            {
                return Ok(found);
            }
            match std::str::from_utf8(&text)
                .map_err(|_e| String::new())
                .and_then(parse)
            {
                Ok(head) => {
                    if found.heads.len() == MAX_HEADS {
                        found.heads.pop_front();
                    }
                    found.heads.push_back(head);
                }
                Err(_) => found.unreadable += 1,
            }
        }
    };
    read().map_err(failed)
}

#[derive(Debug)]
struct Light {
    head: Head,
    closed: bool,
}

/// The head, for whoever tells it elsewhere.
#[derive(Debug)]
pub(super) struct Beacon {
    light: Mutex<Light>,
    changed: Condvar,
}

impl Beacon {
    pub(super) fn new(head: Head) -> Self {
        Beacon {
            light: Mutex::new(Light {
                head,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Light> {
        self.light.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last record that is on disk.
    pub(super) fn head(&self) -> Head {
        self.lock().head
    }

    pub(super) fn moved(&self, head: Head) {
        self.lock().head = head;
        self.changed.notify_all();
    }

    /// There will be no more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The head when it is another one than `known`, and `pause` is over; `true` with it: the last one.
    fn next(&self, known: Option<Head>, pause: Option<Instant>) -> (Head, bool) {
        let mut light = self.lock();
        loop {
            if light.closed {
                return (light.head, true);
            }
            let left = pause.map(|until| until.saturating_duration_since(Instant::now()));
            light = match left.filter(|left| !left.is_zero()) {
                Some(left) => {
                    let waited = self.changed.wait_timeout(light, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None if known != Some(light.head) => return (light.head, false),
                None => self
                    .changed
                    .wait(light)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The thread that writes an anchor file.
#[derive(Debug)]
pub(super) struct Anchor {
    ended: Receiver<()>,
}

impl Anchor {
    pub(super) fn spawn(path: PathBuf, beacon: Arc<Beacon>, queue: Arc<Queue>) -> io::Result<Self> {
        let (end, ended) = sync_channel(1);
        std::thread::Builder::new()
            .name("ledger-anchor".to_owned())
            .spawn(move || run(&path, &beacon, &queue, &end))?;
        Ok(Anchor { ended })
    }

    /// Waits until the last head is written, but not for ever.
    pub(super) fn wait(&self) {
        if self.ended.recv_timeout(PATIENCE).is_err() {
            tracing::warn!(
                "the ledger's last head is not in its anchor file: the file system does not answer"
            );
        }
    }
}

/// Writes heads until the ledger is closed. Whether that works, when it changes, is a record.
fn run(path: &Path, beacon: &Beacon, queue: &Queue, end: &SyncSender<()>) {
    let tell = |event: &str, reason: Option<String>| {
        let entry = Entry::by(
            COMPONENT,
            Anchored {
                file: path.display().to_string(),
                event: event.to_owned(),
                reason,
            },
        );
        // Refused: there is no place where this could be told.
        let _ = queue.submit(entry, Reply::Nobody);
    };
    let mut known = last_of(path, beacon.head(), &tell);
    let mut works = None;
    let mut pause = None;
    loop {
        let (head, last) = beacon.next(known, pause);
        if known != Some(head) {
            match append(path, &head) {
                Ok(()) => {
                    known = Some(head);
                    if works != Some(true) {
                        tell(if works.is_none() { "begun" } else { "resumed" }, None);
                    }
                    works = Some(true);
                }
                Err(e) => {
                    if works != Some(false) {
                        tracing::error!(
                            "ledger: cannot write to the anchor {}: {e}",
                            path.display()
                        );
                        tell("failed", Some(e.to_string()));
                    }
                    works = Some(false);
                }
            }
            pause = Some(Instant::now() + PERIOD);
        }
        if last {
            break;
        }
    }
    // Somebody waits, or has given up.
    let _ = end.send(());
}

/// The last head in the file, if it is ours. One that is ahead of us, or another ledger's, says that our file is not the one
/// that was there: that is recorded, and told to whoever reads the log.
fn last_of(path: &Path, ours: Head, tell: &impl Fn(&str, Option<String>)) -> Option<Head> {
    let last = read(path).ok()?.heads.pop_back()?;
    let problem = if last.ledger != ours.ledger {
        format!("its last head is of another ledger, {}", last.ledger)
    } else if last.seq > ours.seq || (last.seq == ours.seq && last.hash != ours.hash) {
        format!(
            "its last head is record {}, which this ledger (its last one is {}) does not have: its end was cut off, or it is an \
             older copy",
            last.seq, ours.seq
        )
    } else {
        // The file's times are shorter than ours.
        return Some(if last.seq == ours.seq { ours } else { last });
    };
    tracing::error!(
        "ledger: the anchor {} contradicts: {problem}",
        path.display()
    );
    tell("contradicts", Some(problem));
    None
}

#[cfg(test)]
mod tests {
    use super::{append, line, parse, read};
    use crate::manager::ledger::record::{Hash, Head, LedgerId};

    fn head(seq: u64) -> Head {
        Head {
            ledger: LedgerId([1; 16]),
            seq,
            hash: Hash([2; 32]),
            wall_ns: 1_790_000_000_123_456_000,
        }
    }

    #[test]
    fn heads_come_back_and_damaged_lines_are_counted() {
        assert_eq!(parse(&line(&head(7))), Ok(head(7)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        assert!(read(&path).is_err());
        append(&path, &head(1)).unwrap();
        append(&path, &head(2)).unwrap();
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"\xff\n");
        text.extend(vec![b'x'; 3000]);
        text.extend(&line(&head(3)).as_bytes()[..50]);
        std::fs::write(&path, text).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(Vec::from(found.heads), [head(1), head(2)]);
        assert_eq!(found.unreadable, 4);
        append(&path, &head(4)).unwrap();
        assert_eq!(read(&path).unwrap().heads.pop_back(), Some(head(4)));
        assert!(read(dir.path()).is_err());
    }
}
