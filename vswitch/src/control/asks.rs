//! Questions of the data path, from the moment a worker asks until an answer's time is over.
//!
//! Workers ask once for all that want the same service of the same workload ([`Topic`]); of several workers that ask the same,
//! there is one question here. It is answered by whoever may, or by its rule's `otherwise` at the deadline. An answer is
//! put where workers find it (`datapath/verdicts`), and stays here as long as it holds: it names the two ends as they were when
//! it was asked for (their *incarnations*) and the rules that asked, and is taken back when one of these changes.

mod kept;
mod record;

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ahash::AHashMap as HashMap;
use flowtable::{Endpoint, FlowKey, Participant};
pub(super) use kept::Kept;
pub(super) use record::Answered;
use record::{Concluded, EXCESS_NS};
use tracing::{info, warn};

use super::api::{ApiError, AskAnswer, AskInfo, ErrorCode};
use super::apply::Control;
use super::callers::Caller;
use super::deciding::Outcome;
use super::events::{Told, protocol_name};
use super::ids::{self, Ids};
use super::state::Desired;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::verdicts::{Answer, Topic};
use crate::datapath::worker::WorkerHandle;
use crate::event::{About, AskEvent, Consumer, NONE_U32};
use crate::packet::proto;
use crate::policy::model::{OnExpiry, Otherwise, Scope};
use crate::policy::{Asking, Classifier, Judgement, RuleId, Verdict, Why};
use crate::port::PortId;

/// Questions taken from one worker per turn.
const PER_TURN: usize = 4096;
/// Answers that one workload's questions may have standing: more than the services it uses, and 256 such workloads find room.
const PER_WORKLOAD: usize = 64;
/// How long a first denial holds; each one after it holds twice as long as the one before.
const BACK_OFF_NS: u64 = 1_000_000_000;
/// The longest: a service that was asked for in vain is asked for again within a minute.
const BACK_OFF_MAX_NS: u64 = 60 * BACK_OFF_NS;
const SECOND_NS: u64 = 1_000_000_000;
const MS_NS: u64 = 1_000_000;

/// A question that waits.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) topic: Topic,
    /// For whom it is asked: all of the topic, or, where only a record is wanted, this connection.
    question: FlowKey,
    /// The connection that was asked about first.
    pub(super) first: AskEvent,
    pub(super) asking: Asking,
    /// As it is shown and recorded; how long it has waited, and may, is told when that is asked.
    shown: AskInfo,
    /// The port it came by.
    port: String,
    deadline_ns: u64,
    /// What its port had dropped for asking too much when it asked.
    over_budget: u64,
    /// Workers that asked, and whose frames have not gone since.
    askers: u32,
    /// It was answered by rules of this process.
    pub(super) by_rules: bool,
    /// It is recorded that it was asked.
    recorded: bool,
}

impl Pending {
    /// The rule that asks, by its name.
    #[cfg(feature = "manager")]
    pub(super) fn rule(&self) -> &str {
        &self.shown.rule
    }

    /// The connection that came first.
    #[cfg(feature = "manager")]
    pub(super) fn connection(&self) -> String {
        self.shown.connection()
    }

    /// It, now.
    fn at(&self, now_ns: u64) -> AskInfo {
        let ms = |ns: u64| ns / MS_NS;
        AskInfo {
            waited_ms: ms(now_ns.saturating_sub(self.first.time_ns)),
            left_ms: ms(self.deadline_ns.saturating_sub(now_ns)),
            ..self.shown.clone()
        }
    }
}

/// What somebody answers, within what the rule admits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) yes: bool,
    pub(super) scope: Scope,
    pub(super) ttl_s: u32,
}

/// An answer that stands, or did until a moment ago.
#[derive(Debug)]
struct Standing {
    topic: Topic,
    answer: Answer,
    on_expiry: OnExpiry,
    /// Denials in a row.
    denials: u32,
    /// Rules of this process gave it: it ends with them.
    #[cfg_attr(not(feature = "manager"), allow(dead_code))] // without a manager there are none
    by_rules: bool,
}

impl Standing {
    /// When it can be forgotten; [`u64::MAX`]: connections go on by it for as long as they like. A denial is remembered a while
    /// longer than it holds, because the next one will hold longer.
    fn over_ns(&self) -> u64 {
        let Answer {
            yes,
            keep,
            expires_ns,
            ..
        } = self.answer;
        match (yes, keep) {
            (true, true) => u64::MAX,
            (true, false) => expires_ns,
            (false, _) => expires_ns + BACK_OFF_MAX_NS,
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Asks {
    rings: Vec<Consumer<AskEvent>>,
    access: Participant,
    pending: HashMap<u64, Box<Pending>>,
    by_question: HashMap<FlowKey, u64>,
    /// Of those that wait: for their record.
    recording: HashMap<u64, Concluded>,
    /// Of those that wait: until when, and their ids.
    deadlines: BTreeSet<(u64, u64)>,
    /// Those that were asked a moment ago, and when.
    fresh: VecDeque<(u64, u64)>,
    /// By what they are about: a topic, or one connection.
    standing: Kept<Standing>,
    incarnations: HashMap<AttachmentId, u64>,
    /// An answer was taken back that connections were to end with.
    cut: bool,
    /// By port number, what was dropped for asking too much and is recorded.
    excess: HashMap<u16, u64>,
    excess_at_ns: u64,
    /// Answers were given that workers have not been woken for.
    given: bool,
    ids: Ids,
    pub(super) told: Told,
}

impl Asks {
    pub(super) fn new(rings: Vec<Consumer<AskEvent>>, access: Participant) -> Self {
        Asks {
            rings,
            access,
            pending: HashMap::new(),
            by_question: HashMap::new(),
            recording: HashMap::new(),
            deadlines: BTreeSet::new(),
            fresh: VecDeque::new(),
            standing: Kept::new(PER_WORKLOAD),
            incarnations: HashMap::new(),
            cut: false,
            excess: HashMap::new(),
            excess_at_ns: 0,
            given: false,
            ids: Ids::default(),
            told: Told::default(),
        }
    }

    /// Says that nothing of the table of answers is in our hands.
    pub(super) fn quiesce(&mut self) {
        self.access.quiesce();
    }

    /// A question that waits, for an answer or for its record.
    #[cfg(feature = "manager")]
    pub(super) fn pending(&self, id: u64) -> Option<&Pending> {
        self.pending.get(&id).map(|pending| &**pending)
    }

    /// Rules of this process are about to answer it.
    #[cfg(feature = "manager")]
    pub(super) fn by_rules(&mut self, id: u64) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.by_rules = true;
        }
    }

    /// Answers that are about more than one connection and stand: yes or no, and to what.
    pub(super) fn standing(&self, now_ns: u64) -> impl Iterator<Item = (&Topic, bool)> {
        let standing = self.standing.values();
        let standing = standing.filter(move |s| !s.answer.once && s.answer.expires_ns > now_ns);
        standing.map(|s| (&s.topic, s.answer.yes))
    }

    /// All that wait for an answer, the most urgent first.
    #[cfg(feature = "manager")]
    pub(super) fn ids(&self) -> Vec<u64> {
        let ids = self.deadlines.iter().map(|(_, id)| *id);
        ids.filter(|id| !self.recording.contains_key(id)).collect()
    }

    fn remember(&mut self, id: u64, pending: Box<Pending>) {
        self.by_question.insert(pending.question, id);
        self.deadlines.insert((pending.deadline_ns, id));
        self.pending.insert(id, pending);
    }

    fn forget(&mut self, id: u64) -> Option<Box<Pending>> {
        let pending = self.pending.remove(&id)?;
        self.by_question.remove(&pending.question);
        self.recording.remove(&id);
        self.deadlines.remove(&(pending.deadline_ns, id));
        Some(pending)
    }

    /// Takes one that has waited long enough.
    fn take_late(&mut self, now_ns: u64) -> Option<(u64, Box<Pending>, Option<Concluded>)> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now_ns)?;
        let concluded = self.recording.remove(&id);
        Some((id, self.forget(id)?, concluded))
    }

    /// Those that wait for somebody's answer.
    fn open(&self) -> impl Iterator<Item = (u64, &Pending)> {
        let pending = self.pending.iter().map(|(id, pending)| (*id, &**pending));
        pending.filter(|(id, _)| !self.recording.contains_key(id))
    }

    /// When there is something to do without being asked.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        let pending = self.deadlines.first().map(|(at, _)| *at);
        let ends = pending.into_iter().chain(self.standing.next_ns());
        ends.chain(self.next_record_ns()).min()
    }
}

/// What one run of each workload is: a number that changes with its tags, addresses and place, and with quarantine.
fn incarnations(control: &Control, desired: &Desired) -> HashMap<AttachmentId, u64> {
    let workloads = desired.ports.iter().flat_map(|port| {
        port.workloads.iter().filter_map(|workload| {
            let id = control.attachments.of(port, workload)?;
            let mut hasher = DefaultHasher::new();
            format!("{workload:?}").hash(&mut hasher);
            control.is_quarantined(port, workload).hash(&mut hasher);
            Some((id, hasher.finish()))
        })
    });
    workloads.collect()
}

/// The connection a question is about.
pub(super) fn connection(e: &AskEvent) -> FlowKey {
    let end = |addr, port, attachment| Endpoint {
        addr,
        port,
        attachment,
    };
    let is_icmp = matches!(e.protocol, proto::ICMP | proto::ICMPV6);
    // An echo exchange has an identifier, which stands on the side of the one who asks.
    let dport = if is_icmp { 0 } else { e.dport };
    let from = end(e.src, e.sport, e.src_attachment);
    let to = end(e.dst, dport, e.dst_attachment);
    FlowKey::new(e.tenant, e.protocol, &from, &to).0
}

fn asking(classifier: &Classifier, e: &AskEvent) -> Option<Asking> {
    let judgement = Judgement {
        verdict: Verdict::Allow,
        why: Why::Rule(RuleId(e.rule)),
        also: (e.also != NONE_U32).then_some(RuleId(e.also)),
        ask: true,
        ..Judgement::default()
    };
    if e.about == About::Suspect {
        return classifier.asking_suspect(&judgement);
    }
    classifier.asking(&judgement)
}

fn log(ask: &AskInfo, what: &str, why: Option<&str>) {
    info!(
        id = ask.id,
        rule = ask.rule,
        from = ask.from,
        to = ask.to,
        service = ask.service,
        why,
        "{what}"
    );
}

impl Control {
    /// Takes the workers' questions.
    pub(super) fn take_asks(&mut self, now_ns: u64) {
        let mut rings = std::mem::take(&mut self.asks.rings);
        for ring in &mut rings {
            for event in std::iter::from_fn(|| ring.pop()).take(PER_TURN) {
                self.take_ask(event, now_ns);
            }
        }
        self.asks.rings = rings;
    }

    fn take_ask(&mut self, event: AskEvent, now_ns: u64) {
        if !matches!(event.about, About::Rule | About::Suspect) {
            self.take_wall(&event, now_ns);
            return;
        }
        if event.about == About::Suspect && !self.is_asked_about(AttachmentId(event.src_attachment))
        {
            // He was let go meanwhile, and what waits is judged again.
            return;
        }
        let classifier = self.classifier_at(event.generation);
        let Some(asking) = classifier.and_then(|c| asking(c, &event)) else {
            // Of a policy that is long gone: what waits is judged anew when its time is over.
            return;
        };
        let topic = Topic::of(&event);
        let question = if asking.answer {
            topic.key()
        } else {
            connection(&event)
        };
        let known = self.asks.by_question.get(&question).copied();
        if event.cancelled {
            let last = known.filter(|id| {
                let pending = self.asks.pending.get_mut(id);
                pending.is_some_and(|p| {
                    p.askers = p.askers.saturating_sub(1);
                    p.askers == 0
                })
            });
            if let Some(id) = last {
                self.withdraw(id);
            }
            return;
        }
        let rule = self.rule_of(event.generation, asking.rule);
        if let Some(pending) = known.and_then(|id| self.asks.pending.get_mut(&id)) {
            // Another worker's, or the same again under changed rules, which decide.
            pending.shown.rule = rule;
            pending.asking = asking;
            pending.askers += 1;
            return;
        }
        let id = self.asks.ids.another();
        let pending = Box::new(Pending {
            topic,
            question,
            shown: self.shown(id, &event, &asking, rule),
            port: self.port_of(&event),
            first: event,
            asking,
            deadline_ns: event.time_ns + u64::from(asking.terms.deadline_ms) * MS_NS,
            over_budget: self.over_budget(event.port),
            askers: 1,
            by_rules: false,
            recorded: false,
        });
        let why = if asking.answer {
            self.readmits(&event, &asking, now_ns)
        } else {
            Some("its rule".to_owned())
        };
        if let Some(why) = why {
            let answer = Answer {
                yes: true,
                once: true,
                keep: !asking.answer || asking.terms.on_expiry == OnExpiry::Keep,
                expires_ns: now_ns + u64::from(asking.terms.ttl_s) * SECOND_NS,
                definition: asking.definition,
            };
            self.decided(connection(&event), (id, pending), answer, &why, now_ns);
            return;
        }
        log(&pending.shown, "ask", None);
        self.tell_ask("ask", &pending.shown, None);
        self.asks.fresh.push_back((now_ns, id));
        self.asks.remember(id, pending);
        self.ask_manager(id, now_ns);
    }

    /// Answers what has waited long enough, forgets answers whose time is over, and wakes whoever waits for those of this turn.
    pub(super) fn tick_asks(&mut self, now_ns: u64) {
        self.record_waiting(now_ns);
        while let Some((id, pending, concluded)) = self.asks.take_late(now_ns) {
            if let Some(concluded) = concluded {
                self.unrecorded(&pending, concluded, "not in time", now_ns);
                continue;
            }
            // Whoever asks for more than he may has no claim on what a rule says of a late answer.
            let yes = pending.asking.terms.otherwise == Otherwise::Allow
                && self.over_budget(pending.first.port) == pending.over_budget;
            let answer = Answer {
                yes,
                once: false,
                keep: pending.asking.terms.on_expiry == OnExpiry::Keep,
                // For those that wait: whoever comes later asks anew.
                expires_ns: now_ns + u64::from(pending.asking.terms.deadline_ms) * MS_NS,
                definition: pending.asking.definition,
            };
            let about = pending.topic.key();
            self.deciding
                .concluded(&pending.topic, Outcome::Unanswered, now_ns);
            let why = "no answer in time: otherwise";
            self.decided(about, (id, pending), answer, why, now_ns);
        }
        if self.asks.excess_at_ns <= now_ns {
            self.record_excess();
            self.asks.excess_at_ns = now_ns + EXCESS_NS;
        }
        let mut cut = std::mem::take(&mut self.asks.cut);
        while let Some((about, standing)) = self.asks.standing.take_over(now_ns) {
            self.shared.verdicts.take_back(&self.asks.access, &about);
            cut |= standing.answer.yes && standing.on_expiry == OnExpiry::Cut;
        }
        self.asks.access.quiesce();
        if std::mem::take(&mut self.asks.given) {
            self.workers.iter().for_each(WorkerHandle::wake);
        }
        if cut {
            self.judge_again();
        }
    }

    /// Gives an answer to those who wait, and to whom it concerns later.
    fn give(
        &mut self,
        about: FlowKey,
        pending: &Pending,
        mut answer: Answer,
        why: &str,
        now_ns: u64,
    ) {
        let before = self.asks.standing.get(&about).map_or(0, |s| s.denials);
        let denials = if answer.yes { 0 } else { before + 1 };
        if !answer.yes {
            let back_off = BACK_OFF_NS << before.min(6);
            answer.expires_ns = answer
                .expires_ns
                .max(now_ns + back_off.min(BACK_OFF_MAX_NS));
        }
        let standing = Standing {
            topic: pending.topic,
            answer,
            on_expiry: pending.asking.terms.on_expiry,
            denials,
            by_rules: pending.by_rules,
        };
        let ends = (answer.expires_ns, standing.over_ns());
        let from = pending.topic.from;
        let oldest = self.asks.standing.insert(about, from, ends, standing);
        if let Some((oldest, _)) = oldest {
            self.shared.verdicts.take_back(&self.asks.access, &oldest);
        }
        let is_in = self.shared.verdicts.give(&self.asks.access, &about, answer);
        self.asks.access.quiesce();
        if !is_in {
            self.asks.standing.remove(&about);
            warn!("no room for another answer: it counts as a no");
            return;
        }
        let what = if answer.yes { "allowed" } else { "denied" };
        log(&pending.shown, what, Some(why));
        if pending.asking.answer {
            let kind = if answer.yes { "yes" } else { "no" };
            self.tell_ask(kind, &pending.shown, Some(why));
        }
        self.asks.given = true;
    }

    fn port_of(&self, first: &AskEvent) -> String {
        let id = PortId(first.port);
        let port = self.ports.iter().find(|p| p.port.id == id);
        port.map_or_else(|| "-".to_owned(), |p| p.config.name.clone())
    }

    fn rule_of(&self, generation: u64, rule: RuleId) -> String {
        let classifier = self.classifier_at(generation);
        classifier.map_or_else(String::new, |c| c.rule_name(rule).to_owned())
    }

    fn shown(&self, id: u64, e: &AskEvent, asking: &Asking, rule: String) -> AskInfo {
        let terms = &asking.terms;
        let protocol = protocol_name(e.protocol);
        AskInfo {
            id: ids::text(id),
            rule,
            from: self.attachments.name(e.src_attachment),
            to: self.attachments.name(e.dst_attachment),
            service: [&*protocol, "/", &*e.dport.to_string()].concat(),
            protocol,
            src: e.src.to_string(),
            sport: e.sport,
            dst: e.dst.to_string(),
            dport: e.dport,
            otherwise: terms.otherwise,
            scope: terms.scope,
            ttl_s: terms.ttl_s,
            waited_ms: 0,
            left_ms: terms.deadline_ms.into(),
            opens: None,
        }
    }

    /// Questions that wait, the most urgent first, and what each is about.
    pub(super) fn ask_infos(&self, now_ns: u64) -> Vec<(AskInfo, Topic)> {
        let open = self.asks.open();
        let info = |(_, pending): (u64, &Pending)| (pending.at(now_ns), pending.topic);
        let mut infos: Vec<_> = open.map(info).collect();
        infos.sort_by_key(|(info, _)| info.left_ms);
        infos
    }

    /// One of them, by its id or the beginning of it.
    pub(super) fn ask_named(&self, id: &str, now_ns: u64) -> Result<(AskInfo, Topic), ApiError> {
        let noun = ("question", "ask list");
        let (_, pending) = ids::named(self.asks.open(), id, noun)?;
        Ok((pending.at(now_ns), pending.topic))
    }

    /// Somebody's answer to a question, by its id or the beginning of it.
    pub(super) fn answer_ask(
        &mut self,
        given: &AskAnswer,
        caller: &Caller,
        now_ns: u64,
    ) -> Result<AskInfo, ApiError> {
        let noun = ("question", "ask list");
        let (id, pending) = ids::named(self.asks.open(), &given.id, noun)?;
        let terms = pending.asking.terms;
        let ends = [pending.topic.from, pending.topic.to];
        if let Some(no) = self.is_own_affair(caller, ends) {
            self.recorder.role_refused(&no);
            return Err(no.into());
        }
        let too_much = |what: String| Err(ApiError::new(ErrorCode::Refused, what));
        let ttl_s = given.ttl_s.unwrap_or(terms.ttl_s);
        if ttl_s == 0 || ttl_s > terms.ttl_s {
            return too_much(format!(
                "an answer to this rule holds for 1 to {} s",
                terms.ttl_s
            ));
        }
        let scope = given.scope.unwrap_or(terms.scope);
        if scope > terms.scope {
            return too_much("an answer to this rule is for one connection".to_owned());
        }
        let yes = given.yes;
        let given = Given { yes, scope, ttl_s };
        let info = pending.at(now_ns);
        self.conclude(id, given, "answered", now_ns);
        self.cancel_at_manager(id);
        Ok(info)
    }

    /// Has a question answered like this, which its rule admits, if it waits for an answer.
    pub(super) fn conclude(
        &mut self,
        id: u64,
        Given { yes, scope, ttl_s }: Given,
        why: &str,
        now_ns: u64,
    ) {
        if self.asks.recording.contains_key(&id) {
            return;
        }
        let Some(pending) = self.asks.forget(id) else {
            return;
        };
        let answer = Answer {
            yes,
            once: yes && scope == Scope::Connection,
            keep: pending.asking.terms.on_expiry == OnExpiry::Keep,
            expires_ns: now_ns + u64::from(ttl_s) * SECOND_NS,
            definition: pending.asking.definition,
        };
        // A no to one connection would only bring the question again.
        let about = match scope {
            Scope::Connection if yes => connection(&pending.first),
            _ => pending.topic.key(),
        };
        let outcome = if yes {
            Outcome::Allowed
        } else {
            Outcome::Denied
        };
        self.deciding.concluded(&pending.topic, outcome, now_ns);
        self.decided(about, (id, pending), answer, why, now_ns);
    }

    /// These are under suspicion no longer: what was asked for that is not a question any more.
    pub(super) fn withdraw_of_suspects(&mut self, workloads: &[AttachmentId]) {
        let of = |p: &Pending| p.first.about == About::Suspect && workloads.contains(&p.topic.from);
        let pending = self.asks.pending.iter();
        let ids: Vec<_> = pending.filter(|(_, p)| of(p)).map(|(id, _)| *id).collect();
        for id in ids {
            self.withdraw(id);
        }
    }

    /// Nobody waits for an answer any more.
    fn withdraw(&mut self, id: u64) {
        if let Some(mut pending) = self.asks.forget(id) {
            pending.record(&self.recorder);
            self.cancel_at_manager(id);
        }
    }

    /// Takes back what rules of this process have answered, or of that only what has this workload at an end: other rules, or of
    /// what they know of it now, may say otherwise, so whoever connects next is asked
    /// about anew. What is connected already goes on, or not, as at the end of an answer's time.
    #[cfg(feature = "manager")]
    pub(super) fn outdate(&mut self, workload: Option<AttachmentId>, now_ns: u64) {
        let is_about = |topic: &Topic| workload.is_none_or(|w| [topic.from, topic.to].contains(&w));
        let outdated = |s: &Standing| s.by_rules && is_about(&s.topic);
        for (about, standing) in self.asks.standing.take_all(outdated) {
            let Answer { yes, keep, .. } = standing.answer;
            if !(yes && keep) {
                self.shared.verdicts.take_back(&self.asks.access, &about);
                self.asks.cut |= yes;
                continue;
            }
            let over = Standing {
                answer: Answer {
                    expires_ns: now_ns,
                    ..standing.answer
                },
                by_rules: false,
                ..standing
            };
            let verdicts = &self.shared.verdicts;
            if verdicts.give(&self.asks.access, &about, over.answer) {
                let ends = (now_ns, over.over_ns());
                let (from, asks) = (over.topic.from, &mut self.asks);
                asks.standing.insert(about, from, ends, over);
            }
        }
        self.asks.access.quiesce();
    }

    /// Takes back what a new state makes void: answers whose ends or rules are not what they were. Before it is published, so
    /// that nobody is admitted by one of them.
    pub(super) fn outlive(&mut self, desired: &Desired, classifier: &Classifier) {
        let now = incarnations(self, desired);
        let before = std::mem::replace(&mut self.asks.incarnations, now);
        if self.asks.standing.is_empty() && self.asks.pending.is_empty() {
            return;
        }
        let now = &self.asks.incarnations;
        let asks = classifier.definitions();
        let same = |end: AttachmentId| before.get(&end) == now.get(&end);
        let stands = |topic: &Topic, definition| {
            same(topic.from) && same(topic.to) && asks.contains(&definition)
        };
        let void = |s: &Standing| !stands(&s.topic, s.answer.definition);
        for (about, _) in self.asks.standing.take_all(void) {
            self.shared.verdicts.take_back(&self.asks.access, &about);
        }
        let void = self.asks.pending.iter();
        let void = void.filter(|(_, p)| !stands(&p.topic, p.asking.definition));
        let void: Vec<_> = void.map(|(id, _)| *id).collect();
        for id in void {
            // What waits for it is given up by the worker, or asked about anew.
            self.withdraw(id);
        }
        self.asks.access.quiesce();
    }
}
