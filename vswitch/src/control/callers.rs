//! Who calls, and what he may do: the one list of which role which request needs.
//!
//! A caller is who the kernel says is at the other end of the socket (`SO_PEERCRED`, unix(7)), or whom the certificate names
//! that he shows over HTTPS. Root and the daemon's own user
//! may do everything on a switch that names no people. Where there are some (`[[person]]`), these two are operators, so that a
//! machine can be mended by whoever owns it, and nobody is two people at once.

use super::api::{ApiError, ErrorCode, Request};
use super::apply::Control;
use super::state::{PersonConfig, Role};
use crate::datapath::snapshot::AttachmentId;
use crate::policy::model::qualified;
use crate::sys::peer;

/// Somebody at the other end of the socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Caller {
    /// What the ledger calls him.
    pub(super) name: String,
    roles: Vec<Role>,
}

/// A request that was refused because of who made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NotYours {
    /// What he asked for.
    pub(super) call: &'static str,
    /// What he would have needed.
    pub(super) needs: String,
    text: String,
}

impl From<NotYours> for ApiError {
    fn from(no: NotYours) -> Self {
        ApiError::new(ErrorCode::Forbidden, no.text)
    }
}

/// What a request is called, and the roles of which one is needed; none: any will do.
fn needs(request: &Request) -> (&'static str, &'static [Role]) {
    use Role::{Approver, Operator, Orchestrator, Security};
    match request {
        Request::Status => ("status", &[]),
        Request::Ports => ("ports", &[]),
        Request::Workloads => ("workloads", &[]),
        Request::Restarts => ("restarts", &[]),
        Request::WorkloadRestart { .. } => ("workload-restart", &[Operator, Security]),
        Request::Segments => ("segments", &[]),
        Request::Conns { .. } => ("conns", &[]),
        Request::PolicyShow => ("policy-show", &[]),
        Request::PolicyDiff { .. } => ("policy-diff", &[]),
        Request::Explain(_) => ("explain", &[]),
        Request::Watch(_) => ("watch", &[]),
        Request::Drops => ("drops", &[]),
        Request::Stats => ("stats", &[]),
        Request::Asks => ("asks", &[]),
        Request::AskShow { .. } => ("ask-show", &[]),
        Request::Reach { .. } => ("reach", &[]),
        Request::Walls => ("walls", &[]),
        Request::WallExplain { .. } => ("wall-explain", &[]),
        Request::WallReset { .. } => ("wall-reset", &[Security]),
        Request::Transactions => ("transactions", &[]),
        Request::TransactionBegin { .. } => ("transaction-begin", &[Orchestrator, Security]),
        Request::TransactionEnd { .. } => ("transaction-end", &[Orchestrator, Security]),
        Request::Proposals => ("proposals", &[]),
        Request::Suspicions => ("suspicions", &[]),
        Request::Responses => ("responses", &[]),
        Request::SuspicionClear { .. } => ("suspicion-clear", &[Operator, Security]),
        Request::ResponseStop { .. } => ("response-stop", &[Operator, Security]),
        Request::ResponseStart => ("response-start", &[Operator, Security]),
        Request::PortAdd { .. } => ("port-add", &[Operator]),
        Request::PortDel { .. } => ("port-del", &[Operator]),
        Request::PolicyApply { .. } => ("policy-apply", &[Operator]),
        Request::PolicyConfirm => ("policy-confirm", &[Operator]),
        Request::Reload => ("reload", &[Operator]),
        Request::WorkloadTag { .. } => ("workload-tag", &[Operator, Orchestrator]),
        Request::WorkloadQuarantine { .. } => ("workload-quarantine", &[Operator, Security]),
        Request::WorkloadRelease { .. } => ("workload-release", &[Operator, Security]),
        Request::WorkloadFreeze { .. } => ("workload-freeze", &[Operator, Security]),
        Request::WorkloadThaw { .. } => ("workload-thaw", &[Operator, Security]),
        Request::Answer(_) => ("answer", &[Approver]),
        Request::Approve { .. } => ("approve", &[Security]),
        Request::Disapprove { .. } => ("disapprove", &[Operator, Security]),
    }
}

/// What a request is called.
pub(super) fn name(request: &Request) -> &'static str {
    needs(request).0
}

impl Caller {
    /// Who `uid` is among `people`. A stranger has no role.
    pub(super) fn of(uid: u32, people: &[PersonConfig]) -> Self {
        if let Some(person) = people.iter().find(|person| person.uid == Some(uid)) {
            return Caller {
                name: person.name.clone(),
                roles: person.roles.clone(),
            };
        }
        let is_ours = uid == 0 || uid == peer::euid();
        let roles = match (is_ours, people.is_empty()) {
            (true, true) => Role::ALL.map(|(_, role)| role).to_vec(),
            (true, false) => vec![Role::Operator],
            (false, _) => Vec::new(),
        };
        let name = format!("uid {uid}");
        Caller { name, roles }
    }

    /// The person that a certificate names, among `people`.
    #[cfg(feature = "manager")]
    pub(super) fn named(name: &str, people: &[PersonConfig]) -> Self {
        let person = people.iter().find(|person| person.name == name);
        person.map_or_else(
            || Caller {
                name: format!("certificate {name:?}"),
                roles: Vec::new(),
            },
            |person| Caller {
                name: person.name.clone(),
                roles: person.roles.clone(),
            },
        )
    }

    fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether he may make this request.
    pub(super) fn may(&self, request: &Request) -> Result<(), NotYours> {
        let (call, roles) = needs(request);
        let words = |roles: &[Role]| {
            roles
                .iter()
                .map(|r| r.name())
                .collect::<Vec<_>>()
                .join(" or ")
        };
        let no = |needs: String, text: String| Err(NotYours { call, needs, text });
        if self.roles.is_empty() {
            let text = format!(
                "{} may not use this switch; a [[person]] table of switch.toml says who may",
                self.name
            );
            return no("any role".to_owned(), text);
        }
        if !roles.is_empty() && !roles.iter().any(|role| self.is(*role)) {
            let needs = words(roles);
            let text = format!(
                "{call} needs the role {needs}; {} is {}: roles are given by [[person]] in switch.toml",
                self.name,
                words(&self.roles)
            );
            return no(needs, text);
        }
        let prefix = format!("{}/", self.name);
        if let Request::WorkloadTag { add, remove, .. } = request
            && !self.is(Role::Operator)
            && let Some(tag) = add.iter().chain(remove).find(|t| !t.starts_with(&prefix))
        {
            let text = format!(
                "{} sets tags that begin with {prefix:?}, not {tag:?}",
                self.name
            );
            return no(Role::Operator.name().to_owned(), text);
        }
        Ok(())
    }
}

impl Control {
    /// Why `caller` has no say in what is between these two: one of them is his.
    pub(super) fn is_own_affair(
        &self,
        caller: &Caller,
        ends: [AttachmentId; 2],
    ) -> Option<NotYours> {
        let ends = ends.map(|end| self.attachments.name(end.0));
        let workloads = self.desired.ports.iter().flat_map(|port| {
            let workloads = port.workloads.iter();
            workloads.map(|w| (qualified(&port.tenant, &w.name), w))
        });
        let mut own = workloads.filter(|(_, w)| w.owners.contains(&caller.name));
        let (workload, _) = own.find(|(name, _)| ends.contains(name))?;
        Some(NotYours {
            call: "answer",
            needs: "another approver".to_owned(),
            text: format!(
                "{workload} is {}'s own: another approver must answer",
                caller.name
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::control::api::{AskAnswer, Envelope, ExplainQuery, VERSION, WatchFilter};
    use crate::control::apply::tests::control;
    use crate::control::requests;
    use crate::control::server::Answer;

    /// One request of each kind, with the roles that may make it; none: any role.
    fn requests() -> Vec<(Request, &'static [Role])> {
        use Role::{Approver, Operator, Orchestrator, Security};
        let text = String::new;
        let query = ExplainQuery {
            from: "a".to_owned(),
            to: "b".to_owned(),
            service: "tcp/1".to_owned(),
            src_port: None,
        };
        let answer = AskAnswer {
            id: "1".to_owned(),
            yes: true,
            scope: None,
            ttl_s: None,
        };
        vec![
            (Request::Status, &[]),
            (Request::Ports, &[]),
            (Request::Workloads, &[]),
            (Request::Segments, &[]),
            (Request::Restarts, &[]),
            (
                Request::WorkloadRestart {
                    workload: text(),
                    reason: text(),
                    evidence: Vec::new(),
                },
                &[Operator, Security],
            ),
            (
                Request::Conns {
                    workload: None,
                    limit: 1,
                },
                &[],
            ),
            (Request::PolicyShow, &[]),
            (
                Request::PolicyDiff {
                    toml: text(),
                    source: text(),
                },
                &[],
            ),
            (Request::Explain(query), &[]),
            (Request::Watch(WatchFilter::default()), &[]),
            (Request::Drops, &[]),
            (Request::Stats, &[]),
            (Request::Asks, &[]),
            (Request::AskShow { id: text() }, &[]),
            (
                Request::Reach {
                    workload: text(),
                    to: false,
                    limit: 0,
                },
                &[],
            ),
            (
                Request::PortAdd {
                    toml: text(),
                    source: None,
                },
                &[Operator],
            ),
            (Request::PortDel { name: text() }, &[Operator]),
            (
                Request::PolicyApply {
                    toml: text(),
                    source: text(),
                    confirm_s: None,
                },
                &[Operator],
            ),
            (Request::PolicyConfirm, &[Operator]),
            (Request::Reload, &[Operator]),
            (
                Request::WorkloadTag {
                    workload: text(),
                    add: vec!["p/t".to_owned()],
                    remove: Vec::new(),
                },
                &[Operator, Orchestrator],
            ),
            (
                Request::WorkloadQuarantine {
                    workload: text(),
                    keep: Vec::new(),
                    reason: text(),
                },
                &[Operator, Security],
            ),
            (
                Request::WorkloadRelease {
                    workload: text(),
                    reason: text(),
                },
                &[Operator, Security],
            ),
            (
                Request::WorkloadFreeze {
                    workload: text(),
                    max_s: 1,
                },
                &[Operator, Security],
            ),
            (
                Request::WorkloadThaw {
                    workload: text(),
                    rolled_back: false,
                },
                &[Operator, Security],
            ),
            (Request::Answer(answer), &[Approver]),
            (Request::Proposals, &[]),
            (Request::Suspicions, &[]),
            (Request::Responses, &[]),
            (
                Request::SuspicionClear { workload: text() },
                &[Operator, Security],
            ),
            (
                Request::ResponseStop { reason: text() },
                &[Operator, Security],
            ),
            (Request::ResponseStart, &[Operator, Security]),
            (Request::Walls, &[]),
            (Request::WallExplain { subject: text() }, &[]),
            (
                Request::WallReset {
                    wall: text(),
                    subject: text(),
                    reason: text(),
                },
                &[Security],
            ),
            (Request::Transactions, &[]),
            (
                Request::TransactionBegin {
                    name: text(),
                    wall: text(),
                    workloads: Vec::new(),
                },
                &[Orchestrator, Security],
            ),
            (
                Request::TransactionEnd { name: text() },
                &[Orchestrator, Security],
            ),
            (Request::Approve { id: text() }, &[Security]),
            (Request::Disapprove { id: text() }, &[Operator, Security]),
        ]
    }

    /// Whether the switch refuses it because of who asks.
    fn is_forbidden(caller: &Caller, request: &Request) -> bool {
        let envelope = Envelope {
            version: VERSION,
            request: request.clone(),
        };
        let text = serde_json::to_string(&envelope).unwrap();
        match requests::answer(&mut control(), None, caller, &text, 0) {
            Answer::Stream(_) | Answer::Later(_) => false,
            Answer::Reply(reply) => {
                let reply: Value = serde_json::from_str(&reply).unwrap();
                reply["error"]["code"] == "forbidden"
            }
        }
    }

    #[test]
    fn each_request_is_for_its_roles_and_for_nobody_without_one() {
        let caller = |roles: &[Role]| Caller {
            name: "p".to_owned(),
            roles: roles.to_vec(),
        };
        for (request, roles) in &requests() {
            assert!(is_forbidden(&caller(&[]), request), "nobody: {request:?}");
            for (name, role) in Role::ALL {
                let may = roles.is_empty() || roles.contains(&role);
                assert_eq!(
                    !is_forbidden(&caller(&[role]), request),
                    may,
                    "{name}: {request:?}"
                );
            }
        }
        let mut names: Vec<_> = requests().iter().map(|(r, _)| needs(r).0).collect();
        names.dedup();
        assert_eq!(names.len(), requests().len(), "one request of each kind");
    }

    #[test]
    fn an_orchestrator_sets_its_own_tags_only() {
        let caller = Caller {
            name: "docker".to_owned(),
            roles: vec![Role::Orchestrator],
        };
        let tag = |add: &[&str], remove: &[&str]| Request::WorkloadTag {
            workload: "a".to_owned(),
            add: add.iter().map(ToString::to_string).collect(),
            remove: remove.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(caller.may(&tag(&["docker/x"], &["docker/y"])), Ok(()));
        for tag in [
            tag(&["tier:web"], &[]),
            tag(&["docker/x"], &["tier:web"]),
            tag(&["docker"], &[]),
        ] {
            assert!(caller.may(&tag).is_err(), "{tag:?}");
        }
    }

    #[test]
    fn where_there_are_people_root_is_an_operator_and_no_second_person() {
        let of = |uid, people: &[PersonConfig]| Caller::of(uid, people);
        let ann = PersonConfig {
            name: "ann".to_owned(),
            uid: Some(7),
            roles: vec![Role::Approver],
        };
        assert_eq!(of(0, &[]).roles.len(), Role::ALL.len());
        assert_eq!(of(peer::euid(), &[]).roles.len(), Role::ALL.len());
        assert_eq!(of(7, &[]).roles, []);
        let people = [ann];
        assert_eq!(of(0, &people).roles, [Role::Operator]);
        assert_eq!(of(7, &people).roles, [Role::Approver]);
        assert_eq!(of(7, &people).name, "ann");
        assert_eq!(of(8, &people).roles, []);
    }
}
