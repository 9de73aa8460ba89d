//! A switch in this process with the generator's two guests on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::frames::{IPS, MACS};
use super::load::Load;
use super::options::Traffic;
use super::{BenchError, Cores, Progress};
use crate::control::Switch;
use crate::control::state::{
    Decisions, LedgerConfig, ManagerConfig, Poll, PortConfig, PortKind, WorkloadConfig,
};
use crate::policy::model::{Action, Policy, Rule};

/// How long the guests may take to be attached: it takes milliseconds.
const ATTACHED_WITHIN: Duration = Duration::from_secs(10);

/// What the switch of a measurement is like.
#[derive(Debug)]
pub(super) struct RigConfig {
    pub(super) policy: Policy,
    /// Room in the connection table.
    pub(super) connections: usize,
    pub(super) poll: Poll,
    pub(super) max_ports: usize,
    pub(super) ledger: Option<LedgerConfig>,
    pub(super) decisions: Option<Decisions>,
    pub(super) manager: Option<ManagerConfig>,
}

impl RigConfig {
    /// A busy switch with room for so many connections.
    pub(super) fn new(policy: Policy, connections: usize) -> Self {
        RigConfig {
            policy,
            // Twice what is needed: in a table nearly full a bucket may have no room (`flowtable`, *Limits*).
            connections: (connections * 2).max(1 << 14),
            poll: Poll::Busy,
            max_ports: 8,
            ledger: None,
            decisions: None,
            manager: None,
        }
    }
}

/// See the module documentation. Fields are dropped in this order.
pub(super) struct Rig<G> {
    pub(super) load: G,
    pub(super) switch: Switch,
}

impl Rig<Load> {
    /// A busy switch with this policy and the generator, whose connections are open; on the generator's thread, which is
    /// pinned.
    pub(super) fn open(
        cores: Cores,
        policy: Policy,
        traffic: &Traffic,
        progress: Progress<'_>,
    ) -> Result<Self, BenchError> {
        progress("starting the switch");
        let config = RigConfig::new(policy, traffic.flows as usize);
        let mut rig = Rig::start(cores, config, |sockets| Load::connect(sockets, traffic))?;
        cores.pin_generator()?;
        progress("opening connections");
        rig.load.open()?;
        Ok(rig)
    }
}

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        // What cannot be removed has only empty sockets in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl<G> Rig<G> {
    /// Starts the switch and has `connect` attach the generator to the sockets of its two ports.
    pub(super) fn start(
        cores: Cores,
        config: RigConfig,
        connect: impl FnOnce([&Path; 2]) -> Result<G, BenchError>,
    ) -> Result<Self, BenchError> {
        let connections = config.connections;
        let switch = switch(cores, config)?;
        let load = attach(&switch, connections, connect)?;
        Ok(Rig { load, switch })
    }
}

/// A switch without ports.
pub(super) fn switch(cores: Cores, config: RigConfig) -> Result<Switch, BenchError> {
    let mut builder = Switch::builder()
        .poll(config.poll)
        .connections(config.connections)
        .max_ports(config.max_ports)
        .policy(config.policy);
    if let Some(core) = cores.worker {
        builder = builder.workers([core]);
    }
    if let Some(ledger) = config.ledger {
        builder = builder.ledger(ledger);
    }
    if let Some(decisions) = config.decisions {
        builder = builder.decisions(decisions);
    }
    if let Some(manager) = config.manager {
        builder = builder.manager(manager);
    }
    Ok(builder.spawn()?)
}

/// Gives the switch two ports, each of which may open so many connections, and has `connect` attach the generator.
pub(super) fn attach<G>(
    switch: &Switch,
    connections: usize,
    connect: impl FnOnce([&Path; 2]) -> Result<G, BenchError>,
) -> Result<G, BenchError> {
    // Sockets are needed until the guests are attached; gone then, so that nothing is left behind
    // however this process ends.
    let dir = std::env::temp_dir().join(format!("vswitch-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let dir = Dir(dir);
    let sockets = [NAMES[0], NAMES[1]].map(|name| dir.0.join(format!("{name}.sock")));
    for (i, socket) in sockets.iter().enumerate() {
        let kind = PortKind::VhostUser {
            socket: socket.clone(),
            client: false,
            owner: None,
        };
        switch.add_port(port(i, kind, connections))?;
    }
    let up = switch.status()?.ports_up + sockets.len();
    let load = connect([&sockets[0], &sockets[1]])?;
    // A frame to a guest whose rings are not in use yet is dropped.
    wait_up(switch, up)?;
    Ok(load)
}

/// Waits until the peers of so many ports are attached.
pub(super) fn wait_up(switch: &Switch, ports: usize) -> Result<(), BenchError> {
    let since = Instant::now();
    while switch.status()?.ports_up < ports {
        if since.elapsed() > ATTACHED_WITHIN {
            return Err(BenchError::NotAttached);
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// The port of A (0) or B (1), or of one of two more that carry no load.
pub(super) fn port(i: usize, kind: PortKind, connections: usize) -> PortConfig {
    let name = NAMES.get(i).copied().unwrap_or_default();
    let mut port = PortConfig::new(name, kind);
    port.max_connections = Some(connections);
    port.workloads.push(WorkloadConfig {
        name: name.to_owned(),
        mac: MACS.get(i).copied().into_iter().collect(),
        ip: IPS.get(i).copied().map(Into::into).into_iter().collect(),
        ..WorkloadConfig::default()
    });
    port
}

/// Ports and workloads of A, B and two more.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// So many rules, of which the last one admits `service`.
pub(super) fn policy(rules: u32, service: &str) -> Policy {
    let denying = (1..rules.max(1)).map(|i| {
        // Services that no load uses, all different up to 50,000.
        let port = 10_000 + i % 50_000;
        Rule {
            service: format!("tcp/{port}").parse().into_iter().collect(),
            ..Rule::new(&format!("deny-{i}"), &["any"], &["any"], Action::Deny)
        }
    });
    let admitting = Rule {
        service: service.parse().into_iter().collect(),
        ..Rule::new("load", &["any"], &["any"], Action::Allow)
    };
    Policy {
        rules: denying.chain([admitting]).collect(),
        ..Policy::default()
    }
}
