//! From a frame to a decision. Start at [`process`].

pub(crate) mod again;
pub mod conn;
pub mod decision;
pub mod decoy;
pub(crate) mod flood;
pub mod fragment;
pub mod freeze;
pub mod frozen;
pub mod guard;
pub mod hold;
pub(crate) mod judge;
pub mod l2;
pub(crate) mod neighbour;
pub mod passes;
pub mod process;
pub(crate) mod profile;
pub mod quarantine;
pub mod quota;
pub(crate) mod reject;
pub(crate) mod report;
pub mod snapshot;
pub mod suspect;
pub mod tcp;
pub mod verdicts;
pub mod worker;

#[cfg(test)]
mod tests;
