//! PM2's ecosystem files, imported; what comes of them passes `check`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::app::{Done, Setup};
use crate::procs;
use crate::shared::assert_has;

/// A directory with node on this machine, or a word why there is none.
fn setup(test: &str) -> Option<Setup> {
    if procs::has("node") {
        return Some(Setup::new(test));
    }
    procs::skip(test, "there is no node");
    None
}

/// Imports a file with this text, and checks every config that was written.
fn import(setup: &Setup, file: &str, text: &str) -> Done {
    setup.write(file, text);
    let done = setup.pmr(&["import", file]);
    assert_eq!(done.code, 0, "{text}\n{}", done.err);
    let mut words = vec!["check"];
    words.extend(done.out.lines());
    let check = setup.pmr(&words);
    assert_eq!(check.code, 0, "{text}\n{}", check.err);
    done
}

fn refuse(setup: &Setup, file: &str, text: &str) -> String {
    setup.write(file, text);
    let before = files(setup);
    let done = setup.pmr(&["import", file]);
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{text}\n{}", done.err);
    assert_eq!(files(setup), before, "nothing is written");
    done.err
}

fn files(setup: &Setup) -> Vec<String> {
    let entries = fs::read_dir(&setup.directory).unwrap().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_backend_of_the_story_is_imported_as_it_is() {
    let Some(setup) = setup("story") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/track-backend");
    let file = root.join("ecosystem.config.js");
    let done = setup.pmr(&["import", file.to_str().unwrap()]);
    assert_eq!((done.code, done.out.as_str()), (0, "./track-backend.toml\n"), "{}", done.err);
    let config = setup.read("track-backend.toml");
    for line in [
        "script = \"./dist/app.js\"",
        &format!("cwd = {:?}", root.to_str().unwrap()),
        "autorestart = true",
        "max_restarts = 10",
        "min_uptime = \"10s\"",
        "restart_delay = 2000",
        "exp_backoff_restart_delay = 100",
        "instances = 2",
        "exec_mode = \"cluster\"",
        "max_memory_restart = \"1G\"",
        "kill_timeout = 5000",
        "kill_signal = \"SIGINT\"",
        "NODE_ENV = \"production\"",
        "PORT = \"10000\"",
    ] {
        assert!(config.lines().any(|it| it == line), "no {line:?} in\n{config}");
    }
    assert!(!config.contains("PM2's default"), "the story leaves nothing to a default\n{config}");
    let check = setup.pmr(&["check", "track-backend.toml"]);
    assert_eq!(check.code, 0, "{}", check.err);
}

#[test]
fn what_imports_passes_check() {
    let Some(setup) = setup("matrix") else { return };
    for script in ["app.js", "app.mjs", "app.py"] {
        setup.write(script, "");
    }
    for (count, app) in [
        "script: 'app.js'",
        "script: './app.mjs'",
        "script: 'app.js', args: 'one \"two words\" three'",
        "script: 'app.js', args: ['--port', 1]",
        "script: 'app.js', node_args: '--max-old-space-size=200'",
        "script: 'app.py', interpreter: 'python3'",
        "script: 'app.js', instances: 'max', exec_mode: 'cluster', env: {PORT: 3000}",
        "script: 'app.js', instances: 0, exec_mode: 'cluster', env: {PORT: '3000'}",
        "script: 'app.js', instances: -1",
        "script: 'app.js', instances: 4, increment_var: 'PORT', env: {PORT: 3000}",
        "script: 'app.js', autorestart: false, stop_exit_codes: [0, 143]",
        "script: 'app.js', min_uptime: '1h', max_restarts: 3, kill_timeout: 100",
        "script: 'app.js', watch: ['src'], ignore_watch: ['node_modules']",
        "script: 'app.js', cron_restart: '0 3 * * *', max_memory_restart: '200M'",
        "script: 'app.js', wait_ready: true, listen_timeout: 8000",
        "script: 'app.js', shutdown_with_message: true",
        "script: 'app.js', env: {A: 1, B: true, C: 'x\\ny', D: null}, env_production: {A: 2}",
        "script: 'app.js', user: require('os').userInfo().username, exp_backoff_restart_delay: 250",
        "script: 'app.js', filter_env: true, source_map_support: true, vizion: false, pmx: 1",
        "script: 'app.js', execMode: 'cluster', maxRestarts: 3, killTimeout: 9",
    ]
    .iter()
    .enumerate()
    {
        let text = format!("module.exports = {{ apps: [{{ name: 'app-{count}', {app} }}] }}");
        let done = import(&setup, &format!("e{count}.config.js"), &text);
        assert_eq!(done.out, format!("./app-{count}.toml\n"));
    }
}

#[test]
fn each_spelling_of_an_ecosystem_file_is_read() {
    let Some(setup) = setup("spellings") else { return };
    setup.write("app.js", "");
    let app = |name: &str| format!("{{ \"name\": \"{name}\", \"script\": \"app.js\" }}");
    for (name, file, text) in [
        ("cjs", "a.config.cjs", format!("module.exports = {{ apps: [{}] }}", app("cjs"))),
        ("mjs", "a.config.mjs", format!("export default {{ apps: [{}] }}", app("mjs"))),
        ("json", "a.json", format!("{{ \"apps\": [{}] }}", app("json"))),
        ("list", "b.json", format!("[{}]", app("list"))),
        ("one", "c.config.js", format!("module.exports = {{ apps: {} }}", app("one"))),
    ] {
        assert_eq!(import(&setup, file, &text).out, format!("./{name}.toml\n"));
    }
}

#[test]
fn the_defaults_of_pm2_are_written_out_where_the_file_is_silent() {
    let Some(setup) = setup("defaults") else { return };
    setup.write("app.js", "");
    import(&setup, "e.config.js", "module.exports = {apps: [{name: 'web', script: 'app.js'}]}");
    let config = setup.read("web.toml");
    for line in [
        "kill_signal = \"SIGINT\"",
        "kill_timeout = 1600",
        "min_uptime = 1000",
        "max_restarts = 16",
    ] {
        assert!(config.lines().any(|it| it == line), "no {line:?} in\n{config}");
    }
}

#[test]
fn each_app_has_a_file_and_what_is_dropped_is_said() {
    let Some(setup) = setup("two") else { return };
    setup.write("app.js", "");
    let text = "console.log('from the file');\n\
        const port = Number(process.env.BASE_PORT ?? 5000);\n\
        module.exports = { apps: [\n\
        { name: 'API Server', script: 'app.js', env: { PORT: port + 1 }, error_file: 'e.log' },\n\
        { name: 'worker', script: 'app.js', no_such_key: [1] } ],\n\
        deploy: { production: { user: 'x' } } };";
    let done = import(&setup, "ecosystem.config.js", text);
    assert_eq!(done.out, "./api-server.toml\n./worker.toml\n");
    assert_has(&done.err, &["ecosystem.config.js: from the file\n", "dropped `deploy: "]);
    assert_has(&done.err, &["api-server: dropped `error_file: \"e.log\"`: ", "\"API Server\""]);
    assert_has(&done.err, &["worker: dropped `no_such_key: [1]`: "]);
    assert_has(&setup.read("api-server.toml"), &["PORT = \"5001\"", "`error_file: \"e.log\"`"]);
}

#[test]
fn a_config_that_is_there_is_replaced_with_force_only() {
    let Some(setup) = setup("force") else { return };
    setup.write("app.js", "");
    let apps = "module.exports = {apps: ['a', 'b'].map(name => ({name, script: 'app.js'}))}";
    setup.write("b.toml", "mine");
    let said = refuse(&setup, "e.config.js", apps);
    assert_has(&said, &["b.toml is there already", "--force"]);
    assert_eq!(setup.read("b.toml"), "mine");
    let done = setup.pmr(&["import", "--force", "e.config.js"]);
    assert_eq!((done.code, done.out.as_str()), (0, "./a.toml\n./b.toml\n"), "{}", done.err);
    assert_has(&setup.read("b.toml"), &["script = \"app.js\""]);
    fs::create_dir(setup.directory.join("there")).unwrap();
    let done = setup.pmr(&["import", "-o", "there", "e.config.js"]);
    assert_eq!((done.code, done.out.as_str()), (0, "there/a.toml\nthere/b.toml\n"), "{}", done.err);
}

#[test]
fn a_file_that_cannot_be_used_is_refused() {
    let Some(setup) = setup("bad") else { return };
    for (text, parts) in [
        ("module.exports = {\n", &["e.config.js", "SyntaxError"][..]),
        ("throw new Error('boom')", &["e.config.js:1", "Error: boom"]),
        ("require('no-such-module')", &["no-such-module"]),
        ("process.exit(3)", &["e.config.js"]),
        ("module.exports = {}", &["no `apps`"]),
        ("module.exports = {apps: []}", &["no `apps`"]),
        ("module.exports = {apps: [5]}", &["app 1 of `apps` is no object"]),
        ("module.exports = {apps: [{name: 'x'}]}", &["app x has no `script`"]),
        ("module.exports = {apps: [{name: '//', script: 'a.js'}]}", &["no app name"]),
    ] {
        let said = refuse(&setup, "e.config.js", text);
        assert_has(&said, parts);
        assert!(said.starts_with("error: "), "{said}");
    }
    assert_has(&refuse(&setup, "bad.json", "{ \"apps\": "), &["bad.json"]);
    let done = setup.pmr(&["import", "none.config.js"]);
    assert_eq!(done.code, 1);
    assert_has(&done.err, &["none.config.js: No such file"]);
    let done = setup.pmr(&["import", "."]);
    assert_eq!(done.code, 1);
    assert_has(&done.err, &["no regular file"]);
}

#[test]
fn a_file_that_never_ends_is_given_up() {
    let Some(setup) = setup("endless") else { return };
    let said = refuse(&setup, "e.config.js", "for (;;) {}");
    assert_has(&said, &["e.config.js", "10s"]);
}

#[test]
fn without_node_it_says_what_is_missing() {
    let setup = Setup::new("nodeless");
    setup.write("e.config.js", "module.exports = {apps: []}");
    let mut command = Command::new(setup.binary());
    command.args(["import", "e.config.js"]).current_dir(&setup.directory);
    let done = setup.run(command.env("PATH", &setup.directory));
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert_has(&done.err, &["evaluated by node", "no `node` in PATH"]);
}
