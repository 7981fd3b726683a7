//! The `pmr` command: what it is started as, and what is left to do after the command line.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use pmr::cli::{self, Next, Streams, check, import, init};
use pmr::control::{config_directory, own_directory};
use pmr::spec::AppName;
use pmr::{demo, keeper, runtime};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // What pmr starts itself as comes first: a supervisor never pays for the command line.
    let words: Vec<&str> = args.iter().skip(1).map_while(|word| word.to_str()).collect();
    let code = match words.as_slice() {
        ["supervise"] => runtime::run(),
        ["keeper", "--foreground", arguments @ ..] => keep(arguments),
        ["keeper", "--resume", fd] => keeper::resume(fd.parse().unwrap_or(-1)),
        ["keeper", name] => serve(name),
        ["preflight", keeper] => runtime::preflight(keeper.parse().unwrap_or_default()),
        ["reclaim", bytes] => runtime::reclaim(bytes),
        ["demo-backend"] => demo::serve(),
        ["demo-daemon"] => demo::daemon(),
        _ => command(args),
    };
    code.into()
}

fn command(args: Vec<OsString>) -> u8 {
    let mut streams = Streams::standard();
    let next = cli::run(args, &mut streams);
    let result = match next {
        Next::Done(code) => return code,
        Next::Supervise { config, overlay } => return run(&config, overlay, streams),
        Next::Demo { port, instances } => return run_demo(port, instances, streams),
        Next::Check { files, json } => check::run(&files, json, &mut streams),
        Next::Init { name, output } => init::run(name.as_ref(), output.as_deref(), &mut streams)
            .map(|()| cli::ExitStatus::Done),
        Next::Import { file, directory, force } => {
            return run_import(file, directory, force, &mut streams);
        }
    };
    cli::finish(result, &mut streams)
}

/// `pmr run`: the keeper lives long and needs nothing of what has read the command line and the
/// config: it begins afresh, with the memory of a process that never did.
fn run(config: &Path, overlay: Option<String>, streams: Streams<'static>) -> u8 {
    match checked(config, overlay, streams) {
        Err(code) => code,
        Ok(words) => {
            let mut keeper = Command::new("/proc/self/exe");
            // It returns where it cannot be done: without /proc it is this process, then.
            drop(keeper.arg0("pmr").args(["keeper", "--foreground"]).args(&words).exec());
            keep(&words)
        }
    }
}

/// `pmr keeper NAME`, the main process of a unit: keeps the app whose config has that name. What
/// else may be wrong with it, the supervisor reports.
fn serve(name: &str) -> u8 {
    let arguments = match configured(name) {
        Ok(config) => runtime::Arguments { config, overlay: None }.to_words(),
        Err(why) => {
            // Without a stderr there is the exit status.
            writeln!(std::io::stderr(), "pmr: {why}").unwrap_or_default();
            return check::STATUS_CONFIG;
        }
    };
    keeper::run(keeper::Options { arguments, foreground: false })
}

/// The config of that name, which is there.
fn configured(name: &str) -> Result<PathBuf, String> {
    let name = AppName::new(name).map_err(|error| format!("`{name}` names no app: {error}"))?;
    let directory = config_directory(|name| std::env::var_os(name))
        .map_err(|error| format!("cannot find the configs: {error}"))?;
    let config = directory.join(format!("{name}.toml"));
    match std::fs::metadata(&config) {
        Ok(_) => Ok(config),
        Err(error) => Err(format!("no config for `{name}`: {}: {error}", config.display())),
    }
}

/// Becomes the keeper of an app in the foreground.
fn keep<T: AsRef<str>>(arguments: &[T]) -> u8 {
    let arguments = arguments.iter().map(|word| word.as_ref().to_owned()).collect();
    keeper::run(keeper::Options { arguments, foreground: true })
}

/// What the keeper is told. The config is looked at first, so that its problems are all that is
/// printed; then there is nothing more to do than to exit.
fn checked(
    config: &Path,
    overlay: Option<String>,
    mut streams: Streams<'static>,
) -> Result<Vec<String>, u8> {
    let config = match std::path::absolute(config) {
        Ok(config) if config.to_str().is_some() => config,
        Ok(path) => {
            let source = std::io::Error::other("a path to a config must be UTF-8");
            return Err(cli::finish(Err(cli::Error::Read { path, source }), &mut streams));
        }
        Err(source) => {
            let path = config.to_owned();
            return Err(cli::finish(Err(cli::Error::Read { path, source }), &mut streams));
        }
    };
    match check::before_run(&config, overlay.as_deref(), &mut streams) {
        Ok(Some(_)) => Ok(runtime::Arguments { config, overlay }.to_words()),
        Ok(None) => Err(check::STATUS_CONFIG),
        Err(error) => Err(cli::finish(Err(error), &mut streams)),
    }
}

/// `pmr demo`: the built-in backend under the real supervisor.
fn run_demo(port: u16, instances: u16, mut streams: Streams<'static>) -> u8 {
    let runtime = match own_directory(|name| std::env::var_os(name)) {
        Ok(runtime) => runtime,
        Err(error) => return cli::finish(Err(cli::Error::NoDirectory(error)), &mut streams),
    };
    // In the app's own runtime directory, where the keeper removes it, also after an upgrade.
    let app = runtime.join("demo");
    let directory = app.join(std::process::id().to_string());
    let config = directory.join("demo.toml");
    let prepared = std::env::current_exe().and_then(|executable| {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(&config, demo::config(&executable, port, instances))?;
        // Where the port is taken, who has it is all there is to say.
        match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(()),
            Ok(_) | Err(_) => {
                write!(streams.err, "{}", demo::guide(port, instances, &config))
            }
        }
    });
    let code = match prepared {
        Ok(()) => {
            drop(streams);
            keep(&runtime::Arguments { config, overlay: None }.to_words())
        }
        Err(error) => cli::finish(Err(error.into()), &mut streams),
    };
    // Where the demo did not even start; otherwise nothing is there any more.
    match std::fs::remove_dir_all(&directory).and_then(|()| std::fs::remove_dir(&app)) {
        Ok(()) | Err(_) => code,
    }
}

fn run_import(file: PathBuf, directory: PathBuf, force: bool, streams: &mut Streams<'_>) -> u8 {
    let timeout = import::EVALUATION_TIMEOUT;
    let options = import::Options { file, output_directory: directory, force, timeout };
    let result = import::run(&options, &mut streams.out, &mut streams.err);
    cli::finish(result.map(|_| cli::ExitStatus::Done).map_err(cli::Error::Import), streams)
}
