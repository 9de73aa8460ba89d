//! What several repetitions say together.

/// Median and interval of some repetitions.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The lowest one.
    pub low: f64,
    /// The highest one.
    pub high: f64,
}

impl Summary {
    /// Of at least one value.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
        let n = values.len();
        Summary {
            median: f64::midpoint(at(n.saturating_sub(1) / 2), at(n / 2)),
            low: at(0),
            high: at(n.saturating_sub(1)),
        }
    }
}

/// Values counted in buckets, so that percentiles of many cost little memory and adding one costs no allocation
/// (the idea is HdrHistogram's): exact below [`FINE`], above in steps of one part in [`FINE`] at most.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    largest: u64,
}

/// Buckets for each power of two: values are good to 1.6 %.
const FINE: usize = 1 << FINE_BITS;
const FINE_BITS: u32 = 6;
/// Values have 64 bits.
const BUCKETS: usize = (64 - FINE_BITS as usize + 1) << FINE_BITS;

impl Histogram {
    pub(super) fn new() -> Self {
        Histogram {
            counts: vec![0; BUCKETS],
            total: 0,
            largest: 0,
        }
    }

    #[inline]
    pub(super) fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.total += 1;
        self.largest = self.largest.max(value);
    }

    pub(super) fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.largest = self.largest.max(other.largest);
    }

    /// Share of the values that are no larger, and that value, from small to large.
    #[allow(clippy::cast_precision_loss)] // counts
    pub(super) fn curve(&self) -> impl Iterator<Item = (f64, u64)> {
        let (total, largest) = (self.total.max(1) as f64, self.largest);
        let mut sum = 0;
        let filled = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        filled.map(move |(at, n)| {
            sum += n;
            (sum as f64 / total, upper(at).min(largest))
        })
    }

    pub(super) fn largest(&self) -> u64 {
        self.largest
    }

    /// The least value that `share` of all do not exceed; the largest one for 1.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )] // counts
    pub(super) fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut sum = 0;
        let at = self.counts.iter().position(|n| {
            sum += n;
            sum >= wanted
        });
        at.map_or(self.largest, |at| upper(at).min(self.largest))
    }
}

#[inline]
fn bucket(value: u64) -> usize {
    // Of the bits below the highest one, the first FINE_BITS choose the bucket.
    let shift = (63 - (value | FINE as u64).leading_zeros()) - FINE_BITS;
    #[allow(clippy::cast_possible_truncation)] // below 2 * FINE
    let fine = (value >> shift) as usize;
    (shift as usize) * FINE + fine
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket / FINE).saturating_sub(1);
    let first = (bucket - shift * FINE) as u64;
    (first << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::{Histogram, Summary, bucket, upper};

    #[test]
    fn buckets_are_contiguous_and_narrow() {
        let values = (0..10_000).chain((14..64).flat_map(|e| {
            let v = 1u64 << e;
            [v - 1, v, v + 1, v + v / 3, v + (v - 1)]
        }));
        let mut last = 0;
        for value in values {
            let at = bucket(value);
            assert!(at >= last, "{value}");
            last = at;
            let top = upper(at);
            assert!(
                top >= value && (top - value) as f64 <= value as f64 / 64.0,
                "{value} {top}"
            );
            assert_eq!(bucket(top), at);
            if top < u64::MAX {
                assert_eq!(bucket(top + 1), at + 1);
            }
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut h = Histogram::new();
        (1..=1000).for_each(|v| h.add(v));
        for (share, exact) in [(0.001, 1), (0.05, 50), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let p = h.percentile(share);
            assert!(p >= exact && p <= exact + exact / 64 + 1, "{share}: {p}");
        }
        assert_eq!((h.percentile(1.0), h.largest()), (1000, 1000));
        assert_eq!(Histogram::new().percentile(0.5), 0);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let s = Summary::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((s.low, s.median, s.high), (1.0, 2.5, 10.0));
    }
}
