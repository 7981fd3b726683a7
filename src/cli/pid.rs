//! `pmr pid`: process ids for scripts.

use super::apps::{Apps, Found, Streams, join, states};
use super::error::Error;

pub(super) fn run(
    apps: &Apps,
    target: Option<&str>,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let found = match (target, apps.find_text(target.unwrap_or("all"))) {
        (None, Err(Error::NothingRuns)) => Found::default(),
        (_, found) => found?,
    };
    let (states, errors) = states(found);
    for instance in states.iter().flat_map(|app| &app.instances) {
        let other = instance.other.as_ref().and_then(|other| other.pid);
        for pid in instance.pid.into_iter().chain(other) {
            writeln!(streams.out, "{pid}")?;
        }
    }
    join(errors)
}
