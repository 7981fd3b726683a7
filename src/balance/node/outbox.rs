//! What waits to be written to a worker.

use std::collections::VecDeque;

use super::message::{HANDLE_ARRIVED, RequestId};

/// So often a socket is sent again that got lost on the way. Node itself sends what it may send
/// again three times.
const LOSSES_MAX: u8 = 3;

/// So many bytes of messages for the app may wait. A worker that takes none of them for so long
/// would not take the next either.
pub const MESSAGES_MAX: usize = 16 * 1024;

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// At least one byte.
    pub bytes: &'a [u8],
    /// The socket that goes with the first byte, alone in its `sendmsg`: the one that was given
    /// for this request.
    pub handle: Option<RequestId>,
}

#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    handle: Option<RequestId>,
    losses: u8,
    written: usize,
}

/// What became of a lost socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is sent again.
    Again,
    /// It was sent often enough.
    GivenUp(RequestId),
    /// There was none.
    NoHandle,
}

/// Lines that wait, in their order. After a socket nothing is written until the worker has said
/// that it arrived, as Node's own parent does: of two sockets in one read Node would keep one. Only
/// the acknowledgement of the app's own handles goes past.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lines: VecDeque<Line>,
    current: Option<Line>,
    /// Written, with a socket, and not acknowledged.
    awaited: Option<Line>,
    acknowledgements: u32,
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, bytes: Vec<u8>, handle: Option<RequestId>) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        self.lines.push_back(Line { bytes, handle, losses: 0, written: 0 });
    }

    /// A message for the app. False where there is no room.
    #[must_use]
    pub(super) fn push_message(&mut self, bytes: Vec<u8>) -> bool {
        let has_room = self.bytes.saturating_add(bytes.len()) <= MESSAGES_MAX;
        if has_room {
            self.push(bytes, None);
        }
        has_room
    }

    /// A handle of the app has arrived.
    pub(super) fn acknowledge(&mut self) {
        self.acknowledgements = self.acknowledgements.saturating_add(1);
    }

    /// Bytes that wait, without acknowledgements.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the socket of this request has not arrived yet.
    pub(super) fn holds(&self, id: RequestId) -> bool {
        let lines = self.lines.iter().chain(&self.current).chain(&self.awaited);
        lines.map(|line| line.handle).any(|handle| handle == Some(id))
    }

    /// Whether all is written, and no acknowledgement is awaited.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
            && self.current.is_none()
            && self.awaited.is_none()
            && self.acknowledgements == 0
    }

    pub(super) fn next(&mut self) -> Option<Chunk<'_>> {
        if self.current.is_none() {
            if self.acknowledgements > 0 {
                self.acknowledgements = self.acknowledgements.saturating_sub(1);
                let bytes = HANDLE_ARRIVED.to_vec();
                self.bytes = self.bytes.saturating_add(bytes.len());
                self.current = Some(Line { bytes, handle: None, losses: 0, written: 0 });
            } else if self.awaited.is_none() {
                self.current = self.lines.pop_front();
            }
        }
        let line = self.current.as_ref()?;
        let handle = line.handle.filter(|_| line.written == 0);
        Some(Chunk { bytes: line.bytes.get(line.written..)?, handle })
    }

    /// So many bytes of the last chunk were written; its socket went with the first of them.
    pub(super) fn wrote(&mut self, count: usize) {
        let Some(line) = &mut self.current else { return };
        line.written = line.written.saturating_add(count).min(line.bytes.len());
        if line.written < line.bytes.len() {
            return;
        }
        self.bytes = self.bytes.saturating_sub(line.bytes.len());
        self.awaited = match self.current.take() {
            Some(line) if line.handle.is_some() => Some(line),
            // An acknowledgement went past.
            _ => self.awaited.take(),
        };
    }

    /// The worker has the socket. False where it was sent none.
    #[must_use]
    pub(super) fn arrived(&mut self) -> bool {
        self.awaited.take().is_some()
    }

    /// The worker got the line without its socket.
    pub(super) fn lost(&mut self) -> Loss {
        let Some(mut line) = self.awaited.take() else { return Loss::NoHandle };
        line.losses = line.losses.saturating_add(1);
        match line.handle {
            Some(handle) if line.losses > LOSSES_MAX => Loss::GivenUp(handle),
            _ => {
                line.written = 0;
                self.bytes = self.bytes.saturating_add(line.bytes.len());
                self.lines.push_front(line);
                Loss::Again
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes so many bytes at once as long as there are any. A socket is shown as `<id>`.
    fn written(outbox: &mut Outbox, at_once: usize) -> String {
        let mut text = String::new();
        while let Some(chunk) = outbox.next() {
            if let Some(RequestId(id)) = chunk.handle {
                text = format!("{text}<{id}>");
            }
            let count = chunk.bytes.len().min(at_once);
            text.push_str(std::str::from_utf8(&chunk.bytes[..count]).unwrap());
            outbox.wrote(count);
        }
        text
    }

    fn lines(lines: &[(&str, Option<u64>)]) -> Outbox {
        let mut outbox = Outbox::default();
        for (text, id) in lines {
            outbox.push(text.as_bytes().to_vec(), id.map(RequestId));
        }
        outbox
    }

    #[test]
    fn after_a_socket_all_waits_but_acknowledgements() {
        for at_once in [1, 2, 1000] {
            let mut outbox = lines(&[("a\n", None), ("b\n", Some(1)), ("c\n", Some(2))]);
            outbox.push(b"d\n".to_vec(), None);
            assert_eq!(outbox.bytes(), 8);
            assert_eq!(written(&mut outbox, at_once), "a\n<1>b\n");
            assert!(outbox.holds(RequestId(1)) && outbox.holds(RequestId(2)));
            outbox.acknowledge();
            outbox.acknowledge();
            let twice = "{\"cmd\":\"NODE_HANDLE_ACK\"}\n".repeat(2);
            assert_eq!(written(&mut outbox, at_once), twice);
            assert!(outbox.arrived());
            assert!(!outbox.holds(RequestId(1)));
            assert_eq!(written(&mut outbox, at_once), "<2>c\n");
            assert!(!outbox.is_empty());
            assert!(outbox.arrived());
            assert_eq!(written(&mut outbox, at_once), "d\n");
            assert!(!outbox.arrived());
            assert!(outbox.is_empty());
            assert_eq!(outbox.bytes(), 0);
        }
    }

    #[test]
    fn what_has_begun_is_finished_first() {
        let mut outbox = lines(&[("abc\n", Some(1))]);
        assert_eq!(outbox.next(), Some(Chunk { bytes: b"abc\n", handle: Some(RequestId(1)) }));
        outbox.wrote(0);
        assert_eq!(outbox.next(), Some(Chunk { bytes: b"abc\n", handle: Some(RequestId(1)) }));
        outbox.wrote(1);
        outbox.acknowledge();
        assert_eq!(outbox.next(), Some(Chunk { bytes: b"bc\n", handle: None }));
        assert_eq!(outbox.lost(), Loss::NoHandle);
        outbox.wrote(3);
        assert_eq!(outbox.next().unwrap().bytes, HANDLE_ARRIVED);
    }

    #[test]
    fn a_lost_socket_is_sent_again_before_the_rest_and_then_given_up() {
        let mut outbox = lines(&[("a\n", Some(7)), ("b\n", None)]);
        for _ in 0..LOSSES_MAX {
            assert_eq!(written(&mut outbox, 100), "<7>a\n");
            assert_eq!(outbox.lost(), Loss::Again);
        }
        assert_eq!(written(&mut outbox, 100), "<7>a\n");
        assert_eq!(outbox.lost(), Loss::GivenUp(RequestId(7)));
        assert_eq!(written(&mut outbox, 100), "b\n");
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn messages_are_refused_when_the_queue_is_full() {
        let mut outbox = Outbox::default();
        assert!(outbox.push_message(vec![b'x'; MESSAGES_MAX]));
        assert!(!outbox.push_message(b"y".to_vec()));
        outbox.push(b"z".to_vec(), None);
        assert_eq!(outbox.bytes(), MESSAGES_MAX + 1);
        outbox.next().unwrap();
        outbox.wrote(MESSAGES_MAX);
        assert!(outbox.push_message(b"y".to_vec()));
    }
}
