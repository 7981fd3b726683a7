//! Findings with their places, and how they are shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

/// Most findings that are kept of one file. More than that are no typing errors, nobody reads them,
/// and each costs a look through the text.
pub(super) const FINDINGS_MAX: usize = 100;

/// Most lines of the source that one finding shows: a multi-line array needs a few.
const LINES_MAX: usize = 4;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The config cannot be used.
    Error,
    /// The config can be used, but probably not as its author thinks.
    Note,
}

/// Something found in a config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether the config can be used all the same.
    pub severity: Severity,
    /// What is wrong: a fragment without a period.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where it is, in bytes of the text; `None` is the file as a whole.
    pub span: Option<Range<usize>>,
}

/// A finding as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlacedProblem {
    /// Whether the config can be used all the same.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Line of the place, counted from 1.
    pub line: Option<usize>,
    /// Column of the place in characters, counted from 1.
    pub column: Option<usize>,
}

/// All findings of one file with its text, sorted by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    path: PathBuf,
    text: String,
    list: Vec<Problem>,
    /// How many of all findings make the config unusable.
    errors: usize,
    /// How many findings are not in `list`.
    hidden: usize,
}

impl Problems {
    /// Sorts `list` by place; findings about the file as a whole come last. Of two findings about
    /// the same thing at the same place one is kept, and of very many the first.
    pub fn new(path: &Path, text: &str, mut list: Vec<Problem>) -> Self {
        let place = |p: &Problem| p.span.as_ref().map_or((usize::MAX, 0), |s| (s.start, s.end));
        list.sort_by_key(place);
        list.dedup();
        let found = list.len();
        let is_error = |problem: &Problem| problem.severity == Severity::Error;
        let errors = list.iter().filter(|problem| is_error(problem)).count();
        if found > FINDINGS_MAX && errors > 0 {
            list.retain(is_error);
        }
        list.truncate(FINDINGS_MAX);
        let hidden = found.saturating_sub(list.len());
        Self { path: path.to_owned(), text: text.to_owned(), list, errors, hidden }
    }

    /// The file, as the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The findings, sorted by place.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many findings make the config unusable.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// The findings with lines and columns instead of byte offsets.
    pub fn placed(&self) -> Vec<PlacedProblem> {
        let placed = |problem: &Problem| {
            let place = problem.span.as_ref().map(|s| line_and_column(&self.text, s.start));
            PlacedProblem {
                severity: problem.severity,
                message: problem.message.clone(),
                hint: problem.hint.clone(),
                line: place.map(|(line, _)| line),
                column: place.map(|(_, column)| column),
            }
        };
        self.list.iter().map(placed).collect()
    }

    /// The findings as text for a person: place, source line and hint of each, a blank line between
    /// two. Ends with a line break.
    pub fn render(&self, color: bool) -> String {
        self.render_some(color, |_| true)
    }

    fn render_some(&self, color: bool, shown: impl Fn(&Problem) -> bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let path = self.path.display().to_string();
        let mut out = String::new();
        for problem in self.list.iter().filter(|problem| shown(problem)) {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&renderer.render(&[self.group(problem, &path)]));
            out.push('\n');
        }
        if self.hidden > 0 {
            out.extend(["\nand ", &self.hidden.to_string(), " more\n"]);
        }
        out
    }

    fn group<'a>(&'a self, problem: &'a Problem, path: &'a str) -> Group<'a> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Note => Level::NOTE,
        };
        let group = level.primary_title(&problem.message);
        let group = match problem.span.as_ref().map(|span| Excerpt::of(&self.text, span)) {
            Some(excerpt) => group.element(
                // Only the lines that are shown are given: the renderer looks at all it gets.
                Snippet::source(excerpt.text)
                    .line_start(excerpt.line)
                    .path(path)
                    .annotation(AnnotationKind::Primary.span(excerpt.span)),
            ),
            None => group.element(Origin::path(path)),
        };
        match &problem.hint {
            Some(hint) => group.element(Level::HELP.with_name("hint").message(hint)),
            None => group,
        }
    }
}

impl fmt::Display for Problems {
    /// What makes the config unusable; notes only where nothing does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.errors() > 0;
        let shown = |problem: &Problem| !refused || problem.severity == Severity::Error;
        f.write_str(self.render_some(false, shown).trim_end())
    }
}

impl std::error::Error for Problems {}

/// The source lines around a span.
struct Excerpt<'a> {
    text: &'a str,
    /// Number of the first line, counted from 1.
    line: usize,
    /// The span within `text`.
    span: Range<usize>,
}

impl<'a> Excerpt<'a> {
    fn of(text: &'a str, span: &Range<usize>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
        let line = before.matches('\n').count().saturating_add(1);
        let lines = text.get(start..).unwrap_or_default().split_inclusive('\n').take(LINES_MAX);
        let most: usize = lines.map(str::len).sum();
        let shown = text.get(start..).and_then(|rest| rest.get(..most)).unwrap_or_default();
        let shown = shown.strip_suffix('\n').unwrap_or(shown);
        let from = span.start.saturating_sub(start).min(shown.len());
        let to = span.end.saturating_sub(start).clamp(from, shown.len());
        // The rest of the last line that the span touches.
        let behind = shown.get(to..).and_then(|rest| rest.find('\n'));
        let end = behind.map_or(shown.len(), |at| to.saturating_add(at));
        let text = shown.get(..end).unwrap_or(shown);
        Self { text, line, span: from..to }
    }
}

/// Line and column of the byte at `offset`, both counted from 1, the column in characters.
pub fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count().saturating_add(1);
    let start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
    let column = before.get(start..).unwrap_or_default().chars().count().saturating_add(1);
    (line, column)
}
