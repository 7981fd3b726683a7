//! Servers in other languages, unmodified: each binds its port by itself, as it does anywhere.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::app::{App, Setup, State, free_port, quoted};
use crate::load::Request;
use crate::procs;

/// What a test of a server needs before its app runs: the words of its `command`.
type Words = Vec<String>;

/// The main process of a slot, and all it started.
fn tree(pid: u32) -> Vec<u32> {
    let below = procs::children(pid).into_iter().flat_map(tree);
    [pid].into_iter().chain(below).collect()
}

/// How many connections each slot was given since its spawn.
fn given(state: &State) -> [u64; 2] {
    [state.number(0, "connections"), state.number(1, "connections")]
}

/// That of 40 connections, one after the other, each slot is given 20.
fn assert_balanced(app: &App, port: u16) {
    let before = given(&app.online(2));
    for _ in 0..40 {
        Request::send(port, "/").answer().unwrap_or_else(|it| panic!("{it}\n{}", app.setup.log()));
    }
    let after = given(&app.online(2));
    let more = [after[0] - before[0], after[1] - before[1]];
    assert_eq!(more, [20, 20], "{before:?} {after:?}\n{}", app.setup.log());
}

/// The words of a server, or why there is none on this machine.
type Server = fn(&Setup, u16) -> Result<Words, String>;

/// Balanced exactly, and nothing that waits for an instance is lost with it.
fn is_balanced_and_loses_nothing(test: &str, name: &str, server: Server) {
    if !procs::is_root() || procs::own_cgroup().is_none() {
        return procs::skip(test, "a hook at bind takes root and a cgroup");
    }
    let port = free_port();
    let setup = Setup::new(name);
    let words = match server(&setup, port) {
        Ok(words) => words,
        Err(why) => return procs::skip(test, &why),
    };
    let words: Vec<String> = words.iter().map(quoted).collect();
    let config = format!(
        "command = [{}]\nport = {port}\ninstances = 2\nexec_mode = \"cluster\"\n\
         kill_timeout = \"5s\"\nmin_uptime = 100\nmax_restarts = 1000\n",
        words.join(", ")
    );
    let app = setup.config(&config).start();
    let balance = app.online(2).0["balance"].clone();
    if balance["steered"].as_bool() != Some(true) && balance["adapter"] == "bind" {
        return procs::skip(test, "bpf(2) is not permitted here");
    }
    assert_eq!(balance["adapter"], "bind", "{balance}");
    assert_balanced(&app, port);
    for slot in 0..2 {
        let before = app.online(2);
        let victim = before.pid(slot).unwrap();
        let all = tree(victim);
        assert!(all.iter().all(|&pid| procs::signal(pid, Signal::STOP)));
        app.eventually("they stop", || all.iter().all(|&pid| procs::is_stopped(pid)).then_some(()));
        // Every other one waits for somebody who has stopped; too short for a hang to be seen.
        let waiting: Vec<Request> = (0..40).map(|_| Request::send(port, "/")).collect();
        assert!(procs::signal(victim, Signal::KILL));
        for request in waiting {
            request.answer().unwrap_or_else(|it| panic!("slot {slot}: {it}\n{}", app.setup.log()));
        }
        app.state("another in its slot", |state| {
            state.word(slot) == "online" && state.pid(slot) != Some(victim)
        });
        let other = 1 - slot;
        let moved = app.status().number(other, "migrated") - before.number(other, "migrated");
        assert!(moved > 0, "nobody waited for slot {slot}\n{}", app.setup.log());
        // Whoever it had started is gone too.
        app.eventually("their end", || (!all.iter().any(|&pid| procs::lives(pid))).then_some(()));
    }
    assert_balanced(&app, port);
}

/// The words, where such a program is there.
fn with(program: &str, words: &[&str]) -> Result<Words, String> {
    if !procs::has(program) {
        return Err(format!("there is no {program}"));
    }
    Ok([program].iter().chain(words).map(|&word| word.to_owned()).collect())
}

/// Builds a server; an error is why it could not be.
fn build(setup: &Setup, command: &mut Command) -> Result<(), String> {
    let done = setup.run(command.current_dir(&setup.directory));
    if done.code == 0 { Ok(()) } else { Err(format!("{command:?}: {}{}", done.out, done.err)) }
}

fn word(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn pythons_own_server() {
    is_balanced_and_loses_nothing("pythons_own_server", "python", |_, port| {
        with("python3", &["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
    });
}

#[test]
fn gunicorn() {
    is_balanced_and_loses_nothing("gunicorn", "gunicorn", |setup, port| {
        setup.write(
            "app.py",
            "def app(environ, start_response):\n    \
             start_response('200 OK', [('Content-Length', '3')])\n    \
             return [b'it\\n']\n",
        );
        with("gunicorn", &["--bind", &format!("127.0.0.1:{port}"), "--workers", "2", "app:app"])
    });
}

#[test]
fn uvicorn() {
    is_balanced_and_loses_nothing("uvicorn", "uvicorn", |setup, port| {
        setup.write(
            "app.py",
            "async def app(scope, receive, send):\n    \
             if scope['type'] != 'http':\n        \
             return\n    \
             await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
             await send({'type': 'http.response.body', 'body': b'it\\n'})\n",
        );
        let port = port.to_string();
        let words = ["--host", "127.0.0.1", "--port", &port, "--lifespan", "off", "app:app"];
        with("uvicorn", &words)
    });
}

#[test]
fn nginx_with_two_workers() {
    is_balanced_and_loses_nothing("nginx_with_two_workers", "nginx", |setup, port| {
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let paths: String = paths.map(|it| format!("{it}_temp_path {it};\n")).concat();
        let config = setup.write(
            "nginx.conf",
            &format!(
                "daemon off;\nuser root;\nworker_processes 2;\npid nginx.pid;\n\
                 error_log stderr crit;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}\
                 server {{ listen 127.0.0.1:{port}; location / {{ return 200 it; }} }}\n}}\n"
            ),
        );
        with("nginx", &["-p", &word(&setup.directory), "-e", "stderr", "-c", &word(&config)])
    });
}

#[test]
fn a_go_server() {
    is_balanced_and_loses_nothing("a_go_server", "go", |setup, port| {
        let mut words = with("go", &["build", "-o", "server", "server.go"])?;
        setup.write("server.go", GO);
        let program = words.remove(0);
        let mut command = Command::new(program);
        command.args(words).env("CGO_ENABLED", "0").env("GO111MODULE", "off");
        command.env("GOCACHE", std::env::temp_dir().join("pmr-it-go"));
        build(setup, &mut command)?;
        Ok(vec![word(&setup.directory.join("server")), port.to_string()])
    });
}

#[test]
fn a_ruby_server() {
    is_balanced_and_loses_nothing("a_ruby_server", "ruby", |setup, port| {
        let words = with("ruby", &["-rwebrick", "server.rb", &port.to_string()])?;
        setup.write("server.rb", RUBY);
        build(setup, Command::new("ruby").args(["-rwebrick", "-e", "0"]))?;
        Ok(words)
    });
}

#[test]
fn a_static_binary() {
    is_balanced_and_loses_nothing("a_static_binary", "static", |setup, port| {
        let mut words = with("cc", &["-static", "-O1", "-o", "server", "server.c"])?;
        setup.write("server.c", C);
        build(setup, Command::new(words.remove(0)).args(words))?;
        Ok(vec![word(&setup.directory.join("server")), port.to_string()])
    });
}

const GO: &str = r#"package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "it") })
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
"#;

const RUBY: &str = "server = WEBrick::HTTPServer.new(
  BindAddress: '127.0.0.1', Port: ARGV[0].to_i, AccessLog: [],
  Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN)
)
server.mount_proc('/') { |request, response| response.body = \"it\\n\" }
trap('TERM') { server.shutdown }
server.start
";

/// With a backlog that would not hold those who wait.
const C: &str = r#"#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nit\n";
    struct sockaddr_in at = {.sin_family = AF_INET};
    char request[4096];
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(atoi(argc > 1 ? argv[1] : "0"));
    signal(SIGPIPE, SIG_IGN);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 5))
        return 1;
    for (;;) {
        int client = accept(listener, 0, 0);
        if (read(client, request, sizeof request) > 0)
            write(client, answer, strlen(answer));
        close(client);
    }
}
"#;
