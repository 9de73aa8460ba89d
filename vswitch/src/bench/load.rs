//! The generator: two virtio guests of our own on one thread, A and B, that exchange UDP over two
//! vhost-user sockets.
//!
//! A opens each connection and B answers it, as real replies in the reverse direction; then both
//! send flat out. Every frame carries its number in its direction, from which the
//! receiver computes what the whole frame must look like.

mod attach;
mod opening;
mod paced;
mod watched;

use std::path::Path;
use std::time::{Duration, Instant};

use super::frames::{Frames, Reply};
use super::options::Traffic;
use super::{BenchError, Cores, Progress};
use crate::guest::{Guest, NetHdr};
use crate::sys::time::tsc;

pub(super) use attach::{Attach, NOW, attach};
pub(super) use opening::{AGAIN, LOST};
pub(super) use watched::Watched;

/// Frames given to a ring in one go: the switch's own burst.
pub(super) const BURST: u32 = 32;
/// Frames taken from a ring in one go, at most.
pub(super) const RECEIVED: usize = 64;
/// Turns between two looks at the clock.
const TURNS: usize = 16;
/// Without an arrival for so long, the frames that are missing are lost.
pub(super) const QUIET: Duration = Duration::from_millis(20);
/// Between two looks whether another switch is there.
const LOOK: Duration = Duration::from_millis(1);
/// Without progress for so long, there will be none.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Load {
    ends: [End; 2],
    flows: u32,
    /// More frames than all rings hold: when so many arrived, some went all the way meanwhile.
    least: u64,
}

/// One guest.
#[derive(Debug)]
struct End {
    guest: Guest,
    frames: Frames,
    /// What the other end sends, as it must arrive here.
    expected: Frames,
    sent: u64,
    arrived: u64,
    /// Number of the next frame that may arrive.
    next: u64,
    /// Of frames with smaller numbers, which opened connections, some may be late.
    judged: u64,
    wrong: u64,
}

/// What one run showed, both directions together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) seconds: f64,
    /// Of these, in which a frame was sent or received.
    pub(super) busy_seconds: f64,
    /// Frames that arrived in that time.
    arrived: u64,
    /// Mean length of a frame.
    frame_bytes: u64,
}

impl Run {
    /// Million frames a second.
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    pub(super) fn mpps(&self) -> f64 {
        self.arrived as f64 / self.seconds / 1e6
    }

    /// Gigabits of frames a second.
    #[allow(clippy::cast_precision_loss)] // as above
    pub(super) fn gbps(&self) -> f64 {
        self.mpps() * self.frame_bytes as f64 * 8.0 / 1e3
    }
}

/// Frames that are not the load's.
pub(super) trait Source {
    /// The next one.
    fn next(&mut self) -> &[u8];
}

impl Load {
    /// Attaches both guests to the back-ends that listen at these paths.
    pub(super) fn connect(sockets: [&Path; 2], traffic: &Traffic) -> Result<Self, BenchError> {
        Self::attach(sockets, traffic, NOW)
    }

    /// On another switch at these paths; connections are open. On the generator's thread, which is pinned.
    pub(super) fn on(
        cores: Cores,
        sockets: [&Path; 2],
        traffic: &Traffic,
        how: Attach,
        progress: Progress<'_>,
    ) -> Result<Self, BenchError> {
        progress("attaching");
        let mut load = Self::attach(sockets, traffic, how)?;
        cores.pin_generator()?;
        progress("opening connections");
        load.open()?;
        Ok(load)
    }

    /// Attaches both guests to the back-ends at these paths.
    pub(super) fn attach(
        sockets: [&Path; 2],
        traffic: &Traffic,
        how: Attach,
    ) -> Result<Self, BenchError> {
        let [a, b] = attach(sockets, traffic.rings, traffic.sizes, how)?;
        let end = |guest, reply: Reply| End {
            guest,
            frames: Frames::new(traffic.sizes, traffic.flows, reply),
            expected: Frames::new(traffic.sizes, traffic.flows, reply.other()),
            sent: 0,
            arrived: 0,
            next: 0,
            judged: 0,
            wrong: 0,
        };
        Ok(Load {
            ends: [end(a, Reply::No), end(b, Reply::Yes)],
            flows: traffic.flows,
            least: 4 * u64::from(traffic.rings.ring),
        })
    }

    /// Has A and B send frames of another kind, each from its own source of them, and receive; says how many frames that
    /// are not the load's arrived so far.
    pub(super) fn others(&mut self, sources: &mut [impl Source; 2]) -> u64 {
        for (end, source) in self.ends.iter_mut().zip(sources) {
            if let Some(queue) = end.guest.queue(0) {
                for _ in 0..BURST {
                    if !queue.push(&NetHdr::default(), source.next()) {
                        break;
                    }
                }
                queue.flush();
            }
            end.receive();
        }
        self.ends.iter().map(|e| e.wrong).sum()
    }

    /// One frame from A to B, alone; TSC cycles from its send until B has it.
    pub(super) fn one(&mut self) -> Result<u64, BenchError> {
        let [a, b] = &mut self.ends;
        let (number, since, start) = (a.sent, Instant::now(), tsc());
        while b.next <= number {
            // It may take a moment until there is room.
            a.send(u64::from(a.sent == number));
            if b.receive() == 0 && since.elapsed() > STUCK_AFTER {
                return Err(BenchError::Stuck { opened: 0, of: 1 });
            }
        }
        let cycles = tsc().wrapping_sub(start);
        // Its buffer comes back.
        a.receive();
        Ok(cycles)
    }

    /// Memory of both guests, bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.ends
            .iter()
            .map(|e| e.guest.raw_memory().1 as u64)
            .sum()
    }

    /// Receives until nothing comes any more: what is under way belongs to what was before.
    pub(super) fn drain(&mut self) {
        let mut last = Instant::now();
        while last.elapsed() < QUIET {
            if self.ends.iter_mut().map(End::receive).sum::<u64>() > 0 {
                last = Instant::now();
            }
        }
    }

    /// Both directions for `warm_up` and then `time`; only what arrives in `time` is counted.
    /// `mark` is called when that time begins and when it is over.
    pub(super) fn run(
        &mut self,
        warm_up: Duration,
        time: Duration,
        mut mark: impl FnMut(),
    ) -> Result<Run, BenchError> {
        self.phase(warm_up);
        let arrived = |ends: &[End; 2]| ends.iter().map(|e| e.arrived).sum::<u64>();
        let before = arrived(&self.ends);
        mark();
        let (seconds, busy) = self.phase(time);
        mark();
        let wrong = self.ends.iter().map(|e| e.wrong).sum();
        if wrong > 0 {
            return Err(BenchError::Wrong(wrong));
        }
        Ok(Run {
            seconds,
            busy_seconds: seconds * busy,
            arrived: arrived(&self.ends) - before,
            frame_bytes: self.ends[0].frames.mean_bytes(),
        })
    }

    /// Sends and receives for so long, and until frames have gone all the way; the seconds it was, and
    /// the share of them in which there was something to do.
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    fn phase(&mut self, time: Duration) -> (f64, f64) {
        let start = Instant::now();
        let (mut arrived, mut idle) = (0, 0);
        let first = tsc();
        let mut last = first;
        loop {
            // A look at the clock costs as much as a frame: one for some turns.
            for _ in 0..TURNS {
                let mut moved = 0;
                for end in &mut self.ends {
                    moved += end.send(BURST.into());
                    let received = end.receive();
                    moved += received;
                    arrived += received;
                }
                let now = tsc();
                if moved == 0 {
                    idle += now - last;
                }
                last = now;
            }
            let elapsed = start.elapsed();
            if elapsed >= time && (arrived > self.least || elapsed > time + STUCK_AFTER) {
                let idle = idle as f64 / (last - first) as f64;
                return (elapsed.as_secs_f64(), 1.0 - idle);
            }
        }
    }
}

impl End {
    /// Sends up to `due` frames; says how many.
    #[inline]
    fn send(&mut self, due: u64) -> u64 {
        let Some(queue) = self.guest.queue(0) else {
            return 0;
        };
        let before = self.sent;
        let hdr = self.frames.header(self.next);
        for _ in 0..due {
            if !{
                let (head, len) = self.frames.head(self.sent);
                queue.push_head(&hdr, head, len)
            } {
                break;
            }
            self.sent += 1;
        }
        queue.flush();
        self.sent - before
    }

    /// Receives and checks; says how many.
    #[inline]
    fn receive(&mut self) -> u64 {
        let Some(queue) = self.guest.queue(0) else {
            return 0;
        };
        let (expected, next, wrong) = (&mut self.expected, &mut self.next, &mut self.wrong);
        let n = queue.recv_ends(
            RECEIVED,
            expected.compared(),
            |_, frame, len| match expected.check(frame, len) {
                Some(number) if number >= *next => *next = number + 1,
                Some(number) if number < self.judged => {}
                _ => *wrong += 1,
            },
        ) as u64;
        self.arrived += n;
        n
    }
}
