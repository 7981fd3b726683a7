//! The house rules, executed: which module may use which, what the pure modules never touch, how
//! long things get, and which words are not used.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest line, in characters.
const LINE_MAX: usize = 100;

/// Longest file, in lines of code: comments, blank lines and unit tests do not count.
const FILE_LINES_MAX: usize = 600;

/// `module → what it may use`: a graph without circles.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("spec", &[]),
    ("sys", &[]),
    ("config", &["spec"]),
    ("policy", &["spec"]),
    ("control", &["policy", "sys"]),
    ("keeper", &["sys"]),
    ("load", &["spec", "config", "sys"]),
    ("balance", &["spec", "sys"]),
    ("demo", &["sys"]),
    ("runtime", &["spec", "config", "load", "policy", "sys", "control", "keeper", "balance"]),
    ("cli", &["spec", "config", "load", "control", "policy"]),
    ("main", &["cli", "runtime", "keeper", "demo", "control", "load", "spec", "config"]),
];

/// Modules without clock, kernel and randomness.
const PURE: [&str; 3] = ["spec", "config", "policy"];

/// Parts of other modules that are as pure.
const PURE_PARTS: [&str; 2] = ["src/balance/node/", "src/balance/choice"];

/// Types of `std::net` that are data and open nothing.
const ADDRESSES: [&str; 7] = [
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "AddrParseError",
];

/// A Rust file of this crate.
struct Source {
    /// From the crate's root, as `src/policy/slot.rs`.
    path: String,
    text: String,
    /// Without comments, and with empty strings.
    code: String,
}

impl Source {
    /// The top-level module it belongs to.
    fn module(&self) -> &str {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        path.split('/').next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs")
    }

    /// The code without its unit tests, which stand at the end.
    fn product(&self) -> &str {
        self.code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the crate") {
        let path = entry.expect("an entry of a directory of the crate").path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources(directory: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    files_below(&root().join(directory), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let path = path.strip_prefix(root()).expect("a file of the crate").display().to_string();
        let text = read(&path);
        let code = code_of(&text);
        Source { path, text, code }
    };
    let sources: Vec<Source> = paths.into_iter().map(source).collect();
    assert!(!sources.is_empty(), "{directory} has no sources");
    sources
}

fn all_sources() -> Vec<Source> {
    sources("src").into_iter().chain(sources("tests")).collect()
}

/// The code in a text: comments are left out, and what strings and characters contain.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let follows_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end.saturating_add(2))
        } else if first == '"' {
            code.push_str("\"\"");
            string_length(rest)
        } else if first == 'r' && !follows_word && raw_length(rest) > 0 {
            code.push_str("\"\"");
            raw_length(rest)
        } else if first == '\'' && char_length(rest) > 0 {
            code.push_str("' '");
            char_length(rest)
        } else {
            code.push(first);
            first.len_utf8()
        };
        rest = &rest[skipped..];
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at.saturating_add(1),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

/// The length of a raw string, 0 where there is none.
fn raw_length(text: &str) -> usize {
    let hashes: String = text.chars().skip(1).take_while(|&c| c == '#').collect();
    let start = hashes.len().saturating_add(2);
    if text.get(start.saturating_sub(1)..start) != Some("\"") {
        return 0;
    }
    let end = format!("\"{hashes}");
    text[start..]
        .find(&end)
        .map_or(text.len(), |at| start.saturating_add(at).saturating_add(end.len()))
}

/// The length of a character literal, 0 where it is a lifetime.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..]
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == '\'')
            .map_or(0, |(at, _)| at.saturating_add(3)),
        Some(_) => {
            chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at.saturating_add(1))
        }
        None => 0,
    }
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Paths below `prefix` that the code names, as `a::b::c`, each from `prefix` on; what stands in
/// braces is taken apart.
fn paths_below(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
            expand("", &code[at.saturating_add(prefix.len())..], &mut found);
        }
    }
    found
}

/// Expands a use tree at the start of `text`, and says how long it is.
fn expand(path: &str, text: &str, found: &mut Vec<String>) -> usize {
    let mut at = text.len().saturating_sub(text.trim_start().len());
    if text[at..].starts_with('{') {
        at = at.saturating_add(1);
        while at < text.len() && !text[at..].trim_start().starts_with('}') {
            at = at.saturating_add(expand(path, &text[at..], found).max(1));
            at = text[at..].find([',', '}']).map_or(text.len(), |next| {
                let next = at.saturating_add(next);
                next.saturating_add(usize::from(text[next..].starts_with(',')))
            });
        }
        return text[at..]
            .find('}')
            .map_or(text.len(), |end| at.saturating_add(end).saturating_add(1));
    }
    let name = identifier(&text[at..]);
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
    at = at.saturating_add(name.len());
    if !name.is_empty() && text[at..].starts_with("::") {
        at = at.saturating_add(2);
        return at.saturating_add(expand(&path, &text[at..], found));
    }
    found.push(path);
    at
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

/// Fails with all that is wrong at once.
fn none(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

#[test]
fn code_is_told_from_comments_and_strings() {
    let text = concat!(
        "use crate::a; // crate::b\n",
        "/* crate::c */ let x = \"crate::d \\\" crate::e\"; let y = r#\"crate::f \" \"#;\n",
        "let z = '\"'; fn g<'a>(it: &'a str) {} let q = '\\''; use crate::h::{i, j::{k, l}};",
    );
    assert_eq!(paths_below(&code_of(text), "crate::"), ["a", "h::i", "h::j::k", "h::j::l"]);
    let text = "use std::{fs, collections::{BTreeMap, BTreeSet}, net::SocketAddr};\nnot_std::x()";
    let paths = ["fs", "collections::BTreeMap", "collections::BTreeSet", "net::SocketAddr"];
    assert_eq!(paths_below(text, "std::"), paths);
}

#[test]
fn modules_use_only_what_they_may() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let module = source.module();
        if module == "lib" {
            continue;
        }
        let allowed = MAY_USE.iter().find(|(name, _)| *name == module);
        let Some((_, allowed)) = allowed else {
            wrong.push(format!("{}: module {module} is not in the table", source.path));
            continue;
        };
        for path in ["crate::", "pmr::"].iter().flat_map(|it| paths_below(&source.code, it)) {
            let used = identifier(&path);
            let is_module = MAY_USE.iter().any(|(name, _)| *name == used);
            let contract = module != "runtime" || used != "keeper" || path.contains("::protocol");
            if is_module && used != module && !(allowed.contains(&used) && contract) {
                wrong.push(format!("{}: {module} may not use {path}", source.path));
            }
        }
    }
    none("who may use whom", &wrong);
}

#[test]
fn the_table_of_modules_has_no_circle() {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    while done.len() < MAY_USE.len() {
        let next: Vec<&str> = MAY_USE
            .iter()
            .filter(|(name, uses)| !done.contains(name) && uses.iter().all(|it| done.contains(it)))
            .map(|(name, _)| *name)
            .collect();
        assert!(!next.is_empty(), "a circle beyond {done:?}");
        done.extend(next);
    }
}

#[test]
fn pure_modules_touch_no_kernel_and_no_clock() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let is_part = PURE_PARTS.iter().any(|part| source.path.starts_with(part));
        if !(is_part || PURE.contains(&source.module())) || source.is_test() {
            continue;
        }
        for path in paths_below(source.product(), "std::") {
            let opens = match path.split_once("::") {
                Some(("net", of_net)) => !ADDRESSES.contains(&identifier(of_net)),
                _ => matches!(
                    identifier(&path),
                    "fs" | "net" | "process" | "thread" | "env" | "io" | "os"
                ),
            };
            if opens {
                wrong.push(format!("{}: std::{path}", source.path));
            }
        }
        let banned = ["Instant", "SystemTime", "HashMap", "HashSet", "unsafe", "async"];
        let words = words(source.product());
        for word in banned.iter().filter(|word| words.contains(*word)) {
            wrong.push(format!("{}: {word}", source.path));
        }
    }
    none("what is pure stays so", &wrong);
}

#[test]
fn unsafe_code_is_in_sys() {
    let wrong: Vec<String> = all_sources()
        .into_iter()
        .filter(|source| source.module() != "sys" && words(&source.code).contains("unsafe"))
        .map(|source| source.path)
        .collect();
    none("unsafe code only in src/sys", &wrong);
}

#[test]
fn lines_and_files_are_short() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        for (number, line) in (1..).zip(source.text.lines()) {
            if line.chars().count() > LINE_MAX {
                wrong.push(format!("{}:{number}: longer than {LINE_MAX}", source.path));
            }
        }
        let lines = source.product().lines().filter(|line| !line.trim().is_empty()).count();
        if lines > FILE_LINES_MAX && !source.path.ends_with("/tests.rs") {
            wrong.push(format!("{}: {lines} lines of code", source.path));
        }
    }
    none("lines and files are short", &wrong);
}

#[test]
fn nothing_is_left_for_later() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        if source.path == "tests/tidy.rs" {
            continue;
        }
        let words = words(&source.text);
        for word in ["TODO", "FIXME", "XXX"].iter().filter(|word| words.contains(*word)) {
            wrong.push(format!("{}: {word}", source.path));
        }
        for mark in ["todo!", "unimplemented!", "#[allow"] {
            if source.code.contains(mark) {
                wrong.push(format!("{}: {mark}", source.path));
            }
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            // Another process may be a test that the tests start; nothing else is left out.
            let is_started = line.contains("run by ") || line.contains("started by ");
            if line.trim().starts_with("#[ignore") && !is_started {
                wrong.push(format!("{}:{number}: an ignored test", source.path));
            }
            let comment = line.trim().strip_prefix("// ").unwrap_or_default();
            let ends = ["();", "};", ") {", "})", "?;", "\");"];
            if comment == "}" || ends.iter().any(|end| comment.ends_with(end)) {
                wrong.push(format!("{}:{number}: code in a comment", source.path));
            }
        }
    }
    none("nothing is left for later", &wrong);
}

#[test]
fn each_module_says_what_it_is_for() {
    let wrong: Vec<String> = sources("src")
        .into_iter()
        .filter(|source| source.path.ends_with("/mod.rs") && !source.text.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    none("a module begins with its doc", &wrong);
}

#[test]
fn types_are_named_after_what_they_are() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        for keyword in ["struct ", "enum ", "trait ", "type "] {
            for (at, _) in source.code.match_indices(keyword) {
                let name = identifier(&source.code[at.saturating_add(keyword.len())..]);
                if ["Manager", "Helper", "Util"].iter().any(|word| name.contains(word)) {
                    wrong.push(format!("{}: {name}", source.path));
                }
            }
        }
    }
    none("no Manager, Helper or Util", &wrong);
}

#[test]
fn no_test_waits_for_time_to_pass() {
    let wrong: Vec<String> = all_sources()
        .into_iter()
        .filter(|source| source.is_test() && source.code.contains("thread::sleep"))
        .map(|source| source.path)
        .collect();
    none("wait for a fact with a deadline", &wrong);
}

#[test]
fn each_dependency_says_what_it_is_for() {
    let manifest = read("Cargo.toml");
    let mut wrong = Vec::new();
    let mut among = false;
    let mut served = 0usize;
    for line in manifest.lines() {
        if line.starts_with('[') {
            among = line.contains("dependencies");
            served = 2;
        } else if line.starts_with('#') {
            served = 0;
        } else if among && line.contains('=') {
            // A comment serves a crate and its companion, no more.
            if served >= 2 {
                wrong.push(line.to_owned());
            }
            served = served.saturating_add(1);
        }
    }
    none("a comment above each dependency", &wrong);
}

#[test]
fn the_changelog_knows_the_version() {
    let changelog = read("CHANGELOG.md");
    assert!(changelog.contains("\n## [Unreleased]\n"), "a section for what is not released");
    let manifest = read("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = \""));
    let version = version.expect("a version").trim_end_matches('"');
    let headings: Vec<&str> =
        changelog.lines().filter_map(|line| line.strip_prefix("## [")).collect();
    // Before the first release there is no heading but that of what is not released.
    let named = headings.iter().any(|heading| heading.starts_with(&format!("{version}]")));
    assert!(named || headings.len() == 1, "version {version} is not in the changelog");
}
