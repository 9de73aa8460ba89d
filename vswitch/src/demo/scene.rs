//! The switch of the demo and who is attached to it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::container::{Container, Wiring};
use super::guest::{self, GuestHost};
use super::host::Host;
use super::loader::PolicyFile;
use super::place::Place;
use super::stacks::{LIMIT, Resident, Stacks, Who};
use super::{Halt, Stop};
use crate::config;
use crate::control::Switch;
use crate::control::api::{ExplainQuery, Explanation};
use crate::control::state::{Desired, PortConfig, PortKind, SwitchConfig, WorkloadConfig};
use crate::guest::Guest;
use crate::packet::Mac;
use crate::policy::model::Policy;
use crate::sys::affinity::allowed_cores;

/// Put beside the sockets, so that whoever looks around can edit and apply it.
const POLICY: &str = include_str!("policy.toml");
/// Room in the connection table: some 100 times what the demo opens.
const CONNECTIONS: usize = 100_000;
/// Entries of the rings of the two guests that measure: the most that QEMU offers too.
const LOAD_RING_SIZE: u16 = 1024;

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Port and workload.
    pub(super) name: &'static str,
    tag: &'static str,
    number: u8,
}

impl Member {
    pub(super) fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    pub(super) fn mac(self) -> Mac {
        Mac([0x52, 0x54, 0, 0x77, 0, self.number])
    }

    fn port(self, kind: PortKind) -> PortConfig {
        let mut port = PortConfig::new(self.name, kind);
        port.workloads.push(WorkloadConfig {
            name: self.name.to_owned(),
            mac: vec![self.mac()],
            ip: vec![self.ip().into()],
            tags: vec![self.tag.to_owned()],
            ..WorkloadConfig::default()
        });
        port
    }
}

const fn member(name: &'static str, tag: &'static str, number: u8) -> Member {
    Member { name, tag, number }
}

/// Those with a TCP stack, in the order of [`Scene::stacks`].
pub(super) const MEMBERS: [Member; 3] = [
    member("web", "tier:web", 1),
    member("db", "tier:db", 2),
    member("batch", "tier:batch", 3),
];
/// Those that measure: who sends, who receives.
pub(super) const LOAD: [Member; 2] = [
    member("generator", "load:generator", 4),
    member("sink", "load:sink", 5),
];

/// Always a guest.
pub(super) const WEB: Who = Who(0);
/// A container, when there can be some.
pub(super) const DB: Who = Who(1);
/// A container, when there can be some.
pub(super) const BATCH: Who = Who(2);

impl Who {
    pub(super) fn member(self) -> Member {
        // The constants above are the only values.
        *MEMBERS.get(self.0).unwrap_or(&MEMBERS[0])
    }
}

/// Everything that runs. Fields are dropped in this order: traffic, switch, network.
pub(super) struct Scene {
    pub(super) stacks: Stacks,
    pub(super) generator: Guest,
    pub(super) sink: Guest,
    pub(super) switch: Switch,
    pub(super) wirings: Vec<Wiring>,
    pub(super) policy: Policy,
    pub(super) api: PathBuf,
    /// Cores this process may use; the last one is the worker's, when there are two or more.
    pub(super) cores: Vec<usize>,
    pub(super) stop: Stop,
}

impl Scene {
    /// Builds it, with containers or with guests only, and attaches everybody.
    pub(super) fn build(place: &Place, containers: bool, stop: &Stop) -> Result<Self, Halt> {
        let api = place.path("vswitch.sock");
        let policy_file = place.path("policy.toml");
        std::fs::write(&policy_file, POLICY)?;
        let socket = |m: Member| place.path(&format!("{}.sock", m.name));
        let vhost = |m: Member| PortKind::VhostUser {
            socket: socket(m),
            client: false,
            owner: None,
        };
        let cores = allowed_cores()?;
        let mut desired = Desired {
            switch: SwitchConfig {
                connections: CONNECTIONS,
                socket: api.clone(),
                ..SwitchConfig::default()
            },
            ..Desired::default()
        };
        if let [_, .., last] = cores.as_slice() {
            desired.switch.workers = vec![*last];
        }
        let mut wirings = Vec::new();
        let mut inside: Vec<Option<Container>> = Vec::new();
        for (n, m) in MEMBERS.into_iter().enumerate() {
            stop.check()?;
            if containers && n != WEB.0 {
                let (container, wiring) = Container::new(place, m.name, m.mac(), m.ip())?;
                desired.ports.push(m.port(PortKind::AfXdp {
                    interface: wiring.interface().to_owned(),
                }));
                wirings.push(wiring);
                inside.push(Some(container));
            } else {
                desired.ports.push(m.port(vhost(m)));
                inside.push(None);
            }
        }
        desired.ports.extend(LOAD.map(|m| m.port(vhost(m))));
        let policy = config::load_policy(&policy_file, &desired)?;
        let loader = PolicyFile {
            path: policy_file,
            desired: desired.clone(),
        };
        desired.policy = policy.clone();
        let switch = Switch::builder()
            .desired(desired)
            .api(&api)
            .loader(Box::new(loader))
            .spawn()?;
        let mut residents = Vec::new();
        for (m, container) in MEMBERS.into_iter().zip(inside) {
            let host: Box<dyn Host> = match container {
                Some(container) => Box::new(container),
                None => {
                    let path = socket(m);
                    Box::new(GuestHost::connect(&path, m.mac(), m.ip(), m.number.into())?)
                }
            };
            residents.push(Resident {
                name: m.name.to_owned(),
                ip: m.ip(),
                host,
            });
        }
        let [generator, sink] =
            LOAD.map(|m| Guest::connect(&socket(m), guest::config(LOAD_RING_SIZE)));
        let mut scene = Scene {
            stacks: Stacks::new(residents, stop),
            generator: generator?,
            sink: sink?,
            switch,
            wirings,
            policy,
            api,
            cores,
            stop: stop.clone(),
        };
        scene.wait_attached()?;
        Ok(scene)
    }

    fn wait_attached(&mut self) -> Result<(), Halt> {
        let start = Instant::now();
        loop {
            let ports = self.switch.ports()?;
            let down: Vec<_> = ports.iter().filter(|p| !p.up).collect();
            if down.is_empty() {
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                let names: Vec<_> = down.iter().map(|p| p.name.as_str()).collect();
                return Err(Halt::failed(format!(
                    "no peer at port {} after {LIMIT:?}",
                    names.join(", ")
                )));
            }
            self.stacks.pump(Duration::from_millis(5))?;
        }
    }

    /// Whether the host is a container.
    pub(super) fn is_container(&self, who: Who) -> bool {
        who != WEB && !self.wirings.is_empty()
    }

    /// Whose TCP the host has, in words.
    pub(super) fn stack(&self, who: Who) -> &'static str {
        if self.is_container(who) {
            "the kernel's TCP in a container"
        } else {
            "the guest's own TCP"
        }
    }

    /// What the switch says would happen to a new connection.
    pub(super) fn explain(&self, from: Who, to: Who, service: &str) -> Result<Explanation, Halt> {
        Ok(self.switch.explain(ExplainQuery {
            from: from.member().name.to_owned(),
            to: to.member().name.to_owned(),
            service: service.to_owned(),
            src_port: None,
        })?)
    }

    /// How many frames were dropped for that reason.
    pub(super) fn dropped(&self, reason: &str) -> Result<u64, Halt> {
        let drops = self.switch.drops()?;
        let of = drops.iter().find(|d| d.reason == reason);
        of.map(|d| d.total)
            .ok_or_else(|| Halt::failed(format!("the switch knows no drop reason {reason}")))
    }

    /// Waits until that counter is above `before`; its growth.
    pub(super) fn wait_dropped(&mut self, reason: &str, before: u64) -> Result<u64, Halt> {
        let start = Instant::now();
        loop {
            let now = self.dropped(reason)?;
            if now > before {
                return Ok(now - before);
            }
            if start.elapsed() > LIMIT {
                return Err(Halt::failed(format!(
                    "the counter {reason} did not move in {LIMIT:?}"
                )));
            }
            self.stacks.pump(Duration::from_millis(5))?;
        }
    }

    /// How often a rule decided.
    pub(super) fn hits(&self, rule: &str) -> Result<u64, Halt> {
        let rules = self.switch.policy()?.rules;
        let of = rules.iter().find(|r| r.name == rule);
        of.map(|r| r.hits)
            .ok_or_else(|| Halt::failed(format!("no rule {rule} is in force")))
    }
}
