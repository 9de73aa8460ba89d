//! Quarantine where frames pass: of a workload in quarantine only *kept* connections go on, which were named when it was put there.
//! Everything else from it and to it is dropped as `quarantined`, also broadcast, other EtherTypes and discovery.
//!
//! The marks of owners, and what is kept, are part of the snapshot, so whatever is established is judged again once after they
//! change, and costs nothing more. A kept connection stands one generation behind: each of its frames is judged again, and counted.
//! Policy and walls have their say each time; a question is not asked again: who named the connection answered it.
//!
//! A kept connection that was recorded in an earlier life of the switch is *awaited*: the first segment from its middle picks it up, once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flowtable::{ConnRef, FlowKey, New, Side};

use crate::datapath::conn::{self, Admission, Dir};
use crate::datapath::freeze::{self, Errand};
use crate::datapath::passes::{self, Passage};
use crate::datapath::process::{self, Ctx, Fate, Flow};
use crate::datapath::snapshot::{AttachmentId, Owner, Snapshot};
use crate::datapath::{hold, report, tcp};
use crate::drop_reason::DropReason;
use crate::event::ConnEventKind;
use crate::frame::Frame;
use crate::packet::{Parsed, proto, tcp_flag};
use crate::policy::{Classifier, Query, Verdict};

/// What a kept connection has carried.
#[derive(Debug, Default)]
pub struct Carried {
    /// Frames from its initiator, and to it.
    pkts: [AtomicU64; 2],
    /// Their bytes, L2 without FCS.
    bytes: [AtomicU64; 2],
    /// The generation that judged it last; 0: none since.
    judged: AtomicU64,
    /// It may be picked up.
    awaited: AtomicBool,
}

impl Carried {
    /// Of a connection that this switch has not seen yet.
    #[must_use]
    pub fn awaited() -> Self {
        Carried {
            awaited: AtomicBool::new(true),
            ..Carried::default()
        }
    }

    /// Frames and bytes from the initiator, and to it.
    #[must_use]
    pub fn counts(&self) -> ([u64; 2], [u64; 2]) {
        let read = |cells: &[AtomicU64; 2]| [0, 1].map(|i| cells[i].load(Ordering::Relaxed));
        (read(&self.pkts), read(&self.bytes))
    }

    /// The generation that judged the connection last, if any has since it is kept.
    #[must_use]
    pub fn judged(&self) -> Option<u64> {
        let generation = self.judged.load(Ordering::Relaxed);
        (generation != 0).then_some(generation)
    }

    /// Whether it may still be picked up.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    fn count(&self, dir: Dir, bytes: u32) {
        let [pkts, all] = match dir {
            Dir::Original => [&self.pkts[0], &self.bytes[0]],
            Dir::Reply => [&self.pkts[1], &self.bytes[1]],
        };
        pkts.fetch_add(1, Ordering::Relaxed);
        all.fetch_add(u64::from(bytes), Ordering::Relaxed);
    }
}

/// A connection that goes on.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Who opened it.
    pub initiator: Side,
    /// What it has carried.
    pub carried: Arc<Carried>,
    /// Which of its ends are frozen: the responder, and the initiator.
    pub frozen: [Option<Arc<freeze::Record>>; 2],
}

/// Who is in quarantine, and what is kept of them.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    attachments: HashSet<AttachmentId>,
    kept: HashMap<FlowKey, Kept>,
    /// The ends of what is kept, in both orders.
    pairs: HashSet<(AttachmentId, AttachmentId)>,
    errands: Vec<Arc<Errand>>,
}

impl Quarantine {
    /// These, with what is kept. What is kept of nobody in here was kept once, and needs no answer again.
    #[must_use]
    pub fn new(attachments: HashSet<AttachmentId>, kept: HashMap<FlowKey, Kept>) -> Self {
        let ends = kept.keys().flat_map(|key| {
            let [a, b] = [key.low(), key.high()].map(|end| AttachmentId(end.attachment));
            [(a, b), (b, a)]
        });
        Quarantine {
            pairs: ends.collect(),
            attachments,
            kept,
            errands: Vec::new(),
        }
    }

    /// With what is to be done for connections that are no longer frozen.
    #[must_use]
    pub fn with_errands(mut self, errands: Vec<Arc<Errand>>) -> Self {
        self.errands = errands;
        self
    }

    /// What is to be done for connections that are no longer frozen.
    #[must_use]
    pub fn errands(&self) -> &[Arc<Errand>] {
        &self.errands
    }

    /// Whether this one is in quarantine.
    #[must_use]
    pub fn holds(&self, attachment: AttachmentId) -> bool {
        self.attachments.contains(&attachment)
    }

    /// What is kept, by key, or was until its workload was released.
    #[must_use]
    pub fn kept(&self, key: &FlowKey) -> Option<&Kept> {
        self.kept.get(key)
    }

    /// What is kept of somebody who is in quarantine now.
    #[must_use]
    pub fn keeps(&self, key: &FlowKey) -> Option<&Kept> {
        self.kept.get(key).filter(|_| self.concerns(key))
    }

    fn concerns(&self, key: &FlowKey) -> bool {
        let mut ends = [key.low(), key.high()].into_iter();
        ends.any(|end| self.holds(AttachmentId(end.attachment)))
    }

    /// Whether a connection is one that has to end.
    #[must_use]
    pub fn cuts(&self, key: &FlowKey) -> bool {
        self.concerns(key) && !self.kept.contains_key(key)
    }
}

/// What quarantine makes of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing<'s> {
    /// It is none of its affairs.
    Free,
    /// It was kept until its workload was released, and needs no answer again.
    Granted,
    /// It is kept.
    Kept(&'s Kept),
    /// It ends.
    Out,
}

/// Whether one of these is in quarantine.
#[inline]
pub(crate) fn concerns(a: &Owner, b: &Owner) -> bool {
    a.quarantined | b.quarantined
}

/// What becomes of a connection.
pub(crate) fn standing<'s>(snapshot: &'s Snapshot, key: &FlowKey) -> Standing<'s> {
    let Some(quarantine) = snapshot.quarantine() else {
        return Standing::Free;
    };
    match (quarantine.concerns(key), quarantine.kept(key)) {
        (false, None) => Standing::Free,
        (false, Some(_)) => Standing::Granted,
        (true, Some(kept)) => Standing::Kept(kept),
        (true, None) => Standing::Out,
    }
}

/// Whether nothing that is no part of a connection may go between these two: they have none that is kept.
#[inline]
pub(crate) fn parts(snapshot: &Snapshot, a: &Owner, b: &Owner) -> bool {
    let pair = (a.attachment, b.attachment);
    let linked = |q: &Quarantine| q.pairs.contains(&pair);
    concerns(a, b) && !snapshot.quarantine().is_some_and(linked)
}

/// Reports that a frame is refused.
#[cold]
pub(crate) fn refused(ctx: &mut Ctx<'_>, p: &Parsed, (src, dst): (&Owner, &Owner)) -> DropReason {
    let reason = DropReason::Quarantined;
    report::decision(ctx, ConnEventKind::Deny, Some(reason), None, p, src, dst);
    reason
}

/// What `process::carry` does, for a frame of a kept connection, which is counted.
#[cold]
pub(crate) fn carry(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    (conn, dir): (ConnRef<'_>, Dir),
    (flow, key): (&Flow<'_>, &FlowKey),
    frame: &Frame,
    kept: &Kept,
) -> Result<Fate, DropReason> {
    // An error travels against the packet it quotes.
    let travels = match (dir, flow.about) {
        (Dir::Original, false) | (Dir::Reply, true) => Dir::Original,
        _ => Dir::Reply,
    };
    freeze::gate(kept, &conn, (travels, flow.about), frame)?;
    let fate = process::carry(ctx, classifier, (conn, dir), (flow, key), frame)?;
    kept.carried.count(travels, frame.len());
    Ok(fate)
}

/// A packet without a connection, from or to somebody in quarantine: it may be part of one that is awaited.
///
/// # Errors
/// It is not, or the connection may not go on.
#[cold]
pub(crate) fn pick_up(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    (flow, key): (&Flow<'_>, &FlowKey),
    frame: &Frame,
) -> Result<Fate, DropReason> {
    let p = &frame.parsed;
    let (src, dst) = (flow.ends.sender, flow.ends.receiver);
    let Standing::Kept(kept) = standing(ctx.snapshot, key) else {
        return Err(refused(ctx, p, (src, dst)));
    };
    let is_tcp = p.protocol == proto::TCP;
    if kept.is_frozen() {
        // Its numbers are not known: nobody can be answered.
        return Err(DropReason::Frozen);
    }
    let begins_or_ends = is_tcp && p.tcp.flags & (tcp_flag::SYN | tcp_flag::RST) != 0;
    if begins_or_ends || !kept.carried.is_awaited() {
        return Err(refused(ctx, p, (src, dst)));
    }
    let (dir, from, to) = if flow.side == kept.initiator {
        (Dir::Original, src, dst)
    } else {
        (Dir::Reply, dst, src)
    };
    let (from_addr, to_addr) = conn::addresses(key, kept.initiator);
    let query = Query {
        from: ctx.snapshot.party(classifier, from, &from_addr),
        to: ctx.snapshot.party(classifier, to, &to_addr),
        service: conn::service(key, kept.initiator),
    };
    let about = (key, kept.initiator);
    let j = classifier.classify(&query);
    let j = hold::settle_again(ctx, classifier, j, about, (from, to), true);
    let generation = match passes::settle_again(ctx, classifier, &j, p, about, (from, to))? {
        Passage::Open(generation) => generation.saturating_sub(1),
        Passage::Unknown if j.verdict == Verdict::Allow => return Ok(Fate::Waits),
        Passage::Closed if j.verdict == Verdict::Allow => {
            return Err(passes::closed(ctx, &j, p, (from, to)));
        }
        Passage::Unknown | Passage::Closed => 0,
    };
    let rule = process::enforce(ctx, classifier, &j, frame, from, to)?;
    let admission = Admission {
        rule,
        limited: j.limited,
        logged: j.log || j.notify,
        group: from.group,
    };
    if !ctx.quotas.take(ctx.snapshot, from) {
        return Err(DropReason::ConnQuota);
    }
    let new = New {
        initiator: kept.initiator,
        word: conn::word(generation),
        tick: ctx.tick,
        user: conn::new_words(admission, 0),
        far: is_tcp.then(|| tcp::pick_up(&tcp::Segment::of(p), dir)),
    };
    let conn = match ctx.table.insert_or_get(key, new) {
        Ok(done) => {
            if done.existed {
                ctx.quotas.give(from.attachment, from.group);
            } else {
                ctx.counters.worker.conn_insert.add(1);
            }
            done.conn
        }
        Err(_full) => {
            ctx.quotas.give(from.attachment, from.group);
            return Err(DropReason::ConnTableFull);
        }
    };
    kept.carried.awaited.store(false, Ordering::Relaxed);
    kept.judge(ctx.generation);
    conn::account(&conn, dir, frame.len(), ctx.tick, ctx.alone);
    kept.carried.count(dir, frame.len());
    process::passed(ctx, frame, flow, j.limited.then_some(rule))
}

impl Kept {
    /// What is frozen of the end that frames in this direction go to.
    #[must_use]
    pub fn frozen(&self, dir: Dir) -> Option<&freeze::Record> {
        let [responder, initiator] = &self.frozen;
        match dir {
            Dir::Original => responder.as_deref(),
            Dir::Reply => initiator.as_deref(),
        }
    }

    /// The direction of frames that go to the end whose record this is.
    pub(crate) fn towards(&self, record: &freeze::Record) -> Option<Dir> {
        let is = |dir: &Dir| self.frozen(*dir).is_some_and(|r| std::ptr::eq(r, record));
        [Dir::Original, Dir::Reply].into_iter().find(is)
    }

    /// Whether nothing reaches one of its ends.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.iter().flatten().any(|record| record.stops())
    }

    /// It was judged under this generation.
    pub(crate) fn judge(&self, generation: u64) {
        self.carried.judged.store(generation, Ordering::Relaxed);
    }
}
