//! Where a daemon's desired state comes from. `config` implements it for TOML files; control
//! knows no file format.

use std::path::PathBuf;

use super::state::{Desired, PortConfig};
use crate::policy::model::Policy;

/// Reads configuration. Errors come back all at once, one line each: what, where, what to do.
pub trait Loader: Send {
    /// The whole desired state, as the files say it now.
    ///
    /// # Errors
    /// Everything wrong with the files.
    fn load(&self) -> Result<Desired, Vec<String>>;

    /// What the policy in the files is called in `status` and `policy show`.
    fn policy_source(&self) -> String;

    /// The files whose change means a reload. May differ after [`Loader::load`].
    fn files(&self) -> Vec<PathBuf>;

    /// A policy from its text, for the machine `desired` describes; `source` is where it came from.
    ///
    /// # Errors
    /// Everything wrong with the text.
    fn policy(&self, text: &str, source: &str, desired: &Desired) -> Result<Policy, Vec<String>>;

    /// Ports from a text that holds only `[[port]]` tables.
    ///
    /// # Errors
    /// Everything wrong with the text.
    fn ports(&self, text: &str) -> Result<Vec<PortConfig>, Vec<String>>;
}
