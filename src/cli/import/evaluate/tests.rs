//! With the node that is there; without one, skipped aloud.

use super::super::tests::{Directory, has_node};
use super::*;

const LONG: Duration = Duration::from_mins(1);

/// Evaluates `text` as a file of this name.
fn evaluated(name: &str, text: &str, limit: Duration) -> Result<Evaluated, Error> {
    let directory = Directory::new("evaluate");
    evaluate(&directory.write(name, text), limit)
}

fn value(name: &str, text: &str) -> Value {
    evaluated(name, text, LONG).unwrap_or_else(|error| panic!("{name}: {error}")).value
}

#[test]
fn every_kind_of_file_has_a_value() {
    if !has_node("every_kind_of_file_has_a_value") {
        return;
    }
    for (name, text) in [
        ("a.config.js", "module.exports = { apps: [1] }"),
        ("a.config.cjs", "module.exports = () => ({ apps: [1] })"),
        ("a.config.mjs", "export default async () => ({ apps: [1] })"),
        ("b.config.mjs", "export const apps = [1]"),
        ("b.config.js", "module.exports = Promise.resolve({ apps: [1] })"),
        ("c.config.js", "exports.__esModule = true; exports.default = { apps: [1] }"),
        ("a.json", "{ // a comment\n apps: [1,], } // the end"),
    ] {
        assert_eq!(value(name, text)["apps"], serde_json::json!([1]), "{name}");
    }
}

#[test]
fn a_module_in_a_package_of_modules() {
    if !has_node("a_module_in_a_package_of_modules") {
        return;
    }
    let directory = Directory::new("modules");
    directory.write("package.json", r#"{ "type": "module" }"#);
    let file = directory.write("ecosystem.config.js", "export default { apps: [2] }");
    assert_eq!(evaluate(&file, LONG).unwrap().value["apps"][0], 2);
}

#[test]
fn it_is_a_program_and_may_print() {
    if !has_node("it_is_a_program_and_may_print") {
        return;
    }
    let directory = Directory::new("prints");
    directory.write("shared.json", r#"{ "port": 8000 }"#);
    let file = directory.write(
        "ecosystem.config.js",
        "console.log('{\"noise\": 1}'); console.error('more'); \
         const { port } = require('./shared.json'); \
         module.exports = { port, home: process.env.HOME, here: process.cwd(), dir: __dirname, \
           re: /x/g, un: undefined, nan: NaN, fn() {} }",
    );
    let Evaluated { value, printed } = evaluate(&file, LONG).unwrap();
    assert_eq!(printed, "{\"noise\": 1}\nmore\n");
    assert_eq!(value["port"], 8000);
    assert_eq!(value["home"].as_str(), std::env::var("HOME").ok().as_deref());
    let here = std::fs::canonicalize(file.parent().unwrap()).unwrap();
    assert_eq!(value["here"].as_str(), here.to_str());
    assert_eq!(value["re"]["text"], "/x/g");
    assert_eq!(value["un"]["$pmr"], "undefined");
    assert_eq!(value["nan"]["$pmr"], "NaN");
    assert_eq!(value["fn"]["$pmr"], "function");
}

#[test]
fn errors_are_in_words_of_node() {
    if !has_node("errors_are_in_words_of_node") {
        return;
    }
    for (text, words) in [
        ("module.exports = { apps: [ }", "SyntaxError"),
        ("throw new Error('no database')", "Error: no database"),
        ("require('./not-there')", "Cannot find module './not-there'"),
        ("throw 'a text'", "it threw \"a text\""),
        ("const a = {}; a.a = a; module.exports = a", "circular"),
    ] {
        let error = evaluated("ecosystem.config.js", text, LONG).unwrap_err();
        assert!(matches!(error, Error::Thrown(..)), "{text}: {error}");
        let message = error.to_string();
        assert!(message.contains(words), "{message}");
        assert!(!message.contains("node:internal"), "{message}");
    }
    for text in ["process.exit(3)", "module.exports = new Promise(() => {})"] {
        let error = evaluated("ecosystem.config.js", text, LONG).unwrap_err();
        assert!(matches!(error, Error::NoValue(..)), "{text}: {error}");
    }
}

#[test]
fn an_endless_file_is_ended() {
    if !has_node("an_endless_file_is_ended") {
        return;
    }
    let short = Duration::from_millis(300);
    let error = evaluated("ecosystem.config.js", "for (;;) {}", short).unwrap_err();
    assert!(matches!(error, Error::Timeout(..)), "{error}");
    // What keeps node from ending by itself is no reason to wait.
    let open = "setInterval(() => {}, 1000); module.exports = { apps: [1] }";
    assert_eq!(value("ecosystem.config.js", open)["apps"][0], 1);
}

#[test]
fn a_large_value_arrives_and_a_huge_one_is_refused() {
    if !has_node("a_large_value_arrives_and_a_huge_one_is_refused") {
        return;
    }
    let large = value("ecosystem.config.js", "module.exports = 'x'.repeat(1 << 20)");
    assert_eq!(large.as_str().map(str::len), Some(1 << 20));
    let huge = "console.log('y'.repeat(1 << 20)); module.exports = 'x'.repeat(9 << 20)";
    let error = evaluated("ecosystem.config.js", huge, LONG).unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error}");
}

#[test]
fn yaml_needs_a_library() {
    if !has_node("yaml_needs_a_library") {
        return;
    }
    let directory = Directory::new("yaml");
    let file = directory.write("ecosystem.yml", "apps: []");
    // One may be installed with pm2 on this machine; then there is a value.
    match evaluate(&file, LONG) {
        Ok(evaluated) => assert_eq!(evaluated.value, serde_json::json!({ "apps": [] })),
        Err(error) => {
            assert!(matches!(error, Error::Yaml(_)), "{error}");
            assert!(error.to_string().contains("npm install yaml"), "{error}");
        }
    }
    directory
        .write("node_modules/yaml/index.js", "exports.parse = (text) => ({ apps: [text.length] })");
    assert_eq!(evaluate(&file, LONG).unwrap().value["apps"][0], 8);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    for path in ["/nonexistent/ecosystem.config.js", "/tmp", "/dev/null"] {
        let error = evaluate(Path::new(path), LONG).unwrap_err();
        assert!(matches!(error, Error::File(..)), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
}
