//! Files: a command's arguments, and the daemon's configuration.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::client::Failure;
use crate::config;
use crate::control::Loader;
use crate::control::state::{Desired, PortConfig};
use crate::policy::FieldError;
use crate::policy::model::Policy;

/// A file's text, and its absolute path for the daemon's messages.
pub(super) fn read(path: &Path) -> Result<(String, String), Failure> {
    let failed = |source| Failure::File {
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let absolute = std::path::absolute(path).map_err(failed)?;
    Ok((text, absolute.display().to_string()))
}

/// That a file can be written, before there is anything to write; leaves it as it was.
pub(super) fn writable(path: &Path) -> Result<(), Failure> {
    let new = !path.exists();
    let opened = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let done = opened.and_then(|_file| {
        if new {
            std::fs::remove_file(path)
        } else {
            Ok(())
        }
    });
    done.map_err(|source| Failure::Write {
        path: path.to_owned(),
        source,
    })
}

/// Replaces a file's text.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|source| Failure::Write {
        path: path.to_owned(),
        source,
    })
}

/// `switch.toml` and what it names.
#[derive(Debug)]
pub(super) struct Files {
    switch: PathBuf,
    /// What `switch.toml` last named.
    named: Mutex<config::Named>,
    /// From the command line: stands above the file.
    socket: Option<PathBuf>,
}

impl Files {
    /// Reads the configuration for the first time.
    pub(super) fn open(
        switch: &Path,
        socket: Option<PathBuf>,
    ) -> Result<(Self, Desired), config::Errors> {
        // For messages far from where we were started; the path as given when the system cannot
        // say where that was.
        let switch = std::path::absolute(switch).unwrap_or_else(|_e| switch.to_owned());
        let mut files = Files {
            named: Mutex::new(config::named(&switch)?),
            switch,
            socket,
        };
        let desired = files.read()?;
        // The socket cannot change while we run.
        files.socket = Some(desired.switch.socket.clone());
        Ok((files, desired))
    }

    fn named(&self) -> config::Named {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.clone()
    }

    fn read(&self) -> Result<Desired, config::Errors> {
        let named = config::named(&self.switch)?;
        let mut desired = config::load(&self.switch)?;
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = named;
        if let Some(socket) = &self.socket {
            desired.switch.socket.clone_from(socket);
        }
        Ok(desired)
    }
}

impl Loader for Files {
    fn load(&self) -> Result<Desired, Vec<String>> {
        self.read().map_err(|e| e.lines())
    }

    fn located(&self, errors: Vec<FieldError>) -> Vec<String> {
        config::locate(&self.switch, errors).lines()
    }

    fn policy_source(&self) -> String {
        self.named().policy.display().to_string()
    }

    fn files(&self) -> Vec<PathBuf> {
        let config::Named { policy, rules } = self.named();
        [self.switch.clone(), policy]
            .into_iter()
            .chain(rules)
            .collect()
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
