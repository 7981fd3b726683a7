//! The file as a table of values with their places.
//!
//! The values are looked at one by one instead of by `serde`, because that stops at the first
//! problem, and a person wants to see all of them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Severity};

/// A value of the file with its place.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// What is wrong with one value; the key is put before it.
#[derive(Debug)]
pub(super) struct Complaint {
    /// What follows the key, as `must be 1 or 2, not 3`.
    tail: String,
    hint: Option<String>,
    span: Range<usize>,
}

impl Complaint {
    /// The value does not have the form that is named.
    pub(super) fn expected(value: &Value<'_>, form: &str) -> Self {
        Self::new(value, format!("must be {form}, not {}", describe(value.get_ref())))
    }

    /// Something else is wrong with the value: `tail` follows the key.
    pub(super) fn new(value: &Value<'_>, tail: String) -> Self {
        Self { tail, hint: None, span: value.span() }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A value as a message names it: short, and on one line.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    const SHOWN_MAX: usize = 40;
    match value {
        DeValue::String(text) if text.chars().nth(SHOWN_MAX).is_some() => {
            let start: String = text.chars().take(SHOWN_MAX).collect();
            format!("{start:?}...")
        }
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Looks up keys and gathers what is wrong with their values.
#[derive(Debug)]
pub(super) struct Reader<'t> {
    root: &'t DeTable<'t>,
    problems: Vec<Problem>,
    places: BTreeMap<String, Range<usize>>,
    faulty: BTreeSet<String>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(root: &'t DeTable<'t>) -> Self {
        Self { root, problems: Vec::new(), places: BTreeMap::new(), faulty: BTreeSet::new() }
    }

    /// The whole file.
    pub(super) fn root(&self) -> &'t DeTable<'t> {
        self.root
    }

    /// The value at `key`, or at `table.key`.
    pub(super) fn find(&self, key: &str) -> Option<&'t Value<'t>> {
        match key.split_once('.') {
            Some((table, key)) => self.root.get(table)?.get_ref().as_table()?.get(key),
            None => self.root.get(key),
        }
    }

    /// Reads the value at `key` with `form`. A complaint becomes a problem; the caller goes on with
    /// the default.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        form: impl FnOnce(&'t Value<'t>) -> Result<T, Complaint>,
    ) -> Option<T> {
        let value = self.find(key)?;
        self.read_value(key, value, form)
    }

    /// The same for a value that the caller has found, and calls `key`.
    pub(super) fn read_value<T>(
        &mut self,
        key: &str,
        value: &'t Value<'t>,
        form: impl FnOnce(&'t Value<'t>) -> Result<T, Complaint>,
    ) -> Option<T> {
        match form(value) {
            Ok(checked) => {
                self.places.insert(key.to_owned(), value.span());
                Some(checked)
            }
            Err(Complaint { tail, hint, span }) => {
                self.faulty.insert(key.to_owned());
                self.problem_at(Some(span), format!("`{key}` {tail}"), hint);
                None
            }
        }
    }

    /// Whether `key` stands in the file, however faulty.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Whether there was a complaint about `key`.
    pub(super) fn is_faulty(&self, key: &str) -> bool {
        self.faulty.contains(key)
    }

    /// Adds a problem at the value of `key`.
    pub(super) fn problem(&mut self, key: &str, message: String, hint: Option<String>) {
        self.faulty.insert(key.to_owned());
        self.problem_at(self.find(key).map(Spanned::span), message, hint);
    }

    /// Adds a problem at a place.
    pub(super) fn problem_at(
        &mut self,
        span: Option<Range<usize>>,
        message: String,
        hint: Option<String>,
    ) {
        self.problems.push(Problem { severity: Severity::Error, message, hint, span });
    }

    /// Adds a note at the value of `key`.
    pub(super) fn note(&mut self, key: &str, message: String, hint: Option<String>) {
        self.note_at(self.find(key).map(Spanned::span), message, hint);
    }

    /// Adds a note at a place.
    pub(super) fn note_at(
        &mut self,
        span: Option<Range<usize>>,
        message: String,
        hint: Option<String>,
    ) {
        self.problems.push(Problem { severity: Severity::Note, message, hint, span });
    }

    /// What was found, where the values are, and which keys are faulty.
    pub(super) fn finish(self) -> (Vec<Problem>, BTreeMap<String, Range<usize>>, BTreeSet<String>) {
        (self.problems, self.places, self.faulty)
    }
}

/// Complains about every string that contains a NUL: neither an argument, nor a variable, nor a
/// path can carry one.
pub(super) fn check_nul(table: &DeTable<'_>, reader: &mut Reader<'_>) {
    fn visit(value: &Value<'_>, reader: &mut Reader<'_>) {
        match value.get_ref() {
            DeValue::String(text) if text.contains('\0') => {
                let message = "a string cannot contain a NUL character".to_owned();
                reader.problem_at(Some(value.span()), message, None);
            }
            DeValue::Array(items) => items.iter().for_each(|item| visit(item, reader)),
            DeValue::Table(table) => check_nul(table, reader),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {}
        }
    }
    for value in table.values() {
        visit(value, reader);
    }
}
