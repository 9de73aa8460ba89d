//! Connections by the names of their ends, which outlive ports, policies and the switch; and what `--keep` says of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use flowtable::{ConnRef, Endpoint, FlowKey, Side};

use super::{KEPT_MAX, is_live, usage};
use crate::control::api::{ApiError, ErrorCode};
use crate::control::apply::Control;
use crate::control::events::protocol_name;
use crate::control::state::Desired;
use crate::datapath::conn;
use crate::datapath::quarantine::Carried;
use crate::datapath::snapshot::AttachmentId;
use crate::packet::{Addr, proto};
use crate::policy::model::{ServiceSpec, qualified};

/// A connection by the names of its ends, as `conn list` shows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::control) struct Named {
    protocol: u8,
    pub(super) ends: [NamedEnd; 2],
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NamedEnd {
    /// Absent only in what a caller says.
    pub(super) who: Option<String>,
    pub(super) addr: IpAddr,
    port: u16,
}

impl fmt::Display for NamedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(who) = &self.who {
            write!(f, "{who} ")?;
        }
        write!(f, "{}:{}", self.addr, self.port)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, to] = &self.ends;
        write!(f, "{} {from} > {to}", protocol_name(self.protocol))
    }
}

impl Named {
    /// `tcp web-1 10.0.0.1:40000 > db-1 10.0.0.2:5432`; names and `>` may be left out, and what follows is not looked at, so
    /// that a line of `conn list` will do.
    pub(super) fn parse(text: &str) -> Option<Named> {
        let mut words = text.split_whitespace().filter(|word| *word != ">");
        let protocol = words.next()?;
        // Those that there are many of first.
        let mut all = [proto::TCP, proto::UDP].into_iter().chain(0..=u8::MAX);
        let protocol = all.find(|n| protocol_name(*n) == protocol)?;
        let mut end = || {
            let address = |word: &str| {
                let (addr, port) = word.rsplit_once(':')?;
                Some((addr.parse().ok()?, port.parse().ok()?))
            };
            let first = words.next()?;
            let (who, (addr, port)) = match address(first) {
                Some(found) => (None, found),
                None => (Some(first.to_owned()), address(words.next()?)?),
            };
            Some(NamedEnd { who, addr, port })
        };
        let ends = [end()?, end()?];
        Some(Named { protocol, ends })
    }
}

/// Which attachments have the names by which connections are known, now.
pub(super) struct Numbers(HashMap<String, (u16, AttachmentId)>);

impl Numbers {
    /// The key of a connection, by who has its ends now, and which side opened it.
    pub(super) fn flow(&self, named: &Named) -> Option<(FlowKey, Side)> {
        let mut zone = 0;
        let mut end = |end: &NamedEnd| {
            let (of, attachment) = *self.0.get(end.who.as_ref()?)?;
            zone = of;
            Some(Endpoint {
                addr: Addr::from(end.addr),
                port: end.port,
                attachment: attachment.0,
            })
        };
        let [from, to] = &named.ends;
        let (from, to) = (end(from)?, end(to)?);
        Some(FlowKey::new(zone, named.protocol, &from, &to))
    }
}

/// What is to be kept.
#[derive(Clone, Debug)]
pub(in crate::control) enum Wanted {
    /// This connection.
    Connection(Named),
    /// All with these for this service, whoever opened them.
    Service(HashSet<AttachmentId>, ServiceSpec),
}

/// Live connections that are to be kept.
#[derive(Debug, Default)]
pub(super) struct Selected {
    /// One more than may be, at most.
    pub(super) kept: BTreeMap<Named, Arc<Carried>>,
    /// How many each of what was wanted has named.
    found: Vec<usize>,
}

impl Selected {
    pub(super) fn is_too_much(&self) -> bool {
        self.kept.len() > KEPT_MAX
    }
}

impl Control {
    /// See [`Numbers`].
    pub(super) fn numbers(&self, desired: &Desired) -> Numbers {
        let mut numbers = HashMap::new();
        for port in &desired.ports {
            let zone = desired.policy.tenant_id(&port.tenant).unwrap_or_default().0;
            let outside = self.attachments.outside_of(port).into_iter();
            let outside = outside.map(|id| (format!("outside({})", port.name), id));
            let workloads = port.workloads.iter().filter_map(|w| {
                let id = self.attachments.of(port, w)?;
                Some((qualified(&port.tenant, &w.name), id))
            });
            for (name, id) in outside.chain(workloads) {
                numbers.entry(name).or_insert((zone, id));
            }
        }
        Numbers(numbers)
    }

    /// A connection of the table in words.
    fn named(&self, c: &ConnRef<'_>) -> Named {
        let key = c.key();
        let (from, to) = conn::ends(&key, c.initiator());
        let end = |e: &Endpoint| NamedEnd {
            who: Some(self.attachments.name(e.attachment)),
            addr: e.addr.to_ip(),
            port: e.port,
        };
        Named {
            protocol: key.proto(),
            ends: [end(&from), end(&to)],
        }
    }

    /// Whether `said`, which may lack names, is a connection from there to there.
    fn is_said(&self, said: &Named, protocol: u8, ends: &[Endpoint; 2]) -> bool {
        let same = |(said, is): (&NamedEnd, &Endpoint)| {
            let who = said.who.as_ref();
            said.port == is.port
                && said.addr == is.addr.to_ip()
                && who.is_none_or(|who| *who == self.attachments.name(is.attachment))
        };
        said.protocol == protocol && said.ends.iter().zip(ends).all(same)
    }

    /// What `--keep` says.
    pub(super) fn wanted(&self, text: &str) -> Result<Wanted, ApiError> {
        if let Some(named) = Named::parse(text) {
            return Ok(Wanted::Connection(named));
        }
        let service = text.rsplit_once(':');
        let service =
            service.and_then(|(who, spec)| Some((who, spec.parse::<ServiceSpec>().ok()?)));
        let Some((who, spec)) = service else {
            return Err(usage(format!(
                "--keep {text:?}: write a connection as `vswitch conn list` shows it (\"tcp web-1 10.0.0.1:40000 > db-1 10.0.0.2:5432\"), or WORKLOAD:SERVICE (db-1:tcp/5432)"
            )));
        };
        let with: HashSet<_> = if who == "outside" {
            let ports = self.desired.ports.iter();
            ports
                .filter_map(|port| self.attachments.outside_of(port))
                .collect()
        } else {
            let name = self.resolve(who)?;
            let called = self
                .residents()
                .filter(|(p, w)| qualified(&p.tenant, &w.name) == name);
            called
                .filter_map(|(port, w)| self.attachments.of(port, w))
                .collect()
        };
        Ok(Wanted::Service(with, spec))
    }

    /// The live connections of these that are `wanted`.
    pub(super) fn select(&self, ends: &HashSet<AttachmentId>, wanted: &[Wanted]) -> Selected {
        let mut selected = Selected {
            kept: BTreeMap::new(),
            found: vec![0; wanted.len()],
        };
        if wanted.is_empty() {
            return selected;
        }
        self.each_conn_of(ends, |c| {
            if !is_live(&c) {
                return;
            }
            let key = c.key();
            let service = conn::service(&key, c.initiator());
            let ends: [Endpoint; 2] = conn::ends(&key, c.initiator()).into();
            let is_end = |with: &HashSet<AttachmentId>| {
                ends.iter()
                    .any(|end| with.contains(&AttachmentId(end.attachment)))
            };
            let mut is_wanted = false;
            for (wanted, found) in wanted.iter().zip(&mut selected.found) {
                let meant = match wanted {
                    Wanted::Connection(said) => self.is_said(said, key.proto(), &ends),
                    Wanted::Service(with, spec) => spec.covers(service) && is_end(with),
                };
                *found += usize::from(meant);
                is_wanted |= meant;
            }
            // Beyond the bound they are counted only.
            if is_wanted && !selected.is_too_much() {
                let before = self.quarantine.kept(&key).map(|k| Arc::clone(&k.carried));
                let named = self.named(&c);
                selected.kept.insert(named, before.unwrap_or_default());
            }
        });
        selected
    }

    /// The same of what somebody says, who must not err.
    pub(super) fn select_exactly(
        &self,
        (name, ends): (&str, &HashSet<AttachmentId>),
        keep: &[String],
    ) -> Result<BTreeMap<Named, Arc<Carried>>, ApiError> {
        let wanted = keep.iter().map(|text| self.wanted(text));
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        let selected = self.select(ends, &wanted);
        let missing = keep.iter().zip(&selected.found);
        let missing = missing.filter(|(_, found)| **found == 0);
        let errors: Vec<_> = missing
            .map(|(text, _)| {
                format!(
                    "--keep {text:?}: {name} has no such live connection; `vswitch conn list --workload {name}` shows what it has"
                )
            })
            .collect();
        if !errors.is_empty() {
            let code = ErrorCode::Usage;
            return Err(ApiError { code, errors });
        }
        if selected.is_too_much() {
            return Err(ApiError::new(
                ErrorCode::Refused,
                format!("more than {KEPT_MAX} connections would be kept; name fewer"),
            ));
        }
        Ok(selected.kept)
    }
}
