//! The error of an operation on the system: always what was being done, and to what.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A failed operation on the system.
#[derive(Debug)]
pub struct Error {
    /// What was being done, as a fragment: `open`, `make the group`.
    pub doing: &'static str,
    /// The file it was done to, where there is one.
    pub path: Option<PathBuf>,
    /// What the kernel said.
    pub source: io::Error,
}

impl Error {
    /// An error of an operation without a file.
    pub fn new(doing: &'static str, source: impl Into<io::Error>) -> Self {
        Self { doing, path: None, source: source.into() }
    }

    /// An error of an operation on `path`.
    pub fn at(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self { doing, path: Some(path.as_ref().to_owned()), source: source.into() }
    }

    /// The number the kernel gave, 0 where it gave none.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or_default()
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "cannot {} {}: {}", self.doing, path.display(), self.source),
            None => write!(f, "cannot {}: {}", self.doing, self.source),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The result of an operation on the system.
pub type Result<T> = std::result::Result<T, Error>;
