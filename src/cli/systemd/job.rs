//! Jobs of the service manager: a start or a stop that it was asked for, and how it ended.

use std::collections::BTreeMap;
use std::future::Future;

use futures_lite::StreamExt as _;
use futures_lite::future;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, MatchRule, Message, MessageStream, message};

use super::error::BusError;
use super::proxy::{MANAGER_PATH, SERVICE};

/// A job that was enqueued.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Job {
    /// Its object.
    pub(super) path: String,
}

impl Job {
    /// Its number, which is the last part of its path.
    pub(super) fn id(&self) -> Option<u32> {
        self.path.rsplit('/').next()?.parse().ok()
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum JobEnd {
    /// As asked.
    Done,
    /// Not as asked: systemd's word for it.
    Not(String),
    /// It is not queued any more, and how it ended was not heard: what the unit is now says it.
    Unheard,
}

impl JobEnd {
    fn new(result: &str) -> Self {
        if result == "done" { Self::Done } else { Self::Not(result.to_owned()) }
    }

    /// What systemd's word for a job that was not done means.
    pub(in crate::cli) fn words(result: &str) -> String {
        match result {
            "failed" => "its unit failed".to_owned(),
            "canceled" => "another job took its place".to_owned(),
            "timeout" => "the job timed out".to_owned(),
            "dependency" => "a unit that it needs could not be started".to_owned(),
            "skipped" => "systemd skipped the job".to_owned(),
            "once" => "it may be started once in a boot only".to_owned(),
            "assert" => "an assertion of its unit does not hold".to_owned(),
            "frozen" => "its unit is frozen".to_owned(),
            "concurrency" => "its slice allows no more units".to_owned(),
            other => format!("the job ended as `{other}`"),
        }
    }
}

/// The ends of all jobs, from the moment on at which it was made: an end may be told before the
/// answer that names the job, so it must be listened for before a job is asked for.
#[derive(Debug)]
pub(super) struct Ends {
    signals: MessageStream,
    /// By the job's path.
    heard: BTreeMap<String, String>,
}

impl Ends {
    pub(super) async fn listen(connection: &Connection) -> Result<Self, BusError> {
        let rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .interface("org.freedesktop.systemd1.Manager")?
            .member("JobRemoved")?
            .path(MANAGER_PATH)?
            // Anybody may send a signal; the bus knows who it is from.
            .sender(SERVICE)?
            .build();
        let signals = MessageStream::for_match_rule(rule, connection, None).await?;
        Ok(Self { signals, heard: BTreeMap::new() })
    }

    /// Waits for something else. Signals are taken meanwhile: were they not, a full queue would
    /// keep zbus from reading what is waited for.
    pub(super) async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let listen = async {
            while self.hear().await.is_ok() {}
            future::pending().await
        };
        future::or(other, listen).await
    }

    /// Waits for the end of any job.
    pub(super) async fn hear(&mut self) -> Result<(), BusError> {
        let message = self.signals.next().await.ok_or(BusError::Lost)??;
        if let Some((job, result)) = read(&message) {
            self.heard.insert(job, result);
        }
        Ok(())
    }

    /// The end of a job, once it was heard.
    pub(super) fn take(&mut self, job: &Job) -> Option<JobEnd> {
        self.heard.remove(&job.path).map(|result| JobEnd::new(&result))
    }
}

/// `JobRemoved(id, job, unit, result)`
fn read(message: &Message) -> Option<(String, String)> {
    let body = message.body();
    let (_, job, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize().ok()?;
    Some((job.to_string(), result))
}
