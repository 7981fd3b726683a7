//! What an argument vector says of the program that will listen.

use std::path::Path;

/// What an argument vector says of the program that will listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Node, which runs a script of the app itself.
    Node,
    /// Node without a script in a file: `-e`, standard input. It never becomes a worker, and where
    /// it is told that it is one, it waits for ever for its first socket, without any error.
    NodeEval,
    /// It starts Node itself, and does not hand on the channel, or uses it up: these words of it.
    Launcher(String),
    /// Anything else, by its file name.
    Other(String),
}

/// Programs that start Node, or are no Node though they run its scripts. Of `ts-node` the CLI is
/// meant: as a module (`-r ts-node/register`) it runs in the app's own process.
const LAUNCHERS: &[&str] = &[
    "bun",
    "bunx",
    "concurrently",
    "corepack",
    "cross-env",
    "deno",
    "dotenv",
    "dotenvx",
    "env-cmd",
    "nest",
    "nodemon",
    "npm",
    "npx",
    "nx",
    "pnpm",
    "pnpx",
    "ts-node",
    "ts-node-dev",
    "ts-node-esm",
    "tsnd",
    "tsx",
    "yarn",
    "yarnpkg",
];

/// The files behind them, as `node FILE` runs them: the end of the path.
const LAUNCHER_FILES: &[(&str, &str)] = &[
    ("bin/npm-cli.js", "npm"),
    ("bin/npx-cli.js", "npx"),
    ("bin/yarn.js", "yarn"),
    ("bin/pnpm.cjs", "pnpm"),
    ("tsx/dist/cli.mjs", "tsx"),
    ("tsx/dist/cli.cjs", "tsx"),
    ("ts-node/dist/bin.js", "ts-node"),
    ("bin/nodemon.js", "nodemon"),
    ("dist/corepack.js", "corepack"),
];

/// Options of Node whose value is the next argument where no `=` is in them.
const WITH_VALUE: &[&str] = &[
    "-C",
    "-r",
    "--conditions",
    "--cpu-prof-dir",
    "--cpu-prof-name",
    "--diagnostic-dir",
    "--disable-warning",
    "--dns-result-order",
    "--env-file",
    "--env-file-if-exists",
    "--es-module-specifier-resolution",
    "--experimental-config-file",
    "--experimental-default-type",
    "--experimental-loader",
    "--heapsnapshot-signal",
    "--icu-data-dir",
    "--import",
    "--input-type",
    "--inspect-port",
    "--loader",
    "--localstorage-file",
    "--max-http-header-size",
    "--network-family-autoselection-attempt-timeout",
    "--openssl-config",
    "--redirect-warnings",
    "--report-dir",
    "--report-directory",
    "--report-filename",
    "--report-signal",
    "--require",
    "--secure-heap",
    "--secure-heap-min",
    "--title",
    "--tls-cipher-list",
    "--tls-keylog",
    "--trace-event-categories",
    "--trace-event-file-pattern",
    "--trace-require-module",
    "--unhandled-rejections",
];

impl Command {
    /// Reads an argument vector. It may begin with `env` and assignments.
    pub(super) fn of(argv: &[String]) -> Self {
        let mut words = argv.iter().map(String::as_str);
        let mut program = file_name(words.next().unwrap_or_default());
        if program == "env" {
            let rest = argv.iter().skip(1).map(String::as_str);
            let mut rest = rest.skip_while(|word| !word.starts_with('-') && word.contains('='));
            match rest.next() {
                Some(word) if !word.starts_with('-') => program = file_name(word),
                _ => return Self::Other(program.to_owned()),
            }
            return Self::of_program(program, rest);
        }
        Self::of_program(program, words)
    }

    fn of_program<'a>(program: &str, arguments: impl Iterator<Item = &'a str>) -> Self {
        if is_node(program) {
            return of_node(arguments);
        }
        let program = program.to_owned();
        if LAUNCHERS.contains(&&*program) { Self::Launcher(program) } else { Self::Other(program) }
    }
}

fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

/// `node`, `nodejs`, `node20`, `node-22.1`.
fn is_node(program: &str) -> bool {
    let version = |rest: &str| {
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    matches!(program, "node" | "nodejs") || program.strip_prefix("node").is_some_and(version)
}

/// What Node does with these arguments.
fn of_node<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Command {
    let script = loop {
        let Some(argument) = arguments.next() else { return Command::NodeEval };
        let option = argument.split_once('=').map_or(argument, |(option, _)| option);
        match option {
            "--" => match arguments.next() {
                Some(script) => break script,
                None => return Command::NodeEval,
            },
            "-" | "-e" | "--eval" | "-p" | "-pe" | "--print" | "-i" | "--interactive" => {
                return Command::NodeEval;
            }
            "--run" | "--test" => return Command::Launcher(format!("node {option}")),
            _ if option.starts_with("--watch") => {
                return Command::Launcher("node --watch".to_owned());
            }
            _ if WITH_VALUE.contains(&argument) => {
                arguments.next();
            }
            _ if option.starts_with('-') => {}
            _ => break argument,
        }
    };
    if script == "inspect" {
        return Command::Launcher("node inspect".to_owned());
    }
    let name = file_name(script);
    let by_file = LAUNCHER_FILES.iter().find(|(end, _)| Path::new(script).ends_with(end));
    let by_name = LAUNCHERS.iter().find(|launcher| **launcher == name);
    match by_file.map(|(_, launcher)| launcher).or(by_name) {
        Some(launcher) => Command::Launcher((*launcher).to_owned()),
        None => Command::Node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_told_apart() {
        let launcher = |words: &str| Command::Launcher(words.to_owned());
        let other = |words: &str| Command::Other(words.to_owned());
        let cases = [
            ("node app.js", Command::Node),
            ("/usr/bin/nodejs app", Command::Node),
            ("node20 app", Command::Node),
            ("/opt/node-v20/bin/node ./server.mjs --watch -e x", Command::Node),
            ("node-22.1 app", Command::Node),
            ("node --import tsx app.ts", Command::Node),
            ("node --import=tsx app.ts", Command::Node),
            ("node -r ts-node/register app.ts", Command::Node),
            ("node --max-old-space-size=200 --inspect app.js tsx", Command::Node),
            ("node --test-isolation=none app.js", Command::Node),
            ("node -- -e", Command::Node),
            ("node node_modules/.bin/next start", Command::Node),
            ("node npm.js", Command::Node),
            ("env A=1 B= node app.js", Command::Node),
            ("node", Command::NodeEval),
            ("node -", Command::NodeEval),
            ("node --", Command::NodeEval),
            ("node -e x", Command::NodeEval),
            ("node --no-warnings --eval=x", Command::NodeEval),
            ("node -r a -p x", Command::NodeEval),
            ("node -r a", Command::NodeEval),
            ("node --watch app.js", launcher("node --watch")),
            ("node --watch-path=x app.js", launcher("node --watch")),
            ("node --run start", launcher("node --run")),
            ("node --test", launcher("node --test")),
            ("node inspect app.js", launcher("node inspect")),
            ("node /usr/share/npm/bin/npm-cli.js start", launcher("npm")),
            ("node node_modules/tsx/dist/cli.mjs app.ts", launcher("tsx")),
            ("node node_modules/.bin/tsx app.ts", launcher("tsx")),
            ("node ./node_modules/.bin/ts-node app.ts", launcher("ts-node")),
            ("node /usr/bin/npm start", launcher("npm")),
            ("env A=1 npm start", launcher("npm")),
            ("npm start", launcher("npm")),
            ("/usr/bin/npx tsx a.ts", launcher("npx")),
            ("yarn start", launcher("yarn")),
            ("pnpm start", launcher("pnpm")),
            ("tsx app.ts", launcher("tsx")),
            ("ts-node app.ts", launcher("ts-node")),
            ("bun app.ts", launcher("bun")),
            ("deno run -A app.ts", launcher("deno")),
            ("env -i node app.js", other("env")),
            ("env A=1", other("env")),
            ("nodebb start", other("nodebb")),
            ("node- x", other("node-")),
            ("python3 -m http.server", other("python3")),
            ("sh -c node", other("sh")),
            ("./server", other("server")),
            ("", other("")),
        ];
        for (line, expected) in cases {
            let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(Command::of(&argv), expected, "{line}");
        }
    }
}
