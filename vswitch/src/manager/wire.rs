//! The protocol between switch and manager, `manager.proto`: what its messages say, and which of them make no sense.

use std::sync::Arc;
use std::time::Duration;

use super::question::{Answer, History, Party, Question, Workload};
use crate::policy::model::{Scope, qualified};

/// What `manager.proto` says, compiled when this program is built.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("vswitch.manager.v1");
}

/// The protocol, as it is published.
pub const PROTOCOL: &str = include_str!("manager.proto");
/// Its version.
pub const VERSION: u32 = 1;
/// No message is longer, bytes.
pub const LONGEST: usize = 1 << 16;
/// How long the other end may take to be connected, and to say who it is.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A peer that does not answer for so long is gone.
pub(super) const ALIVE: Duration = Duration::from_secs(5);
/// No reason is longer, bytes.
const LONGEST_REASON: usize = 256;

/// A question, to be sent.
#[must_use]
pub fn ask(question: &Question) -> v1::FromSwitch {
    let History {
        allowed,
        denied,
        unanswered,
    } = question.history;
    let scope = match question.scope {
        Scope::Connection => v1::Scope::Connection,
        Scope::Service => v1::Scope::Service,
    };
    let [from, to] = [&question.from, &question.to];
    let [from_walls, to_walls] = &question.walls;
    let [from_suspicions, to_suspicions] = &question.suspicions;
    let ask = v1::Ask {
        id: question.id,
        rule: question.rule.clone(),
        from: Some(party(from, from_walls, from_suspicions)),
        to: Some(party(to, to_walls, to_suspicions)),
        service: Some(v1::Service {
            protocol: question.protocol.into(),
            number: question.number.into(),
        }),
        connection: question.connection.clone(),
        history: Some(v1::History {
            allowed,
            denied,
            unanswered,
        }),
        questions_last_minute: question.questions_last_minute,
        deadline_ms: question.deadline_ms,
        ttl_s: question.ttl_s,
        scope: scope.into(),
    };
    from_switch(v1::from_switch::Message::Ask(ask))
}

/// Any message of a switch.
#[must_use]
pub fn from_switch(message: v1::from_switch::Message) -> v1::FromSwitch {
    v1::FromSwitch {
        message: Some(message),
    }
}

/// Any message of a manager.
#[must_use]
pub fn from_manager(message: v1::from_manager::Message) -> v1::FromManager {
    v1::FromManager {
        message: Some(message),
    }
}

fn party(party: &Party, walls: &[String], suspicions: &[String]) -> v1::Party {
    let (kind, segments) = match party {
        Party::Workload(workload) => {
            let known = v1::Workload {
                name: workload.name.clone(),
                tenant: workload.tenant.clone(),
                tags: workload.tags.clone(),
                assurance: workload.assurance.clone(),
            };
            (v1::party::Kind::Workload(known), workload.segments.clone())
        }
        Party::Outside {
            address,
            uplink,
            segments,
        } => {
            let outside = v1::Outside {
                address: address.to_string(),
                uplink: uplink.clone(),
            };
            (v1::party::Kind::Outside(outside), segments.to_vec())
        }
    };
    v1::Party {
        kind: Some(kind),
        segments,
        walls: walls.to_vec(),
        suspicions: suspicions.to_vec(),
    }
}

/// A question that was received.
///
/// # Errors
/// What makes no sense in it.
pub fn question(ask: v1::Ask) -> Result<Question, String> {
    let scope = match v1::Scope::try_from(ask.scope) {
        Ok(v1::Scope::Connection) => Scope::Connection,
        Ok(v1::Scope::Service | v1::Scope::Unspecified) => Scope::Service,
        Err(_) => return Err(format!("scope: {} is not known", ask.scope)),
    };
    let service = ask.service.ok_or("service: missing")?;
    let history = ask.history.unwrap_or_default();
    let ends = [&ask.from, &ask.to];
    let walls = ends.map(|p| p.as_ref().map_or_else(Vec::new, |p| p.walls.clone()));
    let suspicions = ends.map(|p| p.as_ref().map_or_else(Vec::new, |p| p.suspicions.clone()));
    Ok(Question {
        walls,
        suspicions,
        id: ask.id,
        rule: ask.rule,
        from: received(ask.from).map_err(|e| format!("from: {e}"))?,
        to: received(ask.to).map_err(|e| format!("to: {e}"))?,
        connection: ask.connection,
        protocol: u8::try_from(service.protocol)
            .map_err(|_e| format!("service.protocol: {} is none", service.protocol))?,
        number: u16::try_from(service.number)
            .map_err(|_e| format!("service.number: {} is none", service.number))?,
        history: History {
            allowed: history.allowed,
            denied: history.denied,
            unanswered: history.unanswered,
        },
        questions_last_minute: ask.questions_last_minute,
        deadline_ms: ask.deadline_ms,
        ttl_s: ask.ttl_s,
        scope,
    })
}

fn received(party: Option<v1::Party>) -> Result<Party, String> {
    let party = party.ok_or("missing")?;
    match party.kind.ok_or("kind: missing")? {
        v1::party::Kind::Workload(workload) if workload.name.is_empty() => {
            Err("workload.name: missing".to_owned())
        }
        v1::party::Kind::Workload(workload) => Ok(Party::Workload(Arc::new(Workload {
            id: qualified(&workload.tenant, &workload.name),
            name: workload.name,
            tenant: workload.tenant,
            tags: workload.tags,
            assurance: workload.assurance,
            segments: party.segments,
        }))),
        v1::party::Kind::Outside(outside) => Ok(Party::Outside {
            address: outside
                .address
                .parse()
                .map_err(|_e| format!("outside.address: {:?} is none", outside.address))?,
            uplink: outside.uplink,
            segments: party.segments.into(),
        }),
    }
}

/// An answer, to be sent.
#[must_use]
pub fn reply(answer: &Answer) -> v1::FromManager {
    let verdict = match answer.yes {
        None => v1::Verdict::Unspecified,
        Some(true) => v1::Verdict::Allow,
        Some(false) => v1::Verdict::Deny,
    };
    let scope = if answer.once {
        v1::Scope::Connection
    } else {
        v1::Scope::Unspecified
    };
    let mut reason = answer.reason.clone();
    let mut ends = (0..=LONGEST_REASON.min(reason.len())).rev();
    let end = ends.find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or(0));
    let answer = v1::Answer {
        boot: answer.boot,
        id: answer.id,
        verdict: verdict.into(),
        ttl_s: answer.ttl_s.unwrap_or(0),
        scope: scope.into(),
        reason,
    };
    from_manager(v1::from_manager::Message::Answer(answer))
}

/// An answer that was received.
///
/// # Errors
/// What makes no sense in it.
pub fn answer(answer: v1::Answer) -> Result<Answer, String> {
    let yes = match v1::Verdict::try_from(answer.verdict) {
        Ok(v1::Verdict::Unspecified) => None,
        Ok(v1::Verdict::Allow) => Some(true),
        Ok(v1::Verdict::Deny) => Some(false),
        Err(_) => return Err(format!("verdict: {} is not known", answer.verdict)),
    };
    let once = match v1::Scope::try_from(answer.scope) {
        Ok(scope) => scope == v1::Scope::Connection,
        Err(_) => return Err(format!("scope: {} is not known", answer.scope)),
    };
    if answer.reason.len() > LONGEST_REASON || answer.reason.contains(char::is_control) {
        return Err(format!(
            "reason: not a line of at most {LONGEST_REASON} bytes"
        ));
    }
    Ok(Answer {
        boot: answer.boot,
        id: answer.id,
        yes,
        ttl_s: (answer.ttl_s > 0).then_some(answer.ttl_s),
        once,
        reason: answer.reason,
    })
}
