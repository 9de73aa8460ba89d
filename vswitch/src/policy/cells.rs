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

use super::lanes::{
    BLOCK, Job, LANES, Lanes, Point, WORDS, prefetch, run, sport_word, sports_word,
};
use super::ranges::{Ranges, TOGETHER};

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// Of every set as a `from`. Classes are multiplied by how many classes of `to` there are.
    pub(super) from: Vec<End>,
    /// Of every set as a `to`.
    pub(super) to: Vec<End>,
    /// For classes at the sum of both: a position in `pairs`.
    pub(super) table: Vec<u32>,
    pub(super) pairs: Vec<Cell>,
    pub(super) indexes: Vec<Index>,
    /// Entries in blocks of up to eight, a field at a time, as [`super::lanes::Lanes`] compares them.
    pub(super) words: Vec<i32>,
    /// What entries that are verified are held against.
    pub(super) groups: Groups,
}

/// A set at one end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    /// Among the broad groups.
    pub(super) class: u32,
    /// The rules that are narrow here.
    pub(super) cell: Cell,
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
    // Seldom asked: its work would only be in the way of the search.
    #[inline(never)]
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

/// Words of a cache line.
const LINE: usize = 64 / size_of::<i32>();

const STAGED: u32 = 1;
const VERIFY: u32 = 2;

/// Writes a cell's entries: full blocks of eight, then one of what is left; in a block all lowest
/// others, then all highest others, and so on. So a block of any length is read in whole lanes,
/// and the lanes beyond it are ignored.
pub(super) fn write(words: &mut Vec<i32>, entries: &[Entry]) -> Cell {
    // After the last block there must be something to read.
    words.truncate(words.len().saturating_sub(BLOCK));
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
    words.extend([0; BLOCK]);
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

impl Cells {
    /// The first wanted rule that matches, or [`NONE`].
    #[inline(always)]
    pub(super) fn find<L: Lanes>(&self, lanes: L, probe: Probe, wanted: Wanted) -> u32 {
        self.among(lanes, (probe, wanted), &self.between(probe.from, probe.to))
    }

    /// The same for several, in steps: the loads of one step overlap with those of the other
    /// questions. `ends` and `ask` say what a question is; each is answered in its slot.
    #[inline(always)]
    pub(super) fn find_all<'a, L: Lanes, Q>(
        &self,
        lanes: L,
        questions: &'a [Q],
        ends: impl Fn(&'a Q) -> (u32, u32),
        mut ask: impl FnMut(&'a Q) -> (Probe, Wanted),
        found: &mut [u32; TOGETHER],
    ) {
        let mut cells = [[Cell::default(); 3]; TOGETHER];
        for (cells, question) in cells.iter_mut().zip(questions) {
            let (from, to) = ends(question);
            *cells = self.between(from, to);
            for cell in cells {
                prefetch(&self.words, cell.at as usize);
                // Few cells are in one line, few in more than two.
                prefetch(&self.words, cell.at as usize + LINE);
            }
        }
        for ((found, cells), question) in found.iter_mut().zip(&cells).zip(questions) {
            *found = self.among(lanes, ask(question), cells);
        }
    }

    /// The cells with the rules between two sets: those that are narrow in `from`, in `to`, and the others.
    #[inline(always)]
    fn between(&self, from: u32, to: u32) -> [Cell; 3] {
        let ends = (self.from.get(from as usize), self.to.get(to as usize));
        let (Some(from), Some(to)) = ends else {
            return [Cell::default(); 3];
        };
        let at = from.class as usize + to.class as usize;
        let pair = self.table.get(at).copied().unwrap_or(u32::MAX);
        let pair = self.pairs.get(pair as usize).copied();
        [from.cell, to.cell, pair.unwrap_or_default()]
    }

    /// The first rule that matches among a question's cells, or [`NONE`].
    #[inline(always)]
    fn among<L: Lanes>(
        &self,
        lanes: L,
        question @ (probe, wanted): (Probe, Wanted),
        [from, to, pair]: &[Cell; 3],
    ) -> u32 {
        let mut best = wanted.end;
        best = self.search(lanes, question, probe.to, *from, best);
        best = self.search(lanes, question, probe.from, *to, best);
        best = self.search(lanes, question, 0, *pair, best);
        if best < wanted.end { best } else { NONE }
    }

    /// The first wanted rule below `best` in one cell that matches, or `best`.
    #[inline(always)]
    fn search<L: Lanes>(
        &self,
        lanes: L,
        (probe, wanted): (Probe, Wanted),
        other: u32,
        cell: Cell,
        best: u32,
    ) -> u32 {
        // An empty cell ends here, too.
        if cell.first >= best {
            return best;
        }
        let point = Point {
            other: other.cast_signed(),
            key: probe.key.cast_signed(),
            sport: sport_word(probe.sport),
        };
        let (at, len) = (cell.at as usize, cell.len as usize);
        // Nearly all are a block, in which the first hit is it.
        let block = self.words.get(at..at + BLOCK);
        if let Some(block) = block.and_then(|block| block.first_chunk())
            && len <= LANES
        {
            let hits = lanes.inside(block, len, point);
            if hits == 0 {
                return best;
            }
            let word = block.get(len * (WORDS - 1) + hits.trailing_zeros() as usize);
            let word = word.map_or(0, |word| word.cast_unsigned());
            let rule = word >> 2;
            if rule >= best {
                return best;
            }
            if rule >= wanted.first && word & (STAGED | VERIFY) == 0 {
                return rule;
            }
        }
        Search {
            cells: self,
            cell,
            point,
            wanted: Wanted {
                end: best,
                ..wanted
            },
            hold: |rule| self.groups.hold(rule, probe.from, probe.to),
        }
        .run(lanes)
    }

    /// The first wanted rule of one cell that matches, or [`NONE`]. Its entries hold the bounds of
    /// their `to`, and are verified by `hold`.
    pub(super) fn find_in(
        &self,
        cell: Cell,
        (probe, wanted): (Probe, Wanted),
        hold: impl Fn(u32) -> bool,
    ) -> u32 {
        let point = Point {
            other: probe.to.cast_signed(),
            key: probe.key.cast_signed(),
            sport: sport_word(probe.sport),
        };
        let best = run(Search {
            cells: self,
            cell,
            point,
            wanted,
            hold,
        });
        if best < wanted.end { best } else { NONE }
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        let indexes = self.indexes.iter();
        let indexes = indexes
            .map(|index| size_of::<Index>() + index.ranges.size() + size_of_val(&*index.cells));
        size_of_val(&*self.from)
            + size_of_val(&*self.to)
            + size_of_val(&*self.table)
            + size_of_val(&*self.pairs)
            + size_of_val(&*self.words)
            + size_of_val(&*self.groups.of_rule)
            + size_of_val(&*self.groups.bounds)
            + size_of_val(&*self.groups.members)
            + indexes.sum::<usize>()
    }
}

/// The first wanted rule in any cell that matches, or the end of what is wanted. `hold` verifies.
struct Search<'a, H> {
    cells: &'a Cells,
    cell: Cell,
    point: Point,
    wanted: Wanted,
    hold: H,
}

impl<H: Fn(u32) -> bool> Job for Search<'_, H> {
    type Out = u32;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> u32 {
        let Search {
            cells,
            mut cell,
            point,
            wanted,
            hold,
        } = self;
        while cell.len == INDEXED {
            let Some(index) = cells.indexes.get(cell.at as usize) else {
                return wanted.end;
            };
            let number = match index.by {
                By::Key => point.key,
                By::Other => point.other,
            };
            let at = index.ranges.find(lanes, number.cast_unsigned());
            cell = index.cells.get(at as usize).copied().unwrap_or_default();
        }
        let mut words = cells.words.get(cell.at as usize..).unwrap_or(&[]);
        let mut left = cell.len as usize;
        while left > 0 {
            let Some(block) = words.first_chunk() else {
                return wanted.end;
            };
            let len = left.min(LANES);
            let mut hits = lanes.inside(block, len, point);
            while hits != 0 {
                let word = block.get(len * (WORDS - 1) + hits.trailing_zeros() as usize);
                let word = word.map_or(0, |word| word.cast_unsigned());
                let rule = word >> 2;
                if rule >= wanted.end {
                    return wanted.end;
                }
                if rule >= wanted.first
                    && (wanted.staged || word & STAGED == 0)
                    && (word & VERIFY == 0 || hold(rule))
                {
                    return rule;
                }
                hits &= hits - 1;
            }
            left -= len;
            words = words.get(len * WORDS..).unwrap_or(&[]);
        }
        wanted.end
    }
}
