//! How connections are opened: content is judged from the first frame on, order and losses are not. Another switch may
//! install what it learns about a connection beside its data path, and reorder or drop frames until that is done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{End, Load, RECEIVED};
use crate::bench::BenchError;
use crate::guest::NetHdr;

/// Unanswered frames: a quarter of the smallest usual ring.
const OPENING: u64 = 64;
/// Without an arrival for so long, the frames under way are lost, and all begins anew:
/// another switch may take a moment to take new guests' rings into use, and drops what comes meanwhile.
const LOST: Duration = Duration::from_millis(200);
/// How often, at most.
const ANEW: u32 = 20;
/// Of each connection: the frame that opens it, and one as they come later, which another switch may treat otherwise.
const ROUNDS: u32 = 2;

impl Load {
    /// A opens every connection, B answers each; and once more. Also anew, whatever became of frames before. When this
    /// returns, nothing is under way.
    pub(in crate::bench) fn open(&mut self) -> Result<(), BenchError> {
        let mut left = ANEW;
        let mut rounds = 0;
        while rounds < ROUNDS {
            match self.round() {
                Ok(()) => rounds += 1,
                Err(opened) => {
                    rounds = 0;
                    left = left.checked_sub(1).ok_or(BenchError::Stuck {
                        opened,
                        of: self.flows.into(),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// A sends a frame on each connection, B answers each. If some are lost: how many were answered.
    fn round(&mut self) -> Result<(), u64> {
        let [a, b] = &mut self.ends;
        let flows = u64::from(self.flows);
        // B's answer has the number of what it answers, and no frame of before has such a one.
        let first = a.sent.max(b.sent).next_multiple_of(flows);
        a.sent = first;
        let mut answered = Numbers::new(first, flows);
        let mut due = VecDeque::new();
        let mut last = Instant::now();
        while answered.count < flows {
            let sent = a.sent - first;
            let unanswered = sent - answered.count;
            a.send((flows - sent).min(OPENING.saturating_sub(unanswered)));
            let mut moved = b.receive_unordered(first, |number| {
                due.push_back(number);
                true
            });
            b.send_these(&mut due);
            moved += a.receive_unordered(first, |number| answered.add(number));
            if moved > 0 {
                last = Instant::now();
            } else if last.elapsed() > LOST {
                break;
            }
        }
        for end in [a, b] {
            end.sent = first + flows;
            end.next = end.sent;
        }
        if answered.count == flows {
            Ok(())
        } else {
            Err(answered.count)
        }
    }
}

impl End {
    /// Sends the frames of these numbers, as far as there is room.
    fn send_these(&mut self, due: &mut VecDeque<u64>) {
        let Some(queue) = self.guest.queue(0) else {
            return;
        };
        while let Some(&number) = due.front() {
            if !queue.push(&NetHdr::default(), self.frames.frame(number)) {
                break;
            }
            due.pop_front();
        }
        queue.flush();
    }

    /// Receives and shows the number of each frame to `fits`, but for those of before `first`; says how many came.
    fn receive_unordered(&mut self, first: u64, mut fits: impl FnMut(u64) -> bool) -> u64 {
        let Some(queue) = self.guest.queue(0) else {
            return 0;
        };
        let (expected, wrong) = (&mut self.expected, &mut self.wrong);
        let n = queue.recv(RECEIVED, |_, frame| {
            let right = expected
                .check(frame)
                .is_some_and(|number| number < first || fits(number));
            *wrong += u64::from(!right);
        }) as u64;
        self.arrived += n;
        n
    }
}

/// Which of the numbers from `first` on were there.
struct Numbers {
    first: u64,
    words: Vec<u64>,
    count: u64,
}

impl Numbers {
    fn new(first: u64, numbers: u64) -> Self {
        let words = usize::try_from(numbers.div_ceil(64)).unwrap_or(0);
        Numbers {
            first,
            words: vec![0; words],
            count: 0,
        }
    }

    /// Whether it is one of them, and was not there before.
    fn add(&mut self, number: u64) -> bool {
        let at = number - self.first;
        let word = usize::try_from(at / 64)
            .ok()
            .and_then(|i| self.words.get_mut(i));
        let Some(word) = word.filter(|w| **w & 1 << (at % 64) == 0) else {
            return false;
        };
        *word |= 1 << (at % 64);
        self.count += 1;
        true
    }
}
