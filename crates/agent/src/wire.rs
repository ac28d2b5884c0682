//! What a [`crate::MovableSocket`] needs to know of a WebSocket library's messages.

use evenkeel_protocol::moving::Payload;
use tokio_tungstenite::tungstenite;

/// A whole message of a WebSocket library. Implemented for tungstenite and, with the feature `axum`, for axum.
pub trait Wire: Sized {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The text of a text message.
    fn text(&self) -> Option<&str>;

    /// The size of what it carries in bytes.
    fn size(&self) -> usize;

    /// A text message.
    fn from_text(text: String) -> Self;

    /// A Close frame.
    fn close(code: u16, reason: &str) -> Self;
}

/// See [`Wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text or binary: the application's.
    Data,
    /// Ping, pong: the library answers them.
    Control,
    /// The peer's Close frame.
    Close,
}

impl Wire for tungstenite::Message {
    fn kind(&self) -> Kind {
        match self {
            Self::Text(_) | Self::Binary(_) => Kind::Data,
            Self::Ping(_) | Self::Pong(_) | Self::Frame(_) => Kind::Control,
            Self::Close(_) => Kind::Close,
        }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text.as_str()) } else { None }
    }

    fn size(&self) -> usize {
        self.len()
    }

    fn from_text(text: String) -> Self {
        Self::Text(text.into())
    }

    fn close(code: u16, reason: &str) -> Self {
        Self::Close(Some(tungstenite::protocol::CloseFrame { code: code.into(), reason: reason.into() }))
    }
}

#[cfg(feature = "axum")]
impl Wire for axum::extract::ws::Message {
    fn kind(&self) -> Kind {
        match self {
            Self::Text(_) | Self::Binary(_) => Kind::Data,
            Self::Ping(_) | Self::Pong(_) => Kind::Control,
            Self::Close(_) => Kind::Close,
        }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text.as_str()) } else { None }
    }

    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(data) | Self::Ping(data) | Self::Pong(data) => data.len(),
            Self::Close(_) => 0,
        }
    }

    fn from_text(text: String) -> Self {
        Self::Text(text.into())
    }

    fn close(code: u16, reason: &str) -> Self {
        Self::Close(Some(axum::extract::ws::CloseFrame { code, reason: reason.into() }))
    }
}

/// The same for the machine of a move.
#[derive(Debug)]
pub(crate) struct Carried<M>(pub(crate) M);

impl<M: Wire> Payload for Carried<M> {
    fn text(&self) -> Option<&str> {
        self.0.text()
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}
