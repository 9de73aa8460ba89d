//! Decides where every rule stands ([`super::cells`]), and writes it there.
//!
//! Memory and time are bounded, whatever the policy: copies of entries by [`COPIES`], pairs of
//! classes by [`MAX_PAIRS`], the work of finding them by [`MAX_PAIR_WORK`]. What does not fit is
//! searched more slowly, never answered otherwise.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeSet;

use ahash::AHashMap as HashMap;

use super::cells::{By, Cell, Cells, End, Entry, Groups, INDEXED, Index, write};
use super::compile::number;
use super::lanes::WORDS;
use super::ranges::Ranges;

/// A distinct set of groups, in the order they were met.
#[derive(Debug)]
pub(super) struct Draft {
    /// Ascending.
    pub(super) from: Vec<u32>,
    /// Ascending.
    pub(super) to: Vec<u32>,
}

/// An entry and the groups at its ends. `other` is not known yet.
pub(super) type Placed = (u32, u32, Entry);

/// An end is narrow when it covers at most this many sets: tried in this order, until what is left
/// fits into pairs. With 0 everything is in pairs; the others are guesses.
pub(super) const NARROW: [usize; 5] = [0, 16, 64, 256, 1024];

/// Copies of entries a policy may take, for each that it has, before it is searched more slowly:
/// guess (ClassBench's sets take up to three).
const COPIES: usize = 16;

/// And this many are always allowed: guess (1.5 MB).
const FREE_COPIES: usize = 1 << 16;

/// Pairs of classes: guess (a table of 1 MB).
const MAX_PAIRS: usize = 1 << 18;

/// With more sets than this, not everything is tried to be put in pairs: guess (most would be
/// classes of their own).
const PAIRED_SETS: usize = 1 << 12;

/// Cells looked at while gathering pairs: guess (a tenth of a second).
const MAX_PAIR_WORK: usize = 1 << 26;

/// A group in more pieces than this is held as its hull: guess.
const MAX_PIECES: usize = 4;

/// Entries up to which a cell is scanned: guess (four blocks).
const SCAN: usize = 32;

/// Rules remembered of those that one rule leaves nothing of: guess (few have any).
pub(super) const MAX_HEIRS: usize = 64;

/// For a rule, those of which something was left out because of it: what its questions may meet when
/// it is gone. One more than [`MAX_HEIRS`] stands for any number.
pub(super) type Heirs = HashMap<u32, Vec<u32>>;

/// The number of every key that is asked for is below this.
const ALL: (u32, u32) = (0, i32::MAX.cast_unsigned());

/// A group of sets.
#[derive(Clone, Debug, Default)]
struct Extent {
    /// Ranges of set numbers.
    pieces: Vec<(u32, u32)>,
    sets: usize,
    /// Entries it is an end of.
    entries: usize,
}

impl Extent {
    fn add(&mut self, set: u32) {
        self.sets += 1;
        match self.pieces.last_mut() {
            Some(last) if last.1 + 1 == set => last.1 = set,
            _ => self.pieces.push((set, set)),
        }
    }

    fn members(&self) -> impl Iterator<Item = u32> {
        self.pieces.iter().flat_map(|&(low, high)| low..=high)
    }

    /// How it is compared with: bounds, and whether they are exact.
    fn bounds(&self) -> (Vec<(u32, u32)>, bool) {
        match self.pieces.as_slice() {
            [(low, _), .., (_, high)] if self.pieces.len() > MAX_PIECES => {
                (vec![(*low, *high)], false)
            }
            pieces => (pieces.to_vec(), true),
        }
    }

    const fn width(&self) -> usize {
        if self.pieces.len() > MAX_PIECES {
            1
        } else {
            self.pieces.len()
        }
    }
}

/// The new number of every set, so that the sets of a group lie together: sets are sorted by their
/// groups, the broadest first. Networks within networks then become ranges within ranges.
pub(super) fn numbering(sets: &[Draft], from_groups: usize, to_groups: usize) -> Vec<u32> {
    let groups = |set: &Draft| -> Vec<u32> {
        let to = set.to.iter().map(|&group| group + number(from_groups));
        set.from.iter().copied().chain(to).collect()
    };
    let mut sizes = vec![0u32; from_groups + to_groups];
    for group in sets.iter().flat_map(groups) {
        if let Some(size) = sizes.get_mut(group as usize) {
            *size += 1;
        }
    }
    let mut by_size: Vec<(Reverse<u32>, u32)> = sizes.into_iter().map(Reverse).zip(0..).collect();
    by_size.sort_unstable();
    let mut places = vec![0u32; by_size.len()];
    for (place, (_, group)) in (0..).zip(&by_size) {
        if let Some(slot) = places.get_mut(*group as usize) {
            *slot = place;
        }
    }
    let mut order: Vec<(Vec<u32>, u32)> = (0..)
        .zip(sets)
        .map(|(n, set)| {
            let groups = groups(set).into_iter();
            let mut key: Vec<u32> = groups
                .filter_map(|group| places.get(group as usize).copied())
                .collect();
            key.sort_unstable();
            (key, n)
        })
        .collect();
    order.sort_unstable();
    let mut numbers = vec![0; sets.len()];
    for (new, (_, old)) in (0..).zip(&order) {
        if let Some(slot) = numbers.get_mut(*old as usize) {
            *slot = new;
        }
    }
    numbers
}

/// Places every entry. Entries are sorted by their groups; sets come by their number. `narrow` is
/// [`NARROW`], except in tests.
pub(super) fn arrange(
    sets: &[&Draft],
    groups: (usize, usize),
    entries: &[Placed],
    next_tiers: &[u32],
    narrow: &[usize],
) -> (Cells, Heirs) {
    let mut from = vec![Extent::default(); groups.0];
    let mut to = vec![Extent::default(); groups.1];
    for (n, set) in (0..).zip(sets) {
        for (extents, groups) in [(&mut from, &set.from), (&mut to, &set.to)] {
            for &group in groups {
                if let Some(extent) = extents.get_mut(group as usize) {
                    extent.add(n);
                }
            }
        }
    }
    for &(f, t, _) in entries {
        let ends = [from.get_mut(f as usize), to.get_mut(t as usize)];
        ends.into_iter().flatten().for_each(|end| end.entries += 1);
    }
    let arranger = Arranger {
        sets,
        from,
        to,
        entries,
        next_tiers,
        copies: entries.len() * COPIES + FREE_COPIES,
        heirs: RefCell::default(),
    };
    let found = narrow.iter().find_map(|&limit| {
        if limit == 0 && sets.len() > PAIRED_SETS {
            return None;
        }
        let split = arranger.split(limit)?;
        let pairs = arranger.pairs(&split.broad)?;
        Some((split, pairs))
    });
    let (split, pairs) = found.unwrap_or_else(|| arranger.last_resort());
    let lists = split.from.iter().chain(&split.to).map(|(_, entry)| entry);
    let verify = lists
        .chain(pairs.lists.iter().flatten())
        .any(|entry| entry.verify);
    let mut cells = arranger.write(split, pairs);
    if verify {
        cells.groups = memberships(sets, entries, next_tiers.len());
    }
    (cells, arranger.heirs.into_inner())
}

struct Arranger<'a> {
    sets: &'a [&'a Draft],
    from: Vec<Extent>,
    to: Vec<Extent>,
    entries: &'a [Placed],
    /// Of every rule, the first one of the tenant's next tier.
    next_tiers: &'a [u32],
    /// Entries that may be written.
    copies: usize,
    heirs: RefCell<Heirs>,
}

/// Entries with a narrow end, by set; and the rest.
#[derive(Default)]
struct Split {
    from: Vec<(u32, Entry)>,
    to: Vec<(u32, Entry)>,
    broad: Vec<Placed>,
}

/// Classes of sets, and what is between them.
struct Pairs {
    from: Vec<u32>,
    to: Vec<u32>,
    to_classes: usize,
    table: Vec<u32>,
    lists: Vec<Vec<Entry>>,
}

impl Arranger<'_> {
    /// `None` when it takes too many copies.
    fn split(&self, limit: usize) -> Option<Split> {
        let mut split = Split::default();
        let mut copies = 0;
        for cell in self.entries.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some(&(f, t, _)) = cell.first() else {
                continue;
            };
            let (Some(from), Some(to)) = (self.from.get(f as usize), self.to.get(t as usize))
            else {
                continue;
            };
            let by_from = from.sets * to.width();
            let by_to = to.sets * from.width();
            if by_from.min(by_to) > limit {
                split.broad.extend_from_slice(cell);
                continue;
            }
            // The end whose cells get longer by less.
            let (list, narrow, other) = if by_to > limit
                || by_from <= limit && by_from * from.entries <= by_to * to.entries
            {
                (&mut split.from, from, to)
            } else {
                (&mut split.to, to, from)
            };
            copies += narrow.sets * other.width() * cell.len();
            if copies > self.copies {
                return None;
            }
            let (bounds, exact) = other.bounds();
            for set in narrow.members() {
                for &(_, _, entry) in cell {
                    list.extend(bounds.iter().map(|&other| {
                        let verify = !exact;
                        let entry = Entry {
                            other,
                            verify,
                            ..entry
                        };
                        (set, entry)
                    }));
                }
            }
        }
        Some(split)
    }

    /// `None` when there are too many.
    fn pairs(&self, broad: &[Placed]) -> Option<Pairs> {
        let mut cells: HashMap<u32, Vec<(u32, &[Placed])>> = HashMap::new();
        let mut to_used = BTreeSet::new();
        for cell in broad.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            if let Some(&(f, t, _)) = cell.first() {
                cells.entry(f).or_default().push((t, cell));
                to_used.insert(t);
            }
        }
        let (from, from_classes) = classes(self.sets.iter().map(|set| &*set.from), |g| {
            cells.contains_key(&g)
        });
        let (to, to_classes) = classes(self.sets.iter().map(|set| &*set.to), |g| {
            to_used.contains(&g)
        });
        if from_classes.len() * to_classes.len() > MAX_PAIRS {
            return None;
        }
        let mut pairs = Pairs {
            from,
            to,
            to_classes: to_classes.len(),
            table: Vec::new(),
            lists: Vec::new(),
        };
        let mut known: HashMap<Vec<(u32, u32)>, u32> = HashMap::new();
        let (mut work, mut entries) = (0, 0);
        for from in &from_classes {
            let row: Vec<_> = from
                .iter()
                .filter_map(|f| Some((*f, cells.get(f)?)))
                .flat_map(|(f, cells)| cells.iter().map(move |&(t, cell)| (f, t, cell)))
                .collect();
            for to in &to_classes {
                work += row.len() + 1;
                let here = row.iter().filter(|(_, t, _)| to.binary_search(t).is_ok());
                let groups: Vec<(u32, u32)> = here.clone().map(|&(f, t, _)| (f, t)).collect();
                let next = number(pairs.lists.len());
                let at = *known.entry(groups).or_insert(next);
                pairs.table.push(at);
                if at == next {
                    let list = here.flat_map(|(_, _, cell)| cell.iter());
                    let mut list: Vec<Entry> = list
                        .map(|&(_, _, entry)| Entry {
                            other: ALL,
                            ..entry
                        })
                        .collect();
                    list.sort_unstable_by_key(|entry| entry.rule);
                    self.prune(&mut list, &Region::default());
                    entries += list.len();
                    pairs.lists.push(list);
                }
                if work > MAX_PAIR_WORK || entries > FREE_COPIES + 4 * self.entries.len() {
                    return None;
                }
            }
        }
        Some(pairs)
    }

    /// Everything in one cell, every entry verified.
    fn last_resort(&self) -> (Split, Pairs) {
        let all = self.entries.iter();
        let mut list: Vec<Entry> = all
            .map(|&(_, _, entry)| Entry {
                other: ALL,
                verify: true,
                ..entry
            })
            .collect();
        list.sort_unstable_by_key(|entry| entry.rule);
        let pairs = Pairs {
            from: vec![0; self.sets.len()],
            to: vec![0; self.sets.len()],
            to_classes: 1,
            table: vec![0],
            lists: vec![list],
        };
        (Split::default(), pairs)
    }

    fn write(&self, split: Split, pairs: Pairs) -> Cells {
        let ends = |classes: Vec<u32>, times: usize| -> Vec<End> {
            let classes = classes.into_iter().map(|class| class * number(times));
            classes
                .map(|class| End {
                    class,
                    ..End::default()
                })
                .collect()
        };
        let mut cells = Cells {
            from: ends(pairs.from, pairs.to_classes),
            to: ends(pairs.to, 1),
            table: pairs.table,
            ..Cells::default()
        };
        for (mut entries, from) in [(split.from, true), (split.to, false)] {
            entries.sort_unstable_by_key(|&(set, entry)| (set, entry.rule));
            for of_set in entries.chunk_by(|a, b| a.0 == b.0) {
                let Some(&(set, _)) = of_set.first() else {
                    continue;
                };
                let list = of_set.iter().map(|&(_, entry)| entry).collect();
                let cell = self.place(&mut cells, list, Region::default());
                let ends = if from { &mut cells.from } else { &mut cells.to };
                if let Some(end) = ends.get_mut(set as usize) {
                    end.cell = cell;
                }
            }
        }
        for list in pairs.lists {
            let cell = self.place(&mut cells, list, Region::default());
            cells.pairs.push(cell);
        }
        cells
    }

    /// Writes a list of entries in rule order, of which only what is in `region` is asked.
    fn place(&self, cells: &mut Cells, mut list: Vec<Entry>, region: Region) -> Cell {
        self.prune(&mut list, &region);
        let first = list.first().map_or(u32::MAX, |entry| entry.rule);
        if list.len() <= SCAN || cells.words.len() > self.copies * WORDS {
            return write(&mut cells.words, &list);
        }
        let ways = [By::Other, By::Key]
            .into_iter()
            .filter_map(|by| Some((by, self.cut(&list, by, &region)?)));
        let Some((by, parts)) = ways.min_by_key(|(_, parts)| {
            let total: usize = parts.iter().map(|(_, list)| list.len()).sum();
            total / parts.len().max(1)
        }) else {
            return write(&mut cells.words, &list);
        };
        let mut index = Index {
            by,
            ranges: Ranges::default(),
            cells: Vec::new(),
        };
        let mut ends = parts
            .iter()
            .skip(1)
            .map(|(start, _)| start - 1)
            .collect::<Vec<u32>>();
        ends.push(ALL.1);
        let mut starts = Vec::new();
        let mut known: HashMap<Vec<Entry>, u32> = HashMap::new();
        for ((start, part), end) in parts.into_iter().zip(ends) {
            let next = number(index.cells.len());
            let at = *known.entry(part.clone()).or_insert(next);
            starts.push((start, at));
            if at == next {
                // Holds for the other ranges that share it, too: every entry spans the range.
                let region = region.within(by, (start, end));
                let cell = self.place(cells, part, region);
                index.cells.push(cell);
            }
        }
        index.ranges = Ranges::new(starts.into_iter());
        cells.indexes.push(index);
        Cell {
            at: number(cells.indexes.len() - 1),
            len: INDEXED,
            first,
        }
    }

    /// The entries of each elementary range of one dimension; `None` when there is no gain in it.
    fn cut(&self, list: &[Entry], by: By, region: &Region) -> Option<Vec<(u32, Vec<Entry>)>> {
        let bounds = |entry: &Entry| match by {
            By::Key => entry.key,
            By::Other => entry.other,
        };
        // Where entries start (true) and after which they end.
        let mut events: Vec<(u32, bool, usize)> = vec![];
        for (n, entry) in list.iter().enumerate() {
            let (low, high) = bounds(entry);
            events.push((low, true, n));
            events.push((high.saturating_add(1), false, n));
        }
        events.sort_unstable();
        let mut parts: Vec<(u32, Vec<Entry>)> = vec![(0, Vec::new())];
        let mut active: BTreeSet<usize> = BTreeSet::new();
        let (mut copies, mut work) = (0, 0);
        for same in events.chunk_by(|a, b| a.0 == b.0) {
            let start = same.first()?.0;
            for &(_, starts, n) in same {
                if starts {
                    active.insert(n);
                } else {
                    active.remove(&n);
                }
            }
            if start > ALL.1 {
                break;
            }
            let region = region.within(by, (start, start));
            let mut part: Vec<Entry> = Vec::new();
            let mut decider = (0, 0);
            for entry in active.iter().filter_map(|&n| list.get(n)) {
                work += 1;
                let (rule, dead_below) = decider;
                if entry.rule < dead_below {
                    self.leave_out(rule, entry.rule);
                    continue;
                }
                part.push(*entry);
                if entry.decides(&region) {
                    let next_tier = self.next_tiers.get(entry.rule as usize);
                    decider = (entry.rule, next_tier.copied().unwrap_or(0));
                }
            }
            copies += part.len();
            if copies > list.len() * COPIES
                || work > list.len() * COPIES * 4
                || part.len() == list.len()
            {
                return None;
            }
            match parts.last_mut() {
                Some(last) if last.0 == start => last.1 = part,
                _ => parts.push((start, part)),
            }
        }
        Some(parts)
    }

    /// Takes out what an earlier entry of the same tier leaves nothing of.
    fn prune(&self, list: &mut Vec<Entry>, region: &Region) {
        let mut kept: Vec<Entry> = Vec::with_capacity(list.len());
        for entry in list.iter() {
            // Long lists are cut into shorter ones first.
            let over = kept.iter().take(2 * SCAN).find(|earlier| {
                let next_tier = self.next_tiers.get(earlier.rule as usize);
                next_tier.is_some_and(|&next| entry.rule < next) && earlier.covers(entry, region)
            });
            match over {
                Some(earlier) => self.leave_out(earlier.rule, entry.rule),
                None => kept.push(*entry),
            }
        }
        *list = kept;
    }

    /// Notes that something of `rule` is left out because of an `earlier` one.
    fn leave_out(&self, earlier: u32, rule: u32) {
        if earlier == rule {
            return;
        }
        let mut heirs = self.heirs.borrow_mut();
        let heirs = heirs.entry(earlier).or_default();
        if heirs.len() <= MAX_HEIRS && !heirs.contains(&rule) {
            heirs.push(rule);
        }
    }
}

/// What a list is asked about.
#[derive(Clone, Copy, Debug)]
struct Region {
    other: (u32, u32),
    key: (u32, u32),
}

impl Default for Region {
    fn default() -> Self {
        Region {
            other: ALL,
            key: ALL,
        }
    }
}

impl Region {
    fn within(self, by: By, range: (u32, u32)) -> Self {
        match by {
            By::Key => Region { key: range, ..self },
            By::Other => Region {
                other: range,
                ..self
            },
        }
    }
}

const fn contains(outer: (u32, u32), inner: (u32, u32)) -> bool {
    outer.0 <= inner.0 && inner.1 <= outer.1
}

fn clip(range: (u32, u32), to: (u32, u32)) -> (u32, u32) {
    (range.0.max(to.0), range.1.min(to.1))
}

impl Entry {
    /// Whether it matches whatever is asked about in the region.
    fn decides(&self, region: &Region) -> bool {
        !self.staged
            && !self.verify
            && self.sport == (0, u16::MAX)
            && contains(self.other, region.other)
            && contains(self.key, region.key)
    }

    /// Whether nothing in the region that matches the other one does not match this one.
    fn covers(&self, other: &Entry, region: &Region) -> bool {
        !self.staged
            && !self.verify
            && contains(self.other, clip(other.other, region.other))
            && contains(self.key, clip(other.key, region.key))
            && self.sport.0 <= other.sport.0
            && other.sport.1 <= self.sport.1
    }
}

/// A number for each distinct choice of the groups that count, of every set; and the choices.
fn classes<'a>(
    sets: impl Iterator<Item = &'a [u32]>,
    counts: impl Fn(u32) -> bool,
) -> (Vec<u32>, Vec<Vec<u32>>) {
    let mut numbers: HashMap<Vec<u32>, u32> = HashMap::new();
    let mut choices = Vec::new();
    let of_set = sets.map(|groups| {
        let choice: Vec<u32> = groups.iter().copied().filter(|&g| counts(g)).collect();
        let next = number(choices.len());
        match numbers.get(&choice) {
            Some(&known) => known,
            None => {
                choices.push(choice.clone());
                numbers.insert(choice, next);
                next
            }
        }
    });
    (of_set.collect(), choices)
}

/// What entries that are verified are held against.
fn memberships(sets: &[&Draft], entries: &[Placed], rules: usize) -> Groups {
    let mut groups = Groups {
        of_rule: vec![(0, 0); rules],
        ..Groups::default()
    };
    for &(from, to, entry) in entries {
        if let Some(slot) = groups.of_rule.get_mut(entry.rule as usize) {
            *slot = (from, to);
        }
    }
    for set in sets {
        for list in [&set.from, &set.to] {
            groups.bounds.push(number(groups.members.len()));
            groups.members.extend(list);
        }
    }
    groups.bounds.push(number(groups.members.len()));
    groups
}
