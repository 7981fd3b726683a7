//! The service manager: units are started, stopped, enabled and looked at over D-Bus.
//!
//! The command line only; a supervisor never comes here. A bus or a systemd that hangs must not
//! make a command hang, so everything has a deadline.

mod error;
mod job;
mod proxy;
mod unit;

use std::future::Future;
use std::io;
use std::task::Poll;
use std::time::Duration;

use async_io::Timer;
use futures_lite::future;
use zbus::connection::Builder;
use zbus::proxy::CacheProperties;
use zbus::{Connection, block_on};

pub use error::BusError;
pub(super) use job::{Job, JobEnd};
pub(super) use proxy::unit_name;
pub(super) use unit::UnitState;

use crate::control::Scope;
use crate::control::client::{Deadline, pause};
use job::Ends;
use proxy::{PropertiesProxy, SERVICE_UNIT, Systemd1Proxy, UNIT, unit_path};

/// Where systemd is this machine's service manager: `sd_booted(3)`.
pub(super) const BOOTED: &str = "/run/systemd/system";

/// How long it may take to be let onto the bus. It is done in a millisecond by one that works.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// How long an answer about a unit may take. systemd reads unit files for it, and a machine that
/// boots or reloads is slow.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// How long a change may take until it is enqueued. libsystemd waits so long for any call
/// (`BUS_DEFAULT_TIMEOUT` of sd-bus).
const CHANGE_TIME: Duration = Duration::from_secs(25);

/// The same where a person may be asked for a password before: what polkit's agents allow.
const ASK_TIME: Duration = Duration::from_mins(5);

/// How long nothing may be heard while a job is waited for: systemd that reads all units again or
/// executes itself anew is away for seconds, and on a slow machine for many.
const SILENCE_TIME: Duration = Duration::from_secs(30);

/// So many looks at a unit without its job, and the job is over: its end comes with its removal.
const LOOKS_WITHOUT_JOB_MAX: u32 = 2;

/// What a unit is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Start,
    Stop,
}

/// A connection to a service manager.
#[derive(Debug)]
pub(super) struct Systemd {
    scope: Scope,
    connection: Connection,
    /// Made with the first job.
    ends: Option<Ends>,
}

impl Systemd {
    /// Connects to the bus of the service manager. (Its own socket, `/run/systemd/private`, is no
    /// way around a bus that is down: messages there have a sender that zbus does not take.)
    pub(super) fn connect(scope: Scope) -> Result<Self, BusError> {
        block_on(async {
            let builder = match scope {
                Scope::System => Builder::system(),
                Scope::User => Builder::session(),
            };
            let connected = within(Deadline::after(CONNECT_TIME), builder?.build()).await;
            let connection = connected.map_err(|error| match error {
                BusError::Unreachable(why) if scope == Scope::User => {
                    BusError::UserUnreachable(why)
                }
                other => other,
            })?;
            Ok(Self { scope, connection, ends: None })
        })
    }

    /// The units of these apps.
    pub(super) fn units(&mut self, apps: &[&str], deadline: Deadline) -> Vec<UnitResult> {
        let deadline = deadline.min(Deadline::after(LOOK_TIME));
        let connection = self.connection.clone();
        let looks = all(apps.iter().map(|app| look(&connection, app, deadline)));
        block_on(listening(&mut self.ends, looks))
    }

    /// The unit of an app.
    pub(super) fn unit(&mut self, app: &str, deadline: Deadline) -> UnitResult {
        let deadline = deadline.min(Deadline::after(LOOK_TIME));
        let connection = self.connection.clone();
        block_on(listening(&mut self.ends, look(&connection, app, deadline)))
    }

    /// Asks for a job.
    pub(super) fn begin(
        &mut self,
        verb: Verb,
        app: &str,
        deadline: Deadline,
    ) -> Result<Job, BusError> {
        block_on(async {
            let deadline = deadline.min(patience());
            let manager = within(deadline, manager(&self.connection)).await?;
            if self.ends.is_none() {
                // In this order an end that is told before the answer is not missed.
                within(deadline, manager.subscribe()).await?;
                self.ends = Some(within(deadline, Ends::listen(&self.connection)).await?);
            }
            let unit = unit_name(app);
            let call = async {
                // `replace`: what was queued before and contradicts it gives way, as for systemctl.
                match verb {
                    Verb::Start => manager.start_unit(&unit, "replace").await,
                    Verb::Stop => manager.stop_unit(&unit, "replace").await,
                }
            };
            let path = listening(&mut self.ends, within(deadline, call)).await?;
            Ok(Job { path: path.to_string() })
        })
    }

    /// Waits for the end of a job. `watch` is shown the unit every now and then. Neither a systemd
    /// that is away for a while nor a bus that is started anew ends the wait.
    pub(super) fn wait(
        &mut self,
        job: &Job,
        app: &str,
        deadline: Deadline,
        look_every: Duration,
        mut watch: impl FnMut(&UnitState) -> io::Result<()>,
    ) -> io::Result<Result<JobEnd, BusError>> {
        let (mut silence, mut without_job) = (None, 0_u32);
        loop {
            let looked = match self.heard(job, deadline.min(Deadline::after(look_every))) {
                Ok(end) => return Ok(Ok(end)),
                Err(BusError::NoAnswer) => self.unit(app, deadline),
                Err(error) => Err(error),
            };
            let error = match looked {
                Ok(unit) => {
                    silence = None;
                    watch(&unit)?;
                    let is_there = unit.job == job.id();
                    without_job = if is_there { 0 } else { without_job.saturating_add(1) };
                    if without_job > LOOKS_WITHOUT_JOB_MAX {
                        return Ok(Ok(JobEnd::Unheard));
                    }
                    continue;
                }
                Err(error) => error,
            };
            let until = *silence.get_or_insert_with(|| Deadline::after(SILENCE_TIME));
            if !error.is_absence() || deadline.min(until).left().is_none() {
                return Ok(Err(error));
            }
            if error == BusError::Lost {
                pause(look_every);
                self.renew();
            }
        }
    }

    /// Connects anew. Where that does not work the connection stays lost.
    fn renew(&mut self) {
        let Ok(mut new) = Self::connect(self.scope) else { return };
        let listened = block_on(async {
            let deadline = Deadline::after(LOOK_TIME);
            let manager = within(deadline, manager(&new.connection)).await?;
            within(deadline, manager.subscribe()).await?;
            within(deadline, Ends::listen(&new.connection)).await
        });
        if let Ok(ends) = listened {
            new.ends = Some(ends);
            *self = new;
        }
    }

    fn heard(&mut self, job: &Job, deadline: Deadline) -> Result<JobEnd, BusError> {
        let ends = self.ends.as_mut().ok_or(BusError::Lost)?;
        block_on(async {
            loop {
                if let Some(end) = ends.take(job) {
                    return Ok(end);
                }
                within(deadline, ends.hear()).await?;
            }
        })
    }

    /// Forgets that a unit failed, and how often it was started.
    pub(super) fn reset_failed(&mut self, app: &str, deadline: Deadline) -> Result<(), BusError> {
        block_on(async {
            let deadline = deadline.min(patience());
            let manager = within(deadline, manager(&self.connection)).await?;
            within(deadline, manager.reset_failed_unit(&unit_name(app))).await
        })
    }

    /// Has the app started at boot, or no longer. Says whether that changed anything.
    pub(super) fn enable(
        &mut self,
        app: &str,
        enable: bool,
        deadline: Deadline,
    ) -> Result<bool, BusError> {
        block_on(async {
            let deadline = deadline.min(patience());
            let manager = within(deadline, manager(&self.connection)).await?;
            let unit = unit_name(app);
            let files = &[unit.as_str()];
            let changes = if enable {
                let call = manager.enable_unit_files(files, false, false);
                let (has_install, changes) = within(deadline, call).await?;
                if !has_install {
                    return Err(BusError::NothingToEnable);
                }
                changes
            } else {
                within(deadline, manager.disable_unit_files(files, false)).await?
            };
            if !changes.is_empty() {
                // The links are seen by a systemd that reads its files again.
                within(deadline, manager.reload()).await?;
            }
            Ok(!changes.is_empty())
        })
    }
}

/// A unit, or why it cannot be looked at.
pub(super) type UnitResult = Result<UnitState, BusError>;

fn patience() -> Deadline {
    let is_root = rustix::process::geteuid().is_root();
    Deadline::after(if is_root { CHANGE_TIME } else { ASK_TIME })
}

async fn manager(connection: &Connection) -> zbus::Result<Systemd1Proxy<'_>> {
    Systemd1Proxy::builder(connection).cache_properties(CacheProperties::No).build().await
}

async fn look(connection: &Connection, app: &str, deadline: Deadline) -> UnitResult {
    let asked = async {
        let properties = PropertiesProxy::builder(connection)
            .path(unit_path(app))?
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        future::try_zip(properties.get_all(UNIT), properties.get_all(SERVICE_UNIT)).await
    };
    let (unit, service) = within(deadline, asked).await?;
    Ok(UnitState::new(unit_name(app), &unit, &service))
}

/// Waits for something, no longer than until the deadline.
async fn within<T>(
    deadline: Deadline,
    other: impl Future<Output = Result<T, impl Into<BusError>>>,
) -> Result<T, BusError> {
    let late = async {
        match deadline.left() {
            Some(left) => Timer::after(left).await,
            None => return Err(BusError::NoAnswer),
        };
        Err(BusError::NoAnswer)
    };
    future::or(async { other.await.map_err(Into::into) }, late).await
}

/// Waits for something, and hears of jobs meanwhile.
async fn listening<T>(ends: &mut Option<Ends>, other: impl Future<Output = T>) -> T {
    match ends {
        Some(ends) => ends.during(other).await,
        None => other.await,
    }
}

/// Waits for all of them at the same time.
async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(|it| Some(Box::pin(it))).collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    future::poll_fn(|context| {
        for (place, output) in waiting.iter_mut().zip(&mut done) {
            if let Some(future) = place
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
                *place = None;
            }
        }
        if waiting.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
