//! A switch in this process with the generator's two guests on it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::frames::{IPS, MACS};
use super::load::{Load, LoadConfig};
use super::{BenchError, Cores};
use crate::control::Switch;
use crate::control::state::{Poll, PortConfig, PortKind, WorkloadConfig};
use crate::policy::model::{Action, Policy, Rule};

/// How long the guests may take to be attached: it takes milliseconds.
const ATTACHED_WITHIN: Duration = Duration::from_secs(10);

/// What the switch of a measurement is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct RigConfig {
    pub(super) load: LoadConfig,
    /// Rules in the policy: the last of them admits the load.
    pub(super) rules: u32,
    /// Room in the connection table.
    pub(super) connections: usize,
}

/// See the module documentation. Fields are dropped in this order.
pub(super) struct Rig {
    pub(super) load: Load,
    pub(super) switch: Switch,
    _dir: Dir,
}

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        // What cannot be removed has only empty sockets in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Rig {
    pub(super) fn start(cores: Cores, config: &RigConfig) -> Result<Self, BenchError> {
        let dir = std::env::temp_dir().join(format!("vswitch-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let dir = Dir(dir);
        let sockets = ["a", "b"].map(|name| dir.0.join(format!("{name}.sock")));
        let mut builder = Switch::builder()
            .poll(Poll::Busy)
            .connections(config.connections)
            .max_ports(8)
            .policy(policy(config.rules));
        if let Some(core) = cores.worker {
            builder = builder.workers([core]);
        }
        for (i, name) in ["a", "b"].into_iter().enumerate() {
            let kind = PortKind::VhostUser {
                socket: sockets[i].clone(),
                client: false,
                owner: None,
            };
            let mut port = PortConfig::new(name, kind);
            port.max_connections = Some(config.connections);
            port.workloads.push(WorkloadConfig {
                name: name.to_owned(),
                mac: vec![MACS[i]],
                ip: vec![IPS[i].into()],
                ..WorkloadConfig::default()
            });
            builder = builder.port(port);
        }
        let switch = builder.spawn()?;
        let load = Load::connect([&sockets[0], &sockets[1]], &config.load)?;
        // A frame to a guest whose rings are not in use yet is dropped.
        let since = Instant::now();
        while switch.status()?.ports_up < sockets.len() {
            if since.elapsed() > ATTACHED_WITHIN {
                return Err(BenchError::NotAttached);
            }
            std::thread::yield_now();
        }
        Ok(Rig {
            load,
            switch,
            _dir: dir,
        })
    }
}

/// So many rules, of which the last one admits UDP from A to B.
fn policy(rules: u32) -> Policy {
    let denying = (1..rules.max(1)).map(|i| {
        // Services that the load does not use, all different up to 50,000.
        let port = 10_000 + i % 50_000;
        Rule {
            service: format!("tcp/{port}").parse().into_iter().collect(),
            ..Rule::new(&format!("deny-{i}"), &["any"], &["any"], Action::Deny)
        }
    });
    let admitting = Rule {
        service: "udp".parse().into_iter().collect(),
        ..Rule::new("load", &["any"], &["any"], Action::Allow)
    };
    Policy {
        rules: denying.chain([admitting]).collect(),
        ..Policy::default()
    }
}
