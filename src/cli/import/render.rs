//! Mapped apps as TOML, with remarks beside the keys they are about.

use std::path::Path;

use toml::Value;

use super::map::{Entry, Mapped};

/// The config of `app`, which was imported from `file`.
pub(super) fn render(app: &Mapped, file: &Path) -> String {
    let mut text = String::new();
    let from = file.display();
    comment(&mut text, &format!("Imported from {from} by pmr {}.", env!("CARGO_PKG_VERSION")));
    comment(
        &mut text,
        "PM2 keeps the environment of the shell that started it. pmr passes its own on, which is \
         nearly empty in a service: variables that the app needs belong into [env].",
    );
    for remark in &app.general {
        comment(&mut text, remark);
    }
    text.push('\n');
    entries(&mut text, &app.entries);
    if !app.dropped.is_empty() {
        text.push('\n');
        comment(&mut text, "Not taken over:");
        for dropped in &app.dropped {
            comment(&mut text, &dropped.to_string());
        }
    }
    for (name, table) in &app.tables {
        text.push_str(&["\n[", &key(name), "]\n"].concat());
        entries(&mut text, table);
    }
    text
}

fn entries(text: &mut String, entries: &[Entry]) {
    for entry in entries {
        if let Some(remark) = &entry.remark {
            comment(text, remark);
        }
        text.push_str(&[&key(&entry.key), " = ", &value(&entry.value), "\n"].concat());
    }
}

/// Writes `words` as comment lines. A line break or another control character would end the
/// comment, or is not allowed in it.
fn comment(text: &mut String, words: &str) {
    const WIDTH: usize = 98;
    let plain: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut line = String::from("#");
    for word in plain.split(' ').filter(|word| !word.is_empty()) {
        let longer = line.chars().count().saturating_add(word.chars().count());
        if longer > WIDTH && line != "#" {
            text.push_str(&line);
            text.push_str("\n#");
            line = String::new();
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

/// A key, bare where it can be.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { string(name) }
}

/// A basic string. JSON's escapes are all among TOML's, and JSON leaves raw only one character that
/// TOML does not: DEL.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn value(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(when) => when.to_string(),
        Value::Array(items) => list("[", items.iter().map(self::value), "]"),
        Value::Table(table) => {
            let pairs = table.iter().map(|(name, item)| {
                let item = self::value(item);
                format!("{} = {item}", key(name))
            });
            list("{ ", pairs, " }")
        }
    }
}

fn list(open: &str, items: impl Iterator<Item = String>, close: &str) -> String {
    let items: Vec<String> = items.collect();
    format!("{open}{}{close}", items.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Dropped;
    use super::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<String>().prop_map(Value::String),
            any::<i64>().prop_map(Value::Integer),
            any::<bool>().prop_map(Value::Boolean),
            "[\\x00-\\x7f\"'\\\\#]{0,12}".prop_map(Value::String),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            proptest::collection::vec(inner, 0..4).prop_map(Value::Array)
        })
    }

    fn any_table() -> impl Strategy<Value = toml::Table> {
        proptest::collection::vec((any::<String>(), any_value()), 0..6)
            .prop_map(|pairs| pairs.into_iter().collect())
    }

    fn entries_of(table: &toml::Table, remark: &str) -> Vec<Entry> {
        let entry = |(key, value): (&String, &Value)| Entry {
            key: key.clone(),
            value: value.clone(),
            remark: Some(remark.to_owned()),
        };
        table.iter().map(entry).collect()
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_what_was_mapped(
            top in any_table(),
            env in any_table(),
            words in any::<String>(),
            why in any::<String>(),
        ) {
            // A table and a key of one name cannot both be.
            let name = (0..=9).map(|n| format!("env_{n}")).find(|name| !top.contains_key(name));
            let name = name.unwrap();
            let app = Mapped {
                name: "app".to_owned(),
                general: vec![words.clone()],
                entries: entries_of(&top, &words),
                tables: vec![(name.clone(), entries_of(&env, &why))],
                dropped: vec![Dropped { key: words.clone(), value: words.clone(), why }],
            };
            let text = render(&app, Path::new("/srv/eco\nsystem.js"));
            let mut expected = top;
            expected.insert(name, Value::Table(env));
            let parsed: toml::Table = text.parse().unwrap();
            prop_assert_eq!(parsed, expected, "{}", text);
        }
    }

    #[test]
    fn long_remarks_are_wrapped() {
        let mut text = String::new();
        comment(&mut text, &"word ".repeat(40));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().all(|line| line.starts_with("# word") && line.len() <= 100), "{text}");
        let mut text = String::new();
        comment(&mut text, "");
        assert_eq!(text, "#\n");
    }
}
