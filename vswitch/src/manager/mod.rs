//! Decisions, and the durable record of them. It stands below `control`, which asks and tells.
//!
//! [`rules`] say how a question is answered. Who follows them: [`local`], a thread of this process, or a [`server`] for many
//! switches, which [`remote`] connects to; between the two goes what `manager.proto` says ([`wire`]).

pub mod certificate;
pub mod ledger;
pub mod local;
pub mod question;
pub mod remote;
pub mod rules;
pub mod server;
pub mod trial;
pub mod wire;
