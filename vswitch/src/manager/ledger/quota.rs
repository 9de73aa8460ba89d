//! Who may have how many ordinary records: so many a second, with a burst, and so large a share of the ledger. And what was
//! refused, to be recorded as one.

use std::collections::{BTreeMap, HashMap};

use super::body::Lost;
use super::clock::Stamp;
use super::error::Refused;

/// What one port (or a workload without one) may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Records a second, in the long run.
    pub per_s: u32,
    /// Records at once.
    pub burst: u32,
    /// The ledger's size is divided by this: no port takes more until an archive was taken.
    pub share: u32,
}

impl Default for Quota {
    fn default() -> Self {
        // A port that asks for a thousand different connections a second has been taken over, or should not have to ask; what
        // it asks more is counted in one record. A quarter is what one port may have of the connection table, too. Guesses.
        Quota {
            per_s: 1000,
            burst: 10_000,
            share: 4,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// On disk, and on their way there.
    bytes: u64,
    /// Records it may still have, in billionths: a second's nanoseconds buy `per_s` of them each.
    credit: u64,
    /// When that was.
    at_ns: u64,
}

const ONE: u64 = 1_000_000_000;

/// Every owner's account.
#[derive(Debug)]
pub(super) struct Accounts {
    quota: Quota,
    most_bytes: u64,
    accounts: HashMap<String, Account>,
}

impl Accounts {
    pub(super) fn new(quota: Quota, max_bytes: u64, usage: &HashMap<String, u64>) -> Self {
        let mut accounts = Accounts {
            quota,
            most_bytes: max_bytes / u64::from(quota.share.max(1)),
            accounts: HashMap::new(),
        };
        accounts.set_usage(usage);
        accounts
    }

    /// Takes one record of `bytes` from the quota of `owner`.
    pub(super) fn spend(&mut self, owner: &str, bytes: u64, now_ns: u64) -> Result<(), Refused> {
        let full = u64::from(self.quota.burst) * ONE;
        if !self.accounts.contains_key(owner) {
            let new = Account {
                credit: full,
                at_ns: now_ns,
                ..Account::default()
            };
            self.accounts.insert(owner.to_owned(), new);
        }
        let Some(account) = self.accounts.get_mut(owner) else {
            return Err(Refused::Quota);
        };
        let earned = now_ns
            .saturating_sub(account.at_ns)
            .saturating_mul(u64::from(self.quota.per_s));
        account.credit = account.credit.saturating_add(earned).min(full);
        account.at_ns = account.at_ns.max(now_ns);
        if account.credit < ONE || account.bytes + bytes > self.most_bytes {
            return Err(Refused::Quota);
        }
        account.credit -= ONE;
        account.bytes += bytes;
        Ok(())
    }

    /// A record that was taken from the quota was not written after all.
    pub(super) fn give_back(&mut self, owner: &str, bytes: u64) {
        if let Some(account) = self.accounts.get_mut(owner) {
            account.bytes = account.bytes.saturating_sub(bytes);
        }
    }

    /// What is on disk, as the file says it.
    pub(super) fn set_usage(&mut self, usage: &HashMap<String, u64>) {
        let full = u64::from(self.quota.burst) * ONE;
        self.accounts.values_mut().for_each(|a| a.bytes = 0);
        for (owner, bytes) in usage {
            let new = Account {
                credit: full,
                ..Account::default()
            };
            self.accounts.entry(owner.clone()).or_insert(new).bytes = *bytes;
        }
    }

    /// Adds what is on its way to the disk.
    pub(super) fn add(&mut self, owner: &str, bytes: u64) {
        self.accounts.entry(owner.to_owned()).or_default().bytes += bytes;
    }
}

/// Owners that a record of losses names; the others are one.
const NAMED: usize = 32;
/// The others' name; no port has it.
const OTHERS: &str = "(others)";
/// The first record of losses comes this long after the one before, and each further one twice as long, while there are new
/// losses all the time: a ledger that is full must not be filled with that.
const PAUSE_NS: u64 = 1_000_000_000;
/// At the longest.
const LONGEST_PAUSE_NS: u64 = 64_000_000_000;

/// What was refused since it was last recorded.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lost: Lost,
    due_ns: u64,
    pause_ns: u64,
}

impl Losses {
    pub(super) fn note(&mut self, why: Refused, owner: &str, now: &Stamp) {
        let lost = &mut self.lost;
        if lost.count == 0 {
            lost.from_ns = now.wall_ns;
        }
        lost.count += 1;
        lost.to_ns = now.wall_ns;
        *lost.reasons.entry(why.name().to_owned()).or_default() += 1;
        let named = lost.owners.len() < NAMED || lost.owners.contains_key(owner);
        let owner = if named { owner } else { OTHERS };
        *lost.owners.entry(owner.to_owned()).or_default() += 1;
    }

    pub(super) fn any(&self) -> bool {
        self.lost.count > 0
    }

    /// The record of what was lost, if it is time for one, or the ledger is `closing`.
    pub(super) fn take(&mut self, now_ns: u64, closing: bool) -> Option<Lost> {
        if !self.any() || (now_ns < self.due_ns && !closing) {
            return None;
        }
        let quiet = now_ns.saturating_sub(self.due_ns) > self.pause_ns;
        self.pause_ns = if quiet {
            PAUSE_NS
        } else {
            (2 * self.pause_ns).clamp(PAUSE_NS, LONGEST_PAUSE_NS)
        };
        self.due_ns = now_ns.saturating_add(self.pause_ns);
        Some(std::mem::take(&mut self.lost))
    }

    /// It could not be written either.
    pub(super) fn put_back(&mut self, older: Lost) {
        let newer = std::mem::replace(&mut self.lost, older);
        let add = |to: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>| {
            for (name, count) in from {
                *to.entry(name).or_default() += count;
            }
        };
        if newer.count > 0 {
            self.lost.count += newer.count;
            self.lost.to_ns = newer.to_ns;
            add(&mut self.lost.reasons, newer.reasons);
            add(&mut self.lost.owners, newer.owners);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Accounts, Losses, Quota, Refused};
    use crate::manager::ledger::clock::Stamp;
    use std::collections::HashMap;

    const S: u64 = 1_000_000_000;

    #[test]
    fn one_owner_does_not_spend_anothers_quota() {
        let quota = Quota {
            per_s: 10,
            burst: 3,
            share: 4,
        };
        let used = HashMap::from([("full".to_owned(), 240)]);
        let mut accounts = Accounts::new(quota, 1000, &used);
        for _ in 0..3 {
            assert_eq!(accounts.spend("a", 1, S), Ok(()));
        }
        assert_eq!(accounts.spend("a", 1, S), Err(Refused::Quota));
        assert_eq!(accounts.spend("b", 1, S), Ok(()));
        // A tenth of a second buys one.
        assert_eq!(accounts.spend("a", 1, S + S / 10), Ok(()));
        assert_eq!(accounts.spend("a", 1, S + S / 10), Err(Refused::Quota));
        // A quarter of the ledger, and no more, until something is archived.
        assert_eq!(accounts.spend("full", 10, S), Ok(()));
        assert_eq!(accounts.spend("full", 1, S), Err(Refused::Quota));
        accounts.give_back("full", 10);
        assert_eq!(accounts.spend("full", 10, S), Ok(()));
        accounts.set_usage(&HashMap::new());
        accounts.add("full", 200);
        assert_eq!(accounts.spend("full", 50, S), Ok(()));
        assert_eq!(accounts.spend("full", 1, S), Err(Refused::Quota));
    }

    #[test]
    fn losses_are_counted_and_told_more_and_more_rarely() {
        let now = |s: u64| Stamp {
            wall_ns: i64::try_from(s).unwrap(),
            mono_ns: s * S,
            ..Stamp::default()
        };
        let mut losses = Losses::default();
        assert_eq!(losses.take(0, true), None);
        losses.note(Refused::Quota, "a", &now(100));
        losses.note(Refused::Disk, "a", &now(101));
        let lost = losses.take(101 * S, false).unwrap();
        assert_eq!((lost.count, lost.from_ns, lost.to_ns), (2, 100, 101));
        assert_eq!(lost.reasons["quota"], 1);
        assert_eq!(lost.owners["a"], 2);

        losses.put_back(lost);
        for n in 0..100 {
            losses.note(Refused::Size, &n.to_string(), &now(102));
        }
        assert_eq!(losses.take(101 * S + 1, false), None, "too early");
        let lost = losses.take(102 * S, false).unwrap();
        assert_eq!((lost.count, lost.from_ns, lost.to_ns), (102, 100, 102));
        assert_eq!(lost.owners["(others)"], 100 - 31);
        let (mut records, mut at) = (0, 102);
        while at < 102 + 3600 {
            at += 1;
            losses.note(Refused::Size, "a", &now(at));
            records += usize::from(losses.take(at * S, false).is_some());
        }
        assert!(records < 100, "{records} records in an hour");
        // Closing waits for nothing.
        losses.note(Refused::Size, "a", &now(at));
        assert!(losses.take(at * S, true).is_some());
    }
}
