//! Decisions, and the durable record of them. It stands below `control`, which asks and tells.

pub mod ledger;
