//! One HTTP question to the gateway, with a deadline and a bounded answer.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::clock::spawn;
use crate::config::Place;

/// Longest wait for an answer.
const WITHIN: Duration = Duration::from_secs(10);
/// Longest answer: a URL with its token, alternatives and a ticket, several times over.
const ANSWER_MAX: usize = 64 * 1024;

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Posts JSON. `None`: nobody could be asked, or what came back is no usable answer.
pub(crate) async fn post(to: &Place, path: &str, origin: Option<&str>, body: String) -> Option<Answer> {
    timeout(WITHIN, exchange(to, path, origin, body)).await.ok().flatten()
}

async fn exchange(to: &Place, path: &str, origin: Option<&str>, body: String) -> Option<Answer> {
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    spawn(async move {
        // Ends with the sender; its errors are seen there.
        let _ = connection.await;
    });
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, &to.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(origin) = origin {
        request = request.header(header::ORIGIN, origin);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).ok()?).await.ok()?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.ok()?.to_bytes();
    Some(Answer { status, body })
}
