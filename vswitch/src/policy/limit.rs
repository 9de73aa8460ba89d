//! What a rule remembers between packets: how often it decided, and how much of its limit is
//! spent. Shared by successive classifiers, so that a reload neither forgets a count nor refills
//! a bucket.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::model::Limit;

const SECOND_NS: u64 = 1_000_000_000;

/// How much unused `connections` adds up: one second's worth may come at once.
const CONNECTION_BURST_NS: u64 = SECOND_NS;

/// How much unused `bits` adds up: guess; long enough that a 64 KiB frame does not stall a
/// 10 Mbit/s limit, short enough that a burst is not felt as "unlimited".
const BITS_BURST_NS: u64 = SECOND_NS / 10;

/// A token bucket in one word: the time at which everything admitted so far will have been paid
/// for (GCRA, ITU-T I.371 annex A). Never behind by more than the burst.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Admits `cost_ns` (time the rate needs to pay for it) while the debt stays within
    /// `allowance_ns` before it is added.
    fn take(&self, cost_ns: u64, allowance_ns: u64, now_ns: u64) -> bool {
        // Relaxed: the word carries no other data; only its own total order matters.
        self.0
            .fetch_update(Relaxed, Relaxed, |paid_until| {
                let start = paid_until.max(now_ns);
                (start - now_ns <= allowance_ns).then(|| start.saturating_add(cost_ns))
            })
            .is_ok()
    }
}

/// A rule's counters and buckets.
#[derive(Debug, Default)]
pub(super) struct RuleState {
    pub(super) limit: Limit,
    pub(super) hits: AtomicU64,
    pub(super) staged_hits: AtomicU64,
    connections: Bucket,
    bits: Bucket,
}

impl RuleState {
    pub(super) fn new(limit: Limit) -> Self {
        RuleState {
            limit,
            ..RuleState::default()
        }
    }

    /// Whether one more new connection is within the limit; spends it when it is.
    pub(super) fn take_connection(&self, now_ns: u64) -> bool {
        let Some(rate) = self.limit.connections else {
            return true;
        };
        let cost = SECOND_NS / rate.max(1);
        // The bucket is asked for room *after* this connection, so that exactly `rate` fit.
        self.connections
            .take(cost, CONNECTION_BURST_NS.saturating_sub(cost), now_ns)
    }

    /// Whether `bits` more are within the limit; spends them when they are. A frame is admitted
    /// while the bucket has anything left, so that one larger than the burst is not stuck for ever.
    pub(super) fn take_bits(&self, bits: u64, now_ns: u64) -> bool {
        let Some(rate) = self.limit.bits else {
            return true;
        };
        // Rounded up: the limit is never exceeded. At most 2^63 for a 1 GiB frame, so no overflow
        // for any real one; saturating for the rest.
        let cost = bits.saturating_mul(SECOND_NS).div_ceil(rate.max(1));
        self.bits.take(cost, BITS_BURST_NS, now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(rate: u64) -> RuleState {
        RuleState::new(Limit {
            connections: Some(rate),
            bits: None,
        })
    }

    fn admitted(state: &RuleState, offered: u64, now_ns: u64) -> u64 {
        (0..offered)
            .map(|_| u64::from(state.take_connection(now_ns)))
            .sum()
    }

    #[test]
    fn a_seconds_worth_at_once_then_the_rate() {
        let state = connections(100);
        let start = 5 * SECOND_NS;
        assert_eq!(admitted(&state, 500, start), 100);
        assert_eq!(admitted(&state, 500, start), 0);
        assert_eq!(admitted(&state, 500, start + SECOND_NS / 10), 10);
        assert_eq!(
            admitted(&state, 500, start + 60 * SECOND_NS),
            100,
            "no more than the burst"
        );
    }

    #[test]
    fn one_a_second_is_one_a_second() {
        let state = connections(1);
        assert_eq!(admitted(&state, 9, 0), 1);
        assert_eq!(admitted(&state, 9, SECOND_NS - 1), 0);
        assert_eq!(admitted(&state, 9, SECOND_NS), 1);
    }

    #[test]
    fn bits_hold_their_rate_over_a_second() {
        let state = RuleState::new(Limit {
            connections: None,
            bits: Some(10_000_000),
        });
        let frame = 1500 * 8;
        let sent: u64 = (0..100_000u64)
            .map(|n| {
                // 100 Mbit/s offered for 12 s.
                let now = SECOND_NS + n * 120_000;
                if state.take_bits(frame, now) {
                    frame
                } else {
                    0
                }
            })
            .sum();
        // 12 s at 10 Mbit/s and a burst of 0.1 s.
        let fair = 121_000_000;
        assert!(sent <= fair + frame && sent >= fair - 2 * frame, "{sent}");
        assert!(
            state.take_bits(u64::MAX, 100 * SECOND_NS),
            "larger than the burst"
        );
        assert!(!state.take_bits(1, 101 * SECOND_NS), "and then in debt");
    }

    #[test]
    fn no_limit_admits() {
        let state = RuleState::default();
        assert!(state.take_connection(0) && state.take_bits(u64::MAX, 0));
    }
}
