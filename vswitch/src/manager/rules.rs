//! Rules for decisions: Cedar policies, checked against the published schema when they are read, and what they say to a question.

use std::collections::{self, BTreeMap, HashSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use ahash::AHashMap as HashMap;
use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, Effect, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint, Request,
    ResourceConstraint, RestrictedExpression as Expression, Schema, ValidationMode, Validator,
};
use cedar_policy_core::ast::{self, Value};
use miette::Diagnostic;

use self::reads::{Reads, Seen};
use super::question::{History, Party, Question, Workload, protocol_name};
use crate::packet::proto;

mod reads;

/// What rules are written against, as it is published.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// Rules named in a reason; who has more of them matching has a reason already.
const NAMED: usize = 8;

/// Pairs that are kept ready, some kilobytes each; when there are more, all are made anew.
const PAIRS: usize = 1024;

/// Answers of one pair that are kept, some hundred bytes each; when there are more, all are found anew.
const ANSWERS: usize = 32;

/// Something wrong with a text of rules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fault {
    /// Where in the text, bytes.
    pub offset: usize,
    /// What.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

impl Fault {
    fn new(offset: usize, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Fault {
            offset,
            what: what.into(),
            todo: todo.into(),
        }
    }

    /// What Cedar found, at the first place that it points to.
    fn found(error: &(impl Diagnostic + ?Sized)) -> Self {
        let label = error.labels().and_then(|mut labels| labels.next());
        let help = error.help().map(|help| one_line(&help));
        // The label often has the better half of the message.
        let detail = label.as_ref().and_then(|label| label.label());
        let mut what = one_line(&error);
        if let Some(detail) = detail.map(|d| one_line(&d)).filter(|d| !what.contains(d)) {
            what = format!("{what}: {detail}");
        }
        Fault {
            offset: label.map_or(0, |label| label.offset()),
            what,
            todo: help.unwrap_or_default(),
        }
    }
}

fn one_line(text: &impl Display) -> String {
    let text = text.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a rule's annotations say.
#[derive(Clone, Debug, Default)]
struct Notes {
    name: String,
    ttl_s: Option<u32>,
    once: bool,
    is_forbid: bool,
}

/// What rules say to a question.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Yes or no; `None`: no rule matches.
    pub yes: Option<bool>,
    /// The shortest `@ttl` of the rules that say so.
    pub ttl_s: Option<u32>,
    /// One of them says `@scope("connection")`.
    pub once: bool,
    /// The rules that say so, by their `@id`.
    pub reason: String,
}

/// Checked rules.
#[derive(Debug)]
pub struct Rules {
    /// Unlike that of any others in this process.
    id: u64,
    rules: Vec<Rule>,
    notes: HashMap<PolicyId, Notes>,
    authorizer: Authorizer,
}

/// A rule, and between whom it can match at all.
#[derive(Debug)]
struct Rule {
    policy: Policy,
    principal: End,
    resource: End,
    reads: Reads,
}

/// Whom a rule is about at one end, as its head says.
#[derive(Debug)]
enum End {
    Any,
    Eq(EntityUid),
    In(EntityUid),
    Is(EntityTypeName),
    IsIn(EntityTypeName, EntityUid),
}

impl From<PrincipalConstraint> for End {
    fn from(principal: PrincipalConstraint) -> Self {
        match principal {
            PrincipalConstraint::Any => End::Any,
            PrincipalConstraint::Eq(one) => End::Eq(one),
            PrincipalConstraint::In(group) => End::In(group),
            PrincipalConstraint::Is(kind) => End::Is(kind),
            PrincipalConstraint::IsIn(kind, group) => End::IsIn(kind, group),
        }
    }
}

impl From<ResourceConstraint> for End {
    fn from(resource: ResourceConstraint) -> Self {
        match resource {
            ResourceConstraint::Any => End::Any,
            ResourceConstraint::Eq(one) => End::Eq(one),
            ResourceConstraint::In(group) => End::In(group),
            ResourceConstraint::Is(kind) => End::Is(kind),
            ResourceConstraint::IsIn(kind, group) => End::IsIn(kind, group),
        }
    }
}

impl End {
    fn admits(&self, party: &EntityUid, segments: &[EntityUid]) -> bool {
        // Segments are in nothing.
        let within = |group: &EntityUid| group == party || segments.contains(group);
        match self {
            End::Any => true,
            End::Eq(one) => one == party,
            End::In(group) => within(group),
            End::Is(kind) => kind == party.type_name(),
            End::IsIn(kind, group) => kind == party.type_name() && within(group),
        }
    }
}

/// The parts that every question has, made once.
struct Names {
    schema: Schema,
    workload: EntityTypeName,
    outside: EntityTypeName,
    segment: EntityTypeName,
    connect: EntityUid,
}

/// The schema is ours, and a test reads it: `None` only if it could not be read.
static NAMES: LazyLock<Option<Names>> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).ok()?;
    let action: EntityTypeName = "Action".parse().ok()?;
    Some(Names {
        schema,
        workload: "Workload".parse().ok()?,
        outside: "Outside".parse().ok()?,
        segment: "Segment".parse().ok()?,
        connect: EntityUid::from_type_name_and_id(action, EntityId::new("connect")),
    })
});

impl Rules {
    /// Reads rules, and checks them whole.
    ///
    /// # Errors
    /// Everything wrong with them, in the order of the text.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let policies: PolicySet = text.parse().map_err(|errors: cedar_policy::ParseErrors| {
            let mut faults: Vec<_> = errors.iter().map(Fault::found).collect();
            faults.sort();
            faults
        })?;
        let Some(names) = NAMES.as_ref() else {
            return Err(vec![Fault::new(0, "the schema cannot be read", "")]);
        };
        let mut faults = Vec::new();
        if policies.templates().next().is_some() {
            let slots = ["?principal", "?resource"].map(|slot| text.find(slot));
            let at = slots.into_iter().flatten().min().unwrap_or(0);
            let what = "a template is no rule: nobody fills its slot in";
            faults.push(Fault::new(at, what, "name whom the rule is about"));
        }
        let validator = Validator::new(names.schema.clone());
        let found = validator.validate(&policies, ValidationMode::Strict);
        faults.extend(found.validation_errors().map(Fault::found));
        // What Cedar only warns of is a rule that never matches, or text that reads otherwise than it looks.
        faults.extend(found.validation_warnings().map(Fault::found));
        let mut seen = HashSet::new();
        let mut notes = HashMap::new();
        for policy in policies.policies() {
            let note = annotations(policy, text, &mut faults);
            if policy.annotation("id").is_some() && !seen.insert(note.name.clone()) {
                let at = annotation_at(text, "id", &note.name, 1);
                let what = format!("another rule is called {:?}", note.name);
                faults.push(Fault::new(at, what, "give each an @id of its own"));
            }
            notes.insert(policy.id().clone(), note);
        }
        if !faults.is_empty() {
            faults.sort();
            faults.dedup();
            return Err(faults);
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let rule = |policy: &Policy| Rule {
            principal: policy.principal_constraint().into(),
            resource: policy.resource_constraint().into(),
            reads: Reads::of(policy),
            policy: policy.clone(),
        };
        Ok(Rules {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            rules: policies.policies().map(rule).collect(),
            notes,
            authorizer: Authorizer::new(),
        })
    }

    /// Which of them can match between these two.
    fn about(&self, names: &Names, from: &Party, to: &Party) -> Vec<usize> {
        let [principal, resource] = [from, to].map(|party| {
            let segments = party.segments().iter();
            let segments: Vec<_> = segments.map(|s| named(&names.segment, s)).collect();
            (uid(names, party), segments)
        });
        let rules = self.rules.iter().enumerate().filter(|(_, rule)| {
            rule.principal.admits(&principal.0, &principal.1)
                && rule.resource.admits(&resource.0, &resource.1)
        });
        rules.map(|(at, _)| at).collect()
    }

    fn subset(&self, about: &[usize]) -> Option<Subset> {
        let rules = about.iter().filter_map(|at| self.rules.get(*at));
        let policies = rules.clone().map(|rule| rule.policy.clone());
        Some(Subset {
            policies: PolicySet::from_policies(policies).ok()?,
            reads: rules.fold(Reads::default(), |all, rule| all.and(rule.reads)),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.notes.len()
    }

    /// Whether there is none: then every question waits for a person.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// What they say.
    #[must_use]
    pub fn decide(&self, question: &Question, common: &mut Common) -> Verdict {
        self.answer(question, common).unwrap_or_else(|| Verdict {
            reason: "the question cannot be put to rules".to_owned(),
            ..Verdict::default()
        })
    }

    /// As [`Self::decide`]. `None`: with such names or numbers rules can't be asked.
    fn answer(&self, question: &Question, common: &mut Common) -> Option<Verdict> {
        let names = NAMES.as_ref()?;
        let second = common.second;
        let (pair, time) = common.pair(self, names, &question.from, &question.to)?;
        let seen = pair.rules.reads.seen(question, second);
        if let Some(known) = seen.as_ref().and_then(|seen| pair.answers.get(seen)) {
            return Some(known.clone());
        }
        let verdict = self.ask(&request(names, question, time)?, pair);
        if let Some(seen) = seen {
            if pair.answers.len() == ANSWERS {
                pair.answers.clear();
            }
            pair.answers.insert(seen, verdict.clone());
        }
        Some(verdict)
    }

    fn ask(&self, request: &Request, pair: &Pair) -> Verdict {
        let said = self
            .authorizer
            .is_authorized(request, &pair.rules.policies, &pair.entities);
        let note = |id: &PolicyId| self.notes.get(id);
        // A rule that cannot be evaluated says nothing. Of one that forbids, that must not become a yes.
        let mut failed = said.diagnostics().errors().map(|e| {
            let AuthorizationError::PolicyEvaluationError(error) = e;
            (note(error.policy_id()), error)
        });
        let failed = failed.find(|(note, _)| note.is_none_or(|n| n.is_forbid));
        if let Some((note, error)) = failed {
            let name = note.map_or("", |n| &n.name);
            return Verdict {
                yes: Some(false),
                reason: format!("forbid {name} failed: {}", one_line(error)),
                ..Verdict::default()
            };
        }
        let mut matching: Vec<_> = said.diagnostics().reason().filter_map(note).collect();
        if matching.is_empty() {
            return Verdict {
                reason: "no rule matches".to_owned(),
                ..Verdict::default()
            };
        }
        matching.sort_by(|a, b| a.name.cmp(&b.name));
        let yes = said.decision() == Decision::Allow;
        let names: Vec<_> = matching.iter().take(NAMED).map(|n| &*n.name).collect();
        let more = matching.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let word = if yes { "permit" } else { "forbid" };
        Verdict {
            yes: Some(yes),
            ttl_s: matching.iter().filter_map(|n| n.ttl_s).min(),
            once: matching.iter().any(|n| n.once),
            reason: format!("{word} {}{more}", names.join(", ")),
        }
    }
}

/// A question, as Cedar is asked. `None`: with such names or numbers it can't be.
fn request(names: &Names, question: &Question, time: &Context) -> Option<Request> {
    // Values as they are: of expressions each would be evaluated anew for every question, and dates be parsed.
    let ast::Context::Value(time) = time.as_ref() else {
        return None;
    };
    let mut fields = BTreeMap::clone(time);
    fields.extend(context(question).map(|(name, value)| (name.into(), value)));
    let context = Context::from(ast::Context::Value(Arc::new(fields)));
    let [principal, resource] = [&question.from, &question.to].map(|party| uid(names, party));
    Request::new(principal, names.connect.clone(), resource, context, None).ok()
}

/// What the annotations of a rule say; what is wrong with them goes to `faults`.
fn annotations(policy: &Policy, text: &str, faults: &mut Vec<Fault>) -> Notes {
    let mut notes = Notes {
        name: policy.id().to_string(),
        is_forbid: policy.effect() == Effect::Forbid,
        ..Notes::default()
    };
    for (key, value) in policy.annotations() {
        let mut fault = |what: String, todo: &str| {
            faults.push(Fault::new(annotation_at(text, key, value, 0), what, todo));
        };
        match key {
            "id" if value.is_empty() || value.len() > 64 || value.contains(char::is_control) => {
                fault(
                    "an @id has 1 to 64 characters".to_owned(),
                    "shorten it, or leave it out",
                );
            }
            "id" => value.clone_into(&mut notes.name),
            "ttl" => match value.parse() {
                Ok(n @ 1..) => notes.ttl_s = Some(n),
                _ => fault(
                    format!("@ttl({value:?}) is no time"),
                    "write whole seconds, such as @ttl(\"60\")",
                ),
            },
            "scope" if notes.is_forbid => fault(
                "a no is about the service, never about one connection".to_owned(),
                "remove @scope",
            ),
            "scope" if value == "connection" => notes.once = true,
            "scope" if value == "service" => {}
            "scope" => fault(
                format!("@scope({value:?}) is not known"),
                "write \"connection\" or \"service\"",
            ),
            _ => fault(
                format!("@{key} is not known"),
                "known here: @id, @scope, @ttl",
            ),
        }
    }
    notes
}

/// Where in the text the `nth` annotation with this key and value stands.
fn annotation_at(text: &str, key: &str, value: &str, nth: usize) -> usize {
    let start = format!("@{key}");
    let value = format!("{value:?}");
    let mut found = text.match_indices(&start).filter(|(at, _)| {
        let rest = text
            .get(at + start.len()..)
            .unwrap_or_default()
            .trim_start();
        let rest = rest.strip_prefix('(').map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with(&value))
    });
    let found = found.nth(nth).map(|(at, _)| at);
    found.or_else(|| text.find(&start)).unwrap_or(0)
}

/// What many questions have in common, made once for all of them: the second they are asked in, and who asks about whom.
#[derive(Debug)]
pub struct Common {
    second: u64,
    time: Option<Context>,
    /// By which rules the following was made.
    rules: u64,
    pairs: HashMap<Party, HashMap<Party, Pair>>,
    known: usize,
    /// The rules that can match, by their numbers: of many pairs they are the same.
    subsets: HashMap<Vec<usize>, Arc<Subset>>,
}

/// Rules that can match between a pair, and what they read.
#[derive(Debug)]
struct Subset {
    policies: PolicySet,
    reads: Reads,
}

/// Two parties, the rules that can match between them, and what those have said. Who is asked about others than a rule names costs
/// nothing of it.
#[derive(Debug)]
struct Pair {
    entities: Entities,
    rules: Arc<Subset>,
    answers: HashMap<Seen, Verdict>,
}

impl Common {
    /// For questions at this time.
    #[must_use]
    pub fn at(time: SystemTime) -> Self {
        let second = second(time);
        Common {
            second,
            time: time_of(second),
            rules: 0,
            pairs: HashMap::new(),
            known: 0,
            subsets: HashMap::new(),
        }
    }

    /// Goes on to this time.
    pub fn advance(&mut self, time: SystemTime) {
        let second = second(time);
        if second != self.second {
            self.second = second;
            self.time = time_of(second);
        }
    }

    /// What is kept of this pair, and what rules may know of the time.
    fn pair(
        &mut self,
        rules: &Rules,
        names: &Names,
        from: &Party,
        to: &Party,
    ) -> Option<(&mut Pair, &Context)> {
        if self.rules != rules.id || self.known == PAIRS {
            self.rules = rules.id;
            self.pairs.clear();
            self.subsets.clear();
            self.known = 0;
        }
        let known = self.pairs.get(from).is_some_and(|of| of.contains_key(to));
        if !known {
            let about = rules.about(names, from, to);
            let subset = match self.subsets.get(&about) {
                Some(subset) => Arc::clone(subset),
                None => {
                    let subset = Arc::new(rules.subset(&about)?);
                    self.subsets.insert(about, Arc::clone(&subset));
                    subset
                }
            };
            let both = [entity(names, from)?, entity(names, to)?];
            let pair = Pair {
                entities: Entities::from_entities(both, None).ok()?,
                rules: subset,
                answers: HashMap::new(),
            };
            let of = self.pairs.entry(from.clone()).or_default();
            of.insert(to.clone(), pair);
            self.known += 1;
        }
        let pair = self.pairs.get_mut(from)?.get_mut(to)?;
        Some((pair, self.time.as_ref()?))
    }
}

fn second(time: SystemTime) -> u64 {
    // A clock before 1970 is one that nobody has set.
    time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// What rules may know of the time.
fn time_of(second: u64) -> Option<Context> {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::MAX);
    let (minutes, days) = (second / 60, second / 86_400);
    let fields = [
        ("now".to_owned(), Expression::new_datetime(now.to_string())),
        ("hour".to_owned(), Expression::new_long(minutes / 60 % 24)),
        ("minute".to_owned(), Expression::new_long(minutes % 60)),
        // 1970-01-01 was a Thursday.
        (
            "weekday".to_owned(),
            Expression::new_long((days + 3) % 7 + 1),
        ),
    ];
    Context::from_pairs(fields).ok()
}

fn long(n: u32) -> Value {
    i64::from(n).into()
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::record(fields, None)
}

/// What rules may know of a question, but for the time.
fn context(question: &Question) -> [(&'static str, Value); 6] {
    let History {
        allowed,
        denied,
        unanswered,
    } = question.history;
    let protocol = ("protocol", protocol_name(question.protocol).into());
    let [high, low] = question.number.to_be_bytes();
    let service = match question.protocol {
        proto::TCP | proto::UDP => record([protocol, ("port", long(question.number.into()))]),
        proto::ICMP | proto::ICMPV6 => record([
            protocol,
            ("icmp_type", long(high.into())),
            ("icmp_code", long(low.into())),
        ]),
        _ => record([protocol]),
    };
    let of_both = |texts: &[Vec<String>; 2]| {
        let [principal, resource] = texts
            .each_ref()
            .map(|texts| Value::set_of_lits(texts.iter().map(|text| text.as_str().into()), None));
        record([("principal", principal), ("resource", resource)])
    };
    [
        ("walls", of_both(&question.walls)),
        ("suspicions", of_both(&question.suspicions)),
        ("rule", question.rule.as_str().into()),
        ("service", service),
        (
            "history",
            record([
                ("allowed", long(allowed)),
                ("denied", long(denied)),
                ("unanswered", long(unanswered)),
            ]),
        ),
        (
            "questions_last_minute",
            long(question.questions_last_minute),
        ),
    ]
}

fn uid(names: &Names, party: &Party) -> EntityUid {
    match party {
        Party::Workload(workload) => named(&names.workload, &workload.id),
        Party::Outside { address, .. } => named(&names.outside, &address.to_string()),
    }
}

fn named(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn entity(names: &Names, party: &Party) -> Option<Entity> {
    let text = |s: &str| Expression::new_string(s.to_owned());
    let attributes: collections::HashMap<_, _> = match party {
        Party::Workload(workload) => {
            let Workload {
                name,
                tenant,
                tags,
                assurance,
                ..
            } = &**workload;
            let tags = Expression::new_set(tags.iter().map(|tag| text(tag)));
            let attributes = [
                ("name".to_owned(), text(name)),
                ("tenant".to_owned(), text(tenant)),
                ("tags".to_owned(), tags),
                ("assurance".to_owned(), text(assurance)),
            ];
            attributes.into()
        }
        Party::Outside {
            address, uplink, ..
        } => {
            let attributes = [
                ("address".to_owned(), ip(*address)),
                ("uplink".to_owned(), text(uplink)),
            ];
            attributes.into()
        }
    };
    let parents = party
        .segments()
        .iter()
        .map(|s| named(&names.segment, s))
        .collect();
    Entity::new(uid(names, party), attributes, parents).ok()
}

fn ip(address: IpAddr) -> Expression {
    Expression::new_ip(address.to_string())
}

#[cfg(test)]
mod tests;
