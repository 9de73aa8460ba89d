//! `vswitch bench`: what this switch does on this machine, measured so that the reader can check
//! it. Each measurement builds what it needs in this process, repeats, and says how far its
//! repetitions lay apart, where its threads ran, and when the generator was the limit.
//!
//! A measurement is a [`Bench`]: its fields are the command's arguments and the `config` of its
//! report at once. [`run`] runs any of them.

mod acl;
mod afxdp;
#[cfg(feature = "manager")]
mod ask;
mod churn;
mod deny;
mod exchange;
mod foreign;
mod frames;
mod idle;
mod latency;
#[cfg(feature = "manager")]
mod ledger;
mod load;
mod loopback;
mod machine;
mod memory;
mod mlr;
mod ndr;
mod options;
mod policy;
mod response;
mod rig;
mod sample;
mod start;
mod stats;
mod stream;
mod table;
mod veth;

use std::io;
use std::path::PathBuf;

use serde::Serialize;

pub use acl::{Acl, AclFigures};
pub use afxdp::{AfXdp, AfXdpFigures};
#[cfg(feature = "manager")]
pub use ask::{Asking, AskingFigures, Held};
pub use churn::{Churn, ChurnFigures};
pub use deny::{Deny, DenyFigures};
pub use exchange::Protocol;
pub use foreign::{Foreign, ForeignFigures};
pub use frames::{FLOWS_MAX, Sizes};
pub use idle::{Idle, IdleFigures, Percentiles};
pub use latency::{AtLoad, Latency, LatencyFigures, PERCENTILES};
#[cfg(feature = "manager")]
pub use ledger::{AckDelays, Recording, RecordingFigures};
pub use loopback::{Loopback, LoopbackFigures};
pub use machine::Machine;
pub use memory::{Memory, MemoryFigures, Resident};
pub use ndr::{Carried, Ndr, NdrFigures};
pub use options::{On, Repeats, Rings, Traffic};
pub use policy::{PolicyChange, PolicyChangeFigures};
pub use response::{FrozenFigures, Responding, RespondingFigures, Watched};
pub use start::{Start, StartFigures};
pub use stats::Summary;
pub use table::{Scaling, Stalls, TableAlone, TableFigures};

use crate::control::SwitchError;
use crate::guest::GuestError;
use crate::port::afxdp::AfXdpError;
use crate::port::mem::MemError;
use crate::sys::affinity::pin_thread;
use crate::sys::netlink::NetlinkError;
use crate::sys::netns::NetNsError;
use machine::Watch;

/// Where a measurement says how far it is.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// A measurement.
pub trait Bench: Serialize + Sync {
    /// What is seen.
    type Figures: Serialize + Send;

    /// Measures. The calling thread may be pinned: it has no other use.
    ///
    /// # Errors
    /// See [`BenchError`].
    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError>;
}

/// What was measured, where, and what was seen.
#[derive(Clone, Debug, Serialize)]
#[serde(bound = "")]
pub struct Report<B: Bench> {
    /// What was asked for.
    pub config: B,
    /// Where.
    pub machine: Machine,
    /// What was seen.
    #[serde(flatten)]
    pub figures: B::Figures,
}

/// Measures, and says how far it is.
///
/// # Errors
/// See [`BenchError`].
pub fn run<B: Bench>(config: B, progress: impl Fn(&str) + Sync) -> Result<Report<B>, BenchError> {
    let cores = Cores::choose()?;
    let watch = Watch::start(cores);
    let measure = || config.measure(cores, &progress);
    let figures = std::thread::scope(|s| s.spawn(measure).join())
        .map_err(|_panic| io::Error::other("the measuring thread died"))??;
    Ok(Report {
        machine: watch.end(),
        config,
        figures,
    })
}

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
    /// Nobody listens there.
    #[error(
        "generator: cannot attach to {}: {source}; name the vhost-user sockets of the other switch, and start it first",
        socket.display()
    )]
    NoSwitch {
        /// Where.
        socket: PathBuf,
        /// What connect(2) says.
        #[source]
        source: io::Error,
    },
    /// No TSO there.
    #[error(
        "generator: the other switch offers no TSO, without which no frame is longer than 1514 bytes; OVS-DPDK does with \
         `other_config:userspace-tso-enable=true` on ports that connect (`--listen`)"
    )]
    Cut,
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
    /// What no rule admits arrived.
    #[error("{0} frames arrived that no rule admits: what was measured is no firewall")]
    Admitted(u64),
    /// The classifier and a linear search say different things.
    #[error("{0} questions are answered otherwise by a linear search of the rules")]
    Differs(usize),
    /// A policy was applied, and frames that it denies went on arriving.
    #[error("frames that the new policy denies still arrived half a second after it was applied")]
    NotEnforced,
    /// A suspect was not put into quarantine.
    #[error("a suspect's open connection went on for five seconds: nobody contained it")]
    NotContained,
    /// Peers of frozen connections that went on were not told.
    #[error("only {0} peers of frozen connections were told that these go on")]
    NotReleased(u64),
    /// No memory for a connection table.
    #[error(transparent)]
    Table(#[from] flowtable::TableError),
    /// No place for containers.
    #[error("cannot make network namespaces: {0}; run this as root")]
    NoNamespaces(#[source] NetNsError),
    /// No place for containers.
    #[error("cannot make veth pairs: {0}")]
    Veth(#[from] NetlinkError),
    /// A container's interface cannot be used.
    #[error(transparent)]
    AfXdp(#[from] AfXdpError),
    /// No memory between generator and interface.
    #[error(transparent)]
    Mem(#[from] MemError),
    /// The ledger cannot be made.
    #[cfg(feature = "manager")]
    #[error(transparent)]
    Ledger(#[from] crate::manager::ledger::LedgerError),
    /// No place for the ledger.
    #[error("cannot create a directory in {}: {source}; name another one with --dir", path.display())]
    NoDirectory {
        /// In which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Records were refused, or are not there.
    #[error("the ledger did not take every record; is that disk full?")]
    NotRecorded,
    /// Traffic stopped.
    #[error("nothing arrived for five seconds while traffic was under way")]
    Silent,
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

    /// Keeps the calling thread on the generator's core, if it has one of its own.
    fn pin_generator(self) -> io::Result<()> {
        self.generator.map_or(Ok(()), pin_thread)
    }

    /// Keeps the calling thread on the worker's core, if it has one of its own.
    fn pin_worker(self) -> io::Result<()> {
        self.worker.map_or(Ok(()), pin_thread)
    }
}
