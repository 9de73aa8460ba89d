//! Who was restarted from what is trusted finds the way back without a new question: a *grant* stands for the answer to it.
//!
//! It replaces the question, and nothing else: rules judge again before anybody is asked, walls afterwards, and what the rule
//! wants recorded is recorded. It is for the same workload, destination and service, as long as both ends and the rules are
//! what they were, as often as the workload had such connections open when its restart began, and for a while.
//! A service that was the reason for the restart gets none. So nobody gains a way in by having himself restarted.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use flowtable::{ConnRef, FlowKey, Participant};

use super::api::ReadmissionInfo;
use super::apply::Control;
use super::asks::connection;
use super::events::protocol_name;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::verdicts::Topic;
use crate::datapath::{conn, tcp};
use crate::event::AskEvent;
use crate::packet::proto;
use crate::policy::model::ServiceSpec;
use crate::policy::{Asking, Judgement, Verdict, Why};

/// How long a workload has to come back: machines boot and databases recover within. Guess.
const FOR_NS: u64 = 300_000_000_000;
/// Connections of one workload that are granted: a pool of connections to a database has some tens. Guess.
const MOST: u32 = 256;
/// How often a readmitted connection is looked at until data passes: the time that is told is as exact.
const LOOK_NS: u64 = 5_000_000;
const MS_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// What speaks against a workload that is restarted: connections for it are not readmitted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Evidence<'a> {
    /// What somebody names.
    Named(&'a [ServiceSpec]),
    /// Of a suspect, its last attempt (protocol and port), and what it tried in vain before: it may choose what it tries last.
    Tried(u8, u16),
    /// Of a suspect, all that it has opened.
    Opened,
}

/// Connections that a workload had open, or may open again.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    topic: Topic,
    /// Stands for the rules that asked.
    definition: u64,
    left: u32,
    expires_ns: u64,
    /// What both ends were: tags, addresses, images.
    were: [u64; 2],
    /// By which restart, and when that was begun.
    restart: String,
    begun_ns: u64,
}

/// A connection that was readmitted, and on which no data was seen yet.
#[derive(Clone, Debug)]
struct Returned {
    conn: FlowKey,
    /// The number of its SYN.
    syn: u32,
    by: Grant,
}

impl Returned {
    /// Whether data passes. TCP: something was acknowledged to whoever opened it, beyond its SYN and FIN.
    fn carries(&self, c: &ConnRef<'_>) -> bool {
        if self.conn.proto() != proto::TCP {
            return conn::replied(c);
        }
        let state = tcp::state(c);
        let fin = u32::from(state != tcp::State::Established);
        let acked = tcp::frozen::recorded(c, conn::Dir::Reply).acked;
        !tcp::is_half_open(state) && tcp::after(acked, self.syn.wrapping_add(1 + fin))
    }
}

/// What is granted, by topic, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Readmissions {
    grants: HashMap<FlowKey, Grant>,
    returned: Vec<Returned>,
    look_ns: u64,
}

impl Readmissions {
    /// Forgets those that nobody used, and those that came to nothing.
    fn expire(&mut self, now_ns: u64) {
        self.grants.retain(|_, grant| grant.expires_ns > now_ns);
        self.returned.retain(|r| r.by.expires_ns > now_ns);
    }

    /// Forgets those of a workload.
    pub(super) fn forget(&mut self, workload: AttachmentId) {
        self.grants.retain(|_, grant| grant.topic.from != workload);
        self.returned.retain(|r| r.by.topic.from != workload);
    }

    /// When [`Control::look_for_data`] has something to do.
    pub(super) fn next_look_ns(&self) -> Option<u64> {
        (!self.returned.is_empty()).then_some(self.look_ns)
    }
}

impl Control {
    /// What a workload has open that somebody was asked about, but for what is in `evidence`.
    pub(super) fn openings(&self, workload: AttachmentId, evidence: Evidence<'_>) -> Vec<Grant> {
        let mut found: HashMap<(FlowKey, u64), Grant> = HashMap::new();
        let mut room = MOST;
        self.each_conn(|c| {
            if room > 0
                && let Some((topic, definition)) = self.asked_for(&c, workload, evidence)
            {
                room -= 1;
                let ends = [topic.from, topic.to];
                let grant = found
                    .entry((topic.key(), definition))
                    .or_insert_with(|| Grant {
                        topic,
                        definition,
                        left: 0,
                        expires_ns: 0,
                        were: ends.map(|end| self.what_is(end)),
                        restart: String::new(),
                        begun_ns: 0,
                    });
                grant.left += 1;
            }
        });
        found.into_values().collect()
    }

    /// What a connection is about, and which rules asked, if the workload has opened it, it is established, and somebody was
    /// asked.
    fn asked_for(
        &self,
        c: &ConnRef<'_>,
        workload: AttachmentId,
        evidence: Evidence<'_>,
    ) -> Option<(Topic, u64)> {
        let key = c.key();
        let (from, to) = conn::ends(&key, c.initiator());
        let is_tcp = key.proto() == proto::TCP;
        let over = matches!(tcp::state(c), tcp::State::Closed | tcp::State::TimeWait);
        if from.attachment != workload.0 || conn::is_half_open(c) || is_tcp && over {
            return None;
        }
        let speaks = match evidence {
            Evidence::Named(specs) => {
                let service = conn::service(&key, c.initiator());
                specs.iter().any(|spec| spec.covers(service))
            }
            Evidence::Tried(protocol, port) => {
                (key.proto(), to.port) == (protocol, port)
                    || self.shared.suspects.tried(workload, key.proto(), to.port)
            }
            Evidence::Opened => true,
        };
        if speaks {
            return None;
        }
        let generation = match conn::generation(c.word()) {
            0 => self.shared.snapshots.generation(),
            generation => generation,
        };
        let judgement = Judgement {
            verdict: Verdict::Allow,
            why: Why::Rule(conn::admission(c).rule),
            ask: true,
            ..Judgement::default()
        };
        let asking = self.classifier_at(generation)?.asking(&judgement)?;
        let mut uplinks = self.desired.ports.iter().filter(|port| port.uplink);
        let other = Some(AttachmentId(to.attachment));
        let is_outside = uplinks.any(|port| self.attachments.outside_of(port) == other);
        let topic = Topic {
            tenant: key.zone(),
            from: workload,
            from_addr: None,
            to: AttachmentId(to.attachment),
            to_addr: is_outside.then_some(to.addr),
            protocol: key.proto(),
            dport: to.port,
        };
        asking.answer.then_some((topic, asking.definition))
    }

    /// Grants that the workload of a restart opens these again.
    pub(super) fn readmit(
        &mut self,
        openings: Vec<Grant>,
        (restart, begun_ns): (&str, u64),
        now_ns: u64,
    ) -> u32 {
        let mut sum = 0;
        for opening in openings {
            sum += opening.left;
            let grant = Grant {
                expires_ns: now_ns.saturating_add(FOR_NS),
                restart: restart.to_owned(),
                begun_ns,
                ..opening
            };
            let grants = &mut self.restarts.readmissions.grants;
            grants.insert(grant.topic.key(), grant);
        }
        sum
    }

    /// Why a question needs no answer: whoever wants to connect was restarted, and had this open. Uses up one connection.
    pub(super) fn readmits(
        &mut self,
        event: &AskEvent,
        asking: &Asking,
        now_ns: u64,
    ) -> Option<String> {
        self.restarts.readmissions.expire(now_ns);
        let key = Topic::of(event).key();
        let grant = self.restarts.readmissions.grants.get(&key)?;
        let are = [grant.topic.from, grant.topic.to].map(|end| self.what_is(end));
        let Readmissions {
            grants, returned, ..
        } = &mut self.restarts.readmissions;
        let grant = grants.get_mut(&key)?;
        if grant.definition != asking.definition || grant.were != are {
            grants.remove(&key);
            return None;
        }
        grant.left -= 1;
        let why = format!(
            "readmitted after restart {}, which was trusted",
            grant.restart
        );
        returned.push(Returned {
            conn: connection(event),
            syn: event.seq,
            by: grant.clone(),
        });
        if grant.left == 0 {
            grants.remove(&key);
        }
        self.recorder.by("switch");
        Some(why)
    }

    /// Looks whether data passes on what was readmitted; the first after each restart is told.
    pub(super) fn look_for_data(&mut self, now_ns: u64) {
        let next = self.restarts.readmissions.next_look_ns();
        if next.is_none_or(|at| at > now_ns) {
            return;
        }
        let mut table: Participant = self.shared.table.participant();
        let readmissions = &mut self.restarts.readmissions;
        readmissions.look_ns = now_ns.saturating_add(LOOK_NS);
        readmissions.expire(now_ns);
        let mut returned = readmissions.returned.iter();
        let carries = |r: &&Returned| table.lookup(&r.conn).is_some_and(|c| r.carries(&c));
        let found = returned.find(carries).map(|r| r.by.clone());
        table.offline();
        if let Some(by) = found {
            let of_another = |r: &Returned| r.by.restart != by.restart;
            readmissions.returned.retain(of_another);
            let data_ms = now_ns.saturating_sub(by.begun_ns) / MS_NS;
            self.restart_returned(&by.restart, data_ms);
        }
    }

    /// What `explain` says of a question that would not be asked.
    pub(super) fn readmission_note(&self, topic: &Topic, now_ns: u64) -> Option<String> {
        let grant = self.restarts.readmissions.grants.get(&topic.key())?;
        let left_s = grant.expires_ns.checked_sub(now_ns)? / SECOND_NS;
        Some(format!(
            "after restart {} it is not asked about {} more times, for {left_s} s",
            grant.restart, grant.left
        ))
    }

    /// Stands for all that a workload is declared to be; of the outside nothing is.
    fn what_is(&self, end: AttachmentId) -> u64 {
        let declared = self.resident_at(end).map(|(_, workload)| workload);
        let mut hasher = DefaultHasher::new();
        format!("{declared:?}").hash(&mut hasher);
        hasher.finish()
    }

    /// What is granted, of one workload or of all.
    pub(super) fn readmission_infos(
        &self,
        of: Option<AttachmentId>,
        now_ns: u64,
    ) -> Vec<ReadmissionInfo> {
        let grants = self.restarts.readmissions.grants.values();
        let grants = grants.filter(|g| {
            g.expires_ns > now_ns && of.is_none_or(|of| [g.topic.from, g.topic.to].contains(&of))
        });
        let info = |grant: &Grant| ReadmissionInfo {
            from: self.attachments.name(grant.topic.from.0),
            to: self.attachments.name(grant.topic.to.0),
            service: format!(
                "{}/{}",
                protocol_name(grant.topic.protocol),
                grant.topic.dport
            ),
            left: grant.left,
            expires_s: (grant.expires_ns - now_ns) / SECOND_NS,
            restart: grant.restart.clone(),
        };
        let mut infos: Vec<_> = grants.map(info).collect();
        infos.sort_by(|a, b| (&a.from, &a.to, &a.service).cmp(&(&b.from, &b.to, &b.service)));
        infos
    }
}
