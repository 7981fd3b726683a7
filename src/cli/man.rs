//! `pmr man`: the manual pages, made of the definition of the command line and of the commented
//! example of a config, so that neither can say something else. For those who make packages.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::args::{AFTER_HELP, Arguments};
use super::error::Error;
use crate::config;

/// What the pages belong to, in the middle of their first line.
const MANUAL: &str = "pmr";

const CONFIG_INTRODUCTION: &str = "\
/etc/pmr/NAME.toml describes the app NAME, which systemctl(1) starts as pmr@NAME.service; \
~/.config/pmr/NAME.toml one of a user's service manager. pmr-run(1) runs the app of any such file \
in the foreground, pmr-init(1) writes a commented one, and pmr-check(1) finds all mistakes at \
once.\n\nThe format is TOML. Durations are milliseconds, or text as \"10s\" or \"1min 30s\". Sizes \
are bytes, or text as \"512M\". An unknown key is an error. Below, a key stands with its default, \
or with an example where it has none.";

const FILES: [(&str, &str); 3] = [
    ("/etc/pmr/NAME.toml, ~/.config/pmr/NAME.toml", "The app NAME, see pmr.toml(5)."),
    ("/run/pmr/NAME/io.pmr.App", "The control socket of a running app (Varlink)."),
    ("/usr/share/doc/pmr/examples/", "Drop-ins for pmr@.service, see systemctl(1), edit."),
];

/// Writes every page into the directory.
pub(super) fn run(directory: &Path) -> Result<(), Error> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    for subcommand in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        let man = Man::new(subcommand.clone()).manual(MANUAL);
        let mut page = Vec::new();
        man.render(&mut page)?;
        write(directory, &man.get_filename(), &page)?;
    }
    write(directory, "pmr.1", &command_page(command)?)?;
    let config = config_page(&config::template("NAME"));
    write(directory, "pmr.toml.5", config.to_roff().as_bytes())
}

fn write(directory: &Path, name: &str, page: &[u8]) -> Result<(), Error> {
    let path = directory.join(name);
    fs::write(&path, page).map_err(|source| Error::Write { path, source })
}

/// The page of `pmr` itself.
fn command_page(command: clap::Command) -> Result<Vec<u8>, Error> {
    let man = Man::new(command).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    let mut rest = Roff::new();
    notes(&mut rest, AFTER_HELP);
    rest.control("SH", ["FILES"]);
    for (path, what) in FILES {
        rest.control("TP", []);
        rest.text([bold(path)]);
        rest.text([roman(what)]);
    }
    rest.control("SH", ["SEE ALSO"]);
    rest.text([roman("pmr.toml(5), systemctl(1), journalctl(1), systemd.service(5)")]);
    page.extend(rest.to_roff().into_bytes());
    Ok(page)
}

/// What stands under the help: tables, each below a line that ends with a colon, and sentences.
fn notes(roff: &mut Roff, text: &str) {
    for part in text.split("\n\n") {
        if let Some((heading, table)) = part.split_once(":\n") {
            roff.control("SH", [heading.to_uppercase().as_str()]);
            roff.control("nf", []);
            for line in table.lines() {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
        } else {
            roff.control("PP", []);
            roff.text([roman(part)]);
        }
    }
}

/// The page of the config: a section for each `# ---- heading` of the example, in it the comments,
/// each with the keys that follow it.
fn config_page(template: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", ["pmr.toml", "5", "", concat!("pmr ", env!("CARGO_PKG_VERSION")), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("pmr.toml - the config of an app that pmr keeps running")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in CONFIG_INTRODUCTION.split("\n\n") {
        roff.control("PP", []);
        roff.text([roman(paragraph)]);
    }
    let (mut keys, mut text): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let start = template.find("# ---- ").unwrap_or_default();
    for line in template.get(start..).unwrap_or_default().lines() {
        let heading = line.strip_prefix("# ---- ");
        let comment = line.strip_prefix("# ");
        // A comment after keys belongs to the next ones; so does all after an empty line.
        if (comment.is_some() && !keys.is_empty()) || line.is_empty() {
            entry(&mut roff, &mut keys, &mut text);
        }
        match (heading, comment) {
            (Some(heading), _) => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
            }
            (None, Some(comment)) => text.push(comment),
            (None, None) if line.is_empty() => {}
            (None, None) => keys.push(line.strip_prefix('#').unwrap_or(line)),
        }
    }
    entry(&mut roff, &mut keys, &mut text);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("pmr(1), pmr-check(1), pmr-init(1), pmr-import(1)")]);
    roff
}

/// Some keys and what is said of them.
fn entry(roff: &mut Roff, keys: &mut Vec<&str>, text: &mut Vec<&str>) {
    for (number, key) in keys.drain(..).enumerate() {
        roff.control(if number == 0 { "TP" } else { "TQ" }, []);
        roff.text([bold(key)]);
    }
    let lines: Vec<Inline> = text.drain(..).map(|line| roman(format!("{line}\n"))).collect();
    if !lines.is_empty() {
        roff.text(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::loopback::Scratch;

    #[test]
    fn every_command_and_every_key_has_its_place() {
        let scratch = Scratch::new("cli-man");
        run(&scratch.0).unwrap();
        let read = |name: &str| fs::read_to_string(scratch.0.join(name)).unwrap();
        let page = read("pmr.1");
        for command in Arguments::command().get_subcommands().filter(|it| !it.is_hide_set()) {
            let name = command.get_name();
            assert!(page.contains(&format!("pmr\\-{name}(1)")), "{name}");
            assert!(read(&format!("pmr-{name}.1")).starts_with(".ie"), "{name}");
        }
        for part in [".SH TARGETS", ".SH \"EXIT STATUS\"", "rolled back: the new version", "(5)"] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let page = read("pmr.toml.5");
        for part in [
            ".SH \"WHAT RUNS\"\n.TP\n\\fBscript = \"app.js\"\\fR\nThe file to run, relative",
            ".TP\n\\fBmemory_max = \"1280M\"\\fR\n.TQ\n\\fBmemory_swap_max = 0\\fR\nAbove this the",
            "\\fB[alerts]\\fR",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        // Every line of the example that is a key or a table is there.
        let template = config::template("NAME");
        let is_key = |line: &&str| !line.starts_with("# ") && !["", "#"].contains(line);
        let keys = template.lines().filter(is_key);
        let bold = page.lines().filter(|line| line.starts_with("\\fB")).count();
        assert_eq!(bold, keys.count());
    }
}
