//! Splitting a line into words as a POSIX shell does, without any expansion.

use std::fmt;

/// Why a line cannot be split into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordsError {
    /// A quote is opened and never closed.
    Quote(char),
    /// The last character is a backslash that would quote what follows.
    Backslash,
}

impl fmt::Display for WordsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quote(quote) => write!(f, "the quote {quote} is never closed"),
            Self::Backslash => write!(f, "nothing follows the last backslash"),
        }
    }
}

impl std::error::Error for WordsError {}

/// Splits `line` at blanks; single quotes, double quotes and backslashes hold words together
/// (POSIX.1-2017, Shell Command Language 2.2).
pub fn split_words(line: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    // `None` is between two words: `""` is a word, blanks are not.
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(WordsError::Quote('\''))? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next().ok_or(WordsError::Backslash)? {
                '\n' => {}
                c => word.get_or_insert_default().push(c),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Inside double quotes a backslash quotes only what would be special there.
fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    loop {
        match chars.next().ok_or(WordsError::Quote('"'))? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(WordsError::Quote('"'))? {
                '\n' => {}
                c @ ('"' | '\\' | '$' | '`') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let cases: [(&str, &[&str]); 12] = [
            ("", &[]),
            ("  \t\n", &[]),
            ("a b", &["a", "b"]),
            ("--port 3000 --name=x", &["--port", "3000", "--name=x"]),
            ("'a b' c", &["a b", "c"]),
            ("\"a b\"'c d'e", &["a bc de"]),
            ("'' \"\"", &["", ""]),
            ("a\\ b", &["a b"]),
            ("a\\\nb", &["ab"]),
            ("'a\\nb'", &["a\\nb"]),
            ("\"a\\nb \\\" \\\\ \\$x\"", &["a\\nb \" \\ $x"]),
            ("$HOME *", &["$HOME", "*"]),
        ];
        for (line, words) in cases {
            assert_eq!(split_words(line).unwrap(), words, "{line:?}");
        }
    }

    #[test]
    fn an_open_end_is_named() {
        for (line, error) in [
            ("'a", WordsError::Quote('\'')),
            ("a \"b", WordsError::Quote('"')),
            ("\"a\\", WordsError::Quote('"')),
            ("a\\", WordsError::Backslash),
        ] {
            assert_eq!(split_words(line), Err(error), "{line:?}");
        }
    }
}
