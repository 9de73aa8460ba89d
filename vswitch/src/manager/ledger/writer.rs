//! The writer's thread: takes what waits, adds what the ledger has to say itself, writes it in one commit, and answers.
//!
//! When the disk does not take a batch, its ordinary records are refused, the ballast is given up, and the reserved ones are
//! tried again. From then on ordinary records are refused at the door until the disk takes a record that says so.

use std::sync::Arc;

use super::anchor::Beacon;
use super::ballast::Ballast;
use super::body::{Body, Class, ClockStep, Lost, Repaired};
use super::clock::{Stamp, step};
use super::error::{LedgerError, Refused};
use super::queue::{Pending, Queue, Reply, Room, Work};
use super::store::{Encoded, Store};
use super::{COMPONENT, Entry};

/// The disk does not take ordinary records.
#[derive(Debug)]
struct Trouble {
    what: String,
    since_ns: i64,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) queue: Arc<Queue>,
    pub(super) beacon: Arc<Beacon>,
    store: Store,
    ballast: Ballast,
    max_bytes: u64,
    trouble: Option<Trouble>,
    /// When the last record was made.
    last: Stamp,
}

/// What room there is for ordinary records in a file of this size.
pub(super) fn room(used_bytes: u64, max_bytes: u64) -> Room {
    if used_bytes < max_bytes {
        Room::Enough
    } else {
        Room::Size
    }
}

impl Writer {
    pub(super) fn new(
        queue: Arc<Queue>,
        beacon: Arc<Beacon>,
        store: Store,
        ballast: Ballast,
        max_bytes: u64,
    ) -> Self {
        Writer {
            last: store.last_stamp(),
            queue,
            beacon,
            store,
            ballast,
            max_bytes,
            trouble: None,
        }
    }

    /// Takes the ballast for the first time. Without it the ledger begins in the trouble that it is against.
    pub(super) fn take_ballast(&mut self, now: &Stamp) {
        if let Err(e) = self.ballast.take() {
            let what = format!("no room for the ballast: {e}");
            tracing::error!("ledger: {what}; until there is, what must be recorded is denied");
            self.trouble = Some(Trouble {
                what,
                since_ns: now.wall_ns,
            });
            self.queue.set_room(Room::Disk, None);
        }
    }

    /// Runs until the ledger is closed.
    pub(super) fn run(mut self) {
        loop {
            let restless = self.trouble.is_some() || self.queue.room() != Room::Enough;
            let work = self.queue.next(restless);
            let last = work.last;
            self.work(work);
            if last {
                break;
            }
        }
        self.beacon.close();
    }

    fn work(&mut self, work: Work) {
        if let Some(trouble) = self.trouble.take()
            && !self.repair(&trouble, work.now)
        {
            self.trouble = Some(trouble);
        }
        let mut batch = Vec::with_capacity(work.batch.len() + 2);
        let mut unwritten = Vec::new();
        for pending in work.batch {
            // Taken just before the trouble began.
            if self.trouble.is_some() && pending.record.class == Class::Ordinary {
                unwritten.push(pending);
                continue;
            }
            batch.extend(self.step_before(pending.record.stamp));
            batch.push(pending);
        }
        self.queue.unwritten(unwritten, Refused::Disk);
        if let Some(lost) = &work.lost {
            batch.extend(self.step_before(work.now));
            batch.push(own(work.now, lost.clone()));
        }
        if batch.is_empty() {
            self.look();
        } else {
            self.write(batch, work.lost);
        }
    }

    /// The record of a clock that was moved, if it was.
    fn step_before(&mut self, stamp: Stamp) -> Option<Pending> {
        let before = std::mem::replace(&mut self.last, stamp);
        let expected_ns = step(&before, &stamp)?;
        let found_ns = stamp.wall_ns;
        Some(own(
            stamp,
            ClockStep {
                expected_ns,
                found_ns,
            },
        ))
    }

    fn write(&mut self, batch: Vec<Pending>, lost: Option<Lost>) {
        match self.append(&batch) {
            Ok(first) => self.queue.written(batch, first),
            Err(e) => {
                let now = batch.first().map_or(self.last, |p| p.record.stamp);
                self.in_trouble(&e, &now);
                let (reserved, ordinary) = batch
                    .into_iter()
                    .partition::<Vec<_>, _>(|p| p.record.class == Class::Reserved);
                self.queue.unwritten(ordinary, Refused::Disk);
                if reserved.is_empty() {
                    return;
                }
                match self.append(&reserved) {
                    Ok(first) => self.queue.written(reserved, first),
                    Err(e) => {
                        tracing::error!(
                            "{e}; {} records that must not be lost are",
                            reserved.len()
                        );
                        self.queue.unwritten(reserved, Refused::Disk);
                        if let Some(lost) = lost {
                            self.queue.still_lost(lost);
                        }
                    }
                }
            }
        }
    }

    fn append(&mut self, batch: &[Pending]) -> Result<u64, LedgerError> {
        let (first, changed) = self.store.append(batch.iter().map(|p| &p.record))?;
        self.beacon.moved(self.store.head());
        self.tell_room(changed);
        Ok(first)
    }

    fn tell_room(&self, changed: bool) {
        let room = match self.trouble {
            Some(_) => Room::Disk,
            None => room(self.store.used_bytes(), self.max_bytes),
        };
        self.queue.set_room(room, changed.then_some(&self.store));
    }

    fn in_trouble(&mut self, e: &LedgerError, now: &Stamp) {
        if self.trouble.is_none() {
            tracing::error!("{e}; until it does, what must be recorded is denied");
            self.trouble = Some(Trouble {
                what: e.to_string(),
                since_ns: now.wall_ns,
            });
        }
        self.queue.set_room(Room::Disk, None);
        self.ballast.give_up();
    }

    /// Whether the disk has room again, and took the record of it.
    fn repair(&mut self, trouble: &Trouble, now: Stamp) -> bool {
        if self.ballast.take_again().is_err() {
            return false;
        }
        let record = Repaired {
            trouble: trouble.what.clone(),
            since_ns: trouble.since_ns,
        };
        let step = self.step_before(now);
        let records: Vec<_> = step.into_iter().chain([own(now, record)]).collect();
        match self.append(&records) {
            Ok(_) => {
                tracing::info!("the ledger's disk takes records again");
                true
            }
            Err(_) => {
                self.ballast.give_up();
                false
            }
        }
    }

    /// Whether an archive was taken.
    fn look(&mut self) {
        // If it cannot be read nothing is lost yet: the next batch will say so.
        if self.store.look().unwrap_or(false) {
            self.last = self.store.last_stamp();
            self.beacon.moved(self.store.head());
            self.tell_room(true);
        }
    }
}

/// A record of the ledger's own.
fn own(stamp: Stamp, body: impl Into<Body>) -> Pending {
    Pending {
        record: Encoded::new(stamp, Entry::by(COMPONENT, body)),
        reply: Reply::Own,
    }
}
