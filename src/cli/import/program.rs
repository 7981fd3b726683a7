//! What PM2 would execute for an app, and how to say that to pmr.

use std::path::Path;

use serde_json::Value as Json;
use toml::Value;

use super::map::{Context, Script, Target, is_true};
use super::source::Source;

/// What of the program matters for other keys.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Program {
    /// Run by node or bun: PM2 puts several instances of it into cluster mode.
    pub(super) is_node: bool,
    /// Run by Python: PM2 sets PYTHONUNBUFFERED.
    pub(super) is_python: bool,
}

/// Interpreters that PM2 chooses by extension and pmr does not.
const FOREIGN: [(&str, &str); 4] =
    [("php", "php"), ("coffee", "coffee"), ("ls", "lsc"), ("tsx", "bun")];

/// Writes `script` or `command`, with arguments and interpreter.
pub(super) fn map(
    script: &str,
    cwd: &Path,
    source: &mut Source,
    target: &mut Target,
    context: &Context<'_>,
) -> Program {
    let args = words(source, "args");
    let node_args = words(source, "node_args");
    let interpreter = source.read("interpreter", "not a name", |v| v.as_str().map(str::to_owned));
    if script.contains(' ') {
        if !args.is_empty() {
            let why = "PM2 ignores it where `script` is a command line";
            source.drop_value("args", &Json::from(args), why);
        }
        target.put_with("command", list(["bash", "-c", script]), "a command line, as PM2 runs it");
        return Program::default();
    }
    let found = (context.look)(&cwd.join(script));
    let by_path = found == Script::Missing && !script.contains('/');
    if by_path || interpreter.as_deref() == Some("none") {
        return command(script, by_path, args, target);
    }
    target.put("script", script);
    if found == Script::Missing {
        target.remark_last("there is no such file now");
    }
    if !args.is_empty() {
        target.put("args", list(args));
    }
    let program = choose_interpreter(script, interpreter, found, target);
    if !node_args.is_empty() {
        target.put("interpreter_args", list(node_args));
    }
    program
}

/// A program that is executed itself.
fn command(script: &str, by_path: bool, args: Vec<String>, target: &mut Target) -> Program {
    // Without a slash it would be looked up in PATH.
    let is_plain = !by_path && !script.contains('/');
    let program = if is_plain { format!("./{script}") } else { script.to_owned() };
    target.put("command", list(std::iter::once(program).chain(args)));
    if by_path {
        target.remark_last("no file of the app: looked up in PATH");
    }
    Program::default()
}

fn choose_interpreter(
    script: &str,
    interpreter: Option<String>,
    found: Script,
    target: &mut Target,
) -> Program {
    if let Some(interpreter) = interpreter {
        let (name, version) = match interpreter.split_once('@') {
            Some(("node", version)) => ("node", Some(version)),
            Some(_) | None => (interpreter.as_str(), None),
        };
        target.put("interpreter", name);
        if let Some(version) = version {
            target.remark_last(&format!(
                "PM2 asks nvm for node {version}; here it is the node in PATH, or write its path"
            ));
        }
        return Program {
            is_node: name.ends_with("node") || name.ends_with("bun"),
            is_python: name.contains("python"),
        };
    }
    let extension = Path::new(script).extension().and_then(|ext| ext.to_str()).unwrap_or_default();
    let foreign = FOREIGN.iter().find(|(ending, _)| *ending == extension);
    if let Some((_, interpreter)) = foreign {
        target.put("interpreter", *interpreter);
        return Program { is_node: *interpreter == "bun", is_python: false };
    }
    match extension {
        "js" | "mjs" | "cjs" => Program { is_node: true, is_python: false },
        "ts" => {
            target.remark_last("PM2 runs .ts with bun where it is installed, pmr with node");
            Program { is_node: true, is_python: false }
        }
        "py" => Program { is_node: false, is_python: true },
        "sh" | "rb" | "pl" => Program::default(),
        _ if found == Script::Text => {
            target.put_with("interpreter", "node", "PM2 runs any text file with node");
            Program { is_node: true, is_python: false }
        }
        _ => Program::default(),
    }
}

/// Arguments: an array, or a text that is split as PM2 does.
fn words(source: &mut Source, key: &str) -> Vec<String> {
    let words = source.read(key, "neither a text nor an array", |value| match value {
        Json::String(text) => Some(split(text)),
        Json::Array(items) => items.iter().map(word).collect(),
        // `args: false` and the like are what people write for "none".
        Json::Bool(_) if !is_true(value) => Some(Vec::new()),
        Json::Number(number) => Some(vec![number.to_string()]),
        _ => None,
    });
    words.unwrap_or_default()
}

fn word(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(flag) => Some(flag.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

/// Splits at blanks that are in no quotes. Quotes around a whole word go, others stay in it:
/// `--name="a b"` keeps them, as in PM2.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match quote {
            None if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            None if matches!(c, '"' | '\'') && (word.is_empty() || word.ends_with('=')) => {
                quote = Some(c);
                word.push(c);
            }
            Some(open) if c == open => {
                quote = None;
                word.push(c);
            }
            None | Some(_) => word.push(c),
        }
    }
    words.push(word);
    let unquoted = words.iter().map(|word| {
        let inside = |q: char| word.strip_prefix(q).and_then(|rest| rest.strip_suffix(q));
        inside('"').or(inside('\'')).unwrap_or(word).to_owned()
    });
    unquoted.filter(|word| !word.trim().is_empty()).collect()
}

/// An array of texts.
pub(super) fn list<T: Into<String>>(items: impl IntoIterator<Item = T>) -> Value {
    Value::Array(items.into_iter().map(|item| Value::String(item.into())).collect())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn argument_texts_are_split_as_pm2_does() {
        for (text, words) in [
            ("", vec![]),
            ("start", vec!["start"]),
            ("  -p  80 ", vec!["-p", "80"]),
            ("-m 'a b' \"c d\"", vec!["-m", "a b", "c d"]),
            ("--name=\"a b\" x", vec!["--name=\"a b\"", "x"]),
            ("it's fine", vec!["it's", "fine"]),
            ("''", vec![]),
        ] {
            assert_eq!(split(text), words, "{text:?}");
        }
    }
}
