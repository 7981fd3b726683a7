//! What the core needs to know of a release.

use std::collections::BTreeMap;
use std::time::Duration;

use super::id::ReleaseId;
use crate::spec::{RestartRules, Spec};

/// The part of a [`Spec`] that decisions are made by.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// When and how often an exited instance is started again.
    pub restart: RestartRules,
    /// Not ready in this time after the spawn = failed start.
    pub listen_timeout: Duration,
    /// How long a drain may take.
    pub stop_timeout: Duration,
    /// Memory above which an instance is replaced, in bytes.
    pub memory_limit: Option<u64>,
    /// The kernel's cap on an instance's memory, in bytes.
    pub memory_max: Option<u64>,
    /// How long a new instance must stay ready before the old one is drained.
    pub stable_for: Duration,
    /// Whether a new instance can run beside the old one: they share their socket.
    pub beside: bool,
}

impl From<&Spec> for Rules {
    fn from(spec: &Spec) -> Self {
        Self {
            restart: spec.restart.clone(),
            listen_timeout: spec.listen_timeout,
            stop_timeout: spec.stop.timeout,
            memory_limit: spec.memory.restart_above.map(|bytes| bytes.0),
            memory_max: spec.memory.max.map(|bytes| bytes.0),
            stable_for: spec.rolling.stable_for,
            beside: spec.shares_port(),
        }
    }
}

/// The rules of a release that a slot or an instance names.
pub(super) fn rules_of(rules: &BTreeMap<ReleaseId, Rules>, release: ReleaseId) -> &Rules {
    match rules.get(&release) {
        Some(rules) => rules,
        None => panic!("release {release} is in use and its rules are not known"),
    }
}
