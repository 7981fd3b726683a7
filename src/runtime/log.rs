//! pmr's own events: through `tracing` to wherever they are shown.
//!
//! In the foreground that is the terminal, between the lines of the instances: events are collected
//! here and printed by the loop, which never waits for a terminal. Otherwise it is the journal,
//! with fields; where that takes nothing, it is pmr's own standard error, and what that does not
//! take either is counted. Neither is waited for.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_journald::PriorityMappings;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::{Extensions, ExtensionsMut, LookupSpan, SpanData};

use crate::sys::journal::{self, NATIVE_SOCKET, Native, Priority};

use super::events::Kind;

/// Most events that wait to be printed; more are counted. One turn of the loop makes a few for each
/// slot.
const WAITING_MAX: usize = 4096;

/// Where the events of this process go.
#[derive(Debug)]
pub(super) enum Log {
    Terminal(Waiting),
    Journal(ToJournal),
}

/// An event of pmr's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) kind: Kind,
    pub(super) app: &'a str,
    pub(super) slot: Option<u16>,
    pub(super) generation: Option<u64>,
    pub(super) text: &'a str,
}

/// Says it. The names of the fields are those of the journal.
pub(super) fn say(entry: &Entry<'_>) {
    macro_rules! event {
        ($level:expr) => {
            tracing::event!(
                $level,
                MESSAGE_ID = entry.kind.id,
                PMR_EVENT = entry.kind.name,
                PMR_APP = entry.app,
                PMR_INSTANCE = entry.slot,
                PMR_GENERATION = entry.generation,
                "{}",
                entry.text
            )
        };
    }
    // A level is a part of the place in the source.
    match entry.kind.level {
        Level::ERROR => event!(Level::ERROR),
        Level::WARN => event!(Level::WARN),
        _ => event!(Level::INFO),
    }
}

impl Log {
    /// Takes all events of this process from now on.
    pub(super) fn open(foreground: bool) -> Self {
        // There is one already only where a test made one.
        if foreground {
            let waiting = Waiting::default();
            let subscriber = NoSpans.with(waiting.clone());
            super::never_mind(tracing::subscriber::set_global_default(subscriber));
            Self::Terminal(waiting)
        } else {
            let journal = ToJournal::default();
            let subscriber = NoSpans.with(journal.clone());
            super::never_mind(tracing::subscriber::set_global_default(subscriber));
            Self::Journal(journal)
        }
    }

    /// What waits for the terminal.
    pub(super) fn take(&self) -> Vec<String> {
        match self {
            Self::Terminal(waiting) => waiting.take(),
            Self::Journal(_) => Vec::new(),
        }
    }

    /// How many events were lost, where it can be said now; asked again, it is none.
    pub(super) fn take_lost(&self) -> usize {
        match self {
            Self::Terminal(_) => 0,
            Self::Journal(journal) => journal.take_lost(),
        }
    }
}

/// Gives events to a layer, and keeps no spans: pmr makes none. The registry that is usual here has
/// a table of 4096 threads for them, 32 KiB that are written to when it is made.
#[derive(Debug)]
struct NoSpans;

impl Subscriber for NoSpans {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Any: nothing is ever found by it.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// There is none.
#[derive(Debug)]
enum NoSpan {}

impl<'a> LookupSpan<'a> for NoSpans {
    type Data = NoSpan;

    fn span_data(&'a self, _: &Id) -> Option<NoSpan> {
        None
    }
}

impl SpanData<'_> for NoSpan {
    fn id(&self) -> Id {
        match *self {}
    }

    fn metadata(&self) -> &'static Metadata<'static> {
        match *self {}
    }

    fn parent(&self) -> Option<&Id> {
        match *self {}
    }

    fn extensions(&self) -> Extensions<'_> {
        match *self {}
    }

    fn extensions_mut(&self) -> ExtensionsMut<'_> {
        match *self {}
    }
}

/// The journal, through tracing-journald as far as that does not wait.
#[derive(Debug, Clone, Default)]
pub(super) struct ToJournal(Arc<Mutex<Journal>>);

#[derive(Default)]
struct Journal {
    open: Option<(tracing_journald::Layer, Native)>,
    lost: usize,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open, lost } = self;
        f.debug_struct("Journal").field("open", &open.is_some()).field("lost", lost).finish()
    }
}

impl Journal {
    /// Whether an entry with fields would be taken now. Opened by the first, and again as long as
    /// there is no journald.
    fn has_room(&mut self) -> bool {
        if self.open.is_none() {
            self.open = open_journal();
        }
        self.open.as_ref().is_some_and(|(_, native)| native.room(Path::new(NATIVE_SOCKET)).is_ok())
    }
}

/// The layer, and its socket, which does not block any more. Making the layer sends an empty
/// datagram that may wait, so it is looked first whether there is room. Should somebody fill the
/// queue in between, while journald hangs, the keeper misses the heartbeat and starts another
/// supervisor.
fn open_journal() -> Option<(tracing_journald::Layer, Native)> {
    if !journal::is_listening(Path::new(NATIVE_SOCKET)) {
        return None;
    }
    let (layer, native) = journal::find(tracing_journald::layer).ok()?;
    let mappings = PriorityMappings {
        info: tracing_journald::Priority::Informational,
        ..PriorityMappings::new()
    };
    let layer = layer
        // The fields have the journal's names already.
        .with_field_prefix(None)
        .with_priority_mappings(mappings)
        .with_syslog_identifier("pmr".to_owned());
    Some((layer, native?))
}

impl ToJournal {
    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_lost(&self) -> usize {
        let mut journal = self.lock();
        if journal.lost == 0 || !journal.has_room() {
            return 0;
        }
        std::mem::take(&mut journal.lost)
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for ToJournal {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut journal = self.lock();
        let has_room = journal.has_room();
        if has_room && let Some((layer, _)) = &journal.open {
            return layer.on_event(event, context);
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let priority = match *event.metadata().level() {
            Level::ERROR => Priority::Err,
            Level::WARN => Priority::Warning,
            _ => Priority::Info,
        };
        if !journal::say(priority, &message.0) {
            journal.lost = journal.lost.saturating_add(1);
        }
    }
}

/// Events that wait to be printed.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<Events>>);

#[derive(Debug, Default)]
struct Events {
    texts: Vec<String>,
    lost: usize,
}

impl Waiting {
    /// What has come since the last call.
    fn take(&self) -> Vec<String> {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut texts = std::mem::take(&mut events.texts);
        if events.lost > 0 {
            texts.push(format!("{} more events were not printed", events.lost));
            events.lost = 0;
        }
        texts
    }
}

impl<S: Subscriber> Layer<S> for Waiting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.texts.len() < WAITING_MAX {
            events.texts.push(message.0);
        } else {
            events.lost = events.lost.saturating_add(1);
        }
    }
}

/// The text of an event, without its fields: those are for programs.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // A string takes everything.
            super::never_mind(write!(self.0, "{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_collected_up_to_a_bound() {
        let waiting = Waiting::default();
        let subscriber = NoSpans.with(waiting.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(PMR_APP = "web", "online after {}", "5ms");
            assert_eq!(waiting.take(), ["online after 5ms"]);
            // A library may make one.
            tracing::info_span!("span").in_scope(|| tracing::info!("in a span"));
            assert_eq!(waiting.take(), ["in a span"]);
            for _ in 0..=WAITING_MAX {
                tracing::warn!("again");
            }
        });
        let texts = waiting.take();
        assert_eq!(texts.len(), WAITING_MAX.saturating_add(1));
        assert_eq!(texts.last().map(String::as_str), Some("1 more events were not printed"));
        assert!(waiting.take().is_empty());
    }
}
