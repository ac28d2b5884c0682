//! What clients are told on routes of kind `http`: a server's answer, its head written anew, piece by piece; and answers
//! of our own.
//!
//! Invariants: hop-by-hop fields and ours do not pass; the next piece is read when the client has taken the one before.

use evenkeel_protocol::engine_io::{CLOSE_PACKET, UNKNOWN_SID};
use evenkeel_protocol::handshake::{After, Answer, answer_with};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH};
use hyper::http::response::Parts;
use tokio::net::TcpStream;

use crate::connection::write_all;
use crate::shell::Shell;

/// What a client is told whose session nobody has: it begins anew at once.
pub(crate) fn unknown_session() -> Answer {
    let fields = "Content-Type: application/json\r\nCache-Control: no-store\r\n";
    Answer {
        status: 400,
        reason: "unknown_session",
        bytes: answer_with(400, fields, UNKNOWN_SID, After::Closes),
    }
}

pub(super) fn own_answer(status: u16, reason: &'static str, fields: &str, text: &str) -> Answer {
    let fields = format!("{fields}Content-Type: text/plain\r\n");
    Answer { status, reason, bytes: answer_with(status, &fields, &format!("{text}\n"), After::Closes) }
}

/// What ends a session whose server empties: the client connects anew.
pub(super) fn left() -> Answer {
    let fields = "Content-Type: text/plain; charset=UTF-8\r\nCache-Control: no-store\r\n";
    Answer { status: 200, reason: "left", bytes: answer_with(200, fields, CLOSE_PACKET, After::Closes) }
}

/// The head of a server's answer, written anew.
pub(super) fn head_of(parts: &Parts, length: Option<u64>, (after, idle): (After, u64)) -> Vec<u8> {
    let phrase = parts.status.canonical_reason().unwrap_or("Answered");
    let mut head = format!("HTTP/1.1 {} {phrase}\r\n", parts.status.as_u16()).into_bytes();
    let nominated: Vec<String> = (parts.headers.get_all(CONNECTION).iter())
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    for (name, value) in &parts.headers {
        let name = name.as_str();
        if !is_hop_by_hop(name) && !nominated.iter().any(|nominated| nominated == name) {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    match length {
        _ if matches!(parts.status.as_u16(), 204 | 304) => {}
        Some(length) => head.extend_from_slice(format!("{CONTENT_LENGTH}: {length}\r\n").as_bytes()),
        None => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    // Clients that read it do not use the connection in its last second.
    let last = match after {
        After::Closes => "connection: close\r\n\r\n".to_owned(),
        After::Stays => format!("keep-alive: timeout={}\r\n\r\n", idle - 1),
    };
    head.extend_from_slice(last.as_bytes());
    head
}

/// Fields between a server and us (RFC 9110 §7.6.1), its body's length, which we say ourselves, and ours.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-connection"
            | "proxy-authenticate"
            | "content-length"
    ) || name.starts_with("evenkeel-")
}

/// An answer on its way.
pub(super) struct Answering {
    pub(super) head: Vec<u8>,
    /// What was read of its body already.
    pub(super) first: Vec<u8>,
    pub(super) body: Incoming,
    pub(super) chunked: bool,
}

/// Writes an answer piece by piece: the next one is read when the client has taken the one before.
pub(super) async fn send(
    shell: &Shell,
    client: &TcpStream,
    it: Answering,
    mut seen: impl FnMut(&[u8]),
) -> Result<(), &'static str> {
    let Answering { mut head, first, mut body, chunked } = it;
    seen(&first);
    head.extend_from_slice(&first);
    write(shell, client, &head).await?;
    loop {
        let frame = tokio::select! { biased;
            frame = body.frame() => frame,
            () = shell.clock.sleep(shell.config.limits.long_poll) => return Err("server_late"),
        };
        let Some(frame) = frame else { break };
        let Ok(frame) = frame else { return Err("server_closed") };
        let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) else { continue };
        seen(data);
        if chunked {
            write(shell, client, format!("{:x}\r\n", data.len()).as_bytes()).await?;
            write(shell, client, data).await?;
            write(shell, client, b"\r\n").await?;
        } else {
            write(shell, client, data).await?;
        }
    }
    if chunked { write(shell, client, b"0\r\n\r\n").await } else { Ok(()) }
}

async fn write(shell: &Shell, client: &TcpStream, bytes: &[u8]) -> Result<(), &'static str> {
    tokio::select! { biased;
        written = write_all(client, bytes) => written.map_err(|_| "client_gone"),
        () = shell.clock.sleep(shell.config.limits.tunnel.write_deadline) => Err("write_deadline"),
    }
}
