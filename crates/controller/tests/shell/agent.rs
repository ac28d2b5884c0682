//! The dialogue of an agent (docs/reference), by one that was written from the description alone.

use std::os::unix::fs::PermissionsExt;

use evenkeel_fleet::snapshot::Outcome;
use evenkeel_model::{Duration, Incarnation, Instant, ServerId};
use evenkeel_protocol::keys::{LiveKeys, MasterKey, TokenKeys};
use evenkeel_protocol::message::{Down, parse_down};
use evenkeel_protocol::token::{Audience, Cause, Claims, Refusal, Verifier, mint};
use evenkeel_runtime::Clock;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::kit::{PATIENCE, World, config, directory, fleet};

struct Agent(WebSocketStream<MaybeTlsStream<TcpStream>>);

fn hello(id: &str, inc: u64) -> Value {
    json!({"op": "hello", "ver": 1, "id": id, "inc": inc, "url": "ws://127.0.0.1:9001", "capacity": 100, "caps": []})
}

fn report(inc: u64, seq: u64, connections: u32) -> Value {
    json!({"op": "report", "inc": inc, "seq": seq, "connections": connections, "movable": 0, "cpu": 0.1, "unknown": 1, "memory": null})
}

impl Agent {
    async fn dial(world: &World) -> Self {
        let mut request = format!("ws://{}/v1/agent", world.addr).into_client_request().unwrap();
        let bearer = format!("Bearer {}", world.token).parse().unwrap();
        request.headers_mut().insert("Authorization", bearer);
        Self(connect_async(request).await.unwrap().0)
    }

    /// Dials and is welcome.
    async fn welcome(world: &World, id: &str, inc: u64) -> Self {
        let mut agent = Self::dial(world).await;
        agent.say(&hello(id, inc)).await;
        agent.hear("welcome").await;
        agent
    }

    async fn say(&mut self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    async fn text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn frame(&mut self) -> Message {
        let frame =
            tokio::time::timeout(PATIENCE, self.0.next()).await.expect("the controller says something");
        frame.expect("the link is open").unwrap()
    }

    /// The next message of that name.
    async fn hear(&mut self, op: &str) -> Value {
        loop {
            if let Message::Text(text) = self.frame().await {
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["op"] == op {
                    return message;
                }
                assert_eq!(message["op"], "desired", "waiting for {op}");
            }
        }
    }

    /// The next order that is as `wanted`.
    async fn desired(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let desired = self.hear("desired").await;
            if wanted(&desired) {
                return desired;
            }
        }
    }

    /// The Close, after whatever else.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(Some(close)) = self.frame().await {
                return (close.code.into(), close.reason.to_string());
            }
        }
    }
}

#[tokio::test]
async fn link_needs_the_token() {
    let world = World::with_servers(&[]).await;
    match connect_async(format!("ws://{}/v1/agent", world.addr)).await {
        Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), 401),
        other => panic!("{other:?}"),
    }
    let plain = world.get("/v1/agent").await;
    assert_eq!(plain.status, 426, "{plain:?}");
    world.end().await;
}

/// The names and algorithms of the keys in a message.
fn names(message: &Value) -> Vec<(String, String)> {
    let text = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
    message["keys"].as_array().unwrap().iter().map(|key| (text(key, "kid"), text(key, "alg"))).collect()
}

/// The keys of a message as an agent takes them.
fn live(message: &Value) -> LiveKeys {
    match parse_down(&message.to_string()).unwrap().message {
        Down::Welcome(welcome) => LiveKeys::read(&welcome.keys),
        Down::Keys(keys) => LiveKeys::read(&keys),
        other => panic!("{other:?}"),
    }
}

/// What a gateway with that master key would mint for server `a` in its life 7.
fn minted(master: &MasterKey, now: Instant) -> String {
    let aud = Audience { server: ServerId::new("a").unwrap(), inc: Incarnation(7) };
    let iat = now.as_millis() / 1_000;
    let claims = Claims {
        aud: aud.clone(),
        iat,
        exp: iat + 30,
        jti: "j".to_owned(),
        rid: "r".to_owned(),
        sid: "s".to_owned(),
        path: "/".to_owned(),
        org: None,
        cause: Cause::Start,
        caps: Vec::new(),
    };
    mint(TokenKeys::new(master.clone()).signing(&aud, now), &claims).unwrap()
}

#[tokio::test]
async fn an_agent_has_the_keys_of_its_life_and_another_master_key_makes_the_old_ones_void() {
    let settings = fleet("chat", &[]);
    let path = settings.key_file.clone();
    let world = World::with_fleets(vec![settings]).await;
    let master = || MasterKey::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut agent = Agent::dial(&world).await;
    agent.say(&hello("a", 7)).await;
    let welcome = agent.hear("welcome").await;
    let kinds: Vec<_> = names(&welcome).into_iter().map(|(_, alg)| alg).collect();
    assert_eq!(kinds, ["HS256", "HS256", "A256GCM", "A256GCM"]);

    let now = Instant::from_millis(welcome["now_ms"].as_u64().unwrap());
    let (before, aud) = (master(), Audience::parse("a#7").unwrap());
    let token = minted(&before, now);
    let mut verifier = Verifier::new(aud.clone());
    verifier.set_keys(live(&welcome).tokens);
    assert_eq!(verifier.verify(token.as_bytes(), "/", None, now).unwrap().aud, aud);

    let after = MasterKey::from_bytes([7; 32]);
    std::fs::write(&path, after.to_text()).unwrap();
    let keys = agent.hear("keys").await;
    assert!(keys["now_ms"].as_u64().unwrap() > 1_700_000_000_000, "{keys}");
    assert_eq!(names(&keys), names(&welcome), "the names are of the day, not of the key");
    let mut verifier = Verifier::new(aud);
    verifier.set_keys(live(&keys).tokens);
    assert_eq!(verifier.verify(token.as_bytes(), "/", None, now), Err(Refusal::Signature));
    assert!(verifier.verify(minted(&after, now).as_bytes(), "/", None, now).is_ok());
    world.end().await;
}

#[tokio::test]
async fn a_public_url_that_could_lead_a_client_astray_is_refused_and_the_server_not_taken() {
    let world = World::with_servers(&[]).await;
    for bad in [
        "https://a.example",
        "wss://u:p@a.example",
        "wss://a.example/?x",
        "wss://a.example#f",
        "wss://0.0.0.0",
    ] {
        let mut agent = Agent::dial(&world).await;
        let mut hello = hello("a", 7);
        hello["public_url"] = bad.into();
        agent.say(&hello).await;
        let error = agent.hear("error").await;
        let why = error["why"].as_str().unwrap();
        assert!(why.contains("public_url") && why.contains(bad), "{why}");
        assert_eq!(agent.closed().await, (1008, "ek:bad_field".to_owned()), "{bad}");
    }
    assert_eq!(world.get("/v1/servers").await.json(), json!([]));
    world.end().await;
}

#[tokio::test]
async fn a_controller_does_not_start_with_a_key_that_others_can_read() {
    let settings = fleet("chat", &[]);
    std::fs::write(&settings.key_file, MasterKey::from_bytes([7; 32]).to_text()).unwrap();
    std::fs::set_permissions(&settings.key_file, PermissionsExt::from_mode(0o644)).unwrap();
    let config = config(&directory(), "127.0.0.1:0".parse().unwrap(), vec![settings]);
    let error = World::start(config).await.err().unwrap();
    assert_eq!(error.reason(), "key_file_open");
    assert!(error.to_string().contains("0644"), "{error}");
}

#[tokio::test]
async fn what_an_agent_says_of_assignments_reaches_the_gateways_as_of_its_server() {
    let mut world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "a", 7).await;
    let event = json!({"op": "event", "events": [{"rid": "x-1", "state": "connected"}, {"rid": "x-2", "state": "expired"}]});
    agent.say(&event).await;
    let settled = tokio::time::timeout(PATIENCE, world.settled.recv()).await.unwrap().unwrap();
    assert_eq!((settled.fleet.as_str(), settled.server.as_str()), ("chat", "a"));
    let outcomes = [("x-1".to_owned(), Outcome::Connected), ("x-2".to_owned(), Outcome::Expired)];
    assert_eq!(settled.outcomes, outcomes);
    // Nobody takes them any more: they are dropped, and the link goes on.
    for _ in 0..20 {
        agent.say(&event).await;
    }
    agent.say(&report(7, 1, 3)).await;
    world.peer().wait_for_server("a", |server| server["connections"] == 3).await;
    let metrics = world.get("/metrics").await.body;
    let dropped = r#"evenkeel_controller_dropped_total{fleet="chat",what="settlements"} 4"#;
    assert!(metrics.contains(dropped), "{metrics}");
    world.end().await;
}

#[tokio::test]
async fn hello_is_welcome_and_each_report_renews_the_lease() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::dial(&world).await;
    agent.say(&hello("s1", 7)).await;
    let welcome = agent.hear("welcome").await;
    assert!(welcome["now_ms"].as_u64().unwrap() > 1_700_000_000_000, "{welcome}");
    assert_eq!(welcome["report_ms"], 1000, "{welcome}");
    let first = agent.hear("desired").await;
    assert_eq!((&first["state"], &first["lease_ms"]), (&"active".into(), &5000.into()), "{first}");
    for seq in 1..4 {
        agent.say(&report(7, seq, 12)).await;
        let again = agent.hear("desired").await;
        assert_eq!((&again["epoch"], &again["state"]), (&first["epoch"], &first["state"]));
    }
    let server = world.peer().wait_for_server("s1", |server| server["state"] == "active").await;
    assert_eq!(
        (&server["connections"], &server["inc"], &server["health"]),
        (&12.into(), &7.into(), &"ok".into())
    );
    world.end().await;
}

#[tokio::test]
async fn drain_is_told_at_once_and_applied_is_taken() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "s1", 1).await;
    agent.say(&report(1, 1, 3)).await;
    let ordered = world.post("/v1/servers/s1/drain", "{\"force\": true}").await;
    assert_eq!(ordered.status, 200, "{ordered:?}");
    let desired = agent.desired(|desired| desired["state"] == "draining").await;
    assert_eq!(
        (&desired["gen"], &desired["epoch"]),
        (&ordered.json()["desired"]["gen"], &ordered.json()["desired"]["epoch"])
    );
    let fence = |op: &str| json!({"op": op, "epoch": desired["epoch"], "gen": desired["gen"]});
    agent.say(&fence("applied")).await;
    agent.say(&json!({"op": "event", "events": [{"rid": "r", "state": "connected"}]})).await;
    agent.say(&json!({"op": "moved", "mid": "m", "result": "nak", "why": "busy"})).await;
    agent.say(&report(1, 2, 0)).await;
    agent.say(&fence("drained")).await;
    world.peer().wait_for_server("s1", |server| server["state"] == "drained").await;
    let metrics = world.get("/metrics").await.body;
    assert!(
        metrics.contains("evenkeel_controller_moves_total{fleet=\"chat\",result=\"nak\"} 1"),
        "{metrics}"
    );
    world.end().await;
}

#[tokio::test]
async fn unusable_message_is_answered_with_error_and_close_1008() {
    let world = World::with_servers(&[]).await;
    for (first, text, code) in [
        (false, "{", "bad_message"),
        (false, "[]", "bad_message"),
        (false, r#"{"op": "report", "inc": 1, "seq": 1, "connections": 0, "movable": 0}"#, "unexpected"),
        (
            false,
            r#"{"op": "hello", "ver": 2, "id": "x", "inc": 1, "url": "ws://a:1", "caps": []}"#,
            "unsupported_version",
        ),
        (false, r#"{"op": "hello", "ver": 1, "id": "x", "inc": 1, "caps": []}"#, "missing_field"),
        (
            false,
            r#"{"op": "hello", "ver": 1, "id": "x", "inc": 1, "url": "wss://a:1", "caps": []}"#,
            "bad_field",
        ),
        (
            false,
            r#"{"op": "hello", "ver": 1, "id": "x", "inc": 1, "url": "ws://a:1", "caps": [], "fleet": "nope"}"#,
            "unknown_fleet",
        ),
        (true, r#"{"op": "sing"}"#, "unknown_op"),
        (
            true,
            r#"{"op": "report", "inc": 1, "seq": 1, "connections": 0, "movable": 0, "cpu": NaN}"#,
            "bad_message",
        ),
        (
            true,
            r#"{"op": "report", "inc": 1, "seq": 1, "connections": 0, "movable": 0, "cpu": -1}"#,
            "bad_field",
        ),
        (true, r#"{"op": "report", "inc": 2, "seq": 1, "connections": 0, "movable": 0}"#, "bad_field"),
    ] {
        let mut agent = if first { Agent::welcome(&world, "s1", 1).await } else { Agent::dial(&world).await };
        agent.text(text).await;
        let error = agent.hear("error").await;
        assert!(!error["why"].as_str().unwrap().is_empty(), "{text} {error}");
        assert_eq!(agent.closed().await, (1008, format!("ek:{code}")), "{text}");
        // Its link is gone, so the same life is welcome again.
        world.peer().get("/v1/servers").await;
    }
    let mut agent = Agent::dial(&world).await;
    agent.0.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(agent.closed().await, (1008, String::from("ek:bad_message")));
    world.end().await;
}

#[tokio::test]
async fn older_or_doubled_life_is_told_stale_and_may_go_on_with_a_higher_one() {
    let world = World::with_servers(&[]).await;
    let mut first = Agent::welcome(&world, "s1", 5).await;
    let mut second = Agent::dial(&world).await;
    for inc in [4, 5] {
        second.say(&hello("s1", inc)).await;
        let stale = second.hear("stale").await;
        assert_eq!(stale["known"], 5, "{stale}");
    }
    second.say(&hello("s1", 6)).await;
    second.hear("welcome").await;
    assert_eq!(first.closed().await, (1008, String::from("ek:replaced")));
    world.end().await;
}

#[tokio::test]
async fn agent_that_lost_its_link_comes_back_with_its_own_life() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "s1", 5).await;
    agent.say(&report(5, 1, 4)).await;
    let peer = world.peer();
    peer.wait_for_server("s1", |server| server["state"] == "active").await;
    drop(agent);
    peer.wait_for_server("s1", |server| server["health"] == "suspect").await;
    let mut agent = Agent::welcome(&world, "s1", 5).await;
    agent.say(&report(5, 2, 4)).await;
    peer.wait_for_server("s1", |server| server["health"] == "ok").await;
    world.end().await;
}

#[tokio::test]
async fn silent_agent_is_suspect_while_its_link_stays() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "s1", 1).await;
    agent.say(&report(1, 1, 4)).await;
    let peer = world.peer();
    peer.wait_for_server("s1", |server| server["health"] == "ok" && server["state"] == "active").await;
    peer.wait_for_server("s1", |server| server["health"] == "suspect").await;
    agent.say(&report(1, 2, 4)).await;
    peer.wait_for_server("s1", |server| server["health"] == "ok").await;
    for other in [
        json!({"op": "event", "events": [{"rid": "r", "state": "expired"}]}),
        json!({"op": "moved", "mid": "m", "result": "ok"}),
        json!({"op": "applied", "epoch": 1, "gen": 0}),
    ] {
        peer.wait_for_server("s1", |server| server["health"] == "suspect").await;
        agent.say(&other).await;
        peer.wait_for_server("s1", |server| server["health"] == "ok").await;
    }
    world.end().await;
}

#[tokio::test]
async fn too_long_a_message_ends_the_link() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "s1", 1).await;
    agent.text(&format!("{{\"op\": \"report\", \"x\": \"{}\"}}", "x".repeat(70_000))).await;
    let ended = async { while let Some(Ok(_)) = agent.0.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the link ends");
    world.end().await;
}

#[tokio::test]
async fn fleet_of_a_hello_decides_where_there_are_several() {
    let world = World::with_fleets(vec![fleet("chat", &["a"]), fleet("game", &[])]).await;
    let mut agent = Agent::dial(&world).await;
    agent.say(&hello("new", 1)).await;
    assert_eq!(agent.closed().await, (1008, String::from("ek:missing_field")));
    let mut agent = Agent::dial(&world).await;
    let mut stolen = hello("a", 1);
    stolen["fleet"] = "game".into();
    agent.say(&stolen).await;
    assert_eq!(agent.closed().await, (1008, String::from("ek:forbidden")));
    // A configured server need not say it.
    Agent::welcome(&world, "a", 1).await;
    world.end().await;
}

#[tokio::test]
async fn stop_of_the_controller_ends_links_promptly() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "s1", 1).await;
    let end = tokio::time::timeout(Duration::from_secs(10), world.end());
    let (ended, close) = tokio::join!(end, agent.closed());
    ended.expect("it ends");
    assert_eq!(close, (1012, String::from("ek:stopped")));
}

#[tokio::test]
async fn flooding_agent_is_slowed_down_and_nothing_of_it_is_lost() {
    let world = World::with_servers(&[]).await;
    let mut agent = Agent::welcome(&world, "a", 1).await;
    let clock = Clock::start();
    let began = clock.now();
    for seq in 1..=2_500 {
        agent.say(&report(1, seq, 7)).await;
    }
    let counted =
        |line: &&str| line.starts_with("evenkeel_controller_reports_total") && line.contains("taken");
    loop {
        let metrics = world.get("/metrics").await.body;
        if metrics.lines().find(counted).is_some_and(|line| line.ends_with(" 2500")) {
            break;
        }
        assert!(clock.now().since(began) < PATIENCE, "{metrics}");
        clock.sleep(Duration::from_millis(50)).await;
    }
    assert!(clock.now().since(began) >= Duration::from_secs(2), "a thousand a second");
    world.end().await;
}

#[tokio::test]
async fn agent_that_is_stale_again_and_again_loses_its_link() {
    let world = World::with_servers(&[]).await;
    let _living = Agent::welcome(&world, "a", 5).await;
    let mut other = Agent::dial(&world).await;
    for _ in 0..8 {
        other.say(&hello("a", 1)).await;
        assert_eq!(other.hear("stale").await["known"], 5);
    }
    assert_eq!(other.closed().await, (1008, String::from("ek:stale")));
    world.end().await;
}
