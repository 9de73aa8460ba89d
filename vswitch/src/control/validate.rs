//! What must hold of a desired state before anything is touched. Every error is reported, with
//! the path to its field; `config` turns paths into lines, the library's builder shows them as
//! they are.

mod restart;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;

use super::state::{Desired, PersonConfig, PortConfig, PortKind, SwitchConfig, WorkloadConfig};
use crate::packet::Mac;
use crate::policy::model::Record;
use crate::policy::{
    Classifier, Compiled, Edit, FieldError, FieldPath, TenantId, WorkloadFacts, bad_cidr, bad_name,
    nearest,
};

/// Largest VLAN number (IEEE 802.1Q: 12 bits, 4095 reserved).
const MAX_VLAN: u16 = 4094;
/// Longest interface name, bytes (Linux `IFNAMSIZ` less the final NUL).
const MAX_INTERFACE_LEN: usize = 15;
/// Longest socket path, bytes (Linux `sockaddr_un` less the final NUL).
const MAX_SOCKET_LEN: usize = 107;
/// Smallest MTU a host must take (RFC 791 section 3.2).
const MIN_MTU: u16 = 68;
/// Largest MTU the ports carry.
const MAX_MTU: u16 = 9000;
/// Most queue pairs of a vhost-user port.
const MAX_VHOST_QUEUES: u16 = 16;
/// Most queue pairs of any other port.
const MAX_QUEUES: u16 = 64;
/// Most ports of one switch: they are numbered with 16 bits.
const MAX_PORTS: usize = 65_535;

/// Everything wrong with a desired state; empty when it can be applied.
#[must_use]
pub fn validate(desired: &Desired) -> Vec<FieldError> {
    compile(desired, None).err().unwrap_or_default()
}

/// Validates a desired state and compiles its policy, which is half of validating it; `previous` is
/// what it replaces. When only a few rules differ, they are all that is compiled.
pub(super) fn compile(
    desired: &Desired,
    previous: Option<(&Desired, &Classifier)>,
) -> Result<Compiled, Vec<FieldError>> {
    let mut check = Check {
        desired,
        errors: Vec::new(),
        owners: Owners::default(),
    };
    check.switch(&desired.switch);
    check.people(&desired.switch.people);
    check.records();
    for (index, port) in desired.ports.iter().enumerate() {
        let at = FieldPath::root().item("port", index, &port.name);
        check.port(&at, port);
    }
    let mut errors = check.errors;
    let (policy, facts) = (&desired.policy, workloads(desired));
    let edited = previous.and_then(|(before, classifier)| {
        let same = workloads(before) == facts;
        let edit = Edit::between(&before.policy, policy).filter(|_| same)?;
        classifier.edit(&edit)
    });
    let compiled = edited.map_or_else(
        || Classifier::compile(policy, &facts, previous.map(|(_, classifier)| classifier)),
        Ok,
    );
    match compiled {
        Ok(compiled) => {
            errors.extend(keeps(desired, &facts));
            errors.extend(walls(desired, &facts, &compiled));
            if errors.is_empty() {
                return Ok(compiled);
            }
        }
        Err(policy) => errors.extend(policy),
    }
    Err(errors)
}

/// Whom responses name that is not there.
fn keeps(desired: &Desired, facts: &[WorkloadFacts]) -> Vec<FieldError> {
    let policy = &desired.policy;
    let mut errors = Vec::new();
    for (n, response) in policy.responses.iter().enumerate() {
        for (item, keep) in response.keep.iter().enumerate() {
            let mut segments = policy.segments.iter();
            let known = facts.iter().any(|w| policy.keeps_with(response, keep, w))
                || segments.any(|s| s.tenant == response.tenant && s.name == keep.who);
            if !known {
                let at = FieldPath::root().item("response", n, &response.name);
                errors.push(FieldError::new(
                    at.item("keep", item, ""),
                    format!("there is no workload or segment {:?}", keep.who),
                    "name one of the response's tenant",
                ));
            }
        }
    }
    errors
}

/// What is wrong with the walls, where they stand.
fn walls(desired: &Desired, facts: &[WorkloadFacts], compiled: &Compiled) -> Vec<FieldError> {
    let policy = &desired.policy;
    let classified = (&compiled.classifier, &*compiled.parties);
    let mut errors = crate::policy::walls::against(policy, facts, classified);
    if let (Some(wall), None) = (policy.walls.first(), &desired.switch.ledger) {
        errors.push(FieldError::new(
            FieldPath::root().item("wall", 0, &wall.name),
            "a wall without a ledger forgets who is bound",
            "add [ledger] to switch.toml and restart the daemon",
        ));
    }
    errors
}

/// What policy needs to know of every workload, in port order. A workload whose tenant the policy
/// does not declare is left out.
#[must_use]
pub fn workloads(desired: &Desired) -> Vec<WorkloadFacts> {
    let ports = desired.ports.iter().filter_map(|port| {
        let tenant = desired.policy.tenant_id(&port.tenant)?;
        Some(port.workloads.iter().map(move |w| facts(tenant, w)))
    });
    ports.flatten().collect()
}

/// What policy needs to know of one.
pub(super) fn facts(tenant: TenantId, workload: &WorkloadConfig) -> WorkloadFacts {
    WorkloadFacts {
        tenant,
        name: workload.name.clone(),
        tags: workload.tags.clone(),
        ips: workload.ip.clone(),
        volumes: workload.volumes.clone(),
    }
}

/// Who already has what must be had once.
#[derive(Default)]
struct Owners<'a> {
    ports: HashSet<&'a str>,
    workloads: HashSet<(&'a str, &'a str)>,
    /// By tenant and VLAN: the domain a MAC must be unique in.
    macs: HashMap<(&'a str, u16, Mac), &'a str>,
    /// By tenant.
    ips: HashMap<(&'a str, IpAddr), &'a str>,
    sockets: HashMap<&'a Path, &'a str>,
    outputs: HashMap<&'a Path, &'a str>,
    /// By network namespace.
    interfaces: HashMap<(Option<&'a str>, &'a str), &'a str>,
}

struct Check<'a> {
    desired: &'a Desired,
    errors: Vec<FieldError>,
    owners: Owners<'a>,
}

impl<'a> Check<'a> {
    fn error(&mut self, at: FieldPath, what: impl Into<String>, todo: impl Into<String>) {
        self.errors.push(FieldError::new(at, what, todo));
    }

    fn name(&mut self, at: &FieldPath, name: &str) {
        if let Some(what) = bad_name(name) {
            let todo = "use letters, digits, '-', '_', '.' or ':'";
            self.error(at.key("name"), what, todo);
        }
    }

    fn switch(&mut self, switch: &SwitchConfig) {
        let at = FieldPath::root().key("switch");
        let mut cores = HashSet::new();
        for (n, core) in switch.workers.iter().enumerate() {
            if !cores.insert(core) {
                self.error(
                    at.item("workers", n, ""),
                    format!("core {core} is listed twice"),
                    "name each core once; it gets one worker",
                );
            }
        }
        if switch.connections == 0 {
            self.error(
                at.key("connections"),
                "a table of 0 connections holds none",
                "use the number of connections expected at once, such as 1_000_000",
            );
        }
        if switch.max_ports == 0 || switch.max_ports > MAX_PORTS {
            self.error(
                at.key("max_ports"),
                format!("{} is not a number of ports", switch.max_ports),
                format!("use 1 to {MAX_PORTS}"),
            );
        } else if self.desired.ports.len() > switch.max_ports {
            self.error(
                at.key("max_ports"),
                format!(
                    "{} ports do not fit into max_ports = {}",
                    self.desired.ports.len(),
                    switch.max_ports
                ),
                "raise max_ports or remove ports",
            );
        }
        self.socket(&at, &switch.socket);
    }

    /// A rule that wants a record wants a ledger.
    fn records(&mut self) {
        if self.desired.switch.ledger.is_some() {
            return;
        }
        for (n, rule) in self.desired.policy.rules.iter().enumerate() {
            if rule.require_record != Record::No {
                self.error(
                    FieldPath::root()
                        .item("rule", n, &rule.name)
                        .key("require_record"),
                    "there is no ledger to record it in",
                    "add a [ledger] table to switch.toml, or leave the key out",
                );
            }
        }
    }

    fn people(&mut self, people: &[PersonConfig]) {
        if self.desired.switch.api.is_some() && people.is_empty() {
            self.error(
                FieldPath::root().key("api"),
                "nobody may use it",
                "say who may, with [[person]] tables",
            );
        }
        for (n, person) in people.iter().enumerate() {
            let at = FieldPath::root().item("person", n, &person.name);
            self.name(&at, &person.name);
            let others = people.iter().take(n);
            if let Some(uid) = person.uid
                && let Some(other) = others.clone().find(|other| other.uid == Some(uid))
            {
                self.error(
                    at.key("uid"),
                    format!("user {uid} is already {:?}", other.name),
                    "give each person a user of his own",
                );
            }
            if person.uid.is_none() && self.desired.switch.api.is_none() {
                self.error(
                    at.clone(),
                    format!("nobody can be {:?}", person.name),
                    "give the user's number, `uid`: `id -u NAME` shows it; or serve the API over HTTPS, [api]",
                );
            }
            if others.clone().any(|other| other.name == person.name) {
                self.error(
                    at.key("name"),
                    format!("duplicate person {:?}", person.name),
                    "rename one; the ledger knows a person by the name",
                );
            }
            if person.roles.is_empty() {
                self.error(
                    at.key("roles"),
                    format!("{:?} may do nothing", person.name),
                    "give a role, such as \"viewer\"",
                );
            }
        }
    }

    fn belongs_to(&mut self, at: &FieldPath, workload: &WorkloadConfig) {
        let people = &self.desired.switch.people;
        for (n, owner) in workload.owners.iter().enumerate() {
            if people.iter().any(|person| person.name == *owner) {
                continue;
            }
            let todo = match nearest(owner, people.iter().map(|p| p.name.as_str())) {
                Some(name) => format!("did you mean {name:?}?"),
                None => "declare the person with [[person]]".to_owned(),
            };
            self.error(
                at.item("owners", n, ""),
                format!("unknown person {owner:?}"),
                todo,
            );
        }
    }

    fn port(&mut self, at: &FieldPath, port: &'a PortConfig) {
        self.name(at, &port.name);
        if !self.owners.ports.insert(&port.name) {
            self.error(
                at.key("name"),
                format!("duplicate port {:?}", port.name),
                "rename one; a port is known by its name",
            );
        }
        self.kind(at, port);
        if self.desired.policy.tenant_id(&port.tenant).is_none() {
            let known = self.desired.policy.all_tenants().map(|(name, _)| name);
            let todo = match nearest(&port.tenant, known) {
                Some(name) => format!("did you mean {name:?}?"),
                None => "declare it with [[tenant]] in the policy".to_owned(),
            };
            let what = format!("unknown tenant {:?}", port.tenant);
            self.error(at.key("tenant"), what, todo);
        }
        self.vlans(at, port);
        let most = match port.kind {
            PortKind::VhostUser { .. } => MAX_VHOST_QUEUES,
            PortKind::AfXdp { .. }
            | PortKind::Tap { .. }
            | PortKind::Pcap { .. }
            | PortKind::Mem => MAX_QUEUES,
        };
        if let Some(queues) = port.queues.filter(|queues| !(1..=most).contains(queues)) {
            self.error(
                at.key("queues"),
                format!("{queues} is not a number of queue pairs"),
                format!("use 1 to {most}, or leave it out for as many as the peer has"),
            );
        }
        if !(MIN_MTU..=MAX_MTU).contains(&port.mtu) {
            self.error(
                at.key("mtu"),
                format!("MTU {} is out of range", port.mtu),
                format!("use {MIN_MTU} to {MAX_MTU} bytes"),
            );
        }
        if port.max_connections == Some(0) {
            self.error(
                at.key("max_connections"),
                "a port that may open 0 connections opens none",
                "deny by policy instead, or leave it out for a quarter of the table",
            );
        }
        self.addresses(at, port);
        for (n, workload) in port.workloads.iter().enumerate() {
            self.workload(&at.item("workload", n, ""), port, workload);
        }
    }

    fn kind(&mut self, at: &FieldPath, port: &'a PortConfig) {
        match &port.kind {
            PortKind::VhostUser { socket, .. } => {
                self.socket(at, socket);
                if *socket == self.desired.switch.socket {
                    self.error(
                        at.key("socket"),
                        format!("{socket:?} is the switch's own API socket"),
                        "give the port a socket of its own",
                    );
                } else if let Some(other) = self.owners.sockets.insert(socket, &port.name) {
                    self.error(
                        at.key("socket"),
                        format!("{socket:?} is already port {other:?}'s socket"),
                        "give each port a socket of its own",
                    );
                }
            }
            PortKind::AfXdp { interface } => self.interface(at, port, interface, None),
            PortKind::Tap { interface, netns } => {
                self.interface(at, port, interface, netns.as_deref());
                if netns.as_deref() == Some("") {
                    self.error(
                        at.key("netns"),
                        "the network namespace has no name",
                        "name one under /run/netns or give its path, or leave it out",
                    );
                }
            }
            PortKind::Pcap { input, output } => {
                if input.is_none() && output.is_none() {
                    self.error(
                        at.clone(),
                        "a pcap port without files does nothing",
                        "give it `input`, `output` or both",
                    );
                }
                let clash = output
                    .as_deref()
                    .and_then(|output| self.owners.outputs.insert(output, &port.name));
                if let Some(other) = clash {
                    self.error(
                        at.key("output"),
                        format!("port {other:?} already writes this file"),
                        "give each port a file of its own",
                    );
                }
            }
            PortKind::Mem => {}
        }
    }

    fn socket(&mut self, at: &FieldPath, socket: &Path) {
        let len = socket.as_os_str().len();
        if len == 0 || len > MAX_SOCKET_LEN {
            self.error(
                at.key("socket"),
                format!("a socket path of {len} bytes cannot be bound"),
                format!("use a path of 1 to {MAX_SOCKET_LEN} bytes"),
            );
        }
    }

    fn interface(
        &mut self,
        at: &FieldPath,
        port: &'a PortConfig,
        interface: &'a str,
        netns: Option<&'a str>,
    ) {
        let bad = interface.is_empty()
            || interface.len() > MAX_INTERFACE_LEN
            || matches!(interface, "." | "..")
            || interface
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'));
        if bad {
            self.error(
                at.key("interface"),
                format!("{interface:?} cannot be the name of an interface"),
                format!("use at most {MAX_INTERFACE_LEN} bytes without spaces, '/' and ':'"),
            );
        } else if let Some(other) = self
            .owners
            .interfaces
            .insert((netns, interface), &port.name)
        {
            self.error(
                at.key("interface"),
                format!("interface {interface:?} already belongs to port {other:?}"),
                "give each port an interface of its own",
            );
        }
    }

    fn vlans(&mut self, at: &FieldPath, port: &PortConfig) {
        if port.vlan > MAX_VLAN {
            self.error(
                at.key("vlan"),
                format!("VLAN {} is out of range", port.vlan),
                format!("use 1 to {MAX_VLAN}, or leave it out for untagged"),
            );
        }
        let mut seen = HashSet::new();
        for (n, vlan) in port.trunk.iter().enumerate() {
            let at = at.item("trunk", n, "");
            if !(1..=MAX_VLAN).contains(vlan) {
                let todo = format!("use 1 to {MAX_VLAN}");
                self.error(at, format!("VLAN {vlan} is out of range"), todo);
            } else if !seen.insert(vlan) {
                self.error(at, format!("VLAN {vlan} is listed twice"), "remove one");
            }
        }
    }

    /// Where the port's peers get their addresses from.
    fn addresses(&mut self, at: &FieldPath, port: &PortConfig) {
        for (n, route) in port.routes.iter().enumerate() {
            if let Some((what, todo)) = bad_cidr(route) {
                self.error(at.item("routes", n, ""), what, todo);
            }
        }
        if port.uplink && !port.routes.is_empty() {
            self.error(
                at.key("routes"),
                "an uplink carries the whole outside already",
                "remove `routes`, or `uplink` if this is a router's port",
            );
        }
        if port.uplink && !port.workloads.is_empty() {
            self.error(
                at.key("uplink"),
                "nobody on an uplink is a workload: peers there are known by address",
                "move the workloads to ports of their own, or name the peers by `cidr` in the policy",
            );
        }
    }

    fn workload(&mut self, at: &FieldPath, port: &'a PortConfig, workload: &'a WorkloadConfig) {
        self.name(at, &workload.name);
        self.belongs_to(at, workload);
        let tenant = port.tenant.as_str();
        if !self.owners.workloads.insert((tenant, &workload.name)) {
            self.error(
                at.key("name"),
                format!("duplicate workload {:?}", workload.name),
                "rename one; a workload is known by its name",
            );
        }
        if let Some(vlan) = workload.vlan
            && !(1..=MAX_VLAN).contains(&vlan)
        {
            self.error(
                at.key("vlan"),
                format!("VLAN {vlan} is out of range"),
                format!("use 1 to {MAX_VLAN}, or leave it out for untagged"),
            );
        }
        if workload.mac.is_empty() && port.guard {
            self.error(
                at.clone(),
                format!(
                    "workload {:?} has no MAC, so it could send nothing",
                    workload.name
                ),
                "give it `mac`",
            );
        }
        for (n, &mac) in workload.mac.iter().enumerate() {
            let at = at.item("mac", n, "");
            if mac.is_group() || mac == Mac::default() {
                self.error(
                    at,
                    format!("{mac} cannot be a sender's address"),
                    "use an individual address, such as 52:54:00:00:00:01",
                );
                continue;
            }
            let key = (tenant, port.domain_of(workload), mac);
            if let Some(other) = self.owners.macs.insert(key, &workload.name) {
                let todo = "give each workload of a VLAN a MAC of its own";
                self.error(at, taken(&mac, other, &workload.name), todo);
            }
        }
        for (n, &ip) in workload.ip.iter().enumerate() {
            let at = at.item("ip", n, "");
            if !can_send(ip) {
                self.error(
                    at,
                    format!("{ip} cannot be a sender's address"),
                    "use an address of one host",
                );
                continue;
            }
            if let Some(other) = self.owners.ips.insert((tenant, ip), &workload.name) {
                let todo = "give each workload of a tenant an address of its own";
                self.error(at, taken(&ip, other, &workload.name), todo);
            }
        }
        for (n, volume) in workload.volumes.iter().enumerate() {
            self.name(&at.item("volumes", n, ""), volume);
        }
        self.errors.extend(restart::check(at, workload));
        for (n, tag) in workload.tags.iter().enumerate() {
            if tag.trim().is_empty() || tag.chars().any(char::is_control) {
                self.error(
                    at.item("tags", n, ""),
                    format!("{tag:?} is not a tag"),
                    "write `key:value`, such as \"tier:web\"",
                );
            }
        }
    }
}

fn taken(address: &dyn std::fmt::Display, other: &str, own: &str) -> String {
    if other == own {
        format!("{address} is listed twice")
    } else {
        format!("{address} already belongs to workload {other:?}")
    }
}

/// Whether one host can have the address as its own.
fn can_send(ip: IpAddr) -> bool {
    let other = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        // Inside the switch an IPv4 address is its mapped form: the two must not meet.
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vhost(name: &str) -> PortConfig {
        PortConfig::new(
            name,
            PortKind::VhostUser {
                socket: format!("/run/vswitch/{name}.sock").into(),
                client: false,
                owner: None,
            },
        )
    }

    fn workload(name: &str, mac: u8) -> WorkloadConfig {
        WorkloadConfig {
            name: name.into(),
            mac: vec![Mac([2, 0, 0, 0, 0, mac])],
            ..WorkloadConfig::default()
        }
    }

    fn lines(ports: Vec<PortConfig>) -> Vec<String> {
        let desired = Desired {
            ports,
            ..Desired::default()
        };
        validate(&desired).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_is_valid() {
        assert_eq!(lines(vec![vhost("a")]), [""; 0]);
    }

    #[test]
    fn one_mac_may_stand_in_two_vlans_but_not_twice_in_one() {
        let mut port = vhost("vm");
        port.trunk = vec![10, 20];
        let on = |name, vlan| WorkloadConfig {
            vlan: Some(vlan),
            ..workload(name, 1)
        };
        port.workloads = vec![on("a", 10), on("b", 20)];
        assert_eq!(lines(vec![port.clone()]), [""; 0]);
        port.workloads.push(on("c", 20));
        // Another tag shares the port's own domain, untagged or not.
        port.workloads.push(on("d", 30));
        port.workloads.push(on("e", 40));
        assert_eq!(
            lines(vec![port]),
            [
                "port[vm].workload[2].mac[0]: 02:00:00:00:00:01 already belongs to workload \"b\"; \
                 give each workload of a VLAN a MAC of its own",
                "port[vm].workload[4].mac[0]: 02:00:00:00:00:01 already belongs to workload \"d\"; \
                 give each workload of a VLAN a MAC of its own",
            ]
        );
    }

    #[test]
    fn tenants_may_have_the_same_names_and_addresses() {
        let mut desired = Desired::default();
        for tenant in ["a", "b"] {
            desired.policy.tenants.push(crate::policy::model::Tenant {
                name: tenant.into(),
                ..Default::default()
            });
            let mut port = vhost(&format!("port-{tenant}"));
            port.tenant = tenant.into();
            port.workloads.push(WorkloadConfig {
                ip: vec![[10, 0, 0, 1].into()],
                ..workload("w", 1)
            });
            desired.ports.push(port);
        }
        assert_eq!(validate(&desired), []);
        assert_eq!(workloads(&desired).len(), 2);
        desired.ports.iter_mut().for_each(|p| p.tenant = "a".into());
        assert_eq!(validate(&desired).len(), 3);
        desired.ports.iter_mut().for_each(|p| p.tenant = "c".into());
        assert_eq!(workloads(&desired), []);
    }

    #[test]
    fn nonsense_is_refused_field_by_field() {
        let mut port = vhost("a");
        port.kind = PortKind::Tap {
            interface: "far-too-long-name".into(),
            netns: Some(String::new()),
        };
        port.mtu = 20;
        port.queues = Some(0);
        port.vlan = 4095;
        port.max_connections = Some(0);
        port.workloads.push(WorkloadConfig {
            name: "w".into(),
            mac: vec![Mac::BROADCAST],
            ip: vec![
                [127, 0, 0, 1].into(),
                [10, 0, 0, 1].into(),
                [10, 0, 0, 1].into(),
            ],
            tags: vec![" ".into()],
            ..WorkloadConfig::default()
        });
        let at: Vec<String> = lines(vec![port])
            .iter()
            .filter_map(|line| line.split_once(": ").map(|(at, _)| at.to_owned()))
            .collect();
        assert_eq!(
            at,
            [
                "port[a].interface",
                "port[a].netns",
                "port[a].vlan",
                "port[a].queues",
                "port[a].mtu",
                "port[a].max_connections",
                "port[a].workload[0].mac[0]",
                "port[a].workload[0].ip[0]",
                "port[a].workload[0].ip[2]",
                "port[a].workload[0].tags[0]",
            ]
        );
    }
}
