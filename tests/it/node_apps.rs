//! Node apps as people write them, under `pmr run` and each version of Node, and some under Bun and
//! Deno: two instances behind one port take turns exactly, and do so again after one of them was
//! killed; with one version after the supervisor was killed too. What cannot be balanced is refused
//! with a sentence that says why and what to do.
//!
//! The apps are in `tests/fixtures/node-apps`, and read nothing but `PORT`.

mod rig;

use crate::app::free_port;
use crate::balance::WITHOUT_BPF;
use crate::load::get;
use crate::procs;
use rig::{Answers, BIND, Case, NODE, Running, with_apps, with_bun, with_deno, with_each_version};

#[test]
fn plain_http() {
    with_each_version("plain_http", &Case { runs: "script = 'http.js'", ..NODE });
}

#[test]
fn express() {
    with_each_version("express", &Case { runs: "script = 'express.js'", ..NODE });
}

#[test]
fn fastify() {
    with_each_version("fastify", &Case { runs: "script = 'fastify.js'", ..NODE });
}

#[test]
fn koa() {
    with_each_version("koa", &Case { runs: "script = 'koa.js'", ..NODE });
}

#[test]
fn modules_with_await_at_the_top() {
    let test = "modules_with_await_at_the_top";
    with_each_version(test, &Case { runs: "script = 'esm.mjs'", ..NODE });
}

#[test]
fn typescript_by_an_import_of_tsx() {
    let runs = "command = ['node', '--import', 'tsx', 'typed.ts']";
    with_each_version("typescript_by_an_import_of_tsx", &Case { runs, ..NODE });
}

#[test]
fn typescript_by_node_itself() {
    let knows = |(major, minor)| (major, minor) >= (23, 6) || major == 22 && minor >= 18;
    let runs = "command = ['node', 'typed.ts']";
    with_each_version("typescript_by_node_itself", &Case { runs, knows, ..NODE });
}

#[test]
fn typescript_by_the_command_of_tsx() {
    let runs = "command = ['tsx', 'typed.ts']";
    with_each_version("typescript_by_the_command_of_tsx", &Case { runs, ..BIND });
}

#[test]
fn npm_start() {
    with_each_version("npm_start", &Case { runs: "command = ['npm', 'start']", ..BIND });
}

#[test]
fn node_watch() {
    let runs = "command = ['node', '--watch', 'http.js']";
    with_each_version("node_watch", &Case { runs, ..BIND });
}

#[test]
fn node_run() {
    let knows = |version| version >= (22, 0);
    let runs = "command = ['node', '--run', 'start']";
    with_each_version("node_run", &Case { runs, knows, ..BIND });
}

#[test]
fn https_with_sessions_that_both_take_up() {
    let test = "https_with_sessions_that_both_take_up";
    if !procs::has("openssl") {
        return procs::skip(test, "there is no openssl to make a certificate with");
    }
    let ask = |running: &Running, count| {
        let answers = running.client("https.js", count);
        let hows: Vec<&str> = answers.iter().filter_map(|it| it.split(' ').nth(2)).collect();
        let (first, others) = hows.split_first().unwrap();
        assert_eq!(*first, "full", "{answers:?}");
        assert!(others.iter().all(|how| *how == "resumed"), "{answers:?}");
        let who = answers.iter().map(|it| it.rsplit_once(' ').unwrap().0.to_owned());
        Answers::in_turn(who.collect())
    };
    with_each_version(test, &Case { runs: "script = 'https.js'", ask, ..NODE });
}

#[test]
fn http2_sessions() {
    let ask = |running: &Running, count| Answers::in_turn(running.client("http2.js", count));
    with_each_version("http2_sessions", &Case { runs: "script = 'http2.js'", ask, ..NODE });
}

#[test]
fn websockets() {
    let ask = |running: &Running, count| Answers::in_turn(running.client("ws.js", count));
    with_each_version("websockets", &Case { runs: "script = 'ws.js'", ask, ..NODE });
}

#[test]
fn a_port_that_the_kernel_chooses() {
    let ask = |running: &Running, count| {
        let ports: Vec<String> = (0..4).map(|_| get(running.port, "/").unwrap()).collect();
        assert!(ports.iter().all(|port| *port == ports[0]), "each has its own: {ports:?}");
        Answers::in_turn(running.ask(ports[0].parse().unwrap(), count))
    };
    let test = "a_port_that_the_kernel_chooses";
    with_each_version(test, &Case { runs: "script = 'any-port.js'", ask, ..NODE });
}

#[test]
fn two_ports() {
    let ask = |running: &Running, count| Answers {
        in_turn: [running.second, running.port].map(|port| running.ask(port, count)).to_vec(),
        by_any: Vec::new(),
    };
    with_each_version("two_ports", &Case { runs: "script = 'two-ports.js'", ask, ..NODE });
}

#[test]
fn a_unix_socket() {
    let ask = |running: &Running, count| Answers {
        in_turn: Vec::new(),
        by_any: (0..count).map(|_| running.ask_unix()).collect(),
    };
    let runs = "script = 'unix.js'\nlisten = 'DIRECTORY/app.sock'";
    with_each_version("a_unix_socket", &Case { runs, ask, ..NODE });
}

#[test]
fn datagrams() {
    let ask = |running: &Running, count| Answers {
        in_turn: vec![running.ask(running.port, count)],
        by_any: (0..count).map(|_| running.ask_udp()).collect(),
    };
    with_each_version("datagrams", &Case { runs: "script = 'udp.js'", ask, ..NODE });
}

#[test]
fn an_app_with_a_cluster_of_its_own() {
    // Each instance is a worker of pmr's already, so it serves and forks nobody.
    let test = "an_app_with_a_cluster_of_its_own";
    with_each_version(test, &Case { runs: "script = 'own-cluster.js'", ..NODE });
}

#[test]
fn a_cluster_of_its_own_behind_npm() {
    // There it forks its workers, which take turns within their instance.
    let case = Case { runs: "command = ['npm', 'run', 'cluster']", ..BIND };
    with_each_version("a_cluster_of_its_own_behind_npm", &case);
}

#[test]
fn child_processes() {
    with_each_version("child_processes", &Case { runs: "script = 'child.js'", ..NODE });
}

#[test]
fn threads() {
    with_each_version("threads", &Case { runs: "script = 'threads.js'", ..NODE });
}

#[test]
fn a_server_in_a_thread() {
    let runs = "script = 'thread-server.js'";
    with_each_version("a_server_in_a_thread", &Case { runs, ..NODE });
}

#[test]
fn a_server_in_another_process() {
    // Of which pmr knows nothing: the app is no launcher by its name.
    let case = Case { runs: "script = 'launcher.js'", is_launcher: true, ..NODE };
    with_each_version("a_server_in_another_process", &case);
}

#[test]
fn an_exclusive_listener() {
    with_each_version("an_exclusive_listener", &Case { runs: "script = 'exclusive.js'", ..NODE });
}

#[test]
fn nodes_server_in_bun() {
    with_bun("nodes_server_in_bun", &Case { runs: "command = ['bun', 'http.js']", ..BIND });
}

#[test]
fn buns_own_server() {
    with_bun("buns_own_server", &Case { runs: "command = ['bun', 'serve-bun.ts']", ..BIND });
}

#[test]
fn nodes_server_in_deno() {
    let runs = "command = ['deno', 'run', '-A', 'esm.mjs']";
    with_deno("nodes_server_in_deno", &Case { runs, ..BIND });
}

#[test]
fn denos_own_server() {
    let runs = "command = ['deno', 'run', '-A', 'serve-deno.ts']";
    with_deno("denos_own_server", &Case { runs, ..BIND });
}

/// What goes wrong, and what is to be said of it in one line.
struct Refused {
    name: &'static str,
    config: &'static str,
    /// `app.js`, where the config names that.
    app: &'static str,
    /// With `@port` for the one of the config, and `@other` for another one.
    says: &'static [&'static str],
    code: i32,
    /// Whether bpf(2) is permitted.
    bpf: bool,
}

const ELSEWHERE: &str = "require('http').createServer(() => {}).listen(process.env.OTHER);";

const REFUSED: [Refused; 7] = [
    Refused {
        name: "elsewhere",
        config: "script = 'app.js'",
        app: ELSEWHERE,
        says: &["listens at [::]:@other", "says port @port", "`PORT`, or write `port = @other`"],
        code: 69,
        bpf: true,
    },
    Refused {
        name: "watched",
        config: "command = ['node', '--watch', 'app.js']",
        app: ELSEWHERE,
        says: &["listens at [::]:@other", "says port @port", "`PORT`, or write `port = @other`"],
        code: 69,
        bpf: true,
    },
    Refused {
        name: "nowhere",
        config: "script = 'app.js'",
        app: "setInterval(() => {}, 1000);",
        says: &["listens at no port", "says port @port", "`listen_timeout`", "exec_mode"],
        code: 69,
        bpf: true,
    },
    Refused {
        name: "never-says",
        config: "script = 'http.js'\nwait_ready = true",
        app: "",
        says: &["has not sent `ready`", "process.send('ready')", "leave `wait_ready` out"],
        code: 69,
        bpf: true,
    },
    Refused {
        name: "cannot-say",
        config: "command = ['npm', 'start']\nwait_ready = true",
        app: "",
        says: &["`npm` keeps Node's channel", "never send `ready`", "leave `wait_ready` out"],
        code: 78,
        bpf: true,
    },
    Refused {
        name: "exclusive",
        config: "script = 'exclusive.js'",
        app: "",
        says: &["at [::]:@port with a socket that it has not asked pmr for", "`exclusive`"],
        code: 69,
        bpf: false,
    },
    Refused {
        name: "launcher",
        config: "script = 'launcher.js'",
        app: "",
        says: &["another process that listens at [::]:@port", "http.js`, pid", "as `script`"],
        code: 69,
        bpf: false,
    },
];

#[test]
fn who_cannot_be_balanced_is_told_why_and_what_to_do() {
    let test = "who_cannot_be_balanced_is_told_why_and_what_to_do";
    if !procs::has("setpriv") || !procs::is_root() || procs::own_cgroup().is_none() {
        return procs::skip(test, "it takes setpriv, root and a cgroup");
    }
    // All at once: each takes as long as its `listen_timeout`.
    let started = REFUSED.map(|refused| {
        let (port, other) = (free_port().to_string(), free_port().to_string());
        let config = format!(
            "{}\nport = {port}\ninstances = 2\nlisten_timeout = '5s'\nmax_restarts = 1\n\
             env = {{ OTHER = '{other}' }}\n",
            refused.config
        );
        let setup = with_apps(refused.name).config(&config);
        setup.write("app.js", refused.app);
        let setup = if refused.bpf { setup } else { setup.before(&WITHOUT_BPF) };
        let fill = |text: &&str| text.replace("@port", &port).replace("@other", &other);
        (refused.says.iter().map(fill).collect::<Vec<_>>(), setup.start(), refused)
    });
    for (says, mut app, refused) in started {
        let code = app.wait();
        let log = app.setup.log();
        assert_eq!(code, refused.code, "{}: {log}", refused.name);
        let line = log.lines().find(|line| says.iter().all(|part| line.contains(part)));
        assert!(line.is_some(), "{}: no line has {says:?}\n{log}", refused.name);
    }
}

#[test]
fn who_wants_the_port_of_another_in_fork_mode_is_told_how_they_share_it() {
    let test = "who_wants_the_port_of_another_in_fork_mode_is_told_how_they_share_it";
    if !procs::has("node") {
        return procs::skip(test, "there is no node");
    }
    let port = free_port();
    let ways = [
        ("", format!("write `port = {port}`")),
        ("exec_mode = 'fork'\nport = ", "leave `exec_mode".into()),
    ];
    for (mode, way) in ways {
        let address = if mode.is_empty() { String::new() } else { format!("{mode}{port}\n") };
        let config = format!("script = 'app.js'\ninstances = 2\nmax_restarts = 2\n{address}");
        let setup = with_apps("fork").config(&config);
        setup.write("app.js", &format!("require('http').createServer().listen({port});"));
        let app = setup.start();
        let said = format!("listens at [::]:{port}, and in fork mode no other instance can");
        app.eventually("a sentence", || {
            let log = app.setup.read("stderr");
            log.lines().any(|line| line.contains(&said) && line.contains(&way)).then_some(())
        });
    }
}
