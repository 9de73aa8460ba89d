//! Rules for decisions: Cedar policies, checked against the published schema when they are read, and what they say to a question.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, Effect, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, Policy, PolicyId, PolicySet, Request,
    RestrictedExpression as Expression, Schema, ValidationMode, Validator,
};
use miette::Diagnostic;

use super::question::{History, Party, Question, Workload, protocol_name};
use crate::packet::proto;

/// What rules are written against, as it is published.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// Rules named in a reason; who has more of them matching has a reason already.
const NAMED: usize = 8;

/// Pairs that are kept ready, some kilobytes each; when there are more, all are made anew.
const PAIRS: usize = 1024;

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
    policies: PolicySet,
    notes: HashMap<PolicyId, Notes>,
    authorizer: Authorizer,
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
        Ok(Rules {
            policies,
            notes,
            authorizer: Authorizer::new(),
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
        let Some((request, entities)) = request(question, common) else {
            return Verdict {
                reason: "the question cannot be put to rules".to_owned(),
                ..Verdict::default()
            };
        };
        let said = self
            .authorizer
            .is_authorized(&request, &self.policies, entities);
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
    pairs: HashMap<Party, HashMap<Party, Entities>>,
    known: usize,
}

impl Common {
    /// For questions at this time.
    #[must_use]
    pub fn at(time: SystemTime) -> Self {
        let second = second(time);
        Common {
            second,
            time: Context::from_pairs(fields(second)).ok(),
            pairs: HashMap::new(),
            known: 0,
        }
    }

    /// Goes on to this time.
    pub fn advance(&mut self, time: SystemTime) {
        let second = second(time);
        if second != self.second {
            self.second = second;
            self.time = Context::from_pairs(fields(second)).ok();
        }
    }

    fn entities(&mut self, names: &Names, from: &Party, to: &Party) -> Option<&Entities> {
        let known = self.pairs.get(from).is_some_and(|of| of.contains_key(to));
        if !known {
            if self.known == PAIRS {
                self.pairs.clear();
                self.known = 0;
            }
            let both = [entity(names, from)?, entity(names, to)?];
            let both = Entities::from_entities(both, None).ok()?;
            let of = self.pairs.entry(from.clone()).or_default();
            of.insert(to.clone(), both);
            self.known += 1;
        }
        self.pairs.get(from)?.get(to)
    }
}

fn second(time: SystemTime) -> u64 {
    // A clock before 1970 is one that nobody has set.
    time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

fn fields(second: u64) -> Vec<(String, Expression)> {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::MAX);
    let (minutes, days) = (second / 60, second / 86_400);
    vec![
        ("now".to_owned(), Expression::new_datetime(now.to_string())),
        ("hour".to_owned(), Expression::new_long(minutes / 60 % 24)),
        ("minute".to_owned(), Expression::new_long(minutes % 60)),
        // 1970-01-01 was a Thursday.
        (
            "weekday".to_owned(),
            Expression::new_long((days + 3) % 7 + 1),
        ),
    ]
}

/// A question, as Cedar is asked. `None`: with such names or numbers it can't be.
fn request<'a>(question: &Question, common: &'a mut Common) -> Option<(Request, &'a Entities)> {
    let names = NAMES.as_ref()?;
    let context = Context::from_pairs(context(question)?).ok()?;
    let context = context.merge(common.time.clone()?).ok()?;
    let (from, to) = (&question.from, &question.to);
    let [principal, resource] = [uid(names, from), uid(names, to)];
    let request = Request::new(principal, names.connect.clone(), resource, context, None);
    Some((request.ok()?, common.entities(names, from, to)?))
}

fn context(question: &Question) -> Option<[(String, Expression); 5]> {
    let History {
        allowed,
        denied,
        unanswered,
    } = question.history;
    let long = |n: u32| Expression::new_long(n.into());
    let history = [
        ("allowed".to_owned(), long(allowed)),
        ("denied".to_owned(), long(denied)),
        ("unanswered".to_owned(), long(unanswered)),
    ];
    let protocol = protocol_name(question.protocol);
    let mut service = vec![("protocol".to_owned(), Expression::new_string(protocol))];
    let [high, low] = question.number.to_be_bytes();
    match question.protocol {
        proto::TCP | proto::UDP => {
            service.push(("port".to_owned(), long(question.number.into())));
        }
        proto::ICMP | proto::ICMPV6 => {
            service.push(("icmp_type".to_owned(), long(high.into())));
            service.push(("icmp_code".to_owned(), long(low.into())));
        }
        _ => {}
    }
    let [principal, resource] = question.walls.each_ref().map(|sides| {
        let sides = sides.iter().cloned();
        Expression::new_set(sides.map(Expression::new_string))
    });
    let walls = [
        ("principal".to_owned(), principal),
        ("resource".to_owned(), resource),
    ];
    Some([
        ("walls".to_owned(), Expression::new_record(walls).ok()?),
        (
            "rule".to_owned(),
            Expression::new_string(question.rule.clone()),
        ),
        ("service".to_owned(), Expression::new_record(service).ok()?),
        ("history".to_owned(), Expression::new_record(history).ok()?),
        (
            "questions_last_minute".to_owned(),
            long(question.questions_last_minute),
        ),
    ])
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
    let (attributes, segments): (HashMap<_, _>, &[String]) = match party {
        Party::Workload(workload) => {
            let Workload {
                name,
                tenant,
                tags,
                assurance,
                segments,
                ..
            } = &**workload;
            let tags = Expression::new_set(tags.iter().map(|tag| text(tag)));
            let attributes = [
                ("name".to_owned(), text(name)),
                ("tenant".to_owned(), text(tenant)),
                ("tags".to_owned(), tags),
                ("assurance".to_owned(), text(assurance)),
            ];
            (attributes.into(), segments)
        }
        Party::Outside {
            address,
            uplink,
            segments,
        } => {
            let attributes = [
                ("address".to_owned(), ip(*address)),
                ("uplink".to_owned(), text(uplink)),
            ];
            (attributes.into(), segments)
        }
    };
    let parents = segments.iter().map(|s| named(&names.segment, s)).collect();
    Entity::new(uid(names, party), attributes, parents).ok()
}

fn ip(address: IpAddr) -> Expression {
    Expression::new_ip(address.to_string())
}

#[cfg(test)]
mod tests;
