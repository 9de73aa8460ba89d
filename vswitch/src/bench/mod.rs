//! `vswitch bench`: what this switch does on this machine, measured so that the reader can check
//! it. Each measurement builds what it needs in this process, repeats, and says how far its
//! repetitions lay apart, where its threads ran, and when the generator was the limit.

mod frames;
mod load;
mod loopback;
mod machine;
mod rig;
mod stats;

use std::io;

pub use frames::{FLOWS_MAX, Sizes};
pub use loopback::{Loopback, LoopbackReport, run as loopback};
pub use machine::Machine;
pub use stats::Summary;

use crate::control::SwitchError;
use crate::guest::GuestError;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The switch could not start.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// A guest could not attach.
    #[error("generator: {0}")]
    Guest(#[from] GuestError),
    /// No memory in huge pages for a guest.
    #[error(
        "generator: no memory in 2 MiB pages: {0}; reserve some with `sysctl vm.nr_hugepages=64`, or \
         measure without them"
    )]
    HugePages(#[source] GuestError),
    /// The guests are not attached.
    #[error(
        "the switch did not attach the generator's guests within ten seconds; is the machine busy?"
    )]
    NotAttached,
    /// Connections did not open.
    #[error(
        "{opened} of {of} connections opened, then nothing arrived any more; too little memory, or a \
         core that does something else?"
    )]
    Stuck {
        /// Answered.
        opened: u64,
        /// Wanted.
        of: u64,
    },
    /// Frames arrived otherwise than they were sent.
    #[error("{0} frames arrived damaged or out of order: what was measured is not forwarding")]
    Wrong(u64),
    /// No place for sockets, or a thread that died.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where threads run: the switch's worker and the generator each have a core of their own.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Cores {
    /// The worker's; `None`: this process has one core only, and nothing is pinned.
    pub worker: Option<usize>,
    /// The generator's.
    pub generator: Option<usize>,
}

impl Cores {
    /// The last two cores this process may use.
    ///
    /// # Errors
    /// What sched_getaffinity(2) says.
    pub fn choose() -> io::Result<Self> {
        let cores = crate::sys::affinity::allowed_cores()?;
        Ok(match cores.as_slice() {
            [.., generator, worker] => Cores {
                worker: Some(*worker),
                generator: Some(*generator),
            },
            _ => Cores {
                worker: None,
                generator: None,
            },
        })
    }
}
