//! Telling both ends of connections what has become of them (see the module above): by one worker, some at a time, and nobody's
//! waits for what others' guests have not said.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use flowtable::{Endpoint, FlowKey};

use super::{Cell, Means, Outcome, Phase, Record, other};
use crate::datapath::conn::{self, Dir};
use crate::datapath::decision::Decisions;
use crate::datapath::neighbour::originate_to;
use crate::datapath::process::{Ctx, process_burst};
use crate::datapath::report;
use crate::datapath::snapshot::{AttachmentId, Owner, Snapshot};
use crate::datapath::tcp::frozen::{Recorded, before_all, recorded};
use crate::drop_reason::DropReason;
use crate::event::ConnEventKind;
use crate::frame::{Burst, HEAD_CAP};
use crate::packet::segment::{Bare, Tags};
use crate::packet::{Mac, proto, tcp_flag};
use crate::port::PortId;

/// Connections looked after in one go, and what passes between two: what was frozen goes on at 16,000 connections a second, which is
/// as much as an emulated guest takes in. Guess.
const AT_ONCE: usize = 16;
const PAUSE_NS: u64 = 1_000_000;
/// How long a port is waited for to which something is to be said: a machine that goes on starts its queues within a moment. Guess.
const PORT_NS: u64 = 10_000_000_000;
/// How often a guest is asked what it remembers: hosts answer no more often than twice a second (Linux' `tcp_invalid_ratelimit`).
const ASK_NS: u64 = 1_000_000_000;
/// How long it has to answer.
const MEMORY_NS: u64 = 30_000_000_000;
/// A locally administered address that nobody has.
const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 0]);

/// Frozen connections that have come to a new phase: their ends are to be told.
#[derive(Debug)]
pub struct Errand {
    records: Vec<(FlowKey, Arc<Record>)>,
    /// Every worker knows what has changed.
    go: AtomicBool,
    done: AtomicBool,
}

impl Errand {
    /// For these.
    #[must_use]
    pub fn new(records: Vec<(FlowKey, Arc<Record>)>) -> Self {
        Errand {
            records,
            go: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    /// Every worker knows what has changed: what is said now is not contradicted by a slower one.
    pub fn go(&self) {
        self.go.store(true, Ordering::Release);
    }

    /// Whether all was done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// The errands of the worker that does them, by turns.
#[derive(Debug, Default)]
pub(crate) struct Errands {
    /// And when each was begun; 0: it was not.
    list: VecDeque<(Arc<Errand>, u64)>,
    /// The connection of the first one that comes next.
    at: usize,
    /// How many were looked after without a pause.
    run: usize,
    /// When the next connection is looked after.
    again_ns: u64,
}

impl Errands {
    /// Those that a snapshot has, and are not known yet.
    pub(crate) fn take_up(&mut self, snapshot: &Snapshot) {
        for errand in snapshot.quarantine().map_or(&[][..], |q| q.errands()) {
            let known = self.list.iter().any(|(e, _)| Arc::ptr_eq(e, errand));
            if !known && !errand.is_done() {
                self.list.push_back((Arc::clone(errand), 0));
            }
        }
    }

    /// Whether there is nothing to do. While there is, its worker does not wait for frames.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Looks after one connection, if it is time (then `true`): what is in the burst and decided then is to be sent.
    pub(crate) fn run(
        &mut self,
        ctx: &mut Ctx<'_>,
        burst: &mut Burst,
        out: &mut Decisions,
    ) -> bool {
        let Some((errand, since_ns)) = self.list.front_mut() else {
            return false;
        };
        if !errand.go.load(Ordering::Acquire) || ctx.now_ns < self.again_ns {
            return false;
        }
        if *since_ns == 0 {
            *since_ns = ctx.now_ns.max(1);
        }
        let Some((key, record)) = errand.records.get(self.at) else {
            let over =
                |(_, r): &(FlowKey, Arc<Record>)| matches!(r.phase(), Phase::Over | Phase::Owes);
            if errand.records.iter().all(over) {
                errand.done.store(true, Ordering::Release);
                ctx.hold.speak();
                self.list.pop_front();
            } else {
                self.list.rotate_left(1);
            }
            self.at = 0;
            self.again_ns = ctx.now_ns + PAUSE_NS;
            return false;
        };
        self.at += 1;
        self.run += 1;
        if self.run == AT_ONCE {
            (self.run, self.again_ns) = (0, ctx.now_ns + PAUSE_NS);
        }
        let waited_ns = ctx.now_ns.saturating_sub(*since_ns);
        let mut told = Told {
            ctx,
            burst,
            out,
            key,
            waited_ns,
        };
        told.attend(record);
        true
    }
}

/// The ends of a connection that are told something.
struct Told<'t, 'c> {
    ctx: &'t mut Ctx<'c>,
    burst: &'t mut Burst,
    out: &'t mut Decisions,
    key: &'t FlowKey,
    /// How long the errand has taken.
    waited_ns: u64,
}

impl Told<'_, '_> {
    /// See [`Errands::run`].
    fn attend(&mut self, record: &Record) {
        let phase = record.phase();
        if matches!(phase, Phase::Frozen | Phase::Owes | Phase::Over) {
            return;
        }
        // Who asks what became of it has it for a moment.
        let Ok(mut cell) = record.cell.try_lock() else {
            return;
        };
        let kept = self.ctx.snapshot.quarantine();
        let kept = kept.and_then(|q| q.kept(self.key));
        let dir = kept.and_then(|kept| kept.towards(record));
        let conn = self.ctx.table.lookup(self.key);
        let is_tcp = self.key.proto() == proto::TCP;
        if phase == Phase::Owed {
            if let (Some(dir), Some(known)) = (dir, cell.owed) {
                self.reset_guest(&cell, dir, known);
            }
            record.advance(phase, Phase::Over);
            return;
        }
        let (Some(dir), Some(conn)) = (dir, conn) else {
            cell.discard(self.ctx);
            cell.outcome.get_or_insert(Outcome::Gone);
            record.advance(phase, Phase::Over);
            return;
        };
        if !is_tcp {
            // Nothing is known of what its ends remember.
            let (to, outcome) = match phase {
                Phase::GoesOn | Phase::Compared => (Phase::Over, Outcome::Continues),
                _ => (Phase::Over, Outcome::Late),
            };
            cell.outcome.get_or_insert(outcome);
            record.advance(phase, to);
            return;
        }
        let known = [recorded(&conn, other(dir)), recorded(&conn, dir)];
        let [guest, peer] = known;
        match phase {
            Phase::Compared if self.waited_ns >= MEMORY_NS => {
                if record.advance(phase, Phase::Ends) {
                    cell.outcome = Some(Outcome::Silent);
                }
            }
            Phase::Compared => {
                let due = self.ctx.now_ns.saturating_sub(cell.asked_ns) >= ASK_NS;
                if due && self.is_up(dir) {
                    cell.asked_ns = self.ctx.now_ns;
                    let (seq, ack) = (before_all(guest.acked), guest.next);
                    self.tell_guest(&cell, dir, (seq, ack, peer.window), tcp_flag::ACK);
                }
            }
            Phase::GoesOn => {
                if cell.aside.is_some() && !self.is_up(dir) && self.waited_ns < PORT_NS {
                    return;
                }
                let is_reset = cell.aside.as_ref().is_some_and(|a| a.means == Means::Reset);
                if is_reset {
                    cell.outcome = Some(Outcome::PeerReset);
                } else if record.answers.load(Ordering::Relaxed) != 0 {
                    let window = (guest.next, guest.acked, guest.window);
                    self.tell_peer(&cell, dir, window, tcp_flag::ACK);
                }
                cell.outcome.get_or_insert(Outcome::Continues);
                record.advance(phase, Phase::Over);
                self.put_to_guest(cell);
            }
            _ => {
                let is_reset = cell.aside.as_ref().is_some_and(|a| a.means == Means::Reset);
                if !is_reset {
                    let exact = (guest.next, guest.acked, 0);
                    self.tell_peer(&cell, dir, exact, tcp_flag::RST | tcp_flag::ACK);
                }
                cell.discard(self.ctx);
                let to = if phase == Phase::Late {
                    cell.owed = Some((guest, peer));
                    Phase::Owes
                } else {
                    self.reset_guest(&cell, dir, (guest, peer));
                    Phase::Over
                };
                record.advance(phase, to);
                self.ctx.counters.worker.conn_cut.add(1);
                report::end(self.ctx, &conn, ConnEventKind::Cut);
                self.ctx.quotas.remove(self.ctx.table, conn);
            }
        }
    }

    /// What was put aside takes the way of every frame.
    fn put_to_guest(&mut self, mut cell: MutexGuard<'_, Cell>) {
        let Some(aside) = cell.aside.take() else {
            return;
        };
        // It keeps its room, which nobody else will need: the connection is not frozen any more.
        let is_there = cell.store.put_into(&aside.frame, self.burst);
        if let Some(counters) = self.ctx.counters.ports.get(usize::from(aside.port.0)) {
            counters.pkts.unheld_pkts.add(1);
            if !is_there {
                counters.drops.add(DropReason::Frozen, 1);
            }
        }
        drop(cell);
        if is_there {
            self.ctx.in_port = aside.port;
            process_burst(self.ctx, self.burst, self.out);
        }
    }

    /// Its end of the connection that frames in direction `dir` go to.
    fn end(&self, dir: Dir) -> Option<Endpoint> {
        let conn = self.ctx.snapshot.quarantine()?.kept(self.key)?;
        let (initiator, responder) = conn::ends(self.key, conn.initiator);
        Some(match dir {
            Dir::Original => responder,
            Dir::Reply => initiator,
        })
    }

    fn owner(&self, end: &Endpoint) -> Option<&Owner> {
        self.ctx
            .snapshot
            .by_attachment(AttachmentId(end.attachment))
    }

    fn is_up(&self, dir: Dir) -> bool {
        let port = self
            .end(dir)
            .and_then(|end| self.owner(&end))
            .map(|owner| owner.port);
        let view = port.and_then(|port| self.ctx.snapshot.port(port));
        view.is_some_and(|view| view.port.is_up())
    }

    /// Resets the guest: where it says that it is, or else at what it acknowledged last, and, where it may have received more
    /// since, there. Anywhere else it would only challenge that (RFC 5961 section 3.2).
    fn reset_guest(&mut self, cell: &Cell, dir: Dir, (guest, peer): (Recorded, Recorded)) {
        let flags = tcp_flag::RST | tcp_flag::ACK;
        if let Some(Outcome::Differs { says, .. }) = cell.outcome {
            let (seq, ack) = says;
            self.tell_guest(cell, dir, (ack, seq, 0), flags);
            return;
        }
        self.tell_guest(cell, dir, (guest.acked, guest.next, 0), flags);
        if guest.acked != peer.next {
            self.tell_guest(cell, dir, (peer.next, guest.next, 0), flags);
        }
    }

    /// Says something in the guest's name to its peer, if it is known where that is.
    fn tell_peer(&mut self, cell: &Cell, dir: Dir, (seq, ack, window): (u32, u32, u16), flags: u8) {
        let (Some(from), Some(to)) = (self.end(dir), self.end(other(dir))) else {
            return;
        };
        let place = match cell.way {
            Some(way) => Some(((way.port, way.tag), (way.peer, way.guest))),
            None => self.mac(&to).zip(self.mac(&from)).and_then(|macs| {
                let owner = self.owner(&to)?;
                Some(((owner.port, owner.tag), macs))
            }),
        };
        let Some((place, macs)) = place else {
            return;
        };
        let bare = Bare {
            macs,
            tags: cell.way.map(|way| way.tags).unwrap_or_default(),
            from: (from.addr, from.port),
            to: (to.addr, to.port),
            seq,
            ack,
            flags,
            window,
            timestamps: cell.way.and_then(|way| Some(way.timestamps?.turned())),
        };
        self.send(&bare, place);
    }

    /// Says something in the peer's name to the guest.
    fn tell_guest(
        &mut self,
        cell: &Cell,
        dir: Dir,
        (seq, ack, window): (u32, u32, u16),
        flags: u8,
    ) {
        let (Some(from), Some(to)) = (self.end(other(dir)), self.end(dir)) else {
            return;
        };
        let guest = cell.way.map(|way| way.guest).or_else(|| self.mac(&to));
        let Some((guest, owner)) = guest.zip(self.owner(&to)) else {
            return;
        };
        // Of a peer in the outside that said nothing there is none, and hosts do not look at it.
        let peer = cell.way.map(|way| way.peer).or_else(|| self.mac(&from));
        let place = (owner.port, owner.tag);
        let bare = Bare {
            macs: (guest, peer.unwrap_or(NOBODY)),
            tags: Tags::default(),
            from: (from.addr, from.port),
            to: (to.addr, to.port),
            seq,
            ack,
            flags,
            window,
            timestamps: cell.way.and_then(|way| way.timestamps),
        };
        self.send(&bare, place);
    }

    fn mac(&self, end: &Endpoint) -> Option<Mac> {
        self.owner(end)?.macs.first().copied()
    }

    fn send(&mut self, bare: &Bare, place: (PortId, Option<u16>)) {
        let mut bytes = [0u8; HEAD_CAP];
        let len = bare.write(&mut bytes);
        self.ctx.in_port = place.0;
        originate_to(self.ctx, self.burst, place, &bytes, len, self.out);
    }
}
