//! Frozen connections: one end's guest is paused, and its peer must not notice.
//!
//! What is for a frozen end is not delivered. Its sender, if it waits for an answer, gets one in the frozen end's name: an
//! acknowledgement of what that end has acknowledged itself and nothing more, with its window closed (RFC 9293 section 3.8.6.1). One
//! frame for each connection is put aside, the one that matters most when the guest goes on: a reset; else what the guest expects
//! next; else what tells it that its own data arrived.
//!
//! When it goes on, [`Errand`]s say so to both sides, so that nobody waits for a retransmission timeout: the peer is told the last
//! window, the guest gets what was put aside, by the way that every frame takes. A guest that went back to a snapshot is asked first what
//! it remembers, in its peer's stead; until it has said so, nothing else that it says reaches the peer. What does not match ends, at both
//! ends.
//!
//! *Cost.* Frozen connections are kept ones (`quarantine`), each of whose frames is judged again anyway; the connections of others
//! do not meet any of this.
//!
//! *Thread-safety.* A connection's [`Record`] has a phase, moved by compare-and-swap, and a cell behind a mutex that workers only try to take:
//! who does not get it drops a frame that would be dropped anyway, and will be sent again. One worker does all errands.

mod errand;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use errand::Errand;
pub(crate) use errand::Errands;
use flowtable::{ConnRef, FlowKey};

use crate::datapath::conn::Dir;
use crate::datapath::decision::Decisions;
use crate::datapath::neighbour::originate_to;
use crate::datapath::process::{Ctx, Flow, in_cell};
use crate::datapath::quarantine::Kept;
use crate::datapath::tcp::frozen::{Memory, Recorded, Undelivered, compare, judge, recorded};
use crate::datapath::tcp::{self, Segment};
use crate::drop_reason::DropReason;
use crate::frame::kept::{Kept as Store, KeptFrame};
use crate::frame::{Burst, Frame, HEAD_CAP};
use crate::packet::segment::{Bare, Tags, Timestamps};
use crate::packet::{Fragment, Mac, proto, tcp_flag};
use crate::port::PortId;

/// One answer for each connection in this time: a burst of segments is answered by one acknowledgement, as a receiver does (RFC 5681
/// section 4.2).
const ANSWER_NS: u64 = 1_000_000;

/// How far a frozen connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Its peer is answered.
    Frozen,
    /// Its guest went back to a snapshot, and is asked what it remembers.
    Compared,
    /// It goes on; both ends are yet to be told.
    GoesOn,
    /// It ends; both ends are yet to be told.
    Ends,
    /// It took too long; the peer is yet to be told.
    Late,
    /// The same, and the peer was told. The guest will be, when it runs again.
    Owes,
    /// The guest runs again, and is to be told.
    Owed,
    /// All was done.
    Over,
}

impl Phase {
    fn of(n: u8) -> Self {
        const ALL: [Phase; 8] = [
            Phase::Frozen,
            Phase::Compared,
            Phase::GoesOn,
            Phase::Ends,
            Phase::Late,
            Phase::Owes,
            Phase::Owed,
            Phase::Over,
        ];
        ALL.get(usize::from(n)).copied().unwrap_or(Phase::Over)
    }
}

/// What became of a frozen connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It continues.
    Continues,
    /// It was over before, or is no longer in the table.
    Gone,
    /// Its peer has reset it meanwhile.
    PeerReset,
    /// It was frozen for too long.
    Late,
    /// The guest was started anew.
    Forgotten,
    /// The guest knows of no such connection.
    NoSuch,
    /// The guest's next number and its acknowledgement are not the recorded ones.
    Differs {
        /// What it says: its number, its acknowledgement.
        says: (u32, u32),
        /// Its recorded number, and what it may acknowledge: from, to.
        recorded: (u32, u32, u32),
    },
    /// The guest's clock is behind what its peer has seen of it (RFC 7323 section 5): it would not be heard.
    Clock,
    /// The guest did not say what it remembers.
    Silent,
}

impl Outcome {
    /// Whether the connection goes on.
    #[must_use]
    pub fn continues(self) -> bool {
        self == Outcome::Continues
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Outcome::Continues => "continues",
            Outcome::Gone => "is over",
            Outcome::PeerReset => "was reset by its peer",
            Outcome::Late => "was reset: it was frozen for too long",
            Outcome::Forgotten => "was reset: the guest was started anew",
            Outcome::NoSuch => "was reset: the guest remembers no such connection",
            Outcome::Clock => "was reset: the guest's TCP clock is behind what the peer has seen",
            Outcome::Silent => "was reset: the guest does not say what it remembers",
            Outcome::Differs {
                says: (seq, ack),
                recorded: (next, from, to),
            } => {
                return write!(
                    f,
                    "was reset: the guest is at {seq}, acknowledging {ack}; recorded is {next}, acknowledging {from} to {to}"
                );
            }
        })
    }
}

/// How its peer is reached, as its last frame came.
#[derive(Clone, Copy, Debug)]
struct Way {
    port: PortId,
    tag: Option<u16>,
    peer: Mac,
    guest: Mac,
    tags: Tags,
    timestamps: Option<Timestamps>,
}

/// What a frame that is put aside means. A later one gives way to an earlier one in this list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Means {
    Acknowledges,
    First,
    Reset,
}

#[derive(Debug)]
struct Aside {
    frame: KeptFrame,
    port: PortId,
    means: Means,
}

#[derive(Debug)]
struct Cell {
    way: Option<Way>,
    /// One past the highest number that was not delivered.
    sent: Option<u32>,
    answered_ns: u64,
    /// When the guest was asked what it remembers.
    asked_ns: u64,
    store: Store,
    aside: Option<Aside>,
    /// To reset the guest with, when it was too late to ask what is recorded.
    owed: Option<(Recorded, Recorded)>,
    outcome: Option<Outcome>,
}

/// A frozen connection.
#[derive(Debug)]
pub struct Record {
    phase: AtomicU8,
    /// Answers given in the frozen end's name.
    answers: AtomicU64,
    /// Frames that were not delivered.
    undelivered: AtomicU64,
    cell: Mutex<Cell>,
}

impl Default for Record {
    fn default() -> Self {
        Record {
            phase: AtomicU8::new(Phase::Frozen as u8),
            answers: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
            cell: Mutex::new(Cell {
                way: None,
                sent: None,
                answered_ns: 0,
                asked_ns: 0,
                store: Store::new(1),
                aside: None,
                owed: None,
                outcome: None,
            }),
        }
    }
}

impl Record {
    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Ordering::Acquire))
    }

    /// Moves it on; `false`: somebody else has.
    pub fn advance(&self, from: Phase, to: Phase) -> bool {
        let (from, to) = (from as u8, to as u8);
        let done = self
            .phase
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        done.is_ok()
    }

    /// Answers that were given, and frames that were not delivered.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (read(&self.answers), read(&self.undelivered))
    }

    /// What became of it, once that is known.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.cell
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .outcome
    }

    /// Ends a phase for this reason, unless somebody else has.
    pub fn conclude(&self, from: Phase, to: Phase, outcome: Outcome) {
        let mut cell = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        if self.advance(from, to) {
            cell.outcome = Some(outcome);
        }
    }

    /// Whether what is for the guest does not reach it.
    pub(crate) fn stops(&self) -> bool {
        !matches!(self.phase(), Phase::GoesOn | Phase::Over)
    }
}

fn other(dir: Dir) -> Dir {
    match dir {
        Dir::Original => Dir::Reply,
        Dir::Reply => Dir::Original,
    }
}

/// Whether a packet of a kept connection, which travels in direction `dir`, goes no further. An error `about` it does not say what
/// anybody remembers.
///
/// # Errors
/// It does not.
pub(crate) fn gate(
    kept: &Kept,
    conn: &ConnRef<'_>,
    (dir, about): (Dir, bool),
    frame: &Frame,
) -> Result<(), DropReason> {
    if let Some(record) = kept.frozen(dir)
        && record.stops()
    {
        record.undelivered.fetch_add(1, Ordering::Relaxed);
        return Err(DropReason::Frozen);
    }
    match kept.frozen(other(dir)) {
        Some(record) if record.stops() && frame.parsed.protocol == proto::TCP => {
            if about {
                return Err(DropReason::Frozen);
            }
            record.remembers(conn, dir, frame)
        }
        _ => Ok(()),
    }
}

impl Record {
    /// What the guest sends.
    fn remembers(&self, conn: &ConnRef<'_>, dir: Dir, frame: &Frame) -> Result<(), DropReason> {
        match self.phase() {
            // It was not paused yet, or goes on already.
            Phase::Frozen => return Ok(()),
            Phase::Compared => {}
            _ => return Err(DropReason::Frozen),
        }
        let Ok(mut cell) = self.cell.try_lock() else {
            return Err(DropReason::Frozen);
        };
        let p = &frame.parsed;
        let (known, seg) = (recorded(conn, dir), Segment::of(p));
        let (to, outcome) = match compare(conn, dir, &seg) {
            Memory::Unsaid => return Err(DropReason::Frozen),
            Memory::None => (Phase::Ends, Outcome::NoSuch),
            Memory::Same if cell.is_behind(frame) => (Phase::Ends, Outcome::Clock),
            Memory::Same => (Phase::GoesOn, Outcome::Continues),
            Memory::Differs => {
                let differs = Outcome::Differs {
                    says: (seg.tcp.seq, seg.tcp.ack),
                    recorded: (known.next, known.acked, known.delivered),
                };
                (Phase::Ends, differs)
            }
        };
        if self.advance(Phase::Compared, to) {
            cell.outcome = Some(outcome);
        }
        match to {
            Phase::GoesOn => Ok(()),
            _ => Err(DropReason::Frozen),
        }
    }
}

impl Cell {
    /// Whether the peer has seen a later clock of the guest than this frame's.
    fn is_behind(&self, frame: &Frame) -> bool {
        let says = Timestamps::of(frame.head(), &frame.parsed);
        let seen = self.way.and_then(|way| way.timestamps);
        matches!((says, seen), (Some(says), Some(seen)) if tcp::after(seen.echo, says.value))
    }

    /// Puts a frame aside; `false` when there is no room for it, or for its like.
    fn put_aside(&mut self, ctx: &Ctx<'_>, burst: &Burst, slot: usize, means: Means) -> bool {
        if self.aside.as_ref().is_some_and(|aside| aside.means > means) {
            return false;
        }
        self.discard(ctx);
        let Some(frame) = self.store.take(burst, slot) else {
            return false;
        };
        if let Some(cell) = in_cell(ctx) {
            cell.pkts.held_pkts.add(1);
        }
        let port = ctx.in_port;
        self.aside = Some(Aside { frame, port, means });
        true
    }

    /// Drops what was put aside.
    fn discard(&mut self, ctx: &Ctx<'_>) {
        if let Some(aside) = self.aside.take() {
            self.store.give_back(aside.frame);
            if let Some(cell) = ctx.counters.ports.get(usize::from(aside.port.0)) {
                cell.pkts.unheld_pkts.add(1);
                cell.drops.add(DropReason::Frozen, 1);
            }
        }
    }
}

/// A packet for a frozen end: answers it if that end would, and puts it aside if it will matter. `Ok`: it was put aside.
///
/// # Errors
/// It is dropped, for this.
#[cold]
pub(crate) fn hear(
    ctx: &mut Ctx<'_>,
    burst: &mut Burst,
    (flow, key): (&Flow<'_>, &FlowKey),
    out: &mut Decisions,
) -> Result<(), DropReason> {
    const DROPPED: DropReason = DropReason::Frozen;
    let snapshot = ctx.snapshot;
    let kept = snapshot.quarantine().and_then(|q| q.kept(key));
    let (kept, conn) = (kept.ok_or(DROPPED)?, ctx.table.lookup(key).ok_or(DROPPED)?);
    conn.touch(ctx.tick);
    let dir = if flow.side == conn.initiator() {
        Dir::Original
    } else {
        Dir::Reply
    };
    let record = kept.frozen(dir).ok_or(DROPPED)?;
    let slot = usize::from(flow.slot);
    let frame = burst.frame(slot).ok_or(DropReason::Runt)?;
    let p = &frame.parsed;
    if flow.about || p.protocol != proto::TCP || record.phase() != Phase::Frozen {
        return Err(DROPPED);
    }
    let mut cell = record.cell.try_lock().map_err(|_busy| DROPPED)?;
    let seg = Segment::of(p);
    let meaning = judge(&conn, dir, &seg, cell.sent)?;
    let place = flow.ends.place();
    let way = Way {
        port: ctx.in_port,
        tag: place.tag,
        peer: p.src_mac,
        guest: p.dst_mac,
        tags: Tags::of(frame.head(), p),
        timestamps: Timestamps::of(frame.head(), p),
    };
    let is_over = cell
        .aside
        .as_ref()
        .is_some_and(|aside| aside.means == Means::Reset);
    let is_whole = p.fragment == Fragment::No;
    let mut means = None;
    let mut is_answered = false;
    match meaning {
        _ if is_over => {}
        Undelivered::Nothing => {}
        Undelivered::Probe => is_answered = true,
        Undelivered::Acknowledges => means = Some(Means::Acknowledges),
        Undelivered::Carries { first } => {
            is_answered = true;
            means = (first && is_whole).then_some(Means::First);
            let end = seg.end();
            let sent = cell.sent.unwrap_or(end);
            cell.sent = Some(tcp::later(sent, end));
        }
        Undelivered::Reset => means = Some(Means::Reset),
    }
    // A reset need not have them.
    if meaning != Undelivered::Reset {
        cell.way = Some(way);
    }
    let known = recorded(&conn, other(dir));
    let answer = Bare {
        macs: (p.src_mac, p.dst_mac),
        tags: way.tags,
        from: (p.dst, p.dport),
        to: (p.src, p.sport),
        seq: known.next,
        ack: known.acked,
        flags: tcp_flag::ACK,
        window: 0,
        timestamps: way.timestamps.map(Timestamps::turned),
    };
    let put_aside = means.is_some_and(|means| cell.put_aside(ctx, burst, slot, means));
    if is_answered && ctx.now_ns.saturating_sub(cell.answered_ns) >= ANSWER_NS {
        let mut bytes = [0u8; HEAD_CAP];
        let len = answer.write(&mut bytes);
        let to = (ctx.in_port, place.tag);
        if originate_to(ctx, burst, to, &bytes, len, out) {
            cell.answered_ns = ctx.now_ns;
            record.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    if put_aside { Ok(()) } else { Err(DROPPED) }
}
