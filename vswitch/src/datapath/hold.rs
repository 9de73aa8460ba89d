//! First packets of connections that a rule asks about, or wants recorded, wait here, whole, until there is an answer; and frames
//! of those that need a pass (`passes`), in the same way.
//!
//! A frame is held once its rule was found to ask and no answer stands (`verdicts`). The question goes to the control
//! thread, once for all that want the same service of the same workload. When an answer has been given, the frames it is
//! about are put through `process_burst` again, ahead of everything that comes later: there they meet the answer, and are
//! judged under the policy of that moment. One way leads into a connection.
//!
//! *Bounds.* A port has at most [`QUESTIONS_PER_PORT`] questions and [`FRAMES_PER_PORT`] frames waiting at a worker; what is
//! beyond is dropped, whatever the rule says of late answers, so nobody's questions take a neighbour's room (were 32 ports to
//! fill theirs at one worker, nobody has any more). A question that the control thread has not settled [`GRACE_NS`] after its deadline is a no.
//!
//! *Ownership.* Each worker has its own, and its own ring of questions, which is as long as all its ports may ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flowtable::{FlowKey, Participant, Side};

use crate::counters::Counters;
use crate::datapath::conn;
use crate::datapath::passes;
use crate::datapath::process::{Ctx, Flow, in_cell, service};
use crate::datapath::snapshot::{AttachmentId, Owner, Snapshot};
use crate::datapath::verdicts::{self, Purpose, Topic, Verdicts};
use crate::drop_reason::DropReason;
use crate::event::{About, AskEvent, Consumer, NONE_U32, Producer, ring};
use crate::frame::kept::{Kept, KeptFrame};
use crate::frame::{BURST_MAX, Burst};
use crate::packet::{Parsed, proto};
use crate::policy::model::Record;
use crate::policy::suspicion::ASKED;
use crate::policy::{Asking, Classifier, Judgement, RuleId, Service, Verdict};
use crate::port::PortId;

/// Questions of one port that wait at a worker: as many services as a client opens at once.
pub const QUESTIONS_PER_PORT: usize = 16;
/// Frames of one port that wait at a worker.
pub const FRAMES_PER_PORT: usize = BURST_MAX;
/// Frames that wait at a worker: 2 MiB of them. A thousand clients' first packets.
const FRAMES: u16 = 1024;
/// Datagrams of one exchange that wait: a resolver's question, its repetition, and one more.
const DATAGRAMS: usize = 3;
/// How late the control thread may be. It has timers to a millisecond; applying a large policy takes it seconds.
const GRACE_NS: u64 = 5_000_000_000;
const MS: u64 = 1_000_000;

/// A frame that waits.
#[derive(Debug)]
struct Held {
    topic: FlowKey,
    /// What was asked: for all of its topic, or, where only a record is wanted, for itself.
    question: FlowKey,
    conn: FlowKey,
    give_up_ns: u64,
    wants: Question,
    ask: AskEvent,
    frame: KeptFrame,
}

/// What of one port waits.
#[derive(Debug)]
struct PortHold {
    frames: Vec<Held>,
    /// What was asked for them, once each.
    questions: Vec<FlowKey>,
}

/// What is to be done about a frame that waits.
enum Step {
    Wait,
    /// It is judged once more.
    Leave,
    Drop(DropReason),
}

/// Everything that waits at one worker.
#[derive(Debug)]
pub struct Hold {
    kept: Kept,
    ports: Box<[PortHold]>,
    waiting: usize,
    /// On their way through `process_burst` again.
    leaving: Vec<Held>,
    asks: Producer<AskEvent>,
    /// The control thread is yet to be told that there are questions.
    asked: bool,
    pub(crate) verdicts: Participant,
    /// Whether what is admitted can be recorded.
    records: Arc<AtomicBool>,
    /// The port to be looked at next; not 0: some are yet to be looked at.
    next: usize,
    /// Answers that had been given when all were looked at, or began to be.
    given: u64,
    /// Recalls of passes that had been heeded.
    recalled: u64,
    /// No frame that was looked at is given up before.
    give_up_ns: u64,
    /// Under whose rules all that waits asks.
    generation: u64,
    /// What the packet in hand wants to know.
    question: Option<Question>,
}

/// What a packet wants to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    about: About,
    /// It is asked for one connection.
    alone: bool,
    rule: RuleId,
    also: Option<RuleId>,
    deadline_ms: u32,
    definition: u64,
}

impl Question {
    fn rule(judgement: &Judgement, asking: &Asking) -> Self {
        Question {
            about: if asking.definition == ASKED {
                About::Suspect
            } else {
                About::Rule
            },
            alone: !asking.answer,
            rule: asking.rule,
            also: judgement.also,
            deadline_ms: asking.terms.deadline_ms,
            definition: asking.definition,
        }
    }

    /// Whether it may pass the walls.
    pub(crate) fn wall(judgement: &Judgement, rule: RuleId, definition: u64) -> Self {
        Question {
            about: About::Wall,
            alone: false,
            rule,
            also: judgement.also,
            deadline_ms: 0,
            definition,
        }
    }
}

/// The ring of questions of a worker with so many ports.
#[must_use]
pub fn questions(ports: usize) -> (Producer<AskEvent>, Consumer<AskEvent>) {
    ring(ports * QUESTIONS_PER_PORT)
}

impl Hold {
    /// Nothing waits yet. Allocates once.
    #[must_use]
    pub fn new(ports: usize, asks: Producer<AskEvent>, verdicts: &Verdicts) -> Self {
        let port = || PortHold {
            frames: Vec::with_capacity(FRAMES_PER_PORT),
            questions: Vec::with_capacity(QUESTIONS_PER_PORT),
        };
        Hold {
            kept: Kept::new(FRAMES),
            ports: (0..ports).map(|_| port()).collect(),
            waiting: 0,
            leaving: Vec::with_capacity(FRAMES_PER_PORT),
            asks,
            asked: false,
            verdicts: verdicts.participant(),
            records: Arc::clone(verdicts.records()),
            next: 0,
            given: 0,
            recalled: 0,
            give_up_ns: u64::MAX,
            generation: 0,
            question: None,
        }
    }

    /// Whether nothing waits.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether something that waits may have been answered, or waited long enough, or rules have changed.
    #[inline]
    pub(crate) fn is_due(&self, verdicts: &Verdicts, generation: u64, now_ns: u64) -> bool {
        self.waiting != 0
            && (self.next != 0
                || self.given != verdicts.given()
                || self.give_up_ns <= now_ns
                || self.generation != generation)
    }

    /// Whether there are questions that the control thread has not been told of; it is now.
    pub(crate) fn take_asked(&mut self) -> bool {
        std::mem::take(&mut self.asked)
    }

    /// Has the control thread look around.
    pub(crate) fn speak(&mut self) {
        self.asked = true;
    }

    /// What the packet in hand wants to know.
    pub(crate) fn asks_for(&mut self, question: Question) {
        self.question = Some(question);
    }

    /// Tells the control thread something; whether it will hear of it.
    pub(crate) fn tell(&mut self, event: AskEvent) -> bool {
        self.asked = true;
        self.asks.push(event)
    }

    /// Fills a burst with frames of one port that wait no longer, in the order they came. `None`: no port has any.
    /// [`Hold::left`] must follow when the burst has been cleared.
    pub(crate) fn leave(
        &mut self,
        burst: &mut Burst,
        (snapshot, generation): (&Snapshot, u64),
        (verdicts, counters): (&Verdicts, &Counters),
        now_ns: u64,
    ) -> Option<PortId> {
        if self.next == 0 || self.generation != generation {
            (self.next, self.given, self.generation) = (0, verdicts.given(), generation);
            self.give_up_ns = u64::MAX;
        }
        let recalled = verdicts.recalled();
        if self.recalled != recalled {
            self.recalled = recalled;
            for port in &mut self.ports {
                let frames = &port.frames;
                let wall =
                    |held: &Held, topic| held.topic == topic && held.ask.about == About::Wall;
                let asks = |topic: &FlowKey| !frames.iter().any(|held| wall(held, *topic));
                port.questions.retain(asks);
            }
        }
        while self.next < self.ports.len() {
            let n = self.next;
            self.next += 1;
            self.look_at(n, (snapshot, generation), counters, now_ns);
            if !self.leaving.is_empty() {
                for held in &self.leaving {
                    // There is room for all that a port may hold.
                    self.kept.put_into(&held.frame, burst);
                }
                return u16::try_from(n).ok().map(PortId);
            }
        }
        self.next = 0;
        None
    }

    /// Moves what port `n` need not hold any longer to `leaving`.
    fn look_at(
        &mut self,
        n: usize,
        (snapshot, generation): (&Snapshot, u64),
        counters: &Counters,
        now_ns: u64,
    ) {
        let (Some(port), Some(cell)) = (self.ports.get_mut(n), counters.ports.get(n)) else {
            return;
        };
        let access = &self.verdicts;
        let step = |held: &Held| {
            let owner = snapshot.by_attachment(AttachmentId(held.ask.src_attachment));
            if owner.is_none_or(|owner| usize::from(owner.port.0) != n) {
                return Step::Drop(DropReason::AskCancelled);
            }
            let (about, definition) = ((&held.topic, &held.conn), held.wants.definition);
            let wall = held.ask.about == About::Wall;
            let answered = if wall {
                verdicts::find_pass(access, about, definition, Purpose::Look).is_some()
            } else {
                verdicts::find(access, about, definition, Purpose::Look, now_ns).is_some()
            };
            if answered || held.ask.generation != generation {
                Step::Leave
            } else if held.give_up_ns <= now_ns {
                Step::Drop(if wall {
                    DropReason::Wall
                } else {
                    DropReason::PolicyAskDenied
                })
            } else {
                Step::Wait
            }
        };
        let mut at = 0;
        while let Some(held) = port.frames.get(at) {
            let step = step(held);
            if let Step::Wait = step {
                at += 1;
                continue;
            }
            let held = port.frames.remove(at);
            self.waiting -= 1;
            cell.pkts.unheld_pkts.add(1);
            if let Step::Drop(reason) = step {
                cell.drops.add(reason, 1);
                self.kept.give_back(held.frame);
            } else {
                self.leaving.push(held);
            }
        }
        // An answer for one connection leaves the others of its topic without: they ask again.
        let left = |asked: &FlowKey| self.leaving.iter().any(|held| held.question == *asked);
        port.questions.retain(|asked| !left(asked));
        let waits = |asked: &FlowKey| port.frames.iter().any(|held| held.question == *asked);
        port.questions.retain(waits);
        for held in &port.frames {
            if !port.questions.contains(&held.question) && self.asks.push(held.ask) {
                self.asked = true;
                port.questions.push(held.question);
            }
            self.give_up_ns = self.give_up_ns.min(held.give_up_ns);
        }
    }

    /// Whether the rule wants a record, as strictly as that, and none can be made.
    fn cannot_record(&self, asking: &Asking, wanted: Record) -> bool {
        asking.record >= wanted && !self.records.load(Ordering::Relaxed)
    }

    /// What the frames of a connection wait for that came before this one, by the same port: an answer that has come meanwhile is
    /// for them first.
    #[inline]
    fn ahead(&self, port: PortId, conn: &FlowKey) -> Option<Question> {
        if self.waiting == 0 || !self.leaving.is_empty() {
            return None;
        }
        self.waits_ahead(port, conn)
    }

    #[cold]
    fn waits_ahead(&self, port: PortId, conn: &FlowKey) -> Option<Question> {
        let frames = &self.ports.get(usize::from(port.0))?.frames;
        let ahead = frames.iter().find(|held| held.conn == *conn);
        ahead.map(|held| held.wants)
    }

    /// Gives back the room of what left.
    pub(crate) fn left(&mut self) {
        for held in self.leaving.drain(..) {
            self.kept.give_back(held.frame);
        }
    }
}

/// Whom a packet's question is about.
fn topic(src: &Owner, dst: &Owner, p: &Parsed) -> Option<Topic> {
    match service(p) {
        Service::Ip {
            protocol, dport, ..
        } => Some(Topic::new((src, p.src), (dst, p.dst), protocol, dport)),
        Service::Ether(_) => None,
    }
}

/// Puts the answer that stands into a judgement that needs one, and asks for a pass: the generation that a connection stands
/// under which the judgement admits. `conn` is the connection that the packet would open. `None`: nobody has answered yet, and
/// [`keep`] knows what to ask, if the packet can wait.
///
/// # Errors
/// A wall stands between the two; it was reported.
#[inline(always)]
pub(crate) fn settle(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    judgement: &mut Judgement,
    p: &Parsed,
    ends: (&Owner, &Owner),
    conn: Option<&FlowKey>,
) -> Result<Option<u64>, DropReason> {
    if let Some(wants) = conn.and_then(|conn| ctx.hold.ahead(ctx.in_port, conn)) {
        ctx.hold.question = Some(wants);
        return Ok(None);
    }
    let asking = classifier.asking(judgement);
    if judgement.verdict == Verdict::Allow
        && ctx.suspects.asks(ends.0)
        && asking.is_none_or(|asking| !asking.answer)
        && let Some(asking) = classifier.asking_suspect(judgement)
    {
        return answered(ctx, classifier, (judgement, &asking), p, ends, conn);
    }
    match asking {
        None => passes::settle(ctx, classifier, judgement, p, ends, conn),
        Some(asking) => answered(ctx, classifier, (judgement, &asking), p, ends, conn),
    }
}

#[cold]
fn answered(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    (judgement, asking): (&mut Judgement, &Asking),
    p: &Parsed,
    ends: (&Owner, &Owner),
    conn: Option<&FlowKey>,
) -> Result<Option<u64>, DropReason> {
    let answer = |ctx: &Ctx<'_>, purpose| {
        if ctx.hold.cannot_record(asking, Record::New) {
            return Some(false);
        }
        answer(ctx, asking, p, ends, conn, purpose)
    };
    if let Some(said) = answer(ctx, Purpose::Look) {
        let with_answer = with(*judgement, said);
        let stands = passes::settle(ctx, classifier, &with_answer, p, ends, conn)?;
        if stands.is_none() {
            return Ok(None);
        }
        // A yes that is good for once is used up when no wall is in the way.
        if answer(ctx, Purpose::Open).is_some() {
            *judgement = with_answer;
            return Ok(stands);
        }
    }
    ctx.hold.question = Some(Question::rule(judgement, asking));
    Ok(None)
}

#[cold]
fn answer(
    ctx: &Ctx<'_>,
    asking: &Asking,
    p: &Parsed,
    (src, dst): (&Owner, &Owner),
    conn: Option<&FlowKey>,
    purpose: Purpose,
) -> Option<bool> {
    let topic = topic(src, dst, p)?.key();
    let (about, purpose) = match conn {
        Some(conn) => ((&topic, conn), purpose),
        None => ((&topic, &topic), Purpose::Look),
    };
    let (access, now_ns) = (&ctx.hold.verdicts, ctx.now_ns);
    verdicts::find(access, about, asking.definition, purpose, now_ns)
}

/// The judgement of a connection that there is: it needs the yes that admitted it.
pub(crate) fn settle_again(
    ctx: &Ctx<'_>,
    classifier: &Classifier,
    judgement: Judgement,
    (key, initiator): (&FlowKey, Side),
    (from, to): (&Owner, &Owner),
    kept: bool,
) -> Judgement {
    let Some(asking) = classifier.asking(&judgement) else {
        return judgement;
    };
    if ctx.hold.cannot_record(&asking, Record::Strict) {
        return with(judgement, false);
    }
    if !asking.answer || kept {
        // It was recorded, or admitted before that was wanted; or whoever kept it in quarantine has answered.
        return judgement;
    }
    let (src, dst) = conn::addresses(key, initiator);
    let Service::Ip {
        protocol, dport, ..
    } = conn::service(key, initiator)
    else {
        return with(judgement, false);
    };
    let topic = Topic::new((from, src), (to, dst), protocol, dport).key();
    let (access, purpose) = (&ctx.hold.verdicts, Purpose::GoOn);
    let yes = verdicts::find(
        access,
        (&topic, key),
        asking.definition,
        purpose,
        ctx.now_ns,
    );
    with(judgement, yes.unwrap_or(false))
}

/// A judgement that asked, with the answer.
fn with(judgement: Judgement, yes: bool) -> Judgement {
    let verdict = if yes { Verdict::Allow } else { Verdict::Deny };
    Judgement {
        verdict,
        ..judgement
    }
}

/// What the control thread is told of a packet.
pub(crate) fn event(
    ctx: &Ctx<'_>,
    (src, dst): (&Owner, &Owner),
    p: &Parsed,
    question: &Question,
) -> AskEvent {
    let dport = match service(p) {
        Service::Ip { dport, .. } => dport,
        Service::Ether(_) => 0,
    };
    AskEvent {
        time_ns: ctx.now_ns,
        generation: ctx.generation,
        rule: question.rule.0,
        also: question.also.map_or(NONE_U32, |rule| rule.0),
        port: ctx.in_port.0,
        src_attachment: src.attachment.0,
        src_outside: src.outside,
        dst_attachment: dst.attachment.0,
        dst_outside: dst.outside,
        tenant: src.party.tenant.0,
        protocol: p.protocol,
        sport: p.sport,
        dport,
        src: p.src,
        dst: p.dst,
        seq: p.tcp.seq,
        cancelled: false,
        about: question.about,
    }
}

/// Keeps a packet that [`settle`] found no answer for until there is one, and asks for it unless that was done.
///
/// # Errors
/// It can't be kept, or need not be.
pub(crate) fn keep(
    ctx: &mut Ctx<'_>,
    burst: &Burst,
    (flow, conn): (&Flow<'_>, &FlowKey),
) -> Result<(), DropReason> {
    let question = ctx.hold.question.take();
    let question = question.ok_or(DropReason::PolicyAskDenied)?;
    let slot = usize::from(flow.slot);
    let p = &burst.frame(slot).ok_or(DropReason::Runt)?.parsed;
    let (src, dst) = (flow.ends.sender, flow.ends.receiver);
    let ask = event(ctx, (src, dst), p, &question);
    let topic = match question.about {
        About::Rule | About::Suspect => {
            topic(src, dst, p).ok_or(DropReason::PolicyAskDenied)?.key()
        }
        About::Wall | About::Payload => passes::pair(ask.tenant, src.attachment, dst.attachment),
    };
    let asked = if question.alone { *conn } else { topic };
    let cell = in_cell(ctx).ok_or(DropReason::AskOverBudget)?;
    let hold = &mut *ctx.hold;
    let port = hold.ports.get_mut(usize::from(ctx.in_port.0));
    let port = port.ok_or(DropReason::AskOverBudget)?;
    let mut alike = port.frames.iter_mut().filter(|held| held.conn == *conn);
    if p.protocol == proto::TCP {
        if let Some(held) = alike.next() {
            // The newest SYN: its timestamps are what the client expects an echo of.
            let newer = hold.kept.take(burst, slot).ok_or(DropReason::AskPending)?;
            hold.kept
                .give_back(std::mem::replace(&mut held.frame, newer));
            cell.pkts.held_pkts.add(1);
            cell.pkts.unheld_pkts.add(1);
            cell.drops.add(DropReason::AskPending, 1);
            return Ok(());
        }
    } else if alike.count() >= DATAGRAMS {
        return Err(DropReason::AskPending);
    }
    let is_new = !port.questions.contains(&asked);
    if port.frames.len() == FRAMES_PER_PORT || is_new && port.questions.len() == QUESTIONS_PER_PORT
    {
        return Err(DropReason::AskOverBudget);
    }
    let frame = hold
        .kept
        .take(burst, slot)
        .ok_or(DropReason::AskOverBudget)?;
    if is_new {
        if !hold.asks.push(ask) {
            hold.kept.give_back(frame);
            return Err(DropReason::AskOverBudget);
        }
        hold.asked = true;
        port.questions.push(asked);
        if matches!(question.about, About::Rule | About::Suspect) {
            ctx.counters.worker.conn_asked.add(1);
        }
    }
    let give_up_ns = ctx.now_ns + u64::from(question.deadline_ms) * MS + GRACE_NS;
    hold.give_up_ns = hold.give_up_ns.min(give_up_ns);
    port.frames.push(Held {
        topic,
        question: asked,
        conn: *conn,
        give_up_ns,
        wants: question,
        ask,
        frame,
    });
    hold.waiting += 1;
    cell.pkts.held_pkts.add(1);
    Ok(())
}

/// The client of a connection that waits has given it up.
#[cold]
pub(crate) fn cancel(ctx: &mut Ctx<'_>, conn: &FlowKey) {
    let hold = &mut *ctx.hold;
    let at = usize::from(ctx.in_port.0);
    let (Some(port), Some(cell)) = (hold.ports.get_mut(at), ctx.counters.ports.get(at)) else {
        return;
    };
    let Some(first) = port.frames.iter().position(|held| held.conn == *conn) else {
        return;
    };
    let held = port.frames.remove(first);
    hold.waiting -= 1;
    cell.pkts.unheld_pkts.add(1);
    cell.drops.add(DropReason::AskCancelled, 1);
    hold.kept.give_back(held.frame);
    let same = |other: &Held| other.question == held.question;
    if !port.frames.iter().any(same) {
        port.questions.retain(|asked| *asked != held.question);
        // What the control thread does not hear of, it finds out at the deadline.
        hold.asked |= hold.asks.push(AskEvent {
            cancelled: true,
            ..held.ask
        });
    }
}
