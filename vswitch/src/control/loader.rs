//! Where a daemon's desired state comes from. `config` implements it for TOML files; control
//! knows no file format.

use std::path::PathBuf;

use super::state::{Desired, PortConfig};
use crate::policy::FieldError;
use crate::policy::model::Policy;

/// Reads configuration. Errors come back all at once, one line each: what, where, what to do.
pub trait Loader: Send {
    /// The whole desired state, as the files say it now.
    ///
    /// # Errors
    /// Everything wrong with the files.
    fn load(&self) -> Result<Desired, Vec<String>>;

    /// The lines for what the switch found wrong with a state that [`Loader::load`] returned.
    fn located(&self, errors: Vec<FieldError>) -> Vec<String>;

    /// What the policy in the files is called in `status` and `policy show`.
    fn policy_source(&self) -> String;

    /// The files whose change means a reload. May differ after [`Loader::load`].
    fn files(&self) -> Vec<PathBuf>;

    /// A policy from its text, for the machine `desired` describes; `source` is where it came from.
    ///
    /// # Errors
    /// Everything wrong with the text.
    fn policy(&self, text: &str, source: &str, desired: &Desired) -> Result<Policy, Vec<String>>;

    /// Ports from a text that holds only `[[port]]` tables, to be added to those of `desired`;
    /// `source` is the file it came from, if it is one.
    ///
    /// # Errors
    /// Everything wrong with the text.
    fn ports(
        &self,
        text: &str,
        source: Option<&str>,
        desired: &Desired,
    ) -> Result<Vec<PortConfig>, Vec<String>>;
}
