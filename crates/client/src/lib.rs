//! Evenkeel's client for Rust: one session with a fleet of WebSocket servers, whatever server it is on.
//!
//! [`Client::connect`] opens a session; [`Client::send`] and [`Client::next`] talk. Behind them a task dials, comes
//! back with full jitter when the connection is lost, and moves to another server when the fleet asks for it: on a
//! completed move between servers with an SDK no message is lost, none comes twice, all are in order. Where something
//! may be missing the application gets [`Event::Gap`].
//!
//! ```no_run
//! use evenkeel_client::{Client, Config, Event, Message};
//!
//! # async fn client() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::connect(&Config::new("ws://127.0.0.1:8080/chat?room=7"))?;
//! while let Some(event) = client.next().await {
//!     match event {
//!         Event::Open { .. } => client.send(Message::text("hello")).await?,
//!         Event::Message(message) => println!("{message:?}"),
//!         Event::Gap { why } => println!("something may be missing: {}", why.reason()),
//!         Event::Closed { code, reason } => println!("over: {code} {reason}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Elsewhere: every decision (`evenkeel_protocol::moving::client`), the dialogue in words (docs/reference/move.md).
//! Left out so far: TLS, so `wss://` and `https://` are refused; put the client next to a proxy that speaks it.

mod assign;
mod clock;
mod config;
mod dial;
mod driver;
mod http;
mod socket;

use tokio::sync::{mpsc, oneshot};

pub use config::{Config, ConfigError, Negotiate};
pub use driver::Event;
pub use evenkeel_protocol::moving::BufferMax;
pub use evenkeel_protocol::moving::client::{Again, GapReason, StayReason, UnsentReason};
pub use socket::Message;

use driver::{Command, Driver};

/// Messages of the application that may wait for the session's task. Then [`Client::send`] waits.
const COMMANDS_MAX: usize = 64;
/// Events that may wait for the application. Then the sockets are not read.
const EVENTS_MAX: usize = 256;

/// A session. Dropped, it ends at once, without a closing handshake; see [`Client::close`].
#[derive(Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<Event>,
    /// Dropped with the client, which ends its task.
    _alive: oneshot::Sender<()>,
}

/// The session is over: nothing can be sent any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the session is over")]
pub struct Over(
    /// What was to be sent.
    pub Message,
);

impl Client {
    /// Opens a session on the current tokio runtime. It dials in the background; [`Event::Open`] says when it is up.
    ///
    /// # Errors
    /// [`ConfigError`], also outside a tokio runtime.
    pub fn connect(config: &Config) -> Result<Self, ConfigError> {
        let place = config.check()?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(ConfigError::NoRuntime);
        }
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (alive, ended) = oneshot::channel();
        clock::spawn(Driver::new(place, config.buffer, inbox, sender).run(ended));
        Ok(Self { commands, events, _alive: alive })
    }

    /// Sends a message. While the session moves or is being dialled again it is held back, within
    /// [`Config::buffer`]; one that finds no room comes back as [`Event::Unsent`].
    ///
    /// # Errors
    /// [`Over`] once the session has ended.
    ///
    /// # Cancel safety
    /// Yes: dropped, the message is not sent.
    pub async fn send(&self, message: Message) -> Result<(), Over> {
        self.commands.send(Command::Send(message)).await.map_err(|refused| match refused.0 {
            Command::Send(message) => Over(message),
            Command::Close { .. } => Over(Message::text("")),
        })
    }

    /// What happened next; `None` after [`Event::Closed`].
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Ends the session with a close code (1000, or 3000 to 4999) and a reason of at most 123 bytes, after what was
    /// sent before. [`Event::Closed`] follows.
    pub async fn close(&self, code: u16, reason: impl Into<String>) {
        // An error is a session that is over already.
        let _ = self.commands.send(Command::Close { code, reason: reason.into() }).await;
    }
}
