//! Who is in quarantine, why, and which connections of theirs go on (`datapath/quarantine` is what it means to frames).
//!
//! A workload is known by its name, and by each of its MACs and addresses: whoever turns up with one of these is the same one,
//! whatever he is called. Of a container in a VM it is all that the VM has, because nothing but its kernel tells them apart.
//! What is kept is known by names too, so both outlive ports, policies and, where there is a ledger, the switch.

mod freeze;
mod named;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use flowtable::{FlowKey, Participant};
use freeze::Freeze;
pub(super) use freeze::{MAX_S, Thaw};
use named::Named;
pub(super) use named::Wanted;
use tracing::{info, warn};

use super::api::{ApiError, Applied, ErrorCode, KeptInfo, QuarantineInfo};
use super::apply::{ApplyError, Control};
use super::asks::Given;
use super::state::{Desired, PortConfig, WorkloadConfig};
use super::view::assurance;
use super::walls::now_wall_ns;
use crate::datapath::freeze::{Outcome, Phase};
use crate::datapath::quarantine::{Carried, Kept, Quarantine};
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::{conn, tcp};
use crate::packet::{Mac, proto};
use crate::policy::model::{Scope, qualified};
use crate::sys::time::monotonic_ns;

/// Connections that may be kept of one quarantine. A guess: a pool of connections to a database has some tens; and they fit one record.
const KEPT_MAX: usize = 256;

/// What becomes of a restart when the switch ends.
const LOST: &str = "unknown: the switch ended in the midst of it";
/// What becomes of frozen connections when the switch ends.
const ENDED: &str = "was reset: the switch was started again, and does not know its numbers";

/// What tells that somebody is one of those who were put into quarantine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Marks {
    /// Qualified names.
    names: BTreeSet<String>,
    /// Their tenants' traffic only.
    tenants: BTreeSet<String>,
    macs: Vec<Mac>,
    ips: Vec<IpAddr>,
}

impl Marks {
    fn add(&mut self, port: &PortConfig, workload: &WorkloadConfig) {
        self.names.insert(qualified(&port.tenant, &workload.name));
        self.tenants.insert(port.tenant.clone());
        self.macs.extend(&workload.mac);
        self.ips.extend(&workload.ip);
    }

    fn fit(&self, port: &PortConfig, workload: &WorkloadConfig) -> bool {
        self.names
            .contains(&qualified(&port.tenant, &workload.name))
            || self.tenants.contains(&port.tenant)
                && (workload.mac.iter().any(|mac| self.macs.contains(mac))
                    || workload.ip.iter().any(|ip| self.ips.contains(ip)))
    }

    /// Whether a workload is in quarantine by these: itself, or its VM.
    fn hold(&self, port: &PortConfig, workload: &WorkloadConfig) -> bool {
        self.fit(port, workload)
            || assurance(port, workload) == "nested"
                && port.workloads.iter().any(|w| self.fit(port, w))
    }
}

/// Somebody in quarantine.
#[derive(Clone, Debug)]
struct Held {
    since_ns: i64,
    who: String,
    reason: String,
    /// The ledger has it.
    recorded: bool,
    marks: Marks,
    kept: BTreeMap<Named, Arc<Carried>>,
    freeze: Option<Freeze>,
    /// What became of connections that were frozen.
    became: BTreeMap<Named, Outcome>,
    /// What else there is to say.
    note: String,
}

/// Somebody who is to be put there.
struct Subject {
    name: String,
    marks: Marks,
    /// All that his marks hold.
    ends: HashSet<AttachmentId>,
}

/// A quarantine, as it is recorded.
#[cfg_attr(not(feature = "manager"), allow(dead_code))] // without a ledger there is nobody to write it down
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) workload: String,
    pub(super) since_ns: i64,
    pub(super) who: String,
    pub(super) reason: String,
    /// Connections that are kept.
    pub(super) keep: Vec<String>,
    /// All that are in it.
    pub(super) workloads: Vec<String>,
    /// By what else they are known.
    pub(super) addresses: Vec<String>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Quarantines {
    /// By the qualified name of the one who was meant.
    held: BTreeMap<String, Held>,
    /// What was kept of those who were released: it needs no answer again.
    granted: HashMap<FlowKey, Kept>,
    /// What was published last.
    view: Option<Arc<Quarantine>>,
}

impl Quarantines {
    /// What a connection is, if it is kept.
    pub(super) fn kept(&self, key: &FlowKey) -> Option<&Kept> {
        self.view.as_ref()?.keeps(key)
    }

    /// Whether a connection needs no answer, because it is kept or was.
    pub(super) fn answers(&self, key: &FlowKey) -> bool {
        self.view
            .as_ref()
            .is_some_and(|view| view.kept(key).is_some())
    }

    fn of(&self, port: &PortConfig, workload: &WorkloadConfig) -> Option<(&String, &Held)> {
        let mut held = self.held.iter();
        held.find(|(_, held)| held.marks.hold(port, workload))
    }
}

fn usage(what: String) -> ApiError {
    ApiError::new(ErrorCode::Usage, what)
}

impl Control {
    /// Puts a workload into quarantine. Of its live connections those go on that `keep` names; everything else ends at once, and
    /// nothing new is admitted. One that is in quarantine already keeps from now on what `keep` names now.
    pub(super) fn quarantine(
        &mut self,
        workload: &str,
        keep: &[String],
        reason: &str,
        who: &str,
    ) -> Result<Applied, ApiError> {
        let subject = self.subject(workload)?;
        // Whoever errs here has changed nothing.
        let kept = self.select_exactly((&subject.name, &subject.ends), keep)?;
        let (name, ends, count) = (subject.name.clone(), subject.ends.clone(), kept.len());
        let mut applied = self.enforce(subject, kept, reason, who)?;
        // It holds already, so what is in use may be gone by now.
        let mut cut = 0;
        self.each_conn_of(&ends, |c| {
            cut += usize::from(is_live(&c) && self.quarantine.kept(&c.key()).is_none());
        });
        let text = format!(
            "{name} is in quarantine: {cut} live connection{} cut, {count} kept",
            if cut == 1 { "" } else { "s" },
        );
        applied.changes.insert(0, text);
        Ok(applied)
    }

    /// Puts a suspect into quarantine, with what there is of `keep`; but whoever has too much open to keep it all keeps nothing.
    pub(super) fn contain(
        &mut self,
        workload: &str,
        keep: &[Wanted],
        reason: &str,
        who: &str,
    ) -> Result<Applied, ApiError> {
        let subject = self.subject(workload)?;
        let selected = self.select(&subject.ends, keep);
        let kept = if selected.is_too_much() {
            BTreeMap::new()
        } else {
            selected.kept
        };
        self.enforce(subject, kept, reason, who)
    }

    /// Who is meant, if he may be put into quarantine now.
    fn subject(&self, workload: &str) -> Result<Subject, ApiError> {
        let (port, resident) = self.resident(workload)?;
        let name = qualified(&port.tenant, &resident.name);
        self.must_not_be_frozen(&name)?;
        let mut marks = Marks::default();
        let of_vm = assurance(port, resident) == "nested";
        let all = port.workloads.iter();
        all.filter(|w| of_vm || w.name == resident.name)
            .for_each(|w| marks.add(port, w));
        let ends = self.held_attachments(&self.desired, &marks);
        Ok(Subject { name, marks, ends })
    }

    fn enforce(
        &mut self,
        Subject { name, marks, ends }: Subject,
        kept: BTreeMap<Named, Arc<Carried>>,
        reason: &str,
        who: &str,
    ) -> Result<Applied, ApiError> {
        let others = marks.names.iter().filter(|n| **n != name);
        let others = others.map(|n| format!("{n} is, too: it is in the same VM"));
        let goes_on = kept.keys().map(|named| format!("kept: {named}"));
        let mut changes: Vec<_> = others.chain(goes_on).collect();
        let held = Held {
            since_ns: now_wall_ns(),
            who: who.to_owned(),
            reason: reason.to_owned(),
            recorded: false,
            marks,
            kept,
            freeze: None,
            became: BTreeMap::new(),
            note: String::new(),
        };
        self.recorder.by(who);
        let before = self.quarantine.held.insert(name.clone(), held);
        let applied = match self.weigh_again() {
            Err(e) if !matches!(e, ApplyError::NotSettled(_)) => {
                let held = &mut self.quarantine.held;
                match before {
                    Some(before) => held.insert(name, before),
                    None => held.remove(&name),
                };
                return Err(e.into());
            }
            done => done,
        };
        self.deny_waiting(&ends);
        for end in &ends {
            self.restarts.readmissions.forget(*end);
        }
        warn!(workload = name, reason, who, "in quarantine");
        self.tell_quarantine("quarantine", &name, reason);
        let generation = self.shared.snapshots.generation();
        let recorded = self.record_of(&name).map(|record| {
            // It is in force already; but whoever did it is to know whether it lasts.
            self.recorder.quarantined(generation, &record)
        });
        match recorded {
            Some(Ok(())) => {
                if let Some(held) = self.quarantine.held.get_mut(&name) {
                    held.recorded = true;
                }
            }
            Some(Err(why)) => changes.push(format!(
                "it is not recorded, so it ends with the daemon: {why}"
            )),
            None => {}
        }
        let mut applied = applied?;
        applied.changes.splice(0..0, changes);
        Ok(applied)
    }

    /// Ends it. What was kept is judged as everything else from now on, but is not asked about again.
    pub(super) fn release(
        &mut self,
        workload: &str,
        reason: &str,
        who: &str,
    ) -> Result<Applied, ApiError> {
        let name = self.quarantined_as(workload)?;
        self.must_not_be_frozen(&name)?;
        let Some(held) = self.quarantine.held.remove(&name) else {
            return Err(usage(format!("{name} is in no quarantine")));
        };
        self.recorder.by(who);
        let view = self.quarantine.view.clone();
        let numbers = self.numbers(&self.desired);
        let granted = held.kept.keys().filter_map(|named| {
            let (key, _) = numbers.flow(named)?;
            Some((key, view.as_ref()?.kept(&key)?.clone()))
        });
        let before = self.quarantine.granted.clone();
        self.quarantine.granted.extend(granted);
        let applied = match self.weigh_again() {
            Err(e) if !matches!(e, ApplyError::NotSettled(_)) => {
                self.quarantine.granted = before;
                self.quarantine.held.insert(name, held);
                return Err(e.into());
            }
            done => done,
        };
        // What it did before is dealt with: detectors tell of what it does from now on.
        for id in self.held_attachments(&self.desired, &held.marks) {
            self.shared.suspects.forget(id);
        }
        info!(workload = name, reason, who, "released from quarantine");
        self.tell_quarantine("release", &name, reason);
        let carried = |(named, carried): (&Named, &Arc<Carried>)| {
            let ([out, back], [out_bytes, back_bytes]) = carried.counts();
            format!(
                "{named}: {out} packets, {out_bytes} bytes there; {back} packets, {back_bytes} bytes back"
            )
        };
        let kept: Vec<_> = held.kept.iter().map(carried).collect();
        let generation = self.shared.snapshots.generation();
        let recorded = self.recorder.released(generation, &name, reason, &kept);
        let mut applied = applied?;
        let released = std::iter::once(format!("{name} is released"));
        applied.changes.splice(0..0, released.chain(kept));
        if let Err(why) = recorded
            && held.recorded
        {
            applied.changes.push(format!(
                "that is not recorded, so it is in quarantine again when the daemon starts: {why}"
            ));
        }
        Ok(applied)
    }

    fn must_not_be_frozen(&self, name: &str) -> Result<(), ApiError> {
        if self.is_frozen(name) {
            let todo = format!("`vswitch workload thaw {name}` first");
            let text = format!("{name} is frozen, or not all of its connections go on yet; {todo}");
            return Err(ApiError::new(ErrorCode::Refused, text));
        }
        Ok(())
    }

    /// Whether a workload is in quarantine.
    pub(super) fn is_quarantined(&self, port: &PortConfig, workload: &WorkloadConfig) -> bool {
        self.quarantine.of(port, workload).is_some()
    }

    /// Under which name somebody is in quarantine: his own, also when he is gone, or that of whom he is one with.
    fn quarantined_as(&self, text: &str) -> Result<String, ApiError> {
        let held = &self.quarantine.held;
        if held.contains_key(text) {
            return Ok(text.to_owned());
        }
        let (port, workload) = self.resident(text)?;
        match self.quarantine.of(port, workload) {
            Some((name, _)) => Ok(name.clone()),
            None => Err(usage(format!("{text} is in no quarantine"))),
        }
    }

    /// The numbers of all that marks hold.
    fn held_attachments(&self, desired: &Desired, marks: &Marks) -> HashSet<AttachmentId> {
        let ports = desired.ports.iter();
        let all = ports.flat_map(|port| port.workloads.iter().map(move |w| (port, w)));
        all.filter(|(port, w)| marks.hold(port, w))
            .filter_map(|(port, w)| self.attachments.of(port, w))
            .collect()
    }

    /// Questions of these and about them are answered with no.
    fn deny_waiting(&mut self, ends: &HashSet<AttachmentId>) {
        let now_ns = monotonic_ns();
        let waiting = self.ask_infos(now_ns).into_iter();
        let waiting = waiting.filter(|(_, t)| ends.contains(&t.from) || ends.contains(&t.to));
        let ids: Vec<_> = waiting
            .filter_map(|(ask, _)| u64::from_str_radix(&ask.id, 16).ok())
            .collect();
        for id in ids {
            let no = Given {
                yes: false,
                scope: Scope::Service,
                ttl_s: 1,
            };
            self.conclude(id, no, "in quarantine", now_ns);
            self.cancel_at_manager(id);
        }
    }

    /// What the data path is to know of quarantine, of a state that is about to be published.
    pub(super) fn quarantine_view(&mut self, desired: &Desired) -> Option<Arc<Quarantine>> {
        self.quarantine.view = None;
        let mut table: Participant = self.shared.table.participant();
        self.quarantine
            .granted
            .retain(|key, _| table.lookup(key).is_some());
        table.offline();
        if self.quarantine.held.is_empty() && self.quarantine.granted.is_empty() {
            return None;
        }
        let mut kept = self.quarantine.granted.clone();
        // Who is released is not frozen.
        kept.values_mut()
            .for_each(|kept| kept.frozen = [None, None]);
        let numbers = self.numbers(desired);
        let held = self.quarantine.held.values();
        let held: Vec<_> = held
            .map(|held| {
                let ends = self.held_attachments(desired, &held.marks);
                let keys = held.kept.iter().filter_map(|(named, carried)| {
                    let (key, initiator) = numbers.flow(named)?;
                    let record = held.freeze.as_ref().and_then(|f| f.record(named));
                    // What goes to the responder, and what goes to the initiator.
                    let frozen = [initiator.other(), initiator].map(|side| {
                        let end = AttachmentId(key.endpoint(side).attachment);
                        record.clone().filter(|_| ends.contains(&end))
                    });
                    let carried = Arc::clone(carried);
                    let kept = Kept {
                        initiator,
                        carried,
                        frozen,
                    };
                    Some((key, kept))
                });
                let keys: HashMap<_, _> = keys.collect();
                (ends, keys)
            })
            .collect();
        let mut holders: HashMap<AttachmentId, Vec<_>> = HashMap::new();
        for (ends, keys) in &held {
            for end in ends {
                holders.entry(*end).or_default().push(keys);
            }
            for (key, k) in keys {
                let both = kept.entry(*key).or_insert_with(|| k.clone());
                for (frozen, other) in both.frozen.iter_mut().zip(&k.frozen) {
                    *frozen = frozen.take().or_else(|| other.clone());
                }
            }
        }
        // Of two in quarantine both must keep what is between them.
        kept.retain(|key, _| {
            let ends = [key.low(), key.high()].map(|end| AttachmentId(end.attachment));
            let mut all = ends.iter().filter_map(|end| holders.get(end)).flatten();
            all.all(|keys| keys.contains_key(key))
        });
        let attachments = holders.into_keys().collect();
        let view = Quarantine::new(attachments, kept).with_errands(self.quarantine.errands());
        let view = Arc::new(view);
        self.quarantine.view = Some(Arc::clone(&view));
        Some(view)
    }

    /// Takes over what was recorded before.
    pub(super) fn load_quarantines(&mut self) {
        let frozen = self.recorder.in_freeze();
        for record in self.recorder.in_quarantine() {
            let mut marks = Marks::default();
            for name in &record.workloads {
                let tenant = name.split_once('/').map_or("default", |(tenant, _)| tenant);
                marks.tenants.insert(tenant.to_owned());
                marks.names.insert(name.clone());
            }
            for address in &record.addresses {
                match address.parse::<Mac>() {
                    Ok(mac) => marks.macs.push(mac),
                    Err(_) => marks.ips.extend(address.parse::<IpAddr>()),
                }
            }
            let mut note = String::new();
            let mut keep = record.keep;
            if frozen.contains(&record.workload) {
                let n = keep.len();
                let lines: Vec<_> = keep.drain(..).map(|c| format!("{c} {ENDED}")).collect();
                note = format!(
                    "it was frozen when the daemon ended: its {n} connections are reset; its machine may still be paused"
                );
                warn!(workload = record.workload, "{note}");
                let (recorder, workload) = (&self.recorder, &record.workload);
                if let Err(why) = recorder.thawed(0, workload, (recorder.who(), false), &lines) {
                    warn!(
                        workload = record.workload,
                        "its thaw is not recorded: {why}"
                    );
                }
            }
            let kept = keep.iter().filter_map(|text| Named::parse(text));
            let held = Held {
                since_ns: record.since_ns,
                who: record.who,
                reason: record.reason,
                recorded: true,
                marks,
                kept: kept
                    .map(|named| (named, Arc::new(Carried::awaited())))
                    .collect(),
                freeze: None,
                became: BTreeMap::new(),
                note,
            };
            warn!(
                workload = record.workload,
                reason = held.reason,
                "in quarantine since an earlier run"
            );
            self.quarantine.held.insert(record.workload, held);
        }
        for workload in self.recorder.in_restart() {
            let mut outcome = LOST.to_owned();
            if let Some(held) = self.quarantine.held.get_mut(&workload) {
                outcome += "; it stays quarantined";
                if !held.note.is_empty() {
                    held.note += "; ";
                }
                held.note += &format!("what came of its restart is {LOST}");
            }
            warn!(workload, "restart: {outcome}");
            self.recorder.restart_lost(&workload, &outcome);
        }
    }

    fn record_of(&self, name: &str) -> Option<Record> {
        let held = self.quarantine.held.get(name)?;
        let macs = held.marks.macs.iter().map(ToString::to_string);
        let ips = held.marks.ips.iter().map(ToString::to_string);
        Some(Record {
            workload: name.to_owned(),
            since_ns: held.since_ns,
            who: held.who.clone(),
            reason: held.reason.clone(),
            keep: held.kept.keys().map(ToString::to_string).collect(),
            workloads: held.marks.names.iter().cloned().collect(),
            addresses: macs.chain(ips).collect(),
        })
    }

    /// Those in quarantine, by the names they were put there.
    pub(super) fn quarantined_names(&self) -> Vec<String> {
        self.quarantine.held.keys().cloned().collect()
    }

    /// What there is to say of a workload's quarantine.
    pub(super) fn quarantine_info(
        &self,
        port: &PortConfig,
        workload: &WorkloadConfig,
    ) -> Option<QuarantineInfo> {
        let (name, held) = self.quarantine.of(port, workload)?;
        let numbers = self.numbers(&self.desired);
        let mut table: Participant = self.shared.table.participant();
        let kept = held.kept.iter().map(|(named, carried)| {
            let live = numbers.flow(named).and_then(|(key, _)| table.lookup(&key));
            let state = match live {
                Some(c) if is_live(&c) => "live",
                None if carried.is_awaited() => "awaited",
                _ => "over",
            };
            let ([original_pkts, reply_pkts], [original_bytes, reply_bytes]) = carried.counts();
            let record = held.freeze.as_ref().and_then(|freeze| freeze.record(named));
            let stops = record.as_ref().is_some_and(|record| record.stops());
            let (answers, undelivered) = record.as_ref().map_or((0, 0), |r| r.counts());
            let outcome = record.as_ref().and_then(|record| record.outcome());
            let outcome = outcome.or_else(|| held.became.get(named).copied());
            let state = match record.as_ref().map(|record| record.phase()) {
                Some(Phase::Compared) => "comparing",
                Some(_) if stops => "frozen",
                _ => state,
            };
            KeptInfo {
                connection: named.to_string(),
                state: state.to_owned(),
                answers,
                undelivered,
                outcome: outcome.map(|outcome| outcome.to_string()),
                original_pkts,
                original_bytes,
                reply_pkts,
                reply_bytes,
            }
        });
        let kept = kept.collect();
        table.offline();
        Some(QuarantineInfo {
            name: name.clone(),
            since: u64::try_from(held.since_ns / 1_000_000_000).unwrap_or_default(),
            who: held.who.clone(),
            reason: held.reason.clone(),
            recorded: held.recorded,
            freeze: held.freeze_info(monotonic_ns()),
            note: held.note.clone(),
            kept,
        })
    }

    /// Why nothing passes between two, if one of them is in quarantine and the connection, if there is one, is not kept.
    pub(super) fn quarantine_between(
        &self,
        ends: [AttachmentId; 2],
        connection: Option<&FlowKey>,
    ) -> Option<String> {
        let view = self.quarantine.view.as_ref()?;
        let held = ends.into_iter().find(|end| view.holds(*end))?;
        if connection.is_some_and(|key| view.kept(key).is_some()) {
            return None;
        }
        let name = self.attachments.name(held.0);
        let mut residents = self.residents();
        let of = residents.find(|(port, w)| qualified(&port.tenant, &w.name) == name);
        let held = of.and_then(|(port, w)| self.quarantine.of(port, w));
        let why = held.map_or("", |(_, held)| &held.reason);
        Some(format!("{name} is in quarantine: {why}"))
    }
}

/// Whether a connection is established and not over: what can be kept.
pub(super) fn is_live(c: &flowtable::ConnRef<'_>) -> bool {
    let over = matches!(tcp::state(c), tcp::State::Closed | tcp::State::TimeWait);
    !(conn::is_half_open(c) || c.key().proto() == proto::TCP && over)
}

#[cfg(test)]
mod tests;
