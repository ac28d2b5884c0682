//! Talks to an admin listener, as a script would.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest time one request may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// An admin listener and the token for it.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) addr: SocketAddr,
    pub(crate) token: Option<String>,
}

/// One entry of `GET /v1/servers`.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub(crate) struct Server {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) health: String,
    pub(crate) connections: u64,
}

impl Admin {
    /// Sends one request; gives status and body.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        self.ask_raw(method, path, body.map(|body| body.to_string())).await
    }

    /// The same with a body that may be no JSON.
    pub(crate) async fn ask_raw(&self, method: Method, path: &str, body: Option<String>) -> (u16, Value) {
        let host = self.addr.to_string();
        let sent = self.send(method, path, body, &host);
        let (status, text) = timeout(DEADLINE, sent).await.expect("an answer in time").expect("an answer");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The same with a `Host` field of one's own; an error where nothing answers.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        host: &str,
    ) -> anyhow::Result<(u16, String)> {
        let stream = TcpStream::connect(self.addr).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder().method(method).uri(path).header("host", host);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let exchange = async {
            let answer = sender.send_request(request.body(body)?).await?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        // The connection's own future must run beside the exchange and ends after it.
        tokio::pin!(connection);
        tokio::pin!(exchange);
        let mut over = false;
        loop {
            tokio::select! {
                answer = &mut exchange => return answer,
                ended = &mut connection, if !over => {
                    over = true;
                    ended?;
                }
            }
        }
    }

    /// `GET`, must answer 200.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// `POST`, must answer 200.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(Method::POST, path, Some(body)).await;
        assert_eq!(status, 200, "POST {path}: {answer}");
        answer
    }

    /// All servers.
    pub(crate) async fn servers(&self) -> Vec<Server> {
        serde_json::from_value(self.get("/v1/servers").await).expect("an array of servers")
    }

    /// One server, if it is known.
    pub(crate) async fn server(&self, id: &str) -> Option<Server> {
        self.servers().await.into_iter().find(|server| server.id == id)
    }

    /// Whether `/readyz` answers 200.
    pub(crate) async fn ready(&self) -> bool {
        let host = self.addr.to_string();
        let asked = self.send(Method::GET, "/readyz", None, &host);
        matches!(timeout(DEADLINE, asked).await, Ok(Ok((200, _))))
    }
}
