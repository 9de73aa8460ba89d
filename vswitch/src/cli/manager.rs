//! `vswitch manager …`.

use clap::Subcommand;

use super::client::Failure;
use super::{Answer, Out};
use crate::manager::rules::SCHEMA;

#[derive(Debug, Subcommand)]
pub(super) enum ManagerCommand {
    /// Print what rules for decisions are written against: a Cedar schema.
    Schema,
}

pub(super) fn manager(command: ManagerCommand, mut out: Out) -> Result<Answer, Failure> {
    match command {
        ManagerCommand::Schema => out.line(SCHEMA.trim_end())?,
    }
    Ok(Answer::Done)
}
