//! How many connections may be open, so that one workload cannot fill the table.
//!
//! What is counted is attachments: an entry's key names its initiator's for as long as it lives,
//! whatever becomes of the port's number, the policy or the workload's tags meanwhile. So giving
//! back needs nothing but the key. A limit is a list of attachments whose sum is bounded.
//!
//! *Thread-safety.* Shared by all workers, touched only when a connection is made or removed.
//! [`Quotas::take`] counts first and looks at the sums afterwards, in one total order (SeqCst): of
//! two workers that take the last place at once, at least one sees both. Neither may get it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use flowtable::{ConnRef, Participant};

use crate::datapath::conn;
use crate::datapath::snapshot::AttachmentId;

/// Attachments per piece of memory, 16 KiB.
const CHUNK: usize = 4096;
/// Pieces there can be: 16 million (port, workload) pairs by name in the life of a process. One
/// beyond opens no connection.
const CHUNKS: usize = 4096;

type Chunk = Box<[AtomicU32]>;

/// At most `max` connections opened by `members` together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Connections.
    pub max: u32,
    /// Whose; each once.
    pub members: Vec<AttachmentId>,
}

/// Connections each attachment has open as initiator.
#[derive(Debug)]
pub struct Quotas(Box<[OnceLock<Chunk>]>);

impl Default for Quotas {
    fn default() -> Self {
        Quotas((0..CHUNKS).map(|_| OnceLock::new()).collect())
    }
}

impl Quotas {
    /// Makes room for attachments up to `last`; whoever publishes a snapshot does, so that workers
    /// need not.
    pub fn make_room(&self, last: AttachmentId) {
        for chunk in self.0.iter().take(last.0 as usize / CHUNK + 1) {
            chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect());
        }
    }

    fn cell(&self, who: AttachmentId) -> Option<&AtomicU32> {
        let at = who.0 as usize;
        self.0.get(at / CHUNK)?.get()?.get(at % CHUNK)
    }

    /// Takes a place for a connection of `who` in each of `quotas`; `false` when one is used up.
    /// Cost: a locked instruction, and a load per member.
    #[must_use]
    pub fn take<'q>(&self, who: AttachmentId, mut quotas: impl Iterator<Item = &'q Quota>) -> bool {
        let Some(cell) = self.cell(who) else {
            return false;
        };
        cell.fetch_add(1, Ordering::SeqCst);
        let fits = quotas.all(|q| self.open(&q.members) <= u64::from(q.max));
        if !fits {
            self.give(who);
        }
        fits
    }

    /// Gives back what one [`Quotas::take`] took.
    pub fn give(&self, who: AttachmentId) {
        if let Some(cell) = self.cell(who) {
            let before = cell.fetch_sub(1, Ordering::SeqCst);
            debug_assert_ne!(before, 0, "given back twice");
        }
    }

    /// Connections `members` have open.
    #[must_use]
    pub fn open(&self, members: &[AttachmentId]) -> u64 {
        let open = |who: &AttachmentId| self.cell(*who).map_or(0, |c| c.load(Ordering::SeqCst));
        members.iter().map(|who| u64::from(open(who))).sum()
    }

    /// Removes a connection and gives its place back; `false` when another worker did.
    pub fn remove(&self, table: &Participant, conn: ConnRef<'_>) -> bool {
        let removed = table.remove(conn);
        if removed {
            self.give(conn::initiator(&conn));
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowtable::{Endpoint, FlowKey, New, Table};
    use std::sync::Arc;

    const A: AttachmentId = AttachmentId(3);
    const B: AttachmentId = AttachmentId(5000);

    fn quotas() -> Quotas {
        let quotas = Quotas::default();
        quotas.make_room(B);
        quotas
    }

    fn quota(max: u32, members: &[AttachmentId]) -> Quota {
        Quota {
            max,
            members: members.to_vec(),
        }
    }

    #[test]
    fn every_quota_must_have_room() {
        let q = quotas();
        let (own, both) = (quota(2, &[A]), quota(3, &[A, B]));
        assert!(q.take(A, [&own, &both].into_iter()));
        assert!(q.take(A, [&own, &both].into_iter()));
        assert!(!q.take(A, [&own, &both].into_iter()), "its own");
        assert!(q.take(B, [&both].into_iter()));
        assert!(!q.take(B, [&both].into_iter()), "the common one");
        // What was refused took nothing.
        assert_eq!((q.open(&[A]), q.open(&[A, B])), (2, 3));
        q.give(A);
        assert!(q.take(B, [&both].into_iter()));
        assert!(!q.take(AttachmentId(9000), std::iter::empty()), "no room");
        assert!(!q.take(AttachmentId(u32::MAX), std::iter::empty()));
    }

    #[test]
    fn a_place_is_given_back_once() {
        let table = Arc::new(Table::new(flowtable::Config::default()).unwrap());
        let (one, two) = (table.participant(), table.participant());
        let end = |port, who: AttachmentId| Endpoint {
            addr: crate::packet::Addr([1; 16]),
            port,
            attachment: who.0,
        };
        let (key, side) = FlowKey::new(0, 17, &end(1, A), &end(2, B));
        let new = New {
            initiator: side,
            word: conn::word(1),
            tick: 0,
            user: [0; 8],
        };
        let q = quotas();
        let all = quota(10, &[A]);
        for _ in 0..3 {
            assert!(q.take(A, [&all].into_iter()));
        }
        one.insert_or_get(&key, new).unwrap();
        // Two workers find it silent, and both want to remove it.
        let seen = [&one, &two].map(|p| (p, p.lookup(&key).unwrap()));
        assert_eq!(seen.map(|(p, c)| q.remove(p, c)), [true, false]);
        assert_eq!(q.open(&[A]), 2);
    }
}
