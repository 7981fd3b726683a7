//! How an app's instances get their sockets, and why so.
//!
//! Chosen by itself from the config and from what the machine permits:
//!
//! ```text
//!  exec_mode = "fork" ──────────────────────────► none
//!  Node runs the app itself ────────────────────► node     (and inherits, where `listen` is given;
//!                                                  else what it binds itself is fetched as well)
//!  `listen` is given ───────────────────────────► inherit
//!  a port alone ─┬─ hook and steering permitted ► bind
//!                ├─ one instance ───────────────► none
//!                └─ several ────────────────────► refused, with the ways out
//! ```

mod command;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::node::Channel;
use crate::spec::{Balance, ExecMode, ListenAddress, Readiness, Spec};
use command::Command;

/// How an instance gets its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adapter {
    /// It binds what it likes, alone.
    None,
    /// It inherits its sockets (`LISTEN_FDS`).
    Inherit,
    /// It asks for its sockets by Node's cluster protocol.
    Node,
    /// It binds its port itself, with a hook that lets several do so; pmr fetches the socket.
    Bind,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Inherit => "inherit",
            Self::Node => "node",
            Self::Bind => "bind",
        })
    }
}

/// How connections get to the instances: what became of [`Balance`] on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Each instance on its own.
    Alone,
    /// One accept queue for all.
    OneQueue,
    /// In turn, each with a queue of its own.
    InTurn,
    /// By the client's address, each with a queue of its own.
    ByClient,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone => "none",
            Self::OneQueue => "shared",
            Self::InTurn => "round-robin",
            Self::ByClient => "source",
        })
    }
}

/// What a machine permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permit {
    /// It does.
    Yes,
    /// It does not: a fragment that says why.
    No(String),
}

/// What the machine permits of what balancing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// A program that chooses among the sockets of one port.
    pub steering: Permit,
    /// A hook at `bind` in the instances' groups.
    pub bind_hook: Permit,
}

/// What of a config the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct App<'a> {
    /// Whether the instances share a port at all.
    pub exec_mode: ExecMode,
    /// Where.
    pub listen: &'a [ListenAddress],
    /// `listen` stands in the config. If not, it was made of the port that the app is told.
    pub names_listen: bool,
    /// The argument vector.
    pub argv: &'a [String],
    /// What was asked for.
    pub balance: Balance,
    /// Whether it is to say `ready` by Node's channel.
    pub sends_ready: bool,
    /// How many slots there are on this machine.
    pub instances: u16,
}

impl<'a> App<'a> {
    /// What of `spec` the choice depends on.
    pub fn of(spec: &'a Spec, names_listen: bool, instances: u16) -> Self {
        Self {
            exec_mode: spec.exec_mode,
            listen: &spec.listen,
            names_listen,
            argv: &spec.program.argv,
            balance: spec.balance,
            sends_ready: spec.ready == Readiness::Message,
            instances,
        }
    }
}

/// What was chosen for an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// How an instance gets its socket.
    pub adapter: Adapter,
    /// Whether it inherits the sockets of `listen`. With [`Adapter::Node`] it may ask for one of
    /// them by its number.
    pub inherits: bool,
    /// Node's channel, and whether it makes a worker of the instance.
    pub channel: Option<Channel>,
    /// Whether what it binds by itself is shared and fetched: always so with [`Adapter::Bind`], and
    /// with [`Adapter::Node`] where the machine permits it.
    #[serde(default)]
    pub hooked: bool,
    /// How connections get to the instances.
    pub spread: Spread,
    /// Why, for a person.
    pub why: String,
    /// What is not as it was asked for, for a person.
    pub note: Option<String>,
}

/// Why the app cannot be run as its config asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is the matter, with its reason.
    pub why: String,
    /// What may be done instead, each on its own.
    pub ways: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.ways.join(", or "))
    }
}

/// Chooses for an app. It is refused where instances would only find their port in use, and where
/// they could never say that they are ready.
pub fn choose(app: App<'_>, machine: &Machine) -> Result<Choice, Refusal> {
    let command = Command::of(app.argv);
    if app.sends_ready && messages(&command).is_none() {
        return Err(mute(&command));
    }
    match app.exec_mode {
        ExecMode::Cluster if !app.listen.is_empty() => {}
        ExecMode::Cluster => return Ok(alone(&command, "there is no address to balance")),
        ExecMode::Fork => {
            return Ok(alone(&command, "`exec_mode = \"fork\"`: each instance on its own"));
        }
    }
    if command == Command::Node {
        let mut why =
            "Node runs the app, which asks for its sockets as a cluster's worker".to_owned();
        if app.names_listen {
            why.push_str(", and inherits those of `listen`");
        }
        return Ok(shareable(app, Adapter::Node, Some(Channel::Cluster), why, machine));
    }
    let channel = messages(&command);
    if app.names_listen {
        let why = "`listen` is given: the app inherits these sockets (LISTEN_FDS)".to_owned();
        return Ok(shareable(app, Adapter::Inherit, channel, why, machine));
    }
    let reason = match (&machine.steering, &machine.bind_hook) {
        (Permit::Yes, Permit::Yes) => {
            let why = format!("{}: its socket is fetched there", itself(&command));
            let spread =
                if app.balance == Balance::Source { Spread::ByClient } else { Spread::InTurn };
            let note = (app.balance == Balance::Shared).then(|| {
                "`balance = \"shared\"` has no effect where each instance binds a socket of its own"
                    .to_owned()
            });
            return Ok(Choice {
                adapter: Adapter::Bind,
                inherits: false,
                channel,
                hooked: true,
                spread,
                why,
                note,
            });
        }
        (_, Permit::No(reason)) | (Permit::No(reason), Permit::Yes) => reason,
    };
    if app.instances == 1 {
        let mut choice = alone(&command, &itself(&command));
        let note = format!("a reload stops it before the new one starts, since {reason}");
        choice.note = Some(note);
        return Ok(choice);
    }
    Err(Refusal {
        why: format!(
            "{} instances cannot share {}: {}, and several processes cannot do so here, since \
             {reason}",
            app.instances,
            addresses(app.listen),
            itself(&command),
        ),
        ways: ways(&command, app.listen),
    })
}

/// An instance that has its port to itself, or none.
fn alone(command: &Command, why: &str) -> Choice {
    Choice {
        adapter: Adapter::None,
        inherits: false,
        channel: messages(command),
        hooked: false,
        spread: Spread::Alone,
        why: why.to_owned(),
        note: None,
    }
}

/// The channel of who is no worker: `process.send('ready')` and `'shutdown'` pass.
fn messages(command: &Command) -> Option<Channel> {
    match command {
        Command::Node | Command::NodeEval => Some(Channel::Messages),
        Command::Launcher(_) | Command::Other(_) => None,
    }
}

/// Instances that are given their sockets: without steering it is one for all of them.
fn shareable(
    app: App<'_>,
    adapter: Adapter,
    channel: Option<Channel>,
    why: String,
    machine: &Machine,
) -> Choice {
    let is_unix = |address: &ListenAddress| match address {
        ListenAddress::Unix(_) => true,
        ListenAddress::Tcp(_) => false,
    };
    let sticky = match app.balance {
        Balance::Source => ", and clients do not stay with one of them",
        Balance::RoundRobin | Balance::Shared => "",
    };
    let steered = match app.balance {
        Balance::RoundRobin => Spread::InTurn,
        Balance::Source => Spread::ByClient,
        Balance::Shared => Spread::OneQueue,
    };
    let (spread, note) = match &machine.steering {
        _ if steered == Spread::OneQueue => (steered, None),
        _ if app.listen.iter().all(is_unix) => {
            let note = "a client of a Unix socket has no address: the instances share one queue";
            (Spread::OneQueue, (steered == Spread::ByClient).then(|| note.to_owned()))
        }
        Permit::Yes => (steered, None),
        Permit::No(reason) => {
            let note = format!("the instances share one accept queue{sticky}, since {reason}");
            (Spread::OneQueue, Some(note))
        }
    };
    // A worker of Node binds by itself in a thread, in a process that it starts, and where it says
    // `exclusive`. One that inherits sockets has those to listen with.
    let has_own = spread == Spread::InTurn || spread == Spread::ByClient;
    let hooked = adapter == Adapter::Node
        && !app.names_listen
        && has_own
        && machine.bind_hook == Permit::Yes;
    Choice { adapter, inherits: app.names_listen, channel, hooked, spread, why, note }
}

/// Who is to send `ready` and has no channel for it.
fn mute(command: &Command) -> Refusal {
    let (why, mut ways) = match command {
        Command::Launcher(words) if words != "bun" && words != "deno" => {
            (format!("`{words}` keeps Node's channel from the app"), script_ways(words))
        }
        Command::Launcher(name) | Command::Other(name) => {
            (format!("`{name}` has no channel of Node's"), Vec::new())
        }
        Command::Node | Command::NodeEval => ("there is no channel".to_owned(), Vec::new()),
    };
    ways.push("leave `wait_ready` out: then it is ready as soon as it listens".to_owned());
    ways.push("write `ready = \"notify\"` if it sends READY=1 to NOTIFY_SOCKET".to_owned());
    Refusal {
        why: format!("{why}, so it can never send `ready`, which `wait_ready` asks for"),
        ways,
    }
}

/// What may be run in place of a launcher.
fn script_ways(words: &str) -> Vec<String> {
    match words {
        "tsx" | "ts-node" | "ts-node-dev" | "ts-node-esm" | "tsnd" => vec![
            "have node itself run the script: `command = [\"node\", \"--import\", \"tsx\", \
             \"app.ts\"]`"
                .to_owned(),
        ],
        "bun" | "deno" => Vec::new(),
        _ => vec![format!(
            "write as `script` the file that `{words}` has node run, as `script = \"app.js\"`"
        )],
    }
}

/// Why a program has to bind its port itself.
fn itself(command: &Command) -> String {
    match command {
        Command::Node => "`node` binds its port itself".to_owned(),
        Command::NodeEval => {
            "node without a script file is no cluster's worker, and binds its port itself"
                .to_owned()
        }
        Command::Launcher(words) if words == "bun" || words == "deno" => {
            format!("`{words}` binds its port itself")
        }
        Command::Launcher(words) => {
            format!("`{words}` keeps Node's channel from the app, which binds its port itself")
        }
        Command::Other(name) => format!("`{name}` binds its port itself"),
    }
}

fn addresses(listen: &[ListenAddress]) -> String {
    listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What works without a hook.
fn ways(command: &Command, listen: &[ListenAddress]) -> Vec<String> {
    let mut ways = Vec::new();
    match command {
        Command::Launcher(words) => ways.extend(script_ways(words)),
        Command::NodeEval => ways.push("put the code into a file, as `script`".to_owned()),
        Command::Node | Command::Other(_) => {}
    }
    ways.push("run it where that is permitted, as the system service of `pmr start`".to_owned());
    let listen = addresses(listen);
    ways.push(format!("write `listen = \"{listen}\"` if the app takes inherited sockets"));
    ways.push("give each instance a port of its own by `increment_var = \"PORT\"`".to_owned());
    ways.push("write `instances = 1`".to_owned());
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(is: bool, reason: &str) -> Permit {
        if is { Permit::Yes } else { Permit::No(reason.to_owned()) }
    }

    fn machine(steering: bool, bind_hook: bool) -> Machine {
        Machine {
            steering: permit(steering, "bpf(2) is not permitted"),
            bind_hook: permit(bind_hook, "its group takes no program"),
        }
    }

    const ALL: (bool, bool) = (true, true);

    /// `mode listen-or-port balance instances: command` in, the choice in a line out.
    fn chosen(line: &str, (steering, hook): (bool, bool)) -> String {
        let (words, command) = line.split_once(": ").unwrap();
        let words: Vec<&str> = words.split(' ').collect();
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let listen = match words[1] {
            "none" => vec![],
            "unix" | "listen-unix" => vec![ListenAddress::Unix("/run/x".into())],
            _ => vec![ListenAddress::Tcp("[::]:3000".parse().unwrap())],
        };
        let app = App {
            exec_mode: if words[0] == "fork" { ExecMode::Fork } else { ExecMode::Cluster },
            listen: &listen,
            names_listen: words[1].starts_with("listen"),
            argv: &argv,
            balance: match words[2] {
                "source" => Balance::Source,
                "shared" => Balance::Shared,
                _ => Balance::RoundRobin,
            },
            sends_ready: words.get(4) == Some(&"ready"),
            instances: words[3].parse().unwrap(),
        };
        match choose(app, &machine(steering, hook)) {
            Ok(choice) => {
                let inherits = if choice.inherits { " inherits" } else { "" };
                let hooked = if choice.hooked { " hooked" } else { "" };
                let channel = match choice.channel {
                    Some(Channel::Cluster) => " cluster",
                    Some(Channel::Messages) => " messages",
                    None => "",
                };
                let note = choice.note.map(|note| format!(" ({note})")).unwrap_or_default();
                format!("{} {}{inherits}{hooked}{channel}{note}", choice.adapter, choice.spread)
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn each_app_gets_its_adapter() {
        let cases = [
            ("fork none turn 2: node app.js", "none none messages"),
            ("fork none turn 2: node -e x", "none none messages"),
            ("fork none turn 2: npm start", "none none"),
            ("fork none turn 1: python3 app.py", "none none"),
            ("cluster none turn 2: node app.js", "none none messages"),
            ("cluster port turn 2: node app.js", "node round-robin hooked cluster"),
            ("cluster port source 2: node app.js", "node source hooked cluster"),
            ("cluster port shared 2: node app.js", "node shared cluster"),
            ("cluster port turn 1: node app.js", "node round-robin hooked cluster"),
            ("cluster listen turn 2: node app.js", "node round-robin inherits cluster"),
            ("cluster listen-unix turn 2: node app.js", "node shared inherits cluster"),
            ("cluster listen turn 2: gunicorn", "inherit round-robin inherits"),
            ("cluster listen shared 2: gunicorn", "inherit shared inherits"),
            ("cluster listen-unix turn 2: gunicorn", "inherit shared inherits"),
            (
                "cluster listen-unix source 2: gunicorn",
                "inherit shared inherits (a client of a Unix socket has no address: the instances \
                 share one queue)",
            ),
            ("cluster listen turn 2: npm start", "inherit round-robin inherits"),
            ("cluster listen turn 2: node -e x", "inherit round-robin inherits messages"),
            ("cluster port turn 2: python3 app.py", "bind round-robin hooked"),
            ("cluster port source 2: npm start", "bind source hooked"),
            ("cluster port turn 2: node --watch app.js", "bind round-robin hooked"),
            ("cluster port turn 2: node -e x", "bind round-robin hooked messages"),
            (
                "cluster port shared 2: ./server",
                "bind round-robin hooked (`balance = \"shared\"` has no effect where each instance \
                 binds a socket of its own)",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(chosen(line, ALL), expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_permitted_is_done_without_where_it_can_be() {
        let shared = "(the instances share one accept queue, since bpf(2) is not permitted)";
        let sticky = "(the instances share one accept queue, and clients do not stay with one of \
                      them, since bpf(2) is not permitted)";
        let turns = "(a reload stops it before the new one starts, since ";
        let cases = [
            ("cluster port turn 2: node app.js", format!("node shared cluster {shared}")),
            ("cluster port source 2: node app.js", format!("node shared cluster {sticky}")),
            ("cluster port shared 2: node app.js", "node shared cluster".to_owned()),
            ("cluster listen turn 2: nginx", format!("inherit shared inherits {shared}")),
            ("cluster listen-unix turn 2: nginx", "inherit shared inherits".to_owned()),
            ("cluster port turn 1: nginx", format!("none none {turns}its group takes no program)")),
            ("fork none turn 2: nginx", "none none".to_owned()),
        ];
        for (line, expected) in cases {
            assert_eq!(chosen(line, (false, false)), expected, "{line}");
        }
        let only_hook = chosen("cluster port turn 1: nginx", (false, true));
        assert_eq!(only_hook, format!("none none {turns}bpf(2) is not permitted)"));
        let only_steering = chosen("cluster port turn 2: node app.js", (true, false));
        assert_eq!(only_steering, "node round-robin cluster");
    }

    #[test]
    fn a_refusal_names_the_ways_out() {
        let common = "run it where that is permitted, as the system service of `pmr start`, or \
                      write `listen = \"[::]:3000\"` if the app takes inherited sockets, or give \
                      each instance a port of its own by `increment_var = \"PORT\"`, or write \
                      `instances = 1`";
        let since = "and several processes cannot do so here, since its group takes no program";
        let refused = |what: &str, way: &str| {
            format!("2 instances cannot share [::]:3000: {what}, {since}; {way}{common}")
        };
        let launched = |words: &str| {
            format!("`{words}` keeps Node's channel from the app, which binds its port itself")
        };
        let script = |words: &str| {
            format!(
                "write as `script` the file that `{words}` has node run, as \
                     `script = \"app.js\"`, or "
            )
        };
        let tsx = "have node itself run the script: `command = [\"node\", \"--import\", \"tsx\", \
                   \"app.ts\"]`, or ";
        let cases = [
            ("python3 app.py", refused("`python3` binds its port itself", "")),
            ("npm start", refused(&launched("npm"), &script("npm"))),
            ("node --watch a.js", refused(&launched("node --watch"), &script("node --watch"))),
            ("tsx app.ts", refused(&launched("tsx"), tsx)),
            ("bun app.ts", refused("`bun` binds its port itself", "")),
            (
                "node -e x",
                refused(
                    "node without a script file is no cluster's worker, and binds its port itself",
                    "put the code into a file, as `script`, or ",
                ),
            ),
        ];
        for (command, expected) in cases {
            let line = format!("cluster port turn 2: {command}");
            assert_eq!(chosen(&line, (true, false)), expected, "{command}");
        }
        let neither = chosen("cluster port turn 2: npm start", (false, false));
        assert!(neither.contains("since its group takes no program"), "{neither}");
        let hook = chosen("cluster port turn 2: npm start", (false, true));
        assert!(hook.contains("since bpf(2) is not permitted"), "{hook}");
    }

    #[test]
    fn who_can_never_send_ready_is_told_so() {
        let ways = "leave `wait_ready` out: then it is ready as soon as it listens, or write \
                    `ready = \"notify\"` if it sends READY=1 to NOTIFY_SOCKET";
        let mute = |why: &str, way: &str| {
            format!("{why}, so it can never send `ready`, which `wait_ready` asks for; {way}{ways}")
        };
        let npm =
            "write as `script` the file that `npm` has node run, as `script = \"app.js\"`, or ";
        let cases = [
            (
                "cluster port turn 2 ready: node app.js",
                "node round-robin hooked cluster".to_owned(),
            ),
            ("fork none turn 1 ready: node app.js", "none none messages".to_owned()),
            ("fork none turn 1 ready: node -e x", "none none messages".to_owned()),
            (
                "cluster port turn 2 ready: npm start",
                mute("`npm` keeps Node's channel from the app", npm),
            ),
            ("fork none turn 1 ready: bun a.ts", mute("`bun` has no channel of Node's", "")),
            ("fork none turn 1 ready: python3 x", mute("`python3` has no channel of Node's", "")),
        ];
        for (line, expected) in cases {
            assert_eq!(chosen(line, ALL), expected, "{line}");
        }
    }

    #[test]
    fn reasons_are_for_a_person() {
        let why = |argv: &str, names_listen: bool| {
            let listen = [ListenAddress::Tcp("[::]:3000".parse().unwrap())];
            let argv: Vec<String> = argv.split(' ').map(str::to_owned).collect();
            let app = App {
                exec_mode: ExecMode::Cluster,
                listen: &listen,
                names_listen,
                argv: &argv,
                balance: Balance::RoundRobin,
                sends_ready: false,
                instances: 2,
            };
            choose(app, &machine(true, true)).unwrap().why
        };
        let node = "Node runs the app, which asks for its sockets as a cluster's worker";
        assert_eq!(why("node a.js", false), node);
        assert_eq!(why("node a.js", true), format!("{node}, and inherits those of `listen`"));
        let inherit = "`listen` is given: the app inherits these sockets (LISTEN_FDS)";
        assert_eq!(why("nginx", true), inherit);
        assert_eq!(
            why("nginx", false),
            "`nginx` binds its port itself: its socket is fetched there"
        );
        let npm = "`npm` keeps Node's channel from the app, which binds its port itself: its \
                   socket is fetched there";
        assert_eq!(why("npm start", false), npm);
    }
}
