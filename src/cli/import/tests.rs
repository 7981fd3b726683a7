//! Whole imports, in directories of their own.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A directory that goes away with its owner.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pmr-test-{}-{name}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Whether node is there; says so where it is not.
pub(super) fn has_node(test: &str) -> bool {
    let found = std::process::Command::new("node").arg("--version").output();
    let is_there = found.is_ok_and(|output| output.status.success());
    if !is_there {
        eprintln!("SKIPPED: {test}: there is no node");
    }
    is_there
}

/// Imports and returns the outcome with both reports.
fn import(file: &Path, to: &Directory, force: bool) -> (Result<Outcome, Error>, String, String) {
    let options = Options {
        file: file.to_owned(),
        output_directory: to.0.clone(),
        force,
        timeout: Duration::from_mins(1),
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let outcome = run(&options, &mut out, &mut err);
    (outcome, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn the_story_becomes_a_config() {
    if !has_node("the_story_becomes_a_config") {
        return;
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/track-backend");
    let to = Directory::new("story");
    let (outcome, out, _) = import(&fixture.join("ecosystem.config.js"), &to, false);
    let outcome = outcome.unwrap();
    let path = to.0.join("track-backend.toml");
    assert_eq!(out, format!("{}\n", path.display()));
    assert_eq!(outcome.files[0].path, path);
    assert!(outcome.files[0].dropped.is_empty() && outcome.dropped.is_empty());
    let table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    assert_eq!(table["script"].as_str(), Some("./dist/app.js"));
    assert_eq!(table["cwd"].as_str(), fixture.to_str());
    assert_eq!(table["exec_mode"].as_str(), Some("cluster"));
    assert_eq!(table["restart_delay"].as_integer(), Some(2000));
    assert_eq!(table["kill_signal"].as_str(), Some("SIGINT"));
    assert_eq!(table["env"]["PORT"].as_str(), Some("10000"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn what_changes_is_said_in_the_file_and_to_the_person() {
    if !has_node("what_changes_is_said_in_the_file_and_to_the_person") {
        return;
    }
    let from = Directory::new("from");
    let file = from.write(
        "ecosystem.config.js",
        "console.log('loading'); module.exports = { deploy: {}, apps: [\
         { name: 'A', script: 'a.js', log_file: 'x\\ny', max_restarts: 0 }, \
         { name: 'b', script: 'b.js' }] }",
    );
    let to = Directory::new("to");
    let (outcome, out, err) = import(&file, &to, false);
    assert_eq!(outcome.unwrap().files.len(), 2);
    assert_eq!(to.names(), ["a.toml", "b.toml"]);
    assert_eq!(out.lines().count(), 2, "{out}");
    assert!(err.contains("ecosystem.config.js: loading\n"), "{err}");
    assert!(err.contains("dropped `deploy: {}`"), "{err}");
    assert!(err.contains("a: dropped `log_file: "), "{err}");
    let text = fs::read_to_string(to.0.join("a.toml")).unwrap();
    for words in ["# PM2 takes 0 for its default", "# Not taken over:", "# `log_file: "] {
        assert!(text.contains(words), "{text}");
    }
    text.parse::<toml::Table>().unwrap();
}

#[test]
fn all_or_nothing_and_never_over_a_file() {
    if !has_node("all_or_nothing_and_never_over_a_file") {
        return;
    }
    let from = Directory::new("from");
    let file = from.write(
        "ecosystem.config.js",
        "module.exports = [{ name: 'a', script: 'a.js' }, { name: 'b', script: 'b.js' }]",
    );
    let to = Directory::new("to");
    to.write("b.toml", "mine");
    let (outcome, ..) = import(&file, &to, false);
    let error = outcome.unwrap_err();
    assert!(matches!(&error, Error::Exists(paths) if paths.len() == 1), "{error}");
    assert!(error.to_string().contains("b.toml is there already"), "{error}");
    assert_eq!(to.names(), ["b.toml"]);
    assert_eq!(fs::read_to_string(to.0.join("b.toml")).unwrap(), "mine");
    let (outcome, ..) = import(&file, &to, true);
    assert!(outcome.is_ok());
    assert_eq!(to.names(), ["a.toml", "b.toml"]);
    assert_ne!(fs::read_to_string(to.0.join("b.toml")).unwrap(), "mine");
}

#[test]
fn a_place_that_cannot_be_written_leaves_nothing_behind() {
    let to = Directory::new("places");
    let good = (to.0.join("a.toml"), "a".to_owned());
    let bad = (to.0.join("missing/b.toml"), "b".to_owned());
    let error = write_all(&[good.clone(), bad], false).unwrap_err();
    assert!(error.to_string().contains("missing/b.toml"), "{error}");
    assert!(to.names().is_empty());
    // One that comes between the check and the write is not replaced either.
    let mut drafts = Drafts(Vec::new());
    drafts.write(&good.0, &good.1).unwrap();
    drafts.write(&to.0.join("c.toml"), "c").unwrap();
    to.write("a.toml", "came first");
    assert!(matches!(drafts.publish(false), Err(Error::Exists(_))));
    assert_eq!(to.names(), ["a.toml"]);
    assert_eq!(fs::read_to_string(&good.0).unwrap(), "came first");
}

#[test]
fn no_apps_is_said() {
    if !has_node("no_apps_is_said") {
        return;
    }
    let from = Directory::new("from");
    let file = from.write("ecosystem.json", "{}");
    let (outcome, ..) = import(&file, &from, false);
    assert!(outcome.unwrap_err().to_string().contains("has no `apps`"));
}
