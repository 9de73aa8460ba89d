//! What tracking knows of a connection whose one end is frozen, and what a segment means that is not delivered to it.
//!
//! Nothing here is noted: what the frozen end never saw must not move what is recorded. It would be taken for delivered, and what
//! is said in its name would be wrong. What its peer says of what *it* has sent is noted when the frozen end hears of it.

use super::{Dir, FACTS};
use super::{
    Facts, LARGEST_WINDOW, Segment, Side, Words, acknowledged, after, edges, fact, fits, halves,
    other,
};
use crate::drop_reason::DropReason;
use crate::packet::tcp_flag;

/// A window that is told where the true one is not known: whatever its scale, it is one that a receiver has room for, and more than
/// nothing. It makes a waiting sender go on, and the first answer says the rest. Guess.
const SOME_WINDOW: u16 = 64;

/// What one end of a connection has said last, as far as it was delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// One past the highest number it sent.
    pub next: u32,
    /// The highest acknowledgement it sent: all that it is known to have.
    pub acked: u32,
    /// What is left of the window that it offered, as on the wire.
    pub window: u16,
    /// One past the highest number that was delivered to it.
    pub delivered: u32,
}

/// What is recorded of the end that sends in direction `dir`.
#[must_use]
pub fn recorded<W: Words>(words: &W, dir: Dir) -> Recorded {
    let facts = Facts(words.load(FACTS));
    let side = Side::load(words, dir);
    let (delivered, _) = halves(words.load(edges(other(dir))));
    let room = side.limit.wrapping_sub(side.acked);
    let window = if facts.has(fact::LOOSE) {
        SOME_WINDOW
    } else if room > LARGEST_WINDOW {
        0
    } else {
        u16::try_from(room >> facts.scale(dir)).unwrap_or(u16::MAX)
    };
    Recorded {
        next: side.end,
        acked: side.acked,
        window,
        delivered,
    }
}

/// What a segment means that its receiver does not get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undelivered {
    /// Nothing that anybody waits for.
    Nothing,
    /// Its sender wants to know whether its peer lives (RFC 9293 section 3.8.4).
    Probe,
    /// It acknowledges what was not acknowledged before.
    Acknowledges,
    /// It carries payload or a FIN. `first`: what its receiver expects next.
    Carries {
        /// See above.
        first: bool,
    },
    /// Its sender has given up.
    Reset,
}

/// Judges a segment of `dir` whose receiver does not get it. `sent` is one past the highest number in segments before it that were not
/// delivered either.
///
/// # Errors
/// It is no part of the connection.
pub fn judge<W: Words>(
    words: &W,
    dir: Dir,
    seg: &Segment,
    sent: Option<u32>,
) -> Result<Undelivered, DropReason> {
    let facts = Facts(words.load(FACTS));
    if seg.has(tcp_flag::SYN) {
        return Err(DropReason::TcpBadState);
    }
    let (sender, receiver) = (Side::load(words, dir), Side::load(words, other(dir)));
    let ack = acknowledged(seg, &receiver);
    if !fits(facts, seg, ack, &sender, &receiver) {
        return Err(DropReason::TcpOutOfWindow);
    }
    let (seq, end, expected) = (seg.tcp.seq, seg.end(), receiver.acked);
    if seg.has(tcp_flag::RST) {
        let exact = seq == expected || seq == sender.end || Some(seq) == sent;
        return Ok(if exact {
            Undelivered::Reset
        } else {
            Undelivered::Nothing
        });
    }
    if !seg.has(tcp_flag::ACK) {
        return Err(DropReason::TcpBadState);
    }
    if end != seq {
        let first = !after(seq, expected) && after(end, expected);
        return Ok(Undelivered::Carries { first });
    }
    Ok(if seq == expected.wrapping_sub(1) {
        Undelivered::Probe
    } else if after(ack, sender.acked) {
        Undelivered::Acknowledges
    } else {
        Undelivered::Nothing
    })
}

/// What a segment of an end that may have forgotten something says about what it remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Nothing.
    Unsaid,
    /// What is recorded.
    Same,
    /// Something else.
    Differs,
    /// That there is no such connection.
    None,
}

/// Compares a segment of `dir` with what is recorded of its sender. One without content starts where its sender is, and says what it
/// has. One with content may repeat what was sent before, which says nothing, unless it starts just there.
#[must_use]
pub fn compare<W: Words>(words: &W, dir: Dir, seg: &Segment) -> Memory {
    let known = recorded(words, dir);
    let (seq, ack) = (seg.tcp.seq, seg.tcp.ack);
    if seg.has(tcp_flag::SYN) {
        return Memory::Unsaid;
    }
    if seg.has(tcp_flag::RST) {
        return if seq == known.next {
            Memory::None
        } else {
            Memory::Unsaid
        };
    }
    // What it had and has not acknowledged, its peer sends again.
    let has = !after(known.acked, ack) && !after(ack, known.delivered);
    if seq == known.next && has {
        Memory::Same
    } else if seg.end() != seq || seq == known.next.wrapping_sub(1) {
        // The latter may be a probe of its own.
        Memory::Unsaid
    } else {
        Memory::Differs
    }
}

/// A number to be asked with that whoever remembers the connection, in whatever state it was some time ago, answers: it lies before
/// all that he can expect (RFC 9293 section 3.10.7.4), unless he received a gigabyte since.
#[must_use]
pub const fn before_all(acked: u32) -> u32 {
    acked.wrapping_sub(1 << 30)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{WORDS, join, offers, on_segment, start};
    use super::*;
    use crate::packet::Tcp;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Cells([AtomicU64; WORDS]);

    impl Words for Cells {
        fn load(&self, i: usize) -> u64 {
            self.0[i].load(Ordering::Acquire)
        }

        fn exchange(&self, i: usize, from: u64, to: u64) -> Result<(), u64> {
            self.0[i]
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
                .map(|_| ())
        }
    }

    /// `flags` as letters of "SAFR".
    fn seg(flags: &str, seq: u32, ack: u32, payload_len: u32) -> Segment {
        let bit = |f| match f {
            'S' => tcp_flag::SYN,
            'A' => tcp_flag::ACK,
            'F' => tcp_flag::FIN,
            'R' => tcp_flag::RST,
            other => panic!("no flag {other}"),
        };
        Segment {
            tcp: Tcp {
                seq,
                ack,
                window: 1000,
                flags: flags.chars().map(bit).sum(),
                window_scale: flags.contains('S').then_some(2),
            },
            payload_len,
        }
    }

    /// The initiator has sent 101..201, all acknowledged but the last 50; the responder 501..601, of which 501..551 was acknowledged.
    fn words() -> Cells {
        let cells = Cells(start(&seg("S", 100, 0, 0)).map(AtomicU64::new));
        for (dir, seg) in [
            (Dir::Reply, seg("SA", 500, 101, 0)),
            (Dir::Original, seg("A", 101, 501, 0)),
            (Dir::Original, seg("A", 101, 501, 100)),
            (Dir::Reply, seg("A", 501, 151, 100)),
            (Dir::Original, seg("A", 201, 551, 0)),
        ] {
            on_segment(&cells, dir, &seg).unwrap();
        }
        cells
    }

    fn all(words: &Cells) -> [u64; WORDS] {
        std::array::from_fn(|i| words.load(i))
    }

    #[test]
    fn what_is_recorded_is_what_was_said() {
        let words = words();
        let initiator = Recorded {
            next: 201,
            acked: 551,
            window: 1000,
            delivered: 601,
        };
        assert_eq!(recorded(&words, Dir::Original), initiator);
        let responder = Recorded {
            next: 601,
            acked: 151,
            window: 1000,
            delivered: 201,
        };
        assert_eq!(recorded(&words, Dir::Reply), responder);
        // A window that was used up, and one that was taken back.
        for (limit, window) in [(551, 0), (551 + 3, 0), (551 + 4, 1), (550, 0)] {
            words.0[edges(Dir::Original)].store(join(201, limit), Ordering::Release);
            assert_eq!(recorded(&words, Dir::Original).window, window, "{limit}");
        }
        // Picked up in the middle: nobody knows its scale.
        let loose = Cells(start(&seg("A", 201, 551, 0)).map(AtomicU64::new));
        assert_eq!(recorded(&loose, Dir::Original).window, SOME_WINDOW);
        assert_eq!(halves(loose.load(offers(Dir::Original))).1, LARGEST_WINDOW);
    }

    #[test]
    fn what_is_not_delivered_is_judged_and_not_noted() {
        use DropReason::{TcpBadState as State, TcpOutOfWindow as Window};
        use Undelivered as U;
        let words = words();
        let before = all(&words);
        // The responder is the peer; the initiator has acknowledged 551, and was sent up to 601.
        for (flags, seq, ack, len, sent, want) in [
            ("A", 601, 151, 0, None, Ok(U::Nothing)),
            ("A", 601, 201, 0, None, Ok(U::Acknowledges)),
            ("A", 550, 151, 0, None, Ok(U::Probe)),
            ("A", 550, 151, 1, None, Ok(U::Carries { first: false })),
            ("A", 551, 151, 50, None, Ok(U::Carries { first: true })),
            ("A", 501, 151, 100, None, Ok(U::Carries { first: true })),
            ("A", 501, 151, 50, None, Ok(U::Carries { first: false })),
            ("A", 601, 201, 50, None, Ok(U::Carries { first: false })),
            ("FA", 551, 151, 0, None, Ok(U::Carries { first: true })),
            ("FA", 601, 151, 0, None, Ok(U::Carries { first: false })),
            ("R", 551, 0, 0, None, Ok(U::Reset)),
            ("RA", 601, 201, 0, None, Ok(U::Reset)),
            ("R", 700, 0, 0, Some(700), Ok(U::Reset)),
            ("R", 700, 0, 0, None, Ok(U::Nothing)),
            ("R", 900_000_000, 0, 0, None, Err(Window)),
            ("A", 601, 202, 0, None, Err(Window)),
            ("A", 551, 900_000_000, 10, None, Err(Window)),
            ("A", 551 + 4001, 201, 10, None, Err(Window)),
            ("S", 551, 0, 0, None, Err(State)),
            ("SA", 500, 101, 0, None, Err(State)),
            ("", 551, 0, 10, None, Err(State)),
        ] {
            let judged = judge(&words, Dir::Reply, &seg(flags, seq, ack, len), sent);
            assert_eq!(judged, want, "{flags} {seq} {ack} {len}");
            assert_eq!(all(&words), before, "noted: {flags} {seq} {ack} {len}");
        }
    }

    #[test]
    fn what_somebody_remembers_shows_in_what_he_says() {
        let words = words();
        for (flags, seq, ack, len, want) in [
            ("A", 201, 551, 0, Memory::Same),
            ("A", 201, 601, 0, Memory::Same),
            ("A", 201, 580, 30, Memory::Same),
            ("FA", 201, 551, 0, Memory::Same),
            // It has less than it said, or more than it was sent.
            ("A", 201, 550, 0, Memory::Differs),
            ("A", 201, 602, 0, Memory::Differs),
            ("A", 151, 551, 0, Memory::Differs),
            ("A", 202, 551, 0, Memory::Differs),
            // What was sent before, again; a probe; a handshake.
            ("A", 151, 551, 50, Memory::Unsaid),
            ("A", 201, 550, 10, Memory::Unsaid),
            ("A", 200, 551, 0, Memory::Unsaid),
            ("S", 7, 0, 0, Memory::Unsaid),
            ("R", 201, 0, 0, Memory::None),
            ("R", 200, 0, 0, Memory::Unsaid),
        ] {
            let said = compare(&words, Dir::Original, &seg(flags, seq, ack, len));
            assert_eq!(said, want, "{flags} {seq} {ack} {len}");
        }
        assert!(
            after(551, before_all(551)) && after(551u32.wrapping_sub(1 << 29), before_all(551))
        );
    }
}
