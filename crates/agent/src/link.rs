//! One link to one controller: dials, sends what it is given, hands over what arrives, and dials again.
//!
//! In: [`Command`]s of the link that is open (64 at most; a link that cannot keep up with a report a second is
//! ended). Out: [`Event`]s (256 at most over all links; a full queue holds the controller back). Invariants: each
//! `Opened` is followed by one `Closed`; every await on the network has a deadline; redials wait a random time
//! that grows with each failure. Elsewhere: what is said (`evenkeel_protocol::agent`).

use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_model::{Duration, Rng};
use evenkeel_protocol::agent::LinkId;
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::message::MESSAGE_MAX;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tracing::{debug, info, warn};

use crate::config::{Node, Token};

/// Deadline of a dial as a whole, and of each write.
const NETWORK_WITHIN: Duration = Duration::from_secs(5);
/// Deadline of the closing handshake.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// First and longest wait before a redial (full jitter: a random part of it). 5 s keeps 10,000 agents below
/// 4,000 dials a second at a controller that comes back; longer would leave servers suspect for longer.
const REDIAL_MIN: Duration = Duration::from_millis(200);
const REDIAL_MAX: Duration = Duration::from_secs(5);
/// Commands that may wait for a link.
const COMMANDS_MAX: usize = 64;

/// What a link tells the agent.
#[derive(Debug)]
pub(crate) enum Event {
    Opened(LinkId, mpsc::Sender<Command>),
    Text(LinkId, String),
    Heard(LinkId),
    Closed(LinkId),
}

/// What the agent tells an open link. A dropped sender ends it as well.
#[derive(Debug)]
pub(crate) enum Command {
    Text(String),
    Ping,
    End(CloseReason),
}

/// The credential in use, shared by the links: a welcome may bring a better one than the configured token.
#[derive(Debug, Default)]
pub(crate) struct Credential(Mutex<Option<String>>);

impl Credential {
    pub(crate) fn set(&self, credential: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = credential;
    }

    fn current(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One link; see the module's documentation.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) node: Node,
    pub(crate) token: Token,
    pub(crate) credential: Arc<Credential>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) rng: Rng,
}

type Socket = WebSocketStream<TcpStream>;

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("could not read the token file {path}")]
    TokenFile { path: String, source: std::io::Error },
    #[error("could not send the token: it holds characters that no header takes")]
    TokenText,
    #[error("could not connect")]
    Connect(#[source] std::io::Error),
    #[error("refused with HTTP status {0}")]
    Refused(StatusCode),
    #[error("could not open the WebSocket")]
    Handshake(#[source] Box<Error>),
    #[error("no answer within {NETWORK_WITHIN:?}")]
    TimedOut,
}

impl Link {
    /// Dials and redials until `stop`.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut failures = 0u32;
        loop {
            let dialled = tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                dialled = timeout(NETWORK_WITHIN, self.dial()) => dialled.unwrap_or(Err(DialError::TimedOut)),
            };
            match dialled {
                Ok(socket) => {
                    info!(controller = %self.node.authority, "agent linked");
                    let spoke = self.converse(socket, &mut stop).await;
                    failures = if spoke { 0 } else { failures.saturating_add(1) };
                }
                Err(error) => {
                    self.failed(&error, failures);
                    failures = failures.saturating_add(1);
                }
            }
            let wait = backoff(failures, &mut self.rng);
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn failed(&self, error: &DialError, failures: u32) {
        if matches!(error, DialError::Refused(StatusCode::UNAUTHORIZED)) {
            // A controller that lost its store does not know the credential it gave out: back to the token.
            self.credential.set(None);
        }
        let controller = &self.node.authority;
        let cause = std::error::Error::source(error).map(ToString::to_string);
        if failures == 0 {
            warn!(%controller, error = %error, cause, "agent could not link; trying on");
        } else {
            debug!(%controller, error = %error, cause, failures, "agent could not link");
        }
    }

    async fn dial(&self) -> Result<Socket, DialError> {
        let handshake = |error| DialError::Handshake(Box::new(error));
        let url = format!("ws://{}/v1/agent", self.node.authority);
        let mut request = url.into_client_request().map_err(handshake)?;
        if let Some(token) = self.token().await? {
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| DialError::TokenText)?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let stream = TcpStream::connect((self.node.host.as_str(), self.node.port))
            .await
            .map_err(DialError::Connect)?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(8 * 1_024)
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(DialError::Refused(response.status())),
            Err(error) => Err(handshake(error)),
        }
    }

    async fn token(&self) -> Result<Option<String>, DialError> {
        if let Some(credential) = self.credential.current() {
            return Ok(Some(credential));
        }
        match &self.token {
            Token::None => Ok(None),
            Token::Text(text) => Ok(Some(text.clone())),
            Token::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(Some(text.trim().to_owned())),
                Err(source) => Err(DialError::TokenFile { path: path.display().to_string(), source }),
            },
        }
    }

    /// Runs one open link to its end; says whether the controller ever spoke.
    async fn converse(&self, socket: Socket, stop: &mut watch::Receiver<bool>) -> bool {
        let (commands, mut inbox) = mpsc::channel(COMMANDS_MAX);
        if self.events.send(Event::Opened(self.id, commands)).await.is_err() {
            return false;
        }
        let mut spoke = false;
        let why = self.exchange(socket, &mut inbox, stop, &mut spoke).await;
        info!(controller = %self.node.authority, reason = why, "agent link ended");
        // The agent may be gone, then nobody needs to know.
        let _ = self.events.send(Event::Closed(self.id)).await;
        spoke
    }

    async fn exchange(
        &self,
        mut socket: Socket,
        inbox: &mut mpsc::Receiver<Command>,
        stop: &mut watch::Receiver<bool>,
        spoke: &mut bool,
    ) -> &'static str {
        loop {
            let message = tokio::select! {
                biased;
                () = stopped(stop) => {
                    close(&mut socket, CloseCode::Away, CloseReason::Stopped).await;
                    return "stopped";
                }
                command = inbox.recv() => match command {
                    Some(Command::Text(text)) => Message::text(text),
                    Some(Command::Ping) => Message::Ping(Bytes::new()),
                    Some(Command::End(reason)) => {
                        close(&mut socket, CloseCode::Policy, reason).await;
                        return reason.reason();
                    }
                    None => return "too_slow",
                },
                arrived = socket.next() => match arrived {
                    Some(Ok(message)) => match self.take(message).await {
                        Ok(()) => { *spoke = true; continue; }
                        Err(why) => return why,
                    },
                    Some(Err(error)) => {
                        debug!(controller = %self.node.authority, error = %error, "agent link broke");
                        return "broken";
                    }
                    None => return "closed",
                },
            };
            if !matches!(timeout(NETWORK_WITHIN, socket.send(message)).await, Ok(Ok(()))) {
                return "write_failed";
            }
        }
    }

    async fn take(&self, message: Message) -> Result<(), &'static str> {
        let event = match message {
            Message::Text(text) => Event::Text(self.id, text.as_str().to_owned()),
            Message::Close(frame) => {
                if let Some(frame) = frame {
                    warn!(controller = %self.node.authority, code = u16::from(frame.code), reason = frame.reason.as_str(), "agent link closed by the controller");
                }
                return Err("closed");
            }
            _ => Event::Heard(self.id),
        };
        self.events.send(event).await.map_err(|_| "stopped")
    }
}

async fn close(socket: &mut Socket, code: CloseCode, reason: CloseReason) {
    let frame = CloseFrame { code, reason: reason.as_str().into() };
    // The controller may be gone already; then there is nobody to tell.
    let _ = timeout(CLOSE_WITHIN, socket.close(Some(frame))).await;
}

/// Waits until the agent is stopped or every handle of it is gone. Cancel-safe.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error is a dropped handle.
    let _ = stop.wait_for(|&stop| stop).await;
}

/// Full jitter: a random part of the longest wait, which doubles with each failure.
fn backoff(failures: u32, rng: &mut Rng) -> Duration {
    let longest = REDIAL_MIN.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(REDIAL_MAX);
    longest.mul_f64(rng.unit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redials_wait_longer_and_longer_but_never_over_the_cap() {
        let mut rng = Rng::new(7);
        let mut mean = |failures| {
            (0..1_000)
                .map(|_| backoff(failures, &mut rng))
                .inspect(|wait| assert!(*wait <= REDIAL_MAX))
                .sum::<Duration>()
                / 1_000
        };
        let means: Vec<_> = [0, 2, 4, 60].map(&mut mean).to_vec();
        assert!(means[0] < Duration::from_millis(120) && means.is_sorted(), "{means:?}");
        assert!(means[3] > Duration::from_secs(2), "{means:?}");
    }
}
