//! Apps of PM2 in, keys of pmr out, without node.

use serde_json::json;

use super::*;

/// Maps one app that lies in `/srv`, where every script with a dot in it is a text file.
fn one(app: &Json) -> Mapped {
    let Apps { mut apps, .. } = all(&json!({ "apps": [app] })).unwrap();
    apps.remove(0)
}

fn all(value: &Json) -> Result<Apps, Error> {
    let look = |path: &Path| match path.to_str() {
        Some("/srv/server") => Script::Binary,
        Some("/srv/bin/www") => Script::Text,
        Some(path) if path.contains('.') && !path.contains("missing") => Script::Text,
        Some(_) | None => Script::Missing,
    };
    map(value, &Context { directory: Path::new("/srv"), look: &look })
}

/// The keys as one line each, tables after them.
fn lines(app: &Mapped) -> Vec<String> {
    let line = |prefix: &str, entry: &Entry| format!("{prefix}{} = {}", entry.key, json(entry));
    let top = app.entries.iter().map(|entry| line("", entry));
    let tables = app.tables.iter().flat_map(|(name, entries)| {
        entries.iter().map(move |entry| line(&format!("{name}."), entry))
    });
    top.chain(tables).collect()
}

fn json(entry: &Entry) -> String {
    serde_json::to_string(&entry.value).unwrap()
}

/// The value of one key, as JSON; empty where it is not there.
fn key(app: &Mapped, key: &str) -> String {
    app.entries.iter().find(|entry| entry.key == key).map(json).unwrap_or_default()
}

fn dropped(app: &Mapped) -> Vec<&str> {
    app.dropped.iter().map(|dropped| dropped.key.as_str()).collect()
}

#[test]
fn the_story_is_taken_over_whole() {
    let app = one(&json!({
        "name": "track-backend", "script": "./dist/app.js", "autorestart": true,
        "max_restarts": 10, "min_uptime": "10s", "restart_delay": 2000,
        "exp_backoff_restart_delay": 100, "instances": 2, "exec_mode": "cluster",
        "max_memory_restart": "1G", "kill_timeout": 5000,
        "env": { "NODE_ENV": "production", "PORT": 10000 },
    }));
    assert_eq!(app.name, "track-backend");
    assert_eq!(
        lines(&app),
        [
            "script = \"./dist/app.js\"",
            "cwd = \"/srv\"",
            "instances = 2",
            "exec_mode = \"cluster\"",
            "autorestart = true",
            "max_restarts = 10",
            "min_uptime = \"10s\"",
            "restart_delay = 2000",
            "exp_backoff_restart_delay = 100",
            "kill_signal = \"SIGINT\"",
            "kill_timeout = 5000",
            "max_memory_restart = \"1G\"",
            "env.NODE_ENV = \"production\"",
            "env.PORT = \"10000\"",
        ]
    );
    assert!(app.dropped.is_empty());
}

#[test]
fn what_pm2_does_in_silence_is_written_out() {
    let app = one(&json!({ "script": "app.js" }));
    assert_eq!(
        lines(&app),
        [
            "script = \"app.js\"",
            "cwd = \"/srv\"",
            "max_restarts = 16",
            "min_uptime = 1000",
            "kill_signal = \"SIGINT\"",
            "kill_timeout = 1600",
        ]
    );
    assert_eq!(key(&one(&json!({ "script": "a.js", "max_restarts": 0 })), "max_restarts"), "16");
    let python = one(&json!({ "script": "app.py" }));
    assert!(lines(&python).contains(&"env.PYTHONUNBUFFERED = \"1\"".to_owned()));
}

#[test]
fn programs() {
    for (app, expected) in [
        (json!({ "script": "npm", "args": "run start" }), r#"command = ["npm","run","start"]"#),
        (json!({ "script": "node app.js -x" }), r#"command = ["bash","-c","node app.js -x"]"#),
        (json!({ "script": "server" }), r#"script = "server""#),
        (
            json!({ "script": "run.x", "interpreter": "none", "args": ["-p", 80] }),
            r#"command = ["./run.x","-p","80"]"#,
        ),
        (json!({ "exec": "app.js" }), r#"script = "app.js""#),
        (json!({ "script": "/opt/missing/app.js" }), r#"script = "/opt/missing/app.js""#),
    ] {
        assert_eq!(lines(&one(&app))[0], expected, "{app}");
    }
    let www = one(&json!({ "script": "bin/www" }));
    assert_eq!(key(&www, "interpreter"), "\"node\"");
    let old = one(&json!({
        "script": "app.js", "exec_interpreter": "node@18", "nodeArgs": "--inspect 'a b'",
    }));
    assert_eq!(key(&old, "interpreter"), "\"node\"");
    assert_eq!(key(&old, "interpreter_args"), r#"["--inspect","a b"]"#);
    let remark = old.entries.iter().find_map(|entry| entry.remark.as_deref());
    assert!(remark.unwrap().contains("nvm for node 18"), "{remark:?}");
    assert_eq!(key(&one(&json!({ "script": "x.php" })), "interpreter"), "\"php\"");
}

#[test]
fn cluster_mode_needs_a_port() {
    let port = json!({ "PORT": "80" });
    for (app, mode) in [
        (json!({ "script": "a.js", "instances": "max", "env": port }), "\"cluster\""),
        (json!({ "script": "a.js", "instances": 1, "env": port }), "\"cluster\""),
        (json!({ "script": "a.js", "env": port }), ""),
        (json!({ "script": "a.js", "exec_mode": "cluster_mode", "port": 80 }), "\"cluster\""),
        (json!({ "script": "a.js", "exec_mode": "cluster" }), ""),
        (json!({ "script": "a.js", "exec_mode": "cluster", "env": { "PORT": "x" } }), ""),
        // Several instances of another language are in fork mode in PM2.
        (json!({ "script": "a.py", "instances": 4, "env": port }), "\"fork\""),
        (json!({ "script": "a.js", "exec_mode": "fork", "instances": 2, "env": port }), "\"fork\""),
        (
            json!({ "script": "a.js", "instances": 2, "increment_var": "PORT", "env": port }),
            "\"fork\"",
        ),
    ] {
        assert_eq!(key(&one(&app), "exec_mode"), mode, "{app}");
    }
    let app = one(&json!({ "script": "a.js", "exec_mode": "cluster" }));
    assert!(app.general[0].contains("needs a known port"), "{:?}", app.general);
}

#[test]
fn instances() {
    for (given, expected) in [
        (json!(0), "\"max\""),
        (json!("max"), "\"max\""),
        (json!("4"), "4"),
        (json!(-1), "-1"),
        (json!(10_000), "256"),
        (json!("many"), ""),
    ] {
        let app = one(&json!({ "script": "a.js", "instances": given }));
        assert_eq!(key(&app, "instances"), expected, "{given}");
    }
}

#[test]
fn variables_are_texts() {
    let app = one(&json!({
        "script": "a.js",
        "env": {
            "N": 1.5, "B": true, "O": { "a": 1 }, "Z": null, "U": { "$pmr": "undefined" },
            "a=b": "x", "NUL": "\0",
        },
        "env_production": { "N": 2 },
    }));
    assert_eq!(
        lines(&app)[6..],
        [
            "env.B = \"true\"",
            "env.N = \"1.5\"",
            "env.O = \"{\\\"a\\\":1}\"",
            "env.Z = \"null\"",
            "env_production.N = \"2\"",
        ]
    );
    assert_eq!(dropped(&app), ["env.NUL", "env.U", "env.a=b"]);
}

#[test]
fn names_are_made_legal_and_told_apart() {
    for (given, name) in [
        ("My App/v2", "my-app-v2"),
        ("--x", "x"),
        ("caf\u{e9}", "caf-"),
        ("a.b_c-9", "a.b_c-9"),
        (&"long".repeat(30)[..], &"long".repeat(16)[..]),
    ] {
        assert_eq!(one(&json!({ "name": given, "script": "a.js" })).name, name, "{given}");
    }
    assert_eq!(one(&json!({ "script": "./dist/server.js" })).name, "server");
    let twice = json!([{ "name": "a", "script": "a.js" }, { "name": "A", "script": "b.js" }]);
    let names: Vec<String> = all(&twice).unwrap().apps.into_iter().map(|app| app.name).collect();
    assert_eq!(names, ["a", "a-2"]);
    let nameless = json!({ "name": "\u{1f600}", "script": "a.js" });
    assert_eq!(all(&nameless).unwrap_err(), Error::Name("\u{1f600}".to_owned()));
}

#[test]
fn watching_is_a_table() {
    let app = one(&json!({ "script": "a.js", "watch": true, "watch_delay": 500 }));
    let watch = &lines(&app)[6..];
    assert_eq!(
        watch,
        [
            r#"watch.paths = ["."]"#,
            r#"watch.ignore = ["**/.*","**/node_modules"]"#,
            "watch.delay = 500",
        ]
    );
    let app = one(&json!({
        "script": "a.js", "watch": ["src", "lib"],
        "ignore_watch": ["tmp", { "$pmr": "regexp", "text": "/x/" }],
    }));
    assert_eq!(lines(&app)[6..], [r#"watch.paths = ["src","lib"]"#, r#"watch.ignore = ["tmp"]"#]);
    assert_eq!(dropped(&app), ["ignore_watch"]);
    assert_eq!(app.dropped[0].value, "/x/");
    assert!(one(&json!({ "script": "a.js", "watch": false })).tables.is_empty());
}

#[test]
fn durations_sizes_and_cron_are_checked() {
    let app = one(&json!({
        "script": "a.js", "min_uptime": "soon", "restart_delay": -1, "max_memory_restart": "1.5G",
        "cron_restart": "*/5 * * * * *", "kill_timeout": "3000", "wait_ready": true,
        "listen_timeout": 5000, "exp_backoff_restart_delay": 0,
    }));
    assert_eq!(key(&app, "min_uptime"), "1000");
    assert_eq!(key(&app, "kill_timeout"), "3000");
    assert_eq!(key(&app, "ready"), "\"message\"");
    assert_eq!(key(&app, "listen_timeout"), "30000");
    assert_eq!(
        dropped(&app),
        ["min_uptime", "restart_delay", "max_memory_restart", "cron_restart"]
    );
    for (given, expected) in [
        (json!("0 3 * * *"), "\"0 3 * * *\""),
        (json!("0 0 3 * * 1"), "\"0 3 * * 1\""),
        (json!(0), ""),
        (json!(false), ""),
    ] {
        let app = one(&json!({ "script": "a.js", "cron": given }));
        assert_eq!(key(&app, "cron_restart"), expected, "{given}");
        assert!(app.dropped.is_empty());
    }
}

#[test]
fn every_dropped_key_says_why() {
    let app = one(&json!({
        "script": "a.js", "out_file": "/dev/null", "mergeLogs": true, "namespace": "x",
        "treekill": true, "vizion": false, "pmx": false, "maxRestart": 3, "watch": false,
        "uid": 33, "gid": "www-data",
    }));
    assert_eq!(dropped(&app), ["max_restart", "merge_logs", "namespace", "out_file"]);
    assert!(app.dropped.iter().all(|dropped| !dropped.why.is_empty()));
    assert_eq!(app.dropped[0].why, "PM2 has no such key");
    assert_eq!(key(&app, "user"), "\"33\"");
    assert_eq!(key(&app, "group"), "\"www-data\"");
}

#[test]
fn shapes_of_an_ecosystem() {
    let app = json!({ "script": "a.js" });
    let whole = json!({ "apps": app, "deploy": {}, "static": [] });
    let Apps { apps, dropped } = all(&whole).unwrap();
    assert_eq!((apps.len(), dropped.len()), (1, 2));
    assert_eq!(all(&app).unwrap().apps.len(), 1);
    assert_eq!(all(&json!([app, app])).unwrap().apps.len(), 2);
    for nothing in [json!({}), json!([]), json!(null), json!({ "apps": [] }), json!("x")] {
        assert_eq!(all(&nothing).unwrap_err(), Error::NoApps, "{nothing}");
    }
    assert_eq!(all(&json!({ "apps": [app, 3] })).unwrap_err(), Error::NotAnApp(2));
    let named = json!([{ "name": "web" }]);
    assert_eq!(all(&named).unwrap_err(), Error::NoScript("web".to_owned()));
}
