//! The names of pmr's own events, and what the journal knows of each: one table.
//!
//! An id never changes its meaning: scripts and alerts match it. Each has an entry in
//! `systemd/pmr.catalog`, which `journalctl -x` shows.

use tracing::Level;

/// What is said beside an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// `PMR_EVENT`: for what happens to an app, [`crate::control::protocol::event_name`].
    pub(super) name: &'static str,
    /// `MESSAGE_ID`: 128 random bits, made once.
    pub(super) id: &'static str,
    /// How bad it is, whatever the cause.
    pub(super) level: Level,
}

const fn kind(name: &'static str, id: &'static str, level: Level) -> Kind {
    Kind { name, id, level }
}

/// Said where the name is not in the table, which a test excludes.
pub(super) const WARNING: &str = "warning";
/// What the machine allows.
pub(super) const LEVEL: &str = "level";
/// A supervisor goes on with what another has left.
pub(super) const ADOPTED: &str = "adopted";
/// Entries could not be written.
pub(super) const EVENTS_LOST: &str = "events-lost";
/// An instance does not accept connections, or is given some again.
pub(super) const STALLED: &str = "stalled";
pub(super) const TRIED_AGAIN: &str = "tried-again";
/// An instance writes to where pmr itself does.
pub(super) const NO_JOURNAL: &str = "no-journal";

const KINDS: &[Kind] = &[
    kind("starting", "9be7ee21b2774f07ab07eaeb03888c9d", Level::INFO),
    kind("online", "129f0e0d8de8458fae86571e5b3ff15e", Level::INFO),
    kind("stable", "b81a2a7be18447a0b3ef388cad8a8e8f", Level::INFO),
    kind("ending", "788ed96cb9194e719c15333f6d08ad31", Level::INFO),
    kind("kill-timeout", "06fab33b5509406abbf1ec40daa19b68", Level::WARN),
    kind("killed-at-once", "4819d34150594a66ae8a90930f9ef591", Level::INFO),
    kind("unkillable", "c22ce9faa3ff4892b054a9bcc3c54d85", Level::ERROR),
    kind("ended", "9c11674194ad452ea2b922ed0546eaea", Level::INFO),
    kind("failed", "19f6f4d6cb6c4a00ae59bc6c543105bf", Level::WARN),
    kind("oom-killed", "2396a69f1c1d4cc9afd872618aadeeeb", Level::WARN),
    kind("finished", "cbb931ff4fbe43d1b9e12db25050f436", Level::INFO),
    kind("errored", "22e70cb9ccbe42baa9604ac50dafb4a6", Level::ERROR),
    kind("stopped", "cd370eb00ca9423a92b335f636d0084e", Level::INFO),
    kind("taken-over", "48f99e2323f34930bcd8b0948d914266", Level::INFO),
    kind("roll-begun", "a4daaaeaf2f84147b3725afc8a0e615a", Level::INFO),
    kind("roll-done", "3d3715d3b9d1443abda878942d58ee68", Level::INFO),
    kind("roll-failed", "1d08c4f553a448a7be71332d39e6f646", Level::ERROR),
    kind("roll-cancelled", "784b615e10c143bfb50b2a9ddefb610d", Level::WARN),
    kind("memory-above", "019299eec84b4dbe94d57358757cf507", Level::WARN),
    kind("memory-waits", "4e431aef61fe4945809e2e644726245c", Level::WARN),
    kind("memory-hurry", "35b7ca147c4d4c0e84a12802ab5d1823", Level::WARN),
    kind("memory-cache", "016faf84b36e440ea0366df8a2e35e10", Level::INFO),
    kind("memory-limit-too-low", "2c5c6c44a7534c94972fe2eda53e6761", Level::ERROR),
    kind("limits-changed", "050c871664224c27918c826aaa8407a0", Level::INFO),
    kind("shutting-down", "7264b2a170cc4a70ac5e25b03883078e", Level::INFO),
    kind("over", "2ffe3cd9681a40e0972f70ce186f6506", Level::INFO),
    kind(WARNING, "4a715f3004fd4e9b97f094347751ef3f", Level::WARN),
    kind(LEVEL, "afd5c63208124926995249049847fba5", Level::INFO),
    kind(ADOPTED, "f2f5c673cd6544eaa83afb0d61e9bad0", Level::WARN),
    kind(EVENTS_LOST, "1f2fee56cb6c489386ca388815bf4be5", Level::WARN),
    kind(STALLED, "c7d0a3b94a6e4be3a5a5d1f0d2f9b1e6", Level::WARN),
    kind(TRIED_AGAIN, "5e1b8f2ca0774d6f9d0c6b7e3a914f28", Level::INFO),
    kind(NO_JOURNAL, "766a1290787e4344beaa233973644731", Level::WARN),
];

/// What is said beside the event of this name.
pub(super) fn kind_of(name: &str) -> Kind {
    let named = |name: &str| KINDS.iter().find(|kind| kind.name == name).copied();
    let unknown = kind(WARNING, "4a715f3004fd4e9b97f094347751ef3f", Level::WARN);
    named(name).unwrap_or(unknown)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::control::protocol::event_name;
    use crate::policy::{Exit, Failure, Oom, Reason, Verdict};

    const CATALOG: &str = include_str!("../../systemd/pmr.catalog");
    const PROTOCOL: &str = include_str!("../control/protocol.rs");

    /// The names that `event_name` can give, as its source has them.
    fn names_of_the_core() -> Vec<&'static str> {
        let body = PROTOCOL.split_once("pub fn event_name(").unwrap().1;
        let body = body.split_once("\n}\n").unwrap().0;
        body.split('"').skip(1).step_by(2).collect()
    }

    /// Id, header lines and text of each entry of the catalog.
    fn entries() -> Vec<(&'static str, Vec<&'static str>, &'static str)> {
        let mut entries = Vec::new();
        for part in CATALOG.split("\n-- ").skip(1) {
            let (id, rest) = part.split_once('\n').unwrap();
            let (head, text) = rest.split_once("\n\n").unwrap();
            entries.push((id, head.lines().collect(), text));
        }
        entries
    }

    const FIELDS: [&str; 4] = ["PMR_APP", "PMR_INSTANCE", "PMR_GENERATION", "MESSAGE"];

    /// What journalctl puts a field's value in the place of: capitals between two `@`.
    fn variables(text: &str) -> impl Iterator<Item = &str> {
        text.split('@').skip(1).filter(|word| {
            let is_name = |byte: u8| byte == b'_' || byte.is_ascii_uppercase();
            !word.is_empty() && word.bytes().all(is_name)
        })
    }

    #[test]
    fn each_event_has_one_id_and_each_id_one_event() {
        let names: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let ids: BTreeSet<&str> = KINDS.iter().map(|kind| kind.id).collect();
        assert_eq!((names.len(), ids.len()), (KINDS.len(), KINDS.len()));
        let of_the_core = names_of_the_core();
        assert!(of_the_core.contains(&"starting") && of_the_core.contains(&"errored"));
        for name in &of_the_core {
            assert!(names.contains(name), "event {name} has no id: add it here and in the catalog");
            assert_eq!(kind_of(name).name, *name);
        }
        let own = [WARNING, LEVEL, ADOPTED, EVENTS_LOST, STALLED, TRIED_AGAIN, NO_JOURNAL];
        for name in names {
            assert!(of_the_core.contains(&name) || own.contains(&name), "nothing says {name}");
        }
        assert_eq!(kind_of("no such event"), kind_of(WARNING));
        for id in ids {
            assert!(id.len() == 32 && id.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{id}");
        }
    }

    #[test]
    fn who_was_killed_for_want_of_memory_has_an_event_of_its_own() {
        let exit = |oom| Exit::Signal { signal: 9, core: false, oom };
        let failed = |oom, verdict| {
            let uptime = std::time::Duration::from_secs(1);
            let failure = Failure::Exit(exit(oom));
            Reason::Failed { failure, uptime, verdict: Some(verdict), unstable: (1, 10) }
        };
        let restart = Verdict::Restart { after: std::time::Duration::ZERO };
        for oom in [Oom::Above, Oom::Cap(1)] {
            assert_eq!(event_name(&failed(Some(oom), restart)), "oom-killed");
            let ended = Reason::Ended { exit: Some(exit(Some(oom))) };
            assert_eq!(event_name(&ended), "oom-killed", "also while it drains");
            // What a person must act on has its own name still, and says OOM in its words.
            let given_up = failed(Some(oom), Verdict::Errored);
            assert_eq!(event_name(&given_up), "errored");
            assert!(given_up.to_string().contains("OOM-killed"));
        }
        assert_eq!(event_name(&failed(None, restart)), "failed");
        assert_eq!(event_name(&Reason::Ended { exit: Some(exit(None)) }), "ended");
    }

    #[test]
    fn the_catalog_explains_each_id() {
        let entries = entries();
        let ids: BTreeSet<&str> = entries.iter().map(|(id, _, _)| *id).collect();
        let known: BTreeSet<&str> = KINDS.iter().map(|kind| kind.id).collect();
        assert_eq!(ids, known);
        assert_eq!(entries.len(), known.len(), "an id stands twice");
        for (id, head, text) in entries {
            let name = KINDS.iter().find(|kind| kind.id == id).unwrap().name;
            assert!(head.iter().any(|line| line.starts_with("Subject: ")), "{name}");
            assert!(head.contains(&"Defined-By: pmr"), "{name}");
            assert!(text.split_whitespace().count() > 15, "{name} is explained by: {text}");
            // A field that is not there is shown by its own name.
            let head = head.join("\n");
            for variable in variables(&head).chain(variables(text)) {
                assert!(FIELDS.contains(&variable), "{name}: {variable}");
            }
        }
    }

    /// What `journalctl` itself says of the catalog's form.
    #[test]
    fn journalctl_takes_the_catalog() {
        let directory = crate::sys::testing::Directory::new("catalog");
        let root = directory.path();
        let catalog = root.join("usr/lib/systemd/catalog");
        std::fs::create_dir_all(&catalog).unwrap();
        std::fs::create_dir_all(root.join("var/lib/systemd/catalog")).unwrap();
        std::fs::write(catalog.join("pmr.catalog"), CATALOG).unwrap();
        let journalctl = |argument: &str| {
            let mut command = std::process::Command::new("journalctl");
            command.arg(format!("--root={}", root.display())).arg(argument).output()
        };
        let updated = match journalctl("--update-catalog") {
            Ok(updated) => updated,
            Err(error) => {
                eprintln!("SKIPPED: journalctl_takes_the_catalog: no journalctl: {error}");
                return;
            }
        };
        let said = String::from_utf8_lossy(&updated.stderr).into_owned();
        assert!(updated.status.success() && said.is_empty(), "{said}");
        let listed = journalctl("--list-catalog").unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for kind in KINDS {
            assert!(listed.contains(kind.id), "{} is not listed: {listed}", kind.name);
        }
    }
}
