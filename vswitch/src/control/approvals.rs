//! Changes that two people must want: what takes something away from a wall.
//!
//! Such a change is not made when the first one asks for it: it becomes a *proposal*, which says what it takes away. When a second
//! person, with the role `security`, has approved, it is made as if it were asked for then: it is made if it takes away what the
//! proposal says and nothing else, so that nobody agrees to what he was not shown.

use std::collections::BTreeMap;

use tracing::info;

use super::api::{ApiError, Applied, ErrorCode, ProposalInfo, Request};
use super::apply::{ApplyError, Control};
use super::callers::Caller;
use super::ids::{self, Ids, text};
use super::state::Desired;

/// Proposals that wait; nobody has as many reasons to loosen a wall.
const MOST: usize = 64;

/// A change that waits for a second person.
#[derive(Clone, Debug)]
pub(super) struct Proposal {
    /// Who wants it.
    by: String,
    request: Request,
    call: &'static str,
    /// What it takes away, a line each.
    weakens: Vec<String>,
    since_ns: u64,
}

/// Whose consent there is to what a change takes away, while it is made.
#[derive(Clone, Debug)]
pub(super) enum Consent {
    Nobodys,
    /// A second person's, and to just this.
    Second {
        by: String,
        weakens: Vec<String>,
    },
    /// What was never confirmed goes back by itself.
    NotNeeded,
}

/// Those that wait, by ids that nobody guesses.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    open: BTreeMap<u64, Proposal>,
    ids: Ids,
}

impl Control {
    /// Keeps a change for a second person; the error says so to the first one.
    pub(super) fn propose(
        &mut self,
        caller: &Caller,
        (request, call): (Request, &'static str),
        weakens: Vec<String>,
        now_ns: u64,
    ) -> ApiError {
        let refused = |lines: Vec<String>| ApiError {
            code: ErrorCode::Refused,
            errors: lines,
        };
        let mut lines =
            vec!["this takes something away from a wall, which two people must want:".to_owned()];
        lines.extend(weakens.iter().map(|line| format!("  {line}")));
        let proposals = &mut self.proposals;
        if proposals.open.len() >= MOST {
            lines.push(format!(
                "{MOST} proposals wait already; have some approved or dropped: `vswitch approval list`"
            ));
            return refused(lines);
        }
        let id = proposals.ids.another();
        lines.push(format!(
            "it waits for another person with the role security: `vswitch approval allow {}`",
            text(id)
        ));
        info!(id = text(id), by = caller.name, call, ?weakens, "proposed");
        let generation = self.shared.snapshots.generation();
        self.recorder
            .proposed(generation, &text(id), call, &weakens);
        let proposal = Proposal {
            by: caller.name.clone(),
            request,
            call,
            weakens,
            since_ns: now_ns,
        };
        self.proposals.open.insert(id, proposal);
        refused(lines)
    }

    /// The second person who agreed that just this is taken away. `None`: nobody has.
    pub(super) fn second_for(&self, weakens: &[String]) -> Option<String> {
        match &self.consent {
            Consent::Second { by, weakens: to } if to == weakens => Some(by.clone()),
            _ => None,
        }
    }

    /// Sees to it that what a change takes away from walls was agreed to.
    pub(super) fn agreed(&self, desired: &Desired) -> Result<(), ApplyError> {
        let weakens = self.weakenings(desired);
        let not_needed = weakens.is_empty() || matches!(self.consent, Consent::NotNeeded);
        if not_needed || self.second_for(&weakens).is_some() {
            return Ok(());
        }
        Err(ApplyError::TwoPeople(weakens))
    }

    /// Proposals that wait, the oldest first.
    pub(super) fn proposal_infos(&self, now_ns: u64) -> Vec<ProposalInfo> {
        let open = self.proposals.open.iter();
        let mut infos: Vec<_> = open.map(|(id, p)| info_of(*id, p, now_ns)).collect();
        infos.sort_by_key(|info| std::cmp::Reverse(info.waited_s));
        infos
    }

    fn proposal(&self, id: &str) -> Result<(u64, &Proposal), ApiError> {
        let open = self.proposals.open.iter();
        let open = open.map(|(id, proposal)| (*id, proposal));
        ids::named(open, id, ("proposal", "approval list"))
    }

    /// Drops a proposal.
    pub(super) fn drop_proposal(
        &mut self,
        id: &str,
        now_ns: u64,
    ) -> Result<ProposalInfo, ApiError> {
        let (id, proposal) = self.proposal(id)?;
        let info = info_of(id, proposal, now_ns);
        self.proposals.open.remove(&id);
        let generation = self.shared.snapshots.generation();
        self.recorder.proposal_dropped(generation, &info.id);
        Ok(info)
    }

    /// A second person approves: `enact` makes the change. Whatever comes of it, the proposal is gone.
    pub(super) fn approve(
        &mut self,
        (caller, id): (&Caller, &str),
        enact: impl FnOnce(&mut Control, Request) -> Result<Applied, ApiError>,
    ) -> Result<Applied, ApiError> {
        let (id, proposal) = self.proposal(id)?;
        if proposal.by == caller.name {
            let what = format!(
                "{} proposed this: another person must approve it",
                proposal.by
            );
            return Err(ApiError::new(ErrorCode::Forbidden, what));
        }
        // Root and the daemon's own user may be one and the same person, or anybody else.
        let mut people = self.desired.switch.people.iter();
        if !people.any(|person| person.name == caller.name) {
            let what = format!(
                "{} is nobody by name: somebody whom a [[person]] table of switch.toml names must approve it",
                caller.name
            );
            return Err(ApiError::new(ErrorCode::Forbidden, what));
        }
        let proposal = proposal.clone();
        self.proposals.open.remove(&id);
        self.recorder.by(&proposal.by);
        let generation = self.shared.snapshots.generation();
        // Before it happens: that it failed is seen by what is recorded next.
        self.recorder
            .approved(generation, &text(id), &caller.name, &proposal.weakens);
        self.consent = Consent::Second {
            by: caller.name.clone(),
            weakens: proposal.weakens,
        };
        let result = enact(self, proposal.request);
        self.consent = Consent::Nobodys;
        result
    }
}

fn info_of(id: u64, proposal: &Proposal, now_ns: u64) -> ProposalInfo {
    ProposalInfo {
        id: text(id),
        by: proposal.by.clone(),
        call: proposal.call.to_owned(),
        weakens: proposal.weakens.clone(),
        waited_s: now_ns.saturating_sub(proposal.since_ns) / 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::control::api::{Envelope, VERSION};
    use crate::control::apply::tests::{control, port};
    use crate::control::requests;
    use crate::control::server::Answer;
    use crate::control::state::{LedgerConfig, PersonConfig, Role};
    use crate::policy::model::{Policy, Segment};
    use crate::policy::walls::{Per, Wall};

    fn segment(name: &str) -> Segment {
        Segment {
            tags: vec![format!("role:{name}")],
            ..Segment::new(name)
        }
    }

    /// Traders, who read one of two signals.
    fn policy() -> Policy {
        Policy {
            segments: ["trader", "buy", "sell"].map(segment).to_vec(),
            walls: vec![Wall {
                name: "trading".to_owned(),
                tenant: "default".to_owned(),
                subjects: vec!["trader".into()],
                same: None,
                datasets: vec!["buy".into(), "sell".into()],
                conflicts: Vec::new(),
                per: Per::Ever,
            }],
            ..Policy::default()
        }
    }

    fn desired(control: &Control) -> Desired {
        let mut ports = vec![port("a", 1), port("b", 2)];
        ports[0].workloads[0].tags = vec!["role:trader".to_owned()];
        ports[1].workloads[0].tags = vec!["role:buy".to_owned()];
        Desired {
            switch: control.desired.switch.clone(),
            ports,
            policy: policy(),
            ..Desired::default()
        }
    }

    fn walled() -> Control {
        let mut control = control();
        control.desired.switch.ledger = Some(LedgerConfig::default());
        control.desired.switch.people = people().to_vec();
        let desired = desired(&control);
        control.apply(desired, "test").unwrap();
        control
    }

    #[test]
    fn nobody_takes_something_from_a_wall_alone_whatever_way_he_chooses() {
        type Change = fn(&mut Policy);
        type Way = (
            &'static str,
            fn(&mut Control) -> Result<Applied, ApplyError>,
        );
        let by_policy = |change: Change| {
            move |c: &mut Control| {
                let mut policy = policy();
                change(&mut policy);
                c.apply_policy(policy, "changed", None, 0)
            }
        };
        let ways: [Way; 3] = [
            ("retag", |c| c.tag("a", &[], &["role:trader".to_owned()])),
            ("edit the file", |c| {
                let mut desired = desired(c);
                desired.ports[0].workloads[0].tags.clear();
                c.apply(desired, "changed")
            }),
            ("rename", |c| {
                let mut desired = desired(c);
                desired.policy.walls[0].name = "trade".to_owned();
                c.apply(desired, "changed")
            }),
        ];
        for (name, way) in ways {
            let mut c = walled();
            let before = c.shared.snapshots.generation();
            let result = way(&mut c);
            assert!(
                matches!(result, Err(ApplyError::TwoPeople(_))),
                "{name}: {result:?}"
            );
            assert_eq!(c.shared.snapshots.generation(), before, "{name}");
        }
        let changes: [(&str, Change); 3] = [
            ("delete", |p| p.walls.clear()),
            ("narrow", |p| {
                p.segments.push(segment("hold"));
                p.walls[0].datasets = vec!["buy".into(), "hold".into()];
            }),
            ("select less", |p| {
                p.segments[0].tags.push("more".to_owned());
            }),
        ];
        for (name, change) in changes {
            let result = by_policy(change)(&mut walled());
            assert!(
                matches!(result, Err(ApplyError::TwoPeople(_))),
                "{name}: {result:?}"
            );
        }
        // What takes nothing away needs one person.
        let mut c = walled();
        c.tag("b", &["more".to_owned()], &[]).unwrap();
    }

    fn person(name: &str, uid: u32, roles: &[Role]) -> PersonConfig {
        PersonConfig {
            name: name.to_owned(),
            uid: Some(uid),
            roles: roles.to_vec(),
        }
    }

    fn people() -> [PersonConfig; 3] {
        [
            person("otto", 1, &[Role::Operator, Role::Security]),
            person("sam", 2, &[Role::Security]),
            person("vera", 3, &[Role::Operator]),
        ]
    }

    fn call(control: &mut Control, uid: u32, request: Request) -> Value {
        let envelope = Envelope {
            version: VERSION,
            request,
        };
        let text = serde_json::to_string(&envelope).unwrap();
        let caller = Caller::of(uid, &people());
        match requests::answer(control, None, &caller, &text, 0) {
            Answer::Reply(reply) => serde_json::from_str(&reply).unwrap(),
            Answer::Stream(_) | Answer::Later(_) => panic!("that was not asked for"),
        }
    }

    fn retag(remove: &str) -> Request {
        Request::WorkloadTag {
            workload: "a".to_owned(),
            add: Vec::new(),
            remove: vec![remove.to_owned()],
        }
    }

    /// The id of the only proposal.
    fn proposed(control: &mut Control) -> String {
        let list = call(control, 3, Request::Proposals);
        let list = list["ok"].as_array().unwrap();
        assert_eq!(list.len(), 1, "{list:?}");
        list[0]["id"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_second_person_makes_it_happen() {
        let mut c = walled();
        let said = call(&mut c, 1, retag("role:trader")).to_string();
        assert!(said.contains("approval allow"), "{said}");
        let id = proposed(&mut c);
        let approve = || Request::Approve { id: id.clone() };
        // Not himself, nor whoever lacks the role.
        for uid in [1, 3] {
            let no = call(&mut c, uid, approve());
            assert_eq!(no["error"]["code"], "forbidden", "{no}");
        }
        assert_eq!(c.desired.ports[0].workloads[0].tags, ["role:trader"]);
        let yes = call(&mut c, 2, approve());
        assert!(yes["ok"]["generation"].is_u64(), "{yes}");
        assert_eq!(c.desired.ports[0].workloads[0].tags, [""; 0]);
        // Once.
        let again = call(&mut c, 2, approve());
        assert_eq!(again["error"]["code"], "usage", "{again}");
        assert!(matches!(c.consent, Consent::Nobodys));
    }

    #[test]
    fn nobody_agrees_to_what_he_was_not_shown() {
        let mut c = walled();
        call(&mut c, 1, retag("role:trader"));
        let id = proposed(&mut c);
        // Meanwhile the trader is one of two walls.
        let mut policy = policy();
        let mut second = policy.walls[0].clone();
        second.name = "more".to_owned();
        policy.walls.push(second);
        c.apply_policy(policy, "stricter", None, 0).unwrap();
        let no = call(&mut c, 2, Request::Approve { id });
        assert!(no.to_string().contains("things have changed"), "{no}");
        assert_eq!(c.desired.ports[0].workloads[0].tags, ["role:trader"]);
    }

    #[test]
    fn root_and_the_daemons_user_are_not_two_people() {
        let mut c = walled();
        c.desired.switch.people.clear();
        let root = Caller::of(0, &[]);
        let again = (retag("role:trader"), "workload-tag");
        c.propose(&root, again, vec!["something".to_owned()], 0);
        let id = c.proposal_infos(0)[0].id.clone();
        let other = Caller::of(7, &[]);
        let made = c.approve((&other, &id), |_, _| panic!("nobody agreed"));
        assert_eq!(made.unwrap_err().code, ErrorCode::Forbidden);
    }

    #[test]
    fn a_wall_on_probation_goes_back_by_itself() {
        const MINUTE_NS: u64 = 60_000_000_000;
        let mut c = walled();
        let mut more = policy();
        more.walls.push(Wall {
            name: "more".to_owned(),
            ..more.walls[0].clone()
        });
        c.apply_policy(more, "trial", Some(MINUTE_NS), 0).unwrap();
        assert_eq!(c.desired.policy.walls.len(), 2);
        c.tick(MINUTE_NS + 1);
        assert_eq!(c.desired.policy.walls.len(), 1);
        // It was for that once.
        let alone = c.apply_policy(Policy::default(), "none", None, 0);
        assert!(matches!(alone, Err(ApplyError::TwoPeople(_))), "{alone:?}");
    }

    #[test]
    fn a_proposal_can_be_dropped_and_there_are_only_so_many() {
        let mut c = walled();
        for _ in 0..=MOST {
            call(&mut c, 1, retag("role:trader"));
        }
        assert_eq!(c.proposals.open.len(), MOST);
        let full = call(&mut c, 1, retag("role:trader")).to_string();
        assert!(full.contains("proposals wait already"), "{full}");
        let id = c.proposal_infos(0)[0].id.clone();
        call(&mut c, 3, Request::Disapprove { id });
        assert_eq!(c.proposals.open.len(), MOST - 1);
    }
}
