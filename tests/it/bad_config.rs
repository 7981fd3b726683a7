//! Configs that cannot be used: what is wrong with them is said, all of it, and nothing is started.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::app::{Done, Setup, python};
use crate::procs;
use crate::shared::assert_has;

/// What `check` and `run` both say of this file; `run` never gets as far as a runtime directory.
fn refused(setup: &Setup, path: &str) -> String {
    let check = setup.pmr(&["check", path]);
    assert_eq!((check.code, check.out.as_str()), (1, ""), "check: {}", check.err);
    let run = setup.pmr(&["run", path]);
    assert_eq!((run.code, run.out.as_str()), (78, ""), "run: {}", run.err);
    let left: Vec<_> = fs::read_dir(&setup.runtime).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // The one names the file as it was told to, the other by its whole path.
    let directory = format!("{}/", setup.directory.display());
    assert_eq!(run.err.replace(&directory, ""), check.err.replace(&directory, ""));
    check.err
}

/// What is said of a config with this text.
fn refused_text(test: &str, config: impl AsRef<[u8]>) -> String {
    let setup = Setup::new(test);
    fs::write(setup.directory.join("web.toml"), config).unwrap();
    refused(&setup, "web.toml")
}

#[test]
fn an_unknown_key_is_pointed_at_and_the_right_one_named() {
    let said = refused_text("key", "command = [\"true\"]\ninstnces = 2\n");
    assert_has(&said, &["unknown key `instnces`", "web.toml:2:1", "2 | instnces = 2"]);
    assert_has(&said, &["did you mean `instances`?"]);
    let said = refused_text("key", "command = [\"true\"]\n[health]\nhtttp = \"/\"\n");
    assert_has(&said, &["web.toml:3:1", "did you mean `health.http`?"]);
}

#[test]
fn a_wrong_type_says_what_it_must_be() {
    let said = refused_text("type", "script = 5\n");
    assert_has(&said, &["`script` must be a string, not 5", "web.toml:1:10"]);
    let said = refused_text("type", "command = [\"true\"]\nkill_timeout = true\n");
    assert_has(&said, &["`kill_timeout` must be", "web.toml:2:16"]);
}

#[test]
fn a_number_of_instances_has_a_limit() {
    let said = refused_text("many", "command = [\"true\"]\ninstances = 10000\n");
    assert_has(&said, &["`instances` must be 1 to 256", "not 10000", "web.toml:2:13"]);
}

#[test]
fn a_script_that_is_missing_is_named_with_its_place() {
    let said = refused_text("script", "# the app\nscript = \"nope.js\"\n");
    assert_has(&said, &["cannot use `script` nope.js: no such file", "web.toml:2:10"]);
    assert_has(&said, &["it is relative to `cwd`"]);
}

#[test]
fn a_user_that_is_missing_is_named() {
    let said = refused_text("user", "command = [\"true\"]\nuser = \"no-such-user\"\n");
    assert_has(&said, &["there is no user no-such-user", "web.toml:2:8"]);
}

#[test]
fn text_that_is_no_toml_is_pointed_at() {
    let said = refused_text("syntax", "command = [\"true\"]\nenv = { A = \n");
    assert_has(&said, &["web.toml:2:", "2 | env = { A ="]);
    let said = refused_text("syntax", "script = \"a\n");
    assert_has(&said, &["the quotes of this string are never closed", "web.toml:1:12"]);
}

#[test]
fn all_problems_are_said_at_once() {
    let text = "instnces = 2\nscript = 5\nkill_timeout = \"soon\"\nmax_restarts = -1\n";
    let said = refused_text("several", text);
    assert_has(&said, &["web.toml:1:1", "web.toml:2:10", "web.toml:3:16", "web.toml:4:16"]);
    assert_eq!(said.matches("error: ").count(), 4, "{said}");
}

#[test]
fn an_empty_file_says_what_is_needed() {
    let said = refused_text("empty", "");
    assert_has(&said, &["nothing to run", "web.toml", "write `script = \"app.js\"`"]);
}

#[test]
fn bytes_that_are_no_text_are_pointed_at() {
    let said = refused_text("bytes", b"# app\ncommand = [\"\xff\"]\n");
    assert_has(&said, &["web.toml:2:13", "byte 18 is not UTF-8"]);
}

#[test]
fn what_is_no_file_is_named_without_waiting() {
    let setup = Setup::new("kinds");
    assert_has(&refused(&setup, "none.toml"), &["none.toml", "No such file"]);
    fs::create_dir(setup.directory.join("dir.toml")).unwrap();
    assert_has(&refused(&setup, "dir.toml"), &["dir.toml is a directory, not a file"]);
    let fifo = Command::new("mkfifo").arg(setup.directory.join("fifo.toml")).status().unwrap();
    assert!(fifo.success());
    assert_has(&refused(&setup, "fifo.toml"), &["fifo.toml is a FIFO, not a file"]);
    assert_has(&refused(&setup, "web.yaml"), &["web.yaml: a config file is called NAME.toml"]);
}

#[test]
fn the_name_of_a_file_must_be_a_name_of_an_app() {
    let setup = Setup::new("names");
    setup.write("Web.toml", "command = [\"true\"]\n");
    assert_has(&refused(&setup, "Web.toml"), &["Web.toml: ", "'W'"]);
    setup.write(".toml", "command = [\"true\"]\n");
    assert_has(&refused(&setup, ".toml"), &[".toml: "]);
    let long = format!("{}.toml", "a".repeat(65));
    setup.write(&long, "command = [\"true\"]\n");
    assert_has(&refused(&setup, &long), &["64"]);
    // Where a name is asked for, a path is none.
    let done = setup.pmr(&["init", "my/web"]);
    assert_eq!(done.code, 2, "{}", done.err);
    assert_has(&done.err, &["my/web", "'/'"]);
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    if !procs::is_root() || !procs::has("setpriv") {
        return procs::skip("a_file_that_may_not_be_read_is_named", "it takes root and setpriv");
    }
    let setup = Setup::new("unreadable").own_binary();
    let path = setup.write("web.toml", "command = [\"true\"]\n");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let as_nobody = |verb: &str| -> Done {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(setup.binary()).args([verb, "web.toml"]).current_dir(&setup.directory);
        setup.run(command.env("PMR_RUNTIME_DIR", &setup.runtime))
    };
    for (verb, code) in [("check", 1), ("run", 78)] {
        let done = as_nobody(verb);
        assert_eq!(done.code, code, "{}", done.err);
        assert_has(&done.err, &["web.toml", "Permission denied"]);
    }
}

#[test]
fn a_check_for_programs_has_all_files_and_problems() {
    let setup = Setup::new("json");
    setup.write("web.toml", "scipt = \"x\"\n");
    setup.write("good.toml", "command = [\"true\"]\n");
    let done = setup.pmr(&["check", "--json", "web.toml", "good.toml", "none.toml"]);
    assert_eq!((done.code, done.err.as_str()), (1, ""));
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(report["version"], 1);
    let [web, good, none] = report["files"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!((&web["file"], &web["ok"]), (&"web.toml".into(), &false.into()));
    let problem = &web["problems"][0];
    assert_eq!(problem["severity"], "error");
    assert_eq!(problem["message"], "unknown key `scipt`");
    assert_eq!(problem["hint"], "did you mean `script`?");
    assert_eq!((&problem["line"], &problem["column"]), (&1.into(), &1.into()));
    assert_eq!((&good["ok"], &good["error"]), (&true.into(), &Value::Null));
    assert_eq!(good["problems"].as_array().unwrap().len(), 0);
    assert_eq!(none["ok"], false);
    assert_has(none["error"].as_str().unwrap(), &["none.toml", "No such file"]);
}

#[test]
fn a_key_without_effect_is_a_note_and_no_failure() {
    let setup = Setup::new("notes");
    setup.write("web.toml", "command = [\"true\"]\ncron_restart = \"0 4 * * *\"\n");
    let done = setup.pmr(&["check", "web.toml"]);
    assert_eq!((done.code, done.out.as_str()), (0, "web.toml: ok\n"), "{}", done.err);
    assert_has(&done.err, &["note: `cron_restart`", "web.toml:2:"]);
}

#[test]
fn an_example_can_be_used_and_never_replaces_a_file() {
    let setup = Setup::new("init");
    let done = setup.pmr(&["init", "web"]);
    assert_eq!((done.code, done.out.as_str()), (0, "web.toml\n"), "{}", done.err);
    let example = setup.read("web.toml");
    // What it names as the script is the reader's own, and the one thing that is missing.
    let script = example.lines().find_map(|line| line.strip_prefix("script = \"")).unwrap();
    setup.write(script.split('"').next().unwrap(), "");
    let done = setup.pmr(&["check", "web.toml"]);
    assert_eq!(done.code, 0, "{}\n{example}", done.err);
    setup.write("web.toml", "mine");
    let done = setup.pmr(&["init", "web"]);
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert_has(&done.err, &["web.toml", "File exists", "hint:"]);
    assert_eq!(setup.read("web.toml"), "mine");
    let printed = setup.pmr(&["init", "web", "-o", "-"]);
    assert_eq!((printed.code, printed.out), (0, example));
}

#[test]
fn an_invalid_config_changes_nothing_of_an_app_that_runs() {
    let setup = Setup::new("reload").config(&python("import signal\nsignal.pause()"));
    let path: PathBuf = setup.config_path();
    let app = setup.start();
    let before = app.online(1);
    fs::write(&path, "command = [\"true\"]\ninstnces = 3\n").unwrap();
    for verb in ["reload", "restart"] {
        let done = app.pmr(&[verb, &app.setup.name]);
        assert_eq!(done.code, 1, "{}", done.err);
        let place = format!("{}:2:1", name_of(&path));
        assert_has(&done.err, &["unknown key `instnces`", &place, "did you mean `instances`?"]);
    }
    assert_eq!(app.status().pids(), before.pids());
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
