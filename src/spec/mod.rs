//! What an app may ask for: checked types only.
//!
//! A [`Spec`] is made by `config` from a file in which every value was looked at, or read back from
//! a sealed memfd that a supervisor wrote. Nothing here does I/O, and nothing is optional that has
//! a default: the default is already in place.

mod name;
mod quantity;

use core::net::SocketAddr;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use name::{AppName, NameError};
pub use quantity::{Bytes, QuantityError, parse_bytes, parse_duration};

/// Most slots an app may have. Steering tables have 512 places, and a roll needs a surge on top.
pub const INSTANCES_MAX: u16 = 256;

/// Everything pmr knows about one app: a checked config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The name: the config file's, without `.toml`.
    pub name: AppName,
    /// What is executed.
    pub program: Program,
    /// Absolute, not yet resolved: a symlink in it is resolved once per release.
    pub cwd: PathBuf,
    /// Whose rights it runs with.
    pub identity: Identity,
    /// How its environment is made.
    pub environment: Environment,
    /// A write to a closed pipe or socket is an error, and not the end of the process.
    #[serde(default = "yes")]
    pub ignore_sigpipe: bool,
    /// How many slots.
    pub instances: Instances,
    /// One port balanced over all slots, or each slot on its own.
    pub exec_mode: ExecMode,
    /// Addresses that are balanced in cluster mode.
    pub listen: Vec<ListenAddress>,
    /// The app takes inherited sockets (`listen` is written). Else its port is all that is known,
    /// and it binds that by itself.
    #[serde(default = "yes")]
    pub inherits: bool,
    /// How connections are spread over the slots.
    pub balance: Balance,
    /// When and how often an exited instance is started again.
    pub restart: RestartRules,
    /// When an instance counts as online.
    pub ready: Readiness,
    /// Not ready in this time after the spawn = failed start.
    pub listen_timeout: Duration,
    /// How an instance is asked to stop, and how long it may take.
    pub stop: StopRules,
    /// Memory limits.
    pub memory: MemoryRules,
    /// Other limits of the instance's group.
    pub limits: Limits,
    /// Liveness probe.
    pub health: Option<Health>,
    /// The instance must send `WATCHDOG=1` at least this often.
    pub watchdog: Option<Duration>,
    /// Scheduled rolling reload, five fields of cron.
    pub cron_restart: Option<String>,
    /// Reload on file change.
    pub watch: Option<Watch>,
    /// Who is told of trouble besides the journal.
    pub alerts: Alerts,
    /// Bounds of a rolling replacement.
    pub rolling: RollingRules,
}

/// The default in a release that was sealed before there was a choice.
fn yes() -> bool {
    true
}

impl Spec {
    /// Whether two instances of a slot can serve beside each other while one replaces the other.
    pub fn shares_port(&self) -> bool {
        self.exec_mode == ExecMode::Cluster && !self.listen.is_empty()
    }
}

/// What is executed: the argument vector, its first element the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// At least one element. A first element without `/` is looked up in the app's `PATH`.
    pub argv: Vec<String>,
    /// The script as configured, where there is one: named in messages instead of the interpreter.
    pub script: Option<String>,
}

/// Whose rights the app runs with. `None` keeps what pmr was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User name or number.
    pub user: Option<String>,
    /// Group name or number; without it the user's primary group.
    pub group: Option<String>,
    /// File mode creation mask, 0 to 0o777.
    pub umask: Option<u32>,
}

/// How the app's environment is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// `env`, overlaid with `env_NAME` where `--env NAME` was given.
    pub vars: BTreeMap<String, String>,
    /// `env_file`, absolute; read with the app's credentials, below `vars`.
    pub file: Option<PathBuf>,
    /// Start from nothing instead of the environment pmr was started with.
    pub clear: bool,
    /// The variable that receives the slot number.
    pub instance_var: String,
    /// The variable to whose value the slot number is added.
    pub increment_var: Option<String>,
}

/// How many slots an app asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Instances {
    /// That many: 1 to [`INSTANCES_MAX`].
    Count(u16),
    /// As many as the CPUs the service may use, less this many; never below 1.
    CpusLess(u16),
}

impl Instances {
    /// The number of slots on a machine with `cpus` usable CPUs: 1 to [`INSTANCES_MAX`].
    pub fn resolve(self, cpus: u16) -> u16 {
        match self {
            Self::Count(count) => count,
            Self::CpusLess(less) => cpus.saturating_sub(less),
        }
        .clamp(1, INSTANCES_MAX)
    }
}

/// PM2's word for whether the slots share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecMode {
    /// Each slot on its own.
    Fork,
    /// All slots behind the same addresses.
    Cluster,
}

/// An address that pmr listens on for the app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenAddress {
    /// TCP. The unspecified IPv6 address is dual-stack.
    Tcp(SocketAddr),
    /// A Unix stream socket at an absolute path.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl std::str::FromStr for ListenAddress {
    type Err = core::net::AddrParseError;

    /// What is written by `Display`: a path begins with `/`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        text.parse().map(Self::Tcp)
    }
}

/// How connections are spread over the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// One accept queue that all slots share.
    Shared,
    /// By the client's address.
    Source,
}

/// When and how often an exited instance is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRules {
    /// Whether an exit nobody asked for is followed by a start.
    pub autorestart: bool,
    /// Exit codes after which the slot counts as finished.
    pub stop_exit_codes: Vec<i32>,
    /// Unstable exits within `window` after which the slot is errored; 1 to 1000.
    pub max_restarts: u32,
    /// How much running time the limit looks back on.
    pub window: Duration,
    /// An online slot that lived this long since its spawn is stable.
    pub min_uptime: Duration,
    /// Wait before every restart.
    pub delay: Duration,
    /// Growing wait, where it is asked for.
    pub backoff: Option<Backoff>,
}

/// A wait that doubles with each unstable exit in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The first wait.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
}

/// When an instance counts as online.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// As soon as the program is executed.
    Exec,
    /// As soon as its socket accepts.
    Listen,
    /// When it sends `READY=1` to its notify socket.
    Notify,
    /// When this path answers with a success status.
    Http(String),
    /// When a Node app calls `process.send('ready')`.
    Message,
}

/// How an instance is asked to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRules {
    /// Number of the signal that asks it to stop.
    pub signal: i32,
    /// After this it is killed with all it started.
    pub timeout: Duration,
    /// PM2's `shutdown` message over Node's channel instead of the signal.
    pub message: bool,
}

/// Memory limits of one instance with all it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRules {
    /// Unreclaimable memory above which the instance is gracefully replaced.
    pub restart_above: Option<Bytes>,
    /// The kernel's cap.
    pub max: Option<Bytes>,
    /// The kernel's cap on swap.
    pub swap_max: Option<Bytes>,
}

/// Other limits of the instance's group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// Percent of one CPU: 150 is one and a half.
    pub cpu_max_percent: Option<u32>,
    /// `pids.max`.
    pub tasks_max: Option<u32>,
}

/// Liveness probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many failures in a row mean that the instance hangs.
    pub failures: u32,
}

/// What a liveness probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A GET of this path must be answered with a success status.
    Http(String),
    /// A connection must be accepted.
    Tcp,
}

/// Reload on file change, for development.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Directories and files, relative to `cwd`.
    pub paths: Vec<PathBuf>,
    /// Glob patterns that do not count.
    pub ignore: Vec<String>,
    /// Changes within this time are one.
    pub delay: Duration,
}

/// Who is told of trouble besides the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// Argument vector of a command.
    pub exec: Vec<String>,
    /// An `http://` or `https://` address.
    pub webhook: Option<String>,
}

/// Bounds of a rolling replacement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollingRules {
    /// How many extra instances while rolling.
    pub max_surge: u16,
    /// At least so many stay online; `None` is all of them.
    pub min_online: Option<u16>,
    /// How long a new instance must stay ready before the old one is drained.
    pub stable_for: Duration,
}
