//! `evenkeel echo` as a process of its own, on real sockets.

use std::future::Future;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::Response;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

const PATIENCE: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<TcpStream>;

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// A running echo server; killed when dropped.
struct Echo {
    process: Child,
    addr: SocketAddr,
}

impl Echo {
    async fn start(more: &[&str]) -> Self {
        let mut process = command(&["--listen", "127.0.0.1:0"]).args(more).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = soon("the listening line", lines.next_line()).await.unwrap().unwrap();
        let rest = line.strip_prefix("evenkeel echo: listening on ws://").expect(&line);
        let addr = rest.split(' ').next().unwrap().parse().unwrap();
        Self { process, addr }
    }

    async fn connect(&self, path: &str) -> Result<Socket, Error> {
        let stream = soon("a connection", TcpStream::connect(self.addr)).await.unwrap();
        let url = format!("ws://{}{path}", self.addr);
        soon("a handshake", client_async(url, stream)).await.map(|(socket, _)| socket)
    }

    async fn refused(&self) -> Response<Option<Vec<u8>>> {
        match self.connect("/").await {
            Err(Error::Http(response)) => *response,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn signal(&self, name: &str) {
        let pid = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().await.unwrap().success());
    }

    async fn exit_code(mut self) -> Option<i32> {
        soon("the end", self.process.wait()).await.unwrap().code()
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.arg("echo").args(args).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// The Close frame that ends `socket`.
async fn closed(mut socket: Socket) -> CloseFrame {
    loop {
        match soon("a close", socket.next()).await {
            Some(Ok(Message::Close(frame))) => return frame.expect("a code"),
            Some(Ok(_)) => {}
            other => panic!("no Close frame: {other:?}"),
        }
    }
}

#[tokio::test]
async fn text_binary_and_fragments_come_back_unchanged_on_every_path() {
    let echo = Echo::start(&[]).await;
    for path in ["/", "/chat/room?a=b", "/%F0%9F%9A%A2"] {
        let mut socket = echo.connect(path).await.unwrap();
        let big = vec![0xA5; 300_000];
        for message in [Message::text("ahoi ⚓"), Message::text(""), Message::binary(big)] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(soon("an echo", socket.next()).await.unwrap().unwrap(), message);
        }
        let first = Frame::message("two ", OpCode::Data(Data::Text), false);
        let last = Frame::message("parts", OpCode::Data(Data::Continue), true);
        socket.send(Message::Frame(first)).await.unwrap();
        socket.send(Message::Ping("?".into())).await.unwrap();
        socket.send(Message::Frame(last)).await.unwrap();
        assert_eq!(soon("a pong", socket.next()).await.unwrap().unwrap(), Message::Pong("?".into()));
        assert_eq!(soon("an echo", socket.next()).await.unwrap().unwrap(), Message::text("two parts"));
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    }
}

#[tokio::test]
async fn a_signal_closes_every_connection_with_1012_and_ends_with_success() {
    for name in ["TERM", "INT"] {
        let echo = Echo::start(&["--id", "a"]).await;
        let mut sockets = Vec::new();
        for _ in 0..50 {
            sockets.push(echo.connect("/").await.unwrap());
        }
        echo.signal(name).await;
        for socket in sockets {
            let frame = closed(socket).await;
            assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1012, "ek:stopped"));
        }
        assert_eq!(echo.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn a_joined_server_reports_refuses_while_draining_and_ends_when_stopped() {
    let controller = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = format!("http://{}", controller.local_addr().unwrap());
    let echo = Echo::start(&["--id", "a", "--join", &admin, "--admit", "all", "--capacity", "7"]).await;
    let (stream, _) = soon("a dial", controller.accept()).await.unwrap();
    let mut link = soon("a link", accept_async(stream)).await.unwrap();
    let hello = heard(&mut link, "hello").await;
    assert_eq!((hello["id"].as_str(), hello["capacity"].as_u64()), (Some("a"), Some(7)));
    assert_eq!(hello["url"], format!("ws://{}", echo.addr));
    say(&mut link, json!({"op": "welcome", "now_ms": 1, "report_ms": 100, "keys": []})).await;

    let stays = echo.connect("/").await.unwrap();
    while heard(&mut link, "report").await["connections"] != 1 {}
    let order = |generation: u64, state: &str, pace: u64| {
        json!({"op": "desired", "now_ms": 1, "epoch": 1, "gen": generation, "lease_ms": 60_000, "state": state, "target": 0,
               "moves_per_s": pace, "select": "idle"})
    };
    say(&mut link, order(1, "draining", 0)).await;
    heard(&mut link, "applied").await;
    let refusal = echo.refused().await;
    assert_eq!(refusal.status(), 503);
    assert_eq!(refusal.headers()["evenkeel-draining"], "1");
    assert!(refusal.headers().contains_key("retry-after"));

    say(&mut link, order(2, "draining", 10)).await;
    let frame = closed(stays).await;
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1012, "ek:draining"));
    assert_eq!(heard(&mut link, "drained").await["gen"], 2);
    say(&mut link, order(3, "stopped", 0)).await;
    assert_eq!(echo.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_joined_server_admits_only_assigned_clients_unless_told_otherwise() {
    let controller = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = format!("http://{}", controller.local_addr().unwrap());
    let echo = Echo::start(&["--id", "a", "--join", &admin]).await;
    assert_eq!(echo.refused().await.status(), 503, "nobody brought keys yet");
    let (stream, _) = soon("a dial", controller.accept()).await.unwrap();
    let mut link = soon("a link", accept_async(stream)).await.unwrap();
    heard(&mut link, "hello").await;
    let key = json!({"kty": "oct", "kid": "1", "alg": "HS256", "k": "A".repeat(43)});
    say(&mut link, json!({"op": "welcome", "now_ms": 1, "report_ms": 100, "keys": [key]})).await;
    heard(&mut link, "report").await;
    let refusal = echo.refused().await;
    assert_eq!(refusal.status(), 401);
    assert_eq!(refusal.body().as_deref(), Some(br#"{"why":"missing"}"#.as_slice()));
}

#[tokio::test]
async fn a_sinkhole_takes_the_handshake_and_nothing_else() {
    let echo = Echo::start(&["--close-at-once"]).await;
    let mut socket = echo.connect("/").await.unwrap();
    assert!(!matches!(soon("the end", socket.next()).await, Some(Ok(Message::Text(_) | Message::Binary(_)))));
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let output = command(&["--listen", &addr]).stderr(Stdio::piped()).output();
    let output = soon("the end", output).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(&addr) && text.contains("--listen"), "{text}");
}

async fn say(link: &mut Socket, message: Value) {
    soon("a send", link.send(Message::text(message.to_string()))).await.unwrap();
}

async fn heard(link: &mut Socket, op: &str) -> Value {
    loop {
        if let Message::Text(text) = soon(op, link.next()).await.expect("an open link").unwrap() {
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["op"] == op {
                return message;
            }
        }
    }
}
