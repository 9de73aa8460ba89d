//! `vswitch bench memory`: what a switch keeps resident.

use std::fs;
use std::io;

use clap::Args;
use serde::Serialize;

use super::frames::Sizes;
use super::load::Load;
use super::options::{Rings, Traffic};
use super::rig::{self, RigConfig, policy};
use super::{Bench, BenchError, Cores, Progress};

/// Memory that a switch keeps resident: idle, and with connections in its table.
///
/// Counted is this process, of which the
/// switch is nearly all, without the memory of its guests (which is theirs).
#[derive(Clone, Debug, Serialize, Args)]
pub struct Memory {
    /// Connections there is room for.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    pub connections: u32,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
}

/// What was seen, bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryFigures {
    /// Before there was a switch.
    pub before: Resident,
    /// With an idle one, without ports.
    pub idle: Resident,
    /// With two guests attached and half of the table's room used.
    pub used: Resident,
    /// Connections that were open then.
    pub open: u32,
    /// What the idle switch added, by connection there is room for.
    pub by_connection: f64,
}

/// Memory of this process (proc_pid_status(5)), bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Resident {
    /// All of the following.
    pub total: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Of files: the program itself.
    pub files: u64,
    /// In reserved 2 MiB pages.
    pub huge: u64,
}

impl Resident {
    fn now() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            let kib = line.and_then(|l| l.trim_start_matches([':', ' ', '\t']).split(' ').next());
            kib.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        let [anonymous, files, huge] = ["RssAnon", "RssFile", "HugetlbPages"].map(bytes);
        Ok(Resident {
            total: anonymous + files + huge,
            anonymous,
            files,
            huge,
        })
    }
}

impl Bench for Memory {
    type Figures = MemoryFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let before = Resident::now()?;
        progress("starting the switch");
        let connections = self.connections as usize;
        let config = RigConfig {
            connections,
            ..RigConfig::new(policy(self.rules, "udp"), 0)
        };
        let switch = rig::switch(cores, config)?;
        let idle = Resident::now()?;
        progress("opening connections");
        let open = self.connections / 2;
        let load = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(64),
            flows: open,
        };
        let mut load = rig::attach(&switch, connections, |s| Load::connect(s, &load))?;
        load.open()?;
        let mut used = Resident::now()?;
        if self.rings.huge {
            // Theirs, and mapped twice here: by them and by the switch.
            let guests = 2 * load.memory_bytes();
            used.huge = used.huge.saturating_sub(guests);
            used.total = used.total.saturating_sub(guests);
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^53
        let by_connection =
            idle.total.saturating_sub(before.total) as f64 / f64::from(self.connections);
        Ok(MemoryFigures {
            before,
            idle,
            used,
            open,
            by_connection,
        })
    }
}
