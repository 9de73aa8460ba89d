//! The classifier: what a policy compiles to, and the questions it answers on the data path.
//!
//! Rules are numbered in the order they are tried (tenant, tier, file order). What a rule's
//! `from` names is a *from-group*, what its `to` names a *to-group*; a party's [`SetId`] stands for
//! the groups it is in. Which rules are about two sets, and the search among them, is
//! [`super::cells`]; what an address's set is, [`super::ranges`]. Questions that come in bursts
//! are answered beside each other ([`Classifier::classify_burst`]): waits for memory overlap.
//!
//! *Thread safety:* everything but the counters and buckets is immutable; those are single
//! atomic words. No question allocates, locks or makes a system call.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::cells::{Cells, Probe, Wanted};
use super::edit::Edits;
use super::known::Known;
use super::lanes::{Job, Lanes, run};
use super::limit::RuleState;
use super::model::{Action, Ask, Record, Rule, Tier};
use super::ranges::{Find as FindRange, FindAll as FindRanges, Ranges, TOGETHER, WideRanges};
use super::suspicion;
use super::{Judgement, Query, RuleId, Service, SetId, TenantId, Verdict, Why};
use crate::packet::Addr;

/// A compiled policy.
#[derive(Debug, Default)]
pub struct Classifier {
    pub(super) whole: Arc<Whole>,
    /// What has changed since that was compiled.
    pub(super) edits: Option<Box<Edits>>,
}

/// A policy as it was compiled whole.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub(super) cells: Cells,
    /// Where rules are about some source ports only.
    pub(super) by_source_port: Hull,
    /// Whether connections of a set may be picked up mid-stream.
    pub(super) loose: Vec<bool>,
    pub(super) tenants: Vec<TenantPart>,
    /// What every rule says, and the first rule of the next tier: its [`RulePart`].
    pub(super) says: Vec<Says>,
    pub(super) next_tiers: Vec<u32>,
    pub(super) states: Vec<Arc<RuleState>>,
    pub(super) infos: Vec<Info>,
    /// What a change is worked out from; no question reads it.
    pub(super) known: Known,
}

/// Protocol and destination port in one number: `protocol << 16 | dport`.
pub(super) const fn ip_key(protocol: u8, dport: u16) -> u32 {
    (protocol as u32) << 16 | dport as u32
}

/// Above every IP key: `1 << 24 | ethertype`.
pub(super) const fn ether_key(ethertype: u16) -> u32 {
    1 << 24 | ethertype as u32
}

/// The key of a service.
pub(super) const fn key(service: Service) -> u32 {
    match service {
        Service::Ip {
            protocol, dport, ..
        } => ip_key(protocol, dport),
        Service::Ether(ethertype) => ether_key(ethertype),
    }
}

/// From the lowest to the highest of some keys of services.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hull(Option<(u32, u32)>);

impl Hull {
    pub(super) fn add(&mut self, low: u32, high: u32) {
        let (lowest, highest) = self.0.unwrap_or((low, high));
        self.0 = Some((lowest.min(low), highest.max(high)));
    }

    #[inline]
    fn has(self, key: u32) -> bool {
        self.0.is_some_and(|(low, high)| low <= key && key <= high)
    }
}

/// One tenant's rules and what it knows of the outside.
#[derive(Debug, Default)]
pub(super) struct TenantPart {
    pub(super) first_rule: u32,
    pub(super) end_rule: u32,
    pub(super) v4: Ranges,
    pub(super) v6: WideRanges,
}

/// What the data path needs of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct RulePart {
    /// First rule of the tenant's next tier.
    pub(super) next_tier: u32,
    pub(super) says: Says,
}

/// What a match means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Decides,
    /// On with the next tier.
    Pass,
    /// Reported; the search goes on.
    Staged,
}

/// What a match means, and the part of a judgement that a rule alone determines: a byte, so that all
/// rules' lie in the nearest cache. The lowest two bits are the verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Says(u8);

impl Says {
    const ASK: u8 = 1 << 2;
    const LOG: u8 = 1 << 3;
    const NOTIFY: u8 = 1 << 4;
    const LIMITED: u8 = 1 << 5;
    const PASS: u8 = 1 << 6;
    const STAGED: u8 = 1 << 7;

    pub(super) fn new(rule: &Rule) -> Self {
        let verdict = match rule.action {
            Action::Allow | Action::Notify | Action::Ask(_) => Verdict::Allow,
            Action::Pass | Action::Deny => Verdict::Deny,
            Action::Reject => Verdict::Reject,
            Action::Decoy => Verdict::Decoy,
        };
        let notify = rule.action == Action::Notify;
        let flags = [
            (rule.holds(), Self::ASK),
            (rule.log || notify, Self::LOG),
            (notify, Self::NOTIFY),
            (rule.limit.is_some(), Self::LIMITED),
            (rule.action == Action::Pass, Self::PASS),
            (rule.staged, Self::STAGED),
        ];
        let flags = flags.into_iter().filter(|(is, _)| *is);
        Says(flags.fold(verdict as u8, |says, (_, flag)| says | flag))
    }

    const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    #[inline]
    pub(super) const fn kind(self) -> Kind {
        if self.has(Self::STAGED) {
            Kind::Staged
        } else if self.has(Self::PASS) {
            Kind::Pass
        } else {
            Kind::Decides
        }
    }

    /// The judgement of a rule that decides.
    #[inline(always)]
    pub(super) fn judgement(self, rule: u32) -> Judgement {
        let said = SAID[usize::from(self.0)];
        Judgement {
            verdict: said.verdict,
            why: Why::Rule(RuleId(rule)),
            ask: said.ask,
            log: said.log,
            notify: said.notify,
            limited: said.limited,
            ..Judgement::default()
        }
    }
}

/// [`Says`], taken apart.
#[derive(Clone, Copy, Debug)]
struct Said {
    verdict: Verdict,
    ask: bool,
    log: bool,
    notify: bool,
    limited: bool,
}

/// For every [`Says`]: a look is faster than taking it apart.
static SAID: [Said; 1 << u8::BITS] = {
    let mut all = [Said::of(Says(0)); 1 << u8::BITS];
    let mut says = u8::MAX;
    while says > 0 {
        all[says as usize] = Said::of(Says(says));
        says -= 1;
    }
    all
};

impl Said {
    const fn of(says: Says) -> Self {
        Said {
            verdict: match says.0 & 3 {
                0 => Verdict::Allow,
                1 => Verdict::Deny,
                2 => Verdict::Reject,
                _ => Verdict::Decoy,
            },
            ask: says.has(Says::ASK),
            log: says.has(Says::LOG),
            notify: says.has(Says::NOTIFY),
            limited: says.has(Says::LIMITED),
        }
    }
}

/// All there is of a rule.
pub(super) type Parts<'a> = (RulePart, &'a Info, &'a Arc<RuleState>);

/// What people want to know of a rule.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub(super) name: Box<str>,
    pub(super) action: Action,
    pub(super) tenant: TenantId,
    pub(super) tier: Tier,
    pub(super) written: Option<u32>,
    record: Record,
    /// See [`Asking::definition`]; 0 where nothing waits.
    definition: u64,
}

impl Info {
    pub(super) fn new(
        name: Box<str>,
        rule: &Rule,
        tenant: TenantId,
        tier: Tier,
        written: Option<u32>,
    ) -> Self {
        Info {
            name,
            action: rule.action,
            tenant,
            tier,
            written,
            record: rule.require_record,
            definition: if rule.holds() { definition(rule) } else { 0 },
        }
    }
}

/// A number for everything that is written in a rule.
fn definition(rule: &Rule) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{rule:?}").hash(&mut hasher);
    hasher.finish()
}

/// What a judgement that holds first packets waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asking {
    /// The rule that holds them; of two, the destination tenant's.
    pub rule: RuleId,
    /// Somebody must answer.
    pub answer: bool,
    /// It must be recorded.
    pub record: Record,
    /// What it says; of two, the stricter of each.
    pub terms: Ask,
    /// Stands for all that is written in these rules: an answer is about them, and outlives changes of others.
    pub definition: u64,
}

/// A rule in a listing.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct RuleView<'a> {
    /// Its number.
    #[serde(skip)]
    pub id: RuleId,
    /// Name; `tenant/name` when the tenant is not "default".
    pub name: &'a str,
    /// Owner.
    #[serde(skip)]
    pub tenant: TenantId,
    /// Tier.
    pub tier: Tier,
    /// What it does.
    #[serde(flatten)]
    pub action: Action,
    /// Whether it only reports.
    pub staged: bool,
    /// Position in [`super::model::Policy::rules`]; `None` for a built-in rule.
    pub written: Option<usize>,
    /// How often it decided.
    pub hits: u64,
    /// How often it would have decided, had it not been staged.
    pub staged_hits: u64,
}

impl Classifier {
    /// A classifier that denies everything: what stands before any policy does.
    #[must_use]
    pub fn deny_all() -> Self {
        Classifier::default()
    }

    /// The set of a tenant's CIDR segments an outside address is in. Cost: a short search among
    /// the tenant's prefixes.
    #[must_use]
    pub fn outside(&self, tenant: TenantId, addr: &Addr) -> SetId {
        let Some(part) = self.whole.tenants.get(usize::from(tenant.0)) else {
            return SetId::default();
        };
        match v4(addr) {
            Some(addr) => SetId(run(FindRange(&part.v4, addr))),
            None => SetId(part.v6.find(u128::from_be_bytes(addr.0))),
        }
    }

    /// [`Classifier::outside`] for several addresses beside each other: every address's set is
    /// written to its slot.
    pub fn outside_burst(&self, tenant: TenantId, addrs: &[Addr], sets: &mut [SetId]) {
        let Some(part) = self.whole.tenants.get(usize::from(tenant.0)) else {
            sets.fill(SetId::default());
            return;
        };
        for (addrs, sets) in addrs.chunks(TOGETHER).zip(sets.chunks_mut(TOGETHER)) {
            let mut numbers = [0; TOGETHER];
            let mut wide = false;
            for (number, addr) in numbers.iter_mut().zip(addrs) {
                let v4 = v4(addr);
                wide |= v4.is_none();
                *number = v4.unwrap_or(0);
            }
            if let Some(numbers) = numbers.get_mut(..addrs.len()) {
                run(FindRanges(&part.v4, numbers));
            }
            for (set, number) in sets.iter_mut().zip(numbers) {
                *set = SetId(number);
            }
            if wide {
                for (set, addr) in sets.iter_mut().zip(addrs) {
                    if v4(addr).is_none() {
                        *set = self.outside(tenant, addr);
                    }
                }
            }
        }
    }

    /// Whether TCP connections of a party with this set may be picked up mid-stream.
    #[must_use]
    pub fn loose(&self, set: SetId) -> bool {
        let loose = self.whole.loose.get(set.0 as usize);
        loose.is_some_and(|loose| *loose)
    }

    /// The service without what no rule about it looks at, so that more questions are alike: its source port, often.
    #[inline]
    #[must_use]
    pub fn as_asked(&self, service: Service) -> Service {
        let Service::Ip {
            protocol, dport, ..
        } = service
        else {
            return service;
        };
        let key = ip_key(protocol, dport);
        let edits = self.edits.as_ref();
        if self.whole.by_source_port.has(key) || edits.is_some_and(|e| e.by_source_port.has(key)) {
            return service;
        }
        Service::Ip {
            protocol,
            sport: 0,
            dport,
        }
    }

    /// May `from` open `service` to `to`? Between tenants both must say so: the source's rules
    /// are tried first, and where they allow, the destination's decide.
    #[must_use]
    pub fn classify(&self, query: &Query) -> Judgement {
        self.answer(query, None)
    }

    /// [`Classifier::classify`] for several questions beside each other: every answer is written
    /// to its question's slot.
    pub fn classify_burst(&self, queries: &[Query], answers: &mut [Judgement]) {
        run(Burst(self, queries, answers));
    }

    /// `found` is the first rule of the initiator's tenant that matches, when that is known.
    #[inline]
    fn answer(&self, query: &Query, found: Option<u32>) -> Judgement {
        let source = self.judge(query.from.tenant, query, found);
        if query.from.tenant == query.to.tenant || source.verdict != Verdict::Allow {
            return source;
        }
        let destination = self.judge(query.to.tenant, query, None);
        let staged = source.staged.or(destination.staged);
        if destination.verdict != Verdict::Allow {
            return Judgement {
                staged,
                ..destination
            };
        }
        Judgement {
            verdict: Verdict::Allow,
            why: destination.why,
            also: match source.why {
                Why::Rule(rule) => Some(rule),
                Why::DefaultDeny => None,
            },
            ask: source.ask || destination.ask,
            log: source.log || destination.log,
            notify: source.notify || destination.notify,
            limited: source.limited || destination.limited,
            staged,
        }
    }

    /// What one tenant's rules say. `found` is the first of them that matches, when that is known.
    #[inline]
    fn judge(&self, tenant: TenantId, query: &Query, mut found: Option<u32>) -> Judgement {
        if let Some(edits) = &self.edits {
            return edits.judge(&self.whole, tenant, query, found);
        }
        let mut judgement = Judgement::default();
        let mut wanted = self.whole.wanted(tenant);
        loop {
            let found = match found.take() {
                Some(found) => found,
                None => self.whole.find(query, wanted),
            };
            let Some(rule) = self.whole.part(found) else {
                return judgement;
            };
            match rule.says.kind() {
                Kind::Staged => {
                    // One staged rule is reported; later ones need not be found.
                    judgement.staged = Some(RuleId(found));
                    wanted.staged = false;
                    wanted.first = found + 1;
                }
                Kind::Pass => wanted.first = rule.next_tier,
                Kind::Decides => {
                    return Judgement {
                        staged: judgement.staged,
                        ..rule.says.judgement(found)
                    };
                }
            }
        }
    }

    /// A rule by its number.
    pub(super) fn rule(&self, rule: RuleId) -> Option<Parts<'_>> {
        let at = rule.0 as usize;
        let whole = &*self.whole;
        match (
            whole.part(rule.0),
            whole.infos.get(at),
            whole.states.get(at),
        ) {
            (Some(part), Some(info), Some(state)) => Some((part, info, state)),
            _ => {
                let added = self.edits.as_ref()?.added(rule)?;
                Some((added.part, &added.info, &added.state))
            }
        }
    }

    /// Who asks, and what; `None` if the judgement need not wait.
    #[inline]
    #[must_use]
    pub fn asking(&self, judgement: &Judgement) -> Option<Asking> {
        if judgement.ask {
            self.askers(judgement)
        } else {
            None
        }
    }

    /// What is asked of a suspect whom the judgement allows something: all but what the built-in rules do.
    #[must_use]
    pub fn asking_suspect(&self, judgement: &Judgement) -> Option<Asking> {
        let Why::Rule(rule) = judgement.why else {
            return None;
        };
        self.rule_written(rule)?;
        Some(Asking {
            rule,
            answer: true,
            record: self.rule(rule)?.1.record,
            terms: suspicion::ASK,
            definition: suspicion::ASKED,
        })
    }

    /// Of all rules that hold first packets, what stands for what is written in them; and of what suspects are asked.
    #[must_use]
    pub fn definitions(&self) -> HashSet<u64> {
        let infos = self.rules().filter_map(|r| self.rule(r.id));
        let definitions = infos.map(|(_, info, _)| info.definition);
        let definitions = definitions.filter(|definition| *definition != 0);
        definitions.chain([suspicion::ASKED]).collect()
    }

    #[cold]
    fn askers(&self, judgement: &Judgement) -> Option<Asking> {
        let Why::Rule(why) = judgement.why else {
            return None;
        };
        let asks = |rule: RuleId| {
            let (_, info, _) = self.rule(rule)?;
            let (terms, answer) = match info.action {
                Action::Ask(terms) => (terms, true),
                _ if info.definition != 0 => (Ask::RECORD, false),
                _ => return None,
            };
            Some(Asking {
                rule,
                answer,
                record: info.record,
                terms,
                definition: info.definition,
            })
        };
        match (asks(why), judgement.also.and_then(asks)) {
            (Some(one), Some(other)) => Some(Asking {
                answer: one.answer || other.answer,
                record: one.record.max(other.record),
                terms: one.terms.stricter(other.terms),
                definition: one.definition.rotate_left(1) ^ other.definition,
                ..one
            }),
            (one, other) => one.or(other),
        }
    }

    /// The name of a rule: `tenant/name` when the tenant is not "default".
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.rule(rule).map_or("unknown", |(_, info, _)| &info.name)
    }

    /// Position of a rule in [`super::model::Policy::rules`]; `None` for a built-in one.
    #[must_use]
    pub fn rule_written(&self, rule: RuleId) -> Option<u32> {
        let written = self.rule(rule)?.1.written;
        match &self.edits {
            Some(edits) => edits.written(rule, written),
            None => written,
        }
    }

    /// Every rule, built-in ones included, in the order they are tried.
    pub fn rules(&self) -> impl Iterator<Item = RuleView<'_>> {
        let order = match &self.edits {
            Some(edits) => edits.order(),
            None => (0..)
                .map(RuleId)
                .zip(&self.whole.infos)
                .map(|(id, _)| id)
                .collect(),
        };
        order.into_iter().filter_map(|id| {
            let (part, info, state) = self.rule(id)?;
            Some(RuleView {
                id,
                name: &info.name,
                tenant: info.tenant,
                tier: info.tier,
                action: info.action,
                staged: part.says.kind() == Kind::Staged,
                written: self.rule_written(id).map(|n| n as usize),
                hits: state.hits.load(Relaxed),
                staged_hits: state.staged_hits.load(Relaxed),
            })
        })
    }

    /// What each workload is, in the order they were given when it was compiled.
    #[must_use]
    pub fn parties(&self) -> &[super::Party] {
        &self.whole.known.parties
    }

    /// What is remembered of every rule, by name.
    pub(super) fn states(&self) -> impl Iterator<Item = (&str, &Arc<RuleState>)> {
        let rules = self.rules().filter_map(|view| self.rule(view.id));
        rules.map(|(_, info, state)| (&*info.name, state))
    }

    /// Bytes of what questions are answered from: without names, counts and limits.
    #[must_use]
    pub fn size(&self) -> usize {
        let whole = &*self.whole;
        let tenants = whole.tenants.iter();
        let tenants = tenants.map(|part| size_of::<TenantPart>() + part.v4.size() + part.v6.size());
        whole.cells.size()
            + size_of_val(&*whole.loose)
            + size_of_val(&*whole.says)
            + size_of_val(&*whole.next_tiers)
            + tenants.sum::<usize>()
            + self.edits.as_ref().map_or(0, |edits| edits.size())
    }

    fn state(&self, rule: RuleId) -> Option<&RuleState> {
        let state = self.whole.states.get(rule.0 as usize);
        let state = state.or_else(|| Some(&self.edits.as_ref()?.added(rule)?.state));
        state.map(Arc::as_ref)
    }

    /// Counts a decision of this rule.
    pub fn hit(&self, rule: RuleId) {
        if let Some(state) = self.state(rule) {
            // Relaxed: a count, ordered with nothing.
            state.hits.fetch_add(1, Relaxed);
        }
    }

    /// Counts a decision this staged rule would have made.
    pub fn staged_hit(&self, rule: RuleId) {
        if let Some(state) = self.state(rule) {
            state.staged_hits.fetch_add(1, Relaxed);
        }
    }

    /// Whether one more new connection is within the rule's limit; spends it when it is. `now_ns`
    /// is monotonic.
    #[must_use]
    pub fn limit_take(&self, rule: RuleId, now_ns: u64) -> bool {
        self.state(rule)
            .is_none_or(|state| state.take_connection(now_ns))
    }

    /// Whether `bits` more are within the rule's limit; spends them when they are.
    #[must_use]
    pub fn bits_take(&self, rule: RuleId, bits: u64, now_ns: u64) -> bool {
        self.state(rule)
            .is_none_or(|state| state.take_bits(bits, now_ns))
    }
}

impl Whole {
    /// A tenant's rules; none of an unknown one's.
    #[inline]
    pub(super) fn wanted(&self, tenant: TenantId) -> Wanted {
        let part = self.tenants.get(usize::from(tenant.0));
        Wanted {
            first: part.map_or(0, |part| part.first_rule),
            end: part.map_or(0, |part| part.end_rule),
            staged: true,
        }
    }

    /// One of its rules.
    #[inline]
    pub(super) fn part(&self, rule: u32) -> Option<RulePart> {
        let at = rule as usize;
        let (next_tier, says) = (*self.next_tiers.get(at)?, *self.says.get(at)?);
        Some(RulePart { next_tier, says })
    }

    /// The first wanted rule that matches, or [`super::cells::NONE`].
    #[inline]
    pub(super) fn find(&self, query: &Query, wanted: Wanted) -> u32 {
        run(Find(&self.cells, probe(query), wanted))
    }
}

/// The address as a number when it is a mapped IPv4 one.
#[inline]
fn v4(addr: &Addr) -> Option<u32> {
    // ::ffff:0:0/96, RFC 4291 section 2.5.5.2.
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let (prefix, last) = addr.0.split_first_chunk::<12>()?;
    let last = u32::from_be_bytes(*last.first_chunk()?);
    (*prefix == MAPPED).then_some(last)
}

/// [`Cells::find`].
struct Find<'a>(&'a Cells, Probe, Wanted);

impl Job for Find<'_> {
    type Out = u32;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> u32 {
        self.0.find(lanes, self.1, self.2)
    }
}

/// [`Classifier::classify_burst`].
struct Burst<'a>(&'a Classifier, &'a [Query], &'a mut [Judgement]);

impl Job for Burst<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Burst(classifier, queries, answers) = self;
        let whole = &*classifier.whole;
        let edits = classifier.edits.as_deref();
        for (queries, answers) in queries.chunks(TOGETHER).zip(answers.chunks_mut(TOGETHER)) {
            let mut tenant = TenantId::default();
            let mut wanted = whole.wanted(tenant);
            let ask = |query: &Query| {
                if query.from.tenant != tenant {
                    tenant = query.from.tenant;
                    wanted = whole.wanted(tenant);
                }
                (probe(query), wanted)
            };
            let ends = |query: &Query| (query.from.set.0, query.to.set.0);
            let mut found = [0; TOGETHER];
            whole.cells.find_all(lanes, queries, ends, ask, &mut found);
            for ((answer, query), found) in answers.iter_mut().zip(queries).zip(found) {
                // All but few questions end with the first match, within a tenant.
                let says = whole.says.get(found as usize);
                if says.is_none() && edits.is_none() {
                    // What no rule is about, as nearly everything in a flood.
                    *answer = Judgement::default();
                    continue;
                }
                let says = says.filter(|says| says.kind() == Kind::Decides);
                let says = says.filter(|_| query.from.tenant == query.to.tenant);
                match says.filter(|_| edits.is_none_or(|e| e.spare(query, found))) {
                    Some(says) => *answer = says.judgement(found),
                    None => *answer = classifier.answer(query, Some(found)),
                }
            }
        }
    }
}

/// What cells are searched by.
#[inline]
pub(super) fn probe(query: &Query) -> Probe {
    let (key, sport) = match query.service {
        Service::Ip {
            protocol,
            sport,
            dport,
        } => (ip_key(protocol, dport), sport),
        Service::Ether(ethertype) => (ether_key(ethertype), 0),
    };
    Probe {
        from: query.from.set.0,
        to: query.to.set.0,
        key,
        sport,
    }
}
