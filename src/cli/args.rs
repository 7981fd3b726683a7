//! The command line: what there is to say, and its help.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use super::line::Level;
use crate::control::Scope;
use crate::spec::{self, AppName, INSTANCES_MAX};

pub(super) const AFTER_HELP: &str = "\
Targets:
  NAME       the app of that name
  all        every app
  /PATTERN/  every app whose name contains PATTERN; `.` is any character, `*` repeats the one
             before it, `^` and `$` are the name's ends: /^web-/ or /api.*v2$/

Exit status:
  0  done
  1  failed
  2  the command line cannot be used
  3  rolled back: the new version did not come up, the old one serves
  4  not done within --timeout
  5  denied

Configs of apps that systemd starts are in /etc/pmr; the unit of /etc/pmr/web.toml is
pmr@web.service. A user's own, under `systemctl --user`, are in ~/.config/pmr. Root means the
machine's apps, and a user the own ones first, then the machine's: --system and --user choose.
Apps that run are looked for in $XDG_RUNTIME_DIR/pmr and /run/pmr, or only in $PMR_RUNTIME_DIR.";

/// Keeps N instances of an app running behind one port.
#[derive(Debug, Parser)]
#[command(name = "pmr", bin_name = "pmr", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Whose apps.
    #[command(flatten)]
    pub whose: Whose,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// What clap does not see: a conflict of global flags at two places of the line.
    pub fn checked(self) -> Result<Self, clap::Error> {
        if self.whose.system && self.whose.user {
            let text = "the argument '--system' cannot be used with '--user'";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, text));
        }
        Ok(self)
    }
}

/// Whose service manager is meant.
#[derive(Debug, Clone, Copy, Args)]
pub struct Whose {
    /// Only the machine's apps
    #[arg(long, global = true)]
    pub system: bool,
    /// Only the apps of this user's service manager
    #[arg(long, global = true, conflicts_with = "system")]
    pub user: bool,
}

impl Whose {
    /// The one that is meant, where one is.
    pub fn scope(self) -> Option<Scope> {
        match (self.system, self.user) {
            (true, _) => Some(Scope::System),
            (false, true) => Some(Scope::User),
            (false, false) => None,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the app of a config file in the foreground
    Run {
        /// The app's config, such as web.toml
        file: PathBuf,
        /// Overlay the variables of `env_NAME`
        #[arg(long, value_name = "NAME")]
        env: Option<String>,
    },
    /// Run a small backend that can be crashed, to see what happens
    Demo {
        /// The port it listens on
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// How many instances
        #[arg(long, default_value_t = 2, value_parser = instances())]
        instances: u16,
    },
    /// Check config files: every problem, with its place
    Check {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a commented example of a config
    Init {
        /// Name of the app
        #[arg(value_parser = AppName::new)]
        name: Option<AppName>,
        /// Where to write it instead of NAME.toml; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make configs of a PM2 ecosystem file
    Import {
        /// ecosystem.config.js, or .cjs, .mjs, .json, .yaml
        file: PathBuf,
        /// Where to write NAME.toml
        #[arg(short, long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// Write over files that are there
        #[arg(long)]
        force: bool,
    },
    /// Show all apps, running or not: a line for every slot
    #[command(visible_aliases = ["ls", "list"])]
    Status {
        /// Which apps; every one if left out
        targets: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything about an app
    #[command(visible_alias = "show")]
    Describe {
        /// Name of the app
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what `status` shows in the format of Prometheus
    Metrics {
        /// Which apps that run; every one if left out
        targets: Vec<String>,
    },
    /// Start an app, or those of its slots that are stopped, errored or waiting
    Start(Selection),
    /// Stop an app or a slot, and stay stopped
    Stop(Selection),
    /// Stop and start again, slot by slot; an app that does not run is started
    Restart(Selection),
    /// Have an app started at boot
    Enable(Boot),
    /// Have an app started at boot no longer
    Disable(Boot),
    /// Read the config again and replace slot by slot; what does not come up is not kept
    Reload {
        /// NAME, all or /PATTERN/
        target: String,
        /// Wait for the outcome, as is done anyway; for units and scripts that want to say so
        #[arg(long, conflicts_with = "no_wait")]
        wait: bool,
        /// How long to wait
        #[command(flatten)]
        patience: Patience,
    },
    /// Change how many instances there are
    Scale {
        /// Name of the app
        name: String,
        /// N, or +N or -N to change it by
        #[arg(allow_hyphen_values = true, value_name = "N|+N|-N")]
        count: ScaleBy,
        /// How long to wait
        #[command(flatten)]
        patience: Patience,
    },
    /// Change limits of running instances, until the next reload or restart
    Set {
        /// NAME, all or /PATTERN/
        target: String,
        /// A limit as in the config, as `memory_max=600M`; without a value it is taken away
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
        values: Vec<(String, String)>,
    },
    /// Send a signal to the main process of every instance
    Signal {
        /// Name or number: HUP, SIGUSR2, 10
        #[arg(value_parser = signal)]
        signal: i32,
        /// NAME, all or /PATTERN/
        target: String,
        /// Only this slot
        slot: Option<u16>,
    },
    /// Forget restarts and the count of unstable exits
    Reset {
        /// NAME, all or /PATTERN/
        target: String,
        /// Only this slot
        slot: Option<u16>,
    },
    /// Show the last lines of output, and what pmr did
    Logs {
        /// NAME, all or /PATTERN/
        target: String,
        /// Only this slot
        slot: Option<u16>,
        /// Show also what comes
        #[arg(short, long)]
        follow: bool,
        /// How many of the last lines: 15, or all where --since is given
        #[arg(short = 'n', long, value_name = "COUNT")]
        lines: Option<u32>,
        /// Only what was written since then: how long ago (10min), or as journalctl takes it
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        since: Option<String>,
        /// Only lines this bad or worse: err, warning, info or another word of journalctl's
        #[arg(long, value_name = "LEVEL")]
        level: Option<Level>,
        /// Print JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the process ids of the instances, one a line
    Pid {
        /// Which apps; every one if left out
        target: Option<String>,
    },
    /// Print the environment of an instance
    Env {
        /// Name of the app
        name: String,
        /// Number of the slot
        slot: u16,
    },
    /// Let running apps go on under the pmr that is on disk now, one after the other
    Upgrade {
        /// NAME, all or /PATTERN/
        #[arg(required_unless_present = "all")]
        targets: Vec<String>,
        /// Every app that runs, and no error if none does
        #[arg(long, conflicts_with = "targets")]
        all: bool,
        /// Give up waiting for an app after this long
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
        timeout: Duration,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Where to
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Which slots of which apps, and how long to wait.
#[derive(Debug, Args)]
pub struct Selection {
    /// NAME, all or /PATTERN/
    pub target: String,
    /// Only this slot
    pub slot: Option<u16>,
    /// How long to wait
    #[command(flatten)]
    pub patience: Patience,
}

/// Which apps are started at boot, or no longer.
#[derive(Debug, Args)]
pub struct Boot {
    /// NAME, all or /PATTERN/
    pub target: String,
    /// Also start it now, or stop it
    #[arg(long)]
    pub now: bool,
    /// How long to wait
    #[command(flatten)]
    pub patience: Patience,
}

/// How long to wait for the outcome.
#[derive(Debug, Clone, Copy, Args)]
pub struct Patience {
    /// Do not wait for the outcome; only a refusal is still reported
    #[arg(long)]
    pub no_wait: bool,
    /// Give up waiting after this long; what was begun goes on
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "no_wait")]
    pub timeout: Option<Duration>,
}

/// How many instances there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleBy {
    /// That many.
    To(u16),
    /// So many more.
    Up(u16),
    /// So many fewer.
    Down(u16),
}

impl std::str::FromStr for ScaleBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (make, digits): (fn(u16) -> Self, _) = match text.split_at_checked(1) {
            Some(("+", rest)) => (Self::Up, rest),
            Some(("-", rest)) => (Self::Down, rest),
            Some(_) | None => (Self::To, text),
        };
        match digits.parse() {
            Ok(number) if number <= INSTANCES_MAX && digits.starts_with(|c| c != '+') => {
                Ok(make(number))
            }
            Ok(_) | Err(_) => Err(format!("a number of instances is 1 to {INSTANCES_MAX}")),
        }
    }
}

impl ScaleBy {
    /// The number of instances, where there are `now`; checked by the app.
    pub fn from(self, now: usize) -> u16 {
        let now = u16::try_from(now).unwrap_or(u16::MAX);
        match self {
            Self::To(count) => count,
            Self::Up(more) => now.saturating_add(more),
            Self::Down(fewer) => now.saturating_sub(fewer),
        }
    }
}

fn instances() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=i64::from(INSTANCES_MAX))
}

fn duration(text: &str) -> Result<Duration, String> {
    spec::parse_duration(text).map_err(|error| error.to_string())
}

/// The number of a signal, by number or by name with or without `SIG`.
fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse() {
        return match number {
            1..=64 => Ok(number),
            _ => Err("signals have the numbers 1 to 64".to_owned()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let is_named = |number: &i32| {
        nix::sys::signal::Signal::try_from(*number).is_ok_and(|signal| signal.as_str() == name)
    };
    (1..=31).find(is_named).ok_or_else(|| format!("there is no signal {name}"))
}

/// `memory_max=600M`
fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is written KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn counts_are_absolute_or_relative() {
        for (text, count) in [
            ("1", Ok(ScaleBy::To(1))),
            ("256", Ok(ScaleBy::To(256))),
            ("+2", Ok(ScaleBy::Up(2))),
            ("-1", Ok(ScaleBy::Down(1))),
        ] {
            assert_eq!(text.parse(), count, "{text}");
        }
        for text in ["", "+", "-", "257", "10000", "two", "++1", "+-1", "1.5"] {
            assert!(text.parse::<ScaleBy>().is_err(), "{text}");
        }
        assert_eq!(ScaleBy::Down(3).from(2), 0, "the app refuses it");
        assert_eq!(ScaleBy::Up(3).from(2), 5);
        let parsed = Arguments::try_parse_from(["pmr", "scale", "web", "-1"]).unwrap();
        assert!(matches!(parsed.command, Command::Scale { count: ScaleBy::Down(1), .. }));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("HUP", 1), ("sigusr2", 12), ("SIGTERM", 15), ("9", 9), ("64", 64)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in ["0", "65", "-1", "SIGFOO", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
