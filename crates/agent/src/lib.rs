//! Evenkeel's SDK for Rust WebSocket servers: tells the controller how busy the server is, and obeys it.
//!
//! An [`AgentHandle`] stands between your accept loop and the controller:
//!
//! 1. Ask [`AgentHandle::admit`] before you answer a handshake with 101. While the server drains it refuses:
//!    answer 503 with the header [`DRAINING`] instead, and the gateway goes elsewhere.
//! 2. When the handshake is done, turn the [`Admission`] into a [`Connection`]. Keep it as long as the socket; its
//!    drop says that the connection is gone.
//! 3. Race your work against [`Connection::closing`]: it resolves when this connection was chosen to leave. Send a
//!    Close frame with its code and reason and finish. The pace and the choice are made for you.
//! 4. Call [`Connection::touch`] for each message, so that idle connections leave first.
//! 5. When [`AgentHandle::finished`] resolves the controller wants the process to end, and nothing is connected.
//!
//! The rest happens behind it: reports of connections, CPU and memory against the container's limits, averages,
//! redials, leases. With the controller gone the server works on as it is and nothing is closed.
//!
//! ```no_run
//! use std::time::Duration;
//! use evenkeel_agent::{AgentConfig, AgentHandle, Token};
//! use futures_util::{SinkExt, StreamExt};
//! use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
//!
//! # async fn server() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = AgentConfig::new("chat-1", "ws://127.0.0.1:9001");
//! config.controllers = vec!["http://127.0.0.1:9900".into()];
//! config.token = Token::File("admin.token".into());
//! let agent = AgentHandle::start(config)?;
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9001").await?;
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     let Ok(admission) = agent.admit() else {
//!         continue; // answer 503 with `Evenkeel-Draining: 1`
//!     };
//!     tokio::spawn(async move {
//!         let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
//!         let connection = admission.open();
//!         loop {
//!             tokio::select! {
//!                 closing = connection.closing() => {
//!                     let (code, reason) = (closing.code().into(), closing.reason().into());
//!                     let _ = socket.close(Some(CloseFrame { code, reason })).await;
//!                     return;
//!                 }
//!                 message = socket.next() => {
//!                     let Some(Ok(message)) = message else { return };
//!                     connection.touch(message.len());
//!                     if message.is_text() && socket.send(message).await.is_err() { return }
//!                 }
//!             }
//!         }
//!     });
//! }
//! # }
//! ```
//!
//! Elsewhere: what is said and decided (`evenkeel_protocol`), written down in `docs/reference` so that any language
//! can do the same.

mod clock;
mod config;
mod driver;
mod handle;
mod link;
mod registry;
mod usage;

pub use config::{AgentConfig, StartError, Token};
pub use evenkeel_model::State;
pub use handle::{Admission, AgentHandle, Closing, Connection, DRAINING, Draining};
