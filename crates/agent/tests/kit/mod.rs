//! The other ends of an agent, built from `docs/reference/agent.md` and `docs/reference/move.md` alone: a controller, a
//! client, and around the agent a server with an application.

#![allow(dead_code)] // Each test takes what it needs.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use evenkeel_agent::Handshake;
use evenkeel_model::{FleetId, Incarnation, Instant, ServerId};
use evenkeel_protocol::keys::{MasterKey, TokenKeys, live_jwks};
use evenkeel_protocol::token::{Audience, Cause, Claims, mint};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A handshake without anything of ours.
pub(crate) const ANYBODY: Handshake<'_> =
    Handshake { target: "/", host: "127.0.0.1", origin: None, assignment: None, conn: None };

/// Waits for `future`, but not forever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// Waits until `holds`.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            // sleep: between two looks at the condition
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A controller's agent endpoint.
pub(crate) struct Controller {
    pub(crate) listener: TcpListener,
    pub(crate) token: &'static str,
}

/// One link at the controller's end.
pub(crate) struct Link {
    pub(crate) socket: WebSocketStream<TcpStream>,
    pub(crate) hello: Value,
}

impl Controller {
    pub(crate) async fn start(token: &'static str) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), token }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The next dial: a socket, or `None` if it was refused with 401.
    pub(crate) async fn dialled(&self) -> Option<WebSocketStream<TcpStream>> {
        let (stream, _) = soon("a dial", self.listener.accept()).await.unwrap();
        let expected = format!("Bearer {}", self.token);
        #[allow(clippy::result_large_err)] // The library's signature.
        let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.uri().path(), "/v1/agent");
            let sent = request.headers().get("authorization").map(|value| value.to_str().unwrap());
            if sent == Some(&expected) {
                return Ok(response);
            }
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = StatusCode::UNAUTHORIZED;
            Err(refusal)
        };
        soon("a handshake", tokio_tungstenite::accept_hdr_async(stream, check)).await.ok()
    }

    /// Waits for a link and its hello.
    pub(crate) async fn linked(&self) -> Link {
        loop {
            if let Some(socket) = self.dialled().await {
                let mut link = Link { socket, hello: Value::Null };
                link.hello = link.heard("hello").await;
                return link;
            }
        }
    }

    /// The same, and answers the hello.
    pub(crate) async fn welcomed(&self) -> Link {
        let mut link = self.linked().await;
        link.say(json!({"op": "welcome", "now_ms": 1, "report_ms": 100, "keys": []})).await;
        link
    }
}

impl Link {
    pub(crate) async fn say(&mut self, message: Value) {
        soon("a send", self.socket.send(Message::text(message.to_string()))).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Value {
        loop {
            match soon("a message", self.socket.next()).await.expect("an open link").expect("a whole link") {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The next message of that name; others are passed over.
    pub(crate) async fn heard(&mut self, op: &str) -> Value {
        self.heard_that(op, |_| true).await
    }

    pub(crate) async fn heard_that(&mut self, op: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.next().await;
            if message["op"] == op && fits(&message) {
                return message;
            }
        }
    }

    pub(crate) async fn order(
        &mut self,
        generation: u64,
        state: &str,
        target: u32,
        pace: f64,
        lease_ms: u64,
    ) {
        self.say(json!({"op": "desired", "now_ms": 1, "epoch": 1, "gen": generation, "lease_ms": lease_ms, "state": state,
            "target": target, "moves_per_s": pace, "select": "oldest"}))
            .await;
    }
}

/// The fleet that everybody here belongs to, its master key, and what the node's clock says.
pub(crate) struct Fleet {
    master: MasterKey,
    pub(crate) now: Instant,
    tokens: TokenKeys,
    minted: u64,
}

impl Fleet {
    /// A fleet whose nodes go by a time of their own.
    pub(crate) fn new() -> Self {
        let master = MasterKey::from_bytes([7; 32]);
        Self {
            tokens: TokenKeys::new(master.clone()),
            master,
            now: Instant::from_millis(1_764_072_000_250),
            minted: 0,
        }
    }

    fn audience(hello: &Value) -> Audience {
        Audience {
            server: ServerId::new(hello["id"].as_str().unwrap()).unwrap(),
            inc: Incarnation(hello["inc"].as_u64().unwrap()),
        }
    }

    /// The live keys of the server that said this.
    pub(crate) fn keys(&self, hello: &Value) -> Value {
        let fleet = FleetId::new("chat").unwrap();
        live_jwks(&self.master, &fleet, &Self::audience(hello), self.now)
            .iter()
            .map(|key| json!({"kty": "oct", "kid": key.kid, "alg": key.alg, "k": key.k}))
            .collect()
    }

    /// Waits for a server's hello and welcomes it with its keys.
    pub(crate) async fn welcome(&self, controller: &Controller) -> Link {
        let mut link = controller.linked().await;
        let keys = self.keys(&link.hello);
        let now_ms = self.now.as_millis();
        link.say(json!({"op": "welcome", "now_ms": now_ms, "report_ms": 100, "keys": keys})).await;
        link.heard("report").await;
        link
    }

    /// An assignment for the server that said this, minted so many seconds from now.
    pub(crate) fn assign(&mut self, hello: &Value, path: &str, after_s: i64) -> String {
        self.minted += 1;
        let iat = (self.now.as_millis() / 1_000).checked_add_signed(after_s).unwrap();
        let audience = Self::audience(hello);
        let claims = Claims {
            aud: audience.clone(),
            iat,
            exp: iat + 30,
            jti: format!("t{}", self.minted),
            rid: format!("r{}", self.minted),
            sid: format!("s{}", self.minted),
            path: path.to_owned(),
            org: None,
            cause: Cause::Start,
            caps: Vec::new(),
        };
        mint(self.tokens.signing(&audience, self.now), &claims).unwrap()
    }
}
