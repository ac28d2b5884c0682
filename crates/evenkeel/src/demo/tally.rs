//! What the clients saw, written down: the demo judges by this and not by what the product says of itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use evenkeel_model::Instant;

/// One connection of one client, from its handshake to its end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Session {
    /// Id of the server, as it says on the 101.
    pub(crate) server: String,
    /// Whether it is its client's first.
    pub(crate) first: bool,
    /// When the handshake began.
    pub(crate) begun: Instant,
    /// When the 101 came.
    pub(crate) opened: Instant,
    /// When the client heard of the end; `None`: still open.
    pub(crate) ended: Option<Instant>,
    /// How it ended.
    pub(crate) end: Option<End>,
    /// Messages sent and not echoed at the end.
    pub(crate) unechoed: u32,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// The client left.
    Left,
    /// The other side sent a Close frame.
    Closed {
        /// Its code.
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// Without a Close frame.
    Broken,
}

impl End {
    /// Whether it is a paced close of ours: the client was told to come back, at the fleet's pace.
    pub(crate) fn is_paced(&self) -> bool {
        matches!(self, Self::Closed { reason, .. } if matches!(reason.as_str(), "ek:draining" | "ek:rebalance" | "ek:shed"))
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Left => f.write_str("1000 left"),
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "{code}"),
            Self::Closed { code, reason } => write!(f, "{code} {reason}"),
            Self::Broken => f.write_str("broken off"),
        }
    }
}

/// A handshake that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    /// When it began.
    pub(crate) begun: Instant,
    /// When it had failed.
    pub(crate) at: Instant,
    /// Why.
    pub(crate) why: String,
}

/// Numbers to show while it goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Clients connected.
    pub(crate) connected: u32,
    /// Handshakes that succeeded.
    pub(crate) placed: u64,
    /// Of these, clients that came back after a paced close.
    pub(crate) moved: u64,
    /// Handshakes that failed.
    pub(crate) failed: u64,
    /// Messages sent.
    pub(crate) sent: u64,
    /// Messages that came back whole and in order.
    pub(crate) echoed: u64,
    /// Messages that came back wrong, twice, or out of order.
    pub(crate) garbled: u64,
    /// Messages without an echo when their connection ended.
    pub(crate) unechoed: u64,
    /// Longest handshake that succeeded.
    pub(crate) worst_handshake: Duration,
    /// Connections that ended, by how.
    pub(crate) ends: BTreeMap<End, u64>,
}

#[derive(Debug, Default)]
struct Book {
    counts: Counts,
    sessions: Vec<Session>,
    failed: Vec<Failed>,
}

/// The book all clients write to. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Book>>);

/// A session's place in the book.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionId(usize);

impl Tally {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handshake succeeded. `after` is how the client's connection before this one ended.
    pub(crate) fn opened(
        &self,
        server: String,
        begun: Instant,
        opened: Instant,
        after: Option<&End>,
    ) -> SessionId {
        let mut book = self.book();
        let counts = &mut book.counts;
        counts.connected += 1;
        counts.placed += 1;
        counts.moved += u64::from(after.is_some_and(End::is_paced));
        counts.worst_handshake = counts.worst_handshake.max(opened.since(begun));
        book.sessions.push(Session {
            server,
            first: after.is_none(),
            begun,
            opened,
            ended: None,
            end: None,
            unechoed: 0,
        });
        SessionId(book.sessions.len() - 1)
    }

    /// A handshake failed.
    pub(crate) fn failed(&self, begun: Instant, at: Instant, why: String) {
        let mut book = self.book();
        book.counts.failed += 1;
        book.failed.push(Failed { begun, at, why });
    }

    /// A message was sent.
    pub(crate) fn sent(&self) {
        self.book().counts.sent += 1;
    }

    /// A message came back as it was sent, in its turn.
    pub(crate) fn echoed(&self) {
        self.book().counts.echoed += 1;
    }

    /// Something came back that was not due.
    pub(crate) fn garbled(&self) {
        self.book().counts.garbled += 1;
    }

    /// The client heard that its connection ends. The first word counts.
    pub(crate) fn ended(&self, id: SessionId, end: End, at: Instant) {
        let mut book = self.book();
        let session = &mut book.sessions[id.0];
        if session.end.is_some() {
            return;
        }
        session.ended = Some(at);
        session.end = Some(end.clone());
        book.counts.connected -= 1;
        *book.counts.ends.entry(end).or_default() += 1;
    }

    /// The connection is gone, with so many messages not echoed.
    pub(crate) fn gone(&self, id: SessionId, unechoed: u32) {
        let mut book = self.book();
        book.sessions[id.0].unechoed = unechoed;
        book.counts.unechoed += u64::from(unechoed);
    }

    /// The numbers at this moment.
    pub(crate) fn counts(&self) -> Counts {
        self.book().counts.clone()
    }

    /// Every session and every failure so far.
    pub(crate) fn records(&self) -> (Vec<Session>, Vec<Failed>) {
        let book = self.book();
        (book.sessions.clone(), book.failed.clone())
    }
}
