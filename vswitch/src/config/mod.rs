//! Configuration files: `switch.toml` describes the machine, `policy.toml` the policy. Read
//! whole, checked whole; the answer is a desired state or every error at its line and column.
//!
//! The keys are described in `docs/config.md`.

mod errors;
mod policy;
mod read;
mod switch;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use errors::{Error, Errors};
pub use switch::Machine;

use crate::control::state::{Desired, PortConfig};
use crate::control::validate::validate;
use crate::policy::model::Policy;
use read::Document;

/// Reads `switch.toml` and the policy it names (relative to its own directory).
///
/// # Errors
/// Everything wrong with either file: unreadable, not TOML, unknown keys, wrong values, and what
/// does not fit together.
pub fn load(path: &Path) -> Result<Desired, Errors> {
    let file = path.display().to_string();
    let text = read_file(path)?;
    let document = Document::new(&file, &text);
    let Some(table) = document.parse() else {
        return Err(Errors::new(document.errors()));
    };
    let machine = switch::read(document.root(&table));
    if machine.policy.as_os_str().is_empty() {
        return Err(Errors::new(document.errors()));
    }
    let policy_path = path.parent().unwrap_or(Path::new("")).join(&machine.policy);
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
    finish(machine, document, policy)
}

/// Where the policy of this `switch.toml` is.
///
/// # Errors
/// Everything wrong with `switch.toml` by itself.
pub fn policy_path(path: &Path) -> Result<PathBuf, Errors> {
    let text = read_file(path)?;
    let file = path.display().to_string();
    let document = Document::new(&file, &text);
    let machine = document
        .parse()
        .map(|table| switch::read(document.root(&table)));
    match machine {
        Some(m) if !m.policy.as_os_str().is_empty() => {
            Ok(path.parent().unwrap_or(Path::new("")).join(m.policy))
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
        switch: desired.switch.clone(),
        ports: desired.ports.clone(),
    };
    let document = Document::new(name, text);
    finish(machine, Document::new("", ""), document).map(|desired| desired.policy)
}

/// The `[[port]]` tables of a string that holds nothing else.
///
/// # Errors
/// Everything wrong with the string by itself; not what does not fit other ports.
pub fn parse_ports(name: &str, text: &str) -> Result<Vec<PortConfig>, Errors> {
    // The reader wants a whole machine: the line before the text names a policy.
    let whole = format!("policy = \"none\"\n{text}");
    let document = Document::new(name, &whole);
    let machine = document
        .parse()
        .map(|table| switch::read(document.root(&table)));
    let mut errors = document.errors();
    for line in errors.iter_mut().filter_map(|e| e.line.as_mut()) {
        *line = line.saturating_sub(1);
    }
    match machine {
        Some(machine) if errors.is_empty() => Ok(machine.ports),
        _ => Err(Errors::new(errors)),
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
        Some(table) => finish(switch::read(document.root(&table)), document, policy),
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
        switch: Default::default(),
        ports: Vec::new(),
    };
    let document = Document::new(name, text);
    finish(machine, Document::new("", ""), document).map(|desired| desired.policy)
}

/// Reads the policy and checks that the two fit together.
fn finish(machine: Machine, switch: Document<'_>, policy: Document<'_>) -> Result<Desired, Errors> {
    let mut desired = Desired {
        switch: machine.switch,
        ports: machine.ports,
        policy: Policy::default(),
    };
    let mut nowhere = Vec::new();
    if let Some(table) = policy.parse() {
        desired.policy = policy::read(policy.root(&table));
        for error in validate(&desired) {
            if !switch.semantic(&error) && !policy.semantic(&error) {
                // About what neither file says: a default, or the machine a policy is checked for.
                nowhere.push(Error {
                    file: policy.name().to_owned(),
                    line: None,
                    column: None,
                    what: format!("{}: {}", error.at, error.what),
                    todo: error.todo,
                });
            }
        }
    }
    let mut errors = switch.errors();
    errors.extend(policy.errors());
    errors.extend(nowhere);
    if errors.is_empty() {
        Ok(desired)
    } else {
        Err(Errors::new(errors))
    }
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
