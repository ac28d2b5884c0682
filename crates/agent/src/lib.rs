//! Evenkeel's SDK for Rust WebSocket servers: tells the controller how busy the server is, and obeys it.
//!
//! An [`AgentHandle`] stands between your accept loop and the controller:
//!
//! 1. Ask [`AgentHandle::admit`] before you answer a [`Handshake`] with 101. [`Refused::response`] is what to answer
//!    instead: 503 while the server drains, so that gateways go elsewhere, 401 without a good assignment, 403 to
//!    foreign web pages.
//! 2. When the handshake is done, turn the [`Admission`] into a [`MovableSocket`] around the socket of your library
//!    (tungstenite; axum with the feature `axum`), and read [`Event`]s. A client that knows how is moved to another
//!    server without missing a message: [`Event::Detach`] asks for the state of its session, the other server gets it
//!    with [`Event::Attach`]. Other clients are closed. Choice, pace and dialogue are not your concern.
//! 3. On SIGTERM ([`terminated`]) call [`AgentHandle::leave`]. When [`AgentHandle::finished`] resolves the controller
//!    wants the process to end, and nothing is connected.
//!
//! A server that hands nothing over takes a plain [`Connection`] instead ([`Admission::open`]): keep it as long as the
//! socket, race your work against [`Connection::closing`], and call [`Connection::touch`] for each message.
//!
//! The rest happens behind it: reports of connections, CPU and memory against the container's limits, averages,
//! redials, leases, keys. With the controller gone the server works on as it is and nothing is closed.
//!
//! ```no_run
//! use evenkeel_agent::{AgentConfig, AgentHandle, Event, Handshake, Token};
//! use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
//!
//! # async fn server() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = AgentConfig::new("chat-1", "ws://127.0.0.1:9001");
//! config.controllers = vec!["http://127.0.0.1:9900".into()];
//! config.token = Token::File("admin.token".into());
//! config.moves = true;
//! let agent = AgentHandle::start(config)?;
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9001").await?;
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     let agent = agent.clone();
//!     tokio::spawn(async move {
//!         let mut admitted = None;
//!         let check = |request: &Request, response: Response| {
//!             let handshake = Handshake::new(request.uri(), request.headers());
//!             admitted = Some(agent.admit(&handshake).map_err(|refused| refused.response())?);
//!             Ok(response)
//!         };
//!         let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
//!         let Some(admission) = admitted else { return };
//!         let mut socket = admission.socket(socket);
//!         let mut count = 0_u64;
//!         while let Some(event) = socket.next().await {
//!             match event {
//!                 Event::Open => {}
//!                 Event::Attach(state) => count = state.try_into().map_or(0, u64::from_be_bytes),
//!                 Event::Message(message) => {
//!                     count += 1;
//!                     if socket.send(message).await.is_err() { return }
//!                 }
//!                 Event::Detach => _ = socket.detach(count.to_be_bytes()).await,
//!             }
//!         }
//!     });
//! }
//! # }
//! ```
//!
//! Elsewhere: what is said and decided (`evenkeel_protocol`), written down in `docs/reference` so that any language
//! can do the same.

mod admission;
mod clock;
mod config;
#[cfg(feature = "sidecar")]
mod diag;
mod driver;
mod handle;
mod keyring;
mod link;
mod process;
mod registry;
#[cfg(feature = "sidecar")]
pub mod sidecar;
mod socket;
mod source;
mod usage;
mod wire;

pub use admission::{ASSIGNMENT, Admission, AdmitPolicy, CONN, DRAINING, Handshake, Refused};
pub use config::{AgentConfig, StartError, Token};
pub use evenkeel_model::State;
pub use evenkeel_protocol::executor::Admit;
pub use evenkeel_protocol::origin::{Origin, Origins};
pub use evenkeel_protocol::refusal::Refusal;
pub use handle::{AgentHandle, Closing, Connection, NOTICE, grace_period, terminated};
pub use socket::{DetachError, Event, MovableSocket, SendError};
pub use wire::{Kind, Wire};
