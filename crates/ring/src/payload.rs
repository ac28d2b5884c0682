//! Bytes on their way out, and where they lie.

use crate::Piece;

/// Bytes to send: received ones as they lie in the ring's buffers, or owned ones.
#[derive(Debug)]
pub enum Payload {
    /// Bytes in the ring's buffers.
    Piece(Piece),
    /// Bytes of their own.
    Owned {
        /// All of them.
        bytes: Vec<u8>,
        /// So many were sent.
        sent: usize,
    },
}

impl Payload {
    /// Bytes still to send.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Piece(piece) => piece.len(),
            Self::Owned { bytes, sent } => bytes.len().saturating_sub(*sent),
        }
    }

    /// Whether all was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes that so many were sent.
    pub fn advance(&mut self, count: usize) {
        match self {
            Self::Piece(piece) => piece.advance(count),
            Self::Owned { bytes, sent } => *sent = sent.saturating_add(count).min(bytes.len()),
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned { bytes, sent: 0 }
    }
}
