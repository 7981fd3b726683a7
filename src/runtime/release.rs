//! A release: one reading of config, environment and working directory.
//!
//! It is made once, from the files as they stand, and sealed into a memfd that the keeper holds.
//! Whatever is spawned later, by this supervisor or by one that adopts, is spawned from it: a
//! half-edited file plus a crash changes nothing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::balance::choice::{self, Adapter, App, Choice, Machine, Refusal, Spread};
use crate::load::{self, EnvFileError, LoadError};
use crate::policy::{ReleaseId, Rules};
use crate::spec::{Limits, MemoryRules, Spec};
use crate::sys::identity::{self, Identity, IdentityError};
use crate::sys::statefile::{self, StateError};
use crate::sys::{Error, process};

/// Most bytes of an `env_file`.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;

/// Most bytes of a sealed release: the config's own bound on `env`, an inherited environment
/// (bounded by the kernel's `ARG_MAX`), and room.
const RELEASE_BYTES_MAX: usize = 8 << 20;

/// How the names of the releases begin that the keeper holds.
pub(super) const FD_NAME: &str = "release.";

/// One reading of an app's config.
#[derive(Debug, Clone)]
pub(super) struct Release {
    pub(super) id: ReleaseId,
    pub(super) spec: Spec,
    /// The limits in the config file, where those of `spec` were changed since.
    pub(super) written: Option<(MemoryRules, Limits)>,
    /// The config file, absolute.
    pub(super) config: PathBuf,
    /// `--env NAME`.
    pub(super) overlay: Option<String>,
    /// `cwd` with all symlinks resolved.
    pub(super) directory: PathBuf,
    /// What every instance gets, before its own variables.
    pub(super) environment: BTreeMap<OsString, OsString>,
    /// Whom its instances run as.
    pub(super) identity: Option<Identity>,
    /// How its instances get their sockets.
    pub(super) choice: Choice,
}

/// The part of a release that is text; the environment follows it as it is, for it need not be.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    id: ReleaseId,
    spec: Spec,
    #[serde(default)]
    written: Option<(MemoryRules, Limits)>,
    config: PathBuf,
    overlay: Option<String>,
    directory: PathBuf,
    /// Missing in one that was sealed before there was a choice.
    #[serde(default)]
    choice: Option<Choice>,
}

/// Why there is no new release.
#[derive(Debug)]
pub(super) enum ReleaseError {
    Load(LoadError),
    Identity(IdentityError),
    EnvFile(PathBuf, EnvFileError),
    System(Error),
    /// Its instances cannot be balanced as asked for.
    Unbalanced(Refusal),
    Sealed(StateError),
    /// A sealed release that this version cannot read.
    Foreign,
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => error.fmt(f),
            Self::Identity(error) => error.fmt(f),
            Self::EnvFile(path, error) => write!(f, "{}: {error}", path.display()),
            Self::System(error) => error.fmt(f),
            Self::Unbalanced(refusal) => refusal.fmt(f),
            Self::Sealed(error) => error.fmt(f),
            Self::Foreign => write!(f, "the release was made by another version of pmr"),
        }
    }
}

impl From<Error> for ReleaseError {
    fn from(error: Error) -> Self {
        Self::System(error)
    }
}

impl Release {
    /// Reads config, environment and directory as they stand now. How its instances get their
    /// sockets is to be chosen by [`Release::chosen`].
    pub(super) fn read(
        id: ReleaseId,
        config: &Path,
        overlay: Option<&str>,
    ) -> Result<Self, ReleaseError> {
        let spec = load::load(config, overlay).map_err(ReleaseError::Load)?.spec;
        let directory = std::fs::canonicalize(&spec.cwd)
            .map_err(|error| Error::at("resolve the directory", &spec.cwd, error))?;
        let identity = resolve(&spec)?;
        let environment = environment(&spec, identity.as_ref())?;
        Ok(Self {
            id,
            config: config.to_owned(),
            overlay: overlay.map(str::to_owned),
            directory,
            environment,
            identity,
            choice: inherited(&spec),
            spec,
            written: None,
        })
    }

    /// The same with the way its instances get their sockets on this machine.
    pub(super) fn chosen(mut self, machine: &Machine) -> Result<Self, ReleaseError> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = self.spec.instances.resolve(u16::try_from(cpus).unwrap_or(u16::MAX));
        let app = App::of(&self.spec, self.spec.inherits, count);
        self.choice = choice::choose(app, machine).map_err(ReleaseError::Unbalanced)?;
        Ok(self)
    }

    /// The same with other limits.
    pub(super) fn with_limits(&self, id: ReleaseId, memory: MemoryRules, limits: Limits) -> Self {
        let written = Some(self.written());
        let mut release = Self { id, written, ..self.clone() };
        (release.spec.memory, release.spec.limits) = (memory, limits);
        release
    }

    /// The limits in the config file, when it was read.
    fn written(&self) -> (MemoryRules, Limits) {
        let Spec { memory, limits, .. } = &self.spec;
        self.written.clone().unwrap_or_else(|| (*memory, limits.clone()))
    }

    /// Whether the config of `newer` has other limits than this one's, and nothing else is
    /// different. (Where nothing is, who reloads has changed the program.)
    pub(super) fn differs_in_limits_only(&self, newer: &Self) -> bool {
        let Self { spec, config, overlay, directory, environment, identity, .. } = newer;
        let mut own = self.spec.clone();
        (own.memory, own.limits) = (spec.memory, spec.limits.clone());
        newer.written() != self.written()
            && own == *spec
            && (config, overlay, directory) == (&self.config, &self.overlay, &self.directory)
            && (environment, identity) == (&self.environment, &self.identity)
    }

    /// What decisions about its instances are made by.
    pub(super) fn rules(&self) -> Rules {
        Rules::from(&self.spec)
    }

    /// The name under which the keeper holds it.
    pub(super) fn fd_name(id: ReleaseId) -> String {
        format!("{FD_NAME}{id}")
    }

    /// Seals it.
    pub(super) fn seal(&self) -> Result<OwnedFd, ReleaseError> {
        let header = Header {
            id: self.id,
            spec: self.spec.clone(),
            written: self.written.clone(),
            config: self.config.clone(),
            overlay: self.overlay.clone(),
            directory: self.directory.clone(),
            choice: Some(self.choice.clone()),
        };
        let mut bytes =
            serde_json::to_vec(&header).map_err(|error| Error::new("word the release", error))?;
        for (name, value) in &self.environment {
            bytes.push(0);
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b'=');
            bytes.extend_from_slice(value.as_bytes());
        }
        Ok(statefile::sealed("pmr-release", &bytes)?)
    }

    /// Reads a sealed one.
    pub(super) fn unseal(fd: &OwnedFd) -> Result<Self, ReleaseError> {
        let bytes = statefile::read_sealed(fd, RELEASE_BYTES_MAX).map_err(ReleaseError::Sealed)?;
        let mut parts = bytes.split(|&byte| byte == 0);
        let header: Header = parts
            .next()
            .and_then(|text| serde_json::from_slice(text).ok())
            .ok_or(ReleaseError::Foreign)?;
        let environment = parts
            .filter_map(|part| {
                let at = part.iter().position(|&byte| byte == b'=')?;
                let (name, value) = part.split_at_checked(at)?;
                let value = value.get(1..)?;
                Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
            })
            .collect();
        let identity = resolve(&header.spec)?;
        let Header { id, spec, written, config, overlay, directory, choice } = header;
        let choice = choice.unwrap_or_else(|| inherited(&spec));
        Ok(Self { id, spec, written, config, overlay, directory, environment, identity, choice })
    }

    /// The app's `PATH`.
    pub(super) fn path(&self) -> Option<&OsStr> {
        self.environment.get(OsStr::new("PATH")).map(OsString::as_os_str)
    }

    /// Whom its instances are started as.
    pub(super) fn uid(&self) -> u32 {
        let own = || rustix::process::geteuid().as_raw();
        self.identity.as_ref().map_or_else(own, |identity| identity.uid)
    }

    /// The files that its program may be.
    pub(super) fn program(&self) -> Result<process::Program, Error> {
        let name = self.spec.program.argv.first().map_or("", String::as_str);
        process::Program::find(OsStr::new(name), self.path())
    }
}

/// What there was before there was a choice: all that share addresses inherit one socket for each.
fn inherited(spec: &Spec) -> Choice {
    let shares = spec.shares_port();
    Choice {
        adapter: if shares { Adapter::Inherit } else { Adapter::None },
        inherits: shares,
        channel: None,
        hooked: false,
        spread: if shares { Spread::OneQueue } else { Spread::Alone },
        why: "chosen by an older pmr".to_owned(),
        note: None,
    }
}

fn resolve(spec: &Spec) -> Result<Option<Identity>, ReleaseError> {
    let (user, group) = (spec.identity.user.as_deref(), spec.identity.group.as_deref());
    let identity = identity::resolve(user, group).map_err(ReleaseError::Identity)?;
    Ok(identity.filter(|identity| !identity.is_current()))
}

/// What pmr was started with, then the user's, the file's and the config's variables: the last
/// wins.
fn environment(
    spec: &Spec,
    identity: Option<&Identity>,
) -> Result<BTreeMap<OsString, OsString>, ReleaseError> {
    let rules = &spec.environment;
    let mut environment = if rules.clear {
        BTreeMap::new()
    } else {
        identity::base_environment(std::env::vars_os(), identity)
    };
    if let Some(file) = &rules.file {
        let bytes = identity::read_as(identity, file, ENV_FILE_BYTES_MAX)?;
        let text = String::from_utf8(bytes).map_err(|_| {
            let error = std::io::Error::from(std::io::ErrorKind::InvalidData);
            Error::at("read as UTF-8", file, error)
        })?;
        let variables = load::read_env_file(&text)
            .map_err(|error| ReleaseError::EnvFile(file.clone(), error))?;
        environment.extend(variables.into_iter().map(|(k, v)| (k.into(), v.into())));
    }
    environment.extend(rules.vars.iter().map(|(name, value)| (name.into(), value.into())));
    Ok(environment)
}
