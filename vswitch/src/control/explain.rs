//! What would happen to this five-tuple now: asked of the live policy and connection table.

use std::net::IpAddr;

use super::api::{ApiError, EndInfo, ErrorCode, ExplainQuery, Explanation};
use super::apply::Control;
use super::view::{assurance, qualified};
use crate::datapath::conn;
use crate::packet::{Addr, proto};
use crate::policy::model::{PortRange, ServiceSpec};
use crate::policy::{Classifier, Party, Query, Service, TenantId, Verdict, Why};

/// Live connections shown at most; `conn list` shows all.
const MAX_LIVE: usize = 16;

/// An end of the question, resolved.
struct End {
    info: EndInfo,
    /// Attachment in connection keys.
    attachment: Option<u32>,
    ips: Vec<IpAddr>,
    party: Party,
    domain: (TenantId, u16),
}

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
            let has_ports = matches!(protocol, proto::TCP | proto::UDP | SCTP);
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

/// Stream Control Transmission Protocol (IANA).
const SCTP: u8 = 132;

impl Control {
    pub(super) fn explain(&self, q: &ExplainQuery, tick: u32) -> Result<Explanation, ApiError> {
        let service = service(&q.service, q.src_port)?;
        let Some(classifier) = self.classifier() else {
            return Err(ApiError::new(
                ErrorCode::Refused,
                "no policy is in force yet",
            ));
        };
        let from = self.end(&q.from, classifier)?;
        let to = self.end(&q.to, classifier)?;
        let judgement = classifier.classify(&Query {
            from: from.party,
            to: to.party,
            service,
        });
        let rule = match judgement.why {
            Why::Rule(id) => classifier.rules().find(|r| r.id == id),
            Why::DefaultDeny => None,
        };
        let mut notes = Vec::new();
        let verdict = match judgement.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Reject => "reject",
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
        if judgement.ask {
            notes.push("the rule asks a manager; there is none, so its `otherwise` holds".into());
        }
        if judgement.limited {
            notes.push("the rule has a limit, which may be exhausted at the moment".into());
        }
        let mut reachable = true;
        if from.domain != to.domain {
            reachable = false;
            notes.push(format!(
                "{} and {} are in different L2 domains: a frame gets there only through a router",
                from.info.name, to.info.name
            ));
        }
        let v4 = |e: &End| e.ips.iter().any(IpAddr::is_ipv4);
        let v6 = |e: &End| e.ips.iter().any(IpAddr::is_ipv6);
        #[allow(clippy::nonminimal_bool)] // reads as the sentence below
        if !from.ips.is_empty()
            && !to.ips.is_empty()
            && !(v4(&from) && v4(&to))
            && !(v6(&from) && v6(&to))
        {
            reachable = false;
            notes.push("the two ends have no address family in common".into());
        }
        if from.attachment == to.attachment {
            notes.push("both ends are the same workload".into());
        }
        let output_up = self.is_up(&to.info.port);
        if !output_up {
            notes.push(format!(
                "port {} has no peer: a frame would be dropped as tx_not_ready",
                to.info.port
            ));
        }
        if !reachable && verdict == "allow" {
            notes.push("policy allows it, but no frame can take this way directly".into());
        }
        let staged = judgement
            .staged
            .map(|id| classifier.rule_name(id).to_owned());
        Ok(Explanation {
            verdict: verdict.to_owned(),
            why,
            rule: rule.as_ref().map(|r| r.name.to_owned()),
            tier: rule.as_ref().map(|r| r.tier.name().to_owned()),
            staged,
            generation: self.shared.snapshots.generation(),
            live: self.live(&from, &to, service, q.src_port, tick),
            output_port: to.info.port.clone(),
            output_up,
            from: from.info,
            to: to.info,
            notes,
        })
    }

    /// Live connections from one end to the other for this service.
    fn live(
        &self,
        from: &End,
        to: &End,
        service: Service,
        src_port: Option<u16>,
        tick: u32,
    ) -> Vec<super::api::ConnInfo> {
        let Service::Ip {
            protocol, dport, ..
        } = service
        else {
            return Vec::new();
        };
        let icmp = matches!(protocol, proto::ICMP | proto::ICMPV6);
        let mut live = Vec::new();
        self.each_conn(|c| {
            let key = c.key();
            let (a, b) = conn::ends(&key, c.initiator());
            let addr = |end: &End, a: Addr| {
                end.ips.is_empty() || end.ips.iter().any(|ip| Addr::from(*ip) == a)
            };
            let wanted = key.proto() == protocol
                && Some(a.attachment) == from.attachment
                && Some(b.attachment) == to.attachment
                && addr(from, a.addr)
                && addr(to, b.addr)
                && (icmp || b.port == dport)
                && src_port.is_none_or(|p| p == a.port);
            if wanted && live.len() < MAX_LIVE {
                live.push(self.conn_info(&c, tick));
            }
        });
        live
    }

    /// A workload by name, by `tenant/name` or by address; any other address is the outside.
    fn end(&self, text: &str, classifier: &Classifier) -> Result<End, ApiError> {
        let ip: Option<IpAddr> = text.parse().ok();
        let mut found = self.residents().filter(|(p, w)| match ip {
            Some(ip) => w.ip.contains(&ip),
            None => w.name == text || qualified(&p.tenant, &w.name) == text,
        });
        if let Some((port, workload)) = found.next() {
            if let Some((other, w)) = found.next() {
                return Err(usage(format!(
                    "{text} is ambiguous: {} and {}",
                    qualified(&port.tenant, &workload.name),
                    qualified(&other.tenant, &w.name)
                )));
            }
            let attachment = self.attachments.number(&port.name, &workload.name);
            let snapshot = self.shared.snapshots.current();
            let owner = attachment.and_then(|a| snapshot.by_attachment(a));
            let Some(owner) = owner else {
                return Err(usage(format!("{text} is not attached")));
            };
            let domain = snapshot
                .domain(owner.domain)
                .map_or((owner.party.tenant, 0), |d| (d.tenant, d.vlan));
            return Ok(End {
                info: EndInfo {
                    name: workload.name.clone(),
                    tenant: port.tenant.clone(),
                    port: port.name.clone(),
                    ip: ip.map_or_else(
                        || workload.ip.iter().map(ToString::to_string).collect(),
                        |ip| vec![ip.to_string()],
                    ),
                    segments: self.segments_of(port, workload),
                    assurance: assurance(port, workload).to_owned(),
                },
                attachment: attachment.map(|a| a.0),
                ips: ip.map_or_else(|| workload.ip.clone(), |ip| vec![ip]),
                party: owner.party,
                domain,
            });
        }
        let Some(ip) = ip else {
            return Err(usage(format!(
                "there is no workload {text}; `vswitch workload list` shows them"
            )));
        };
        self.outside(ip, classifier)
    }

    /// An address that is no workload's: known by its address, behind an uplink or a router.
    fn outside(&self, ip: IpAddr, classifier: &Classifier) -> Result<End, ApiError> {
        let ports = &self.desired.ports;
        let port = ports
            .iter()
            .find(|p| p.routes.iter().any(|r| r.contains(ip)))
            .or_else(|| ports.iter().find(|p| p.uplink))
            .ok_or_else(|| {
                usage(format!(
                    "{ip} is no workload's address, and no port has `uplink = true` or a route to it"
                ))
            })?;
        let policy = &self.desired.policy;
        let tenant = policy.tenant_id(&port.tenant).unwrap_or_default();
        let segments = policy
            .segments
            .iter()
            .filter(|s| s.tenant == port.tenant && s.cidr.iter().any(|c| c.contains(ip)))
            .map(|s| s.name.clone())
            .collect();
        Ok(End {
            info: EndInfo {
                name: "outside".to_owned(),
                tenant: port.tenant.clone(),
                port: port.name.clone(),
                ip: vec![ip.to_string()],
                segments,
                assurance: "none".to_owned(),
            },
            attachment: self.attachments.number(&port.name, "").map(|a| a.0),
            ips: vec![ip],
            party: Party {
                tenant,
                set: classifier.outside(tenant, &Addr::from(ip)),
            },
            domain: (tenant, port.vlan),
        })
    }
}
