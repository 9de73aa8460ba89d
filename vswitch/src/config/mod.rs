//! Configuration files: `switch.toml` describes the machine, `policy.toml` the policy. Read
//! whole, checked whole; the answer is a desired state or every error at its line and column.
//!
//! The keys are described in `docs/config.md`.

mod errors;
mod policy;
mod read;
mod restart;
mod suspicion;
mod switch;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use errors::{Error, Errors};
pub use switch::Machine;

use crate::control::state::{Decisions, Desired, LedgerConfig, PortConfig, SwitchConfig};
use crate::control::validate::validate;
use crate::policy::FieldError;
use crate::policy::model::Policy;
use read::Document;

/// Reads `switch.toml` and the policy it names (relative to its own directory).
///
/// # Errors
/// Everything wrong with either file: unreadable, not TOML, unknown keys, wrong values, and what
/// does not fit together.
pub fn load(path: &Path) -> Result<Desired, Errors> {
    load_and(path, validate)
}

/// What a running switch found wrong with a state that [`load`] returned, at its place in the
/// files. Ports go by their names: their numbers are those of the switch, which may have more.
#[must_use]
pub fn locate(path: &Path, found: Vec<FieldError>) -> Errors {
    let located = load_and(path, |desired| {
        let of_file = |_: usize, name: &str| desired.ports.iter().position(|p| p.name == name);
        let found = found.into_iter().map(|error| FieldError {
            at: error.at.renumbered("port", of_file),
            ..error
        });
        found.collect()
    });
    match located {
        Err(errors) => errors,
        // Nothing was found.
        Ok(_) => Errors::new(Vec::new()),
    }
}

/// Reads both files and asks `check` about the whole.
fn load_and(
    path: &Path,
    check: impl FnOnce(&Desired) -> Vec<FieldError>,
) -> Result<Desired, Errors> {
    let file = path.display().to_string();
    let text = read_file(path)?;
    let document = Document::new(&file, &text);
    let Some(table) = document.parse() else {
        return Err(Errors::new(document.errors()));
    };
    let mut machine = switch::read(document.root(&table));
    if machine.policy.as_os_str().is_empty() {
        return Err(Errors::new(document.errors()));
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    let policy_path = beside.join(&machine.policy);
    let manager = machine.switch.manager.as_mut().map(|m| &mut m.tls);
    let api = machine.switch.api.as_mut().map(|a| &mut a.tls);
    for tls in manager.into_iter().chain(api) {
        for file in [&mut tls.ca, &mut tls.certificate, &mut tls.key] {
            *file = beside.join(&*file);
        }
    }
    let policy_text = match read_file(&policy_path) {
        Ok(text) => text,
        Err(unreadable) => {
            let mut errors = document.errors();
            errors.extend(unreadable.shown);
            return Err(Errors::new(errors));
        }
    };
    let policy_file = policy_path.display().to_string();
    let policy = Document::new(&policy_file, &policy_text);
    let rules = machine.rules.as_ref().map(|rules| beside.join(rules));
    let (decisions, wrong) = match rules.as_deref().map(load_decisions) {
        None => (None, Vec::new()),
        Some(Ok(decisions)) => (Some(decisions), Vec::new()),
        Some(Err(errors)) => (None, errors.shown),
    };
    match finish(machine, document, policy, check) {
        Ok(desired) if wrong.is_empty() => Ok(Desired {
            decisions,
            ..desired
        }),
        Ok(_) => Err(Errors::new(wrong)),
        Err(mut errors) => {
            errors.shown.extend(wrong);
            Err(errors)
        }
    }
}

/// Reads rules for decisions.
///
/// # Errors
/// Everything wrong with the file.
pub fn load_decisions(path: &Path) -> Result<Decisions, Errors> {
    let decisions = Decisions {
        name: path.display().to_string(),
        text: read_file(path)?,
    };
    let wrong = wrong_rules(&decisions);
    if wrong.is_empty() {
        Ok(decisions)
    } else {
        Err(Errors::new(wrong))
    }
}

/// Reads rules, for whoever follows them.
///
/// # Errors
/// Everything wrong with the file.
#[cfg(feature = "manager")]
pub fn load_rules(path: &Path) -> Result<crate::manager::rules::Rules, Errors> {
    let decisions = load_decisions(path)?;
    // They were just found good.
    crate::manager::rules::Rules::parse(&decisions.text)
        .map_err(|_faults| Errors::new(wrong_rules(&decisions)))
}

#[cfg(feature = "manager")]
fn wrong_rules(decisions: &Decisions) -> Vec<Error> {
    let Err(faults) = crate::manager::rules::Rules::parse(&decisions.text) else {
        return Vec::new();
    };
    let mut positions = errors::Positions::new(&decisions.text);
    let errors = faults.into_iter().map(|fault| {
        let (line, column) = positions.at(fault.offset);
        Error {
            file: decisions.name.clone(),
            line: Some(line),
            column: Some(column),
            what: fault.what,
            todo: fault.todo,
        }
    });
    errors.collect()
}

/// Nobody would follow them.
#[cfg(not(feature = "manager"))]
fn wrong_rules(_: &Decisions) -> Vec<Error> {
    Vec::new()
}

/// The files that a `switch.toml` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// Its policy.
    pub policy: PathBuf,
    /// Its rules for decisions.
    pub rules: Option<PathBuf>,
}

/// What this `switch.toml` names.
///
/// # Errors
/// Everything wrong with `switch.toml` by itself.
pub fn named(path: &Path) -> Result<Named, Errors> {
    let text = read_file(path)?;
    let file = path.display().to_string();
    let document = Document::new(&file, &text);
    let machine = document
        .parse()
        .map(|table| switch::read(document.root(&table)));
    match machine {
        Some(m) if !m.policy.as_os_str().is_empty() => {
            let beside = path.parent().unwrap_or(Path::new(""));
            Ok(Named {
                policy: beside.join(m.policy),
                rules: m.rules.map(|rules| beside.join(rules)),
            })
        }
        _ => Err(Errors::new(document.errors())),
    }
}

/// Reads a policy for a machine that is already described: the one `desired` has is replaced.
///
/// # Errors
/// Everything wrong with the policy, by itself and for this machine.
pub fn load_policy(path: &Path, desired: &Desired) -> Result<Policy, Errors> {
    let text = read_file(path)?;
    parse_policy_for(&path.display().to_string(), &text, desired)
}

/// As [`load_policy`], from a string; `name` is what errors call it.
///
/// # Errors
/// As [`load_policy`].
pub fn parse_policy_for(name: &str, text: &str, desired: &Desired) -> Result<Policy, Errors> {
    let machine = Machine {
        policy: name.into(),
        rules: None,
        switch: desired.switch.clone(),
        ports: desired.ports.clone(),
    };
    let document = Document::new(name, text);
    finish(machine, Document::new("", ""), document, validate).map(|desired| desired.policy)
}

/// The `[[port]]` tables of a string that holds nothing else, to be added to the ports of
/// `desired`. Errors are at their lines in `source`; without one the text is nobody's file, and a
/// line of it means nothing to anybody.
///
/// # Errors
/// Everything wrong with the ports, by themselves and beside the others.
pub fn parse_ports_for(
    source: Option<&str>,
    text: &str,
    desired: &Desired,
) -> Result<Vec<PortConfig>, Errors> {
    let file = source.unwrap_or("port add");
    let document = Document::new(file, text);
    let Some(table) = document.parse() else {
        return Err(Errors::new(document.errors()));
    };
    let ports = switch::read_ports(document.root(&table));
    let mut whole = desired.clone();
    whole.ports.extend(ports.iter().cloned());
    let mut found = validate(&whole);
    for error in &mut found {
        let to = |index: usize, _: &str| index.checked_sub(desired.ports.len());
        error.at = std::mem::take(&mut error.at).renumbered("port", to);
    }
    let elsewhere = place(found, &[&document], file);
    let mut errors = document.errors();
    errors.extend(elsewhere);
    if source.is_none() {
        errors
            .iter_mut()
            .for_each(|e| (e.line, e.column) = (None, None));
    }
    if errors.is_empty() {
        Ok(ports)
    } else {
        Err(Errors::new(errors))
    }
}

/// Both files from strings; `names` is what errors call them.
///
/// # Errors
/// As [`load`].
pub fn parse(names: (&str, &str), switch: &str, policy: &str) -> Result<Desired, Errors> {
    let document = Document::new(names.0, switch);
    let policy = Document::new(names.1, policy);
    match document.parse() {
        Some(table) => finish(
            switch::read(document.root(&table)),
            document,
            policy,
            validate,
        ),
        None => {
            policy.parse();
            let mut errors = document.errors();
            errors.extend(policy.errors());
            Err(Errors::new(errors))
        }
    }
}

/// A policy from a string, by itself.
///
/// # Errors
/// Everything wrong with the policy.
pub fn parse_policy(name: &str, text: &str) -> Result<Policy, Errors> {
    let machine = Machine {
        policy: name.into(),
        rules: None,
        // Whether the machine has what it needs is another question.
        switch: SwitchConfig {
            ledger: Some(LedgerConfig::default()),
            ..SwitchConfig::default()
        },
        ports: Vec::new(),
    };
    let document = Document::new(name, text);
    finish(machine, Document::new("", ""), document, validate).map(|desired| desired.policy)
}

/// Reads the policy and asks `check` whether the two fit together.
fn finish(
    machine: Machine,
    switch: Document<'_>,
    policy: Document<'_>,
    check: impl FnOnce(&Desired) -> Vec<FieldError>,
) -> Result<Desired, Errors> {
    let mut desired = Desired {
        switch: machine.switch,
        ports: machine.ports,
        policy: Policy::default(),
        decisions: None,
    };
    let mut elsewhere = Vec::new();
    if let Some(table) = policy.parse() {
        desired.policy = policy::read(policy.root(&table));
        let names = [switch.name(), policy.name()];
        let file = names.into_iter().find(|name| !name.is_empty());
        let file = file.unwrap_or_default();
        elsewhere = place(check(&desired), &[&switch, &policy], file);
    }
    let mut errors = switch.errors();
    errors.extend(policy.errors());
    errors.extend(elsewhere);
    if errors.is_empty() {
        Ok(desired)
    } else {
        Err(Errors::new(errors))
    }
}

/// Adds what was found by looking at the whole to the document it is about. What none of them says
/// (a default, the machine a policy is checked for, a port added by command) comes back as errors
/// of `file`.
fn place(found: Vec<FieldError>, documents: &[&Document<'_>], file: &str) -> Vec<Error> {
    let elsewhere = found
        .into_iter()
        .filter(|error| !documents.iter().any(|d| d.semantic(error)));
    let elsewhere = elsewhere.map(|error| Error {
        file: file.to_owned(),
        line: None,
        column: None,
        what: format!("{}: {}", error.at, error.what),
        todo: error.todo,
    });
    elsewhere.collect()
}

fn read_file(path: &Path) -> Result<String, Errors> {
    std::fs::read_to_string(path).map_err(|why| {
        let todo = match why.kind() {
            std::io::ErrorKind::NotFound => "create it, or name another file",
            std::io::ErrorKind::PermissionDenied => "make it readable for this user",
            std::io::ErrorKind::InvalidData => "save it as UTF-8",
            _ => "see that the path names a file",
        };
        Errors::new(vec![Error {
            file: path.display().to_string(),
            line: None,
            column: None,
            what: format!("cannot be read: {why}"),
            todo: todo.to_owned(),
        }])
    })
}
