//! A userspace virtual switch with a stateful firewall between any two workloads.
//!
//! Modules stand in layers; a module imports lower layers only (a test checks it):
//! 0 `packet drop_reason publish event sys` · 1 `frame offload counters` · 2 `port policy guest` ·
//! 3 `datapath` · 4 `manager restart control` · 5 `config bench demo cli`.

pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod counters;
pub mod datapath;
#[cfg(feature = "demo")]
pub mod demo;
pub mod drop_reason;
pub mod event;
pub mod frame;
pub mod guest;
#[cfg(feature = "manager")]
pub mod manager;
pub mod offload;
pub mod packet;
pub mod policy;
pub mod port;
pub mod publish;
pub mod restart;
pub mod sys;

#[cfg(test)]
#[path = "../../tests/common/skip.rs"]
#[allow(unreachable_pub)] // public where it lives
mod skip;
