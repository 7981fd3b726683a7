//! The config file of an app: from its text to a [`Spec`], or to all its problems at once.
//!
//! `raw` walks the table that TOML gives, with the place of each value; `values` knows the forms
//! that values may have, `check` the keys with their defaults and what they say together. Nothing
//! here does I/O: whether a script, a user or a directory is there is asked by `load`.

mod check;
mod environment;
mod keys;
mod limits;
mod problem;
mod raw;
mod syntax;
mod template;
#[cfg(test)]
mod tests;
mod values;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use toml::de::DeTable;

pub use environment::{EnvFileError, EnvFileFault, read_env_file};
pub use limits::change_limits;
pub use problem::{PlacedProblem, Problem, Problems, Severity, line_and_column};
pub use template::template;
pub use words::{WordsError, split_words};

use crate::spec::{AppName, Spec};

/// A config file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As the user named it: for messages.
    pub path: PathBuf,
    /// The app's name, from the file's.
    pub name: AppName,
    /// The directory of the file, absolute.
    pub directory: PathBuf,
    /// What is in it.
    pub text: String,
}

/// A config that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// What the app asks for.
    pub spec: Spec,
    /// What its author should know all the same.
    pub notes: Problems,
}

/// A config of which as much was understood as can be.
#[derive(Debug, Clone, PartialEq)]
pub struct Examined {
    /// What the app asks for; a faulty key has its default, and a faulty program no arguments.
    /// `None` where the text is no TOML.
    pub spec: Option<Spec>,
    /// Problems and notes, unsorted.
    pub findings: Vec<Problem>,
    /// Where the values are that were understood: `key`, `table.key`, `env.NAME`.
    pub places: BTreeMap<String, Range<usize>>,
    /// The keys with a problem.
    pub faulty: BTreeSet<String>,
}

/// Checks a config. `overlay` lays the table `env_NAME` over `env`.
pub fn parse(source: &Source, overlay: Option<&str>) -> Result<Checked, Problems> {
    examine(source, overlay).conclude(source).map(|(spec, notes)| Checked { spec, notes })
}

/// Finds everything that the text alone says, for a caller who has more to check.
pub fn examine(source: &Source, overlay: Option<&str>) -> Examined {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let syntax = syntax::problems(&source.text, &errors);
    let mut reader = raw::Reader::new(table.get_ref());
    if syntax.readable {
        raw::check_nul(table.get_ref(), &mut reader);
        keys::check_keys(table.get_ref(), &mut reader);
        let spec = check::spec(source, overlay, &mut reader);
        keys::note_no_effect(&mut reader);
        keys::note_gap(&spec, &mut reader);
        let (findings, places, faulty) = reader.finish();
        if syntax.problems.is_empty() {
            return Examined { spec: Some(spec), findings, places, faulty };
        }
        let findings = syntax.join(&source.text, findings);
        return Examined { spec: None, findings, places, faulty };
    }
    Examined {
        spec: None,
        findings: syntax.problems,
        places: BTreeMap::new(),
        faulty: BTreeSet::new(),
    }
}

impl Examined {
    /// The spec with its notes, or all findings where one of them is a problem.
    pub fn conclude(self, source: &Source) -> Result<(Spec, Problems), Problems> {
        let findings = Problems::new(&source.path, &source.text, self.findings);
        match self.spec {
            Some(spec) if findings.errors() == 0 => Ok((spec, findings)),
            Some(_) | None => Err(findings),
        }
    }
}
