//! Decisions, and the durable record of them. It stands below `control`, which asks and tells.
//!
//! Who decides: [`rules`] say how, [`local`] does so on a thread of this process.

pub mod ledger;
pub mod local;
pub mod question;
pub mod rules;
