//! `env`, its overlays, and the files that hold variables.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::is_overlay;
use super::raw::{Complaint, Reader, Value};
use super::values;
use crate::spec::Environment;

/// Most bytes of all variables together. Linux gives arguments and environment a quarter of the
/// stack limit (execve(2)), 2 MiB with the usual 8 MiB.
pub(super) const ENV_BYTES_MAX: usize = 1 << 20;

/// Variables that pmr itself sets for each instance: what a file says would be lost.
const RESERVED: &[&str] = &[
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
];

/// What is wrong with `name` as the name of a variable.
fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is no name of a variable: it is empty")
    } else if name.contains(['=', '\0']) {
        Some("is no name of a variable: `=` and NUL cannot be in one")
    } else if RESERVED.contains(&name) || name.starts_with("PMR_") {
        Some("is set by pmr itself")
    } else {
        None
    }
}

/// The name of a variable as a value.
fn variable(value: &Value<'_>) -> Result<String, Complaint> {
    let name = values::text(value)?;
    match name_fault(name) {
        Some(fault) => Err(Complaint::new(value, format!("{fault}: {name:?}"))),
        None => Ok(name.to_owned()),
    }
}

/// Reads the keys of the environment; all overlays are checked, the one asked for is laid over.
pub(super) fn environment(
    overlay: Option<&str>,
    cwd: &Path,
    reader: &mut Reader<'_>,
) -> Environment {
    let mut vars = variables("env", reader);
    let mut found = false;
    for key in overlays(reader.root()) {
        let over = variables(&key, reader);
        if overlay.is_some() && key.strip_prefix("env_") == overlay {
            found = true;
            vars.extend(over);
        }
    }
    if let Some(name) = overlay.filter(|_| !found) {
        let names: Vec<_> = overlays(reader.root()).map(|key| format!("`[{key}]`")).collect();
        let hint = match &*names {
            [] => "the file has no table `[env_NAME]` at all".to_owned(),
            names => format!("there is {}", names.join(", ")),
        };
        let message = format!("there is no table `[env_{}]`", name.escape_debug());
        reader.problem_at(None, message, Some(hint));
    }
    check_size(&vars, reader);
    let file = reader.read("env_file", values::path);
    let instance_var = reader.read("instance_var", variable);
    let instance_var = instance_var.unwrap_or_else(|| "NODE_APP_INSTANCE".to_owned());
    let increment_var = reader.read("increment_var", variable);
    if let Some(name) = &increment_var {
        check_increment(name, &instance_var, vars.get(name).map(String::as_str), reader);
    }
    Environment {
        vars,
        file: file.map(|file| values::absolute(cwd, Some(&file))),
        clear: reader.read("env_clear", values::boolean).unwrap_or(false),
        instance_var,
        increment_var,
    }
}

/// The keys of all overlays.
fn overlays<'t>(root: &'t DeTable<'t>) -> impl Iterator<Item = String> + 't {
    root.iter()
        .filter(|(key, value)| is_overlay(key.get_ref(), value.get_ref()))
        .map(|(key, _)| key.get_ref().clone().into_owned())
}

fn variables(table: &str, reader: &mut Reader<'_>) -> BTreeMap<String, String> {
    let Some(value) = reader.find(table) else { return BTreeMap::new() };
    let DeValue::Table(entries) = value.get_ref() else {
        let complaint = |value| {
            let hint = format!("write `[{table}]`, and below it `NAME = \"value\"`");
            Err::<(), _>(Complaint::expected(value, "a table of variables").hint(hint))
        };
        reader.read_value(table, value, complaint);
        return BTreeMap::new();
    };
    let mut vars = BTreeMap::new();
    for (name, value) in entries {
        if let Some(fault) = name_fault(name.get_ref()) {
            let message = format!("`{table}.{}` {fault}", name.get_ref().escape_debug());
            reader.problem_at(Some(name.span()), message, None);
            continue;
        }
        let key = format!("{table}.{}", name.get_ref());
        if let Some(text) = reader.read_value(&key, value, values::scalar) {
            vars.insert(name.get_ref().clone().into_owned(), text);
        }
    }
    vars
}

fn check_increment(name: &str, instance_var: &str, value: Option<&str>, reader: &mut Reader<'_>) {
    if name == instance_var {
        let message = format!("`increment_var` and `instance_var` are both {name}");
        reader.problem("increment_var", message, None);
    } else if value.is_some_and(|value| value.parse::<i64>().is_err()) {
        let message = format!("`increment_var` adds to {name}, which is no number");
        reader.problem("increment_var", message, None);
    }
}

/// What is wrong with a file of variables, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFileError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: EnvFileFault,
}

/// What is wrong with a line of a file of variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvFileFault {
    /// There is no `=`.
    NoAssignment,
    /// What stands before the `=` is no name of a variable.
    Name,
    /// A quote is opened and never closed.
    OpenQuote,
    /// Something follows the closing quote.
    AfterQuote,
    /// There is a NUL.
    Nul,
}

impl fmt::Display for EnvFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            EnvFileFault::NoAssignment => "a variable is written NAME=value",
            EnvFileFault::Name => "the name is made of letters, digits and `_`, no digit first",
            EnvFileFault::OpenQuote => "the quote is never closed",
            EnvFileFault::AfterQuote => "something follows the closing quote",
            EnvFileFault::Nul => "there is a NUL character",
        };
        write!(f, "line {}: {fault}", self.line)
    }
}

impl std::error::Error for EnvFileError {}

/// Reads the text of an `env_file`: lines of `NAME=value` as systemd's `EnvironmentFile=` and
/// dotenv have them, comments, `export`, and values in quotes, which may go over several lines.
/// Nothing is expanded. A name that comes twice has its last value.
pub fn read_env_file(text: &str) -> Result<BTreeMap<String, String>, EnvFileError> {
    let mut vars = BTreeMap::new();
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut line_number: usize = 1;
    while !rest.is_empty() {
        let error = |fault| EnvFileError { line: line_number, fault };
        let (line, mut after) = rest.split_once('\n').unwrap_or((rest, ""));
        let line = line.trim();
        if !line.is_empty() && !line.starts_with(['#', ';']) {
            let (name, _) = line.split_once('=').ok_or(error(EnvFileFault::NoAssignment))?;
            let name = name.strip_prefix("export ").unwrap_or(name).trim();
            if !is_shell_name(name) {
                return Err(error(EnvFileFault::Name));
            }
            let (_, tail) = rest.split_once('=').unwrap_or_default();
            let (value, behind) = env_value(tail).map_err(error)?;
            vars.insert(name.to_owned(), value);
            after = behind;
        }
        let taken = rest.strip_suffix(after).unwrap_or(rest);
        line_number = line_number.saturating_add(taken.matches('\n').count());
        rest = after;
    }
    Ok(vars)
}

fn is_shell_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The value that `text` starts with, and the lines behind it.
fn env_value(text: &str) -> Result<(String, &str), EnvFileFault> {
    let text = text.trim_start_matches([' ', '\t']);
    let mut chars = text.chars();
    let (value, rest) = match chars.next() {
        Some('\'') => {
            let (value, rest) = chars.as_str().split_once('\'').ok_or(EnvFileFault::OpenQuote)?;
            (value.to_owned(), rest)
        }
        Some('"') => {
            let value = double_quoted(&mut chars)?;
            (value, chars.as_str())
        }
        Some(_) | None => {
            let (line, _) = text.split_once('\n').unwrap_or((text, ""));
            // As in dotenv, a comment behind a value has a blank before it; `#` alone is a part.
            let end = line.find(" #").or_else(|| line.find("\t#")).unwrap_or(line.len());
            let (value, _) = line.split_at(end);
            (value.trim_end().to_owned(), text.trim_start_matches(|c| c != '\n'))
        }
    };
    let (rest, after) = rest.split_once('\n').unwrap_or((rest, ""));
    let rest = rest.trim();
    if value.contains('\0') {
        Err(EnvFileFault::Nul)
    } else if rest.is_empty() || rest.starts_with('#') {
        Ok((value, after))
    } else {
        Err(EnvFileFault::AfterQuote)
    }
}

fn double_quoted(chars: &mut std::str::Chars<'_>) -> Result<String, EnvFileFault> {
    let mut value = String::new();
    loop {
        match chars.next().ok_or(EnvFileFault::OpenQuote)? {
            '"' => return Ok(value),
            '\\' => match chars.next().ok_or(EnvFileFault::OpenQuote)? {
                'n' => value.push('\n'),
                '\n' => {}
                c @ ('"' | '\\' | '$' | '`') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
}

/// Whether the variables fit what a process can be given.
fn check_size(vars: &BTreeMap<String, String>, reader: &mut Reader<'_>) {
    let size = |(name, value): (&String, &String)| name.len().saturating_add(value.len());
    // Each variable is `NAME=value` with a NUL.
    let bytes: usize = vars.iter().map(|var| size(var).saturating_add(2)).sum();
    if bytes > ENV_BYTES_MAX {
        let message = format!("the environment has {bytes} bytes, at most {ENV_BYTES_MAX} fit");
        reader.problem("env", message, None);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_env_file_is_read_as_systemd_and_dotenv_read_it() {
        let text = "\u{feff}# comment\n; too\n\nA=1\nexport B = two words  \r\nC='x # y' # why\n\
                    D=\"a\\n\\\"b\\\" \\w\"\nE=\nF=p#q #r\nG='two\nlines'\nA=2\n  H=\"x=y\"";
        let vars = read_env_file(text).unwrap();
        let expected = [
            ("A", "2"),
            ("B", "two words"),
            ("C", "x # y"),
            ("D", "a\n\"b\" \\w"),
            ("E", ""),
            ("F", "p#q"),
            ("G", "two\nlines"),
            ("H", "x=y"),
        ];
        assert_eq!(vars, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn a_fault_has_its_line() {
        for (text, line, fault) in [
            ("A=1\nB", 2, EnvFileFault::NoAssignment),
            ("\n\n1A=1", 3, EnvFileFault::Name),
            ("A B=1", 1, EnvFileFault::Name),
            ("=1", 1, EnvFileFault::Name),
            ("A='x\ny'\nB=\"", 3, EnvFileFault::OpenQuote),
            ("A='x' y", 1, EnvFileFault::AfterQuote),
            ("A=1\nB=\0", 2, EnvFileFault::Nul),
        ] {
            assert_eq!(read_env_file(text), Err(EnvFileError { line, fault }), "{text:?}");
        }
        let error = read_env_file("x").unwrap_err();
        assert_eq!(error.to_string(), "line 1: a variable is written NAME=value");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-C='\"\\\\ \n\r#\0x\u{e9}]{0,60}") {
            match read_env_file(&text) {
                Ok(vars) => for (name, value) in vars {
                    prop_assert!(is_shell_name(&name));
                    prop_assert!(!value.contains('\0'));
                },
                Err(error) => {
                    prop_assert!(error.line <= text.matches('\n').count().saturating_add(1));
                }
            }
        }
    }
}
