//! TCP tracking: which segments belong to a connection, and in which state it is (RFC 9293).
//!
//! The state of a connection is five words, [`WORDS`], kept in its table entry. Word 0 holds facts that
//! were seen (each side's SYN, FIN, their acknowledgements, a reset): the state is computed from
//! them. The others hold, per side, four sequence numbers and sizes, as in G. van Rooij's *Real
//! stateful TCP packet filtering*, which Linux' conntrack follows too:
//!
//! * `end`: one past the highest number it sent;
//! * `limit`: the number its peer may send up to: highest acknowledgement plus window;
//! * `acked`: the highest acknowledgement it sent;
//! * `window`: the largest window it offered.
//!
//! A segment fits if it starts at or before the peer's `limit` (one later when it is empty), ends no more than the peer's
//! `window` below its own `end`, and acknowledges what the peer sent and not too long ago. Both
//! lower bounds have [`SLACK`]: what lies there was received long ago and the receiver only answers it.
//!
//! *Strictness*, in the manner of RFC 5961: a reset closes only when its number is exactly what the
//! receiver expects; another that fits is forwarded and changes nothing (the receiver challenges
//! it). A SYN of the initiator on a living connection is forwarded whatever its number and changes
//! nothing (section 4.2: the receiver challenges it, and a rebooted initiator resets his half-open
//! connection); if the responder *accepts* it, its SYN-ACK says so and the connection starts anew.
//! A SYN of the responder would be a connection of the other direction, which nobody judged: refused.
//!
//! *Thread-safety.* The two sides may be tracked by two workers, and one side by several. A side's
//! segments write mostly that side's words. Every field moves by compare-and-swap, forward in serial
//! arithmetic (RFC 1982), before the frame is published to its receiver; thus whatever answers a frame finds
//! its traces. A check that fails is repeated once on fresh values. Only the handshake overwrites: a
//! new attempt of the initiator before the responder has answered, a new answer before the initiator
//! has acknowledged one; then the numbers overwritten are nobody's any more.

use std::fmt;
use std::sync::atomic::Ordering;

use flowtable::{ConnRef, FAR_WORDS, NEAR_WORDS};

use super::conn::Dir;
use crate::drop_reason::DropReason;
use crate::packet::{Fragment, Parsed, Tcp, tcp_flag};

#[path = "tcp_frozen.rs"]
pub mod frozen;

/// Words of state per connection: the table's far user words.
pub const WORDS: usize = FAR_WORDS;

/// What was seen, and options: [`Facts`].
const FACTS: usize = 0;

/// Room below the lower bounds. 64 KiB and a frame: a segment of unknown length (see
/// [`Segment::of`]) or a zero-window probe may overshoot `end` by as much. (Linux:
/// `MAXACKWINCONST`.)
const SLACK: u32 = 66_000;
/// The largest window there is: 65535 with a shift of 14 (RFC 7323 section 2.3).
const LARGEST_WINDOW: u32 = 0xffff << LARGEST_SCALE;
const LARGEST_SCALE: u8 = 14;

/// Where a connection's words are kept.
pub trait Words {
    /// Reads word `i`, below [`WORDS`]; acquires.
    fn load(&self, i: usize) -> u64;
    /// Writes `to` if the word still is `from`; releases.
    ///
    /// # Errors
    /// What the word is instead.
    fn exchange(&self, i: usize, from: u64, to: u64) -> Result<(), u64>;
}

impl Words for ConnRef<'_> {
    #[inline]
    fn load(&self, i: usize) -> u64 {
        self.user(NEAR_WORDS + i).load(Ordering::Acquire)
    }

    #[inline]
    fn exchange(&self, i: usize, from: u64, to: u64) -> Result<(), u64> {
        self.user(NEAR_WORDS + i)
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

/// A TCP segment as tracking sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Header fields.
    pub tcp: Tcp,
    /// Bytes of payload: up to 64 KiB for a segment that is yet to be cut.
    pub payload_len: u32,
}

impl Segment {
    /// The segment of a parsed TCP packet. The length of a fragmented segment is not known from
    /// its first fragment; it counts as the longest possible.
    #[inline]
    #[must_use]
    pub fn of(p: &Parsed) -> Self {
        let payload_len = match p.fragment {
            Fragment::No => p.payload_len,
            _ => 0xffff,
        };
        Segment {
            tcp: p.tcp,
            payload_len,
        }
    }

    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.tcp.flags & flag != 0
    }

    /// One past the last number it takes; SYN and FIN take one each.
    #[inline]
    pub(crate) fn end(&self) -> u32 {
        let controls = (self.tcp.flags & (tcp_flag::SYN | tcp_flag::FIN)).count_ones();
        self.tcp
            .seq
            .wrapping_add(self.payload_len)
            .wrapping_add(controls)
    }
}

/// What to do with a segment that fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Forward it.
    Forward,
    /// Forward it; the handshake is complete with it.
    Complete,
    /// Forward it; it reset the connection, whose state is [`State::Closed`] now.
    Closed,
    /// A SYN on a connection that is over: forget the connection, judge the SYN as a new one's.
    Reopen,
}

/// The state of a connection, as an onlooker between both ends knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The initiator's SYN was seen.
    SynSent,
    /// Both SYNs were seen, not both acknowledged.
    SynReceived,
    /// Both SYNs were acknowledged.
    Established,
    /// One side's FIN was seen.
    FinWait,
    /// One side's FIN was acknowledged; the other may go on sending.
    CloseWait,
    /// Both FINs were seen, not both acknowledged.
    LastAck,
    /// Both FINs were acknowledged.
    TimeWait,
    /// It was reset.
    Closed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::SynSent => "syn-sent",
            State::SynReceived => "syn-received",
            State::Established => "established",
            State::FinWait => "fin-wait",
            State::CloseWait => "close-wait",
            State::LastAck => "last-ack",
            State::TimeWait => "time-wait",
            State::Closed => "closed",
        })
    }
}

/// Seconds a connection in this state may stay silent: Linux' `nf_conntrack_tcp_timeout_*`, which
/// TCP stacks are used to. (RFC 5382 asks for 2 hours and 4 minutes at least when established.)
#[must_use]
pub const fn timeout_secs(state: State) -> u32 {
    match state {
        State::SynSent | State::FinWait | State::TimeWait => 120,
        State::SynReceived | State::CloseWait => 60,
        State::Established => 5 * 24 * 3600,
        State::LastAck => 30,
        State::Closed => 10,
    }
}

/// Whether the handshake is not complete.
#[must_use]
pub const fn is_half_open(state: State) -> bool {
    matches!(state, State::SynSent | State::SynReceived)
}

/// Bits of word 0. An array has one bit or shift per direction.
mod fact {
    /// The responder's SYN was seen.
    pub(super) const REPLIED: u64 = 1;
    /// This side's SYN was acknowledged.
    pub(super) const SYN_ACKED: [u64; 2] = [1 << 1, 1 << 2];
    /// This side's FIN was seen.
    pub(super) const FIN: [u64; 2] = [1 << 3, 1 << 4];
    /// This side's FIN was acknowledged.
    pub(super) const FIN_ACKED: [u64; 2] = [1 << 5, 1 << 6];
    /// An exact reset was seen.
    pub(super) const RESET: u64 = 1 << 7;
    /// Picked up in the middle: the handshake, and thus scales and windows, are not known.
    pub(super) const LOOSE: u64 = 1 << 8;
    /// Both sides opened at once.
    pub(super) const CROSSED: u64 = 1 << 9;
    /// This side's SYN had a window scale, of which the shift is in four bits from `SCALE_SHIFT`.
    pub(super) const SCALED: [u64; 2] = [1 << 10, 1 << 11];
    pub(super) const SCALE_SHIFT: [u32; 2] = [16, 20];
    /// A foreign SYN of the initiator was let through; its `end` is in the upper half of the word,
    /// its scale in the bits below.
    pub(super) const PENDING: u64 = 1 << 12;
    pub(super) const PENDING_SCALED: u64 = 1 << 13;
    pub(super) const PENDING_SCALE_SHIFT: u32 = 24;
    /// All of the three.
    pub(super) const PENDING_ALL: u64 =
        0xffff_ffff << 32 | 0xf << PENDING_SCALE_SHIFT | PENDING | PENDING_SCALED;
}

/// Word 0.
#[derive(Clone, Copy)]
struct Facts(u64);

impl Facts {
    #[inline]
    fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    #[inline]
    fn state(self) -> State {
        let both = |bits: [u64; 2]| self.has(bits[0] | bits[1]);
        let one = |bits: [u64; 2]| self.0 & (bits[0] | bits[1]) != 0;
        if self.has(fact::RESET) {
            State::Closed
        } else if both(fact::FIN_ACKED) {
            State::TimeWait
        } else if both(fact::FIN) {
            State::LastAck
        } else if one(fact::FIN_ACKED) {
            State::CloseWait
        } else if one(fact::FIN) {
            State::FinWait
        } else if both(fact::SYN_ACKED) {
            State::Established
        } else if self.has(fact::REPLIED) {
            State::SynReceived
        } else {
            State::SynSent
        }
    }

    /// The shift of the windows `dir` offers: none unless both SYNs had the option (RFC 7323
    /// section 2.2).
    #[inline]
    fn scale(self, dir: Dir) -> u32 {
        if self.has(fact::SCALED[0] | fact::SCALED[1]) {
            let [original, reply] = fact::SCALE_SHIFT.map(|shift| (self.0 >> shift) & 0xf);
            let scale = match dir {
                Dir::Original => original,
                Dir::Reply => reply,
            };
            u32::try_from(scale).unwrap_or(0)
        } else {
            0
        }
    }

    /// With the window scale option of `dir`'s SYN, in place of an earlier one's.
    fn with_scale(self, dir: Dir, scale: Option<u8>) -> Facts {
        let (bit, shift) = (of(fact::SCALED, dir), of(fact::SCALE_SHIFT, dir));
        let cleared = self.0 & !(bit | 0xf << shift);
        Facts(cleared | scale.map_or(0, |s| bit | u64::from(s & 0xf) << shift))
    }

    /// Remembers a foreign SYN.
    fn with_pending(self, syn: &Segment) -> Facts {
        let scale = syn.tcp.window_scale.map_or(0, |s| {
            fact::PENDING_SCALED | u64::from(s & 0xf) << fact::PENDING_SCALE_SHIFT
        });
        let pending = u64::from(syn.end()) << 32 | fact::PENDING | scale;
        Facts(self.0 & !fact::PENDING_ALL | pending)
    }

    /// The end and the scale of the foreign SYN that was let through last.
    fn pending(self) -> Option<(u32, Option<u8>)> {
        let scale = self.has(fact::PENDING_SCALED).then(|| {
            let bits = (self.0 >> fact::PENDING_SCALE_SHIFT) & 0xf;
            u8::try_from(bits).unwrap_or(0)
        });
        self.has(fact::PENDING).then(|| (halves(self.0).0, scale))
    }
}

/// What one side sent and offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    end: u32,
    limit: u32,
    acked: u32,
    window: u32,
}

impl Side {
    #[inline]
    fn load<W: Words>(words: &W, dir: Dir) -> Side {
        let (end, limit) = halves(words.load(edges(dir)));
        let (acked, window) = halves(words.load(offers(dir)));
        Side {
            end,
            limit,
            acked,
            window,
        }
    }

    /// A lower bound: below `edge` by what the other side has room for, and some.
    #[inline]
    fn floor(edge: u32, window: u32) -> u32 {
        edge.wrapping_sub(window + SLACK)
    }
}

/// The word with `end` (upper half) and `limit` of a side.
#[inline]
const fn edges(dir: Dir) -> usize {
    match dir {
        Dir::Original => 1,
        Dir::Reply => 2,
    }
}

/// The word with `acked` (upper half) and `window` of a side.
#[inline]
const fn offers(dir: Dir) -> usize {
    match dir {
        Dir::Original => 3,
        Dir::Reply => 4,
    }
}

#[inline]
const fn of<T: Copy>(pair: [T; 2], dir: Dir) -> T {
    match dir {
        Dir::Original => pair[0],
        Dir::Reply => pair[1],
    }
}

#[inline]
const fn other(dir: Dir) -> Dir {
    match dir {
        Dir::Original => Dir::Reply,
        Dir::Reply => Dir::Original,
    }
}

#[inline]
const fn join(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // that is what halves are
const fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Whether `a` comes after `b` in serial arithmetic.
#[inline]
pub(crate) const fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// The later of two numbers.
#[inline]
pub(crate) const fn later(a: u32, b: u32) -> u32 {
    if after(b, a) { b } else { a }
}

/// As [`later`], where 0 means "not known yet". (A real 0 is overwritten: once in 2^32 connections
/// a number learned concurrently is lost, until the next segment.)
const fn seed(old: u32, new: u32) -> u32 {
    if old == 0 { new } else { later(old, new) }
}

/// Moves word `i` by `f`, which may run more than once.
#[inline]
fn update<W: Words>(words: &W, i: usize, f: impl Fn(u64) -> u64) {
    let mut from = words.load(i);
    loop {
        let to = f(from);
        if to == from {
            return;
        }
        match words.exchange(i, from, to) {
            Ok(()) => return,
            Err(now) => from = now,
        }
    }
}

/// As [`update`], half by half.
#[inline]
fn merge<W: Words>(words: &W, i: usize, high: impl Fn(u32) -> u32, low: impl Fn(u32) -> u32) {
    update(words, i, |word| {
        let (h, l) = halves(word);
        join(high(h), low(l))
    });
}

/// The words of a new connection. Anything but a pure SYN picks the connection up in the middle
/// (the caller has judged that this may be): it counts as established, the numbers of the other
/// side are taken from the acknowledgement, and windows are taken for as large as they can be.
#[must_use]
pub fn start(first: &Segment) -> [u64; WORDS] {
    let (t, end) = (&first.tcp, first.end());
    let window = u32::from(t.window).max(1);
    if first.has(tcp_flag::SYN) && !first.has(tcp_flag::ACK) {
        let facts = Facts(0).with_scale(Dir::Original, t.window_scale);
        return [facts.0, join(end, 0), 0, join(0, window), 0];
    }
    let mut facts = Facts(fact::LOOSE | fact::REPLIED | fact::SYN_ACKED[0] | fact::SYN_ACKED[1])
        .with_scale(Dir::Original, Some(LARGEST_SCALE))
        .with_scale(Dir::Reply, Some(LARGEST_SCALE));
    if first.has(tcp_flag::FIN) {
        facts.0 |= fact::FIN[0];
    }
    [
        facts.0,
        join(end, t.ack.wrapping_add(LARGEST_WINDOW)),
        join(t.ack, end.wrapping_add(LARGEST_WINDOW)),
        join(t.ack, LARGEST_WINDOW),
        join(t.seq, LARGEST_WINDOW),
    ]
}

/// The words of a connection that is picked up by a segment of `dir`, none of which is a SYN's.
#[must_use]
pub fn pick_up(first: &Segment, dir: Dir) -> [u64; WORDS] {
    let [mut facts, original, reply, offered, answered] = start(first);
    if dir == Dir::Original {
        return [facts, original, reply, offered, answered];
    }
    if first.has(tcp_flag::FIN) {
        facts = facts & !fact::FIN[0] | fact::FIN[1];
    }
    [facts, reply, original, answered, offered]
}

/// The state of a connection.
#[must_use]
pub fn state<W: Words>(words: &W) -> State {
    Facts(words.load(FACTS)).state()
}

/// Whether its handshake was completed, whatever has become of it since.
#[must_use]
pub fn was_complete<W: Words>(words: &W) -> bool {
    Facts(words.load(FACTS)).has(fact::SYN_ACKED[0] | fact::SYN_ACKED[1])
}

/// Judges a segment of `dir` and notes what it says. Costs five loads and, when it moves anything,
/// one or two compare-and-swaps.
///
/// # Errors
/// `TcpOutOfWindow` for numbers that do not fit, `TcpBadState` for what the state does not allow.
#[inline]
pub fn on_segment<W: Words>(words: &W, dir: Dir, seg: &Segment) -> Result<Step, DropReason> {
    // Another worker may have noted the very thing this segment answers between two of our loads.
    judge(words, dir, seg).or_else(|_stale| judge(words, dir, seg))
}

#[inline]
fn judge<W: Words>(words: &W, dir: Dir, seg: &Segment) -> Result<Step, DropReason> {
    let facts = Facts(words.load(FACTS));
    match (seg.has(tcp_flag::SYN), seg.has(tcp_flag::ACK)) {
        (true, false) => on_syn(words, facts, dir, seg),
        (true, true) if !facts.has(fact::CROSSED) => on_syn_ack(words, facts, dir, seg),
        _ if !facts.has(fact::REPLIED) => before_reply(words, dir, seg),
        _ => on_established(words, facts, dir, seg),
    }
}

/// The common case: both sides are known.
#[inline]
fn on_established<W: Words>(
    words: &W,
    facts: Facts,
    dir: Dir,
    seg: &Segment,
) -> Result<Step, DropReason> {
    let (sender, receiver) = (Side::load(words, dir), Side::load(words, other(dir)));
    let ack = acknowledged(seg, &receiver);
    if seg.has(tcp_flag::RST) {
        return on_reset(words, facts, seg, &sender, &receiver);
    }
    if !fits(facts, seg, ack, &sender, &receiver) {
        return Err(DropReason::TcpOutOfWindow);
    }
    let end = seg.end();
    let mut seen = if seg.has(tcp_flag::FIN) {
        of(fact::FIN, dir)
    } else {
        0
    };
    if seg.has(tcp_flag::ACK) {
        let scale = match seg.has(tcp_flag::SYN) {
            true => 0,
            false => facts.scale(dir),
        };
        let window = u32::from(seg.tcp.window) << scale;
        // A closed window admits a probe of one byte.
        let limit = ack.wrapping_add(window.max(1));
        merge(words, edges(dir), |e| later(e, end), |l| later(l, limit));
        merge(words, offers(dir), |a| later(a, ack), |w| w.max(window));
        if after(ack, receiver.end) {
            // Picked up in the middle: the peer had sent more than we saw.
            merge(words, edges(other(dir)), |e| later(e, ack), |l| l);
        }
        seen |= of(fact::SYN_ACKED, other(dir));
        if facts.has(of(fact::FIN, other(dir))) && ack == receiver.end {
            seen |= of(fact::FIN_ACKED, other(dir));
        }
    } else {
        merge(words, edges(dir), |e| later(e, end), |l| l);
    }
    // An initiator who goes on did not mean that SYN: it was an old one.
    let over = match dir {
        Dir::Original if facts.has(fact::PENDING) => fact::PENDING_ALL,
        _ => 0,
    };
    if !facts.has(seen) || over != 0 {
        update(words, FACTS, |w| w & !over | seen);
        let both = fact::SYN_ACKED[0] | fact::SYN_ACKED[1];
        if !facts.has(both) && Facts(facts.0 | seen).has(both) {
            return Ok(Step::Complete);
        }
    }
    Ok(Step::Forward)
}

/// What a segment acknowledges; one that acknowledges nothing is taken to acknowledge everything.
/// Some stacks set ACK in a reset but leave the number 0.
#[inline]
fn acknowledged(seg: &Segment, receiver: &Side) -> u32 {
    let none = !seg.has(tcp_flag::ACK) || seg.has(tcp_flag::RST) && seg.tcp.ack == 0;
    if none { receiver.end } else { seg.tcp.ack }
}

/// The window check.
#[inline]
fn fits(facts: Facts, seg: &Segment, ack: u32, sender: &Side, receiver: &Side) -> bool {
    let ceiling = if facts.has(fact::LOOSE) {
        receiver.end.wrapping_add(LARGEST_WINDOW)
    } else {
        receiver.end
    };
    // A FIN takes a number even when the window before it is full: a segment without content may
    // start behind it, whether that FIN was seen or lost.
    let bare = seg.end() == seg.tcp.seq;
    let limit = receiver.limit.wrapping_add(u32::from(bare));
    !after(seg.tcp.seq, limit)
        && after(seg.end(), Side::floor(sender.end, receiver.window))
        && !after(ack, ceiling)
        && after(ack, Side::floor(receiver.end, sender.window))
}

/// A reset between two sides that are both known.
#[cold]
fn on_reset<W: Words>(
    words: &W,
    facts: Facts,
    seg: &Segment,
    sender: &Side,
    receiver: &Side,
) -> Result<Step, DropReason> {
    let (seq, ack) = (seg.tcp.seq, acknowledged(seg, receiver));
    // A responder that forgot its SYN-ACK answers the initiator's next SYN with number 0.
    let forgot = is_half_open(facts.state()) && seq == 0 && ack == receiver.end;
    // What the receiver expects is what it acknowledged last or, if that acknowledgement is yet to
    // come, what the sender sent last.
    if forgot || seq == receiver.acked || seq == sender.end {
        return Ok(reset(words));
    }
    if fits(facts, seg, ack, sender, receiver) {
        return Ok(Step::Forward);
    }
    Err(DropReason::TcpOutOfWindow)
}

fn reset<W: Words>(words: &W) -> Step {
    update(words, FACTS, |w| w | fact::RESET);
    Step::Closed
}

/// A SYN without ACK.
#[cold]
fn on_syn<W: Words>(words: &W, facts: Facts, dir: Dir, seg: &Segment) -> Result<Step, DropReason> {
    if matches!(facts.state(), State::TimeWait | State::Closed) {
        return Ok(Step::Reopen);
    }
    let replied = facts.has(fact::REPLIED);
    match dir {
        Dir::Original if !replied => {
            // A retransmission, or another attempt with another number: the last one counts.
            let [_, edge, _, offer, _] = start(seg);
            update(words, edges(dir), |w| if w == edge { w } else { edge });
            update(words, offers(dir), |_| offer);
            update(words, FACTS, |w| {
                Facts(w).with_scale(dir, seg.tcp.window_scale).0
            });
            Ok(Step::Forward)
        }
        Dir::Original => {
            let (sender, receiver) = (Side::load(words, dir), Side::load(words, Dir::Reply));
            if !fits(facts, seg, receiver.end, &sender, &receiver) {
                update(words, FACTS, |w| Facts(w).with_pending(seg).0);
            }
            Ok(Step::Forward)
        }
        Dir::Reply if !replied => {
            answer(words, seg, seed);
            update(words, FACTS, |w| {
                let facts = Facts(w | fact::REPLIED | fact::CROSSED);
                facts.with_scale(dir, seg.tcp.window_scale).0
            });
            Ok(Step::Forward)
        }
        Dir::Reply if facts.has(fact::CROSSED) => {
            // Its retransmission.
            if halves(words.load(edges(dir))).0 == seg.end() {
                Ok(Step::Forward)
            } else {
                Err(DropReason::TcpBadState)
            }
        }
        Dir::Reply => Err(DropReason::TcpBadState),
    }
}

/// A SYN-ACK, except when both sides opened at once.
#[cold]
fn on_syn_ack<W: Words>(
    words: &W,
    facts: Facts,
    dir: Dir,
    seg: &Segment,
) -> Result<Step, DropReason> {
    let refused = facts.has(fact::RESET) && !facts.has(fact::REPLIED);
    if dir == Dir::Original || refused {
        return Err(DropReason::TcpBadState);
    }
    let replied = fact::REPLIED | fact::SYN_ACKED[0];
    if let Some((end, scale)) = facts.pending()
        && seg.tcp.ack == end
        && !facts.has(fact::RESET)
    {
        // The responder accepted the foreign SYN: both ends agree, and so do we.
        update(words, edges(Dir::Original), |_| join(end, 0));
        update(words, offers(Dir::Original), |_| join(0, 0xffff));
        answer(words, seg, |_old, new| new);
        let facts = Facts(replied)
            .with_scale(Dir::Original, scale)
            .with_scale(dir, seg.tcp.window_scale);
        update(words, FACTS, |_| facts.0);
        return Ok(Step::Forward);
    }
    let (sender, receiver) = (Side::load(words, dir), Side::load(words, Dir::Original));
    if facts.has(fact::SYN_ACKED[1]) {
        return match fits(facts, seg, seg.tcp.ack, &sender, &receiver) {
            true => Ok(Step::Forward),
            false => Err(DropReason::TcpOutOfWindow),
        };
    }
    if !answers(seg, &receiver) {
        return Err(DropReason::TcpOutOfWindow);
    }
    if facts.has(fact::REPLIED) && sender.end != seg.end() {
        // The first answer was lost, and the responder chose another number (SYN cookies do).
        answer(words, seg, |_old, new| new);
    } else {
        answer(words, seg, seed);
    }
    update(words, FACTS, |w| {
        Facts(w | replied).with_scale(dir, seg.tcp.window_scale).0
    });
    Ok(Step::Forward)
}

/// Whether a segment acknowledges the initiator's SYN. Data in the SYN (fast open, RFC 7413) may be
/// left unacknowledged.
fn answers(seg: &Segment, initiator: &Side) -> bool {
    !after(seg.tcp.ack, initiator.end) && after(seg.tcp.ack, Side::floor(initiator.end, 0))
}

/// Notes the responder's first numbers, and what they make of the initiator's SYN: up to where the
/// responder may send, and that nothing of it is acknowledged yet.
fn answer<W: Words>(words: &W, seg: &Segment, put: fn(u32, u32) -> u32) {
    let initiator = Side::load(words, Dir::Original);
    let window = u32::from(seg.tcp.window).max(1);
    let (end, ack) = (seg.end(), acknowledged(seg, &initiator));
    let (limit, room) = (ack.wrapping_add(window), end.wrapping_add(initiator.window));
    let (reply, original) = (Dir::Reply, Dir::Original);
    merge(words, edges(reply), |e| put(e, end), |l| put(l, limit));
    merge(words, offers(reply), |a| put(a, ack), |w| w.max(window));
    merge(words, edges(original), |e| e, |l| put(l, room));
    merge(words, offers(original), |a| put(a, seg.tcp.seq), |w| w);
}

/// Anything but a SYN while only the initiator's SYN is known.
#[cold]
fn before_reply<W: Words>(words: &W, dir: Dir, seg: &Segment) -> Result<Step, DropReason> {
    let initiator = Side::load(words, Dir::Original);
    let bare = seg.payload_len == 0 && !seg.has(tcp_flag::FIN);
    match (dir, seg.has(tcp_flag::RST)) {
        (Dir::Original, true) if seg.tcp.seq == initiator.end => Ok(reset(words)),
        // The initiator refuses the acknowledgement of the next arm but one.
        (Dir::Original, true) => Ok(Step::Forward),
        (Dir::Reply, true) if !seg.has(tcp_flag::ACK) => Ok(Step::Forward),
        (Dir::Reply, true) if answers(seg, &initiator) => Ok(reset(words)),
        (Dir::Reply, true) => Err(DropReason::TcpOutOfWindow),
        // A responder with a half-open connection of the past challenges the SYN (RFC 5961 section 4).
        (Dir::Reply, false) if bare => Ok(Step::Forward),
        _ => Err(DropReason::TcpBadState),
    }
}

#[cfg(all(test, not(loom)))]
#[path = "tcp_tests.rs"]
mod tests;

#[cfg(all(test, not(loom)))]
#[path = "tcp_honest.rs"]
mod honest;

#[cfg(all(test, loom))]
#[path = "tcp_loom.rs"]
mod loom_tests;
