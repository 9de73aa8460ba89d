//! Answers to the questions that change nothing.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::Ordering;

use flowtable::{ConnRef, Participant};

use super::api::{
    ApiError, ConnInfo, ConnList, Conservation, DropInfo, PolicyView, PortInfo, PortStats,
    RuleInfo, SegmentInfo, Stats, Status, WorkerInfo, WorkloadInfo,
};
use super::apply::{ApplyError, Control};
use super::events::protocol_name;
use super::ports::Totals;
use super::state::{PortConfig, PortKind, WorkloadConfig};
use super::validate::facts;
use crate::counters::WorkerValues;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::{conn, tcp};
use crate::drop_reason::DropReason;
use crate::packet::proto;
use crate::policy::model::{DEFAULT_TENANT, qualified};
use crate::port::PortId;
use crate::sys::time::monotonic_ns;

/// Most connections one answer holds: 100,000 of them are about 30 MB of JSON.
const MAX_CONNS: usize = 100_000;

/// The one of `found`, which are all that `text` can mean.
pub(super) fn only<T: Copy>(
    text: &str,
    found: &[T],
    name: impl Fn(&T) -> String,
) -> Result<T, ApplyError> {
    match found {
        [] => Err(ApplyError::NoSuchWorkload(text.to_owned())),
        [one] => Ok(*one),
        [one, other, ..] => Err(ApplyError::WhichWorkload {
            text: text.to_owned(),
            one: name(one),
            other: name(other),
        }),
    }
}

/// How sure the switch can be of who a workload is (DESIGN 1).
pub(super) fn assurance(port: &PortConfig, workload: &WorkloadConfig) -> &'static str {
    match port.kind {
        // One of several behind one vhost-user port, told apart by what the VM's kernel says.
        PortKind::VhostUser { .. } if workload.vlan.is_some() || port.workloads.len() > 1 => {
            "nested"
        }
        PortKind::VhostUser { .. } => "vm",
        PortKind::AfXdp { .. } | PortKind::Tap { .. } => "shared-kernel",
        PortKind::Pcap { .. } | PortKind::Mem => "none",
    }
}

fn counters(values: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    values.map(|(name, n)| (name.to_owned(), n)).collect()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn kind(config: &PortConfig) -> (&'static str, String) {
    match &config.kind {
        PortKind::VhostUser { socket, .. } => ("vhost-user", path(socket)),
        PortKind::AfXdp { interface } => ("af-xdp", interface.clone()),
        PortKind::Tap { interface, .. } => ("tap", interface.clone()),
        PortKind::Pcap { input, output } => {
            let files: Vec<_> = input.iter().chain(output).map(|p| path(p)).collect();
            ("pcap", files.join(" "))
        }
        PortKind::Mem => ("mem", String::new()),
    }
}

impl Control {
    pub(super) fn status(&self, now_ns: u64) -> Status {
        let generation = self.shared.snapshots.generation();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: now_ns.saturating_sub(self.started_ns) / 1_000_000_000,
            generation,
            settled: self.shared.snapshots.settled(generation),
            workers: self.worker_infos(),
            ports: self.ports.len(),
            ports_up: self.ports.iter().filter(|p| p.port.is_up()).count(),
            workloads: self.ports.iter().map(|p| p.config.workloads.len()).sum(),
            rules: self.desired.policy.rules.len(),
            connections: self.shared.table.len(),
            connections_max: self.shared.table.capacity(),
            policy_source: self.policy_source.clone(),
            confirm_s: self.confirm_s(now_ns),
            events_lost: self.events_lost(),
            refused: self.refused.clone(),
            quarantined: self.quarantined_names(),
            frozen: self.quarantine.frozen_names(),
            manager: self.deciding.info(),
            suspects: self.suspicions.open(),
        }
    }

    fn worker_infos(&self) -> Vec<WorkerInfo> {
        let cores = &self.desired.switch.workers;
        let each = self.shared.counters.iter().enumerate();
        each.map(|(index, c)| {
            let mut values = WorkerValues::default();
            values.add(&c.worker);
            WorkerInfo {
                index,
                core: cores.get(index).copied(),
                counters: counters(values.iter()),
            }
        })
        .collect()
    }

    pub(super) fn port_infos(&self) -> Vec<PortInfo> {
        let runtime = |name: &str| self.overlay.ports.iter().any(|p| p.name == name);
        let each = self.ports.iter();
        each.map(|p| {
            let totals = p.totals(&self.shared.counters);
            let (kind, at) = kind(&p.config);
            PortInfo {
                name: p.config.name.clone(),
                kind: kind.to_owned(),
                at,
                up: p.port.is_up(),
                missing: p.orphaned,
                trouble: p.trouble(),
                xdp: p.xdp(),
                tenant: p.config.tenant.clone(),
                vlan: p.config.vlan,
                trunk: p.config.trunk.clone(),
                uplink: p.config.uplink,
                guard: p.config.guard,
                workloads: p.config.workloads.iter().map(|w| w.name.clone()).collect(),
                runtime: runtime(&p.config.name),
                connections: self.connections_of(p.port.id),
                counters: counters(totals.pkts.iter()),
                dropped: totals.dropped(),
                refused_connections: p.refused_connections(),
            }
        })
        .collect()
    }

    /// Connections open from a port.
    fn connections_of(&self, id: PortId) -> u64 {
        let snapshot = self.shared.snapshots.current();
        let view = snapshot.port(id);
        view.map_or(0, |p| self.shared.quotas.of_port(&p.quota))
    }

    /// Every workload with its port.
    pub(super) fn residents(&self) -> impl Iterator<Item = (&PortConfig, &WorkloadConfig)> {
        self.desired
            .ports
            .iter()
            .flat_map(|p| p.workloads.iter().map(move |w| (p, w)))
    }

    /// The one that is attached as this, if it is declared still; the outside never is.
    pub(super) fn resident_at(&self, id: AttachmentId) -> Option<(&PortConfig, &WorkloadConfig)> {
        let mut residents = self.residents();
        residents.find(|(port, workload)| self.attachments.of(port, workload) == Some(id))
    }

    /// The workload that NAME or TENANT/NAME means. One of the default tenant needs no tenant said,
    /// any other only when several have the name.
    pub(super) fn resident(
        &self,
        text: &str,
    ) -> Result<(&PortConfig, &WorkloadConfig), ApplyError> {
        let (tenant, name) = text.split_once('/').unwrap_or((DEFAULT_TENANT, text));
        let mut residents = self.residents();
        if let Some(exactly) = residents.find(|(p, w)| p.tenant == tenant && w.name == name) {
            return Ok(exactly);
        }
        let of_others: Vec<_> = self.residents().filter(|(_, w)| w.name == text).collect();
        only(text, &of_others, |(p, w)| qualified(&p.tenant, &w.name))
    }

    /// Names of the segments a workload is in.
    pub(super) fn segments_of(&self, port: &PortConfig, workload: &WorkloadConfig) -> Vec<String> {
        let policy = &self.desired.policy;
        let facts = facts(policy.tenant_id(&port.tenant).unwrap_or_default(), workload);
        policy.segments_of(&facts).map(|s| s.name.clone()).collect()
    }

    pub(super) fn is_up(&self, port: &str) -> bool {
        self.ports
            .iter()
            .any(|p| p.config.name == port && p.port.is_up())
    }

    pub(super) fn workload_infos(&self) -> Vec<WorkloadInfo> {
        self.residents()
            .map(|(p, w)| WorkloadInfo {
                name: w.name.clone(),
                tenant: p.tenant.clone(),
                port: p.name.clone(),
                up: self.is_up(&p.name),
                mac: w.mac.iter().map(ToString::to_string).collect(),
                ip: w.ip.iter().map(ToString::to_string).collect(),
                tags: w.tags.clone(),
                vlan: w.vlan,
                segments: self.segments_of(p, w),
                assurance: assurance(p, w).to_owned(),
                quarantine: self.quarantine_info(p, w),
            })
            .collect()
    }

    pub(super) fn segment_infos(&self) -> Vec<SegmentInfo> {
        let members: Vec<_> = self
            .residents()
            .map(|(p, w)| (p.tenant.as_str(), w.name.as_str(), self.segments_of(p, w)))
            .collect();
        let each = self.desired.policy.segments.iter();
        each.map(|s| SegmentInfo {
            name: s.name.clone(),
            tenant: s.tenant.clone(),
            tags: s.tags.clone(),
            names: s.names.clone(),
            cidr: s.cidr.iter().map(ToString::to_string).collect(),
            members: members
                .iter()
                .filter(|(tenant, _, segments)| *tenant == s.tenant && segments.contains(&s.name))
                .map(|(_, name, _)| (*name).to_owned())
                .collect(),
        })
        .collect()
    }

    pub(super) fn policy_view(&self, now_ns: u64) -> PolicyView {
        let written = &self.desired.policy.rules;
        let text = |list: &[String]| list.to_vec();
        let rule = |r: crate::policy::RuleView<'_>| {
            let source = r.written.and_then(|n| written.get(n));
            let refs = |of: fn(&crate::policy::model::Rule) -> Vec<String>| {
                source.map(of).unwrap_or_default()
            };
            RuleInfo {
                name: r.name.to_owned(),
                tier: r.tier.name().to_owned(),
                action: r.action.name().to_owned(),
                staged: r.staged,
                built_in: r.written.is_none(),
                from: text(&refs(|r| r.from.iter().map(ToString::to_string).collect())),
                to: text(&refs(|r| r.to.iter().map(ToString::to_string).collect())),
                service: text(&refs(|r| {
                    r.service.iter().map(ToString::to_string).collect()
                })),
                hits: if r.staged { r.staged_hits } else { r.hits },
            }
        };
        PolicyView {
            generation: self.shared.snapshots.generation(),
            source: self.policy_source.clone(),
            confirm_s: self.confirm_s(now_ns),
            // Plain values with string keys: serialising them cannot fail.
            policy: serde_json::to_value(&self.desired.policy).unwrap_or_default(),
            rules: self
                .classifier()
                .map(|c| c.rules().map(rule).collect())
                .unwrap_or_default(),
        }
    }

    /// The qualified name of the workload that `text` means.
    pub(super) fn resolve(&self, text: &str) -> Result<String, ApplyError> {
        let (port, workload) = self.resident(text)?;
        Ok(qualified(&port.tenant, &workload.name))
    }

    pub(super) fn conns(
        &self,
        workload: Option<&str>,
        limit: usize,
        tick: u32,
    ) -> Result<ConnList, ApiError> {
        let workload = workload.map(|text| self.resident(text)).transpose()?;
        let workload = workload.map(|(p, w)| self.attachments.of(p, w));
        let limit = limit.min(MAX_CONNS);
        let mut list = ConnList {
            total: 0,
            truncated: false,
            connections: Vec::new(),
            readmissions: self.readmission_infos(workload.flatten(), monotonic_ns()),
        };
        self.each_conn(|c| {
            let (from, to) = conn::ends(&c.key(), c.initiator());
            let ends = [from.attachment, to.attachment].map(|n| Some(AttachmentId(n)));
            if workload.is_some_and(|w| !ends.contains(&w)) {
                return;
            }
            list.total += 1;
            if list.connections.len() < limit {
                list.connections.push(self.conn_info(&c, tick));
            } else {
                list.truncated = true;
            }
        });
        Ok(list)
    }

    /// Visits every live connection.
    pub(super) fn each_conn(&self, see: impl FnMut(ConnRef<'_>)) {
        let mut table: Participant = self.shared.table.participant();
        table.for_each(see);
        // Workers' memory must not wait for us until the next question.
        table.offline();
    }

    /// Visits those that one of these has an end of. Whoever asks pays for all others with a look at their keys.
    pub(super) fn each_conn_of(
        &self,
        ends: &HashSet<AttachmentId>,
        mut see: impl FnMut(ConnRef<'_>),
    ) {
        // Few, mostly one: nothing is hashed for each of a million connections.
        let mut ends: Vec<_> = ends.iter().map(|end| end.0).collect();
        ends.sort_unstable();
        self.each_conn(|c| {
            let key = c.key();
            let mut both = [key.low(), key.high()].into_iter();
            if both.any(|end| ends.binary_search(&end.attachment).is_ok()) {
                see(c);
            }
        });
    }

    /// A connection in words.
    pub(super) fn conn_info(&self, c: &ConnRef<'_>, tick: u32) -> ConnInfo {
        let key = c.key();
        let (from, to) = conn::ends(&key, c.initiator());
        let present = self.shared.snapshots.generation();
        let kept = self.quarantine.kept(&key);
        let judged = kept.and_then(|kept| kept.carried.judged());
        let generation = match (judged, conn::generation(c.word())) {
            (Some(judged), _) => judged,
            // One on probation is judged by whatever is in force.
            (None, 0) => present,
            (None, generation) => generation,
        };
        let rule = conn::admission(c).rule;
        let (original_bytes, reply_bytes) = conn::bytes(c);
        let state = match key.proto() {
            proto::TCP => tcp::state(c).to_string(),
            _ if conn::replied(c) => "replied".to_owned(),
            _ => "unreplied".to_owned(),
        };
        ConnInfo {
            protocol: protocol_name(key.proto()),
            src: from.addr.to_string(),
            sport: from.port,
            dst: to.addr.to_string(),
            dport: to.port,
            from: self.attachments.name(from.attachment),
            to: self.attachments.name(to.attachment),
            state,
            rule: self
                .classifier_at(generation)
                .map_or("unknown", |p| p.rule_name(rule))
                .to_owned(),
            generation,
            current: generation == present,
            idle_s: tick.saturating_sub(c.last_seen()),
            original_bytes,
            reply_bytes,
            kept: kept.is_some(),
            frozen: kept.is_some_and(|kept| kept.is_frozen()),
        }
    }

    pub(super) fn profile(&self, on: bool) {
        self.shared.profile.store(on, Ordering::Relaxed);
    }

    pub(super) fn drops(&self) -> Vec<DropInfo> {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|p| (&p.config.name, p.totals(&self.shared.counters)))
            .collect();
        DropReason::ALL
            .iter()
            .map(|reason| {
                let count = |t: &Totals| t.drops.get(*reason as usize).copied().unwrap_or(0);
                DropInfo {
                    reason: reason.name().to_owned(),
                    sentence: reason.sentence().to_owned(),
                    total: ports.iter().map(|(_, t)| count(t)).sum(),
                    ports: ports
                        .iter()
                        .filter(|(_, t)| count(t) != 0)
                        .map(|(name, t)| ((*name).clone(), count(t)))
                        .collect(),
                }
            })
            .collect()
    }

    pub(super) fn stats(&self) -> Stats {
        let ports = self.ports.iter().map(|p| {
            let totals = p.totals(&self.shared.counters);
            let drops = totals.reasons().map(|(r, n)| (r.name().to_owned(), n));
            let stats = PortStats {
                counters: counters(totals.pkts.iter()),
                drops: drops.collect(),
            };
            (p.config.name.clone(), stats)
        });
        Stats {
            ports: ports.collect(),
            workers: self.worker_infos(),
            conservation: self.conservation(),
        }
    }

    /// Over every port number there ever was: a frame may have come from a port that is gone.
    fn conservation(&self) -> Conservation {
        let mut sum = Conservation::default();
        for id in (0..self.shared.max_ports).filter_map(|n| u16::try_from(n).ok()) {
            let t = Totals::read(&self.shared.counters, PortId(id));
            sum.rx += t.pkts.rx_pkts;
            sum.originated += t.pkts.originated_pkts;
            sum.copies += t.pkts.copies_pkts;
            sum.extra_segments += t.pkts.extra_segments_pkts;
            sum.tx += t.pkts.tx_pkts;
            sum.consumed += t.pkts.consumed_pkts;
            sum.held += t.pkts.held_pkts.wrapping_sub(t.pkts.unheld_pkts);
            sum.dropped += t.dropped();
        }
        let left = sum.rx + sum.originated + sum.copies + sum.extra_segments;
        let right = sum.tx + sum.dropped + sum.consumed + sum.held;
        sum.difference = left.wrapping_sub(right).cast_signed();
        sum
    }
}
