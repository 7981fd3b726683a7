//! `pmr set`: limits of what runs.

use std::collections::BTreeMap;

use super::apps::{Apps, Streams};
use super::args::Patience;
use super::change::{self, Change};
use super::error::Error;

pub(super) fn run(
    apps: &Apps,
    target: &str,
    values: Vec<(String, String)>,
    streams: &mut Streams<'_>,
) -> Result<(), Error> {
    let values: BTreeMap<String, String> = values.into_iter().collect();
    let patience = Patience { no_wait: false, timeout: None };
    change::perform(apps.find_text(target)?, &Change::set(&values), patience, streams)?;
    writeln!(
        streams.err,
        "\nhint: this lasts until the next `pmr reload` or `pmr restart`; to keep it, write into \
         the config:"
    )?;
    for (key, value) in &values {
        writeln!(streams.err, "  {}", line(key, value))?;
    }
    Ok(())
}

/// The line of a config that says the same.
fn line(key: &str, value: &str) -> String {
    if value.is_empty() {
        format!("(no `{key}`)")
    } else if value.parse::<u64>().is_ok() {
        format!("{key} = {value}")
    } else {
        format!("{key} = {value:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn the_line_is_what_a_config_has() {
        assert_eq!(line("memory_max", "600M"), "memory_max = \"600M\"");
        assert_eq!(line("tasks_max", "100"), "tasks_max = 100");
        assert_eq!(line("tasks_max", ""), "(no `tasks_max`)");
    }
}
