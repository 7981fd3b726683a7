//! How findings look.

use super::{keys, parse, source};

#[test]
fn all_problems_of_a_file_are_shown_at_once() {
    let text = "script = \"app.js\"\ninstnces = 4\nmax_restarts = 0\nkill_timeout = 1.5\n\
                memory_max = \"512M\"\nmax_memory_restart = \"1G\"\nout_file = \"/var/log/x\"\n\
                args = \"--name 'caf\u{e9}\"\n\n[health]\nhtttp = \"/\"\n\n[env]\nA = [1]\n";
    insta::assert_snapshot!(parse(&source(text), None).unwrap_err(), @r#"
    error: unknown key `instnces`
     --> web.toml:2:1
      |
    2 | instnces = 4
      | ^^^^^^^^
      |
      = hint: did you mean `instances`?

    error: `max_restarts` must be an integer from 1 to 1000, not 0
     --> web.toml:3:16
      |
    3 | max_restarts = 0
      |                ^
      |
      = hint: an app that is never restarted has `autorestart = false`

    error: `kill_timeout` must be a duration (milliseconds, or as "1min 30s"), not 1.5
     --> web.toml:4:16
      |
    4 | kill_timeout = 1.5
      |                ^^^

    error: `memory_max` is 512M, less than `max_memory_restart` (1G)
     --> web.toml:5:14
      |
    5 | memory_max = "512M"
      |              ^^^^^^
      |
      = hint: the kernel would kill an instance before pmr could replace it

    error: unknown key `out_file`
     --> web.toml:7:1
      |
    7 | out_file = "/var/log/x"
      | ^^^^^^^^
      |
      = hint: output goes to the journal: `pmr logs` shows it

    error: `args` cannot be split into words: the quote ' is never closed
     --> web.toml:8:8
      |
    8 | args = "--name 'café"
      |        ^^^^^^^^^^^^^^
      |
      = hint: write an array to have each argument taken as it is

    error: `[health]` does not say what is asked
      --> web.toml:10:1
       |
    10 | [health]
       | ^^^^^^^^
       |
       = hint: write `http = "/healthz"` or `tcp = true`

    error: unknown key `health.htttp`
      --> web.toml:11:1
       |
    11 | htttp = "/"
       | ^^^^^
       |
       = hint: did you mean `health.http`?

    error: `env.A` must be a string, a number or a boolean, not an array
      --> web.toml:14:5
       |
    14 | A = [1]
       |     ^^^
    "#);
}

#[test]
fn a_text_that_is_no_toml_is_explained() {
    let text = "script = app.js\ncommand = node\ninstances = 10_000\nkill_timeout = 5s # why\n\
                umask = 022\nautorestart = yes\ncwd =\nuser = \"a\nport = 1\nport = 2\n";
    insta::assert_snapshot!(parse(&source(text), None).unwrap_err(), @r#"
    error: strings need quotes
     --> web.toml:1:10
      |
    1 | script = app.js
      |          ^^^^^^
      |
      = hint: write "app.js"

    error: strings need quotes
     --> web.toml:2:11
      |
    2 | command = node
      |           ^^^^
      |
      = hint: write "node"

    error: strings need quotes
     --> web.toml:4:16
      |
    4 | kill_timeout = 5s # why
      |                ^^
      |
      = hint: write "5s"

    error: a number cannot start with 0
     --> web.toml:5:9
      |
    5 | umask = 022
      |         ^^^
      |
      = hint: text is "022", octal starts with 0o

    error: a boolean is `true` or `false`
     --> web.toml:6:15
      |
    6 | autorestart = yes
      |               ^^^
      |
      = hint: write true

    error: a value is missing here
     --> web.toml:7:6
      |
    7 | cwd =
      |      ^

    error: the quotes of this string are never closed
     --> web.toml:8:10
      |
    8 | user = "a
      |          ^

    error: `port` is there twice
      --> web.toml:10:1
       |
    10 | port = 2
       | ^^^^
    "#);
}

#[test]
fn what_can_be_read_beside_a_faulty_value_is_checked_too() {
    let local = "script = app.js\ninstances = 10_000\nmax_restarts = 1\nmax_restarts = 1\n";
    insta::assert_snapshot!(parse(&source(local), None).unwrap_err(), @r#"
    error: strings need quotes
     --> web.toml:1:10
      |
    1 | script = app.js
      |          ^^^^^^
      |
      = hint: write "app.js"

    error: `instances` must be 1 to 256, "max", or less than 0 (CPUs less that many), not 10000
     --> web.toml:2:13
      |
    2 | instances = 10_000
      |             ^^^^^^

    error: `max_restarts` is there twice
     --> web.toml:4:1
      |
    4 | max_restarts = 1
      | ^^^^^^^^^^^^
    "#);
}

#[test]
fn what_cannot_be_read_at_all_is_not_guessed() {
    let foreign = "module.exports = {\n  apps: [{ name: 'x' }]\n}\n";
    insta::assert_snapshot!(parse(&source(foreign), None).unwrap_err(), @r#"
    error: this is no TOML, but looks like an ecosystem file
     --> web.toml
      = hint: `pmr import` turns an ecosystem file into config files
    "#);
    let broken = "[env\nPORT = 1\nscript: 'x'\n";
    insta::assert_snapshot!(parse(&source(broken), None).unwrap_err(), @r#"
    error: unclosed table, expected `]`
     --> web.toml:1:5
      |
    1 | [env
      |     ^

    error: invalid unquoted key, expected letters, numbers, `-`, `_`
     --> web.toml:3:7
      |
    3 | script: 'x'
      |       ^
      |
      = hint: a key and its value are joined by `=`
    "#);
}

#[test]
fn findings_have_lines_and_columns() {
    let text = "script = 'a.js'\r\nenv = { A = '\u{e9}\u{e9}', B = [] }\r\n";
    let problems = parse(&source(text), None).unwrap_err();
    let placed = problems.placed();
    assert_eq!(placed.len(), 1);
    assert_eq!((placed[0].line, placed[0].column), (Some(2), Some(23)));
    assert_eq!(placed[0].message, "`env.B` must be a string, a number or a boolean, not an array");
}

#[test]
fn there_is_an_end_to_what_is_shown() {
    let many: Vec<_> = (0..5000).map(|n| format!("k{n} = 1\n")).collect();
    let shown = parse(&source(&many.concat()), None).unwrap_err().render(false);
    assert!(shown.ends_with("\nand 4901 more\n"), "{}", shown.lines().last().unwrap());
    let long = format!("script = 'a'\nargs = [\n{}{{}}]\n", "'x',\n".repeat(500));
    let shown = parse(&source(&long), None).unwrap_err().render(true);
    assert!(shown.lines().count() < 12 && shown.contains('\x1b'), "{shown}");

    // Notes do not push the one problem out.
    let notes: Vec<_> = keys::KEYS.iter().map(|key| format!("{key} = 1\n")).collect();
    let notes = notes.concat().replace('.', "_");
    let overlays: Vec<_> = (0..3).map(|n| format!("[env_{n}]\n{notes}")).collect();
    let text = format!("script = 'a.js'\n{}\n[z]\n", overlays.concat());
    let problems = parse(&source(&text), None).unwrap_err();
    assert_eq!((problems.errors(), problems.list().len()), (1, 1));
}

#[test]
fn a_very_bad_file_is_answered_all_the_same() {
    let lines = ["N = 1\n", "N = b\n", "[N]\n", "[[N]]\n", "N = '''\n", "env.N = \"\\u0000\"\n"];
    for line in lines {
        let lines = (0..5_000).map(|n| line.replace('N', &format!("k{n}")));
        let problems = parse(&source(&lines.collect::<String>()), None).unwrap_err();
        assert!(!problems.render(false).is_empty() && !problems.placed().is_empty(), "{line}");
    }
    for open in ["[", "{", "a=[", "a={b=", "a.", "'''"] {
        let problems = parse(&source(&open.repeat(50_000)), None).unwrap_err();
        assert!(problems.errors() > 0, "{open}");
    }
}
