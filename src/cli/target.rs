//! Which apps are meant: a name, `all`, or `/PATTERN/`.

use super::error::Error;

/// Which apps are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    All,
    Name(String),
    Pattern { text: String, pattern: Pattern },
}

impl Target {
    /// Reads what stands on the command line.
    pub(super) fn new(text: &str) -> Result<Self, Error> {
        if text == "all" {
            return Ok(Self::All);
        }
        let inner = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let Some(inner) = inner else { return Ok(Self::Name(text.to_owned())) };
        match Pattern::new(inner) {
            Ok(pattern) => Ok(Self::Pattern { text: text.to_owned(), pattern }),
            Err(character) => Err(Error::Pattern { target: text.to_owned(), character }),
        }
    }

    /// Whether the app of this name is meant.
    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Name(own) => own == name,
            Self::Pattern { pattern, .. } => pattern.is_in(name),
        }
    }

    /// The error where none is meant of those that run, and of those that could be started.
    pub(super) fn nothing(&self, running: Vec<String>, stopped: Vec<String>) -> Error {
        match self {
            Self::All => Error::NothingRuns,
            Self::Name(name) if stopped.contains(name) => Error::NotRunning { app: name.clone() },
            Self::Name(name) => Error::NoSuchApp { name: name.clone(), running, stopped },
            Self::Pattern { text, .. } => Error::NoMatch { target: text.clone() },
        }
    }
}

/// A small regular expression: characters, `.`, `*`, `^`, `$`. App names are made of so few
/// characters that more is not missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    steps: Vec<Step>,
    at_start: bool,
    at_end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    /// `None` is any.
    character: Option<char>,
    repeats: bool,
}

impl Pattern {
    /// Reads a pattern; the error is a character that means nothing here.
    fn new(text: &str) -> Result<Self, char> {
        let (at_start, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let (at_end, text) = text.strip_suffix('$').map_or((false, text), |rest| (true, rest));
        let mut steps: Vec<Step> = Vec::new();
        for c in text.chars() {
            match c {
                '*' => match steps.last_mut() {
                    Some(step) if !step.repeats => step.repeats = true,
                    Some(_) | None => return Err('*'),
                },
                '.' => steps.push(Step { character: None, repeats: false }),
                '[' | ']' | '(' | ')' | '{' | '}' | '|' | '+' | '?' | '\\' | '^' | '$' => {
                    return Err(c);
                }
                c => steps.push(Step { character: Some(c), repeats: false }),
            }
        }
        Ok(Self { steps, at_start, at_end })
    }

    /// Whether it is found in `text`, in time that grows with both and no faster.
    fn is_in(&self, text: &str) -> bool {
        // Entry n: the first n steps match up to here.
        let mut reached = vec![false; self.steps.len().saturating_add(1)];
        self.reach_start(&mut reached);
        for c in text.chars() {
            if !self.at_end && reached.last() == Some(&true) {
                return true;
            }
            reached = self.advance(&reached, c);
            if !self.at_start {
                self.reach_start(&mut reached);
            }
        }
        reached.last() == Some(&true)
    }

    fn reach_start(&self, reached: &mut [bool]) {
        if let Some(first) = reached.first_mut() {
            *first = true;
        }
        self.skip_repeats(reached);
    }

    /// A step that repeats may also not be there at all.
    fn skip_repeats(&self, reached: &mut [bool]) {
        let mut before = false;
        for (index, here) in reached.iter_mut().enumerate() {
            let skipped = index.checked_sub(1).and_then(|last| self.steps.get(last));
            *here |= before && skipped.is_some_and(|step| step.repeats);
            before = *here;
        }
    }

    fn advance(&self, reached: &[bool], c: char) -> Vec<bool> {
        let mut next = vec![false; reached.len()];
        for (index, step) in self.steps.iter().enumerate() {
            let is_here = reached.get(index) == Some(&true);
            if !is_here || step.character.is_some_and(|own| own != c) {
                continue;
            }
            let to = if step.repeats { index } else { index.saturating_add(1) };
            if let Some(place) = next.get_mut(to) {
                *place = true;
            }
        }
        self.skip_repeats(&mut next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_names_all_or_patterns() {
        assert_eq!(Target::new("all").unwrap(), Target::All);
        assert_eq!(Target::new("web").unwrap(), Target::Name("web".to_owned()));
        assert_eq!(Target::new("/web").unwrap(), Target::Name("/web".to_owned()));
        assert!(matches!(Target::new("/web/").unwrap(), Target::Pattern { .. }));
        assert!(matches!(Target::new("/a|b/"), Err(Error::Pattern { character: '|', .. })));
    }

    #[test]
    fn patterns_are_small_regular_expressions() {
        for (pattern, yes, no) in [
            ("web", &["web", "web-1", "my-web"][..], &["we", "wb"][..]),
            ("^web", &["web", "web-1"], &["my-web"]),
            ("web$", &["web", "my-web"], &["web-1"]),
            ("^web$", &["web"], &["web-1", "my-web"]),
            ("w.b", &["web", "wub-2"], &["wb", "weeb"]),
            ("^api.*v2$", &["apiv2", "api-x-v2"], &["api-v2-old", "my-api-v2"]),
            ("we*b$", &["wb", "weeeb", "xweb"], &["wab"]),
            ("", &["web", ""], &[]),
            ("^$", &[""], &["web"]),
            ("^a*b*$", &["", "aabb", "b"], &["ba"]),
        ] {
            let pattern = Pattern::new(pattern).unwrap();
            assert!(yes.iter().all(|name| pattern.is_in(name)), "{pattern:?}");
            assert!(!no.iter().any(|name| pattern.is_in(name)), "{pattern:?}");
        }
        let slow = Pattern::new(&format!("^{}x$", ".*".repeat(500))).unwrap();
        assert!(!slow.is_in(&"a".repeat(64)));
        for bad in ["*", "a**", "[a]", "a?", "\\d", "a^"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }
}
