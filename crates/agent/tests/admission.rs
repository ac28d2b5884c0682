//! Who gets into a server with the SDK, on real sockets: nobody whose assignment is not good, before the application
//! hears of them.

#![allow(clippy::disallowed_methods)] // A test may spawn.

mod kit;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_agent::{AdmitPolicy, AgentConfig, AgentHandle, Event, Handshake, Token};
use ring::hmac;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use kit::{Controller, Fleet, Link, soon, until};

/// A server whose application counts whom it hears of.
struct Server {
    agent: AgentHandle,
    addr: SocketAddr,
    heard_of: Arc<AtomicU32>,
}

impl Server {
    async fn start(controller: Option<&Controller>, admit: AdmitPolicy) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut config = AgentConfig::new("chat-1", format!("ws://{addr}"));
        config.controllers = controller.iter().map(|node| format!("http://{}", node.address())).collect();
        config.token = Token::Text("secret".into());
        config.admit = Some(admit);
        config.moves = true;
        let agent = AgentHandle::start(config).unwrap();
        let heard_of = Arc::new(AtomicU32::new(0));
        tokio::spawn(accept(listener, agent.clone(), Arc::clone(&heard_of)));
        Self { agent, addr, heard_of }
    }

    /// Status and body of the answer to a handshake; `None` where the connection just ends. The socket is kept in
    /// `open` where there is one.
    async fn ask(
        &self,
        target: &str,
        fields: &[(&str, &str)],
        open: &mut Vec<TcpStream>,
    ) -> Option<(u16, String)> {
        let mut stream = soon("a connection", TcpStream::connect(self.addr)).await.unwrap();
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n",
            self.addr
        );
        // Whoever refuses a request that is too long need not read it to its end.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let mut buffer = [0; 4_096];
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            match soon("an answer", stream.read(&mut buffer)).await {
                Ok(1..) if answer.is_empty() && buffer.starts_with(b"HTTP/1.1 101") => {
                    open.push(stream);
                    return Some((101, String::new()));
                }
                Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
                _ => return None,
            }
        }
        let _ = soon("the body", stream.read_to_end(&mut answer)).await;
        let text = String::from_utf8(answer).unwrap();
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text))
    }

    /// Reason of the refusal.
    async fn refused(&self, target: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let (status, text) = self.ask(target, fields, &mut Vec::new()).await.expect("an answer");
        let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(text.contains("\r\nevenkeel-draining: 1\r\n"), status == 503, "{text}");
        assert_eq!(text.contains("\r\nretry-after: 1\r\n"), status == 503, "{text}");
        (status, body["why"].as_str().unwrap().to_owned())
    }
}

async fn accept(listener: TcpListener, agent: AgentHandle, heard_of: Arc<AtomicU32>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (agent, heard_of) = (agent.clone(), Arc::clone(&heard_of));
        tokio::spawn(async move {
            let mut admitted = None;
            #[allow(clippy::result_large_err)] // The library's signature.
            let check = |request: &Request, response: Response| {
                let handshake = Handshake::new(request.uri(), request.headers());
                admitted = Some(agent.admit(&handshake).map_err(|refused| refused.response())?);
                Ok(response)
            };
            let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
            let mut socket = admitted.unwrap().socket(socket);
            while let Some(event) = socket.next().await {
                heard_of.fetch_add(u32::from(event == Event::Open), Ordering::Relaxed);
            }
        });
    }
}

/// Everything that is logged in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> Self {
        let log = Self::default();
        let to = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || to.clone())
            .init();
        log
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// The vectors of bad tokens, as of the life of this server: where a token was rightly signed under a live key, so is
/// what comes of it here.
struct Table {
    file: Value,
    was: String,
    is: String,
}

impl Table {
    fn new(hello: &Value) -> Self {
        let file: Value = serde_json::from_str(include_str!("../../../testdata/vectors/token.json")).unwrap();
        let was = format!("chat-1#{}", file["inc"]);
        Self { file, was, is: format!("chat-1#{}", hello["inc"]) }
    }

    fn of<'a>(&'a self, attempt: &'a Value, name: &str) -> &'a Value {
        attempt.get(name).unwrap_or(&self.file["ask"][name])
    }

    fn token(&self, attempt: &Value) -> String {
        let token = attempt.get("token").unwrap_or(attempt);
        match token {
            Value::String(text) => self.translated(text),
            long => long["text"].as_str().unwrap().repeat(long["times"].as_u64().unwrap() as usize),
        }
    }

    fn translated(&self, token: &str) -> String {
        let same = || token.to_owned();
        let [head, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { return same() };
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(claims) else { return same() };
        let Ok(text) = String::from_utf8(bytes) else { return same() };
        let claims_now = URL_SAFE_NO_PAD.encode(text.replace(&self.was, &self.is));
        let signer = self.signer(head, claims, signature);
        let signature = signer.map_or_else(
            || signature.to_owned(),
            |key| URL_SAFE_NO_PAD.encode(hmac::sign(&key, format!("{head}.{claims_now}").as_bytes())),
        );
        format!("{head}.{claims_now}.{signature}")
    }

    /// Whoever signed this, of the live keys.
    fn signer(&self, head: &str, claims: &str, signature: &str) -> Option<hmac::Key> {
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.file["keys"].as_array().unwrap().iter().find_map(|key| {
            let bytes = URL_SAFE_NO_PAD.decode(key["k"].as_str().unwrap()).unwrap();
            let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
            hmac::verify(&key, format!("{head}.{claims}").as_bytes(), &signature).is_ok().then_some(key)
        })
    }

    /// Sets the server's keys, and its clock to the time of this attempt.
    async fn set_clock(&self, link: &mut Link, attempt: &Value, back_ms: u64) {
        let now_ms = self.of(attempt, "now_ms").as_u64().unwrap() - back_ms;
        link.say(json!({"op": "keys", "now_ms": now_ms, "keys": self.file["keys"]})).await;
        // An older order is always answered with the one in force: by then the keys are there.
        for epoch in [1, 0] {
            link.say(json!({"op": "desired", "now_ms": now_ms, "epoch": epoch, "gen": 1, "lease_ms": 60_000,
                "state": "active", "target": 1_000, "moves_per_s": 0.0}))
                .await;
        }
        link.heard("applied").await;
    }
}

#[tokio::test]
async fn every_bad_token_is_refused_before_the_application_and_none_is_logged() {
    let log = Log::start();
    let controller = Controller::start("secret").await;
    let server = Server::start(Some(&controller), AdmitPolicy::Assigned).await;
    let mut link = Fleet::new().welcome(&controller).await;
    let table = Table::new(&link.hello);
    let (mut tried, mut tokens, mut open) = (0, Vec::new(), Vec::new());
    for vector in table.file["refuse"].as_array().unwrap() {
        let why = vector["why"].as_str().unwrap();
        let token = table.token(vector);
        // No field holds these, or not as they are; and the room of a whole server is another test's.
        if token.contains(|c: char| c.is_ascii_control() || c == ' ') || vector.get("replays").is_some() {
            continue;
        }
        let fields = |of: &Value| -> Vec<(&'static str, String)> {
            let origin = table.of(of, "origin").as_str().map(|origin| ("Origin", origin.to_owned()));
            let assignment = ("Evenkeel-Assignment", table.token(of));
            origin.into_iter().chain([assignment]).collect()
        };
        let borrowed = |fields: &[(&'static str, String)]| -> Vec<(&'static str, &'static str)> {
            fields.iter().map(|(name, value)| (*name, &*value.clone().leak())).collect()
        };
        let path = |of: &Value| format!("{}?room=1", table.of(of, "path").as_str().unwrap());
        for before in vector["before"].as_array().into_iter().flatten() {
            table.set_clock(&mut link, before, 0).await;
            server.ask(&path(before), &borrowed(&fields(before)), &mut open).await;
        }
        let heard_of = server.heard_of.load(Ordering::Relaxed);
        let was_open = open.len();
        // Those that are only good a moment later, or earlier, must not become so while they travel.
        let back_ms = if matches!(why, "not_yet" | "replayed") { 500 } else { 0 };
        table.set_clock(&mut link, vector, back_ms).await;
        let answer = server.ask(&path(vector), &borrowed(&fields(vector)), &mut open).await;
        assert_eq!(open.len(), was_open, "let in: {}", vector["name"]);
        match answer {
            Some((status, text)) if status != 400 => {
                assert_eq!(status, 401, "{}: {text}", vector["name"]);
                assert!(text.ends_with(&json!({"why": why}).to_string()), "{}: {text}", vector["name"]);
            }
            // The library itself does not take a field of that length or of such bytes.
            _ => assert!(token.len() > 100_000 || !token.is_ascii(), "{}", vector["name"]),
        }
        assert_eq!(server.heard_of.load(Ordering::Relaxed), heard_of, "{}", vector["name"]);
        tried += 1;
        tokens.push(token);
    }
    assert!(tried >= 80, "only {tried} of the table");
    assert_eq!(server.agent.connections() as usize, open.len());
    let log = log.text();
    assert!(log.contains("handshake refused"), "{log}");
    for part in tokens.iter().flat_map(|token| token.split('.')).filter(|part| part.len() > 20) {
        assert!(!log.contains(part), "logged: {part}");
    }
    assert!(!log.contains("room=1"), "a query was logged");
}

#[tokio::test]
async fn an_assignment_lets_in_once_by_field_or_query_and_its_placement_is_settled() {
    let mut fleet = Fleet::new();
    let controller = Controller::start("secret").await;
    let server = Server::start(Some(&controller), AdmitPolicy::Assigned).await;
    let mut link = fleet.welcome(&controller).await;
    let mut open = Vec::new();
    let token = fleet.assign(&link.hello, "/chat", 0);
    let (status, _) = server.ask(&format!("/chat?a=b&_ek={token}"), &[], &mut open).await.unwrap();
    assert_eq!(status, 101);
    assert_eq!(link.heard("event").await["events"], json!([{"rid": "r1", "state": "connected"}]));
    assert_eq!(server.refused(&format!("/chat?_ek={token}"), &[]).await, (401, "replayed".into()));
    assert_eq!(server.refused("/chat", &[("Evenkeel-Assignment", &token)]).await, (401, "replayed".into()));
    assert_eq!(server.refused("/chat", &[]).await, (401, "missing".into()));
    let twice = [fleet.assign(&link.hello, "/chat", 0), fleet.assign(&link.hello, "/chat", 0)];
    let fields = [("Evenkeel-Assignment", twice[0].as_str()), ("Evenkeel-Assignment", twice[1].as_str())];
    assert_eq!(server.refused("/chat", &fields).await, (401, "malformed".into()));
    // The field outranks the query, whoever wrote that.
    let (status, _) =
        server.ask("/chat?_ek=nonsense", &[("Evenkeel-Assignment", &twice[0])], &mut open).await.unwrap();
    assert_eq!(status, 101);
    until("both to be counted", || server.agent.connections() == 2).await;
    let report = link.heard_that("report", |report| report["connections"] == 2).await;
    assert_eq!((report["accepted_total"].as_u64(), report["refused_total"].as_u64()), (Some(2), Some(4)));

    // Let in, and gone before the handshake was over.
    let token = fleet.assign(&link.hello, "/chat", 0);
    let target = format!("/chat?_ek={token}");
    let handshake = Handshake { target: &target, host: "h", origin: None, assignment: None, conn: None };
    drop(server.agent.admit(&handshake).unwrap());
    link.heard_that("event", |event| event["events"][0] == json!({"rid": "r4", "state": "expired"})).await;
}

#[tokio::test]
async fn a_server_without_keys_sends_clients_elsewhere() {
    let controller = Controller::start("secret").await;
    let server = Server::start(Some(&controller), AdmitPolicy::Assigned).await;
    assert_eq!(server.refused("/", &[]).await, (503, "starting".into()));
    assert_eq!(server.refused("/?_ek=nonsense", &[]).await, (503, "starting".into()));
    let mut link = Fleet::new().welcome(&controller).await;
    assert_eq!(server.refused("/?_ek=nonsense", &[]).await, (401, "malformed".into()));
    // All keys are taken back.
    link.say(json!({"op": "keys", "now_ms": 1, "keys": []})).await;
    let mut why = String::new();
    while why != "starting" {
        (_, why) = server.refused("/", &[]).await;
    }
}

#[tokio::test]
async fn a_drained_server_takes_those_who_were_assigned_before_the_order_and_nobody_else() {
    for (admit, none) in [(AdmitPolicy::Assigned, 401), (AdmitPolicy::All, 101)] {
        let mut fleet = Fleet::new();
        let controller = Controller::start("secret").await;
        let server = Server::start(Some(&controller), admit).await;
        let mut link = fleet.welcome(&controller).await;
        let mut open = Vec::new();
        let (status, _) = server.ask("/chat", &[], &mut open).await.unwrap();
        assert_eq!(status, none);
        let earlier = fleet.assign(&link.hello, "/chat", -3);
        let now_ms = fleet.now.as_millis();
        link.say(json!({"op": "desired", "now_ms": now_ms, "epoch": 1, "gen": 1, "lease_ms": 60_000,
            "state": "draining", "target": 0, "moves_per_s": 0.0}))
            .await;
        link.heard("applied").await;
        // Only as old as the order: two seconds later, by the leeway still good.
        let later = fleet.assign(&link.hello, "/chat", 2);
        let ask = |token: String| [("Evenkeel-Assignment", token)];
        let [(name, token)] = ask(later);
        assert_eq!(server.refused("/chat", &[(name, &token)]).await, (503, "draining".into()));
        assert_eq!(server.refused("/chat", &[]).await, (503, "draining".into()));
        assert_eq!(server.refused("/chat?_ek=nonsense", &[]).await, (503, "draining".into()));
        let [(name, token)] = ask(earlier);
        // It comes to take a session over, which would have to go at once.
        let parks = "/chat?_ekc=move&_eks=s&_ekm=AAAAAAAAAAAAAAAAAAAAAA";
        let other = fleet.assign(&link.hello, "/chat", -3);
        assert_eq!(server.refused(parks, &[(name, &other)]).await, (503, "draining".into()));
        let (status, _) = server.ask("/chat", &[(name, &token)], &mut open).await.unwrap();
        assert_eq!(status, 101);
    }
}

#[tokio::test]
async fn where_everybody_is_admitted_foreign_web_pages_are_not() {
    let server = Server::start(None, AdmitPolicy::All).await;
    let mut open = Vec::new();
    let own = format!("http://{}", server.addr);
    for origin in [None, Some(own.as_str())] {
        let fields: Vec<_> = origin.map(|origin| ("Origin", origin)).into_iter().collect();
        assert_eq!(server.ask("/", &fields, &mut open).await.map(|(status, _)| status), Some(101));
    }
    for origin in ["https://evil.example.com", "null", "nonsense", ""] {
        assert_eq!(server.refused("/", &[("Origin", origin)]).await, (403, "origin".into()), "{origin:?}");
    }
    let twice = [("Origin", own.as_str()), ("Origin", own.as_str())];
    assert_eq!(server.refused("/", &twice).await, (403, "origin".into()));
}

#[tokio::test]
async fn only_assigned_clients_without_anybody_to_assign_them_is_a_mistake() {
    let mut config = AgentConfig::new("chat-1", "ws://127.0.0.1:9001");
    config.admit = Some(AdmitPolicy::Assigned);
    assert_eq!(AgentHandle::start(config).unwrap_err().reason(), "nobody_assigns");
}
