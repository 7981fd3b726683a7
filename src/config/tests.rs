mod shown;

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::spec::*;

fn source(text: &str) -> Source {
    Source {
        path: PathBuf::from("web.toml"),
        name: AppName::new("web").unwrap(),
        directory: PathBuf::from("/etc/pmr"),
        text: text.to_owned(),
    }
}

fn spec(text: &str) -> Spec {
    match parse(&source(text), None) {
        Ok(checked) => checked.spec,
        Err(problems) => panic!("{text}\n{problems}"),
    }
}

/// The messages of problems and notes, each with its hint.
fn findings(text: &str) -> Vec<String> {
    let list = match parse(&source(text), None) {
        Ok(checked) => checked.notes,
        Err(problems) => problems,
    };
    let one = |problem: &Problem| match &problem.hint {
        Some(hint) => format!("{}\nhint: {hint}", problem.message),
        None => problem.message.clone(),
    };
    list.list().iter().map(one).collect()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

const STORY: &str = r#"
script = "./dist/app.js"
autorestart = true
max_restarts = 10
min_uptime = "10s"
restart_delay = 2000
exp_backoff_restart_delay = 100
instances = 2
exec_mode = "cluster"
max_memory_restart = "1G"
kill_timeout = 5000

[env]
NODE_ENV = "production"
PORT = 10000
"#;

#[test]
fn the_config_of_the_story_gives_its_spec() {
    let expected = Spec {
        name: AppName::new("web").unwrap(),
        program: Program {
            argv: strings(&["node", "./dist/app.js"]),
            script: Some("./dist/app.js".to_owned()),
        },
        cwd: PathBuf::from("/etc/pmr"),
        identity: Identity::default(),
        environment: Environment {
            vars: [("NODE_ENV", "production"), ("PORT", "10000")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            file: None,
            clear: false,
            instance_var: "NODE_APP_INSTANCE".to_owned(),
            increment_var: None,
        },
        ignore_sigpipe: true,
        instances: Instances::Count(2),
        exec_mode: ExecMode::Cluster,
        listen: vec![ListenAddress::Tcp("[::]:10000".parse().unwrap())],
        inherits: false,
        balance: Balance::RoundRobin,
        restart: RestartRules {
            autorestart: true,
            stop_exit_codes: Vec::new(),
            max_restarts: 10,
            window: Duration::from_secs(100),
            min_uptime: Duration::from_secs(10),
            delay: Duration::from_secs(2),
            backoff: Some(Backoff {
                base: Duration::from_millis(100),
                max: Duration::from_secs(15),
            }),
        },
        ready: Readiness::Listen,
        listen_timeout: Duration::from_secs(30),
        stop: StopRules { signal: libc::SIGTERM, timeout: Duration::from_secs(5), message: false },
        memory: MemoryRules {
            restart_above: Some(Bytes(1 << 30)),
            max: Some(Bytes((1 << 30) + (1 << 28))),
            swap_max: None,
        },
        limits: Limits::default(),
        health: None,
        watchdog: None,
        cron_restart: None,
        watch: None,
        alerts: Alerts::default(),
        rolling: RollingRules {
            max_surge: 1,
            min_online: None,
            stable_for: Duration::from_secs(2),
        },
    };
    assert_eq!(spec(STORY), expected);
    assert!(findings(STORY).is_empty());
}

const EVERY_KEY: &str = r#"
command = ["npm", "start"]
cwd = "../srv/./app"
user = 33
group = "www-data"
umask = 0o027
ignore_sigpipe = false
env_file = ".env"
env_clear = true
instance_var = "SLOT"
increment_var = "METRICS"
instances = -1
listen = ["127.0.0.1:1", "/run/x.sock", ":2", 3, "4", "[::1]:5"]
balance = "source"
autorestart = false
stop_exit_codes = [0, 3]
max_restarts = 1000
restart_window = "2h"
min_uptime = 0
exp_backoff_restart_delay = "1s"
exp_backoff_max = "1min"
ready = "http:/ready?x=1"
listen_timeout = 1
kill_signal = "int"
kill_timeout = 0
shutdown_with_message = true
max_memory_restart = "100M"
memory_max = 209715200
memory_swap_max = 0
cpu_weight = 10000
cpu_max = "150%"
tasks_max = 10
watchdog = "30s"
cron_restart = "*/5  0-6,22 1 JAN mon-fri"
max_surge = 0
min_online = 0
stable_for = 0
env.METRICS = 9000
[env_production]
A = 1.50
B = true
[health]
tcp = true
interval = 1
timeout = "2s"
failures = 1
[watch]
paths = "src"
ignore = ["*.log"]
delay = 0
[alerts]
exec = ["mail", "-s", "x"]
webhook = "http://[::1]:80/"
"#;

#[test]
fn every_key_arrives_in_the_spec() {
    let spec = spec(EVERY_KEY);
    let shown: &[&dyn std::fmt::Debug] = &[
        &spec.program,
        &(&spec.cwd, &spec.environment.file),
        &spec.identity,
        &(&spec.environment.vars, spec.environment.clear, spec.ignore_sigpipe),
        &(&spec.environment.instance_var, &spec.environment.increment_var),
        &(spec.instances, spec.exec_mode, spec.balance),
        &spec.listen,
        &(spec.restart.autorestart, &spec.restart.stop_exit_codes, spec.restart.max_restarts),
        &(spec.restart.window, spec.restart.min_uptime, spec.restart.delay),
        &spec.restart.backoff,
        &(&spec.ready, spec.listen_timeout),
        &spec.stop,
        &(spec.memory.restart_above, spec.memory.max, spec.memory.swap_max),
        &spec.limits,
        &spec.health,
        &(spec.watchdog, &spec.cron_restart),
        &spec.watch,
        &spec.alerts,
        &spec.rolling,
    ];
    let shown: Vec<_> = shown.iter().map(|part| format!("{part:?}")).collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    Program { argv: ["npm", "start"], script: None }
    ("/etc/pmr/../srv/app", Some("/etc/pmr/../srv/app/.env"))
    Identity { user: Some("33"), group: Some("www-data"), umask: Some(23) }
    ({"METRICS": "9000"}, true, false)
    ("SLOT", Some("METRICS"))
    (CpusLess(1), Cluster, Source)
    [Tcp(127.0.0.1:1), Unix("/run/x.sock"), Tcp([::]:2), Tcp([::]:3), Tcp([::]:4), Tcp([::1]:5)]
    (false, [0, 3], 1000)
    (7200s, 0ns, 0ns)
    Some(Backoff { base: 1s, max: 60s })
    (Http("/ready?x=1"), 1ms)
    StopRules { signal: 2, timeout: 0ns, message: true }
    (Some(Bytes(104857600)), Some(Bytes(209715200)), Some(Bytes(0)))
    Limits { cpu_weight: Some(10000), cpu_max_percent: Some(150), tasks_max: Some(10) }
    Some(Health { probe: Tcp, interval: 1ms, timeout: 2s, failures: 1 })
    (Some(30s), Some("*/5 0-6,22 1 JAN mon-fri"))
    Some(Watch { paths: ["src"], ignore: ["*.log"], delay: 0ns })
    Alerts { exec: ["mail", "-s", "x"], webhook: Some("http://[::1]:80/") }
    RollingRules { max_surge: 0, min_online: Some(0), stable_for: 0ns }
    "#);
}

#[test]
fn an_overlay_is_laid_over_env() {
    let text = "script = 'a.js'\nenv.A = 'x'\nenv.B = 1\n[env_prod]\nA = 'y'\nPORT = 80\n[env_t]";
    let vars = |overlay| parse(&source(text), overlay).unwrap().spec.environment.vars;
    let pairs = |vars: BTreeMap<String, String>| -> Vec<String> {
        vars.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    assert_eq!(pairs(vars(None)), ["A=x", "B=1"]);
    assert_eq!(pairs(vars(Some("prod"))), ["A=y", "B=1", "PORT=80"]);
    insta::assert_snapshot!(parse(&source(text), Some("file")).unwrap_err(), @r#"
    error: there is no table `[env_file]`
     --> web.toml
      = hint: there is `[env_prod]`, `[env_t]`
    "#);
    insta::assert_snapshot!(parse(&source("script='a'"), Some("x")).unwrap_err(), @r#"
    error: there is no table `[env_x]`
     --> web.toml
      = hint: the file has no table `[env_NAME]` at all
    "#);
}

#[test]
fn a_program_is_the_interpreter_its_arguments_the_script_and_its_arguments() {
    let cases: [(&str, &[&str]); 14] = [
        ("script = 'a.js'", &["node", "a.js"]),
        ("script = '/x/a.mjs'", &["node", "/x/a.mjs"]),
        ("script = 'a.ts'", &["node", "a.ts"]),
        ("script = 'a.py'\nargs = '-v \"x y\"'", &["python3", "a.py", "-v", "x y"]),
        ("script = 'a.sh'", &["bash", "a.sh"]),
        ("script = 'a.rb'", &["ruby", "a.rb"]),
        ("script = 'a.pl'", &["perl", "a.pl"]),
        ("script = 'server'", &["./server"]),
        ("script = 'bin/server'", &["bin/server"]),
        ("script = 'a.js'\ninterpreter = 'none'", &["./a.js"]),
        ("script = '-e.js'", &["node", "./-e.js"]),
        (
            "script = 'a.js'\nnode_args = '--x --y'\nargs = ['z', 1]",
            &["node", "--x", "--y", "a.js", "z", "1"],
        ),
        ("script = 'a'\ninterpreter = 'bun'\ninterpreter_args = ['run']", &["bun", "run", "a"]),
        ("command = ['npm', 'start', '']", &["npm", "start", ""]),
    ];
    for (text, argv) in cases {
        assert_eq!(spec(text).program.argv, argv, "{text}");
    }
}

#[test]
fn cluster_mode_follows_from_what_is_known() {
    for (text, mode, listen) in [
        ("", ExecMode::Fork, ""),
        ("env.PORT = 80", ExecMode::Fork, ""),
        ("instances = 2", ExecMode::Fork, ""),
        ("instances = 2\nenv.PORT = 80", ExecMode::Cluster, "[::]:80"),
        ("instances = 2\nenv.PORT = '/x'", ExecMode::Fork, ""),
        ("instances = 'max'\nport = 80", ExecMode::Cluster, "[::]:80"),
        ("instances = -3\nport = 80", ExecMode::Cluster, "[::]:80"),
        ("exec_mode = 'cluster'\nport = 80", ExecMode::Cluster, "[::]:80"),
        ("exec_mode = 'fork'\ninstances = 2\nport = 80", ExecMode::Fork, ""),
        ("instances = 2\nport = 80\nincrement_var = 'PORT'", ExecMode::Fork, ""),
        ("listen = '1.2.3.4:5'", ExecMode::Cluster, "1.2.3.4:5"),
        ("listen = ['1.2.3.4:80', '/run/x']\nport = 80", ExecMode::Cluster, "1.2.3.4:80 /run/x"),
    ] {
        let spec = spec(&format!("script = 'a.js'\n{text}"));
        let shown: Vec<_> = spec.listen.iter().map(ToString::to_string).collect();
        assert_eq!((spec.exec_mode, &*shown.join(" ")), (mode, listen), "{text}");
    }
    let vars = spec("script = 'a.js'\nport = 80").environment.vars;
    assert_eq!(vars.get("PORT").map(String::as_str), Some("80"), "as PM2 tells it");
}

#[test]
fn defaults_depend_on_other_keys() {
    let window = |text: &str| spec(&format!("script = 'a.js'\n{text}")).restart.window;
    assert_eq!(window(""), Duration::from_secs(100));
    assert_eq!(window("min_uptime = 1000"), Duration::from_mins(1));
    assert_eq!(window("min_uptime = '365d'\nmax_restarts = 1000"), Duration::from_hours(365 * 24));
    assert_eq!(window("restart_window = 5"), Duration::from_millis(5));
    let off = spec("script = 'a.js'\nexp_backoff_restart_delay = 0").restart.backoff;
    assert_eq!(off, None);
    let long = spec("script = 'a.js'\nexp_backoff_restart_delay = '20s'").restart.backoff;
    assert_eq!(long.map(|backoff| backoff.max), Some(Duration::from_secs(20)));
    let ready = spec("script = 'a.js'\nwait_ready = true").ready;
    assert_eq!(ready, Readiness::Message);
    let cwd = |cwd: &str| spec(&format!("script = 'a.js'\ncwd = '{cwd}'\nenv_file = 'e'"));
    assert_eq!(cwd("/srv/app/current").cwd, Path::new("/srv/app/current"));
    assert_eq!(cwd("app/../x").cwd, Path::new("/etc/pmr/app/../x"));
    assert_eq!(cwd("app").environment.file.as_deref(), Some(Path::new("/etc/pmr/app/e")));
}

/// `tests/bad.txt` has configs, each on a line, with what is found of each indented below it. A
/// config that does not say what to run has `script = 'a.js'` before it.
#[test]
fn bad_values_are_named_with_what_was_expected() {
    let expected = include_str!("tests/bad.txt");
    let mut found = String::new();
    for line in expected.lines().filter(|line| !line.starts_with(' ')) {
        let text = line.replace("\\n", "\n");
        let runs = text.contains("script") || text.contains("command");
        let script = if runs { "" } else { "script = 'a.js'\n" };
        found.extend([line, "\n"]);
        for finding in findings(&format!("{script}{text}\n")) {
            found.extend(["    ", &finding.replace('\n', "\n        "), "\n"]);
        }
    }
    if let Some((found, expected)) = found.lines().zip(expected.lines()).find(|(a, b)| a != b) {
        panic!("found {found:?} instead of {expected:?}");
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn a_faulty_program_hides_no_other_problem() {
    let found = findings("script = 5\nkill_timeout = 'soon'\n[health]\ninterval = 0\n");
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[1].starts_with("`kill_timeout` must be "), "{found:?}");
}

#[test]
fn the_environment_has_a_bound() {
    let var = |n: usize| format!("V{n} = \"{}\"\n", "x".repeat(130_000));
    let env: String = (0..9).map(var).collect();
    let text = format!("script = 'a.js'\n[env]\n{env}");
    assert_eq!(findings(&text), ["the environment has 1170036 bytes, at most 1048576 fit"]);
    let text = format!("script = 'a.js'\nenv.A = \"{}\"", "x".repeat(131_072));
    assert_eq!(findings(&text), ["`env.A` is longer than 131071 bytes"]);
}

#[test]
fn the_template_parses_as_it_is_and_with_each_key() {
    let template = template("web");
    assert_eq!(findings(&template), Vec::<String>::new());
    let lines: Vec<&str> = template.lines().collect();
    let key = |line: &str| Some(line.strip_prefix('#')?.split_once(" = ")?.0.to_owned());
    let mut table = String::new();
    let mut tried = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if let Some(name) = line.strip_prefix("#[").and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if *line == "[env]" {
            table = "env.".to_owned();
        }
        let Some(key) = key(line).filter(|key| !key.contains(' ')) else { continue };
        let full = format!("{table}{key}");
        let uncomment = |(at, line): (usize, &&str)| {
            let header = line.strip_prefix("#[").and_then(|line| line.strip_suffix(']'));
            let header = header.is_some_and(|name| format!("{name}.") == table);
            let needed = *line == "#http = \"/healthz\"" && table == "health." && key != "tcp";
            let plain = line.strip_prefix('#').unwrap_or(line);
            match at == number || header || needed {
                true => format!("{plain}\n"),
                false if key == "command" && line.starts_with("script") => String::new(),
                false => format!("{line}\n"),
            }
        };
        let text: String = lines.iter().enumerate().map(uncomment).collect();
        assert_ne!(text, template);
        let result = parse(&source(&text), None);
        assert!(result.is_ok(), "{full}: {}", result.unwrap_err());
        tried.push(full);
    }
    for key in keys::KEYS {
        let alias = ["node_args", "wait_ready", "env", "health", "watch", "alerts"];
        let written = ["script", "instances"];
        let there = tried.iter().any(|tried| tried == key);
        assert_ne!(there, alias.contains(key) || written.contains(key), "{key}");
    }
}

/// Every place lies in the text, between characters, and everything can be shown.
fn check_places(text: &str) {
    let examined = examine(&source(text), Some("x"));
    let spans = examined.findings.iter().filter_map(|problem| problem.span.clone());
    for span in spans.chain(examined.places.values().cloned()) {
        assert!(text.get(span.clone()).is_some(), "{span:?} in {text:?}");
    }
    if let Err(problems) = parse(&source(text), None) {
        assert!(problems.errors() > 0);
        assert!(!problems.render(true).is_empty());
        assert_eq!(problems.placed().len(), problems.list().len());
    }
}

/// A config in which all keys stand.
fn whole() -> String {
    let template = template("web");
    let lines = template.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with([' ', '-']) && !key.is_empty() => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

proptest! {
    #[test]
    fn any_text_is_checked_or_refused(text in any::<String>()) {
        check_places(&text);
    }

    #[test]
    fn any_bytes_are_checked_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_places(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn toml_like_text_is_checked_or_refused(
        text in "((script|env|health|listen|args|kill_signal|port) ?[=.] ?|['\"\\[\\]{}#\n\r,=]\
                 |\\\\u0000|[0-9]{1,3}|0x|true|10s|'a.js'|\u{e9}|\u{feff}| ){0,40}"
    ) {
        check_places(&text);
    }

    #[test]
    fn a_mutated_config_is_checked_or_refused(
        at in any::<prop::sample::Index>(),
        length in 0_usize..40,
        new in "[ -~\n\u{e9}\u{0}]{0,10}",
    ) {
        let mut text = whole();
        let start = text.floor_char_boundary(at.index(text.len()));
        let end = text.ceil_char_boundary(start.saturating_add(length).min(text.len()));
        text.replace_range(start..end, &new);
        check_places(&text);
    }
}

#[test]
fn a_replacement_for_memory_that_interrupts_the_app_is_said_beforehand() {
    let gap = "an instance over `max_memory_restart` is stopped before the next one is started\n\
               hint: with `exec_mode = \"cluster\"` and a `port` the new one is online first";
    let text = "script = 'app.js'\nmax_memory_restart = '1G'\n";
    assert_eq!(findings(text), [gap]);
    assert_eq!(findings("script = 'app.js'\n"), strings(&[]));
    let shared = format!("{text}instances = 2\nexec_mode = 'cluster'\nport = 10000\n");
    assert_eq!(findings(&shared), strings(&[]));
}
