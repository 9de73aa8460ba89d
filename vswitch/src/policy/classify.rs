//! The classifier: what a policy compiles to, and the questions it answers on the data path.
//!
//! Rules are numbered in the order they are tried (tenant, tier, file order). What a rule's
//! `from` names is a *from-group*, what its `to` names a *to-group*; a party's [`SetId`] lists the
//! groups it is in. All rules from one group to another stand in one *cell*. A question walks the
//! pairs of groups of its two parties, lowest first rule first, and stops as soon as no cell left
//! can hold an earlier rule; a 64-bit filter per group keeps it from looking for cells that do not
//! exist. So the cost follows how many groups a party is in, not how many rules there are. Where
//! there are few sets, as segments of workloads have, the walk is done beforehand for every pair
//! of them ([`Pairs`]) and a question costs one load and the search of one cell.
//!
//! *Thread safety:* everything but the counters and buckets is immutable; those are single
//! atomic words. No question allocates, locks or makes a system call.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::limit::RuleState;
use super::model::{Action, Otherwise, Tier};
use super::{Judgement, Party, Query, RuleId, Service, SetId, TenantId, Verdict, Why};
use crate::packet::Addr;

/// A compiled policy.
#[derive(Debug, Default)]
pub struct Classifier {
    pub(super) sets: Vec<Set>,
    /// Group numbers; [`Set`]s point in here.
    pub(super) members: Vec<u32>,
    pub(super) from_groups: Vec<Group>,
    pub(super) to_groups: Vec<Group>,
    pub(super) cells: CellTable,
    pub(super) entries: Vec<Entry>,
    pub(super) indexes: Vec<CellIndex>,
    pub(super) pairs: Pairs,
    pub(super) tenants: Vec<TenantPart>,
    pub(super) rules: Vec<RulePart>,
    pub(super) states: Vec<Arc<RuleState>>,
    pub(super) infos: Vec<Info>,
}

/// A distinct set of groups: `members[from..to]` are from-groups, `members[to..end]` to-groups,
/// each by their first rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) end: u32,
    pub(super) loose: bool,
    /// Filter bits of its to-groups.
    pub(super) filter: u64,
}

/// A group in use as one end of rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// First rule.
    pub(super) first: u32,
    /// Last rule.
    pub(super) last: u32,
    /// [`filter_bit`]s of the groups at the other end of its rules.
    pub(super) filter: u64,
}

/// One of 64 bits for a group number.
pub(super) const fn filter_bit(group: u32) -> u64 {
    1 << (spread(group as u64) >> 58)
}

/// Multiplicative hashing (Knuth, TAOCP 6.4) by 2^64 / golden ratio. Group numbers come from the
/// operator's policy, not from the wire, so nobody can aim collisions.
const fn spread(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One service of one rule. What is asked for is one number (`Probe::key`), so that a match is two
/// range comparisons.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key_low: u32,
    pub(super) key_high: u32,
    pub(super) sport_low: u16,
    pub(super) sport_high: u16,
    /// Rule number, and whether it is staged in the lowest bit.
    pub(super) rule_staged: u32,
}

impl Entry {
    pub(super) const fn rule(&self) -> u32 {
        self.rule_staged >> 1
    }
}

/// Protocol and destination port in one number: `protocol << 16 | dport`.
pub(super) const fn ip_key(protocol: u8, dport: u16) -> u32 {
    (protocol as u32) << 16 | dport as u32
}

/// Above every IP key: `1 << 24 | ethertype`.
pub(super) const fn ether_key(ethertype: u16) -> u32 {
    1 << 24 | ethertype as u32
}

/// For a cell too long to scan: for every elementary range of keys, the entries that may match.
#[derive(Debug)]
pub(super) struct CellIndex {
    /// Where the cell's entries start.
    pub(super) entries: u32,
    /// How many there are.
    pub(super) len: u32,
    /// Lowest key of each range, ascending; the first is 0.
    pub(super) bounds: Vec<u32>,
    /// Where each range's picks start; one more than `bounds`.
    pub(super) starts: Vec<u32>,
    /// Entries, counted from `entries`.
    pub(super) picks: Vec<u32>,
}

/// An open-addressed map from (from-group, to-group) to a cell.
#[derive(Debug, Default)]
pub(super) struct CellTable {
    slots: Vec<Slot>,
    /// `64 - log2(slots)`.
    shift: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    at: u32,
    /// Entries, or [`INDEXED`] when `at` is the number of a [`CellIndex`].
    len: u32,
}

const INDEXED: u32 = u32::MAX;
/// No group has number `u32::MAX`.
const EMPTY: u64 = u64::MAX;

/// Where a cell's rules are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell {
    /// `entries[at..at + len]`.
    Entries { at: u32, len: u32 },
    /// `indexes[n]`.
    Index(u32),
}

const fn cell_key(from: u32, to: u32) -> u64 {
    (from as u64) << 32 | to as u64
}

impl CellTable {
    /// A table for `cells` cells, at most half full.
    pub(super) fn with_capacity(cells: usize) -> Self {
        let len = (cells * 2).next_power_of_two().max(2);
        let empty = Slot {
            key: EMPTY,
            at: 0,
            len: 0,
        };
        CellTable {
            slots: vec![empty; len],
            shift: 64 - len.trailing_zeros(),
        }
    }

    pub(super) fn insert(&mut self, from: u32, to: u32, cell: Cell) {
        let key = cell_key(from, to);
        let (at, len) = match cell {
            Cell::Entries { at, len } => (at, len),
            Cell::Index(n) => (n, INDEXED),
        };
        let mask = self.slots.len() - 1;
        let mut slot = self.home(key);
        while let Some(found) = self.slots.get_mut(slot) {
            if found.key == EMPTY {
                *found = Slot { key, at, len };
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[allow(clippy::cast_possible_truncation)] // shifted down to the table's size
    const fn home(&self, key: u64) -> usize {
        (spread(key ^ key >> 29) >> self.shift) as usize
    }

    pub(super) fn get(&self, from: u32, to: u32) -> Option<Cell> {
        let key = cell_key(from, to);
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = self.home(key);
        loop {
            let slot = self.slots.get(at)?;
            if slot.key == key {
                return Some(match slot.len {
                    INDEXED => Cell::Index(slot.at),
                    len => Cell::Entries { at: slot.at, len },
                });
            }
            if slot.key == EMPTY {
                return None;
            }
            at = (at + 1) & mask;
        }
    }
}

/// All that one set may open to another, gathered in one cell; empty when there are too many sets.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// How many sets there are.
    pub(super) sets: u32,
    /// For sets a and b at `a * sets + b`: a position in `cells`, or [`NO_CELL`].
    pub(super) table: Vec<u32>,
    pub(super) cells: Vec<Cell>,
}

/// No rule is about this pair.
pub(super) const NO_CELL: u32 = u32::MAX;

impl Pairs {
    /// `None`: not known here. `Some(None)`: no rule is about this pair.
    fn get(&self, from: SetId, to: SetId) -> Option<Option<Cell>> {
        if from.0 >= self.sets || to.0 >= self.sets {
            return None;
        }
        let at = from.0 as usize * self.sets as usize + to.0 as usize;
        let cell = *self.table.get(at)?;
        Some(self.cells.get(cell as usize).copied())
    }
}

/// One tenant's rules and what it knows of the outside.
#[derive(Debug, Default)]
pub(super) struct TenantPart {
    pub(super) first_rule: u32,
    pub(super) end_rule: u32,
    pub(super) v4: Intervals<u32>,
    pub(super) v6: Intervals<u128>,
}

/// Disjoint ranges of addresses, each with its set; the first starts at 0.
#[derive(Debug, Default)]
pub(super) struct Intervals<K> {
    starts: Vec<K>,
    sets: Vec<SetId>,
    /// For every value of the top 16 bits, the range its lowest address is in; empty when there
    /// are too few ranges to be worth 256 KiB.
    top: Vec<u32>,
}

/// Ranges from which the table of top bits pays: guess (a binary search of 9 steps).
const TOP_TABLE_FROM: usize = 512;

impl<K: Copy + Ord> Intervals<K> {
    pub(super) fn new(ranges: impl Iterator<Item = (K, SetId)>) -> Self {
        let (starts, sets) = ranges.unzip();
        Intervals {
            starts,
            sets,
            top: Vec::new(),
        }
    }

    fn find(&self, low: usize, high: usize, addr: K) -> SetId {
        let Some(starts) = self.starts.get(low..high) else {
            return SetId::default();
        };
        let at = low + starts.partition_point(|&start| start <= addr);
        let found = at.checked_sub(1).and_then(|at| self.sets.get(at));
        found.copied().unwrap_or_default()
    }
}

impl Intervals<u32> {
    /// Builds the table of top bits when it pays.
    pub(super) fn with_top_table(mut self) -> Self {
        if self.starts.len() >= TOP_TABLE_FROM {
            self.top = (0..=u32::from(u16::MAX))
                .map(|high| {
                    let at = self.starts.partition_point(|&start| start <= high << 16);
                    u32::try_from(at.saturating_sub(1)).unwrap_or(u32::MAX)
                })
                .collect();
        }
        self
    }

    fn lookup(&self, addr: u32) -> SetId {
        let len = self.starts.len();
        let high = (addr >> 16) as usize;
        let low = self.top.get(high).map_or(0, |&at| at as usize);
        let end = self.top.get(high + 1).map_or(len, |&at| at as usize + 1);
        self.find(low, end, addr)
    }
}

/// What the data path needs of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct RulePart {
    /// First rule of the tenant's next tier.
    pub(super) next_tier: u32,
    pub(super) action: Action,
    pub(super) log: bool,
    pub(super) limited: bool,
    pub(super) staged: bool,
}

/// What people want to know of a rule.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub(super) name: Box<str>,
    pub(super) tenant: TenantId,
    pub(super) tier: Tier,
    pub(super) written: Option<u32>,
}

/// A rule in a listing.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct RuleView<'a> {
    /// Its number.
    #[serde(skip)]
    pub id: RuleId,
    /// Name; `tenant/name` when the tenant is not "default".
    pub name: &'a str,
    /// Owner.
    #[serde(skip)]
    pub tenant: TenantId,
    /// Tier.
    pub tier: Tier,
    /// What it does.
    #[serde(flatten)]
    pub action: Action,
    /// Whether it only reports.
    pub staged: bool,
    /// Position in [`super::model::Policy::rules`]; `None` for a built-in rule.
    pub written: Option<usize>,
    /// How often it decided.
    pub hits: u64,
    /// How often it would have decided, had it not been staged.
    pub staged_hits: u64,
}

/// A question, reduced to what cells are searched by.
#[derive(Clone, Copy)]
struct Probe {
    from: Set,
    to: Set,
    cell: Option<Option<Cell>>,
    key: u32,
    sport: u16,
}

impl Classifier {
    /// A classifier that denies everything: what stands before any policy does.
    #[must_use]
    pub fn deny_all() -> Self {
        Classifier::default()
    }

    /// The set of a tenant's CIDR segments an outside address is in. Cost: a short search among
    /// the tenant's prefixes.
    #[must_use]
    pub fn outside(&self, tenant: TenantId, addr: &Addr) -> SetId {
        let Some(part) = self.tenants.get(usize::from(tenant.0)) else {
            return SetId::default();
        };
        let value = u128::from_be_bytes(addr.0);
        // ::ffff:0:0/96, the mapped IPv4 addresses (RFC 4291 section 2.5.5.2).
        if value >> 32 == 0xffff {
            #[allow(clippy::cast_possible_truncation)] // the low 32 bits are the IPv4 address
            part.v4.lookup(value as u32)
        } else {
            part.v6.find(0, part.v6.starts.len(), value)
        }
    }

    /// Whether TCP connections of a party with this set may be picked up mid-stream.
    #[must_use]
    pub fn loose(&self, set: SetId) -> bool {
        self.sets.get(set.0 as usize).is_some_and(|set| set.loose)
    }

    /// May `from` open `service` to `to`? Between tenants both must say so: the source's rules
    /// are tried first, and where they allow, the destination's decide.
    #[must_use]
    pub fn classify(&self, query: &Query) -> Judgement {
        let source = self.judge(query.from.tenant, query);
        if query.from.tenant == query.to.tenant || source.verdict != Verdict::Allow {
            return source;
        }
        let destination = self.judge(query.to.tenant, query);
        let staged = source.staged.or(destination.staged);
        if destination.verdict != Verdict::Allow {
            return Judgement {
                staged,
                ..destination
            };
        }
        Judgement {
            verdict: Verdict::Allow,
            why: destination.why,
            also: match source.why {
                Why::Rule(rule) => Some(rule),
                Why::DefaultDeny => None,
            },
            ask: source.ask || destination.ask,
            log: source.log || destination.log,
            notify: source.notify || destination.notify,
            limited: source.limited || destination.limited,
            staged,
        }
    }

    /// What one tenant's rules say.
    fn judge(&self, tenant: TenantId, query: &Query) -> Judgement {
        let mut judgement = Judgement {
            verdict: Verdict::Deny,
            why: Why::DefaultDeny,
            also: None,
            ask: false,
            log: false,
            notify: false,
            limited: false,
            staged: None,
        };
        let set = |party: Party| self.sets.get(party.set.0 as usize).copied();
        let (Some(part), Some(from), Some(to)) = (
            self.tenants.get(usize::from(tenant.0)),
            set(query.from),
            set(query.to),
        ) else {
            return judgement;
        };
        let (key, sport) = match query.service {
            Service::Ip {
                protocol,
                sport,
                dport,
            } => (ip_key(protocol, dport), sport),
            Service::Ether(ethertype) => (ether_key(ethertype), 0),
        };
        let probe = Probe {
            from,
            to,
            cell: self.pairs.get(query.from.set, query.to.set),
            key,
            sport,
        };
        let mut first = part.first_rule;
        loop {
            // One staged rule is reported; later ones need not be found.
            let found = self.find(&probe, first, part.end_rule, judgement.staged.is_none());
            let Some(rule) = self
                .rules
                .get(found as usize)
                .filter(|_| found < part.end_rule)
            else {
                return judgement;
            };
            if rule.staged {
                judgement.staged = Some(RuleId(found));
                first = found + 1;
                continue;
            }
            let verdict = match rule.action {
                Action::Pass => {
                    first = rule.next_tier;
                    continue;
                }
                Action::Allow
                | Action::Notify
                | Action::Ask {
                    otherwise: Otherwise::Allow,
                } => Verdict::Allow,
                Action::Deny
                | Action::Ask {
                    otherwise: Otherwise::Deny,
                } => Verdict::Deny,
                Action::Reject => Verdict::Reject,
            };
            let notify = rule.action == Action::Notify;
            return Judgement {
                verdict,
                why: Why::Rule(RuleId(found)),
                ask: matches!(rule.action, Action::Ask { .. }),
                log: rule.log || notify,
                notify,
                limited: rule.limited,
                ..judgement
            };
        }
    }

    /// The first rule from `first` that matches, or `end` (at least) when none below it does.
    fn find(&self, probe: &Probe, first: u32, end: u32, staged: bool) -> u32 {
        match probe.cell {
            Some(Some(cell)) => return self.search(cell, probe, first, end, staged),
            Some(None) => return end,
            None => {}
        }
        let (from, to) = (probe.from, probe.to);
        let (Some(from_groups), Some(to_groups)) = (
            self.members.get(from.from as usize..from.to as usize),
            self.members.get(to.to as usize..to.end as usize),
        ) else {
            return end;
        };
        let mut best = end;
        for &from_number in from_groups {
            let Some(from_group) = self.from_groups.get(from_number as usize) else {
                continue;
            };
            if from_group.first >= best {
                break;
            }
            if from_group.last < first || from_group.filter & to.filter == 0 {
                continue;
            }
            let from_bit = filter_bit(from_number);
            for &to_number in to_groups {
                let Some(to_group) = self.to_groups.get(to_number as usize) else {
                    continue;
                };
                if to_group.first >= best {
                    break;
                }
                if from_group.filter & filter_bit(to_number) == 0
                    || to_group.filter & from_bit == 0
                    || to_group.last < first
                {
                    continue;
                }
                if let Some(cell) = self.cells.get(from_number, to_number) {
                    best = self.search(cell, probe, first, best, staged);
                }
            }
        }
        best
    }

    /// The first rule from `first` and below `best` in one cell that matches, or `best`.
    fn search(&self, cell: Cell, probe: &Probe, first: u32, best: u32, staged: bool) -> u32 {
        let consider = |entry: &Entry| -> Option<u32> {
            let rule = entry.rule();
            if rule >= best {
                return Some(best);
            }
            let hit = rule >= first
                && entry.key_low <= probe.key
                && probe.key <= entry.key_high
                && entry.sport_low <= probe.sport
                && probe.sport <= entry.sport_high
                && (staged || entry.rule_staged & 1 == 0);
            hit.then_some(rule)
        };
        let found = match cell {
            Cell::Entries { at, len } => self
                .entries
                .get(at as usize..at as usize + len as usize)
                .and_then(|entries| entries.iter().find_map(consider)),
            Cell::Index(number) => self.indexes.get(number as usize).and_then(|index| {
                let range = index.bounds.partition_point(|&bound| bound <= probe.key);
                let start = *index.starts.get(range.checked_sub(1)?)? as usize;
                let end = *index.starts.get(range)? as usize;
                let picks = index.picks.get(start..end)?;
                picks.iter().find_map(|&pick| {
                    let entry = self.entries.get((index.entries + pick) as usize)?;
                    consider(entry)
                })
            }),
        };
        found.unwrap_or(best)
    }

    /// The name of a rule: `tenant/name` when the tenant is not "default".
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.infos
            .get(rule.0 as usize)
            .map_or("unknown", |info| &info.name)
    }

    /// Every rule, built-in ones included, in the order they are tried.
    pub fn rules(&self) -> impl Iterator<Item = RuleView<'_>> {
        let parts = self.rules.iter().zip(&self.infos).zip(&self.states);
        (0..)
            .zip(parts)
            .map(|(id, ((part, info), state))| RuleView {
                id: RuleId(id),
                name: &info.name,
                tenant: info.tenant,
                tier: info.tier,
                action: part.action,
                staged: part.staged,
                written: info.written.map(|n| n as usize),
                hits: state.hits.load(Relaxed),
                staged_hits: state.staged_hits.load(Relaxed),
            })
    }

    fn state(&self, rule: RuleId) -> Option<&RuleState> {
        self.states.get(rule.0 as usize).map(Arc::as_ref)
    }

    /// Counts a decision of this rule.
    pub fn hit(&self, rule: RuleId) {
        if let Some(state) = self.state(rule) {
            // Relaxed: a count, ordered with nothing.
            state.hits.fetch_add(1, Relaxed);
        }
    }

    /// Counts a decision this staged rule would have made.
    pub fn staged_hit(&self, rule: RuleId) {
        if let Some(state) = self.state(rule) {
            state.staged_hits.fetch_add(1, Relaxed);
        }
    }

    /// Whether one more new connection is within the rule's limit; spends it when it is. `now_ns`
    /// is monotonic.
    #[must_use]
    pub fn limit_take(&self, rule: RuleId, now_ns: u64) -> bool {
        self.state(rule)
            .is_none_or(|state| state.take_connection(now_ns))
    }

    /// Whether `bits` more are within the rule's limit; spends them when they are.
    #[must_use]
    pub fn bits_take(&self, rule: RuleId, bits: u64, now_ns: u64) -> bool {
        self.state(rule)
            .is_none_or(|state| state.take_bits(bits, now_ns))
    }
}
