//! Where a measurement was made, as far as it bears on its figures.

use std::fs;

use serde::Serialize;

use super::Cores;
use crate::sys::time::tsc_hz;

/// See the module documentation.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor, as /proc/cpuinfo names it.
    pub cpu: String,
    /// Time-stamp counter, Hz: the unit of all cycles.
    pub tsc_hz: u64,
    /// Kernel release.
    pub kernel: String,
    /// Where threads were pinned.
    pub cores: Cores,
    /// 2 MiB pages that were free when it began (the connection table takes them first).
    pub huge_pages_free: u64,
    /// Transparent huge pages: always, madvise or never.
    pub thp: String,
    /// Share of the time in which the hypervisor ran something else on these processors.
    pub steal: f64,
}

/// The machine, watched while something is measured.
pub(super) struct Watch {
    machine: Machine,
    before: (u64, u64),
}

impl Watch {
    pub(super) fn start(cores: Cores) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|l| l.strip_prefix("model name"));
        let model = model.map(|m| m.trim_start_matches([' ', '\t', ':']));
        let memory = read("/proc/meminfo");
        let free = memory
            .lines()
            .find_map(|l| l.strip_prefix("HugePages_Free:"));
        // `always [madvise] never`: the one in brackets holds.
        let thp = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let thp = thp.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
        Watch {
            machine: Machine {
                cpu: model.unwrap_or("unknown").to_owned(),
                tsc_hz: tsc_hz(),
                kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
                cores,
                huge_pages_free: free.and_then(|n| n.trim().parse().ok()).unwrap_or(0),
                thp,
                steal: 0.0,
            },
            before: steal_and_total(),
        }
    }

    pub(super) fn end(self) -> Machine {
        let (steal, total) = steal_and_total();
        let (steal, total) = (steal - self.before.0, total - self.before.1);
        #[allow(clippy::cast_precision_loss)] // clock ticks of one measurement
        Machine {
            steal: steal as f64 / total.max(1) as f64,
            ..self.machine
        }
    }
}

/// Clock ticks, of all processors together (proc_stat(5)): stolen, and all.
fn steal_and_total() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|n| n.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest times are in user's.
    let total = ticks.iter().take(8).sum();
    (ticks.get(7).copied().unwrap_or(0), total)
}
