//! What the tests of bad input share.

use std::process::{Command, Stdio};

use crate::procs;

/// That all parts are in a text.
pub(crate) fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

/// Whether something can be mounted for one app alone; where not, the test is skipped aloud.
pub(crate) fn can_mount(test: &str) -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]).stderr(Stdio::null());
    let can = procs::is_root() && probe.status().is_ok_and(|status| status.success());
    if !can {
        procs::skip(test, "it takes root and a mount namespace");
    }
    can
}
