//! A chat server with axum whose clients are moved between servers: who a client is and how much it said goes along.
//!
//! ```sh
//! CHAT_ID=chat-1 CHAT_LISTEN=127.0.0.1:9001 cargo run -p evenkeel-agent --features axum --example axum
//! ```

use std::env;
use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use evenkeel_agent::{AgentConfig, AgentHandle, Event, Handshake, MovableSocket, NOTICE, Token, terminated};
use serde_json::{Value, json};
use tokio::net::TcpListener;

type Socket = MovableSocket<WebSocket, Message>;

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
    let app = Router::new().route("/chat", any(upgrade)).with_state(agent.clone());
    let leaving = async {
        terminated().await?;
        // Twenty clients a second; handshakes are refused with 503 meanwhile.
        agent.leave(20.0, NOTICE + Duration::from_secs(5)).await;
        Ok::<_, std::io::Error>(())
    };
    tokio::select! {
        served = axum::serve(listener, app).into_future() => served?,
        left = leaving => left?,
        () = agent.finished() => {}
    }
    agent.stop().await;
    Ok(())
}

async fn upgrade(
    State(agent): State<AgentHandle>,
    uri: Uri,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    match agent.admit(&Handshake::new(&uri, &headers)) {
        Ok(admission) => {
            let field = admission.field();
            ([field], upgrade.on_upgrade(|socket| chat(admission.socket(socket)))).into_response()
        }
        Err(refused) => refused.response(),
    }
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
