//! The load: plain WebSocket clients that know nothing of Evenkeel. Each connects through the gateway, sends a
//! numbered message about every second, expects it back, and comes back with full jitter when it is closed.
//!
//! In: how many there should be. Out: a [`Tally`]. Invariant: a client has one connection at a time, and every
//! message it sent is in the tally as echoed or not.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use evenkeel_model::{Instant, Rng};
use evenkeel_runtime::{Clock, Tasks};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::tally::{End, SessionId, Tally};

/// Time between two messages of a client, spread by ± 20 %.
const SAY_EACH: Duration = Duration::from_secs(1);
/// A client gives up a handshake after this: three servers tried, and the wait for credit.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// The first wait before coming back is up to this; it doubles with each failure.
const BACK_FIRST: Duration = Duration::from_millis(250);
/// It grows to this.
const BACK_MAX: Duration = Duration::from_secs(5);
/// How long a client waits for the last echoes, and for the answer to its Close, when it leaves.
const GOODBYE: Duration = Duration::from_secs(5);
/// An open connection that stays silent for so long with an echo due is broken.
const ECHO: Duration = Duration::from_secs(10);

/// What all clients share.
#[derive(Debug, Clone)]
pub(crate) struct Crowd {
    /// The gateway.
    pub(crate) gateway: SocketAddr,
    /// Clients with a lower number are wanted.
    pub(crate) wanted: watch::Receiver<u32>,
    /// The book.
    pub(crate) tally: Tally,
    /// The clock.
    pub(crate) clock: Clock,
    /// Where they run.
    pub(crate) tasks: Tasks,
}

impl Crowd {
    /// Starts clients as they are first wanted. Each then runs by itself, in step with how many are wanted.
    ///
    /// # Cancel safety
    /// Yes: clients that were started go on.
    pub(crate) async fn grow(mut self, seed: u64) {
        let mut seeds = Rng::new(seed);
        let mut started = 0;
        loop {
            let wanted = *self.wanted.borrow_and_update();
            while started < wanted {
                let client =
                    Client { number: started, crowd: self.clone(), rng: seeds.fork(u64::from(started)) };
                self.tasks.spawn("client", client.live());
                started += 1;
            }
            if self.wanted.changed().await.is_err() {
                return;
            }
        }
    }
}

struct Client {
    number: u32,
    crowd: Crowd,
    rng: Rng,
}

type Socket = WebSocketStream<TcpStream>;

impl Client {
    /// Until it is not wanted any more.
    async fn live(mut self) {
        let mut failures = 0;
        let mut before: Option<End> = None;
        let mut next = 0;
        while self.is_wanted() {
            let begun = self.crowd.clock.now();
            match timeout(HANDSHAKE, connect(self.crowd.gateway))
                .await
                .unwrap_or_else(|_| Err(String::from("timed out")))
            {
                Ok((socket, server)) => {
                    failures = 0;
                    let opened = self.crowd.clock.now();
                    let id = self.crowd.tally.opened(server, begun, opened, before.as_ref());
                    before = Some(self.talk(socket, id, &mut next).await);
                }
                Err(why) => {
                    failures += 1;
                    self.crowd.tally.failed(begun, self.crowd.clock.now(), why);
                }
            }
            if !matches!(before, Some(End::Left)) {
                self.wait_before_return(failures).await;
            }
        }
    }

    fn is_wanted(&self) -> bool {
        *self.crowd.wanted.borrow() > self.number
    }

    /// Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"): evenly in 0 to the bound.
    async fn wait_before_return(&mut self, failures: u32) {
        let bound = BACK_FIRST.saturating_mul(1 << failures.min(8)).min(BACK_MAX);
        let wait = bound.mul_f64(self.rng.unit());
        self.crowd.clock.sleep(wait).await;
    }

    /// One connection from its first message to its end.
    async fn talk(&mut self, socket: Socket, id: SessionId, next: &mut u64) -> End {
        let mut talk = Talk { socket, due: VecDeque::new(), last_sent: self.crowd.clock.now() };
        let first = SAY_EACH.mul_f64(self.rng.unit());
        let mut say_at = self.crowd.clock.now() + first;
        let mut wanted = self.crowd.wanted.clone();
        let end = loop {
            if *wanted.borrow_and_update() <= self.number {
                break self.leave(&mut talk, id).await;
            }
            let now = self.crowd.clock.now();
            if !talk.due.is_empty() && now.since(talk.last_sent) > ECHO {
                break End::Broken;
            }
            tokio::select! {
                message = talk.socket.next() => if let Some(end) = self.heard(&mut talk, message) { break end },
                () = self.crowd.clock.sleep_until(Some(say_at)) => {
                    say_at = self.crowd.clock.now() + self.rng.jitter(SAY_EACH, 0.2);
                    let text = format!("{}.{next}", self.number);
                    *next += 1;
                    self.crowd.tally.sent();
                    talk.due.push_back(text.clone());
                    talk.last_sent = self.crowd.clock.now();
                    if talk.socket.send(Message::text(text)).await.is_err() {
                        break self.rest(&mut talk).await;
                    }
                }
                // The sender gone means the end of the demo.
                changed = wanted.changed() => if changed.is_err() { break self.leave(&mut talk, id).await },
            }
        };
        let now = self.crowd.clock.now();
        self.crowd.tally.ended(id, end.clone(), now);
        if matches!(end, End::Closed { .. }) {
            // What was sent before the Close frame is already here; the library has answered the Close.
            let _ = timeout(GOODBYE, async { while let Some(Ok(_)) = talk.socket.next().await {} }).await;
        }
        self.crowd.tally.gone(id, u32::try_from(talk.due.len()).unwrap_or(u32::MAX));
        end
    }

    /// Takes one message; says how the connection ends, if it does.
    fn heard(&self, talk: &mut Talk, message: Option<Result<Message, Error>>) -> Option<End> {
        match message {
            Some(Ok(Message::Text(text))) => {
                if talk.due.front().is_some_and(|due| due == text.as_str()) {
                    talk.due.pop_front();
                    self.crowd.tally.echoed();
                } else {
                    self.crowd.tally.garbled();
                }
                None
            }
            Some(Ok(Message::Close(frame))) => Some(match frame {
                Some(frame) => End::Closed { code: frame.code.into(), reason: frame.reason.to_string() },
                None => End::Closed { code: 1005, reason: String::new() },
            }),
            Some(Ok(_)) => None,
            Some(Err(_)) | None => Some(End::Broken),
        }
    }

    /// What is still to be read after writing failed: a Close frame, as a rule.
    async fn rest(&self, talk: &mut Talk) -> End {
        let read = async {
            loop {
                let message = talk.socket.next().await;
                if let Some(end) = self.heard(talk, message) {
                    return end;
                }
            }
        };
        timeout(GOODBYE, read).await.unwrap_or(End::Broken)
    }

    /// Waits for the last echoes, then says goodbye with 1000.
    async fn leave(&self, talk: &mut Talk, id: SessionId) -> End {
        let deadline = self.crowd.clock.now() + GOODBYE;
        while !talk.due.is_empty() {
            tokio::select! {
                message = talk.socket.next() => if let Some(end) = self.heard(talk, message) { return end },
                () = self.crowd.clock.sleep_until(Some(deadline)) => break,
            }
        }
        self.crowd.tally.ended(id, End::Left, self.crowd.clock.now());
        let goodbye = async {
            let frame =
                tokio_tungstenite::tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() };
            if talk.socket.close(Some(frame)).await.is_ok() {
                while let Some(Ok(_)) = talk.socket.next().await {}
            }
        };
        let _ = timeout(GOODBYE, goodbye).await;
        End::Left
    }
}

struct Talk {
    socket: Socket,
    /// Sent and not echoed, in order.
    due: VecDeque<String>,
    last_sent: Instant,
}

/// One handshake: the socket, and the server's id as it says on the 101.
async fn connect(gateway: SocketAddr) -> Result<(Socket, String), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let request = format!("ws://{gateway}/demo").into_client_request().map_err(|error| text(&error))?;
    let stream = TcpStream::connect(gateway).await.map_err(|error| text(&error))?;
    stream.set_nodelay(true).map_err(|error| text(&error))?;
    // Thousands of clients in one process: small buffers.
    let config = WebSocketConfig::default().read_buffer_size(1_024).write_buffer_size(0);
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, answer)) => {
            let server = answer.headers().get("x-server").and_then(|id| id.to_str().ok());
            Ok((socket, server.unwrap_or("unknown").to_owned()))
        }
        Err(Error::Http(answer)) => Err(format!("answered {}", answer.status())),
        Err(error) => Err(text(&error)),
    }
}
