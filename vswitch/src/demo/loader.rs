//! The demo's desired state for later changes: its policy lies in a file, which may be edited.

use std::path::PathBuf;

use crate::config;
use crate::control::Loader;
use crate::control::state::{Desired, PortConfig};
use crate::policy::FieldError;
use crate::policy::model::Policy;

/// Ports from the program, policy from a file.
#[derive(Debug)]
pub(super) struct PolicyFile {
    pub(super) path: PathBuf,
    pub(super) desired: Desired,
}

impl Loader for PolicyFile {
    fn load(&self) -> Result<Desired, Vec<String>> {
        let policy = config::load_policy(&self.path, &self.desired).map_err(|e| e.lines())?;
        Ok(Desired {
            policy,
            ..self.desired.clone()
        })
    }

    fn located(&self, errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn policy_source(&self) -> String {
        self.path.display().to_string()
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn policy(&self, text: &str, source: &str, desired: &Desired) -> Result<Policy, Vec<String>> {
        config::parse_policy_for(source, text, desired).map_err(|e| e.lines())
    }

    fn ports(
        &self,
        text: &str,
        source: Option<&str>,
        desired: &Desired,
    ) -> Result<Vec<PortConfig>, Vec<String>> {
        config::parse_ports_for(source, text, desired).map_err(|e| e.lines())
    }
}
