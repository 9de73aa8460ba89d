//! Ids that nobody guesses, by which people call what waits for them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use super::api::{ApiError, ErrorCode};

/// Gives them out.
#[derive(Debug, Default)]
pub(super) struct Ids {
    random: RandomState,
    given: u64,
}

impl Ids {
    /// Another one.
    pub(super) fn another(&mut self) -> u64 {
        self.given += 1;
        self.random.hash_one(self.given)
    }
}

/// As it is shown: 16 hexadecimal digits.
pub(super) fn text(id: u64) -> String {
    format!("{id:016x}")
}

/// Which of these is meant by an id, or the beginning of one. `noun` is what they are, and `list` the command that shows them.
pub(super) fn named<T>(
    those: impl Iterator<Item = (u64, T)>,
    beginning: &str,
    (noun, list): (&str, &str),
) -> Result<(u64, T), ApiError> {
    let is_meant = |id: u64| !beginning.is_empty() && text(id).starts_with(beginning);
    let mut named = those.filter(|(id, _)| is_meant(*id));
    let what = match (named.next(), named.next()) {
        (Some(found), None) => return Ok(found),
        (None, _) => format!("no {noun} {beginning} waits; `vswitch {list}` shows those that do"),
        (Some(_), Some(_)) => format!("several {noun}s begin with {beginning}"),
    };
    Err(ApiError::new(ErrorCode::Usage, what))
}
