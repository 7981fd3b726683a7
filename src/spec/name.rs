//! The name of an app.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest app name. `pmr@NAME.service` and `/run/pmr/NAME/io.pmr.App` must stay within the limits
/// of unit names (255) and of `sun_path` (108).
const APP_NAME_LENGTH_MAX: usize = 64;

/// The name of an app: `[a-z0-9][a-z0-9_.-]*`, at most 64 characters.
///
/// Those characters need no escaping in a unit name (`systemd-escape(1)` is never called), and no
/// path can be made of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(String);

impl AppName {
    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
        if name.len() > APP_NAME_LENGTH_MAX {
            return Err(NameError::TooLong);
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !plain(first) {
            return Err(NameError::First(first));
        }
        match name.chars().find(|&c| !plain(c) && !matches!(c, '_' | '.' | '-')) {
            Some(bad) => Err(NameError::Character(bad)),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for AppName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<AppName> for String {
    fn from(name: AppName) -> Self {
        name.0
    }
}

/// Why a text is no app name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// There is nothing.
    Empty,
    /// More than `APP_NAME_LENGTH_MAX` characters.
    TooLong,
    /// It starts with something else than a lower-case letter or a digit.
    First(char),
    /// A character that may not be in it.
    Character(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "an app name cannot be empty"),
            Self::TooLong => {
                write!(f, "an app name has at most {APP_NAME_LENGTH_MAX} characters")
            }
            Self::First(c) => {
                write!(f, "an app name starts with a lower-case letter or a digit, not {c:?}")
            }
            Self::Character(c) => {
                write!(f, "an app name is made of a-z, 0-9, `_`, `.` and `-`, without {c:?}")
            }
        }
    }
}

impl std::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_need_no_escaping() {
        for good in ["a", "0", "track-backend", "a.b_c-9", &"x".repeat(64)] {
            assert_eq!(AppName::new(good).map(String::from), Ok(good.to_owned()));
        }
        for (bad, why) in [
            ("", NameError::Empty),
            (&"x".repeat(65)[..], NameError::TooLong),
            ("-a", NameError::First('-')),
            (".a", NameError::First('.')),
            ("Web", NameError::First('W')),
            ("a/b", NameError::Character('/')),
            ("a@b", NameError::Character('@')),
            ("caf\u{e9}", NameError::Character('\u{e9}')),
        ] {
            assert_eq!(AppName::new(bad), Err(why), "{bad:?}");
        }
    }
}
