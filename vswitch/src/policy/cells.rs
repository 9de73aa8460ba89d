//! Where the rules between two sets are, and the search for the first that matches.
//!
//! A *cell* is a list of entries in rule order, searched eight at a time. Every rule stands in one
//! of three places:
//!
//! * in the cell of each set its `from` covers, when those are few: what such a cell's entries are
//!   asked is the other end's set, key and source port;
//! * in the cell of each set its `to` covers, when those are fewer;
//! * else both ends are broad ("any", a /8): broad groups are few, so sets that differ in none of
//!   them are one *class*, and every pair of classes has a cell.
//!
//! A question reads two sets and three cells, however many rules there are. Where there are few
//! sets, as segments of workloads have, all rules are in the third place and the first two cells
//! are empty. Sets are numbered so that the sets of a group lie together (nested networks always
//! can), which makes "is the other end in this group" a comparison with two bounds; where a group
//! is too scattered the entry holds its hull and is verified.

use super::lanes::{LANES, Lanes, Point, WORDS, prefetch, sport_word, sports_word};
use super::ranges::{Ranges, TOGETHER};

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// Whether rules have narrow ends; the two lists are empty when none has.
    pub(super) narrow: bool,
    /// Of every set, the rules whose `from` is narrow.
    pub(super) from: Vec<Cell>,
    /// Of every set, the rules whose `to` is narrow.
    pub(super) to: Vec<Cell>,
    /// Of every set as a `from`.
    pub(super) from_class: Vec<u32>,
    /// Of every set as a `to`.
    pub(super) to_class: Vec<u32>,
    /// For classes a and b at `a * to_classes + b`: a position in `pairs`.
    pub(super) table: Vec<u32>,
    pub(super) to_classes: u32,
    pub(super) pairs: Vec<Cell>,
    pub(super) indexes: Vec<Index>,
    /// Entries in blocks of up to eight, a field at a time, as [`super::lanes::Lanes`] compares them.
    pub(super) words: Vec<i32>,
    /// What entries that are verified are held against.
    pub(super) groups: Groups,
}

/// A list of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cell {
    /// Where in `words`; the number of an [`Index`] when `len` is [`INDEXED`].
    pub(super) at: u32,
    /// Entries.
    pub(super) len: u32,
    /// The first one's rule.
    pub(super) first: u32,
}

pub(super) const INDEXED: u32 = u32::MAX;

/// No rule.
pub(super) const NONE: u32 = u32::MAX;

impl Default for Cell {
    fn default() -> Self {
        Cell {
            at: 0,
            len: 0,
            first: u32::MAX,
        }
    }
}

/// For a cell too long to scan: cells by key or by the other end's set.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) by: By,
    pub(super) ranges: Ranges,
    pub(super) cells: Vec<Cell>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    Key,
    Other,
}

/// Membership, for entries whose bounds do not say it all. Empty when there are none.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// From-group and to-group of every rule.
    pub(super) of_rule: Vec<(u32, u32)>,
    /// For every set, where its from-groups and then its to-groups start in `members`; the last
    /// one's end.
    pub(super) bounds: Vec<u32>,
    pub(super) members: Vec<u32>,
}

impl Groups {
    #[cold]
    fn hold(&self, rule: u32, from: u32, to: u32) -> bool {
        let member = |at: usize, group: u32| {
            let end = (self.bounds.get(at), self.bounds.get(at + 1));
            let (Some(&low), Some(&high)) = end else {
                return false;
            };
            let members = self.members.get(low as usize..high as usize);
            members.is_some_and(|members| members.binary_search(&group).is_ok())
        };
        let Some(&(f, t)) = self.of_rule.get(rule as usize) else {
            return false;
        };
        member(from as usize * 2, f) && member(to as usize * 2 + 1, t)
    }
}

/// One service of one rule, as a cell holds it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Entry {
    /// Bounds of the other end's set.
    pub(super) other: (u32, u32),
    /// Bounds of the key.
    pub(super) key: (u32, u32),
    /// Bounds of the source port.
    pub(super) sport: (u16, u16),
    pub(super) rule: u32,
    pub(super) staged: bool,
    /// Whether membership is to be looked up.
    pub(super) verify: bool,
}

const STAGED: u32 = 1;
const VERIFY: u32 = 2;

/// Writes a cell's entries: full blocks of eight, then one of what is left; in a block all lowest
/// others, then all highest others, and so on. So a block of any length is read in whole lanes,
/// and the lanes beyond it are ignored.
pub(super) fn write(words: &mut Vec<i32>, entries: &[Entry]) -> Cell {
    // After the last block there must be something to read.
    words.truncate(words.len().saturating_sub(LANES));
    let at = words.len();
    for block in entries.chunks(LANES) {
        words.extend(block.iter().map(|e| e.other.0.cast_signed() - 1));
        words.extend(block.iter().map(|e| e.other.1.cast_signed()));
        words.extend(block.iter().map(|e| e.key.0.cast_signed() - 1));
        words.extend(block.iter().map(|e| e.key.1.cast_signed()));
        words.extend(
            block
                .iter()
                .map(|e| sports_word(e.sport.0, e.sport.1).cast_signed()),
        );
        words.extend(block.iter().map(|e| {
            let flags = (u32::from(e.staged) * STAGED) | (u32::from(e.verify) * VERIFY);
            (e.rule << 2 | flags).cast_signed()
        }));
    }
    words.extend([0; LANES]);
    Cell {
        at: u32::try_from(at).unwrap_or(u32::MAX),
        len: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        first: entries.first().map_or(u32::MAX, |e| e.rule),
    }
}

/// A question.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Probe {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) key: u32,
    pub(super) sport: u16,
}

/// Which rules may answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// From this one …
    pub(super) first: u32,
    /// … to before this one.
    pub(super) end: u32,
    /// Staged ones too.
    pub(super) staged: bool,
}

/// A question, and the cells its rules are in.
#[derive(Clone, Copy, Debug, Default)]
struct Question {
    probe: Probe,
    wanted: Wanted,
    from: Cell,
    to: Cell,
    pair: Cell,
}

impl Cells {
    /// The first wanted rule that matches, or [`NONE`].
    #[inline(always)]
    pub(super) fn find<L: Lanes>(&self, lanes: L, probe: Probe, wanted: Wanted) -> u32 {
        self.among(lanes, &self.question(probe, wanted))
    }

    /// The same for several, in steps: the loads of one step overlap with those of the other
    /// questions. `ask` says what a question is; each is answered in its slot.
    #[inline(always)]
    pub(super) fn find_all<L: Lanes, Q>(
        &self,
        lanes: L,
        questions: &[Q],
        mut ask: impl FnMut(&Q) -> (Probe, Wanted),
        answers: &mut [u32; TOGETHER],
    ) {
        let mut known = [Question::default(); TOGETHER];
        for (known, question) in known.iter_mut().zip(questions) {
            let (probe, wanted) = ask(question);
            *known = self.question(probe, wanted);
            prefetch(&self.words, known.pair.at as usize);
            if self.narrow {
                prefetch(&self.words, known.from.at as usize);
                prefetch(&self.words, known.to.at as usize);
            }
        }
        let known = known.iter().take(questions.len());
        for (answer, question) in answers.iter_mut().zip(known) {
            *answer = self.among(lanes, question);
        }
    }

    /// What a question is about.
    #[inline(always)]
    fn question(&self, probe: Probe, wanted: Wanted) -> Question {
        let mut question = Question {
            probe,
            wanted,
            pair: self.pair(&probe),
            ..Question::default()
        };
        if self.narrow {
            let of = |cells: &[Cell], set: u32| cells.get(set as usize).copied();
            question.from = of(&self.from, probe.from).unwrap_or_default();
            question.to = of(&self.to, probe.to).unwrap_or_default();
        }
        question
    }

    /// The first rule that matches among a question's cells, or [`NONE`].
    #[inline(always)]
    fn among<L: Lanes>(&self, lanes: L, question: &Question) -> u32 {
        let Question { probe, wanted, .. } = question;
        let hold = |rule| self.groups.hold(rule, probe.from, probe.to);
        let mut best = wanted.end;
        if self.narrow {
            best = self.search(lanes, question, probe.to, question.from, best, hold);
            best = self.search(lanes, question, probe.from, question.to, best, hold);
        }
        best = self.search(lanes, question, 0, question.pair, best, hold);
        if best < wanted.end { best } else { NONE }
    }

    /// The first wanted rule of one cell that matches, or [`NONE`]. Its entries hold the bounds of
    /// their `to`, and are verified by `hold`.
    #[inline(always)]
    pub(super) fn find_in<L: Lanes>(
        &self,
        lanes: L,
        cell: Cell,
        (probe, wanted): (Probe, Wanted),
        hold: impl Fn(u32) -> bool,
    ) -> u32 {
        let question = Question {
            probe,
            wanted,
            ..Question::default()
        };
        let best = self.search(lanes, &question, probe.to, cell, wanted.end, hold);
        if best < wanted.end { best } else { NONE }
    }

    #[inline(always)]
    fn pair(&self, probe: &Probe) -> Cell {
        let from = self.from_class.get(probe.from as usize);
        let to = self.to_class.get(probe.to as usize);
        let (Some(&from), Some(&to)) = (from, to) else {
            return Cell::default();
        };
        let at = from as usize * self.to_classes as usize + to as usize;
        let cell = self.table.get(at).copied().unwrap_or(u32::MAX);
        self.pairs.get(cell as usize).copied().unwrap_or_default()
    }

    /// The first wanted rule below `best` in one cell that matches, or `best`. `hold` verifies.
    #[inline(always)]
    fn search<L: Lanes>(
        &self,
        lanes: L,
        question: &Question,
        other: u32,
        mut cell: Cell,
        best: u32,
        hold: impl Fn(u32) -> bool,
    ) -> u32 {
        let Question { probe, wanted, .. } = question;
        let point = Point {
            other: other.cast_signed(),
            key: probe.key.cast_signed(),
            sport: sport_word(probe.sport),
        };
        if cell.first >= best {
            return best;
        }
        while cell.len == INDEXED {
            let Some(index) = self.indexes.get(cell.at as usize) else {
                return best;
            };
            let number = match index.by {
                By::Key => point.key,
                By::Other => point.other,
            };
            let at = index.ranges.find(lanes, number.cast_unsigned());
            cell = index.cells.get(at as usize).copied().unwrap_or_default();
        }
        let (mut at, mut left) = (cell.at as usize, cell.len as usize);
        while left > 0 {
            let len = left.min(LANES);
            let block = self.words.get(at..).unwrap_or(&[]);
            let mut hits = lanes.inside(block, len, point);
            while hits != 0 {
                let word = block.get(len * (WORDS - 1) + hits.trailing_zeros() as usize);
                let word = word.map_or(0, |word| word.cast_unsigned());
                let rule = word >> 2;
                if rule >= best {
                    return best;
                }
                if rule >= wanted.first
                    && (wanted.staged || word & STAGED == 0)
                    && (word & VERIFY == 0 || hold(rule))
                {
                    return rule;
                }
                hits &= hits - 1;
            }
            at += len * WORDS;
            left -= len;
        }
        best
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        let indexes = self.indexes.iter();
        let indexes = indexes
            .map(|index| size_of::<Index>() + index.ranges.size() + size_of_val(&*index.cells));
        size_of_val(&*self.from)
            + size_of_val(&*self.to)
            + size_of_val(&*self.from_class)
            + size_of_val(&*self.to_class)
            + size_of_val(&*self.table)
            + size_of_val(&*self.pairs)
            + size_of_val(&*self.words)
            + size_of_val(&*self.groups.of_rule)
            + size_of_val(&*self.groups.bounds)
            + size_of_val(&*self.groups.members)
            + indexes.sum::<usize>()
    }
}
