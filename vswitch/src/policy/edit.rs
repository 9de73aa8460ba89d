//! A few changed rules, without compiling the policy anew.
//!
//! What was compiled stays as it is and is shared; beside it stands a short list of rules that were
//! added, searched as a cell is, and one of rules that are gone. A question takes the earlier of
//! what both have. When compiling, a rule is left out where an earlier one leaves nothing of it;
//! if that one goes, such *heirs* are listed beside the added ones.
//!
//! What does not fit (too many changes, or too many heirs) and what is no change of rules alone
//! is compiled whole.

use std::ops::Range;
use std::sync::Arc;

use super::arrange::MAX_HEIRS;
use super::cells::{Cell, Cells, Entry, NONE, Wanted, write};
use super::classify::{Classifier, Hull, Info, Kind, Parts, RulePart, Says, Whole, probe};
use super::compile::{Compiled, number, service_ranges, state};
use super::known::Scope;
use super::limit::RuleState;
use super::model::{Policy, Rule, Segment, SegmentRef, Tenant, Tier, qualified};
use super::service::PortRange;
use super::validate::validate;
use super::{Judgement, Query, RuleId, TenantId};

/// Entries beside the compiled ones, and rules gone from those: guess (eight blocks to scan).
const MAX_EDITS: usize = 64;

/// A rule that was not there when the policy was compiled.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) part: RulePart,
    pub(super) info: Info,
    pub(super) state: Arc<RuleState>,
    scope: Arc<Scope>,
}

/// Rules that stand together in the file.
#[derive(Clone, Debug)]
enum Stretch {
    /// These of the compiled policy.
    Kept(Range<usize>),
    Added(Arc<Added>),
}

impl Stretch {
    fn len(&self) -> usize {
        match self {
            Stretch::Kept(range) => range.len(),
            Stretch::Added(_) => 1,
        }
    }
}

/// A rule that was there, and is no more.
#[derive(Clone, Debug)]
struct Gone {
    rule: u32,
    scope: Arc<Scope>,
}

/// A rule that is searched beside the compiled ones: an added one, or an heir.
#[derive(Debug)]
struct Beside {
    /// The compiled rule it is tried before; an heir is that rule.
    before: u32,
    part: RulePart,
    place: (TenantId, Tier),
    scope: Arc<Scope>,
    /// With its position in the file.
    added: Option<(Arc<Added>, u32)>,
}

impl Beside {
    /// Whether it is tried before that rule of its tenant; an heir is not tried before itself.
    fn is_before(&self, rule: u32) -> bool {
        self.before < rule || self.before == rule && self.added.is_some()
    }
}

/// All rules beside the compiled ones.
const ALL: Wanted = Wanted {
    first: 0,
    end: NONE,
    staged: true,
};

/// What has changed since the policy was compiled.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// The rules of the compiled policy, and with that the number of the first that is beside them.
    compiled: u32,
    /// In file order.
    file: Vec<Stretch>,
    /// Of every kept stretch, where it started and where it starts now.
    kept: Vec<(u32, u32)>,
    /// In rule order.
    gone: Vec<Gone>,
    /// In the order they are tried.
    beside: Vec<Beside>,
    /// Entries of `beside`; their rule is the position there.
    cells: Cells,
    cell: Cell,
    /// Where they are about some source ports only.
    pub(super) by_source_port: Hull,
}

/// Which rules differ between two policies that differ in nothing else.
#[derive(Clone, Debug)]
pub struct Edit<'a> {
    before: &'a Policy,
    after: &'a Policy,
    /// Rules of the one, and what stands there in the other. In order.
    rules: Vec<(Range<usize>, Range<usize>)>,
}

impl<'a> Edit<'a> {
    fn old_rules(&self) -> impl Iterator<Item = &'a Rule> {
        let rules = self.rules.iter();
        rules.flat_map(|(old, _)| self.before.rules.get(old.clone()).unwrap_or(&[]))
    }

    fn new_rules(&self) -> impl Iterator<Item = &'a Rule> {
        let rules = self.rules.iter();
        rules.flat_map(|(_, new)| self.after.rules.get(new.clone()).unwrap_or(&[]))
    }

    /// Between policies of which is known that they differ in these rules only: positions before, and
    /// positions after.
    #[must_use]
    pub fn known(
        before: &'a Policy,
        after: &'a Policy,
        old: Range<usize>,
        new: Range<usize>,
    ) -> Self {
        Edit {
            before,
            after,
            rules: vec![(old, new)],
        }
    }

    /// Between any two policies; `None` when they differ in more than a few rules. Cost: one look at every rule.
    #[must_use]
    pub fn between(before: &'a Policy, after: &'a Policy) -> Option<Self> {
        let but_rules = |p: &'a Policy| {
            let walls = (&p.walls, &p.sanitised);
            (&p.infrastructure, &p.tenants, &p.segments, walls)
        };
        if but_rules(before) != but_rules(after) {
            return None;
        }
        let mut rules = Vec::new();
        let (mut old, mut new) = (0, 0);
        loop {
            let (olds, news) = (before.rules.get(old..)?, after.rules.get(new..)?);
            let same = olds.iter().zip(news).take_while(|(a, b)| a == b).count();
            (old, new) = (old + same, new + same);
            if old == before.rules.len() && new == after.rules.len() {
                return Some(Edit {
                    before,
                    after,
                    rules,
                });
            }
            let (olds, news) = (before.rules.get(old..)?, after.rules.get(new..)?);
            // The least to leave out on both sides until they agree again.
            let ways = (1..=MAX_EDITS).flat_map(|all| (0..=all).map(move |n| (n, all - n)));
            let (gone, come) =
                { ways }.find(|&(gone, come)| match (olds.get(gone), news.get(come)) {
                    (Some(old), Some(new)) => old == new,
                    _ => olds.len() == gone && news.len() == come,
                })?;
            rules.push((old..old + gone, new..new + come));
            (old, new) = (old + gone, new + come);
        }
    }
}

impl Classifier {
    /// What compiling the policy after the edit, for the same workloads, would give; `None` when
    /// that is the only way (there are too many changes by now, or the policy cannot stand). This
    /// is the classifier of the policy before.
    ///
    /// Cost: microseconds, however many rules there are.
    #[must_use]
    pub fn edit(&self, edit: &Edit<'_>) -> Option<Compiled> {
        let whole = &self.whole;
        let (mut file, mut gone) = match &self.edits {
            Some(edits) => (edits.file.clone(), edits.gone.clone()),
            None => (vec![Stretch::Kept(0..edit.before.rules.len())], Vec::new()),
        };
        if !self.can_stand(edit) {
            return None;
        }
        // Backwards, so that positions before stay what they are.
        for (old, new) in edit.rules.iter().rev() {
            let new = edit.after.rules.get(new.clone())?.iter();
            let new = new.map(|rule| Some(Stretch::Added(self.add(edit.after, rule)?)));
            let new: Vec<Stretch> = new.collect::<Option<_>>()?;
            let (low, high) = (split(&mut file, old.start), split(&mut file, old.end));
            let mut rules = edit.before.rules.get(old.clone())?.iter();
            for stretch in file.splice(low..high, new) {
                let Stretch::Kept(range) = stretch else {
                    rules.next();
                    continue;
                };
                for (written, rule) in range.zip(&mut rules) {
                    gone.push(Gone {
                        rule: whole.place(owner(edit.before, rule)?, written),
                        scope: Arc::new(Scope::new(&whole.known, edit.before, rule)?),
                    });
                }
            }
        }
        let edits = Edits::new(whole, edit.after, file, gone)?;
        let classifier = Classifier {
            whole: Arc::clone(whole),
            edits: (!edits.is_none()).then(|| Box::new(edits)),
        };
        let changed = edit.old_rules().chain(edit.new_rules());
        let services: Vec<_> = changed
            .flat_map(|rule| service_ranges(&rule.service))
            .collect();
        let management = &whole.known.management;
        let is_cut = management.is_cut(&classifier, edit.after, &services);
        (!is_cut).then(|| Compiled {
            classifier,
            parties: whole.known.parties.clone(),
        })
    }

    /// Whether the new rules are valid.
    fn can_stand(&self, edit: &Edit<'_>) -> bool {
        // They are as valid as in a policy of their own, with what they name. What that does not
        // have is not known.
        let mut policy = Policy::default();
        for rule in edit.new_rules() {
            let ends = rule.from.iter().chain(&rule.to);
            let names = ends.map(|end| (end.tenant.as_ref().unwrap_or(&rule.tenant), Some(end)));
            for (owner, end) in names.chain([(&rule.tenant, None)]) {
                let known = edit.after.tenant_id(owner).is_some();
                if known && policy.tenant_id(owner).is_none() {
                    policy.tenants.push(Tenant {
                        name: owner.clone(),
                        ..Tenant::default()
                    });
                }
                let is_same =
                    |s: &Segment, end: &SegmentRef| s.tenant == *owner && s.name == end.name;
                let new = end.filter(|end| !policy.segments.iter().any(|s| is_same(s, end)));
                let known = &self.whole.known;
                let segment = new.and_then(|end| known.segment(edit.after, &rule.tenant, end));
                let segment = segment.and_then(|n| edit.after.segments.get(n as usize));
                policy.segments.extend(segment.map(|segment| Segment {
                    tenant: segment.tenant.clone(),
                    names: vec![segment.name.clone()],
                    ..Segment::new(&segment.name)
                }));
            }
            policy.rules.push(rule.clone());
        }
        let is_free = |rule: &Rule| {
            let is_same = |old: &Rule| (&old.tenant, &old.name) == (&rule.tenant, &rule.name);
            edit.old_rules().any(is_same)
                || self.named(&qualified(&rule.tenant, &rule.name)).is_none()
        };
        policy.rules.iter().all(is_free) && validate(&policy).is_empty()
    }

    /// The rule of that name.
    fn named(&self, name: &str) -> Option<Parts<'_>> {
        let added = self.edits.iter().flat_map(|edits| edits.added_rules());
        let compiled = self.whole.known.rules.find(name).filter(|&rule| {
            let edits = self.edits.as_ref();
            !edits.is_some_and(|edits| edits.is_gone(rule))
        });
        let all = compiled.chain(added);
        all.filter_map(|rule| self.rule(RuleId(rule)))
            .find(|(_, info, _)| *info.name == *name)
    }

    /// A new rule; it keeps what is remembered of one of its name.
    fn add(&self, policy: &Policy, rule: &Rule) -> Option<Arc<Added>> {
        let name = qualified(&rule.tenant, &rule.name);
        let remembered = self.named(&name).map(|(_, _, state)| state);
        let (tenant, tier) = owner(policy, rule)?;
        let infos = &self.whole.infos;
        let next_tier = infos.partition_point(|info| (info.tenant, info.tier) <= (tenant, tier));
        Some(Arc::new(Added {
            part: RulePart {
                next_tier: number(next_tier),
                says: Says::new(rule),
            },
            state: state(rule, remembered),
            info: Info::new(name.into(), rule, tenant, tier, None),
            scope: Arc::new(Scope::new(&self.whole.known, policy, rule)?),
        }))
    }
}

/// Whose a rule is, and when it is tried.
fn owner(policy: &Policy, rule: &Rule) -> Option<(TenantId, Tier)> {
    Some((policy.tenant_id(&rule.tenant)?, rule.tier))
}

/// Makes a stretch start at a position in the file; returns which.
fn split(file: &mut Vec<Stretch>, at: usize) -> usize {
    let mut left = at;
    let within = file.iter().position(|stretch| {
        let ends_before = stretch.len() <= left;
        if ends_before {
            left -= stretch.len();
        }
        !ends_before
    });
    let Some(n) = within else { return file.len() };
    if left > 0
        && let Some(Stretch::Kept(range)) = file.get_mut(n)
    {
        let middle = range.start + left;
        let rest = Stretch::Kept(middle..range.end);
        range.end = middle;
        file.insert(n + 1, rest);
        return n + 1;
    }
    n
}

impl Whole {
    /// Whose one of its rules is, and when it is tried.
    fn owner(&self, rule: u32) -> Option<(TenantId, Tier)> {
        let info = self.infos.get(rule as usize)?;
        Some((info.tenant, info.tier))
    }

    /// The first of its rules that stands at this position in the file, or after it, and in its
    /// tenant's tier: the rule itself, or what would be tried after it.
    fn place(&self, (tenant, tier): (TenantId, Tier), written: usize) -> u32 {
        let written = Some(number(written));
        let before = |info: &Info| (info.tenant, info.tier, info.written) < (tenant, tier, written);
        number(self.infos.partition_point(before))
    }
}

impl Edits {
    /// `None` when it is too much. `policy` is as it is now.
    fn new(
        whole: &Whole,
        policy: &Policy,
        file: Vec<Stretch>,
        mut gone: Vec<Gone>,
    ) -> Option<Self> {
        gone.sort_unstable_by_key(|gone| gone.rule);
        let mut edits = Edits {
            compiled: number(whole.says.len()),
            gone,
            ..Edits::default()
        };
        let (mut at, mut now) = (0, 0);
        for stretch in &file {
            match stretch {
                Stretch::Kept(range) => {
                    edits.kept.push((number(range.start), number(now)));
                    at = range.end;
                }
                Stretch::Added(added) => {
                    let place = (added.info.tenant, added.info.tier);
                    edits.beside.push(Beside {
                        before: whole.place(place, at),
                        part: added.part,
                        place,
                        scope: Arc::clone(&added.scope),
                        added: Some((Arc::clone(added), number(now))),
                    });
                }
            }
            now += stretch.len();
        }
        edits.file = file;
        edits.heirs(whole, policy)?;
        // Stable: what is tried before the same rule stays in file order.
        edits
            .beside
            .sort_by_key(|beside| (beside.place, beside.before, beside.added.is_none()));
        let mut entries = Vec::new();
        for (rule, beside) in (0..).zip(&edits.beside) {
            let scope = &beside.scope;
            let hull = scope.to.first().zip(scope.to.last());
            let Some((first, last)) = hull.filter(|_| !scope.from.is_empty()) else {
                continue;
            };
            let services = scope.services.iter();
            entries.extend(services.map(|&(low, high, sport)| {
                if sport != PortRange::ALL {
                    edits.by_source_port.add(low, high);
                }
                Entry {
                    other: (first.0, last.1),
                    key: (low, high),
                    sport: (sport.low, sport.high),
                    rule,
                    staged: beside.part.says.kind() == Kind::Staged,
                    verify: true,
                }
            }));
        }
        edits.cell = write(&mut edits.cells.words, &entries);
        (entries.len() <= MAX_EDITS && edits.gone.len() <= MAX_EDITS).then_some(edits)
    }

    /// Lists what was left out because of rules that are gone.
    fn heirs(&mut self, whole: &Whole, policy: &Policy) -> Option<()> {
        let mut heirs = Vec::new();
        for gone in &self.gone {
            let place = whole.owner(gone.rule)?;
            // Nothing changes for them where one that is as broad stands in.
            let stands_in = self.beside.iter().any(|beside| {
                beside.place == place
                    && beside.before <= gone.rule
                    && beside.part.says.kind() != Kind::Staged
                    && beside.scope == gone.scope
            });
            let of_it = whole.known.heirs.get(&gone.rule);
            if let Some(of_it) = of_it.filter(|_| !stands_in) {
                if of_it.len() > MAX_HEIRS {
                    return None;
                }
                heirs.extend(of_it);
            }
        }
        heirs.sort_unstable();
        heirs.dedup();
        heirs.retain(|&heir| !self.is_gone(heir));
        for heir in heirs {
            let written = whole.infos.get(heir as usize)?.written;
            let written = self.written(RuleId(heir), written)?;
            let rule = policy.rules.get(written as usize)?;
            self.beside.push(Beside {
                before: heir,
                part: whole.part(heir)?,
                place: whole.owner(heir)?,
                scope: Arc::new(Scope::new(&whole.known, policy, rule)?),
                added: None,
            });
        }
        Some(())
    }

    /// Whether nothing has changed.
    fn is_none(&self) -> bool {
        self.beside.is_empty() && self.gone.is_empty()
    }

    fn is_gone(&self, rule: u32) -> bool {
        self.gone
            .binary_search_by_key(&rule, |gone| gone.rule)
            .is_ok()
    }

    /// A rule that was added.
    pub(super) fn added(&self, rule: RuleId) -> Option<&Added> {
        let at = rule.0.checked_sub(self.compiled)?;
        let (added, _) = self.beside.get(at as usize)?.added.as_ref()?;
        Some(added)
    }

    /// Numbers of the rules that were added.
    fn added_rules(&self) -> impl Iterator<Item = u32> {
        let beside = (self.compiled..).zip(&self.beside);
        beside
            .filter(|(_, beside)| beside.added.is_some())
            .map(|(rule, _)| rule)
    }

    /// Where a rule stands in the file now; `compiled` is where it stood when the policy was compiled.
    pub(super) fn written(&self, rule: RuleId, compiled: Option<u32>) -> Option<u32> {
        if let Some(at) = rule.0.checked_sub(self.compiled) {
            let (_, now) = self.beside.get(at as usize)?.added.as_ref()?;
            return Some(*now);
        }
        let compiled = compiled?;
        let after = self.kept.partition_point(|&(from, _)| from <= compiled);
        let &(from, now) = self.kept.get(after.checked_sub(1)?)?;
        Some(now + (compiled - from))
    }

    /// All rules in the order they are tried.
    pub(super) fn order(&self) -> Vec<RuleId> {
        let mut order = Vec::with_capacity(self.compiled as usize + self.beside.len());
        let mut gone = self.gone.iter().peekable();
        let mut added = self
            .added_rules()
            .zip(self.beside.iter().filter(|b| b.added.is_some()))
            .peekable();
        for rule in 0..=self.compiled {
            while let Some((added, _)) = added.next_if(|(_, beside)| beside.before == rule) {
                order.push(RuleId(added));
            }
            if rule < self.compiled && gone.next_if(|gone| gone.rule == rule).is_none() {
                order.push(RuleId(rule));
            }
        }
        order
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        self.cells.size() + size_of_val(&*self.beside) + size_of_val(&*self.gone)
    }

    /// Whether the compiled rule that was found is what a question within a tenant meets.
    #[inline(never)]
    pub(super) fn spare(&self, query: &Query, found: u32) -> bool {
        let new = self.find(query.from.tenant, query, ALL);
        let new = self.beside.get(new as usize);
        !self.is_gone(found) && new.is_none_or(|new| !new.is_before(found))
    }

    /// What one tenant's rules say. `found` is the first of the compiled ones that matches, when that is
    /// known.
    #[inline(never)]
    pub(super) fn judge(
        &self,
        whole: &Whole,
        tenant: TenantId,
        query: &Query,
        mut found: Option<u32>,
    ) -> Judgement {
        let mut judgement = Judgement::default();
        let mut compiled = whole.wanted(tenant);
        let mut beside = ALL;
        loop {
            let mut old = found.take().unwrap_or_else(|| whole.find(query, compiled));
            while self.is_gone(old) {
                compiled.first = old + 1;
                old = whole.find(query, compiled);
            }
            let new = self.find(tenant, query, beside);
            let new = self.beside.get(new as usize).map(|found| (new, found));
            let new = new.filter(|(_, new)| new.is_before(old));
            let (rule, part) = match new {
                Some((at, new)) if new.added.is_some() => (self.compiled + at, new.part),
                Some((_, heir)) => (heir.before, heir.part),
                None => match whole.part(old) {
                    Some(part) => (old, part),
                    None => return judgement,
                },
            };
            match part.says.kind() {
                Kind::Staged => {
                    judgement.staged = Some(RuleId(rule));
                    (compiled.staged, beside.staged) = (false, false);
                }
                Kind::Pass => {
                    compiled.first = part.next_tier;
                    let Some(place) = new.map(|(_, new)| new.place).or_else(|| whole.owner(old))
                    else {
                        return judgement;
                    };
                    let past = self.beside.partition_point(|beside| beside.place <= place);
                    beside.first = number(past);
                }
                Kind::Decides => {
                    return Judgement {
                        staged: judgement.staged,
                        ..part.says.judgement(rule)
                    };
                }
            }
        }
    }

    /// The first wanted rule of a tenant's beside the compiled ones that matches.
    fn find(&self, tenant: TenantId, query: &Query, wanted: Wanted) -> u32 {
        let hold = |rule: u32| {
            self.beside.get(rule as usize).is_some_and(|beside| {
                beside.place.0 == tenant && beside.scope.holds(query.from.set, query.to.set)
            })
        };
        self.cells.find_in(self.cell, (probe(query), wanted), hold)
    }
}
