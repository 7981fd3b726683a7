//! pmr's own events: through `tracing` to wherever they are shown.
//!
//! In the foreground that is the terminal, between the lines of the instances: events are collected
//! here and printed by the loop, which never waits for a terminal.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Most events that wait to be printed; more are counted. One turn of the loop makes a few for each
/// slot.
const WAITING_MAX: usize = 4096;

/// Events that wait to be printed.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<Events>>);

#[derive(Debug, Default)]
struct Events {
    texts: Vec<String>,
    lost: usize,
}

impl Waiting {
    /// Collects all events of this process from now on.
    pub(super) fn collect() -> Self {
        let waiting = Self::default();
        let subscriber = tracing_subscriber::registry().with(waiting.clone());
        // There is one already only where a test made one.
        super::never_mind(tracing::subscriber::set_global_default(subscriber));
        waiting
    }

    /// What has come since the last call.
    pub(super) fn take(&self) -> Vec<String> {
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
        let subscriber = tracing_subscriber::registry().with(waiting.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(PMR_APP = "web", "online after {}", "5ms");
            assert_eq!(waiting.take(), ["online after 5ms"]);
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
