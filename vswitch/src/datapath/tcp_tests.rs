use std::sync::atomic::AtomicU64;

use super::*;
use tcp_flag::{ACK, FIN, PSH, RST, SYN};

pub(super) struct Conn([AtomicU64; WORDS]);

impl Words for Conn {
    fn load(&self, i: usize) -> u64 {
        self.0[i].load(Ordering::Acquire)
    }

    fn exchange(&self, i: usize, from: u64, to: u64) -> Result<(), u64> {
        self.0[i]
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

pub(super) const O: Dir = Dir::Original;
pub(super) const R: Dir = Dir::Reply;
const FORWARD: Result<Step, DropReason> = Ok(Step::Forward);
const CLOSED: Result<Step, DropReason> = Ok(Step::Closed);
const REOPEN: Result<Step, DropReason> = Ok(Step::Reopen);
const WINDOW: Result<Step, DropReason> = Err(DropReason::TcpOutOfWindow);
const STATE: Result<Step, DropReason> = Err(DropReason::TcpBadState);

/// A segment with a window of 10000.
fn seg(flags: u8, seq: u32, ack: u32, payload_len: u32) -> Segment {
    let tcp = Tcp {
        seq,
        ack,
        window: 10_000,
        flags,
        window_scale: None,
    };
    Segment { tcp, payload_len }
}

fn with_window(mut s: Segment, window: u16) -> Segment {
    s.tcp.window = window;
    s
}

fn with_scale(mut s: Segment, scale: u8) -> Segment {
    s.tcp.window_scale = Some(scale);
    s
}

impl Conn {
    pub(super) fn new(first: &Segment) -> Conn {
        Conn(start(first).map(AtomicU64::new))
    }

    pub(super) fn go(&self, dir: Dir, s: Segment) -> Result<Step, DropReason> {
        // Whether a handshake is complete is one test's affair; for all others its last segment is forwarded.
        let step = on_segment(self, dir, &s)?;
        Ok(match step {
            Step::Complete => Step::Forward,
            other => other,
        })
    }

    /// Everything in order: each segment is forwarded and leaves that state.
    fn exchange_all(&self, segments: &[(Dir, Segment, State)]) {
        for (i, (dir, s, after)) in segments.iter().enumerate() {
            assert_eq!(self.go(*dir, *s), FORWARD, "{i}: {s:?}");
            assert_eq!(state(self), *after, "{i}: {s:?}");
        }
    }

    fn words(&self) -> [u64; WORDS] {
        std::array::from_fn(|i| self.load(i))
    }

    /// The segment gets this answer and leaves no trace.
    fn unmoved(&self, dir: Dir, s: Segment, answer: Result<Step, DropReason>) {
        let before = self.words();
        assert_eq!(self.go(dir, s), answer, "{s:?}");
        assert_eq!(self.words(), before, "{s:?}");
    }
}

/// Initiator's and responder's first numbers behind their SYNs.
const A: u32 = 1_000_000;
const B: u32 = 700_000;

/// Established at [`A`] and [`B`], or at other numbers.
fn established_at(a: u32, b: u32) -> Conn {
    let c = Conn::new(&seg(SYN, a.wrapping_sub(1), 0, 0));
    assert_eq!(state(&c), State::SynSent);
    c.exchange_all(&[
        (
            R,
            seg(SYN | ACK, b.wrapping_sub(1), a, 0),
            State::SynReceived,
        ),
        (O, seg(ACK, a, b, 0), State::Established),
    ]);
    c
}

fn established() -> Conn {
    established_at(A, B)
}

#[test]
fn initiator_closes_first() {
    let c = established();
    c.exchange_all(&[
        (O, seg(ACK | PSH, A, B, 500), State::Established),
        (R, seg(ACK, B, A + 500, 1460), State::Established),
        (O, seg(ACK | FIN, A + 500, B + 1460, 0), State::FinWait),
        (R, seg(ACK, B + 1460, A + 501, 0), State::CloseWait),
        (R, seg(ACK, B + 1460, A + 501, 900), State::CloseWait),
        (O, seg(ACK, A + 501, B + 2360, 0), State::CloseWait),
        (R, seg(ACK | FIN, B + 2360, A + 501, 0), State::LastAck),
        (O, seg(ACK, A + 501, B + 2361, 0), State::TimeWait),
        // The last acknowledgement was lost.
        (R, seg(ACK | FIN, B + 2360, A + 501, 0), State::TimeWait),
        (O, seg(ACK, A + 501, B + 2361, 0), State::TimeWait),
    ]);
}

#[test]
fn a_fin_behind_a_full_window_takes_a_number() {
    let full = established();
    full.exchange_all(&[
        (
            R,
            with_window(seg(ACK, B, A, 0), 10_000),
            State::Established,
        ),
        (O, seg(ACK | PSH, A, B, 10_000), State::Established),
    ]);
    // Lost before us or seen by us: its sender acknowledges from behind it.
    full.exchange_all(&[
        (O, seg(ACK, A + 10_001, B, 0), State::Established),
        (O, seg(ACK | FIN, A + 10_000, B, 0), State::FinWait),
        (O, seg(ACK, A + 10_001, B, 0), State::FinWait),
    ]);
    // There is room for nothing else.
    full.unmoved(O, seg(ACK, A + 10_001, B, 1), WINDOW);
    full.unmoved(O, seg(ACK, A + 10_002, B, 0), WINDOW);
}

#[test]
fn responder_closes_first_and_both_at_once() {
    established().exchange_all(&[
        (R, seg(ACK | FIN, B, A, 0), State::FinWait),
        (O, seg(ACK | FIN, A, B + 1, 0), State::LastAck),
        (R, seg(ACK, B + 1, A + 1, 0), State::TimeWait),
    ]);
    established().exchange_all(&[
        (O, seg(ACK | FIN, A, B, 0), State::FinWait),
        (R, seg(ACK | FIN, B, A, 0), State::LastAck),
        (O, seg(ACK, A + 1, B + 1, 0), State::LastAck),
        (R, seg(ACK, B + 1, A + 1, 0), State::TimeWait),
    ]);
    // FIN in the handshake's own acknowledgement.
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    c.exchange_all(&[
        (R, seg(SYN | ACK, B - 1, A, 0), State::SynReceived),
        (O, seg(ACK | FIN, A, B, 10), State::FinWait),
        (R, seg(ACK, B, A + 11, 0), State::CloseWait),
    ]);
}

#[test]
fn retransmissions_and_reordering_fit() {
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    c.exchange_all(&[
        (O, seg(SYN, A - 1, 0, 0), State::SynSent),
        (R, seg(SYN | ACK, B - 1, A, 0), State::SynReceived),
        (O, seg(SYN, A - 1, 0, 0), State::SynReceived),
        (R, seg(SYN | ACK, B - 1, A, 0), State::SynReceived),
        (O, seg(ACK, A, B, 1000), State::Established),
        (O, seg(ACK, A + 2000, B, 1000), State::Established),
        (O, seg(ACK, A + 1000, B, 1000), State::Established),
        (R, seg(ACK, B, A + 1000, 0), State::Established),
        (R, seg(SYN | ACK, B - 1, A, 0), State::Established),
        (O, seg(SYN, A - 1, 0, 0), State::Established),
        (R, seg(ACK, B, A + 3000, 0), State::Established),
        (O, seg(ACK, A, B, 1000), State::Established),
        (R, seg(ACK, B, A, 0), State::Established),
        // FIN before the data it follows.
        (O, seg(ACK | FIN, A + 4000, B, 0), State::FinWait),
        (O, seg(ACK, A + 3000, B, 1000), State::FinWait),
        (R, seg(ACK, B, A + 4001, 0), State::CloseWait),
    ]);
}

#[test]
fn a_repeated_handshake_does_not_restart_a_living_connection() {
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    c.exchange_all(&[
        (R, seg(SYN | ACK, B - 1, A, 0), State::SynReceived),
        (O, seg(SYN, A - 1, 0, 0), State::SynReceived),
        (O, seg(ACK, A, B, 9000), State::Established),
        (R, seg(SYN | ACK, B - 1, A, 0), State::Established),
        (R, seg(ACK, B, A + 9000, 0), State::Established),
    ]);
}

#[test]
fn numbers_wrap() {
    let (a, b) = (u32::MAX - 1000, u32::MAX - 2);
    let c = established_at(a, b);
    for i in 0..10u32 {
        let (seq, ack) = (a.wrapping_add(i * 1000), b.wrapping_add(i * 10));
        assert_eq!(c.go(O, seg(ACK, seq, ack, 1000)), FORWARD);
        let answer = seg(ACK, ack, seq.wrapping_add(1000), 10);
        assert_eq!(c.go(R, answer), FORWARD);
        c.unmoved(O, seg(ACK, seq.wrapping_add(20_000), ack, 1), WINDOW);
    }
    assert_eq!(Side::load(&c, O).end, a.wrapping_add(10_000));
}

#[test]
fn windows_scale_when_both_asked_for_it() {
    let open = |original: Option<u8>, reply: Option<u8>| {
        let scaled = |s: Segment, scale: Option<u8>| scale.map_or(s, |n| with_scale(s, n));
        let c = Conn::new(&scaled(seg(SYN, A - 1, 0, 0), original));
        assert_eq!(c.go(R, scaled(seg(SYN | ACK, B - 1, A, 0), reply)), FORWARD);
        // A window in a SYN is never scaled. (Without content: one more, for a FIN.)
        c.unmoved(O, seg(ACK, A + 10_002, B, 0), WINDOW);
        assert_eq!(c.go(O, seg(ACK, A, B, 0)), FORWARD);
        assert_eq!(c.go(R, seg(ACK, B, A, 0)), FORWARD);
        let limit = |dir| {
            Side::load(&c, dir)
                .limit
                .wrapping_sub(if dir == O { B } else { A })
        };
        (limit(O), limit(R))
    };
    assert_eq!(open(Some(7), Some(2)), (10_000 << 7, 10_000 << 2));
    assert_eq!(open(Some(7), Some(0)), (10_000 << 7, 10_000));
    assert_eq!(open(Some(7), None), (10_000, 10_000));
    assert_eq!(open(None, Some(7)), (10_000, 10_000));
    assert_eq!(open(None, None), (10_000, 10_000));
}

#[test]
fn large_segments_to_be_cut_later() {
    let c = Conn::new(&with_scale(seg(SYN, A - 1, 0, 0), 7));
    assert_eq!(
        c.go(
            R,
            with_scale(with_window(seg(SYN | ACK, B - 1, A, 0), 65_535), 7)
        ),
        FORWARD
    );
    assert_eq!(c.go(O, seg(ACK, A, B, 65_000)), FORWARD);
    assert_eq!(c.go(R, seg(ACK, B, A + 65_000, 0)), FORWARD);
    for i in 1..15 {
        assert_eq!(c.go(O, seg(ACK, A + i * 65_000, B, 65_000)), FORWARD);
    }
}

#[test]
fn closed_window_is_probed() {
    let c = established();
    c.exchange_all(&[
        (O, seg(ACK, A, B, 10_000), State::Established),
        (
            R,
            with_window(seg(ACK, B, A + 10_000, 0), 0),
            State::Established,
        ),
        // Linux probes with an old number, others with one byte past the window.
        (O, seg(ACK, A + 9_999, B, 0), State::Established),
        (
            R,
            with_window(seg(ACK, B, A + 10_000, 0), 0),
            State::Established,
        ),
        (O, seg(ACK, A + 10_000, B, 1), State::Established),
        (
            R,
            with_window(seg(ACK, B, A + 10_000, 0), 0),
            State::Established,
        ),
        (R, seg(ACK, B, A + 10_000, 0), State::Established),
        (O, seg(ACK, A + 10_000, B, 1_000), State::Established),
    ]);
    c.unmoved(O, seg(ACK, A + 30_000, B, 1), WINDOW);
}

#[test]
fn keepalives_fit() {
    established().exchange_all(&[
        (O, seg(ACK, A, B, 500), State::Established),
        (R, seg(ACK, B, A + 500, 0), State::Established),
        (O, seg(ACK, A + 499, B, 0), State::Established),
        (R, seg(ACK, B, A + 500, 0), State::Established),
        (O, seg(ACK, A + 499, B, 1), State::Established),
        (R, seg(ACK, B - 1, A + 500, 0), State::Established),
    ]);
}

#[test]
fn out_of_window_is_refused_and_leaves_no_trace() {
    let c = established();
    c.exchange_all(&[
        (O, seg(ACK, A, B, 500), State::Established),
        (R, seg(ACK, B, A + 500, 300_000), State::Established),
    ]);
    for (dir, s) in [
        (O, seg(ACK, A + 10_501, B, 10)), // above the responder's window
        (O, seg(ACK, A + 500 - 80_000, B, 10)), // long received
        (O, seg(ACK, A + 500, B + 300_001, 0)), // acknowledges what was never sent
        (O, seg(ACK, A + 500, B + 300_000 - 80_000, 0)), // long acknowledged
        (O, seg(ACK, A.wrapping_add(1 << 31), B, 0)), // half the space away
        (R, seg(ACK | FIN, B + 400_000, A + 500, 0)),
        (R, seg(ACK, B, A + 501, 0)),
        (O, seg(RST, A + 10_502, 0, 0)),
        (R, seg(RST | ACK, B, A + 501, 0)),
        (R, seg(SYN | ACK, B + 1_000_000, A, 0)),
    ] {
        // The last reset's number is exact; see below.
        if s.tcp.flags != RST | ACK {
            c.unmoved(dir, s, WINDOW);
        }
    }
}

#[test]
fn a_reset_closes_only_when_exact() {
    // What the receiver acknowledged last.
    let c = established();
    assert_eq!(c.go(O, seg(ACK, A, B, 500)), FORWARD);
    c.unmoved(O, seg(RST, A + 100, 0, 0), FORWARD);
    c.unmoved(O, seg(RST | ACK, A + 499, B, 0), FORWARD);
    c.unmoved(O, seg(RST, A + 9_000, 0, 0), FORWARD);
    c.unmoved(O, seg(RST, A + 11_000, 0, 0), WINDOW);
    assert_eq!(c.go(O, seg(RST, A, 0, 0)), CLOSED);
    assert_eq!(state(&c), State::Closed);
    // What the sender sent last, not yet acknowledged.
    let c = established();
    assert_eq!(c.go(O, seg(ACK, A, B, 500)), FORWARD);
    assert_eq!(c.go(O, seg(RST | ACK, A + 500, B, 0)), CLOSED);
    // From the responder; with ACK set and no number.
    let c = established();
    assert_eq!(c.go(R, seg(RST | ACK, B, 0, 0)), CLOSED);
    // Its repetition, and what was under way, fit; a SYN is a new connection.
    assert_eq!(c.go(R, seg(RST | ACK, B, A, 0)), CLOSED);
    assert_eq!(c.go(O, seg(ACK, A, B, 100)), FORWARD);
    assert_eq!(c.go(O, seg(SYN, A + 5, 0, 0)), REOPEN);
    assert_eq!(c.go(R, seg(SYN, B + 5, 0, 0)), REOPEN);
}

#[test]
fn a_refused_connection() {
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    c.unmoved(R, seg(RST | ACK, 0, A + 1, 0), WINDOW);
    c.unmoved(R, seg(RST, 77, 0, 0), FORWARD);
    assert_eq!(c.go(R, seg(RST | ACK, 0, A, 0)), CLOSED);
    assert_eq!(state(&c), State::Closed);
    assert_eq!(c.go(O, seg(SYN, A - 1, 0, 0)), REOPEN);
    // After the answer was lost on its way, and forgotten by its sender.
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    assert_eq!(c.go(R, seg(SYN | ACK, B - 1, A, 0)), FORWARD);
    assert_eq!(c.go(R, seg(RST | ACK, 0, A, 0)), CLOSED);
}

#[test]
fn what_the_state_does_not_allow() {
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    c.unmoved(O, seg(ACK, A, B, 0), STATE);
    c.unmoved(O, seg(SYN | ACK, A - 1, B, 0), STATE);
    c.unmoved(R, seg(ACK, B, A, 10), STATE);
    c.unmoved(R, seg(ACK | FIN, B, A, 0), STATE);
    c.unmoved(R, seg(SYN | ACK, B - 1, A + 1, 0), WINDOW);
    let c = established();
    c.unmoved(O, seg(SYN | ACK, A - 1, B, 0), STATE);
    // It would be a connection of the other direction.
    c.unmoved(R, seg(SYN, B + 9, 0, 0), STATE);
}

#[test]
fn both_open_at_once() {
    let c = Conn::new(&with_scale(seg(SYN, A - 1, 0, 0), 3));
    c.exchange_all(&[
        (R, with_scale(seg(SYN, B - 1, 0, 0), 4), State::SynReceived),
        (R, with_scale(seg(SYN, B - 1, 0, 0), 4), State::SynReceived),
        (O, seg(SYN | ACK, A - 1, B, 0), State::SynReceived),
        (R, seg(SYN | ACK, B - 1, A, 0), State::Established),
        (O, seg(ACK, A, B, 5000), State::Established),
        (R, seg(ACK, B, A + 5000, 5000), State::Established),
    ]);
    c.unmoved(R, seg(SYN, B + 9, 0, 0), STATE);
    assert_eq!(Side::load(&c, R).limit, A + 5000 + (10_000 << 4));
}

#[test]
fn fast_open() {
    // Data in the SYN, accepted or not; data of the responder before the handshake is over.
    for ack in [A + 300, A] {
        let c = Conn::new(&seg(SYN, A - 1, 0, 300));
        c.exchange_all(&[
            (R, seg(SYN | ACK, B - 1, ack, 0), State::SynReceived),
            (R, seg(ACK, B, ack, 1460), State::SynReceived),
            (R, seg(ACK, B + 1460, ack, 1460), State::SynReceived),
            (
                O,
                seg(ACK, ack, B + 1460, A + 300 - ack),
                State::Established,
            ),
        ]);
    }
}

#[test]
fn another_attempt_before_the_answer() {
    for other in [A + 5_000_000, A.wrapping_sub(5_000_000)] {
        let c = Conn::new(&with_scale(seg(SYN, A - 1, 0, 0), 7));
        c.exchange_all(&[(O, seg(SYN, other - 1, 0, 0), State::SynSent)]);
        c.unmoved(R, seg(SYN | ACK, B - 1, A, 0), WINDOW);
        c.exchange_all(&[
            (
                R,
                with_scale(seg(SYN | ACK, B - 1, other, 0), 7),
                State::SynReceived,
            ),
            (O, seg(ACK, other, B, 100), State::Established),
        ]);
        assert_eq!(
            Facts(c.load(FACTS)).scale(R),
            0,
            "the second SYN had no scale"
        );
    }
}

#[test]
fn another_answer_before_its_acknowledgement() {
    // SYN cookies: the answer to a repeated SYN has another number, here a lower one.
    let c = Conn::new(&seg(SYN, A - 1, 0, 0));
    let b = B - 300_000;
    c.exchange_all(&[
        (R, seg(SYN | ACK, B - 1, A, 0), State::SynReceived),
        (O, seg(SYN, A - 1, 0, 0), State::SynReceived),
        (R, seg(SYN | ACK, b - 1, A, 0), State::SynReceived),
        (O, seg(ACK, A, b, 10), State::Established),
        (R, seg(ACK, b, A + 10, 1000), State::Established),
    ]);
}

#[test]
fn half_open_is_found_and_reset() {
    // The initiator rebooted; the responder challenges his SYN, he resets, and tries again.
    let (c, new) = (established(), A + 40_000_000);
    c.exchange_all(&[
        (O, seg(SYN, new - 1, 0, 0), State::Established),
        (R, seg(ACK, B, A, 0), State::Established),
    ]);
    assert_eq!(c.go(O, seg(RST, A, 0, 0)), CLOSED);
    assert_eq!(c.go(O, seg(SYN, new - 1, 0, 0)), REOPEN);
    // The switch had forgotten the connection, the responder had not.
    let c = Conn::new(&seg(SYN, new - 1, 0, 0));
    c.unmoved(R, seg(ACK, B, A, 0), FORWARD);
    c.unmoved(O, seg(RST, A, 0, 0), FORWARD);
    c.exchange_all(&[
        (O, seg(SYN, new - 1, 0, 0), State::SynSent),
        (R, seg(SYN | ACK, B + 6, new, 0), State::SynReceived),
    ]);
}

#[test]
fn both_ends_rebooted() {
    // Nobody but us remembers: the responder accepts the SYN, and we follow.
    for new in [A + 40_000_000, A.wrapping_sub(40_000_000)] {
        let (c, other) = (established(), B + 90_000_000);
        c.exchange_all(&[
            (
                O,
                with_scale(seg(SYN, new - 1, 0, 0), 5),
                State::Established,
            ),
            (
                R,
                with_scale(seg(SYN | ACK, other - 1, new, 0), 6),
                State::SynReceived,
            ),
            (O, seg(ACK, new, other, 400), State::Established),
            (R, seg(ACK, other, new + 400, 400), State::Established),
        ]);
        assert_eq!(Facts(c.load(FACTS)).scale(O), 5);
        assert_eq!(Facts(c.load(FACTS)).scale(R), 6);
        c.unmoved(O, seg(ACK, A, B, 1), WINDOW);
    }
    // An answer to a SYN that nobody sent.
    established().unmoved(R, seg(SYN | ACK, B + 900_000, A + 40_000_000, 0), WINDOW);
}

#[test]
fn a_finished_connection_is_reopened_by_a_syn() {
    let c = established();
    c.exchange_all(&[
        (O, seg(ACK | FIN, A, B, 0), State::FinWait),
        (R, seg(ACK | FIN, B, A + 1, 0), State::LastAck),
        (O, seg(ACK, A + 1, B + 1, 0), State::TimeWait),
    ]);
    c.unmoved(O, seg(SYN, A + 100, 0, 0), REOPEN);
    c.unmoved(R, seg(SYN, B + 100, 0, 0), REOPEN);
}

#[test]
fn picked_up_in_the_middle() {
    let c = Conn::new(&seg(ACK, A, B, 100));
    assert_eq!(state(&c), State::Established);
    c.exchange_all(&[
        // Both had sent more than we saw, with windows we can't scale.
        (
            R,
            seg(ACK, B + 500_000, A + 90_000, 1000),
            State::Established,
        ),
        (
            O,
            seg(ACK, A + 90_000, B + 800_000, 1000),
            State::Established,
        ),
        (
            R,
            seg(ACK | FIN, B + 800_000, A + 91_000, 0),
            State::FinWait,
        ),
        (O, seg(ACK, A + 91_000, B + 800_001, 0), State::CloseWait),
    ]);
    c.unmoved(O, seg(ACK, A.wrapping_sub(1 << 31), B, 0), WINDOW);
    assert_eq!(state(&Conn::new(&seg(ACK | FIN, A, B, 0))), State::FinWait);
    let c = Conn::new(&seg(ACK, A, B, 0));
    assert_eq!(c.go(R, seg(RST, B, 0, 0)), CLOSED);
}

#[test]
fn a_fragmented_segment_counts_as_the_longest() {
    let mut p = Parsed {
        tcp: seg(ACK, A, B, 0).tcp,
        payload_len: 8,
        ..Parsed::EMPTY
    };
    assert_eq!(Segment::of(&p).payload_len, 8);
    p.fragment = Fragment::First { id: 1 };
    let c = established();
    assert_eq!(c.go(O, Segment::of(&p)), FORWARD);
    c.exchange_all(&[
        (R, seg(ACK, B, A + 9_000, 0), State::Established),
        (O, seg(ACK, A + 9_000, B, 100), State::Established),
        (O, seg(ACK, A, B, 100), State::Established),
    ]);
}

#[test]
fn states_have_names_and_timeouts() {
    let all = [
        State::SynSent,
        State::SynReceived,
        State::Established,
        State::FinWait,
        State::CloseWait,
        State::LastAck,
        State::TimeWait,
        State::Closed,
    ];
    let names: std::collections::HashSet<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), all.len());
    assert!(all.iter().all(|s| timeout_secs(*s) >= 10));
    assert!(
        timeout_secs(State::Established) > 2 * 3600 + 4 * 60,
        "RFC 5382"
    );
    assert_eq!(all.iter().filter(|s| is_half_open(**s)).count(), 2);
}

#[test]
fn a_handshake_is_complete_once() {
    let c = Conn::new(&seg(SYN, 99, 0, 0));
    let steps = [
        (O, seg(SYN, 99, 0, 0), Step::Forward),
        (R, seg(SYN | ACK, 499, 100, 0), Step::Forward),
        (O, seg(ACK, 100, 500, 0), Step::Complete),
        (O, seg(ACK, 100, 500, 0), Step::Forward),
        (O, seg(ACK | PSH, 100, 500, 10), Step::Forward),
        (R, seg(ACK, 500, 110, 0), Step::Forward),
    ];
    for (n, (dir, segment, step)) in steps.into_iter().enumerate() {
        assert!(was_complete(&c) == (n > 2), "{n}");
        assert_eq!(on_segment(&c, dir, &segment), Ok(step), "{n}");
    }
    assert_eq!(on_segment(&c, R, &seg(RST, 500, 0, 0)), CLOSED);
    assert!(was_complete(&c), "whatever became of it");
}
