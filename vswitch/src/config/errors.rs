//! Errors of a whole configuration, each with its file, line and column.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Error {
    /// File, as it was named.
    pub file: String,
    /// Line, counted from 1; `None` when the error is about the file as a whole.
    pub line: Option<usize>,
    /// Column in characters, counted from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": error: {}", self.what)?;
        if !self.todo.is_empty() {
            write!(f, "; {}", self.todo)?;
        }
        Ok(())
    }
}

/// Errors shown at most: whoever has more of them has made one mistake many times.
const MOST: usize = 1000;

/// Everything that is wrong, in file order; one line each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Errors {
    /// The first ones, 1000 at most.
    pub shown: Vec<Error>,
    /// How many more there are.
    pub more: usize,
}

impl Errors {
    pub(super) fn new(mut all: Vec<Error>) -> Self {
        let more = all.len().saturating_sub(MOST);
        all.truncate(MOST);
        Errors { shown: all, more }
    }

    /// One line for each error, and one for those that are not shown.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.shown.iter().map(ToString::to_string).collect();
        if self.more > 0 {
            lines.push(format!("{} more errors; correct these first", self.more));
        }
        lines
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for Errors {}

/// Lines and columns of ascending byte offsets, found in one pass over the text however many they
/// are.
pub(super) struct Positions<'t> {
    rest: std::str::Chars<'t>,
    len: usize,
    line: usize,
    column: usize,
}

impl<'t> Positions<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Positions {
            rest: text.chars(),
            len: text.len(),
            line: 1,
            column: 1,
        }
    }

    /// Line and column of an offset no lower than the one before, both from 1; the column counts
    /// characters.
    pub(super) fn at(&mut self, offset: usize) -> (usize, usize) {
        loop {
            let mut ahead = self.rest.clone();
            let next = ahead.next();
            let passed = self.len - ahead.as_str().len();
            match next.filter(|_| passed <= offset) {
                None => return (self.line, self.column),
                Some('\n') => (self.line, self.column) = (self.line + 1, 1),
                Some(_) => self.column += 1,
            }
            self.rest = ahead;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let mut positions = Positions::new("a\nçé = 1\n");
        assert_eq!(positions.at(0), (1, 1));
        assert_eq!(positions.at(2), (2, 1));
        assert_eq!(positions.at(3), (2, 1), "inside a character");
        assert_eq!(positions.at(6), (2, 3));
        assert_eq!(positions.at(6), (2, 3));
        assert_eq!(positions.at(999), (3, 1));
    }
}
