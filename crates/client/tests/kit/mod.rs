//! A server with the dialogue of docs/reference/move.md and a gateway that negotiates, both as plain as can be and
//! without any code of ours.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

#[allow(clippy::disallowed_methods)] // Tests measure what they promise.
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[allow(clippy::disallowed_methods)] // As above.
fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Move,
    Break,
}

struct Shared {
    name: &'static str,
    connections: AtomicUsize,
    refuse: AtomicU16,
    acts: broadcast::Sender<Act>,
}

pub(crate) struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (acts, _) = broadcast::channel(8);
        let shared =
            Arc::new(Shared { name, connections: AtomicUsize::new(0), refuse: AtomicU16::new(0), acts });
        let server = Self { addr, shared: Arc::clone(&shared) };
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                spawn(async move { shared.serve(stream).await });
            }
        });
        server
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("ws://{}{target}", self.addr)
    }

    /// Connections that own a session.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn move_all(&self) {
        self.shared.acts.send(Act::Move).unwrap();
    }

    pub(crate) fn break_all(&self) {
        self.shared.acts.send(Act::Break).unwrap();
    }

    pub(crate) fn refuse_all(&self, status: u16) {
        self.shared.refuse.store(status, Ordering::SeqCst);
    }
}

fn field(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

impl Shared {
    #[allow(clippy::result_large_err)] // The library's signature.
    async fn serve(&self, stream: TcpStream) {
        let mut first = [0; 5];
        if stream.peek(&mut first).await.is_ok() && &first == b"POST " {
            return no_post(stream).await;
        }
        let mut acts = self.acts.subscribe();
        let mut query = String::new();
        let check = |request: &Request, response: Response| {
            query = request.uri().query().unwrap_or_default().to_owned();
            match self.refuse.load(Ordering::SeqCst) {
                0 => Ok(response),
                status => {
                    let mut refusal = ErrorResponse::new(None);
                    *refusal.status_mut() = status.try_into().unwrap();
                    Err(refusal)
                }
            }
        };
        let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
        let ctl = field(&query, "_ekm").expect("every URL says _ekm");
        assert_eq!(ctl.len(), 22);
        let frame = |fields: Value| Message::text(format!("\u{1e}ek1 {ctl} {fields}"));
        let read = |message: &Message| {
            let text = message.to_text().ok()?.strip_prefix(&format!("\u{1e}ek1 {ctl} "))?;
            serde_json::from_str::<Value>(text).ok()
        };
        if field(&query, "_ekc").as_deref() == Some("move") {
            let park = read(&socket.next().await.unwrap().unwrap()).expect("park comes first");
            assert_eq!(
                (&park["op"], park["sid"].as_str()),
                (&json!("park"), field(&query, "_eks").as_deref())
            );
            assert_eq!(field(&query, "_ekt").as_deref(), Some("ticket-of-a"));
            let at = format!("{}#1", self.name);
            socket.send(frame(json!({"op": "parked", "mid": park["mid"], "at": at}))).await.unwrap();
            let Some(Ok(message)) = socket.next().await else { return };
            let resume = read(&message).expect("resume comes next");
            assert_eq!((&resume["op"], &resume["state"]), (&json!("resume"), &json!("sealed")));
            socket.send(frame(json!({"op": "resumed", "mid": resume["mid"]}))).await.unwrap();
        }
        self.connections.fetch_add(1, Ordering::SeqCst);
        loop {
            let message = tokio::select! {
                act = acts.recv() => match act.unwrap() {
                    Act::Break => break,
                    Act::Move => {
                        let ticket = format!("ticket-of-{}", self.name);
                        let notice = json!({"op": "move", "mid": "m1", "ticket": ticket, "by_ms": 5_000, "why": "drain"});
                        socket.send(frame(notice)).await.unwrap();
                        continue;
                    }
                },
                message = socket.next() => match message {
                    Some(Ok(message)) => message,
                    Some(Err(_)) | None => break,
                },
            };
            match read(&message) {
                Some(cut) if cut["op"] == "cut" => {
                    assert_eq!(cut["at"], "b#1");
                    socket
                        .send(frame(json!({"op": "done", "mid": cut["mid"], "state": "sealed"})))
                        .await
                        .unwrap();
                    let goodbye = CloseFrame { code: 1012.into(), reason: "ek:moved".into() };
                    socket.close(Some(goodbye)).await.unwrap();
                    self.connections.fetch_sub(1, Ordering::SeqCst);
                    while let Some(Ok(_)) = socket.next().await {}
                    return;
                }
                Some(_) => {}
                None if !message.is_text() && !message.is_binary() => {}
                None if socket.send(message).await.is_ok() => {}
                None => break,
            }
        }
        self.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What most servers say.
async fn no_post(mut stream: TcpStream) {
    read_post(&mut stream).await;
    let _ = stream.write_all(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
}

/// What a gateway answers.
#[derive(Clone)]
pub(crate) struct Says {
    status: u16,
    body: Value,
}

impl Says {
    pub(crate) fn assign(server: &Server) -> Self {
        let url = url(server);
        Self {
            status: 200,
            body: json!({"v": 1, "url": url, "connect_ms": 5_000, "ticket": "session", "alt": [], "proxy": null}),
        }
    }

    pub(crate) fn or(mut self, server: &Server) -> Self {
        self.body["alt"] = json!([{"url": url(server)}]);
        self
    }

    pub(crate) fn refuse(status: u16, wait_ms: u64, window_ms: u64) -> Self {
        let retry = json!({"wait_ms": wait_ms, "window_ms": window_ms});
        Self { status, body: json!({"retry": retry, "why": "no_credit"}) }
    }
}

/// A token whose claims name the server; nobody here checks it.
fn url(server: &Server) -> String {
    // {"alg":"HS256","typ":"JWT","kid":"1"} and {"aud":"a#1"} or {"aud":"b#1"}
    let claims = if server.shared.name == "a" { "eyJhdWQiOiJhIzEifQ" } else { "eyJhdWQiOiJiIzEifQ" };
    server.url(&format!("/chat?room=7&_ek=eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6IjEifQ.{claims}.AA"))
}

pub(crate) struct Gateway {
    addr: SocketAddr,
    says: Arc<Mutex<Option<Says>>>,
    asked: Arc<Mutex<Vec<Value>>>,
    heard: Arc<tokio::sync::Notify>,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Self {
            addr: listener.local_addr().unwrap(),
            says: Arc::default(),
            asked: Arc::default(),
            heard: Arc::default(),
        };
        let (says, asked, heard) =
            (Arc::clone(&gateway.says), Arc::clone(&gateway.asked), Arc::clone(&gateway.heard));
        spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(body) = read_post(&mut stream).await else { continue };
                asked.lock().unwrap().push(body);
                let Says { status, body } = says.lock().unwrap().clone().unwrap();
                let text = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                heard.notify_one();
            }
        });
        gateway
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("ws://{}{target}", self.addr)
    }

    pub(crate) fn says(&self, says: Says) {
        *self.says.lock().unwrap() = Some(says);
    }

    pub(crate) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until it answered so many questions.
    pub(crate) async fn await_asked(&self, count: usize, within: Duration) {
        let answered = async {
            while self.asked.lock().unwrap().len() < count {
                self.heard.notified().await;
            }
        };
        tokio::time::timeout(within, answered).await.expect("asked in time");
    }
}

async fn read_post(stream: &mut TcpStream) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.ok().filter(|length| *length > 0)?;
        bytes.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("POST /.well-known/evenkeel/negotiate HTTP/1.1\r\n"), "{head}");
        if let Ok(question) = serde_json::from_str(body) {
            return Some(question);
        }
    }
}
