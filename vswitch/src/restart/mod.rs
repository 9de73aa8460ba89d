//! Restarting workloads: drivers for whatever runs them, in a process of their own (`docs/restart.md`).
//!
//! A driver talks to what a suspicious workload may have taken over, may hang, and needs other rights than a switch. So it runs
//! in the *restarter*: the same program, started as `vswitch restarter` with a socket as its only descriptor beside those for
//! errors, without the capabilities of the switch. Jobs and what is said of them are lines of JSON ([`job`]). The switch starts
//! it, writes to it without ever waiting, and starts it again when it ends ([`helper`]).

#[cfg(feature = "manager")]
mod command;
#[cfg(feature = "manager")]
mod course;
#[cfg(feature = "manager")]
mod docker;
#[cfg_attr(not(feature = "manager"), path = "helper_none.rs")]
mod helper;
#[cfg(feature = "manager")]
mod image;
mod job;
#[cfg(feature = "manager")]
mod qmp;
#[cfg(feature = "manager")]
mod serve;

pub use helper::Helper;
pub use job::{
    Done, Driver, Heard, Image, Job, Method, RestartConfig, Said, Task, UNDER_WAY, What,
};
#[cfg(feature = "manager")]
pub use serve::serve;
