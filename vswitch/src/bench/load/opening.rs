//! How connections are opened: content is judged from the first frame on, order and losses are not, and what is lost is
//! sent again. Another switch may
//! install what it learns about a connection beside its data path, and reorder or drop frames until that is done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{End, LOOK, Load, RECEIVED};
use crate::bench::BenchError;

/// Unanswered frames: a quarter of the smallest usual ring.
const OPENING: u64 = 64;
/// Without an arrival for so long, what was not answered is sent again: another switch may take a moment to take new
/// guests' rings into use, and drops what comes meanwhile.
pub(in crate::bench) const LOST: Duration = Duration::from_millis(200);
/// How often in a row, at most.
pub(in crate::bench) const AGAIN: u32 = 20;
/// Of each connection: the frame that opens it, and one as they come later, which another switch may treat otherwise.
const ROUNDS: u32 = 2;

impl Load {
    /// A opens every connection, B answers each; and once more. Also anew, whatever became of frames before.
    pub(in crate::bench) fn open(&mut self) -> Result<(), BenchError> {
        for round in 0..ROUNDS {
            for end in &mut self.ends {
                end.frames.opens(round == 0);
                end.expected.opens(round == 0);
                if let (Some(frame), Some(queue)) = (end.frames.filler(), end.guest.queue(0)) {
                    queue.fill(frame);
                }
            }
            self.round()?;
        }
        Ok(())
    }

    /// A sends frames until one reaches B, or that time is over. Sleeps in between: the other switch may need this core to start.
    pub(in crate::bench) fn first(&mut self, within: Duration) -> Result<(), BenchError> {
        let [a, b] = &mut self.ends;
        let since = Instant::now();
        a.frames.opens(true);
        b.expected.opens(true);
        while b.arrived == 0 {
            a.send(1);
            std::thread::sleep(LOOK);
            b.receive();
            if since.elapsed() > within {
                return Err(BenchError::Stuck { opened: 0, of: 1 });
            }
        }
        Ok(())
    }

    /// A sends a frame on each connection, B answers each.
    fn round(&mut self) -> Result<(), BenchError> {
        let [a, b] = &mut self.ends;
        let flows = u64::from(self.flows);
        // B's answer has the number of what it answers, and no frame of before has such a one.
        let first = a.sent.max(b.sent).next_multiple_of(flows);
        let mut answered = Numbers::new(first, flows);
        let (mut asked, mut answers) = (VecDeque::new(), VecDeque::new());
        // Where the next one to send is looked for, and how many are under way.
        let (mut at, mut under_way) = (first, 0);
        let (mut left, mut before) = (AGAIN, 0);
        let mut last = Instant::now();
        while answered.count < flows {
            while under_way < OPENING
                && let Some(number) = answered.missing(at)
            {
                asked.push_back(number);
                at = number + 1;
                under_way += 1;
            }
            a.send_these(&mut asked);
            let mut moved = b.receive_unordered(first, |number| answers.push_back(number));
            b.send_these(&mut answers);
            let count = answered.count;
            moved += a.receive_unordered(first, |number| answered.add(number));
            under_way -= (answered.count - count).min(under_way);
            if moved > 0 {
                last = Instant::now();
            } else if last.elapsed() > LOST {
                if answered.count > before {
                    (left, before) = (AGAIN, answered.count);
                }
                left = left.checked_sub(1).ok_or(BenchError::Stuck {
                    opened: answered.count,
                    of: flows,
                })?;
                (at, under_way) = (first, 0);
                last = Instant::now();
            }
        }
        for end in [a, b] {
            end.sent = first + flows;
            end.next = end.sent;
            end.judged = end.sent;
        }
        Ok(())
    }
}

impl End {
    /// Sends the frames of these numbers, as far as there is room.
    fn send_these(&mut self, due: &mut VecDeque<u64>) {
        let Some(queue) = self.guest.queue(0) else {
            return;
        };
        let hdr = self.frames.header(self.next);
        while let Some(&number) = due.front() {
            if !{
                let (head, len) = self.frames.head(number);
                queue.push_head(&hdr, head, len)
            } {
                break;
            }
            due.pop_front();
        }
        queue.flush();
    }

    /// Receives and shows the number of each frame to `sink`, but for those of before `first`; says how many came.
    fn receive_unordered(&mut self, first: u64, mut sink: impl FnMut(u64)) -> u64 {
        let Some(queue) = self.guest.queue(0) else {
            return 0;
        };
        let (expected, wrong) = (&mut self.expected, &mut self.wrong);
        let n = queue.recv_ends(
            RECEIVED,
            expected.compared(),
            |_, frame, len| match expected.check(frame, len) {
                Some(number) if number >= first => sink(number),
                Some(_) => {}
                None => *wrong += 1,
            },
        ) as u64;
        self.arrived += n;
        n
    }
}

/// Which of the numbers from `first` on were there.
struct Numbers {
    first: u64,
    numbers: u64,
    words: Vec<u64>,
    count: u64,
}

impl Numbers {
    fn new(first: u64, numbers: u64) -> Self {
        let words = usize::try_from(numbers.div_ceil(64)).unwrap_or(0);
        Numbers {
            first,
            numbers,
            words: vec![0; words],
            count: 0,
        }
    }

    #[allow(clippy::cast_possible_truncation)] // an index
    fn word(&mut self, number: u64) -> Option<&mut u64> {
        self.words
            .get_mut((number.checked_sub(self.first)? / 64) as usize)
    }

    fn add(&mut self, number: u64) {
        let bit = 1 << ((number - self.first) % 64);
        if let Some(word) = self.word(number)
            && *word & bit == 0
        {
            *word |= bit;
            self.count += 1;
        }
    }

    /// The first one from `at` on that was not there.
    fn missing(&mut self, mut at: u64) -> Option<u64> {
        while at < self.first + self.numbers {
            let bit = (at - self.first) % 64;
            let there = u64::from((*self.word(at)? >> bit).trailing_ones());
            if there == 0 {
                return Some(at);
            }
            at += there;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn what_is_missing_is_found() {
        let mut numbers = Numbers::new(1000, 130);
        assert_eq!(numbers.missing(1000), Some(1000));
        for number in (1000..1130).filter(|n| ![1063, 1064, 1129].contains(n)) {
            numbers.add(number);
            numbers.add(number);
        }
        assert_eq!(numbers.count, 127);
        assert_eq!(numbers.missing(1000), Some(1063));
        assert_eq!(numbers.missing(1064), Some(1064));
        assert_eq!(numbers.missing(1065), Some(1129));
        numbers.add(1129);
        assert_eq!(numbers.missing(1065), None);
    }
}
