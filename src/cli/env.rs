//! `pmr env`: what an instance was started with.

use super::apps::{Apps, Streams, call_error, soon};
use super::error::Error;

pub(super) fn run(
    apps: &Apps,
    name: &str,
    slot: u16,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let mut app = apps.one(name)?;
    let answer = app.client.environment(slot, soon());
    let variables = answer.map_err(call_error(name, "show the environment of"))?;
    for (key, value) in variables {
        writeln!(streams.out, "{key}={value}")?;
    }
    Ok(())
}
