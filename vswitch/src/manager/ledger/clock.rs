//! When a record was made, by both clocks, and when the two disagree.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys::time::monotonic_ns;

/// A moment by both clocks. The monotonic one counts from the machine's start, so it is told with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// Wall clock, ns since 1970.
    pub wall_ns: i64,
    /// Monotonic clock, ns since the machine started.
    pub mono_ns: u64,
    /// Which start of the machine that was; zeros when the system does not say.
    pub boot: [u8; 16],
}

/// Where the ledger takes its time from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Stamp;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    boot: [u8; 16],
}

impl SystemClock {
    /// Reads which start of the machine this is.
    #[must_use]
    pub fn new() -> Self {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
        let number = u128::from_str_radix(&digits, 16).unwrap_or(0);
        SystemClock {
            boot: number.to_be_bytes(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Stamp {
        // A thread that is interrupted between the two readings would see a step that was none. So the
        // wall clock is read between two readings of the other, and the closest of a few is taken.
        let mut best = (u64::MAX, Stamp::default());
        for _ in 0..4 {
            let before = monotonic_ns();
            let wall = SystemTime::now().duration_since(UNIX_EPOCH);
            let width = monotonic_ns() - before;
            if width < best.0 {
                let stamp = Stamp {
                    // A clock before 1970 is one that nobody has set.
                    wall_ns: wall.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)),
                    mono_ns: before,
                    boot: self.boot,
                };
                best = (width, stamp);
            }
            if best.0 < 100_000 {
                break;
            }
        }
        best.1
    }
}

/// Less than this is no step: two clocks read by a busy machine, and what a time daemon corrects at once when it starts
/// (chrony steps above a second by habit, ntpd above 128 ms).
pub const STEP_NS: u64 = 500_000_000;
/// A wall clock may run faster or slower by one part in this without a step: the kernel's adjtime slews by 500 ppm.
const SLEW: u64 = 1000;

/// Where the wall clock should be at `after`, if it is not there: it was moved since `before`. Between two starts of the
/// machine only a wall clock that went back is known to have moved.
#[must_use]
pub fn step(before: &Stamp, after: &Stamp) -> Option<i64> {
    let (elapsed, bound) = if before.boot == after.boot {
        let elapsed = after.mono_ns.saturating_sub(before.mono_ns);
        (elapsed, STEP_NS + elapsed / SLEW)
    } else if after.wall_ns < before.wall_ns {
        (0, STEP_NS)
    } else {
        return None;
    };
    let expected = before
        .wall_ns
        .saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX));
    (expected.abs_diff(after.wall_ns) > bound).then_some(expected)
}

/// The wall clock as people write it, in UTC.
#[must_use]
pub fn date(wall_ns: i64) -> String {
    // Every i64 of nanoseconds is a date between 1677 and 2262.
    jiff::Timestamp::from_nanosecond(i128::from(wall_ns))
        .map_or_else(|_never| wall_ns.to_string(), |t| format!("{t:.6}"))
}

/// The wall clock of a date that people wrote: `2026-11-26T12:00:00Z`, with an offset, or `2026-11-26` alone, its first
/// moment in UTC.
///
/// # Errors
/// It is no date.
pub fn parse_date(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no date; write 2026-11-26, or 2026-11-26T12:00:00Z");
    let moment: jiff::Timestamp = match text.parse::<jiff::Timestamp>() {
        Ok(moment) => moment,
        Err(_) => format!("{text}T00:00:00Z").parse().map_err(|_e| wrong())?,
    };
    i64::try_from(moment.as_nanosecond()).map_err(|_e| wrong())
}

#[cfg(test)]
mod tests {
    use super::{Clock, Stamp, SystemClock, date, parse_date, step};

    const S: i64 = 1_000_000_000;

    fn at(wall_s: i64, mono_s: u64, boot: u8) -> Stamp {
        Stamp {
            wall_ns: wall_s * S,
            mono_ns: mono_s * 1_000_000_000,
            boot: [boot; 16],
        }
    }

    #[test]
    fn a_step_is_what_the_other_clock_does_not_explain() {
        let before = at(1000, 10, 1);
        assert_eq!(step(&before, &at(1005, 15, 1)), None, "time passes");
        assert_eq!(step(&before, &at(1004, 15, 1)), Some(1005 * S), "slower");
        assert_eq!(step(&before, &at(1006, 15, 1)), Some(1005 * S), "faster");
        // An hour in which the clock was slewed by 500 ppm.
        assert_eq!(step(&before, &at(1000 + 3598, 10 + 3600, 1)), None);
        assert_eq!(step(&before, &at(990, 11, 1)), Some(1001 * S), "back");
        // After a start of the machine nothing tells forwards from off.
        assert_eq!(step(&before, &at(900_000, 1, 2)), None);
        assert_eq!(step(&before, &at(900, 1, 2)), Some(1000 * S));
        // Nothing overflows.
        let ends = [at(0, 0, 1), at(-9_000_000_000, u64::MAX / 2_000_000_000, 1)];
        let _ = (step(&ends[0], &ends[1]), step(&ends[1], &ends[0]));
    }

    #[test]
    fn the_machines_clocks_agree_with_themselves() {
        let clock = SystemClock::new();
        let (a, b) = (clock.now(), clock.now());
        assert!(b.mono_ns >= a.mono_ns && a.boot == b.boot);
        assert_ne!(a.boot, [0; 16], "Linux tells");
    }

    #[test]
    fn dates_are_read_as_they_are_written() {
        for ns in [
            0,
            1_790_000_000 * S,
            -S,
            i64::MIN / 1000 * 1000,
            i64::MAX / 1000 * 1000,
        ] {
            assert_eq!(parse_date(&date(ns)), Ok(ns), "{}", date(ns));
        }
        assert_eq!(date(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(parse_date("1970-01-02"), Ok(86_400 * S));
        assert_eq!(parse_date("1970-01-01T01:00:00+01:00"), Ok(0));
        for bad in ["", "yesterday", "1970-13-01", "9999-01-01"] {
            assert!(parse_date(bad).is_err(), "{bad}");
        }
    }
}
