//! How many connections may be open, so that one workload cannot fill the table, nor one segment.
//!
//! What is counted is attachments and groups, each by a number that is never used again. An entry's
//! key names its initiator's attachment for as long as it lives, whatever becomes of the port's
//! number meanwhile. Its group, which says what limited segments the initiator is in, stands in the
//! entry and is brought up to date when the connection is judged again. So giving back needs
//! nothing but the entry. A limit is a list of attachments or groups whose sum is bounded: a
//! port's has its few residents; a segment's is as long as there are combinations with others,
//! however many workloads are in it.
//!
//! *Thread-safety.* Shared by all workers, touched only when a connection is made, removed or judged
//! again. To take is to count first and to look at the sums afterwards, in one total order (SeqCst):
//! of two workers that take the last place at once, at least one sees both. Neither may get it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use flowtable::{ConnRef, Participant};

use crate::datapath::conn::{self, Admission};
use crate::datapath::snapshot::{AttachmentId, Owner, Snapshot};
use crate::policy::WorkloadFacts;
use crate::policy::model::{Policy, Segment};

/// Numbers per piece of memory, 16 KiB.
const CHUNK: usize = 4096;
/// Pieces there can be: 16 million (port, workload) pairs by name, and combinations of segments, in
/// the life of a process. One beyond opens no connection.
const CHUNKS: usize = 4096;

type Chunk = Box<[AtomicU32]>;

/// At most `max` connections opened by `members` together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Connections.
    pub max: u32,
    /// The numbers of attachments (a port's quota) or groups (a segment's); each once.
    pub members: Vec<u32>,
}

/// A combination of segments with a limit, by a number for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupId(pub u32);

impl GroupId {
    /// In no segment with a limit: not counted.
    pub const NONE: GroupId = GroupId(0);
}

/// The numbers of groups; one for all snapshots.
#[derive(Debug, Default)]
pub struct Groups(Vec<Vec<(String, String)>>);

impl Groups {
    /// The groups of `workloads` under `policy`, and its segments' quotas.
    pub fn assign(
        &mut self,
        policy: &Policy,
        workloads: &[WorkloadFacts],
    ) -> (Vec<GroupId>, Vec<Quota>) {
        let limited = policy.segments.iter();
        let limited: Vec<_> = limited
            .filter_map(|s| Some((s, s.max_connections?)))
            .collect();
        let name = |s: &Segment| (s.tenant.clone(), s.name.clone());
        let groups = workloads.iter().map(|w| {
            let tenant = policy.tenant_name(w.tenant);
            let holds = |s: &Segment| Some(s.tenant.as_str()) == tenant && s.holds(w);
            let of = limited.iter().filter(|(s, _)| holds(s));
            self.intern(of.map(|(s, _)| name(s)).collect())
        });
        let groups = groups.collect();
        // With combinations that nobody is in now: connections may still be.
        let with = |s: &Segment| {
            let all = (1..).zip(&self.0);
            let with = all.filter(|(_, group)| group.contains(&name(s)));
            with.map(|(number, _)| number).collect()
        };
        let quotas = limited.iter().map(|&(s, max)| Quota {
            max,
            members: with(s),
        });
        (groups, quotas.collect())
    }

    fn intern(&mut self, mut segments: Vec<(String, String)>) -> GroupId {
        if segments.is_empty() {
            return GroupId::NONE;
        }
        segments.sort();
        let known = self.0.iter().position(|group| *group == segments);
        let at = known.unwrap_or_else(|| {
            self.0.push(segments);
            self.0.len() - 1
        });
        GroupId(u32::try_from(at + 1).unwrap_or(u32::MAX))
    }
}

/// Open connections by number.
#[derive(Debug)]
struct Counts(Box<[OnceLock<Chunk>]>);

impl Default for Counts {
    fn default() -> Self {
        Counts((0..CHUNKS).map(|_| OnceLock::new()).collect())
    }
}

impl Counts {
    fn make_room(&self, last: u32) {
        for chunk in self.0.iter().take(last as usize / CHUNK + 1) {
            chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect());
        }
    }

    fn cell(&self, number: u32) -> Option<&AtomicU32> {
        let at = number as usize;
        self.0.get(at / CHUNK)?.get()?.get(at % CHUNK)
    }

    fn add(&self, number: u32) -> bool {
        let cell = self.cell(number);
        cell.map(|c| c.fetch_add(1, Ordering::SeqCst)).is_some()
    }

    fn take<'q>(&self, number: u32, mut quotas: impl Iterator<Item = &'q Quota>) -> bool {
        if !self.add(number) {
            return false;
        }
        let fits = quotas.all(|q| self.open(&q.members) <= u64::from(q.max));
        if !fits {
            self.give(number);
        }
        fits
    }

    fn give(&self, number: u32) {
        if let Some(cell) = self.cell(number) {
            let before = cell.fetch_sub(1, Ordering::SeqCst);
            debug_assert_ne!(before, 0, "given back twice");
        }
    }

    fn open(&self, members: &[u32]) -> u64 {
        let open = |n: &u32| self.cell(*n).map_or(0, |c| c.load(Ordering::SeqCst));
        members.iter().map(|n| u64::from(open(n))).sum()
    }
}

/// Connections that are open, by who opened them.
#[derive(Debug, Default)]
pub struct Quotas {
    attachments: Counts,
    groups: Counts,
}

impl Quotas {
    /// Makes room for everybody in `snapshot`; whoever publishes it does, so that workers need not.
    pub fn make_room(&self, snapshot: &Snapshot) {
        for owner in snapshot.owners() {
            self.attachments.make_room(owner.attachment.0);
            self.groups.make_room(owner.group.0);
        }
    }

    /// Takes a place for a connection of `who` in its port's quota and those of its segments;
    /// `false` when one is used up. Cost: two locked instructions, and a load per member.
    #[must_use]
    pub fn take(&self, snapshot: &Snapshot, who: &Owner) -> bool {
        let port = snapshot.port(who.port).map(|p| &p.quota);
        if !self.attachments.take(who.attachment.0, port.into_iter()) {
            return false;
        }
        let fits = who.group == GroupId::NONE
            || self.groups.take(who.group.0, snapshot.segment_quotas(who));
        if !fits {
            self.attachments.give(who.attachment.0);
        }
        fits
    }

    /// Gives back what one [`Quotas::take`] took.
    pub fn give(&self, who: AttachmentId, group: GroupId) {
        self.attachments.give(who.0);
        self.leave(group);
    }

    fn leave(&self, group: GroupId) {
        if group != GroupId::NONE {
            self.groups.give(group.0);
        }
    }

    /// Connections open from a port.
    #[must_use]
    pub fn of_port(&self, quota: &Quota) -> u64 {
        self.attachments.open(&quota.members)
    }

    /// Writes down what admits `conn` now. It stays open whatever the limit of the group it is in
    /// from now on.
    pub fn readmit(&self, conn: &ConnRef<'_>, admission: Admission) {
        if admission.group != GroupId::NONE {
            self.groups.add(admission.group.0);
        }
        // Removed meanwhile, it has been given back.
        self.leave(conn::set_admission(conn, admission).unwrap_or(admission.group));
    }

    /// Removes a connection and gives its place back; `false` when another worker did.
    pub fn remove(&self, table: &Participant, conn: ConnRef<'_>) -> bool {
        let removed = table.remove(conn);
        if removed {
            self.give(conn::initiator(&conn), conn::leave(&conn));
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::RuleId;
    use flowtable::{Config, Endpoint, FlowKey, New, Table};
    use std::sync::Arc;

    const A: u32 = 3;
    const B: u32 = 5000;

    fn quota(max: u32, members: &[u32]) -> Quota {
        Quota {
            max,
            members: members.to_vec(),
        }
    }

    #[test]
    fn every_quota_must_have_room() {
        let c = Counts::default();
        c.make_room(B);
        let (own, both) = (quota(2, &[A]), quota(3, &[A, B]));
        assert!(c.take(A, [&own, &both].into_iter()));
        assert!(c.take(A, [&own, &both].into_iter()));
        assert!(!c.take(A, [&own, &both].into_iter()), "its own");
        assert!(c.take(B, [&both].into_iter()));
        assert!(!c.take(B, [&both].into_iter()), "the common one");
        // What was refused took nothing.
        assert_eq!((c.open(&[A]), c.open(&[A, B])), (2, 3));
        c.give(A);
        assert!(c.take(B, [&both].into_iter()));
        assert!(!c.take(9000, std::iter::empty()), "no room");
        assert!(!c.take(u32::MAX, std::iter::empty()));
    }

    fn admission(group: u32) -> Admission {
        Admission {
            rule: RuleId(u32::MAX),
            limited: true,
            logged: true,
            group: GroupId(group),
        }
    }

    /// Quotas, and a connection of attachment A that counts in group 1 among three more of both.
    fn open(table: &Participant) -> (Quotas, ConnRef<'_>) {
        let q = Quotas::default();
        q.attachments.make_room(A);
        q.groups.make_room(2);
        for _ in 0..3 {
            assert!(q.attachments.add(A) && q.groups.add(1));
        }
        let end = |port, attachment| Endpoint {
            addr: crate::packet::Addr([1; 16]),
            port,
            attachment,
        };
        let (key, side) = FlowKey::new(0, 17, &end(1, A), &end(2, B));
        let new = New {
            initiator: side,
            word: conn::word(1),
            tick: 0,
            user: conn::new_words(admission(1), 0),
            far: None,
        };
        let conn = table.insert_or_get(&key, new).unwrap().conn;
        (q, conn)
    }

    fn counts(q: &Quotas) -> [u64; 3] {
        [
            q.attachments.open(&[A]),
            q.groups.open(&[1]),
            q.groups.open(&[2]),
        ]
    }

    #[test]
    fn a_place_is_given_back_once() {
        let table = Arc::new(Table::new(Config::default()).unwrap());
        let (one, two) = (table.participant(), table.participant());
        let (q, conn) = open(&one);
        // Two workers find it silent, and both want to remove it.
        let other = two.lookup(&conn.key()).unwrap();
        assert!(q.remove(&one, conn));
        assert!(!q.remove(&two, other));
        assert_eq!(counts(&q), [2, 2, 0]);
        // And a third was about to judge it again.
        q.readmit(&conn, admission(2));
        assert_eq!(counts(&q), [2, 2, 0]);
    }

    #[test]
    fn a_connection_counts_in_the_group_it_was_judged_in_last() {
        let table = Arc::new(Table::new(Config::default()).unwrap());
        let worker = table.participant();
        let (q, conn) = open(&worker);
        for (group, expect) in [
            (1, [3, 3, 0]),
            (2, [3, 2, 1]),
            (0, [3, 2, 0]),
            (2, [3, 2, 1]),
        ] {
            q.readmit(&conn, admission(group));
            assert_eq!(counts(&q), expect);
            assert_eq!(conn::admission(&conn), admission(group));
        }
        assert!(q.remove(&worker, conn));
        assert_eq!(counts(&q), [2, 2, 0]);
    }

    #[test]
    fn a_group_is_a_combination_of_limited_segments() {
        let segment = |name: &str, max_connections, tag: &str| Segment {
            tags: vec![tag.to_owned()],
            max_connections,
            ..Segment::new(name)
        };
        let workload = |tags: &[&str]| WorkloadFacts {
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            ..WorkloadFacts::default()
        };
        let mut policy = Policy {
            segments: vec![
                segment("free", None, "x"),
                segment("web", Some(5), "web"),
                segment("prod", Some(7), "prod"),
            ],
            ..Policy::default()
        };
        let all = [&["x"][..], &["web", "x"], &["prod", "web"], &["web"]].map(workload);
        let mut groups = Groups::default();
        let (of, quotas) = groups.assign(&policy, &all);
        assert_eq!(of, [0, 1, 2, 1].map(GroupId));
        assert_eq!(quotas, [quota(5, &[1, 2]), quota(7, &[2])]);
        // The order in the file means nothing, and what connections may still be in counts.
        policy.segments.reverse();
        let (of, quotas) = groups.assign(&policy, &all[2..3]);
        assert_eq!(of, [GroupId(2)]);
        assert_eq!(quotas, [quota(7, &[2]), quota(5, &[1, 2])]);
    }
}
