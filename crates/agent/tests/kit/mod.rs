//! The other ends of an agent, built from `docs/reference/agent.md` and `docs/reference/move.md` alone: a controller, a
//! client, and around the agent a server with an application.

#![allow(dead_code)] // Each test takes what it needs.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_agent::Handshake;
use evenkeel_model::{FleetId, Incarnation, Instant, ServerId};
use evenkeel_protocol::keys::{MasterKey, TokenKeys, live_jwks};
use evenkeel_protocol::token::{Audience, Cause, Claims, mint};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

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
        let sid = format!("s{}", self.minted + 1);
        self.assign_session(&sid, hello, path, after_s)
    }

    /// The same for this session.
    pub(crate) fn assign_session(&mut self, sid: &str, hello: &Value, path: &str, after_s: i64) -> String {
        self.minted += 1;
        let iat = (self.now.as_millis() / 1_000).checked_add_signed(after_s).unwrap();
        let audience = Self::audience(hello);
        let claims = Claims {
            aud: audience.clone(),
            iat,
            exp: iat + 30,
            jti: format!("t{}", self.minted),
            rid: format!("r{}", self.minted),
            sid: sid.to_owned(),
            path: path.to_owned(),
            org: None,
            cause: Cause::Start,
            caps: Vec::new(),
        };
        mint(self.tokens.signing(&audience, self.now), &claims).unwrap()
    }
}

/// One socket of a client that knows moves.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<TcpStream>,
    pub(crate) ctl: String,
}

impl Client {
    /// Around a socket that knows no moves.
    pub(crate) const fn plain(socket: WebSocketStream<TcpStream>) -> Self {
        Self { socket, ctl: String::new() }
    }

    /// Opens one; `query` is what the URL says besides.
    pub(crate) async fn dial(addr: SocketAddr, query: &str) -> Result<Self, Error> {
        // Chosen anew for each socket.
        static DIALS: AtomicU64 = AtomicU64::new(0);
        let number = DIALS.fetch_add(1, Ordering::Relaxed);
        let ctl = URL_SAFE_NO_PAD.encode([0xEE, number as u8].repeat(8));
        let url = format!("ws://{addr}/chat?room=7&_ekm={ctl}{query}");
        let stream = soon("a connection", TcpStream::connect(addr)).await.unwrap();
        let socket = soon("a handshake", tokio_tungstenite::client_async(url, stream)).await?.0;
        Ok(Self { socket, ctl })
    }

    /// Sends a frame.
    pub(crate) async fn say(&mut self, frame: Value) {
        let text = format!("\u{1e}ek1 {} {frame}", self.ctl);
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next text: a frame of ours, or a message as a JSON text.
    pub(crate) async fn next(&mut self) -> Value {
        match soon("a message", self.socket.next()).await {
            Some(Ok(Message::Text(text))) => {
                let frame = text.strip_prefix(&format!("\u{1e}ek1 {} ", self.ctl));
                frame.map_or_else(|| json!(text.as_str()), |frame| serde_json::from_str(frame).unwrap())
            }
            other => panic!("no text: {other:?}"),
        }
    }

    pub(crate) async fn heard(&mut self, op: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["op"], op, "{frame}");
        frame
    }

    pub(crate) async fn closed(mut self) -> (u16, String) {
        loop {
            match soon("a close", self.socket.next()).await {
                Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                    // Answered, so that the server sees a whole end.
                    let _ = self.socket.flush().await;
                    return (code.into(), reason.as_str().to_owned());
                }
                Some(Ok(Message::Text(text))) => panic!("still talking: {text}"),
                Some(Ok(_)) => {}
                other => panic!("no Close frame: {other:?}"),
            }
        }
    }
}

/// A new socket at a server, parked for this move of the session; `more` is what the URL says besides.
pub(crate) async fn park(addr: SocketAddr, sid: &str, moving: &Value, more: &str) -> (Client, Value) {
    let ticket = moving["ticket"].as_str().unwrap();
    let query = format!("&_ekc=move&_eks={sid}&_ekt={ticket}{more}");
    let mut client = Client::dial(addr, &query).await.unwrap();
    client.say(json!({"op": "park", "sid": sid, "mid": moving["mid"]})).await;
    let parked = client.heard("parked").await;
    assert_eq!(parked["mid"], moving["mid"]);
    (client, parked)
}
