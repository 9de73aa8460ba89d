//! Disjoint ranges of numbers, each with a value.
//!
//! A static search tree: a node is 32 range starts in two cache lines, compared at once, and with
//! each level 33 times fewer ranges are left. Always as many levels, so nothing to
//! mispredict, and several searches overlap.

use super::lanes::{Job, KEYS, Lanes, Node};

/// Ranges of 32-bit numbers; each ends where the next starts, the first starts at 0.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// From the root down.
    levels: Vec<Level>,
    /// Of each range.
    values: Vec<u32>,
}

/// A level of the tree.
#[derive(Debug)]
struct Level {
    /// One less than each start, with the top bit turned over so that it compares as signed.
    nodes: Vec<Node>,
}

impl Level {
    /// From a node's place to the place below it that holds the number.
    #[inline(always)]
    fn step<L: Lanes>(&self, lanes: L, at: usize, number: i32) -> usize {
        // No number finds what fills the last node.
        match self.nodes.get(at) {
            Some(node) => at * (KEYS + 1) + lanes.rank(node, number),
            None => 0,
        }
    }
}

/// Searches that run beside each other.
pub(super) const TOGETHER: usize = 32;

const fn key(number: u32) -> i32 {
    (number ^ 1 << 31).cast_signed()
}

impl Ranges {
    /// Starts ascend, the first is 0.
    pub(super) fn new(ranges: impl Iterator<Item = (u32, u32)>) -> Self {
        let (starts, values): (Vec<i32>, Vec<u32>) =
            ranges.map(|(start, value)| (key(start), value)).unzip();
        if starts.is_empty() {
            return Ranges::default();
        }
        // From the leaves up. What is searched for is the last start that is not above a number, so
        // a node leaves out the first: the lowest below its first child.
        let mut up: Vec<Level> = Vec::new();
        let mut lowest: Vec<i32> = starts;
        while up.is_empty() || lowest.len() > 1 {
            let below = lowest.chunks(KEYS + 1);
            let nodes = below.clone().map(|below| {
                let mut node = Node([i32::MAX; KEYS]);
                let rest = below.iter().skip(1);
                node.0
                    .iter_mut()
                    .zip(rest)
                    .for_each(|(to, &from)| *to = from - 1);
                node
            });
            up.push(Level {
                nodes: nodes.collect(),
            });
            lowest = below.filter_map(|below| below.first().copied()).collect();
        }
        up.reverse();
        Ranges { levels: up, values }
    }

    /// The value of the range this number is in; 0 when there are no ranges.
    #[inline(always)]
    pub(super) fn find<L: Lanes>(&self, lanes: L, number: u32) -> u32 {
        let mut at = 0;
        for level in &self.levels {
            at = level.step(lanes, at, key(number));
        }
        self.values.get(at).copied().unwrap_or(0)
    }

    /// The same for several numbers (up to [`TOGETHER`]), level by level so that the loads overlap;
    /// each is replaced by its range's value.
    #[inline(always)]
    pub(super) fn find_all<L: Lanes>(&self, lanes: L, numbers: &mut [u32]) {
        let (mut places, mut keys) = ([0; TOGETHER], [0; TOGETHER]);
        let slots = places.iter_mut().zip(&mut keys);
        let Some((root, below)) = self.levels.split_first() else {
            numbers.fill(0);
            return;
        };
        for ((at, to), &number) in slots.zip(numbers.iter()) {
            *to = key(number);
            *at = root.step(lanes, 0, *to);
        }
        for level in below {
            for ((at, &number), _) in places.iter_mut().zip(&keys).zip(numbers.iter()) {
                *at = level.step(lanes, *at, number);
            }
        }
        for (&at, number) in places.iter().zip(numbers) {
            *number = self.values.get(at).copied().unwrap_or(0);
        }
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        let levels = self.levels.iter();
        let nodes: usize = levels.map(|level| size_of_val(&*level.nodes)).sum();
        nodes + size_of_val(&*self.values)
    }
}

/// [`Ranges::find`] for one number.
pub(super) struct Find<'a>(pub(super) &'a Ranges, pub(super) u32);

impl Job for Find<'_> {
    type Out = u32;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> u32 {
        self.0.find(lanes, self.1)
    }
}

/// [`Ranges::find_all`].
pub(super) struct FindAll<'a>(pub(super) &'a Ranges, pub(super) &'a mut [u32]);

impl Job for FindAll<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        self.0.find_all(lanes, self.1);
    }
}

/// Ranges of 128-bit numbers. IPv6 prefixes are few: a binary search.
#[derive(Debug, Default)]
pub(super) struct WideRanges {
    starts: Vec<u128>,
    values: Vec<u32>,
}

impl WideRanges {
    /// Starts ascend, the first is 0.
    pub(super) fn new(ranges: impl Iterator<Item = (u128, u32)>) -> Self {
        let (starts, values) = ranges.unzip();
        WideRanges { starts, values }
    }

    /// The value of the range this number is in; 0 when there are no ranges.
    pub(super) fn find(&self, number: u128) -> u32 {
        let at = self.starts.partition_point(|&start| start <= number);
        let value = at.checked_sub(1).and_then(|at| self.values.get(at));
        value.copied().unwrap_or(0)
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        size_of_val(&*self.starts) + size_of_val(&*self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::run;
    use super::super::tests::Random;
    use super::*;

    #[test]
    fn every_number_is_in_its_range() {
        let mut random = Random(9);
        // One level, a full one and one more, two full ones and one more, three.
        for len in [1, 2, 33, 34, 1089, 1090, 5000] {
            let mut starts = vec![0, u32::MAX];
            starts.resize_with(len.max(2), || u32::try_from(random.next(1 << 32)).unwrap());
            starts.truncate(len);
            starts.sort_unstable();
            starts.dedup();
            let ranges = Ranges::new(starts.iter().copied().zip(100..));
            let edges = starts
                .iter()
                .flat_map(|&at| [at.wrapping_sub(1), at, at.wrapping_add(1)]);
            let numbers: Vec<u32> = edges.chain([0, 1 << 31, u32::MAX]).collect();
            for numbers in numbers.chunks(TOGETHER) {
                let mut values = [0; TOGETHER];
                values[..numbers.len()].copy_from_slice(numbers);
                run(FindAll(&ranges, &mut values[..numbers.len()]));
                for (&number, value) in numbers.iter().zip(values) {
                    let at = starts.partition_point(|&start| start <= number) - 1;
                    assert_eq!(value as usize, 100 + at, "{number} of {len}");
                    assert_eq!(run(Find(&ranges, number)), value);
                }
            }
        }
        assert_eq!(run(Find(&Ranges::default(), 7)), 0);
    }
}
