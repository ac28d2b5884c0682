//! Clients that go from one server with the SDK to another, on real sockets. The client is written from
//! `docs/reference/move.md` alone.

#![allow(clippy::disallowed_methods)] // A test may spawn.

mod kit;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use evenkeel_agent::{
    AdmitPolicy, AgentConfig, AgentHandle, DetachError, Event, Handshake, MovableSocket, Token,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};

use kit::{Client, Controller, Fleet, Link, park, soon, until};

/// A server whose application numbers what it sends, and hands the number and all that it got over.
struct Server {
    agent: AgentHandle,
    addr: SocketAddr,
    controller: Controller,
    link: Link,
    /// What the application did, one word each.
    did: mpsc::Receiver<String>,
}

impl Server {
    async fn start(fleet: &Fleet, id: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let controller = Controller::start("secret").await;
        let mut config = AgentConfig::new(id, format!("ws://{addr}"));
        config.controllers = vec![format!("http://{}", controller.address())];
        config.token = Token::Text("secret".into());
        config.moves = true;
        config.admit = Some(AdmitPolicy::All);
        let agent = AgentHandle::start(config).unwrap();
        let (sender, did) = mpsc::channel(1_000);
        tokio::spawn(accept(listener, agent.clone(), sender));
        let link = fleet.welcome(&controller).await;
        assert_eq!(link.hello["caps"], json!(["move"]));
        Self { agent, addr, controller, link, did }
    }

    async fn order(&mut self, fleet: &Fleet, generation: u64, state: &str, target: u32, pace: f64) {
        self.link
            .say(json!({"op": "desired", "now_ms": fleet.now.as_millis(), "epoch": 1, "gen": generation,
                "lease_ms": 60_000, "state": state, "target": target, "moves_per_s": pace, "select": "oldest"}))
            .await;
    }

    /// The next word of the application.
    async fn did(&mut self) -> String {
        soon("the application", self.did.recv()).await.unwrap()
    }
}

async fn accept(listener: TcpListener, agent: AgentHandle, did: mpsc::Sender<String>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (agent, did) = (agent.clone(), did.clone());
        tokio::spawn(async move {
            let mut admitted = None;
            #[allow(clippy::result_large_err)] // The library's signature.
            let check = |request: &Request, response: Response| {
                let handshake = Handshake::new(request.uri(), request.headers());
                admitted = Some(agent.admit(&handshake).map_err(|refused| refused.response())?);
                Ok(response)
            };
            let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
            serve(admitted.unwrap().socket(socket), did).await;
        });
    }
}

async fn serve(mut socket: MovableSocket<WebSocketStream<TcpStream>, Message>, did: mpsc::Sender<String>) {
    let (mut sent, mut got) = (0, Vec::new());
    while let Some(event) = socket.next().await {
        let word = match event {
            Event::Open => "open".to_owned(),
            Event::Attach(state) if state == b"strange" => {
                socket.refuse().await;
                "refused".to_owned()
            }
            Event::Attach(state) => {
                (sent, got) = serde_json::from_slice::<(u64, Vec<String>)>(&state).unwrap();
                // Goes out behind `resumed`.
                sent += 1;
                socket.send(Message::text(sent.to_string())).await.unwrap();
                format!("attach {}", got.join(" "))
            }
            Event::Message(message) => {
                let text = message.into_text().unwrap().as_str().to_owned();
                if text == "pinned" || text == "free" {
                    socket.set_movable(text == "free");
                }
                sent += 1;
                let answer = if text == "?" { got.join(" ") } else { sent.to_string() };
                got.push(text.clone());
                let _ = socket.send(Message::text(answer)).await;
                format!("got {text}")
            }
            Event::Detach => {
                sent += 1;
                socket.send(Message::text(sent.to_string())).await.unwrap();
                let state = match got.last().map(String::as_str) {
                    Some("huge") => vec![0; 16 * 1_024 + 1],
                    Some("strange") => b"strange".to_vec(),
                    _ => serde_json::to_vec(&(sent, &got)).unwrap(),
                };
                match socket.detach(state).await {
                    Ok(()) => "detached".to_owned(),
                    Err(error) => {
                        assert!(error != DetachError::NotAsked);
                        error.reason().to_owned()
                    }
                }
            }
        };
        did.send(word).await.unwrap();
    }
    did.send("gone".to_owned()).await.unwrap();
}

/// Two servers, and a client of the first that knows moves.
async fn pair() -> (Fleet, Server, Server, Client) {
    let fleet = Fleet::new();
    let (mut a, b) = tokio::join!(Server::start(&fleet, "a"), Server::start(&fleet, "b"));
    let client = Client::dial(a.addr, "&_eks=session").await.unwrap();
    assert_eq!(a.did().await, "open");
    (fleet, a, b, client)
}

#[tokio::test]
async fn a_client_goes_to_another_server_and_neither_it_nor_the_application_misses_anything() {
    let (fleet, mut a, mut b, mut old) = pair().await;
    a.link.heard_that("report", |report| report["movable"] == 1).await;
    old.send("one").await;
    assert_eq!(old.next().await, "1");
    a.order(&fleet, 1, "draining", 0, 20.0).await;
    let moving = old.heard("move").await;
    assert_eq!((moving["by_ms"].as_u64(), moving["why"].as_str()), (Some(10_000), Some("draining")));

    let (mut new, parked) = park(b.addr, "session", &moving, "").await;
    assert_eq!(parked["at"], format!("b#{}", b.link.hello["inc"]));
    assert_eq!(b.agent.connections(), 0, "nothing is there before it is resumed");
    old.send("two").await;
    old.say(json!({"op": "cut", "mid": moving["mid"], "at": parked["at"]})).await;
    // What a client does not do: nothing may follow a cut.
    old.send("late").await;
    assert_eq!(old.next().await, "2");
    assert_eq!(old.next().await, "3", "the application's last words");
    let done = old.heard("done").await;
    assert_eq!(old.closed().await, (1012, "ek:moved".into()));
    for word in ["got one", "got two", "detached", "gone"] {
        assert_eq!(a.did().await, word);
    }
    assert_eq!(a.link.heard("moved").await, json!({"op": "moved", "mid": moving["mid"], "result": "ok"}));
    a.link.heard("drained").await;

    new.say(json!({"op": "resume", "sid": "session", "mid": moving["mid"], "state": done["state"]})).await;
    new.heard("resumed").await;
    assert_eq!(new.next().await, "4");
    assert_eq!(b.did().await, "attach one two");
    assert_eq!(b.agent.connections(), 1);
    new.send("?").await;
    assert_eq!(new.next().await, "one two");
    b.link.heard_that("report", |report| report["movable"] == 1 && report["connections"] == 1).await;

    // The state is good once, and only where it was sealed for.
    for server in [&b, &a] {
        let Ok(mut thief) = Client::dial(server.addr, "&_ekc=move&_eks=session").await else { continue };
        thief.say(json!({"op": "park", "sid": "session", "mid": moving["mid"]})).await;
        thief.heard("parked").await;
        thief
            .say(json!({"op": "resume", "sid": "session", "mid": moving["mid"], "state": done["state"]}))
            .await;
        assert_eq!(thief.heard("nak").await["why"], "refused");
        assert_eq!(thief.closed().await, (1008, "ek:forbidden".into()));
    }
    assert_eq!(b.agent.connections(), 1);
    assert!(b.controller.address().port() > 0);
}

#[tokio::test]
async fn one_pace_moves_who_can_be_moved_and_closes_who_cannot() {
    let (fleet, mut a, b, old) = pair().await;
    let mut plain = Vec::new();
    for _ in 0..10 {
        let stream = TcpStream::connect(a.addr).await.unwrap();
        plain.push(tokio_tungstenite::client_async(format!("ws://{}/", a.addr), stream).await.unwrap().0);
    }
    // Knows moves, but nothing names its session at both ends.
    let nameless = Client::dial(a.addr, "").await.unwrap();
    let mut pinned = Client::dial(a.addr, "&_eks=pinned").await.unwrap();
    pinned.send("pinned").await;
    assert_eq!(pinned.next().await, "1");
    until("all to be there", || a.agent.connections() == 13).await;
    a.link.heard_that("report", |report| report["movable"] == 1 && report["connections"] == 13).await;
    a.order(&fleet, 1, "draining", 0, 20.0).await;
    let ordered = Instant::now();
    let mover = async {
        let mut old = old;
        let moving = old.heard("move").await;
        let (_new, parked) = park(b.addr, "session", &moving, "").await;
        old.say(json!({"op": "cut", "mid": moving["mid"], "at": parked["at"]})).await;
        old.next().await;
        old.heard("done").await;
        old.closed().await
    };
    let closes = async {
        for socket in plain {
            let client = Client::plain(socket);
            assert_eq!(client.closed().await, (1012, "ek:draining".into()));
        }
        assert_eq!(nameless.closed().await, (1012, "ek:draining".into()));
        assert_eq!(pinned.closed().await, (1012, "ek:draining".into()));
        ordered.elapsed()
    };
    let (moved, took) = tokio::join!(mover, closes);
    assert_eq!(moved, (1012, "ek:moved".into()));
    // Thirteen at 20 a second: all but what half a second's burst lets through at once take their time.
    assert!(took >= Duration::from_millis(90), "{took:?}");
    a.link.heard("drained").await;
}

#[tokio::test]
async fn who_cannot_go_is_asked_again_and_closed_in_the_end() {
    let (fleet, mut a, _b, mut old) = pair().await;
    a.order(&fleet, 1, "draining", 0, 100.0).await;
    // No credit anywhere: that names a time and does not count.
    let mut refused: Option<Instant> = None;
    for _ in 0..3 {
        let moving = old.heard("move").await;
        assert!(refused.is_none_or(|at| at.elapsed() >= Duration::from_millis(1_200)), "asked too soon");
        old.say(json!({"op": "nak", "mid": moving["mid"], "why": "unreachable", "retry_ms": 1_200})).await;
        refused = Some(Instant::now());
        let moved = a.link.heard("moved").await;
        assert_eq!((&moved["result"], &moved["why"]), (&json!("nak"), &json!("unreachable")));
        old.send("still here").await;
        old.next().await;
    }
    for _ in 0..3 {
        let moving = old.heard("move").await;
        old.say(json!({"op": "nak", "mid": moving["mid"], "why": "unreachable"})).await;
    }
    assert_eq!(old.closed().await, (1012, "ek:draining".into()));
    a.link.heard("drained").await;
}

#[tokio::test]
async fn a_notice_without_an_answer_lapses_and_a_drain_closes_the_client_in_its_turn() {
    let (fleet, mut a, _b, mut old) = pair().await;
    a.order(&fleet, 1, "draining", 0, 100.0).await;
    old.heard("move").await;
    let asked = Instant::now();
    assert_eq!(a.link.heard("moved").await["why"], "lapsed");
    assert!(asked.elapsed() > Duration::from_secs(9), "{:?}", asked.elapsed());
    assert_eq!(old.closed().await, (1012, "ek:draining".into()));
}

#[tokio::test]
async fn frames_of_another_socket_are_the_applications_text_and_a_late_cut_is_refused() {
    let (_fleet, mut a, _b, mut old) = pair().await;
    let forged = format!("\u{1e}ek1 {} {{\"op\":\"cut\",\"mid\":\"m\",\"at\":\"b\"}}", "A".repeat(22));
    old.send(&forged).await;
    assert_eq!(old.next().await, "1");
    assert_eq!(a.did().await, format!("got {forged}"));
    old.say(json!({"op": "cut", "mid": "m", "at": "b"})).await;
    assert_eq!(old.heard("nak").await, json!({"op": "nak", "mid": "m", "why": "expired"}));
    old.say(json!({"op": "dance", "mid": "m"})).await;
    assert_eq!(old.heard("nak").await["why"], "unsupported");
    old.send("on").await;
    assert_eq!(old.next().await, "2");
    assert_eq!(a.did().await, "got on");
}

#[tokio::test]
async fn a_state_that_cannot_be_handed_over_costs_the_client_a_gap_and_no_more() {
    let (fleet, mut a, mut b, mut old) = pair().await;
    old.send("huge").await;
    old.next().await;
    a.order(&fleet, 1, "draining", 0, 20.0).await;
    let moving = old.heard("move").await;
    let (new, parked) = park(b.addr, "session", &moving, "").await;
    old.say(json!({"op": "cut", "mid": moving["mid"], "at": parked["at"]})).await;
    assert_eq!(old.next().await, "2");
    assert_eq!(old.closed().await, (1012, "ek:timed_out".into()));
    assert_eq!(a.link.heard("moved").await["result"], "nak");
    for word in ["got huge", "too_large", "gone"] {
        assert_eq!(a.did().await, word);
    }
    drop(new);
    assert_eq!(b.did().await, "gone", "and nothing else was heard of it");
}

#[tokio::test]
async fn an_application_may_refuse_what_another_hands_over() {
    let (fleet, mut a, mut b, mut old) = pair().await;
    old.send("strange").await;
    old.next().await;
    a.order(&fleet, 1, "draining", 0, 20.0).await;
    let moving = old.heard("move").await;
    let (mut new, parked) = park(b.addr, "session", &moving, "").await;
    old.say(json!({"op": "cut", "mid": moving["mid"], "at": parked["at"]})).await;
    old.next().await;
    let done = old.heard("done").await;
    new.say(json!({"op": "resume", "sid": "session", "mid": moving["mid"], "state": done["state"]})).await;
    assert_eq!(new.heard("nak").await["why"], "refused");
    assert_eq!(new.closed().await, (1008, "ek:forbidden".into()));
    assert_eq!(b.did().await, "refused");
    until("it to be gone", || b.agent.connections() == 0).await;
}

#[tokio::test]
async fn a_server_told_to_drain_closes_who_has_not_parked_and_takes_no_more_who_would() {
    let (fleet, _a, mut b, _old) = pair().await;
    let waiting = Client::dial(b.addr, "&_ekc=move&_eks=s").await.unwrap();
    let mut parked = Client::dial(b.addr, "&_ekc=move&_eks=t").await.unwrap();
    parked.say(json!({"op": "park", "sid": "t", "mid": "m"})).await;
    parked.heard("parked").await;
    b.order(&fleet, 1, "draining", 0, 20.0).await;
    assert_eq!(waiting.closed().await, (1012, "ek:draining".into()));
    match Client::dial(b.addr, "&_ekc=move&_eks=s").await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["evenkeel-draining"], "1");
        }
        other => panic!("not refused: {:?}", other.map(|client| client.ctl)),
    }
    // Its old server may be handing over: it has five seconds, and the server is not drained before.
    assert_eq!(parked.closed().await, (1012, "ek:timed_out".into()));
    b.link.heard("drained").await;
}

#[tokio::test]
async fn a_leaving_server_moves_its_clients_without_being_told() {
    let (_fleet, a, b, mut old) = pair().await;
    let leaving = tokio::spawn({
        let agent = a.agent.clone();
        async move { agent.leave(50.0, Duration::from_secs(10)).await }
    });
    let moving = old.heard("move").await;
    assert_eq!(moving["why"], "stopped");
    let (mut new, parked) = park(b.addr, "session", &moving, "").await;
    old.say(json!({"op": "cut", "mid": moving["mid"], "at": parked["at"]})).await;
    old.next().await;
    let done = old.heard("done").await;
    assert_eq!(old.closed().await, (1012, "ek:moved".into()));
    new.say(json!({"op": "resume", "sid": "session", "mid": moving["mid"], "state": done["state"]})).await;
    new.heard("resumed").await;
    assert_eq!(soon("the end", leaving).await.unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_hands_nothing_over_says_so_and_takes_nothing_over() {
    let controller = Controller::start("secret").await;
    let mut config = AgentConfig::new("plain", "ws://127.0.0.1:9001");
    config.controllers = vec![format!("http://{}", controller.address())];
    config.token = Token::Text("secret".into());
    config.admit = Some(AdmitPolicy::All);
    let agent = AgentHandle::start(config).unwrap();
    let link = controller.linked().await;
    assert!(link.hello["caps"].as_array().is_none_or(Vec::is_empty), "{}", link.hello);
    let target = "/?_ekc=move&_eks=s&_ekm=AAAAAAAAAAAAAAAAAAAAAA";
    let handshake = Handshake { target, host: "h", origin: None, assignment: None, conn: None };
    let refused = agent.admit(&handshake).unwrap_err();
    assert_eq!((refused.status(), refused.reason()), (503, "no_moves"));
}
