//! What is wrong with a desired state, and where: a path to the field rather than a place in a
//! text, so that a program that builds its state in code gets the same answers as a file.

use std::fmt;

use serde::{Serialize, Serializer};

/// One step of a [`FieldPath`]: a key, or an item of a list.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Step {
    key: &'static str,
    index: Option<usize>,
    name: String,
}

/// The way to a field from the root of the desired state: `port[web-1].workload[0].mac[0]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FieldPath(Vec<Step>);

impl FieldPath {
    /// The whole document.
    #[must_use]
    pub fn root() -> Self {
        FieldPath::default()
    }

    /// A key below this one.
    #[must_use]
    pub fn key(&self, key: &'static str) -> Self {
        self.step(key, None, "")
    }

    /// Item `index` of the list `key`; `name` is what the item is called, "" when it is not.
    #[must_use]
    pub fn item(&self, key: &'static str, index: usize, name: &str) -> Self {
        self.step(key, Some(index), name)
    }

    fn step(&self, key: &'static str, index: Option<usize>, name: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step {
            key,
            index,
            name: name.to_owned(),
        });
        FieldPath(steps)
    }

    /// The field that holds this one; `None` at the root.
    #[must_use]
    pub fn parent(&self) -> Option<FieldPath> {
        let (_, rest) = self.0.split_last()?;
        Some(FieldPath(rest.to_vec()))
    }

    /// The path with its first step, when that is an item of the list `key`, at the number that
    /// `to` makes of its number and name; `None`: at one that no item has.
    #[must_use]
    pub(crate) fn renumbered(
        mut self,
        key: &str,
        to: impl FnOnce(usize, &str) -> Option<usize>,
    ) -> Self {
        if let Some(first) = self.0.first_mut()
            && first.key == key
            && let Some(index) = first.index
        {
            first.index = to(index, &first.name).or(Some(usize::MAX));
        }
        self
    }

    /// The path by position only, which names one field even among items of the same name.
    #[must_use]
    pub fn by_position(&self) -> String {
        self.render(|step| step.index.map(|index| index.to_string()))
    }

    fn render(&self, item: impl Fn(&Step) -> Option<String>) -> String {
        let mut text = String::new();
        for step in &self.0 {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(step.key);
            if let Some(item) = item(step) {
                text.push('[');
                text.push_str(&item);
                text.push(']');
            }
        }
        text
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(|step| {
            step.index.map(|index| {
                if step.name.is_empty() {
                    index.to_string()
                } else {
                    step.name.clone()
                }
            })
        }))
    }
}

impl Serialize for FieldPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A field that cannot stand: where, what is wrong with it, what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, thiserror::Error)]
#[error("{at}: {what}; {todo}")]
pub struct FieldError {
    /// Where.
    pub at: FieldPath,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

impl FieldError {
    /// An error at `at`.
    #[must_use]
    pub fn new(at: FieldPath, what: impl Into<String>, todo: impl Into<String>) -> Self {
        FieldError {
            at,
            what: what.into(),
            todo: todo.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_items_for_people_and_number_them_for_programs() {
        let at = FieldPath::root()
            .item("port", 3, "web-1")
            .item("workload", 0, "")
            .item("mac", 1, "");
        assert_eq!(at.to_string(), "port[web-1].workload[0].mac[1]");
        assert_eq!(at.by_position(), "port[3].workload[0].mac[1]");
        assert_eq!(
            at.parent().map(|p| p.to_string()).as_deref(),
            Some("port[web-1].workload[0]")
        );
        assert_eq!(FieldPath::root().parent(), None);
        let moved = |key| at.clone().renumbered(key, |index, _| index.checked_sub(2));
        assert_eq!(moved("port").by_position(), "port[1].workload[0].mac[1]");
        assert_eq!(moved("workload"), at);
    }
}
