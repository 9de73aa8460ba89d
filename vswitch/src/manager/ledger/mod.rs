//! The ledger: the durable, tamper-evident record of every decision.
//!
//! An SQLite file of numbered records, each with the hash of the one before it ([`record`]), written by one thread of its own
//! in commits that are on disk before they are acknowledged. A caller submits a record and goes on; what became of it comes
//! back through [`Ledger::drain`] after an eventfd was signalled. *What must be recorded is done when its acknowledgement is
//! there, not before; refused, it is not done.*
//!
//! | file | has |
//! |---|---|
//! | [`body`] | the kinds of records |
//! | [`record`] | columns, canonical bytes, hashes |
//! | [`clock`] | both clocks, and steps between them |
//! | `queue`, `quota` | what stands between callers and the writer, and who may have how much of it |
//! | `writer`, `store`, `ballast` | the thread, the file, the room kept for bad days |
//! | [`anchor`] | the head, told outside |
//! | [`reader`], [`verify`], [`archive`] | what the `vswitch ledger` command does |
//!
//! `docs/ledger.md` describes the file for those who check it with programs of their own.

pub mod anchor;
pub mod archive;
mod ballast;
pub mod bindings;
pub mod body;
pub mod case;
pub mod clock;
mod error;
mod queue;
mod quota;
pub mod reader;
pub mod record;
mod schema;
mod store;
#[cfg(test)]
mod tests;
pub mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

pub use body::{Body, Class};
pub use error::{LedgerError, Refused};
pub use quota::Quota;
pub use record::{Head, Record};

use crate::sys::eventfd::EventFd;
use anchor::{Anchor, Beacon};
use ballast::Ballast;
use clock::{Clock, SystemClock};
use queue::{Queue, Reply, Room};
use quota::Accounts;
use store::Store;
use writer::Writer;

/// Who writes the ledger's own records.
const COMPONENT: &str = "ledger";
/// The software, in a ledger's first record.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where a ledger is, and how large it may become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The SQLite file; made when it is not there.
    pub path: PathBuf,
    /// The file that heads are written to, best on another host's mount.
    pub anchor: Option<PathBuf>,
    /// From this size on ordinary records are refused, until an archive is taken. Bytes.
    pub max_bytes: u64,
    /// Kept for reserved records on a full disk, bytes; some 50,000 of them for each 16 MiB.
    pub ballast_bytes: u64,
    /// What one port may have.
    pub quota: Quota,
}

impl Config {
    /// 1 GiB, three million records, is what a `verify` reads in some seconds. Guesses.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Config {
            path: path.into(),
            anchor: None,
            max_bytes: 1 << 30,
            ballast_bytes: 16 << 20,
            quota: Quota::default(),
        }
    }
}

/// A record to be made. Number, times and hash are added by the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Who does it: an authenticated caller, or a part of the switch.
    pub who: String,
    /// The policy in force, 0 before the first.
    pub generation: u64,
    /// The workload it is about, by its qualified name.
    pub workload: Option<String>,
    /// The port it is about; its quota is used.
    pub port: Option<String>,
    /// What happened.
    pub body: Body,
}

impl Entry {
    /// About the switch as a whole, before any policy.
    #[must_use]
    pub fn by(who: impl Into<String>, body: impl Into<Body>) -> Self {
        Entry {
            who: who.into(),
            generation: 0,
            workload: None,
            port: None,
            body: body.into(),
        }
    }

    /// Under this policy.
    #[must_use]
    pub fn generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// About this workload.
    #[must_use]
    pub fn workload(mut self, name: impl Into<String>) -> Self {
        self.workload = Some(name.into());
        self
    }

    /// About this port.
    #[must_use]
    pub fn port(mut self, name: impl Into<String>) -> Self {
        self.port = Some(name.into());
        self
    }
}

/// What became of a record that was submitted with this token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The caller's.
    pub token: u64,
    /// Its number, and it is on disk; or why it is not.
    pub result: Result<u64, Refused>,
}

/// How a ledger is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The last record on disk.
    pub head: Head,
    /// Records refused since it was opened.
    pub refused: u64,
    /// Why ordinary records are refused now, if they are.
    pub refuses: Option<Refused>,
}

/// A ledger that is being written. Dropping it writes what waits, and ends its threads.
///
/// # Thread-safety
/// Any thread may submit. Acknowledgements are for one: the one that waits for the eventfd.
#[derive(Debug)]
pub struct Ledger {
    queue: Arc<Queue>,
    beacon: Arc<Beacon>,
    writer: Option<JoinHandle<()>>,
    anchor: Option<Anchor>,
    after: &'static str,
    bound: Vec<bindings::Bound>,
    quarantined: Vec<bindings::Quarantined>,
}

impl Ledger {
    /// Opens a ledger, or begins one. `wake` is signalled when there is something to [`drain`](Self::drain).
    ///
    /// # Errors
    /// See [`LedgerError`]: what, where, what to do.
    pub fn open(config: &Config, wake: EventFd) -> Result<Self, LedgerError> {
        Self::open_by(config, wake, Box::new(SystemClock::new()))
    }

    /// As [`open`](Self::open), with time from somewhere else.
    ///
    /// # Errors
    /// As there.
    pub fn open_by(
        config: &Config,
        wake: EventFd,
        clock: Box<dyn Clock>,
    ) -> Result<Self, LedgerError> {
        let now = clock.now();
        let ballast = Ballast::beside(&config.path, config.ballast_bytes);
        // On a full disk SQLite cannot even open the file.
        let mut store = Store::open(&config.path, now).or_else(|e| match e {
            LedgerError::Sqlite { .. } => {
                ballast.give_up();
                Store::open(&config.path, now)
            }
            other => Err(other),
        })?;
        let after = match store.last_kind() {
            None => "first",
            Some("stopped") => "stopped",
            Some(_) => "died",
        };
        let bound = store.take_bound();
        let quarantined = store.take_quarantined();
        let room = writer::room(store.used_bytes(), config.max_bytes);
        let accounts = Accounts::new(config.quota, config.max_bytes, store.usage());
        let queue = Arc::new(Queue::new(accounts, room, wake, clock));
        let beacon = Arc::new(Beacon::new(store.head()));
        let mut writer = Writer::new(
            Arc::clone(&queue),
            Arc::clone(&beacon),
            store,
            ballast,
            config.max_bytes,
        );
        writer.take_ballast(&now);
        let failed = LedgerError::io("start its threads", &config.path);
        let anchor = config
            .anchor
            .clone()
            .map(|path| Anchor::spawn(path, Arc::clone(&beacon), Arc::clone(&queue)));
        let thread = std::thread::Builder::new().name("ledger".to_owned());
        let started = anchor
            .transpose()
            .and_then(|anchor| Ok((anchor, thread.spawn(move || writer.run())?)));
        let (anchor, writer) = started.map_err(|e| {
            beacon.close();
            failed(e)
        })?;
        Ok(Ledger {
            queue,
            beacon,
            writer: Some(writer),
            anchor,
            after,
            bound,
            quarantined,
        })
    }

    /// How the run before ended: "first", "stopped", or "died".
    #[must_use]
    pub fn after(&self) -> &'static str {
        self.after
    }

    /// Who was bound to what by walls when it was opened, and which transactions were open.
    #[must_use]
    pub fn bound(&self) -> &[bindings::Bound] {
        &self.bound
    }

    /// Who was in quarantine when it was opened.
    #[must_use]
    pub fn quarantined(&self) -> &[bindings::Quarantined] {
        &self.quarantined
    }

    /// Hands a record to the writer, and never waits. Its acknowledgement will come with `token`; none comes for a record that
    /// is refused here.
    ///
    /// # Errors
    /// [`Refused`]: it will not be recorded.
    pub fn submit(&self, entry: Entry, token: u64) -> Result<(), Refused> {
        self.queue.submit(entry, Reply::Token(token))
    }

    /// As [`submit`](Self::submit), for what nothing waits for.
    ///
    /// # Errors
    /// [`Refused`]: it will not be recorded.
    pub fn note(&self, entry: Entry) -> Result<(), Refused> {
        self.queue.submit(entry, Reply::Nobody)
    }

    /// Records, and waits until it is on disk: its number.
    ///
    /// # Errors
    /// [`Refused`]: it is not recorded.
    pub fn append(&self, entry: Entry) -> Result<u64, Refused> {
        let (reply, answer) = sync_channel(1);
        self.queue.submit(entry, Reply::Wait(reply))?;
        answer.recv().unwrap_or(Err(Refused::Closed))
    }

    /// Acknowledgements since the last call, in the order of the ledger.
    #[must_use]
    pub fn drain(&self) -> Vec<Ack> {
        self.queue.drain()
    }

    /// The last record on disk.
    #[must_use]
    pub fn head(&self) -> Head {
        self.beacon.head()
    }

    /// How it is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            head: self.head(),
            refused: self.queue.refused(),
            refuses: match self.queue.room() {
                Room::Enough => None,
                Room::Size => Some(Refused::Size),
                Room::Disk => Some(Refused::Disk),
            },
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(writer) = self.writer.take() {
            // A panic of that thread was reported by itself.
            let _ = writer.join();
        }
        if let Some(anchor) = &self.anchor {
            anchor.wait();
        }
    }
}
