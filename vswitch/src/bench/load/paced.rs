//! The generator at a stated rate: each frame has a moment at which it is due.

use std::time::Duration;

use super::{BURST, End, Load, QUIET, RECEIVED};
use crate::bench::stats::Histogram;
use crate::sys::time::{tsc, tsc_hz};

/// Share of a trial's time by which the generator may end late.
const LATE: f64 = 0.002;

/// What came of one trial, both directions together.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::bench) struct Trial {
    /// Frames that were due.
    pub(in crate::bench) due: u64,
    /// Of these, frames that the generator did not get to: it was too slow.
    pub(in crate::bench) missed: u64,
    /// Frames that arrived.
    pub(in crate::bench) arrived: u64,
    /// Frames that arrived otherwise than they were sent, or out of order, so far.
    pub(in crate::bench) wrong: u64,
}

impl Trial {
    /// Share of the frames that were due and did not arrive.
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    pub(in crate::bench) fn loss(&self) -> f64 {
        1.0 - self.arrived as f64 / self.due.max(1) as f64
    }
}

/// One direction.
struct Way {
    /// Number of the first frame: one with a smaller number is of before.
    first: u64,
    /// Frames whose moment came.
    handled: u64,
    /// When the frame of that number, modulo their count (a power of two), was sent.
    stamps: Vec<u64>,
}

impl Load {
    /// Both directions together at `rate` frames a second for `time`, evenly; then waits for what is under way. The
    /// delay of each frame goes into `delays`: TSC cycles from when it was put into the sender's ring to when it was
    /// taken from the receiver's.
    pub(in crate::bench) fn paced(
        &mut self,
        rate: f64,
        time: Duration,
        mut delays: Option<&mut Histogram>,
    ) -> Trial {
        self.drain();
        let hz = float(tsc_hz());
        let (per_cycle, last) = (rate / 2.0 / hz, time.as_secs_f64() * hz);
        let quiet = QUIET.as_secs_f64() * hz;
        let goal = whole(last * per_cycle);
        // `least`: more than all rings hold.
        let stamps = usize::try_from(self.least.next_power_of_two()).unwrap_or(0);
        let mut ways = self.ends.each_ref().map(|end| Way {
            first: end.sent,
            handled: 0,
            stamps: vec![0; stamps],
        });
        let (mut sent, mut arrived) = (0, 0);
        let (start, mut latest) = (tsc(), 0.0);
        loop {
            let elapsed = float(tsc().wrapping_sub(start));
            let due = whole(elapsed.min(last) * per_cycle);
            for (end, way) in self.ends.iter_mut().zip(&mut ways) {
                let more = (due - way.handled).min(BURST.into());
                let done = end.send_stamped(more, &mut way.stamps);
                way.handled += more;
                sent += done;
            }
            let mut came = 0;
            for (end, way) in self.ends.iter_mut().zip(ways.iter().rev()) {
                came += end.receive_stamped(way, delays.as_deref_mut());
            }
            arrived += came;
            if came > 0 {
                latest = elapsed;
            }
            let all = ways.iter().all(|w| w.handled == goal);
            // Whatever is missing when nothing comes any more is lost.
            let over = arrived == sent || elapsed - latest > quiet;
            if elapsed >= last && over && (all || elapsed > last * (1.0 + LATE)) {
                break;
            }
        }
        Trial {
            due: 2 * goal,
            missed: ways.iter().map(|w| goal - w.handled).sum(),
            arrived,
            wrong: self.ends.iter().map(|e| e.wrong).sum(),
        }
    }
}

impl End {
    /// Sends up to `due` frames, noting when; says how many found room.
    #[inline]
    fn send_stamped(&mut self, due: u64, stamps: &mut [u64]) -> u64 {
        let Some(queue) = self.guest.queue(0).filter(|_| due > 0) else {
            return 0;
        };
        let now = tsc();
        let before = self.sent;
        let hdr = self.frames.header(self.next);
        while self.sent - before < due && {
            let (head, len) = self.frames.head(self.sent);
            queue.push_head(&hdr, head, len)
        } {
            let at = slot(self.sent, stamps.len());
            if let Some(stamp) = stamps.get_mut(at) {
                *stamp = now;
            }
            self.sent += 1;
        }
        queue.flush();
        self.sent - before
    }

    /// Receives and checks what comes that way; says how many.
    #[inline]
    fn receive_stamped(&mut self, way: &Way, mut delays: Option<&mut Histogram>) -> u64 {
        let Some(queue) = self.guest.queue(0) else {
            return 0;
        };
        let (expected, next, wrong) = (&mut self.expected, &mut self.next, &mut self.wrong);
        let mut arrived = 0;
        let n = queue.recv_ends(
            RECEIVED,
            expected.compared(),
            |_, frame, len| match expected.check(frame, len) {
                Some(number) if number >= *next => {
                    *next = number + 1;
                    if number < way.first {
                        return;
                    }
                    arrived += 1;
                    let sent = way.stamps.get(slot(number, way.stamps.len()));
                    if let (Some(delays), Some(sent)) = (&mut delays, sent) {
                        delays.add(tsc().wrapping_sub(*sent));
                    }
                }
                Some(number) if number < self.judged => {}
                _ => *wrong += 1,
            },
        );
        self.arrived += n as u64;
        arrived
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // below `len`
fn slot(number: u64, len: usize) -> usize {
    number as usize & len.wrapping_sub(1)
}

#[inline]
#[allow(clippy::cast_precision_loss)] // hours of cycles
fn float(n: u64) -> f64 {
    n as f64
}

#[inline]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // frames, not negative
fn whole(frames: f64) -> u64 {
    frames as u64
}
