//! What is wrong with a text that is no TOML, in words that help.
//!
//! The parser names what it would have accepted next; for a bare word that is, say, "invalid float,
//! expected `nan`". Here the line says what was probably meant.

use std::ops::Range;

use toml::de::Error;

use super::problem::{FINDINGS_MAX, Problem, Severity};

/// The problems of the text, and whether its tables could be read all the same.
pub(super) struct Syntax {
    pub(super) problems: Vec<Problem>,
    /// Each problem is within one value: the keys around it stand where their author put them.
    pub(super) readable: bool,
}

/// Rewrites what the parser says. One problem a line: the others follow from it.
pub(super) fn problems(text: &str, errors: &[Error]) -> Syntax {
    if let Some(problem) = foreign(text).filter(|_| !errors.is_empty()) {
        return Syntax { problems: vec![problem], readable: false };
    }
    let mut places: Vec<_> = errors.iter().map(|error| (place(text, error), error)).collect();
    places.sort_by_key(|(span, _)| (span.start, span.end));
    let mut problems: Vec<Problem> = Vec::new();
    let mut readable = true;
    let mut line_end = None;
    for (span, error) in places {
        let line = line_of(text, span.start);
        if line_end.replace(line.end) == Some(line.end) {
            continue;
        }
        let (problem, local) = rewrite(text, line, span, error.message());
        readable = readable && local;
        problems.push(problem);
    }
    // Who has so many of them need not know what else there is.
    let readable = readable && problems.len() <= FINDINGS_MAX;
    Syntax { problems, readable }
}

impl Syntax {
    /// Adds the findings that do not follow from a problem of the text: those on other lines, and
    /// none about the file as a whole, of which a part is unknown.
    pub(super) fn join(self, text: &str, findings: Vec<Problem>) -> Vec<Problem> {
        let lines: Vec<_> = self
            .problems
            .iter()
            .filter_map(|problem| problem.span.as_ref())
            .map(|span| line_of(text, span.start))
            .collect();
        let independent = |finding: &Problem| {
            let Some(span) = &finding.span else { return false };
            lines.iter().all(|line| span.end < line.start || line.end < span.start)
        };
        let mut all = self.problems;
        all.extend(findings.into_iter().filter(independent));
        all
    }
}

/// A text of another language.
fn foreign(text: &str) -> Option<Problem> {
    let start = text.trim_start();
    (start.starts_with('{')
        || text.contains("module.exports")
        || start.starts_with("export default"))
    .then(|| Problem {
        severity: Severity::Error,
        message: "this is no TOML, but looks like an ecosystem file".to_owned(),
        hint: Some("`pmr import` turns an ecosystem file into config files".to_owned()),
        span: None,
    })
}

/// Where the error is, within the text and between characters.
fn place(text: &str, error: &Error) -> Range<usize> {
    let span = error.span().unwrap_or(0..0);
    let start = text.floor_char_boundary(span.start);
    start..text.ceil_char_boundary(span.end.max(start))
}

/// The line around `offset`, without its end.
fn line_of(text: &str, offset: usize) -> Range<usize> {
    let (before, after) = text.split_at(text.floor_char_boundary(offset));
    let start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
    let end = after.find('\n').map_or(text.len(), |at| before.len().saturating_add(at));
    start..end
}

/// The problem in words, and whether it is within one value.
fn rewrite(text: &str, line: Range<usize>, span: Range<usize>, message: &str) -> (Problem, bool) {
    let problem = |message: String, hint: Option<String>, span| Problem {
        severity: Severity::Error,
        message,
        hint,
        span: Some(span),
    };
    if message == "duplicate key" {
        let key = text.get(span.clone()).unwrap_or_default();
        return (problem(format!("`{key}` is there twice"), None, span), true);
    }
    if message.starts_with("key with no value") || message.starts_with("invalid unquoted key") {
        let hint = "a key and its value are joined by `=`".to_owned();
        return (problem(message.to_owned(), Some(hint), span), false);
    }
    if message.ends_with("string, expected `\"`") || message.ends_with("string, expected `'`") {
        let message = "the quotes of this string are never closed".to_owned();
        return (problem(message, None, span), false);
    }
    let scalar = ["string values must be quoted", "invalid float", "invalid boolean"]
        .into_iter()
        .chain(["invalid mantissa", "invalid fraction", "unexpected leading zero"])
        .any(|start| message.starts_with(start));
    let value = bare_value(text, &line, span.start).filter(|_| scalar);
    let Some((word, place)) = value else {
        return (problem(message.to_owned(), None, span), false);
    };
    let (message, hint) = match word {
        "" => ("a value is missing here", None),
        _ if word.starts_with('[') || word.starts_with('{') => (message, None),
        _ if message.starts_with("unexpected leading zero") => (
            "a number cannot start with 0",
            Some(format!("text is \"{word}\", octal starts with 0o")),
        ),
        _ => match word.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" => ("a boolean is `true` or `false`", Some("write true".into())),
            "no" | "off" | "false" => {
                ("a boolean is `true` or `false`", Some("write false".into()))
            }
            _ if word.contains(['\\', '"']) => {
                ("strings need quotes", Some(format!("write '{word}'")))
            }
            _ => ("strings need quotes", Some(format!("write \"{word}\""))),
        },
    };
    let local = !word.starts_with(['[', '{']);
    (problem(message.to_owned(), hint, place), local)
}

/// What stands behind the `=` of the line, up to a comment, if the error is in it.
fn bare_value<'t>(
    text: &'t str,
    line: &Range<usize>,
    error: usize,
) -> Option<(&'t str, Range<usize>)> {
    let whole = text.get(line.clone())?;
    let (key, value) = whole.split_once('=')?;
    let value = value.split_once(" #").map_or(value, |(value, _)| value);
    let blanks = value.len().saturating_sub(value.trim_start().len());
    let start = line.start.saturating_add(key.len()).saturating_add(1).saturating_add(blanks);
    let word = value.trim();
    let start = if word.is_empty() { error } else { start };
    let end = start.saturating_add(word.len());
    (start <= error && error <= end).then_some((word, start..end))
}
