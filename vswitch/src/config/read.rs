//! Reads tables of a TOML document key by key. A key that is wrong is recorded and read as
//! absent, so that one pass finds every error; a key nobody asked for is an error, too.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors::{Error, Positions};
use crate::policy::{FieldError, FieldPath, nearest};

/// A file's text and all that was found in it.
pub(super) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    found: RefCell<Found>,
}

/// An error, by its place in the text.
#[derive(PartialEq, Eq)]
struct Fault {
    offset: usize,
    what: String,
    todo: String,
}

#[derive(Default)]
struct Found {
    faults: Vec<Fault>,
    /// Where each field stands, by [`FieldPath::by_position`].
    spans: HashMap<String, Range<usize>>,
    /// Fields with an error at or below them.
    bad: HashSet<String>,
}

impl<'t> Document<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Document {
            file,
            text,
            found: RefCell::default(),
        }
    }

    /// The document's root table; `None` (and errors) when it is not TOML.
    pub(super) fn parse(&self) -> Option<Spanned<DeTable<'t>>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            // The parser's sentences are lower-case and may span lines.
            let what = error.message().trim().replace('\n', ", ");
            let span = error.span().unwrap_or(0..0);
            self.push(span, what, "correct the TOML syntax");
        }
        errors.is_empty().then_some(table)
    }

    /// Reads the root table.
    pub(super) fn root<'d>(&'d self, table: &'d Spanned<DeTable<'d>>) -> Section<'d> {
        Section {
            document: Source { found: &self.found },
            table: table.get_ref(),
            span: 0..0,
            at: FieldPath::root(),
            known: Vec::new(),
        }
    }

    fn push(&self, span: Range<usize>, what: impl Into<String>, todo: impl Into<String>) {
        let source = Source { found: &self.found };
        source.push(span, what.into(), todo.into());
    }

    /// Adds an error found by looking at the whole, unless the field it is about (or a part of
    /// it) already has one. `false`: the field is not of this document.
    pub(super) fn semantic(&self, error: &FieldError) -> bool {
        let mut found = self.found.borrow_mut();
        if found.bad.contains(&error.at.by_position()) {
            return true;
        }
        let mut at = Some(error.at.clone());
        let span = loop {
            let Some(path) = at else { return false };
            if let Some(span) = found.spans.get(&path.by_position()) {
                break span.clone();
            }
            at = path.parent();
        };
        found.faults.push(Fault {
            offset: span.start,
            what: error.what.clone(),
            todo: error.todo.clone(),
        });
        true
    }

    pub(super) fn name(&self) -> &str {
        self.file
    }

    /// All errors, in the order of the file.
    pub(super) fn errors(self) -> Vec<Error> {
        let mut faults = self.found.into_inner().faults;
        faults.sort_by_key(|fault| fault.offset);
        faults.dedup();
        let mut positions = Positions::new(self.text);
        let errors = faults.into_iter().map(|fault| {
            let (line, column) = positions.at(fault.offset);
            Error {
                file: self.file.to_owned(),
                line: Some(line),
                column: Some(column),
                what: fault.what,
                todo: fault.todo,
            }
        });
        errors.collect()
    }
}

#[derive(Clone, Copy)]
struct Source<'d> {
    found: &'d RefCell<Found>,
}

impl Source<'_> {
    fn push(&self, span: Range<usize>, what: String, todo: String) {
        self.found.borrow_mut().faults.push(Fault {
            offset: span.start,
            what,
            todo,
        });
    }

    fn place(&self, at: &FieldPath, span: Range<usize>) {
        let mut found = self.found.borrow_mut();
        found.spans.insert(at.by_position(), span);
    }

    /// Marks a field and everything that holds it.
    fn spoil(&self, at: &FieldPath) {
        let mut found = self.found.borrow_mut();
        let mut at = Some(at.clone());
        while let Some(path) = at {
            found.bad.insert(path.by_position());
            at = path.parent();
        }
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Field<'d, T> {
    pub(super) value: T,
    pub(super) at: FieldPath,
    span: Range<usize>,
    document: Source<'d>,
}

impl<'d, T> Field<'d, T> {
    pub(super) fn error(&self, what: impl Into<String>, todo: impl Into<String>) {
        self.document
            .push(self.span.clone(), what.into(), todo.into());
        self.document.spoil(&self.at);
    }

    fn with<U>(&self, value: U) -> Field<'d, U> {
        Field {
            value,
            at: self.at.clone(),
            span: self.span.clone(),
            document: self.document,
        }
    }
}

type Value<'d> = Field<'d, &'d DeValue<'d>>;

impl<'d> Value<'d> {
    fn wrong_type(&self, expected: &str, todo: &str) {
        let article = match self.value.type_str() {
            kind if kind.starts_with(['a', 'e', 'i', 'o', 'u']) => format!("an {kind}"),
            kind => format!("a {kind}"),
        };
        self.error(format!("expected {expected}, found {article}"), todo);
    }

    fn string(self) -> Option<Field<'d, &'d str>> {
        if let Some(text) = self.value.as_str() {
            return Some(self.with(text));
        }
        self.wrong_type("a string", "write it in double quotes");
        None
    }

    fn integer(self, low: u64, high: u64) -> Option<Field<'d, u64>> {
        let Some(integer) = self.value.as_integer() else {
            self.wrong_type("an integer", "write a number without quotes");
            return None;
        };
        // Underscores are gone and the radix prefix is cut by the parser. In a text with an error
        // there may be anything else.
        let value = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let value = value.and_then(|value| u64::try_from(value).ok());
        match value.filter(|value| (low..=high).contains(value)) {
            Some(value) => Some(self.with(value)),
            None => {
                let what = format!("{} is out of range", integer.as_str().escape_debug());
                self.error(what, format!("use {low} to {high}"));
                None
            }
        }
    }

    fn items(&self, key: &'static str, parent: &FieldPath) -> Option<Vec<Value<'d>>> {
        let array = self.value.as_array()?;
        let items = array.iter().enumerate().map(|(n, item)| {
            let at = parent.item(key, n, "");
            self.document.place(&at, item.span());
            Field {
                value: item.get_ref(),
                at,
                span: item.span(),
                document: self.document,
            }
        });
        Some(items.collect())
    }
}

impl<'d> Field<'d, &'d str> {
    /// Parses the text; an error says why not and `todo`.
    pub(super) fn parse<T>(&self, todo: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        match self.value.parse() {
            Ok(value) => Some(value),
            Err(why) => {
                self.error(format!("{:?}: {why}", self.value), todo);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == self.value) {
            return Some(*value);
        }
        let all = || words.iter().map(|(word, _)| *word);
        let todo = match nearest(self.value, all()) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!("use one of {}", quoted(all())),
        };
        self.error(format!("{:?} is not known here", self.value), todo);
        None
    }
}

fn quoted<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
    words.join(", ")
}

/// One table, read key by key; [`Section::finish`] reports what was not asked for.
pub(super) struct Section<'d> {
    document: Source<'d>,
    table: &'d DeTable<'d>,
    span: Range<usize>,
    pub(super) at: FieldPath,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    /// An error about the table as a whole.
    pub(super) fn error(
        &self,
        key: &'static str,
        what: impl Into<String>,
        todo: impl Into<String>,
    ) {
        self.document
            .push(self.span.clone(), what.into(), todo.into());
        self.document.spoil(&self.at.key(key));
    }

    fn get(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        let (_, value) = self.table.get_key_value(key)?;
        let at = self.at.key(key);
        self.document.place(&at, value.span());
        Some(Field {
            value: value.get_ref(),
            at,
            span: value.span(),
            document: self.document,
        })
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<Field<'d, &'d str>> {
        self.get(key)?.string()
    }

    /// A string that must be there; "" (and an error) when it is not.
    pub(super) fn required(&mut self, key: &'static str, todo: &str) -> String {
        if !self.has(key) {
            self.known.push(key);
            self.error(key, format!("missing key {key:?}"), todo);
        }
        let text = self.string(key);
        text.map_or_else(String::new, |text| text.value.to_owned())
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let field = self.get(key)?;
        let value = field.value.as_bool();
        if value.is_none() {
            field.wrong_type("a boolean", "write true or false");
        }
        value
    }

    pub(super) fn integer<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        low: u64,
        high: u64,
    ) -> Option<T> {
        let field = self.get(key)?.integer(low, high)?;
        T::try_from(field.value).ok()
    }

    /// A number, or a text with a unit.
    pub(super) fn rate(&mut self, key: &'static str) -> Option<u64> {
        let field = self.get(key)?;
        if field.value.as_str().is_none() {
            return field.integer(0, u64::MAX).map(|field| field.value);
        }
        let text = field.string()?;
        let rate = crate::policy::model::parse_rate(text.value);
        if rate.is_none() {
            let what = format!("{:?} is not a rate", text.value);
            text.error(what, "write a number with k, M, G or T, such as \"10M\"");
        }
        rate
    }

    /// A list of integers.
    pub(super) fn integers<T: TryFrom<u64>>(&mut self, key: &'static str, high: u64) -> Vec<T> {
        let Some(field) = self.get(key) else {
            return Vec::new();
        };
        let Some(items) = field.items(key, &self.at) else {
            field.wrong_type("a list of integers", "write it in square brackets");
            return Vec::new();
        };
        let numbers = items.into_iter().filter_map(|item| item.integer(0, high));
        numbers
            .filter_map(|number| T::try_from(number.value).ok())
            .collect()
    }

    /// A list of strings.
    pub(super) fn strings(&mut self, key: &'static str) -> Vec<Field<'d, &'d str>> {
        let Some(field) = self.get(key) else {
            return Vec::new();
        };
        let Some(items) = field.items(key, &self.at) else {
            field.wrong_type("a list of strings", "write it in square brackets");
            return Vec::new();
        };
        items.into_iter().filter_map(Field::string).collect()
    }

    /// A list of pairs of strings; one that is something else is left out (and reported).
    pub(super) fn pairs(&mut self, key: &'static str, todo: &str) -> Vec<[&'d str; 2]> {
        let Some(field) = self.get(key) else {
            return Vec::new();
        };
        let Some(items) = field.items(key, &self.at) else {
            field.wrong_type("a list of pairs", todo);
            return Vec::new();
        };
        let pairs = items.into_iter().filter_map(|item| {
            let Some(both) = item.items("of", &item.at) else {
                item.wrong_type("a pair", todo);
                return None;
            };
            let both: Vec<_> = both.into_iter().filter_map(Field::string).collect();
            let names = both.iter().map(|name| name.value).collect::<Vec<_>>();
            let pair = names.try_into().ok();
            if pair.is_none() {
                item.error("that is no pair", todo);
            }
            pair
        });
        pairs.collect()
    }

    /// A string, or a list of them that is not empty.
    pub(super) fn one_or_more(&mut self, key: &'static str, todo: &str) -> Vec<Field<'d, &'d str>> {
        let Some(field) = self.get(key) else {
            return Vec::new();
        };
        if let Some(text) = field.value.as_str() {
            // The same path as the only item of a list has.
            let at = self.at.item(key, 0, "");
            self.document.place(&at, field.span.clone());
            return vec![Field {
                at,
                ..field.with(text)
            }];
        }
        match field.items(key, &self.at) {
            None => {
                field.wrong_type("a string or a list of strings", "write it in double quotes");
                Vec::new()
            }
            Some(items) if items.is_empty() => {
                field.error("the list is empty", todo);
                Vec::new()
            }
            Some(items) => items.into_iter().filter_map(Field::string).collect(),
        }
    }

    /// Every text of a list, parsed; wrong ones are left out (and reported).
    pub(super) fn parsed<T>(&mut self, key: &'static str, todo: &str) -> Vec<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let texts = self.strings(key);
        texts.iter().filter_map(|text| text.parse(todo)).collect()
    }

    fn section(&self, value: &Value<'d>) -> Option<Section<'d>> {
        Some(Section {
            document: self.document,
            table: value.value.as_table()?,
            span: value.span.clone(),
            at: value.at.clone(),
            known: Vec::new(),
        })
    }

    /// A table.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Section<'d>> {
        let value = self.get(key)?;
        let section = self.section(&value);
        if section.is_none() {
            value.wrong_type("a table", &format!("write [{key}] and its keys below"));
        }
        section
    }

    /// An array of tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(items) = value.items(key, &self.at) else {
            let todo = format!("write [[{key}]] and its keys below");
            value.wrong_type("an array of tables", &todo);
            return Vec::new();
        };
        let tables = items.into_iter().filter_map(|item| {
            let section = self.section(&item);
            if section.is_none() {
                item.wrong_type("a table", &format!("write [[{key}]] and its keys below"));
            }
            section
        });
        tables.collect()
    }

    /// Reports a key that exists but has no business here.
    pub(super) fn refuse(&mut self, key: &'static str, what: &str, todo: &str) {
        if let Some(field) = self.get(key) {
            field.error(what, todo);
        }
    }

    /// Keys that are known although nobody reads them.
    pub(super) fn allow(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    /// Reports every key nobody asked for.
    pub(super) fn finish(mut self) {
        self.known.sort_unstable();
        self.known.dedup();
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let todo = match nearest(name, self.known.iter().copied()) {
                Some(known) => format!("did you mean {known:?}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let what = format!("unknown key {name:?}");
            self.document.push(key.span(), what, todo);
            self.document.spoil(&self.at);
        }
    }
}
