//! `pmr init`: a commented example to begin with.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{Error, Streams};
use crate::config;
use crate::spec::AppName;

/// The name of an example that nobody named.
const NAME: &str = "app";

/// Writes the example to `output` (`-` is stdout), `NAME.toml` in the current directory without it.
/// Never over a file that is there.
pub fn run(
    name: Option<&AppName>,
    output: Option<&Path>,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let name = name.map_or(NAME, AppName::as_str);
    let text = config::template(name);
    if output == Some(Path::new("-")) {
        write!(streams.out, "{text}")?;
        return Ok(());
    }
    let file = PathBuf::from(format!("{name}.toml"));
    let path = match output {
        Some(path) if path.is_dir() => path.join(file),
        Some(path) => path.to_owned(),
        None => file,
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Error::Write { path: path.clone(), source: error })?;
    writeln!(streams.out, "{}", path.display())?;
    writeln!(streams.err, "\nedit it, then: pmr run {}", path.display())?;
    Ok(())
}
