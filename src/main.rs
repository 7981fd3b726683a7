//! The `pmr` command: what it is started as, and what is left to do after the command line.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pmr::cli::{self, Next, Streams, check, import, init};
use pmr::control::own_directory;
use pmr::{demo, keeper, runtime};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // What pmr starts itself as comes first: a supervisor never pays for the command line.
    let words: Vec<&str> = args.iter().skip(1).map_while(|word| word.to_str()).collect();
    let code = match words.as_slice() {
        ["supervise"] => runtime::run(),
        ["keeper", "--resume", fd] => keeper::resume(fd.parse().unwrap_or(-1)),
        ["preflight"] => runtime::preflight(),
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
        Next::Supervise { config, overlay } => return supervise(&config, overlay, streams),
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

/// `pmr run`: the config is looked at first, so that its problems are all that is printed.
fn supervise(config: &Path, overlay: Option<String>, mut streams: Streams<'static>) -> u8 {
    let config = match std::path::absolute(config) {
        Ok(config) => config,
        Err(error) => return cli::finish(Err(error.into()), &mut streams),
    };
    match check::before_run(&config, overlay.as_deref(), &mut streams) {
        Ok(Some(_)) => {}
        Ok(None) => return check::STATUS_CONFIG,
        Err(error) => return cli::finish(Err(error), &mut streams),
    }
    drop(streams);
    let arguments = runtime::Arguments { config, overlay }.to_words();
    keeper::run(keeper::Options { arguments, foreground: true })
}

/// `pmr demo`: the built-in backend under the real supervisor.
fn run_demo(port: u16, instances: u16, mut streams: Streams<'static>) -> u8 {
    let Some(runtime) = own_directory(|name| std::env::var_os(name)) else {
        let error = cli::Error::NoDirectory;
        return cli::finish(Err(error), &mut streams);
    };
    // In the app's own runtime directory, where the keeper removes it, also after an upgrade.
    let app = runtime.join("demo");
    let directory = app.join(std::process::id().to_string());
    let config = directory.join("demo.toml");
    let prepared = std::env::current_exe().and_then(|executable| {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(&config, demo::config(&executable, port, instances))?;
        write!(streams.err, "{}", demo::guide(port, instances, &config))
    });
    let code = match prepared {
        Ok(()) => supervise(&config, None, streams),
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
    match import::run(&options, &mut streams.out, &mut streams.err) {
        Ok(_) => cli::finish(Ok(cli::ExitStatus::Done), streams),
        Err(error) => {
            let failed = writeln!(streams.err, "error: {error}");
            cli::finish(failed.map(|()| cli::ExitStatus::Failed).map_err(Into::into), streams)
        }
    }
}
