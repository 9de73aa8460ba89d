//! What would happen to this five-tuple now: asked of the snapshot in force (`path` finds the way
//! and walks it as the data path does), the live policy and the connection table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::{Endpoint, FlowKey, Side};

use super::api::{ApiError, ConnInfo, EndInfo, ErrorCode, ExplainQuery, Explanation, Leg};
use super::apply::Control;
use super::path::{self, Broken, Paths, Way};
use super::state::{PortConfig, WorkloadConfig};
use super::view::{assurance, only};
use crate::datapath::snapshot::{Owner, OwnerIdx, Snapshot};
use crate::datapath::tcp::State;
use crate::datapath::verdicts::Topic;
use crate::datapath::{conn, guard, neighbour, process, tcp};
use crate::packet::{Addr, L3, Mac, proto};
use crate::policy::model::{PortRange, Record, ServiceSpec, qualified};
use crate::policy::{Classifier, Query, RuleId, Service, Verdict, Why};
use crate::sys::time::monotonic_ns;

/// Live connections shown at most; `conn list` shows all.
const MAX_LIVE: usize = 16;

/// An end of the question, as it was named.
#[derive(Clone, Copy, Debug)]
struct Named<'a> {
    text: &'a str,
    /// The address, when it was named by one.
    ip: Option<IpAddr>,
    /// The workload; `None` for an address that is no workload's.
    resident: Option<Resident<'a>>,
}

/// A workload where it is attached.
#[derive(Clone, Copy, Debug)]
struct Resident<'a> {
    port: &'a PortConfig,
    workload: &'a WorkloadConfig,
    owner: OwnerIdx,
}

/// Stand for the addresses of workloads that may use any (RFC 5737 section 3, RFC 3849): the guard
/// of their port is off and they declare none.
const ANY: [[IpAddr; 2]; 2] = [
    [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ],
    [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    ],
];

fn usage(error: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Usage, error)
}

/// A service with one destination port, as a packet has it.
fn service(text: &str, src_port: Option<u16>) -> Result<Service, ApiError> {
    let spec: ServiceSpec = text
        .parse()
        .map_err(|e| usage(format!("--service {text}: {e}")))?;
    match spec {
        ServiceSpec::Ether(ethertype) => Ok(Service::Ether(ethertype)),
        ServiceSpec::Ip {
            protocol, dport, ..
        } => {
            let icmp = match protocol {
                // An echo request is what opens an ICMP exchange (RFC 792, RFC 4443 section 4.1).
                proto::ICMP | proto::ICMPV6 => Some(conn::echo_service(protocol)),
                _ => None,
            };
            let has_ports = matches!(protocol, proto::TCP | proto::UDP | proto::SCTP);
            let dport = match icmp {
                Some(echo) if dport == PortRange::ALL => echo,
                Some(_) => dport.low,
                None if dport.low == dport.high => dport.low,
                None if !has_ports => 0,
                None => {
                    return Err(usage(format!(
                        "--service {text}: name one port, like tcp/5432"
                    )));
                }
            };
            Ok(Service::Ip {
                protocol,
                // 49152 is the first dynamic port (RFC 6335 section 6): what a client would use.
                sport: if has_ports {
                    src_port.unwrap_or(49152)
                } else {
                    0
                },
                dport,
            })
        }
    }
}

/// What is asked, and of what.
#[derive(Clone, Copy, Debug)]
struct Question<'a> {
    from: Named<'a>,
    to: Named<'a>,
    service: Service,
    src_port: Option<u16>,
    snapshot: &'a Snapshot,
    classifier: &'a Classifier,
    tick: u32,
}

/// A live connection with exactly the five-tuple asked for.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: FlowKey,
    initiator: Side,
    generation: u64,
    rule: RuleId,
}

/// What a leg, or the connection it belongs to, is told.
#[derive(Clone, Debug, Default)]
struct Ruling {
    verdict: &'static str,
    why: String,
    rule: Option<String>,
    tier: Option<String>,
    staged: Option<String>,
}

impl Control {
    pub(super) fn explain(&self, asked: &ExplainQuery, tick: u32) -> Result<Explanation, ApiError> {
        let service = service(&asked.service, asked.src_port)?;
        let Some(classifier) = self.classifier() else {
            return Err(ApiError::new(
                ErrorCode::Refused,
                "no policy is in force yet",
            ));
        };
        let snapshot = self.shared.snapshots.current();
        let (from, to) = self.ends(&snapshot, &asked.from, &asked.to)?;
        let q = Question {
            from,
            to,
            service,
            src_port: asked.src_port,
            snapshot: &snapshot,
            classifier,
            tick,
        };
        let pairs = addresses(&q);
        let way = self.way(&q, &pairs);
        let (mut live, mut notes) = (Vec::new(), Vec::new());
        let each = way.legs.iter();
        let legs: Vec<_> = each
            .filter_map(|leg| self.leg(&q, leg, &mut live, &mut notes))
            .collect();
        let decision = match legs.iter().find(|l| l.verdict != "allow") {
            Some(leg) => Ok(leg),
            None if pairs.is_empty() => Err(no_family(&q)),
            None => match (way.broken, legs.last()) {
                (None, Some(leg)) => Ok(leg),
                (broken, _) => Err(no_way(&q, broken.unwrap_or(Broken::Exit))),
            },
        };
        let info = |named: Named<'_>, leg: Option<&EndInfo>| match (named.resident, leg) {
            (Some(r), _) => Ok(self.resident_info(r, named.ip)),
            (None, Some(leg)) => Ok(leg.clone()),
            (None, None) => self.nowhere(named),
        };
        let from = info(from, legs.first().map(|l| &l.from))?;
        let to = info(to, legs.last().map(|l| &l.to))?;
        let leg = decision.as_ref().ok();
        Ok(Explanation {
            verdict: leg.map_or("deny", |l| &l.verdict).to_owned(),
            rule: leg.and_then(|l| l.rule.clone()),
            tier: leg.and_then(|l| l.tier.clone()),
            staged: leg.and_then(|l| l.staged.clone()),
            why: decision.map_or_else(|why| why, |l| l.why.clone()),
            generation: self.shared.snapshots.generation(),
            output_port: to.port.clone(),
            output_up: self.is_up(&to.port),
            from,
            to,
            legs,
            live,
            notes,
        })
    }

    /// The way by the first pair of addresses that gets from end to end; by the first pair when
    /// none does.
    fn way(&self, q: &Question<'_>, pairs: &[(Addr, Addr)]) -> Way {
        let paths = Paths {
            snapshot: q.snapshot,
            learned: &self.shared.learned,
            tick: q.tick,
        };
        let end = |named: Named<'_>, addr| path::End {
            owner: named.resident.map(|r| r.owner),
            addr,
        };
        let mut ways = pairs
            .iter()
            .map(|(src, dst)| paths.find(end(q.from, *src), end(q.to, *dst), q.service));
        let Some(first) = ways.next() else {
            return Way::default();
        };
        if first.is_open() {
            return first;
        }
        ways.find(Way::is_open).unwrap_or(first)
    }

    /// What becomes of a frame on one leg.
    fn leg(
        &self,
        q: &Question<'_>,
        leg: &path::Leg,
        live: &mut Vec<ConnInfo>,
        notes: &mut Vec<String>,
    ) -> Option<Leg> {
        let (from, to) = (q.snapshot.owner(leg.from)?, q.snapshot.owner(leg.to)?);
        let entry = self.live(q, leg, (from, to), live);
        let p = &leg.packet;
        let parted = self.quarantine_between(
            [from.attachment, to.attachment],
            entry.as_ref().map(|e| &e.key),
        );
        let ruling = match (leg.dropped, entry) {
            (Some(reason), _) => Ruling {
                verdict: "deny",
                why: format!("dropped as {}: {}", reason.name(), reason.sentence()),
                ..Ruling::default()
            },
            _ if p.l3 != L3::Other && neighbour::is_discovery(p) => Ruling {
                verdict: "deny",
                why: "the switch answers neighbour discovery itself and forwards none of it".into(),
                ..Ruling::default()
            },
            _ if parted.is_some() => Ruling {
                verdict: "deny",
                why: parted.unwrap_or_default(),
                ..Ruling::default()
            },
            (None, Some(entry)) => self.standing(q, entry, (from, to), notes),
            (None, None) => {
                let query = Query {
                    from: q.snapshot.party(q.classifier, from, &p.src),
                    to: q.snapshot.party(q.classifier, to, &p.dst),
                    service: process::service(p),
                };
                let mut ruling = judge(q.classifier, &query, notes);
                let is_built_in = ruling.tier.is_none()
                    || ruling
                        .rule
                        .as_deref()
                        .is_some_and(|rule| rule.starts_with("infrastructure/"));
                if ruling.verdict == "allow" && !is_built_in && self.shared.suspects.asks(from) {
                    ruling.verdict = "ask";
                    notes.push(format!(
                        "somebody is asked first, because {} is under suspicion; `vswitch response list` says until when",
                        from.name
                    ));
                }
                if ruling.verdict == "ask" {
                    let topic = Topic::new((from, p.src), (to, p.dst), p.protocol, p.dport);
                    notes.extend(self.readmission_note(&topic, monotonic_ns()));
                }
                let wall = (ruling.verdict == "allow" || ruling.verdict == "ask")
                    .then(|| self.wall_between((from, to), p.dst, query.service));
                match wall.flatten() {
                    Some(why) => Ruling {
                        verdict: "deny",
                        why,
                        ..ruling
                    },
                    None => ruling,
                }
            }
        };
        let ends = [(leg.from, from, p.src, q.from), (leg.to, to, p.dst, q.to)];
        let [a, b] = ends.map(|(idx, owner, addr, named)| {
            if !owner.outside && named.resident.is_none_or(|r| r.owner != idx) {
                notes.push(format!(
                    "{} is reached through {}, a router: what it carries is judged as its own",
                    addr.to_ip(),
                    owner.name
                ));
            }
            self.owner_info(q.snapshot, owner, addr)
        });
        let (a, b) = (a?, b?);
        for other in leg.others.iter().filter_map(|i| q.snapshot.owner(*i)) {
            notes.push(format!(
                "{} (port {}) could carry it as well: the routing table of whoever sends it there decides",
                other.name,
                port_name(q.snapshot, other)
            ));
        }
        let output_up = self.is_up(&b.port);
        if !output_up {
            notes.push(format!(
                "port {} has no peer: a frame would be dropped as tx_not_ready",
                b.port
            ));
        }
        Some(Leg {
            verdict: ruling.verdict.to_owned(),
            why: ruling.why,
            rule: ruling.rule,
            tier: ruling.tier,
            staged: ruling.staged,
            dropped: leg.dropped.map(|r| r.name().to_owned()),
            from: a,
            to: b,
            output_up,
        })
    }

    /// What becomes of the next packet of a connection there is: as the data path, it is judged
    /// again in its original direction when something changed since.
    fn standing(
        &self,
        q: &Question<'_>,
        entry: Entry,
        (from, to): (&Owner, &Owner),
        notes: &mut Vec<String>,
    ) -> Ruling {
        let (a, b) = conn::ends(&entry.key, entry.initiator);
        let reply = a.attachment != from.attachment.0;
        if reply {
            notes.push("it is an answer, to a connection the other end opened".to_owned());
        }
        if self.quarantine.kept(&entry.key).is_some() {
            notes.push("it is kept although one of its ends is in quarantine".to_owned());
        }
        let dir = if reply {
            conn::Dir::Reply
        } else {
            conn::Dir::Original
        };
        let kept = self.quarantine.kept(&entry.key);
        if kept
            .and_then(|kept| kept.frozen(dir))
            .is_some_and(|record| record.stops())
        {
            return Ruling {
                verdict: "deny",
                why: format!(
                    "{} is frozen: it does not get it, and its peer is answered in its stead",
                    to.name
                ),
                ..Ruling::default()
            };
        }
        let way = if reply { "an answer on" } else { "part of" };
        if entry.generation == self.shared.snapshots.generation() {
            let rule = q.classifier.rules().find(|r| r.id == entry.rule);
            let name = rule.as_ref().map_or("unknown", |r| r.name);
            return Ruling {
                verdict: "allow",
                why: format!("{way} a live connection, which rule {name} admitted"),
                rule: rule.as_ref().map(|r| r.name.to_owned()),
                tier: rule.as_ref().map(|r| r.tier.name().to_owned()),
                staged: None,
            };
        }
        let (opener, other) = if reply { (to, from) } else { (from, to) };
        let query = Query {
            from: q.snapshot.party(q.classifier, opener, &a.addr),
            to: q.snapshot.party(q.classifier, other, &b.addr),
            service: conn::service(&entry.key, entry.initiator),
        };
        let mut ruling = judge(q.classifier, &query, notes);
        if ruling.verdict == "ask" && self.quarantine.answers(&entry.key) {
            ruling.verdict = "allow";
        }
        Ruling {
            why: format!("{way} a live connection, judged again: {}", ruling.why),
            ..ruling
        }
    }

    /// Adds the live connections on this leg that the question means. With the initiator's port it
    /// means one connection, by a packet from either end: that one is returned.
    fn live(
        &self,
        q: &Question<'_>,
        leg: &path::Leg,
        (from, to): (&Owner, &Owner),
        live: &mut Vec<ConnInfo>,
    ) -> Option<Entry> {
        let Service::Ip {
            protocol, dport, ..
        } = q.service
        else {
            return None;
        };
        let icmp = matches!(protocol, proto::ICMP | proto::ICMPV6);
        // Of several uplinks a station may be behind any.
        let at = |owner: &Owner, end: &Endpoint| {
            let mut all = leg.others.iter().filter_map(|i| q.snapshot.owner(*i));
            owner.attachment.0 == end.attachment || all.any(|o| o.attachment.0 == end.attachment)
        };
        let named =
            |named: Named<'_>, end: &Endpoint| named.ip.is_none_or(|ip| Addr::from(ip) == end.addr);
        let mut found = None;
        self.each_conn(|c| {
            let key = c.key();
            let (a, b) = conn::ends(&key, c.initiator());
            let original = at(from, &a)
                && at(to, &b)
                && named(q.from, &a)
                && named(q.to, &b)
                && (icmp || b.port == dport)
                && q.src_port.is_none_or(|p| p == a.port);
            let reply = !icmp
                && at(to, &a)
                && at(from, &b)
                && named(q.to, &a)
                && named(q.from, &b)
                && a.port == dport
                && q.src_port == Some(b.port);
            if key.proto() != protocol || !(original || reply) {
                return;
            }
            if live.len() < MAX_LIVE {
                live.push(self.conn_info(&c, q.tick));
            }
            // A SYN on one that is over opens another.
            let over =
                protocol == proto::TCP && matches!(tcp::state(&c), State::TimeWait | State::Closed);
            if q.src_port.is_some() && !over {
                found = Some(Entry {
                    key,
                    initiator: c.initiator(),
                    generation: conn::generation(c.word()),
                    rule: conn::admission(&c).rule,
                });
            }
        });
        found
    }

    /// Both ends as they were named. An address that workloads of several domains have is that
    /// workload's which is in the other end's domain.
    fn ends<'a>(
        &'a self,
        snapshot: &Snapshot,
        from: &'a str,
        to: &'a str,
    ) -> Result<(Named<'a>, Named<'a>), ApiError> {
        let [mut a, mut b] = [
            self.residents_called(snapshot, from)?,
            self.residents_called(snapshot, to)?,
        ];
        let domain = |r: &Resident<'_>| snapshot.owner(r.owner).map(|o| o.domain);
        if let [one] = a[..] {
            narrow(&mut b, |r| domain(r) == domain(&one));
        } else if let [one] = b[..] {
            narrow(&mut a, |r| domain(r) == domain(&one));
        }
        Ok((named(from, &a)?, named(to, &b)?))
    }

    /// The workloads a text can mean: one by its name, or all that have the address.
    fn residents_called<'a>(
        &'a self,
        snapshot: &Snapshot,
        text: &str,
    ) -> Result<Vec<Resident<'a>>, ApiError> {
        let called = match text.parse::<IpAddr>() {
            Ok(ip) => {
                let own = |mac: &Mac| guard::eui64_link_local(*mac) == Addr::from(ip);
                let has = |w: &WorkloadConfig| w.ip.contains(&ip) || w.mac.iter().any(own);
                self.residents().filter(|(_, w)| has(w)).collect()
            }
            Err(_) => vec![self.resident(text)?],
        };
        let attached = |(port, workload): (&'a PortConfig, &'a WorkloadConfig)| {
            let attachment = self.attachments.of(port, workload)?;
            let mut owners = (0..).map(OwnerIdx).zip(snapshot.owners());
            let (owner, _) = owners.find(|(_, o)| o.attachment == attachment)?;
            Some(Resident {
                port,
                workload,
                owner,
            })
        };
        Ok(called.into_iter().filter_map(attached).collect())
    }

    fn resident_info(&self, r: Resident<'_>, ip: Option<IpAddr>) -> EndInfo {
        let all = || r.workload.ip.iter().map(ToString::to_string).collect();
        EndInfo {
            name: r.workload.name.clone(),
            tenant: r.port.tenant.clone(),
            port: r.port.name.clone(),
            ip: ip.map_or_else(all, |ip| vec![ip.to_string()]),
            segments: self.segments_of(r.port, r.workload),
            assurance: assurance(r.port, r.workload).to_owned(),
        }
    }

    /// Whoever is judged for what has this address on a leg.
    fn owner_info(&self, snapshot: &Snapshot, owner: &Owner, addr: Addr) -> Option<EndInfo> {
        let name = port_name(snapshot, owner);
        let port = self.desired.ports.iter().find(|p| p.name == name)?;
        if owner.outside {
            return Some(self.outside_info(port, addr.to_ip()));
        }
        let mut workloads = port.workloads.iter();
        let workload = workloads.find(|w| w.name == owner.name)?;
        // A frame without addresses, or one of many a workload may use.
        let ip = addr.to_ip();
        let shown = addr != Addr::default() && !ANY.as_flattened().contains(&ip);
        Some(EndInfo {
            name: workload.name.clone(),
            tenant: port.tenant.clone(),
            port: port.name.clone(),
            ip: shown.then(|| ip.to_string()).into_iter().collect(),
            segments: self.segments_of(port, workload),
            assurance: assurance(port, workload).to_owned(),
        })
    }

    fn outside_info(&self, port: &PortConfig, ip: IpAddr) -> EndInfo {
        let segments = self.desired.policy.segments.iter();
        let holding =
            segments.filter(|s| s.tenant == port.tenant && s.cidr.iter().any(|c| c.contains(ip)));
        EndInfo {
            name: "outside".to_owned(),
            tenant: port.tenant.clone(),
            port: port.name.clone(),
            ip: vec![ip.to_string()],
            segments: holding.map(|s| s.name.clone()).collect(),
            assurance: "none".to_owned(),
        }
    }

    /// An address that is no workload's and has no way to the other end: where it could be.
    fn nowhere(&self, named: Named<'_>) -> Result<EndInfo, ApiError> {
        let carries = |p: &&PortConfig| {
            let routes = |ip| p.routes.iter().any(|r| r.contains(ip));
            p.uplink || named.ip.is_some_and(routes)
        };
        let ip = named.ip.zip(self.desired.ports.iter().find(carries));
        let info = ip.map(|(ip, port)| self.outside_info(port, ip));
        info.ok_or_else(|| {
            usage(format!(
                "{} is no workload's address, and no port has `uplink = true` or a route to it",
                named.text
            ))
        })
    }
}

fn named<'a>(text: &'a str, found: &[Resident<'a>]) -> Result<Named<'a>, ApiError> {
    let ip = text.parse().ok();
    let resident = match found {
        [] if ip.is_some() => None,
        found => Some(only(text, found, |r| {
            qualified(&r.port.tenant, &r.workload.name)
        })?),
    };
    Ok(Named { text, ip, resident })
}

fn port_name<'a>(snapshot: &'a Snapshot, owner: &Owner) -> &'a str {
    let port = snapshot.port(owner.port);
    port.map_or("-", |p| p.port.name.as_str())
}

/// Of several, those that `keep` says, when there are any.
fn narrow<T>(list: &mut Vec<T>, keep: impl Fn(&T) -> bool) {
    if list.iter().any(&keep) {
        list.retain(keep);
    }
}

/// What policy says to a question.
fn judge(classifier: &Classifier, query: &Query, notes: &mut Vec<String>) -> Ruling {
    let j = classifier.classify(query);
    let rule = match j.why {
        Why::Rule(id) => classifier.rules().find(|r| r.id == id),
        Why::DefaultDeny => None,
    };
    let why = match &rule {
        Some(r) => format!(
            "rule {} (tier {}) says {}",
            r.name,
            r.tier.name(),
            r.action.name()
        ),
        None => "no rule allows it: the end of the last tier denies".to_owned(),
    };
    let asking = classifier.asking(&j);
    if asking.is_some_and(|a| a.answer) {
        notes.push("somebody is asked first; `vswitch ask list` shows what waits".into());
    }
    if asking.is_some_and(|a| a.record != Record::No) {
        notes
            .push("it must be recorded first: while the ledger takes nothing, it is denied".into());
    }
    if j.verdict == Verdict::Decoy {
        notes.push(
            "nobody gets it: the switch answers TCP in its stead, and whoever goes on is suspected"
                .into(),
        );
    }
    if j.limited {
        notes.push("the rule has a limit, which may be exhausted at the moment".into());
    }
    Ruling {
        verdict: match j.verdict {
            Verdict::Allow if asking.is_some_and(|a| a.answer) => "ask",
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Reject => "reject",
            Verdict::Decoy => "decoy",
        },
        why,
        rule: rule.as_ref().map(|r| r.name.to_owned()),
        tier: rule.as_ref().map(|r| r.tier.name().to_owned()),
        staged: j.staged.map(|id| classifier.rule_name(id).to_owned()),
    }
}

/// Sorts of addresses that can talk to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
    LinkLocal,
}

fn family(ip: &IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) if guard::is_link_local_v6(&Addr::from(*ip)) => Family::LinkLocal,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The pairs of addresses the ends may use for this service, the likeliest first. Which of its own
/// addresses a workload uses makes no difference to policy, so one of each family will do.
fn addresses(q: &Question<'_>) -> Vec<(Addr, Addr)> {
    let protocol = match q.service {
        Service::Ip { protocol, .. } => protocol,
        Service::Ether(_) => return vec![(Addr::default(), Addr::default())],
    };
    let [any_from, any_to] = ANY;
    let (from, to) = (q.from.addresses(any_from), q.to.addresses(any_to));
    [Family::V4, Family::V6, Family::LinkLocal]
        .into_iter()
        .filter(|f| match protocol {
            proto::ICMP => *f == Family::V4,
            proto::ICMPV6 => *f != Family::V4,
            _ => true,
        })
        .filter_map(|f| {
            let of = |list: &[IpAddr]| list.iter().find(|ip| family(ip) == f).copied();
            Some((Addr::from(of(&from)?), Addr::from(of(&to)?)))
        })
        .collect()
}

impl Named<'_> {
    fn addresses(&self, any: [IpAddr; 2]) -> Vec<IpAddr> {
        if let Some(ip) = self.ip {
            return vec![ip];
        }
        let Some(r) = self.resident else {
            return Vec::new();
        };
        let mut all = r.workload.ip.clone();
        if all.is_empty() && !r.port.guard {
            all.extend(any);
        }
        let mac = r.workload.mac.first();
        all.extend(mac.map(|m| guard::eui64_link_local(*m).to_ip()));
        all
    }
}

fn no_family(q: &Question<'_>) -> String {
    format!(
        "no frame can take this way: {} and {} have no address family in common for this service",
        q.from.text, q.to.text
    )
}

fn no_way(q: &Question<'_>, broken: Broken) -> String {
    let (near, far) = match broken {
        Broken::Exit => (q.from, q.to),
        Broken::Entry => (q.to, q.from),
    };
    let place = match near.resident {
        Some(_) => format!("{}'s L2 domain", near.text),
        None => format!("an L2 domain that {} is reached from", near.text),
    };
    format!(
        "no frame can get there: in {place} no port has a route to {} or `uplink = true`",
        far.text
    )
}
