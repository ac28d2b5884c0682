//! A chat server with plain tokio-tungstenite whose clients are moved between servers: who a client is and how much it
//! said goes along.
//!
//! ```sh
//! CHAT_ID=chat-1 CHAT_LISTEN=127.0.0.1:9001 cargo run -p evenkeel-agent --example tokio_tungstenite
//! ```

#![allow(clippy::disallowed_methods, clippy::result_large_err)] // What an example shows is the library's own way.

use std::env;
use std::error::Error;
use std::time::Duration;

use evenkeel_agent::{AgentConfig, AgentHandle, Event, Handshake, MovableSocket, NOTICE, Token, terminated};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

type Socket = MovableSocket<WebSocketStream<TcpStream>, Message>;

/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name, usual: &str| env::var(name).unwrap_or_else(|_| usual.into());
    let listener = TcpListener::bind(setting("CHAT_LISTEN", "127.0.0.1:9001")).await?;
    let addr = listener.local_addr()?;

    let mut config = AgentConfig::new(setting("CHAT_ID", "chat-1"), format!("ws://{addr}"));
    config.controllers = vec![setting("CHAT_NODE", "http://127.0.0.1:9900")];
    config.token = Token::File(setting("CHAT_TOKEN_FILE", "admin.token").into());
    config.moves = true;
    let agent = AgentHandle::start(config)?;

    println!("listening on ws://{addr}");
    let leaving = async {
        terminated().await?;
        // Twenty clients a second; handshakes are refused with 503 meanwhile.
        agent.leave(20.0, NOTICE + Duration::from_secs(5)).await;
        Ok::<_, std::io::Error>(())
    };
    tokio::select! {
        accepted = accept(&listener, &agent) => accepted?,
        left = leaving => left?,
        () = agent.finished() => {}
    }
    agent.stop().await;
    Ok(())
}

async fn accept(listener: &TcpListener, agent: &AgentHandle) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let agent = agent.clone();
        tokio::spawn(async move {
            if let Ok(Some(socket)) = timeout(HANDSHAKE_WITHIN, handshake(stream, &agent)).await {
                chat(socket).await;
            }
        });
    }
}

async fn handshake(stream: TcpStream, agent: &AgentHandle) -> Option<Socket> {
    let mut admitted = None;
    let check = |request: &Request, mut response: Response| {
        let handshake = Handshake::new(request.uri(), request.headers());
        let admission = agent.admit(&handshake).map_err(|refused| refused.response())?;
        let (name, conn) = admission.field();
        response.headers_mut().insert(name, conn);
        admitted = Some(admission);
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(stream, check).await.ok()?;
    Some(admitted?.socket(socket))
}

async fn chat(mut socket: Socket) {
    let (mut name, mut said) = (String::new(), 0);
    while let Some(event) = socket.next().await {
        match event {
            // A new client.
            Event::Open => {}
            // A client from another server, and what that one handed over.
            Event::Attach(state) => {
                let state: Value = serde_json::from_slice(&state).unwrap_or_default();
                name = state["name"].as_str().unwrap_or_default().to_owned();
                said = state["said"].as_u64().unwrap_or_default();
            }
            // The first message is the name.
            Event::Message(Message::Text(text)) if name.is_empty() => name = text.as_str().to_owned(),
            Event::Message(Message::Text(text)) => {
                said += 1;
                let answer = Message::text(format!("{name} #{said}: {text}"));
                if socket.send(answer).await.is_err() {
                    return;
                }
            }
            Event::Message(_) => {}
            // The client goes to another server.
            Event::Detach => {
                let state = json!({"name": name, "said": said}).to_string();
                if let Err(error) = socket.detach(state).await {
                    eprintln!("not handed over: {error}");
                }
            }
        }
    }
}
