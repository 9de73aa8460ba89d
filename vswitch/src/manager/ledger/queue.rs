//! What stands between callers, who never wait, and the writer, who waits for the disk.
//!
//! # Thread-safety
//! Any number of threads submit, one takes. The lock is held for as long as it takes to move some records, never while anybody
//! waits for the disk.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::body::{Class, Lost};
use super::clock::{Clock, Stamp};
use super::error::Refused;
use super::quota::{Accounts, Losses};
use super::record::{MAX_BODY_BYTES, MAX_NAME_BYTES};
use super::store::{Encoded, Store};
use super::{Ack, Entry};
use crate::sys::eventfd::EventFd;

/// Records that are under way at once, acknowledgements that nobody fetched included: more than a second's worth at the rate
/// that is promised (50,000 records a second).
pub(super) const CAPACITY: usize = 1 << 16;
/// Of these, for reserved records only.
const RESERVED: usize = CAPACITY / 8;
/// Records of one commit at most: some 30 ms of work, so that whoever comes next does not wait long.
const BATCH: usize = 8192;
/// How long the writer waits for more, when there is little and nobody waits for it: a commit costs about the same for one record
/// and for a hundred, and half as long as it takes (10 ms on a common disk) delays nobody.
const GATHER: Duration = Duration::from_millis(5);
/// With so many records it does not wait.
const ENOUGH: usize = 64;
/// How often the writer looks by itself, while there is something to be looked at.
const TICK: Duration = Duration::from_secs(1);

/// Who wants to know what became of a record.
#[derive(Debug)]
pub(super) enum Reply {
    Nobody,
    /// It is the writer's own, and was never on its way here.
    Own,
    /// Through [`Queue::drain`].
    Token(u64),
    /// Waits for exactly this.
    Wait(SyncSender<Result<u64, Refused>>),
}

/// A record under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) record: Encoded,
    pub(super) reply: Reply,
}

/// Whether there is room for ordinary records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    Enough,
    /// Not until an archive is taken.
    Size,
    /// Not until the disk takes records again.
    Disk,
}

/// What the writer shall do.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) batch: Vec<Pending>,
    pub(super) lost: Option<Lost>,
    pub(super) now: Stamp,
    /// Nothing comes after this.
    pub(super) last: bool,
}

struct Inner {
    queue: VecDeque<Pending>,
    /// Submitted, and neither refused nor fetched.
    under_way: usize,
    acks: Vec<Ack>,
    /// Somebody waits for one of the queue.
    urgent: bool,
    accounts: Accounts,
    losses: Losses,
    refused: u64,
    room: Room,
    closed: bool,
}

/// See the module documentation.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    work: Condvar,
    wake: EventFd,
    clock: Box<dyn Clock>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new(
        accounts: Accounts,
        room: Room,
        wake: EventFd,
        clock: Box<dyn Clock>,
    ) -> Self {
        Queue {
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                under_way: 0,
                acks: Vec::new(),
                urgent: false,
                accounts,
                losses: Losses::default(),
                refused: 0,
                room,
                closed: false,
            }),
            work: Condvar::new(),
            wake,
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock panics half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record for the writer, or refuses it at once.
    pub(super) fn submit(&self, entry: Entry, reply: Reply) -> Result<(), Refused> {
        let mut record = Encoded::new(Stamp::default(), entry);
        let mut inner = self.lock();
        // Under the lock, so that records stand in the order of their times.
        record.stamp = self.clock.now();
        if let Err(why) = inner.admit(&record) {
            let first = !inner.losses.any();
            inner.refuse(why, &record);
            drop(inner);
            if first {
                // There is a loss to be recorded in time.
                self.work.notify_one();
            }
            return Err(why);
        }
        inner.under_way += 1;
        let urgent = !matches!(reply, Reply::Nobody);
        inner.urgent |= urgent;
        inner.queue.push_back(Pending { record, reply });
        let first = inner.queue.len() == 1;
        drop(inner);
        if first || urgent {
            self.work.notify_one();
        }
        Ok(())
    }

    /// What became of records, in the order of the ledger.
    pub(super) fn drain(&self) -> Vec<Ack> {
        let mut inner = self.lock();
        let acks = std::mem::take(&mut inner.acks);
        inner.under_way -= acks.len();
        acks
    }

    /// No more records; the writer ends when it has written what there is.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    /// Records refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }

    pub(super) fn room(&self) -> Room {
        self.lock().room
    }

    /// Waits for something to do. A `restless` writer gets nothing to do after a while, to look by itself.
    pub(super) fn next(&self, restless: bool) -> Work {
        let mut inner = self.lock();
        let mut until = None;
        while inner.queue.is_empty() && !inner.closed {
            if !restless && !inner.losses.any() {
                inner = self
                    .work
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // From the first look on, however often it is woken.
            let until = *until.get_or_insert_with(|| Instant::now() + TICK);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.work.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let until = Instant::now() + GATHER;
        while !inner.urgent && !inner.closed && (1..ENOUGH).contains(&inner.queue.len()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.work.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let now = self.clock.now();
        let n = inner.queue.len().min(BATCH);
        let batch: Vec<_> = inner.queue.drain(..n).collect();
        inner.urgent &= !inner.queue.is_empty();
        let last = inner.closed && inner.queue.is_empty();
        // Losses that a disk without room has caused wait until it has some, or is given up.
        let lost = if inner.room == Room::Disk && !last {
            None
        } else {
            inner.losses.take(now.mono_ns, last)
        };
        Work {
            batch,
            lost,
            now,
            last,
        }
    }

    /// Losses that could not be recorded.
    pub(super) fn still_lost(&self, lost: Lost) {
        self.lock().losses.put_back(lost);
    }

    /// These are written, from `first` on.
    pub(super) fn written(&self, batch: Vec<Pending>, first: u64) {
        self.answer((first..).zip(batch).map(|(seq, p)| (p, Ok(seq))));
    }

    /// These are not.
    pub(super) fn unwritten(&self, batch: Vec<Pending>, why: Refused) {
        self.answer(batch.into_iter().map(|p| (p, Err(why))));
    }

    fn answer(&self, answers: impl Iterator<Item = (Pending, Result<u64, Refused>)>) {
        let mut waiting = Vec::new();
        let mut inner = self.lock();
        let before = inner.acks.len();
        for (pending, result) in answers {
            if let Err(why) = result {
                inner.refuse(why, &pending.record);
                if pending.record.class == Class::Ordinary {
                    let record = &pending.record;
                    inner
                        .accounts
                        .give_back(record.owner(), record.size_bytes());
                }
            }
            match pending.reply {
                Reply::Token(token) => inner.acks.push(Ack { token, result }),
                Reply::Nobody => inner.under_way -= 1,
                Reply::Own => {}
                Reply::Wait(to) => {
                    inner.under_way -= 1;
                    waiting.push((to, result));
                }
            }
        }
        let more = inner.acks.len() > before;
        drop(inner);
        if more {
            self.wake.signal();
        }
        // Last: whoever waited for one record finds all that was acknowledged before it.
        for (to, result) in waiting {
            // He may be gone.
            let _ = to.send(result);
        }
    }

    /// What the writer found out about room, and about usage if an archive was taken.
    pub(super) fn set_room(&self, room: Room, usage_of: Option<&Store>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.room = room;
        if let Some(store) = usage_of {
            inner.accounts.set_usage(store.usage());
            let waiting = inner.queue.iter().map(|p| &p.record);
            for record in waiting.filter(|r| r.class == Class::Ordinary) {
                inner.accounts.add(record.owner(), record.size_bytes());
            }
        }
    }
}

impl Inner {
    fn admit(&mut self, record: &Encoded) -> Result<(), Refused> {
        let names = [
            Some(&record.who),
            record.workload.as_ref(),
            record.port.as_ref(),
        ];
        let long = names
            .into_iter()
            .flatten()
            .any(|n| n.len() > MAX_NAME_BYTES);
        if long || record.body.len() > MAX_BODY_BYTES {
            return Err(Refused::TooLong);
        }
        if self.closed {
            return Err(Refused::Closed);
        }
        if record.class == Class::Reserved {
            return if self.under_way < CAPACITY {
                Ok(())
            } else {
                Err(Refused::Queue)
            };
        }
        match self.room {
            Room::Enough => {}
            Room::Size => return Err(Refused::Size),
            Room::Disk => return Err(Refused::Disk),
        }
        if self.under_way >= CAPACITY - RESERVED {
            return Err(Refused::Queue);
        }
        let now_ns = record.stamp.mono_ns;
        self.accounts
            .spend(record.owner(), record.size_bytes(), now_ns)
    }

    fn refuse(&mut self, why: Refused, record: &Encoded) {
        self.refused += 1;
        self.losses.note(why, record.owner(), &record.stamp);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::body::Stopped;
    use super::super::clock::SystemClock;
    use super::super::quota::Quota;
    use super::*;

    #[test]
    fn what_the_writer_adds_of_its_own_takes_no_place_from_what_is_under_way() {
        let accounts = Accounts::new(Quota::default(), 1 << 20, &HashMap::new());
        let wake = EventFd::new().unwrap();
        let clock = Box::new(SystemClock::new());
        let queue = Queue::new(accounts, Room::Enough, wake, clock);
        let entry = || Entry::by("test", Stopped::default());
        queue.submit(entry(), Reply::Token(7)).unwrap();
        queue.submit(entry(), Reply::Nobody).unwrap();
        let mut batch = queue.next(false).batch;
        let own = Pending {
            record: Encoded::new(Stamp::default(), entry()),
            reply: Reply::Own,
        };
        batch.insert(0, own);
        queue.written(batch, 1);
        assert_eq!(queue.lock().under_way, 1, "the one that nobody has taken");
        let acks = queue.drain();
        assert_eq!((acks.len(), acks[0].token, acks[0].result), (1, 7, Ok(2)));
        assert_eq!(queue.lock().under_way, 0);
    }
}
