//! Several comparisons at once: with AVX2 where the processor has it, else one after the other.
//! Both ways give the same answers; a test holds them against each other.
//!
//! Invariant of the unsafe code: an [`Avx2`] exists only on a processor that has the features its
//! functions are compiled for ([`run`] is the one place that makes it).
#![allow(unsafe_code)]

/// Where a question lies in the three dimensions a list of entries is searched by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Point {
    /// The other end's set.
    pub(super) other: i32,
    /// Protocol and destination port, or EtherType.
    pub(super) key: i32,
    /// [`sport_word`].
    pub(super) sport: u32,
}

/// A source port as entries' ranges are compared with: both ends of a range as 16-bit numbers that
/// must not be above these two (low <= port, and 65535 - high <= 65535 - port).
pub(super) const fn sport_word(port: u16) -> u32 {
    sports_word(port, port)
}

/// A range of source ports, to be compared with a [`sport_word`].
pub(super) const fn sports_word(low: u16, high: u16) -> u32 {
    (u16::MAX - high) as u32 * 0x1_0000 + low as u32
}

/// Entries of a full block.
pub(super) const LANES: usize = 8;

/// Words of an entry: one below the lowest other, the highest other, the same for the key, source
/// ports; and its rule, which is not compared.
pub(super) const WORDS: usize = 6;

/// Words of a full block.
pub(super) const BLOCK: usize = LANES * WORDS;

/// Ascending numbers that are searched together: two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Node(pub(super) [i32; KEYS]);

/// Numbers in a node.
pub(super) const KEYS: usize = 32;

/// A way to compare.
pub(super) trait Lanes: Copy {
    /// How many of these numbers are below `value`.
    fn rank(self, node: &Node, value: i32) -> usize;
    /// Bit n is set when entry n of a block contains the point. `block` starts with the block's
    /// `len` (up to 8) entries: the first of their [`WORDS`], the second, and so on.
    fn inside(self, block: &[i32; BLOCK], len: usize, point: Point) -> u32;
}

/// Works everywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

impl Lanes for Plain {
    #[inline(always)]
    fn rank(self, node: &Node, value: i32) -> usize {
        node.0.iter().filter(|&&key| key < value).count()
    }

    #[inline(always)]
    fn inside(self, block: &[i32; BLOCK], len: usize, point: Point) -> u32 {
        let halves = |word: u32| (word & 0xffff, word >> 16);
        let (port, from_end) = halves(point.sport);
        let mut bits = 0;
        for n in 0..len {
            let word = |column: usize| block.get(column * len + n).copied().unwrap_or(i32::MAX);
            let (low, high) = halves(word(4).cast_unsigned());
            let inside = (word(0) < point.other)
                & (point.other <= word(1))
                & (word(2) < point.key)
                & (point.key <= word(3))
                & (low <= port)
                & (high <= from_end);
            bits |= u32::from(inside) << n;
        }
        bits
    }
}

/// The processor has AVX2, BMI and POPCNT: Intel since 2013, AMD since 2015.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LANES, Node, Point};

    /// # Safety
    /// `from` has eight numbers from `at` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: &[i32], at: usize) -> __m256i {
        // SAFETY: 32 readable bytes, says the caller; the instruction asks for no alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().wrapping_add(at).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
    pub(super) fn rank(node: &Node, value: i32) -> usize {
        let value = _mm256_set1_epi32(value);
        // SAFETY: a node has four times eight numbers.
        let below =
            |quarter: usize| _mm256_cmpgt_epi32(value, unsafe { load(&node.0, quarter * 8) });
        // A byte for each of 32 numbers; in which order does not matter.
        let low = _mm256_packs_epi32(below(0), below(1));
        let high = _mm256_packs_epi32(below(2), below(3));
        let bytes = _mm256_packs_epi16(low, high);
        _mm256_movemask_epi8(bytes).count_ones() as usize
    }

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
    pub(super) fn inside(block: &[i32; BLOCK], len: usize, point: Point) -> u32 {
        let len = len.min(LANES);
        // SAFETY: none of the five columns that are compared starts more than 32 numbers into a block of 48.
        let column = |n: usize| unsafe { load(block, len * n) };
        let other = _mm256_set1_epi32(point.other);
        let key = _mm256_set1_epi32(point.key);
        let sport = _mm256_set1_epi32(point.sport.cast_signed());
        let within = |value, low: usize| {
            let (below, highest) = (column(low), column(low + 1));
            _mm256_andnot_si256(
                _mm256_cmpgt_epi32(value, highest),
                _mm256_cmpgt_epi32(value, below),
            )
        };
        let ports = _mm256_cmpeq_epi32(_mm256_max_epu16(sport, column(4)), sport);
        let inside = _mm256_and_si256(within(other, 0), within(key, 2));
        let inside = _mm256_and_si256(inside, ports);
        let bits = _mm256_movemask_ps(_mm256_castsi256_ps(inside)).cast_unsigned();
        // Lanes beyond the entries hold something else.
        _bzhi_u32(bits, u32::try_from(len).unwrap_or(0))
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    #[inline(always)]
    fn rank(self, node: &Node, value: i32) -> usize {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { avx2::rank(node, value) }
    }

    #[inline(always)]
    fn inside(self, block: &[i32; BLOCK], len: usize, point: Point) -> u32 {
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { avx2::inside(block, len, point) }
    }
}

/// Something to do with whatever way to compare is best here.
pub(super) trait Job {
    type Out;
    /// Must be `#[inline(always)]`, to be compiled for each way.
    fn run<L: Lanes>(self, lanes: L) -> Self::Out;
}

/// Does it.
#[inline]
pub(super) fn run<J: Job>(job: J) -> J::Out {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::is_x86_feature_detected;

        #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
        fn with_avx2<J: Job>(job: J) -> J::Out {
            job.run(Avx2(()))
        }
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt")
        {
            // SAFETY: the processor has the features.
            return unsafe { with_avx2(job) };
        }
    }
    job.run(Plain)
}

/// Asks for the cache line of `slice[at]`, if there is one; costs an instruction and never faults.
#[inline(always)]
pub(super) fn prefetch<T>(slice: &[T], at: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = slice.as_ptr().wrapping_add(at);
        // SAFETY: a prefetch reads nothing the program can see, and faults nowhere.
        unsafe { _mm_prefetch(at.cast::<i8>(), _MM_HINT_T0) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (slice, at);
}

#[cfg(test)]
mod tests {
    use super::super::tests::Random;
    use super::*;

    struct Rank<'a>(&'a Node, i32);

    impl Job for Rank<'_> {
        type Out = usize;
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> usize {
            lanes.rank(self.0, self.1)
        }
    }

    struct Inside<'a>(&'a [i32; BLOCK], usize, Point);

    impl Job for Inside<'_> {
        type Out = u32;
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> u32 {
            lanes.inside(self.0, self.1, self.2)
        }
    }

    #[test]
    fn both_ways_to_compare_say_the_same() {
        let mut random = Random(5);
        let edges = [0, 1, i64::from(i32::MAX), i64::from(i32::MIN), -1];
        for _ in 0..10_000 {
            let mut number = || match random.next(3) {
                0 => edges[usize::try_from(random.next(5)).unwrap()],
                1 => i64::try_from(random.next(20)).unwrap(),
                _ => i64::try_from(random.next(1 << 32)).unwrap() + i64::from(i32::MIN),
            };
            let mut number = || i32::try_from(number()).unwrap();
            let mut keys = [0; KEYS];
            keys.fill_with(&mut number);
            keys.sort_unstable();
            let (node, value) = (Node(keys), number());
            assert_eq!(run(Rank(&node, value)), Plain.rank(&node, value));
            let point = Point {
                other: number() & i32::MAX,
                key: number() & i32::MAX,
                sport: number().cast_unsigned(),
            };
            let mut words = [0; BLOCK];
            words.fill_with(&mut number);
            let len = 1 + usize::try_from(random.next(8)).unwrap();
            let bits = run(Inside(&words, len, point));
            assert_eq!(bits, Plain.inside(&words, len, point), "{len}");
            assert_eq!(bits >> len, 0);
        }
    }

    #[test]
    fn source_ports_compare_as_ranges() {
        for (low, high) in [(0, 65535), (0, 0), (65535, 65535), (7, 9), (1, 65534)] {
            for port in [0, 1, 6, 7, 8, 9, 10, 65534, 65535] {
                let mut words = [0; BLOCK];
                words[0] = -1;
                words[1] = i32::MAX;
                words[2] = -1;
                words[3] = i32::MAX;
                words[4] = sports_word(low, high).cast_signed();
                let point = Point {
                    sport: sport_word(port),
                    ..Point::default()
                };
                let inside = (low..=high).contains(&port);
                assert_eq!(run(Inside(&words, 1, point)), u32::from(inside));
            }
        }
    }
}
