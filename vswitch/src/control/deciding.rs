//! The manager, as the control thread sees it: what it is asked, and what becomes of its answers.
//!
//! A question carries all that rules may look at, so a manager needs to know nothing of a switch: who the two ends are, as they
//! were when it was asked, and what was asked and answered before. That memory is bounded: of one workload the last
//! [`PER_WORKLOAD`] topics of the last hour.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;

use ahash::AHashMap as HashMap;
use tracing::{debug, error};

use super::api::ManagerInfo;
use super::apply::Control;
use super::asks::{Given, Kept};
use super::attachments::Attachments;
use super::state::{Decisions, Desired, SwitchConfig, TlsConfig};
use super::validate::facts;
use super::view::assurance;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::verdicts::Topic;
use crate::manager::certificate::Credentials;
use crate::manager::ledger::record::digest;
use crate::manager::local::Local;
use crate::manager::question::{History, Mailbox, Party, Question, Workload};
use crate::manager::remote::{Remote, RemoteConfig};
use crate::manager::rules::Rules;
use crate::packet::Addr;
use crate::policy::model::{Scope, qualified};
use crate::policy::{Classifier, FieldError, FieldPath, SetId, TenantId};
use crate::sys::eventfd::EventFd;
use crate::sys::time::monotonic_ns;

/// Topics of one workload whose answers are remembered: as many as may have one standing.
const PER_WORKLOAD: usize = 64;
const SECOND_NS: u64 = 1_000_000_000;
/// What history is about.
const HOUR_NS: u64 = 3600 * SECOND_NS;
/// What rates are about.
const MINUTE_NS: u64 = 60 * SECOND_NS;
/// Parts that both are counted in: what is counted is at most one part older than it should be.
const PARTS: usize = 12;

/// What happened within a time that moves on.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// The newest first.
    parts: [u32; PARTS],
    /// How many of them there were before that, since the clock began.
    at: u64,
}

impl Window {
    fn advance(&mut self, length_ns: u64, now_ns: u64) {
        let now = now_ns / (length_ns / PARTS as u64);
        let passed = usize::try_from(now.saturating_sub(self.at)).unwrap_or(PARTS);
        let passed = passed.min(PARTS);
        self.parts.rotate_right(passed);
        self.parts
            .iter_mut()
            .take(passed)
            .for_each(|part| *part = 0);
        self.at = self.at.max(now);
    }

    fn add(&mut self, length_ns: u64, now_ns: u64) {
        self.advance(length_ns, now_ns);
        if let Some(part) = self.parts.first_mut() {
            *part += 1;
        }
    }

    fn sum(&mut self, length_ns: u64, now_ns: u64) -> u32 {
        self.advance(length_ns, now_ns);
        self.parts.iter().sum()
    }
}

/// How a question ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Allowed,
    Denied,
    Unanswered,
}

/// Answers about one topic.
#[derive(Clone, Copy, Debug, Default)]
struct Recent([Window; 3]);

/// What managers have said.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    asked: u64,
    answered: u64,
    undecided: u64,
    late: u64,
    busy: u64,
}

/// Who decides.
#[derive(Debug)]
enum Who {
    /// A thread of this process, by so many rules.
    Here { local: Local, rules: usize },
    /// Somebody elsewhere.
    There {
        remote: Remote,
        /// How often it had been connected when it was last asked all that waits.
        sessions: u64,
    },
}

#[derive(Debug)]
struct Manager {
    who: Who,
    mailbox: Arc<Mailbox>,
    /// The file of its rules, or its address.
    source: String,
}

impl From<&TlsConfig> for Credentials {
    fn from(config: &TlsConfig) -> Self {
        Credentials {
            ca: config.ca.clone(),
            certificate: config.certificate.clone(),
            key: config.key.clone(),
        }
    }
}

/// A manager elsewhere cannot be asked.
pub use crate::manager::certificate::CredentialsError as ManagerError;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Deciding {
    manager: Option<Manager>,
    /// This run of the switch, random.
    boot: u64,
    /// Where in the desired state everybody is: port and, unless that stands for the outside, workload.
    places: HashMap<AttachmentId, (usize, Option<usize>)>,
    /// Those that were asked about since that changed.
    workloads: HashMap<AttachmentId, Arc<Workload>>,
    /// Segments of outside addresses, by what the policy knows of them; looked up once each.
    outside: HashMap<(TenantId, SetId), Arc<[String]>>,
    recent: Kept<Recent>,
    rates: HashMap<AttachmentId, Window>,
    counts: Counts,
}

/// Rules that passed, to be followed when all else is in force.
pub(super) type Checked = Option<Arc<Rules>>;

impl Deciding {
    /// Nobody decides.
    pub(super) fn new() -> Self {
        Deciding {
            manager: None,
            boot: RandomState::new().hash_one(0),
            places: HashMap::new(),
            workloads: HashMap::new(),
            outside: HashMap::new(),
            recent: Kept::new(PER_WORKLOAD),
            rates: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Checks rules, and touches nothing.
    pub(super) fn check(decisions: Option<&Decisions>) -> Result<Checked, Vec<FieldError>> {
        let Some(decisions) = decisions else {
            return Ok(None);
        };
        let rules = Rules::parse(&decisions.text).map_err(|faults| {
            let at = || FieldPath::root().key("manager").key("rules");
            let errors = faults.into_iter().map(|f| {
                let line = decisions.text.get(..f.offset).unwrap_or_default();
                let line = line.matches('\n').count() + 1;
                FieldError::new(
                    at(),
                    format!("{}:{line}: {}", decisions.name, f.what),
                    f.todo,
                )
            });
            errors.collect::<Vec<_>>()
        })?;
        Ok(Some(Arc::new(rules)))
    }

    /// What is in force, for the list of changes.
    pub(super) fn describe(decisions: Option<&Decisions>) -> String {
        decisions.map_or_else(
            || "questions are no longer answered by rules".to_owned(),
            |d| {
                let digest = digest(d.text.as_bytes());
                format!("questions are answered by {} (SHA-256 {digest})", d.name)
            },
        )
    }

    /// Has questions answered by these rules from now on, or by nobody. `wake` is signalled when one was.
    fn follow(
        &mut self,
        rules: Checked,
        source: &str,
        wake: Option<&Arc<EventFd>>,
    ) -> io::Result<()> {
        let Some(new) = rules else {
            self.manager = None;
            return Ok(());
        };
        let (source, n) = (source.to_owned(), new.len());
        if let Some(manager) = &mut self.manager {
            if let Who::Here { local, rules } = &mut manager.who {
                local.follow(new);
                (manager.source, *rules) = (source, n);
            }
        } else {
            let mailbox = Arc::new(Mailbox::new(wake.map(Arc::clone)));
            let local = Local::start(new, Arc::clone(&mailbox), self.boot)?;
            self.manager = Some(Manager {
                who: Who::Here { local, rules: n },
                mailbox,
                source,
            });
        }
        Ok(())
    }

    /// Has questions put to a manager elsewhere, if there shall be one. `wake` is signalled when one was answered.
    pub(super) fn connect(
        &mut self,
        switch: &SwitchConfig,
        wake: &Arc<EventFd>,
    ) -> Result<(), ManagerError> {
        let Some(config) = &switch.manager else {
            return Ok(());
        };
        let mailbox = Arc::new(Mailbox::new(Some(Arc::clone(wake))));
        let remote = RemoteConfig {
            address: config.address.clone(),
            credentials: Credentials::from(&config.tls),
            switch: switch.name.clone(),
            boot: self.boot,
        };
        let remote = Remote::start(remote, Arc::clone(&mailbox))?;
        self.manager = Some(Manager {
            who: Who::There {
                remote,
                sessions: 0,
            },
            mailbox,
            source: config.address.clone(),
        });
        Ok(())
    }

    /// Whom questions are about from now on.
    pub(super) fn know(&mut self, attachments: &Attachments, desired: &Desired) {
        self.workloads.clear();
        self.outside.clear();
        self.places.clear();
        if self.manager.is_none() {
            return;
        }
        for (n, port) in desired.ports.iter().enumerate() {
            let outside = attachments.outside_of(port).map(|id| (id, None));
            let workloads = port.workloads.iter().enumerate();
            let workloads = workloads.filter_map(|(w, workload)| {
                let id = attachments.of(port, workload)?;
                Some((id, Some(w)))
            });
            let all = outside.into_iter().chain(workloads);
            self.places.extend(all.map(|(id, w)| (id, (n, w))));
        }
        let places = &self.places;
        self.rates.retain(|id, _| places.contains_key(id));
        self.recent.retain_owners(|id| places.contains_key(&id));
    }

    fn party(
        &mut self,
        (id, address): (AttachmentId, Option<Addr>),
        tenant: TenantId,
        (desired, classifier): (&Desired, &Classifier),
    ) -> Option<Party> {
        let policy = &desired.policy;
        let (port, workload) = *self.places.get(&id)?;
        let port = desired.ports.get(port)?;
        if let Some(address) = address {
            let set = (tenant, classifier.outside(tenant, &address));
            let address = address.to_ip();
            let segments = self.outside.entry(set).or_insert_with(|| {
                let owner = policy.tenant_name(tenant);
                let all = policy.segments.iter();
                let holding = all.filter(|s| Some(&*s.tenant) == owner);
                let holding = holding.filter(|s| s.cidr.iter().any(|c| c.contains(address)));
                holding.map(|s| qualified(&s.tenant, &s.name)).collect()
            });
            return Some(Party::Outside {
                address,
                uplink: port.name.clone(),
                segments: Arc::clone(segments),
            });
        }
        let workload = port.workloads.get(workload?)?;
        let known = self.workloads.entry(id).or_insert_with(|| {
            let facts = facts(tenant, workload);
            let segments = policy.segments_of(&facts);
            Arc::new(Workload {
                id: qualified(&port.tenant, &workload.name),
                name: workload.name.clone(),
                tenant: port.tenant.clone(),
                tags: workload.tags.clone(),
                assurance: assurance(port, workload).to_owned(),
                segments: segments.map(|s| qualified(&s.tenant, &s.name)).collect(),
            })
        });
        Some(Party::Workload(Arc::clone(known)))
    }

    /// A question ended.
    pub(super) fn concluded(&mut self, topic: &Topic, how: Outcome, now_ns: u64) {
        if self.manager.is_none() {
            return;
        }
        let key = topic.key();
        let mut recent = self.recent.get(&key).copied().unwrap_or_default();
        if let Some(window) = recent.0.get_mut(how as usize) {
            window.add(HOUR_NS, now_ns);
        }
        // The one that was used least recently gives way.
        let rank = (now_ns, u64::MAX);
        self.recent.insert(key, topic.from, rank, recent);
    }

    fn history(&self, topic: &Topic, now_ns: u64) -> History {
        let Some(mut recent) = self.recent.get(&topic.key()).copied() else {
            return History::default();
        };
        let [allowed, denied, unanswered] = recent.0.each_mut().map(|w| w.sum(HOUR_NS, now_ns));
        History {
            allowed,
            denied,
            unanswered,
        }
    }

    /// What `status` tells.
    pub(super) fn info(&self) -> Option<ManagerInfo> {
        let manager = self.manager.as_ref()?;
        let Counts {
            asked,
            answered,
            undecided,
            late,
            busy,
        } = self.counts;
        let (rules, standing) = match &manager.who {
            Who::Here { rules, .. } => (Some(*rules), None),
            Who::There { remote, .. } => (None, Some(remote.standing())),
        };
        let connected = standing.as_ref().is_none_or(|s| s.connected);
        let standing = standing.unwrap_or_default();
        Some(ManagerInfo {
            source: manager.source.clone(),
            rules,
            connected,
            trouble: standing.trouble,
            unlisted: standing.unlisted,
            malformed: standing.malformed,
            asked,
            answered,
            undecided,
            late,
            busy,
        })
    }
}

impl Control {
    /// Follows other rules, if they have changed, and knows who is who from now on.
    pub(super) fn decide_by(&mut self, rules: Checked, changed: bool) {
        if changed {
            let source = self.desired.decisions.as_ref();
            let source = source.map_or("", |d| &d.name);
            let wake = self.shared.control.get();
            if let Err(e) = self.deciding.follow(rules, source, wake) {
                error!("questions are not answered by rules: {e}");
            }
        }
        self.deciding.know(&self.attachments, &self.desired);
        if changed {
            let now_ns = monotonic_ns();
            self.outdate(None, now_ns);
            // What waits may have an answer now.
            for id in self.asks.ids() {
                self.put_to_manager(id, now_ns);
            }
        }
    }

    /// Asks the manager, if there is one.
    pub(super) fn ask_manager(&mut self, id: u64, now_ns: u64) {
        if self.deciding.manager.is_none() {
            return;
        }
        if let Some(pending) = self.asks.pending(id) {
            let rate = self.deciding.rates.entry(pending.topic.from);
            rate.or_default().add(MINUTE_NS, now_ns);
        }
        self.put_to_manager(id, now_ns);
    }

    fn put_to_manager(&mut self, id: u64, now_ns: u64) {
        let Some(question) = self.question(id, now_ns) else {
            return;
        };
        let Some(manager) = &self.deciding.manager else {
            return;
        };
        let taken = match &manager.who {
            Who::Here { local, .. } => local.ask(question),
            // Of somebody who has just come, all that waits will be asked.
            Who::There { remote, sessions } if remote.sessions() != *sessions => return,
            Who::There { remote, .. } => remote.ask(question),
        };
        if taken {
            self.deciding.counts.asked += 1;
        } else {
            // A person may answer; else `otherwise` does.
            self.deciding.counts.busy += 1;
        }
    }

    fn question(&mut self, id: u64, now_ns: u64) -> Option<Question> {
        let classifier = Arc::clone(self.classifier()?);
        let (deciding, pending) = (&mut self.deciding, self.asks.pending(id)?);
        let (topic, terms) = (&pending.topic, &pending.asking.terms);
        let rate = deciding.rates.entry(topic.from).or_default();
        let questions_last_minute = rate.sum(MINUTE_NS, now_ns);
        let (tenant, known) = (TenantId(topic.tenant), (&self.desired, &*classifier));
        Some(Question {
            id,
            rule: pending.rule().to_owned(),
            from: deciding.party((topic.from, topic.from_addr), tenant, known)?,
            to: deciding.party((topic.to, topic.to_addr), tenant, known)?,
            connection: pending.connection(),
            protocol: topic.protocol,
            number: topic.dport,
            walls: [topic.from, topic.to].map(|end| self.walls.bound(end)),
            suspicions: [topic.from, topic.to].map(|end| self.suspicions.of(end, now_ns)),
            history: deciding.history(topic, now_ns),
            questions_last_minute,
            deadline_ms: terms.deadline_ms,
            ttl_s: terms.ttl_s,
            scope: terms.scope,
        })
    }

    /// Nobody waits for an answer to this any more.
    pub(super) fn cancel_at_manager(&self, id: u64) {
        let manager = self.deciding.manager.as_ref();
        if let Some(Who::There { remote, .. }) = manager.map(|m| &m.who) {
            remote.cancel(id);
        }
    }

    /// Takes the manager's answers, and asks what waits when it was not there before.
    pub(super) fn take_answers(&mut self, now_ns: u64) {
        let manager = self.deciding.manager.as_mut();
        if let Some(Who::There { remote, sessions }) = manager.map(|m| &mut m.who) {
            let now = remote.sessions();
            if std::mem::replace(sessions, now) != now {
                for id in self.asks.ids() {
                    self.put_to_manager(id, now_ns);
                }
            }
        }
        let Some(manager) = &self.deciding.manager else {
            return;
        };
        let (who, here) = match manager.who {
            Who::Here { .. } => ("manager".to_owned(), true),
            Who::There { .. } => (format!("manager {}", manager.source), false),
        };
        for answer in manager.mailbox.take() {
            let terms = self.asks.pending(answer.id).map(|p| p.asking.terms);
            let Some(terms) = terms.filter(|_| answer.boot == self.deciding.boot) else {
                // Somebody else was faster, or nobody asked.
                self.deciding.counts.late += 1;
                debug!(id = answer.id, "an answer that nobody waits for");
                continue;
            };
            let Some(yes) = answer.yes else {
                self.deciding.counts.undecided += 1;
                continue;
            };
            self.deciding.counts.answered += 1;
            self.recorder.by(who.as_str());
            let scope = if answer.once {
                Scope::Connection
            } else {
                terms.scope
            };
            let given = Given {
                yes,
                scope,
                // No longer than the rule admits.
                ttl_s: answer
                    .ttl_s
                    .map_or(terms.ttl_s, |ttl_s| ttl_s.min(terms.ttl_s)),
            };
            if here {
                self.asks.by_rules(answer.id);
            }
            self.conclude(answer.id, given, &answer.reason, now_ns);
            self.recorder.by("timer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HOUR_NS, Window};

    #[test]
    fn a_window_forgets_what_is_older_than_itself() {
        let part = HOUR_NS / 12;
        let mut window = Window::default();
        let start = 1000 * part;
        window.add(HOUR_NS, start);
        window.add(HOUR_NS, start + part);
        assert_eq!(window.sum(HOUR_NS, start + 11 * part), 2);
        assert_eq!(window.sum(HOUR_NS, start + 12 * part), 1);
        assert_eq!(window.sum(HOUR_NS, start + 13 * part), 0);
        window.add(HOUR_NS, start + 100 * part);
        // A clock that lags behind another worker's.
        window.add(HOUR_NS, start + 99 * part);
        assert_eq!(window.sum(HOUR_NS, start + 100 * part), 2);
        assert_eq!(window.sum(HOUR_NS, u64::MAX), 0);
    }
}
