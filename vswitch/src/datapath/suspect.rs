//! Who behaves suspiciously? What detectors count, where it happens: denied, spoofed and unanswered attempts, and the opening
//! of connections. An established connection's frames come nowhere near. `docs/suspicion.md` says what each detector counts.
//!
//! Each workload has a *cell*: for every detector two windows, a short and a long one, each with a count. Those that count what
//! differs (services, addresses, workloads) keep a *sketch* beside it, a bitmap by a seeded hash (linear counting: Whang,
//! Vander-Zanden and Taylor, 1990), so that who does the same thing again and again counts once, and nobody can choose what
//! collides. A window begins with the first event in it. When a count reaches its threshold, the control thread is told, once
//! per window, by a ring of its own that denials cannot fill.
//!
//! *Bounds.* All memory is taken at the start, [`CELLS_PER_PORT`] cells for each port; a workload beyond is not watched, and
//! the log says so. Cells are apart from each other (128 bytes): a storm costs its sender's neighbours nothing.
//!
//! *Thread-safety.* A cell is shared by the workers that carry its workload's frames. Windows move by compare-and-swap, or, where
//! there is one worker, by plain stores. Two workers that begin a window at once may lose some events of that moment.
//!
//! *Blame.* The sender of a denied frame is the workload the guard found, on the port it came in by. What the guard refused
//! counts against the port's only workload, never against whose address it bore. What a peer can provoke does not count:
//! answers (a late one, of UDP, comes from a lower port than it goes to), and segments of connections that are gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use flowtable::ConnRef;
use tracing::warn;

use crate::counters::Counters;
use crate::datapath::conn::{self, Dir};
use crate::datapath::process::{Ctx, Flow, is_syn};
use crate::datapath::snapshot::{AttachmentId, Owner, PortView, Snapshot};
use crate::datapath::{guard, neighbour, tcp};
use crate::drop_reason::DropReason;
use crate::event::{Detector, Producer, SuspicionEvent};
use crate::frame::Frame;
use crate::packet::{Addr, L3, Parsed, proto};
use crate::policy::suspicion::{Level, Thresholds};

/// Workloads that are watched, for each port there may be: a VM, and the containers in it.
const CELLS_PER_PORT: usize = 4;
/// Suspicions of one worker that wait for the control thread: more than four detectors of every port of a usual switch at once.
pub(crate) const EVENTS: usize = 1024;
/// Bits of a sketch: of 1000 things it tells the number within some 5 %.
const SKETCH_BITS: u32 = 512;
const SKETCH_WORDS: usize = (SKETCH_BITS / 64) as usize;
/// Of each detector: a short and a long one.
const WINDOWS: usize = 2 * Detector::COUNT;
/// In a window's word, above the count: the control thread was told.
const TOLD: u64 = 1 << 31;
/// The tick at which it began.
const START: u32 = 32;

/// No cell.
pub(crate) const UNWATCHED: u32 = u32::MAX;

/// What is watched of one workload.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    /// Count, of a sketch its bits, and seconds.
    levels: [AtomicU64; WINDOWS],
    windows: [AtomicU64; WINDOWS],
    /// What rules allow it is asked about first.
    asks: AtomicBool,
    /// The last attempt in vain, and its second: one that is repeated in it is no news.
    last: [AtomicU64; 3],
    sketches: [[AtomicU64; SKETCH_WORDS]; 2 * Detector::DISTINCT],
    /// Services that were tried in vain, in places that have nothing to do with those in the sketches: who has one in both was tried.
    tried: [AtomicU64; SKETCH_WORDS],
}

// What docs/suspicion.md says that a workload takes.
const _: () = assert!(size_of::<Cell>() == 1024);

/// Which cell is whose. The control thread's alone.
#[derive(Debug, Default)]
struct Book {
    cells: HashMap<AttachmentId, u32>,
    free: Vec<u32>,
    /// Of workloads that are in no snapshot: a worker may still have the one before.
    leaving: Vec<u32>,
    /// There were too few, and the log said so.
    short: bool,
}

/// All cells.
#[derive(Debug)]
pub struct Suspects {
    cells: Box<[Cell]>,
    hasher: RandomState,
    book: Mutex<Book>,
}

impl Suspects {
    /// Nobody is watched yet. Allocates once.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        let cells = u32::try_from(ports * CELLS_PER_PORT).unwrap_or(UNWATCHED);
        Suspects {
            cells: (0..cells).map(|_| Cell::default()).collect(),
            hasher: RandomState::new(),
            book: Mutex::new(Book {
                free: (0..cells).rev().collect(),
                ..Book::default()
            }),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing under the lock panics half way.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each workload of a snapshot that is about to be published its cell. Control thread only.
    pub(crate) fn assign(&self, snapshot: &mut Snapshot) {
        let book = &mut *self.book();
        let free = std::mem::take(&mut book.leaving);
        book.free.extend(free);
        let mut before = std::mem::take(&mut book.cells);
        for owner in snapshot.owners_mut().iter_mut().filter(|o| !o.outside) {
            if let Some(cell) = before.remove(&owner.attachment) {
                owner.cell = cell;
                book.cells.insert(owner.attachment, cell);
            }
        }
        for owner in snapshot.owners_mut().iter_mut().filter(|o| !o.outside) {
            if owner.cell != UNWATCHED {
                continue;
            }
            let Some(cell) = book.free.pop() else {
                if !std::mem::replace(&mut book.short, true) {
                    warn!(
                        "no detector watches {} and others: there are more than {CELLS_PER_PORT} workloads for each of max_ports; raise it",
                        owner.name
                    );
                }
                continue;
            };
            owner.cell = cell;
            book.cells.insert(owner.attachment, cell);
            if let Some(cell) = self.cells.get(cell as usize) {
                cell.clear();
                cell.set(&Thresholds::default());
            }
        }
        book.leaving.extend(before.into_values());
    }

    /// A service of somebody, as a number.
    fn service(&self, p: &Parsed) -> u64 {
        self.hasher.hash_one((p.dst, p.dport, p.protocol))
    }

    fn cell(&self, workload: AttachmentId) -> Option<&Cell> {
        let cell = self.book().cells.get(&workload).copied();
        self.cells.get(cell? as usize)
    }

    /// From when on a workload is suspicious. Control thread only.
    pub fn set(&self, workload: AttachmentId, thresholds: &Thresholds) {
        if let Some(cell) = self.cell(workload) {
            cell.set(thresholds);
        }
    }

    /// Whether all that rules allow a workload is asked about first. Control thread only; workers see it at once.
    pub fn ask(&self, workload: AttachmentId, asks: bool) {
        if let Some(cell) = self.cell(workload) {
            cell.asks.store(asks, Ordering::Relaxed);
        }
    }

    /// Begins to count anew: what it did before is dealt with. Control thread only.
    pub fn forget(&self, workload: AttachmentId) {
        if let Some(cell) = self.cell(workload) {
            cell.forget();
        }
    }

    /// Whether a workload may have tried a service in vain lately. Of one that tried a hundred, one in thirty
    /// others looks as if it had. Control thread only.
    #[must_use]
    pub fn tried(&self, workload: AttachmentId, protocol: u8, port: u16) -> bool {
        let Some(cell) = self.cell(workload) else {
            return false;
        };
        let hash = self.hasher.hash_one((port, protocol));
        let has = |sketch, hash| {
            let (word, bit) = place(sketch, hash);
            word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        };
        let first = 2 * Detector::PortScan as usize;
        let mut sketches = cell.sketches.iter().skip(first).take(2);
        has(&cell.tried, elsewhere(hash)) && sketches.any(|sketch| has(sketch, hash))
    }

    /// Whether it is.
    #[inline]
    pub fn asks(&self, owner: &Owner) -> bool {
        let cell = self.cells.get(owner.cell as usize);
        cell.is_some_and(|cell| cell.asks.load(Ordering::Relaxed))
    }

    /// What a workload does with this packet, if it is watched.
    #[inline]
    fn deed<'a>(&'a self, by: &'a Owner, p: &Parsed, at: Moment) -> Option<Deed<'a>> {
        Some(Deed {
            by,
            cell: self.cells.get(by.cell as usize)?,
            attempt: Attempt::of(p),
            at,
        })
    }

    /// What a workload's windows hold, for tests.
    #[cfg(test)]
    pub(super) fn counts(&self, workload: AttachmentId) -> [u64; WINDOWS] {
        let cell = self.book().cells[&workload];
        let windows = &self.cells[cell as usize].windows;
        windows.each_ref().map(|w| w.load(Ordering::Relaxed))
    }
}

/// Bits that are set in a sketch when there were `count` different things, on average.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and the bits there are
fn bits_of(count: u32) -> u32 {
    let all = f64::from(SKETCH_BITS);
    (all * (1.0 - (-f64::from(count) / all).exp())).ceil() as u32
}

/// The other way round.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some thousands at most
fn count_of(bits: u32) -> u32 {
    let all = f64::from(SKETCH_BITS);
    // Of a full one it cannot be told.
    let free = (all - f64::from(bits)).max(1.0);
    (-all * (free / all).ln()).round() as u32
}

impl Cell {
    fn clear(&self) {
        self.forget();
        self.asks.store(false, Ordering::Relaxed);
    }

    fn forget(&self) {
        let sketches = self.sketches.iter().flatten().chain(&self.tried);
        for word in sketches.chain(&self.windows).chain(&self.last) {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn watches(&self, detector: Detector) -> bool {
        let levels = self.levels.chunks(2).nth(detector as usize);
        let mut levels = levels.unwrap_or_default().iter();
        levels.any(|level| level.load(Ordering::Relaxed) >> 32 != 0)
    }

    fn set(&self, thresholds: &Thresholds) {
        let detectors = Detector::ALL.iter().zip(self.levels.chunks(2));
        for (detector, levels) in detectors {
            let threshold = thresholds.of(*detector);
            for (to, Level { count, within_s }) in
                levels.iter().zip([threshold.fast, threshold.slow])
            {
                let count = if (*detector as usize) < Detector::DISTINCT {
                    bits_of(count)
                } else {
                    count
                };
                let word = u64::from(count) << 32 | u64::from(within_s);
                to.store(word, Ordering::Relaxed);
            }
        }
    }
}

/// Where in a sketch something is, by its hash.
#[inline]
fn place(sketch: &[AtomicU64; SKETCH_WORDS], hash: u64) -> (Option<&AtomicU64>, u64) {
    #[allow(clippy::cast_possible_truncation)] // three bits of it
    let word = sketch.get(hash as usize % SKETCH_WORDS);
    (word, 1 << (hash >> 32 & 63))
}

/// Another hash: [`place`] looks at other bits of it.
#[inline]
fn elsewhere(hash: u64) -> u64 {
    hash.rotate_left(16)
}

fn halves(addr: Addr) -> [u64; 2] {
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    };
    let (high, low) = addr.0.split_at(8);
    [word(high), word(low)]
}

/// What somebody tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    protocol: u8,
    to: Addr,
    port: u16,
}

impl Attempt {
    fn of(p: &Parsed) -> Self {
        Attempt {
            protocol: p.protocol,
            to: p.dst,
            port: p.dport,
        }
    }

    /// What a connection was opened for.
    fn by(conn: &ConnRef<'_>) -> Self {
        let key = conn.key();
        let (_, to) = conn::ends(&key, conn.initiator());
        Attempt {
            protocol: key.proto(),
            to: to.addr,
            port: to.port,
        }
    }
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now_ns: u64,
    pub(crate) tick: u32,
}

/// What a workload that is watched has done.
#[derive(Clone, Copy)]
struct Deed<'a> {
    by: &'a Owner,
    cell: &'a Cell,
    attempt: Attempt,
    at: Moment,
}

/// What one worker has to do with it.
#[derive(Debug)]
pub struct Witness {
    counters: Arc<Counters>,
    events: Producer<SuspicionEvent>,
    /// The control thread is yet to be woken.
    told: bool,
    /// There is no other worker.
    alone: bool,
}

impl Witness {
    /// A worker's.
    pub(crate) fn new(
        counters: &Arc<Counters>,
        events: Producer<SuspicionEvent>,
        alone: bool,
    ) -> Self {
        Witness {
            counters: Arc::clone(counters),
            events,
            told: false,
            alone,
        }
    }

    /// Whether there are suspicions that the control thread has not been told of; it is now.
    pub(crate) fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// An attempt that came to nothing: denied, refused, or never answered.
    #[cold]
    pub(crate) fn failed(
        &mut self,
        suspects: &Suspects,
        owner: &Owner,
        attempt: Attempt,
        at: Moment,
    ) {
        let Some(cell) = suspects.cells.get(owner.cell as usize) else {
            return;
        };
        let Attempt { protocol, to, port } = attempt;
        let [high, low] = halves(to);
        let what = u64::from(at.tick) << 32 | u64::from(protocol) << 16 | u64::from(port);
        // What another worker writes between is compared as well: at worst one attempt counts twice, which is once.
        let last = cell.last.iter().zip([high, low, what]);
        if last
            .clone()
            .all(|(word, new)| word.load(Ordering::Relaxed) == new)
        {
            return;
        }
        last.for_each(|(word, new)| word.store(new, Ordering::Relaxed));
        let deed = Deed {
            by: owner,
            cell,
            attempt,
            at,
        };
        if matches!(protocol, proto::TCP | proto::UDP | proto::SCTP) {
            let port = suspects.hasher.hash_one((port, protocol));
            if let (Some(word), bit) = place(&cell.tried, elsewhere(port)) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
            self.differs(deed, Detector::PortScan, port);
        }
        let address = suspects.hasher.hash_one(to);
        self.differs(deed, Detector::AddressScan, address);
    }

    /// Something that differs from others, by its hash.
    fn differs(&mut self, deed: Deed<'_>, detector: Detector, hash: u64) {
        for slow in [false, true] {
            let n = 2 * (detector as usize) + usize::from(slow);
            let Some(sketch) = deed.cell.sketches.get(n) else {
                continue;
            };
            let (Some(word), bit) = place(sketch, hash) else {
                continue;
            };
            let fresh = || sketch.iter().for_each(|w| w.store(0, Ordering::Relaxed));
            self.count(deed, (detector, slow), fresh, || {
                if word.load(Ordering::Relaxed) & bit != 0 {
                    return false;
                }
                // Of two workers that set it at once, one counts.
                word.fetch_or(bit, Ordering::Relaxed) & bit == 0
            });
        }
    }

    /// Something that happened.
    fn happens(&mut self, deed: Deed<'_>, detector: Detector) {
        for slow in [false, true] {
            self.count(deed, (detector, slow), || {}, || true);
        }
    }

    /// Counts one, if it `counts`, in the window there is, or a `fresh` one.
    #[inline]
    fn count(
        &mut self,
        Deed {
            by,
            cell,
            attempt,
            at,
        }: Deed<'_>,
        (detector, slow): (Detector, bool),
        fresh: impl Fn(),
        counts: impl Fn() -> bool,
    ) {
        let n = 2 * (detector as usize) + usize::from(slow);
        let (Some(level), Some(window)) = (cell.levels.get(n), cell.windows.get(n)) else {
            return;
        };
        let level = level.load(Ordering::Relaxed);
        let (most, within) = (level >> 32, level & 0xffff_ffff);
        if most == 0 {
            return;
        }
        let now = u64::from(at.tick);
        let is_over =
            |word: u64| word & (TOLD - 1) == 0 || now.saturating_sub(word >> START) >= within;
        let begun = window.load(Ordering::Relaxed);
        if is_over(begun) {
            fresh();
        }
        if !counts() {
            return;
        }
        let add = |word: u64| {
            if is_over(word) {
                now << START | 1
            } else {
                // It stays below the flag: nothing that counts so long is over its threshold unseen.
                word + u64::from(word & (TOLD - 1) < TOLD - 1)
            }
        };
        let word = self.change(window, add);
        let count = word & (TOLD - 1);
        if count < most || word & TOLD != 0 {
            return;
        }
        #[allow(clippy::cast_possible_truncation)] // fields of the word
        let (count, since) = (count as u32, (word >> START) as u32);
        let told = self.events.push(SuspicionEvent {
            time_ns: at.now_ns,
            attachment: by.attachment.0,
            detector,
            slow,
            count: if (detector as usize) < Detector::DISTINCT {
                count_of(count)
            } else {
                count
            },
            seconds: at.tick.saturating_sub(since) + 1,
            last: (attempt.protocol, attempt.to, attempt.port),
        });
        // What finds no room is told with the next one.
        if told {
            self.change(window, |word| word | TOLD);
            self.told = true;
            self.counters.worker.suspicions.add(1);
        }
    }

    /// Changes a window; returns what it is then.
    fn change(&self, window: &AtomicU64, f: impl Fn(u64) -> u64) -> u64 {
        let mut old = window.load(Ordering::Relaxed);
        if self.alone {
            let new = f(old);
            window.store(new, Ordering::Relaxed);
            return new;
        }
        loop {
            let new = f(old);
            match window.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return new,
                Err(now) => old = now,
            }
        }
    }

    /// A handshake was completed, or came to an end: it is half-open no longer.
    fn over(&self, suspects: &Suspects, owner: &Owner) {
        let Some(cell) = suspects.cells.get(owner.cell as usize) else {
            return;
        };
        for window in cell
            .windows
            .iter()
            .skip(2 * Detector::SynFlood as usize)
            .take(2)
        {
            self.change(window, |word| word - u64::from(word & (TOLD - 1) > 0));
        }
    }
}

impl Ctx<'_> {
    fn moment(&self) -> Moment {
        Moment {
            now_ns: self.now_ns,
            tick: self.tick,
        }
    }
}

/// Whether a packet without a connection is its sender's own doing. A peer that let a connection go gets the rest of it, which
/// is not: segments that are no SYN, and answers, which of UDP come from a service's port, the lower one.
pub(crate) fn is_own(p: &Parsed) -> bool {
    match p.protocol {
        proto::TCP => is_syn(p),
        proto::UDP => p.sport >= p.dport,
        proto::ICMP | proto::ICMPV6 => conn::is_echo_request(p),
        _ => true,
    }
}

/// A unicast packet was not let through.
#[cold]
pub(crate) fn refused(ctx: &mut Ctx<'_>, flow: &Flow<'_>, frame: &Frame, reason: DropReason) {
    use DropReason as R;
    let is_wall = match reason {
        R::Wall => true,
        R::PolicyDefaultDeny
        | R::PolicyDeny
        | R::PolicyReject
        | R::PolicyDecoy
        | R::PolicyAskDenied => false,
        _ => return,
    };
    let (p, owner, at) = (&frame.parsed, flow.ends.sender, ctx.moment());
    if !is_own(p) {
        return;
    }
    let (suspects, witness) = (ctx.suspects, &mut *ctx.witness);
    witness.failed(suspects, owner, Attempt::of(p), at);
    let Some(deed) = suspects.deed(owner, p, at) else {
        return;
    };
    witness.happens(deed, Detector::DeniedRate);
    if is_wall {
        witness.differs(deed, Detector::Wall, suspects.service(p));
    }
}

/// A workload met a decoy.
#[cold]
pub(crate) fn met_decoy(ctx: &mut Ctx<'_>, p: &Parsed, owner: &Owner) {
    let (suspects, at) = (ctx.suspects, ctx.moment());
    if let Some(deed) = suspects.deed(owner, p, at) {
        let service = suspects.service(p);
        ctx.witness.differs(deed, Detector::Decoy, service);
    }
}

/// A frame did not get as far as to be judged: its sender is not who it says, or nobody is there whom it is for.
#[cold]
pub(crate) fn astray(
    ctx: &mut Ctx<'_>,
    port: Option<&PortView>,
    frame: &Frame,
    reason: DropReason,
) {
    use DropReason as R;
    let (p, at, Some(port)) = (&frame.parsed, ctx.moment(), port) else {
        return;
    };
    match reason {
        // Of groups, hosts with an address too many speak all the time (mDNS, MLD).
        R::SpoofedIp if p.dst_mac.is_group() => {}
        R::SpoofedMac | R::SpoofedIp | R::SpoofedArp | R::DeclaredMacMoved => {
            let owners = port.owners.iter().filter_map(|o| ctx.snapshot.owner(*o));
            let mut owners = owners.filter(|o| !o.outside);
            let (Some(owner), None) = (owners.next(), owners.next()) else {
                return;
            };
            if let Some(deed) = ctx.suspects.deed(owner, p, at) {
                ctx.witness.happens(deed, Detector::Spoofing);
            }
        }
        R::UnknownDestination | R::DestinationMismatch | R::UnknownNeighbour => {
            let target = match reason {
                R::UnknownNeighbour => neighbour::target(frame).map(|to| Attempt {
                    protocol: 0,
                    to,
                    port: 0,
                }),
                _ => (matches!(p.l3, L3::V4 | L3::V6) && is_own(p)).then(|| Attempt::of(p)),
            };
            let sender = guard::domain(ctx.snapshot, port, frame.tci)
                .and_then(|(domain, tag)| guard::sender(ctx.snapshot, port, domain, tag, p));
            if let (Some(attempt), Ok((_, owner))) = (target, sender) {
                ctx.witness.failed(ctx.suspects, owner, attempt, at);
            }
        }
        _ => {}
    }
}

/// A connection was opened.
#[inline]
pub(crate) fn opened(ctx: &mut Ctx<'_>, p: &Parsed, src: &Owner, dst: &Owner) {
    let at = ctx.moment();
    let suspects = ctx.suspects;
    let Some(deed) = suspects.deed(src, p, at) else {
        return;
    };
    if is_syn(p) && p.protocol == proto::TCP {
        ctx.witness.happens(deed, Detector::SynFlood);
    }
    // How many servers outside there are says nothing about it.
    if !dst.outside && deed.cell.watches(Detector::FanOut) {
        let peer = suspects.hasher.hash_one(dst.attachment);
        ctx.witness.differs(deed, Detector::FanOut, peer);
    }
}

/// The last segment of a handshake came from there.
#[cold]
pub(crate) fn completed(ctx: &Ctx<'_>, dir: Dir, (src, dst): (&Owner, &Owner)) {
    ctx.witness.over(ctx.suspects, initiator(dir, (src, dst)));
}

fn initiator<'o>(dir: Dir, (src, dst): (&'o Owner, &'o Owner)) -> &'o Owner {
    match dir {
        Dir::Original => src,
        Dir::Reply => dst,
    }
}

/// A connection was reset by a segment from there: if it was never complete, it came to nothing.
#[cold]
pub(crate) fn reset(ctx: &mut Ctx<'_>, conn: &ConnRef<'_>, dir: Dir, ends: (&Owner, &Owner)) {
    if !tcp::was_complete(conn) {
        let owner = initiator(dir, ends);
        ctx.witness.over(ctx.suspects, owner);
        let at = ctx.moment();
        ctx.witness
            .failed(ctx.suspects, owner, Attempt::by(conn), at);
    }
}

/// An ICMP error about a connection, one of whose packets from there it quotes: nobody is there, if it says so and nobody has
/// answered (RFC 792, type 3; RFC 4443 section 3.1, type 1).
#[cold]
pub(crate) fn unreachable(
    ctx: &mut Ctx<'_>,
    conn: &ConnRef<'_>,
    p: &Parsed,
    dir: Dir,
    initiator: &Owner,
) {
    let says_so = matches!(
        (p.protocol, p.icmp_type),
        (proto::ICMP, 3) | (proto::ICMPV6, 1)
    );
    if says_so && dir == Dir::Original && !conn::replied(conn) {
        let at = ctx.moment();
        ctx.witness
            .failed(ctx.suspects, initiator, Attempt::by(conn), at);
    }
}

/// A connection ends because nobody has said anything for long.
#[cold]
pub(crate) fn silent(
    (suspects, witness): (&Suspects, &mut Witness),
    snapshot: &Snapshot,
    conn: &ConnRef<'_>,
    at: Moment,
) {
    if conn::is_half_open(conn)
        && let Some(owner) = snapshot.by_attachment(conn::initiator(conn))
    {
        witness.failed(suspects, owner, Attempt::by(conn), at);
    }
}
