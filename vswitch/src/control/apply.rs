//! START HERE: how a desired state becomes true.
//!
//! [`Control`] is the switch as the control thread holds it. Whatever changes the switch (a file,
//! a request, the library) ends in [`Control::enact`]:
//!
//! 1. the desired state is validated *whole*; every error is reported, not the first;
//! 2. in the same pass the policy is compiled, off the data path;
//! 3. what to do about ports is worked out as data ([`plan`]);
//! 4. new ports are opened; if one fails, the others are closed again and nothing was touched (an
//!    `optional` one whose interface is not there yet waits instead);
//! 5. **one** snapshot is built and published;
//! 6. every worker is woken and takes it up: only then does the call return;
//! 7. ports that left are closed, no earlier than no worker can know them.
//!
//! An error before step 5 means that the switch is as it was. Time comes as an argument.

mod error;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::ApplyError;
use tracing::{error, info, warn};

use super::api::Applied;
use super::approvals::{Consent, Proposals};
use super::asks::Asks;
use super::attachments::Attachments;
use super::deciding::Deciding;
use super::plan::{Plan, describe, plan};
use super::ports::{OpenPort, PortControl};
use super::quarantine::Quarantines;
use super::reach::Known;
use super::recorder::Recorder;
use super::restart::Restarts;
use super::state::{Desired, PortConfig, SwitchConfig};
use super::suspicion::Suspicions;
use super::validate;
use super::walls::Walls;
use crate::datapath::quota::Groups;
use crate::datapath::snapshot::{PortInput, Snapshot, SnapshotInput, WorkloadInput};
use crate::datapath::worker::{Shared, WorkerHandle};
use crate::event::{ConnEvent, Consumer};
use crate::policy::model::{Action, Policy, qualified};
use crate::policy::{Classifier, FieldError, FieldPath, RuleId};
use crate::port::PortId;
use crate::port::mem::MemEnd;

/// How long workers get to take up a snapshot. They need microseconds; this long without it means
/// that the machine does not run them at all.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// Policies remembered by generation, to name the rules of events that were on their way.
const REMEMBERED: usize = 8;
/// How often an interface that is not there is looked for: a restarted container is back in seconds.
const RENEW_NS: u64 = 1_000_000_000;

/// What changes on command, on top of what the files (or the builder) say; gone with the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    /// Ports added.
    pub(super) ports: Vec<PortConfig>,
    /// Names of ports removed.
    removed: HashSet<String>,
    /// Tags by (tenant, workload).
    tags: BTreeMap<(String, String), Vec<String>>,
}

impl Overlay {
    /// `base` with the changes made.
    fn over(&self, base: &Desired) -> Desired {
        let mut desired = base.clone();
        desired.ports.retain(|p| !self.removed.contains(&p.name));
        desired.ports.extend(self.ports.iter().cloned());
        for port in &mut desired.ports {
            for workload in &mut port.workloads {
                let key = (port.tenant.clone(), workload.name.clone());
                if let Some(tags) = self.tags.get(&key) {
                    workload.tags.clone_from(tags);
                }
            }
        }
        desired
    }
}

/// A policy on probation.
#[derive(Debug)]
pub(super) struct Probation {
    deadline_ns: u64,
    previous: Policy,
    previous_source: String,
}

/// A policy that events may still speak of.
#[derive(Debug)]
struct Remembered {
    /// The generation that brought it.
    from: u64,
    classifier: Arc<Classifier>,
    /// Rules whose decisions are logged.
    logged: HashSet<RuleId>,
}

/// What shall happen though the desired state did not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Again<'a> {
    /// Nothing.
    No,
    /// That port is opened again.
    Port(&'a str),
    /// Connections are judged again.
    Judge,
}

/// The switch, as the control thread holds it.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Vec<WorkerHandle>,
    pub(super) events: Vec<Consumer<ConnEvent>>,
    pub(super) asks: Asks,
    pub(super) walls: Walls,
    pub(super) quarantine: Quarantines,
    pub(super) suspicions: Suspicions,
    /// What files or the builder say.
    base: Desired,
    pub(super) overlay: Overlay,
    /// What is in force.
    pub(super) desired: Desired,
    pub(super) policy_source: String,
    pub(super) ports: Vec<OpenPort>,
    /// Ports out of every snapshot from that generation on.
    closing: Vec<(u64, OpenPort)>,
    pub(super) attachments: Attachments,
    groups: Groups,
    /// The last policies, newest last.
    remembered: VecDeque<Remembered>,
    probation: Option<Probation>,
    /// Why the files, as they are now, are not in force.
    pub(super) refused: Vec<String>,
    pub(super) started_ns: u64,
    /// When orphaned ports are tried again.
    renew_at_ns: u64,
    pub(super) recorder: Recorder,
    pub(super) deciding: Deciding,
    pub(super) proposals: Proposals,
    pub(super) reach: Known,
    pub(super) restarts: Restarts,
    /// To what the change at hand takes away from walls.
    pub(super) consent: Consent,
}

/// Where a change comes from: what its policy is called, and when that goes back by itself.
type Cause<'c> = (&'c str, Option<u64>);

impl Control {
    /// The control side of a data path that just started, with nothing attached and no policy.
    pub(crate) fn new(
        shared: Arc<Shared>,
        workers: Vec<WorkerHandle>,
        config: SwitchConfig,
        now_ns: u64,
    ) -> Self {
        let events = (0..shared.counters.len())
            .filter_map(|i| shared.take_events(i))
            .collect();
        let asks = (0..shared.counters.len()).filter_map(|i| shared.take_asks(i));
        let asks = Asks::new(asks.collect(), shared.verdicts.participant());
        let shared_walls = shared.verdicts.participant();
        let suspicions = Suspicions::new(&shared);
        let empty = Desired {
            switch: config,
            ..Desired::default()
        };
        Control {
            shared,
            workers,
            events,
            asks,
            walls: Walls::new(shared_walls),
            quarantine: Quarantines::default(),
            suspicions,
            base: empty.clone(),
            overlay: Overlay::default(),
            desired: empty,
            policy_source: "none".to_owned(),
            ports: Vec::new(),
            closing: Vec::new(),
            attachments: Attachments::default(),
            groups: Groups::default(),
            remembered: VecDeque::new(),
            probation: None,
            refused: Vec::new(),
            started_ns: now_ns,
            renew_at_ns: now_ns,
            recorder: Recorder::none(),
            deciding: Deciding::new(),
            proposals: Proposals::default(),
            reach: Known::default(),
            restarts: Restarts::default(),
            consent: Consent::Nobodys,
        }
    }

    /// With this one to record what changes.
    pub(super) fn recorded_by(mut self, recorder: Recorder) -> Self {
        self.recorder = recorder;
        self.load_walls();
        self.load_quarantines();
        self.load_responses();
        self
    }

    /// Makes a whole desired state true. Ports and tags changed by command stay as they are.
    pub(crate) fn apply(&mut self, desired: Desired, source: &str) -> Result<Applied, ApplyError> {
        if desired.switch != self.desired.switch {
            let (new, old) = (&desired.switch, &self.desired.switch);
            let tables = [
                ("person", new.people != old.people),
                ("ledger", new.ledger != old.ledger),
                ("api", new.api != old.api),
                ("manager", new.manager != old.manager),
            ];
            let changed = tables.iter().find(|(_, changed)| *changed);
            let table = changed.map_or("switch", |(table, _)| *table);
            return Err(ApplyError::Invalid(vec![FieldError::new(
                FieldPath::root().key(table),
                format!("[{table}] cannot change while the switch runs"),
                "restart the daemon to change it",
            )]));
        }
        let applied = self.change(desired, self.overlay.clone(), (source, None))?;
        source.clone_into(&mut self.policy_source);
        // The files decide now: what was on probation is either in them or gone.
        self.probation = None;
        self.refused.clear();
        Ok(applied)
    }

    /// Replaces the policy. With `confirm_ns` it is reverted after that time, unless confirmed or
    /// the same as before.
    pub(crate) fn apply_policy(
        &mut self,
        policy: Policy,
        source: &str,
        confirm_ns: Option<u64>,
        now_ns: u64,
    ) -> Result<Applied, ApplyError> {
        let mut base = self.base.clone();
        let previous = std::mem::replace(&mut base.policy, policy);
        let confirm_s = confirm_ns.map(|ns| ns / 1_000_000_000);
        let mut applied = match self.change(base, self.overlay.clone(), (source, confirm_s)) {
            Err(e) if !matches!(e, ApplyError::NotSettled(_)) => return Err(e),
            done => done,
        };
        let previous_source = std::mem::replace(&mut self.policy_source, source.to_owned());
        // A second unconfirmed policy goes back to where the first one would have gone.
        let (previous, previous_source) = match self.probation.take() {
            Some(p) => (p.previous, p.previous_source),
            None => (previous, previous_source),
        };
        // To go back to the same would be no protection, only look like it.
        let differs = previous != self.base.policy;
        self.probation = confirm_ns.filter(|_| differs).map(|ns| Probation {
            deadline_ns: now_ns.saturating_add(ns),
            previous,
            previous_source,
        });
        if let Ok(applied) = &mut applied {
            applied.confirm_s = self.confirm_s(now_ns);
            if confirm_ns.is_some() && !differs {
                let line =
                    "nothing waits for confirmation: the policy to go back to is this same one";
                applied.changes.push(line.to_owned());
            }
        }
        applied
    }

    /// Keeps the policy on probation.
    pub(crate) fn confirm(&mut self) -> Result<Applied, ApplyError> {
        self.probation.take().ok_or(ApplyError::NothingToConfirm)?;
        let generation = self.shared.snapshots.generation();
        self.recorder.confirmed(generation, &self.policy_source);
        let changes = vec!["policy confirmed".to_owned()];
        Ok(Applied::at(generation, changes))
    }

    /// Seconds until the policy is reverted, rounded up.
    pub(super) fn confirm_s(&self, now_ns: u64) -> Option<u64> {
        let p = self.probation.as_ref()?;
        Some(p.deadline_ns.saturating_sub(now_ns).div_ceil(1_000_000_000))
    }

    /// Adds a port, for the life of the process.
    pub(crate) fn add_ports(&mut self, ports: Vec<PortConfig>) -> Result<Applied, ApplyError> {
        let mut overlay = self.overlay.clone();
        for port in ports {
            if self.desired.ports.iter().any(|p| p.name == port.name) {
                return Err(ApplyError::PortExists(port.name));
            }
            overlay.ports.push(port);
        }
        self.change_overlay(overlay)
    }

    /// Removes a port. One from a file comes back when the files are applied again after it was
    /// taken out of them, or when the daemon restarts.
    pub(crate) fn remove_port(&mut self, name: &str) -> Result<Applied, ApplyError> {
        if !self.desired.ports.iter().any(|p| p.name == name) {
            return Err(ApplyError::NoSuchPort(name.to_owned()));
        }
        let mut overlay = self.overlay.clone();
        overlay.ports.retain(|p| p.name != name);
        if self.base.ports.iter().any(|p| p.name == name) {
            overlay.removed.insert(name.to_owned());
        }
        self.change_overlay(overlay)
    }

    /// Changes a workload's tags, for the life of the process.
    pub(crate) fn tag(
        &mut self,
        workload: &str,
        add: &[String],
        remove: &[String],
    ) -> Result<Applied, ApplyError> {
        let (port, workload) = self.resident(workload)?;
        let who = (port.tenant.clone(), workload.name.clone());
        let mut tags = workload.tags.clone();
        tags.retain(|t| !remove.contains(t));
        for tag in add {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        let mut overlay = self.overlay.clone();
        overlay.tags.insert(who, tags);
        self.change_overlay(overlay)
    }

    /// The application's end of a mem port, once.
    pub(crate) fn mem_port(&mut self, name: &str) -> Option<MemEnd> {
        let port = self.ports.iter_mut().find(|p| p.config.name == name)?;
        match &mut port.control {
            PortControl::Mem(end) => end.take(),
            _ => None,
        }
    }

    /// What changes on command changes; the policy is the same.
    fn change_overlay(&mut self, overlay: Overlay) -> Result<Applied, ApplyError> {
        let source = self.policy_source.clone();
        self.change(self.base.clone(), overlay, (&source, None))
    }

    /// Enacts `base` with `overlay` over it and remembers both when it worked.
    fn change(
        &mut self,
        base: Desired,
        mut overlay: Overlay,
        cause: Cause<'_>,
    ) -> Result<Applied, ApplyError> {
        // A removal is forgotten once the files agree, so that the name can come back.
        overlay
            .removed
            .retain(|name| base.ports.iter().any(|p| &p.name == name));
        let result = self.enact(overlay.over(&base), Again::No, cause);
        if matches!(result, Ok(_) | Err(ApplyError::NotSettled(_))) {
            self.base = base;
            self.overlay = overlay;
        }
        result
    }

    /// See the module documentation.
    fn enact(
        &mut self,
        desired: Desired,
        again: Again<'_>,
        cause: Cause<'_>,
    ) -> Result<Applied, ApplyError> {
        self.reap();
        if again == Again::No && desired == self.desired && self.classifier().is_some() {
            // Nothing to enforce, so nothing to judge again.
            let generation = self.shared.snapshots.generation();
            return Ok(Applied::at(generation, Vec::new()));
        }
        let previous = self.classifier().map(|c| (&self.desired, &**c));
        let compiled = validate::compile(&desired, previous).map_err(ApplyError::Invalid)?;
        let decisions = desired.decisions != self.desired.decisions;
        let rules = if decisions {
            Deciding::check(desired.decisions.as_ref()).map_err(ApplyError::Invalid)?
        } else {
            Default::default()
        };
        self.agreed(&desired)?;
        let renew = match again {
            Again::Port(name) => Some(name),
            Again::No | Again::Judge => None,
        };
        let plan = plan(&self.ports, &desired.ports, renew)?;

        let opened = self.open(&plan, &desired.ports)?;

        let classifier = Arc::new(compiled.classifier);
        let facts = validate::workloads(&desired);
        let (groups, segments) = self.groups.assign(&desired.policy, &facts);
        let mut residents = compiled.parties.into_iter().zip(groups);
        let mut ports = Vec::with_capacity(desired.ports.len());
        for config in &desired.ports {
            let open = opened
                .iter()
                .chain(&self.ports)
                .find(|o| o.config.name == config.name);
            let Some(open) = open else { continue };
            ports.push(PortInput {
                port: Arc::clone(&open.port),
                tenant: desired.policy.tenant_id(&config.tenant).unwrap_or_default(),
                vlan: config.vlan,
                trunk: config.trunk.clone(),
                uplink: config.uplink,
                guard: config.guard,
                routes: config.routes.clone(),
                mtu: config.mtu,
                max_connections: quota(config, &desired.switch),
                attachment: self.attachments.intern(&config.name, ""),
                workloads: config
                    .workloads
                    .iter()
                    .zip(&mut residents)
                    .map(|(w, (party, group))| WorkloadInput {
                        attachment: self
                            .attachments
                            .intern(&config.name, qualified(&config.tenant, &w.name)),
                        name: w.name.clone(),
                        party,
                        group,
                        macs: w.mac.clone(),
                        ips: w.ip.clone(),
                        vlan: w.vlan,
                    })
                    .collect(),
            });
        }
        let snapshot = Snapshot::build(SnapshotInput {
            ports,
            classifier: Some(Arc::clone(&classifier)),
            segments,
            workers: self.shared.counters.len(),
        });
        let (model, walls) = self.model(&desired);
        let snapshot = snapshot.walled(walls);
        let snapshot = snapshot.quarantined(self.quarantine_view(&desired));
        let snapshot = snapshot.reborn(self.restarts.reborn());

        self.outlive(&desired, &classifier);
        let start = Instant::now();
        let generation = self.shared.publish(snapshot);
        self.watch_out(&desired);
        let mut changes = describe(&plan, &self.desired, &desired);
        let before = self.desired.ports.clone();
        if decisions {
            changes.push(Deciding::describe(desired.decisions.as_ref()));
        }
        self.commit(&plan, opened, desired, generation, classifier);
        let settled = self.settle(generation, start);
        let settle_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Whoever has everything judged again records why.
        if again != Again::Judge {
            self.record(&plan, &before, generation, cause, &changes);
        }
        self.decide_by(rules, decisions);
        self.walls_are(model);
        self.restarts_are();
        self.reap();
        if !settled {
            error!(generation, "workers have not taken up the snapshot");
            return Err(ApplyError::NotSettled(generation));
        }
        info!(generation, settle_us, ?changes, "applied");
        Ok(Applied {
            generation,
            changes,
            settle_us,
            confirm_s: None,
        })
    }

    /// Opens what the plan opens; all or nothing.
    fn open(&self, plan: &Plan, desired: &[PortConfig]) -> Result<Vec<OpenPort>, ApplyError> {
        let used: HashSet<PortId> = self
            .ports
            .iter()
            .chain(self.closing.iter().map(|(_, p)| p))
            .map(|p| p.port.id)
            .collect();
        let max = self.shared.max_ports.min(usize::from(u16::MAX));
        let mut free = (0..max)
            .filter_map(|n| u16::try_from(n).ok().map(PortId))
            .filter(|id| !used.contains(id));
        let mut opened = Vec::new();
        for config in plan.open.iter().filter_map(|i| desired.get(*i)) {
            let id = free.next().ok_or(ApplyError::TooManyPorts(max))?;
            // Returning drops, and thereby closes, those opened so far.
            let counters = &self.shared.counters;
            let port = OpenPort::open(id, config, counters).or_else(|source| {
                OpenPort::absent(id, config, counters, &source).ok_or_else(|| ApplyError::Port {
                    name: config.name.clone(),
                    source,
                })
            })?;
            opened.push(port);
        }
        Ok(opened)
    }

    /// Notes what was published.
    fn commit(
        &mut self,
        plan: &Plan,
        opened: Vec<OpenPort>,
        desired: Desired,
        generation: u64,
        classifier: Arc<Classifier>,
    ) {
        let (gone, mut kept): (Vec<_>, Vec<_>) = self
            .ports
            .drain(..)
            .partition(|p| plan.close.contains(&p.config.name));
        self.closing
            .extend(gone.into_iter().map(|p| (generation, p)));
        for port in &mut kept {
            if let Some(config) = desired.ports.iter().find(|c| c.name == port.config.name) {
                port.config = config.clone();
            }
        }
        kept.extend(opened);
        self.ports = kept;
        let rules = &desired.policy.rules;
        let logged = classifier.rules().filter(|r| {
            let rule = r.written.and_then(|n| rules.get(n));
            rule.is_some_and(|rule| rule.log || rule.action == Action::Notify)
        });
        self.remembered.push_back(Remembered {
            from: generation,
            logged: logged.map(|r| r.id).collect(),
            classifier,
        });
        if self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
        self.desired = desired;
    }

    /// Records what was done.
    fn record(
        &self,
        plan: &Plan,
        before: &[PortConfig],
        generation: u64,
        cause: Cause<'_>,
        changes: &[String],
    ) {
        let (recorder, desired) = (&self.recorder, &self.desired);
        recorder.applied(generation, &desired.policy, cause, changes);
        for port in before.iter().filter(|p| plan.close.contains(&p.name)) {
            recorder.port_removed(generation, port);
        }
        for port in plan.open.iter().filter_map(|i| desired.ports.get(*i)) {
            recorder.port_added(generation, port);
        }
    }

    /// Waits until every worker has `generation`.
    fn settle(&self, generation: u64, start: Instant) -> bool {
        let mut pause = Duration::from_micros(20);
        while !self.shared.snapshots.settled(generation) {
            if start.elapsed() > SETTLE_LIMIT {
                return false;
            }
            // Again each time: a worker may have been on its way into its wait.
            self.workers.iter().for_each(WorkerHandle::wake);
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        true
    }

    /// Closes ports that no worker can know any more.
    fn reap(&mut self) {
        let snapshots = &self.shared.snapshots;
        let gone = self
            .closing
            .extract_if(.., |(generation, _)| snapshots.settled(*generation));
        gone.for_each(|(_, port)| port.close());
    }

    /// What is due at `now_ns`: an unconfirmed policy is reverted, ports are closed.
    pub(crate) fn tick(&mut self, now_ns: u64) {
        self.reap();
        self.take_recorded(now_ns);
        self.take_suspicions(now_ns);
        self.take_asks(now_ns);
        self.take_answers(now_ns);
        self.tick_asks(now_ns);
        self.tick_walls(now_ns);
        self.tick_restarts(now_ns);
        self.tick_freezes(now_ns);
        for port in &mut self.ports {
            if port.next_deadline_ns().is_some_and(|at| at <= now_ns) {
                port.tick(now_ns);
                self.workers.iter().for_each(WorkerHandle::wake);
            }
        }
        if self.renew_at_ns <= now_ns {
            self.renew_at_ns = now_ns + RENEW_NS;
            self.ports.iter_mut().for_each(OpenPort::check_namespace);
            let orphans = self.ports.iter();
            let orphans = orphans.filter(|p| p.orphaned && p.interface_is_back());
            let orphans: Vec<_> = orphans.map(|p| p.config.name.clone()).collect();
            for name in orphans {
                let source = self.policy_source.clone();
                let result = self.enact(self.desired.clone(), Again::Port(&name), (&source, None));
                let port = self.ports.iter_mut().find(|p| p.config.name == name);
                if let (Err(e), Some(port)) = (result, port) {
                    port.not_renewed(&e);
                }
            }
        }
        if self
            .probation
            .as_ref()
            .is_none_or(|p| p.deadline_ns > now_ns)
        {
            return;
        }
        if let Some(p) = self.probation.take() {
            warn!(
                "the policy was not confirmed in time: back to {}",
                p.previous_source
            );
            self.consent = Consent::NotNeeded;
            let gone_back = self.apply_policy(p.previous, &p.previous_source, None, now_ns);
            self.consent = Consent::Nobodys;
            if let Err(e) = gone_back {
                // It stood before; only a port added since can have made it invalid.
                error!("cannot go back to the policy before: {e}");
            }
        }
    }

    /// Weighs everything anew that walls are about.
    pub(super) fn weigh_again(&mut self) -> Result<Applied, ApplyError> {
        let source = self.policy_source.clone();
        self.enact(self.desired.clone(), Again::Judge, (&source, None))
    }

    /// Has every connection judged again on its next packet, with nothing changed but what time has changed.
    pub(super) fn judge_again(&mut self) {
        if let Err(e) = self.weigh_again() {
            error!("connections are not judged again: {e}");
        }
    }

    /// When [`Control::tick`] has something to do next.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        let all = [
            self.asks.next_deadline_ns(),
            self.walls.next_deadline_ns(),
            self.suspicions.next_deadline_ns(),
            self.restarts.next_deadline_ns(),
            self.quarantine.next_deadline_ns(),
            self.ports_deadline_ns(),
        ];
        all.into_iter().flatten().min()
    }

    /// When it may open, close or renew a port.
    pub(super) fn ports_deadline_ns(&self) -> Option<u64> {
        let ports = self.ports.iter().filter_map(OpenPort::next_deadline_ns);
        let renewal = self.ports.iter().any(|p| p.orphaned);
        ports
            .chain(self.probation.as_ref().map(|p| p.deadline_ns))
            .chain(renewal.then_some(self.renew_at_ns))
            .min()
    }

    /// The control descriptors of all ports, with the port's number.
    pub(super) fn port_fds(&self) -> impl Iterator<Item = (RawFd, PortId)> {
        self.ports.iter().filter_map(|p| Some((p.fd()?, p.port.id)))
    }

    /// Serves a port whose descriptor is ready.
    pub(super) fn port_ready(&mut self, id: PortId, now_ns: u64) {
        if let Some(port) = self.ports.iter_mut().find(|p| p.port.id == id) {
            port.ready(now_ns);
            // Rings may have come or gone: a blocked worker looks at what it must wait for.
            self.workers.iter().for_each(WorkerHandle::wake);
        }
    }

    fn remembered(&self, generation: u64) -> Option<&Remembered> {
        self.remembered.iter().rev().find(|r| r.from <= generation)
    }

    /// The policy an event of `generation` was judged by.
    pub(super) fn classifier_at(&self, generation: u64) -> Option<&Arc<Classifier>> {
        self.remembered(generation).map(|r| &r.classifier)
    }

    /// Whether decisions of `rule`, in the policy of `generation`, are logged.
    pub(super) fn is_logged(&self, generation: u64, rule: RuleId) -> bool {
        self.remembered(generation)
            .is_some_and(|r| r.logged.contains(&rule))
    }

    /// The policy in force.
    pub(super) fn classifier(&self) -> Option<&Arc<Classifier>> {
        self.remembered.back().map(|r| &r.classifier)
    }

    /// Ends the workers, then closes every port.
    pub(crate) fn shutdown(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            worker.wake();
            worker.join();
        }
        // What they reported last.
        self.take_events(false, |_| {});
        self.ports.clear();
        self.closing.clear();
        let generation = self.shared.snapshots.generation();
        self.record_waiting(u64::MAX);
        self.recorder.close(generation);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Connections a port may open: a quarter of the table unless said.
fn quota(config: &PortConfig, switch: &SwitchConfig) -> u32 {
    let max = config
        .max_connections
        .unwrap_or_else(|| (switch.connections / 4).max(1));
    u32::try_from(max).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests;
