//! The dialogue of a move: a client goes from one server to another over two sockets, and at each moment exactly
//! one end owns the session (docs/reference/move.md).
//!
//! - [`frame`]: what the two ends say to each other, and how it is told from what applications say.
//! - [`client`]: the machine of one client session: dials, moves, comes back.
//! - [`server`]: the machine of one connection at a server: sends clients away, parks and takes over those that come.
//!
//! Invariants of both machines together, explored state by state in `tests/explore_moves`: no message of an
//! application is delivered twice or out of order; none is missing without a `gap` having been reported; a move that
//! completes has none; neither end waits for ever. Messages of applications are opaque to the machines
//! ([`Payload`]); tickets and sealed states too ([`Opaque`]): making and opening them is the caller's (`ticket`,
//! `seal`).

pub mod client;
pub mod frame;
pub mod server;

use alloc::collections::VecDeque;
use alloc::string::String;
use core::fmt;

use evenkeel_model::Duration;

pub use frame::{Ctl, Frame, Notice};

/// Longest wait for the other end in one step. Several round trips even on bad paths; a larger value holds back
/// messages of an application for longer when a server froze.
pub const STEP_WITHIN: Duration = Duration::from_secs(5);

/// Longest time an application takes to hand over its state. The client holds its messages back meanwhile.
pub const DETACH_WITHIN: Duration = Duration::from_secs(2);

/// How long a server keeps a parked connection that is not resumed: `cut`, `detach` and `done` each have their own
/// limit, together well below this.
pub const PARKED_FOR: Duration = Duration::from_secs(10);

/// What the machines need to know of a message of the application: whether it is text, because only text can be a
/// frame of ours, and how large it is, because what is held back has a bound.
pub trait Payload {
    /// The text, if it is a text message.
    fn text(&self) -> Option<&str>;

    /// Its size in bytes.
    fn size(&self) -> usize;
}

impl Payload for String {
    fn text(&self) -> Option<&str> {
        Some(self)
    }

    fn size(&self) -> usize {
        self.len()
    }
}

/// A ticket or a sealed state: passed on, never looked into, never printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opaque(pub String);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

/// How much may be held back for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferMax {
    /// Messages. Default 1,024.
    pub messages: usize,
    /// Their bytes together. Default 1 MiB: a pause lasts two round trips, at worst seconds.
    pub bytes: usize,
}

impl Default for BufferMax {
    fn default() -> Self {
        Self { messages: 1_024, bytes: 1024 * 1024 }
    }
}

/// Messages held back, in order. When it is full the newest is given back and nothing else changes, so that what
/// leaves it later has no hole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Buffer<M> {
    max: BufferMax,
    bytes: usize,
    messages: VecDeque<M>,
}

impl<M: Payload> Buffer<M> {
    const fn new(max: BufferMax) -> Self {
        Self { max, bytes: 0, messages: VecDeque::new() }
    }

    /// Holds a message back, or gives it back where there is no room.
    fn hold(&mut self, message: M) -> Result<(), M> {
        let bytes = self.bytes.saturating_add(message.size());
        if self.messages.len() >= self.max.messages || bytes > self.max.bytes {
            return Err(message);
        }
        self.bytes = bytes;
        self.messages.push_back(message);
        Ok(())
    }

    /// Everything held back, oldest first.
    fn take(&mut self) -> VecDeque<M> {
        self.bytes = 0;
        core::mem::take(&mut self.messages)
    }
}
